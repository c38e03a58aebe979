"""Whether what is measured is right: our model against itself in float64 on the CPU, and timm's with the same weights."""

from collections.abc import Iterator

import torch
from torch import nn

from gpu_parts.clock import Row, Setting
from gpu_parts.models import cases, missing_peers, timm_model
from vitscale.config import HardwareConfig
from vitscale.engine import prepare
from vitscale.model import attention
from vitscale.model.build import build
from vitscale.model.config import ViTConfig
from vitscale.weights.convert import in_layout

DEPTH = 6  # float64 on a CPU takes seconds per block
# Largest error allowed, relative to the norm. bf16 keeps 8 bits, and rounds some fifty times on the way through a block.
ALLOWED = {torch.bfloat16: 0.05, torch.float32: 1e-4}
TIMM_ALLOWED = 1e-4  # in fp32


def run(setting: Setting) -> Iterator[Row]:
    whole = cases(setting)[0].config
    config = ViTConfig(**{**whole.model_dump(), "name": "custom", "depth": min(whole.depth, DEPTH)})
    model = random_model(config)
    images = torch.randn(2, 3, config.image_size, config.image_size)
    expected = outputs(model.double(), images.double())
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    for compiled in (False, True):
        tried = built(config, state, setting.device, setting.dtype, compiled)
        found = outputs(tried, images.to(setting.device, setting.dtype))
        yield from judge(f"ours{', compiled' * compiled}, {setting.dtype}", found, expected, ALLOWED[setting.dtype])
    if "timm" not in missing_peers():
        yield from judge_timm(config, state, images, setting.device)


def random_model(config: ViTConfig) -> nn.Module:
    """With a head that is not zero, as it is at the start of a training."""
    torch.manual_seed(0)
    model = build(config)
    nn.init.normal_(model.head.weight, std=config.width**-0.5)
    return model


def built(config: ViTConfig, state: dict, device: torch.device, dtype: torch.dtype, compiled: bool) -> nn.Module:
    model = build(config)
    model.load_state_dict(state)
    model.to(device, dtype)
    attention.choose(model, device, dtype)
    prepare(model, HardwareConfig(compile=compiled))
    return model


def outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, and gradients of all parameters as one vector, in float64 on the CPU."""
    logits = model(images)
    weight = torch.linspace(-1, 1, logits.shape[1], device=logits.device, dtype=logits.dtype)
    (logits * weight).sum().backward()
    grads = torch.cat([parameter.grad.flatten().double().cpu() for parameter in model.parameters()])
    return {"logits": logits.detach().double().cpu(), "gradients": grads}


def judge(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], allowed: float) -> Iterator[Row]:
    for what, value in expected.items():
        error = ((found[what] - value).norm() / value.norm()).item()
        yield {"what": f"{name}: {what}", "error": error, "allowed": allowed, "verdict": "ok" if error <= allowed else "WRONG"}


def judge_timm(config: ViTConfig, state: dict, images: torch.Tensor, device: torch.device) -> Iterator[Row]:
    theirs = timm_model(config)
    theirs.load_state_dict(in_layout(config, state, "timm"))
    models = built(config, state, device, torch.float32, False), theirs
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):  # in which timm's convolution would be computed
        logits = [model.to(device)(images.to(device)) for model in models]
    found, expected = ({"logits": value.double().cpu()} for value in logits)
    yield from judge("ours against timm, fp32", found, expected, TIMM_ALLOWED)
