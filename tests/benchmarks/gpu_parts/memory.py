"""The largest micro-batch with and without activation checkpointing, beside what vitscale/memory.py says of it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from gpu_parts import clock
from gpu_parts.clock import GIB, Row, Setting
from gpu_parts.models import EMA, Case, Step, alone, batch, cases, ours, release
from vitscale import memory
from vitscale.config import RunConfig
from vitscale.devices import USABLE
from vitscale.world import World

STAGE, SIZES = 0, (8, 24)  # one process is given stage 0
MODES: tuple[dict[str, Any], ...] = ({}, {"compile": True}, {"activation_checkpointing": 1})
SMALLER = (1.0, 0.97, 0.94, 0.9)  # of what two measured sizes say, for what does not grow by the image


def run(setting: Setting) -> Iterator[Row]:
    with alone(setting) as world:
        for case in cases(setting)[:2]:
            for mode in MODES:
                row: Row = {"model": case.name, "hardware": ", ".join(f"{k}={v}" for k, v in mode.items()) or "eager"}
                if setting.left_s < (1 if setting.tiny else 8):
                    yield {**row, "note": "out of time"}
                else:
                    yield {**row, **planned(case, mode, setting), **measured(case, mode, setting, world)}


def total(setting: Setting) -> int:
    """Bytes of the device; a GiB stands for a CPU's, which nobody counts."""
    return torch.cuda.get_device_properties(setting.device).total_memory if setting.device.type == "cuda" else GIB


def planned(case: Case, mode: dict[str, Any], setting: Setting) -> Row:
    """By arithmetic: bytes at the larger of SIZES, and the largest micro-batch that fits."""
    cfg = recipe(case, mode, setting)
    held = memory.activations(cfg)

    def need(images: int) -> int:
        return memory.memory(cfg, STAGE, 1, images, 1, held).total

    low, high = 0, 1
    while need(high) <= USABLE * total(setting):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if need(middle) <= USABLE * total(setting) else (low, middle)
    return {"planned largest": low, f"planned GiB at {SIZES[1]}": need(SIZES[1]) / GIB}


def recipe(case: Case, mode: dict[str, Any], setting: Setting) -> RunConfig:
    precision = "bf16" if setting.dtype == torch.bfloat16 else "fp32"
    hardware = {"precision": precision, "zero_stage": STAGE, **mode}
    values = {"name": "x", "model": case.config.model_dump(), "data": {"train": {"manifest": "none"}}}
    values |= {"train": {"global_batch": 1, "total": {"steps": 1}}, "optim": {"lr": 1.0, "ema_decay": EMA}}
    return RunConfig.model_validate({**values, "hardware": hardware})


def measured(case: Case, mode: dict[str, Any], setting: Setting, world: World) -> Row:
    """The same by steps: from two sizes follows about what fits, and that is then tried."""
    torch._dynamo.reset()
    if setting.device.type != "cuda":
        ours(case.config, setting, world, **mode if "compile" not in mode else {})(
            *batch(case.config, 1, setting.dtype, setting.device)
        )
        return {"note": "memory is counted on GPUs alone"}
    make = partial(ours, case.config, setting, world, STAGE, **mode)
    small, large = peaks(make, case, SIZES, setting)
    if small is None or large is None:
        return {"note": f"out of memory at {SIZES[1]}"}
    per_image = (large - small) / (SIZES[1] - SIZES[0])
    about = SIZES[1] + (total(setting) - large) / per_image
    sizes = [int(about * factor) for factor in SMALLER]
    largest = next((size for size in sizes if setting.left_s > 3 and peaks(make, case, (size,), setting)[0] is not None), None)
    return {"measured largest": largest, f"measured GiB at {SIZES[1]}": large / GIB, "MiB per image": per_image / 2**20}


def peaks(make: Callable[[], Step], case: Case, sizes: Sequence[int], setting: Setting) -> list[int | None]:
    """Most bytes held at a time in a step of so many images; None = more than there is, which ends the engine's use."""
    step, found = make(), list[int | None]()
    for images in sizes:
        clock.free(setting.device)
        inputs = batch(case.config, images, setting.dtype, setting.device)
        enough = clock.fits(lambda step=step, inputs=inputs: [step(*inputs), step(*inputs)], setting.device)
        found.append(clock.allocated(setting.device, peak=True) if enough else None)
        del inputs
    release(step)
    del step
    clock.free(setting.device)
    return found
