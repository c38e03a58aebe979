"""A Slurm cluster, or a part of one, as a user describes it once: `recipes/clusters/*.yaml`."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data_pipeline.config import Section
from vitscale import recipe
from vitscale.config import RunConfig, grad_accum
from vitscale.errors import RecipeError

SECRET = re.compile(r"token|secret|password|passwd|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
WRITTEN_OUT = re.compile(  # a value after such a word that is not a variable's
    rf"(?:{SECRET.pattern}|bearer|pass\b|_pat)\w*[ =:]+(?![\"']?\$)\S|{IN_URL.pattern}", re.IGNORECASE
)
SECRETS_STAY = "it must not stand in files: export it in the shell that submits, sbatch takes it along"


def _word(text: str) -> str:
    """One word of an #SBATCH line, where nothing can be quoted."""
    _line(text)
    if not re.fullmatch(r"[A-Za-z0-9/][A-Za-z0-9_.,:=@%+*&|()\[\]/-]*", text):
        raise ValueError("one word of letters, digits and _.,:=@%+*&|()[]/- is allowed here")
    return text


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one printable line is allowed here")
    if WRITTEN_OUT.search(text):
        raise ValueError(f"holds a secret; {SECRETS_STAY}")
    return text


Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]


class Container(Section):
    """The image that the processes run in. vitscale is installed in it, or bound into it."""

    kind: Literal["pyxis", "apptainer"]
    """what starts it: srun's plugin pyxis (enroot), or apptainer"""
    image: Line
    """of enroot (`registry#name:tag`, a .sqsh) or apptainer (a .sif)"""
    mounts: Annotated[tuple[Line, ...], Field(strict=False)] = ()
    """`/outside:/inside`; the working directory is always there"""


class Cluster(Section):
    """What a job asks Slurm for, and what its nodes are."""

    nodes: int = Field(1, ge=1)
    """of one job"""
    gpus_per_node: int = Field(8, ge=0)
    """0 = train on CPUs"""
    procs_per_node: int | None = Field(None, ge=1)
    """processes per node; default: gpus_per_node, or 1 on CPUs"""
    time: Word = "24:00:00"
    """limit of one job, as Slurm writes it; the run goes on in the next"""
    partition: Word | None = None
    """Slurm's; default: the cluster's default"""
    account: Word | None = None
    """to charge"""
    exclusive: bool = True
    """no other job on these nodes"""
    options: dict[Word, Word] = Field(default_factory=dict)
    """any other option of sbatch, e.g. `{qos: high, cpus-per-task: "24"}`"""
    setup: Annotated[tuple[Line, ...], Field(strict=False)] = ()
    """shell commands that make `python` and vitscale available, e.g. `source .venv/bin/activate`"""
    container: Container | None = None
    """the image to run in, if any"""
    interface: Word | None = None
    """network interface over which the processes find each other, e.g. `ib0`, `eth0`; default: what NCCL and gloo choose"""
    environment: dict[str, Line] = Field(default_factory=dict)
    """variables for all processes, e.g. `{NCCL_DEBUG: WARN}`; secrets stay in your shell, sbatch takes them along"""
    scratch: Line | None = None
    """folder on each node's own disk that keeps remote shards (hardware.cache_dir)"""
    max_failures: int = Field(3, ge=1)
    """a run that fails so often without a new checkpoint is given up"""
    gpu: Literal["h200", "h100", "a100", "a100-40g"] | None = None
    """what the GPUs are, for `vitscale plan`"""
    network_gbit_s: float = Field(400.0, gt=0.0)
    """of one node, all its adapters together, for `vitscale plan`"""
    intra_gbyte_s: float = Field(450.0, gt=0.0)
    """of one GPU to the others of its node, one way, for `vitscale plan`: 450 is NVLink 4, 300 NVLink 3, 25 PCIe 4"""

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        for name in self.environment:
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment: {name!r} is no name of a variable")
            if SECRET.search(name):
                raise ValueError(f"environment: {name} looks like a secret; {SECRETS_STAY}")
        if self.gpus_per_node and self.procs_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"procs_per_node {self.procs_per_node} is not gpus_per_node {self.gpus_per_node}: one process drives one GPU"
            )
        return self

    @property
    def procs(self) -> int:
        """Processes per node."""
        return self.procs_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        return self.nodes * self.procs


def load(path: str | Path) -> Cluster:
    return recipe.load_as(Cluster, path)


def check(cfg: RunConfig, cluster: Cluster) -> None:
    """RecipeError where this recipe cannot run on this cluster."""
    where, device = f"{cluster.nodes} nodes x {cluster.procs} processes", cfg.hardware.device
    if device != "auto" and (device == "cpu") != (cluster.gpus_per_node == 0):
        raise RecipeError(f"hardware.device: {device}, but the nodes have {cluster.gpus_per_node} GPUs each; say auto")
    try:
        grad_accum(cfg, cluster.world_size)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
