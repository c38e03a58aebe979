"""The only door to DeepSpeed: wrap a model, step it, and reach the fp32 weights and optimiser state that each rank owns.

The DeepSpeed configuration is derived from the recipe alone and used for every number of processes, one included.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import requires
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from packaging.requirements import Requirement
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitscale.config import HardwareConfig, OptimConfig
from vitscale.errors import LaunchError
from vitscale.model import attention
from vitscale.model.resnet import BiTUnit, Unit
from vitscale.model.vit import Block
from vitscale.optim import DTYPES, Pieces, Replicated, build_optimizer, fresh_state, set_learning_rate, state_kinds
from vitscale.world import World

BLOCKS = (Block, Unit, BiTUnit)  # what is checkpointed, compiled and gathered as a whole
MAX_BUCKET_ELEMENTS = 50_000_000  # DeepSpeed's default holds all of ViT-L's gradients, so that nothing would overlap


class Place(NamedTuple):
    """Where a contiguous piece of one parameter lies among what this rank steps."""

    name: str
    start: int  # first element within the flattened parameter
    weights: torch.Tensor  # fp32, flat under ZeRO
    offset: int  # first element within `weights`
    length: int


class Fragment(NamedTuple):
    """A contiguous piece of one parameter that this rank owns: live views, flat, fp32 (the first moment as the recipe says)."""

    name: str
    start: int  # first element within the flattened parameter
    tensors: dict[str, torch.Tensor]  # "weight" and the optimiser's state


class Engine:
    """A model under ZeRO. Call every method on every rank."""

    def __init__(
        self, model: nn.Module, optim: OptimConfig, hardware: HardwareConfig, micro_batch: int, grad_accum: int, world: World
    ) -> None:
        deepspeed = import_deepspeed(world.device.type)
        self.world, self.stage, self.optim = world, hardware.zero_stage, optim
        self.dtype, self.micro_batch, self.grad_accum = DTYPES[hardware.precision], micro_batch, grad_accum
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}  # full ones, under ZeRO-3 too
        attention.choose(model, world.device, self.dtype)
        prepare(model, hardware)
        if self.stage == 0:
            model.to(world.device, self.dtype)
        self._stepper = build_optimizer(model, optim)
        optimizer = Replicated(self._stepper, optim.clip_norm) if self.stage == 0 else self._stepper
        bucket = min(sum(p.numel() for p in model.parameters()), MAX_BUCKET_ELEMENTS)
        bucket += bucket % 2  # DeepSpeed wants it even
        config = deepspeed_config(optim, hardware, micro_batch, grad_accum, world.size, bucket)
        if self.stage == 3:  # hooks on every layer would cost more, and break compiled blocks in pieces
            deepspeed.utils.set_z3_leaf_modules(model, list(BLOCKS))
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        assert isinstance(self._engine, deepspeed.DeepSpeedEngine)
        assert self._engine.dp_world_size == world.size
        assert self._engine.zero_optimization_stage() == self.stage
        self._zero = self._engine.optimizer
        if self.stage == 0:
            self._engine.zero_grad = lambda: None  # `Replicated` has done it, without a walk through all modules
            self._engine.enable_backward_allreduce = world.size > 1  # else gradients would be copied out and back for nothing
        elif self.stage == 3:
            self._zero._get_norm_groups = lambda: [self._global_norm()]
        else:
            self._zero.scaled_global_norm = self._global_norm
        self._places = list(self._find_places())
        self._equip(self._stepper)

    def _equip(self, optimizer: Any) -> None:
        """Give the optimiser its state, the global norm, and where the parameters lie."""
        if self.stage > 0:
            optimizer.grad_norm = lambda: self._zero._global_grad_norm
            optimizer.sum_over_ranks = self.world.sum
        optimizer.pieces = {weights: self._pieces_of(weights) for weights in self._flat_weights()}
        for weights in self._flat_weights():
            optimizer.state[weights] = fresh_state(self.optim, weights)

    def _pieces_of(self, weights: torch.Tensor) -> Pieces:
        """The parameters that lie in a flat tensor, numbered alike on every rank."""
        numbers = {name: number for number, name in enumerate(self.shapes)}
        found = [place for place in self._places if place.weights is weights]
        index = torch.tensor([numbers[place.name] for place in found], device=weights.device, dtype=torch.int64)
        return Pieces(index, [place.offset for place in found], [place.length for place in found], len(numbers))

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def __call__(self, images_BCHW: torch.Tensor, *chance_BL2: torch.Tensor) -> torch.Tensor:  # -> logits_BK
        return self._engine(images_BCHW, *chance_BL2)

    @contextmanager
    def evaluating(self, averaged: bool = False) -> Iterator[None]:
        """A block in which the model evaluates: no dropout; `averaged` = with the moving average of the weights."""
        self._engine.eval()
        if averaged:
            self._swap_average()
        try:
            yield
        finally:
            if averaged:
                self._swap_average()
            self._engine.train()

    @torch.no_grad()
    def _swap_average(self) -> None:
        for weights in self._flat_weights():
            average = self._stepper.state[weights]["ema"]
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)
        self.spread()

    def backward_and_step(self, loss: torch.Tensor) -> None:
        """One micro-step; the update happens at the last of `grad_accum`. `loss` is the micro-batch's mean."""
        # A loss that is not finite may have gradients that are; they shall not be applied either (0 * inf = nan).
        self._engine.backward(loss * (loss.detach() * 0 + 1))
        self._engine.step()

    @torch.no_grad()
    def _global_norm(self, norm_type: int = 2) -> torch.Tensor:  # noqa: ARG002 - DeepSpeed's signature
        """In place of DeepSpeed's: of all gradients at once, with one sum over ranks, where it goes from tensor to tensor."""
        grads = [grad for group in self._zero.averaged_gradients.values() for grad in group or ()]
        norms = torch._foreach_norm(grads, dtype=torch.float32) if grads else [torch.zeros((), device=self.world.device)]
        return self.world.sum(torch.stack(norms).square().sum()).sqrt()

    def set_learning_rate(self, lr: float) -> None:
        set_learning_rate(self._stepper.param_groups, lr)

    @property
    def grad_norm(self) -> torch.Tensor:
        """Global norm of the last update's gradient, before clipping; not finite where the update was skipped."""
        return self._stepper.grad_norm()

    def fragments(self, replicas: bool = False) -> Iterator[Fragment]:
        """What this rank owns of every parameter; together the ranks own each element exactly once.

        `replicas`: at stage 0 all of what it steps, which is everything.
        """
        for number, place in enumerate(self._places):
            if self.stage > 0 or replicas or number % self.world.size == self.world.rank:
                state = self._stepper.state[place.weights]
                tensors = {"weight": place.weights, **{kind: state[kind] for kind in state_kinds(self.optim)}}
                flat = {key: tensor.detach().flatten().narrow(0, place.offset, place.length) for key, tensor in tensors.items()}
                yield Fragment(place.name, place.start, flat)

    def _find_places(self) -> Iterator[Place]:
        find = {0: self._places_stage0, 3: self._places_stage3}.get(self.stage, self._places_stage12)
        for name, parameter in self.module.named_parameters():
            yield from find(name, parameter)

    def _places_stage0(self, name: str, parameter: Any) -> Iterator[Place]:
        number = next(n for n, working in enumerate(self._zero.working) if working is parameter)
        yield Place(name, 0, self._zero.masters[number], 0, parameter.numel())

    def _places_stage12(self, name: str, parameter: Any) -> Iterator[Place]:
        mapping = parameter._hp_mapping
        if mapping is not None:
            place = mapping.hp_fragment_address
            weights = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            yield Place(name, mapping.lp_fragment_address.start, weights, place.start, place.numel)

    def _places_stage3(self, name: str, parameter: Any) -> Iterator[Place]:
        group, offset, share = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start = self.world.rank * share
        count = min(share, parameter.ds_numel - start)
        if count > 0:  # the last ranks may own padding only
            yield Place(name, start, self._zero.fp32_partitioned_groups_flat[group], offset, count)

    def _flat_weights(self) -> list[torch.Tensor]:
        if self.stage == 0:
            return self._zero.masters
        return self._zero.fp32_partitioned_groups_flat if self.stage == 3 else self._zero.single_partition_of_fp32_groups

    @property
    def num_updates(self) -> float:
        """Updates that the optimiser applied (Adam's bias correction counts them); skipped ones are not among them."""
        states = [self._stepper.state[weights] for weights in self._flat_weights()]
        return max((float(state["step"]) for state in states if "step" in state), default=0.0)

    @num_updates.setter
    def num_updates(self, count: float) -> None:
        for weights in self._flat_weights():
            if "step" in (state := self._stepper.state[weights]):
                state["step"].fill_(count)

    @torch.no_grad()
    def spread(self) -> None:
        """Bring the working parameters in line after the fp32 ones were written to, as DeepSpeed does after a step."""
        if self.stage == 0:
            self._zero.spread()
        elif self.stage == 3:
            self._zero._partition_all_parameters()  # small ones stay gathered from step to step
            for parameter in self.module.parameters():
                local = self._zero.get_local_fp32_param(parameter)
                parameter.ds_tensor[: local.numel()].copy_(local[: parameter.ds_tensor.numel()])  # type: ignore[attr-defined]
        else:
            for group, weights in enumerate(self._zero.single_partition_of_fp32_groups):
                partitions = self._zero.parallel_partitioned_bit16_groups[group]
                partitions[self.world.rank].copy_(weights)
                dist.all_gather(list(partitions), partitions[self.world.rank].clone())


def prepare(model: nn.Module, hardware: HardwareConfig) -> None:
    """Activation checkpointing and compilation, block by block, from outside of the model."""
    blocks = (module for module in model.modules() if isinstance(module, BLOCKS))
    for number, block in enumerate(blocks):
        if hardware.compile:  # before the line below, whose result dynamo leaves alone
            # A graph for each batch size: of one for all, which size came first would decide, and a restart may change that.
            block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
        if hardware.activation_checkpointing and number % hardware.activation_checkpointing == 0:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def deepspeed_config(
    optim: OptimConfig, hardware: HardwareConfig, micro_batch: int, grad_accum: int, world_size: int, bucket: int
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`; `bucket` = elements that are reduced or gathered at once."""
    replicated = hardware.zero_stage == 0  # optim.Replicated clips, and holds the fp32 weights of a model in bf16
    return {
        "train_batch_size": micro_batch * grad_accum * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": grad_accum,
        "gradient_clipping": 0.0 if replicated else optim.clip_norm,
        # The overflow check would wait for the device, too.
        "bf16": {"enabled": hardware.precision == "bf16" and not replicated, "check_grad_overflow": False},
        "zero_optimization": {
            "stage": hardware.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # Stage 3 gathers blocks whole: small weights need no gathering of their own, and linear layers no Python around
            # them, for which each compiled block would be another.
            "stage3_param_persistence_threshold": 0,
            "memory_efficient_linear": False,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for a device, quiet, and without its shared-memory op, which would need a compiler.

    LaunchError where it is of another version than this code was written for.
    """
    os.environ["DS_ACCELERATOR"] = device
    # DeepSpeed calls what torch 2.13 renamed; the old name works.
    warnings.filterwarnings("ignore", message=r".*(all_gather_into|reduce_scatter)_tensor.*deprecated", category=FutureWarning)
    if hidden := "mlflow" not in sys.modules:  # DeepSpeed's autotuner would import it, which takes seconds
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    if hidden:
        del sys.modules["mlflow"]
    allowed = next(Requirement(line) for line in requires("vitscale") or () if line.startswith("deepspeed"))
    if deepspeed.__version__ not in allowed.specifier:
        raise LaunchError(f"deepspeed {deepspeed.__version__} is installed, vitscale needs {allowed}: pip install '{allowed}'")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for stage in (stage_1_and_2, stage3):  # would wait for the device in every step; optim.Stepping does its work without
        stage.is_invalid_grad_norm = lambda norm: False  # noqa: ARG005
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
