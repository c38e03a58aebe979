"""Parameter groups and optimisers. A step never waits for the device, and a gradient that is not finite changes nothing.

Under ZeRO an optimiser sees flat partitions instead of parameters; `pieces` tells it where the parameters lie in them.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from vitscale.config import OptimConfig

# Tensors as large as the parameter that each optimiser keeps, the first of them in `moment_dtype`; they go into checkpoints.
STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",), "lamb": ("exp_avg", "exp_avg_sq")}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# As big_vision, which decays kernels alone.
NO_DECAY = ("cls_token", "pos_embed.", "relative_keys.", "attention_pool.probe")
Tensors = dict[str, torch.Tensor]


def param_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms, tokens and position embeddings do not.

    With `layer_decay` (Clark et al. 2020; BEiT, MAE) there are two groups per block, whose learning rates shrink by this factor
    from the head (1) down to the patch embedding.
    """
    top = len(getattr(model, "blocks", ())) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and not name.startswith(NO_DECAY)
        layer = top if layer_decay == 1.0 else layer_of(name, top)
        options = {"weight_decay": weight_decay if decays else 0.0, "lr_scale": layer_decay ** (top - layer)}
        groups.setdefault((layer, decays), {"params": [], **options})["params"].append(parameter)
    return list(groups.values())


def layer_of(name: str, top: int) -> int:
    """0 for what makes tokens, 1 to depth for the blocks, `top` for what follows them."""
    if block := re.match(r"blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if name.startswith(("stem.", "patch_embed.", "cls_token", "pos_embed.", "relative_keys.")) else top


class Pieces(NamedTuple):
    """The parameters, or parts of them, that lie one after another in a flat tensor; what is not listed is padding."""

    numbers: torch.Tensor  # which parameter each piece belongs to
    starts: list[int]
    lengths: list[int]
    num_params: int


class Stepping:
    """What all optimisers here add to torch's: they skip bad updates, and keep an average of the weights.

    `grad_norm` gives the global norm, equal on every rank, so that all ranks skip or none. torch's fused steps obey `found_inf`
    on the device.
    """

    grad_norm: Callable[[], torch.Tensor | float | None] = staticmethod(lambda: None)
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] = staticmethod(lambda values: values)
    pieces: dict[torch.Tensor, Pieces]
    found_inf: torch.Tensor | None = None
    ema_decay: float | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        norm = self.grad_norm()
        if isinstance(norm, torch.Tensor):
            self.found_inf = (~torch.isfinite(norm)).float().reshape(())
        result = super().step(closure)  # type: ignore[misc]
        if self.ema_decay is not None:
            weights = [weights for group in self.param_groups for weights in group["params"]]  # type: ignore[attr-defined]
            share = (1 - self.ema_decay) * (torch.ones(()) if self.found_inf is None else 1 - self.found_inf)
            averages = [self.state[tensor]["ema"] for tensor in weights]  # type: ignore[attr-defined]
            torch._foreach_lerp_(averages, weights, [share] * len(weights))
        return result


class AdamW(Stepping, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""


class SGD(Stepping, torch.optim.SGD):
    """SGD with momentum: velocity = momentum * velocity + gradient; weight -= lr * velocity."""


class Composed(torch.optim.Optimizer):
    """Steps made of plain tensor operations, for what torch has no fused step for."""

    def __init__(self, groups: list[dict[str, Any]], rule: Callable[..., Tensors], **defaults: Any) -> None:
        super().__init__(groups, defaults)
        self.rule = rule

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        for group in self.param_groups:
            for weights in group["params"]:
                state = self.state[weights]
                new = self.rule(self, weights, weights.grad, state, group)
                for old, value in ((weights if key == "weight" else state[key], value) for key, value in new.items()):
                    skip = getattr(self, "found_inf", None)
                    old.copy_(value if skip is None else torch.where(skip > 0, old.to(value.dtype), value))


class ComposedStepping(Stepping, Composed):
    """Composed steps that skip bad updates."""


def adam_direction(grad: torch.Tensor, state: Tensors, group: dict[str, Any]) -> tuple[torch.Tensor, Tensors]:
    """Adam's corrected first moment over the root of the second, and the new state; the first moment may be stored in bf16."""
    (beta1, beta2), step = group["betas"], state["step"] + 1
    first = torch.lerp(state["exp_avg"].float(), grad, 1 - beta1)
    second = torch.lerp(state["exp_avg_sq"], grad.square(), 1 - beta2)
    direction = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + group["eps"])
    return direction, {"exp_avg": first, "exp_avg_sq": second, "step": step}


def adamw(_: Any, weights: torch.Tensor, grad: torch.Tensor, state: Tensors, group: dict[str, Any]) -> Tensors:
    direction, new = adam_direction(grad, state, group)
    return {"weight": weights - group["lr"] * (direction + group["weight_decay"] * weights), **new}


def sgd(_: Any, weights: torch.Tensor, grad: torch.Tensor, state: Tensors, group: dict[str, Any]) -> Tensors:
    velocity = group["momentum"] * state["momentum_buffer"].float() + grad + group["weight_decay"] * weights
    return {"weight": weights - group["lr"] * velocity, "momentum_buffer": velocity}


def lamb(optimizer: Any, weights: torch.Tensor, grad: torch.Tensor, state: Tensors, group: dict[str, Any]) -> Tensors:
    """You et al. 2020, algorithm 2: each parameter's step is as long as the parameter, times the learning rate.

    As in the implementations that DeiT III and others trained with, parameters without weight decay take Adam's step.
    """
    direction, new = adam_direction(grad, state, group)
    update = direction + group["weight_decay"] * weights
    if group["weight_decay"] > 0:
        update = update * trust_ratio(optimizer, weights, update)
    return {"weight": weights - group["lr"] * update, **new}


def trust_ratio(optimizer: Any, weights: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Norm of each parameter over the norm of its update, at each of its elements; 1 where either is 0."""
    pieces = optimizer.pieces[weights]
    squares = weights.new_zeros(2, pieces.num_params)
    for row, tensor in zip(squares, (weights, update), strict=True):
        views = [tensor.flatten()[start : start + length] for start, length in zip(pieces.starts, pieces.lengths, strict=True)]
        row.index_add_(0, pieces.numbers, torch.stack(torch._foreach_norm(views)).square())
    of_weights, of_updates = optimizer.sum_over_ranks(squares).sqrt()
    ratio = torch.where((of_weights > 0) & (of_updates > 0), of_weights / of_updates, 1.0)[pieces.numbers]
    scale = torch.ones_like(weights).flatten()
    for start, length, value in zip(pieces.starts, pieces.lengths, ratio, strict=True):
        scale[start : start + length] = value
    return scale.view_as(weights)


RULES: dict[str, Callable[..., Tensors]] = {"adamw": adamw, "sgd": sgd, "lamb": lamb}


def build_optimizer(model: nn.Module, config: OptimConfig) -> Any:
    """The optimiser over a model's parameter groups. Its learning rate is 0 until the loop sets it."""
    groups = param_groups(model, config.weight_decay, config.layer_decay)
    if config.name == "lamb" or config.moment_dtype != "fp32":
        rule = RULES[config.name]
        optimizer: Any = ComposedStepping(groups, rule, lr=0.0, betas=config.betas, eps=config.eps, momentum=config.momentum)
    elif config.name == "sgd":
        optimizer = SGD(groups, lr=0.0, momentum=config.momentum, fused=True)
    else:
        optimizer = AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
    optimizer.ema_decay = config.ema_decay
    return optimizer


def fresh_state(config: OptimConfig, weights: torch.Tensor) -> Tensors:
    """An optimiser's state before its first step, for weights of this shape and device."""
    first, *others = STATE[config.name]
    state = {first: torch.zeros_like(weights, dtype=DTYPES[config.moment_dtype])}
    state |= {key: torch.zeros_like(weights) for key in others}
    if config.name != "sgd":
        state["step"] = torch.zeros((), dtype=torch.float32, device=weights.device)
    if config.ema_decay is not None:
        state["ema"] = weights.detach().clone()
    return state


def state_kinds(config: OptimConfig) -> tuple[str, ...]:
    """Names of the state tensors that are as large as the weights."""
    return (*STATE[config.name], *(("ema",) if config.ema_decay is not None else ()))


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    for group in groups:
        group["lr"] = lr * group["lr_scale"]


class Replicated(torch.optim.Optimizer):
    """ZeRO stage 0: every rank steps all weights, in fp32, after clipping their gradients by the global norm.

    Lists of tensors are worked on as one: on a GPU the launch of a kernel per tensor would take longer than the work.
    """

    def __init__(self, inner: Any, clip_norm: float) -> None:
        self.inner, self.clip_norm, self.norm = inner, clip_norm, torch.zeros(())
        self.working = [weights for group in inner.param_groups for weights in group["params"]]
        self.masters = [weights if weights.dtype == torch.float32 else weights.detach().float() for weights in self.working]
        self.narrow = self.working[0].dtype != torch.float32
        masters = dict(zip(self.working, self.masters, strict=True))
        for group in inner.param_groups:
            group["params"] = [masters[weights] for weights in group["params"]]
        super().__init__(self.working, {})
        inner.grad_norm = lambda: self.norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        grads = [weights.grad for weights in self.working]
        if self.narrow:
            own, grads = grads, [torch.empty_like(master) for master in self.masters]
            torch._foreach_copy_(grads, own)
        self.norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if self.clip_norm:
            torch._foreach_mul_(grads, (self.clip_norm / (self.norm + 1e-6)).clamp(max=1.0))
        for master, grad in zip(self.masters, grads, strict=True):
            master.grad = grad
        self.inner.step()
        for weights, master in zip(self.working, self.masters, strict=True):
            weights.grad = master.grad = None  # that the next step's activations need
        self.spread()

    @torch.no_grad()
    def spread(self) -> None:
        """The working weights from the fp32 ones."""
        if self.narrow:
            torch._foreach_copy_(self.working, self.masters)
