"""The files of a logged model in MLflow, one by one, wherever its store keeps them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitscale.sums import sha256

FILE_WITHIN_S = 120  # the store may have to write a whole file before it answers


class Artifacts:
    """`client` is `tracking.connect`'s. MLflow's exceptions come as they are: see `tracking.mlflow_errors`."""

    def __init__(self, client: Any, model_id: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        location = client.get_logged_model(model_id).artifact_location
        self._store = get_artifact_repository(location, tracking_uri=client.tracking_uri)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that is there."""
        return {file.path: file.file_size or 0 for file in self._store.list_artifacts(None) if not file.is_dir}

    def send(self, path: Path) -> None:
        """Store a file under its name, instead of one that was there."""
        with _patience():
            self._store.log_artifact(str(path))

    def fetch(self, name: str, folder: Path) -> None:
        with _patience():
            self._store.download_artifacts(name, str(folder))

    def sha256(self, name: str) -> str:
        """Of what the store gives back; takes the room of one file for a moment."""
        with tempfile.TemporaryDirectory() as folder:
            self.fetch(name, Path(folder))
            return sha256(Path(folder) / name)

    def delete(self) -> None:
        self._store.delete_artifacts()


@contextmanager
def _patience() -> Iterator[None]:
    """More time than for the small requests; the variable is the only way to say so."""
    variable = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[variable]
    os.environ[variable] = str(max(int(before), FILE_WITHIN_S))
    try:
        yield
    finally:
        os.environ[variable] = before
