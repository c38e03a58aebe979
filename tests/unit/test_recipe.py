"""Recipes: strict scalars, `extends`, overrides, messages that say where, and the way back to YAML."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitscale import recipe
from vitscale.config import PublishConfig
from vitscale.errors import RecipeError

LINES = {
    "name": "name: tiny",
    "model": "model: {patch_size: 4, width: 8, depth: 2, num_heads: 2, mlp_dim: 16, image_size: 8}",
    "data": "data: {train: {manifest: train.json}}",
    "train": "train: {global_batch: 8, total: {epochs: 2}}",
    "optim": "optim: {lr: 0.5}",
}


def text(**changed):
    """The small recipe with some of its lines replaced or added."""
    return "\n".join({**LINES, **changed}.values()) + "\n"


def refused(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        recipe.load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("2", 2.0), (".5", 0.5), ("1.", 1.0), ("1_000.5", 1000.5), ("+1e2", 100.0)],
)
def test_yaml_12_floats(write_recipe, written, meant):
    lr = recipe.load(write_recipe(text(optim=f"optim: {{lr: {written}}}"))).optim.lr
    assert (type(lr), lr) == (float, meant)


@pytest.mark.parametrize(("written", "meant"), [("010", 10), ("10_000", 10_000), ("+7", 7), ("0", 0)])
def test_yaml_12_integers(write_recipe, written, meant):
    assert recipe.load(write_recipe(text(seed=f"seed: {written}"))).seed == meant


@pytest.mark.parametrize(
    "word", ["no", "yes", "on", "off", "24:00:00", "2026-01-31", "1_", "1__0", "_1", "1e", "0x", "=", "<<"]
)
def test_words_that_look_like_something_else_are_strings(write_recipe, word):
    cfg = recipe.load(write_recipe(text(tracking=f"tracking: {{experiment: {word}}}")))
    assert cfg.tracking.experiment == word


@pytest.mark.parametrize("quoted", ['"010"', "'1e-3'", '"null"', "'true'"])
def test_quoted_scalars_are_strings(write_recipe, quoted):
    assert recipe.load(write_recipe(text(runs=f"runs: {quoted}"))).runs == quoted[1:-1]


@pytest.mark.parametrize("word", ["null", "~", "Null", ""])
def test_nulls(write_recipe, word):
    assert recipe.load(write_recipe(text(publish=f"publish: {word}"))).publish is None


def test_a_key_given_twice_is_an_error_with_its_line(write_recipe):
    path = write_recipe(text(more="name: other"))
    assert f"{path}:6: name is given twice" in refused(path)


def test_a_nested_key_given_twice_is_an_error_with_its_line(write_recipe):
    path = write_recipe(text(optim="optim:\n  lr: 1\n  name: sgd\n  lr: 2"))
    assert f"{path}:8: optim.lr is given twice" in refused(path)


def test_an_unknown_key_is_an_error_with_its_line_and_a_suggestion(write_recipe):
    path = write_recipe(text(train="train:\n  globl_batch: 8\n  global_batch: 8\n  total: {epochs: 2}"))
    message = refused(path)
    assert f"{path}:5: unknown key train.globl_batch; did you mean global_batch?" in message
    assert "label_smoothing" in message  # among what is allowed


@pytest.mark.parametrize(
    ("line", "key", "close"),
    [
        ({"optm": "optm: 3"}, "optm", "optim"),
        ({"init": "init: {form: here}"}, "init.form", "from"),
        ({"init": "init: {from: here, source: there}"}, "init.source", ""),
        ({"data": "data: {train: {manifests: a}}"}, "data.train.manifests", "manifest"),
        ({"data": "data: {train: [{manifest: a}, {manifests: b}]}"}, "data.train.1.manifests", "manifest"),
        ({"data": "data: {train: {manifest: a}, val: {manifest: b, weight: 2}}"}, "data.val.weight", ""),
        ({"optim": "optim: {lr: 1, schedule: {warm: {steps: 1}}}"}, "optim.schedule.warm", "warmup"),
    ],
)
def test_suggestions_at_every_depth(write_recipe, line, key, close):
    message = refused(write_recipe(text(**line)))
    assert f"unknown key {key};" in message
    assert not close or f"did you mean {close}?" in message


def test_a_parent_gives_values_and_the_child_wins(write_recipe):
    write_recipe(text(seed="seed: 1", runs="runs: of-parent"), "parent.yaml")
    cfg = recipe.load(write_recipe("extends: parent.yaml\nseed: 2\noptim: {name: sgd}\n"))
    assert (cfg.seed, cfg.runs, cfg.optim.name, cfg.optim.lr) == (2, "of-parent", "sgd", 0.5)


def test_of_several_parents_the_later_wins(write_recipe):
    write_recipe(text(seed="seed: 1", runs="runs: first"), "a.yaml")
    write_recipe("runs: second\n", "b/c.yaml")
    cfg = recipe.load(write_recipe("extends: [a.yaml, b/c.yaml]\n"))
    assert (cfg.seed, cfg.runs) == (1, "second")


def test_parents_are_relative_to_the_file_that_names_them(write_recipe):
    write_recipe(text(), "deep/base.yaml")
    write_recipe("extends: ../base.yaml\n", "deep/er/middle.yaml")
    assert recipe.load(write_recipe("extends: deep/er/middle.yaml\nname: leaf\n")).name == "leaf"


def test_a_circle_of_parents_is_an_error(write_recipe):
    write_recipe("extends: b.yaml\n", "a.yaml")
    assert "extends itself" in refused(write_recipe("extends: a.yaml\n", "b.yaml"))


def test_a_missing_parent_is_an_error_with_its_line(write_recipe):
    path = write_recipe("name: x\nextends: gone.yaml\n")
    assert f"{path}:2: extends gone.yaml" in refused(path)


@pytest.mark.parametrize("parents", ["3", "[3]", "{a: b}", "null", "true", "[[a.yaml]]"])
def test_parents_that_are_no_paths_are_an_error(write_recipe, parents):
    path = write_recipe(text(extends=f"extends: {parents}"))
    assert f"{path}:6: extends" in refused(path)


def test_an_error_in_a_parent_names_the_parent(write_recipe):
    parent = write_recipe(text(optim="optim: {lr: fast}"), "parent.yaml")
    assert f"{parent}:5: optim.lr" in refused(write_recipe("extends: parent.yaml\n"))


def test_overrides_change_leaves_and_keep_their_neighbours(write_recipe):
    cfg = recipe.load(write_recipe(text()), ["optim.lr=2e-3", "model.depth=5", "data.mean=[0.1, 0.2, 0.3]", "optim.lr=3e-3"])
    assert (cfg.optim.lr, cfg.model.depth, cfg.model.width, cfg.data.mean) == (0.003, 5, 8, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("override", ["train.total.steps=5", "train.total={steps: 5}"])
def test_a_duration_replaces_a_duration(write_recipe, override):
    assert recipe.load(write_recipe(text()), [override]).train.total.model_dump() == {
        "steps": 5,
        "samples": None,
        "epochs": None,
    }


def test_a_childs_duration_replaces_its_parents(write_recipe):
    write_recipe(text(), "parent.yaml")
    cfg = recipe.load(write_recipe("extends: parent.yaml\ntrain: {total: {samples: 9}}\n"))
    assert (cfg.train.total.samples, cfg.train.total.epochs, cfg.train.global_batch) == (9, None, 8)


def test_only_durations_replace_each_other(write_recipe):
    (source,) = recipe.load(write_recipe(text()), ["data.train.samples=80"]).data.train
    assert (source.manifest, source.samples) == ("train.json", 80)


@pytest.mark.parametrize("override", ["publish=null", "publish=", "publish=~"])
def test_null_removes_a_section(write_recipe, override):
    path = write_recipe(text(publish="publish: {name: a, alias: b}"))
    assert recipe.load(path).publish == PublishConfig(name="a", alias="b")
    assert recipe.load(path, [override]).publish is None


def test_a_section_can_be_given_where_there_was_none(write_recipe):
    cfg = recipe.load(write_recipe(text()), ["init.from=models:/a@b"])
    assert (cfg.init.source, cfg.init.pos_embed) == ("models:/a@b", "linear")


def test_a_value_may_hold_an_equals_sign(write_recipe):
    assert recipe.load(write_recipe(text()), ["tracking.uri=http://x?a=b"]).tracking.uri == "http://x?a=b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.learning_rate=1", "override optim.learning_rate=1: unknown key optim.learning_rate"),
        ("optim.lr=fast", "override optim.lr=fast: optim.lr: .*found 'fast'"),
        ("optim={lr: fast}", r"override optim=\{lr: fast\}: optim.lr"),
        ("optim.lr", "'optim.lr': an override is KEY=VALUE"),
        ("=3", "'=3': an override is KEY=VALUE"),
        ("optim..lr=3", r"'optim\.\.lr=3': an override is KEY=VALUE"),
        ("optim.lr=[1", r"override optim.lr=\[1: not YAML"),
        ("optim.lr.x=1", "optim.lr"),
        ("name.x=1", "name"),
    ],
)
def test_bad_overrides_are_named(write_recipe, override, said):
    assert re.search(said, refused(write_recipe(text()), override))


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("train: {global_batch: '8', total: {epochs: 2}}", "train.global_batch"),
        ("train: {global_batch: 8.5, total: {epochs: 2}}", "train.global_batch"),
        ("train: {global_batch: true, total: {epochs: 2}}", "train.global_batch"),
        ("train: {global_batch: [8], total: {epochs: 2}}", "train.global_batch"),
        ("train: {global_batch: 8, total: 2}", "train.total"),
        ("train: {global_batch: 8, total: {epochs: true}}", "train.total.epochs"),
        ("train: 8", "train"),
    ],
)
def test_wrong_types_are_errors_with_their_line(write_recipe, line, key):
    path = write_recipe(text(train=line))
    assert f"{path}:4: {key}" in refused(path)


@pytest.mark.parametrize(
    "override", ["data.augment.flip=1", "data.augment.flip=yes", "name=3", "data.mean=[a, b, c]", "data.std=1"]
)
def test_values_are_never_converted(write_recipe, override):
    assert override.split("=")[0] in refused(write_recipe(text()), override)


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr=0",
        "optim.lr=.nan",
        "optim.lr=.inf",
        "optim.betas=[2, -1]",
        "data.std=[0.5, 0, 0.5]",
        "seed=18446744073709551616",
        "train.total.steps=-1",
        "train.label_smoothing=1",
        "model.dropout=1",
        "checkpoint.keep=1",
        "data.eval_crop=1.01",
        "hardware.zero_stage=4",
        "optim.name=adam",
        "seed=-1",
    ],
)
def test_values_out_of_range_are_errors(write_recipe, override):
    assert f"override {override}: {override.split('=')[0]}" in refused(write_recipe(text()), override)


def test_what_is_missing_is_named(write_recipe):
    assert "optim.lr is missing" in refused(write_recipe(text(optim="optim: {name: sgd}")))


@pytest.mark.parametrize("content", ["just words", "- a\n- b\n", "a: [", "a: b: c", "name: x\n---\nname: y\n", "\t", "a: \x01"])
def test_what_is_no_recipe_is_an_error(write_recipe, content):
    assert "recipe.yaml" in refused(write_recipe(content))


def test_what_is_no_text_is_an_error(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    assert str(path) in refused(path)


def test_a_missing_recipe_says_where_it_was_looked_for(tmp_path):
    assert str(recipe.recipes_dir()) in refused(tmp_path / "gone.yaml")


def test_every_problem_is_said_at_once(write_recipe):
    message = refused(write_recipe(text()), "optim.lr=0", "seed=-1", "model.depht=3")
    assert all(key in message for key in ("optim.lr", "seed", "model.depht"))


def test_shipped_recipes_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.find("recipes/demo/pretrain.yaml") == recipe.find("demo/pretrain.yaml")


AWKWARD = [
    "no",
    "1e-3",
    "010",
    "10_000",
    "24:00:00",
    "null",
    "~",
    "",
    " ",
    "true",
    ".inf",
    ".NaN",
    "- a",
    "a: b",
    "a #b",
    "'",
    '"',
    "1_",
]


@pytest.mark.parametrize("word", AWKWARD)
def test_strings_that_look_like_other_things_survive_dump_and_load(config, write_recipe, word):
    cfg = config().model_copy(update={"publish": PublishConfig(name="a", alias="b", licence=word)})
    assert recipe.load(write_recipe(recipe.dump(cfg))).publish.licence == word


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(word=st.text(), lr=st.floats(1e-300, 1e300), seed=st.integers(0, 2**64 - 1), crop=st.floats(0.001, 1.0))
def test_dump_and_load_give_the_same_config(config, write_recipe, word, lr, seed, crop):
    before = config("train.total.samples=3", "init.from=x", f"seed={seed}")
    changes = {"optim": before.optim.model_copy(update={"lr": lr}), "data": before.data.model_copy(update={"eval_crop": crop})}
    before = before.model_copy(update={**changes, "publish": PublishConfig(name="a", alias="b", licence=word)})
    assert recipe.load(write_recipe(recipe.dump(before))) == before


def test_an_alias_inside_its_own_anchor_is_refused(write_recipe):
    with pytest.raises(RecipeError, match=r"an alias \(\*\) in it refers to what it stands in"):
        recipe.load(write_recipe("name: &a [*a]\n"))


@pytest.mark.parametrize(
    "key, value", [("name", "a/b"), ("name", "a:b"), ("alias", "latest"), ("alias", "v1"), ("alias", "a.b")]
)
def test_names_that_mlflow_refuses_are_refused_before_training(write_recipe, key, value):
    published = {"name": "net", "alias": "best", key: value}
    with pytest.raises(RecipeError, match=rf"publish\.{key}: .*'{value}' is no "):
        recipe.load(write_recipe(text(publish=f"publish: {json.dumps(published)}")))
