"""How many units may be used in a window of time: what a bucket holds, and who of those that ask gets any.

A window is fixed: it begins with a full bucket, which is filled again a window later, whatever is left in it; nothing is carried over.
A task takes units of all its limits or does not start, in the moment it is leased. One that does not is parked until the bucket that keeps
it longest is full again. Those that were parked then have it to themselves for a moment, so that whoever comes just then does not overtake
them again and again. One that has waited for a limit and lacks another keeps what there is while it waits for that: it is used in the
window it was taken in, or lost with it. Otherwise those that lack one of two limits, in turn, might never find both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from dispatcher.engine.definitions.flow import SECONDS, Duration
from dispatcher.engine.digests import digest_id

_EARLY = timedelta(milliseconds=10)  # clocks and timers are not exacter than that
FIRST_MS: Final = 250  # how long a bucket that was filled is for those that have waited for it; a tenth of its window at most


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit at a moment: `value` units are left of `most`, full again a window after `refilled_at`. `fixed`: somebody has set it.

    `refill_at` is when those that are parked on it get their turn, None where nobody is.
    """

    id: str
    key: str
    fixed: bool
    most: int
    duration: Duration
    value: int
    refilled_at: datetime
    refill_at: datetime | None = None

    @property
    def full_at(self) -> datetime:
        """When it is filled again."""
        return self.refilled_at + window(self.duration)


@dataclass(frozen=True, slots=True)
class Demand:
    """Units a task takes of one limit at its start. `most` and `duration` are given where the limit is made by its use. `paid_in` is the
    beginning of the window in which it has taken them already.
    """

    id: str
    key: str
    units: int
    most: int | None = None
    duration: Duration | None = None
    paid_in: datetime | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """A task that does not start: which bucket keeps it longest, how many it wants of it, and when that is full again. `paid` are buckets
    of which it has its units, and the beginnings of their windows.
    """

    bucket: str
    units: int
    until: datetime
    paid: tuple[tuple[str, datetime], ...] = ()


def bucket_id(key: str) -> str:
    """The id of a limit within its tenant."""
    return digest_id(b"rate limit", key)


def window(duration: Duration) -> timedelta:
    """How long a window is."""
    return timedelta(seconds=SECONDS[duration])


def first(duration: Duration) -> timedelta:
    """How long a bucket that was filled is for those that have waited for it."""
    return min(window(duration) / 10, timedelta(milliseconds=FIRST_MS))


def others_first(bucket: Bucket, now: datetime) -> bool:
    """Whether it is the turn of those that have waited for a bucket: until it is filled for them, and a moment longer."""
    if bucket.refill_at is None:
        return False
    return now >= bucket.full_at - _EARLY or bucket.refill_at <= bucket.refilled_at + first(bucket.duration)


def filled(bucket: Bucket, now: datetime) -> Bucket:
    """The bucket, filled again if its window is over."""
    if now < bucket.full_at - _EARLY:
        return bucket
    return replace(bucket, value=bucket.most, refilled_at=now)


def redefined(bucket: Bucket, most: int, duration: Duration) -> Bucket:
    """The bucket with another limit: lowering takes away what is too much, raising adds nothing before the next window."""
    return replace(bucket, most=most, duration=duration, value=min(bucket.value, most))


def returned(bucket: Bucket, units: int, taken_at: datetime) -> Bucket:
    """The bucket with units given back that were not used: they count only in the window they were taken in."""
    if taken_at < bucket.refilled_at:
        return bucket
    return replace(bucket, value=min(bucket.value + units, bucket.most))


def take(
    buckets: Mapping[str, Bucket], asking: Sequence[Sequence[Demand]], now: datetime, waited: Collection[int] = ()
) -> tuple[list[Parked | None], dict[str, Bucket]]:
    """Who of those asking, in turn, gets all units they want; answers a verdict for each (None: they may start) and the buckets after it.

    A limit that is not there limits nothing. Of those asking the ones that have `waited`, by their place, go before the others where it
    is their turn.
    """
    due = {id_: bucket.refill_at for id_, bucket in buckets.items() if others_first(bucket, now)}
    theirs = {demand.id for place in waited for demand in asking[place]}
    left = {id_: filled(bucket, now) if id_ not in due or id_ in theirs else bucket for id_, bucket in buckets.items()}
    verdicts: list[Parked | None] = []
    for place, demands in enumerate(asking):
        wanted: dict[str, int] = {}
        paid: dict[str, datetime] = {}
        for demand in demands:
            if demand.paid_in is not None and demand.id in left and demand.paid_in == left[demand.id].refilled_at:
                paid[demand.id] = demand.paid_in
            elif demand.id in left:
                if demand.most is not None and demand.duration is not None and not left[demand.id].fixed:
                    left[demand.id] = redefined(left[demand.id], demand.most, demand.duration)
                wanted[demand.id] = wanted.get(demand.id, 0) + demand.units
        parked = _behind(wanted, {} if place in waited else due, now) or _lacking(wanted, left)
        taken = wanted if parked is None else _held(wanted, left, parked.until) if place in waited else {}
        for id_, units in taken.items():
            left[id_] = replace(left[id_], value=left[id_].value - units)
        if parked is not None and (taken or paid):
            parked = replace(parked, paid=(*paid.items(), *[(id_, left[id_].refilled_at) for id_ in taken]))
        verdicts.append(parked)
    return verdicts, left


def _held(wanted: Mapping[str, int], left: Mapping[str, Bucket], until: datetime) -> dict[str, int]:
    """Units that are there and will not be filled up before those that lack are."""
    return {id_: units for id_, units in wanted.items() if left[id_].value >= units and left[id_].full_at > until}


def _behind(wanted: Mapping[str, int], due: Mapping[str, datetime | None], now: datetime) -> Parked | None:
    """Where it is the turn of others."""
    return next((Parked(id_, units, max(due[id_] or now, now)) for id_, units in wanted.items() if id_ in due), None)


def _lacking(wanted: Mapping[str, int], left: Mapping[str, Bucket]) -> Parked | None:
    """At the bucket without enough units that is full again last."""
    lacking = [left[id_] for id_, units in wanted.items() if left[id_].value < units]
    last = max(lacking, key=lambda bucket: bucket.full_at, default=None)
    return Parked(last.id, wanted[last.id], last.full_at) if last is not None else None
