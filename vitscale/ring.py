"""How fast the processes of this machine sum a tensor: all GPUs by NCCL, or two processes by gloo."""

import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

ELEMENTS, ROUNDS, WITHIN = 2**24, 5, timedelta(seconds=120)  # 64 MiB of fp32


def measure() -> str:
    """In words; the rate is that at which each process sends. An error of torch's where they do not find each other in time."""
    gpus = torch.cuda.device_count()
    if gpus == 1:
        return "one GPU, nothing to exchange"
    procs, backend = (gpus, "nccl") if gpus else (2, "gloo")
    with tempfile.TemporaryDirectory() as folder:
        spawn(_sum, (procs, backend, folder), procs)
        seconds = float((Path(folder) / "seconds").read_text())
    sent = 2 * (procs - 1) / procs * ELEMENTS * 4  # bytes, round a ring
    return f"{sent / seconds / 1e9:.2f} GB/s among {procs} processes by {backend}"


def _sum(rank: int, procs: int, backend: str, folder: str) -> None:
    """One process: the best of some rounds."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, f"file://{folder}/meet", WITHIN, rank=rank, world_size=procs)
    values, times = torch.ones(ELEMENTS, device=device), []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        dist.all_reduce(values)
        float(values[0])  # waits for the device
        times.append(time.perf_counter() - begin)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(min(times)))
    dist.destroy_process_group()
