"""Between lease and request: attempts that take units of rate limits get them, or go back to wait for the next window.

Units are taken when the attempt is about to be sent and not before, so that what a window allows is what starts in it. Those leased
together ask together. An attempt that was not sent after all gives its units back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dispatcher.clock import Clock
from dispatcher.engine.flow import stored_units
from dispatcher.engine.rate_limits import Bucket, Demand, Parked, take
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.group_commit import GroupCommit
from dispatcher.runtime.work import Assignment
from dispatcher.store import rate_limits
from dispatcher.store.database import Connection, Database, DatabaseUnavailable, is_transient, retry_conflicts
from dispatcher.store.rate_limits import BucketKey, Paid, Park

_log = logging.getLogger(__name__)

_SET = 500
_BOUND = 1_000_000  # leases are bounded elsewhere
_PASS_AT_ONCE = 1_000
_BUCKETS = 1_000


class _Stopped(Exception):  # noqa: N818 - nothing is wrong: what was about to be written is not
    """Much time has passed since the clock was read."""


def _kept(assignment: Assignment, parked: Parked) -> str | None:
    """What is written of units a task has taken and keeps while it waits for others; None where there is nothing to write."""
    return stored_units(assignment.demands, dict(parked.paid)) if parked.paid else None


def _used(assignment: Assignment) -> str | None:
    """What is written of one that starts with units it had kept: the next attempt takes all of them anew."""
    return stored_units(assignment.demands, {}) if any(demand.paid_in is not None for demand in assignment.demands) else None


@dataclass(slots=True)
class Rates:
    """Starts leased attempts: at once, or once they have their units."""

    database: Database
    capacity: Capacity
    clock: Clock
    deliver: Callable[[Sequence[Assignment]], None]
    dispatcher_id: Callable[[], int]
    on_parked: Callable[[datetime], None] = lambda _until: None
    on_ready: Callable[[], None] = lambda: None
    _commits: GroupCommit[Assignment, None] = field(init=False)

    def __post_init__(self) -> None:
        self._commits = GroupCommit(self._ask, most=_SET, bound=_BOUND)

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Send leased attempts, those with limits when they have got their units. Their slots are already taken."""
        asking = [a for a in assignments if a.demands]
        if not asking:
            self.deliver(assignments)
            return
        free = [a for a in assignments if not a.demands]
        if free:
            self.deliver(free)
        for assignment in asking:
            self._commits.submit(assignment).add_done_callback(self._asked(assignment))

    def _asked(self, assignment: Assignment) -> Callable[[Any], None]:
        """Where it cannot be found out whether it may start, it does not: the audit puts the lease back."""

        def done(future: Any) -> None:
            error = None if future.cancelled() else future.exception()
            if error is None:
                return
            self.capacity.give_back(assignment.endpoint.place, assignment.slots)
            if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                _log.error("the rate limits of %s cannot be asked", assignment.run_id, exc_info=error)

        return done

    async def drain(self) -> None:
        """Wait until whoever asked has been answered."""
        await self._commits.drain()

    async def _ask(self, asking: Sequence[Assignment]) -> list[None]:
        verdicts = await retry_conflicts(lambda: self._take(asking))
        self.deliver([a for a, parked in zip(asking, verdicts, strict=True) if parked is None])
        until = [parked.until for parked in verdicts if parked is not None]
        for assignment, parked in zip(asking, verdicts, strict=True):
            if parked is not None:
                self.capacity.give_back(assignment.endpoint.place, assignment.slots)
        if until:
            self.on_parked(min(until))
        return [None] * len(asking)

    async def _take(self, asking: Sequence[Assignment]) -> list[Parked | None]:
        now = self.clock.now()
        by_key = {(a.tenant_id, d.id): d for a in asking for d in a.demands}
        async with self.database.transaction(lane="settle") as conn:
            rows = await self._lock(conn, by_key, now)
            verdicts: list[Parked | None] = [None] * len(asking)
            changed: list[tuple[int, Bucket]] = []
            for tenant_id in {a.tenant_id for a in asking}:
                places = [i for i, a in enumerate(asking) if a.tenant_id == tenant_id]
                buckets = {id_: row.bucket() for (tenant, id_), row in rows.items() if tenant == tenant_id}
                waited = {n for n, i in enumerate(places) if asking[i].waited}
                given, after = take(buckets, [asking[i].demands for i in places], now, waited)
                for i, parked in zip(places, given, strict=True):
                    verdicts[i] = parked
                changed += [(tenant_id, bucket) for bucket in after.values()]
            pairs = list(zip(asking, verdicts, strict=True))
            parks = [Park(a.key, a.epoch, a.waits_until, parked, _kept(a, parked)) for a, parked in pairs if parked is not None]
            paid = [Paid(a.key, a.epoch, _used(a)) for a, parked in pairs if parked is None and (a.task.durable or _used(a))]
            await rate_limits.settle(conn, changed, parks, paid, self.dispatcher_id())
        for assignment, parked in pairs:
            if parked is None:
                assignment.units_at = now
        return verdicts

    async def _lock(self, conn: Connection, wanted: dict[BucketKey, Demand], now: datetime) -> dict[BucketKey, rate_limits.BucketRow]:
        rows = await rate_limits.lock(conn, wanted)
        missing = {key: demand for key, demand in wanted.items() if key not in rows and demand.most is not None}
        if missing:
            await rate_limits.make(conn, missing, now)
            rows |= await rate_limits.lock(conn, missing)
        return rows

    async def unsent(self, assignment: Assignment) -> None:
        """Give back what an attempt has taken that never reached its endpoint."""
        taken_at = assignment.units_at
        if taken_at is None:
            return
        units: dict[str, int] = {}
        for demand in assignment.demands:
            units[demand.id] = units.get(demand.id, 0) + demand.units
        await rate_limits.give_back(
            self.database, [((assignment.tenant_id, id_), n, taken_at) for id_, n in units.items()], self.clock.now()
        )
        self.on_parked(self.clock.now())

    async def rewind(self) -> None:
        """Let windows begin now that were begun ahead of any clock there is: one was wrong, and has been put right. Nothing is written
        where this process was stopped as it looked: others have begun windows since, which are ahead of nobody else.
        """
        now = self.clock.now()
        with suppress(_Stopped):
            async with self.database.transaction() as conn:
                await rate_limits.rewind(conn, now)
                if self.clock.now() - now > rate_limits.CLOCKS_APART / 2:
                    raise _Stopped

    async def tick(self, now: datetime) -> datetime | None:
        """Let those whose window has come back into their queues; answers when to look again."""
        ready = await rate_limits.refill(self.database, now, _BUCKETS, _PASS_AT_ONCE)
        self.capacity.backlog.update(ready)
        if ready:
            self.on_ready()
            return now
        again = await rate_limits.next_refill(self.database)
        return again if again is not None and again > now else None
