"""Bodies out and lines in. Inputs, metadata and outputs stay the JSON text they are; only what surrounds them is written or read.

Source of the shapes: `handlers_sdk.wire`; a test compares every field.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from dispatcher.delivery.message import BatchLimits, Push, Target
from handlers_sdk import wire

_NULL: Final = Raw(b"null")
_ABSENT: Final = Raw(b"")
_MILLISECOND: Final = timedelta(milliseconds=1)
_encode: Final = msgspec.json.Encoder().encode


class RunItem(msgspec.Struct):
    """`wire.RunItem`, with JSON texts where it has values."""

    name: str
    id: str
    run_id: str
    attempt: int
    retry_count: int
    max_attempts: int
    version: str
    input: Raw
    deadline: datetime
    timeout_ms: int
    token: str
    tenant: str
    workflow: str
    metadata: Raw
    priority: int
    event: Raw | UnsetType = UNSET
    parent_run_id: str | UnsetType = UNSET
    filter_payload: Raw | UnsetType = UNSET
    parents: Raw | UnsetType = UNSET
    errors: Raw | UnsetType = UNSET
    batch: Raw | UnsetType = UNSET
    refs: Raw | UnsetType = UNSET


class _Head(msgspec.Struct):
    protocol: int
    type: str | UnsetType
    audience: str
    api: str


class BatchHead(_Head):
    """`wire.BatchPush` before its items."""

    ordered: bool


class CancelPush(msgspec.Struct):
    """`wire.CancelPush`."""

    protocol: int
    type: str
    audience: str
    id: str
    attempt: int
    reason: str


class ResultLine(msgspec.Struct):
    """Any `wire.Result`. Absent JSON texts are empty."""

    id: str
    status: str
    output: Raw = _NULL
    refs: tuple[str, ...] = ()
    retry: bool | None = None
    retry_after_ms: float | None = None
    after_ms: float | None = None
    lease_ms: float | None = None
    error: Raw = _ABSENT


class BatchAnswer(msgspec.Struct):
    """`wire.BatchAnswer`, its results still text so that one malformed result spoils only itself."""

    results: list[Raw]


class EventLine(msgspec.Struct):
    """A line of a streamed answer, as far as delivery looks at it."""

    type: str
    output: Raw = _NULL
    refs: tuple[str, ...] = ()
    retry: bool | None = None
    retry_after_ms: float | None = None
    error: Raw = _ABSENT


class _Named(msgspec.Struct):
    id: str


_result: Final = msgspec.json.Decoder(ResultLine)
_named: Final = msgspec.json.Decoder(_Named)
_event: Final = msgspec.json.Decoder(EventLine)
_answer: Final = msgspec.json.Decoder(BatchAnswer)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# ---- out


def run_item(push: Push, version: str) -> bytes:
    """One attempt as an item of a batch. A turn says itself that it is one."""
    item = _item(push, version)
    return item if push.turn is None else b"%b,%b}" % (item[:-1], push.turn)


def _item(push: Push, version: str) -> bytes:
    return _encode(
        RunItem(
            push.name,
            push.task_id,
            push.run_id,
            push.attempt,
            push.retry_count,
            push.max_attempts,
            version,
            Raw(push.input),
            push.deadline,
            push.timeout // _MILLISECOND,
            push.token,
            push.tenant,
            push.workflow,
            _NULL if push.metadata is None else Raw(push.metadata),
            push.priority,
            _optional(push.event),
            UNSET if push.parent_run_id is None else push.parent_run_id,
            _optional(push.filter_payload),
            _optional(push.parents),
            _optional(push.errors),
            _optional(push.batch),
            _optional(push.refs),
        )
    )


def run_body(target: Target, push: Push) -> bytes:
    """One attempt on its own: the item, opened up and addressed."""
    head = _encode(_Head(wire.PROTOCOL_VERSION, wire.PUSH_RUN if push.turn is None else UNSET, target.endpoint_id, target.api))
    return b"%b,%b" % (head[:-1], run_item(push, target.version)[1:])


def batch_body(target: Target, items: Sequence[bytes]) -> bytes:
    """Many attempts in one body."""
    head = _encode(BatchHead(wire.PROTOCOL_VERSION, wire.PUSH_BATCH, target.endpoint_id, target.api, ordered=False))
    return b'%b,"items":[%b]}' % (head[:-1], b",".join(items))


def cancel_body(target: Target, task_id: str, attempt: int, reason: str) -> bytes:
    """Notice that an attempt should stop."""
    return _encode(CancelPush(wire.PROTOCOL_VERSION, wire.PUSH_CANCEL, target.endpoint_id, task_id, attempt, reason))


def chunks(sizes: Sequence[int], limits: BatchLimits | None, overhead: int) -> Iterator[range]:
    """Consecutive ranges of items, each within what the endpoint takes; an item too big on its own goes alone."""
    if limits is None:
        yield range(len(sizes))
        return
    start, total = 0, overhead
    for index, size in enumerate(sizes):
        if index > start and (index - start >= limits.max_items or total + size > limits.max_bytes):
            yield range(start, index)
            start, total = index, overhead
        total += size + 1
    yield range(start, len(sizes))


def rfc3339(moment: datetime) -> str:
    """UTC to the millisecond, as `2026-01-01T00:00:55.000Z`."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return utc.isoformat(timespec="milliseconds")[:-6] + "Z"


def _optional(text: bytes | None) -> Raw | UnsetType:
    return UNSET if text is None else Raw(text)


# ---- in


def parse_result(line: bytes | Raw) -> ResultLine | str | None:
    """One result; of a malformed one that names its task, the task's id; None for anything else."""
    try:
        return _result.decode(line)
    except _UNREADABLE:
        pass
    try:
        return _named.decode(line).id
    except _UNREADABLE:
        return None


def parse_results(body: bytes) -> list[Raw] | None:
    """The results of a batch answered in one piece, unread; None if it is no such answer."""
    try:
        return _answer.decode(body).results
    except _UNREADABLE:
        return None


def parse_event(line: bytes) -> EventLine | None:
    """What a streamed line is; None if it cannot be read."""
    try:
        return _event.decode(line)
    except _UNREADABLE:
        return None
