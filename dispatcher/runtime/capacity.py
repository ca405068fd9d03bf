"""Free slots, as this process counts them: its grants less the attempts it has open.

A slot is taken when a task is leased and given back when its attempt is settled. A task that goes on without this process
(202, lost connection) keeps its slot until the next rebalance has counted it as detached, so the sum never exceeds the
endpoint's slots in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from dispatcher.engine import health
from dispatcher.engine.admission import Place, Queue, Route, Savings, Slot
from dispatcher.engine.health import Breaker
from dispatcher.runtime.directory import Directory, Endpoint


class Backlog(set[Queue]):
    """Queues known to have waiting tasks. What is heard of while the database is asked is not forgotten when it answers that there is none:
    it may have been asked before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._news: set[Queue] = set()

    def add(self, queue: Queue, /) -> None:
        """A task waits there now."""
        super().add(queue)
        self._news.add(queue)

    def update(self, *queues: Iterable[Queue]) -> None:
        """Tasks wait there now."""
        for some in queues:
            for queue in some:
                self.add(queue)

    def listen(self) -> None:
        """The database is about to be asked."""
        self._news.clear()

    def forget(self, queues: Iterable[Queue]) -> None:
        """These had nothing, as far as was known when `listen` was called."""
        self.difference_update([queue for queue in queues if queue not in self._news])

    def drop(self, queues: Collection[Queue]) -> None:
        """Whatever waits in these is found elsewhere."""
        self.difference_update(queues)
        self._news.difference_update(queues)


@dataclass(slots=True)
class Capacity:
    """Grants, use and pressure by place. `backlog` holds queues known to have waiting tasks, which express work must not overtake."""

    directory: Directory
    most: int
    savings: Savings
    grants: dict[Place, int] = field(default_factory=dict)
    in_use: dict[Place, int] = field(default_factory=dict)
    detached: dict[Place, int] = field(default_factory=dict)
    asked: Counter[Place] = field(default_factory=Counter)
    """Slots in use that a claim under way has filled for what it may find."""
    asking: int = 0
    """Attempts such a claim has filled them for."""
    breakers: dict[Place, Breaker] = field(default_factory=dict)
    backlog: Backlog = field(default_factory=Backlog)
    total: int = 0
    on_free: Callable[[], None] = lambda: None
    draining: bool = False
    gathering: bool = False
    """Whether batches wait to be filled, or for a slot."""
    good_until: datetime | None = None
    unseen: set[Place] = field(default_factory=set)
    """Places where nothing could be begun when every queue was last to be looked into: what waits for them is not known."""
    bound: dict[Place, int] = field(default_factory=dict)
    """Runs that stay where they begin, by where that was said to be since the last rebalance."""
    kept: dict[Place, int] = field(default_factory=dict)
    """Slots that are kept for batches that are ready, as soon as they are free."""
    _tried: set[Place] = field(default_factory=set)
    """Places that are tried again after their circuit was open."""
    _batched: set[Place] = field(default_factory=set)
    _turn: dict[Queue, int] = field(default_factory=dict)

    def pressure(self, endpoint: Endpoint) -> int | None:
        """How many slots an endpoint is held to because it asked for less, or is being tried again; None where it may have its grant."""
        if endpoint.probes or endpoint.place in self._tried:
            return 1  # its circuit has been open and it has done no work since: one attempt at a time, until one succeeds
        return self.breakers[endpoint.place].limit if endpoint.place in self.breakers else None

    def ramp(self, now: datetime) -> None:
        """Let endpoints that were broken and do their work again have more and more, whoever found that they do."""
        for place in list(self._tried):
            endpoint = self.directory.endpoint(place)
            if endpoint is None or not endpoint.probes:
                self._tried.discard(place)
                if endpoint is not None:
                    self.breakers[place] = health.recovered(now)
        for place, breaker in list(self.breakers.items()):
            if breaker.starting:
                self.hold(place, health.ramped(breaker, now))

    def hold(self, place: Place, breaker: Breaker) -> None:
        """Remember how an endpoint fares, as long as that holds it to anything."""
        if health.forgettable(breaker, self.grants.get(place, 0)):
            self.breakers.pop(place, None)
        else:
            self.breakers[place] = breaker

    def free_at(self, endpoint: Endpoint) -> int:
        """Slots free at an endpoint now."""
        if not endpoint.open or self.draining:
            return 0
        grant, limit = self.grants.get(endpoint.place, 0), self.pressure(endpoint)
        allowed = grant if limit is None else min(grant, limit)
        return max(allowed - self.in_use.get(endpoint.place, 0), 0)

    def alone_at(self, endpoint: Endpoint) -> int:
        """Slots one task may fill at an endpoint where nothing is under way: pressure slows it down and never stops what fills several."""
        if self.in_use.get(endpoint.place) or not self.free_at(endpoint):
            return 0
        return self.grants.get(endpoint.place, 0)

    def fits(self, endpoint: Endpoint, slots: int, *, batch: bool = False) -> bool:
        """Whether a task, or a batch, that fills so many slots may start at an endpoint now. What is kept for a batch is there for that;
        what is saved for a task of several slots is there for nobody who asks here.
        """
        if endpoint.place in self.savings.places:
            return False
        kept = 0 if batch else self.kept.get(endpoint.place, 0)
        return self.free_at(endpoint) - kept >= slots or (not kept and self.alone_at(endpoint) >= slots)

    def keep(self, wanted: Iterable[Queue]) -> None:
        """Keep the next free slots for batches of these queues, which are ready and found none. Where the last went to a batch, others that
        wait come first. Where all this process may fill is too little for a batch, nothing is kept for it.
        """
        before, self.kept = self.kept, {}
        for queue in wanted:
            route = self.directory.route(queue)
            for place in route.places:
                if self.grants.get(place, 0) >= route.slots and not self._owed(place) and place not in self.savings.places:
                    self.kept[place] = max(self.kept.get(place, 0), route.slots)
        if any(place not in self.kept for place in before):
            self.on_free()

    def take_best(self, queue: Queue) -> Endpoint | None:
        """Fill slots of the best place that has room for a batch of `queue`; None where none has."""
        route = self.directory.route(queue)
        for tier in route.tiers:
            for place in sorted(tier, key=lambda p: self.in_use.get(p, 0)):
                endpoint = self.directory.endpoint(place)
                if endpoint is None or not self.fits(endpoint, route.slots, batch=True):
                    continue
                if self.free_at(endpoint) > route.slots or not self._owed(place):
                    self.take(place, route.slots)
                    self._batched.add(place)
                    return endpoint
        return None

    def leave_others(self) -> None:
        """Tasks that are run many at once are found where they gather: of their groups, which may be many, nothing is kept here. Nor is
        anything of those whose runs could be bound to no endpoint.
        """
        self.backlog.drop([q for q in self.backlog if (r := self.directory.route(q)).gathers or (r.unbound and not r.places)])

    def passed_over(self, places: Iterable[Place]) -> None:
        """Tasks on their own have had their turn at these, and left slots free: batches may have them."""
        left = self._batched.intersection(places) if self._batched else None
        if left:
            self._batched -= left
            self.on_free()

    def _owed(self, place: Place) -> bool:
        """Whether the last went to a batch while others wait for it, so that the next is theirs."""
        routes = (self.directory.route(q) for q in self.backlog) if place in self._batched else ()
        return any(place in route.places and not route.gathers for route in routes)

    def calmest(self, queue: Queue) -> Endpoint | None:
        """The endpoint a run that stays where it begins should begin at: of the best that are open, the one with the most room.

        One that is not open is taken where none is, since a run has to be bound also while its workflow or its endpoints are paused.
        """
        closed: list[Endpoint] = []
        for tier in self.directory.tiers(queue):
            known = [endpoint for place in tier if (endpoint := self.directory.endpoint(place)) is not None]
            found = [endpoint for endpoint in known if endpoint.open]
            if found:
                return self._bind(found)
            closed = closed or known
        return self._bind(closed) if closed else None

    def _bind(self, endpoints: list[Endpoint]) -> Endpoint:
        """Those bound and not begun count as if they had: many come at once, and wait."""
        chosen = max(endpoints, key=lambda endpoint: self.free_at(endpoint) - self.bound.get(endpoint.place, 0))
        self.bound[chosen.place] = self.bound.get(chosen.place, 0) + 1
        return chosen

    def alive(self, now: datetime) -> bool:
        """Whether this process may lease work at all: not once others may have taken it for dead."""
        return not self.draining and self.listed(now)

    def listed(self, now: datetime) -> bool:
        """Whether what this process has leased is its own still: not once others may have taken it for dead."""
        return self.good_until is not None and now < self.good_until

    def room(self, now: datetime) -> int:
        """Attempts this process may still open."""
        return max(self.most - self.total, 0) if self.alive(now) else 0

    def express(self, queue: Queue, now: datetime) -> Endpoint | None:
        """Take a slot for a new task of `queue` at once, if nothing waits ahead of it; None sends it to the queue."""
        if queue in self.backlog or self.total >= self.most or not self.alive(now):
            return None
        route = self.directory.route(queue)
        if route.gathers or route.unbound:
            return None
        turn = self._turn.get(queue, 0)
        for tier in route.tiers:
            for i in range(len(tier)):
                endpoint = self.directory.endpoint(tier[(turn + i) % len(tier)])
                if endpoint is not None and self.fits(endpoint, route.slots):
                    if len(tier) > 1:
                        self._turn[queue] = turn + i + 1
                    self.take(endpoint.place, route.slots)
                    return endpoint
        self.backlog.add(queue)
        return None

    def attempting(self, place: Place) -> int:
        """Slots of a place that attempts fill."""
        return self.in_use.get(place, 0) - self.asked[place]

    def ask(self, slots: Collection[Slot]) -> None:
        """Fill slots for what a claim may find."""
        self.asking = len(slots)
        for slot in slots:
            self.take(slot.place, slot.slots)
            self.asked[slot.place] += slot.slots

    def answered(self) -> None:
        """The claim is over: what is filled is for what it has found, or about to be given back."""
        self.asking = 0
        self.asked.clear()

    def attempted(self) -> Capacity:
        """A picture of what attempts fill, as if the claim under way had asked for nothing; not to be changed."""
        in_use = {place: self.attempting(place) for place in self.in_use}
        return replace(self, in_use=in_use, total=self.total - self.asking, asked=Counter(), asking=0)

    def take(self, place: Place, slots: int = 1) -> None:
        """Fill slots of a place with one attempt."""
        self.in_use[place] = self.in_use.get(place, 0) + slots
        self.total += 1
        if self._batched and slots:
            self._batched.discard(place)

    def give_back(self, place: Place, slots: int = 1) -> None:
        """Empty the slots of one attempt."""
        self.total -= 1
        self._empty(place, slots)

    def _empty(self, place: Place, slots: int) -> None:
        left = self.in_use.get(place, 0) - slots
        if left > 0:
            self.in_use[place] = left
        else:
            self.in_use.pop(place, None)
        if self.backlog or self.gathering or place in self.unseen:
            self.on_free()

    def detach(self, place: Place, slots: int = 1) -> None:
        """The attempt goes on without us: its slots stay filled until the rebalance has counted them."""
        self.detached[place] = self.detached.get(place, 0) + slots
        self.total -= 1

    def forget_detached(self, counted: dict[Place, int]) -> None:
        """Give back the slots of attempts that the rebalance has now counted as detached."""
        for place, number in counted.items():
            left = self.detached.get(place, 0) - number
            if left > 0:
                self.detached[place] = left
            else:
                self.detached.pop(place, None)
            self._empty(place, number)

    def could_take(self, route: Route) -> list[Place]:
        """Where a task would fit if nothing else ran there and nothing was kept for others; the best places first."""
        places = [place for place in route.places if self.grants.get(place, 0) >= route.slots and place not in self.kept]
        return [place for place in places if (endpoint := self.directory.endpoint(place)) is not None and endpoint.open]

    def alone(self, places: Iterable[Place]) -> dict[Place, int]:
        """Of places with free slots those where one task may fill more than these, and how many."""
        found = {}
        for place in places:
            endpoint = self.directory.endpoint(place)
            if endpoint is not None and self.pressure(endpoint) is not None and place not in self.kept:
                found[place] = self.alone_at(endpoint)
        return found

    def free(self) -> dict[Place, int]:
        """All places with free slots, and a look at which are tried again. One whose slots are saved has none before they are enough."""
        found = {}
        for picture in self.directory.pictures.values():
            for endpoint in picture.endpoints.values():
                if endpoint.probes and endpoint.open:
                    self._tried.add(endpoint.place)
                if (slots := self.free_at(endpoint) - self.kept.get(endpoint.place, 0)) > 0:
                    found[endpoint.place] = slots
        for place, queue in self.savings.places.items():
            wanted = self.directory.route(queue).slots
            if found.get(place, wanted) < wanted and self.alone([place]).get(place, 0) < wanted:
                del found[place]
        return found
