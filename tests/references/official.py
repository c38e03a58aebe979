"""The `.npz` of google-research/vision_transformer (vit_jax/models_vit.py, models_resnet.py), and big_vision's (models/vit.py).

Names: every block `Transformer/encoderblock_{i}/` holds `LayerNorm_0`, `MultiHeadDotProductAttention_1`, `LayerNorm_2` and
`MlpBlock_3`, numbered as the modules were made; big_vision numbers each kind by itself (0, 0, 1, 0). Kernels of Dense are
(in, out), of q, k, v (D, H, d), of their output (H, d, D), of convolutions (height, width, in, out). Scales and biases of
GroupNorm are (1, 1, 1, C) in the released hybrids (vit_jax/checkpoint.py, `_fix_groupnorm`), (C,) in newer flax.

- GELU is `nn.gelu`, whose default is the tanh form; LayerNorm and GroupNorm have flax's default eps, 1e-6; 32 groups.
- Position embeddings: one row per token, the class token's first, added after `cls` is put in front; in big_vision one row
  per patch, added before.
- GAP is the mean over all tokens after `encoder_norm`; big_vision's MAP head sees the same tokens.
- `pre_logits` is Dense and tanh; without it the file has no such name (the official code keeps an empty entry only in memory).
- StdConv subtracts the mean and divides by (std + 1e-5), std being the root of the mean square, over height, width and in;
  `embedding` is no StdConv. Convolutions and the 3 x 3 max pool of the root are SAME; the pool pads with -inf.
- Units are post-activation, with the stride on conv2 and, if shape or stride change, `conv_proj` and `gn_proj` on the input.
  Stage i has 2^i times the root's width, four times as many channels out, and stride 2 but for the first.
"""

import numpy as np

from references.draw import Draw
from references.layers import Affine, Array, channels_last, dense, double, gelu_tanh, layer_norm, patch_tokens, same
from references.resnet import ResNet, Unit
from references.spec import ViTSpec, unit_shapes
from references.transformer import MLP, Attention, Block, Transformer

RESNET = ResNet(group_eps=1e-6, kernel_eps=1e-5, eps_inside=False, padding=same)
EPS = 1e-6


def random_official(
    spec: ViTSpec, rng: np.random.Generator, big_vision: bool = False, flat_norms: bool = False
) -> dict[str, Array]:
    """`pool="map"` is big_vision's alone, `stem` the official code's."""
    draw, width = Draw(rng), spec.width
    tensors = {} if spec.stem is None else random_stem(spec, draw, flat_norms)
    patch = (spec.patch_size, spec.patch_size, spec.patch_channels, width)
    tensors |= {"embedding/kernel": draw.kernel(*patch) / 100, "embedding/bias": draw.embedding(width)}
    if spec.pool == "token":
        tensors["cls"] = draw.embedding(1, 1, width)
    rows = spec.grid_size**2 + (spec.pool == "token" and not big_vision)
    tensors["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"] = draw.embedding(1, rows, width)
    attention, hidden, norm2 = (0, 0, 1) if big_vision else (1, 3, 2)
    for i in range(spec.depth):
        block = f"Transformer/encoderblock_{i}"
        tensors |= norm_pair(draw, f"{block}/LayerNorm_0", width) | norm_pair(draw, f"{block}/LayerNorm_{norm2}", width)
        tensors |= random_attention(spec, draw, f"{block}/MultiHeadDotProductAttention_{attention}")
        tensors |= random_mlp(spec, draw, f"{block}/MlpBlock_{hidden}")
    tensors |= norm_pair(draw, "Transformer/encoder_norm", width)
    if spec.pool == "map":
        tensors["MAPHead_0/probe"] = draw.normal(1, 1, width)
        tensors |= random_attention(spec, draw, "MAPHead_0/MultiHeadDotProductAttention_0")
        tensors |= norm_pair(draw, "MAPHead_0/LayerNorm_0", width) | random_mlp(spec, draw, "MAPHead_0/MlpBlock_0")
    if spec.representation_size:
        tensors |= dense_pair(draw, "pre_logits", width, spec.representation_size)
    return tensors | dense_pair(draw, "head", spec.representation_size or width, spec.num_classes)


def dense_pair(draw: Draw, name: str, *shape: int) -> dict[str, Array]:
    return {f"{name}/kernel": draw.kernel(*shape), f"{name}/bias": draw.normal(shape[-1])}


def norm_pair(draw: Draw, name: str, width: int) -> dict[str, Array]:
    scale, bias = draw.norm(width)
    return {f"{name}/scale": scale, f"{name}/bias": bias}


def random_attention(spec: ViTSpec, draw: Draw, name: str) -> dict[str, Array]:
    width, heads, size = spec.width, spec.num_heads, spec.width // spec.num_heads
    tensors = {f"{name}/out/kernel": draw.kernel(heads, size, width), f"{name}/out/bias": draw.normal(width)}
    for part in ("query", "key", "value"):
        tensors[f"{name}/{part}/kernel"] = draw.kernel(width, heads, size, fan_in=width)
        tensors[f"{name}/{part}/bias"] = draw.normal(heads, size)
    return tensors


def random_mlp(spec: ViTSpec, draw: Draw, name: str) -> dict[str, Array]:
    return dense_pair(draw, f"{name}/Dense_0", spec.width, spec.mlp_dim) | dense_pair(
        draw, f"{name}/Dense_1", spec.mlp_dim, spec.width
    )


def random_stem(spec: ViTSpec, draw: Draw, flat_norms: bool) -> dict[str, Array]:
    assert spec.stem is not None
    tensors = {"conv_root/kernel": draw.std_kernel(7, 7, 3, spec.stem_width)}
    norms = {"gn_root": spec.stem_width}
    for unit in unit_shapes(spec.stem, spec.stem_width):
        name = f"block{unit.stage + 1}/unit{unit.unit + 1}"
        for part, shape in unit.convolutions.items():
            suffix = "_proj" if part == "projection" else part
            tensors[f"{name}/conv{suffix}/kernel"] = draw.std_kernel(*shape)
            norms[f"{name}/gn{suffix}"] = shape[-1]
    for name, size in norms.items():
        shape = (size,) if flat_norms else (1, 1, 1, size)
        tensors[f"{name}/scale"], tensors[f"{name}/bias"] = draw.small_norm(*shape)
    return tensors


def logits_official(tensors: dict[str, Array], images_BCHW: Array) -> Array:
    """Either naming; number of heads, kind of pooling, pre-logits and ResNet follow from the tensors."""
    tensors, x = double(tensors), channels_last(images_BCHW)
    if "conv_root/kernel" in tensors:
        x = stem(tensors, x)
    tokens = with_positions(tensors, patch_tokens(x, pair(tensors, "embedding")))
    big_vision = "Transformer/encoderblock_0/LayerNorm_1/scale" in tensors
    query = f"Transformer/encoderblock_0/MultiHeadDotProductAttention_{0 if big_vision else 1}/query/kernel"
    encoder = Transformer(num_heads=tensors[query].shape[1], eps=EPS, gelu=gelu_tanh)
    number = 0
    while f"Transformer/encoderblock_{number}/LayerNorm_0/scale" in tensors:
        tokens = encoder.block(tokens, block(tensors, f"Transformer/encoderblock_{number}", big_vision))
        number += 1
    tokens = layer_norm(tokens, pair(tensors, "Transformer/encoder_norm"), EPS)
    features = pool(tensors, tokens, encoder)
    if "pre_logits/kernel" in tensors:
        features = np.tanh(dense(features, pair(tensors, "pre_logits")))
    return dense(features, pair(tensors, "head"))


def with_positions(tensors: dict[str, Array], tokens: Array) -> Array:
    cls = [np.tile(tensors["cls"], (len(tokens), 1, 1))] if "cls" in tensors else []
    if "pos_embedding" in tensors:
        return np.concatenate([*cls, tokens + tensors["pos_embedding"]], axis=1)
    return np.concatenate([*cls, tokens], axis=1) + tensors["Transformer/posembed_input/pos_embedding"]


def pool(tensors: dict[str, Array], tokens: Array, encoder: Transformer) -> Array:
    if "MAPHead_0/probe" in tensors:
        head = attention(tensors, "MAPHead_0/MultiHeadDotProductAttention_0")
        norm, hidden = pair(tensors, "MAPHead_0/LayerNorm_0"), mlp(tensors, "MAPHead_0/MlpBlock_0")
        return encoder.attention_pool(tokens, tensors["MAPHead_0/probe"], head, norm, hidden)
    return tokens[:, 0] if "cls" in tensors else tokens.mean(1)


def pair(tensors: dict[str, Array], name: str) -> Affine:
    """kernel and bias, or scale and bias."""
    if f"{name}/kernel" in tensors:
        return Affine(tensors[f"{name}/kernel"], tensors[f"{name}/bias"])
    return Affine(tensors[f"{name}/scale"].reshape(-1), tensors[f"{name}/bias"].reshape(-1))


def attention(tensors: dict[str, Array], name: str) -> Attention:
    width = tensors[f"{name}/out/bias"].size
    parts = (pair(tensors, f"{name}/{part}") for part in ("query", "key", "value", "out"))
    return Attention(*(Affine(weight.reshape(width, width), bias.reshape(-1)) for weight, bias in parts))


def mlp(tensors: dict[str, Array], name: str) -> MLP:
    return MLP(pair(tensors, f"{name}/Dense_0"), pair(tensors, f"{name}/Dense_1"))


def block(tensors: dict[str, Array], name: str, big_vision: bool) -> Block:
    names = ("_0", "_0", "_1", "_0") if big_vision else ("_0", "_1", "_2", "_3")
    return Block(
        pair(tensors, f"{name}/LayerNorm{names[0]}"),
        attention(tensors, f"{name}/MultiHeadDotProductAttention{names[1]}"),
        pair(tensors, f"{name}/LayerNorm{names[2]}"),
        mlp(tensors, f"{name}/MlpBlock{names[3]}"),
    )


def stem(tensors: dict[str, Array], images_BHWC: Array) -> Array:
    x = RESNET.hybrid_root(images_BHWC, tensors["conv_root/kernel"], pair(tensors, "gn_root"))
    stages, stage = [], 1
    while f"block{stage}/unit1/conv1/kernel" in tensors:
        count = sum(name.startswith(f"block{stage}/") and name.endswith("/conv1/kernel") for name in tensors)
        stages.append([unit(tensors, f"block{stage}/unit{number}") for number in range(1, count + 1)])
        stage += 1
    return RESNET.units(x, stages, RESNET.hybrid_unit)


def unit(tensors: dict[str, Array], name: str) -> Unit:
    kernels = tuple(tensors[f"{name}/conv{part}/kernel"] for part in (1, 2, 3))
    norms = tuple(pair(tensors, f"{name}/gn{part}") for part in (1, 2, 3))
    if f"{name}/conv_proj/kernel" not in tensors:
        return Unit(kernels, norms, None)
    return Unit(kernels, norms, tensors[f"{name}/conv_proj/kernel"], pair(tensors, f"{name}/gn_proj"))
