"""What GPUs can do, by NVIDIA's data sheets. Imports no torch."""

from typing import NamedTuple

USABLE = 0.92  # of a GPU's memory; the rest is for CUDA, NCCL, and holes between blocks


class Device(NamedTuple):
    """One GPU."""

    tflops: dict[str, float]  # dense peak by `hardware.precision`
    memory_gib: float  # what torch finds
    memory_tbyte_s: float  # bandwidth of its memory

    @property
    def usable_bytes(self) -> float:
        return USABLE * self.memory_gib * 2**30


DEVICES = {
    "h200": Device({"bf16": 989.0, "fp32": 67.0}, 139.8, 4.8),
    "h100": Device({"bf16": 989.0, "fp32": 67.0}, 79.1, 3.35),
    "a100": Device({"bf16": 312.0, "fp32": 19.5}, 79.1, 2.04),
    "a100-40g": Device({"bf16": 312.0, "fp32": 19.5}, 39.4, 1.56),
}
