"""The `.npz` of google-research/big_transfer (BiT-M-R50x1.npz and so on).

Sources: bit_pytorch/models.py, bit_tf2/models.py and normalization.py, bit_jax/models.py and tf2jax.py; they agree. Names:
`resnet/root_block`, `resnet/block{1..4}/unit{01..}/{a,b,c}` with `group_norm/gamma`, `group_norm/beta` (C,) and
`standardized_conv2d/kernel` (height, width, in, out), the projection `a/proj/standardized_conv2d/kernel`, `resnet/group_norm`,
and the head, a convolution `resnet/head/conv2d/kernel` (1, 1, C, K). In some files a number follows `standardized_conv2d`, as
in `standardized_conv2d_1` (big_vision models/bit_paper.py).

- Kernels: (w - mean) / sqrt(variance + 1e-10). GroupNorm: 32 groups, eps 1e-5.
- Padding is symmetric and independent of the input's size, 3 for the root and 1 for each 3 x 3, also before the root's pool:
  the pool sees zeros at the border, and as nothing rectifies the root's output these count. (bit_paper.py pads the pool with
  -inf instead; the three original codes pad with zeros.)
- Pre-activation: the projection sees the normed and rectified input, and has no norm; the stride stands on b. No norm and no
  ReLU in the root. After the last unit: GroupNorm, ReLU, mean over the pixels, head.
"""

import re

import numpy as np

from references.draw import Draw
from references.layers import Affine, Array, channels_last, dense, double, fixed, relu
from references.resnet import ResNet, Unit
from references.spec import BiTSpec, unit_shapes

RESNET = ResNet(group_eps=1e-5, kernel_eps=1e-10, eps_inside=True, padding=fixed)
CONV = "standardized_conv2d"


def random_bit(spec: BiTSpec, rng: np.random.Generator, numbered: bool = False) -> dict[str, Array]:
    """`numbered`: as the files in which names of convolutions carry a number."""
    draw = Draw(rng)
    tensors = {f"resnet/root_block/{CONV}/kernel": draw.std_kernel(7, 7, 3, spec.width)}
    for unit in unit_shapes(spec.units, spec.width):
        name = f"resnet/block{unit.stage + 1}/unit{unit.unit + 1:02d}"
        for part, shape in unit.convolutions.items():
            letter = {"1": "a", "2": "b", "3": "c", "projection": "a/proj"}[part]
            tensors[f"{name}/{letter}/{CONV}/kernel"] = draw.std_kernel(*shape)
            if part != "projection":
                gamma, beta = draw.small_norm(shape[2])
                tensors |= {f"{name}/{letter}/group_norm/gamma": gamma, f"{name}/{letter}/group_norm/beta": beta}
    features = spec.width * 2 ** (len(spec.units) + 1)
    tensors["resnet/group_norm/gamma"], tensors["resnet/group_norm/beta"] = draw.norm(features)
    tensors["resnet/head/conv2d/kernel"] = draw.kernel(1, 1, features, spec.num_classes)
    tensors["resnet/head/conv2d/bias"] = draw.normal(spec.num_classes)
    if numbered:
        return {name.replace(CONV, f"{CONV}_{number}"): tensor for number, (name, tensor) in enumerate(tensors.items())}
    return tensors


def logits_bit(tensors: dict[str, Array], images_BCHW: Array) -> Array:
    tensors = {re.sub(rf"{CONV}_\d+", CONV, name): tensor for name, tensor in double(tensors).items()}
    x = RESNET.bit_root(channels_last(images_BCHW), tensors[f"resnet/root_block/{CONV}/kernel"])
    x = RESNET.units(x, stages(tensors), RESNET.bit_unit)
    features = relu(RESNET.norm(x, norm(tensors, "resnet"))).mean((1, 2))
    return dense(features, Affine(tensors["resnet/head/conv2d/kernel"][0, 0], tensors["resnet/head/conv2d/bias"]))


def stages(tensors: dict[str, Array]) -> list[list[Unit]]:
    names = sorted({match[0] for name in tensors if (match := re.match(r"resnet/block\d/unit\d+", name))})
    blocks = sorted({name.rpartition("/")[0] for name in names})
    return [[unit(tensors, name) for name in names if name.startswith(block)] for block in blocks]


def unit(tensors: dict[str, Array], name: str) -> Unit:
    kernels = tuple(tensors[f"{name}/{letter}/{CONV}/kernel"] for letter in "abc")
    norms = tuple(norm(tensors, f"{name}/{letter}") for letter in "abc")
    return Unit(kernels, norms, tensors.get(f"{name}/a/proj/{CONV}/kernel"))


def norm(tensors: dict[str, Array], name: str) -> Affine:
    return Affine(tensors[f"{name}/group_norm/gamma"], tensors[f"{name}/group_norm/beta"])
