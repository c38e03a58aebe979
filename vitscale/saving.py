"""Writing checkpoints while training goes on: complete or invisible.

A save copies what each rank owns into memory of its own; threads do the rest. Every rank's thread writes its file, with a note
of its SHA-256 beside it. When all notes are there rank 0's thread puts the whole weights together and commits: all under a
hidden name, SHA256SUMS last, then the rename that makes the checkpoint exist. Threads never talk through collectives.
"""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple, Self

import torch

from vitscale import fault
from vitscale.checkpoint import Piece, stored_pieces
from vitscale.config import CheckpointConfig
from vitscale.engine import Engine
from vitscale.errors import CheckpointError
from vitscale.modelinfo import AVERAGED, WEIGHTS
from vitscale.progress import say
from vitscale.retention import prune
from vitscale.rundir import RunDir, replace_text
from vitscale.state import TrainState
from vitscale.sums import fsync, write_sums
from vitscale.weights import sharded
from vitscale.weights.files import METADATA

RANKS_WITHIN_S = 1800.0  # after rank 0 all ranks must have written within this time
ON_ERROR_WITHIN_S = 20.0  # launchers kill the other ranks 30 s after one has ended
SLACK_BYTES = 2**20  # for state.json and its like


class Snapshot:
    """A copy of this rank's fragments, in memory that is used again, as the content of one safetensors file."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        live = self._live()
        self._head = sharded.header(live, {})
        size = sum(tensor.nbytes for tensor in live.values())
        self._data = torch.zeros(size, dtype=torch.uint8, pin_memory=engine.world.device.type == "cuda")
        self.num_bytes = len(self._head) + size

    def _live(self) -> dict[str, torch.Tensor]:
        """The fragments, the wider numbers first so that all are aligned, then as they lie in memory."""
        storages: dict[int, int] = {}

        def place(item: tuple[str, torch.Tensor]) -> tuple[int, int, int]:
            storage = item[1].untyped_storage().data_ptr()
            return -item[1].element_size(), storages.setdefault(storage, len(storages)), int(item[1].storage_offset())

        fragments = self._engine.fragments()
        return dict(sorted(((f"{f.name}@{f.start}/{kind}", t) for f in fragments for kind, t in f.tensors.items()), key=place))

    def take(self) -> None:
        """Copy everything; it is there when this returns."""
        start = 0
        for run in adjoining(self._live().values()):
            target = self._data[start : start + run.numel()]
            start += run.numel()
            if run.is_cuda:
                target.copy_(run, non_blocking=True)
            else:  # a plain memcpy: torch would wake its threads, and wait for them
                target.numpy()[:] = run.numpy()
        if self._data.is_pinned():
            torch.cuda.synchronize()

    def write(self, path: Path) -> str:
        """Write it, flushed to the disk; returns its SHA-256."""
        return sharded.write_file(path, self._head, [self._data], self._data.nbytes)


def adjoining(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The same memory in as few pieces as possible, as bytes: one large copy takes half as long as many small ones."""
    runs: list[torch.Tensor] = []
    for piece in (tensor.view(torch.uint8) for tensor in tensors):
        last = runs[-1] if runs else piece[:0]
        end = last.storage_offset() + last.numel()
        if runs and last.untyped_storage().data_ptr() == piece.untyped_storage().data_ptr() and end == piece.storage_offset():
            runs[-1] = last.as_strided((last.numel() + piece.numel(),), (1,))
        else:
            runs.append(piece)
    return runs


class Save(NamedTuple):
    """One checkpoint on its way."""

    final: Path
    state: TrainState  # a copy: training goes on with its own
    rank_bytes: list[int]

    @property
    def partial(self) -> Path:
        return self.final.with_name(f".{self.final.name}.partial")


class Saver:
    """Writes a run's checkpoints, one at a time. `with Saver(...)`; call every method on every rank."""

    def __init__(self, run: RunDir, engine: Engine, config: CheckpointConfig, keep_every: int) -> None:
        self._run, self._engine, self._world = run, engine, engine.world
        self._config, self._keep_every = config, keep_every
        self._snapshot = Snapshot(engine)
        self._whole = {WEIGHTS: "weight", **({} if engine.optim.ema_decay is None else {AVERAGED: "ema"})}
        self._thread: Thread | None = None
        self._problem = ""  # why the last save did not become a checkpoint
        self.times: dict[str, float] = {}  # how long training stood still for the last save, and writing the one before took

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:  # after an error: what the others have written may still make a checkpoint
            self._thread.join(ON_ERROR_WITHIN_S)

    def save(self, state: TrainState, last: bool) -> None:
        """Begin to write `checkpoints/step_XXXXXXXX`; the `last` one is waited for. A full disk is a warning until then."""
        begin = time.monotonic()
        self.settle(last=False)
        fault.at("save.begin")
        save = self._begin(state)
        if save:
            self._snapshot.take()
            fault.at("save.snapshot")
            self._thread = Thread(target=self._write, args=(save,), name="checkpoint", daemon=True)
            self._thread.start()
        self.times["checkpoint/blocked_s"] = time.monotonic() - begin
        if last:
            self.settle(last)

    def _begin(self, state: TrainState) -> Save | None:
        """What is to be written, all ranks together; None where there is no room for it."""
        world = self._world
        own = state.fingerprint, state.loss_sum, self._snapshot.num_bytes
        fingerprints, losses, sizes = zip(*world.gather(own), strict=True)
        total = {
            "fingerprint": sum(fingerprints) % 2**64,
            "loss_sum": math.fsum(losses),
            "loss_ranks": world.size,
            "num_updates": self._engine.num_updates,
        }
        now = dataclasses.replace(state, scores=dict(state.scores), bad_steps=list(state.bad_steps), **total)
        save = Save(self._run.checkpoints / state.name, now, list(sizes))
        if world.is_main:
            try:
                self._prepare(save)
            except OSError as error:
                self._fail(save, error)
        return None if world.broadcast(self._problem) else save

    def _prepare(self, save: Save) -> None:
        """Make the folder, if the disk will hold everything."""
        shutil.rmtree(save.partial, ignore_errors=True)
        needed, free = self.num_bytes(save.rank_bytes), shutil.disk_usage(self._run.path).free
        if free < needed:
            raise OSError(f"it takes {(needed - free) / 2**20:,.1f} MiB more than the {free / 2**20:,.1f} MiB that are free")
        (save.partial / "engine").mkdir(parents=True)

    def num_bytes(self, rank_bytes: list[int]) -> int:
        """What a checkpoint takes on the disk, at most."""
        weights = 4 * sum(shape.numel() for shape in self._engine.shapes.values())
        return sum(rank_bytes) + weights * len(self._whole) + SLACK_BYTES

    def _fail(self, save: Save, error: Exception) -> None:
        self._problem = f"{save.final}: not written: {error or repr(error)}; the checkpoints before it are as they were"
        say(f"warning: {self._problem}; the next save tries again")

    def settle(self, last: bool) -> None:
        """Wait for the save in flight; CheckpointError where the `last` did not become a checkpoint."""
        if self._thread:
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, ""
        with self._world.alone():
            if problem and last:
                raise CheckpointError(f"{problem}. Make room or mend that, then start again: it goes on from the newest")

    def _write(self, save: Save) -> None:
        """The thread."""
        begin = time.monotonic()
        try:
            write_share(self._snapshot, save.partial / "engine", self._world.rank)
            if self._world.is_main:
                self._complete(save, shares(save, RANKS_WITHIN_S))
        except Exception as error:
            self._fail(save, error)
            if self._world.is_main:
                shutil.rmtree(save.partial, ignore_errors=True)
        self.times["checkpoint/write_s"] = time.monotonic() - begin

    def _complete(self, save: Save, sums: dict[str, str]) -> None:
        """From all ranks' files to a checkpoint."""
        fault.at("save.shares")
        for note in (save.partial / "engine").glob("*.note"):
            note.unlink()
        metadata = {"format": "pt", METADATA: json.dumps(json.loads(self._run.model_info.read_text()))}
        with ExitStack() as stack:
            pieces = stored_pieces(save.partial / "engine", stack)
            for file, kind in self._whole.items():
                sums |= sharded.write(save.partial, file, self._engine.shapes, partial(whole, pieces, kind), metadata)
        fault.at("save.weights")
        (save.partial / "state.json").write_text(save.state.dump())
        for path in (self._run.model_info, self._run.recipe):
            shutil.copyfile(path, save.partial / path.name)
        write_sums(save.partial, sums)
        fault.at("save.sums")
        if save.final.exists():  # the same step, written again after a damaged successor was set aside
            shutil.rmtree(save.final)
        save.partial.rename(save.final)
        fsync(save.final.parent)
        fault.at("save.renamed")
        try:
            self._run.write_status(checkpoint=int(save.final.name.removeprefix("step_")))
            prune(save.final.parent, self._config, self._keep_every, save.state.scores)
        except OSError as error:  # it is written, and an old one that stays harms nothing
            say(f"warning: {save.final}: is complete, but tidying up failed ({error})")
        fault.at("save.pruned")


def write_share(snapshot: Snapshot, folder: Path, rank: int) -> None:
    """One rank's file, and beside it a note for rank 0: its SHA-256, or what went wrong."""
    path = folder / f"rank_{rank:05d}.safetensors"
    try:
        sha256 = snapshot.write(path)
        fault.at("save.fragments")
        replace_text(path.with_suffix(".note"), sha256)
    except OSError as error:
        path.unlink(missing_ok=True)  # a full disk has room for the note then
        replace_text(path.with_suffix(".note"), f"rank {rank}: {error}")
    fault.at("save.noted")


def shares(save: Save, within_s: float) -> dict[str, str]:
    """Wait for all ranks' notes: the SHA-256 of each file. OSError where a rank could not write, or did not."""
    deadline, ranks, pause_s = time.monotonic() + within_s, len(save.rank_bytes), 0.01
    while len(notes := sorted((save.partial / "engine").glob("rank_*.note"))) < ranks:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {len(notes)} of {ranks} processes have written their part within {within_s:.0f} s")
        time.sleep(pause_s := min(1.2 * pause_s, 0.5))  # who looks all the time seems to get on (vitscale/health.py)
    sums = {}
    for note, num_bytes in zip(notes, save.rank_bytes, strict=True):
        path, text = note.with_suffix(".safetensors"), note.read_text()
        if " " in text:
            raise OSError(text)
        if path.stat().st_size != num_bytes:
            raise OSError(f"{path}: {path.stat().st_size} bytes, {num_bytes} were written")
        sums[str(path.relative_to(save.partial))] = text
    return sums


def whole(pieces: dict[tuple[str, str], list[Piece]], kind: str, name: str) -> torch.Tensor:
    """One kind of one parameter, put together from all ranks' fragments; flat."""
    return torch.cat([piece.read(piece.start, piece.start + piece.length) for piece in pieces[name, kind]])
