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
_SHARE = 8


@dataclass(frozen=True, slots=True)
class Breaker:
    """How one dispatcher has fared with an endpoint lately. `limit` None means as many as its grant allows.

    `level` is how many slots were filled as it last pushed back: the limit rises quickly up to near there, and then slowly. An endpoint
    that was broken has a limit and no such level. `since` is when it pushed back, or did its first work again: what was under way then
    does not halve the limit once more.
    """

    unreachable: int = 0
    limit: int | None = None
    level: int | None = None
    successes: int = 0
    since: datetime | None = None

    @property
    def starting(self) -> bool:
        """Whether this is the slow start of an endpoint that was broken, which has not pushed back yet."""
        return self.limit is not None and self.level is None


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
            return Verdict(_regrown(breaker, sighting))
        case _:
            return Verdict(_regrown(breaker, sighting), works=True)


def _halved(breaker: Breaker, sighting: Sighting) -> Breaker:
    if _was_under_way(breaker, sighting):
        return breaker
    level = sighting.in_flight if breaker.limit is None else min(breaker.limit, sighting.in_flight)
    return Breaker(0, max(level // 2, 1), max(level, 1), 0, sighting.now)


def _regrown(breaker: Breaker, sighting: Sighting) -> Breaker:
    """A slot more for every so many answers without pushback. Where less than half of the limit is in use they do not count: they say
    nothing about more of it.
    """
    if breaker.unreachable:
        breaker = replace(breaker, unreachable=0)
    limit, level = breaker.limit, breaker.level
    if limit is None or level is None or 2 * sighting.in_flight < limit:
        return breaker
    stride = 1 if _was_under_way(breaker, sighting) else _stride(limit, level)
    if (breaker.successes + 1) * stride < limit:
        return replace(breaker, successes=breaker.successes + 1)
    return replace(breaker, limit=limit + 1, successes=0)


def _was_under_way(breaker: Breaker, sighting: Sighting) -> bool:
    return breaker.since is not None and sighting.started_at <= breaker.since


def _stride(limit: int, level: int) -> int:
    """Slots that a full window of answers is worth: half of what is missing to the level, and beyond it half of what it is surpassed by.
    So a limit is back near the level soon, however large it is, passes it one by one, and rises the faster the longer nothing comes of it.
    """
    return max(min(abs(level - limit) // 2, limit // _SHARE), 1)


def recovered(now: datetime) -> Breaker:
    """An endpoint that was broken has done its first work: a slow start, lest all that waits for it breaks it again."""
    return Breaker(limit=2, since=now)


def ramped(breaker: Breaker, now: datetime) -> Breaker:
    """A slow start goes on: the limit doubles with every second, however long attempts take, until the endpoint asks for less."""
    if not breaker.starting or breaker.limit is None or breaker.since is None:
        return breaker
    steps = min((now - breaker.since) // RAMP_STEP, _STEPS)
    return replace(breaker, limit=max(breaker.limit, 2 << max(steps, 0)))


def forgettable(breaker: Breaker, grant: int) -> bool:
    """Whether there is nothing to hold an endpoint to: it fares well, or may have all that is granted."""
    return breaker == Breaker() or (breaker.limit is not None and breaker.limit >= grant)


def next_probe(probes: int, now: datetime, first: timedelta, longest: timedelta) -> datetime:
    """When an open circuit is tried again after `probes` failed tries: `first`, doubling, up to `longest`."""
    return now + min(first * (1 << min(probes, 16)), longest)
