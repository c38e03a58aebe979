"""Memory of one process on its device, counted without one: states and buffers by arithmetic on what the engine keeps,
activations by sending images through a model of shapes alone."""

import contextlib
import functools
import math
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitscale.config import HardwareConfig, OptimConfig, RunConfig
from vitscale.engine import MAX_BUCKET_ELEMENTS, prepare
from vitscale.loss import LOSSES
from vitscale.model.build import build, parameter_shapes
from vitscale.model.config import ModelConfig
from vitscale.model.layers import LayerNorm
from vitscale.optim import DTYPES, build_optimizer, fresh_state

TRACED = (2, 4)  # images; the activations of more follow, for they grow by the image
ALLREDUCE_ELEMENTS = 500_000_000  # DeepSpeed reduces so many gradients at once at stage 0
MAX_LIVE_ELEMENTS = 1_000_000_000  # parameters that DeepSpeed keeps gathered at stage 3
COMPOSED_BYTES = 24  # per parameter of a partition, while a rule of plain tensor operations steps it


class Memory(NamedTuple):
    """Bytes at the fullest moment of a step."""

    states: int  # working weights, fp32 weights, moments, averaged weights, gradients of the own partition at stage 3
    activations: int
    buffers: int  # gradients, and what they are copied to; weights gathered at stage 3

    @property
    def total(self) -> int:
        return sum(self)


class Activations(NamedTuple):
    """Bytes that forward and backward of one micro-step hold beside the weights and their gradients."""

    fixed: float
    per_image: float

    def of(self, images: int) -> int:
        return round(self.fixed + self.per_image * images)


@functools.cache  # building takes a second
def sizes(model: ModelConfig) -> list[int]:
    """Of every parameter."""
    return [shape.numel() for shape in parameter_shapes(model).values()]


def num_parameters(model: ModelConfig) -> int:
    return sum(sizes(model))


def kept_bytes(optim: OptimConfig) -> int:
    """Per parameter that a process steps: the fp32 weight and the optimiser's state."""
    weight = torch.empty(1, device="meta")
    return 4 + sum(tensor.element_size() for tensor in fresh_state(optim, weight).values() if tensor.ndim)


def memory(cfg: RunConfig, stage: int, ranks: int, micro: int, accum: int, activations: Activations) -> Memory:
    """Of one process at a ZeRO stage. Every sum here is what the engine was measured to hold; tests measure it again."""
    count, element = num_parameters(cfg.model), DTYPES[cfg.hardware.precision].itemsize
    own, bucket = count / (ranks if stage else 1), float(element * min(count, MAX_BUCKET_ELEMENTS))
    whole, part, kept, mixed = float(element * count), element * own, kept_bytes(cfg.optim) * own, element < 4
    held = activations.of(micro)
    draining = max(held + bucket, held * (1 - bucket / whole) + 2 * bucket)  # gradients are sent while activations go
    # Gradients that are there at the fullest moment: all that wait for the next micro-step, else few; of checkpointed blocks
    # about half, for the activations of the block at work, which are most of them, stay as many.
    waiting = 1.0 if accum > 1 else 0.5 if cfg.hardware.activation_checkpointing and stage < 2 else 0.0
    composed = hasattr(build_optimizer(torch.nn.Linear(1, 1), cfg.optim), "rule")
    update = max(2 * part + 4 * own, COMPOSED_BYTES * own * composed)
    if stage == 0:
        states, training = kept + whole * mixed, held + whole * waiting
        update = whole + max((element + 4 * mixed) * min(count, ALLREDUCE_ELEMENTS), whole * mixed * 4 / element)
    elif stage == 1:
        states, training = kept + whole, held + bucket + whole * waiting
        update = max(update, whole + bucket, part + 2 * bucket)
    elif stage == 2:
        states, training = kept + whole, draining + part * waiting
        update = max(update, part + 2 * bucket)
    else:
        gathered = element * min(count, MAX_LIVE_ELEMENTS) * (ranks > 1)
        states, training, update = kept + 2 * part, draining + gathered, update + bucket + gathered
    return Memory(math.ceil(states), held, math.ceil(max(training, update) - held))


def activations(cfg: RunConfig) -> Activations:
    """Forward and backward of a few images through the real model; takes seconds, and no memory."""
    low, high = (trace(cfg.model, cfg.hardware, cfg.train.loss, images) for images in TRACED)
    per_image = (high - low) / (TRACED[1] - TRACED[0])
    return Activations(low - TRACED[0] * per_image, per_image)


@functools.cache
def trace(config: ModelConfig, hardware: HardwareConfig, loss: str, images: int) -> int:
    """Most bytes held at a time in a micro-step of so many images. Gradients of parameters are let go at once."""
    dtype, size = DTYPES[hardware.precision], config.image_size
    with torch.device("meta"):
        model = build(config).to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), Held() as held, gpu_kernels(hardware.device):
        model.to_empty(device="cpu")  # of meta tensors attention would hold all its weights
        prepare(model, HardwareConfig(activation_checkpointing=hardware.activation_checkpointing))
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        held.now = held.peak = 0  # counted from here
        targets = torch.empty(images, config.num_classes)
        logits = model(torch.empty(images, 3, size, size, dtype=dtype))
        LOSSES[loss](logits, targets).mean().backward()
    return held.peak


@contextlib.contextmanager
def gpu_kernels(device: str) -> Iterator[None]:
    """Dropout that keeps a byte per element, where the CPU keeps a mask of the elements' type; and unless `device` is cpu
    LayerNorm as GPUs do it, without a copy in fp32."""
    on_cpu = F.dropout, LayerNorm.forward

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: ARG001
        return torch.native_dropout(input, p, training)[0] if training and p else input

    F.dropout = dropout
    if device != "cpu":
        LayerNorm.forward = torch.nn.LayerNorm.forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        F.dropout, LayerNorm.forward = on_cpu  # type: ignore[method-assign]


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that live, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages = weakref.WeakSet[Any]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._storages:
                self._storages.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes
