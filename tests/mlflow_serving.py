"""A real MLflow server of this machine for tests: SQLite, with or without passwords, that can be frozen, killed and started
again; and a proxy before it that fails."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

START_WITHIN_S = 120
USER, PASSWORD = "admin", "correct-horse-battery"
AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class Server:
    """`mlflow server` on a port of its own. `with Server(folder)`; it and its workers end with the block."""

    def __init__(self, folder: Path, passwords: bool = False, store: Path | None = None) -> None:
        self._folder, self._passwords = folder, passwords
        self.store = store or folder / "mlflow.db"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """It takes ten seconds; `wait` says when it is there."""
        # Its background jobs are eight processes more, whose imports keep two cores busy for a minute.
        environ = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        words = ["--backend-store-uri", f"sqlite:///{self.store}", "--artifacts-destination", self._folder / "files"]
        if self._passwords:
            config = self._folder / "auth.ini"
            config.write_text(AUTH.format(folder=self._folder, user=USER, password=PASSWORD))
            environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of tests"}
            words += ["--app-name", "basic-auth"]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1", *map(str, words)]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
                time.sleep(0.1)

    def send(self, number: signal.Signals) -> None:
        """To it and all its workers."""
        assert self._process
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self.send(signal.SIGKILL)
            self._process.wait()


@contextmanager
def proxy(to: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Its url, and what it does wrong from now on: `delay_s` before each answer, `status` instead of an answer."""
    wrong: dict[str, float] = {"delay_s": 0, "status": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(wrong["delay_s"])
            status, content = (int(wrong["status"]), b"no") if wrong["status"] else self.forward(body)
            with suppress(OSError):  # a client that has given up
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do

        def forward(self, body: bytes) -> tuple[int, bytes]:
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "accept-encoding")}
            request = urllib.request.Request(to + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except OSError as error:  # the server is gone
                return 502, str(error).encode()

        def log_message(self, *_: object) -> None:
            """Requests are not printed."""

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that hang up are what this is for."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", wrong
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
