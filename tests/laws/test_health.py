"""When an endpoint's circuit opens, when it is probed, and how hard it may be pushed."""

from __future__ import annotations

import heapq
import math
import random
import typing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.answers import (
    Accepted,
    Again,
    Answer,
    Busy,
    Continued,
    EndpointBroken,
    EndpointGone,
    Failed,
    LocalFault,
    Lost,
    Mismatched,
    PlatformKilled,
    Pushback,
    Referred,
    Succeeded,
    Suspended,
    TimedOut,
    Turned,
    Unreachable,
)
from dispatcher.engine.health import Breaker, Sighting, Verdict, forgettable, next_probe, observe, ramped, recovered
from dispatcher.engine.references import Reference
from tests.laws.attempts_table import NOW

BRUISED = Breaker(unreachable=3, limit=8, level=16, successes=4)

LAW: list[tuple[Breaker, Answer, Verdict]] = [
    (Breaker(), Succeeded(b"1"), Verdict(Breaker(), works=True)),
    (Breaker(unreachable=4), Succeeded(b"1"), Verdict(Breaker(), works=True)),
    (BRUISED, Succeeded(b"1"), Verdict(Breaker(0, 8, 16, 5), works=True)),
    (BRUISED, Failed("c", "m"), Verdict(Breaker(0, 8, 16, 5), works=True)),  # the handler ran: the endpoint is well
    (BRUISED, TimedOut("m"), Verdict(Breaker(0, 8, 16, 5), works=True)),
    (BRUISED, PlatformKilled("m"), Verdict(Breaker(0, 8, 16, 5), works=True)),
    (BRUISED, Accepted(None), Verdict(Breaker(0, 8, 16, 5), works=True)),
    (BRUISED, Busy(None, "m"), Verdict(Breaker(0, 8, 16, 5), works=True)),
    *[
        (BRUISED, answer, Verdict(Breaker(0, 8, 16, 5), works=True))  # a turn was worked on, whatever it came to
        for answer in (
            Suspended(b'"nap#0"'),
            Again(grew=True),
            Continued(b"1"),
            Mismatched("m"),
            Turned(0, (), Failed("c", "m")),
            Referred(Reference("0" * 64, 1)),
        )
    ],
    (BRUISED, Lost("m"), Verdict(Breaker(0, 8, 16, 5))),
    (Breaker(0, 8, 16, 7), Succeeded(b"1"), Verdict(Breaker(0, 9, 16, 0), works=True)),  # a full window without pushback: one more
    (Breaker(0, 1, 1, 0), Succeeded(b"1"), Verdict(Breaker(0, 2, 1, 0), works=True)),
    (Breaker(0, 32, 64, 7), Succeeded(b"1"), Verdict(Breaker(0, 33, 64, 0), works=True)),  # far from where it pushed back: four in a window
    (Breaker(0, 41, 64, 9), Succeeded(b"1"), Verdict(Breaker(0, 41, 64, 9), works=True)),  # less than half of it is in use
    (BRUISED, LocalFault("c", "m"), Verdict(BRUISED)),  # our own fault says nothing about it
    (BRUISED, Pushback(None, "m"), Verdict(Breaker(0, 4, 8, 0, NOW))),
    (Breaker(), Pushback(None, "m"), Verdict(Breaker(0, 10, 20, 0, NOW))),
    (Breaker(0, 50, 90, 0), Pushback(None, "m"), Verdict(Breaker(0, 10, 20, 0, NOW))),  # it had no more than 20
    (Breaker(0, 1, 2, 0), Pushback(None, "m"), Verdict(Breaker(0, 1, 1, 0, NOW))),
    (Breaker(), Unreachable("refused", "m"), Verdict(Breaker(1), None, "refused")),
    (Breaker(unreachable=3), Unreachable("refused", "m"), Verdict(Breaker(4), None, "refused")),
    (Breaker(unreachable=4), Unreachable("refused", "m"), Verdict(Breaker(5), "open", "refused")),
    (Breaker(unreachable=9), Unreachable("refused", "m"), Verdict(Breaker(10), "open", "refused")),
    (Breaker(), EndpointBroken("unauthorized", "m"), Verdict(Breaker(), "open", "unauthorized")),
    (BRUISED, EndpointBroken("tls", "m"), Verdict(Breaker(3, 8, 16, 0), "open", "tls")),
    (Breaker(), EndpointGone("m"), Verdict(Breaker(), "retired", "endpoint_gone")),
]


def seen(answer: Answer, in_flight: int = 20, started_at: datetime = NOW - timedelta(seconds=1)) -> Sighting:
    """An answer that has just come."""
    return Sighting(answer, in_flight, started_at, NOW)


@pytest.mark.parametrize(("before", "answer", "verdict"), LAW)
def test_observe(before: Breaker, answer: Answer, verdict: Verdict) -> None:
    assert observe(before, seen(answer), failures_to_open=5) == verdict


def test_what_was_under_way_when_the_limit_was_halved_does_not_halve_it_again() -> None:
    halved = Breaker(0, 8, 16, 0, NOW - timedelta(seconds=2))
    pushback = Pushback(None, "m")
    assert observe(halved, seen(pushback, started_at=NOW - timedelta(seconds=3)), 5).breaker == halved
    assert observe(halved, seen(pushback, started_at=NOW - timedelta(seconds=1)), 5).breaker.limit == 4


def test_the_law_has_every_answer() -> None:
    assert {type(answer) for _, answer, _ in LAW} == set(typing.get_args(Answer))


limits = st.integers(1, 5_000)
breakers = st.builds(Breaker, st.integers(0, 100)) | st.builds(
    Breaker, st.integers(0, 100), limits, st.none() | limits, st.integers(0, 5_000), st.just(NOW - timedelta(minutes=1))
)
answers = st.sampled_from([answer for _, answer, _ in LAW])


@given(breakers, answers, st.integers(0, 5_000), st.integers(1, 10))
def test_an_endpoint_may_always_be_pushed_a_little(before: Breaker, answer: Answer, in_flight: int, failures: int) -> None:
    after = observe(before, seen(answer, in_flight), failures).breaker
    assert after.limit is None or after.limit >= 1
    assert after.limit is None or before.limit is None or after.limit <= before.limit + 1


@given(breakers, answers, st.integers(0, 5_000))
def test_only_the_endpoints_own_faults_close_it_off(before: Breaker, answer: Answer, in_flight: int) -> None:
    circuit = observe(before, seen(answer, in_flight), 5).circuit
    assert circuit is None or isinstance(answer, EndpointBroken | EndpointGone | Unreachable)


def test_an_endpoint_that_was_broken_is_held_to_what_doubles_every_second() -> None:
    def limit(breaker: Breaker, seconds: float) -> int | None:
        return ramped(breaker, NOW + timedelta(seconds=seconds)).limit

    slow = recovered(NOW)
    assert [limit(slow, seconds) for seconds in (-1, 0, 0.9, 1, 2.5, 9, 3600)] == [2, 2, 2, 4, 8, 1024, 2 << 20]
    assert limit(Breaker(limit=3, level=6, successes=1), 60) == 3
    assert limit(Breaker(), 60) is None
    later = NOW + timedelta(seconds=3)
    full = Sighting(Succeeded(b"1"), 16, NOW + timedelta(seconds=2), later)
    assert observe(ramped(slow, later), full, 5).breaker == ramped(slow, later), "it goes by time, and not by answers"
    less = observe(ramped(slow, later), replace(full, answer=Pushback(None, "m")), 5).breaker
    assert (less.limit, less.level, limit(less, 60)) == (8, 16, 8), "it says itself how much it takes"


def _window(breaker: Breaker) -> Breaker:
    """After as many answers as a full limit gives at once, none of them a pushback."""
    assert breaker.limit is not None
    for _ in range(breaker.limit):
        after = observe(breaker, seen(Succeeded(b"1"), breaker.limit or 0), 5).breaker
        assert after.limit in (breaker.limit, (breaker.limit or 0) + 1), "slots come one by one, and none goes"
        breaker = after
    return breaker


def _windows(breaker: Breaker, limit: int) -> int:
    """How many of them until the limit is so high."""
    count = 0
    while (breaker.limit or 0) < limit:
        breaker, count = _window(breaker), count + 1
    return count


@pytest.mark.parametrize("level", [2, 3, 4, 7, 10, 20, 50, 100, 200, 500, 2_000])
def test_a_limit_that_was_halved_is_back_in_few_windows_however_large_it_was(level: int) -> None:
    halved = observe(Breaker(), seen(Pushback(None, "m"), level), 5).breaker
    assert _windows(replace(halved, since=None), level) <= 2 * math.log2(level) + 2


@pytest.mark.parametrize(("limit", "windows"), [(10, 9), (100, 34), (2_000, 62)])
def test_so_is_one_that_had_to_go_down_to_one(limit: int, windows: int) -> None:
    assert _windows(Breaker(limit=1, level=1), limit) == windows


@given(st.integers(1, 3_000), st.data())
def test_a_window_raises_a_limit_by_one_near_where_it_was_pushed_back_and_by_an_eighth_far_from_it(level: int, data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, 2 * level + 20))
    raised = (_window(Breaker(limit=limit, level=level)).limit or 0) - limit
    assert 1 <= raised <= max(limit // 8 + 1, 1)
    if limit < 16 or abs(level - limit) < 4:
        assert raised == 1


@given(breakers, st.integers(0, 5_000))
def test_a_pushback_halves_what_is_filled_and_the_rest_of_its_burst_nothing(before: Breaker, in_flight: int) -> None:
    filled = in_flight if before.limit is None else min(before.limit, in_flight)
    after = observe(before, seen(Pushback(None, "m"), in_flight), 5).breaker
    assert (after.limit, after.level, after.since) == (max(filled // 2, 1), max(filled, 1), NOW)
    assert observe(after, seen(Pushback(None, "m"), in_flight), 5).breaker == after
    assert observe(after, replace(seen(Pushback(None, "m"), in_flight), started_at=NOW + timedelta(seconds=1)), 5).breaker.limit == max(
        min(max(filled // 2, 1), in_flight) // 2, 1
    )


@given(breakers, st.integers(0, 5_000))
def test_a_limit_that_nobody_needs_is_not_raised(before: Breaker, in_flight: int) -> None:
    after = observe(before, seen(Succeeded(b"1"), in_flight), 5).breaker
    assert after.limit == before.limit or 2 * in_flight >= (before.limit or 0)


@given(breakers, st.integers(1, 5_000))
def test_an_endpoint_is_held_to_less_than_its_grant_or_to_nothing(breaker: Breaker, grant: int) -> None:
    assert forgettable(breaker, grant) == (breaker == Breaker() or (breaker.limit is not None and breaker.limit >= grant))
    assert not forgettable(replace(breaker, unreachable=1), grant) or (breaker.limit or 0) >= grant


@dataclass
class _Load:
    """An endpoint that works on `capacity` at once and pushes back whatever comes on top of them, and a dispatcher that always has more."""

    capacity: int
    grant: int
    breaker: Breaker = field(default_factory=Breaker)
    refused: int = 0
    answered: int = 0
    busy: float = 0.0
    now: float = 0.0

    def run(self, answers: int) -> Self:
        """What came of so many answers: attempts take a second, more or less, and pushbacks a tenth."""
        chance, flights, working = random.Random(self.capacity), list[tuple[float, int, float, bool]](), 0
        for number in range(answers):
            while len(flights) < self._allowed():
                taken = working < self.capacity
                working += taken
                heapq.heappush(flights, (self.now + (chance.uniform(0.5, 1.5) if taken else 0.1), number, self.now, taken))
            self.busy -= working * self.now
            in_flight = len(flights)
            self.now, _, started, taken = heapq.heappop(flights)
            self.busy += working * self.now
            working -= taken
            self.refused, self.answered = self.refused + (not taken), self.answered + 1
            answer = Succeeded(b"1") if taken else Pushback(None, "m")
            sighting = Sighting(answer, in_flight, _at(started), _at(self.now))
            after = observe(self.breaker, sighting, 5).breaker
            self.breaker = Breaker() if forgettable(after, self.grant) else after
        return self

    def _allowed(self) -> int:
        return self.grant if self.breaker.limit is None else min(self.breaker.limit, self.grant)


def _at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(("capacity", "share", "used"), [(10, 0.025, 0.75), (20, 0.008, 0.75), (100, 0.0015, 0.8), (200, 0.0008, 0.8)])
def test_an_endpoint_with_a_hard_bound_is_kept_busy_and_seldom_pushes_back(capacity: int, share: float, used: float) -> None:
    load = _Load(capacity, 2 * capacity).run(100 * capacity)
    assert load.refused - capacity <= share * load.answered, "the first came all at once, twice as many as it takes"
    assert load.busy >= used * capacity * load.now


def test_a_bound_that_is_gone_does_not_hold_an_endpoint_down() -> None:
    load = _Load(50, 200).run(1_000)
    assert load.breaker.limit is not None
    assert load.breaker.limit <= 51
    load.capacity = 200
    assert load.run(5_000).breaker == Breaker()


def test_probes_double_up_to_the_longest() -> None:
    first, longest = timedelta(seconds=5), timedelta(seconds=60)
    waits = [(next_probe(n, NOW, first, longest) - NOW).total_seconds() for n in (0, 1, 2, 3, 4, 5, 10**9)]
    assert waits == [5, 10, 20, 40, 60, 60, 60]
