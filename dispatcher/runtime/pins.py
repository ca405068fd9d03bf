"""Where pinned durable tasks wait that several endpoints could be claimed for, or none, since the one they go on at is drained: for that
one alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from dispatcher.engine.placement import Requirement
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory, home_of
from dispatcher.store import pins, placements
from dispatcher.store.database import Database
from dispatcher.store.queue import Claimed
from dispatcher.store.waits import Marked


def bound(requirement: str, pin: str) -> str:
    """What a task asks that is pinned to an endpoint, beside what it asks for."""
    return replace(Requirement.parse(requirement), pin=pin).text()


def awake_at_home(directory: Directory, task: Marked) -> Marked:
    """A task whose wait is over, with its pin where it has one that counts. Where one endpoint serves its workflow none does."""
    if task.pin_endpoint is None or not directory.shared(task.tenant_id, task.workflow_id):
        return task
    return replace(task, requirement=bound(task.requirement, task.pin_endpoint))


async def at_home(
    database: Database, directory: Directory, capacity: Capacity, claimed: list[Claimed], dispatcher_id: int, now: datetime
) -> list[Claimed]:
    """Those of what has been leased that may be sent. What is pinned to another endpoint than it was leased for waits for that.

    It was ready before another endpoint came, or has not slept since. One whose endpoint is gone is not taken back: it is to hear of it.
    """
    strays = [row for row in claimed if row.pin_endpoint is not None and row.pin_endpoint != row.endpoint_id]
    if strays and not all(_has_home(directory, row) for row in strays):
        await directory.refresh(now)  # it may have begun at an endpoint that has not been heard of here
    strays = [row for row in strays if _has_home(directory, row)]
    if not strays:
        return claimed
    await _mark_asking(database, directory, {(row.tenant_id, row.workflow_id) for row in strays}, now)
    asking = [(row, bound(row.requirement, row.pin_endpoint)) for row in strays if row.pin_endpoint is not None]
    capacity.backlog.update(await pins.send_home(database, asking, dispatcher_id))
    sent = {row.key for row in strays}
    return [row for row in claimed if row.key not in sent]


async def find_homes(database: Database, directory: Directory, capacity: Capacity, now: datetime) -> bool:
    """Find what goes on at endpoints that are drained, and began when nothing else served its workflow; whether there was any."""
    found = await pins.homeless(database)
    if not found:
        return False
    await _mark_asking(database, directory, {(row.tenant_id, row.workflow_id) for row in found}, now)
    queues = await pins.find_homes(database, found)
    capacity.backlog.update(queues)
    return bool(queues)


def _has_home(directory: Directory, row: Claimed) -> bool:
    return row.pin_endpoint is not None and directory.endpoint(home_of(row.tenant_id, row.pin_endpoint)) is not None


async def _mark_asking(database: Database, directory: Directory, workflows: Collection[tuple[int, int]], now: datetime) -> None:
    """See to it that every dispatcher looks for the queues that tasks of these go to, before they do."""
    known = directory.pictures
    fresh = {key for key in workflows if key[0] not in known or key[1] not in known[key[0]].asking}
    for tenant_id, workflow_id in sorted(fresh):
        await placements.mark_asking(database, tenant_id, workflow_id)
    if fresh:
        await directory.refresh(now)
