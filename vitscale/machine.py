"""How busy each machine of a run is: the whole machine, other people's processes included."""

import time
from contextlib import suppress

import psutil
import torch

from vitscale import failure


class Machine:
    """This machine since the last look, as metrics `system/HOST/...`. Rates are in MB (10^6 bytes) per second."""

    def __init__(self, active: bool) -> None:
        """`active`: on one rank of each machine; on others `sample` finds nothing."""
        self._active, self._prefix = active, f"system/{failure.host()}"
        self._time, self._counts = time.monotonic(), self._transferred()
        psutil.cpu_percent()

    def sample(self) -> dict[str, float]:
        """The load since the last sample, and the memory in use."""
        if not self._active:
            return {}
        now, counts = time.monotonic(), self._transferred()
        seconds = max(now - self._time, 1e-9)
        rates = {f"{name}_mb_per_s": (counts[name] - self._counts.get(name, 0)) / 1e6 / seconds for name in counts}
        self._time, self._counts = now, counts
        memory = psutil.virtual_memory()
        here = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_gib": (memory.total - memory.available) / 2**30,
            **rates,
            **_gpus(),
        }
        return {f"{self._prefix}/{name}": value for name, value in here.items()}

    @staticmethod
    def _transferred() -> dict[str, int]:
        """Bytes since the machine was started."""
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        disks = {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes} if disk else {}
        return {**disks, **({"network_in": network.bytes_recv, "network_out": network.bytes_sent} if network else {})}


def _gpus() -> dict[str, float]:
    """Busy time and memory of every GPU that this process sees."""
    metrics: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        metrics[f"gpu{number}_memory_gib"] = (total - free) / 2**30
        with suppress(Exception):  # where the driver does not tell, as of a part of a GPU
            metrics[f"gpu{number}_percent"] = torch.cuda.utilization(number)
    return metrics
