"""Who may start now: dispatchers' shares of an endpoint's slots, and which waiting tasks get the free ones.

Two questions, both answered over sets. `share` divides an endpoint's slots among the live dispatchers, so that each may fill
its own without asking anyone. `allot` deals a dispatcher's free slots out to the queues that have work: in rounds, one slot
per tenant and round, so that a tenant with a hundred thousand waiting never delays another's fifty. `Savings` is for tasks that fill
several slots: where slots become free one at a time, somebody else always has a use for each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

Queue = tuple[int, int, str]
"""(tenant id, workflow id, requirement): tasks of one workflow wait in one queue; its durable ones in another, whose number is negative;
those that ask something of the endpoint they run at in one for each requirement."""
Place = tuple[int, str]
"""(tenant id, endpoint id): where slots are counted; those of durable tasks apart, behind the endpoint's id with `DURABLE`."""
DURABLE = "~durable"


def queue_of(tenant_id: int, workflow_id: int, durable: bool, requirement: str = "") -> Queue:
    """Where a task waits."""
    return (tenant_id, -workflow_id if durable else workflow_id, requirement)


def place_of(tenant_id: int, endpoint_id: str, durable: bool) -> Place:
    """Where a task's slot is counted. Durable tasks have slots of their own, so that parents never keep their children from running."""
    return (tenant_id, endpoint_id + DURABLE if durable else endpoint_id)


def endpoint_at(place: Place) -> str:
    """The id of the endpoint at a place."""
    return place[1].removesuffix(DURABLE)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one dispatcher may fill of one endpoint's slots."""

    dispatcher: int
    slots: int


def share(slots: int, detached: int, live: Sequence[int], others: Sequence[Grant], me: int, in_use: int, unit: int = 1) -> int:
    """How many slots dispatcher `me` grants itself.

    Its target is an even share of what tasks running without a dispatcher (`detached`) leave; the remainder goes to the first
    in id order. It never takes what another still holds, and never gives up what it is using: a shrinking share is let go of
    as attempts end. With nothing `in_use` (0) it is what may be filled from now on, however much is filled already. `unit` is how many
    slots the largest task fills: shares are whole units, because a task that fills several slots fits into none of two halves; what is
    left over goes to the next in order.
    """
    ordered = sorted(set(live) | {me})
    available = max(slots - detached, 0)
    units, rest = divmod(available, max(min(unit, slots), 1))
    even, extra = divmod(units, len(ordered))
    place = ordered.index(me)
    target = (even + (1 if place < extra else 0)) * max(min(unit, slots), 1) + (rest if place == extra else 0)
    held = sum(grant.slots for grant in others if grant.dispatcher != me)
    return max(min(target, available - held), in_use, 0)


@dataclass(frozen=True, slots=True)
class Route:
    """Where the tasks of a queue may run: places by tiers, the best first. Each task fills `slots`, or each batch where it `gathers`.

    Where it is `unbound`, nothing of it is leased: it is of runs that stay where they begin, which is to be said first.
    """

    tiers: tuple[tuple[Place, ...], ...] = ()
    slots: int = 1
    gathers: bool = False
    unbound: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """All of them."""
        return tuple(place for tier in self.tiers for place in tier)


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for the next task of `queue` at `place`: `slots` of its slots. `ordinal` counts from 1 within the queue."""

    queue: Queue
    ordinal: int
    place: Place
    slots: int = 1


class Rotation:
    """Whose turn it is from one deal to the next: who was served longest ago goes first, and who is new comes after all others.

    Where slots become free one at a time every deal has one slot, so that turns within a deal alone would give all of them to one.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._turn = 0
        self._tenants: dict[int, int] = {}
        self._queues: dict[Queue, int] = {}

    def order(self, ready: Mapping[Queue, int]) -> dict[Queue, int]:
        """The queues in the order in which their turns come."""
        if len(ready) < 2:
            return dict(ready)
        if len(self._queues) > self._most:
            self._queues = {queue: turn for queue, turn in self._queues.items() if queue in ready}
            self._tenants = {queue[0]: self._tenants[queue[0]] for queue in self._queues}
        for queue in ready:
            self._tenants.setdefault(queue[0], self._turn)
            self._queues.setdefault(queue, self._turn)
        return dict(sorted(ready.items(), key=lambda item: (self._tenants[item[0][0]], self._queues[item[0]])))

    def served(self, queues: Iterable[Queue]) -> None:
        """These have had their turns, one after the other."""
        for queue in queues:
            self._turn += 1
            self._tenants[queue[0]] = self._queues[queue] = self._turn


@dataclass(slots=True)
class Savings:
    """For whom the free slots of a place are saved: for a queue whose next task needs several and has been passed over for `patience`.

    Nobody else fills a slot there until they are enough, and as slots become free as their tasks end, they will be. A place saves for one
    queue at a time, who was passed over first comes first; and whoever has got its slots has to be patient again, so that what is lost to
    waiting is bounded.
    """

    patience: timedelta
    places: dict[Place, Queue] = field(default_factory=dict)
    _since: dict[Queue, datetime] = field(default_factory=dict)

    def only(self, waiting: Collection[Queue]) -> None:
        """No other queue than these has any work."""
        for queue in [queue for queue in self._since if queue not in waiting]:
            del self._since[queue]
        self.places = {place: queue for place, queue in self.places.items() if queue in self._since}

    def look(self, asked: Collection[Queue], lacking: Mapping[Queue, Sequence[Place]], now: datetime) -> None:
        """Of the queues that were `asked`, those that are `lacking` have a task that found no room and would fit at these places, the best
        first. The others have none.
        """
        for queue in asked:
            if queue not in lacking:
                self._since.pop(queue, None)
        self.places = {
            place: queue for place, queue in self.places.items() if queue in self._since and place in lacking.get(queue, (place,))
        }
        for queue in lacking:
            self._since.setdefault(queue, now)
        served = set(self.places.values())
        for queue in sorted(lacking, key=lambda queue: self._since[queue]):
            if queue not in served and now - self._since[queue] >= self.patience:
                place = next((place for place in lacking[queue] if place not in self.places), None)
                if place is not None:
                    self.places[place] = queue


def allot(
    ready: Mapping[Queue, int],
    routes: Mapping[Queue, Route],
    free: Mapping[Place, int],
    total: int,
    alone: Mapping[Place, int] = MappingProxyType({}),
    saved: Mapping[Place, Queue] = MappingProxyType({}),
) -> list[Slot]:
    """Find room for at most `total` tasks: `ready` ones per queue over `free` slots per place, along `routes`.

    Tenants take turns in the order of `ready`, one task a turn; within a tenant its queues take turns; within a queue the places of its
    best tier that has room. Where nothing is under way one task may fill as many slots as `alone` says, though fewer are free. Those that
    slots are `saved` for come first where there are enough, and nobody fills any where there are not.
    """
    left = _Room(dict(free), {place: slots for place, slots in alone.items() if place in free})
    waiting = {queue: count for queue, count in ready.items() if count > 0}
    tenants: dict[int, deque[Queue]] = {}
    for queue in waiting:
        tenants.setdefault(queue[0], deque()).append(queue)
    turns = deque(tenants.values())
    counts: dict[Queue, int] = {}
    dealt = _served_first(saved, waiting, routes, left, counts)[:total] if saved else []
    while turns and len(dealt) < total:
        queues = turns.popleft()
        slot = _next_slot(queues, waiting, routes, left, counts)
        if slot is not None:
            dealt.append(slot)
            turns.append(queues)
    return dealt


def _served_first(
    saved: Mapping[Place, Queue],
    waiting: dict[Queue, int],
    routes: Mapping[Queue, Route],
    left: _Room,
    counts: dict[Queue, int],
) -> list[Slot]:
    """Slots at the places where they were saved. Where they are not enough nothing is free any more."""
    dealt = []
    for place, queue in saved.items():
        slots = routes.get(queue, NOWHERE).slots
        if queue in waiting and left.fits(place, slots):
            left.fill(place, slots)
            counts[queue] = 1
            dealt.append(Slot(queue, 1, place, slots))
        else:
            left.close(place)
    return dealt


def _next_slot(
    queues: deque[Queue],
    waiting: dict[Queue, int],
    routes: Mapping[Queue, Route],
    left: _Room,
    counts: dict[Queue, int],
) -> Slot | None:
    """The next slot of one tenant, or None once none of its queues can use another."""
    while queues:
        queue = queues.popleft()
        count = counts.get(queue, 0)
        route = routes.get(queue, NOWHERE)
        place = next((p for tier in route.tiers if (p := _with_room(tier, count, left, route.slots)) is not None), None)
        if count >= waiting[queue] or place is None:
            continue
        left.fill(place, route.slots)
        counts[queue] = count + 1
        queues.append(queue)
        return Slot(queue, count + 1, place, route.slots)
    return None


def _with_room(tier: Sequence[Place], turn: int, left: _Room, slots: int) -> Place | None:
    """The place whose turn it is among those that have room."""
    return next((p for i in range(len(tier)) if left.fits(p := tier[(turn + i) % len(tier)], slots)), None)


@dataclass(frozen=True, slots=True)
class _Room:
    """What is left while slots are dealt."""

    free: dict[Place, int]
    alone: dict[Place, int]

    def fits(self, place: Place, slots: int) -> bool:
        return self.free.get(place, 0) >= slots or self.alone.get(place, 0) >= slots

    def fill(self, place: Place, slots: int) -> None:
        self.free[place] -= slots
        self.alone.pop(place, None)

    def close(self, place: Place) -> None:
        self.free.pop(place, None)
        self.alone.pop(place, None)


NOWHERE = Route()
