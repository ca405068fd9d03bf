"""Long-running tasks: durable tasks that are started and left to run, spoken to through their inbox, and looked at by their state.

    info = worker.start({"url": "…"}, timeout="1h", retry={"attempts": 3, "delay": 5000})     # at once
    dispatcher.runs.send(info.id, {"command": "process"})
    dispatcher.runs.restore(info.id)                                                          # what it has saved last
    dispatcher.runs.cancel(info.id)                                                           # True, or False when it had ended

The task's function is a durable handler: it uses `ctx.receive`, `ctx.checkpoint`, `ctx.restore` beside everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Final

from handlers_sdk.durable import DurableContext
from handlers_sdk.durations import Duration, milliseconds
from handlers_sdk.errors import ConfigError, NonRetryableException
from handlers_sdk.ops import ms_of
from handlers_sdk.retries import Retry, RetryForm
from handlers_sdk.runs import Run

OPTIONS: Final = "$task"
"""The member of a run's metadata that carries the options of its start."""

TIMER: Final = "timer#0"
"""What the timeout of a start is in the log: the first thing asked for."""

_STATUS: Final = {"succeeded": "completed", "failed": "failed", "cancelled": "cancelled", "skipped": "cancelled"}


class TaskTimedOutError(NonRetryableException):
    """The task took longer than it was started with."""

    code = "timed_out"


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A long-running task that was started: its id, the stream it belongs to, and the run that started it, None for a program."""

    id: str
    stream_id: str | None
    origin_run_id: str | None = None


def options_of(timeout: Duration | None, retry: RetryForm | None) -> dict[str, Any]:
    """The options of a start, as its metadata carries them. ConfigError for what cannot be meant."""
    options: dict[str, Any] = {}
    if timeout is not None:
        try:
            options["timeout_ms"] = milliseconds(timeout)
        except ValueError as error:
            raise ConfigError(f"timeout: {error}") from None
    if retry is not None:
        options["retry"] = asdict(Retry.of(retry))
    return {OPTIONS: options} if options else {}


def task_status(run: Run) -> str:
    """A run's status in the words of long-running tasks: queued, running, completed, failed, timed_out or cancelled."""
    if run.status == "failed" and run.error is not None and run.error.code == "timed_out":
        return "timed_out"
    return _STATUS.get(run.status) or ("queued" if run.status in ("pending", "queued") else "running")


def with_options(handler: Callable[[], Coroutine[Any, Any, Any]], ctx: DurableContext) -> Coroutine[Any, Any, Any]:
    """The handler, bounded and tried again as its start asked for: each try is the function from its beginning, after what was recorded."""
    options = ctx.additional_metadata.get(OPTIONS)
    return _bounded(handler, ctx, options) if isinstance(options, Mapping) else handler()


async def _bounded(handler: Callable[[], Coroutine[Any, Any, Any]], ctx: DurableContext, options: Mapping[str, Any]) -> Any:
    given, ms = options.get("retry"), options.get("timeout_ms")
    retry = Retry.of(given) if given is not None else None
    bound = asyncio.timeout(None if ms is None else _left(ctx, ms) / 1000)
    try:
        async with bound:
            return await _tried(handler, ctx, retry)
    except TimeoutError:
        if bound.expired():
            raise TaskTimedOutError(f"Task exceeded timeout of {timedelta(milliseconds=ms or 0)}") from None
        raise


def _left(ctx: DurableContext, ms: int) -> int:
    """What is left of the time for a log: all of it for the first. It is worked out once, as its log's first sleep says ever after."""
    turn: Any = ctx.item
    asked = ctx._replay.asked_before(TIMER)  # noqa: SLF001 - one package
    if asked is not None or "first_started_at" not in turn:
        return int((asked or {}).get("ms", ms))
    return max(1, ms - (ms_of(turn["started_at"]) - ms_of(turn["first_started_at"])))


async def _tried(handler: Callable[[], Coroutine[Any, Any, Any]], ctx: DurableContext, retry: Retry | None) -> Any:
    failures = 0
    while True:
        try:
            return await handler()
        except NonRetryableException:
            raise
        except Exception:
            failures += 1
            if retry is None or failures > retry.attempts:
                raise
        wait = replace(retry, jitter=False).wait(failures)
        await ctx.aio_sleep_for(wait * ctx.random.uniform(0.5, 1.5) if retry.jitter else wait)
