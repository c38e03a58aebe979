"""What is found wrong before any process starts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.manifest import write_manifest
from vitscale import recipe
from vitscale.errors import LaunchError, ModelError, RecipeError
from vitscale.preflight import check, check_compiler, check_launch, check_loader_memory, check_source
from vitscale.rundir import RunDir

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "RANK": "0"}  # what it always sets


@pytest.fixture
def sound(config, shards):
    """A recipe on shards that are there, with overrides."""
    manifests = [f"data.{split}.manifest={manifest.location}" for split, manifest in shards.items()]
    return lambda *overrides: config(*manifests, *overrides)


def test_a_sound_run_passes(sound):
    assert check(sound(), ranks=2, environ=ACCELERATE) is None


@pytest.mark.parametrize(
    ("found", "key", "values"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "hardware.precision", ("bf16", "fp16")),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "hardware.zero_stage", ("1", "3")),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "16"}, "gradient accumulation", ("1", "16")),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "a DeepSpeed config file", ("recipe",)),
    ],
)
def test_launch_settings_that_contradict_the_recipe_are_named_with_it(config, found, key, values):
    with pytest.raises(LaunchError) as caught:
        check_launch(config(), 1, {**ACCELERATE, **found})
    assert all(word in str(caught.value) for word in (key, *values))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_is_compared_with_the_launched_one(config, stage):
    layout = (f"hardware.zero_stage={stage}", "train.global_batch=8", "hardware.micro_batch=2")
    settings = {**ACCELERATE, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    check_launch(config(*layout), 2, {**settings, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)})
    with pytest.raises(LaunchError, match=rf"hardware.zero_stage: the recipe says {stage}, .* say {stage + 1}"):
        check_launch(config(*layout), 2, {**settings, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage + 1)})
    with pytest.raises(LaunchError, match=r"gradient accumulation: the recipe says 4, .* say 2"):
        check_launch(config(*layout), 1, settings)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        ACCELERATE,
        {**ACCELERATE, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "no"},
        {**ACCELERATE, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
        {**ACCELERATE, "ACCELERATE_MIXED_PRECISION": "bf16"},
        {**ACCELERATE, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"},
        {"RANK": "0"},
    ],
)
def test_unset_and_equal_launch_settings_are_fine(config, environ):
    check_launch(config(), 1, environ)


def test_accelerate_without_ranks_is_told_what_to_add(config):
    with pytest.raises(LaunchError, match=r"without a rank.*--use_deepspeed.*vitscale train"):
        check_launch(config(), 1, {"ACCELERATE_MIXED_PRECISION": "no"})


def test_compiling_without_a_compiler_is_told_what_to_install(config, tmp_path):
    bare = {"PATH": str(tmp_path)}
    check_compiler(config(), bare)
    with pytest.raises(LaunchError, match=r"hardware\.compile: .* apt-get install g\+\+.* hardware\.compile=false"):
        check_compiler(config("hardware.compile=true"), bare)
    (tmp_path / "mine").touch(mode=0o755)
    check_compiler(config("hardware.compile=true"), {**bare, "CXX": "mine"})


def test_ranks_that_do_not_fit_are_found(sound):
    with pytest.raises(RecipeError, match=r"8 lanes .* 3 processes"):
        check(sound(), ranks=3, environ={})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_stated_number_of_samples_must_be_the_manifests(sound, split):
    with pytest.raises(DataError, match=rf"data.{split}.samples: the recipe says 99, .*{split}.json has (20|4)"):
        check(sound(f"data.{split}.samples=99"), ranks=1, environ={})


def test_the_right_number_of_samples_passes(sound):
    cfg = sound("data.train.samples=20")
    assert check_source(cfg.data.train[0], "data.train", cfg).num_samples == 20


def test_a_missing_manifest_says_how_to_write_it(config):
    with pytest.raises(DataError, match=r"nowhere/train.json: no manifest to read .*; write it with `vitscale data build`"):
        check(config(), ranks=1, environ={})


def test_a_missing_shard_is_found(sound, shards):
    Path(shards["train"].shard(1)).unlink()
    with pytest.raises(DataError, match=r"train-00001.tar: No such file"):
        check(sound(), ranks=1, environ={})


def test_classes_that_do_not_fit_the_head_are_found(sound):
    with pytest.raises(DataError, match=r"3 classes, but model.num_classes is 5"):
        check(sound("model.num_classes=5"), ranks=1, environ={})


def test_another_recipe_in_the_run_directory_is_found(sound, tmp_path):

    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.dump(sound("seed=3")))
    with pytest.raises(RecipeError, match="seed was 3, is 0"):
        check(sound(), ranks=1, environ={})


def test_pretrained_weights_that_are_not_there_are_found(sound):
    with pytest.raises(ModelError, match="gone: neither a checkpoint directory nor a file of weights"):
        check(sound("init.from=gone"), ranks=1, environ={})


def test_what_a_rank_holds_of_remote_shards_is_counted_in_their_own_bytes(sound, shards):
    local = shards["train"]
    remote = [dataclasses.replace(local, location="s3://bucket/train.json")]
    # 8 lanes over 2 ranks, each a block of 64, 8 steps read ahead and 2 being decoded, one sample per lane and step
    window = 4 * (64 + 8 + 2) * float(np.sum(local.bytes)) / 20
    enough, short = (f"hardware.loader_memory_gib={window * factor / 2**30}" for factor in (1.01, 0.99))
    check_loader_memory(sound(enough), remote, ranks=2)
    with pytest.raises(RecipeError, match=r"data.shuffle_block: 8 lanes x 64 samples over 2 processes need .* GiB"):
        check_loader_memory(sound(short), remote, ranks=2)
    with pytest.raises(RecipeError):
        check_loader_memory(sound(enough), remote, ranks=1)
    check_loader_memory(sound(short), [local], ranks=1)  # read where they lie


def two_sources(*weights):
    given = [f", weight: {weight}" for weight in weights] or ["", ""]
    return lambda manifest: "data.train=[" + ", ".join(f"{{manifest: {manifest}{weight}}}" for weight in given) + "]"


def test_several_sources_pass_and_a_share_below_one_lane_is_found(sound, shards):
    manifest = shards["train"].location
    assert check(sound(two_sources()(manifest)), ranks=2, environ={}) is None
    assert check(sound(two_sources(1.0, 7.0)(manifest)), ranks=2, environ={}) is None
    with pytest.raises(DataError, match=r"source number 1 has 5.00% of the weight, less than one of the 8 lanes"):
        check(sound(two_sources(1.0, 19.0)(manifest)), ranks=2, environ={})


def test_labels_that_the_head_does_not_know_pass_only_where_they_are_replaced(sound, shards):
    for manifest in shards.values():
        without_names = dataclasses.replace(manifest, classes=[])
        write_manifest(without_names)
    with pytest.raises(DataError, match=r"labels 0..2 .*model.num_classes 2 allows 0..1"):
        check(sound("model.num_classes=2"), ranks=1, environ={})
    with pytest.raises(DataError, match=r"val-00000.tar: labels 0..2"):  # an accuracy is of all images
        check(sound("model.num_classes=2", "data.bad_samples.policy=replace"), ranks=1, environ={})
    assert check(sound("model.num_classes=2", "data.bad_samples.policy=replace", "data.val=null"), ranks=1, environ={}) is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["warmup.steps=30", "cooldown.steps=21"], "warm-up of 30 steps and a cool-down of 21 do not fit into a run of 50"),
        (["warmup.steps=51"], "a warm-up of 51 steps and a cool-down of 0 "),
        (["warmup.samples=240", "cooldown.steps=20"], None),  # 30 steps, and 20
    ],
)
def test_warmup_and_cooldown_fit_into_the_run(sound, overrides, said):
    cfg = sound("train.total.steps=50", *(f"optim.schedule.{override}" for override in overrides))
    if said is None:
        check(cfg, ranks=1, environ={})
    else:
        with pytest.raises(RecipeError, match=said):
            check(cfg, ranks=1, environ={})


@pytest.mark.parametrize(
    ("evaluated", "saved", "fits"),
    [("{steps: 7}", 10, False), ("null", 10, False), ("{steps: 5}", 10, True), ("{steps: 20}", 10, True)],
)
def test_the_best_is_sought_among_checkpoints_that_are_evaluated(sound, evaluated, saved, fits):
    durations = ("train.total.steps=50", f"eval.every={evaluated}", f"checkpoint.every.steps={saved}")
    check(sound(*durations), ranks=1, environ={})
    cfg = sound(*durations, "checkpoint.best=eval/top1")
    if fits:
        check(cfg, ranks=1, environ={})
    else:
        with pytest.raises(RecipeError, match=r"checkpoint.best: eval/top1 .*eval.every is (7|never) and checkpoint.every 10"):
            check(cfg, ranks=1, environ={})


@pytest.mark.parametrize(
    ("total", "cooldown", "newest", "fits"),
    [(80, 0, 50, True), (80, 10, 40, True), (80, 10, 41, False), (45, 10, 35, True), (45, 10, 36, False), (50, 10, 50, True)],
)
def test_a_run_is_prolonged_before_its_cool_down(sound, total, cooldown, newest, fits):
    """From 50 steps to `total`, with a checkpoint at `newest`."""
    schedule = ("optim.schedule.name=rsqrt", f"optim.schedule.cooldown.steps={cooldown}")
    run = RunDir(sound())
    (run.checkpoints / f"step_{newest:08d}").mkdir(parents=True)
    run.recipe.write_text(recipe.dump(sound("train.total.steps=50", *schedule)))
    longer = sound(f"train.total.steps={total}", *schedule)
    if fits:
        check(longer, ranks=1, environ={})
    else:
        with pytest.raises(
            RecipeError, match=f"was 50 steps, is {total}; the run stands at step {newest} .* step {newest - 1} at"
        ):
            check(longer, ranks=1, environ={})
