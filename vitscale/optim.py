"""Parameter groups and optimisers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from vitscale.config import OptimConfig

# Tensors as large as the parameter that each optimiser keeps; they go into checkpoints.
STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
# As big_vision, which decays kernels alone.
NO_DECAY = ("cls_token", "pos_embed.", "relative_keys.", "attention_pool.probe")


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; biases, norms, tokens and position embeddings do not."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decay = [p for name, p in named if p.ndim > 1 and not name.startswith(NO_DECAY)]
    rest = [p for name, p in named if p.ndim == 1 or name.startswith(NO_DECAY)]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


class Guard:
    """Skips an update whose gradient norm is not finite, on the device: torch's fused steps obey `found_inf`.

    `grad_norm` gives the global norm, equal on every rank, so that all ranks skip or none; DeepSpeed marks a norm that is not
    finite by a negative value.
    """

    grad_norm: Callable[[], torch.Tensor | float | None] = staticmethod(lambda: None)
    found_inf: torch.Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        norm = self.grad_norm()
        if isinstance(norm, torch.Tensor):
            self.found_inf = (~torch.isfinite(norm) | (norm < 0)).float().reshape(())
        return super().step(closure)  # type: ignore[misc]


class AdamW(Guard, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""


class SGD(Guard, torch.optim.SGD):
    """SGD with momentum: velocity = momentum * velocity + gradient; weight -= lr * velocity."""


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over a model's parameter groups. Its learning rate is 0 until the loop sets it."""
    groups = param_groups(model, config.weight_decay)
    if config.name == "sgd":
        return SGD(groups, lr=0.0, momentum=config.momentum, fused=True)
    return AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def fresh_state(name: str, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """An optimiser's state before its first step, for weights of this shape and device."""
    state = {key: torch.zeros_like(weights) for key in STATE[name]}
    if name == "adamw":
        state["step"] = torch.zeros((), dtype=torch.float32, device=weights.device)
    return state


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    for group in groups:
        group["lr"] = lr
