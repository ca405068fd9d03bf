"""Shares of slots, and dealing them out: nothing twice, nothing too much, nobody forgotten."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.admission import Grant, Place, Queue, Rotation, Route, Savings, Slot, share
from dispatcher.engine.admission import allot as _allot

# ---- shares ------------------------------------------------------------------------------------------------------------------

SHARES = [
    # slots, detached, live, others' grants, me, in use -> mine
    (100, 0, [1], [], 1, 0, 100),
    (100, 0, [1, 2], [], 1, 0, 50),
    (101, 0, [1, 2], [], 1, 0, 51),
    (101, 0, [1, 2], [], 2, 0, 50),
    (1, 0, [1, 2, 3], [], 1, 0, 1),
    (1, 0, [1, 2, 3], [], 2, 0, 0),
    (100, 0, [1, 2], [Grant(1, 100)], 2, 0, 0),  # what another holds is not there
    (100, 0, [1, 2], [Grant(1, 70)], 2, 0, 30),
    (100, 0, [1], [Grant(9, 40)], 1, 0, 60),  # a dead dispatcher holds its slots until it is buried
    (100, 0, [1, 2], [Grant(2, 0)], 1, 100, 100),  # what is in use is let go of as attempts end
    (100, 30, [1, 2], [], 1, 0, 35),
    (100, 130, [1], [], 1, 0, 0),
    (100, 130, [1], [], 1, 7, 7),
    (100, 0, [], [], 5, 0, 100),  # its own heartbeat may be younger than the picture
    (100, 0, [1, 2], [Grant(1, 99), Grant(1, 99)], 1, 0, 50),  # its own old grants do not count against it
]


@pytest.mark.parametrize(("slots", "detached", "live", "others", "me", "in_use", "mine"), SHARES)
def test_share(slots: int, detached: int, live: list[int], others: list[Grant], me: int, in_use: int, mine: int) -> None:
    assert share(slots, detached, live, others, me, in_use) == mine


holdings = st.dictionaries(st.integers(1, 12), st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=8)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[int, dict[int, int], dict[int, int]]:
    """(slots, grant of each live dispatcher, how much of it is in use), within the slots."""
    held = draw(holdings)
    grants = {d: grant for d, (grant, _) in held.items()}
    in_use = {d: int(grant * part) for d, (grant, part) in held.items()}
    return sum(grants.values()) + draw(st.integers(0, 60)), grants, in_use


def _others(grants: Mapping[int, int], me: int) -> list[Grant]:
    return [Grant(d, n) for d, n in grants.items() if d != me]


@given(pictures(), st.integers(0, 20), st.randoms(use_true_random=False))
def test_shares_taken_in_turn_never_exceed_the_slots(
    picture: tuple[int, dict[int, int], dict[int, int]], more: int, rng: random.Random
) -> None:
    """Grants change one dispatcher at a time, under a lock; whoever comes sees what those before it took."""
    slots, grants, in_use = picture
    live = sorted({*grants, 13 + more})
    order = live * 2
    rng.shuffle(order)
    for me in order:
        grants[me] = share(slots, 0, live, _others(grants, me), me, in_use.get(me, 0))
        assert sum(grants.values()) <= slots
        assert grants[me] >= in_use.get(me, 0)


@given(pictures(), st.integers(0, 30))
def test_idle_dispatchers_reach_even_shares_of_everything(picture: tuple[int, dict[int, int], dict[int, int]], detached: int) -> None:
    slots, grants, _ = picture
    for _round in range(2):  # the first lets go of what is too much, the second takes what was let go
        for me in grants:
            grants[me] = share(slots, detached, sorted(grants), _others(grants, me), me, 0)
    assert sum(grants.values()) == max(slots - detached, 0)
    assert max(grants.values()) - min(grants.values()) <= 1


@given(st.integers(0, 200), st.integers(0, 200), st.sets(st.integers(1, 50), min_size=1, max_size=10))
def test_fresh_shares_of_one_picture_add_up_exactly(slots: int, detached: int, live: set[int]) -> None:
    ordered = sorted(live)
    mine = [share(slots, detached, ordered, [], me, 0) for me in ordered]
    assert sum(mine) == max(slots - detached, 0)
    assert mine == sorted(mine, reverse=True)


def test_why_the_lock_shares_of_one_picture_can_be_too_much_together() -> None:
    """One uses 5 of 9; two newcomers who see the same 4 free would take 3 each. So the picture is read under the lock."""
    grants, live = [Grant(1, 5)], [1, 2, 3]
    mine = [share(9, 0, live, [g for g in grants if g.dispatcher != me], me, 5 if me == 1 else 0) for me in live]
    assert mine == [5, 3, 3]
    assert share(9, 0, live, [*grants, Grant(2, 3)], 3, 0) == 1


# ---- dealing -----------------------------------------------------------------------------------------------------------------


def allot(ready: Mapping[Queue, int], routes: Mapping[Queue, Sequence[Place]], free: Mapping[Place, int], total: int) -> list[Slot]:
    """Where no place is better than another."""
    return _allot(ready, {queue: Route((tuple(places),)) for queue, places in routes.items()}, free, total)


HERE: Place = (1, "ep_a")
THERE: Place = (1, "ep_b")
A, B, C = (1, 1, ""), (1, 2, ""), (2, 1, "")


def _count(dealt: Sequence[Slot]) -> Counter[Queue]:
    return Counter(slot.queue for slot in dealt)


def test_a_backlog_of_one_tenant_does_not_delay_another() -> None:
    ready = {A: 100_000, C: 50}
    place_c = (2, "ep_c")
    dealt = allot(ready, {A: [HERE], C: [place_c]}, {HERE: 1_000, place_c: 1_000}, 100)
    assert _count(dealt) == {A: 50, C: 50}
    assert {slot.queue for slot in dealt[:2]} == {A, C}


def test_nor_is_one_tenant_paid_by_the_queue() -> None:
    """Ten queues of one tenant share that tenant's turns."""
    ready: dict[Queue, int] = {(1, n, ""): 1_000 for n in range(10)} | {C: 1_000}
    place_c = (2, "ep_c")
    routes = {queue: [HERE] if queue[0] == 1 else [place_c] for queue in ready}
    counts = _count(allot(ready, routes, {HERE: 1_000, place_c: 1_000}, 100))
    assert counts[C] == 50
    assert {counts[(1, n, "")] for n in range(10)} == {5}


def test_what_one_cannot_use_the_others_get() -> None:
    place_c = (2, "ep_c")
    assert _count(allot({A: 3, C: 500}, {A: [HERE], C: [place_c]}, {HERE: 9, place_c: 900}, 100)) == {A: 3, C: 97}
    assert _count(allot({A: 500, C: 500}, {A: [HERE], C: [place_c]}, {HERE: 2, place_c: 900}, 100)) == {A: 2, C: 98}


def test_places_take_turns_and_a_full_one_is_passed_over() -> None:
    dealt = allot({A: 10}, {A: [HERE, THERE]}, {HERE: 2, THERE: 5}, 100)
    assert [slot.place for slot in dealt] == [HERE, THERE, HERE, THERE, THERE, THERE, THERE]
    assert [slot.ordinal for slot in dealt] == [1, 2, 3, 4, 5, 6, 7]


def test_nothing_to_do_nothing_dealt() -> None:
    assert allot({}, {}, {HERE: 5}, 10) == []
    assert allot({A: 5}, {}, {HERE: 5}, 10) == []
    assert allot({A: 5}, {A: [HERE]}, {}, 10) == []
    assert allot({A: 5}, {A: [HERE]}, {HERE: -3}, 10) == []
    assert allot({A: 0, B: 5}, {A: [HERE], B: [HERE]}, {HERE: 5}, 0) == []


@st.composite
def markets(draw: st.DrawFn) -> tuple[dict[Queue, int], dict[Queue, list[Place]], dict[Place, int], int]:
    """Tenants own places; every queue is routed over some of its tenant's."""
    queues = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from(["", "{}"])), unique=True, max_size=10))
    free = {(tenant, f"ep_{n}"): draw(st.integers(-1, 12)) for tenant in range(1, 5) for n in range(3)}
    routes: dict[Queue, list[Place]] = {}
    for queue in queues:
        names = draw(st.lists(st.sampled_from(["ep_0", "ep_1", "ep_2"]), unique=True, max_size=3))
        routes[queue] = [(queue[0], name) for name in names]
    return {queue: draw(st.integers(-1, 30)) for queue in queues}, routes, free, draw(st.integers(0, 80))


@given(markets())
def test_no_slot_is_dealt_twice_and_none_that_is_not_there(
    market: tuple[dict[Queue, int], dict[Queue, list[Place]], dict[Place, int], int],
) -> None:
    ready, routes, free, total = market
    dealt = allot(ready, routes, free, total)
    assert len(dealt) <= total
    assert all(slot.place in routes[slot.queue] for slot in dealt)
    assert all(n <= ready[queue] for queue, n in _count(dealt).items())
    assert all(n <= free[place] for place, n in Counter(slot.place for slot in dealt).items())
    for queue, n in _count(dealt).items():
        assert [slot.ordinal for slot in dealt if slot.queue == queue] == list(range(1, n + 1))


@given(markets())
def test_no_slot_is_left_idle_that_somebody_waits_for(
    market: tuple[dict[Queue, int], dict[Queue, list[Place]], dict[Place, int], int],
) -> None:
    ready, routes, free, total = market
    dealt = allot(ready, routes, free, total)
    used, served = Counter(slot.place for slot in dealt), _count(dealt)
    hungry = [queue for queue in ready if served[queue] < ready[queue] and any(free[p] > used[p] for p in routes[queue])]
    assert len(dealt) == total or not hungry


@given(markets())
def test_no_tenant_is_a_round_ahead_of_one_that_still_could(
    market: tuple[dict[Queue, int], dict[Queue, list[Place]], dict[Place, int], int],
) -> None:
    ready, routes, free, total = market
    dealt = allot(ready, routes, free, total)
    used, served = Counter(slot.place for slot in dealt), _count(dealt)
    per_tenant = Counter(slot.queue[0] for slot in dealt)
    most = max(per_tenant.values(), default=0)
    for queue in ready:
        if served[queue] < ready[queue] and any(free[p] > used[p] for p in routes[queue]):
            assert per_tenant[queue[0]] >= most - 1


@given(markets())
def test_the_inputs_are_left_as_they_were(market: tuple[dict[Queue, int], dict[Queue, list[Place]], dict[Place, int], int]) -> None:
    ready, routes, free, total = market
    before = dict(ready), {q: list(p) for q, p in routes.items()}, dict(free)
    allot(ready, routes, free, total)
    assert before == (ready, routes, free)


def test_the_best_places_are_taken_first_and_the_others_when_those_are_full() -> None:
    best, good, bad = (1, "ep_a"), (1, "ep_b"), (1, "ep_c")
    route = Route(((best,), (good, bad)))
    dealt = _allot({A: 10}, {A: route}, {best: 2, good: 1, bad: 3}, 100)
    assert [slot.place for slot in dealt] == [best, best, good, bad, bad, bad]


def test_a_task_that_fills_several_slots_waits_for_as_many() -> None:
    dealt = _allot({A: 10, B: 10}, {A: Route(((HERE,),), 3), B: Route(((HERE,),))}, {HERE: 5}, 100)
    assert [(slot.queue, slot.slots) for slot in dealt] == [(A, 3), (B, 1), (B, 1)]


@given(st.integers(0, 40), st.integers(0, 10), st.integers(1, 6), st.integers(1, 12))
def test_shares_of_what_fills_several_slots_are_whole(slots: int, detached: int, count: int, unit: int) -> None:
    """All is given out, and as many of the largest tasks fit into the shares as would fit into the whole."""
    live = list(range(1, count + 1))
    shares = [share(slots, detached, live, [], me, 0, unit) for me in live]
    left = max(slots - detached, 0)
    assert sum(shares) == left
    assert sum(mine // unit for mine in shares) == left // unit
    assert max(shares) - min(shares) <= 2 * unit


def test_what_fills_several_slots_goes_alone_where_pressure_leaves_too_few() -> None:
    routes = {A: Route(((HERE,),), 3), B: Route(((HERE,),))}
    assert [slot.queue for slot in _allot({A: 5, B: 5}, routes, {HERE: 1}, 9, {HERE: 8})] == [A]
    assert [slot.queue for slot in _allot({B: 5, A: 5}, routes, {HERE: 1}, 9, {HERE: 8})] == [B]
    assert _allot({A: 5}, routes, {HERE: 1}, 9, {HERE: 2}) == []
    assert _allot({A: 5}, routes, {}, 9, {HERE: 8}) == []


@given(st.lists(st.integers(1, 3), min_size=2, max_size=6), st.data())
def test_one_slot_at_a_time_goes_round_all_that_wait(waiting: list[int], data: st.DataObject) -> None:
    """Whatever comes and goes: between two turns of a queue every other of its tenant that waited has had one, and so have tenants."""
    turns, since = Rotation(), dict[Queue, list[Queue]]()
    queues: list[Queue] = [(tenant, n, "") for n, tenant in enumerate(waiting)]
    for _ in range(30):
        ready = {queue: 9 for queue in queues if data.draw(st.integers(0, 4)) or queue in since}
        if not ready:
            continue
        chosen = next(iter(turns.order(ready)))
        turns.served([chosen])
        for queue in ready:
            since.setdefault(queue, []).append(chosen)
            if queue != chosen:
                mine = [other for other in since[queue] if other[0] == queue[0]]
                assert all(mine.count(other) <= 2 for other in mine), (queue, since[queue])
        since[chosen] = []


def _saving(patience: int) -> Savings:
    return Savings(timedelta(seconds=patience))


def _at(seconds: float) -> datetime:
    return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def test_slots_are_saved_for_who_was_passed_over_for_long_enough() -> None:
    savings = _saving(2)
    for now in (0, 1, 1.9):
        savings.look([A, B], {A: [HERE]}, _at(now))
        assert savings.places == {}
    savings.look([A, B], {A: [HERE]}, _at(2))
    assert savings.places == {HERE: A}
    savings.look([B], {}, _at(3))
    assert savings.places == {HERE: A}, "nobody asked about it"
    savings.look([A], {}, _at(4))
    assert savings.places == {}
    savings.look([A], {A: [HERE]}, _at(5))
    savings.look([A], {A: [HERE]}, _at(6.9))
    assert savings.places == {}, "who has been served is patient again"


def test_a_place_saves_for_one_at_a_time_and_a_queue_at_one_place() -> None:
    savings, there = _saving(2), (1, "ep_there")
    savings.look([A], {A: [HERE, there]}, _at(0))
    savings.look([A, B], {A: [HERE, there], B: [HERE]}, _at(1))
    savings.look([A, B], {A: [HERE, there], B: [HERE]}, _at(9))
    assert savings.places == {HERE: A}
    savings.look([A, B], {A: [there], B: [HERE]}, _at(10))  # it does not fit any more where its slots were saved
    assert savings.places == {HERE: B, there: A}
    savings.only([B])
    assert savings.places == {HERE: B}


def test_saved_slots_are_dealt_first_to_whom_they_were_saved_for_and_to_nobody_before_they_are_enough() -> None:
    routes = {A: Route(((HERE,),), 3), B: Route(((HERE,),))}
    assert _allot({B: 9, A: 9}, routes, {HERE: 2}, 9, saved={HERE: A}) == []
    dealt = _allot({B: 9, A: 9}, routes, {HERE: 5}, 9, saved={HERE: A})
    assert [(slot.queue, slot.ordinal, slot.slots) for slot in dealt] == [(A, 1, 3), (B, 1, 1), (B, 2, 1)]
    assert _allot({B: 9}, routes, {HERE: 5}, 9, saved={HERE: A}) == [], "it may wait and not have been asked"
    alone = _allot({B: 9, A: 9}, routes, {HERE: 1}, 9, {HERE: 8}, {HERE: A})
    assert [slot.queue for slot in alone] == [A], "pressure leaves one slot"


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 4), st.lists(st.integers(1, 4), min_size=60, max_size=60), st.data())
def test_nobody_is_passed_over_for_ever(slots: int, most: int, patience: int, lasts: list[int], data: st.DataObject) -> None:
    """Slots are filled at once by small tasks that never run out. Large ones start when they were patient and what runs then has ended."""
    cost, savings = min(most + 1, slots), _saving(patience)
    routes = {A: Route(((HERE,),)), B: Route(((HERE,),), cost)}
    ends, waited = list[tuple[int, int]](), 0
    for now, last in enumerate(lasts):
        ends = [(end, filled) for end, filled in ends if end > now]
        free = {HERE: slots - sum(filled for _, filled in ends)}
        ready = {A: 99, B: 1} if data.draw(st.booleans()) else {B: 1, A: 99}
        dealt = _allot(ready, routes, {place: n for place, n in free.items() if n}, 99, saved=savings.places)
        assert sum(slot.slots for slot in dealt) <= free[HERE]
        assert HERE in savings.places or sum(slot.slots for slot in dealt) > free[HERE] - cost
        waited = 0 if any(slot.queue == B for slot in dealt) else waited + 1
        savings.look(ready, {B: [HERE]} if waited else {}, _at(now))
        ends += [(now + last, slot.slots) for slot in dealt]
        assert waited <= patience + 1 + max(lasts)
