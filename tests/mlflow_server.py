"""A real MLflow server on this machine for tests, with users and passwords, that can be frozen, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launching import clean_environment

START_WITHIN_S = 120
LOGIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a password of tests"}
AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = {MLFLOW_TRACKING_USERNAME}
admin_password = {MLFLOW_TRACKING_PASSWORD}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class Server:
    """`mlflow server` on a port of its own; its files lie in `folder/files`, clients need LOGIN. `with Server(folder)` starts
    it, and at the end it and its workers are gone.
    """

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self._folder, self._port = folder, free_port()
        self.store = store or folder / "mlflow.db"
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """It takes ten seconds; `wait` says when it is there."""
        config = self._folder / "auth.ini"
        config.write_text(AUTH.format(folder=self._folder, **LOGIN))
        # Its background jobs are eight processes more, whose imports keep two cores busy for a minute.
        environ = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of tests"}
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.store}", "--artifacts-destination", str(self._folder / "files")]
        command += ["--app-name", "basic-auth"]
        self._process = start(command, self._log, env={**clean_environment(), **environ})

    def wait(self) -> None:
        wait_until_answers(f"{self.uri}/health", self._log)

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def send(self, number: signal.Signals) -> None:
        """To it and all its workers."""
        assert self._process
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self.send(signal.SIGKILL)
            self._process.wait()


@contextmanager
def running(command: list[str], answers: str, log: Path, cwd: Path, env: dict[str, str]) -> Iterator[str]:
    """Another server, that takes --port; yields its address once it answers there."""
    port = free_port()
    process = start([*command, "--port", str(port)], log, cwd=cwd, env=env)
    try:
        wait_until_answers(f"http://127.0.0.1:{port}/{answers}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str], log: Path, **options: object) -> subprocess.Popen:
    """In a group of its own, so that its workers end with it."""
    with log.open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)


def wait_until_answers(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
