"""The law of a log: what may be appended, when a wait is over, what is shipped."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine import journal
from dispatcher.engine.journal import Bounds, Moments, OpRefused, Settled, Wait, awake, leaves, parse_ops, parse_wake

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CREATED, LEASED = NOW - timedelta(hours=1), NOW - timedelta(seconds=5)
AFTER = timedelta(microseconds=1)
MOMENTS = Moments(CREATED, LEASED, NOW)
BOUNDS = Bounds(10, 100, 10_000)


def _ops(*ops: dict[str, Any]) -> journal.Entries:
    return parse_ops([json.dumps(op).encode() for op in ops], BOUNDS, MOMENTS)


def _one(**op: Any) -> Wait:
    return _ops({"id": "a#0", "status": "pending", **op}).waits[0]


# ---- appending


def test_entries_are_kept_byte_for_byte() -> None:
    raw = b'{ "id":"a#0","op":"step", "status":"ok","value":1.0e2 ,"at":"2026-03-01T12:00:00Z"}'
    assert parse_ops([raw], BOUNDS, MOMENTS).raw == (raw,)


def test_who_does_not_say_when_is_given_the_time() -> None:
    (entry,) = _ops({"id": "a#0", "op": "step", "status": "ok", "value": {"x": []}}).raw
    assert json.loads(entry) == {"id": "a#0", "op": "step", "status": "ok", "value": {"x": []}, "at": "2026-03-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("op", "due"),
    [
        ({"op": "sleep", "ms": 1_500}, NOW + timedelta(seconds=1.5)),
        ({"op": "sleep", "ms": 0}, NOW),
        ({"op": "sleep", "until": "2026-03-02T00:00:00+02:00"}, datetime(2026, 3, 1, 22, tzinfo=UTC)),
        ({"op": "sleep", "until": "2020-01-01T00:00:00Z"}, NOW),  # it is over at once
        ({"op": "event", "key": "k", "timeout_ms": 10}, NOW + timedelta(milliseconds=10)),
        ({"op": "event", "key": "k"}, None),
        ({"op": "message", "timeout_ms": 1000}, NOW + timedelta(seconds=1)),
        ({"op": "message"}, None),
        ({"op": "child", "workflow": "w"}, None),
        ({"op": "step", "status": "retry", "after_ms": 250}, NOW + timedelta(milliseconds=250)),
        ({"op": "step", "status": "retry"}, NOW + timedelta(seconds=1)),
        ({"op": "step", "status": "retry", "backoff_factor": 2, "attempt": 3}, NOW + timedelta(seconds=8)),
        ({"op": "step", "status": "retry", "backoff_factor": 2, "attempt": 300, "backoff_max_seconds": 9}, NOW + timedelta(seconds=9)),
    ],
)
def test_when_a_wait_is_over_by_itself(op: dict[str, Any], due: datetime | None) -> None:
    assert _one(**op).due_at == due


@pytest.mark.parametrize(
    ("since", "at", "found"),
    [
        (None, None, NOW + AFTER),
        (None, "2026-03-01T11:59:58Z", NOW - timedelta(seconds=2) + AFTER),
        (None, "2026-03-01T10:00:00Z", LEASED + AFTER),
        (None, "2027-01-01T00:00:00Z", NOW + AFTER),
        ("start", None, CREATED),
        ("2026-02-01T00:00:00Z", None, datetime(2026, 2, 1, tzinfo=UTC)),
    ],
)
def test_from_when_on_events_count(since: str | None, at: str | None, found: datetime) -> None:
    op = {"op": "event", "key": "k", **({"since": since} if since else {}), **({"at": at} if at else {})}
    assert _one(**op).since == found


def test_what_is_known_of_operations() -> None:
    entries = _ops(
        {"id": "i#0/j#1/a#0", "op": "step", "status": "ok"},
        {"id": "i#0/j#1", "op": "scope", "status": "ok", "value": 1},
        {"id": "save#0", "op": "checkpoint", "status": "ok", "value": {"n": 1}},
        {"id": "save#1", "op": "checkpoint", "status": "ok", "value": {"n": 2}},
        {"id": "new#0", "op": "patch", "status": "ok", "value": True},
        {
            "id": "ship#0",
            "op": "child",
            "status": "pending",
            "workflow": "ship",
            "on_cancel": "abandon",
            "priority": 3,
            "metadata": {"a": 1},
        },
        {"id": "in#0", "op": "message", "status": "closed"},
    )
    assert entries.parents == ("i#0",)
    assert entries.closes == ("i#0/j#1",)
    assert entries.checkpoint == b'{"n": 2}'
    assert entries.closes_inbox
    assert not entries.only_steps
    (child,) = entries.children
    assert (child.workflow, child.abandon, child.priority, child.metadata, child.input) == ("ship", True, 3, b'{"a": 1}', b"{}")
    assert _ops({"id": "a#0", "op": "step", "status": "error", "error": {}}).only_steps


def test_bounds() -> None:
    many = [b'{"id":"a#%d","op":"step","status":"ok"}' % n for n in range(11)]
    with pytest.raises(OpRefused) as refused:
        parse_ops(many, BOUNDS, MOMENTS)
    assert refused.value.code == "too_many_ops"
    with pytest.raises(OpRefused) as refused:
        parse_ops([b'"%b"' % (b"x" * 10_000)], BOUNDS, MOMENTS)
    assert refused.value.code == "journal_too_large"


@given(st.binary(max_size=200))
def test_nothing_that_is_sent_breaks_the_reading(raw: bytes) -> None:
    try:
        entries = parse_ops([raw], BOUNDS, MOMENTS)
    except OpRefused as refused:
        assert refused.code in ("invalid_op", "scope_closed")
    else:
        assert len(entries) == 1


# ---- wake expressions

ids = st.sampled_from(["a", "b", "c", "d"])
wakes = st.recursive(
    ids,
    lambda inner: (
        st.fixed_dictionaries({"any": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"all": st.lists(inner, min_size=1, max_size=3)}, optional={"fail_fast": st.booleans()})
    ),
    max_leaves=12,
)


def _oracle(wake: Any, settled: dict[str, bool]) -> bool:
    if isinstance(wake, str):
        return wake in settled
    if "any" in wake:
        return any(_oracle(one, settled) for one in wake["any"])
    failed = wake.get("fail_fast", False) and any(settled.get(name) is False for name in _names(wake))
    return failed or all(_oracle(one, settled) for one in wake["all"])


def _names(wake: Any) -> list[str]:
    return [wake] if isinstance(wake, str) else [name for one in (wake.get("any") or wake["all"]) for name in _names(one)]


@given(wakes, st.dictionaries(ids, st.booleans()))
def test_a_wake_expression_means_what_it_says(wake: Any, settled: dict[str, bool]) -> None:
    read = parse_wake(json.dumps(wake).encode())
    assert awake(read, settled) == _oracle(wake, settled)
    assert list(leaves(read)) == _names(wake)


@given(wakes, st.dictionaries(ids, st.booleans()), ids, st.booleans())
def test_what_has_woken_stays_awake(wake: Any, settled: dict[str, bool], more: str, well: bool) -> None:
    if awake(wake, settled):
        assert awake(wake, settled | ({} if more in settled else {more: well}))


@given(wakes, st.sets(ids), st.sets(ids))
def test_what_is_left_of_a_wait_is_what_is_still_to_come(wake: Any, over: set[str], more: set[str]) -> None:
    left = journal.left_of(wake, dict.fromkeys(over, True))
    assert (left is None) == awake(wake, dict.fromkeys(over, True))
    if left is not None:
        assert not over & set(_names(left))
        assert awake(left, dict.fromkeys(more, True)) == awake(wake, dict.fromkeys(over | more, True))


def test_what_is_over_is_told_by_the_log() -> None:
    entries = [
        {"id": "a#0", "op": "sleep", "status": "pending"},
        {"id": "b#0", "op": "step", "status": "retry"},
        {"id": "a#0", "op": "sleep", "status": "ok"},
        {"id": "c#0", "op": "child", "status": "pending"},
        {"id": "c#0", "op": "child", "status": "cancelled"},
        {"id": "d#0", "op": "message", "status": "closed"},
    ]
    assert journal.outcomes(json.dumps(entry).encode() for entry in entries) == {"a#0": True, "c#0": False, "d#0": False}


@pytest.mark.parametrize(
    "text",
    [
        b'"a\\u0000"',
        b'""',
        b"",
        b"null",
        b"5",
        b"[]",
        b"{}",
        b'{"any":[]}',
        b'{"any":"a"}',
        b'{"any":["a"],"all":["b"]}',
        b'{"x":["a"]}',
        b"{",
    ],
)
def test_what_is_no_wake_expression(text: bytes) -> None:
    with pytest.raises(OpRefused) as refused:
        parse_wake(text)
    assert refused.value.code == "unknown_wake"


def test_a_wake_expression_has_a_depth() -> None:
    deep = "a"
    for _ in range(40):
        deep = {"any": [deep]}  # type: ignore[assignment]
    with pytest.raises(OpRefused):
        parse_wake(json.dumps(deep).encode())


# ---- what travels


@given(st.lists(st.lists(st.binary(max_size=5).map(lambda b: json.dumps({"x": b.hex()}).encode()), max_size=4), max_size=4))
def test_segments_come_apart_as_they_were_put_together(appends: list[list[bytes]]) -> None:
    assert journal.split(b",".join(entries) for entries in appends) == [entry for entries in appends for entry in entries]


@given(st.lists(st.binary(min_size=1, max_size=20)), st.integers(0, 20))
def test_the_hash_rolls_on_from_anywhere(entries: list[bytes], at: int) -> None:
    whole = b""
    for entry in entries:
        whole = hashlib.sha256(whole + entry).digest()
    assert journal.rolled(b"", entries) == journal.rolled(journal.rolled(b"", entries[:at]), entries[at:]) == whole


def test_what_a_closed_scope_hides() -> None:
    names = ["i#0/a#0", "i#0", "i#0/j#0/b#0", "i#1/a#0", "i#01", "x"]
    entries = [json.dumps({"id": name}).encode() for name in names]
    shown = [json.loads(entry)["id"] for entry in journal.visible(entries, frozenset({"i#0"}))]
    assert shown == ["i#0", "i#1/a#0", "i#01", "x"]


def test_what_became_of_operations() -> None:
    at = {"at": "2026-03-01T12:00:00Z"}
    for wait, document in [
        (Settled("a", "sleep", "ok", NOW), {"id": "a", "op": "sleep", "status": "ok", **at}),
        (Settled("a", "event", "timeout", NOW), {"id": "a", "op": "event", "status": "timeout", **at}),
        (
            Settled("a", "child", "ok", NOW, b'{"n":1}', "run_1"),
            {"id": "a", "op": "child", "status": "ok", "run_id": "run_1", "value": {"n": 1}, **at},
        ),
        (
            Settled("a", "child", "error", NOW, b'{"code":"x"}', "run_1"),
            {"id": "a", "op": "child", "status": "error", "run_id": "run_1", "error": {"code": "x"}, **at},
        ),
    ]:
        entry = journal.completion(wait)
        assert entry is not None
        assert json.loads(entry) == document
    assert journal.completion(Settled("a", "step", "ok", NOW)) is None, "a step is run again, which says it all"


def test_a_repetition_is_recognised() -> None:
    known = [b'{"id":"a","at":"t"}', b'{"id":"b","at":"t"}']
    assert journal.repeated(known, known)
    assert journal.repeated(known, known[:1])
    assert journal.repeated(known, [])
    assert journal.repeated(known, [b'{"id": "a"}']), "it was offered without `at`, and given one"
    assert not journal.repeated(known, known[1:])
    assert not journal.repeated(known[:1], known)
    assert not journal.repeated(known, [b'{"id":"a","at":"u"}'])


# ---- answers


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"hello", b"{}", b'{"status":"ok"}', b'{"status":"wait","base":"x"}', b'{"status":"wait","ops":5}', b"\xff"]
)
def test_what_is_no_answer_of_a_turn(body: bytes) -> None:
    assert journal.parse_reply(body) is None


def test_an_answer_keeps_its_texts() -> None:
    reply = journal.parse_reply(b'{"status":"wait","base":3,"ops":[{"id": "a"}],"wake":{"any":["a"]},"state":{"n": 1},"unknown":1}')
    assert reply is not None
    assert (reply.status, reply.base, reply.ops, reply.wake, reply.state) == ("wait", 3, (b'{"id": "a"}',), b'{"any":["a"]}', b'{"n": 1}')
