"""The only door to DeepSpeed: wrap a model, step it, and reach the fp32 weights and optimiser state that each rank owns.

The DeepSpeed configuration is derived from the recipe alone and used for every number of processes, one included.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from vitscale.config import HardwareConfig, OptimConfig
from vitscale.optim import STATE, build_optimizer, fresh_state, set_learning_rate
from vitscale.world import World

MAX_BUCKET_ELEMENTS = 50_000_000  # DeepSpeed's default holds all of ViT-L's gradients, so that nothing would overlap
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Fragment(NamedTuple):
    """A contiguous piece of one parameter that this rank owns: live views, flat, fp32."""

    name: str
    start: int  # first element within the flattened parameter
    tensors: dict[str, torch.Tensor]  # "weight" and the optimiser's state


class Engine:
    """A model under ZeRO. Call every method on every rank."""

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        hardware: HardwareConfig,
        micro_batch: int,
        grad_accum: int,
        world: World,
    ) -> None:
        deepspeed = import_deepspeed(world.device.type)
        self.world, self.stage, self.optim_name = world, hardware.zero_stage, optim.name
        self.dtype, self.micro_batch, self.grad_accum = DTYPES[hardware.precision], micro_batch, grad_accum
        optimizer = build_optimizer(model, optim)
        bucket = min(sum(p.numel() for p in model.parameters()), MAX_BUCKET_ELEMENTS)
        bucket += bucket % 2  # DeepSpeed wants it even
        config = deepspeed_config(optim, hardware, micro_batch, grad_accum, world.size, bucket)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        assert self._engine.dp_world_size == world.size
        assert self._engine.zero_optimization_stage() == self.stage
        self._zero = self._engine.optimizer
        optimizer.grad_norm = lambda: self._zero._global_grad_norm  # type: ignore[attr-defined]
        for weights in self._flat_weights():
            optimizer.state[weights] = fresh_state(optim.name, weights)

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def __call__(self, images_BCHW: torch.Tensor, *chance_BL2: torch.Tensor) -> torch.Tensor:  # -> logits_BK
        return self._engine(images_BCHW, *chance_BL2)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A block in which the model evaluates: no dropout."""
        self._engine.eval()
        try:
            yield
        finally:
            self._engine.train()

    def backward_and_step(self, loss: torch.Tensor) -> None:
        """One micro-step; the update happens at the last of `grad_accum`. `loss` is the micro-batch's mean."""
        self._engine.backward(loss)
        self._engine.step()

    def set_learning_rate(self, lr: float) -> None:
        set_learning_rate(self._zero.param_groups, lr)

    @property
    def grad_norm(self) -> float:
        """Global norm of the last update's gradient, before clipping; waits for the device."""
        norm = float(self._zero._global_grad_norm or 0.0)
        return norm if norm >= 0 else float("nan")

    def shapes(self) -> Iterator[tuple[str, torch.Size]]:
        """(name, full shape) of every parameter."""
        for name, parameter in self.module.named_parameters():
            yield name, parameter.ds_shape if self.stage == 3 else parameter.shape  # type: ignore[attr-defined]

    def fragments(self) -> Iterator[Fragment]:
        """What this rank owns of every parameter; together the ranks own each element exactly once."""
        return self._fragments_stage3() if self.stage == 3 else self._fragments_stage12()

    def _fragments_stage12(self) -> Iterator[Fragment]:
        for name, parameter in self.module.named_parameters():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                weights = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
                place = mapping.hp_fragment_address
                yield self._fragment(name, mapping.lp_fragment_address.start, weights, place.start, place.numel)

    def _fragments_stage3(self) -> Iterator[Fragment]:
        for name, parameter in self.module.named_parameters():
            group, offset, share = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = self.world.rank * share
            count = min(share, parameter.ds_numel - start)  # type: ignore[attr-defined]
            if count > 0:  # the last ranks may own padding only
                yield self._fragment(name, start, self._zero.fp32_partitioned_groups_flat[group], offset, count)

    def _fragment(self, name: str, start: int, weights: torch.Tensor, offset: int, count: int) -> Fragment:
        state = self._zero.optimizer.state[weights]
        tensors = {"weight": weights, **{key: state[key] for key in STATE[self.optim_name]}}
        return Fragment(name, start, {key: tensor.detach().narrow(0, offset, count) for key, tensor in tensors.items()})

    def _flat_weights(self) -> list[torch.Tensor]:
        return self._zero.fp32_partitioned_groups_flat if self.stage == 3 else self._zero.single_partition_of_fp32_groups

    @property
    def num_updates(self) -> float:
        """Updates that the optimiser applied (AdamW's bias correction counts them); skipped ones are not among them."""
        states = [self._zero.optimizer.state[weights] for weights in self._flat_weights()]
        return max((float(state["step"]) for state in states if "step" in state), default=0.0)

    @num_updates.setter
    def num_updates(self, count: float) -> None:
        for weights in self._flat_weights():
            if "step" in (state := self._zero.optimizer.state[weights]):
                state["step"].fill_(count)

    def weights_changed(self, full: dict[str, torch.Tensor]) -> None:
        """After the fp32 fragments were written to: bring the working parameters in line. `full` holds whole tensors."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if self.stage == 3:
                    local = self._zero.get_local_fp32_param(parameter)
                    parameter.ds_tensor[: local.numel()].copy_(local[: parameter.ds_tensor.numel()])  # type: ignore[attr-defined]
                else:
                    parameter.copy_(full[name])


def deepspeed_config(
    optim: OptimConfig, hardware: HardwareConfig, micro_batch: int, grad_accum: int, world_size: int, bucket: int
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`; `bucket` = elements that are reduced or gathered at once."""
    return {
        "train_batch_size": micro_batch * grad_accum * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": grad_accum,
        "gradient_clipping": optim.clip_norm,
        # The overflow check would wait for the device every step; optim.Guard does its work without.
        "bf16": {"enabled": hardware.precision == "bf16", "check_grad_overflow": False},
        "zero_optimization": {
            "stage": hardware.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for a device, quiet, and without its shared-memory op, which would need a compiler."""
    os.environ["DS_ACCELERATOR"] = device
    # DeepSpeed calls what torch 2.13 renamed; the old name works.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*deprecated", category=FutureWarning)
    if hidden := "mlflow" not in sys.modules:  # DeepSpeed's autotuner would import it, which takes seconds
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    import deepspeed
    import deepspeed.ops

    if hidden:
        del sys.modules["mlflow"]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
