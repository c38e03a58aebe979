"""`vitscale doctor`: what could keep a run from working here, each finding with what to do about it."""

import importlib.metadata as metadata
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_pipeline import storage
from data_pipeline.config import SourceConfig
from launcher.cluster import Cluster
from vitscale import preflight, tracking
from vitscale.config import HardwareConfig, RunConfig
from vitscale.finding import Finding, grade

KNOWN_BAD = {  # versions whose fault is known, whatever pyproject.toml allows
    "deepspeed": {">=0.17.6,<=0.18.2": "gradients at ZeRO-2 are wrong (DeepSpeed #7718)", ">=0.18.5,<=0.18.6": "slow (#7886)"},
}
LIMITS: dict[str, tuple[int, Callable[[int], bool], str]] = {
    "open files": (resource.RLIMIT_NOFILE, lambda soft: soft >= 4096, "ulimit -n 65536"),
    "locked memory": (resource.RLIMIT_MEMLOCK, lambda soft: soft < 0, "ulimit -l unlimited, where there is InfiniBand"),
    "core dumps": (resource.RLIMIT_CORE, lambda soft: soft == 0, "ulimit -c 0: a crash writes all memory of each rank to disk"),
}
SHARDS_READ, PIECE = 16, 16 * 2**20
SLURM_WITHIN_S = 20.0
SKEW_S = 5.0  # owners of run directories give signs of life every 10 s
GIB = 2**30


def examine(cfg: RunConfig | None, cluster: Cluster | None) -> Iterator[Finding]:
    """All checks that apply, one after another. A check that breaks is a finding too."""
    runs = Path(cfg.runs if cfg else "runs").expanduser().absolute()
    uri = tracking.tracking_uri(cfg.tracking if cfg else None, runs)
    hardware = cfg.hardware if cfg else HardwareConfig()
    checks: list[Callable[[], Finding]] = [check_packages, partial(check_gpus, hardware), partial(check_matmul, hardware)]
    checks += [check_all_reduce, check_shared_memory, *(partial(check_limit, name) for name in LIMITS)]
    checks += [partial(check_room, runs), partial(check_file_clock, runs), partial(check_mlflow, uri)]
    if cfg:
        checks += [partial(check_shards, source, cfg) for source in (*cfg.data.train, cfg.data.val) if source]
    if cluster:
        checks += [partial(check_slurm, cluster), *([partial(check_fit, cfg, cluster)] if cfg else [])]
    yield from map(guarded, checks)


def guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # also of torch, MLflow and subprocess
        name = getattr(check, "func", check).__name__.removeprefix("check_").replace("_", " ")
        return Finding(name, "fail", tracking.reason(error), "the message says what to do, or what is broken")


def check_packages() -> Finding:
    """Installed versions against those allowed and those known to be bad."""
    wrong = [problem for line in metadata.requires("vitscale") or () if (problem := package_problem(Requirement(line)))]
    found = "; ".join(wrong) or f"as required, Python {platform.python_version()}"
    return grade("packages", found, "pip install -c constraints.txt -e .", bool(wrong))


def package_problem(required: Requirement) -> str | None:
    if required.marker and not required.marker.evaluate({"extra": ""}):
        return None
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return f"{required} is not installed"
    bad = [said for versions, said in KNOWN_BAD.get(required.name, {}).items() if version in SpecifierSet(versions)]
    if not bad and version in required.specifier:
        return None
    return f"{required.name} {version}: {bad[0] if bad else f'{required} is needed'}"


def check_gpus(hardware: HardwareConfig) -> Finding:
    """Driver, CUDA, NCCL, and memory that others use."""
    import torch

    if not torch.cuda.is_available():
        needed = hardware.device == "cuda"
        fix = "install a torch built for CUDA, and check `nvidia-smi`"
        return Finding("gpus", "fail" if needed else "pass", f"none (torch {torch.__version__})", fix if needed else "")
    count = torch.cuda.device_count()
    used = [(total - free) / GIB for free, total in map(torch.cuda.mem_get_info, range(count))]
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split() if shutil.which(asked[0]) else []
    versions = f"CUDA {torch.version.cuda}, NCCL {nccl}, driver {driver[0] if driver else 'unknown'}"
    found = f"{count} x {torch.cuda.get_device_name(0)}, {versions}, {max(used):.1f} GiB in use"
    return grade("gpus", found, "see in `nvidia-smi` whose processes these are, and end them", max(used) > 2, "warn")


def check_matmul(hardware: HardwareConfig) -> Finding:
    """Speed of one device beside what is stated."""
    import torch

    from vitscale import meter
    from vitscale.optim import DTYPES
    from vitscale.world import choose_device

    device = torch.device(choose_device(hardware))
    measured = meter.measure_flops(device, DTYPES[hardware.precision]) / 1e12
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else ""
    stated = (meter.peak_flops(name, hardware, 1) or 0) / 1e12
    found = f"{measured:.3g} TFLOP/s in {hardware.precision}" + (f" of {stated:.0f}" if stated else "")
    return grade("matmul", found, "look for heat, limits and others in `nvidia-smi -q`", measured < 0.6 * stated, "warn")


def check_all_reduce() -> Finding:
    from vitscale import ring

    return Finding("all-reduce", "pass", ring.measure())


def check_room(runs: Path) -> Finding:
    """Disk and inodes where checkpoints go, and whether they can be written."""
    folder = existing(runs)
    free, stat = shutil.disk_usage(folder).free, os.statvfs(folder)
    found = f"{free / GIB:.1f} GiB and {stat.f_favail:,} inodes free in {folder}"
    full = free < GIB or (stat.f_files and stat.f_favail < 1000) or not os.access(folder, os.W_OK)
    fix = "make room, make it writable, or choose another folder with runs=..."
    return grade("room", found, fix, bool(full or free < 20 * GIB), "fail" if full else "warn")


def existing(path: Path) -> Path:
    """The path, or what of it is there."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def check_file_clock(runs: Path) -> Finding:
    """This machine's clock beside that of the server of its files."""
    with tempfile.NamedTemporaryFile(dir=existing(runs)) as file:
        os.utime(file.name)  # to the server's time
        skew = Path(file.name).stat().st_mtime - time.time()
    return grade("file clock", f"{skew:+.1f} s", "synchronise the clocks of the machines (chrony)", abs(skew) > SKEW_S, "warn")


def check_limit(name: str) -> Finding:
    """One of LIMITS."""
    number, allowed, fix = LIMITS[name]
    soft, _ = resource.getrlimit(number)
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"limit {soft:,}"
    return grade(name, found, fix, not allowed(soft), "warn")


def check_shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    fix = "clear /dev/shm, or start the container with --shm-size=8g (NCCL exchanges through it)"
    return grade("/dev/shm", f"{free / GIB:.1f} GiB free", fix, free < GIB, "warn")


def check_mlflow(uri: str) -> Finding:
    """An experiment can be made and deleted."""
    begin = time.monotonic()
    client = tracking.connect(uri)
    client.delete_experiment(tracking.experiment_id(client, f"doctor-{uuid.uuid4().hex}", uri))
    return Finding("mlflow", "pass", f"{tracking.without_secrets(uri)}: written in {time.monotonic() - begin:.1f} s")


def check_shards(source: SourceConfig, cfg: RunConfig) -> Finding:
    """They are all there; the first are read, which a page cache can make faster than the disk."""
    manifest, begin = preflight.check_source(source, "data", cfg), time.monotonic()
    ends = [min(PIECE, int(size)) for size in manifest.bytes[:SHARDS_READ]]
    size = sum(len(storage.read(manifest.shard(number), 0, end)) for number, end in enumerate(ends))
    rate = size / 1e6 / max(time.monotonic() - begin, 1e-6)
    return Finding("shards", "pass", f"{source.manifest}: {manifest.num_samples:,} images, {rate:,.0f} MB/s")


def check_slurm(cluster: Cluster) -> Finding:
    """The controller answers, and knows the partition."""
    done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=SLURM_WITHIN_S, check=False)
    known = sorted(set(done.stdout.split()))
    wrong = bool(done.returncode) or (cluster.partition is not None and cluster.partition not in known)
    found = " ".join(done.stderr.split()) or f"partitions {', '.join(known)}"
    return grade("slurm", found, "correct `partition` in the cluster file, or ask whether slurmctld is up", wrong)


def check_fit(cfg: RunConfig, cluster: Cluster) -> Finding:
    from vitscale import plan

    plan.check_memory(cfg, cluster)
    return Finding("layout", "pass", f"the recipe fits {cluster.nodes} nodes x {cluster.procs} processes")
