"""When an endpoint's circuit opens, when it is probed, and how hard it may be pushed."""

from __future__ import annotations

import typing
from dataclasses import replace
from datetime import datetime, timedelta

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
from dispatcher.engine.health import Breaker, Sighting, Verdict, next_probe, observe, ramped, recovered
from dispatcher.engine.references import Reference
from tests.laws.attempts_table import NOW

BRUISED = Breaker(unreachable=3, limit=8, successes=4)

LAW: list[tuple[Breaker, Answer, Verdict]] = [
    (Breaker(), Succeeded(b"1"), Verdict(Breaker(), works=True)),
    (Breaker(unreachable=4), Succeeded(b"1"), Verdict(Breaker(), works=True)),
    (BRUISED, Succeeded(b"1"), Verdict(Breaker(0, 8, 5), works=True)),
    (BRUISED, Failed("c", "m"), Verdict(Breaker(0, 8, 5), works=True)),  # the handler ran: the endpoint is well
    (BRUISED, TimedOut("m"), Verdict(Breaker(0, 8, 5), works=True)),
    (BRUISED, PlatformKilled("m"), Verdict(Breaker(0, 8, 5), works=True)),
    (BRUISED, Accepted(None), Verdict(Breaker(0, 8, 5), works=True)),
    (BRUISED, Busy(None, "m"), Verdict(Breaker(0, 8, 5), works=True)),
    *[
        (BRUISED, answer, Verdict(Breaker(0, 8, 5), works=True))  # a turn was worked on, whatever it came to
        for answer in (
            Suspended(b'"nap#0"'),
            Again(grew=True),
            Continued(b"1"),
            Mismatched("m"),
            Turned(0, (), Failed("c", "m")),
            Referred(Reference("0" * 64, 1)),
        )
    ],
    (BRUISED, Lost("m"), Verdict(Breaker(0, 8, 5))),
    (Breaker(0, 8, 7), Succeeded(b"1"), Verdict(Breaker(0, 9, 0), works=True)),  # a full window without pushback: one more
    (Breaker(0, 1, 0), Succeeded(b"1"), Verdict(Breaker(0, 2, 0), works=True)),
    (BRUISED, LocalFault("c", "m"), Verdict(BRUISED)),  # our own fault says nothing about it
    (BRUISED, Pushback(None, "m"), Verdict(Breaker(0, 4, 0, NOW))),
    (Breaker(), Pushback(None, "m"), Verdict(Breaker(0, 10, 0, NOW))),
    (Breaker(0, 1, 0), Pushback(None, "m"), Verdict(Breaker(0, 1, 0, NOW))),
    (Breaker(), Unreachable("refused", "m"), Verdict(Breaker(1), None, "refused")),
    (Breaker(unreachable=3), Unreachable("refused", "m"), Verdict(Breaker(4), None, "refused")),
    (Breaker(unreachable=4), Unreachable("refused", "m"), Verdict(Breaker(5), "open", "refused")),
    (Breaker(unreachable=9), Unreachable("refused", "m"), Verdict(Breaker(10), "open", "refused")),
    (Breaker(), EndpointBroken("unauthorized", "m"), Verdict(Breaker(), "open", "unauthorized")),
    (BRUISED, EndpointBroken("tls", "m"), Verdict(Breaker(3, 8, 0), "open", "tls")),
    (Breaker(), EndpointGone("m"), Verdict(Breaker(), "retired", "endpoint_gone")),
]


def seen(answer: Answer, in_flight: int = 20, started_at: datetime = NOW - timedelta(seconds=1)) -> Sighting:
    """An answer that has just come."""
    return Sighting(answer, in_flight, started_at, NOW)


@pytest.mark.parametrize(("before", "answer", "verdict"), LAW)
def test_observe(before: Breaker, answer: Answer, verdict: Verdict) -> None:
    assert observe(before, seen(answer), failures_to_open=5) == verdict


def test_what_was_under_way_when_the_limit_was_halved_does_not_halve_it_again() -> None:
    halved = Breaker(0, 8, 0, NOW - timedelta(seconds=2))
    pushback = Pushback(None, "m")
    assert observe(halved, seen(pushback, started_at=NOW - timedelta(seconds=3)), 5).breaker == halved
    assert observe(halved, seen(pushback, started_at=NOW - timedelta(seconds=1)), 5).breaker.limit == 4


def test_the_law_has_every_answer() -> None:
    assert {type(answer) for _, answer, _ in LAW} == set(typing.get_args(Answer))


breakers = st.builds(Breaker, st.integers(0, 100), st.none() | st.integers(1, 5_000), st.integers(0, 5_000))
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
    assert limit(Breaker(limit=3, successes=1), 60) == 3
    assert limit(Breaker(), 60) is None
    grown = observe(replace(slow, successes=1), Sighting(Succeeded(b"1"), 2, NOW, NOW), 5).breaker
    assert (grown.limit, limit(grown, 0.5), limit(grown, 1)) == (3, 3, 4)
    less = observe(ramped(slow, NOW + timedelta(seconds=3)), Sighting(Pushback(None, "m"), 16, NOW, NOW), 5).breaker
    assert (less.limit, limit(less, 60)) == (8, 8)  # it says itself how much it takes


def test_probes_double_up_to_the_longest() -> None:
    first, longest = timedelta(seconds=5), timedelta(seconds=60)
    waits = [(next_probe(n, NOW, first, longest) - NOW).total_seconds() for n in (0, 1, 2, 3, 4, 5, 10**9)]
    assert waits == [5, 10, 20, 40, 60, 60, 60]
