"""An endpoint comes back: what became late while nobody could take it has its time again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from dispatcher.clock import Clock
from dispatcher.store import returns
from dispatcher.store.database import Database

_PAGE = 2_000  # tasks, or runs, that are given time in one statement


async def prepare(database: Database, clock: Clock, tenant_id: int, endpoint_id: str, names: Sequence[str] = (), *, paused: bool) -> None:
    """Give time to what is late before an endpoint comes back, a page at a time: who brings it back sees to the rest.

    It is `paused` no more, or else its circuit closes, and it may be about to serve workflows of these `names`. Should it not come back
    after all, what was given time waits for that much longer.
    """
    workflow_ids = await returns.stranded(database, tenant_id, endpoint_id, names, paused=paused)
    if not workflow_ids:
        return
    for give in (returns.some, returns.some_runs):
        late: datetime | None = None
        page = await give(database, tenant_id, workflow_ids, clock.now(), late, _PAGE)
        while page.count == _PAGE:
            page = await give(database, tenant_id, workflow_ids, clock.now(), page.late, _PAGE)
