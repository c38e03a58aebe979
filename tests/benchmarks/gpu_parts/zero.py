"""What the Engine costs beside a plain loop with the same model and optimiser, in one process, at every ZeRO stage."""

from collections.abc import Callable, Iterator

import torch

from gpu_parts import clock
from gpu_parts.clock import Row, Setting
from gpu_parts.models import Step, alone, bare_ours, batch, cases, ours

SIZES, TINY_SIZES, STAGES = (8, 32, 128, 256), (2, 8), (0, 1, 2, 3)
TARGETS = {8: 0.08, 256: 0.02}


def run(setting: Setting) -> Iterator[Row]:
    config, compiled = cases(setting)[0].config, not setting.tiny
    with alone(setting) as world:
        makers: dict[str, Callable[[], Step]] = {"bare loop": lambda: bare_ours(config, setting, compile=compiled)}
        for stage in STAGES:
            makers[f"stage {stage}"] = lambda stage=stage: ours(config, setting, world, stage, None, compile=compiled)
        steps = {name: make() for name, make in makers.items()}
        sizes = TINY_SIZES if setting.tiny else SIZES
        for number, size in enumerate(sizes):
            if setting.left_s < 5:
                yield {"micro-batch": size, "note": "out of time"}
                continue
            yield from run_size(size, steps, setting, setting.left_s / (len(sizes) - number))


def run_size(size: int, steps: dict[str, Step], setting: Setting, seconds: float) -> Iterator[Row]:
    torch._dynamo.reset()
    images, labels = batch(cases(setting)[0].config, size, setting.dtype, setting.device)
    actions = {name: lambda step=step: step(images, labels) for name, step in steps.items()}
    begin = setting.left_s
    for action in actions.values():  # compiles
        if not clock.fits(action, setting.device):
            yield {"micro-batch": size, "note": "out of memory"}
            return
    times = clock.taking_turns(actions, setting.device, seconds - (begin - setting.left_s), 2 if setting.tiny else 10, times=5)
    bare = clock.median(times["bare loop"])
    for name, values in times.items():
        found = clock.median(values)
        target = f"<= {TARGETS[size]:.0%}" if size in TARGETS and name != "bare loop" else ""
        tax = found / bare - 1
        yield {"micro-batch": size, "entry": name, "ms per step": found * 1e3, "tax": f"{tax:+.1%}", "target": target}
