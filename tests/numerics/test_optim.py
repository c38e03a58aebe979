"""Optimisers against float64 steps written from the papers, and the guard against gradients that are not finite."""

import numpy as np
import pytest
import torch
from tiny_models import bit, vit

from vitscale.config import OptimConfig
from vitscale.model.build import build
from vitscale.optim import STATE, build_optimizer, fresh_state, set_learning_rate

LRS = [0.02, 0.05, 0.0, 0.03, 0.01, 0.04]  # one of them 0, as at the start of a warm-up
WEIGHT_DECAY, BETAS, EPS, MOMENTUM = 0.3, (0.8, 0.95), 1e-3, 0.7
CONFIGS = {
    "adamw": OptimConfig(name="adamw", lr=1.0, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY),
    "sgd": OptimConfig(name="sgd", lr=1.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
}


class Small(torch.nn.Module):
    """One parameter that decays and one that does not."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 4, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(4, generator=generator))


def adamw(weight, gradients, decay):
    """Algorithm 2 of Loshchilov & Hutter 2019, the decay multiplied by the learning rate as in torch and AugReg 3.3."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for t, (lr, gradient) in enumerate(zip(LRS, gradients, strict=True), start=1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        corrected = first / (1 - BETAS[0] ** t) / (np.sqrt(second / (1 - BETAS[1] ** t)) + EPS)
        weight = weight - lr * (corrected + decay * weight)
    return weight


def sgd(weight, gradients, decay):
    """Momentum as in the official fine-tuning; the decay is added to the gradient."""
    velocity = np.zeros_like(weight)
    for lr, gradient in zip(LRS, gradients, strict=True):
        velocity = MOMENTUM * velocity + gradient + decay * weight
        weight = weight - lr * velocity
    return weight


@pytest.mark.parametrize(("name", "reference"), [("adamw", adamw), ("sgd", sgd)])
def test_steps_equal_the_float64_reference(name, reference):
    model, rng = Small(), np.random.default_rng(1)
    optimizer = build_optimizer(model, CONFIGS[name])
    gradients = {key: rng.normal(size=(len(LRS), *p.shape)) for key, p in model.named_parameters()}
    expected = {
        key: reference(p.detach().double().numpy(), gradients[key], WEIGHT_DECAY if p.ndim > 1 else 0.0)
        for key, p in model.named_parameters()
    }
    for step, lr in enumerate(LRS):
        for key, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[key][step]).float()
        set_learning_rate(optimizer.param_groups, lr)
        optimizer.step()
    for key, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach(), expected[key], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "cfg",
    [
        vit(representation_size=4, layer_scale=0.1),
        vit(pool="map", pos_embed="relative", pos_embed_at="every"),
        vit(pos_embed="learned2d", stem_blocks=(1,), patch_size=1),
        bit(1, 1, 1, 1),
    ],
    ids=["token", "map", "hybrid", "bit"],
)
def test_only_the_kernels_of_layers_decay(name, cfg):
    """As big_vision: not biases, norms, LayerScale, tokens, the probe and position embeddings, whatever their shape."""
    with torch.device("meta"):
        model = build(cfg)
    groups = build_optimizer(model, CONFIGS[name]).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups)
    kernels = {f"{key}.weight" for key, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)}
    assert {key for key, p in model.named_parameters() if decays.pop(id(p))} == kernels
    assert not decays  # every parameter was in one group


def test_the_learning_rate_is_zero_until_it_is_set():
    model = Small()
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, CONFIGS["adamw"])
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
    optimizer.step()
    assert torch.equal(model.weight, before)


def snapshot(model, optimizer):
    """Copies of every weight and every tensor of the optimiser's state."""
    state = [tensor.clone() for p in model.parameters() for _, tensor in sorted(optimizer.state[p].items())]
    return [*(p.detach().clone() for p in model.parameters()), *state]


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_norm_that_is_not_finite_changes_nothing_and_the_next_step_moves(name, norm, steps_before):
    model = Small()
    optimizer = build_optimizer(model, CONFIGS[name])
    set_learning_rate(optimizer.param_groups, 0.1)
    for parameter in model.parameters():  # as the engine does
        optimizer.state[parameter] = fresh_state(name, parameter)

    def step(gradient, norm):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.grad_norm = lambda: torch.tensor(norm)
        optimizer.step()

    for _ in range(steps_before):
        step(1.0, norm=3.0)
    before = snapshot(model, optimizer)
    step(float("nan") if norm != norm else 1e30, norm)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, optimizer), strict=True))
    step(1.0, norm=3.0)
    after = snapshot(model, optimizer)
    assert all(torch.isfinite(tensor).all() for tensor in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("norm", [None, 0.0])
def test_without_a_norm_on_the_device_every_step_is_taken(norm):
    model = Small()
    optimizer = build_optimizer(model, CONFIGS["sgd"])
    optimizer.grad_norm = lambda: norm
    set_learning_rate(optimizer.param_groups, 1.0)
    model.weight.grad, model.bias.grad = torch.zeros_like(model.weight), torch.ones_like(model.bias)
    before = model.bias.detach().clone()
    optimizer.step()
    assert torch.equal(model.bias, before - 1)


@pytest.mark.parametrize("name", STATE)
def test_the_state_that_checkpoints_hold_is_all_that_steps_leave_behind(name):
    model = Small()
    optimizer = build_optimizer(model, CONFIGS[name])
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
    optimizer.step()
    left = {key: value for key, value in optimizer.state[model.weight].items() if value is not None}
    assert set(left) == set(fresh_state(name, model.weight))
    assert {key for key, value in left.items() if value.shape == model.weight.shape} == set(STATE[name])
