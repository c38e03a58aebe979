"""What a run is judged by while it trains: held-out images, and few-shot accuracy on other data."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from data_pipeline.loader import Batch
from vitscale import fault
from vitscale.config import RunConfig
from vitscale.engine import Engine
from vitscale.evaluate import evaluate
from vitscale.fewshot import accuracies, extract
from vitscale.tally import Tally


class Verdict(NamedTuple):
    """Metrics by name, and what was counted of `data.val`, by prefix. Worthless when all ranks agreed to stop on the way."""

    scores: dict[str, float]
    tallies: dict[str, Tally]


class Validation(NamedTuple):
    """This rank's share of the images."""

    cfg: RunConfig
    val: Iterable[Batch] | None
    fewshot: Mapping[str, tuple[Iterable[Batch], Iterable[Batch]]]  # to learn from, to test on

    @property
    def is_empty(self) -> bool:
        return self.val is None and not self.fewshot

    def judge(self, engine: Engine) -> Verdict:
        """`eval/top1`, `eval/pets/5shot` and so on; `eval_ema/...` with averaged weights, if any. Call on every rank."""
        fault.at("eval.begin")
        verdict = Verdict({}, {})
        for prefix, averaged in (("eval", False), ("eval_ema", True))[: 1 if self.cfg.optim.ema_decay is None else 2]:
            with engine.evaluating(averaged):
                self._count(engine, prefix, verdict)
                self._probe(engine, prefix, verdict)
        fault.at("eval.end")
        return verdict

    def _count(self, engine: Engine, prefix: str, verdict: Verdict) -> None:
        if self.val is None:
            return
        tally = Tally(self.cfg.model.num_classes, engine.world.device)
        tally = evaluate(engine, self.val, self.cfg.data, tally, engine.dtype, engine.world)
        verdict.tallies[prefix] = tally
        if not engine.world.stopping:
            verdict.scores.update({f"{prefix}/{name}": value for name, value in tally.metrics.items()})

    def _probe(self, engine: Engine, prefix: str, verdict: Verdict) -> None:
        head = engine.module.get_submodule("head")
        for name, batches in self.fewshot.items():
            train, test = (extract(engine, head, part, self.cfg.data, engine.dtype, engine.world) for part in batches)
            if engine.world.stopping:
                return
            verdict.scores.update({f"{prefix}/{name}/{key}": value for key, value in accuracies(train, test).items()})
