"""What a recipe may say: one frozen section per part of a run. Imports no torch; the line below a field is its help."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from data_pipeline.config import DataConfig, Section
from vitscale.duration import Duration
from vitscale.errors import RecipeError
from vitscale.model.config import ModelConfig, ViTConfig

Score = Literal["eval/top1", "eval/top5", "eval/loss", "eval_ema/top1", "eval_ema/top5", "eval_ema/loss"]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class InitConfig(Section):
    """Where the weights start from, instead of at random."""

    source: str = Field(alias="from")
    """a checkpoint directory, a file of weights, models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID"""
    pos_embed: Literal["linear", "bicubic", "reinit"] = "linear"
    """the position embedding at another resolution: resized as the official code does, or antialiased bicubic as DeiT and timm,
    or new and random (to see what resizing buys)"""
    head: Literal["new", "keep"] = "new"
    """new, as the ViT paper fine-tunes, or the pretrained one, for the same classes at another resolution (DeiT III)"""


class ScheduleConfig(Section):
    """The learning rate over the run."""

    name: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"
    """shape after the warm-up"""
    warmup: Duration = Duration(steps=0)
    """linear from 0 to optim.lr"""
    cooldown: Duration = Duration(steps=0)
    """last part of the run, over which the rate falls linearly to end_lr; meant for rsqrt and constant"""
    timescale: Duration = Duration(steps=10_000)
    """rsqrt: after this time the rate is 1 / sqrt(2) of the peak"""
    end_lr: float = Field(0.0, ge=0.0)
    """learning rate that the schedule ends at, just after the last step"""


class OptimConfig(Section):
    """The optimiser."""

    name: Literal["adamw", "sgd", "lamb"] = "adamw"
    """adamw: decoupled weight decay (times the learning rate); sgd: with momentum; lamb: adamw's step scaled per parameter"""
    lr: float = Field(gt=0.0)
    """peak learning rate"""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    """adamw, lamb: decay of the first and second moment"""
    eps: float = Field(1e-8, gt=0.0)
    """adamw, lamb: added to the root of the second moment"""
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """sgd: decay of the velocity"""
    weight_decay: float = Field(0.0, ge=0.0)
    """on matrices only, not on biases, norms, tokens and positions; sgd adds it to the gradient, others decouple it"""
    moment_dtype: Literal["fp32", "bf16"] = "fp32"
    """how the first moment (sgd: the velocity) is stored; bf16 as in big_vision and the official fine-tuning"""
    layer_decay: float = Field(1.0, gt=0.0, le=1.0)
    """factor on the learning rate from block to block, from the head down (BEiT, MAE); 1 = the same everywhere"""
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    """keep a moving average of the fp32 weights (Polyak averaging), evaluated beside them"""
    clip_norm: float = Field(1.0, ge=0.0)
    """largest global norm of the gradient; 0 = no clipping"""
    schedule: ScheduleConfig = ScheduleConfig()
    """the learning rate over the run"""


class TrainConfig(Section):
    """What is optimised, and for how long."""

    total: Duration
    """length of the run"""
    global_batch: int = Field(ge=1)
    """images per update over all ranks and accumulation steps"""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """cross-entropy over classes that exclude each other, or one per class"""
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """weight spread evenly over all classes"""
    max_bad_steps: int = Field(10, ge=1)
    """the run stops when so many of the last 1,000 steps had a loss or gradient that was not finite"""


class FewshotConfig(Section):
    """Labelled images, a few of which train a classifier on the model's features."""

    train: str
    """manifest of those that it may learn from"""
    test: str
    """manifest of those that it is tested on"""
    max_train: int = Field(65_000, ge=1)
    """images of `train` that are looked at, its first; as many as big_vision takes of ImageNet"""


class EvalConfig(Section):
    """Evaluation on data.val, and on other data by few-shot."""

    every: Duration | None = None
    """how often during training; always at the end"""
    batch: int = Field(64, ge=1)
    """images per rank at a time"""
    fewshot: dict[str, FewshotConfig] = Field(default_factory=dict)
    """by name: accuracy of closed-form classifiers on frozen features, with 1, 5, 10 and 25 images per class, and of the
    nearest neighbours"""


class CheckpointConfig(Section):
    """What is kept to go on from."""

    every: Duration = Duration(steps=1000)
    """how often; always at the end"""
    keep: int = Field(2, ge=2)
    """newest checkpoints kept; at least two, so that a damaged one has a predecessor"""
    keep_every: Duration | None = None
    """the first checkpoint of each such time is kept for ever"""
    best: Score | None = None
    """also keep the best of the checkpoints that were evaluated when they were saved, by this metric"""


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """tracking server or database; default MLFLOW_TRACKING_URI, else SQLite under `runs`"""
    experiment: str = "vitscale"
    """MLflow experiment"""
    tags: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.: /-]+$")], str] = Field(default_factory=dict)
    """tags of the MLflow run"""
    parent: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    """id of the MLflow run that this one is listed under, as the runs of a sweep are"""
    log_every: int = Field(50, ge=1)
    """steps between two points of the training curves"""
    figures_every: Duration | None = None
    """pictures of the model (filters, positions, attention) of the first checkpoint of each such time"""


def registered_name(name: str) -> str:
    """What MLflow takes as the name of a registered model; no quotes, since searches are made of it."""
    if not re.fullmatch(r"[^\s./:%'\"`\\][^/:%'\"`\\\n]{0,249}", name) or name != name.strip():
        raise RecipeError(
            f"{name!r} is no name for a registered model; at most 250 characters but / : % \\ and quotes, no space or dot first"
        )
    return name


def alias_name(alias: str) -> str:
    """What MLflow takes as an alias."""
    if not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise RecipeError(f"{alias!r} is no alias; allowed are letters, digits, _ and -, but not `latest` and not v1, v2, ...")
    return alias


class PublishConfig(Section):
    """The registered model that checkpoints become versions of: the last one, and with checkpoint.best the best."""

    name: Annotated[str, AfterValidator(registered_name)]
    """registered model"""
    alias: Annotated[str, AfterValidator(alias_name)]
    """alias that then points at the last checkpoint: pretrained, finetuned, ..."""
    champion: Score | None = None
    """alias `champion` moves to a version of this run when its metric beats that of the version there"""
    keep: int | None = Field(10, ge=1)
    """newest versions of the model kept, of all runs; those with an alias always are; null = all"""
    licence: str | None = None
    """of the weights, for the model card"""


class HardwareConfig(Section):
    """How the work is laid out. Nothing here changes results beyond rounding (dropout masks excepted)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = cuda where there is one"""
    micro_batch: int | None = Field(None, ge=1)
    """images per rank in one forward pass; default: the rank's whole share of global_batch"""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """what DeepSpeed shards over the ranks: 0 nothing, 1 optimiser state, 2 also gradients, 3 also parameters"""
    precision: Literal["fp32", "bf16"] = "bf16"
    """of parameters and activations; the optimiser always works on fp32 weights"""
    activation_checkpointing: int = Field(0, ge=0)
    """compute blocks again in the backward pass to save memory: 0 = none, 1 = every block, n = every n-th"""
    compile: bool = False
    """torch.compile on each block; needs a C++ compiler on CPUs, Triton on GPUs"""
    deterministic: bool = True
    """deterministic kernels, so that a resumed run equals an undisturbed one bit by bit"""
    loader_threads: int | None = Field(None, ge=1)
    """decoding threads per rank; default: the cores of the machine shared between its ranks"""
    loader_processes: int | None = Field(None, ge=0)
    """most processes per rank that share these threads, so that training does not wait for their lock of Python; 0: the rank
    has the threads itself; default: on GPUs as many as threads, on CPUs 0"""
    loader_memory_gib: float = Field(8.0, gt=0.0)
    """start refuses when a rank would hold more encoded images of remote shards at a time (local ones are read in place)"""
    cache_dir: str | None = None
    """folder on a local disk that keeps what was read of remote shards, for all processes of the machine"""
    cache_gib: float = Field(100.0, gt=0.0)
    """size that the folder is kept below; what was not used for longest goes first"""
    peak_tflops: float | None = Field(None, gt=0.0)
    """stated peak of one device at `precision`, for speed/mfu; default: known for A100, H100 and H200"""
    hang_after_s: float = Field(300.0, gt=0.0)
    """all processes end when one gives no sign of life, or none gets on, for so long"""


class RunConfig(Section):
    """A whole recipe."""

    name: str
    """of the run and its directory"""
    about: str | None = None
    """source and deviations, for the run's page in MLflow; default: the comment at the head of the recipe"""
    runs: str = "runs"
    """folder that holds the run directories"""
    seed: int = Field(0, ge=0, lt=2**64)
    """of initialisation, order and augmentation"""
    model: SerializeAsAny[ModelConfig]
    """the model"""
    init: InitConfig | None = None
    """pretrained weights to start from"""
    data: DataConfig
    """shards, order and preprocessing"""
    train: TrainConfig
    """what is optimised, and for how long"""
    optim: OptimConfig
    """the optimiser"""
    eval: EvalConfig = EvalConfig()
    """evaluation on data.val"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """what is kept to go on from"""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow"""
    publish: PublishConfig | None = None
    """register the last checkpoint as a model"""
    hardware: HardwareConfig = HardwareConfig()
    """how the work is laid out"""

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name {self.name!r} may hold letters, digits, '.', '_' and '-' only, a letter or digit first")
        if self.train.global_batch % self.lanes:
            raise ValueError(f"data.lanes {self.lanes} does not divide train.global_batch {self.train.global_batch}")
        if self.optim.layer_decay < 1.0 and not isinstance(self.model, ViTConfig):
            raise ValueError(f"optim.layer_decay {self.optim.layer_decay} is for the blocks of a ViT; leave it away for a BiT")
        if (best := self.checkpoint.best) and (self.data.val is None or ("ema" in best and self.optim.ema_decay is None)):
            missing = "data.val" if self.data.val is None else "optim.ema_decay"
            raise ValueError(f"checkpoint.best {best!r} is not measured without {missing}; set that, or take best away")
        return self

    @property
    def lanes(self) -> int:
        return self.data.lanes or self.train.global_batch


def per_rank_batch(cfg: RunConfig, ranks: int) -> int:
    """Images of a global batch that each rank takes."""
    if cfg.lanes % ranks:
        fitting = [str(n) for n in range(1, 2 * ranks) if cfg.lanes % n == 0]
        raise RecipeError(
            f"data.lanes: {cfg.lanes} lanes (default: train.global_batch) cannot feed {ranks} processes evenly; "
            f"start {' or '.join(fitting[-3:])} processes, or choose a train.global_batch and data.lanes that {ranks} divides"
        )
    return cfg.train.global_batch // ranks


def micro_batch(cfg: RunConfig, ranks: int) -> int:
    """Images in one forward pass of a rank."""
    share = per_rank_batch(cfg, ranks)
    size = cfg.hardware.micro_batch or share
    if share % size:
        below = [n for n in range(1, share + 1) if share % n == 0]
        raise RecipeError(
            f"hardware.micro_batch: {size} does not divide the {share} images per process "
            f"(train.global_batch {cfg.train.global_batch} over {ranks} processes); allowed: {', '.join(map(str, below))}"
        )
    group = cfg.data.mix_group
    if cfg.data.augment.mixes and size % group:
        raise RecipeError(
            f"data.mix_group: mixup and cutmix pair images in groups of {group}, which does not divide the micro-batch of "
            f"{size}; choose a data.mix_group that divides it, or another hardware.micro_batch"
        )
    return size


def grad_accum(cfg: RunConfig, ranks: int) -> int:
    """Forward passes per update: global_batch / (ranks * micro_batch)."""
    return per_rank_batch(cfg, ranks) // micro_batch(cfg, ranks)
