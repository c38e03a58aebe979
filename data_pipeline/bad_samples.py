"""Images that cannot be used: what takes their place, and when there are too many."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from data_pipeline.config import BadSamplesConfig
from data_pipeline.draw import Purpose, words
from data_pipeline.errors import BadSampleError, DataError
from data_pipeline.remote import shown
from data_pipeline.stream import Loaded, Shards, where

SETTLED = 10_000  # images seen before the fraction of bad ones means something

Make = Callable[[Loaded, int, int], Any]  # (block, epoch, sample number)


class Skip(NamedTuple):
    """A slot whose own image could not be used; a line of the ledger."""

    epoch: int
    key: str
    shard: str
    reason: str
    replaced_by: str  # key


class BadSamples:
    """Applies a policy to what `make` makes of one rank's samples; safe for threads."""

    def __init__(self, config: BadSamplesConfig, shards: Shards, seed: int, make: Make) -> None:
        self.config, self.shards, self.seed, self.make = config, shards, seed, make
        self._bad: set[int] = set()
        self._lock = threading.Lock()

    def use(self, block: Loaded, epoch: int, sample: int) -> tuple[Any, Skip | None]:
        """What is made of the sample, or, when that raises BadSampleError and the policy is to replace, of another one.

        The candidates are drawn from the same source and follow from (seed, epoch, sample) alone, so they are the same on
        every layout. What could not be read is no bad sample: that error goes on.
        """
        try:
            return self.make(block, epoch, sample), None
        except BadSampleError as error:
            if self.config.policy == "fail":
                raise DataError(
                    f"{where(self.shards, sample)}: {error} (or go on with another image: data.bad_samples.policy=replace)"
                ) from error
            return self._replace(epoch, sample, str(error))

    def _replace(self, epoch: int, sample: int, reason: str) -> tuple[Any, Skip]:
        self._note(sample)
        first, count = self.shards.source_of(sample)
        for word in words(self.config.max_run, self.seed, Purpose.REPLACE, epoch, sample):
            other = first + int(word % count)
            try:
                made = self.make(self.shards.load([other]), epoch, other)
            except BadSampleError:
                self._note(other)
                continue
            shard = shown(self.shards.place(sample).url)
            return made, Skip(epoch, self.shards.key(sample), shard, reason, self.shards.key(other))
        raise DataError(
            f"{where(self.shards, sample)}: {reason}; and none of {self.config.max_run} other images drawn in its place can be "
            "used; look at the shards with `vitscale data verify`"
        )

    def _note(self, sample: int) -> None:
        with self._lock:
            self._bad.add(sample)
            first = last = sample
            while first - 1 in self._bad:
                first -= 1
            while last + 1 in self._bad:
                last += 1
        if last - first + 1 > self.config.max_run:
            raise DataError(
                f"{where(self.shards, sample)}: {last - first + 1} bad images in a row, data.bad_samples.max_run allows "
                f"{self.config.max_run}; a part of the shard is damaged: copy it anew, or raise the limit"
            )


def check_fraction(config: BadSamplesConfig, skipped: int, samples: int) -> None:
    """Not more images of all ranks were replaced than allowed, of those seen so far (counted as SETTLED at least)."""
    if skipped > config.max_fraction * max(samples, SETTLED):
        raise DataError(
            f"data.bad_samples.max_fraction: {skipped:,} of {samples:,} images could not be used, {config.max_fraction:.3%} "
            "are allowed; data_ledger.jsonl in the run directory names them; mend the shards, or raise the limit and go on"
        )
