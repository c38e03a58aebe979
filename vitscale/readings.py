"""The numbers of the steps just made. They reach the host one step late, so that no step waits for its own."""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import torch

from data_pipeline.loader import Batch
from data_pipeline.order import Slots, fingerprint
from vitscale.state import TrainState
from vitscale.world import World

HASH_STEPS = 64  # hashed together, at most


class Reading:
    """This rank's loss and the global norm of the gradient, on their way to the host."""

    def __init__(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        self._values, self._event = (loss, grad_norm), None
        if loss.is_cuda:
            on_host = torch.empty(2, pin_memory=True).copy_(torch.stack(self._values), non_blocking=True)
            self._values, self._event = (on_host[0], on_host[1]), torch.cuda.Event()
            self._event.record()

    def read(self) -> tuple[float, float]:
        if self._event is not None:
            self._event.synchronize()
        loss, grad_norm = self._values
        return float(loss), float(grad_norm)


class Settled(NamedTuple):
    """A step that counts, whether its update was applied or not."""

    step: int  # it ended as this number
    batch: Batch  # this rank's share
    loss: float  # of this rank's share
    grad_norm: float  # the same on all ranks; not finite where nothing was applied, whatever rank that was due to


class UnderWay(NamedTuple):
    """A step whose numbers are not read yet, and where the state stood before it."""

    reading: Reading
    batch: Batch | None
    step: int
    samples: int


class Readings:
    """Takes in what steps have found. Call every method on every rank."""

    def __init__(self, world: World, global_batch: int) -> None:
        self.world, self._global_batch = world, global_batch
        self._under_way = deque[UnderWay]()
        self._not_hashed = list[tuple[int, Slots]]()
        self.latest = self.grad_norm = math.nan

    def add(self, reading: Reading, batch: Batch | None, state: TrainState) -> None:
        """A step was made, this rank's share of it from this batch; None: it was asked to stop, and had none."""
        self._under_way.append(UnderWay(reading, batch, state.step, state.samples))
        state.step += 1
        state.samples += self._global_batch

    def settle(self, state: TrainState, keep: int) -> list[Settled]:
        """Read all but the newest `keep`; those that are not finite stay out of the mean.

        A step that a rank had no batch for is undone by all, with those after it, and all are `stopping`. Its norm is not
        finite, and the norm is the same on all ranks: in no other case do they have to ask each other.
        """
        settled = []
        while len(self._under_way) > keep:
            reading, batch, step, samples = self._under_way.popleft()
            loss, grad_norm = reading.read()
            if not math.isfinite(grad_norm) and self.world.any(batch is None):
                state.step, state.samples, self.world.stopping = step, samples, True
                self._under_way.clear()
                break
            assert batch
            settled.append(Settled(step + 1, batch, loss, grad_norm))
            self._take_in(settled[-1], state)
        if len(self._not_hashed) >= HASH_STEPS:
            self.hash(state)
        return settled

    def _take_in(self, made: Settled, state: TrainState) -> None:
        self.latest, self.grad_norm = made.loss, made.grad_norm
        first = (made.step - 1) * self._global_batch + self.world.rank * len(made.batch.labels_B)
        self._not_hashed.append((first, made.batch.slots))
        if math.isfinite(made.grad_norm):
            state.loss_sum += made.loss
            state.loss_steps += 1

    def hash(self, state: TrainState) -> None:
        """Bring the fingerprint up to date with what is settled: for many steps at once, which costs as much as for one."""
        if self._not_hashed:
            positions = np.concatenate([np.arange(first, first + len(slots.samples)) for first, slots in self._not_hashed])
            slots = Slots(*(np.concatenate(columns) for columns in zip(*(slots for _, slots in self._not_hashed), strict=True)))
            state.fingerprint = (state.fingerprint + fingerprint(slots, positions)) % 2**64
            self._not_hashed.clear()
