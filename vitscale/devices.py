"""What GPUs can do, by NVIDIA's data sheets. Imports no torch."""

from typing import NamedTuple

USABLE = 0.92  # of a GPU's memory; the rest is for CUDA, NCCL, and holes between blocks


class Device(NamedTuple):
    """One GPU."""

    tflops: float  # dense bf16 peak
    memory_gib: float  # what torch finds
    memory_tbyte_s: float  # bandwidth of its memory

    @property
    def usable_bytes(self) -> float:
        return USABLE * self.memory_gib * 2**30


DEVICES = {
    "h200": Device(989.0, 139.8, 4.8),
    "h100": Device(989.0, 79.1, 3.35),
    "a100": Device(312.0, 79.1, 2.04),
    "a100-40g": Device(312.0, 39.4, 1.56),
}
