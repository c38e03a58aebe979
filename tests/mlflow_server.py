"""A real MLflow server on this machine for tests, with users, passwords and files of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from launching import clean_environment

START_TIMEOUT_S = 120
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a password of tests"}


@contextlib.contextmanager
def mlflow_server(folder: Path, empty_database: Path) -> Iterator[str]:
    """`mlflow server` with basic auth, its database and served files in `folder`; yields its address. Clients need ADMIN."""
    shutil.copyfile(empty_database, folder / "mlflow.db")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        f"admin_password = {ADMIN['MLFLOW_TRACKING_PASSWORD']}\nauthorization_function = "
        "mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "files")]
    secrets = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of tests", "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}
    environment = {**clean_environment(), **secrets, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with running(command, "health", folder / "log", folder, environment) as url:
        yield url


@contextlib.contextmanager
def running(command: list[str], answers: str, log: Path, cwd: Path, env: dict[str, str]) -> Iterator[str]:
    """A server that takes --host and --port; yields its address once it answers there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_until_answers(f"http://127.0.0.1:{port}/{answers}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers with it
        process.wait()


def _wait_until_answers(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url).close()
            return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
