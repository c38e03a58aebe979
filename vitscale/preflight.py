"""What can be found wrong before any process starts. Imports no torch."""

import os
import shutil
from collections.abc import Mapping, Sequence

from data_pipeline.config import SourceConfig
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.order import share_lanes
from data_pipeline.storage import is_remote
from data_pipeline.stream import resident_samples
from vitscale import recipe
from vitscale.cadence import Cadence
from vitscale.config import RunConfig, grad_accum
from vitscale.errors import LaunchError, RecipeError
from vitscale.rundir import RunDir
from vitscale.tracking import tracking_uri

IMAGE_BYTES = 110_000  # of an ImageNet JPEG; used where no manifest tells


def check(cfg: RunConfig, ranks: int, environ: Mapping[str, str]) -> None:
    """Raise the first thing that would make this run fail; fetch the weights that `init.from` names."""
    check_launch(cfg, ranks, environ)
    check_compiler(cfg, environ)
    run = RunDir(cfg)
    run.check(cfg)
    train = [check_source(source, "data.train", cfg) for source in cfg.data.train]
    for manifest in train[1:]:
        manifest.check_classes(train[0].classes, "the first source of data.train")
    check_loader_memory(cfg, train, ranks)
    samples = sum(manifest.num_samples for manifest in train)
    cadence = Cadence.of(cfg, samples)
    if cadence.total < 1:
        raise RecipeError(f"train.total: no step of {cfg.train.global_batch} images ({samples} in an epoch); make it longer")
    cadence.check(cfg)
    check_length(cadence, samples, run)
    share_lanes(cfg.data.source_weights or [manifest.num_samples for manifest in train], cfg.lanes)
    if cfg.data.val:
        check_source(cfg.data.val, "data.val", cfg).check_classes(train[0].classes, "data.train")
    for few in cfg.eval.fewshot.values():
        known, unknown = read_manifest(few.train), read_manifest(few.test)
        unknown.check_classes(known.classes, known.name)
        for manifest in (known, unknown):
            manifest.check()
            manifest.check_labels(len(manifest.classes) or manifest.num_labels)
    if cfg.init:
        from vitscale.source import fetch_init

        fetch_init(cfg.init, cfg.model, run.init, tracking_uri(cfg.tracking, cfg.runs))


def check_length(cadence: Cadence, samples: int, run: RunDir) -> None:
    """A run may be prolonged, or cut, as long as the steps that it has made had the learning rates of the new length."""
    before = Cadence.of(recipe.load(run.recipe), samples) if run.recipe.exists() else cadence
    limit = min(before.total, cadence.total) - cadence.schedule.cooldown
    if before.total != cadence.total and run.newest_step > limit:
        raise RecipeError(
            f"train.total: was {before.total:,} steps, is {cadence.total:,}; the run stands at step {run.newest_step:,} and "
            f"may be at step {limit:,} at most, its end or the begin of its cool-down; remove later checkpoints, or choose "
            "another name=... for a new run"
        )


def check_launch(cfg: RunConfig, ranks: int, environ: Mapping[str, str]) -> None:
    """The launcher's settings do not contradict the recipe. Accelerate always sets precision `no` and accumulation 1."""
    settings = [
        ("hardware.precision", "ACCELERATE_MIXED_PRECISION", "no", cfg.hardware.precision),
        ("hardware.zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "no", cfg.hardware.zero_stage),
        ("gradient accumulation", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", grad_accum(cfg, ranks)),
    ]
    for key, variable, unset, wanted in settings:
        launched = environ.get(variable, unset)
        if launched not in (unset, str(wanted)):
            raise LaunchError(
                f"{key}: the recipe says {wanted}, the accelerate launch settings say {launched}; remove the setting from the "
                "command or accelerate config, the recipe decides"
            )
    if environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        raise LaunchError("accelerate launch: a DeepSpeed config file is set; remove it, the recipe decides")
    if "ACCELERATE_MIXED_PRECISION" in environ and "RANK" not in environ:
        raise LaunchError(
            "accelerate launch started one process without a rank, as it does on a CPU without --use_deepspeed; add "
            "--use_deepspeed (and --num_processes N), or use `vitscale train`"
        )


def check_compiler(cfg: RunConfig, environ: Mapping[str, str]) -> None:
    """torch.compile finds what it needs; it would look for it at the first step."""
    names = (environ.get("CXX"), environ.get("CC"), "g++", "gcc", "clang")
    if cfg.hardware.compile and not any(shutil.which(name, path=environ.get("PATH", os.defpath)) for name in names if name):
        raise LaunchError(
            "hardware.compile: torch.compile needs a compiler, g++ on CPUs, gcc or clang (for Triton) on GPUs, and none is on "
            "PATH, in CXX or in CC; install one (Debian: apt-get install g++), or use hardware.compile=false"
        )


def check_source(source: SourceConfig, key: str, cfg: RunConfig) -> Manifest:
    """The shards are all there, as listed, with labels that the head knows."""
    manifest = read_manifest(source.manifest)
    if source.samples and source.samples != manifest.num_samples:
        raise DataError(
            f"{key}.samples: the recipe says {source.samples}, {manifest.name} has {manifest.num_samples}; correct the "
            "recipe, or build the missing shards"
        )
    manifest.check()
    replaced = key == "data.train" and cfg.data.bad_samples.policy == "replace"
    manifest.check_labels(cfg.model.num_classes, replaced)
    return manifest


def check_loader_memory(cfg: RunConfig, train: Sequence[Manifest], ranks: int) -> None:
    """What one rank holds of remote shards fits its budget. Local shards are read where they lie."""
    if not any(is_remote(manifest.shard(0)) for manifest in train):
        return
    window = window_bytes(cfg, ranks, train)
    if window > cfg.hardware.loader_memory_gib * 2**30:
        raise RecipeError(
            f"data.shuffle_block: {cfg.lanes} lanes x {cfg.data.shuffle_block} samples over {ranks} processes need "
            f"{window / 2**30:.1f} GiB per process, hardware.loader_memory_gib allows {cfg.hardware.loader_memory_gib}; lower "
            "data.shuffle_block or data.lanes, or raise hardware.loader_memory_gib"
        )


def window_bytes(cfg: RunConfig, ranks: int, train: Sequence[Manifest | None]) -> float:
    """Encoded images that one rank holds at a time: its shuffle blocks, and what is read ahead and being decoded."""
    found = [manifest for manifest in train if manifest]
    images, num_bytes = sum(manifest.num_samples for manifest in found), sum(int(manifest.bytes.sum()) for manifest in found)
    lanes, per_lane = cfg.lanes // ranks, cfg.train.global_batch // cfg.lanes
    held = resident_samples(lanes, per_lane, cfg.data.shuffle_block, cfg.data.repeated)
    return held * (num_bytes / images if images else IMAGE_BYTES)
