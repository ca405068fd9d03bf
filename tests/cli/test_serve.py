"""`dispatcher serve`, and the commands that prepare for it: token, migrate, doctor."""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from dispatcher.cli.addresses import listen
from tests.cli.running import KEY, PATIENCE, Server, invoke, new_database


@pytest.fixture(scope="module")
async def dsn(server: str) -> AsyncIterator[str]:
    """An empty database."""
    async with new_database(server) as made:
        yield made


@pytest.fixture(scope="module")
def token(dsn: str) -> str:
    """A token that may do everything, made where there is no server yet."""
    done = invoke("token", "create", "operator", DATABASE_URL=dsn)
    assert (done.code, done.json["scopes"], done.json["tenant"]) == (0, ["*"], "default")
    assert "not shown again" in done.err
    made: str = done.json["token"]
    return made


@pytest.fixture(scope="module")
def serving(dsn: str, token: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`dispatcher serve`, ready."""
    with Server("serve", cwd=tmp_path_factory.mktemp("serve"), DATABASE_URL=dsn, DISPATCHER_MASTER_KEY=KEY) as running:
        yield running


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"DISPATCHER_MASTER_KEY": KEY}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "postgresql://x/y"}, "DISPATCHER_MASTER_KEY is not set"),
        ({"DATABASE_URL": "postgresql://x/y", "DISPATCHER_MASTER_KEY": KEY, "DISPATCHER_DEV": "1"}, "DISPATCHER_DEV is set"),
        ({"DISPATCHER_DATA_DIR": "data", "DISPATCHER_MASTER_KEY": KEY}, "is a development key"),
        ({"DATABASE_URL": "postgresql://x/y", "DISPATCHER_MASTER_KEY": "short"}, "DISPATCHER_MASTER_KEY must be base64"),
        ({"DISPATCHER_PORT": "many"}, "DISPATCHER_PORT='many' is not a whole number"),
    ],
    ids=["no database", "no key", "development", "development key", "bad key", "bad setting"],
)
def test_what_is_not_for_production_is_refused(variables: dict[str, str], said: str, here: Path) -> None:
    (here / "data").mkdir()
    (here / "data" / "development.key").write_text(KEY)
    done = invoke("serve", **{"DISPATCHER_PORT": "0", **variables})
    assert (done.code, done.out) == (1, "")
    assert said in done.err


def test_nobody_comes_in_without_a_token(serving: Server, token: str) -> None:
    refused = invoke("runs", "list", DISPATCHER_URL=serving.url)
    assert (refused.code, refused.out) == (4, "")
    assert "dispatcher token create" in refused.err
    assert invoke("runs", "list", DISPATCHER_URL=serving.url, DISPATCHER_TOKEN="dsp_live_nonsense").code == 4
    assert invoke("runs", "list", DISPATCHER_URL=serving.url, DISPATCHER_TOKEN=token).json == {"rows": [], "next_cursor": None}


def test_tokens_are_scoped_listed_and_revoked(dsn: str, serving: Server, token: str) -> None:
    made = invoke("token", "create", "reader", "--scope", "runs:read", "--expires", "1d", DATABASE_URL=dsn).json

    def ask(*arguments: str, as_: str = token) -> Any:
        return invoke(*arguments, DISPATCHER_URL=serving.url, DISPATCHER_TOKEN=as_)

    assert ask("runs", "list", as_=made["token"]).code == 0
    assert ask("endpoints", "list", as_=made["token"]).code == 4
    rows = {row["name"]: row for row in ask("token", "list").json["rows"]}
    assert rows["reader"]["scopes"] == ["runs:read"]
    assert "token" not in rows["reader"]
    assert ask("token", "revoke", made["id"]).json == {"id": made["id"], "revoked": True}
    assert ask("runs", "list", as_=made["token"]).code == 4
    assert ask("token", "revoke", "000000000000").code == 3


def test_a_token_needs_a_database_that_is_there(here: Path) -> None:
    done = invoke("token", "create", "x")
    assert (done.code, done.out) == (1, "")
    assert "there is no database" in done.err
    assert list(here.iterdir()) == []
    assert invoke("token", "create", "x", "--tenant", "other", DATABASE_URL="postgresql://127.0.0.1:1/x").code == 1


def test_migrate(server: str, dsn: str, serving: Server) -> None:
    shown = invoke("migrate", "--status", DATABASE_URL=dsn).json["rows"]
    assert {row["state"] for row in shown} == {"applied"}
    assert [row["version"] for row in shown] == list(range(1, len(shown) + 1))


def test_migrate_an_empty_database(empty_dsn: str) -> None:
    def states(*arguments: str) -> set[str]:
        return {row["state"] for row in invoke("migrate", *arguments, DATABASE_URL=empty_dsn).json["rows"]}

    assert states("--status") == {"pending"}
    assert states() == {"new"}
    assert states() == {"applied"}
    assert states("--status") == {"applied"}


def checks(*arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    done = invoke("doctor", *arguments, **variables)
    return done.code, {row["check"]: row for row in done.json["rows"]}


def test_doctor_finds_nothing_wrong(dsn: str, serving: Server, token: str) -> None:
    code, found = checks(DATABASE_URL=dsn, DISPATCHER_MASTER_KEY=KEY, DISPATCHER_URL=serving.url, DISPATCHER_TOKEN=token)
    assert code == 0
    names = ["python", "settings", "master key", "postgres", "schema", "clock", "server", "ready", "endpoints"]
    assert list(found) == names
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(names, "ok") | {"postgres": found["postgres"]["status"]}
    assert found["postgres"]["status"] in {"ok", "warning"}, "the server of the tests does without fsync"


def test_doctor_says_what_to_do(empty_dsn: str, here: Path) -> None:
    code, found = checks(DATABASE_URL=empty_dsn, DISPATCHER_MASTER_KEY="x", DISPATCHER_PROT="1", DISPATCHER_PORT="0")
    assert code == 1
    assert (found["schema"]["status"], found["schema"]["fix"]) == ("failed", "dispatcher migrate")
    assert (found["master key"]["status"], found["master key"]["fix"]) == ("failed", "openssl rand -base64 32")
    assert (found["settings"]["status"], found["settings"]["detail"]) == ("warning", "nothing reads DISPATCHER_PROT")
    code, found = checks(DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert (code, found["postgres"]["status"]) == (1, "failed")


def test_doctor_before_anything_was_started(here: Path) -> None:
    code, found = checks(DISPATCHER_PORT="0")
    assert code == 0
    assert (found["postgres"]["status"], found["postgres"]["fix"]) == ("skipped", "dispatcher dev")
    assert (found["server"]["status"], found["port"]["status"]) == ("skipped", "ok")
    assert list(here.iterdir()) == []


def test_doctor_for_people(here: Path) -> None:
    text = invoke("doctor", "-o", "table", DISPATCHER_PORT="0").out
    assert "✓ python " in text
    assert "→ dispatcher dev" in text


@contextmanager
def gated(arrivals: queue.SimpleQueue[str], release: threading.Event) -> Iterator[str]:
    """A plain endpoint that says which attempts arrive and answers once it is released."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            arrivals.put(self.headers["task-attempt"])
            release.wait(PATIENCE)
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        release.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_small_answers_are_sent_at_once_whatever_the_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def accepted() -> int:
        told = asyncio.get_running_loop().create_future()

        async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = listen("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=bound):
            _, writer = await asyncio.open_connection(*bound.getsockname())
            nodelay = int(await told)
            writer.close()
            return nodelay

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(accepted()) == 1


def test_a_signal_ends_it_after_the_attempts_that_are_open(dsn: str, token: str, tmp_path: Path) -> None:
    allowed = {"DISPATCHER_ALLOW_HTTP": "1", "DISPATCHER_EGRESS_ALLOW": "127.0.0.0/8"}
    variables = {"DATABASE_URL": dsn, "DISPATCHER_MASTER_KEY": KEY, **allowed}
    arrivals, release = queue.SimpleQueue[str](), threading.Event()
    with Server("serve", cwd=tmp_path, **variables) as running, gated(arrivals, release) as url:
        asks = {"DISPATCHER_URL": running.url, "DISPATCHER_TOKEN": token}
        added = invoke("endpoints", "add", "gate", url, "--handlers", '[{"name": "gate"}]', **asks)
        assert added.code == 0, added.err
        run_id = invoke("trigger", "gate", **asks).json["id"]
        open_attempt = int(arrivals.get(timeout=PATIENCE))
        running.send(signal.SIGTERM)
        running.line("stopping")
        refused = httpx.get(f"{running.url}/readyz", trust_env=False)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        release.set()
        assert running.wait() == 0
    with Server("serve", cwd=tmp_path, **variables) as running:
        asks = {"DISPATCHER_URL": running.url, "DISPATCHER_TOKEN": token}
        found = invoke("runs", "get", run_id, **asks).json
        *_, last = found["tasks"][0]["attempts"]
        assert (found["status"], last["status"], last["number"]) == ("succeeded", "succeeded", open_attempt), found["tasks"]
        assert arrivals.empty()
        assert invoke("endpoints", "delete", "gate", **asks).code == 0
