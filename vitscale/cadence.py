"""The durations of a run in steps, and what must hold between them. Imports no torch."""

from dataclasses import dataclass

from vitscale.config import OptimConfig, RunConfig
from vitscale.duration import Duration
from vitscale.errors import RecipeError
from vitscale.schedule import Spans, learning_rate


@dataclass(frozen=True)
class Cadence:
    """The run's durations in steps; 0 = never."""

    total: int
    log: int
    eval: int
    save: int
    keep: int
    schedule: Spans

    @classmethod
    def of(cls, cfg: RunConfig, num_samples: int) -> "Cadence":
        def steps(duration: Duration) -> int:
            return duration.to_steps(cfg.train.global_batch, num_samples)

        total, schedule = steps(cfg.train.total), cfg.optim.schedule
        return cls(
            total=total,
            log=cfg.tracking.log_every,
            eval=max(1, steps(cfg.eval.every)) if cfg.eval.every else 0,
            save=max(1, steps(cfg.checkpoint.every)),
            keep=max(1, steps(cfg.checkpoint.keep_every)) if cfg.checkpoint.keep_every else 0,
            schedule=Spans(total, steps(schedule.warmup), steps(schedule.cooldown), max(1, steps(schedule.timescale))),
        )

    def check(self, cfg: RunConfig) -> None:
        """RecipeError where they do not fit together."""
        warmup, cooldown = self.schedule.warmup, self.schedule.cooldown
        if warmup + cooldown > self.total:
            raise RecipeError(
                f"optim.schedule: a warm-up of {warmup:,} steps and a cool-down of {cooldown:,} do not fit into a run of "
                f"{self.total:,} (train.total); shorten them, or lengthen the run"
            )
        if cfg.checkpoint.best and (not self.eval or (self.eval % self.save and self.save % self.eval)):
            raise RecipeError(
                f"checkpoint.best: {cfg.checkpoint.best} of a checkpoint is known where it was evaluated when it was saved; "
                f"eval.every is {self.eval or 'never'} and checkpoint.every {self.save} steps. Make one a multiple of the "
                "other, or take best away"
            )

    def learning_rate(self, step: int, optim: OptimConfig) -> float:
        """Of the update after so many steps."""
        return learning_rate(step, optim.lr, optim.schedule.end_lr, optim.schedule.name, self.schedule)
