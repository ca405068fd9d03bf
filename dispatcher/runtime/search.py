"""Searching bodies: pages of a list whose rows also hold what a text asks for, and the segments that make it quick.

A page walks from the newest row to older ones and stops after so many, found or not: its cursor goes on from there. What segments
cover is walked only where they hold the words. They are made for tenants that search, behind the writes, so whoever never searches
pays nothing and what has just been written is found all the same: it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Generic, TypeVar

from dispatcher.clock import Clock, monotonic
from dispatcher.engine.search import Query, mark, matches, words_of
from dispatcher.settings import Settings
from dispatcher.store import events, runs, search
from dispatcher.store.database import Connection, Database
from dispatcher.store.events import EventFilter, EventRow
from dispatcher.store.runs import FINAL_STATUSES, RunFilter, RunSummary, first_id
from dispatcher.store.search import Bodies, Choice, Index, Kind, Segment

Row = TypeVar("Row", RunSummary, EventRow)

_CHUNK: Final = 500  # rows read at a time, and rows of a segment
_CHUNK_BYTES: Final = 4_194_304
_FIRST: Final = 100  # rows of a first read: how long those take is not known yet
_LEAST: Final = 25  # rows worth a read of their own
_TINY: Final = 1e-6  # seconds
_BREATH: Final = 100  # rows looked at before others get a turn
_SEGMENT_WORDS: Final = 100_000  # a segment with more is not worth keeping the words of
_SEGMENTS: Final = 100
_SETTLED: Final = timedelta(minutes=2)  # by then every id made before is committed, clocks of processes not quite agreeing
_INTEREST: Final = timedelta(days=30)  # how long after a search segments go on being made
_NOTED: Final = timedelta(hours=1)
_LOWEST: Final = ""
_HIGHEST: Final = "~"  # behind every id
_FEW: Final = 1_000


@dataclass(frozen=True, slots=True)
class Found(Generic[Row]):
    """Rows found. `last` is the id to go on before where there may be more."""

    rows: list[Row]
    last: str | None


Page = Callable[[Sequence[str]], Awaitable[list[Row]]]
"""Those of these ids that are in the list, newest first."""


class Search:
    """Searches over runs and events."""

    def __init__(self, database: Database, clock: Clock, settings: Settings) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self.on_wanted: Callable[[], None] = lambda: None

    async def runs(self, tenant_id: int, wanted: RunFilter, query: Query, before: str | None, limit: int) -> Found[RunSummary]:
        """Runs that match a filter and a search."""

        async def page(among: Sequence[str]) -> list[RunSummary]:
            return await runs.page(self._database, tenant_id, replace(wanted, among=among), None, len(among))

        choice = Choice(await self._workflows(tenant_id, wanted.workflow), _final(wanted.statuses), wanted.metadata)
        lower, upper = _ends("run", wanted.since, wanted.until, before)
        if wanted.event_id is not None or wanted.parent_run_id is not None:  # an index leaves few, which are read one by one
            return await self._few(tenant_id, wanted, page, query, before, limit)
        return await self._walk(tenant_id, "run", choice, page, query, lower, upper, limit)

    async def events(self, tenant_id: int, wanted: EventFilter, query: Query, before: str | None, limit: int) -> Found[EventRow]:
        """Events that match a filter and a search."""

        async def page(among: Sequence[str]) -> list[EventRow]:
            return await events.page(self._database, tenant_id, replace(wanted, among=among), None, len(among))

        lower, upper = _ends("evt", wanted.since, wanted.until, before)
        choice = Choice(metadata=wanted.metadata, type=wanted.type)
        return await self._walk(tenant_id, "event", choice, page, query, lower, upper, limit)

    async def _workflows(self, tenant_id: int, name: str | None) -> list[int] | None:
        return await runs.workflow_ids(self._database, tenant_id, name) if name is not None else None

    async def _few(
        self, tenant_id: int, wanted: RunFilter, page: Page[RunSummary], query: Query, before: str | None, limit: int
    ) -> Found[RunSummary]:
        """The search of a list that is short: of the runs of one event, or of one run."""
        begun = monotonic()
        rows = await runs.page(self._database, tenant_id, wanted, before, _FEW)
        good: list[RunSummary] = []
        for number, row in enumerate(rows):
            if number > 0 and monotonic() - begun > self._settings.search_seconds:
                return Found(good, rows[number - 1].id)
            some = await search.bodies(self._database, tenant_id, "run", row.id, f"{row.id}0", 1, _CHUNK_BYTES)
            if some and matches(query, _documents("run", some[0])):
                good.append(row)
            if len(good) > limit:
                return Found(good[:limit], good[limit - 1].id)
        return Found(good, rows[-1].id if len(rows) == _FEW else None)

    async def _walk(
        self, tenant_id: int, kind: Kind, choice: Choice, page: Page[Row], query: Query, lower: str, upper: str, limit: int
    ) -> Found[Row]:
        found: list[Row] = []
        hits: list[str] = []
        left, begun, rows = self._settings.search_rows, monotonic(), _FIRST
        async with aclosing(self._ranges(tenant_id, kind, query, lower, upper)) as ranges:
            async for floor, ceiling in ranges:
                below = ceiling
                while left > 0:
                    asked = monotonic()
                    some = await search.bodies(self._database, tenant_id, kind, floor, below, min(_CHUNK, left, rows), _CHUNK_BYTES, choice)
                    if not some:
                        break
                    hits += await _matching(kind, query, some)
                    left, below = left - len(some), some[-1].id
                    now = monotonic()
                    # The next read takes half of the time there is left, by what this one took; one that would be too small is not made.
                    rows = int((begun + self._settings.search_seconds - now) / 2 * len(some) / max(now - asked, _TINY))
                    if rows < min(_LEAST, len(some)):
                        left = 0
                    if len(found) + len(hits) > limit:
                        found, hits = found + await page(hits), []
                        if len(found) > limit:
                            return Found(found[:limit], found[limit - 1].id)
                if left <= 0:
                    return Found(found + await self._rest(page, hits), below)
        return Found(found + await self._rest(page, hits), None)

    async def _rest(self, page: Page[Row], hits: Sequence[str]) -> list[Row]:
        return await page(hits) if hits else []

    async def _ranges(self, tenant_id: int, kind: Kind, query: Query, lower: str, before: str) -> AsyncGenerator[tuple[str, str], None]:
        """Stretches of ids (from, up to before) that may hold rows wanted, latest first."""
        index = await self._index(tenant_id, kind)
        if index is None or before <= index.lower_id:
            yield lower, before
            return
        if before > index.upper_id:
            yield max(lower, index.upper_id), before
            before = index.upper_id
        words = [mark(tenant_id, word) for word in query.words]
        while before > max(index.lower_id, lower):
            some = await search.segments(self._database, tenant_id, kind, before, words, _SEGMENTS)
            for segment in some:
                if segment.upper_id > lower:
                    yield max(lower, segment.lower_id), min(before, segment.upper_id)
            if len(some) < _SEGMENTS:
                break
            before = some[-1].lower_id
        if not index.complete and lower < index.lower_id:
            yield lower, index.lower_id

    async def _index(self, tenant_id: int, kind: Kind) -> Index | None:
        """A tenant's index, and a note that it is wanted."""
        now = self._clock.now()
        index = await search.index(self._database, tenant_id, kind)
        await search.want(self._database, tenant_id, kind, _settled(kind, now), now, now - _NOTED)
        if index is None:
            self.on_wanted()
        return index

    # ---- making segments

    async def tick(self, now: datetime) -> datetime | None:
        """Make the next segment of every index that is wanted; when to go on, None where there is no more to do."""
        more = False
        for index in await search.wanted(self._database, now - _INTEREST):
            more |= await self._extend(index.tenant_id, index.kind, now)  # type: ignore[arg-type]  # the check says so
        return now if more else None

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
                await self._make(conn, index, segment)
                return True
            return await self._upwards(conn, index, _settled(kind, now)) or await self._downwards(conn, index)

    async def _upwards(self, conn: Connection, index: Index, settled: str) -> bool:
        kind: Kind = index.kind  # type: ignore[assignment]  # the check says so
        found = await search.ids_up(conn, index.tenant_id, kind, index.upper_id, settled, _CHUNK)
        if len(found) < _CHUNK:  # a short segment would have to be made again and again
            return False
        upper = f"{found[-1]}0"  # behind the last of them, and before whatever comes next
        await self._make(conn, index, Segment(index.upper_id, upper))
        await search.grow(conn, replace(index, upper_id=upper))
        return True

    async def _downwards(self, conn: Connection, index: Index) -> bool:
        kind: Kind = index.kind  # type: ignore[assignment]  # the check says so
        if index.complete:
            return False
        found = await search.ids_down(conn, index.tenant_id, kind, _LOWEST, index.lower_id, _CHUNK)
        if not found:
            await search.grow(conn, replace(index, complete=True))
            return False
        await self._make(conn, index, Segment(found[-1], index.lower_id))
        await search.grow(conn, replace(index, lower_id=found[-1]))
        return True

    async def _make(self, conn: Connection, index: Index, segment: Segment) -> None:
        """Keep what the rows of a segment hold."""
        kind: Kind = index.kind  # type: ignore[assignment]  # the check says so
        words: set[int] = set()
        pending: list[str] = []
        below = segment.upper_id
        while some := await search.bodies(conn, index.tenant_id, kind, segment.lower_id, below, _CHUNK, _CHUNK_BYTES):
            pending += [one.id for one in some if one.live]
            if len(words) <= _SEGMENT_WORDS:
                found = words_of(text for one in some for documents in _documents(kind, one).values() for text in documents)
                words.update(mark(index.tenant_id, word) for word in found)
            below = some[-1].id
        dense = len(words) > _SEGMENT_WORDS
        await search.add(conn, index.tenant_id, kind, segment, [] if dense else sorted(words), pending, dense=dense)


async def _matching(kind: Kind, query: Query, some: Sequence[Bodies]) -> list[str]:
    """The ids of those that hold what is asked for; others get a turn in between."""
    hits: list[str] = []
    for start in range(0, len(some), _BREATH):
        hits += [one.id for one in some[start : start + _BREATH] if one.wanted and matches(query, _documents(kind, one))]
        await asyncio.sleep(0)
    return hits


def _final(statuses: Sequence[str] | None) -> list[str] | None:
    """Of the statuses asked for, those that are in history."""
    return [status for status in statuses if status in FINAL_STATUSES] if statuses is not None else None


def _ends(prefix: str, since: datetime | None, until: datetime | None, before: str | None) -> tuple[str, str]:
    """The stretch of ids that a list is of."""
    uppers = [text for text in (before, first_id(prefix, until) if until is not None else None) if text is not None]
    return (first_id(prefix, since) if since is not None else _LOWEST), min(uppers, default=_HIGHEST)


def _settled(kind: Kind, now: datetime) -> str:
    return first_id("run" if kind == "run" else "evt", now - _SETTLED)


def _documents(kind: Kind, one: Bodies) -> dict[str, list[bytes]]:
    """Bodies by the names paths may begin with."""
    metadata = [one.metadata.encode()] if one.metadata is not None else []
    first = [one.first] if one.first is not None else []
    if kind == "event":
        return {"data": first, "metadata": metadata, "type": one.rest or []}
    errors = [error.encode() for error in one.errors or ()]
    return {"input": first, "output": one.rest or [], "error": errors, "metadata": metadata}
