"""What a recipe comes to: its values and the arithmetic that follows from them. Imports no torch."""

from typing import Any

from data_pipeline import storage
from data_pipeline.config import SourceConfig
from data_pipeline.manifest import read_manifest
from vitscale.config import RunConfig, grad_accum, micro_batch
from vitscale.duration import Duration
from vitscale.model.flops import forward_macs, train_flops
from vitscale.preflight import IMAGE_BYTES, window_bytes


def derived(cfg: RunConfig, ranks: int) -> dict[str, Any]:
    """Derived numbers by name; what needs the number of training images is None while that is unknown."""
    samples = num_samples(cfg)

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
        "shuffle window per process (MiB)": round(window_bytes(cfg, ranks, image_bytes(cfg)) / 2**20, 1),
        "tokens": cfg.model.num_tokens,
        "forward GMACs per image": round(forward_macs(cfg.model) / 1e9, 3),
        "training GFLOPs per image": round(train_flops(cfg.model) / 1e9, 3),
        "training exaFLOPs": round(total * cfg.train.global_batch * train_flops(cfg.model) / 1e18, 6) if total else None,
    }


def num_samples(cfg: RunConfig) -> int | None:
    """Training images, as the recipe states or else the manifest, if it is there."""
    counts = [_samples(source) for source in cfg.data.train]
    return sum(count for count in counts if count) if all(counts) else None


def _samples(source: SourceConfig) -> int | None:
    if source.samples or not storage.exists(source.manifest):
        return source.samples
    return read_manifest(source.manifest).num_samples


def image_bytes(cfg: RunConfig) -> float:
    """Mean size of an encoded training image, or an ImageNet JPEG's where the shards are not there."""
    if not all(storage.exists(source.manifest) for source in cfg.data.train):
        return IMAGE_BYTES
    manifests = [read_manifest(source.manifest) for source in cfg.data.train]
    return sum(float(manifest.bytes.sum()) for manifest in manifests) / sum(manifest.num_samples for manifest in manifests)


def layers(cfg: RunConfig) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, number of values) of every parameter, without allocating one."""
    import torch

    from vitscale.model.vit import ViT

    with torch.device("meta"):
        return [(name, tuple(p.shape), p.numel()) for name, p in ViT(cfg.model).named_parameters()]
