"""Asking the filters of events, before they are matched to runs: what is cheap at once, what may be costly in a thread.

A judgement holds for one picture of the registry: an event whose picture was old when it was written is judged again. One tenant has one
costly judgement under way at a time, so that its expressions hold up its own events and nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from dispatcher.clock import monotonic
from dispatcher.engine.filters import Candidates, Failure, Match, Occurrence
from dispatcher.errors import problem
from dispatcher.runtime.directory import Directory, Picture
from dispatcher.settings import Settings

_AT_ONCE: Final = 4_000  # tokens evaluated without leaving the loop: about three milliseconds
_BREATH: Final = 400  # and so many before others get a turn


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an event starts by one picture of the registry. `matches` is None where no filter has a say: all that listen run."""

    picture: Picture
    matches: list[Match] | None = None
    failures: Sequence[Failure] = ()


class Judged(Protocol):
    """An event, and what is known of it."""

    tenant_id: int
    type: str
    data: bytes
    metadata: str | None
    scope: str | None
    workflow: str | None
    judgement: Judgement | None


class Judging:
    """Judges events by what is registered."""

    def __init__(self, directory: Directory, settings: Settings) -> None:
        self._directory = directory
        self._seconds = settings.filter_seconds
        self._most_waiting = settings.filter_queue
        self._turns: dict[int, asyncio.Lock] = {}
        self._waiting: dict[int, int] = {}

    async def judge(self, events: Sequence[Judged]) -> None:
        """Give each event its judgement. Raises Problem overloaded when a tenant's filters cannot keep up with its events."""
        spent = 0
        for event in events:
            picture = self._directory.pictures[event.tenant_id]
            event.judgement = Judgement(picture)
            if not picture.filters or event.workflow is not None:
                continue
            candidates = Candidates.of(picture.events.match(event.type), picture.filters, event.scope)
            if candidates is None:
                continue
            cost = candidates.cost(len(event.data))
            event.judgement = await self._costly(event, picture, candidates) if cost > _AT_ONCE else self._asked(event, picture, candidates)
            spent += min(cost, _AT_ONCE)
            if spent > _BREATH:
                spent = 0
                await asyncio.sleep(0)

    def _asked(self, event: Judged, picture: Picture, candidates: Candidates) -> Judgement:
        seen = Occurrence(event.type, event.scope, event.data, event.metadata)
        return Judgement(picture, *candidates.select(seen, monotonic, self._seconds))

    async def _costly(self, event: Judged, picture: Picture, candidates: Candidates) -> Judgement:
        tenant_id = event.tenant_id
        waiting = self._waiting.get(tenant_id, 0)
        if waiting >= self._most_waiting:
            raise problem("overloaded", "the filters of this tenant cannot keep up with its events; try again, or make them simpler")
        self._waiting[tenant_id] = waiting + 1
        try:
            async with self._turns.setdefault(tenant_id, asyncio.Lock()):
                return await asyncio.to_thread(self._asked, event, picture, candidates)
        finally:
            self._waiting[tenant_id] -= 1
            if not self._waiting[tenant_id]:
                del self._waiting[tenant_id], self._turns[tenant_id]
