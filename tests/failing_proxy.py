"""A proxy before a server that fails in ways of its own."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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
