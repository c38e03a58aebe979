"""torch's kernels of attention, forward and backward, on q, k and v as the model's fused matrix leaves them; and the table."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from gpu_parts import clock
from gpu_parts.clock import Row, Setting
from gpu_parts.models import determinism
from vitscale.model.attention import KERNELS, TABLE, device_name

LENGTHS = (196, 197, 256, 257, 576, 577, 1024, 1025, 1369, 1370)
HEADS = {64: 16, 80: 16}  # by head width, of L and H
TOKENS = 65_536  # in a batch, as a micro-batch has them
ALLOWED = {torch.bfloat16: 0.02, torch.float32: 1e-4}  # error of outputs and gradients, relative to float64's norm
MODES = {"any": False, "deterministic": True}


class Shape(NamedTuple):
    batch: int
    tokens: int
    heads: int
    width: int


def run(setting: Setting) -> Iterator[Row]:
    tokens = 1024 if setting.tiny else TOKENS
    lengths = LENGTHS[:2] if setting.tiny else LENGTHS
    heads = {64: 2, 80: 2} if setting.tiny else HEADS
    shapes = [Shape(max(1, tokens // length), length, heads[width], width) for width in heads for length in lengths]
    for number, shape in enumerate(shapes):
        if setting.left_s < 1:
            yield {"head width": shape.width, "tokens": shape.tokens, "note": "out of time"}
            continue
        yield from run_shape(shape, setting, setting.left_s / (len(shapes) - number))


def run_shape(shape: Shape, setting: Setting, seconds: float) -> Iterator[Row]:
    for mode, deterministic in MODES.items():
        with determinism(deterministic), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells why a kernel is refused
            allowed = [name for name in KERNELS if is_right(name, shape, setting)]
            actions = {name: action(name, shape, setting) for name in allowed}
            times = clock.taking_turns(actions, setting.device, seconds / 2, 2 if setting.tiny else 10, times=3)
            chosen = min(times, key=lambda name: clock.median(times[name]), default="")
            row: Row = {"head width": shape.width, "tokens": shape.tokens, "mode": mode, "torch takes": default(shape, setting)}
            row |= {f"{name} ms": clock.median(times[name]) * 1e3 if name in times else None for name in KERNELS}
            yield {**row, "fastest": chosen}
        clock.free(setting.device)


def attend(qkv: torch.Tensor, shape: Shape) -> torch.Tensor:
    """As model/vit.py."""
    q, k, v = qkv.unflatten(2, (3, shape.heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v)


def inputs(shape: Shape, batch: int, setting: Setting) -> torch.Tensor:
    generator = torch.Generator(setting.device).manual_seed(0)
    size = (batch, shape.tokens, 3 * shape.heads * shape.width)
    return torch.randn(size, generator=generator, device=setting.device).to(setting.dtype).requires_grad_()


def action(name: str, shape: Shape, setting: Setting) -> Callable[[], object]:
    qkv = inputs(shape, shape.batch, setting)
    with torch.no_grad():
        ones = torch.ones_like(attend(qkv, shape))

    def step() -> None:
        with sdpa_kernel(KERNELS[name]):
            attend(qkv, shape).backward(ones)
        qkv.grad = None

    return step


def is_right(name: str, shape: Shape, setting: Setting) -> bool:
    """Whether torch allows the kernel here, it is as exact as its type, and (in that mode) twice the same."""
    qkv = inputs(shape, 2, setting)
    try:
        first, second = (results(qkv, shape, name) for _ in range(2))
    except RuntimeError:  # no such kernel for this device, type, width or mode; or no memory
        return False
    expected = results(qkv.detach().double().requires_grad_(), shape, "math")
    if torch.are_deterministic_algorithms_enabled() and not all(map(torch.equal, first, second)):
        return False
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(first, expected, strict=True)]
    assert max(errors) < ALLOWED[setting.dtype], f"attention by {name} at {shape}: errors of {errors}"
    return True


def results(qkv: torch.Tensor, shape: Shape, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    with sdpa_kernel(KERNELS[name]):
        mixed = attend(qkv, shape)
        (grad,) = torch.autograd.grad(mixed.square().sum(), qkv)
    return mixed.detach(), grad


def default(shape: Shape, setting: Setting) -> str:
    """The kernel that torch chooses when nobody else does."""
    q, k, v = inputs(shape, 2, setting).unflatten(2, (3, shape.heads, -1)).permute(2, 0, 3, 1, 4)
    number = torch._fused_sdp_choice(q, k, v)
    return next((name for name, kernel in KERNELS.items() if int(kernel) == number), str(number))


def write_table(rows: list[Row], setting: Setting, path: Path = TABLE) -> None:
    """Put this device's rows into the model's table in place of those that are there."""
    head, _, listed = path.read_text().partition("rows = [\n")
    mine = device_name(setting.device)
    kept = [line for line in listed.splitlines() if line.strip().startswith("{") and f'device = "{mine}"' not in line]
    by_shape: dict[tuple[int, int], dict[str, str]] = {}
    for row in rows:
        if row.get("fastest"):
            by_shape.setdefault((row["head width"], row["tokens"]), {})[row["mode"]] = row["fastest"]
    dtype = str(setting.dtype).removeprefix("torch.")
    for (width, tokens), fastest in by_shape.items():
        if fastest.keys() == MODES.keys():
            values = [f'device = "{mine}"', f'dtype = "{dtype}"', f"head_width = {width}", f"tokens = {tokens}"]
            values += [f'{mode} = "{name}"' for mode, name in fastest.items()]
            kept.append(f"    {{{', '.join(values)}}},")
    path.write_text(f"{head}rows = [\n" + "".join(f"{line}\n" for line in kept) + "]\n")
