"""The checker is shown every kind of bug it is there for. One it lets pass is a hole in every chaos run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.chaos.ledger import Ack, Attempt, Ledger, Request, Run, check

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def _attempt(run_id: str, number: int, status: str, start: float, end: float) -> Attempt:
    return Attempt(run_id, number, status, T0 + timedelta(seconds=start), T0 + timedelta(seconds=end))


def good() -> Ledger:
    """A run that went well, one that was lost and sent again, one that failed for good, and an event with two runs."""
    return Ledger(
        acks=[Ack("k1", "run_1"), Ack("k2", "run_2"), Ack("k2", "run_2"), Ack("k3", "run_3"), Ack("k4", "evt_1", 2, event=True)],
        requests=[
            Request("run_1", 1, "n1"),
            Request("run_2", 1, "n2"),
            Request("run_2", 3, "n3"),
            Request("run_3", 1, "n4"),
            Request("run_4", 1, "n5"),
            Request("run_5", 1, "n6"),
        ],
        runs=[
            Run("run_1", "succeeded", "k1", None, 1, "n1"),
            Run("run_2", "succeeded", "k2", None, 3, "n3"),
            Run("run_3", "failed", "k3", None, 1, None),
            Run("run_4", "succeeded", None, "evt_1", 1, "n5"),
            Run("run_5", "succeeded", None, "evt_1", 1, "n6"),
            Run("run_6", "cancelled", "never acknowledged", None, 0, None),
        ],
        attempts=[
            _attempt("run_1", 1, "succeeded", 0, 1),
            _attempt("run_2", 1, "lost", 0, 4),
            _attempt("run_2", 2, "unreachable", 4, 4.1),
            _attempt("run_2", 3, "succeeded", 5, 6),
            _attempt("run_3", 1, "failed", 0, 1),
            _attempt("run_4", 1, "succeeded", 0, 1),
            _attempt("run_5", 1, "succeeded", 0, 1),
        ],
        events={"evt_1": "k4"},
    )


def test_a_good_ledger_is_good() -> None:
    assert check(good()) == []


def _drop(ledger: Ledger, run_id: str) -> None:
    ledger.runs = [run for run in ledger.runs if run.id != run_id]


def _change(ledger: Ledger, run_id: str, **changes: object) -> None:
    ledger.runs = [replace(run, **changes) if run.id == run_id else run for run in ledger.runs]  # type: ignore[arg-type]


def _change_attempt(ledger: Ledger, run_id: str, number: int, **changes: object) -> None:
    ledger.attempts = [
        replace(a, **changes) if (a.run_id, a.number) == (run_id, number) else a  # type: ignore[arg-type]
        for a in ledger.attempts
    ]


def _without_attempt(ledger: Ledger, run_id: str, number: int) -> None:
    ledger.attempts = [a for a in ledger.attempts if (a.run_id, a.number) != (run_id, number)]


PLANTED: dict[str, tuple[Callable[[Ledger], object], str]] = {
    "lost run": (lambda x: _drop(x, "run_1"), "run run_1 was acknowledged and is lost"),
    "stuck run": (lambda x: setattr(x, "live", 3), "3 tasks or runs are stuck"),
    "grants of the dead": (lambda x: setattr(x, "dead_grants", 1), "1 slot grants are left"),
    "tasks of ghosts": (lambda x: setattr(x, "unowned", 1), "1 tasks belong to dispatchers that do not exist"),
    "two ends": (lambda x: x.runs.append(replace(x.runs[0], status="failed", nonce=None)), "run run_1 has 2 ends"),
    "a key twice": (lambda x: x.runs.append(Run("run_9", "cancelled", "k1", None, 0, None)), "key k1 started 2 runs"),
    "an event's key twice": (lambda x: x.events.update(evt_2="k4"), "key k4 made 2 events"),
    "a key answered in two ways": (lambda x: x.acks.append(Ack("k1", "run_3")), "key k1 was answered with run_1 and with run_3"),
    "somebody else's run": (lambda x: _change(x, "run_1", key="k9"), "run run_1 was acknowledged for key k1 and carries k9"),
    "lost event": (lambda x: x.events.clear(), "event evt_1 was acknowledged and is lost"),
    "lost run of an event": (lambda x: _drop(x, "run_4"), "event evt_1 was told to start 2 runs and started 1"),
    "run of an event twice": (
        lambda x: x.runs.append(Run("run_9", "cancelled", None, "evt_1", 0, None)),
        "event evt_1 was told to start 2 runs and started 3",
    ),
    "attempt without a row": (lambda x: _without_attempt(x, "run_2", 2), "run run_2 made 3 attempts and has rows of [1, 3]"),
    "attempt with two rows": (lambda x: x.attempts.append(x.attempts[0]), "run run_1 made 1 attempts and has rows of [1, 1]"),
    "attempt too many": (
        lambda x: x.attempts.append(_attempt("run_1", 2, "lost", 2, 3)),
        "run run_1 made 1 attempts and has rows of [1, 2]",
    ),
    "request without a row": (lambda x: x.requests.append(Request("run_3", 2, "n9")), "attempt 2 of run run_3 was sent and has no row"),
    "hidden retry": (lambda x: x.requests.append(Request("run_1", 1, "n9")), "attempt 1 of run run_1 was sent 2 times"),
    "result of nobody": (lambda x: _change(x, "run_1", nonce="n99"), "run run_1 has a result nobody gave"),
    "result of an older attempt": (
        lambda x: _change(x, "run_2", nonce="n2"),
        "run run_2 ended by attempt 3 with the result of attempt 1 of run_2",
    ),
    "result of another run": (
        lambda x: _change(x, "run_1", nonce="n5"),
        "run run_1 ended by attempt 1 with the result of attempt 1 of run_4",
    ),
    "success without one": (
        lambda x: _change_attempt(x, "run_1", 1, status="lost"),
        "run run_1 succeeded; of its 1 attempts these did: []",
    ),
    "two successes": (
        lambda x: _change_attempt(x, "run_2", 1, status="succeeded"),
        "run run_2 succeeded; of its 3 attempts these did: [1, 3]",
    ),
    "success thrown away": (
        lambda x: _change_attempt(x, "run_3", 1, status="succeeded"),
        "run run_3 is failed though attempts [1] succeeded",
    ),
    "two at a time": (
        lambda x: _change_attempt(x, "run_2", 1, finished_at=T0 + timedelta(seconds=7)),
        "run run_2: attempt 2 began before attempt 1 had ended",
    ),
    "ended before it began": (
        lambda x: _change_attempt(x, "run_1", 1, finished_at=T0 - timedelta(seconds=1)),
        "run run_1: attempt 1 ended before it began",
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    plant, words = PLANTED[bug]
    ledger = good()
    plant(ledger)
    assert any(words in broken for broken in check(ledger)), check(ledger)
