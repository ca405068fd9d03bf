"""What attempts say while they run: log lines, stream chunks, progress. Bounded per attempt, and what is dropped is said once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from dispatcher.clock import Clock
from dispatcher.engine.streams import Piece
from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.ids import created_at
from dispatcher.runtime.group_commit import GroupCommit, QueueFull
from dispatcher.runtime.streams import Streams
from dispatcher.settings import Settings
from dispatcher.store import logs, tasks
from dispatcher.store.database import Database
from dispatcher.store.logs import NewLine
from dispatcher.store.outcomes import Guard

LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
_BOUND = 100_000
_SET = 2_000  # the weight of one commit: entries, or 16 MB of large ones
_WEIGHT_BYTES = 8_192


class CallbackEvent(msgspec.Struct, frozen=True):
    """One event of an attempt, as it comes by callback or in an NDJSON answer. Unknown fields are ignored."""

    type: str = ""
    ms: int | None = None
    fraction: float | None = None
    note: str = ""
    level: str = "info"
    message: str = ""
    at: datetime | None = None
    stream: str = "out"
    seq: int | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    encoding: str | None = None
    output: msgspec.Raw = msgspec.Raw(b"null")
    refs: tuple[str, ...] = ()
    retry: bool | None = None
    retry_after_ms: int | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    base: int | None = None
    ops: list[msgspec.Raw] = []
    turn: msgspec.Raw = msgspec.Raw(b"")
    labels: dict[str, str | int | float | bool | None] | None = None


class EventRefused(ValueError):  # noqa: N818 - reads as what happened
    """An event that cannot be taken; the text says why."""


@dataclass(frozen=True, slots=True)
class NewProgress:
    """How far an attempt says it is; `document` is JSON text."""

    guard: Guard
    document: str


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A piece of a stream, and whose it is."""

    tenant_id: int
    piece: Piece


Entry = NewLine | NewChunk | NewProgress


class Recorder:
    """Writes log lines and chunks in shared commits."""

    def __init__(self, database: Database, clock: Clock, settings: Settings, streams: Streams) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self._streams = streams
        self._counts: dict[tuple[str, int, int], int] = {}
        self._lines: GroupCommit[NewLine, None] = GroupCommit(self._write_lines, most=_SET, bound=_BOUND, weigh=weight)
        self._chunks: GroupCommit[NewChunk, None] = GroupCommit(self._write_chunks, most=_SET, bound=_BOUND, weigh=weight)

    def entry(self, guard: Guard, event: CallbackEvent) -> Entry | None:
        """What is kept of a log, chunk or progress event; None of a line beyond what an attempt may log.

        Raises EventRefused for an event that makes no sense.
        """
        if event.type == "log":
            return self._line(guard, event)
        return self._chunk(guard, event) if event.type == "chunk" else self._progress(guard, event)

    async def write(self, entries: Sequence[Entry]) -> None:
        """Keep entries of one attempt in this order; returns once they are durable. Of progress only the latest is written.

        Raises DatabaseUnavailable or QueueFull when some could not be kept.
        """
        latest: NewProgress | None = None
        writes: list[Awaitable[None]] = []
        for entry in entries:
            if isinstance(entry, NewProgress):
                latest = entry
            else:
                writes.append(self._submitted(entry))
        if latest is not None:
            writes.append(tasks.set_progress(self._database, latest.guard, latest.document))
        for result in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _submitted(self, entry: NewLine | NewChunk) -> asyncio.Future[None]:
        try:
            return self._lines.submit(entry) if isinstance(entry, NewLine) else self._chunks.submit(entry)
        except QueueFull as full:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(full)
            return refused

    def _line(self, guard: Guard, event: CallbackEvent) -> NewLine | None:
        level = event.level.lower()
        if level not in LEVELS:
            raise EventRefused(f"level {event.level!r} is none of {', '.join(sorted(LEVELS))}")
        kept = self._count(guard)
        most = self._settings.log_lines_per_attempt
        if kept > most + 1:
            return None
        message = _shortened(event.message, self._settings.log_line_bytes)
        if kept > most:
            level, message = "warning", f"Log limit of {most} lines reached: what this attempt logs from here on is dropped."
        at = self._moment(guard.run_id, event.at)
        return NewLine(guard.tenant_id, guard.run_id, guard.node, guard.epoch, at, level, message)

    def _moment(self, run_id: str, said: datetime | None) -> datetime:
        """When a line was written: as the handler says, unless its clock is off so far that the run had not begun, or now is not yet."""
        now = self._clock.now()
        earliest = created_at(run_id)
        if said is None or said.tzinfo is None or earliest is None:
            return now
        return min(max(said, earliest), now)

    def _count(self, guard: Guard) -> int:
        key = (guard.run_id, guard.node, guard.epoch)
        self._counts[key] = count = self._counts.pop(key, 0) + 1
        if len(self._counts) > _BOUND:
            del self._counts[next(iter(self._counts))]
        return count

    def _chunk(self, guard: Guard, event: CallbackEvent) -> NewChunk:
        if event.seq is None or not 0 <= event.seq < 1 << 53:
            raise EventRefused("a chunk needs `seq`, a whole number that grows within its stream")
        if not event.stream or len(event.stream) > 200 or "\x00" in event.stream:
            raise EventRefused("`stream` is a name of 1 to 200 characters")
        if event.encoding not in (None, "base64"):
            raise EventRefused('`encoding` is "base64", or left out')
        data = bytes(event.data)
        _checked(data, self._settings.max_body_bytes)
        return NewChunk(guard.tenant_id, Piece(guard.run_id, guard.node, guard.epoch, event.stream, event.seq, data, event.encoding))

    def _progress(self, guard: Guard, event: CallbackEvent) -> NewProgress:
        if event.fraction is not None and not 0 <= event.fraction <= 1:
            raise EventRefused("`fraction` is a number from 0 to 1")
        note = _shortened(event.note, 1_000)
        document = {"fraction": event.fraction, "note": note, "at": self._clock.now()}
        return NewProgress(guard, msgspec.json.encode(document).decode())

    async def _write_lines(self, lines: Sequence[NewLine]) -> list[None]:
        await logs.append(self._database, lines)
        self._streams.logged((line.tenant_id, line.run_id) for line in lines)
        return [None] * len(lines)

    async def _write_chunks(self, chunks: Sequence[NewChunk]) -> list[None]:
        await self._streams.append([(chunk.tenant_id, chunk.piece) for chunk in chunks])
        return [None] * len(chunks)


def weight(entry: Entry) -> int:
    """How much of a commit an entry fills."""
    if isinstance(entry, NewProgress):
        return 1
    return 1 + len(entry.message if isinstance(entry, NewLine) else entry.piece.data) // _WEIGHT_BYTES


def _shortened(text: str, most_bytes: int) -> str:
    """Text as it can be stored, cut with a mark where it is too long."""
    clean = text.replace("\x00", "\ufffd").encode("utf-8", "replace")
    if len(clean) <= most_bytes:
        return clean.decode()
    return clean[:most_bytes].decode("utf-8", "ignore") + f" … [cut, {len(clean)} bytes in all]"


def _checked(data: bytes, most: int) -> None:
    try:
        check(data, max_bytes=most)
    except JsonRefused as refused:
        raise EventRefused(str(refused)) from None
