"""Tasks that are run many at once: gathered in their queues, leased and sent as whole batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from dispatcher.clock import Clock
from dispatcher.engine.admission import Queue, Rotation
from dispatcher.engine.batching import Gathered, goes_at
from dispatcher.engine.definitions import Batching
from dispatcher.ids import IdMaker
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.claims import Claims
from dispatcher.runtime.directory import Directory, Endpoint
from dispatcher.runtime.lookout import Lookout
from dispatcher.runtime.work import Assignment, BatchOf
from dispatcher.store import batches
from dispatcher.store.batches import BatchClaim
from dispatcher.store.database import Database

_MOST_GROUPS = 1_000  # of one workflow, looked at in one tick
_NEXT_GROUPS = timedelta(milliseconds=100)  # until the next are looked at where there are more


@dataclass(slots=True)
class Batches:
    """One dispatcher's way of taking batches. `deliver` sends what has been leased."""

    database: Database
    directory: Directory
    capacity: Capacity
    claims: Claims
    deliver: Callable[[list[Assignment]], None]
    clock: Clock
    dispatcher_id: Callable[[], int]
    _ids: IdMaker = field(default_factory=IdMaker)
    _turns: Rotation = field(default_factory=Rotation)
    _left: list[Queue] = field(default_factory=list)
    """Queues with a batch that was ready and found no slot."""
    _lookout: Lookout = field(init=False)

    def __post_init__(self) -> None:
        self._lookout = Lookout(self.database, _MOST_GROUPS)

    @property
    def wanted(self) -> bool:
        """Whether any workflow is run in batches."""
        return any(picture.batching for picture in self.directory.pictures.values())

    async def tick(self, now: datetime) -> datetime | None:
        """Send every batch that is full or due, once for each queue; answers when to look again, None where nothing waits for its time."""
        if not self.wanted:
            self._nothing()
            return None
        known = [(tenant, id) for tenant, picture in self.directory.pictures.items() for id in picture.batching]
        queues = dict.fromkeys([*self._left, *await self._lookout.look(known)])
        gathering = {q: batching for q in queues if (batching := self._batching(q)) is not None}
        more = [] if self._lookout.whole else [now + _NEXT_GROUPS]
        if not gathering and not more:
            self._nothing()
            return None
        self.capacity.gathering = True
        return min([*more, *await self._send(gathering, now)], default=None)

    def _nothing(self) -> None:
        self.capacity.gathering = False
        self._left.clear()
        self.capacity.keep(())

    def _batching(self, q: Queue) -> Batching | None:
        if not self.directory.route(q).gathers:
            return None
        workflow = self.directory.pictures[q[0]].by_id.get(q[1])
        batching = workflow.definition.tasks[0].batch if workflow is not None else None
        if batching is None or batching.max_size <= self.capacity.most:
            return batching
        return replace(batching, max_size=self.capacity.most)

    async def _send(self, gathering: dict[Queue, Batching], now: datetime) -> list[datetime]:
        """The queues take turns, lest one that always has a batch ready should get every slot that becomes free. Answers when to look."""
        later, left = list[datetime](), list[Queue]()
        asked = [(q, batching.max_size) for q, batching in gathering.items()]
        rows = {(row.tenant_id, row.workflow_id, row.requirement): row for row in await batches.groups(self.database, asked)}
        running = await batches.running(self.database, {q[:2] for q in rows if gathering[q].group_max_runs is not None})
        for q in self._turns.order({q: row.waiting for q, row in rows.items()}):
            of = batches.group(q)
            gathered = Gathered(rows[q].waiting, rows[q].oldest, running[of])
            moment = goes_at(gathering[q], gathered)
            if moment is not None and moment <= now:
                if await self._lease(q, gathering[q], gathered):
                    self._turns.served([q])
                    running[of] += 1
                    later.append(now)  # there may be another of the group
                elif self.capacity.room(self.clock.now()):
                    left.append(q)
            elif moment is not None:
                later.append(moment)
        self._left = left[:_MOST_GROUPS]
        self.capacity.keep(left)
        return later

    async def _lease(self, q: Queue, batching: Batching, gathered: Gathered) -> bool:
        """Lease and send one batch, if there is room for it. One that has waited its time is no larger than what there is room for."""
        now = self.clock.now()  # whatever time others of this look have taken
        room = self.capacity.room(now)
        if room == 0 or (room < gathered.waiting and now < gathered.oldest + batching.interval):
            return False
        endpoint = self.capacity.take_best(q)
        if endpoint is None:
            return False
        slots = self.directory.route(q).slots
        assignments: list[Assignment] = []
        try:
            assignments = await self._assignments(q, batching, endpoint, slots, now)
        finally:
            if not assignments:
                self.capacity.give_back(endpoint.place, slots)
        for _ in assignments[1:]:
            self.capacity.take(endpoint.place, 0)
        if assignments:
            self.deliver(assignments)
        return bool(assignments)

    async def _assignments(self, q: Queue, batching: Batching, endpoint: Endpoint, slots: int, now: datetime) -> list[Assignment]:
        batch_id = self._ids.make("bat", now)
        version = endpoint.target.version
        room = self.capacity.room(now) + 1  # one of it is taken
        claim = BatchClaim(
            q, batching.max_size, min(batching.max_size, room), batching.interval, batching.group_max_runs, endpoint.id, version, slots,
            batch_id,
        )  # fmt: skip
        assignments = await self.claims.assignments(await batches.claim(self.database, claim, self.dispatcher_id(), now))
        batch = BatchOf(batch_id, len(assignments), slots)
        for one in assignments:
            one.batch = batch
        return assignments
