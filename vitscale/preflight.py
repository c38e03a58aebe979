"""What can be found wrong before any process starts. Imports no torch."""

from collections.abc import Mapping

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, read_manifest
from vitscale.config import RunConfig, grad_accum
from vitscale.errors import LaunchError, RecipeError
from vitscale.rundir import RunDir
from vitscale.source import Origin, fetch_init
from vitscale.tracking import tracking_uri

IMAGE_BYTES = 110_000  # of an ImageNet JPEG; used where the manifest does not tell


def check(cfg: RunConfig, ranks: int, environ: Mapping[str, str]) -> Origin | None:
    """Raise the first thing that would make this run fail; fetch the weights that `init.from` names."""
    check_launch(cfg, ranks, environ)
    run = RunDir(cfg)
    run.check(cfg)
    train = check_source(cfg, "train")
    check_loader_memory(cfg, train, ranks)
    if cfg.train.total.to_steps(cfg.train.global_batch, train.num_samples) < 1:
        raise RecipeError(
            f"train.total: comes to no step of {cfg.train.global_batch} images ({train.num_samples} in an epoch); "
            "make it longer"
        )
    if cfg.data.val:
        check_source(cfg, "val").check_classes(train.classes, "data.train")
    if cfg.init is None:
        return None
    return fetch_init(cfg.init, cfg.model, run.init, tracking_uri(cfg.tracking, cfg.runs))


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


def check_source(cfg: RunConfig, split: str) -> Manifest:
    """The shards of data.train or data.val are all there, as listed, with labels that the head knows."""
    source = getattr(cfg.data, split)
    manifest = read_manifest(source.manifest)
    if source.samples and source.samples != manifest.num_samples:
        raise DataError(
            f"data.{split}.samples: the recipe says {source.samples}, {manifest.path} has {manifest.num_samples}; correct the "
            "recipe, or build the missing shards"
        )
    manifest.check()
    manifest.check_labels(cfg.model.num_classes)
    return manifest


def check_loader_memory(cfg: RunConfig, train: Manifest, ranks: int) -> None:
    """The shuffle window of one rank fits its budget."""
    window = window_bytes(cfg, ranks, int(train.bytes.sum()) / train.num_samples)
    if window > cfg.hardware.loader_memory_gib * 2**30:
        raise RecipeError(
            f"data.shuffle_block: {cfg.lanes} lanes x {cfg.data.shuffle_block} samples over {ranks} processes need "
            f"{window / 2**30:.1f} GiB per process, hardware.loader_memory_gib allows {cfg.hardware.loader_memory_gib}; lower "
            "data.shuffle_block or data.lanes, or raise hardware.loader_memory_gib"
        )


def window_bytes(cfg: RunConfig, ranks: int, image_bytes: float = IMAGE_BYTES) -> float:
    """Encoded images that one rank shuffles among: lanes * shuffle_block / ranks of them."""
    return cfg.lanes * cfg.data.shuffle_block / ranks * image_bytes
