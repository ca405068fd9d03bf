"""Being one of several dispatchers: signs of life, shares of slots, and picking up what the dead have left.

A dispatcher that could not renew its life in time must assume that others have taken its work: it closes every connection and
joins again under a new id. Its late answers find the epochs gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from dispatcher.clock import Clock
from dispatcher.engine.admission import share
from dispatcher.engine.attempts import Event, LeaseEnded, Refused, ScheduleExpired, step
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.deliveries import Deliveries
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.pausing import spare
from dispatcher.runtime.settlement import Settled, Settlement
from dispatcher.runtime.signals import Signals
from dispatcher.settings import Settings
from dispatcher.store import dispatchers, tasks
from dispatcher.store.database import Database
from dispatcher.store.outcomes import AttemptFacts, Outcome
from dispatcher.store.tasks import LiveTask

_log = logging.getLogger(__name__)

_LONG_DEAD = 10  # leases: more than clocks of one installation are ever apart
_AUDIT_AGE = timedelta(seconds=10)  # a lease this old without a flight here was committed without our knowing


class Membership:
    """This dispatcher among the others."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        capacity: Capacity,
        deliveries: Deliveries,
        settlement: Settlement,
        signals: Signals,
        clock: Clock,
        settings: Settings,
        name: str,
    ) -> None:
        self._database = database
        self._directory = directory
        self._capacity = capacity
        self._deliveries = deliveries
        self._settlement = settlement
        self._signals = signals
        self._clock = clock
        self._settings = settings
        self._name = name
        self._lease = timedelta(seconds=settings.lease)
        self.id = 0
        self._live_until = clock.now()
        self._seen: dict[int, tuple[datetime, datetime]] = {}
        self.on_capacity: Callable[[bool], None] = lambda _grown: None
        """Called when shares have been worked out, and whether any has grown."""

    async def join(self) -> None:
        """Become a dispatcher with a new id."""
        now = self._clock.now()
        self.id = await dispatchers.register(self._database, self._name, now, now + self._lease)
        self._live(now + self._lease)
        await self.rebalance(now)

    def _live(self, until: datetime) -> None:
        self._live_until = self._capacity.good_until = until

    async def heartbeat(self, now: datetime) -> None:
        """Renew this dispatcher's life; join anew if it was too late."""
        until = now + self._lease
        if now < self._live_until and await dispatchers.heartbeat(self._database, self.id, until):
            self._live(until)
            return
        _log.error("dispatcher %d was taken for dead: abandoning %d attempts", self.id, len(self._deliveries.open))
        self._capacity.good_until = None
        self._deliveries.abandon()
        self._capacity.grants.clear()
        await self.join()

    async def leave(self) -> None:
        """Go, so that the others need not wait to find out. What is still leased to us is theirs to put back."""
        self._capacity.good_until = None
        await dispatchers.leave(self._database, self.id)

    async def rebalance(self, now: datetime) -> None:
        """Work out and write this dispatcher's share of every endpoint's slots.

        What it has filled beyond its share is written as held until its attempts end, and not filled again: so a share shrinks though there
        is always something to run.
        """
        counted, units, before = dict(self._capacity.detached), self._directory.largest(), dict(self._capacity.grants)
        async with self._database.transaction(lane="settle") as conn:
            picture = await dispatchers.lock_slots(conn, now)
            if not await dispatchers.is_listed(conn, self.id):  # the next heartbeat joins anew; until then nothing is its own
                self._capacity.grants.clear()
                return
            grants, held = {}, {}
            for place, slots in picture.slots.items():
                in_use = self._capacity.in_use.get(place, 0) - counted.get(place, 0)
                others = picture.grants.get(place, [])
                detached, unit = picture.detached.get(place, 0), units.get(place, 1)
                grants[place] = share(slots, detached, picture.live, others, self.id, 0, unit)
                held[place] = share(slots, detached, picture.live, others, self.id, max(in_use, 0), unit)
            # A share that shrinks shrinks here first: once it is written the others may fill the rest.
            for place, slots in self._capacity.grants.items():
                self._capacity.grants[place] = min(slots, grants.get(place, 0))
            await dispatchers.set_grants(conn, self.id, list(held.items()))
        grown = any(slots > before.get(place, 0) for place, slots in grants.items())
        self._capacity.grants = grants
        self._capacity.forget_detached(counted)
        self._capacity.bound.clear()
        self._signals.peers = len([i for i in picture.live if i != self.id])
        self.on_capacity(grown)

    async def bury(self, now: datetime, limit: int) -> bool:
        """Put back what dead dispatchers had open; True when there may be more."""
        dead = await self._dead(now)
        left = await tasks.orphans(self._database, dead, limit) if dead else []
        await self._settle(left, LeaseEnded())
        if len(left) >= limit:
            return True
        for dispatcher_id in dead:
            await dispatchers.forget(self._database, dispatcher_id)
        return False

    async def _dead(self, now: datetime) -> list[int]:
        """Dispatchers that have given no sign of life for a lease of our own time; so it does not matter whose clock is right.

        One whose life ended long ago by any reckoning is not watched first. One that is not listed any more has left or been forgotten.
        """
        others = await dispatchers.others(self._database, self.id)
        self._seen = {d.id: self._seen.get(d.id, (d.live_until, now)) for d in others}
        dead = []
        for d in others:
            last, since = self._seen[d.id]
            if last != d.live_until:
                self._seen[d.id] = (d.live_until, now)
            elif now - since >= self._lease or now - d.live_until >= _LONG_DEAD * self._lease:
                dead.append(d.id)
        return dead + await dispatchers.unlisted(self._database, self.id)

    async def audit(self, now: datetime) -> None:
        """Put back leases of ours that we know nothing of: a commit whose confirmation was lost may have written them. And empty the slots
        that were given up at another dispatcher, which should have told us.
        """
        me, before = self.id, now - _AUDIT_AGE
        held = await tasks.held_since(self._database, me, before)
        for row in held:
            if row.slot_released:
                self._deliveries.extend(row.key, row.epoch, row.deadline, released=True)
        unknown = [row.key for row in held if row.key not in self._deliveries.open]
        found = await tasks.load(self._database, unknown)
        # What has ended since may have begun again: that is another attempt.
        lost = [task for task in found if task.dispatcher_id == me and task.started_at is not None and task.started_at <= before]
        await self._settle(lost, LeaseEnded())

    async def end_leases(self, now: datetime, limit: int) -> bool:
        """End attempts whose own lease is over; True when there may be more."""
        ended = await tasks.leases_ended(self._database, now, limit)
        await self._settle(ended, LeaseEnded())
        return len(ended) >= limit

    async def expire(self, now: datetime, limit: int) -> bool:
        """End tasks that have waited past their schedule timeout; True when there may be more."""
        late = await tasks.overdue(self._database, now, timedelta(seconds=self._settings.misconfig_ttl), limit)
        await self._settle(await spare(self._database, late, now), ScheduleExpired())
        return len(late) >= limit

    async def _settle(self, found: Sequence[LiveTask], event: Event) -> None:
        submitted = []
        for task in found:
            workflow = await self._directory.workflow_version(task.tenant_id, task.workflow_id, task.workflow_version)
            change = step(task.rules(), workflow.policies[task.node], event, self._clock.now())
            if not isinstance(change, Refused):
                outcome = Outcome(task.guard(), change, AttemptFacts())
                submitted.append(self._settlement.submit(Settled(outcome, workflow)))
        for future in submitted:
            await future
