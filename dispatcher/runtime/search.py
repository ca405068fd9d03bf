"""Searching bodies: pages of a list whose rows also hold what a text asks for, and the segments that make it quick.

A page walks from the newest row to older ones and stops after so many, found or not: its cursor goes on from there. What segments
cover is walked only where they hold the words. They are made for tenants that search, behind the writes, so whoever never searches
pays nothing and what has just been written is found all the same: it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Generic, TypeVar

from dispatcher.clock import Clock
from dispatcher.engine.search import Query, mark, matches, words_of
from dispatcher.settings import Settings
from dispatcher.store import events, runs, search
from dispatcher.store.database import Connection, Database
from dispatcher.store.events import EventFilter, EventRow
from dispatcher.store.runs import RunFilter, RunSummary, first_id
from dispatcher.store.search import Bodies, Index, Kind, Segment

Row = TypeVar("Row", RunSummary, EventRow)

_CHUNK: Final = 500  # rows read at a time, and rows of a segment
_CHUNK_BYTES: Final = 4_194_304
_SEGMENT_WORDS: Final = 100_000  # a segment with more is not worth keeping the words of
_SEGMENTS: Final = 100
_SETTLED: Final = timedelta(minutes=2)  # by then every id made before is committed, clocks of processes not quite agreeing
_INTEREST: Final = timedelta(days=30)  # how long after a search segments go on being made
_NOTED: Final = timedelta(hours=1)
_LOWEST: Final = ""


@dataclass(frozen=True, slots=True)
class Found(Generic[Row]):
    """Rows found. `last` is the id to go on before where there may be more."""

    rows: list[Row]
    last: str | None


Page = Callable[[str | None, str | None, int], Awaitable[list[Row]]]  # (floor, before, limit) → rows, newest first


class Search:
    """Searches over runs and events."""

    def __init__(self, database: Database, clock: Clock, settings: Settings) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self.on_wanted: Callable[[], None] = lambda: None

    async def runs(self, tenant_id: int, wanted: RunFilter, query: Query, before: str | None, limit: int) -> Found[RunSummary]:
        """Runs that match a filter and a search."""

        async def page(floor: str | None, upper: str | None, most: int) -> list[RunSummary]:
            return await runs.page(self._database, tenant_id, replace(wanted, floor=floor), upper, most)

        # Few rows are left by these, and an index finds them: segments could only get in the way.
        narrow = wanted.event_id is not None or wanted.parent_run_id is not None
        return await self._walk(tenant_id, "run", page, query, before, limit, narrow=narrow)

    async def events(self, tenant_id: int, wanted: EventFilter, query: Query, before: str | None, limit: int) -> Found[EventRow]:
        """Events that match a filter and a search."""

        async def page(floor: str | None, upper: str | None, most: int) -> list[EventRow]:
            return await events.page(self._database, tenant_id, replace(wanted, floor=floor), upper, most)

        return await self._walk(tenant_id, "event", page, query, before, limit, narrow=False)

    async def _walk(
        self, tenant_id: int, kind: Kind, page: Page[Row], query: Query, before: str | None, limit: int, *, narrow: bool
    ) -> Found[Row]:
        found: list[Row] = []
        left = self._settings.search_rows
        async for floor, upper in self._ranges(tenant_id, kind, query, before, narrow=narrow):
            below = upper
            while True:
                size = min(_CHUNK, left)
                rows = await page(floor, below, size)
                for row in await self._matching(tenant_id, kind, rows, query):
                    found.append(row)
                    if len(found) > limit:
                        return Found(found[:limit], found[limit - 1].id)
                left -= len(rows)
                if left <= 0:
                    return Found(found, rows[-1].id)
                if len(rows) < size:
                    break
                below = rows[-1].id
        return Found(found, None)

    async def _ranges(
        self, tenant_id: int, kind: Kind, query: Query, before: str | None, *, narrow: bool
    ) -> AsyncIterator[tuple[str | None, str | None]]:
        """Stretches of ids (from, up to before) that may hold rows wanted, latest first."""
        index = None if narrow else await self._index(tenant_id, kind)
        if index is None:
            yield None, before
            return
        if before is None or before > index.upper_id:
            yield index.upper_id, before
            before = index.upper_id
        words = [mark(tenant_id, word) for word in query.words]
        while before > index.lower_id:
            some = await search.segments(self._database, tenant_id, kind, before, words, _SEGMENTS)
            for segment in some:
                yield segment.lower_id, min(before, segment.upper_id)
            if len(some) < _SEGMENTS:
                break
            before = some[-1].lower_id
        if not index.complete:
            yield None, min(before, index.lower_id)

    async def _index(self, tenant_id: int, kind: Kind) -> Index | None:
        """A tenant's index, and a note that it is wanted."""
        now = self._clock.now()
        index = await search.index(self._database, tenant_id, kind)
        await search.want(self._database, tenant_id, kind, _settled(kind, now), now, now - _NOTED)
        if index is None:
            self.on_wanted()
        return index

    async def _matching(self, tenant_id: int, kind: Kind, rows: Sequence[Row], query: Query) -> list[Row]:
        """The rows whose bodies hold what is asked for, in their order."""
        good: set[str] = set()
        left = [row.id for row in rows]
        while left:
            some = await search.bodies(self._database, tenant_id, kind, left, _CHUNK_BYTES)
            if not some:
                break
            good.update(one.id for one in some if matches(query, _documents(kind, one)))
            left = [one for one in left if one < some[-1].id]
            await asyncio.sleep(0)
        return [row for row in rows if row.id in good]

    # ---- making segments

    async def tick(self, now: datetime) -> bool:
        """Make the next segment of every index that is wanted; whether there is more to do."""
        more = False
        for index in await search.wanted(self._database, now - _INTEREST):
            more |= await self._extend(index.tenant_id, index.kind, now)  # type: ignore[arg-type]  # the check says so
        return more

    async def prune(self, now: datetime, kept_from: datetime) -> None:
        """Forget the indexes nobody has asked for, and segments of rows that are no longer kept."""
        lowest: dict[Kind, str] = {"run": first_id("run", kept_from - _INTEREST), "event": first_id("evt", kept_from)}
        await search.forget(self._database, now - _INTEREST, lowest)

    async def _extend(self, tenant_id: int, kind: Kind, now: datetime) -> bool:
        async with self._database.transaction() as conn:
            index = await search.locked(conn, tenant_id, kind)
            if index is None:
                return False
            for segment in await search.outdated(conn, tenant_id, kind, 1):
                await self._make(conn, index, segment, await search.ids_up(
                    conn, tenant_id, kind, segment.lower_id, segment.upper_id, _CHUNK))  # fmt: skip
                return True
            return await self._upwards(conn, index, _settled(kind, now)) or await self._downwards(conn, index)

    async def _upwards(self, conn: Connection, index: Index, settled: str) -> bool:
        kind: Kind = index.kind  # type: ignore[assignment]  # the check says so
        found = await search.ids_up(conn, index.tenant_id, kind, index.upper_id, settled, _CHUNK)
        if len(found) < _CHUNK:  # a short segment would have to be made again and again
            return False
        last = await self._make(conn, index, Segment(index.upper_id, ""), found)
        await search.grow(conn, replace(index, upper_id=f"{last}0"))
        return True

    async def _downwards(self, conn: Connection, index: Index) -> bool:
        kind: Kind = index.kind  # type: ignore[assignment]  # the check says so
        if index.complete:
            return False
        found = await search.ids_down(conn, index.tenant_id, kind, _LOWEST, index.lower_id, _CHUNK)
        if not found:
            await search.grow(conn, replace(index, complete=True))
            return False
        await self._make(conn, index, Segment(found[-1], index.lower_id), found[::-1])
        await search.grow(conn, replace(index, lower_id=found[-1]))
        return True

    async def _make(self, conn: Connection, index: Index, segment: Segment, rows: Sequence[str]) -> str:
        """Keep a segment of these ids, rising. One that begins somewhere and has no upper end ends behind the last; answers that."""
        kind: Kind = index.kind  # type: ignore[assignment]  # the check says so
        words: set[int] = set()
        pending: list[str] = []
        left = list(rows)
        while left:
            some = await search.bodies(conn, index.tenant_id, kind, left, _CHUNK_BYTES)
            if not some:
                break
            pending += [one.id for one in some if one.live]
            if len(words) <= _SEGMENT_WORDS:
                found = words_of(text for one in some for documents in _documents(kind, one).values() for text in documents)
                words.update(mark(index.tenant_id, word) for word in found)
            left = [one for one in left if one < some[-1].id]
        dense = len(words) > _SEGMENT_WORDS
        kept = Segment(segment.lower_id, segment.upper_id or f"{rows[-1]}0")
        await search.add(conn, index.tenant_id, kind, kept, [] if dense else sorted(words), pending, dense=dense)
        return rows[-1] if rows else segment.lower_id


def _settled(kind: Kind, now: datetime) -> str:
    return first_id("run" if kind == "run" else "evt", now - _SETTLED)


def _documents(kind: Kind, one: Bodies) -> dict[str, list[bytes]]:
    """Bodies by the names paths may begin with."""
    metadata = [one.metadata.encode()] if one.metadata is not None else []
    if kind == "event":
        return {"data": [one.first], "metadata": metadata, "type": one.rest or []}
    errors = [error.encode() for error in one.errors or ()]
    return {"input": [one.first], "output": one.rest or [], "error": errors, "metadata": metadata}
