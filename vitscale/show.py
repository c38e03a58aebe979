"""What a recipe comes to: its values and the arithmetic that follows from them. Imports no torch."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from data_pipeline import storage
from data_pipeline.manifest import read_manifest
from vitscale.config import RunConfig, grad_accum, micro_batch
from vitscale.duration import Duration
from vitscale.model.config import ModelConfig, ViTConfig
from vitscale.model.flops import forward_macs, train_flops
from vitscale.preflight import window_bytes


def derived(cfg: RunConfig, ranks: int) -> dict[str, Any]:
    """Derived numbers by name; what needs the number of training images is None while that is unknown."""
    there = [read_manifest(source.manifest) if storage.exists(source.manifest) else None for source in cfg.data.train]
    counts = [source.samples or (m.num_samples if m else 0) for source, m in zip(cfg.data.train, there, strict=True)]
    samples = sum(counts) if all(counts) else None

    def steps(duration: Duration | None) -> int | None:
        known = duration is not None and (samples is not None or duration.steps is not None)
        return duration.to_steps(cfg.train.global_batch, samples or 0) if duration and known else None

    total = steps(cfg.train.total)
    return {
        "training images": samples,
        "steps": total,
        "epochs": round(total * cfg.train.global_batch / samples, 2) if total and samples else None,
        "warmup steps": steps(cfg.optim.schedule.warmup),
        "eval every (steps)": steps(cfg.eval.every),
        "checkpoint every (steps)": steps(cfg.checkpoint.every),
        "processes": ranks,
        "micro batch": micro_batch(cfg, ranks),
        "grad accum": grad_accum(cfg, ranks),
        "lanes": cfg.lanes,
        "shuffle window per process (MiB)": round(window_bytes(cfg, ranks, there) / 2**20, 1),
        **({"tokens": cfg.model.num_tokens} if isinstance(cfg.model, ViTConfig) else {}),
        "forward GMACs per image": round(forward_macs(cfg.model) / 1e9, 3),
        "training GFLOPs per image": round(train_flops(cfg.model) / 1e9, 3),
        "training exaFLOPs": round(total * cfg.train.global_batch * train_flops(cfg.model) / 1e18, 6) if total else None,
    }


class Layer(NamedTuple):
    """A layer with parameters or a part in the shapes."""

    name: str
    output: tuple[int, ...] | None  # of one image; None for a parameter of the model itself
    parameters: dict[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.parameters.values())


def layers(model: ModelConfig) -> list[Layer]:
    """Every layer in the order of its work, found by sending an image through a model without memory."""
    import torch

    from vitscale.model.build import build

    found: dict[str, Layer] = {}

    def note(name: str, module: torch.nn.Module, output: torch.Tensor) -> None:
        shapes = {key: tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
        first = 0 if name == "relative_keys" else 1  # the keys are the same for all images
        found.setdefault(name, Layer(name, tuple(output.shape[first:]), shapes))

    with torch.device("meta"):
        built = build(model).eval()
        found |= {name: Layer(name, None, {"": tuple(p.shape)}) for name, p in built.named_parameters(recurse=False)}
        for name, module in built.named_modules():
            if name == "pos_embed" or any(True for _ in module.parameters(recurse=False)):
                module.register_forward_hook(lambda module, _inputs, output, name=name: note(name, module, output))
        built(torch.empty(1, 3, model.image_size, model.image_size))
    return [layer for name, layer in found.items() if name]


def layer_lines(found: list[Layer]) -> Iterator[str]:
    """A table for people: layer, what comes out for one image, parameters."""
    yield f"{'layer':<32}{'output':<18}{'parameters':<44}{'count':>12}"
    for layer in found:
        output = "x".join(map(str, layer.output)) if layer.output else ""
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}".strip() for name, shape in layer.parameters.items())
        yield f"{layer.name:<32}{output:<18}{shapes:<44}{layer.size:>12,}"
    yield f"{'all parameters':<94}{sum(layer.size for layer in found):>12,}"
