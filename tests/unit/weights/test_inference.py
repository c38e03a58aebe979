"""What a file is found to be: sizes and options from its tensors, the rest from the config.json beside it."""

import numpy as np
import pytest
import torch
from references import timm
from references.spec import BiTSpec, ViTSpec

from vitscale.errors import ModelError
from vitscale.model.build import parameter_shapes
from vitscale.model.config import ModelConfig
from vitscale.model.zoo import ZOO
from vitscale.modelinfo import ModelInfo
from vitscale.weights.beside import huggingface_files, timm_files
from vitscale.weights.convert import in_layout, layout_for, read_model
from vitscale.weights.infer import infer
from vitscale.weights.rules import unpack

HEADS = {"model": {"num_heads": 3}}


def shapes_of(config):
    return {name: torch.empty(shape, device="meta") for name, shape in parameter_shapes(config).items()}


def found(path, **model):
    return read_model(path, {"model": model}).info.model


@pytest.mark.parametrize("name", [name for name in ZOO if not name.startswith(("vit-h", "vit-g", "vit-l"))] + ["vit-l16"])
def test_every_model_of_the_papers_is_known_by_its_tensors(name):
    size = {"image_size": 224 if name[-2:] != "14" else 252, "num_classes": 7}
    config = ModelConfig.model_validate({"name": name, **size})
    fields = infer(shapes_of(config), {}, "the file")
    fields |= {} if "image_size" in fields else {"image_size": size["image_size"]}  # a ResNet takes any
    assert ModelConfig.model_validate(fields) == config


@pytest.mark.parametrize("name", ["vit-ti16", "r-ti16", "r26-s32", "r50-b16", "bit-r50x1", "bit-r101x3"])
@pytest.mark.parametrize("form", ["npz", "timm"])
def test_a_real_model_keeps_every_shape_through_a_layout(name, form):
    config = ModelConfig.model_validate({"name": name, "image_size": 384})
    theirs = in_layout(config, shapes_of(config), form)
    ours = unpack(theirs, layout_for(config, form).rules, "the file")
    assert {key: tensor.shape for key, tensor in ours.items()} == parameter_shapes(config)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, {"image_size": 12, "patch_size": 4, "num_classes": 5, "depth": 2, "width": 24, "mlp_dim": 48, "pool": "token"}),
        ({"image_size": 36, "num_classes": 11, "depth": 3}, {"image_size": 36, "num_classes": 11, "depth": 3}),
        ({"representation_size": 16}, {"representation_size": 16}),
        ({"pool": "gap"}, {"pool": "gap", "image_size": 12}),
        ({"num_heads": 4}, {"num_heads": 4}),
        ({"num_heads": 8, "width": 192}, {"num_heads": 8, "name": "custom"}),  # vit-ti would have 3
        (
            {"stem": (2, 1), "patch_size": 1, "image_size": 32},
            {"stem_blocks": (2, 1), "image_size": 32, "patch_size": 1, "resnet_eps": "official"},
        ),
        ({"stem": (), "patch_size": 2, "image_size": 32}, {"stem_blocks": (), "image_size": 32, "patch_size": 2}),
    ],
)
def test_sizes_and_options_follow_from_an_npz(draw, write, changes, expected):
    config = found(write("file.npz", draw("npz", **changes)))
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.gelu, config.norm_eps) == ("tanh", 1e-6)


def test_sizes_of_a_big_transfer(draw, write):
    config = found(write("file.npz", draw("bit", num_classes=7)), image_size=480)
    assert (config.blocks, config.width_factor, config.num_classes, config.image_size) == ((1, 1, 1, 1), 1, 7, 480)


def test_layer_scale_and_arithmetic_of_timm(write):
    tensors = timm.random_timm(ViTSpec(), np.random.default_rng(0), layer_scale=True)
    config = found(write("file.pth", tensors), num_heads=3)
    assert config.uses_layer_scale
    assert config.gelu == "exact"
    tensors = timm.random_timm_bit(BiTSpec((1, 1, 1, 1)), np.random.default_rng(0))
    assert found(write("bit.pth", tensors)).resnet_eps == "timm"


TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 5,
    "global_pool": "token",
    "label_names": list("abcde"),
    "model_args": {"num_heads": 3, "act_layer": "gelu_tanh", "img_size": [12, 12], "global_pool": "token"},
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "crop_pct": 0.8},
}


def test_a_folder_of_timm(draw, write):
    got = read_model(write("timm/model.safetensors", draw("timm"), TIMM).parent)
    assert (got.info.model.num_heads, got.info.model.gelu, got.info.classes) == (3, "tanh", list("abcde"))
    assert (got.info.mean, got.info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (got.info.interpolation, got.info.eval_crop, got.assumed) == ("bilinear", 0.8, {})


HF = {
    "model_type": "vit",
    "num_attention_heads": 3,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "id2label": {"10": "k", **{str(number): "abcdefghij"[number] for number in range(10)}},
}


def test_a_folder_of_transformers(draw, write):
    folder = write("hf/model.safetensors", draw("hf", num_classes=11), HF).parent
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3}')
    got = read_model(folder)
    model = got.info.model
    assert (model.num_heads, model.gelu, model.norm_eps, got.info.classes) == (3, "tanh", 1e-5, list("abcdefghijk"))
    assert (got.info.mean, got.info.interpolation, got.info.eval_crop, got.assumed) == ((0.1, 0.2, 0.3), "bicubic", 1.0, {})


def test_what_transformers_does_not_write_are_its_defaults(draw, write):
    got = read_model(write("hf/pytorch_model.bin", draw("hf", width=48), {"model_type": "vit"}).parent)
    assert (got.info.model.num_heads, got.info.model.gelu, got.info.model.norm_eps) == (12, "exact", 1e-12)


@pytest.mark.parametrize("width, mlp_dim", [(24, 49), (192, 577), (1408, 6144), (48, 1)])
def test_what_is_said_of_sizes_beside_an_export(width, mlp_dim):
    """timm takes int(mlp_ratio * width), in floating point."""
    sizes = {"patch_size": 4, "width": width, "depth": 1, "num_heads": 2, "mlp_dim": mlp_dim, "image_size": 8, "norm_eps": 3e-5}
    config = ModelConfig.model_validate({**sizes, "num_classes": 3})
    preprocessing = {"mean": (0.1,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic", "eval_crop": 0.9}
    info = ModelInfo(model=config, classes=["a", "b", "c"], **preprocessing)
    arguments = timm_files(info)["config.json"]["model_args"]
    assert int(arguments["mlp_ratio"] * arguments["embed_dim"]) == mlp_dim
    said = huggingface_files(info)["config.json"]
    assert (said["layer_norm_eps"], said["intermediate_size"], said["id2label"][2]) == (3e-5, mlp_dim, "c")


def test_made_up_labels_are_no_class_names(draw, write):
    labels = {"id2label": {str(number): f"LABEL_{number}" for number in range(5)}}
    assert read_model(write("hf/model.safetensors", draw("hf"), HF | labels).parent).info.classes == []


def test_a_config_beside_a_file_of_another_name_is_not_its_own(draw, write):
    path = write("B_16.npz", draw("npz"), HF | {"num_attention_heads": 6})
    assert (found(path).num_heads, found(path).gelu) == (3, "tanh")


def test_what_nobody_said_is_told(draw, write):
    spec = {"width": 192, "num_heads": 3}
    got = read_model(write("file.safetensors", draw("timm", **spec)))
    half = (0.5, 0.5, 0.5)
    preprocessing = {"mean": half, "std": half, "interpolation": "bicubic", "eval_crop": 0.9}
    assert got.assumed == preprocessing | {"model.gelu": "exact", "model.num_heads": 3, "model.pool": "token"}
    said = {"mean": half, "std": half, "interpolation": "bicubic", "eval_crop": 1.0}
    got = read_model(write("file.npz", draw("npz", **spec)), said)
    assert (got.assumed, got.info.eval_crop) == ({}, 1.0)


def test_a_head_can_be_asked_for_where_there_is_none(draw, write):
    tensors = {name: tensor for name, tensor in draw("npz", representation_size=16).items() if "head" not in name}
    got = read_model(write("file.npz", tensors), {"model": {"num_classes": 9}})
    assert got.weights["head.weight"].shape == (9, 16)
    assert not got.weights["head.weight"].any() and not got.weights["head.bias"].any()


def test_a_vit_model_of_transformers_without_a_classifier(draw, write):
    """As google/vit-base-patch16-224-in21k is stored: no `vit.`, and the pooler that was the pre-logits."""
    whole = draw("hf")
    bare = {name.removeprefix("vit."): tensor for name, tensor in whole.items() if not name.startswith("classifier.")}
    pooler = {"pooler.dense.weight": np.eye(24, dtype=np.float32), "pooler.dense.bias": np.zeros(24, np.float32)}
    got = read_model(write("hf/model.safetensors", bare | pooler, HF | {"id2label": {}}).parent, {"model": {"num_classes": 7}})
    expected = read_model(write("whole.safetensors", whole), HEADS).weights
    assert torch.equal(got.weights["pre_logits.fc.weight"], torch.eye(24))
    assert got.weights["head.weight"].shape == (7, 24)
    assert all(torch.equal(got.weights[name], tensor) for name, tensor in expected.items() if "head" not in name)


BASE = {"architecture": "vit", "model_args": {"num_heads": 3}}


@pytest.mark.parametrize(
    "layout, config, said",
    [
        ("hf", {"model_type": "vit", "num_attention_heads": 5}, r"model\.num_heads 5 does not divide width 24|num_heads 5"),
        ("hf", HF | {"hidden_act": "relu"}, "config.json: hidden_act 'relu' is not known here; allowed: gelu, gelu_new"),
        ("hf", HF, "11 class names for 5 outputs of the head; mend the names"),
        ("hf", HF | {"id2label": {"x": "a"}}, "config.json: "),
        ("hf", HF | {"id2label": ["a"] * 5, "layer_norm_eps": "small"}, r"model\.norm_eps: .*valid number"),
        ("timm", BASE | {"global_pool": "avg"}, r"cls_token \[1, 1, 24\] has no place in the model"),
        ("timm", BASE | {"global_pool": "prr"}, "global_pool 'prr' is not known here; allowed: token, avg, map"),
        ("timm", BASE | {"act_layer": "quick_gelu"}, "act_layer 'quick_gelu' is not known here"),
        (
            "timm",
            BASE | {"pretrained_cfg": {"interpolation": "random"}},
            "interpolation: Input should be 'bilinear' or 'bicubic'",
        ),
        ("timm", BASE | {"pretrained_cfg": None}, "config.json: "),
        ("timm", ["vit"], "config.json: found .*it should be a JSON object"),
    ],
)
def test_a_config_that_cannot_be_followed(draw, write, layout, config, said):
    path = write(f"{layout}/model.safetensors", draw(layout), config)
    with pytest.raises(ModelError, match=said):
        read_model(path.parent)


def test_a_config_that_is_no_json(draw, write):
    path = write("hf/model.safetensors", draw("hf"))
    (path.parent / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"hf/config\.json: not JSON"):
        read_model(path.parent)
