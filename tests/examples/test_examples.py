"""The example programs do what README says they do, run as README says they are run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import PATIENCE, environment, invoke
from tests.examples.conftest import HERE
from tests.examples.demo import free_port

CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@contextmanager
def shell(script: str, out: Path, **variables: str) -> Iterator[list[Any]]:
    """The JSON documents a script prints; what it left running ends with the block."""
    with out.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-eu", script], cwd=HERE, env=environment(**variables), stdout=file, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        assert process.wait(PATIENCE) == 0
        yield documents(out.read_text())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def documents(text: str) -> list[Any]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


@CURL
@pytest.mark.parametrize("program", ["python plain_durable.py", "node plain_durable.mjs"])
def test_a_durable_order_needs_no_sdk(url: str, tmp_path: Path, program: str) -> None:
    runs, code = program.split()
    if shutil.which(runs) is None:
        pytest.skip(f"{runs} is not installed")
    assert len((HERE / code).read_text().splitlines()) <= 40
    port = free_port()
    with shell("plain_durable.sh", tmp_path / "out", DISPATCHER_URL=url, PORT=str(port), ENDPOINT=program) as [run]:
        assert (run["status"], run["output"]) == ("succeeded", {"shipped": True, "amount": 5})
        assert not accepted_unsigned(port)
    assert invoke("endpoints", "delete", "orders", DISPATCHER_URL=url).code == 0


@CURL
def test_a_plain_endpoint_is_registered_and_run_with_curl_alone(url: str, tmp_path: Path) -> None:
    port = free_port()
    with shell("plain_endpoint.sh", tmp_path / "out", DISPATCHER_URL=url, PORT=str(port)) as [run]:
        assert (run["status"], run["workflow"]) == ("succeeded", "audit")
        assert run["output"] == {"audited": ["draft", "tag"], "bytes": 33}
        assert run["tasks"][0]["attempts"][-1]["http_status"] == 200
        assert not accepted_unsigned(port)
    assert invoke("endpoints", "delete", "auditor", DISPATCHER_URL=url).code == 0


def accepted_unsigned(port: int) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", b"{}"), timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def test_the_plain_endpoint_has_ten_lines() -> None:
    code = [line for line in (HERE / "plain_endpoint.py").read_text().split('"""')[2].splitlines() if line.strip()]
    assert len([line for line in code if not re.match(r"import |from ", line)]) <= 10


@CURL
def test_events_with_curl(url: str, tmp_path: Path) -> None:
    with shell("events_with_curl.sh", tmp_path / "out", DISPATCHER_URL=url) as [runs]:
        (row,) = [row for row in runs["rows"] if row["attempt"] == 1 and row["function"] == "welcome"]
    assert invoke("runs", "tail", row["run_id"], DISPATCHER_URL=url).code == 0
    assert invoke("runs", "get", row["run_id"], DISPATCHER_URL=url).json["metadata"] == {"source": "curl"}


@CURL
def test_crons_and_schedules_with_curl(url: str, tmp_path: Path) -> None:
    with shell("times_with_curl.sh", tmp_path / "out", DISPATCHER_URL=url) as [cron, schedule]:
        assert (cron["description"], len(cron["next_runs"])) == ("At 09:00, only on Monday", 5)
        assert schedule["status"] == "started"
    assert invoke("runs", "tail", schedule["run_id"], DISPATCHER_URL=url).code == 0
    assert invoke("crons", "delete", cron["id"], DISPATCHER_URL=url).code == 0


def test_quickstart(url: str, tmp_path: Path) -> None:
    with shell("quickstart.sh", tmp_path / "out", DISPATCHER_URL=url) as [run, event, listed]:
        assert run["output"] == {"text": "Welcome, octocat!", "attempts": 2}
        assert [attempt["status"] for attempt in run["tasks"][0]["attempts"]] == ["failed", "succeeded"]
        assert set(event["runs"]) <= {row["id"] for row in listed["rows"]}
    lines = invoke("runs", "logs", run["id"], "-o", "table", DISPATCHER_URL=url).out
    assert re.findall(r"attempt \d", lines) == ["attempt 1", "attempt 2"]


def test_a_draft_is_refused_without_a_retry(url: str) -> None:
    change = {"number": 1, "pull_request": {"title": "x", "draft": True, "additions": 1, "deletions": 0}}
    done = invoke("trigger", "review", "-i", json.dumps(change), "--wait", DISPATCHER_URL=url)
    assert (done.code, done.json["error"]["message"], len(done.json["tasks"][0]["attempts"])) == (6, "a draft is not reviewed", 1)
