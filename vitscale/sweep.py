"""A run for each combination of values, under one parent in MLflow, and which of them is best."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from vitscale import recipe
from vitscale.errors import RecipeError
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
        self.configs = [recipe.load(path, trial.overrides) for trial in self.trials]  # an error before anything starts

    def _trial(self, fixed: Sequence[str], combination: Sequence[tuple[str, str]]) -> Trial:
        parts = {key: f"{key.rpartition('.')[2]}{word.partition('=')[2]}" for key, word in combination}
        short = {key: re.sub(r"[^A-Za-z0-9.+-]+", "", part) for key, part in parts.items()}
        name = "-".join([self.cfg.name, *short.values()])
        group = "-".join([self.cfg.name, *(part for key, part in short.items() if key != "seed")])
        return Trial(name, [*fixed, *(word for _, word in combination), f"name={name}"], group)

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
        """Tell the parent run which was best."""
        if not (ranking := self.ranking(metric)):
            known = sorted({name for _, status in self._statuses() for name in status["metrics"]})
            raise RecipeError(f"--metric {metric}: no run has it; they have {', '.join(known) or 'none'}")
        group, scores = ranking[0]
        with mlflow_errors(self._uri):
            client, run_id = connect(self._uri), self.begin()
            client.set_tag(run_id, "sweep.best", group)
            client.log_metric(run_id, f"best/{metric}", fmean(scores))
            client.set_terminated(run_id)

    @property
    def _uri(self) -> str:
        return tracking_uri(self.cfg.tracking, self.cfg.runs)

    def ranking(self, metric: str) -> list[tuple[str, list[float]]]:
        """The scores of all seeds by group, best mean first: the lowest of a loss, else the highest."""
        groups: dict[str, list[float]] = {}
        for trial, status in self._statuses():
            if metric in status.get("metrics", {}) and status["state"] == "finished":
                groups.setdefault(trial.group, []).append(status["metrics"][metric])
        return sorted(groups.items(), key=lambda pair: fmean(pair[1]), reverse=not metric.endswith("loss"))

    def is_finished(self) -> bool:
        return all(status.get("state") == "finished" for _, status in self._statuses())

    def _statuses(self) -> Iterator[tuple[Trial, dict]]:
        return ((trial, RunDir(cfg).status) for trial, cfg in zip(self.trials, self.configs, strict=True))

    def lines(self, metric: str) -> Iterator[str]:
        """A table: mean and standard deviation over seeds, then what is not finished, or else which is best."""
        width = max(len(trial.name) for trial in self.trials)
        yield f"{'':{width}}  {metric}"
        ranking = self.ranking(metric)
        for group, scores in ranking:
            spread = f" +- {stdev(scores):.4f} of {len(scores)}" if len(scores) > 1 else ""
            yield f"{group:{width}}  {fmean(scores):.4f}{spread}"
        for trial, status in self._statuses():
            if status.get("state") != "finished":
                yield f"{trial.name:{width}}  {status.get('state', 'not started')}"
        if ranking and self.is_finished():
            yield f"best: {ranking[0][0]}"


def _choices(word: str) -> tuple[str, list[str]]:
    """("optim.lr", ["optim.lr=0.01", "optim.lr=0.03"]) of `optim.lr=[0.01,0.03]`; one word of a single value."""
    key, _, _ = word.partition("=")
    values = recipe.parse_overrides([word])
    for part in key.split("."):
        values = values[part]
    options = values if isinstance(values, list) else None
    return key, [f"{key}={json.dumps(value)}" for value in options] if options else [word]
