"""What runs, events and attempts look like from outside. Bodies are passed on as the JSON text they were stored as."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from dispatcher.engine.answers import JSON
from dispatcher.ids import attempt_id, task_id
from dispatcher.store.events import AttemptRun, EventRow
from dispatcher.store.runs import FINAL_STATUSES, RunRow, RunSummary

Status = Literal["queued", "running", "pending_retry", "succeeded", "failed", "cancelled"]
Fate = Literal["cancelled", "cancelling"]

_NULL: Final = Raw(b"null")
# What its run is doing, where it has several tasks: the first of these that any of them is doing.
_LIVELIEST: Final[tuple[Status, ...]] = ("running", "pending_retry", "queued")


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
    """An event that is durable, with the ids of the runs it started."""

    event_id: str
    stream_id: str
    runs: list[str]
    data: EventRef
    duplicate: bool | UnsetType = UNSET


class AttemptView(msgspec.Struct, frozen=True):
    """One signed request to an endpoint. `response` is the beginning of its answer, as text."""

    id: str
    number: int
    status: str
    http_status: int | None
    started_at: datetime | None
    finished_at: datetime | None
    latency_ms: int | None
    error: Raw
    endpoint: str | None
    endpoint_version: str | None
    response: str | None


class TaskView(msgspec.Struct, frozen=True):
    """One task of a run. `output` of another type than JSON is its text, with the type in `output_type`."""

    id: str
    name: str
    status: Status
    output: Raw
    error: Raw
    retry_count: int
    endpoint: str | None
    endpoint_version: str | None
    started_at: datetime | None
    finished_at: datetime | None
    attempts: list[AttemptView]
    output_type: str | UnsetType = UNSET
    next_attempt_at: datetime | UnsetType = UNSET
    deadline: datetime | UnsetType = UNSET
    progress: Raw | UnsetType = UNSET
    cancelling: str | UnsetType = UNSET


class RunView(msgspec.Struct, frozen=True):
    """A run with everything that is known about it; `children` are the ids of the first thousand runs it started."""

    id: str
    workflow: str
    workflow_version: int
    status: Status
    input: Raw
    output: Raw
    error: Raw
    metadata: Raw
    priority: int
    trigger: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    event_id: str | None
    parent_run_id: str | None
    stream_id: str
    tasks: list[TaskView]
    children: list[str]
    idempotency_key: str | UnsetType = UNSET
    output_type: str | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET


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


class EventView(msgspec.Struct, frozen=True):
    """An event; `runs` is how many it started. Lists leave `data` out."""

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
    return _NULL if text is None else Raw(text)


def output_of(output: bytes | None, kind: str | None) -> tuple[Raw, str | UnsetType]:
    """A stored output: JSON as it is, anything else as a string with its type."""
    if output is None or kind is None or kind == JSON:
        return raw(output), UNSET
    return Raw(msgspec.json.encode(output.decode("utf-8", "replace"))), kind


def live_status(state: str, epoch: int) -> Status:
    """What a live task is doing, in the words of the API."""
    if state == "running":
        return "running"
    return "pending_retry" if state == "scheduled" and epoch > 0 else "queued"


def _status(status: str, epoch: int) -> Status:
    return status if status in FINAL_STATUSES else live_status(status, epoch)  # type: ignore[return-value]  # the schema's check says so


def show_run(rows: Sequence[RunRow], *, duplicate: bool = False) -> RunView:
    """The document of a run from the rows of its tasks, of which it has at least one."""
    run, tasks = rows[0], [_task(row) for row in rows]
    over = run.status is not None
    single = tasks[0] if len(tasks) == 1 else None
    statuses = {task.status for task in tasks}
    return RunView(
        id=run.id,
        workflow=run.workflow,
        workflow_version=run.workflow_version,
        status=_status(run.status, 0) if run.status is not None else next((s for s in _LIVELIEST if s in statuses), "queued"),
        input=Raw(run.input),
        output=_run_output(tasks) if over else _NULL,
        error=next((task.error for task in tasks if task.status == "failed"), tasks[0].error) if over else _NULL,
        metadata=raw(run.metadata),
        priority=run.priority,
        trigger=run.trigger,
        created_at=run.created_at,
        started_at=min((task.started_at for task in tasks if task.started_at is not None), default=None),
        finished_at=run.finished_at,
        event_id=run.event_id,
        parent_run_id=run.parent_run_id,
        stream_id=run.stream_id or f"str_{run.id[4:]}",
        tasks=tasks,
        children=run.children or [],
        idempotency_key=run.idempotency_key or UNSET,
        output_type=single.output_type if single is not None else UNSET,
        duplicate=True if duplicate else UNSET,
    )


def _run_output(tasks: Sequence[TaskView]) -> Raw:
    """One task's output is the run's; several make an object by name."""
    if len(tasks) == 1:
        return tasks[0].output
    return Raw(msgspec.json.encode({task.name: task.output for task in tasks}))


def _task(row: RunRow) -> TaskView:
    status = _status(row.task_status, row.epoch)
    attempts = _attempts(row)
    output, output_type = output_of(row.output, row.output_type)
    return TaskView(
        id=task_id(row.id, row.node),
        name=row.task_name or row.workflow,
        status=status,
        output=output,
        error=raw(row.error),
        retry_count=row.retries,
        endpoint=row.endpoint,
        endpoint_version=row.endpoint_version,
        started_at=attempts[0].started_at if attempts else None,
        finished_at=row.task_finished_at,
        attempts=attempts,
        output_type=output_type,
        next_attempt_at=row.due_at if row.due_at is not None and row.task_status == "scheduled" else UNSET,
        deadline=row.deadline if row.deadline is not None else UNSET,
        progress=Raw(row.progress) if row.progress is not None else UNSET,
        cancelling=row.cancel_reason if row.cancel_reason is not None else UNSET,
    )


def _attempts(row: RunRow) -> list[AttemptView]:
    shown = [
        AttemptView(
            id=attempt_id(row.id, row.node, number),
            number=number,
            status=row.statuses[i],
            http_status=row.http_statuses[i],
            started_at=row.starts[i],
            finished_at=row.ends[i],
            latency_ms=row.latencies_ms[i],
            error=raw(row.errors[i]),
            endpoint=row.endpoints[i],
            endpoint_version=row.versions[i],
            response=_excerpt(row.responses[i]),
        )
        for i, number in enumerate(row.numbers)
    ]
    if row.task_status == "running":
        shown.append(_running(row))
    return shown


def _running(row: RunRow) -> AttemptView:
    return AttemptView(
        id=attempt_id(row.id, row.node, row.epoch),
        number=row.epoch,
        status="running",
        http_status=None,
        started_at=row.task_started_at,
        finished_at=None,
        latency_ms=None,
        error=_NULL,
        endpoint=row.endpoint,
        endpoint_version=row.endpoint_version,
        response=None,
    )


def _excerpt(response: bytes | None) -> str | None:
    return response.decode("utf-8", "replace") if response is not None else None


def show_summary(row: RunSummary) -> RunSummaryView:
    """A run in a list."""
    return RunSummaryView(
        id=row.id,
        workflow=row.workflow,
        status=_status(row.status, 0) if row.status is not None else live_status(row.state, row.epoch),
        metadata=raw(row.metadata),
        priority=row.priority,
        trigger=row.trigger,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        event_id=row.event_id,
        parent_run_id=row.parent_run_id,
        error=raw(row.error),
    )


def show_event(row: EventRow) -> EventView:
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
    """An attempt before the last ended without ending its run. The last one is what its run is: waiting for the next, or over."""
    if not row.latest:
        return "cancelled" if row.status == "cancelled" else "failed"
    if row.state in FINAL_STATUSES or row.state == "running":
        return _status(row.state, row.number)
    return "pending_retry" if row.number > 0 else "queued"


def _milliseconds(start: datetime | None, end: datetime | None) -> int | None:
    return round((end - start).total_seconds() * 1000) if start is not None and end is not None else None
