"""What MLflow has of a run directory, and sending it the rest.

What was sent is noted in `.mlflow_sent` after the request. Sending it again, after a kill in between, changes nothing: a point
keeps the time of its line, tags and files are replaced, parameters and inputs are stored once.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

import psutil

from vitscale import fault
from vitscale.config import RunConfig
from vitscale.history import parse, read_log, whole_lines
from vitscale.recipe import flatten
from vitscale.rundir import RunDir, replace_text
from vitscale.tracking import connect, experiment_id, is_known, sqlite_path, tracking_uri, without_secrets

Item = TypeVar("Item")

LINES, METRICS, TEXTS = 40, 1000, 100  # in one request at most: MLflow's limits of metrics, and of parameters
TEXT_LENGTH = 6000
DIRECTORY_TAG = "vitscale.directory"


@dataclasses.dataclass
class Mark:
    """What MLflow has."""

    directory: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)  # names it wherever it is moved to
    path: str = ""  # where it was
    uri: str = ""
    run_id: str = ""
    metrics: int = 0  # bytes of metrics.jsonl
    attempts: int = 0
    files: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # below artifacts/: size and time of change

    @classmethod
    def read(cls, path: Path) -> "Mark":
        try:
            return cls(**json.loads((path / ".mlflow_sent").read_text()))
        except (OSError, ValueError, TypeError):  # none yet, or damaged: everything is sent again
            return cls()


def store_uri(cfg: RunConfig, run: RunDir) -> str:
    """Where the run is or will be: `tracking_uri`, but for a directory that was moved away from its SQLite store."""
    mark, uri = Mark.read(run.path), tracking_uri(cfg.tracking, cfg.runs)
    before = sqlite_path(mark.uri)
    moved = before is not None and before.exists() and not Path(mark.path).exists()
    return mark.uri if moved and uri == tracking_uri(None, cfg.runs) and "MLFLOW_TRACKING_URI" not in os.environ else uri


def left(run: RunDir) -> str:
    """What MLflow does not have yet: `lines of metrics: 3, files: 1`; "" = nothing."""
    mark = Mark.read(run.path)
    lines = run.metrics.read_bytes()[mark.metrics :].count(b"\n") if run.metrics.exists() else 0
    counts = {"lines of metrics": lines, "files": len(unsent(run, mark)), "starts": len(read_log(run.attempts)) - mark.attempts}
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count > 0)


def unsent(run: RunDir, mark: Mark) -> dict[str, list[int]]:
    """Files below `artifacts/` that MLflow lacks, with size and time of change. Hidden ones are being written."""
    found = {}
    for folder, folders, names in os.walk(run.artifacts):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (f"{folder}/{name}" for name in sorted(names) if not name.startswith(".")):
            stat, name = os.lstat(path), path.removeprefix(f"{run.artifacts}/")
            stamp = [stat.st_size, stat.st_mtime_ns]
            if S_ISREG(stat.st_mode) and mark.files.get(name) != stamp:
                found[name] = stamp
    return found


class Delivery:
    """Brings MLflow up to date, round by round; whatever MLflow raises, the next round goes on from there."""

    def __init__(self, cfg: RunConfig, run: RunDir) -> None:
        self._cfg, self._run, self.uri = cfg, run, store_uri(cfg, run)
        self.name = f"MLflow at {without_secrets(self.uri)}"
        self._client: Any = None
        self._status = ""

    def round(self, status: str) -> str:
        """Send what is new, then set the run's status; returns its id."""
        self._mark = Mark.read(self._run.path)
        if self._client is None:
            client = connect(self.uri)
            self._find_run(client)
            self._describe(client)
            self._client = client
        self._send_attempts()
        self._send_metrics()
        self._send_files()
        if status != self._status:
            set_status = self._client.update_run if status == "RUNNING" else self._client.set_terminated
            set_status(self._mark.run_id, status)
            self._status = status
        return self._mark.run_id

    def _note(self, **changes: Any) -> None:
        self._mark = dataclasses.replace(self._mark, **changes)
        replace_text(self._run.mlflow_sent, json.dumps(dataclasses.asdict(self._mark)))

    def _find_run(self, client: Any) -> None:
        """The one run of this directory: the noted one, else one that a killed start has made, else a new one."""
        note = self._run.mlflow_run_id
        if self._is_copy():  # it has a run of its own
            self._mark = Mark()
            note.unlink(missing_ok=True)
        self._note(path=str(self._run.path), uri=without_secrets(self.uri))
        run_id = note.read_text() if note.exists() else ""
        if not run_id or not is_known(client, run_id):
            experiment = experiment_id(client, self._cfg.tracking.experiment, self.uri)
            made = client.search_runs([experiment], f"tags.`{DIRECTORY_TAG}` = '{self._mark.directory}'")
            made_by = {
                "mlflow.user": psutil.Process().username(),
                "mlflow.source.name": "vitscale.train",
                "mlflow.source.type": "JOB",
            }
            tags = {DIRECTORY_TAG: self._mark.directory, **made_by}
            run_id = (made[0] if made else client.create_run(experiment, run_name=self._cfg.name, tags=tags)).info.run_id
            fault.at("tracking.created")
            replace_text(note, run_id)
        if run_id != self._mark.run_id:
            self._note(run_id=run_id, metrics=0, attempts=0, files={})

    def _is_copy(self) -> bool:
        """Of a directory that is still there."""
        there, here = Path(self._mark.path), self._run.path
        same = Mark.read(there).directory == self._mark.directory
        return bool(self._mark.path) and same and not there.samefile(here)

    def _describe(self, client: Any) -> None:
        """Parameters, those that are not there yet: MLflow lets none change. Tags, and where the weights are from."""
        from mlflow.entities import Param, RunTag

        run_id, tracking = self._mark.run_id, self._cfg.tracking
        known = client.get_run(run_id).data.params
        values = flatten(self._cfg.model_dump(mode="json", by_alias=True))
        new = [Param(key, without_secrets(str(value))[:TEXT_LENGTH]) for key, value in values.items() if key not in known]
        for piece in pieces(new, TEXTS):
            client.log_batch(run_id, params=piece)
        tags = {**tracking.tags, "mlflow.note.content": self._cfg.about or "", **self._origin(client)}
        if tracking.parent:
            tags["mlflow.parentRunId"] = tracking.parent
        client.log_batch(run_id, tags=[RunTag(key, without_secrets(text)) for key, text in tags.items()])

    def _origin(self, client: Any) -> dict[str, str]:
        """Tags that name the model which the weights are from; where the store has it, it and its run name this run, too."""
        from mlflow.entities import LoggedModelInput
        from mlflow.exceptions import MlflowException

        path = self._run.init / "origin.json"
        if not path.exists():
            return {}
        origin = json.loads(path.read_text())
        try:
            if origin["resolved"].startswith("models:/"):
                name, _, number = origin["resolved"].removeprefix("models:/").rpartition("/")
                source = client.get_model_version(name, number).source if name else number
                client.log_inputs(self._mark.run_id, models=[LoggedModelInput(source.removeprefix("models:/"))])
            if origin["run_id"]:
                client.set_tag(origin["run_id"], f"vitscale.origin_of.{self._mark.run_id}", self._cfg.name)
        except MlflowException as error:
            if error.get_http_status_code() >= 500:
                raise  # of another store, or another user's, it stays without the link
        run_id = {"vitscale.origin.run_id": origin["run_id"]} if origin["run_id"] else {}
        return {"vitscale.origin.model": without_secrets(origin["resolved"]), **run_id}

    def _send_attempts(self) -> None:
        """Each start as a tag, what it trained on as inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        for number, attempt in list(enumerate(read_log(self._run.attempts)))[self._mark.attempts :]:
            data = [(InputTag("mlflow.data.context", entry.pop("context")), Dataset(**entry)) for entry in attempt.pop("data")]
            inputs = [DatasetInput(dataset, [context]) for context, dataset in data]
            self._client.log_inputs(self._mark.run_id, datasets=inputs)
            self._client.set_tag(self._mark.run_id, "mlflow.source.git.commit", attempt["commit"].partition(" ")[0])
            self._client.set_tag(self._mark.run_id, f"restart.{number}", without_secrets(json.dumps(attempt))[:TEXT_LENGTH])
            self._note(attempts=number + 1)

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        if not self._run.metrics.exists():  # killed before the first
            return
        with self._run.metrics.open("rb") as log:
            os.fsync(log.fileno())  # the mark must not outlive, in a power cut, the lines that it counts
            log.seek(self._mark.metrics)
            lines = whole_lines(log.read()).splitlines(keepends=True)
        for piece in pieces(lines, LINES):
            points = [point for line in piece if (point := parse(line))]
            metrics = [Metric(key, value, p["time_ms"], p["step"]) for p in points for key, value in p["metrics"].items()]
            for batch in pieces(metrics, METRICS):
                self._client.log_batch(self._mark.run_id, metrics=batch)
            fault.at("tracking.sent")
            self._note(metrics=self._mark.metrics + sum(map(len, piece)))

    def _send_files(self) -> None:
        sent: dict[str, list[int]] = {}
        try:
            for name, stamp in unsent(self._run, self._mark).items():
                folder = str(Path(name).parent)
                self._client.log_artifact(self._mark.run_id, str(self._run.artifacts / name), None if folder == "." else folder)
                sent[name] = stamp
        finally:  # once: the mark names all files, and there may be thousands
            if sent:
                self._note(files=self._mark.files | sent)


def pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
