"""timm 1.0.31's names (models: vision_transformer.py, vision_transformer_hybrid.py, resnetv2.py; layers: std_conv.py).

Also the PyTorch tutorial's (WZMIAOMIAO, vit_model.py): timm's of 2021, with `pre_logits.fc` followed by tanh; timm itself has
removed it. Weights of Linear are (out, in), of convolutions (out, in, height, width). `attn.qkv` stacks q, k, v.

- GELU is torch's default, the erf form, even for the weights that were trained with the official code's tanh form; models
  made with `act_layer="gelu_tanh"` (SigLIP) have the tanh form, and the file does not tell. LayerNorm eps 1e-6.
- `pos_embed` has a row for the class token, or (DeiT III, `no_embed_class`) none, and is then added before `cls_token` is put
  in front. LayerScale `ls1.gamma`, `ls2.gamma` multiplies the branches. (DeiT's own files say `gamma_1`, `gamma_2`.)
- Pooling: the class token of `norm`'s output; without one their mean; with `fc_norm` the mean over the patches of the encoder's
  output as it is, then `fc_norm`; `attn_pool` is big_vision's MAP head, k and v stacked in `kv`.
- Standardised kernels: batch norm of the weight, (w - mean) / sqrt(variance + 1e-8), where the official code has
  (std + 1e-5) and BiT 1e-10. GroupNorm eps is torch's 1e-5, in the hybrids too, where the official code has 1e-6.
- Hybrids are SAME as the official ones, the pool with -inf; the stem alone (R+Ti/16) is `patch_embed.backbone.conv` and
  `.norm`, without `.stem`. BiT pads by 1 with zeros before the pool (stem_type "fixed") as the original.
"""

import re
from collections.abc import Callable

import numpy as np

from references.draw import Draw
from references.layers import (
    Affine,
    Array,
    channels_last,
    dense,
    double,
    fixed,
    gelu_erf,
    layer_norm,
    patch_tokens,
    relu,
    same,
)
from references.resnet import ResNet, Unit
from references.spec import BiTSpec, ViTSpec, unit_shapes
from references.transformer import MLP, Attention, Block, Transformer

HYBRID = ResNet(group_eps=1e-5, kernel_eps=1e-8, eps_inside=True, padding=same)
BIT = ResNet(group_eps=1e-5, kernel_eps=1e-8, eps_inside=True, padding=fixed)
EPS = 1e-6
BACKBONE = "patch_embed.backbone."


def random_timm(
    spec: ViTSpec,
    rng: np.random.Generator,
    layer_scale: bool = False,
    class_position: bool = True,
    fc_norm: bool = False,
) -> dict[str, Array]:
    """With `fc_norm` and pool "gap" the model has a class token beside the mean, as `global_pool="avg"` makes it."""
    draw, width = Draw(rng), spec.width
    tensors = {} if spec.stem is None else random_stem(spec, draw)
    patch = draw.kernel(spec.patch_size, spec.patch_size, spec.patch_channels, width) / 100
    tensors["patch_embed.proj.weight"] = torch_kernel(patch)
    tensors["patch_embed.proj.bias"] = draw.embedding(width)
    has_class = spec.pool == "token" or fc_norm
    if has_class:
        tensors["cls_token"] = draw.embedding(1, 1, width)
    tensors["pos_embed"] = draw.embedding(1, spec.grid_size**2 + (has_class and class_position), width)
    for i in range(spec.depth):
        tensors |= random_block(spec, draw, f"blocks.{i}", layer_scale)
    tensors |= norm_pair("fc_norm" if fc_norm else "norm", *draw.norm(width))
    if spec.pool == "map":
        tensors["attn_pool.latent"] = draw.normal(1, 1, width)
        for name, rows in {"q": width, "kv": 2 * width, "proj": width}.items():
            tensors |= dense_pair(draw, f"attn_pool.{name}", width, rows)
        tensors |= norm_pair("attn_pool.norm", *draw.norm(width)) | random_mlp(spec, draw, "attn_pool.mlp")
    if spec.representation_size:
        tensors |= dense_pair(draw, "pre_logits.fc", width, spec.representation_size)
    return tensors | dense_pair(draw, "head", spec.representation_size or width, spec.num_classes)


def torch_kernel(kernel: Array) -> Array:
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def dense_pair(draw: Draw, name: str, fan_in: int, fan_out: int) -> dict[str, Array]:
    return {f"{name}.weight": draw.kernel(fan_out, fan_in, fan_in=fan_in), f"{name}.bias": draw.normal(fan_out)}


def norm_pair(name: str, weight: Array, bias: Array) -> dict[str, Array]:
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def random_mlp(spec: ViTSpec, draw: Draw, name: str) -> dict[str, Array]:
    return dense_pair(draw, f"{name}.fc1", spec.width, spec.mlp_dim) | dense_pair(draw, f"{name}.fc2", spec.mlp_dim, spec.width)


def random_block(spec: ViTSpec, draw: Draw, name: str, layer_scale: bool) -> dict[str, Array]:
    width = spec.width
    tensors = dense_pair(draw, f"{name}.attn.qkv", width, 3 * width) | dense_pair(draw, f"{name}.attn.proj", width, width)
    tensors |= random_mlp(spec, draw, f"{name}.mlp")
    for number in (1, 2):
        tensors |= norm_pair(f"{name}.norm{number}", *draw.norm(width))
        if layer_scale:
            tensors[f"{name}.ls{number}.gamma"] = draw.normal(width, mean=0.5)
    return tensors


def random_stem(spec: ViTSpec, draw: Draw) -> dict[str, Array]:
    assert spec.stem is not None
    root = f"{BACKBONE}stem" if spec.stem else BACKBONE[:-1]
    tensors = {f"{root}.conv.weight": torch_kernel(draw.std_kernel(7, 7, 3, spec.stem_width))}
    tensors |= norm_pair(f"{root}.norm", *draw.small_norm(spec.stem_width))
    for unit in unit_shapes(spec.stem, spec.stem_width):
        name = f"{BACKBONE}stages.{unit.stage}.blocks.{unit.unit}"
        for part, shape in unit.convolutions.items():
            conv, norm = ("downsample.conv", "downsample.norm") if part == "projection" else (f"conv{part}", f"norm{part}")
            tensors[f"{name}.{conv}.weight"] = torch_kernel(draw.std_kernel(*shape))
            tensors |= norm_pair(f"{name}.{norm}", *draw.small_norm(shape[3]))
    return tensors


def random_timm_bit(spec: BiTSpec, rng: np.random.Generator) -> dict[str, Array]:
    draw = Draw(rng)
    tensors = {"stem.conv.weight": torch_kernel(draw.std_kernel(7, 7, 3, spec.width))}
    for unit in unit_shapes(spec.units, spec.width):
        name = f"stages.{unit.stage}.blocks.{unit.unit}"
        for part, shape in unit.convolutions.items():
            conv = "downsample.conv" if part == "projection" else f"conv{part}"
            tensors[f"{name}.{conv}.weight"] = torch_kernel(draw.std_kernel(*shape))
            if part != "projection":
                tensors |= norm_pair(f"{name}.norm{part}", *draw.small_norm(shape[2]))
    features = spec.width * 2 ** (len(spec.units) + 1)
    tensors |= norm_pair("norm", *draw.norm(features))
    tensors["head.fc.weight"] = torch_kernel(draw.kernel(1, 1, features, spec.num_classes))
    return tensors | {"head.fc.bias": draw.normal(spec.num_classes)}


def logits_timm(
    tensors: dict[str, Array],
    images_BCHW: Array,
    num_heads: int,
    gelu: Callable[[Array], Array] = gelu_erf,
    resnet: ResNet = HYBRID,
) -> Array:
    """The file tells neither the number of heads nor the arithmetic; all else follows from the tensors."""
    tensors, x = double(tensors), channels_last(images_BCHW)
    if any(name.startswith(BACKBONE) for name in tensors):
        x = stem(tensors, x, resnet)
    tokens = patch_tokens(x, Affine(kernel(tensors, "patch_embed.proj"), tensors["patch_embed.proj.bias"]))
    tokens = with_positions(tensors, tokens)
    encoder = Transformer(num_heads, EPS, gelu)
    number = 0
    while f"blocks.{number}.norm1.weight" in tensors:
        tokens = encoder.block(tokens, block(tensors, f"blocks.{number}"))
        number += 1
    features = pool(tensors, tokens, encoder)
    if "pre_logits.fc.weight" in tensors:
        features = np.tanh(dense(features, linear(tensors, "pre_logits.fc")))
    return dense(features, linear(tensors, "head"))


def with_positions(tensors: dict[str, Array], tokens: Array) -> Array:
    positions = tensors["pos_embed"]
    if "cls_token" not in tensors:
        return tokens + positions
    cls = np.tile(tensors["cls_token"], (len(tokens), 1, 1))
    if positions.shape[1] == tokens.shape[1]:
        return np.concatenate([cls, tokens + positions], axis=1)
    return np.concatenate([cls, tokens], axis=1) + positions


def pool(tensors: dict[str, Array], tokens: Array, encoder: Transformer) -> Array:
    if "fc_norm.weight" in tensors:
        patches = tokens[:, 1:] if "cls_token" in tensors else tokens
        return layer_norm(patches.mean(1), pair(tensors, "fc_norm"), EPS)
    tokens = layer_norm(tokens, pair(tensors, "norm"), EPS)
    if "attn_pool.latent" in tensors:
        query, out = linear(tensors, "attn_pool.q"), linear(tensors, "attn_pool.proj")
        attention = Attention(query, *stacked(tensors, "attn_pool.kv", 2), out)
        norm, hidden = pair(tensors, "attn_pool.norm"), mlp(tensors, "attn_pool.mlp")
        return encoder.attention_pool(tokens, tensors["attn_pool.latent"], attention, norm, hidden)
    return tokens[:, 0] if "cls_token" in tensors else tokens.mean(1)


def logits_timm_bit(tensors: dict[str, Array], images_BCHW: Array, resnet: ResNet = BIT) -> Array:
    tensors = double(tensors)
    x = resnet.bit_root(channels_last(images_BCHW), kernel(tensors, "stem.conv"))
    x = resnet.units(x, stages(tensors, "stages"), resnet.bit_unit)
    features = relu(resnet.norm(x, pair(tensors, "norm"))).mean((1, 2))
    return dense(features, Affine(kernel(tensors, "head.fc")[0, 0], tensors["head.fc.bias"]))


def stem(tensors: dict[str, Array], images_BHWC: Array, resnet: ResNet) -> Array:
    root = f"{BACKBONE}stem" if f"{BACKBONE}stem.conv.weight" in tensors else BACKBONE[:-1]
    x = resnet.hybrid_root(images_BHWC, kernel(tensors, f"{root}.conv"), pair(tensors, f"{root}.norm"))
    return resnet.units(x, stages(tensors, f"{BACKBONE}stages"), resnet.hybrid_unit)


def stages(tensors: dict[str, Array], prefix: str) -> list[list[Unit]]:
    places = {
        (int(match[1]), int(match[2])) for name in tensors if (match := re.match(rf"{prefix}\.(\d+)\.blocks\.(\d+)", name))
    }
    found: list[list[Unit]] = [[] for _ in {stage for stage, _ in places}]
    for stage, number in sorted(places):
        found[stage].append(unit(tensors, f"{prefix}.{stage}.blocks.{number}"))
    return found


def unit(tensors: dict[str, Array], name: str) -> Unit:
    kernels = tuple(kernel(tensors, f"{name}.conv{part}") for part in (1, 2, 3))
    norms = tuple(pair(tensors, f"{name}.norm{part}") for part in (1, 2, 3))
    if f"{name}.downsample.conv.weight" not in tensors:
        return Unit(kernels, norms, None)
    projection_norm = pair(tensors, f"{name}.downsample.norm") if f"{name}.downsample.norm.weight" in tensors else None
    return Unit(kernels, norms, kernel(tensors, f"{name}.downsample.conv"), projection_norm)


def block(tensors: dict[str, Array], name: str) -> Block:
    attention = Attention(*stacked(tensors, f"{name}.attn.qkv", 3), linear(tensors, f"{name}.attn.proj"))
    norms = pair(tensors, f"{name}.norm1"), pair(tensors, f"{name}.norm2")
    scales = (tensors.get(f"{name}.ls{number}.gamma", 1.0) for number in (1, 2))
    return Block(norms[0], attention, norms[1], mlp(tensors, f"{name}.mlp"), *scales)


def mlp(tensors: dict[str, Array], name: str) -> MLP:
    return MLP(linear(tensors, f"{name}.fc1"), linear(tensors, f"{name}.fc2"))


def stacked(tensors: dict[str, Array], name: str, parts: int) -> list[Affine]:
    weights, biases = (np.split(tensors[f"{name}.{part}"], parts) for part in ("weight", "bias"))
    return [Affine(weight.T, bias) for weight, bias in zip(weights, biases, strict=True)]


def linear(tensors: dict[str, Array], name: str) -> Affine:
    return Affine(tensors[f"{name}.weight"].T, tensors[f"{name}.bias"])


def pair(tensors: dict[str, Array], name: str) -> Affine:
    return Affine(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def kernel(tensors: dict[str, Array], name: str) -> Array:
    """(height, width, in, out)"""
    return np.ascontiguousarray(tensors[f"{name}.weight"].transpose(2, 3, 1, 0))
