"""Keeping limits free of tasks nothing can take, while others of their workflow can start: they ask for a label no endpoint has, or have to
stay at one that is paused or gone.

They are set aside by queues, and come back into line in the order in which they arrived. A queue is judged by what is registered, never by
slots that are filled or circuits that are open: those pass.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby

from dispatcher.engine.admission import Queue
from dispatcher.engine.placement import Host, Requirement, startable
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.gates import Gates
from dispatcher.runtime.lookout import Lookout
from dispatcher.store import registry
from dispatcher.store import unschedulable as store
from dispatcher.store.database import Connection, Database
from dispatcher.store.unschedulable import BEFORE_ALL, Serving

_MOST_QUEUES = 1_000  # of one workflow that are looked at at once, and that are moved in one statement
_PAGE = 1_000  # tasks that are moved in one statement
_AGAIN = timedelta(seconds=1)


class Unschedulable:
    """One dispatcher's way of setting aside what nothing can take, and letting it back."""

    def __init__(self, database: Database, directory: Directory, gates: Gates, changed: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._directory = directory
        self._gates = gates
        self._changed = changed
        self._lookout = Lookout(database, _MOST_QUEUES)

    async def tick(self, now: datetime) -> datetime | None:
        """Move a page of what there is to move; answers when to look again."""
        looks = [await self._set_aside(now), await self._bring_back(now)]
        return min((moment for moment in looks if moment is not None), default=None)

    async def forget_unused(self) -> None:
        """Delete rows of queues that have no task aside any more."""
        for tenant_id in list(self._directory.pictures):
            await self._forget_unused(tenant_id)

    async def _forget_unused(self, tenant_id: int) -> None:
        after = BEFORE_ALL
        while True:
            async with self._database.transaction() as conn:
                page = await store.page(conn, tenant_id, after, _MOST_QUEUES)
                if not page:
                    return
                await store.forget(conn, [row.key for row in page], "closed")
            after = (page[-1].queue, page[-1].requirement)

    async def _set_aside(self, now: datetime) -> datetime | None:
        """Find queues nothing can take by those that hold places and wait. What came as one was found is found by the next look."""
        pictures = self._directory.pictures
        asking = [(tenant_id, id) for tenant_id, picture in pictures.items() for id in picture.asking if picture.limited(id)]
        stuck = sorted(q for q in await self._lookout.look(asking) if self._directory.stuck(q)) if asking else []
        if not stuck:
            return None
        for tenant_id, queues in groupby(await store.unknown(self._database, stuck), key=lambda q: q[0]):
            await self._close(tenant_id, list(queues), now)
        again = False
        for start in range(0, len(stuck), _MOST_QUEUES):
            page = await store.set_aside(self._database, stuck[start : start + _MOST_QUEUES], _PAGE)
            again = again or page.moved == _PAGE
            if page.moved:
                self._gates.queued()
        return now if again else None

    async def _close(self, tenant_id: int, queues: Sequence[Queue], now: datetime) -> None:
        """What this process knows may be old: queues are judged once more, while nobody changes what is registered."""
        async with self._database.transaction() as conn:
            await registry.hold_alone(conn, tenant_id)
            hosts = _hosts(await store.serving(conn, tenant_id, list({abs(q[1]) for q in queues})))
            await store.close(conn, tenant_id, [q for q in queues if q[1] in hosts and not _startable(hosts, q)], now)

    async def _bring_back(self, now: datetime) -> datetime | None:
        moving = await store.moving(self._database, _MOST_QUEUES)
        if not moving:
            return None
        clearing = [row.key for row in moving if row.aside == "clearing"]
        looks = [await self._clear(clearing, now)] if clearing else []
        opening = [row.key for row in moving if row.aside == "opening"]
        for _, queues in groupby(opening, key=lambda q: q[0]):
            looks.append(await self._let_back(list(queues), now))
        return min(looks)

    async def _clear(self, queues: Sequence[Queue], now: datetime) -> datetime:
        """What can be taken again before all of it was set aside is, first: it would overtake what came before it."""
        page = await store.set_aside(self._database, queues, _PAGE)
        if page.moved:
            self._gates.queued()
        elif page.held == len(queues):
            await store.cleared(self._database, queues, now)
        else:
            return now + _AGAIN
        return now

    async def _let_back(self, queues: Sequence[Queue], now: datetime) -> datetime:
        """Queues of one tenant."""
        page = await store.let_back(self._database, queues, _PAGE)
        if page.moved:
            self._gates.queued()
        if page.moved == _PAGE:
            return now
        if not page.held:  # somebody else moves them, or they have their time again first
            return now + _AGAIN
        async with self._database.transaction() as conn:
            await registry.hold_alone(conn, queues[0][0])
            opened = await store.forget(conn, queues, "opening")
            if opened:
                await registry.bump(conn, queues[0][0])
        if opened:
            await self._changed()
        return now if opened == len(queues) else now + _AGAIN


async def judge(conn: Connection, tenant_id: int, now: datetime) -> bool:
    """Say of queues whose tasks are aside which of them something can take, as the registry stands in this transaction, which holds it;
    whether that is news.
    """
    after, news = BEFORE_ALL, False
    while page := await store.page(conn, tenant_id, after, _MOST_QUEUES):
        hosts = _hosts(await store.serving(conn, tenant_id, list({abs(row.queue) for row in page})))
        turned = [
            replace(row, aside="clearing" if row.aside == "closed" else "closed")
            for row in page
            if _startable(hosts, row.key) is (row.aside == "closed")
        ]
        if turned:
            await store.turn(conn, tenant_id, turned, now)
            news = True
        after = (page[-1].queue, page[-1].requirement)
    return news


def _hosts(rows: Sequence[Serving]) -> dict[int, list[Host]]:
    """Endpoints by the numbers of the queues they serve."""
    found: dict[int, list[Host]] = {}
    for row in rows:
        labels = json.loads(row.labels)
        found.setdefault(row.workflow_id, []).append(Host(row.endpoint_id, labels, row.slots, row.draining))
        found.setdefault(-row.workflow_id, []).append(Host(row.endpoint_id, labels, row.durable_slots, row.draining))
    return found


def _startable(hosts: dict[int, list[Host]], queue: Queue) -> bool:
    return startable(Requirement.parse(queue[2]), hosts.get(queue[1], ()))
