"""The law of going back in a log: what a branch keeps, what of it is still to be settled, and that nothing is left of a cancel."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine import journal
from dispatcher.engine.branches import Branch, branch, closed_by, closes_inbox, moment_of, saved_by
from dispatcher.engine.journal import name_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _log(*names: str) -> list[bytes]:
    return [json.dumps({"id": name.strip("?!"), "op": "step", "status": "pending" if "?" in name else "ok"}).encode() for name in names]


@pytest.mark.parametrize(
    ("log", "node", "kept", "pending"),
    [
        (("a", "b", "c"), "b", ["a"], []),
        (("a", "b", "c"), None, ["a", "b", "c"], []),
        (("a", "b", "c"), "a", [], []),
        (("s?", "b", "s", "c"), "b", ["s", "s"], []),
        (("s?", "b", "c"), "b", ["s"], ["s"]),
        (("s?", "b", "s"), "s", [], []),
    ],
)
def test_a_branch_keeps_what_was_asked_for_before_its_node(
    log: tuple[str, ...], node: str | None, kept: list[str], pending: list[str]
) -> None:
    found = branch(_log(*log), node)
    assert found is not None
    assert [json.loads(entry)["id"] for entry in found.entries] == kept
    assert [json.loads(entry)["id"] for entry in found.pending] == pending


def test_there_is_no_branch_at_a_node_that_is_not_there() -> None:
    assert branch(_log("a"), "z") is None


# ---- a log that was cancelled


def _entry(name: str, op: str, status: str, **members: Any) -> bytes:
    return json.dumps({"id": name, "op": op, "status": status, **members}).encode()


CANCEL = journal.cancel_entry("x", NOW)
OPEN = [_entry("pay#0", "step", "ok"), _entry("checkpoint#0", "checkpoint", "ok", value=1), _entry("box#0/nap#0", "sleep", "pending")]
ASKED = [*OPEN, _entry("message#0", "message", "pending"), _entry("child#0", "child", "pending")]
TOLD = _entry("message#0", "message", "cancel", value={"$cancel": True})
CLEANED = [
    _entry("box#0/refund#0", "step", "ok"),
    _entry("cancel#0", "step", "ok"),  # by a step of that name
    _entry("box#0", "scope", "ok"),
    _entry("checkpoint#1", "checkpoint", "ok", value=2),
    _entry("new#0", "patch", "ok", value=True),
    _entry("inbox#0", "message", "closed"),
]


def test_a_cancelled_log_goes_on_from_where_it_was_cancelled() -> None:
    found = branch([*ASKED, TOLD, CANCEL, *CLEANED], None)
    assert found is not None
    assert found.entries == tuple(ASKED)
    assert found.pending == tuple(ASKED[2:])
    assert closed_by(found.entries) == []
    assert not closes_inbox(found.entries)
    assert saved_by(found.entries) == b"1"


@pytest.mark.parametrize("node", ["cancel#0", *(name_of(entry) for entry in CLEANED)])
def test_a_node_of_the_cleaning_up_is_where_it_was_cancelled(node: str) -> None:
    assert branch([*ASKED, TOLD, CANCEL, *CLEANED], node) == branch(ASKED, None)


@pytest.mark.parametrize("node", ["pay#0", "checkpoint#0", "box#0/nap#0", "message#0", "child#0"])
def test_a_node_before_the_cancel_takes_the_cleaning_up_away_as_well(node: str) -> None:
    assert branch([*ASKED, TOLD, CANCEL, *CLEANED], node) == branch(ASKED, node)


def test_what_was_asked_for_before_the_cancel_keeps_what_became_of_it_after() -> None:
    slept, shipped = _entry("box#0/nap#0", "sleep", "ok"), _entry("child#0", "child", "ok", value=1)
    found = branch([*ASKED, TOLD, CANCEL, CLEANED[0], slept, shipped, *CLEANED[1:]], None)
    assert found is not None
    assert found.entries == (*ASKED, slept, shipped)
    assert [name_of(entry) for entry in found.pending] == ["message#0"]


def test_a_step_named_as_the_cancel_is_stays_where_it_ran_before() -> None:
    ran = _entry("cancel#0", "step", "ok")
    assert branch([ran, CANCEL], None) == Branch((ran,), ())
    assert branch([*OPEN, ran, CANCEL], "cancel#0") == branch(OPEN, None)


def test_a_scope_that_was_closed_before_the_cancel_stays_closed() -> None:
    closed = [*OPEN, _entry("box#0", "scope", "ok")]
    found = branch([*closed, CANCEL, *CLEANED[3:]], None)
    assert found is not None
    assert (found.entries, closed_by(found.entries)) == (tuple(closed), ["box#0"])


_NAMES = st.integers(0, 4).map(lambda n: f"a#{n}")
_ENTRIES = st.lists(st.tuples(_NAMES, st.sampled_from(["pending", "retry", "ok", "error"])), max_size=12)


@given(_ENTRIES, _ENTRIES, st.none() | _NAMES)
def test_nothing_that_begins_after_the_cancel_is_ever_kept(
    before: list[tuple[str, str]], after: list[tuple[str, str]], node: str | None
) -> None:
    """A cancelled log is the same log with what became of its own operations, and nothing else."""
    log = [_entry(name, "step", status) for name, status in before]
    known = {name for name, _ in before}
    rest = [_entry(name, "step", status) for name, status in after]
    own = [entry for entry in rest if name_of(entry) in known]
    if node is not None and node not in known:
        there = node in {name for name, _ in after}
        assert branch([*log, CANCEL, *rest], node) == (branch([*log, *own], None) if there else None)
    else:
        assert branch([*log, CANCEL, *rest], node) == branch([*log, *own], node)


# ---- what entries say


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('"2026-01-01T10:00:00Z"', "2026-01-01T10:00:00+00:00"),
        ('"2026-01-01T10:00:00"', "2026-01-01T10:00:00+00:00"),
        ('"0001-01-01T00:00:00+14:00"', "2026-01-01T09:00:00+00:00"),
        ('"9999-12-31T23:59:59-14:00"', "2026-01-01T11:00:00+00:00"),
        ("null", "2026-01-01T11:00:00+00:00"),
    ],
)
def test_an_entry_was_written_in_the_life_of_its_task_whatever_it_says(said: str, expected: str) -> None:
    earliest, latest = datetime(2026, 1, 1, 9, tzinfo=UTC), datetime(2026, 1, 1, 11, tzinfo=UTC)
    assert moment_of(b'{"id":"a#0","at":%b}' % said.encode(), earliest, latest).isoformat() == expected


def test_who_is_told_that_the_inbox_is_closed_has_not_closed_it() -> None:
    asked, told, closed = (
        b'{"id":"%b","op":"message","status":"%b"}' % one for one in ((b"m", b"pending"), (b"m", b"closed"), (b"x", b"closed"))
    )
    assert not closes_inbox([asked, told])
    assert closes_inbox([closed])
    assert closes_inbox([asked, told, closed])
