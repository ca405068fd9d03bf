"""`dispatcher replay`: whether code fits the log of a run, asked of the app in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from tests.cli.running import invoke

APP = """
from typing import Any

from handlers_sdk import ClientConfig, Dispatcher, DurableContext

dispatcher = Dispatcher(ClientConfig())


@dispatcher.durable_task()
async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
    print("what an app says is not the answer")
    amount = await ctx.run("charge", lambda: 1 / 0)
    await ctx.aio_sleep_for("1h")
    return [amount, await ctx.run_child("ship", {"to": input["to"]})]


app = dispatcher.app([order])
"""
AT = "2026-01-01T00:00:00.000Z"
TASK: dict[str, Any] = {"id": "tsk_1", "name": "order", "attempts": []}
RUN: dict[str, Any] = {"id": "run_1", "workflow": "order", "status": "waiting", "input": {"to": "you"}, "tasks": [TASK]}
ENTRIES: list[dict[str, Any]] = [
    {"id": "charge#0", "op": "step", "status": "ok", "value": 5, "at": AT},
    {"id": "sleep#0", "op": "sleep", "status": "pending", "ms": 3_600_000, "at": AT},
    {"id": "sleep#0", "op": "sleep", "status": "ok", "at": AT},
    {"id": "ship#0", "op": "child", "status": "pending", "workflow": "ship", "input": {"to": "you"}, "run_id": "run_2", "at": AT},
    {"id": "ship#0", "op": "child", "status": "ok", "value": "sent", "run_id": "run_2", "at": AT},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The developer's directory."""
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(here: Path, entries: list[dict[str, Any]]) -> str:
    """As two commands write it behind each other."""
    (here / "run.json").write_text(json.dumps(RUN, indent=2) + "\n" + json.dumps({"id": "run_1", "entries": entries, "logs": []}))
    return "run.json"


def test_a_log_that_fits_comes_to_what_it_came_to(here: Path) -> None:
    done = invoke("replay", export(here, ENTRIES), "shop:app", "-o", "json")
    assert done.code == 0
    assert json.loads(done.out) == {"task": "order", "entries": 5, "outcome": "returned", "output": [5, "sent"], "unconsumed": []}


def test_no_step_is_run(here: Path) -> None:
    done = invoke("replay", export(here, []), "shop:app", "-o", "json")
    assert json.loads(done.out) == {"task": "order", "entries": 0, "outcome": "waits", "asks": ["charge#0"]}


def test_a_log_that_does_not_fit_says_where(here: Path) -> None:
    other = [ENTRIES[0], {**ENTRIES[1], "ms": 5}]
    done = invoke("replay", export(here, other), "shop:app", "-o", "table")
    assert done.code == 1
    assert "does not fit the log at sleep#0" in done.err
    assert "3600000" in done.out


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("{", "shop:app", "not JSON"),
        (json.dumps(RUN), "shop:app", "needs the run of a durable task, and its journal"),
        (json.dumps({**RUN, "journal": []}), "shop", "module:attribute"),
        (json.dumps({**RUN, "journal": []}), "nothing_here:app", "nothing_here"),
        (json.dumps({**RUN, "journal": []}), "shop:dispatcher", "not an app"),
        (json.dumps({**RUN, "workflow": "other", "journal": []}), "shop:app", "no durable task of workflow 'other'"),
    ],
)
def test_what_cannot_be_replayed_is_said(here: Path, text: str, target: str, message: str) -> None:
    (here / "run.json").write_text(text)
    done = invoke("replay", "run.json", target)
    assert done.code == 2
    assert message in done.err


class _Server(BaseHTTPRequestHandler):
    """What a dispatcher answers of two runs, of which one is durable."""

    ANSWERS: ClassVar = {
        "/v1/runs/run_1": (200, RUN),
        "/v1/runs/run_1/journal": (200, {"id": "run_1", "entries": ENTRIES, "logs": []}),
        "/v1/runs/run_2": (200, {"id": "run_2", "workflow": "plain", "status": "queued", "input": {}, "tasks": []}),
        "/v1/runs/run_2/journal": (409, {"code": "not_durable", "detail": "run run_2 has no durable task"}),
        "/v1/runs/run_3": (200, RUN),
        "/v1/runs/run_3/journal": (503, {"code": "database_unavailable", "detail": "the database is away"}),
    }

    def do_GET(self) -> None:
        status, document = self.ANSWERS[self.path]
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_two_commands_are_enough(here: Path, url: str) -> None:
    got = invoke("runs", "get", "run_1", "-o", "json", DISPATCHER_URL=url)
    assert got.json == {**RUN, "journal": {"id": "run_1", "entries": ENTRIES, "logs": []}}
    (here / "run.json").write_text(got.out)
    done = invoke("replay", "run.json", "shop:app", "-o", "json")
    assert (done.code, json.loads(done.out)["output"]) == (0, [5, "sent"])


def test_other_runs_are_shown_as_they_are(here: Path, url: str) -> None:
    plain = invoke("runs", "get", "run_2", "-o", "json", DISPATCHER_URL=url)
    assert plain.json == {"id": "run_2", "workflow": "plain", "status": "queued", "input": {}, "tasks": []}
    (here / "run.json").write_text(plain.out)
    assert "needs the run of a durable task" in invoke("replay", "run.json", "shop:app").err
    away = invoke("runs", "get", "run_3", "-o", "json", DISPATCHER_URL=url)
    assert (away.code, "the database is away" in away.err) == (1, True)
    assert invoke("runs", "get", "run_3", "-o", "table", DISPATCHER_URL=url).code == 0, "nobody asked for a journal"
