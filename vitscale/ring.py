"""How fast the processes of this machine sum a tensor: all GPUs by NCCL, or two processes by gloo."""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, start_processes

ELEMENTS, ROUNDS, WITHIN_S = 2**24, 5, 120.0  # 64 MiB of fp32


class Ring(NamedTuple):
    procs: int
    backend: str
    gbyte_s: float  # that each process sends: 2 (n-1)/n of the tensor


def measure() -> Ring | None:
    """None = one GPU alone. RuntimeError where the processes do not find each other in time."""
    gpus = torch.cuda.device_count()
    if gpus == 1:
        return None
    procs, backend = (gpus, "nccl") if gpus else (2, "gloo")
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(_sum, (procs, backend, folder), procs, join=False, start_method="spawn")
        assert isinstance(context, ProcessContext)
        deadline = time.monotonic() + WITHIN_S
        while not context.join(timeout=1.0):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise RuntimeError(f"{procs} processes were not done within {WITHIN_S:.0f} s; look at NCCL_DEBUG=INFO")
        seconds = float((Path(folder) / "seconds").read_text())
    return Ring(procs, backend, 2 * (procs - 1) / procs * ELEMENTS * 4 / seconds / 1e9)


def _sum(rank: int, procs: int, backend: str, folder: str) -> None:
    """One process: the best of some rounds."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=procs)
    values, times = torch.ones(ELEMENTS, device=device), []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        dist.all_reduce(values)
        float(values[0])  # waits for the device
        times.append(time.perf_counter() - begin)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(min(times)))
    dist.destroy_process_group()
