"""A pass-through between the dispatcher and an endpoint that keeps what was said, so that the demo can show it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer. Header names are in lower case."""

    endpoint: str
    method: str
    headers: Mapping[str, str]
    body: bytes
    status: int
    answer: bytes


@dataclass(slots=True)
class Tap:
    """Listens at `url` and passes everything on to port `target` of this machine, unchanged."""

    endpoint: str
    target: int
    url: str = ""
    heard: list[Exchange] = field(default_factory=list)

    def pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Ask the endpoint, and keep both sides."""
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        try:
            connection.request(method, path, body or None, dict(headers))
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        self.heard.append(Exchange(self.endpoint, method, headers, body, response.status, answer))
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


@contextmanager
def tapped(endpoint: str, target: int) -> Iterator[Tap]:
    """A tap that listens for as long as the block lasts."""
    tap = Tap(endpoint, target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            status, answered, answer = tap.pass_on(self.command, self.path, headers, body)
            self.send_response_only(status)
            for name, value in answered.items():
                if name not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Say nothing: the demo tells."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    tap.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield tap
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
