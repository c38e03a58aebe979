"""How busy each machine of a run is: the whole machine, other people's processes included."""

from contextlib import suppress

import psutil
import torch

from vitscale import failure


def load() -> dict[str, float]:
    """Metrics `system/HOST/...`: CPU since the last call in this process, memory and GPUs now."""
    memory = psutil.virtual_memory()
    used_gib = (memory.total - memory.available) / 2**30
    here = {"cpu_percent": psutil.cpu_percent(), "memory_gib": used_gib, **_gpus()}
    return {f"system/{failure.host()}/{name}": value for name, value in here.items()}


def _gpus() -> dict[str, float]:
    """Busy time and memory of every GPU that this process sees."""
    metrics: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        metrics[f"gpu{number}_memory_gib"] = (total - free) / 2**30
        with suppress(Exception):  # where the driver does not tell, as of a part of a GPU
            metrics[f"gpu{number}_percent"] = torch.cuda.utilization(number)
    return metrics
