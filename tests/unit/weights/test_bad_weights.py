"""What a user gets wrong with weights: one paragraph that names file, tensor or field, shapes and fix; nothing is left."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import bit as tiny_bit
from tiny_models import randomised, vit

from vitscale.modelinfo import ModelInfo
from vitscale.weights.convert import write_model

BLOCK = "Transformer/encoderblock_1"
QUERY = f"{BLOCK}/MultiHeadDotProductAttention_1"


def refused(done, tmp_path, before, *said):
    """Exit status 1, one paragraph with these words, nothing written."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for words in said:
        assert words in done.stderr, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def refuse_import(vitscale_here, tmp_path):
    def run(*words, said):
        before = sorted(tmp_path.rglob("*"))
        refused(vitscale_here("import", *words, "--out", "out"), tmp_path, before, *said)

    return run


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def reshaped(name, shape):
    return lambda tensors: {**tensors, name: np.ones(shape, np.float32)}


def extra(name, *shape):
    return lambda tensors: {**tensors, name: np.ones(shape, np.float32)}


@pytest.mark.parametrize(
    "change, said",
    [
        (without(f"{BLOCK}/LayerNorm_0/scale"), ["blocks.1.norm1.weight [24] is missing"]),
        (without(f"{BLOCK}/LayerNorm_0/scale", f"{BLOCK}/LayerNorm_2/bias"), ["norm1.weight", "norm2.bias [24] is missing"]),
        (without(f"{QUERY}/value/kernel"), ["blocks.1.attention.qkv.weight", f"{QUERY}/value/kernel is missing", "incomplete"]),
        (without("Transformer/encoder_norm/bias"), ["norm.bias [24] is missing"]),
        (without("embedding/kernel"), ["patch_embed.proj.weight is missing", "no whole model"]),
        (without("head/kernel", "head/bias"), ["head.weight is missing", "model.num_classes="]),
        (without("head/bias"), ["head.bias [5] is missing"]),
        (without("Transformer/posembed_input/pos_embedding"), ["no position embedding", "model.pos_embed=none"]),
        (without("cls"), ["10 positions of patches are no square grid"]),
        (extra("Transformer/temperature", 3), ["Transformer/temperature [3] has no place", "or holds more than weights"]),
        (extra(f"{BLOCK}/LayerNorm_7/scale", 24), [f"{BLOCK}/LayerNorm_7/scale [24] has no place"]),
        (reshaped("cls", (1, 1, 25)), ["cls_token is [1, 1, 25], the model has [1, 1, 24]"]),
        (reshaped("head/kernel", (23, 5)), ["head.weight is [5, 23], the model has [5, 24]"]),
        (reshaped("head/bias", (6,)), ["head.bias is [6], the model has [5]"]),
        (reshaped(f"{QUERY}/value/bias", (3, 9)), ["the parts of blocks.1.attention.qkv.bias are [24] and [27]", "equal"]),
        (reshaped("Transformer/encoder_norm/scale", ()), ["norm.weight is [], the model has [24]"]),
        (reshaped("head/kernel", (24,)), ["head/kernel is [24], it should have axes i o"]),
        (reshaped(f"{QUERY}/query/bias", (24,)), [f"{QUERY}/query/bias is [24], it should have axes h d"]),
        (reshaped("embedding/kernel", (2, 8, 3, 24)), ["embedding/kernel is [2, 8, 3, 24]", "square patches"]),
        (reshaped("embedding/kernel", (4, 4, 4, 24)), ["patch_embed.proj.weight is [24, 64], the model has [24, 48]"]),
        (reshaped("Transformer/posembed_input/pos_embedding", (1, 7, 24)), ["6 positions of patches are no square grid"]),
        (reshaped("Transformer/posembed_input/pos_embedding", (10, 24)), ["pos_embed.table is [10, 24]", "3 axes"]),
        (reshaped("head/kernel", (24, 0)), ["head.weight is [0, 24]", "none empty"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_npz_that_is_no_whole_model(refuse_import, draw, write, change, said):
    refuse_import(write("B.npz", change(draw("npz"))), said=["B.npz: ", *said])


@pytest.mark.parametrize(
    "name, shape",
    [("dist_token", (1, 1, 24)), ("head_dist.weight", (5, 24)), ("fc_norm.weight", (24,)), ("norm_pre.weight", (24,))],
)
def test_models_of_timm_that_are_not_ours(refuse_import, draw, write, name, shape):
    path = write("deit.pth", extra(name, *shape)(draw("timm")))
    refuse_import(
        path,
        "model.num_heads=3",
        said=["deit.pth", f"{name} {list(shape)} has no place", "computes something else"],
    )


def test_heads_that_no_tensor_shows(refuse_import, draw, write):
    refuse_import(write("file.pth", draw("timm")), said=["file.pth: the number of heads", "model.num_heads="])


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "vit-b16"], ["B.npz: is no vit-b16: its tensors have width 24, vit-b16 has 768"]),
        (["--model", "r-ti16"], ["is no r-ti16: its tensors have stem_blocks None, r-ti16 has ()"]),
        (["--model", "bit-r50x1"], ["is no bit-r50x1: its tensors have blocks None"]),
        (["--model", "vit-q16"], ["unknown model name 'vit-q16'; allowed: custom, vit-ti8"]),
        (["model.num_heads=5"], ["num_heads 5 does not divide width 24"]),
        (["model.num_heads=many"], ["model.num_heads"]),
        (["model.image_size=10"], ["image_size 10 is not a multiple of patch_size 4; use 8 or 12"]),
        (["model.image_size=16"], ["pos_embed.table is [1, 10, 24], the model has [1, 17, 24]"]),
        (["model.num_classes=6"], ["head.weight is [5, 24], the model has [6, 24]"]),
        (["model.num_clases=6"], ["model.num_clases: Extra inputs"]),
        (["model=3"], ["model: found 3, it takes fields"]),
        (["model=3", "--model", "vit-b16"], ["model: found 3, it takes fields"]),
        (["classes=[a, b]"], ["2 class names for 5 outputs of the head"]),
        (["eval_crop=wide"], ["eval_crop"]),
    ],
)
def test_what_is_known_better_must_fit(refuse_import, draw, write, words, said):
    refuse_import(write("B.npz", draw("npz")), *words, said=["error: ", *said])


def test_files_that_are_not_there_or_something_else(refuse_import, write, tmp_path):
    refuse_import("gone.npz", said=["gone.npz: no such file, and no folder with weights.safetensors or model.safetensors"])
    (tmp_path / "empty").mkdir()
    refuse_import("empty", said=["empty: no such file, and no folder with"])
    (tmp_path / "notes.npz").write_text("no weights")
    refuse_import("notes.npz", said=["notes.npz: not readable as .npz"])
    (tmp_path / "notes.txt").write_text("no weights")
    refuse_import("notes.txt", said=["notes.txt: a file of weights ends in .npz"])
    refuse_import(
        write("other.npz", {"b": np.zeros(2), "a": np.zeros(1)}), said=["not a layout known here; it begins with a, b"]
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"patch_embed.proj.weight": torch.zeros(24)}, "patch_embed.proj.weight is [24], it should have 2 axes"),
        ({"blocks.1.norm1.weight": torch.zeros(2, 24)}, "blocks.1.norm1.weight is [2, 24], the model has [24]"),
        ({"pos_embed.table": torch.zeros(())}, "pos_embed.table is [], it should have 3 axes"),
        ({"head.weight": torch.zeros(())}, "head.weight is [], it should have 2 axes"),
        ({"rope": torch.zeros(3)}, "rope [3] has no place in the model"),
    ],
)
def test_a_safetensors_of_ours_that_is_no_whole_model(refuse_import, tmp_path, change, said):
    save_file({**randomised(vit()).state_dict(), **change}, tmp_path / "ours.safetensors")
    refuse_import("ours.safetensors", "model.num_heads=3", said=["ours.safetensors", said])


@pytest.mark.parametrize("told", ["{", "[]", '{"model": 3}', '{"model": {"rotary": true}}'])
def test_a_safetensors_of_ours_whose_metadata_says_nothing_useful(refuse_import, tmp_path, told):
    save_file(randomised(vit()).state_dict(), tmp_path / "ours.safetensors", {"vitscale": told})
    refuse_import("ours.safetensors", "model.num_heads=3", said=["error: "])


def test_out_that_exists(vitscale_here, draw, write, tmp_path):
    write("B.npz", draw("npz"))
    (tmp_path / "out").mkdir()
    done = vitscale_here("import", "B.npz", "--out", "out")
    refused(done, tmp_path, sorted(tmp_path.rglob("*")), "--out out: exists; choose another name or remove it")


NO_PLACE = {
    "every block its own": (vit(pos_embed_at="every"), ("npz", "timm", "hf"), "model.pos_embed_at: every has no place"),
    "shared": (vit(pos_embed_at="shared"), ("npz", "timm", "hf"), "model.pos_embed_at: shared has no place"),
    "relative": (vit(pos_embed="relative"), ("npz", "timm", "hf"), "relative_keys.table [2, 17, 8] has no place in the"),
    "LayerScale": (vit(layer_scale=0.1), ("npz", "hf"), "blocks.0.scale1.factor [24] has no place in the"),
    "pre-logits": (vit(representation_size=6), ("hf",), "pre_logits.fc.bias [6] has no place in the hf layout"),
    "gap": (vit(pool="gap"), ("hf",), "Hugging Face's ViT has a class token"),
    "hybrid": (vit(patch_size=1, stem_blocks=(1,), image_size=16), ("hf",), "stem.norm.bias [64] has no place"),
    "bit": (tiny_bit(1, 1, 1, 1), ("hf",), "Hugging Face's ViT has a class token"),
}


@pytest.mark.parametrize("name", NO_PLACE)
def test_export_of_what_a_layout_has_no_place_for(vitscale_here, tmp_path, name):
    config, forms, said = NO_PLACE[name]
    write_model(tmp_path / "model", info_of(config), randomised(config).state_dict())
    before = sorted(tmp_path.rglob("*"))
    for form in forms:
        out = "out.npz" if form == "npz" else "out"
        refused(vitscale_here("export", "model", "--format", form, "--out", out), tmp_path, before, said, "safetensors")


def test_timm_folders_of_what_timm_cannot_build(vitscale_here, tmp_path):
    for number, config in enumerate((vit(representation_size=6), vit(patch_size=1, stem_blocks=(1,), image_size=16))):
        write_model(tmp_path / f"model{number}", info_of(config), randomised(config).state_dict())
    before = sorted(tmp_path.rglob("*"))
    done = vitscale_here("export", "model0", "--format", "timm", "--out", "out")
    refused(done, tmp_path, before, "timm has no pre-logits; export to a .pth file")
    done = vitscale_here("export", "model1", "--format", "timm", "--out", "out")
    refused(done, tmp_path, before, "custom: timm has no such model", "to a .safetensors file")


@pytest.mark.parametrize(
    "form, out, said",
    [
        ("npz", "out", "npz is written to a .npz file"),
        ("npz", "out.pth", "npz is written to a .npz file"),
        ("timm", "out.npz", "timm is written to a .safetensors file"),
        ("safetensors", "out", "safetensors is written to a .safetensors file"),
        ("hf", "model", "--out model: exists; choose another name"),
    ],
)
def test_export_to_another_kind_of_file(vitscale_here, tmp_path, form, out, said):
    write_model(tmp_path / "model", info_of(vit()), randomised(vit()).state_dict())
    before = sorted(tmp_path.rglob("*"))
    refused(vitscale_here("export", "model", "--format", form, "--out", out), tmp_path, before, said)


def info_of(config):
    half = (0.5, 0.5, 0.5)
    return ModelInfo(model=config, mean=half, std=half, interpolation="bicubic", eval_crop=1.0, classes=[])
