"""The health of an endpoint: when its circuit opens, when it is probed, and how hard it may be pushed.

The circuit is shared by all dispatchers (a row); the pressure is each dispatcher's own. A broken endpoint stops being sent
work, so a bad deployment costs its tasks time and none of their retries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from dispatcher.engine.answers import Answer, EndpointBroken, EndpointGone, LocalFault, Pushback, Unreachable

Circuit = Literal["closed", "open", "retired"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """How one dispatcher has fared with an endpoint lately. `limit` None means as many as its grant allows."""

    unreachable: int = 0
    limit: int | None = None
    successes: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means for the endpoint: the breaker's next state, and the circuit to set if it must change."""

    breaker: Breaker
    circuit: Circuit | None = None
    code: str = ""


def observe(breaker: Breaker, answer: Answer, in_flight: int, failures_to_open: int) -> Verdict:
    """Feed one answer in. `in_flight` is how many attempts this dispatcher had open there."""
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
            return Verdict(Breaker(0, max((breaker.limit or in_flight) // 2, 1), 0))
        case LocalFault():
            return Verdict(breaker)
        case _:
            return Verdict(_regrown(breaker))


def _regrown(breaker: Breaker) -> Breaker:
    """Additive increase: one more slot for every full window of answers without pushback."""
    if breaker.limit is None:
        return breaker if breaker.unreachable == 0 else Breaker()
    if breaker.successes + 1 < breaker.limit:
        return Breaker(0, breaker.limit, breaker.successes + 1)
    return Breaker(0, breaker.limit + 1, 0)


def next_probe(probes: int, now: datetime, first: timedelta, longest: timedelta) -> datetime:
    """When an open circuit is tried again after `probes` failed tries: `first`, doubling, up to `longest`."""
    return now + min(first * (1 << min(probes, 16)), longest)
