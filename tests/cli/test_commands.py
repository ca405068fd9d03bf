"""Every command that asks a server, against one: what it prints as JSON, what it exits with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import BIN, Done, Process, invoke

RUN = re.compile(r"run_[0-9a-z]{26}")


@pytest.fixture
def ask(url: str) -> Any:
    def run(*arguments: str, stdin: str | None = None) -> Done:
        return invoke(*arguments, "-o", "json", stdin=stdin, DISPATCHER_URL=url)

    return run


def finished(ask: Any, width: int = 2) -> str:
    done = ask("trigger", "resize", "--input", json.dumps({"width": width}), "--wait")
    assert done.code == 0, done.err
    run_id: str = done.json["id"]
    return run_id


def test_trigger_answers_the_accepted_run(ask: Any) -> None:
    done = ask("trigger", "resize", "--input", '{"width": 1}', "--priority", "3")
    assert done.code == 0
    assert RUN.fullmatch(done.json["id"])
    assert (done.json["workflow"], done.json["status"]) == ("resize", "queued")


def test_trigger_waits_and_answers_the_result(ask: Any) -> None:
    done = ask("trigger", "resize", "-i", '{"width": 21}', "-m", "source=test", "-m", "count=2", "--wait")
    assert done.code == 0
    run = done.json
    assert (run["status"], run["output"], run["metadata"]) == ("succeeded", {"width": 42}, {"source": "test", "count": 2})
    assert run["tasks"][0]["attempts"][0]["http_status"] == 200
    assert f"{run['id']} queued" in done.err


def test_trigger_reads_input_from_file_and_stdin(ask: Any, tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"width": 5}')
    assert ask("trigger", "resize", "-i", f"@{file}", "--wait").json["output"] == {"width": 10}
    assert ask("trigger", "resize", "-i", "-", "--wait", stdin='{"width": 6}').json["output"] == {"width": 12}


def test_input_travels_as_it_was_written(ask: Any) -> None:
    text = '{"width": 1, "exact": 12345678901234567890.10, "small": 1e-7}'
    done = ask("trigger", "resize", "-i", text, "--wait")
    assert f'"input":{text}' in done.out


def test_a_failed_run_exits_6(ask: Any) -> None:
    done = ask("trigger", "fail", "--wait")
    assert done.code == 6
    assert done.json["status"] == "failed"
    assert done.json["error"]["message"] == "it cannot be done"


def test_a_wait_that_is_too_short_exits_5(ask: Any) -> None:
    done = ask("trigger", "wait", "--wait", "--timeout", "0.2s")
    assert done.code == 5
    run_id = RUN.search(done.err)
    assert run_id is not None
    assert "dispatcher runs get" in done.err
    assert ask("runs", "cancel", run_id[0]).json["status"] in {"cancelled", "cancelling"}


def test_one_idempotency_key_is_one_run(ask: Any) -> None:
    first, second = (ask("trigger", "resize", "-i", '{"width": 1}', "--idempotency-key", "once").json for _ in range(2))
    assert first["id"] == second["id"]
    assert second["duplicate"] is True


def test_unknown_workflow_is_explained(ask: Any) -> None:
    done = ask("trigger", "nothing")
    assert (done.code, done.out) == (3, "")
    assert "no workflow 'nothing'" in done.err
    assert "unknown_workflow" in done.err


def test_send_answers_the_event_and_its_runs(ask: Any) -> None:
    done = ask("send", "picture:added", '{"width": 3}', "-m", "source=test")
    assert done.code == 0
    assert done.json["event_id"].startswith("evt_")
    assert len(done.json["runs"]) == 1
    listed = ask("runs", "list", "--event", done.json["event_id"]).json["rows"]
    assert [row["id"] for row in listed] == done.json["runs"]


def test_send_says_when_nobody_listens(ask: Any) -> None:
    done = ask("send", "nobody:listens")
    assert (done.code, done.json["runs"]) == (0, [])
    assert "No workflow listens for 'nobody:listens'" in done.err


def test_runs_list_filters_and_pages(ask: Any) -> None:
    for _ in range(3):
        ask("trigger", "resize", "-i", '{"width": 1}', "-m", "list=this", "--wait")
    first = ask("runs", "list", "-m", "list=this", "-w", "resize", "-s", "succeeded", "--since", "1h", "--limit", "2").json
    assert len(first["rows"]) == 2
    assert [*first["rows"][0]] == [
        "id", "workflow", "status", "metadata", "priority", "trigger", "created_at", "started_at", "finished_at", "event_id",
        "parent_run_id", "error",
    ]  # fmt: skip
    assert ask("runs", "list", "-m", "list=this", "--until", "1h").json == {"rows": [], "next_cursor": None}


def test_runs_get(ask: Any) -> None:
    run_id = finished(ask)
    done = ask("runs", "get", run_id)
    assert (done.code, done.json["id"], done.json["output"]) == (0, run_id, {"width": 4})
    assert ask("runs", "get", "run_00000000000000000000000000").code == 3


def test_runs_logs(ask: Any) -> None:
    run_id = finished(ask, 7)
    lines = [json.loads(line) for line in ask("runs", "logs", run_id).out.splitlines()]
    assert [(line["level"], line["message"], line["attempt"]) for line in lines] == [("info", "width 7", 1)]
    assert ask("runs", "logs", run_id, "--follow").out.splitlines() == ask("runs", "logs", run_id).out.splitlines()


def test_runs_tail_of_one_run_ends_with_its_result(ask: Any) -> None:
    run_id = finished(ask, 8)
    *lines, last = ask("runs", "tail", run_id).out.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["width 8"]
    assert json.loads(last)["output"] == {"width": 16}
    failed = ask("trigger", "fail").json["id"]
    assert ask("runs", "tail", failed).code == 6


def test_runs_tail_prints_runs_as_they_finish(ask: Any, url: str) -> None:
    before = finished(ask)
    command = [str(BIN / "dispatcher"), "runs", "tail", "-w", "resize", "--count", "1", "-o", "json"]
    with Process(command, variables={"DISPATCHER_URL": url}) as tail:
        waiting, after = ask("trigger", "wait").json["id"], before
        while tail.running():
            after = finished(ask)
        shown = json.loads(tail.text().splitlines()[-1])
    assert shown["workflow"] == "resize"
    assert before < shown["id"] <= after
    ask("runs", "cancel", waiting)


def test_runs_cancel(ask: Any) -> None:
    run_id = ask("trigger", "wait").json["id"]
    assert ask("runs", "cancel", run_id, "--reason", "not needed").code == 0
    assert ask("runs", "tail", run_id).code == 6
    assert ask("runs", "get", run_id).json["status"] == "cancelled"
    over = ask("runs", "cancel", finished(ask))
    assert over.code == 1
    assert "run_finished" in over.err
    missing = ask("runs", "cancel", run_id, "run_00000000000000000000000000")
    assert (missing.code, missing.json["id"]) == (3, run_id)


def test_a_list_of_workflows_says_which_are_about_to_be_resumed(url: str) -> None:
    listed = invoke("workflows", "list", "-o", "table", DISPATCHER_URL=url).out
    assert listed.splitlines()[0].lower().split()[-2:] == ["paused", "resuming"]


def test_workflows(ask: Any) -> None:
    rows = {row["name"]: row for row in ask("workflows", "list").json["rows"]}
    assert rows["resize"]["on_events"] == ["picture:*"]
    assert rows["resize"]["endpoints"] == ["app"]
    assert ask("workflows", "get", "resize").json["definition"]["name"] == "resize"
    assert ask("workflows", "get", "nothing").code == 3


def test_endpoints_from_registration_to_removal(ask: Any) -> None:
    added = ask("endpoints", "add", "plain", "http://127.0.0.1:9/", "--handlers", '[{"name": "plain"}]', "--slots", "3", "-l", "zone=a")
    assert added.code == 0
    assert added.json["secret"].startswith("whsec_")
    assert (added.json["slots"], added.json["labels"], added.json["diff"]["added"]) == (3, {"zone": "a"}, ["plain"])
    assert "not shown again" in added.err
    assert ask("endpoints", "get", "plain").json["health"] == "healthy"
    assert ask("endpoints", "pause", "plain").json["paused"] is True
    assert ask("endpoints", "resume", "plain").json["paused"] is False
    assert ask("endpoints", "drain", "plain", "--wait", "1m").json["health"] == "drained"
    resumed = ask("endpoints", "resume", "plain").json
    assert (resumed["draining"], resumed["remaining"], resumed["health"]) == (False, None, "healthy")
    rotated = ask("endpoints", "rotate-secret", "plain", "--overlap", "1h").json
    assert rotated["secret"] not in {"", added.json["secret"]}
    again = ask("endpoints", "rotate-secret", "plain")
    assert again.code == 1
    assert "rotation_in_progress" in again.err
    assert "plain" in [row["name"] for row in ask("endpoints", "list").json["rows"]]
    assert ask("endpoints", "delete", "plain").json == {"name": "plain", "deleted": True}
    assert ask("endpoints", "get", "plain").code == 3


def test_draining_is_waited_for_as_long_as_was_asked(ask: Any) -> None:
    run_id = ask("trigger", "wait").json["id"]
    try:
        done = ask("endpoints", "drain", "app", "--wait", "0.1s")
        assert done.code == 5
        assert "app is not drained within 0.1 s" in done.err
        assert "endpoints get app" in done.err
        assert ask("endpoints", "get", "app").json["health"] == "draining"
        assert "app" in ask("endpoints", "list", "-o", "table").out
    finally:
        assert ask("endpoints", "resume", "app").json["health"] == "healthy"
        ask("runs", "cancel", run_id)


def test_ping_says_whether_an_endpoint_lives(ask: Any) -> None:
    assert ask("endpoints", "ping", "app").json["ok"] is True
    ask("endpoints", "add", "away", "http://127.0.0.1:9/", "--handlers", '[{"name": "away"}]')
    done = ask("endpoints", "ping", "away")
    assert (done.code, done.json["ok"]) == (1, False)
    ask("endpoints", "delete", "away")


def test_a_refused_registration_is_explained(ask: Any) -> None:
    done = ask("endpoints", "add", "bad", "http://127.0.0.1:9/")
    assert done.code == 1
    assert "discovery_" in done.err
