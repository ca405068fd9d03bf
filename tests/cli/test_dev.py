"""`dispatcher dev` as a process: what it tells, how it follows the app's files, how it ends, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import psutil
import pytest

from tests.cli.conftest import APP
from tests.cli.running import BIN, KEY, PATIENCE, Process, Server, invoke

ONE = """
from handlers_sdk import Context, Dispatcher, EmptyModel

dispatcher = Dispatcher()


@dispatcher.task()
async def first(input: EmptyModel, ctx: Context) -> dict[str, str]:
    return {"from": "first"}


app = dispatcher.app(workflows=[first])
"""
TWO = ONE.replace("app = ", "@dispatcher.task()\ndef second(input: EmptyModel, ctx: Context) -> None: ...\n\n\napp = ").replace(
    "[first]", "[first, second]"
)


def test_it_prints_a_line_for_each_finished_run(dev: Server) -> None:
    done = invoke("trigger", "fail", "--wait", DISPATCHER_URL=dev.url)
    told = json.loads(dev.line('"type":"run"', done.json["id"]))
    assert (told["workflow"], told["status"], told["attempts"]) == ("fail", "failed", 1)


def test_it_is_ready_when_readyz_says_so(dev: Server) -> None:
    assert httpx.get(f"{dev.url}/readyz", trust_env=False).json() == {"status": "ready"}


def test_a_port_in_use_is_explained(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = invoke("dev", "--port", str(port), "--data", str(tmp_path))
    assert done.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.err
    assert "--port 0" in done.err


def test_the_app_is_run_again_when_its_files_change(own_dsn: str, tmp_path: Path) -> None:
    app = tmp_path / "main.py"
    app.write_text(ONE)
    with Server("dev", "main:app", "--name", "reloaded", cwd=tmp_path, DATABASE_URL=own_dsn, DISPATCHER_MASTER_KEY=KEY) as dev:
        app.write_text("raise RuntimeError('half a thought')")
        dev.line('"type":"problem"', "does not start", "waiting for a change")
        assert "half a thought" in dev.text()
        app.write_text(TWO)
        told = json.loads(dev.line('"type":"step"', "main.py changed"))
        assert told["handlers"] == ["first", "second"]
        assert invoke("trigger", "second", "--wait", DISPATCHER_URL=dev.url).code == 0


def test_without_reload_an_app_that_does_not_start_ends_it(own_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    command = [str(BIN / "dispatcher"), "dev", "broken:app", "--no-reload", "--port", "0"]
    with Process(command, cwd=tmp_path, variables={"DATABASE_URL": own_dsn, "DISPATCHER_MASTER_KEY": KEY}) as dev:
        assert dev.wait() == 1
        assert "nothing_of_this_name" in dev.text()
        assert "app broken:app does not start" in dev.text()


def test_a_signal_lets_the_running_attempt_end(own_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "dispatcher.py").write_text(GATE)  # the name of our own package, which is anybody's to use
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with Server(
        "dev", "dispatcher:app", "--no-reload", cwd=tmp_path, DATABASE_URL=own_dsn, DISPATCHER_MASTER_KEY=KEY, GATE=str(gate)
    ) as dev:
        run_id = invoke("trigger", "pass_gate", DISPATCHER_URL=dev.url).json["id"]
        with gate.open("w"):  # opens once the handler reads
            dev.send(signal.SIGINT)
            assert httpx.get(f"{dev.url}/livez", trust_env=False).status_code == 200
        assert dev.wait() == 0
        assert f'"id":"{run_id}"' in dev.text()


GATE = """
import os

from handlers_sdk import Context, Dispatcher, EmptyModel

dispatcher = Dispatcher()


@dispatcher.task()
def pass_gate(input: EmptyModel, ctx: Context) -> dict[str, bool]:
    with open(os.environ["GATE"]) as gate:
        gate.read()
    return {"passed": True}


app = dispatcher.app(workflows=[pass_gate])
"""


def test_a_database_that_is_away_is_waited_for(own_dsn: str, tmp_path: Path) -> None:
    parts = urlsplit(own_dsn)
    socket_directory = parse_qs(parts.query).get("host", [""])[0]
    if not socket_directory:
        pytest.skip("the test server is not on a Unix socket")
    variables = {"DATABASE_URL": parts._replace(query=f"host={quote(str(tmp_path))}").geturl(), "DISPATCHER_MASTER_KEY": KEY}
    with Process([str(BIN / "dispatcher"), "dev", "--port", "0", "-o", "json"], cwd=tmp_path, variables=variables) as dev:
        assert "Postgres cannot be reached" in dev.line('"type":"problem"')
        (tmp_path / ".s.PGSQL.5432").symlink_to(f"{socket_directory}/.s.PGSQL.5432")
        url = dev.event("ready")["url"]
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://nobody:wrong@127.0.0.1:1/x", "Postgres cannot be reached"),
        ("nonsense", "DATABASE_URL cannot be used"),
    ],
)
def test_a_database_url_is_never_replaced_by_the_embedded_postgres(tmp_path: Path, dsn: str, said: str) -> None:
    command = [str(BIN / "dispatcher"), "dev", "--port", "0", "--data", str(tmp_path / "data"), "-o", "json"]
    with Process(command, cwd=tmp_path, variables={"DATABASE_URL": dsn}) as dev:
        dev.line(said)
    assert not (tmp_path / "data" / "postgres").exists()


@pytest.mark.slow
def test_killed_it_leaves_nobody_behind_and_loses_no_row(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("embedded")
    for parent in (directory, *directory.parents):
        if parent.owner() == directory.owner() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o055)  # for root: Postgres runs as another user
    (directory / "main.py").write_text(APP)
    with Server("dev", "main:app", cwd=directory) as dev:
        run_id = invoke("trigger", "resize", "-i", '{"width": 4}', "--wait", DISPATCHER_URL=dev.url).json["id"]
        family = psutil.Process(dev.pid).children(recursive=True)
        assert {"postgres", "python"} <= {process.name().rstrip("0123456789.") for process in family}
        dev.send(signal.SIGKILL)
        dev.wait()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert not alive
    with Server("dev", "main:app", cwd=directory) as dev:
        assert invoke("runs", "get", run_id, DISPATCHER_URL=dev.url).json["output"] == {"width": 8}
        dev.send(signal.SIGTERM)
        assert dev.wait() == 0
