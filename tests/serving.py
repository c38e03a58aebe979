"""Real servers on this machine for tests: files over HTTP with or without faults, nginx, S3, Google Cloud Storage, a hub."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from werkzeug.serving import WSGIRequestHandler, make_server

START_TIMEOUT_S = 30
AWS_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Faults:
    """What a server does wrong, one per request in order: an HTTP status ("503"), "drop" the connection amid the body, "hang"
    until the client leaves, "whole" file in spite of Range, "short" by one byte, "flip" every bit, "slow" by 0.2 s. Then it
    behaves."""

    coming: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # seen: "HEAD", "GET bytes=0-9"

    def next(self, method: str, byte_range: str) -> str:
        self.requests.append(f"{method} {byte_range}".strip())
        return self.coming.pop(0) if self.coming else ""


class Faulty:
    """An ASGI application with faults before it."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self.app, self.faults = app, faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        fault = self.faults.next(scope["method"], headers.get(b"range", b"").decode())
        if fault.isdigit():
            return await PlainTextResponse("fault", int(fault))(scope, receive, send)
        if fault == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            return None
        if fault == "slow":
            await asyncio.sleep(0.2)
        if fault == "whole":
            headers.pop(b"range", None)
        if fault == "short":
            first, last = headers[b"range"].decode().removeprefix("bytes=").split("-")
            headers[b"range"] = f"bytes={first}-{int(last) - 1}".encode()
        scope = {**scope, "headers": list(headers.items())}
        changed = {"drop": self._dropping, "flip": self._flipping}
        return await self.app(scope, receive, changed[fault](send) if fault in changed else send)

    def _flipping(self, send: Send) -> Send:
        async def send_flipped(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": bytes(byte ^ 0xFF for byte in message["body"])}
            await send(message)

        return send_flipped

    def _dropping(self, send: Send) -> Send:
        async def send_half(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "body": message["body"][: len(message["body"]) // 2], "more_body": True})
                raise ConnectionAbortedError("as the test wishes")
            await send(message)

        return send_half


@contextlib.contextmanager
def http_server(directory: str | Path, faults: Faults | None = None) -> Iterator[str]:
    """The files of a directory over HTTP with ranges; yields its url, without a slash at the end."""
    files = Starlette(routes=[Mount("/", StaticFiles(directory=directory))])
    with asgi_server(Faulty(files, faults or Faults())) as url:
        yield url


@contextlib.contextmanager
def asgi_server(app: ASGIApp) -> Iterator[str]:
    """Any ASGI application in a thread; yields its url."""
    config = uvicorn.Config(app, port=0, log_level=60, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait(lambda: server.started)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def nginx_server(directory: Path, folder: Path) -> Iterator[str]:
    """The files of a directory by nginx, whose own files go to `folder`."""
    port = _free_port()
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};\n"
        f"  uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
        f"  server {{ listen 127.0.0.1:{port}; location / {{ root {directory}; }} }} }}\n"
    )
    user = ["-g", "user root;"] if os.getuid() == 0 else []  # pytest's folders are closed to others
    process = subprocess.Popen([shutil.which("nginx") or "nginx", "-p", folder, "-c", folder / "nginx.conf", *user])
    try:
        _wait(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def s3_server(bucket: str = "shards", faults: Faults | None = None) -> Iterator[tuple[str, str]]:
    """moto's S3 with an empty bucket; yields (endpoint, bucket). Clients need AWS_ENDPOINT_URL and AWS_CREDENTIALS. Of the
    faults only statuses are made."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # takes a second

    moto, faults = DomainDispatcherApplication(create_backend_app), faults or Faults()

    def app(environ: dict, start_response: Callable) -> object:
        fault = faults.next(environ["REQUEST_METHOD"], environ.get("HTTP_RANGE", ""))
        if fault:
            start_response(f"{fault} fault", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>fault</Message></Error>"]
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
        faults.requests.clear()
        yield endpoint, bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        """Requests are not printed."""


@contextlib.contextmanager
def gs_server(bucket: str = "shards") -> Iterator[tuple[str, str]]:
    """Google Cloud Storage with an empty bucket; yields (what STORAGE_EMULATOR_HOST should be, bucket)."""
    from gcp_storage_emulator.server import create_server

    port = _free_port()
    with create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket):
        yield f"http://127.0.0.1:{port}", bucket


@contextlib.contextmanager
def hub_server(directory: Path, faults: Faults | None = None) -> Iterator[str]:
    """What reading hf://datasets/USER/REPO/FILE asks a hub for, files being redirected to another server as the real one does;
    `private` repositories need the token "secret". Yields what HF_ENDPOINT should be."""

    async def repository(request: Request) -> JSONResponse:
        if "private" in request.path_params["repo"] and request.headers.get("authorization") != "Bearer secret":
            return JSONResponse({"error": "no"}, 401, {"X-Error-Code": "GatedRepo"})
        return JSONResponse({"id": f"user/{request.path_params['repo']}", "sha": "0" * 40, "siblings": [], "tags": []})

    with http_server(directory, faults) as files:

        async def resolve(request: Request) -> RedirectResponse:
            return RedirectResponse(f"{files}/{quote(request.path_params['path'])}?signature=1", 302)

        routes = [
            Route("/api/datasets/user/{repo}", repository),
            Route("/api/datasets/user/{repo}/revision/{revision}", repository),
            Route("/datasets/user/{repo}/resolve/{revision}/{path:path}", resolve),
        ]
        with asgi_server(Starlette(routes=[*routes, Mount("/", PlainTextResponse("no", 404))])) as url:
            yield url


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
