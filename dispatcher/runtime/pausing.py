"""Pausing, resuming and removing workflows, and what becomes of the tasks that wait meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from dispatcher.clock import Clock
from dispatcher.errors import problem
from dispatcher.ids import IdMaker
from dispatcher.runtime import limits_declared
from dispatcher.runtime.directory import Directory
from dispatcher.store import asides, audit, gate_limits, pausing, registry, removals, renewals
from dispatcher.store.database import Connection, Database
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.pages import Page
from dispatcher.store.pausing import Pause
from dispatcher.store.tasks import Overdue

OnSchedule = Literal["queue", "drop"]
_LOOKS = 10  # while the shortest bound of a paused workflow lasts, at those that have come
_LEAST, _MOST = timedelta(seconds=1), timedelta(minutes=1)  # between two looks
_PAGE = 2_000  # tasks that are looked at in one statement
_NEXT_PAGE = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True)
class PauseChange:
    """What shall be different; None leaves a member as it is. `queue_ttl` of zero takes the bound away."""

    paused: bool | None = None
    queue_ttl: timedelta | None = None
    on_schedule: OnSchedule | None = None


class Pausing:
    """Handles changes of workflows."""

    def __init__(self, database: Database, directory: Directory, clock: Clock, changed: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._directory = directory
        self._clock = clock
        self._changed = changed
        self._ids = IdMaker()
        self._bound_at: datetime | None = None
        self._pages: dict[int, Page] = {}
        """Of tenants that have not been looked at yet, since it was last time to."""

    async def change(self, tenant_id: int, name: str, wanted: PauseChange) -> None:
        """Pause or resume a workflow, or change what a pause means for it. Raises Problem unknown_workflow.

        What waited for the pause to end has its whole schedule timeout before it. Where that is much, the workflow is resumed once all of
        it has been told so.
        """
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            now = self._clock.now()
            before = await pausing.get(conn, tenant_id, name)
            if before is None:
                raise problem("unknown_workflow", f"there is no workflow {name[:200]!r}")
            if wanted.paused and await renewals.drop(conn, tenant_id, before.id):
                before = replace(before, paused_at=None)  # it was to be resumed: this is another pause
            after = _changed(before, wanted, now)
            if before.paused_at is not None and after.paused_at is None:
                after = await self._resume(conn, tenant_id, before, after, now)
            await pausing.put(conn, tenant_id, after, now)
            await asides.judge(conn, tenant_id, now)
            await pausing.bound(conn, tenant_id, [before.id], Page(), _PAGE)
        self._bound_at = None
        await self._changed()

    async def _resume(self, conn: Connection, tenant_id: int, before: Pause, after: Pause, now: datetime) -> Pause:
        """Answers how the workflow is to stand now."""
        if await pausing.waiting(conn, tenant_id, before.id, _PAGE) > _PAGE:
            await renewals.resuming(conn, tenant_id, before.id, now)
            return replace(after, paused_at=before.paused_at)
        await renewals.drop(conn, tenant_id, before.id)
        workflow = await self._directory.workflow_version(tenant_id, before.id, before.version)
        await pausing.resume(conn, tenant_id, before.id, workflow.schedule_ms, now)
        return after

    async def tick(self, now: datetime) -> datetime | None:
        """Bound how long those wait that have come since a workflow was paused; answers when to look again.

        Whoever writes a task need not know of the pause. What this comes too late for is bounded all the same, just later.
        """
        bounded: dict[int, dict[int, int]] = {}
        for tenant_id, picture in self._directory.pictures.items():
            ttls = {id: row.queue_ttl_ms for id, row in picture.paused.items() if row.queue_ttl_ms is not None}
            if ttls:
                bounded[tenant_id] = ttls
        if not bounded:
            self._pages.clear()
            return None
        if not self._pages and (self._bound_at is None or now >= self._bound_at):
            every = timedelta(milliseconds=min(ttl for ttls in bounded.values() for ttl in ttls.values()) / _LOOKS)
            self._bound_at = now + min(max(every, _LEAST), _MOST)
            self._pages = dict.fromkeys(bounded, Page())
        await self._bound(bounded)
        return now + _NEXT_PAGE if self._pages else self._bound_at

    async def _bound(self, bounded: Mapping[int, Mapping[int, int]]) -> None:
        """Look at what is left, up to the first page of many."""
        while self._pages:
            tenant_id, page = self._pages.popitem()
            more = await pausing.bound(self._database, tenant_id, list(bounded.get(tenant_id, ())), page, _PAGE)
            if more is not None:
                self._pages[tenant_id] = more
                if more.run_id:
                    return

    async def remove(self, tenant_id: int, name: str, actor: str | None) -> None:
        """Remove a workflow with its crons, its schedules and its filters. It comes back when an endpoint registers it again.

        Raises Problem unknown_workflow, or workflow_has_runs while any of its runs is live.
        """
        now = self._clock.now()
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            workflow_id = await removals.find(conn, tenant_id, name)
            if workflow_id is None:
                raise problem("unknown_workflow", f"there is no workflow {name[:200]!r}")
            live = await removals.live(conn, tenant_id, workflow_id)
            if live:
                more = " or more" if live == removals.MOST_COUNTED else ""
                raise problem("workflow_has_runs", f"{live:,}{more} runs of {name!r} are not over")
            await removals.remove(conn, tenant_id, workflow_id, now)
            await gate_limits.undeclare(conn, tenant_id, workflow_id)
            declared = await limits_declared.redeclare(conn, tenant_id, {})
            await audit.add(conn, tenant_id, self._ids.make("aud", now), now, actor, "workflow.delete", name, {})
        if declared.news:
            await gate_limits.follow(self._database, tenant_id)
        await self._changed()


def _changed(before: Pause, wanted: PauseChange, now: datetime) -> Pause:
    after = before
    if wanted.paused is not None:
        after = replace(after, paused_at=(before.paused_at or now) if wanted.paused else None)
    if wanted.queue_ttl is not None:
        after = replace(after, queue_ttl_ms=round(wanted.queue_ttl.total_seconds() * 1000) or None)
    if wanted.on_schedule is not None:
        after = replace(after, on_schedule=wanted.on_schedule)
    return after


async def spare(db: Database, late: Sequence[Overdue], now: datetime) -> list[Overdue]:
    """Of tasks past their schedule timeout, those that are over. What waits for a workflow that is paused may wait as long as its pause
    says.
    """
    over: list[Overdue] = []
    spared: list[tuple[TaskKey, datetime | None]] = []
    for task in late:
        if task.paused_at is None:
            over.append(task)
            continue
        ttl = timedelta(milliseconds=task.queue_ttl_ms) if task.queue_ttl_ms is not None else None
        until = max(task.due_at, task.paused_at) + ttl if ttl is not None else None
        if until is not None and until <= now:
            over.append(task)
        else:
            spared.append((task.guard().key, until))
    if spared:
        await pausing.postpone(db, spared, now)
    return over
