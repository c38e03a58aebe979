"""The MLflow store of a run: where it is, a client for it that gives up soon, and what its errors mean. Imports no torch."""

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

from vitscale.config import TrackingConfig
from vitscale.errors import TrackingError, UserError

PAGE = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's page for training, not for language models
FILES = "mlartifacts"  # beside a SQLite store
REASONS = {  # what MLflow's error says -> what to do
    "UNAUTHENTICATED|error code 401|401 Client Error": "the server wants a user name and password, or not these; set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "PERMISSION_DENIED|error code 403|403 Client Error": "the server does not let this user do that; ask its owner for EDIT "
    "permission, or name an experiment of your own with tracking.experiment=...",
}


def tracking_uri(config: TrackingConfig | None, runs: str | Path) -> str:
    """The recipe's server, else MLFLOW_TRACKING_URI, else SQLite at an absolute path under the runs folder."""
    stated = config.uri if config else None
    return stated or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path(runs).expanduser().absolute() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The store in a file; what a URL would take for something else is quoted."""
    return "sqlite:///" + re.sub("[%?#]", lambda found: quote(found[0]), str(path))


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    return Path(unquote(uri.removeprefix("sqlite:///"))) if uri.startswith("sqlite:///") else None


def connect(uri: str, create: bool = True) -> Any:
    """An MLflow client that gives up soon: whoever asks is waiting, or has a log to try again from.

    With `create` false a SQLite store that is not there is an error instead of a new, empty one.
    """
    store = sqlite_path(uri)
    if store and not store.exists() and not create:
        raise TrackingError(f"no MLflow store at {without_secrets(uri)}; set MLFLOW_TRACKING_URI, or run where `runs` is")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would print the password in it
    import mlflow

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if store and not store.exists():
        _create(store)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def _create(store: Path) -> None:
    """Make a SQLite store elsewhere, then rename it: a kill, or another job, amid MLflow's tables would break it for good."""
    import mlflow

    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_name(f".{store.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if store.exists():
            return
        folder = store.with_name(f".{store.name}.new")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        mlflow.MlflowClient(sqlite_uri(folder / store.name)).search_experiments(max_results=1)
        (folder / store.name).rename(store)
        folder.rmdir()


def experiment_id(client: Any, name: str, uri: str) -> str:
    """The experiment of this name, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    # A database has no place of its own for files: give it an absolute one, so that `pull` works from any directory.
    store = sqlite_path(uri)
    files = (store.parent / FILES).absolute().as_uri() if store else None
    return client.create_experiment(name, artifact_location=files, tags=PAGE)


def check_place(files_uri: str, uri: str) -> None:
    """TrackingError where the files of a run are looked for beside a SQLite store that is no longer there."""
    store, (before, beside, _) = sqlite_path(uri), unquote(urlparse(files_uri).path).partition(f"/{FILES}/")
    if store and beside and Path(before).resolve() != store.parent.resolve():
        raise TrackingError(
            f"{store}: was moved, and MLflow remembers that its files are in {before}; link that to {store.parent}, "
            "or move it back"
        )


def is_known(client: Any, run_id: str) -> bool:
    """Whether the store has this run; TrackingError where somebody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.get_http_status_code() == 404:  # another store, or an emptied one
            return False
        raise
    check_place(info.artifact_uri, client.tracking_uri)
    if info.lifecycle_stage == "deleted":
        raise TrackingError(f"run {run_id} is deleted there; `mlflow runs restore --run-id {run_id}` brings it back")
    return True


def reason(error: Exception) -> str:
    """What went wrong and what to do, in one line without passwords."""
    text = without_secrets(" ".join(str(error).split()))
    coded = f"{getattr(error, 'error_code', '')} {text}"
    if known := [advice for pattern, advice in REASONS.items() if re.search(pattern, coded)]:
        return known[0]
    if caused := re.search(r"""Caused by \w+\(["'](?:\w+\(.*?\): )?(.*?)["']\)\)""", text):
        return f"no answer ({caused[1]}); start or mend the server, or correct tracking.uri or MLFLOW_TRACKING_URI"
    return text[:500]


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """MLflow's exceptions come with the scheme (REST, SQL, files): make them one of ours."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {without_secrets(uri)}: {reason(error)}; nothing is changed or lost, try again when that is mended"
        ) from error


def without_secrets(text: str) -> str:
    """Its URLs without user, password and, under http(s), the query, which may sign."""
    text = re.sub(r"(\w+://)[^\s/?#]*@", r"\1", text)
    return re.sub(r"(https?://[^\s?#\"'<>]*)[?#][^\s\"<>]*?(?=[])}',.;:]*([\s\"<>]|$))", r"\1", text)
