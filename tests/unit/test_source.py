"""Where `init.from` may point, and what is said when it points wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitscale.config import InitConfig
from vitscale.errors import ModelError
from vitscale.model.config import ViTConfig
from vitscale.model.vit import ViT
from vitscale.modelinfo import ModelInfo
from vitscale.source import fetch_init, locate
from vitscale.sums import verify, write_sums

SIZES = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16, "image_size": 8, "num_classes": 3}


@pytest.fixture
def checkpoint(config, tmp_path):
    """Make a checkpoint directory of a small model with changes."""

    def make(name="checkpoint", **changes):
        cfg = ViTConfig(**{**SIZES, **changes})
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(ModelInfo.of(cfg, config().data, ["a", "b", "c"]).dump())
        save_file(ViT(cfg).state_dict(), folder / "weights.safetensors")
        write_sums(folder)
        return folder

    return make


def test_of_a_run_directory_a_checkpoint_must_be_named(checkpoint, tmp_path):
    for step in (5, 12):
        checkpoint(f"run/checkpoints/step_{step:08d}")
    with pytest.raises(ModelError, match=r"run: a run directory; give one of its checkpoints, e\.g\. .*/step_00000012$"):
        locate(str(tmp_path / "run"), "")


def fetch(source, folder, head="new"):
    init = InitConfig.model_validate({"from": str(source), "head": head})
    return fetch_init(init, ViTConfig(**SIZES), folder, "sqlite:///never-asked.db")


def test_a_checkpoint_is_copied_whole_and_its_origin_noted(checkpoint, tmp_path):
    source = checkpoint()
    origin = fetch(source, tmp_path / "init")
    assert origin == (str(source), str(source), None)
    assert verify(tmp_path / "init") == []
    copied, original = (load_file(folder / "weights.safetensors") for folder in (tmp_path / "init", source))
    assert all(torch.equal(copied[name], tensor) for name, tensor in original.items())


def test_the_mlflow_run_of_a_checkpoint_in_its_run_directory_is_noted(checkpoint, tmp_path):
    source = checkpoint("run/checkpoints/step_00000001")
    (tmp_path / "run" / "mlflow_run_id").write_text("abc")
    assert fetch(source, tmp_path / "init").run_id == "abc"


def test_a_restart_uses_the_copy_even_when_the_source_is_gone(checkpoint, tmp_path):
    source = checkpoint()
    first = fetch(source, tmp_path / "init")
    source.rename(tmp_path / "moved")
    assert fetch(source, tmp_path / "init") == first


def test_a_damaged_copy_is_fetched_again(checkpoint, tmp_path):
    source = checkpoint()
    fetch(source, tmp_path / "init")
    (tmp_path / "init" / "weights.safetensors").write_bytes(b"")
    fetch(source, tmp_path / "init")
    assert verify(tmp_path / "init") == []


def test_a_copy_whose_origin_was_not_noted_is_fetched_again(checkpoint, tmp_path):
    source = checkpoint()
    shutil.copytree(source, tmp_path / "init")
    assert fetch(source, tmp_path / "init").source == str(source)


def test_another_source_is_not_taken_for_the_copy_of_the_first(checkpoint, tmp_path):
    wrong, right = checkpoint("wrong", width=16), checkpoint("right")
    with pytest.raises(ModelError, match="another architecture"):
        fetch(wrong, tmp_path / "init")
    assert fetch(right, tmp_path / "init").source == str(right)


def test_another_architecture_is_refused_with_both_values(checkpoint, tmp_path):
    source = checkpoint(width=16, depth=1)
    with pytest.raises(ModelError, match=rf"init.from: {source} .*width: 16 here, 8 there; depth: 1 here, 2 there"):
        fetch(source, tmp_path / "init")


def test_other_classes_and_resolution_are_welcome(checkpoint, tmp_path):
    fetch(checkpoint(num_classes=7, image_size=16, representation_size=5), tmp_path / "init")


def test_other_classes_are_not_where_the_head_is_kept(checkpoint, tmp_path):
    fetch(checkpoint(image_size=16), tmp_path / "init", head="keep")
    with pytest.raises(ModelError, match=r"num_classes: 7 here, 3 there"):
        fetch(checkpoint("other", num_classes=7), tmp_path / "init", head="keep")


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(
        ModelError, match=r"gone: neither a checkpoint directory nor a file of weights; or give models:/NAME@ALIAS"
    ):
        locate(str(tmp_path / "gone"), "")


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"no model.json in it, so it is not a model"):
        locate(str(tmp_path), "")


def test_a_damaged_checkpoint(checkpoint):
    source = checkpoint()
    (source / "weights.safetensors").write_bytes((source / "weights.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"weights.safetensors differs from its SHA-256; use another checkpoint"):
        locate(str(source), "")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": 3}'])
def test_a_model_json_that_says_nothing_useful(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"model.json: not readable by this version"):
        locate(str(tmp_path), "")


def test_a_model_json_of_a_newer_version_names_the_key(checkpoint):
    source = checkpoint()
    values = json.loads((source / "model.json").read_text())
    values["model"]["rotary"] = True
    (source / "model.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"model.rotary"):
        locate(str(source), "")


def test_a_sound_checkpoint_is_found_where_it_lies(checkpoint):
    source = checkpoint()
    assert locate(str(source), "") == source
