"""Bodies have exactly the members of the wire, and pass JSON texts on byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NotRequired, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.delivery import BatchLimits
from dispatcher.delivery.envelope import (
    BatchAnswer,
    BatchHead,
    CancelPush,
    EventLine,
    ResultLine,
    RunItem,
    batch_body,
    cancel_body,
    chunks,
    parse_event,
    parse_result,
    parse_results,
    rfc3339,
    run_body,
    run_item,
)
from handlers_sdk import wire
from tests.delivery.endpoints import ULID, push, target

TARGET = target("https://app.example.com/")


def members(message: type) -> set[str]:
    return set(get_type_hints(message))


def required(message: type) -> set[str]:
    """`__required_keys__` is wrong where annotations are strings."""
    return {name for name, kind in get_type_hints(message, include_extras=True).items() if get_origin(kind) is not NotRequired}


def fields(structure: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(structure)}


def test_every_structure_has_the_members_of_its_message() -> None:
    assert fields(RunItem) == members(wire.RunItem)
    assert fields(CancelPush) == members(wire.CancelPush)
    assert fields(BatchHead) | {"items"} == members(wire.BatchPush)
    assert fields(BatchAnswer) == members(wire.BatchAnswer)
    results = members(wire.ResultOk) | members(wire.ResultFail) | members(wire.ResultRetry) | members(wire.ResultAccepted)
    assert fields(ResultLine) == results
    assert fields(EventLine) == members(wire.DoneEvent) | members(wire.FailEvent)


def test_members_that_may_be_absent_are_those_of_the_message() -> None:
    texts: dict[str, Any] = {
        "event": b"{}",
        "filter_payload": b"1",
        "parents": b"{}",
        "errors": b"{}",
        "metadata": b"{}",
        "batch": b"{}",
        "refs": b"[]",
    }
    full = replace(push(), parent_run_id="run_1", **texts)
    assert set(json.loads(run_item(full, "v"))) == members(wire.RunItem)
    always = set(json.loads(run_item(push(), "v")))
    assert required(wire.RunItem) <= always
    assert always - required(wire.RunItem) == {"metadata"}
    assert set(json.loads(run_body(TARGET, full))) == members(wire.RunPush)
    assert required(wire.RunPush) <= set(json.loads(run_body(TARGET, push())))
    assert set(json.loads(batch_body(TARGET, [b"{}"]))) == members(wire.BatchPush)
    assert set(json.loads(cancel_body(TARGET, "tsk_1", 2, "why"))) == members(wire.CancelPush)


def test_a_run() -> None:
    odd = replace(push(), name='a"b\\ü', metadata=b'{"t": 1}', event=b'{"id":"evt_1","type":"a"}', timeout=timedelta(seconds=1.5))
    assert json.loads(run_body(TARGET, odd)) == {
        "protocol": 1,
        "type": "run",
        "audience": f"ep_{ULID}",
        "api": "http://127.0.0.1:8400",
        "name": 'a"b\\ü',
        "id": odd.task_id,
        "run_id": odd.run_id,
        "attempt": 2,
        "retry_count": 1,
        "max_attempts": 5,
        "version": "4f2c",
        "input": {"w": 64},
        "deadline": "2026-01-01T00:00:55Z",
        "timeout_ms": 1_500,
        "token": "atk1.abc.def",
        "tenant": "default",
        "workflow": "resize",
        "metadata": {"t": 1},
        "priority": 1,
        "event": {"id": "evt_1", "type": "a"},
    }


def test_a_cancel() -> None:
    body = json.loads(cancel_body(TARGET, "tsk_1", 2, "no longer wanted"))
    expected = {"protocol": 1, "type": "cancel", "audience": f"ep_{ULID}", "id": "tsk_1", "attempt": 2, "reason": "no longer wanted"}
    assert body == expected


PLAIN = st.none() | st.integers() | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(deadline=None)
@given(VALUES, st.dictionaries(st.text(), st.text()) | st.none(), st.text(max_size=30))
def test_texts_pass_unchanged(value: Any, metadata: dict[str, str] | None, name: str) -> None:
    text = json.dumps(value, indent=1).encode()
    each = replace(push(body=text), name=name, metadata=None if metadata is None else json.dumps(metadata).encode())
    assert text in run_body(TARGET, each)
    decoded = json.loads(run_body(TARGET, each))
    assert (decoded["input"], decoded["metadata"], decoded["name"]) == (value, metadata, name)
    items = json.loads(batch_body(TARGET, [run_item(each, "v")] * 3))["items"]
    assert [item["input"] for item in items] == [value] * 3


def test_times() -> None:
    moment = datetime(2026, 1, 1, 2, 0, 55, 123_456, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(moment) == "2026-01-01T00:00:55.123Z"
    assert rfc3339(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00.000Z"


# ---- cutting batches


@settings(deadline=None)
@given(st.lists(st.integers(min_value=1, max_value=50), min_size=1, max_size=40), st.integers(1, 8), st.integers(60, 200))
def test_chunks(sizes: list[int], most: int, total: int) -> None:
    ranges = list(chunks(sizes, BatchLimits(most, total), 10))
    assert [index for each in ranges for index in each] == list(range(len(sizes)))
    for each in ranges:
        assert 1 <= len(each) <= most
        assert len(each) == 1 or 10 + sum(sizes[index] + 1 for index in each) - 1 <= total


def test_no_limits_no_chunks() -> None:
    assert list(chunks([5] * 500, None, 10)) == [range(500)]
    assert list(chunks([5_000, 5, 5], BatchLimits(10, 100), 10)) == [range(1), range(1, 3)]


# ---- reading


def test_results() -> None:
    line = parse_result(b'{"id":"tsk_1","status":"ok","output":{"a": [1]},"more":1}')
    assert isinstance(line, ResultLine)
    assert (line.id, line.status, bytes(line.output)) == ("tsk_1", "ok", b'{"a": [1]}')
    assert parse_result(b'{"id":"tsk_1"}') == "tsk_1"
    assert parse_result(b'{"id":"tsk_1","status":5}') == "tsk_1"
    for text in (b"", b"{", b"[]", b"1", b'{"id":5}', b'{"status":"ok"}', b"\xff", b'{"id":"\xff"}', b"[" * 9_999):
        assert parse_result(text) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"results":{}}', b'{"results":5}', b"\xff", b"[" * 9_999])
def test_no_results(body: bytes) -> None:
    assert parse_results(body) is None


def test_results_in_one_piece() -> None:
    results = parse_results(b'{"results":[{"id":"a"}, 5, null],"x":1}')
    assert results is not None
    assert [bytes(result) for result in results] == [b'{"id":"a"}', b"5", b"null"]


def test_events() -> None:
    event = parse_event(b'{"type":"done","output":[1]}')
    assert event is not None
    assert (event.type, bytes(event.output), bytes(event.error)) == ("done", b"[1]", b"")
    for text in (b"", b"[]", b'{"type":1}', b"{}", b"\xff"):
        assert parse_event(text) is None
