"""/v1/runs/{id}/logs and /v1/logs: what handlers logged, of one run in the order of writing, or of a tenant latest first.

A page of a search looks at a bounded number of lines. It may hold few or none and still have a `next_cursor`: go on with that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from dispatcher import ids
from dispatcher.api.decoding import one_of, span
from dispatcher.api.edge import Answer, Call, Route
from dispatcher.api.listing import Limit, PageQuery, page, position
from dispatcher.api.sending import EVENT_STREAM
from dispatcher.api.streams import KEEP_ALIVE, event, last_event_id
from dispatcher.api.triggering import Moment
from dispatcher.clock import monotonic
from dispatcher.errors import problem
from dispatcher.runtime.recorder import LEVELS
from dispatcher.store import logs, runs
from dispatcher.store.logs import Line, LineFilter

Search = Annotated[str, Meta(max_length=1000, description="a text the lines hold, whatever its case")]
_encode: Final = msgspec.json.Encoder().encode


class LinesQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which lines of all runs. `level` may be repeated."""

    level: tuple[str, ...] = ()
    search: Search | None = None
    since: Moment | None = None
    until: Moment | None = None


class LogsQuery(LinesQuery, forbid_unknown_fields=True, frozen=True):
    """Which lines of a run. With `follow`, server-sent events until the run is over."""

    limit: Limit = 1000
    attempt: Annotated[int, Meta(ge=0)] | None = None
    task_id: str | None = None
    follow: bool = False
    last_event_id: Annotated[str, Meta(max_length=100)] | None = None


class LineView(msgspec.Struct, frozen=True):
    """A log line of an attempt."""

    at: Moment
    level: str
    message: str
    attempt: int
    task_id: str
    run_id: str


class LinePage(msgspec.Struct, frozen=True):
    """Log lines: of a run in the order they were written, of a tenant latest first."""

    rows: list[LineView]
    next_cursor: str | None


async def list_logs(call: Call) -> Answer:
    """Log lines of a run, in the order they were written; with `follow`, as server-sent events until it is over."""
    run_id, query = call.path["run_id"], call.query
    name, wanted = f"logs {run_id}", _wanted(call, run_id)
    after = position(name, query, int) or 0
    database = call.services.database
    if not await runs.exists(database, call.tenant_id, run_id):
        raise problem("not_found", f"there is no run {run_id[:100]!r}")
    if query.follow:
        return _follow(call, run_id, wanted, max(after, last_event_id(call) or 0))
    found = await logs.lines(database, call.tenant_id, run_id, wanted, after, query.limit, call.services.settings.search_rows)
    return page(name, query, found.lines, show_line, lambda line: line.seq, more=found.more, last=found.position)


async def list_lines(call: Call) -> Answer:
    """Log lines of all runs, the latest first."""
    query: LinesQuery = call.query
    before = position("lines", query, tuple[datetime, int])
    services = call.services
    found = await logs.tenant_lines(services.database, call.tenant_id, _wanted(call), before, query.limit, services.settings.search_rows)
    return page("lines", query, found.lines, show_line, lambda line: (line.at, line.seq), more=found.more, last=found.position)


def _wanted(call: Call, run_id: str | None = None) -> LineFilter:
    query = call.query
    since, until = span(query.since, query.until)
    levels = one_of(query.level, LEVELS, "level")
    if run_id is None:
        return LineFilter(levels, query.search, None, None, since, until)
    return LineFilter(levels, query.search, _node(query.task_id, run_id), query.attempt, since, until)


def _node(task_id: str | None, run_id: str) -> int | None:
    if task_id is None:
        return None
    task = ids.parse_task_id(task_id)
    if task is None or task[0] != run_id:
        raise problem("invalid_value", f"task_id: {task_id[:100]!r} is no task of this run", field="task_id")
    return task[1]


def _follow(call: Call, run_id: str, wanted: LineFilter, after: int) -> Answer:
    async def frames() -> AsyncIterator[bytes]:
        with call.services.streams.seat():
            yield KEEP_ALIVE
            async for frame in _frames(call, run_id, wanted, after):
                yield frame

    return Answer(200, b"", EVENT_STREAM, frames())


async def _frames(call: Call, run_id: str, wanted: LineFilter, after: int) -> AsyncIterator[bytes]:
    """Lines as they come. Whether the run is over is asked before its lines are read, so the last of them is not missed."""
    services, key, said = call.services, (call.tenant_id, run_id), monotonic()
    while not services.streams.closed:
        async with services.streams.next_lines(key) as wait:
            over = await runs.is_finished(services.database, *key)
            found = await logs.lines(services.database, *key, wanted, after, 1000, services.settings.search_rows)
            after = found.position or after
            if found.lines:
                said = monotonic()
                yield b"".join([event("log", line.seq, _encode(show_line(line))) for line in found.lines])
            if found.more:
                continue
            if over:
                yield event("end", after, _encode({"type": "end", "run_id": run_id}))
                return
            if monotonic() - said > services.settings.stream_heartbeat:
                said = monotonic()
                yield KEEP_ALIVE
            await wait()


def show_line(line: Line) -> LineView:
    """A log line as it is answered."""
    return LineView(line.at, line.level, line.message, line.attempt, ids.task_id(line.run_id, line.node), line.run_id)


_BAD_QUERY: Final = ("invalid_value", "unknown_parameter")

ROUTES: Final = (
    Route("GET", "/v1/runs/{run_id}/logs", list_logs, "runs:read", {200: LinePage}, LogsQuery, problems=(*_BAD_QUERY, "not_found"),
          streams=True),
    Route("GET", "/v1/logs", list_lines, "runs:read", {200: LinePage}, LinesQuery, problems=_BAD_QUERY),
)  # fmt: skip
