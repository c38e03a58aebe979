"""A run's history: first into metrics.jsonl, from there to MLflow in the background. Training never waits for MLflow.

`metrics.jsonl` is a write-ahead log. A second file notes how much of it MLflow has; sending the same line twice stores it
once, because a line carries its own time. After a rollback to a checkpoint the replayed steps find their lines already
there and keep them, so that no point is doubled.
"""

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

from vitscale import fault, recipe
from vitscale.config import RunConfig, TrackingConfig
from vitscale.errors import TrackingError
from vitscale.progress import say
from vitscale.rundir import RunDir, replace_text

SEND_EVERY_S = 3.0
CLOSE_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0  # after a stop signal: launchers kill 30 s after it
BATCH = 500  # metrics in one request; MLflow's limit is 1,000
PARAM_BATCH = 100  # MLflow's limit
PARAM_LENGTH = 6000


def tracking_uri(config: TrackingConfig | None, runs: str | Path) -> str:
    """The recipe's server, else MLFLOW_TRACKING_URI, else SQLite at an absolute path under the runs folder."""
    stated = config.uri if config else None
    return stated or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(runs).expanduser().absolute() / 'mlflow.db'}"


def connect(uri: str, create: bool = True) -> Any:
    """An MLflow client that gives up soon: whoever asks is waiting, or has a log to try again from.

    With `create` false a SQLite store that is not there is an error instead of a new, empty one.
    """
    store = sqlite_path(uri)
    if store and not store.exists() and not create:
        raise TrackingError(f"no MLflow store at {uri}; set MLFLOW_TRACKING_URI, or run where the `runs` folder is")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if store:
        store.parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def experiment_id(client: Any, name: str, uri: str) -> str:
    """The experiment of this name, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    # A database has no place of its own for files: give it an absolute one, so that `pull` works from any directory.
    store = sqlite_path(uri)
    files = (store.parent / "mlartifacts").absolute().as_uri() if store else None
    return client.create_experiment(name, artifact_location=files)


class Tracker:
    """The history of one run, kept by rank 0; on other ranks, and after `close`, nothing happens."""

    def __init__(self, cfg: RunConfig, run: RunDir, active: bool, parent_run_id: str | None) -> None:
        """`parent_run_id`: the run whose weights this one starts from."""
        self._cfg, self._run, self._active, self._parent = cfg, run, active, parent_run_id
        self.uri = tracking_uri(cfg.tracking, cfg.runs)
        self._stop, self._error = threading.Event(), ""

    def __enter__(self) -> Self:
        if self._active:
            self._seen = {(line["step"], line["kind"]) for line in read_log(self._run.metrics)}
            self._log, self._unwritten = self._run.metrics.open("ab", buffering=0), b""
            self._thread = threading.Thread(target=self._send_until_stopped, name="tracking", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._active:
            self.close("FAILED" if kind else "KILLED")

    def log(self, step: int, kind: str, metrics: dict[str, float], samples: str | None = None) -> None:
        """Note metrics of a step; `kind` names the set (train, eval), `samples` is the running hash of sample ids."""
        if not self._active or (step, kind) in self._seen:
            return
        self._seen.add((step, kind))
        line = {"step": step, "kind": kind, "time_ms": int(time.time() * 1000), "metrics": metrics}
        self._unwritten += (json.dumps({**line, "samples": samples} if samples else line) + "\n").encode()
        self._write()

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._log.write(self._unwritten) or 0 :]
        except OSError as error:
            say(f"warning: {self._run.metrics}: {error.strerror}; training goes on, the rest follows when there is room")

    def close(self, status: str) -> None:
        """Send what is left, within a bound, and set the run's status: FINISHED, FAILED or KILLED."""
        if not self._active:
            return
        self._active = False
        self._write()
        self._log.close()
        self._stop.set()
        within = CLOSE_WITHIN_S if status == "FINISHED" else STOP_WITHIN_S
        self._thread.join(within)
        try:
            if self._thread.is_alive() or self._error:
                raise TrackingError(self._error or f"no answer within {within:.0f} s")
            connect(self.uri).set_terminated(self._run.mlflow_run_id.read_text(), status)
        except Exception as error:  # whatever MLflow raises, the training is done and its history is on disk
            say(
                f"warning: MLflow at {self.uri} does not have the whole history ({error}); to send it: "
                f"vitscale sync {self._run.path}"
            )

    def _send_until_stopped(self) -> None:
        """The thread: try, wait, try again; the last try comes after the stop."""
        client, started = None, False
        while True:
            stopping = self._stop.wait(SEND_EVERY_S if started else 0)
            try:
                client = client or connect(self.uri)
                started = started or bool(start_run(client, self._cfg, self._run, self._parent))
                send(client, self._run)
                self._error = ""
            except Exception as error:
                if not self._error:
                    say(f"warning: MLflow at {self.uri}: {error}; training goes on, the history is kept in {self._run.metrics}")
                self._error = str(error)
                self._stop.wait(SEND_EVERY_S)
            if stopping:
                return


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics log. A torn last line, from a kill, is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def last_metrics(path: Path) -> dict[str, float]:
    """The newest value of every metric in a log."""
    latest: dict[str, float] = {}
    for line in sorted(read_log(path), key=lambda line: line["step"]):
        latest.update(line["metrics"])
    return latest


def start_run(client: Any, cfg: RunConfig, run: RunDir, parent_run_id: str | None) -> str:
    """The one MLflow run of a run directory: the one noted there, else a new one."""
    if run.mlflow_run_id.exists():
        run_id = run.mlflow_run_id.read_text()
        if client.get_run(run_id).info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        return run_id
    experiment = experiment_id(client, cfg.tracking.experiment, tracking_uri(cfg.tracking, cfg.runs))
    tags = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
    run_id = client.create_run(experiment, run_name=cfg.name, tags=tags).info.run_id
    replace_text(run.mlflow_run_id, run_id)
    _log_params(client, run_id, cfg)
    client.log_artifact(run_id, str(run.recipe))
    return run_id


def _log_params(client: Any, run_id: str, cfg: RunConfig) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(cfg.model_dump(mode="json", by_alias=True))]
    for start in range(0, len(params), PARAM_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAM_BATCH])


def flatten(values: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """{"a": {"b": 1}} -> [("a.b", 1)]; what is not set is left out."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += flatten(value, f"{prefix}{key}.")
        elif value is not None:
            pairs.append((prefix + key, value))
    return pairs


def send(client: Any, run: RunDir) -> None:
    """Send the lines that MLflow does not have yet."""
    from mlflow.entities import Metric

    mark = run.path / ".mlflow_sent"
    sent = int(mark.read_text()) if mark.exists() else 0
    with run.metrics.open("rb") as log:
        os.fsync(log.fileno())  # the mark must not outlive, in a power cut, the lines that it counts
        log.seek(sent)
        content = log.read()
    whole = content[: content.rfind(b"\n") + 1]
    lines = [json.loads(line) for line in whole.splitlines()]
    metrics = [Metric(key, value, line["time_ms"], line["step"]) for line in lines for key, value in line["metrics"].items()]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run.mlflow_run_id.read_text(), metrics=metrics[start : start + BATCH])
    fault.at("tracking.sent")
    replace_text(mark, str(sent + len(whole)))


def parent_run_id(run: RunDir) -> str | None:
    """The MLflow run whose weights a run directory started from."""
    origin = run.init / "origin.json"
    return json.loads(origin.read_text())["run_id"] if origin.exists() else None


def sync(path: Path) -> str:
    """Send what MLflow lacks of a run directory; returns the run's id."""
    if not (path / "recipe.yaml").is_file():
        raise TrackingError(f"{path}: not a run directory (no recipe.yaml in it)")
    cfg = recipe.load(path / "recipe.yaml")
    cfg = cfg.model_copy(update={"runs": str(path.absolute().parent), "name": path.absolute().name})
    run, uri = RunDir(cfg), tracking_uri(cfg.tracking, cfg.runs)
    run.check_free()  # a training sends its history itself
    try:
        client = connect(uri)
        run_id = start_run(client, cfg, run, parent_run_id(run))
        send(client, run)
        client.set_terminated(run_id, "FINISHED" if run.status.get("state") == "finished" else "KILLED")
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}: {error}; nothing is lost, try again when it is back") from error
    return run_id
