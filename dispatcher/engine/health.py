"""The health of an endpoint: when its circuit opens, when it is probed, and how hard it may be pushed.

The circuit is shared by all dispatchers (a row); the pressure is each dispatcher's own. A broken endpoint stops being sent
work, so a bad deployment costs its tasks time and none of their retries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from dispatcher.engine.answers import Answer, EndpointBroken, EndpointGone, LocalFault, Lost, Pushback, Unreachable

Circuit = Literal["closed", "open", "retired"]
RAMP_STEP = timedelta(seconds=1)
_STEPS = 20  # a million slots


@dataclass(frozen=True, slots=True)
class Breaker:
    """How one dispatcher has fared with an endpoint lately. `limit` None means as many as its grant allows.

    What was under way when the limit was last halved has no say in halving it again. `since` is when an endpoint that was broken did its
    first work again, as long as it has asked for no less since then.
    """

    unreachable: int = 0
    limit: int | None = None
    successes: int = 0
    halved_at: datetime | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means for the endpoint: the breaker's next state, the circuit to set if it must change, whether it does its work."""

    breaker: Breaker
    circuit: Circuit | None = None
    code: str = ""
    works: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """One request's answer: how many slots attempts of this dispatcher filled there, when the request's began, and when it was answered."""

    answer: Answer
    in_flight: int
    started_at: datetime
    now: datetime


def observe(breaker: Breaker, sighting: Sighting, failures_to_open: int) -> Verdict:
    """Feed one request's answer in."""
    answer = sighting.answer
    match answer:
        case EndpointBroken(code=code):
            return Verdict(replace(breaker, successes=0), "open", code)
        case EndpointGone():
            return Verdict(replace(breaker, successes=0), "retired", "endpoint_gone")
        case Unreachable(code=code):
            count = breaker.unreachable + 1
            circuit: Circuit | None = "open" if count >= failures_to_open else None
            return Verdict(replace(breaker, unreachable=count, successes=0), circuit, code)
        case Pushback():
            return Verdict(_halved(breaker, sighting))
        case LocalFault():
            return Verdict(breaker)
        case Lost():
            return Verdict(_regrown(breaker))
        case _:
            return Verdict(_regrown(breaker), works=True)


def _halved(breaker: Breaker, sighting: Sighting) -> Breaker:
    if breaker.halved_at is not None and sighting.started_at <= breaker.halved_at:
        return breaker
    return Breaker(0, max((breaker.limit or sighting.in_flight) // 2, 1), 0, sighting.now)


def _regrown(breaker: Breaker) -> Breaker:
    """Additive increase: one more slot for every full window of answers without pushback."""
    if breaker.limit is None:
        return breaker if breaker.unreachable == 0 else Breaker()
    if breaker.successes + 1 < breaker.limit:
        return replace(breaker, unreachable=0, successes=breaker.successes + 1)
    return replace(breaker, unreachable=0, limit=breaker.limit + 1, successes=0)


def recovered(now: datetime) -> Breaker:
    """An endpoint that was broken has done its first work: a slow start, lest all that waits for it breaks it again."""
    return Breaker(limit=2, since=now)


def ramped(breaker: Breaker, now: datetime) -> Breaker:
    """A slow start goes on: the limit doubles with every second, however long attempts take, until the endpoint asks for less."""
    if breaker.since is None or breaker.limit is None:
        return breaker
    steps = min((now - breaker.since) // RAMP_STEP, _STEPS)
    return replace(breaker, limit=max(breaker.limit, 2 << max(steps, 0)))


def next_probe(probes: int, now: datetime, first: timedelta, longest: timedelta) -> datetime:
    """When an open circuit is tried again after `probes` failed tries: `first`, doubling, up to `longest`."""
    return now + min(first * (1 << min(probes, 16)), longest)
