"""Checkpoints: complete or invisible, and independent of the layout that wrote them.

Each rank writes the fragments of the fp32 weights and optimiser state that it owns, as safetensors whose keys say what
they are (`name@start/kind`). Any number of ranks at any ZeRO stage reads the pieces it needs from them. A checkpoint is
written under a hidden name; SHA256SUMS comes last, then the rename that makes it exist.
"""

import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vitscale.engine import Engine
from vitscale.errors import CheckpointError
from vitscale.modelinfo import WEIGHTS
from vitscale.rundir import RunDir
from vitscale.state import TrainState
from vitscale.sums import SUMS, fsync, verify, write_sums
from vitscale.world import World


def save(run: RunDir, engine: Engine, state: TrainState, keep: int) -> Path:
    """Write `checkpoints/step_XXXXXXXX`, then drop all but the newest `keep`. Call on every rank."""
    world = engine.world
    final = run.checkpoints / f"step_{state.step:08d}"
    partial = run.checkpoints / f".{final.name}.partial"
    total = _total(state, engine, world)
    with world.alone():
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "engine").mkdir(parents=True)
    with world.alone():
        _write_fragments(engine, partial / "engine" / f"rank_{world.rank:05d}.safetensors")
    with world.alone():
        if world.is_main:
            save_file(dict(_whole_weights(engine, partial / "engine")), partial / WEIGHTS)
            (partial / "state.json").write_text(total.dump())
            shutil.copyfile(run.model_info, partial / run.model_info.name)
            shutil.copyfile(run.recipe, partial / run.recipe.name)
            _commit(partial, final)
            _prune(run.checkpoints, keep)
    return final


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
    if not world.is_main:
        state.fingerprint = 0  # the stored value is the sum over ranks
    return state


def find(checkpoints: Path, data: str) -> Path | None:
    """The checkpoint to go on from. What killed saves left behind is removed."""
    for leftover in checkpoints.glob(".step_*"):
        shutil.rmtree(leftover)
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


def complete(checkpoints: Path) -> list[Path]:
    """All checkpoints that exist, oldest first."""
    return sorted(path for path in checkpoints.glob("step_" + "[0-9]" * 8) if (path / SUMS).is_file())


def _total(state: TrainState, engine: Engine, world: World) -> TrainState:
    """The state of all ranks together."""
    parts = world.gather(state.fingerprint)
    return TrainState(**{**vars(state), "fingerprint": sum(parts) % 2**64, "num_updates": engine.num_updates})


def _write_fragments(engine: Engine, path: Path) -> None:
    tensors = {
        f"{fragment.name}@{fragment.start}/{kind}": tensor.cpu().clone()
        for fragment in engine.fragments()
        for kind, tensor in fragment.tensors.items()
    }
    save_file(tensors, path)


class _Piece(NamedTuple):
    """A stored fragment of one kind of one parameter."""

    start: int
    length: int
    file: Any
    key: str

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.file.get_slice(self.key)[start - self.start : stop - self.start]


def _pieces(folder: Path, stack: ExitStack) -> dict[tuple[str, str], list[_Piece]]:
    """(name, kind) -> its stored fragments in order. The files stay mapped until the stack closes."""
    found = defaultdict(list)
    for path in sorted(folder.glob("rank_*.safetensors")):
        file = stack.enter_context(safe_open(path, "pt"))
        for key in file.keys():  # noqa: SIM118 - not a dict
            place, kind = key.rsplit("/", 1)
            name, start = place.rsplit("@", 1)
            found[name, kind].append(_Piece(int(start), file.get_slice(key).get_shape()[0], file, key))
    return {key: sorted(pieces, key=lambda piece: piece.start) for key, pieces in found.items()}


def _read_fragments(engine: Engine, folder: Path) -> None:
    """Fill this rank's fragments from whatever pieces overlap them."""
    with ExitStack() as stack:
        pieces = _pieces(folder, stack)
        for fragment in engine.fragments(replicas=True):
            for kind, target in fragment.tensors.items():
                _fill(target, fragment.start, pieces.get((fragment.name, kind), []), f"{folder}: {fragment.name}/{kind}")


def _fill(target: torch.Tensor, start: int, pieces: list[_Piece], where: str) -> None:
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


def _whole_weights(engine: Engine, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, fp32 weights) put together from all ranks' fragments."""
    with ExitStack() as stack:
        pieces = _pieces(folder, stack)
        for name, shape in engine.shapes():
            yield name, torch.cat([p.read(p.start, p.start + p.length) for p in pieces[name, "weight"]]).reshape(shape)


def _commit(partial: Path, final: Path) -> None:
    write_sums(partial)
    if final.exists():  # the same step, written again after a damaged successor was set aside
        shutil.rmtree(final)
    partial.rename(final)
    fsync(final.parent)


def _prune(checkpoints: Path, keep: int) -> None:
    for path in complete(checkpoints)[:-keep]:
        # Renamed first: a half-deleted checkpoint must not look like one.
        doomed = path.with_name(f".{path.name}.deleted")
        path.rename(doomed)
        shutil.rmtree(doomed)
