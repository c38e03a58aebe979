"""What takes a training step: ours through the Engine, and models of others in the loop that their users write."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import nn

from gpu_parts.clock import Setting
from vitscale.config import HardwareConfig, OptimConfig
from vitscale.engine import Engine, prepare
from vitscale.loss import LOSSES
from vitscale.model import attention
from vitscale.model.build import build
from vitscale.model.config import ViTConfig
from vitscale.optim import param_groups
from vitscale.world import World

LR, BETAS, DECAY, CLIP, EMA = 1e-3, (0.9, 0.999), 0.1, 1.0, 0.9999
Step = Callable[[torch.Tensor, torch.Tensor], object]
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it


@dataclass(frozen=True)
class Case:
    """A model and size of the targets."""

    name: str
    config: ViTConfig
    start: int  # micro-batch that the search begins with
    target: float | None = None  # images/s of ours on an H200


def vit(**values: Any) -> ViTConfig:
    return ViTConfig.model_validate({"gelu": "exact", **values})  # as the peers


CASES = [
    Case("L/16@224", vit(name="vit-l16"), 128, 1390),
    Case("H/14@224", vit(name="vit-h14"), 128, 530),
    Case("L/16@384", vit(name="vit-l16", image_size=384), 64, 433),
    Case("H/14@518", vit(name="vit-h14", image_size=518), 16, 78),
]
SMALL = {"patch_size": 8, "width": 64, "depth": 2, "num_heads": 4, "mlp_dim": 256, "num_classes": 10}
TINY_CASES = [Case("tiny@32", vit(**SMALL, image_size=32), 8)]


def cases(setting: Setting) -> list[Case]:
    return TINY_CASES if setting.tiny else CASES


@contextmanager
def alone(setting: Setting, deterministic: bool = False) -> Iterator[World]:
    """A world of one process; not deterministic unless asked, as the peers are not."""
    device = "cuda" if setting.device.type == "cuda" else "cpu"
    torch.set_float32_matmul_precision("high")
    with World(HardwareConfig(device=device, deterministic=deterministic), seed=0) as world:
        yield world


@contextmanager
def determinism(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # this and the next line as vitscale/world.py
    torch._inductor.config.deterministic = on
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch._inductor.config.deterministic = before


def batch(config: ViTConfig, images: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and labels, there before the clock runs."""
    side = config.image_size
    labels = torch.randint(config.num_classes, (images,), device=device)
    return torch.randn(images, 3, side, side, device=device).to(dtype), labels


def ours(config: ViTConfig, setting: Setting, world: World, stage: int = 0, ema: float | None = EMA, **hardware: Any) -> Step:
    """A step of our Engine as a training takes it, without the data; stage 0, as one process is given whatever it asks for."""
    precision = "bf16" if setting.dtype == torch.bfloat16 else "fp32"
    wanted = HardwareConfig(device=world.device.type, precision=precision, zero_stage=stage, **hardware)
    optim = OptimConfig(lr=LR, weight_decay=DECAY, clip_norm=CLIP, ema_decay=ema)
    with torch.device(setting.device):
        model = build(config)
    engine = Engine(model, optim, wanted, 1, 1, world)

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        engine.set_learning_rate(LR)
        targets = F.one_hot(labels, config.num_classes).float()
        loss = LOSSES["softmax"](engine(images), targets).mean()
        engine.backward_and_step(loss)
        return engine.grad_norm

    step.engine = engine  # type: ignore[attr-defined]
    return step


def release(step: Any) -> None:
    """DeepSpeed's hooks hold an engine, which nobody else needs any more, until they are told."""
    if engine := getattr(step, "engine", None):
        engine._engine.destroy()


class Bare:
    """A training step in plain torch: fused AdamW on fp32 weights, clipping and averaging by torch's foreach operations.

    `autocast`: fp32 weights under torch.autocast; else weights in `dtype` beside fp32 ones, as mixed precision is done by hand.
    """

    def __init__(self, model: nn.Module, setting: Setting, autocast: bool, ema: float | None = EMA) -> None:
        self.dtype, self.device, self.autocast, self.ema = setting.dtype, setting.device, autocast, ema
        self.model = model.to(setting.device, torch.float32 if autocast else setting.dtype).train()
        self.weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        shared = autocast or setting.dtype == torch.float32
        self.masters = self.weights if shared else [weight.detach().float() for weight in self.weights]
        of = dict(zip(self.weights, self.masters, strict=True))
        groups = [{**group, "params": [of[weight] for weight in group["params"]]} for group in param_groups(model, DECAY)]
        for group in groups:
            del group["lr_scale"]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
        self.average = [master.detach().clone() for master in self.masters] if ema else []

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.autocast and self.dtype != torch.float32):
            logits = self.model(images)
        logits = getattr(logits, "logits", logits)  # transformers wraps them
        F.cross_entropy(logits.float(), labels).backward()
        return self._update()

    @torch.no_grad()
    def _update(self) -> torch.Tensor:
        if self.masters is not self.weights:
            for master, weight in zip(self.masters, self.weights, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
        norm = nn.utils.clip_grad_norm_(self.masters, CLIP, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters is not self.weights:
            torch._foreach_copy_(self.weights, self.masters)
        if self.ema:
            torch._foreach_lerp_(self.average, [master.detach() for master in self.masters], 1 - self.ema)
        return norm


def bare_ours(config: ViTConfig, setting: Setting, ema: float | None = None, **hardware: Any) -> Bare:
    """Our model in the plain loop: what the Engine costs is measured beside it."""
    with torch.device(setting.device):
        model = build(config)
    attention.choose(model, setting.device, setting.dtype)
    prepare(model, HardwareConfig(**hardware))
    return Bare(model, setting, autocast=False, ema=ema)


def timm_model(config: ViTConfig) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": config.image_size, "patch_size": config.patch_size, "embed_dim": config.width}
    ratio = config.mlp_dim / config.width
    return VisionTransformer(
        **sizes, depth=config.depth, num_heads=config.num_heads, mlp_ratio=ratio, num_classes=config.num_classes
    )


def transformers_model(config: ViTConfig) -> nn.Module:
    import transformers

    sizes = {"hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads}
    sizes |= {"intermediate_size": config.mlp_dim, "image_size": config.image_size, "patch_size": config.patch_size}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # off, as ours
    made = transformers.ViTConfig(**sizes, **dropouts, num_labels=config.num_classes, attn_implementation="sdpa")
    return transformers.ViTForImageClassification(made)


PEERS = {"timm": timm_model, "transformers": transformers_model}


def peer(name: str, config: ViTConfig, setting: Setting, autocast: bool, compiled: bool) -> Bare:
    """A peer in the plain loop; compiled block by block, which takes seconds where the whole takes minutes."""
    with torch.device(setting.device):
        model = PEERS[name](config)
    if compiled:
        for block in blocks_of(model, config.depth):
            block.compile(dynamic=False)
    return Bare(model, setting, autocast)


def blocks_of(model: nn.Module, depth: int) -> nn.Module:
    """The list or sequence of the encoder's blocks."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential))
    return next(blocks for blocks in lists if len(blocks) == depth)


def missing_peers() -> dict[str, str]:
    """Peers that cannot be imported here, and why."""
    found = {}
    for name in PEERS:
        try:
            __import__(name)
        except Exception as error:  # of a torchvision for another torch, say
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
    return found
