"""Answers for people: golden output."""

from __future__ import annotations

from datetime import timedelta

import pytest
import rich_click as click

from dispatcher.cli.options import Moment, parse_duration, typed
from dispatcher.cli.output import Output, pairs, table
from dispatcher.cli.results import run_lines
from dispatcher.cli.steps import Steps, duration

RUN = {
    "id": "run_01",
    "workflow": "resize",
    "status": "failed",
    "input": {"width": 1},
    "output": None,
    "error": {"code": "task_failed", "message": "no\ndisk"},
    "metadata": {"source": "x"},
    "created_at": "2026-01-01T00:00:00Z",
    "finished_at": "2026-01-01T00:00:02.5Z",
    "event_id": "evt_01",
    "parent_run_id": None,
    "tasks": [
        {
            "name": "resize",
            "attempts": [
                {
                    "number": 1,
                    "status": "failed",
                    "http_status": 500,
                    "started_at": "2026-01-01T00:00:00Z",
                    "finished_at": "2026-01-01T00:00:00.012Z",
                    "error": {"code": "task_failed", "message": "no disk"},
                },
                {
                    "number": 2,
                    "status": "running",
                    "http_status": None,
                    "started_at": "2026-01-01T00:00:01Z",
                    "finished_at": None,
                    "error": None,
                },
            ],
        }
    ],
}


def test_table() -> None:
    rows: list[dict[str, object]] = [{"id": "a", "n": 1, "error": {"message": "broken"}}, {"id": "longer", "n": None, "error": None}]
    assert table(rows, ["id", "n", "error.message"]) == ["id      n  error", "a       1  broken", "longer  -  -"]


def test_pairs() -> None:
    assert pairs({"id": "a", "next_attempt": None, "on_events": ["x"], "ok": True}, ["id", "next_attempt", "on_events", "ok"]) == [
        "id         a",
        'on events  ["x"]',
        "ok         true",
    ]


def test_run() -> None:
    assert list(run_lines(RUN)) == [
        "run_01  resize  failed  2.5 s",
        'input     {"width": 1}',
        'metadata  {"source": "x"}',
        "event     evt_01",
        "error     task_failed: no disk",
        "attempt 1 resize  failed 500  12 ms  task_failed: no disk",
        "attempt 2 resize  running",
    ]


def test_steps(capsys: pytest.CaptureFixture[str]) -> None:
    moments = iter([0.0, 0.5, 2.0, 2.5])
    steps = Steps(Output(json=True), lambda: next(moments))
    steps.done("Postgres", version="18.4")
    steps.done("schema")
    steps.ready("http://127.0.0.1:1", "go on")
    told = capsys.readouterr()
    assert click.unstyle(told.err) == "✓ Postgres  500 ms\n✓ schema  1.5 s\n▶ http://127.0.0.1:1 is ready after 2.5 s; go on\n"
    assert told.out.splitlines() == [
        '{"type":"step","text":"Postgres","elapsed_ms":500,"version":"18.4"}',
        '{"type":"step","text":"schema","elapsed_ms":1500}',
        '{"type":"ready","url":"http://127.0.0.1:1","elapsed_ms":2500}',
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h30m", 5400), ("7d", 604800), ("1.5", 1.5), ("250ms", 0.25), ("", None), ("1x", None), ("soon", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (timedelta(seconds=seconds) if seconds is not None else None)


def test_durations_are_shown_short() -> None:
    assert [duration(number) for number in (0.4, 999, 1000, 61_000)] == ["0 ms", "999 ms", "1.0 s", "61.0 s"]


def test_moments() -> None:
    moment = Moment()
    assert moment.convert("2026-01-31T09:00:00+02:00", None, None) == "2026-01-31T07:00:00Z"
    assert moment.convert("1h", None, None) < moment.convert("1s", None, None)


def test_values_of_pairs_are_numbers_where_they_read_as_such() -> None:
    assert typed([("a", "1"), ("b", "x"), ("c", "true"), ("d", "01"), ("e", "-1.5")]) == {"a": 1, "b": "x", "c": True, "d": "01", "e": -1.5}
