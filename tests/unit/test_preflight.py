"""What is found wrong before any process starts."""

import numpy as np
import pytest

from data_pipeline.errors import DataError
from vitscale.errors import LaunchError, ModelError, RecipeError
from vitscale.preflight import check, check_launch, check_loader_memory, check_source

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "RANK": "0"}  # what it always sets


@pytest.fixture
def sound(config, shards):
    """A recipe on shards that are there, with overrides."""
    manifests = [f"data.{split}.manifest={manifest.path}" for split, manifest in shards.items()]
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


def test_ranks_that_do_not_fit_are_found(sound):
    with pytest.raises(RecipeError, match=r"8 lanes .* 3 processes"):
        check(sound(), ranks=3, environ={})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_stated_number_of_samples_must_be_the_manifests(sound, split):
    with pytest.raises(DataError, match=rf"data.{split}.samples: the recipe says 99, .*{split}.json has (20|4)"):
        check(sound(f"data.{split}.samples=99"), ranks=1, environ={})


def test_the_right_number_of_samples_passes(sound):
    assert check_source(sound("data.train.samples=20"), "train").num_samples == 20


def test_a_missing_manifest_says_how_to_write_it(config):
    with pytest.raises(DataError, match=r"nowhere/train.json: no such manifest; write it with `vitscale data build`"):
        check(config(), ranks=1, environ={})


def test_a_missing_shard_is_found(sound, shards):
    shards["train"].shard(1).unlink()
    with pytest.raises(DataError, match=r"train-00001.tar does not exist"):
        check(sound(), ranks=1, environ={})


def test_classes_that_do_not_fit_the_head_are_found(sound):
    with pytest.raises(DataError, match=r"3 classes, but model.num_classes is 5"):
        check(sound("model.num_classes=5"), ranks=1, environ={})


def test_another_recipe_in_the_run_directory_is_found(sound, tmp_path):
    from vitscale import recipe

    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.dump(sound("seed=3")))
    with pytest.raises(RecipeError, match="seed was 3, is 0"):
        check(sound(), ranks=1, environ={})


def test_pretrained_weights_that_are_not_there_are_found(sound):
    with pytest.raises(ModelError, match="no such directory"):
        check(sound("init.from=gone"), ranks=1, environ={})


def test_the_shuffle_window_is_counted_in_the_manifests_own_bytes(sound, shards):
    manifest = shards["train"]
    window = 8 * 64 / 2 * float(np.sum(manifest.bytes)) / 20  # lanes * shuffle_block / ranks images
    enough, short = (f"hardware.loader_memory_gib={window * factor / 2**30}" for factor in (1.01, 0.99))
    check_loader_memory(sound(enough), manifest, ranks=2)
    with pytest.raises(RecipeError, match=r"data.shuffle_block: 8 lanes x 64 samples over 2 processes need .* GiB"):
        check_loader_memory(sound(short), manifest, ranks=2)
    with pytest.raises(RecipeError):
        check_loader_memory(sound(enough), manifest, ranks=1)
