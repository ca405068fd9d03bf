"""Events, filters and many runs at once, from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.running import Done, invoke


@pytest.fixture
def ask(url: str) -> Any:
    def run(*arguments: str, stdin: str | None = None) -> Done:
        return invoke(*arguments, "-o", "json", stdin=stdin, DISPATCHER_URL=url)

    return run


def test_events_are_listed_shown_and_replayed(ask: Any) -> None:
    sent = ask("send", "picture:operations", '{"width": 3}', "-m", "cli=events", "--scope", "cli").json
    listed = ask("events", "list", "-m", "cli=events", "--scope", "cli", "--matched", "--since", "1h").json["rows"]
    assert [row["id"] for row in listed] == [sent["event_id"]]
    assert ask("events", "list", "-m", "cli=events", "--unmatched").json["rows"] == []
    assert ask("events", "get", sent["event_id"]).json["data"] == {"width": 3}
    again = ask("events", "replay", sent["event_id"])
    assert (again.code, len(again.json["runs"])) == (0, 1)
    ask("runs", "tail", again.json["runs"][0])
    (run,) = ask("events", "runs", again.json["event_id"]).json["rows"]
    assert (run["function"], run["status"], run["result"]) == ("resize", "succeeded", {"width": 6})
    assert ask("events", "get", "evt_x").code == 3


def test_filters_are_made_changed_and_removed(ask: Any) -> None:
    made = ask("filters", "create", "fail", "input.n > 1", "--scope", "cli", "-p", '{"a": 1}').json
    assert (made["payload"], made["declared"]) == ({"a": 1}, False)
    assert [row["id"] for row in ask("filters", "list", "-w", "fail", "--scope", "cli").json["rows"]] == [made["id"]]
    changed = ask("filters", "update", made["id"], "--expression", "input.n > 2", "-p", "null").json
    assert (changed["expression"], changed["payload"]) == ("input.n > 2", None)
    assert ask("filters", "get", made["id"]).json == changed
    assert ask("filters", "delete", made["id"]).json == {"id": made["id"], "deleted": True}
    assert ask("filters", "get", made["id"]).code == 3
    bad = ask("filters", "create", "fail", "input.", "--scope", "cli")
    assert (bad.code, "invalid_expression" in bad.err) == (1, True)


def test_runs_are_replayed_by_id_and_by_what_they_are(ask: Any) -> None:
    mark = ["-m", "cli=replay"]
    failed = [ask("trigger", "fail", *mark, "--wait").json["id"] for _ in range(2)]
    one = ask("runs", "replay", failed[0])
    assert (one.code, one.json["id"]) == (0, failed[0])
    ask("runs", "tail", failed[0])
    preview = ask("runs", "replay", *mark, "-w", "fail", "--dry-run").json
    assert preview == {"id": None, "matched": 2, "status": "preview"}
    done = ask("runs", "replay", *mark, "-w", "fail", "-s", "failed", "--wait", "30s")
    assert (done.code, done.json["status"], done.json["done"]) == (0, "finished", 2)
    assert ask("bulk", "get", done.json["id"]).json == done.json
    assert done.json["id"] in [row["id"] for row in ask("bulk", "list", "-s", "finished").json["rows"]]
    over = ask("bulk", "cancel", done.json["id"])
    assert (over.code, "bulk_finished" in over.err) == (1, True)


def test_a_replay_may_have_another_input(ask: Any) -> None:
    run_id = ask("trigger", "resize", "-i", '{"width": 1}', "--wait").json["id"]
    ask("runs", "replay", run_id, "-i", json.dumps({"width": 50}))
    ask("runs", "tail", run_id)
    assert ask("runs", "get", run_id).json["output"] == {"width": 100}


def test_runs_are_cancelled_by_what_they_are(ask: Any) -> None:
    ids = [ask("trigger", "wait", "-m", "cli=cancel").json["id"] for _ in range(3)]
    done = ask("runs", "cancel", "-m", "cli=cancel", "--reason", "enough", "--wait", "30s")
    assert (done.code, done.json["done"]) == (0, 3)
    for run_id in ids:
        ask("runs", "tail", run_id)
        assert ask("runs", "get", run_id).json["status"] == "cancelled"


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "cancel"],
        ["runs", "replay", "run_x", "-w", "resize"],
        ["runs", "replay", "run_x", "--dry-run"],
        ["runs", "replay", "-w", "resize", "--task", "resize"],
        ["runs", "replay", "-s", "running"],
        ["filters", "create", "resize", "true"],
    ],
)
def test_what_does_not_go_together_is_refused(ask: Any, arguments: list[str]) -> None:
    assert ask(*arguments).code == 2
