"""Keeping limits that are shared free of what cannot start: a workflow that is paused, or that no endpoint serves but such as are paused or
drained.

What waits for it is set aside, but for what goes on where it has to stay, and comes back into line in the order in which it arrived.
Whoever writes a task looks at the workflow, and what was on its way meanwhile is found here: by the rows, whoever paused or resumed, and
whoever died of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from dispatcher.runtime import unschedulable
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.gates import Gates
from dispatcher.store import asides, registry
from dispatcher.store.asides import Aside, Moved
from dispatcher.store.database import Connection, Database

_PAGE = 1_000  # tasks, or runs, that are moved in one statement
_LEAST, _MOST = timedelta(seconds=1), timedelta(minutes=10)  # between two looks at one workflow
_Closed = tuple[int, int, datetime | None]


class Asides:
    """One dispatcher's way of setting aside and letting back."""

    def __init__(self, database: Database, directory: Directory, gates: Gates, changed: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._directory = directory
        self._gates = gates
        self._changed = changed
        self._looks: dict[_Closed, datetime] = {}
        """When to look next at workflows that are closed."""

    async def judge(self, now: datetime) -> None:
        """Look again of which workflows nothing can start: a dispatcher of a former release does not, nor have migrations."""
        news = False
        for tenant_id in list(self._directory.pictures):
            async with self._database.transaction() as conn:
                await registry.hold_alone(conn, tenant_id)
                if await judge(conn, tenant_id, now):
                    await registry.bump(conn, tenant_id)
                    news = True
        if news:
            await self._changed()

    async def tick(self, now: datetime) -> datetime | None:
        """Move a page of each workflow that has something to move; answers when to look again."""
        found = await asides.look(self._database)
        closed = {_key(row) for row in found if row.aside == "closed"}
        self._looks = {key: moment for key, moment in self._looks.items() if key in closed}
        again = [await self._move(row, now) for row in found]
        return min(again, default=None)

    async def _move(self, workflow: Aside, now: datetime) -> datetime:
        match workflow.aside:
            case "closed":
                return await self._set_aside(workflow, now)
            case "clearing":
                return await self._clear(workflow, now)
            case _:
                return await self._let_back(workflow, now)

    def look_again(self) -> None:
        """Something else is registered than was: what is closed may be so for another reason. Looks that have begun say nothing of it."""
        self._looks = {}

    async def _set_aside(self, workflow: Aside, now: datetime) -> datetime:
        """What came between is found soon after a workflow was closed, or hardly ever: the looks become rarer."""
        looks = self._looks
        due = looks.get(_key(workflow), now)
        if due > now:
            return due
        pages = [await self._page(asides.set_aside, workflow), await self._page(asides.let_back, workflow)]
        closed_for = now - workflow.aside_at if workflow.aside_at is not None else _LEAST
        rest = min(max(closed_for, _LEAST), _MOST) if all(page.alone for page in pages) else _LEAST
        due = now if any(page.moved == _PAGE for page in pages) else now + rest
        looks[_key(workflow)] = due
        return due

    async def _clear(self, workflow: Aside, now: datetime) -> datetime:
        """Where a workflow is resumed before all of it was set aside, the rest is too: it would overtake what came before it."""
        page = await self._page(asides.set_aside, workflow)
        if not page.alone:
            return now + _LEAST
        if not page.moved:
            await asides.cleared(self._database, workflow, now)
        return now

    async def _page(self, move: Callable[[Database, Aside, int], Awaitable[Moved]], workflow: Aside) -> Moved:
        page = await move(self._database, workflow, _PAGE)
        if page.moved:
            self._gates.queued()
        return page

    async def _let_back(self, workflow: Aside, now: datetime) -> datetime:
        page = await self._page(asides.let_back, workflow)
        if page.moved == _PAGE:
            return now
        if page.alone and workflow.aside is not None:
            async with self._database.transaction() as conn:
                await registry.bump(conn, workflow.tenant_id)
                opened = await asides.opened(conn, workflow, now)
            if opened:
                await self._changed()
        return now + _LEAST


async def judge(conn: Connection, tenant_id: int, now: datetime) -> bool:
    """Say of which workflows nothing can start, and which of what is aside something can take, as the registry stands in this transaction,
    which holds it; whether that is news.
    """
    closed = await asides.judge(conn, tenant_id, now)
    return await unschedulable.judge(conn, tenant_id, now) or closed


def _key(workflow: Aside) -> _Closed:
    return (workflow.tenant_id, workflow.workflow_id, workflow.aside_at)
