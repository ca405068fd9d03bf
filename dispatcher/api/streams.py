"""/v1/streams and /v1/runs/{id}/stream: what runs say while they run, as server-sent events.

Everything from the beginning, or from behind Last-Event-ID, then what comes; the server closes after the end of the last run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from dispatcher import ids
from dispatcher.api.edge import Answer, Call, Route
from dispatcher.api.run_documents import show_run
from dispatcher.api.sending import EVENT_STREAM
from dispatcher.engine.streams import Entry
from dispatcher.errors import problem
from dispatcher.runtime.streams import Reader
from dispatcher.store import runs, streams
from dispatcher.store.streams import StreamKey

KEEP_ALIVE: Final = b": still here\n\n"
_ENDS: Final = {"succeeded": "run:stop", "failed": "run:fail", "cancelled": "run:cancel"}
_MOST_POSITION: Final = 1 << 62
_encode: Final = msgspec.json.Encoder().encode


class StreamQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where to go on, for clients that cannot send the header Last-Event-ID."""

    last_event_id: Annotated[str, Meta(max_length=100)] | None = None


class _Ended(msgspec.Struct, frozen=True):
    """A run at its end, as the last event of it shows it."""

    id: str
    workflow: str
    status: str
    result: Raw
    error: Raw


async def subscribe(call: Call) -> Answer:
    """Follow a stream: all runs of one event, or the one run it is named after."""
    key = (call.tenant_id, call.path["stream_id"])
    if not await streams.exists(call.services.database, key):
        raise problem("not_found", f"there is no stream {key[1][:100]!r}")
    return await _follow(call, key, None)


async def follow_run(call: Call) -> Answer:
    """Follow what one run says."""
    run_id = call.path["run_id"]
    stream_id = await streams.of_run(call.services.database, call.tenant_id, run_id)
    if stream_id is None:
        raise problem("not_found", f"there is no run {run_id[:100]!r}")
    return await _follow(call, (call.tenant_id, stream_id), run_id)


async def _follow(call: Call, key: StreamKey, run_id: str | None) -> Answer:
    after = last_event_id(call)
    following = call.services.streams.reader(key, run_id, after or 0)
    reader = await following.__aenter__()
    if after is not None and reader.position and reader.is_over:
        await following.__aexit__(None, None, None)
        return Answer(204, b"", ())  # what makes an EventSource stop asking

    async def frames() -> AsyncIterator[bytes]:
        try:
            yield KEEP_ALIVE  # so that the client knows at once that it is connected
            async for frame in _frames(call, reader):
                yield frame
        finally:
            await following.__aexit__(None, None, None)

    return Answer(200, b"", EVENT_STREAM, frames())


def last_event_id(call: Call) -> int | None:
    """The position a client asks to go on behind. Raises Problem for a text that is none."""
    text = call.headers.get(b"last-event-id", b"").decode("latin-1") or call.query.last_event_id
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < _MOST_POSITION):
        raise problem("invalid_value", "Last-Event-ID: the id of an event of this stream is expected", field="last_event_id")
    return int(text)


async def _frames(call: Call, reader: Reader) -> AsyncIterator[bytes]:
    async for page in reader.pages():
        plain: list[bytes] = []
        for entry in page:
            if entry.kind == "end":
                plain.append(await _end(call, entry))
            else:
                plain.append(reader.frame(entry, _SHOW[entry.kind]))
        yield b"".join(plain) or KEEP_ALIVE


def event(name: str, position: int, data: bytes) -> bytes:
    """One server-sent event. A line break can only stand between the tokens of JSON, where a blank does as well."""
    return b"event: %b\nid: %d\ndata: %b\n\n" % (name.encode(), position, data.replace(b"\n", b" ").replace(b"\r", b" "))


def _data(entry: Entry) -> bytes:
    document: dict[str, Any] = {"type": "stream:data", "run_id": entry.run_id, "payload": Raw(entry.data), **_origin(entry)}
    document["stream"] = entry.name
    if entry.encoding is not None:
        document["encoding"] = entry.encoding
    return event("stream:data", entry.position, _encode(document))


def _start(entry: Entry) -> bytes:
    return event("run:start", entry.position, _encode({"type": "run:start", "run_id": entry.run_id, "run": {"id": entry.run_id}}))


def _reset(entry: Entry) -> bytes:
    return event("reset", entry.position, _encode({"type": "reset", "run_id": entry.run_id, **_origin(entry)}))


def _limit(entry: Entry) -> bytes:
    message = "this attempt has put as much as one may: what it puts from here on is dropped"
    document = {"type": "stream:limit", "run_id": entry.run_id, "message": message, **_origin(entry)}
    return event("stream:limit", entry.position, _encode(document))


_SHOW: Final = {"data": _data, "start": _start, "reset": _reset, "limit": _limit}


def _origin(entry: Entry) -> dict[str, Any]:
    return {"task_id": ids.task_id(entry.run_id, entry.node), "attempt": entry.attempt}


async def _end(call: Call, entry: Entry) -> bytes:
    rows = await runs.get(call.services.database, call.tenant_id, entry.run_id)
    if not rows:
        return b""  # it is no longer kept, and no longer one of the stream's
    run = show_run(rows)
    name = _ENDS.get(run.status, "run:stop")
    ended = _Ended(run.id, run.workflow, run.status, run.output, run.error)
    return event(name, entry.position, _encode({"type": name, "run_id": run.id, "run": ended}))


_PROBLEMS: Final = ("not_found", "invalid_value", "overloaded")

ROUTES: Final = (
    Route("GET", "/v1/streams/{stream_id}/subscribe", subscribe, "runs:read", {200: None, 204: None}, StreamQuery,
          problems=_PROBLEMS, streams=True),
    Route("GET", "/v1/runs/{run_id}/stream", follow_run, "runs:read", {200: None, 204: None}, StreamQuery,
          problems=_PROBLEMS, streams=True),
)  # fmt: skip
