"""Weights of others, in and out: logits against the float64 reference of each layout, tensors bit by bit."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from references import bit, huggingface, official, timm
from references.layers import Array
from references.spec import BiTSpec, ViTSpec
from safetensors.numpy import load_file, save_file
from tiny_models import bit as tiny_bit
from tiny_models import random_images, randomised, vit

from vitscale.model.build import build
from vitscale.model.config import ModelConfig
from vitscale.modelinfo import ModelInfo
from vitscale.weights.convert import Imported, export, read_model
from vitscale.weights.transfer import fill

STEM = {"stem": (1, 2), "patch_size": 1, "image_size": 16}
ROOT = {"stem": (), "patch_size": 2, "image_size": 16}
BIT = BiTSpec((1, 2, 1, 1))


class Layout(NamedTuple):
    """How to make a random file, what its logits are, and what has to be said because the file does not."""

    form: str
    suffix: str
    draw: Callable
    logits: Callable
    changes: dict


heads = {"model": {"num_heads": 3}}
NPZ = Layout("npz", ".npz", official.random_official, official.logits_official, {})
BIG_VISION = NPZ._replace(draw=partial(official.random_official, big_vision=True))
BIT_NPZ = Layout("npz", ".npz", bit.random_bit, bit.logits_bit, {})
TIMM = Layout("timm", ".safetensors", timm.random_timm, partial(timm.logits_timm, num_heads=3), heads)
TIMM_BIT = Layout("timm", ".safetensors", timm.random_timm_bit, timm.logits_timm_bit, {})
HF = Layout("hf", ".safetensors", huggingface.random_huggingface, partial(huggingface.logits_huggingface, num_heads=3), heads)

# Files that come out as they went in.
FILES = {
    "official": (NPZ, ViTSpec()),
    "official pre-logits": (NPZ, ViTSpec(representation_size=16)),
    "official gap": (NPZ, ViTSpec(pool="gap")),
    "official hybrid": (NPZ, ViTSpec(**STEM)),
    "official hybrid pre-logits": (NPZ, ViTSpec(**STEM, representation_size=16)),
    "official root": (NPZ, ViTSpec(**ROOT)),
    "big_vision map": (BIG_VISION, ViTSpec(pool="map")),
    "bit": (BIT_NPZ, BIT),
    "timm": (TIMM, ViTSpec()),
    "timm LayerScale": (TIMM._replace(draw=partial(timm.random_timm, layer_scale=True)), ViTSpec()),
    "timm gap": (TIMM, ViTSpec(pool="gap")),
    "timm map": (TIMM, ViTSpec(pool="map")),
    "timm hybrid": (TIMM, ViTSpec(**STEM)),
    "timm root": (TIMM, ViTSpec(**ROOT)),
    "timm bit": (TIMM_BIT, BIT),
    "tutorial": (TIMM, ViTSpec(representation_size=16)),
    "huggingface": (HF, ViTSpec()),
}


def old_layer_scale(spec: ViTSpec, rng: np.random.Generator) -> dict[str, Array]:
    """As DeiT's own files: positions without the class token, gamma_1 and gamma_2."""
    tensors = timm.random_timm(spec, rng, layer_scale=True, class_position=False)
    return {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in tensors.items()}


def logits_old(tensors: dict[str, Array], images_BCHW: Array) -> Array:
    named = {name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): t for name, t in tensors.items()}
    return timm.logits_timm(named, images_BCHW, num_heads=3)


def modules_of_5(spec: ViTSpec, rng: np.random.Generator) -> dict[str, Array]:
    """The state_dict() of transformers 5."""
    return {renamed(name, HF_5): tensor for name, tensor in huggingface.random_huggingface(spec, rng).items()}


def logits_of_5(tensors: dict[str, Array], images_BCHW: Array) -> Array:
    back = [(new, old) for old, new in HF_5]
    return huggingface.logits_huggingface({renamed(name, back): t for name, t in tensors.items()}, images_BCHW, num_heads=3)


HF_5 = [("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj")]
HF_5 += [("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj")]
HF_5 += [("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2")]


def renamed(name: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


# Files that come out in the layout's usual form.
OTHER_FILES = {
    "official, norms as newer flax": (NPZ._replace(draw=partial(official.random_official, flat_norms=True)), ViTSpec(**STEM)),
    "big_vision": (BIG_VISION, ViTSpec()),
    "big_vision gap": (BIG_VISION, ViTSpec(pool="gap")),
    "bit, numbered": (BIT_NPZ._replace(draw=partial(bit.random_bit, numbered=True)), BIT),
    "deit3": (TIMM._replace(draw=partial(timm.random_timm, layer_scale=True, class_position=False)), ViTSpec()),
    "deit3, its own files": (TIMM._replace(draw=old_layer_scale, logits=logits_old), ViTSpec()),
    "huggingface, state_dict() of transformers 5": (HF._replace(draw=modules_of_5, logits=logits_of_5), ViTSpec()),
}


def write(path: Path, tensors: dict[str, Array]) -> Path:
    np.savez(path, **tensors) if path.suffix == ".npz" else save_file(tensors, path)
    return path


def read(path: Path) -> dict[str, Array]:
    return dict(np.load(path)) if path.suffix == ".npz" else load_file(path)


def pixels(spec: ViTSpec | BiTSpec) -> Array:
    side = getattr(spec, "image_size", 16)
    return np.random.default_rng(1).uniform(-1, 1, (2, 3, side, side))


@torch.no_grad()
def logits_of_ours(found: Imported, images_BCHW: Array) -> Array:
    model = build(found.info.model).eval()
    fill(model, found.weights, found.info.model, Path("the file"))
    return model(torch.from_numpy(images_BCHW).float()).double().numpy()


def assert_parity(found: Array, expected: Array) -> None:
    """To 1e-5 where logits are of order 1, as these are."""
    largest = np.abs(expected).max()
    assert 0.1 < largest < 20
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, largest))


def assert_equal_bits(found: Mapping, expected: Mapping) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor), name


class Case(NamedTuple):
    """A random file, and what we make of it."""

    name: str
    layout: Layout
    spec: ViTSpec | BiTSpec
    path: Path
    found: Imported


@pytest.fixture(scope="module", params=FILES | OTHER_FILES)
def case(request, tmp_path_factory):
    layout, spec = (FILES | OTHER_FILES)[request.param]
    path = tmp_path_factory.mktemp("weights") / f"file{layout.suffix}"
    write(path, layout.draw(spec, np.random.default_rng(0)))
    return Case(request.param, layout, spec, path, read_model(path, layout.changes))


def test_logits_of_a_file_are_the_references(case):
    images = pixels(case.spec)
    assert_parity(logits_of_ours(case.found, images), case.layout.logits(read(case.path), images))


def test_what_came_in_goes_out_bit_by_bit(case, tmp_path):
    first = case.found
    assert first.format == case.layout.form
    (out,) = export(first.info, first.weights, first.format, tmp_path / f"out{case.layout.suffix}")
    if case.name in FILES:
        assert_equal_bits(read(out), read(case.path))
    again = read_model(out, case.layout.changes)
    assert again.info == first.info
    assert_equal_bits(again.weights, first.weights)


def test_big_vision_comes_out_as_the_official_code_reads_it(tmp_path):
    """Whose names for the same model are these, and whose class token has a position."""
    tensors = BIG_VISION.draw(ViTSpec(), np.random.default_rng(0))
    found = read_model(write(tmp_path / "file.npz", tensors))
    (out,) = export(found.info, found.weights, "npz", tmp_path / "out.npz")
    assert read(out).keys() == NPZ.draw(ViTSpec(), np.random.default_rng(0)).keys()
    images = pixels(ViTSpec())
    np.testing.assert_allclose(NPZ.logits(read(out), images), BIG_VISION.logits(tensors, images), rtol=0, atol=1e-12)
    table = read(out)["Transformer/posembed_input/pos_embedding"]
    assert not table[:, 0].any() and np.array_equal(table[:, 1:], tensors["pos_embedding"])


EXACT = {"gelu": "exact"}
STEM_OF_OURS = {"patch_size": 1, "stem_blocks": (1, 1), "image_size": 16}
OURS: dict[str, tuple[ModelConfig, Layout]] = {
    "npz": (vit(), NPZ),
    "npz pre-logits, wide MLP": (vit(representation_size=16, mlp_dim=96), NPZ),
    "npz gap": (vit(pool="gap"), NPZ),
    "npz map": (vit(pool="map"), NPZ),
    "npz hybrid": (vit(**STEM_OF_OURS), NPZ),
    "npz bit": (tiny_bit(1, 2, 1, 1), BIT_NPZ),
    "timm": (vit(**EXACT), TIMM),
    "timm LayerScale": (vit(**EXACT, layer_scale=1e-4), TIMM),
    "timm gap": (vit(**EXACT, pool="gap"), TIMM),
    "timm map": (vit(**EXACT, pool="map"), TIMM),
    "timm hybrid": (vit(**EXACT, **STEM_OF_OURS, resnet_eps="timm"), TIMM),
    "timm bit": (tiny_bit(1, 2, 1, 1).model_copy(update={"resnet_eps": "timm"}), TIMM_BIT),
    "tutorial": (vit(**EXACT, representation_size=16), TIMM),
    "huggingface": (vit(gelu="exact", norm_eps=1e-12), HF),
}
# Position embeddings that a layout knows as a table alone.
AS_TABLE = {
    f"{form} {pos_embed}{pool}": (vit(**changes, pos_embed=pos_embed, pool=pool or "token"), layout)
    for form, layout, changes in (("npz", NPZ, {}), ("timm", TIMM, EXACT), ("hf", HF, {"gelu": "exact", "norm_eps": 1e-12}))
    for pos_embed in ("none", "learned2d", "sincos2d")
    for pool in ("", "gap")
    if not (form == "hf" and pool)
}


@pytest.mark.parametrize("name", OURS | AS_TABLE)
def test_an_exported_model_gives_its_logits_in_the_reference_and_comes_back(name, tmp_path):
    config, layout = (OURS | AS_TABLE)[name]
    model, images = randomised(config, std=0.05), random_images(config)
    info = ModelInfo(model=config, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", eval_crop=0.9, classes=[])
    (out,) = export(info, model.state_dict(), layout.form, tmp_path / f"out{layout.suffix}")
    with torch.no_grad():
        expected = model(images).double().numpy()
    assert_parity(expected, layout.logits(read(out), images.numpy()))
    back = read_model(out, layout.changes)
    if name in OURS:
        assert_equal_bits(back.weights, model.state_dict())
        assert back.info.model.model_copy(update={"image_size": config.image_size}) == config  # BiT's does not show
    else:
        assert_parity(logits_of_ours(back, images.numpy()), expected)


@pytest.mark.parametrize("name, spec", [("vit-ti16", {"patch_size": 16}), ("r-ti16", {"patch_size": 8, "stem": ()})])
def test_parity_at_a_real_size(name, spec, tmp_path):
    spec = ViTSpec(image_size=224, width=192, depth=12, num_heads=3, mlp_dim=768, num_classes=1000, **spec)
    tensors, images = NPZ.draw(spec, np.random.default_rng(0)), pixels(spec)[:1]
    found = read_model(write(tmp_path / "file.npz", tensors))
    assert found.info.model == ModelConfig.model_validate({"name": name})
    assert_parity(logits_of_ours(found, images), NPZ.logits(tensors, images))
