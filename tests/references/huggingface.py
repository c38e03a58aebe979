"""Hugging Face's `ViTForImageClassification` (transformers, models/vit/modeling_vit.py).

Names as in the files of the hub, which transformers 5 still writes, whatever its modules are called: q, k and v are
`vit.encoder.layer.{i}.attention.attention.query`, `.key`, `.value`, their output `attention.output.dense`, the MLP
`intermediate.dense` and `output.dense`, the norms `layernorm_before` and `layernorm_after`.

- What config.json says and the tensors do not: num_attention_heads; layer_norm_eps, 1e-12 unless said otherwise, where the
  official code has 1e-6; hidden_act, "gelu" being the erf form.
- The class token is `vit.layernorm`'s output at token 0; `position_embeddings` has a row for it. No pre-logits: `vit.pooler`
  (Linear and tanh) belongs to `ViTModel` and is not in these files.
"""

from collections.abc import Callable

import numpy as np

from references.draw import Draw
from references.layers import Affine, Array, channels_last, dense, double, gelu_erf, layer_norm, patch_tokens
from references.spec import ViTSpec
from references.transformer import MLP, Attention, Block, Transformer

PATCHES = "vit.embeddings.patch_embeddings.projection"


def random_huggingface(spec: ViTSpec, rng: np.random.Generator) -> dict[str, Array]:
    """The pool is the class token; the layout has no other, no stem and no pre-logits."""
    draw, width = Draw(rng), spec.width
    patch = draw.kernel(spec.patch_size, spec.patch_size, 3, width) / 100
    tensors = {
        "vit.embeddings.cls_token": draw.embedding(1, 1, width),
        "vit.embeddings.position_embeddings": draw.embedding(1, spec.grid_size**2 + 1, width),
        f"{PATCHES}.weight": np.ascontiguousarray(patch.transpose(3, 2, 0, 1)),
        f"{PATCHES}.bias": draw.embedding(width),
    }
    for i in range(spec.depth):
        tensors |= random_layer(spec, draw, f"vit.encoder.layer.{i}")
    tensors |= norm_pair(draw, "vit.layernorm", width)
    return tensors | dense_pair(draw, "classifier", width, spec.num_classes)


def random_layer(spec: ViTSpec, draw: Draw, name: str) -> dict[str, Array]:
    width = spec.width
    square = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")
    tensors = dense_pair(draw, f"{name}.intermediate.dense", width, spec.mlp_dim)
    tensors |= dense_pair(draw, f"{name}.output.dense", spec.mlp_dim, width)
    for part in square:
        tensors |= dense_pair(draw, f"{name}.{part}", width, width)
    return tensors | norm_pair(draw, f"{name}.layernorm_before", width) | norm_pair(draw, f"{name}.layernorm_after", width)


def dense_pair(draw: Draw, name: str, fan_in: int, fan_out: int) -> dict[str, Array]:
    return {f"{name}.weight": draw.kernel(fan_out, fan_in, fan_in=fan_in), f"{name}.bias": draw.normal(fan_out)}


def norm_pair(draw: Draw, name: str, width: int) -> dict[str, Array]:
    weight, bias = draw.norm(width)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def logits_huggingface(
    tensors: dict[str, Array],
    images_BCHW: Array,
    num_heads: int,
    eps: float = 1e-12,
    gelu: Callable[[Array], Array] = gelu_erf,
) -> Array:
    tensors = double(tensors)
    patch = Affine(tensors[f"{PATCHES}.weight"].transpose(2, 3, 1, 0), tensors[f"{PATCHES}.bias"])
    tokens = patch_tokens(channels_last(images_BCHW), patch)
    cls = np.tile(tensors["vit.embeddings.cls_token"], (len(tokens), 1, 1))
    tokens = np.concatenate([cls, tokens], axis=1) + tensors["vit.embeddings.position_embeddings"]
    encoder = Transformer(num_heads, eps, gelu)
    number = 0
    while f"vit.encoder.layer.{number}.output.dense.weight" in tensors:
        tokens = encoder.block(tokens, layer(tensors, f"vit.encoder.layer.{number}"))
        number += 1
    return dense(layer_norm(tokens[:, 0], pair(tensors, "vit.layernorm"), eps), linear(tensors, "classifier"))


def layer(tensors: dict[str, Array], name: str) -> Block:
    parts = ("attention.query", "attention.key", "attention.value", "output.dense")
    return Block(
        pair(tensors, f"{name}.layernorm_before"),
        Attention(*(linear(tensors, f"{name}.attention.{part}") for part in parts)),
        pair(tensors, f"{name}.layernorm_after"),
        MLP(linear(tensors, f"{name}.intermediate.dense"), linear(tensors, f"{name}.output.dense")),
    )


def linear(tensors: dict[str, Array], name: str) -> Affine:
    return Affine(tensors[f"{name}.weight"].T, tensors[f"{name}.bias"])


def pair(tensors: dict[str, Array], name: str) -> Affine:
    return Affine(tensors[f"{name}.weight"], tensors[f"{name}.bias"])
