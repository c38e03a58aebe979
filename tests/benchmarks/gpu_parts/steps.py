"""Train steps of ours and of the peers, each at its best micro-batch: images/s, share of the device, memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from gpu_parts import clock
from gpu_parts.clock import GIB, Row, Setting
from gpu_parts.models import PEERS, Bare, Case, Step, alone, batch, cases, determinism, missing_peers, ours, peer, release
from vitscale.meter import measure_flops
from vitscale.model.config import ViTConfig
from vitscale.model.flops import train_flops
from vitscale.world import World

STATED = 989e12  # FLOP/s of an H200 in bf16, dense, by its data sheet
RATIOS = {"timm": 1.35, "timm + compile": 1.10}  # ours over theirs: targets


@dataclass
class Entry:
    """Something that takes steps, and the micro-batch that suits it best."""

    name: str
    make: Callable[[], Step]
    after: str = ""  # the entry, not compiled or not deterministic, whose best micro-batch its search begins with
    deterministic: bool = False
    config: ViTConfig | None = None  # where it is not the case's
    step: Step | None = None
    rest: int = 0  # bytes it holds between steps
    rates: dict[int, float] = field(default_factory=dict)  # images/s by micro-batch
    peak: int = 0
    note: str = ""

    @property
    def best(self) -> int:
        return max(self.rates, key=lambda size: self.rates[size])


def run(setting: Setting) -> Iterator[Row]:
    todo = cases(setting)
    missing = missing_peers()
    for name, why in missing.items():
        yield {"model": "-", "entry": name, "note": f"not installed: {why}"}
    with alone(setting) as world:
        matmul = max(measure_flops(setting.device, setting.dtype) for _ in range(3))
        yield {"model": "-", "entry": "large matrix products", "TFLOP/s": matmul / 1e12, "note": f"{setting.dtype}"}
        for number, case in enumerate(todo):
            share = setting.left_s / (len(todo) - number)
            yield from run_case(case, entries(case, setting, world, missing), setting, share, matmul)


def entries(case: Case, setting: Setting, world: World, missing: dict[str, str]) -> list[Entry]:
    """Ours, the peers, and ours as `hardware.deterministic` has it."""
    mine = partial(ours, case.config, setting, world, compile=True)
    found = [Entry("ours", mine)]
    if case.config.image_size <= 224:  # 196 and 256 tokens instead of 197 and 257
        gap = case.config.model_copy(update={"pool": "gap"})
        found.append(Entry("ours, gap", partial(ours, gap, setting, world, compile=True), after="ours", config=gap))
    for name in PEERS:
        if name not in missing:
            for compiled in (False, True):
                make = partial(fastest_peer, name, case, setting, compiled)
                found.append(Entry(f"{name} + compile", make, after=name) if compiled else Entry(name, make))
    return [*found, Entry("ours, deterministic", mine, after="ours", deterministic=True)]


def fastest_peer(name: str, case: Case, setting: Setting, compiled: bool) -> Bare:
    """With autocast, or with weights in bf16, whichever is faster; tried without compilation, which changes both alike."""
    if setting.dtype == torch.float32:
        return peer(name, case.config, setting, True, compiled)
    seconds = {}
    for autocast in (True, False):
        step = peer(name, case.config, setting, autocast, False)
        images, labels = batch(case.config, case.start // 2, setting.dtype, setting.device)
        step(images, labels)
        seconds[autocast] = clock.median(clock.seconds_of(lambda s=step, i=images, t=labels: s(i, t), setting.device, 3))
        del step
        clock.free(setting.device)
    return peer(name, case.config, setting, min(seconds, key=lambda autocast: seconds[autocast]), compiled)


def run_case(case: Case, tried: list[Entry], setting: Setting, seconds: float, matmul: float) -> Iterator[Row]:
    torch._dynamo.reset()
    begin = setting.left_s
    best: dict[str, int] = {}
    for number, entry in enumerate(tried):
        room = 0.75 * seconds - (begin - setting.left_s)  # the rest is for the turns
        if setting.left_s > (1 if setting.tiny else 12):
            search(entry, best.get(entry.after, case.start), case, setting, room / (len(tried) - number))
        if entry.rates:
            best[entry.name] = entry.best
    ready = {entry.name: entry for entry in tried if entry.rates}
    turns = {name: turn(entry, case, setting) for name, entry in ready.items()}
    actions = {name: action for name, action in turns.items() if action}
    left_s, most = seconds - (begin - setting.left_s), 2 if setting.tiny else 10
    times = clock.taking_turns(actions, setting.device, left_s, most)
    rates = {name: ready[name].best / clock.median(seconds) for name, seconds in times.items()}
    for entry in tried:
        yield row(case, entry, times.get(entry.name, []), rates, matmul)
    for entry in tried:
        release(entry.step)
        entry.step = None
    turns.clear()
    actions.clear()
    clock.free(setting.device)


def search(entry: Entry, start: int, case: Case, setting: Setting, seconds: float) -> None:
    """The micro-batch of most images/s: from `start` up while that gains, else down; until time or memory is up."""
    begin, size = setting.left_s, start
    while size >= 1 and size not in entry.rates:
        rate = try_size(entry, case, size, setting)
        took = begin - setting.left_s
        if rate is None:
            entry.note = f"out of memory at {size}"
            size //= 2
            if entry.rates:
                return
            continue
        gains = rate > 1.01 * max(entry.rates.values(), default=0.0)
        entry.rates[size] = rate
        if setting.tiny or took * (1 + 1 / len(entry.rates)) > seconds:  # the next would take as long
            entry.note = entry.note or f"tried {', '.join(map(str, sorted(entry.rates)))}"
            return
        if gains and size >= start:
            size *= 2
        elif size > start and len(entry.rates) == 2:
            size = start // 2
        else:
            break
    entry.note = entry.note or f"tried {', '.join(map(str, sorted(entry.rates)))}"


def try_size(entry: Entry, case: Case, size: int, setting: Setting) -> float | None:
    """Images/s of a few steps; None = out of memory, after which the entry is made anew: a step that broke off half-way is."""
    seconds: list[float] = []
    before = clock.allocated(setting.device)

    def attempt() -> None:
        step = partial(take_step, entry, *batch(case.config, size, setting.dtype, setting.device))
        step()  # compiles
        step()
        seconds.extend(clock.seconds_of(step, setting.device, 1 if setting.tiny else 3))

    fresh = entry.step is None
    if clock.fits(attempt, setting.device):
        clock.free(setting.device)
        entry.rest = clock.allocated(setting.device) - before if fresh else entry.rest
        return size / clock.median(seconds)
    release(entry.step)
    entry.step = None
    clock.free(setting.device)
    return None


def turn(entry: Entry, case: Case, setting: Setting) -> Callable[[], object] | None:
    """A step at the entry's best micro-batch, on images of its own. Measures its memory, without the others', too.

    The search had fewer of the others beside it: what is too large now is halved, down to None.
    """
    while entry.rates:
        size = entry.best
        action = partial(take_step, entry, *batch(case.config, size, setting.dtype, setting.device))
        clock.free(setting.device)
        others = clock.allocated(setting.device) - (entry.rest if entry.step else 0)
        if clock.fits(action, setting.device):
            entry.peak = clock.allocated(setting.device, peak=True) - others
            return action
        del action
        release(entry.step)
        entry.step, entry.note = None, f"out of memory at {size} beside the others"
        entry.rates = {size // 2: entry.rates[size]} if size > 1 else {}
    return None


def take_step(entry: Entry, images: torch.Tensor, labels: torch.Tensor) -> None:
    """A step; of one that broke off for want of memory nothing is used again."""
    with determinism(entry.deterministic):
        if entry.step is None:
            entry.step = entry.make()
        entry.step(images, labels)


def row(case: Case, entry: Entry, times: list[float], rates: dict[str, float], matmul: float) -> Row:
    found: Row = {"model": case.name, "entry": entry.name}
    if not times:
        return {**found, "note": entry.note or "not measured: out of time"}
    rate = rates[entry.name]
    flops = rate * train_flops(entry.config or case.config)
    ratio = rates["ours"] / rate if "ours" in rates else math.nan
    targets = [f"ratio >= {RATIOS[entry.name]}"] if entry.name in RATIOS else []
    if entry.name == "ours" and case.target:
        targets = [f">= {case.target:,.0f} img/s"]
    spread = (max(times) - min(times)) / clock.median(times)
    return {
        **found,
        "micro-batch": entry.best,
        "img/s": rate,
        "spread": spread,
        "ours / it": ratio,
        "target": ", ".join(targets),
        "MFU of 989": flops / STATED,
        "of matmul": flops / matmul,
        "peak GiB": entry.peak / GIB,
        "note": entry.note,
    }
