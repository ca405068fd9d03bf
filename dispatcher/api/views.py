"""What runs, events and attempts look like from outside. Bodies are passed on as the JSON text they were stored as."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from dispatcher.engine.answers import JSON
from dispatcher.ids import attempt_id
from dispatcher.store.events import AttemptRun, EventRow
from dispatcher.store.filters import FailureRow
from dispatcher.store.runs import FINAL_STATUSES, RunSummary

Status = Literal["pending", "queued", "running", "waiting", "pending_retry", "blocked", "succeeded", "failed", "cancelled", "skipped"]
Fate = Literal["cancelled", "cancelling"]

NULL: Final = Raw(b"null")
_FINAL: Final = FINAL_STATUSES | {"skipped"}


class RunCreated(msgspec.Struct, frozen=True):
    """A run that is durable. `duplicate` marks the first run of an idempotency key that came again."""

    id: str
    workflow: str
    status: str
    created_at: datetime
    duplicate: bool | UnsetType = UNSET


class EventRef(msgspec.Struct, frozen=True):
    """An event's id and its stream's."""

    event_id: str
    stream_id: str


class EventCreated(msgspec.Struct, frozen=True):
    """An event that is durable, with the ids of the runs it started; of the schedule or the cron, for one that plans."""

    event_id: str
    stream_id: str
    runs: list[str]
    data: EventRef
    duplicate: bool | UnsetType = UNSET
    schedule_id: str | UnsetType = UNSET
    cron_id: str | UnsetType = UNSET


class RunSummaryView(msgspec.Struct, frozen=True):
    """A run in a list: without bodies, tasks and attempts."""

    id: str
    workflow: str
    status: Status
    metadata: Raw
    priority: int
    trigger: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    event_id: str | None
    parent_run_id: str | None
    error: Raw
    cron_id: str | UnsetType = UNSET
    schedule_id: str | UnsetType = UNSET


class FilterFailureView(msgspec.Struct, frozen=True):
    """A filter that could not be evaluated on an event, and so did not start its workflow."""

    workflow: str
    filter_id: str
    scope: str
    expression: str
    code: str
    message: str


class EventView(msgspec.Struct, frozen=True):
    """An event; `runs` is how many it started. Lists leave `data` out, and the filters that failed."""

    id: str
    type: str
    metadata: Raw
    scope: str | None
    priority: int | None
    stream_id: str
    runs: int
    created_at: datetime
    data: Raw | UnsetType = UNSET
    idempotency_key: str | UnsetType = UNSET
    filter_failures: list[FilterFailureView] | UnsetType = UNSET


class Trigger(msgspec.Struct, frozen=True):
    """What started a run."""

    type: str
    event_id: str


class EventRunView(msgspec.Struct, frozen=True):
    """One attempt of a run that an event started, as a run of its own. Those after the first name the first in `origin_run_id`."""

    run_id: str
    function: str
    status: Status
    attempt: int
    input: Raw
    result: Raw
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    duration_ms: int | None
    trigger: Trigger
    origin_run_id: str | None


def raw(text: str | bytes | None) -> Raw:
    """Stored JSON text, as it goes into an answer."""
    return NULL if text is None else Raw(text)


def output_of(output: bytes | None, kind: str | None) -> tuple[Raw, str | UnsetType]:
    """A stored output: JSON as it is, anything else as a string with its type."""
    if output is None or kind is None or kind == JSON:
        return raw(output), UNSET
    return Raw(msgspec.json.encode(output.decode("utf-8", "replace"))), kind


def live_status(state: str, epoch: int) -> Status:
    """What a live task is doing, in the words of the API."""
    if state in ("running", "waiting", "blocked"):
        return state  # type: ignore[return-value]  # it is one of these
    return "pending_retry" if state == "scheduled" and epoch > 0 else "queued"


def status_of(status: str, epoch: int) -> Status:
    """How a task ended, or what it is doing."""
    return status if status in _FINAL else live_status(status, epoch)  # type: ignore[return-value]  # the schema's check says so


def cause_of(trigger: str, key: str | None) -> tuple[str, str]:
    """(id of the cron or schedule, moment it was started for) of a run that the clock started; empty texts for what is not known."""
    if trigger not in ("cron", "schedule"):
        return "", ""
    cause, _, tick = (key or "").partition("@")
    return cause, tick


def show_summary(row: RunSummary) -> RunSummaryView:
    """A run in a list."""
    cause, _ = cause_of(row.trigger, row.idempotency_key)
    return RunSummaryView(
        id=row.id,
        workflow=row.workflow,
        status=status_of(row.status or row.state, row.epoch),
        metadata=raw(row.metadata),
        priority=row.priority,
        trigger=row.trigger,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        event_id=row.event_id,
        parent_run_id=row.parent_run_id,
        error=raw(row.error),
        cron_id=cause if row.trigger == "cron" and cause else UNSET,
        schedule_id=cause if row.trigger == "schedule" and cause else UNSET,
    )


def show_event(row: EventRow, failures: Sequence[FailureRow] = ()) -> EventView:
    """An event, with its data where it was read."""
    return EventView(
        id=row.id,
        type=row.type,
        metadata=raw(row.metadata),
        scope=row.scope,
        priority=row.priority,
        stream_id=row.stream_id,
        runs=row.runs,
        created_at=row.created_at,
        data=Raw(row.data) if row.data is not None else UNSET,
        idempotency_key=row.idempotency_key or UNSET,
        filter_failures=[FilterFailureView(f.workflow, f.filter_id, f.scope, f.expression, f.code, f.message) for f in failures] or UNSET,
    )


def show_event_run(row: AttemptRun, event_id: str) -> EventRunView:
    """An attempt in the terms of the runs of an event."""
    retry = row.number > 1
    output, _ = output_of(row.output, row.output_type)
    status = _event_run_status(row)
    return EventRunView(
        run_id=attempt_id(row.run_id, 0, row.number) if retry else row.run_id,
        function=row.workflow,
        status=status,
        attempt=row.number,
        input=Raw(row.input),
        result=output if status == "succeeded" else raw(row.error),
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.finished_at,
        duration_ms=_milliseconds(row.started_at, row.finished_at),
        trigger=Trigger("event", event_id),
        origin_run_id=row.run_id if retry else None,
    )


def _event_run_status(row: AttemptRun) -> Status:
    """An attempt before the last is what it came to. The last one is what its run is: waiting for the next, or over. One that succeeded
    stays so while its run waits to be run again.
    """
    if not row.latest or (row.status == "succeeded" and row.state not in _FINAL):
        return row.status if row.status in ("cancelled", "succeeded") else "failed"  # type: ignore[return-value]
    if row.state in _FINAL or row.state in ("running", "waiting", "blocked"):
        return status_of(row.state, row.number)
    return "pending_retry" if row.number > 0 else "queued"


def _milliseconds(start: datetime | None, end: datetime | None) -> int | None:
    return round((end - start).total_seconds() * 1000) if start is not None and end is not None else None
