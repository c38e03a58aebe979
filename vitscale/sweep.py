"""A run for each combination of values, under one parent in MLflow, and which of them is best."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from vitscale import recipe
from vitscale.errors import RecipeError
from vitscale.publish import PUBLISHED
from vitscale.rundir import RunDir, replace_text
from vitscale.tracking import connect, experiment_id, mlflow_errors, tracking_uri


class Trial(NamedTuple):
    """One of the runs: its name, what is changed in the recipe, and what it has in common with runs of other seeds."""

    name: str
    overrides: list[str]
    group: str


class Sweep:
    """The runs of a recipe and words of which some name several values: `optim.lr=[0.01,0.03]`.

    A key whose own value is a list takes a list of lists. The same words are the same sweep, also after a restart.
    """

    def __init__(self, path: str, words: Sequence[str]) -> None:
        choices = [_choices(word) for word in words]
        fixed = [options[0] for _, options in choices if len(options) == 1]
        self.cfg = recipe.load(path, fixed)
        several = [[(key, option) for option in options] for key, options in choices if len(options) > 1]
        if not several:
            raise RecipeError("sweep: no key with several values; give at least one, e.g. 'optim.lr=[0.01,0.03]'")
        self.name = "-".join([self.cfg.name, "sweep", *(key.rpartition(".")[2] for (key, _), *_ in several)])
        self.folder = Path(self.cfg.runs).expanduser().absolute() / self.name
        self.trials = [self._trial(fixed, combination) for combination in itertools.product(*several)]
        for given, count in (Counter(key for key, _ in choices) + Counter(trial.name for trial in self.trials)).items():
            if count > 1:
                raise RecipeError(f"sweep: {given} is there {count} times; give each key once, and values that differ")
        self.configs = [recipe.load(path, trial.overrides) for trial in self.trials]  # an error before anything starts
        self.seeds = Counter(trial.group for trial in self.trials)
        for cfg in self.configs:
            RunDir(cfg).check(cfg)

    def _trial(self, fixed: Sequence[str], combination: Sequence[tuple[str, str]]) -> Trial:
        """A published model is called after its trial; the best gets the recipe's own alias in the end."""
        parts = {key: f"{key.rpartition('.')[2]}{word.partition('=')[2]}" for key, word in combination}
        short = {key: re.sub(r"[^A-Za-z0-9.-]+", "", part) for key, part in parts.items()}
        values = "-".join(short.values())
        own = [f"name={self.cfg.name}-{values}"]
        if self.cfg.publish:
            own.append(f"publish.alias={self.cfg.publish.alias}-{values.replace('.', '_')}")
        group = "-".join([self.cfg.name, *(part for key, part in short.items() if key != "seed")])
        return Trial(f"{self.cfg.name}-{values}", [*fixed, *(word for _, word in combination), *own], group)

    def begin(self) -> str:
        """The id of the parent run in MLflow, made where there is none; TrackingError where MLflow does not answer."""
        note = self.folder / "mlflow_run_id"
        if not note.exists():
            uri = self._uri
            with mlflow_errors(uri):
                client = connect(uri)
                experiment = experiment_id(client, self.cfg.tracking.experiment, uri)
                parent = client.create_run(experiment, run_name=self.name, tags={"mlflow.source.name": "vitscale.sweep"})
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(note, parent.info.run_id)
        return note.read_text()

    def end(self, metric: str) -> None:
        """Tell the parent run which was best, and give its model the recipe's alias."""
        if not (ranking := self.ranking(metric)):
            known = sorted({name for _, status in self._statuses() for name in status.get("metrics", {})})
            raise RecipeError(f"--metric {metric}: no finished run has it; they have {', '.join(known) or 'none'}")
        group, scores = ranking[0]
        if not math.isfinite(fmean(scores)):
            return
        model = self._model(group)
        with mlflow_errors(self._uri):
            client, run_id = connect(self._uri), self.begin()
            client.set_tag(run_id, "sweep.best", group)
            client.log_metric(run_id, f"best/{metric}", fmean(scores))
            if self.cfg.publish:
                name, number = model
                client.set_registered_model_alias(name, self.cfg.publish.alias, number)
            client.set_terminated(run_id)

    def _model(self, group: str) -> tuple[str, str]:
        """Registered name and version of its first run that has finished; two empty texts where none is to be published."""
        if not self.cfg.publish:
            return "", ""
        runs = (RunDir(cfg) for trial, cfg in zip(self.trials, self.configs, strict=True) if trial.group == group)
        first = next(run for run in runs if run.status.get("state") == "finished")
        version = json.loads((first.path / PUBLISHED).read_text())["last"]["version"]
        name, _, number = version.removeprefix("models:/").rpartition("/")
        return name, number

    @property
    def _uri(self) -> str:
        return tracking_uri(self.cfg.tracking, self.cfg.runs)

    def ranking(self, metric: str) -> list[tuple[str, list[float]]]:
        """The scores of all seeds by group, best mean first (of a loss the lowest).

        After those that have all their seeds come the others, and then what is not finite.
        """
        groups: dict[str, list[float]] = {}
        for trial, status in self._statuses():
            if metric in status.get("metrics", {}) and status["state"] == "finished":
                groups.setdefault(trial.group, []).append(status["metrics"][metric])
        sign = 1 if metric.endswith("loss") else -1

        def key(pair: tuple[str, list[float]]) -> tuple[bool, bool, float]:
            group, mean = pair[0], fmean(pair[1])
            finite = math.isfinite(mean)
            return not finite, len(pair[1]) < self.seeds[group], sign * mean if finite else 0.0

        return sorted(groups.items(), key=key)

    @property
    def states(self) -> dict[str, str]:
        """Of its runs, by name."""
        return {trial.name: status.get("state", "not started") for trial, status in self._statuses()}

    def has_ended(self) -> bool:
        """Whether all its runs are finished or have failed."""
        return {*self.states.values()} <= {"finished", "failed"}

    def _statuses(self) -> Iterator[tuple[Trial, dict]]:
        return ((trial, RunDir(cfg).status) for trial, cfg in zip(self.trials, self.configs, strict=True))

    def lines(self, metric: str) -> Iterator[str]:
        """A table: mean and standard deviation over seeds, then what is not finished; at the end which is best."""
        width = max(len(trial.name) for trial in self.trials)
        yield f"{'':{width}}  {metric}"
        ranking = self.ranking(metric)
        for group, scores in ranking:
            spread = f" +- {deviation(scores):.4f}" if len(scores) > 1 else ""
            count = f" of {len(scores)}" if self.seeds[group] > 1 else ""
            missing = f", {self.seeds[group] - len(scores)} missing" if len(scores) < self.seeds[group] else ""
            yield f"{group:{width}}  {fmean(scores):.4f}{spread}{count}{missing}"
        for name, state in self.states.items():
            if state != "finished":
                yield f"{name:{width}}  {state}"
        if ranking and self.has_ended() and math.isfinite(fmean(ranking[0][1])):
            yield f"best: {ranking[0][0]}"


def deviation(scores: Sequence[float]) -> float:
    """Over seeds; NaN where one is not finite."""
    return stdev(scores) if all(map(math.isfinite, scores)) else math.nan


def _choices(word: str) -> tuple[str, list[str]]:
    """("optim.lr", ["optim.lr=0.01", "optim.lr=0.03"]) of `optim.lr=[0.01,0.03]`; one word of a single value."""
    key, _, _ = word.partition("=")
    values = recipe.parse_overrides([word])
    for part in key.split("."):
        values = values[part]
    options = values if isinstance(values, list) else None
    return key, [f"{key}={json.dumps(value)}" for value in options] if options else [word]
