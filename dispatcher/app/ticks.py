"""What a dispatcher does again and again: its loops, and when each wants to run next."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dispatcher.app.maintenance import Maintenance
from dispatcher.app.parts import Parts
from dispatcher.loops import Loop
from dispatcher.runtime import pins
from dispatcher.store import queue, tasks, watch

_BATCH = 1_000
_MAINTENANCE = timedelta(minutes=10)
_MARKS = timedelta(seconds=10)  # what no hint tells of is found by the loop of waits
_SEARCH = timedelta(seconds=10)  # between looks for rows to put into segments; while there are any, it goes on
_UNWATCHED = 10  # polls after which a loop looks for itself, whatever the watch has seen
_CLAIM_REST = 2.0  # claims may keep the database busy for a third of the time
_GATES_REST = 1.0  # and gates for half of it


@dataclass(slots=True)
class Ticks:
    """The loops of a dispatcher by name. Each tick selects, hands on, and says when it wants to run again."""

    parts: Parts
    loops: dict[str, Loop] = field(default_factory=dict)

    @property
    def poll(self) -> timedelta:
        """How often is looked for what no hint has told of."""
        return timedelta(seconds=self.parts.services.settings.poll)

    def make(self) -> dict[str, Loop]:
        """The loops, not yet started."""
        services, poll, seldom = self.parts.services, self.poll, self.poll * _UNWATCHED
        beat = timedelta(seconds=services.settings.heartbeat)
        ticks = {
            "watch": (self._watch, poll),
            "claim": (self._claim, poll),
            "batches": (self._batch, poll),
            "timers": (self._timers, seldom),
            "timetable": (services.timetable.tick, seldom),
            "graphs": (self._advance, seldom),
            "waits": (self._waits, seldom),
            "marks": (self._marks, _MARKS),
            "gates": (self._gates, seldom),
            "rates": (services.rates.tick, seldom),
            "asides": (self._asides, seldom),
            "renewals": (services.renewals.tick, seldom),
            "pins": (self._pins, seldom),
            "cancels": (self._cancels, seldom),
            "deadlines": (self._deadlines, poll),
            "heartbeat": (self._heartbeat, beat),
            "slots": (self._rebalance, beat),
            "reap": (self._reap, beat),
            "registry": (self._refresh, poll),
            "probe": (self._probe, seldom),
            "bulk": (self._bulk, seldom),
            "search": (services.search.tick, _SEARCH),
            "maintenance": (Maintenance(services).tick, _MAINTENANCE),
        }
        self.loops = {name: Loop(name, tick, services.clock, every) for name, (tick, every) in ticks.items()}
        self.loops["claim"].rest = _CLAIM_REST
        self.loops["search"].rest = _CLAIM_REST
        self.loops["asides"].rest = _CLAIM_REST
        services.search.on_wanted = self.loops["search"].wake
        self.loops["gates"].rest = _GATES_REST
        return self.loops

    async def _watch(self, now: datetime) -> None:
        """Look for all loops at once, and have those tick that have something to do. What they find is up to them."""
        seen = await watch.look(self.parts.services.database, self.parts.membership.id, now)
        for name, moment in seen.moments().items():
            self.loops[name].wake_by(moment)

    async def _gates(self, now: datetime) -> datetime | None:
        wanted = await self.parts.services.gates.tick(now)
        return now + self.poll if wanted is None and self.parts.services.gates.attentive else wanted

    async def _asides(self, now: datetime) -> datetime | None:
        looks = [await self.parts.services.asides.tick(now), await self.parts.services.unschedulable.tick(now)]
        return min((moment for moment in looks if moment is not None), default=None)

    async def _pins(self, now: datetime) -> datetime | None:
        parts = self.parts
        found = await pins.find_homes(parts.services.database, parts.services.directory, parts.capacity, now)
        if found:
            self.loops["claim"].wake()
            parts.signals.send("ready")
        return now if found else None

    async def _batch(self, now: datetime) -> datetime | None:
        return await self.parts.batches.tick(now)

    async def _claim(self, now: datetime) -> datetime | None:
        return now if await self.parts.claims.tick(now, now + self.poll) else None

    async def _timers(self, now: datetime) -> datetime | None:
        promoted = await queue.promote(self.parts.services.database, now, _BATCH)
        self.parts.capacity.backlog.update(promoted)
        if promoted:
            self.loops["claim"].wake()
            self.parts.signals.send("ready")
            self.parts.services.gates.promoted(promoted)
        more = len(promoted) >= _BATCH
        more |= await self.parts.membership.end_leases(now, _BATCH)
        more |= await self.parts.membership.expire(now, _BATCH)
        more |= await self.parts.services.cancellation.enforce_due(now, _BATCH) >= _BATCH
        bound_at = await self.parts.services.pausing.tick(now)
        if more:
            return now
        next_timer = _later(await tasks.next_timer(self.parts.services.database), now)
        return min((moment for moment in (bound_at, next_timer) if moment is not None), default=None)

    async def _advance(self, now: datetime) -> datetime | None:
        return now if await self.parts.graphs.tick(now, _BATCH) else None

    async def _waits(self, now: datetime) -> datetime | None:
        return now if await self.parts.waits.tick(now) else _later(await self.parts.waits.next_moment(), now)

    async def _marks(self, now: datetime) -> datetime | None:
        return now if await self.parts.waits.go_on(now) else None

    async def _cancels(self, now: datetime) -> datetime | None:
        marked = await tasks.cancelling(self.parts.services.database, self.parts.membership.id)
        self.parts.deliveries.cancelling(marked)
        return _later(min((row.cancel_at for row in marked), default=None), now)

    async def _deadlines(self, now: datetime) -> datetime | None:
        return _later(await self.parts.deliveries.time_out(now), now)

    async def _heartbeat(self, now: datetime) -> None:
        await self.parts.membership.heartbeat(now)

    async def _rebalance(self, now: datetime) -> None:
        await self.parts.membership.rebalance(now)

    async def _reap(self, now: datetime) -> datetime | None:
        await self.parts.membership.audit(now)
        return now if await self.parts.membership.bury(now, _BATCH) else None

    async def _refresh(self, now: datetime) -> None:
        await self.parts.services.directory.refresh(now)
        await self.parts.services.webhooks.refresh(now)
        await self.parts.services.waiters.look()
        await self.parts.services.streams.look()

    async def _bulk(self, now: datetime) -> datetime | None:
        return now if await self.parts.services.bulk.tick(now) else None

    async def _probe(self, now: datetime) -> None:
        await self.parts.circuits.probe_due(now)


def _later(moment: datetime | None, now: datetime) -> datetime | None:
    """A moment still to come. What is past and was left alone has its reasons, and is looked at again with the next poll."""
    return moment if moment is not None and moment > now else None
