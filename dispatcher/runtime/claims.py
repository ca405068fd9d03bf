"""Claiming: look which queues have work, deal out the free slots, lease the tasks, send them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime

import msgspec

from dispatcher.clock import Clock
from dispatcher.engine.admission import Place, Queue, Rotation, allot, place_of, queue_of
from dispatcher.engine.flow import demands_of
from dispatcher.runtime import ancestry, pins
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.departures import Departures
from dispatcher.runtime.directory import Directory, Endpoint, Workflow
from dispatcher.runtime.lookout import Lookout
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.work import Assignment, EventFacts
from dispatcher.store import events, placements, queue, waits
from dispatcher.store.database import Database
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.queue import Claimed
from dispatcher.store.waits import Marked

_MOST_REQUIREMENTS = 1_000  # of one workflow, looked at in one sweep
_BOUND_AT_ONCE = 250
_FIRST_BITE = 100
_LEAST_BITE = 8
_GROWTH = 4
_BITE_BYTES = 16_777_216  # how much input one claim should bring along, judged by the one before


class Claims:
    """One dispatcher's way of taking work from the queues."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        capacity: Capacity,
        departures: Departures,
        metrics: Metrics,
        clock: Clock,
        dispatcher_id: Callable[[], int],
        most: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._directory = directory
        self._capacity = capacity
        self._departures = departures
        self._metrics = metrics
        self._dispatcher_id = dispatcher_id
        self._most = most
        self._bite = min(_FIRST_BITE, most)
        self._sweep_at: datetime | None = None
        self._turns = Rotation()
        self._lookout = Lookout(database, _MOST_REQUIREMENTS)
        self._stuck: set[Queue] = set()
        self.on_stuck: Callable[[], None] = lambda: None

    def sweep(self) -> None:
        """Look into every queue next time, not only those known to have work."""
        self._sweep_at = None

    async def tick(self, now: datetime, sweep_again: datetime) -> bool:
        """Claim what the free slots allow, once; True when there may be more to claim at once."""
        self._capacity.leave_others()
        self._capacity.ramp(now)
        places = self._capacity.free()
        more = await self._look(places, now, sweep_again)
        self._capacity.passed_over(places)
        return more

    async def _look(self, places: dict[Place, int], now: datetime, sweep_again: datetime) -> bool:
        unseen = self._capacity.unseen
        due = self._sweep_at is None or now >= self._sweep_at
        if due:
            self._sweep_at = sweep_again
            unseen.update(self._capacity.grants)
        fresh = unseen.intersection(places)
        queues = self._queues(places, fresh)
        if due or fresh:
            self._capacity.backlog.listen()
            asking = await self._asking()
            if self._lookout.whole:
                self._capacity.backlog.forget(self._unfound(asking))
            self._note_stuck(asking)
            self._capacity.savings.only(asking if self._lookout.whole else {*asking, *self._capacity.backlog})
            queues.update(self._open([*asking, *await self._bound(asking)], places))
        else:
            queues.update(self._open(await self._bound(self._capacity.backlog), places))
        room = min(self._capacity.room(now), self._bite)
        if room == 0:
            return False
        unseen -= fresh
        if not queues:
            return False
        most = {q: min(sum(places.get(p, 0) for p in self._directory.route(q).places), room) for q in queues}
        self._capacity.backlog.listen()
        # With a single queue to take from there is no turn to be dealt, so how much it holds need not be asked.
        waiting = await queue.ready(self._database, most) if fresh or len(queues) > 1 else most
        self._capacity.backlog.forget(q for q in queues if q not in waiting)
        self._capacity.backlog.update(waiting)
        return await self._claim(waiting, room)

    def _queues(self, places: dict[Place, int], fresh: set[Place]) -> dict[Queue, None]:
        """Where there may be something: what is known to wait for these places, and whatever may go to those that were not looked at."""
        queues = self._open(self._capacity.backlog, places)
        for picture in self._directory.pictures.values() if fresh else ():
            queues.update((q, None) for q, route in picture.routes.items() if not fresh.isdisjoint(route))
        return queues

    def _open(self, queues: Iterable[Queue], places: dict[Place, int]) -> dict[Queue, None]:
        routes = [(q, self._directory.route(q)) for q in queues]
        return {q: None for q, route in routes if not (route.gathers or route.unbound) and any(p in places for p in route.places)}

    def _unfound(self, asking: Collection[Queue]) -> list[Queue]:
        """Queues of tasks that ask something and have none any more: those no endpoint could take are not forgotten otherwise."""
        found, pictures = set(asking), self._directory.pictures
        return [q for q in self._capacity.backlog if q[2] and q not in found and q[0] in pictures and abs(q[1]) in pictures[q[0]].asking]

    async def _bound(self, asking: Iterable[Queue]) -> set[Queue]:
        """Say where runs are to stay that found no endpoint when they were made, where there is one now; answers the queues they go to."""
        unbound = {q: _BOUND_AT_ONCE for q in asking if (route := self._directory.route(q)).unbound and route.places}
        found = set[Queue]()
        if not unbound:
            return found
        self._capacity.backlog.listen()
        ready = await queue.ready(self._database, unbound)
        self._capacity.backlog.forget(q for q in unbound if q not in ready)
        for q, waiting in ready.items():
            where = [endpoint.id for _ in range(waiting) if (endpoint := self._capacity.calmest(q)) is not None]
            found |= await placements.bind(self._database, q, where)
        self._capacity.backlog.update(found)
        return found

    def _note_stuck(self, asking: Iterable[Queue]) -> None:
        """Tell where tasks wait that no endpoint may take: what they hold meanwhile others may want."""
        stuck = {q for q in asking if self._directory.stuck(q)}
        news, self._stuck = not stuck <= self._stuck, stuck
        if news:
            self.on_stuck()

    async def _asking(self) -> list[Queue]:
        """The queues of tasks that ask something of their endpoint."""
        asking = [(tenant_id, id) for tenant_id, picture in self._directory.pictures.items() for id in picture.asking]
        return await self._lookout.look(asking) if asking else []

    async def _claim(self, waiting: dict[Queue, int], room: int) -> bool:
        # The clock and the free slots are read again: the database was asked, and express work may have taken some meanwhile, or others
        # this process for dead.
        now = self._clock.now()
        places = self._capacity.free()
        ready = self._turns.order(waiting)
        routes = {q: self._directory.route(q) for q in ready}
        savings = self._capacity.savings
        slots = allot(ready, routes, places, min(room, self._capacity.room(now)), self._capacity.alone(places), savings.places)
        dealt = {slot.queue for slot in slots}
        savings.look(ready, {q: self._capacity.could_take(r) for q, r in routes.items() if r.slots > 1 and q not in dealt}, now)
        if not slots:
            return False
        if len(ready) > 1:
            self._turns.served(slot.queue for slot in slots)
        self._capacity.ask(slots)
        versions = {place: endpoint.target.version for place in places if (endpoint := self._directory.endpoint(place)) is not None}
        claimed: list[Claimed] = []
        self._capacity.backlog.listen()
        try:
            claimed = await queue.claim(self._database, slots, versions, self._dispatcher_id(), now)
            assignments = await self.assignments(await self._at_home(claimed, now))
        except BaseException:
            for slot in slots:
                self._capacity.give_back(slot.place, slot.slots)
            raise
        finally:
            self._capacity.answered()
        self._empty([(slot.place, slot.slots) for slot in slots], assignments)
        if len(claimed) < len(slots) and len(waiting) == 1:
            self._capacity.backlog.forget(waiting)
        self._bite = self._next_bite(len(slots), claimed)
        self._metrics.claimed += len(claimed)
        await self._departures.begin(assignments)
        return bool(claimed)

    async def resume(self, granted: Sequence[tuple[Marked, Endpoint]], now: datetime) -> set[TaskKey]:
        """Lease tasks whose wait is over to the endpoints whose slots have been filled for them, and send them; answers which were."""
        routes = [self._directory.route(queue_of(m.tenant_id, m.workflow_id, True, m.requirement)) for m, _ in granted]
        taken = [(endpoint.place, route.slots) for (_, endpoint), route in zip(granted, routes, strict=True)]
        try:
            wanted = [(m, endpoint.id, endpoint.target.version, slots) for (m, endpoint), (_, slots) in zip(granted, taken, strict=True)]
            claimed = await waits.lease(self._database, wanted, self._dispatcher_id(), now)
            assignments = await self.assignments(await self._at_home(claimed, now))
        except BaseException:
            for place, slots in taken:
                self._capacity.give_back(place, slots)
            raise
        self._empty(taken, assignments)
        self._metrics.claimed += len(claimed)
        await self._departures.begin(assignments)
        return {row.key for row in claimed}

    async def _at_home(self, claimed: list[Claimed], now: datetime) -> list[Claimed]:
        return await pins.at_home(self._database, self._directory, self._capacity, claimed, self._dispatcher_id(), now)

    def _empty(self, taken: Sequence[tuple[Place, int]], assignments: Sequence[Assignment]) -> None:
        """Give back slots that were filled for tasks and found none."""
        filled = Counter((assignment.endpoint.place, assignment.slots) for assignment in assignments)
        for place, slots in taken:
            if filled[(place, slots)] > 0:
                filled[(place, slots)] -= 1
            else:
                self._capacity.give_back(place, slots)

    def _next_bite(self, asked: int, claimed: Sequence[Claimed]) -> int:
        """How much the next claim asks for: more while there was as much as was asked for, otherwise little more than there was.

        Room is found for what is asked, not for what comes, so a trickle of tasks must not ask for a flood.
        """
        mean = sum(len(row.input) for row in claimed) // (len(claimed) or 1)
        most = max(min(self._most, _BITE_BYTES // (mean + 1)), 1)
        had = max(asked, self._bite) if len(claimed) == asked else max(len(claimed), _LEAST_BITE)
        return min(_GROWTH * had, most)

    async def assignments(self, claimed: list[Claimed]) -> list[Assignment]:
        """What has been leased, with all its requests need."""
        claimed = await placements.stay(self._database, claimed)
        wanted = {(row.tenant_id, row.event_id) for row in claimed if row.event_id is not None}
        facts = await events.facts(self._database, wanted) if wanted else {}
        given = await ancestry.given(self._database, self._directory, [row for row in claimed if row.graph is not None])
        assignments = []
        for row in sorted(claimed, key=lambda r: (-r.priority, r.run_id, r.node)):
            workflow = await self._directory.workflow_version(row.tenant_id, row.workflow_id, row.workflow_version)
            endpoint = self._directory.endpoint(place_of(row.tenant_id, row.endpoint_id, workflow.definition.tasks[row.node].durable))
            if endpoint is None:
                continue  # deleted this very moment: the audit finds the lease without a flight and puts the task back
            fact = facts.get((row.tenant_id, row.event_id)) if row.event_id is not None else None
            event = EventFacts(fact.id, fact.type, fact.metadata) if fact is not None else None
            assignments.append(
                Assignment(
                    row.tenant_id,
                    row.run_id,
                    row.node,
                    row.epoch,
                    workflow,
                    endpoint,
                    row.input,
                    row.metadata,
                    row.run_priority,
                    row.priority,
                    row.app_retries,
                    row.infra_retries,
                    row.spared_since,
                    row.spared_by,
                    row.started_at,
                    row.deadline,
                    event,
                    row.event_id,
                    row.parent_run_id,
                    row.filter_payload,
                    *given.get((row.tenant_id, row.run_id, row.node), (None, None)),
                    row.retry_base,
                    demands_of(msgspec.json.decode(row.units)) if row.units is not None else (),
                    self._waits_until(row, workflow),
                    requirement=row.requirement,
                    slots=row.slots,
                    waited=row.waited,
                )
            )
        return assignments

    def _waits_until(self, row: Claimed, workflow: Workflow) -> datetime | None:
        """How long a task waits if it is put back. What was late as it was leased has its time again, as from a page of renewals."""
        if row.schedule_deadline is None or row.schedule_deadline > row.started_at:
            return row.schedule_deadline
        picture = self._directory.pictures.get(row.tenant_id)
        newest = picture.by_id.get(row.workflow_id, workflow) if picture is not None else workflow
        return row.started_at + newest.schedule_timeout(row.node)
