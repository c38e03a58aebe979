"""A run for each combination of values, under one parent in MLflow, and which of them is best."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitscale import recipe
from vitscale.errors import RecipeError
from vitscale.rundir import RunDir, replace_text
from vitscale.tracking import connect, experiment_id, mlflow_errors, tracking_uri


class Trial(NamedTuple):
    """One of the runs: its name and what is changed in the recipe."""

    name: str
    overrides: list[str]


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
        short = (
            re.sub(r"[^A-Za-z0-9.+-]+", "", f"{key.rpartition('.')[2]}{word.partition('=')[2]}") for key, word in combination
        )
        name = "-".join([self.cfg.name, *short])
        return Trial(name, [*fixed, *(word for _, word in combination), f"name={name}"])

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
        trial, score = self.ranking(metric)[0]
        with mlflow_errors(self._uri):
            client, run_id = connect(self._uri), self.begin()
            client.set_tag(run_id, "sweep.best", trial.name)
            client.log_metric(run_id, f"best/{metric}", score)
            client.set_terminated(run_id)

    @property
    def _uri(self) -> str:
        return tracking_uri(self.cfg.tracking, self.cfg.runs)

    def ranking(self, metric: str) -> list[tuple[Trial, float]]:
        """The finished runs that have this metric, best first: the lowest of a loss, else the highest."""
        found = [
            (trial, status["metrics"][metric]) for trial, status in self._statuses() if metric in status.get("metrics", {})
        ]
        return sorted(found, key=lambda pair: pair[1] if metric.endswith("loss") else -pair[1])

    def _statuses(self) -> Iterator[tuple[Trial, dict]]:
        for trial, cfg in zip(self.trials, self.configs, strict=True):
            status = RunDir(cfg).status
            yield trial, status if status.get("state") == "finished" else {"state": status.get("state", "not started")}

    def lines(self, metric: str) -> Iterator[str]:
        """A table of all runs, then the best."""
        ranking, states = self.ranking(metric), {trial.name: status["state"] for trial, status in self._statuses()}
        width = max(map(len, states))
        yield f"{'':{width}}  {metric}"
        for trial, score in ranking:
            yield f"{trial.name:{width}}  {score:.4f}"
            del states[trial.name]
        yield from (f"{name:{width}}  {state}" for name, state in states.items())
        if ranking and not states:
            yield f"best: {ranking[0][0].name}"


def _choices(word: str) -> tuple[str, list[str]]:
    """("optim.lr", ["optim.lr=0.01", "optim.lr=0.03"]) of `optim.lr=[0.01,0.03]`; one word of a single value."""
    key, _, _ = word.partition("=")
    values = recipe.parse_overrides([word])
    for part in key.split("."):
        values = values[part]
    options = values if isinstance(values, list) else None
    return key, [f"{key}={json.dumps(value)}" for value in options] if options else [word]
