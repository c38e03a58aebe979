"""Optimisers against float64 steps written from the papers, their parameter groups, and the guard against bad gradients."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import ON_RESNET, PLACES, POS_EMBEDS, bit, vit

from vitscale.config import OptimConfig
from vitscale.model.build import build
from vitscale.optim import RULES, STATE, Pieces, build_optimizer, fresh_state, set_learning_rate, state_kinds

LRS = [0.02, 0.05, 0.0, 0.03, 0.01, 0.04]  # one of them 0, as at the start of a warm-up
WEIGHT_DECAY, BETAS, EPS, MOMENTUM = 0.3, (0.8, 0.95), 1e-3, 0.7
KINDS = list(itertools.product(("adamw", "sgd", "lamb"), ("fp32", "bf16")))


def settings(name, moment_dtype="fp32", **changes):
    values = {"betas": BETAS, "eps": EPS, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, **changes}
    return OptimConfig(name=name, moment_dtype=moment_dtype, lr=1.0, **values)


class Small(torch.nn.Module):
    """One parameter that decays and one that does not."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 4, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(4, generator=generator))


def equipped(model, config):
    """An optimiser with the state that the engine gives it, each parameter in one piece."""
    optimizer = build_optimizer(model, config)
    optimizer.pieces = {}
    for number, parameter in enumerate(model.parameters()):
        optimizer.state[parameter] = fresh_state(config, parameter)
        optimizer.pieces[parameter] = Pieces(torch.tensor([number]), [0], [parameter.numel()], 2)
    return optimizer


def step(model, optimizer, lr, gradients):
    for key, parameter in model.named_parameters():
        parameter.grad = torch.as_tensor(gradients[key]).float().clone()
    set_learning_rate(optimizer.param_groups, lr)
    optimizer.step()


def as_bf16(values):
    """Rounded to 8 significant bits, half to even (normal numbers only)."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.round(fraction * 2**8), exponent - 8)


def adam_directions(gradients, stored):
    """Algorithm 1 of Kingma & Ba 2015; the first moment is rounded when it is stored, after it was used."""
    first, second = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for t, gradient in enumerate(gradients, start=1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        yield first / (1 - BETAS[0] ** t) / (np.sqrt(second / (1 - BETAS[1] ** t)) + EPS)
        first = stored(first)


def adamw(weight, gradients, decay, stored):
    """Algorithm 2 of Loshchilov & Hutter 2019, the decay multiplied by the learning rate as in torch and AugReg 3.3."""
    for lr, direction in zip(LRS, adam_directions(gradients, stored), strict=True):
        weight = weight - lr * (direction + decay * weight)
    return weight


def lamb(weight, gradients, decay, stored):
    """Algorithm 2 of You et al. 2020, phi(z) = z; what does not decay takes Adam's step, as in apex's FusedLAMB."""
    for lr, direction in zip(LRS, adam_directions(gradients, stored), strict=True):
        update = direction + decay * weight
        ratio = np.linalg.norm(weight) / np.linalg.norm(update) if decay else 1.0
        weight = weight - lr * ratio * update
    return weight


def sgd(weight, gradients, decay, stored):
    """Momentum as in the official fine-tuning; the decay is added to the gradient."""
    velocity = np.zeros_like(weight)
    for lr, gradient in zip(LRS, gradients, strict=True):
        velocity = MOMENTUM * velocity + gradient + decay * weight
        weight = weight - lr * velocity
        velocity = stored(velocity)
    return weight


REFERENCES = {"adamw": adamw, "sgd": sgd, "lamb": lamb}


def test_every_optimiser_has_a_reference():
    assert set(REFERENCES) == set(RULES) == set(STATE) == {name for name, _ in KINDS}


@pytest.mark.parametrize(("name", "moment_dtype"), KINDS)
def test_steps_equal_the_float64_reference(name, moment_dtype):
    model, rng = Small(), np.random.default_rng(1)
    optimizer = equipped(model, settings(name, moment_dtype))
    gradients = {key: rng.normal(size=(len(LRS), *p.shape)).astype(np.float32) for key, p in model.named_parameters()}
    start = {key: p.detach().double().numpy() for key, p in model.named_parameters()}

    def expected(key, stored):
        decay = WEIGHT_DECAY if key == "weight" else 0.0
        return REFERENCES[name](start[key], gradients[key].astype(np.float64), decay, stored)

    for number, lr in enumerate(LRS):
        step(model, optimizer, lr, {key: values[number] for key, values in gradients.items()})
    for key, parameter in model.named_parameters():
        exact, rounded = expected(key, lambda moment: moment), expected(key, as_bf16)
        assert np.abs(exact - rounded).max() > 1e-4  # so that the next line tells them apart
        np.testing.assert_allclose(parameter.detach(), rounded if moment_dtype == "bf16" else exact, rtol=2e-6, atol=1e-6)
    first = optimizer.state[model.weight][STATE[name][0]]
    assert first.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[moment_dtype]


def test_lamb_takes_a_plain_step_from_zero_weights_and_for_a_zero_update():
    model = Small()
    torch.nn.init.zeros_(model.weight)
    optimizer = equipped(model, settings("lamb"))
    step(model, optimizer, 0.1, {"weight": torch.zeros(3, 4), "bias": torch.zeros(4)})
    assert not model.weight.any()  # zero over zero
    step(model, optimizer, 0.1, {"weight": torch.ones(3, 4), "bias": torch.zeros(4)})
    second = (1 - BETAS[1]) / (1 - BETAS[1] ** 2)
    direction = (1 - BETAS[0]) / (1 - BETAS[0] ** 2) / (second**0.5 + EPS)
    np.testing.assert_allclose(model.weight.detach(), -0.1 * direction, rtol=1e-5)


@pytest.mark.parametrize(("name", "moment_dtype"), KINDS)
def test_the_average_in_closed_form(name, moment_dtype):
    """d^t w_0 + (1 - d) sum of d^(t-k) w_k, over the weights that were passed through."""
    decay, model, rng = 0.75, Small(), np.random.default_rng(2)
    optimizer = equipped(model, settings(name, moment_dtype, ema_decay=decay))
    path = [model.weight.detach().double().numpy().copy()]
    for lr in LRS:
        step(model, optimizer, lr, {key: rng.normal(size=p.shape) for key, p in model.named_parameters()})
        path.append(model.weight.detach().double().numpy().copy())
    t = len(LRS)
    expected = decay**t * path[0] + (1 - decay) * sum(decay ** (t - k) * path[k] for k in range(1, t + 1))
    np.testing.assert_allclose(optimizer.state[model.weight]["ema"], expected, rtol=1e-6, atol=1e-7)


MODELS = {
    **{f"{kind}-{place}": vit(pos_embed=kind, pos_embed_at=place) for kind in POS_EMBEDS for place in PLACES},
    "token": vit(representation_size=4, layer_scale=0.1),
    "gap": vit(pool="gap", head_bias=-10.0),
    "map": vit(pool="map", pos_embed="relative", pos_embed_at="every"),
    "hybrid": vit(pos_embed="learned2d", **ON_RESNET),
    "bit": bit(1, 1, 1, 1),
}


def groups_of(cfg, **changes):
    with torch.device("meta"):
        model = build(cfg)
    return model, build_optimizer(model, settings("adamw", **changes)).param_groups


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
def test_only_the_kernels_of_layers_decay(cfg, layer_decay):
    """As big_vision: not biases, norms, LayerScale, tokens, the probe and position embeddings, whatever their shape."""
    model, groups = groups_of(cfg, layer_decay=layer_decay)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups)
    kernels = {f"{key}.weight" for key, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)}
    assert {key for key, p in model.named_parameters() if decays.pop(id(p))} == kernels
    assert not decays  # every parameter was in one group


def test_without_layer_decay_there_are_two_groups():
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups_of(vit(depth=3))[1]] == [(0.0, 1.0), (0.3, 1.0)]


HALVES = {  # depth 3: MAE's lr_decay.py counts patches, position and class token as 0, block i as i + 1, the rest as 4
    "patch_embed": 0.0625,
    "stem": 0.0625,
    "cls_token": 0.0625,
    "pos_embed": 0.0625,
    "relative_keys": 0.0625,
    "blocks.0": 0.125,
    "blocks.1": 0.25,
    "blocks.2": 0.5,
    "norm": 1.0,
    "pre_logits": 1.0,
    "attention_pool": 1.0,
    "head": 1.0,
}


@pytest.mark.parametrize(
    "options",
    [
        {"representation_size": 4, "layer_scale": 0.1},
        {"pool": "map", "pos_embed": "relative"},
        {"pos_embed": "learned2d", "pos_embed_at": "every", **ON_RESNET},
    ],
    ids=["token", "map", "hybrid"],
)
def test_layer_decay_halves_the_rate_from_layer_to_layer(options):
    model, groups = groups_of(vit(depth=3, **options), layer_decay=0.5)
    assert len(groups) <= 2 * (3 + 2)
    set_learning_rate(groups, 0.8)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        (expected,) = {scale for prefix, scale in HALVES.items() if name == prefix or name.startswith(f"{prefix}.")}
        assert rates[id(parameter)] == pytest.approx(0.8 * expected), name


@pytest.mark.parametrize(("name", "moment_dtype"), KINDS)
def test_the_learning_rate_is_zero_until_it_is_set(name, moment_dtype):
    model = Small()
    before = model.weight.detach().clone()
    optimizer = equipped(model, settings(name, moment_dtype))
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
    optimizer.step()
    assert torch.equal(model.weight, before)


def snapshot(model, optimizer):
    """Copies of every weight and every tensor of the optimiser's state."""
    state = [tensor.clone() for p in model.parameters() for _, tensor in sorted(optimizer.state[p].items())]
    return [*(p.detach().clone() for p in model.parameters()), *state]


@pytest.mark.parametrize(("norm", "gradient"), [(np.nan, np.nan), (np.inf, np.inf), (np.inf, 1e30)])
@pytest.mark.parametrize(("name", "moment_dtype"), KINDS)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_norm_that_is_not_finite_changes_nothing_and_the_next_step_moves(name, moment_dtype, norm, gradient, steps_before):
    model = Small()
    optimizer = equipped(model, settings(name, moment_dtype, ema_decay=0.5))

    def go(gradient, norm):
        optimizer.grad_norm = lambda: torch.tensor(norm)
        step(model, optimizer, 0.1, {key: torch.full_like(p, gradient) for key, p in model.named_parameters()})

    for _ in range(steps_before):
        go(1.0, norm=3.0)
    before = snapshot(model, optimizer)
    go(gradient, norm)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, optimizer), strict=True))
    go(1.0, norm=3.0)
    after = snapshot(model, optimizer)
    assert all(torch.isfinite(tensor).all() for tensor in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("norm", [None, 0.0])
def test_without_a_norm_on_the_device_every_step_is_taken(norm):
    model = Small()
    optimizer = equipped(model, settings("sgd"))
    optimizer.grad_norm = lambda: norm
    before = model.bias.detach().clone()
    step(model, optimizer, 1.0, {"weight": torch.zeros(3, 4), "bias": torch.ones(4)})
    assert torch.equal(model.bias, before - 1)


@pytest.mark.parametrize(("name", "moment_dtype"), KINDS)
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_state_that_checkpoints_hold_is_all_that_steps_leave_behind(name, moment_dtype, ema_decay):
    model, config = Small(), settings(name, moment_dtype, ema_decay=ema_decay)
    optimizer = equipped(model, config)
    step(model, optimizer, 0.1, {key: torch.ones_like(p) for key, p in model.named_parameters()})
    left = {key: value for key, value in optimizer.state[model.weight].items() if value is not None}
    assert set(left) == set(fresh_state(config, model.weight))
    assert {key for key, value in left.items() if value.shape == model.weight.shape} == set(state_kinds(config))
