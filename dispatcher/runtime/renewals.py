"""What waits has its schedule timeout again, a page at a time: of workflows that are to be resumed, or that an endpoint takes again.

Who resumes a workflow or brings an endpoint back says so, and is done. Until all has been gone through, nothing of that workflow runs
out of its schedule timeout. A workflow stays paused meanwhile: those at the front of a line are passed over by whoever lets others through
as long as somebody has them at hand, and would be overtaken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

from dispatcher.runtime.directory import Directory
from dispatcher.store import asides, pausing, registry, renewals
from dispatcher.store.database import Connection, Database
from dispatcher.store.pages import Page
from dispatcher.store.renewals import Renewal, Renewed

_PAGE = 2_000  # tasks, or runs, that are looked at in one statement
_AGAIN = timedelta(milliseconds=100)  # until somebody else has let go of what was passed over
_LEAD = timedelta(minutes=1)  # from when on timeouts count before a workflow is resumed, since going through all of it takes a while


class Renewals:
    """One dispatcher's way of giving time again."""

    def __init__(self, database: Database, directory: Directory, changed: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._directory = directory
        self._changed = changed
        self.on_renewed: Callable[[], None] = lambda: None

    async def tick(self, now: datetime) -> datetime | None:
        """Go through a page of one workflow; answers when to look again, None if there is nothing more to do."""
        renewal: Renewal | None = None
        try:
            async with self._database.transaction() as conn:
                renewal = await renewals.next_one(conn)
                if renewal is None:
                    return None
                behind, found = await self._renew(conn, renewal, now)
            if behind is None and renewal.late_at is None:
                await self._resume(renewal, now)
        except Exception:
            if renewal is not None:  # the others come first, lest one that fails every time be in their way
                await renewals.put_last(self._database, renewal, now)
            raise
        if renewal.late_at is not None and (behind is None or (found is not None and found.renewed)):
            self.on_renewed()
        return now + _AGAIN if found is not None and found.passed_over else now

    async def _renew(self, conn: Connection, renewal: Renewal, now: datetime) -> tuple[Page | None, Renewed | None]:
        """Answers what comes behind a page, which is the same again where somebody was passed over, and what was found on it."""
        resumes = renewal.late_at is None
        workflow = await self._directory.workflow_version(renewal.tenant_id, renewal.workflow_id, renewal.version)
        found = await renewals.renew(conn, renewal, workflow.schedule_ms, now + _LEAD if resumes else now, _PAGE)
        behind = renewal.page if found is not None and found.passed_over else renewal.page.behind(found, _PAGE)
        if behind is not None:
            await renewals.go_on(conn, renewal, behind, now)
        elif not resumes:
            await renewals.drop(conn, renewal.tenant_id, renewal.workflow_id)
        return behind, found

    async def _resume(self, renewal: Renewal, now: datetime) -> None:
        """Unless it is paused again, removed, or resumed by somebody else meanwhile."""
        async with self._database.transaction() as conn:
            await registry.bump(conn, renewal.tenant_id)
            if not await renewals.over(conn, renewal):
                return
            pause = await pausing.get(conn, renewal.tenant_id, renewal.workflow)
            if pause is not None:
                if now - renewal.began_at > _LEAD:  # as when who went through it was killed: what came first may be late
                    await renewals.late(conn, renewal, now)
                await pausing.put(conn, renewal.tenant_id, replace(pause, paused_at=None), now)
                await asides.judge(conn, renewal.tenant_id, now)
        await self._changed()
