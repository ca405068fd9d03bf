"""What a command says and exits with when the server refuses, is away, or is something else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dispatcher.cli import client
from tests.cli.running import invoke

PROBLEM = {"type": "/errors/x", "title": "T", "status": 0, "code": "some_code", "detail": "what is wrong", "hint": "what to do"}


@contextmanager
def answering(status: int, body: bytes, media: str = "application/problem+json", hold: threading.Event | None = None) -> Iterator[str]:
    """A server that always answers the same, once `hold` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hold is not None:
                hold.wait(30)
            self.send_response(status)
            self.send_header("content-type", media)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        if hold is not None:
            hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(400, 1), (401, 4), (403, 4), (404, 3), (409, 1), (422, 1), (500, 1), (503, 1), (504, 5)])
def test_a_problem_is_shown_with_its_hint(status: int, code: int) -> None:
    with answering(status, json.dumps(PROBLEM | {"status": status}).encode()) as url:
        done = invoke("runs", "list", "--url", url)
    assert (done.code, done.out) == (code, "")
    assert done.err == "Error: what is wrong (some_code)\n  what to do\n"


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"[]", b"\xff"])
def test_an_answer_of_something_else_is_no_traceback(body: bytes) -> None:
    with answering(502, body, "text/html") as url:
        done = invoke("runs", "list", "--url", url)
    assert done.code == 1
    assert "502" in done.err
    assert "Is the URL that of a dispatcher?" in done.err


def test_a_success_that_is_not_json_is_no_traceback() -> None:
    with answering(200, b"<html>Welcome</html>", "text/html") as url:
        done = invoke("runs", "list", "-o", "table", "--url", url)
    assert (done.code, done.out) == (1, "")
    assert "Is the URL that of a dispatcher?" in done.err


def test_nobody_there() -> None:
    done = invoke("runs", "list", "--url", "http://127.0.0.1:9")
    assert (done.code, done.out) == (1, "")
    assert "no dispatcher answers at http://127.0.0.1:9" in done.err
    assert "dispatcher dev" in done.err


def test_an_answer_that_does_not_come_exits_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SECONDS", 0.2)
    with answering(200, b"{}", hold=threading.Event()) as url:
        assert invoke("runs", "list", "--url", url).code == 5


def test_a_proxy_for_the_network_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with answering(200, b'{"rows": [], "next_cursor": null}', "application/json") as url:
        assert invoke("runs", "list", "--url", url).code == 0
