"""The document of one run: what is known of it, its tasks, their attempts, and what those that do not run wait for."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from dispatcher.api.views import NULL, Status, cause_of, output_of, raw, status_of
from dispatcher.api.watching import Watch, plan_of
from dispatcher.engine.definitions import Definition
from dispatcher.engine.graphs import LETTERS, REASONS, Reason
from dispatcher.ids import attempt_id, task_id
from dispatcher.store.runs import RunRow

# What its run is doing, where it has several tasks: the first of these that any of them is doing.
_LIVELIEST: Final[tuple[Status, ...]] = ("running", "pending_retry", "queued", "waiting", "blocked")
_SKIPPED: Final = Raw(b'{"skipped":true}')


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
    """One task of a run. `output` of another type than JSON is its text, with the type in `output_type`.

    Tasks of a graph name their `parents`; `reason` says why one was settled without running. One that does not run yet says in
    `waiting_for` what must still happen, all of it: `{"parent": name}`, `{"sleep_until": moment}`, `{"event": key, …}`, or any of
    `{"or": […]}`; `{"kind": "time" | "paused" | "concurrency" | "rate_limit" | "queue" | "batch" | "sticky" | "endpoint", "message": …}`
    once it is ready; and in `skipped_by` and `cancelled_by` what would skip or cancel it first. A suspended durable one says so of each
    operation that is not over, of which it may not need all: `{"kind": "sleep" | "event" | "child" | "message" | "step", "id",
    "message", …}`.
    """

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
    parents: list[str] | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    waiting_for: list[dict[str, Any]] | UnsetType = UNSET
    skipped_by: list[dict[str, Any]] | UnsetType = UNSET
    cancelled_by: list[dict[str, Any]] | UnsetType = UNSET


class RunView(msgspec.Struct, frozen=True):
    """A run with everything that is known about it; `children` are the ids of the first thousand runs it started.

    One that a cron or a schedule started names it, and the moment it was started for as `tick`; one triggered by hand has none.
    """

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
    cron_id: str | UnsetType = UNSET
    schedule_id: str | UnsetType = UNSET
    tick: str | UnsetType = UNSET
    idempotency_key: str | UnsetType = UNSET
    output_type: str | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    waiting_for: list[dict[str, Any]] | UnsetType = UNSET


def explained(run: RunView, reasons: Mapping[int | None, list[dict[str, Any]]]) -> RunView:
    """The document with what stands between its tasks and their start, by node; None is the run of a graph itself."""
    tasks = [
        msgspec.structs.replace(task, waiting_for=reasons[node]) if node in reasons and task.waiting_for is UNSET else task
        for node, task in enumerate(run.tasks)
    ]
    return msgspec.structs.replace(run, tasks=tasks, waiting_for=reasons.get(None, UNSET))


def show_run(rows: Sequence[RunRow], *, duplicate: bool = False) -> RunView:
    """The document of a run from the rows of its tasks; one row without a task where a graph has not begun."""
    run = rows[0]
    tasks = [_task(row, row.task_name or run.workflow) for row in rows] if run.graph is None else list(_graph(run, run.graph, rows))
    over = run.status is not None
    single = tasks[0] if len(tasks) == 1 else None
    statuses = {task.status for task in tasks}
    cause, tick = cause_of(run.trigger, run.idempotency_key)
    return RunView(
        id=run.id,
        workflow=run.workflow,
        workflow_version=run.workflow_version,
        status=status_of(run.status, 0) if run.status is not None else _live(run, statuses),
        input=Raw(run.input),
        output=_run_output(tasks, _last(run)) if over or run.graph is not None else NULL,
        error=next((task.error for task in tasks if task.status == "failed"), tasks[0].error) if over else NULL,
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
        cron_id=cause if run.trigger == "cron" and cause else UNSET,
        schedule_id=cause if run.trigger == "schedule" and cause else UNSET,
        tick=tick or UNSET,
        idempotency_key=UNSET if cause else run.idempotency_key or UNSET,
        output_type=single.output_type if single is not None else UNSET,
        duplicate=True if duplicate else UNSET,
    )


def _live(run: RunRow, statuses: set[Status]) -> Status:
    """What a run is doing: what its tasks do. A graph that has begun is running, also while nothing of it is."""
    if run.graph is not None and (run.graph.strip("-") or statuses - {"pending", "queued"}):
        return "running"
    return next((s for s in _LIVELIEST if s in statuses), "queued")


def _run_output(tasks: Sequence[TaskView], last: Container[str]) -> Raw:
    """One task's output is the run's; several make an object by name, of those that gave one or were skipped. Of the tasks that come last
    only those that ran count.
    """
    if len(tasks) == 1:
        return tasks[0].output
    given = {task.name: task.output for task in tasks if task.status == "succeeded"}
    skipped = {task.name: _SKIPPED for task in tasks if task.status == "skipped" and task.name not in last}
    return Raw(msgspec.json.encode(skipped | given))


def _last(run: RunRow) -> Container[str]:
    return plan_of(run.definition).last if run.definition is not None else ()


def _graph(run: RunRow, letters: str, rows: Sequence[RunRow]) -> Iterator[TaskView]:
    """The tasks of a graph, those included that have not started and those that never will."""
    assert run.definition is not None, "a graph has its definition"
    plan = plan_of(run.definition)
    definition = plan.definition
    known = {row.node: row for row in rows if row.node is not None}
    watch = Watch(plan, letters, known, json.loads(run.waits or "[]"))
    reasons: Mapping[str, Reason] = json.loads(run.reasons or "{}")
    for node, task in enumerate(definition.tasks):
        row = known.get(node)
        status: Status = LETTERS[letters[node]]  # type: ignore[assignment]  # an active task without a row has ended this very moment
        if row is not None and letters[node] in "ck":  # it may have run before a replay, and not after it
            shown = msgspec.structs.replace(_task(row, task.name or run.workflow), status=status)
        elif row is not None and letters[node] not in "-w":
            shown = _task(row, task.name or run.workflow)
        else:
            shown = _unstarted(run, definition, node, "pending" if letters[node] in "-wa" else status)
        if shown.status == "pending":
            shown = msgspec.structs.replace(shown, **watch.of(node))
        elif str(node) in reasons:
            shown = msgspec.structs.replace(shown, reason=REASONS.get(reasons[str(node)], reasons[str(node)]))
        yield msgspec.structs.replace(shown, parents=[definition.tasks[n].name for n in task.parents])


def _unstarted(run: RunRow, definition: Definition, node: int, status: Status) -> TaskView:
    return TaskView(
        id=task_id(run.id, node),
        name=definition.tasks[node].name or run.workflow,
        status=status,
        output=NULL,
        error=NULL,
        retry_count=0,
        endpoint=None,
        endpoint_version=None,
        started_at=None,
        finished_at=None,
        attempts=[],
    )


def _task(row: RunRow, name: str) -> TaskView:
    assert row.node is not None and row.task_status is not None, "the row of a task"
    status = status_of(row.task_status, row.epoch)
    attempts = _attempts(row)
    output, output_type = output_of(row.output, row.output_type)
    return TaskView(
        id=task_id(row.id, row.node),
        name=name,
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
            id=attempt_id(row.id, row.node or 0, number),
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
        id=attempt_id(row.id, row.node or 0, row.epoch),
        number=row.epoch,
        status="running",
        http_status=None,
        started_at=row.task_started_at,
        finished_at=None,
        latency_ms=None,
        error=NULL,
        endpoint=row.endpoint,
        endpoint_version=row.endpoint_version,
        response=None,
    )


def _excerpt(response: bytes | None) -> str | None:
    return response.decode("utf-8", "replace") if response is not None else None
