"""GET /v1/runs/{id}/export: everything that is kept of a run as one JSON document, written as it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from dispatcher import ids
from dispatcher.api.edge import Answer, Call, Route
from dispatcher.api.logs import LineView, show_line
from dispatcher.api.run_documents import RunView, show_run
from dispatcher.api.views import EventView, show_event
from dispatcher.engine.streams import Entry
from dispatcher.errors import problem
from dispatcher.store import events, logs, runs, streams
from dispatcher.store.logs import EVERY_LINE

_FORMAT: Final = 1
_PAGE: Final = 1_000
_PAGE_BYTES: Final = 1_048_576
_encode: Final = msgspec.json.Encoder().encode


class EntryView(msgspec.Struct, frozen=True):
    """An entry of a run's stream as it is stored, those of attempts that were tried again included."""

    position: int
    kind: str
    task_id: str
    attempt: int
    stream: str
    payload: Raw
    encoding: str | None


class RunExport(msgspec.Struct, frozen=True):
    """A run with its tasks and attempts, the event that started it, its log lines, and what it put into its stream."""

    format: int
    run: RunView
    event: EventView | None
    logs: list[LineView]
    stream: list[EntryView]


async def export_run(call: Call) -> Answer:
    """Everything that is kept of a run, as one JSON document to be saved."""
    run_id = call.path["run_id"]
    rows = await runs.get(call.services.database, call.tenant_id, run_id)
    if not rows:
        raise problem("not_found", f"there is no run {run_id[:100]!r}")
    run = show_run(rows)
    event = await events.get(call.services.database, call.tenant_id, run.event_id) if run.event_id is not None else None
    head = {"format": _FORMAT, "run": run, "event": show_event(event) if event is not None else None}
    name = (b"content-disposition", b'attachment; filename="' + run_id.encode() + b'.json"')
    return Answer(200, b"", ((b"content-type", b"application/json"), name), _document(call, run, _encode(head)))


async def _document(call: Call, run: RunView, head: bytes) -> AsyncIterator[bytes]:
    yield head[:-1] + b',"logs":['
    async for part in _joined(_lines(call, run.id)):
        yield part
    yield b'],"stream":['
    async for part in _joined(_entries(call, run)):
        yield part
    yield b"]}"


async def _joined(pages: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    first = True
    async for page in pages:
        if page:
            yield (b"" if first else b",") + b",".join(page)
            first = False


async def _lines(call: Call, run_id: str) -> AsyncIterator[list[bytes]]:
    after, more = 0, True
    while more:
        found = await logs.lines(call.services.database, call.tenant_id, run_id, EVERY_LINE, after, _PAGE, _PAGE)
        after, more = found.position or after, found.more
        yield [_encode(show_line(line)) for line in found.lines]


async def _entries(call: Call, run: RunView) -> AsyncIterator[list[bytes]]:
    after, key = 0, (call.tenant_id, run.stream_id)
    while page := await streams.read(call.services.database, key, after, _PAGE, _PAGE_BYTES):
        after = page[-1].position
        yield [_encode(_show(entry)) for entry in page if entry.run_id == run.id]


def _show(entry: Entry) -> EntryView:
    document: dict[str, Any] = {"payload": Raw(entry.data or b"null"), "encoding": entry.encoding}
    return EntryView(entry.position, entry.kind, ids.task_id(entry.run_id, entry.node), entry.attempt, entry.name, **document)


ROUTES: Final = (Route("GET", "/v1/runs/{run_id}/export", export_run, "runs:read", {200: RunExport}, problems=("not_found",)),)
