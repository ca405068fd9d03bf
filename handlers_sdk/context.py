"""What a running task knows about itself, and what it can say to the dispatcher while it runs."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from handlers_sdk import wire
from handlers_sdk.clock import timestamp
from handlers_sdk.durations import Duration, milliseconds
from handlers_sdk.errors import TaskOutputError, TaskRunError
from handlers_sdk.schemas import dump_json

if TYPE_CHECKING:
    from handlers_sdk.workflow import Task

R = TypeVar("R")
Label = str | int | float | bool

CURRENT: Final[ContextVar[Context | None]] = ContextVar("handlers_sdk_context", default=None)
"""The context of the task running here, for log handlers and libraries that are not handed it."""

DEFAULT_STREAM: Final = "out"
CHUNK_BYTES_MAX: Final = 512_000
LINE_BYTES_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """The process a task runs in. `slots` is how many tasks it takes at a time."""

    id: str
    name: str = ""
    slots: int = 1
    labels: Mapping[str, Label] = field(default_factory=dict)


class Worker:
    """The process a task runs in, and the labels of the endpoint it serves."""

    __slots__ = ("_context", "_info")

    def __init__(self, context: Context, info: WorkerInfo) -> None:
        self._context = context
        self._info = info

    @property
    def id(self) -> str:
        """`wrk_…`, of this process."""
        return self._info.id

    @property
    def name(self) -> str:
        """What the app was given as its name."""
        return self._info.name

    @property
    def slots(self) -> int:
        """How many tasks it takes at a time."""
        return self._info.slots

    @property
    def labels(self) -> Mapping[str, Label]:
        """The labels it was started with, and what was changed of them here."""
        return self._info.labels

    def upsert_labels(self, labels: Mapping[str, Label | None]) -> None:
        """Change labels of the endpoint this task runs at, which is what `desired_labels` of tasks are compared with; None takes one away.

        For what changes seldom, such as a model that has been loaded: every dispatcher reads it anew. Processes that share an endpoint
        share its labels.
        """
        self._context._relabel(labels)  # noqa: SLF001 - one package

    async def aio_upsert_labels(self, labels: Mapping[str, Label | None]) -> None:
        """Change labels and wait until that has arrived. As `upsert_labels`."""
        await self._context._aio_relabel(labels)  # noqa: SLF001 - one package


@dataclass(frozen=True, slots=True)
class Accepted:
    """Returned by a handler whose work goes on elsewhere; the result follows by callback before the lease ends."""

    lease: timedelta | None = None


class Control(Protocol):
    """What a context asks of whoever runs the attempt."""

    @property
    def lifespan(self) -> Any:
        """What the app's lifespan generator yielded."""

    @property
    def worker(self) -> WorkerInfo:
        """The process this runs in."""

    @property
    def home(self) -> threading.Thread | None:
        """The thread of the event loop, which must not be made to wait."""

    def emit(self, event: wire.Event) -> None:
        """Queue an event for the dispatcher; returns at once, from any thread."""

    def flushed(self) -> Future[None]:
        """Done when everything emitted so far has arrived; EventsLostError when it did not."""

    def extend(self, ms: int) -> None:
        """Move this side's deadline later, from any thread."""

    def stop(self, reason: str) -> None:
        """Stop the attempt on this side, from any thread."""

    def cancel_run(self) -> Future[None]:
        """Ask the dispatcher to cancel the run."""


class Context:
    """The second argument of every task.

    Methods without `aio_` may be called anywhere: in an async task they return at once, in a sync task those that must be
    acknowledged (`refresh_timeout`, `release_slot`, `cancel`) wait for it. The `aio_` twin always waits.
    """

    __slots__ = ("_cancelled", "_children", "_chunks", "_control", "_input", "_item", "_reason", "_task_name")

    def __init__(self, item: wire.RunItem, control: Control, task_name: str = "") -> None:
        self._item = item
        self._control = control
        self._task_name = task_name
        self._cancelled = False
        self._reason = ""
        self._chunks: count[int] | None = None
        self._children: count[int] | None = None

    # ---- identity

    @property
    def item(self) -> wire.RunItem:
        """The attempt as it was sent."""
        return self._item

    @property
    def workflow_run_id(self) -> str:
        """`run_…` of the run this task belongs to."""
        return self._item["run_id"]

    @property
    def task_run_id(self) -> str:
        """`tsk_…`, constant over attempts: the idempotency key to pass on to third parties."""
        return self._item["id"]

    step_run_id = task_run_id

    @property
    def workflow_name(self) -> str:
        """The workflow as the dispatcher knows it."""
        return self._item.get("workflow") or self._item["name"]

    @property
    def task_name(self) -> str:
        """The task's own name within its workflow."""
        return self._task_name or self._item["name"]

    @property
    def workflow_id(self) -> str:
        """What clients that take a workflow's id name it by: its name."""
        return self.workflow_name

    @property
    def workflow_version(self) -> str:
        """The version of the endpoint this attempt was sent to."""
        return self._item.get("version", "")

    workflow_version_id = workflow_version

    @property
    def parent_workflow_run_id(self) -> str | None:
        """The run that started this one, None for a root."""
        return self._item.get("parent_run_id")

    @property
    def tenant(self) -> str:
        """The tenant's slug."""
        return self._item.get("tenant", "")

    @property
    def worker(self) -> Worker:
        """The process this runs in."""
        return Worker(self, self._control.worker)

    @property
    def worker_id(self) -> str:
        """Id of the process this runs in."""
        return self._control.worker.id

    @property
    def worker_labels(self) -> Mapping[str, Label]:
        """The labels of the endpoint this runs at, as far as this process knows them."""
        return self._control.worker.labels

    def _relabel(self, labels: Mapping[str, Label | None]) -> None:
        known: Any = self._control.worker.labels
        for name, value in labels.items():
            if value is None:
                known.pop(name, None)
            else:
                known[name] = value
        self._control.emit({"type": "labels", "labels": dict(labels)})

    async def _aio_relabel(self, labels: Mapping[str, Label | None]) -> None:
        self._relabel(labels)
        await asyncio.wrap_future(self._control.flushed())

    # ---- what was asked

    @property
    def workflow_input(self) -> Any:
        """The run's input as parsed JSON, before validation."""
        return self._item.get("input")

    input = workflow_input

    @property
    def additional_metadata(self) -> dict[str, Any]:
        """Metadata of the run."""
        return self._item.get("metadata") or {}

    @property
    def priority(self) -> int:
        """1 low, 2 medium, 3 high."""
        return self._item.get("priority", 1)

    @property
    def was_triggered_by_event(self) -> bool:
        """Whether an event started the run."""
        return self._item.get("event") is not None

    @property
    def triggering_event(self) -> wire.EventOrigin | None:
        """`{"id", "type", "metadata"}` of the event that started the run."""
        return self._item.get("event")

    # ---- the tasks that came before

    def task_output(self, task: Task[Any, R]) -> R:
        """What a parent gave, validated as its return annotation says. TaskOutputError, a ValueError, when it gave nothing."""
        result = self._result_of(task)
        if result["status"] != "succeeded":
            raise TaskOutputError(f"{task.name} has no output: it was {result['status']}; ctx.was_skipped(…) tells")
        return cast("R", task.definition.function.output.parse(result.get("output"), "output"))

    def was_skipped(self, task: Task[Any, Any]) -> bool:
        """Whether a parent was skipped. TaskOutputError when this task does not come after it."""
        return self._result_of(task)["status"] == "skipped"

    @property
    def task_run_errors(self) -> dict[str, str]:
        """In an on-failure task: the messages of the tasks that have failed so far, by task name."""
        return {name: error["message"] for name, error in (self._item.get("errors") or {}).items()}

    def get_task_run_error(self, task: Task[Any, Any]) -> TaskRunError | None:
        """In an on-failure task: why a task failed, None when it did not."""
        error = (self._item.get("errors") or {}).get(task.definition.task_name)
        return None if error is None else TaskRunError(error["message"], error_code=error["code"], task_name=task.definition.task_name)

    def fetch_task_run_error(self, task: Task[Any, Any]) -> str | None:
        """In an on-failure task: the message of a task that failed, None when it did not. `get_task_run_error` says more."""
        return self.task_run_errors.get(task.definition.task_name)

    @property
    def filter_payload(self) -> dict[str, Any]:
        """The payload of the filter that let the event through; empty without one."""
        return self._item.get("filter_payload") or {}

    # ---- attempts and time

    @property
    def retry_count(self) -> int:
        """Retries so far, whatever their cause; 0 on the first attempt."""
        return self._item.get("retry_count", 0)

    @property
    def attempt_number(self) -> int:
        """One more than `retry_count`."""
        return self.retry_count + 1

    @property
    def max_attempts(self) -> int:
        """How often the task may be attempted in all, by its own retries."""
        return self._item.get("max_attempts", 1)

    @property
    def deadline(self) -> datetime:
        """When this attempt ends, extensions not counted."""
        return datetime.fromisoformat(self._item["deadline"])

    # ---- cancellation

    @property
    def exit_flag(self) -> bool:
        """True once the task should stop: cancelled, timed out, or the dispatcher is gone. Sync tasks look at it."""
        return self._cancelled

    is_cancelled = exit_flag

    def done(self) -> bool:
        """The same as `exit_flag`."""
        return self._cancelled

    @property
    def cancellation_reason(self) -> str:
        """Why the task should stop; empty while it should not."""
        return self._reason

    def cancel(self) -> None:
        """Cancel the run and stop this task: the flag is set, an async task is interrupted at its next `await`."""
        self._acknowledged(self._control.cancel_run())
        self._control.stop("cancelled by the task itself")

    async def aio_cancel(self) -> None:
        """Cancel the run, once the dispatcher has confirmed, and stop this task at its next `await`."""
        await asyncio.wrap_future(self._control.cancel_run())
        self._control.stop("cancelled by the task itself")

    # ---- saying something

    def log(self, line: str | Mapping[str, Any], raise_on_error: bool = False, level: wire.LogLevel = "info") -> None:
        """Send a log line; a mapping is written as JSON. `raise_on_error` waits for it to arrive, and is for sync tasks."""
        self._control.emit(_log_event(line, level, self._item["attempt"]))
        if raise_on_error:
            self._must_wait("log(raise_on_error=True)", "aio_log")
            self._control.flushed().result()

    async def aio_log(self, line: str | Mapping[str, Any], raise_on_error: bool = False, level: wire.LogLevel = "info") -> None:
        """Send a log line; with `raise_on_error`, wait for it to arrive and raise EventsLostError when it does not."""
        self._control.emit(_log_event(line, level, self._item["attempt"]))
        if raise_on_error:
            await asyncio.wrap_future(self._control.flushed())

    def put_stream(self, data: str | bytes, stream: str = DEFAULT_STREAM) -> None:
        """Send a piece of a stream, of at most 512,000 bytes. What is no storable text (not UTF-8, or with NULs) travels as base64."""
        self._control.emit(self._chunk(data, stream))

    async def aio_put_stream(self, data: str | bytes, stream: str = DEFAULT_STREAM) -> None:
        """Send a piece of a stream and wait until it has arrived, so that a fast producer cannot run ahead."""
        self._control.emit(self._chunk(data, stream))
        await asyncio.wrap_future(self._control.flushed())

    def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the task is: 0 to 1, and a few words."""
        self._control.emit({"type": "progress", "fraction": fraction, "note": note})

    # ---- asking for something

    def refresh_timeout(self, increment_by: Duration) -> None:
        """Move the deadline later by this much, counted from the current deadline."""
        self._acknowledged(self._extended(increment_by))

    async def aio_refresh_timeout(self, increment_by: Duration) -> None:
        """Move the deadline later, once the dispatcher has confirmed it."""
        await asyncio.wrap_future(self._extended(increment_by))

    def release_slot(self) -> None:
        """Give the slot to another task while this one goes on. If this process dies now, nobody takes the task over."""
        self._control.emit({"type": "release_slot"})
        self._acknowledged(self._control.flushed())

    async def aio_release_slot(self) -> None:
        """Give the slot away, once the dispatcher has confirmed it."""
        self._control.emit({"type": "release_slot"})
        await asyncio.wrap_future(self._control.flushed())

    def accept(self, lease: Duration | None = None) -> Any:
        """What a handler returns when its work goes on elsewhere: `return ctx.accept("10m")`.

        The attempt stays open for `lease` (the dispatcher's default when None). Whoever does the work keeps `callback_token` and
        ends it with `dispatcher.callbacks.complete(token, output)` or `.fail(token, …)`; `.extend(token, …)` moves the lease.
        """
        return Accepted(None if lease is None else timedelta(milliseconds=milliseconds(lease)))

    @property
    def callback_token(self) -> str:
        """What `dispatcher.callbacks` needs to speak for this attempt. Keep it secret; it is worthless once the attempt has ended."""
        return self._item["token"]

    @property
    def lifespan(self) -> Any:
        """What the app's lifespan generator yielded; cast it to its type."""
        return self._control.lifespan

    # ---- inside

    @property
    def _era(self) -> Sequence[str]:
        """What the places of children are counted in, where that is not the task's whole life."""
        return ()

    def _place(self) -> int:
        """The place of a child among those this attempt has started so far."""
        if self._children is None:
            self._children = count()
        return next(self._children)

    def _result_of(self, task: Task[Any, Any]) -> wire.ParentResult:
        name, parents = task.definition.task_name, self._item.get("parents") or {}
        if task.definition.workflow.name != self.workflow_name or name not in parents:
            raise TaskOutputError(f"{self.task_name} does not come after {name}; its parents are {', '.join(parents) or 'none'}")
        return parents[name]

    def _stop(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._cancelled = True

    def _chunk(self, data: str | bytes, stream: str) -> wire.ChunkEvent:
        raw = data if isinstance(data, bytes) else data.encode("utf-8", "replace")
        if len(raw) > CHUNK_BYTES_MAX:
            raise ValueError(f"a piece of a stream is at most {CHUNK_BYTES_MAX} bytes, this is {len(raw)}: send it in several")
        if self._chunks is None:
            self._chunks = count()
        event: wire.ChunkEvent = {"type": "chunk", "stream": stream, "seq": next(self._chunks), "data": data}
        text = _storable_text(raw)
        if text is None:
            return {**event, "data": base64.b64encode(raw).decode(), "encoding": "base64"}
        return {**event, "data": text}

    def _extended(self, increment_by: Duration) -> Future[None]:
        ms = milliseconds(increment_by)
        self._control.emit({"type": "extend", "ms": ms})
        self._control.extend(ms)
        return self._control.flushed()

    def _acknowledged(self, future: Future[None]) -> None:
        if threading.current_thread() is not self._control.home:
            future.result()

    def _must_wait(self, what: str, instead: str) -> None:
        if threading.current_thread() is self._control.home:
            raise RuntimeError(f"{what} would block the event loop in an async task; use `await ctx.{instead}(…)`")


def _storable_text(raw: bytes) -> str | None:
    """Bytes as text, None when they are no UTF-8 or hold a NUL character, which cannot be stored."""
    try:
        return None if b"\0" in raw else raw.decode()
    except UnicodeDecodeError:
        return None


def _log_event(line: str | Mapping[str, Any], level: wire.LogLevel, attempt: int) -> wire.LogEvent:
    message = line if isinstance(line, str) else dump_json(line).decode()
    clean = message.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")
    message = clean.decode()
    if len(clean) > LINE_BYTES_MAX:  # a line no dispatcher would take would be lost as a whole
        message = clean[:LINE_BYTES_MAX].decode("utf-8", "ignore") + f" … [cut, {len(clean)} bytes in all]"
    return {"type": "log", "level": level, "message": message, "at": timestamp(), "attempt": attempt}
