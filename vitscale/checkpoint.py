"""Checkpoints that are there: which is the newest sound one, what it holds. vitscale/saving.py writes them.

A checkpoint holds the fragments of the fp32 weights and optimiser state that each rank owned, as safetensors whose keys say
what they are (`name@start/kind`). Any number of ranks at any ZeRO stage reads the pieces it needs from them.
"""

import shutil
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from vitscale.engine import Engine
from vitscale.errors import CheckpointError
from vitscale.retention import complete
from vitscale.rundir import RunDir
from vitscale.state import TrainState
from vitscale.sums import verify


def restore(run: RunDir, engine: Engine, data: str) -> TrainState:
    """The newest sound checkpoint into the engine, or a fresh state where there is none. Call on every rank.

    `data` is the digest of the training manifest; a checkpoint of other data is an error.
    """
    world = engine.world
    with world.alone():
        found = find(run.checkpoints, data) if world.is_main else None
    path = world.broadcast(found)
    if path is None:
        return TrainState(data=data)
    with world.alone():
        state = TrainState.parse((path / "state.json").read_text())
        _read_fragments(engine, path / "engine")
    engine.num_updates = state.num_updates
    engine.spread()
    state.loss_sum *= world.size / state.loss_ranks  # exact on as many ranks as before
    if not world.is_main:
        state.fingerprint, state.loss_sum = 0, 0.0  # what is stored are sums over ranks
    return state


def find(checkpoints: Path, data: str) -> Path | None:
    """The checkpoint to go on from. What killed saves left behind is removed."""
    for leftover in checkpoints.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    path = latest(checkpoints)
    if path is None:
        return None
    before = TrainState.parse((path / "state.json").read_text()).data
    if before != data:
        raise CheckpointError(
            f"{path}: was trained on a manifest with digest {before[:12]}, data.train has {data[:12]}; give it the same shards "
            "in the same order, or choose another name=... for a new run"
        )
    return path


def latest(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose every byte is as written; damaged ones are set aside, loudly."""
    for path in reversed(complete(checkpoints)):
        damaged = verify(path)
        if not damaged:
            return path
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        print(f"warning: {path}: {', '.join(damaged)}; set aside as {aside.name}, using the one before", file=sys.stderr)
    return None


class Piece(NamedTuple):
    """A stored fragment of one kind of one parameter."""

    start: int
    length: int
    file: Any
    key: str

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.file.get_slice(self.key)[start - self.start : stop - self.start]


def stored_pieces(folder: Path, stack: ExitStack) -> dict[tuple[str, str], list[Piece]]:
    """(name, kind) -> its stored fragments in order. The files stay mapped until the stack closes."""
    found = defaultdict(list)
    for path in sorted(folder.glob("rank_*.safetensors")):
        file = stack.enter_context(safe_open(path, "pt"))
        for key in file.keys():  # noqa: SIM118 - not a dict
            place, kind = key.rsplit("/", 1)
            name, start = place.rsplit("@", 1)
            found[name, kind].append(Piece(int(start), file.get_slice(key).get_shape()[0], file, key))
    return {key: sorted(pieces, key=lambda piece: piece.start) for key, pieces in found.items()}


def _read_fragments(engine: Engine, folder: Path) -> None:
    """Fill this rank's fragments from whatever pieces overlap them."""
    with ExitStack() as stack:
        pieces = stored_pieces(folder, stack)
        for fragment in engine.fragments(replicas=True):
            for kind, target in fragment.tensors.items():
                _fill(target, fragment.start, pieces.get((fragment.name, kind), []), f"{folder}: {fragment.name}/{kind}")


def _fill(target: torch.Tensor, start: int, pieces: list[Piece], where: str) -> None:
    missing, stop = target.numel(), start + target.numel()
    for piece in pieces:
        low, high = max(piece.start, start), min(piece.start + piece.length, stop)
        if low < high:
            target[low - start : high - start].copy_(piece.read(low, high))
            missing -= high - low
    if missing:
        raise CheckpointError(
            f"{where}: {missing} of {target.numel()} values are not in the checkpoint; it belongs to another model or optimiser"
        )
