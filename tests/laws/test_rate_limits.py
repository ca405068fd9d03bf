"""The rules of rate limits, also against a count of what they let through."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from dispatcher.engine.definitions.flow import SECONDS
from dispatcher.engine.rate_limits import Bucket, Demand, Parked, bucket_id, filled, redefined, returned, take, window

START = datetime(2026, 3, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def bucket(key: str = "a", most: int = 10, value: int | None = None, *, fixed: bool = True) -> Bucket:
    return Bucket(bucket_id(key), key, fixed, most, "MINUTE", most if value is None else value, START)


def wants(units: int = 1, key: str = "a", most: int | None = None) -> Demand:
    return Demand(bucket_id(key), key, units, most, "MINUTE" if most is not None else None)


def test_windows_are_fixed_and_full_at_their_start() -> None:
    used = bucket(value=3)
    assert filled(used, START + 59 * SECOND).value == 3
    again = filled(used, START + 61 * SECOND)
    assert (again.value, again.refilled_at) == (10, START + 61 * SECOND)
    assert filled(used, START + timedelta(seconds=59, milliseconds=995)).value == 10  # timers are not exacter than that
    assert filled(bucket(), START + timedelta(days=9)).value == 10  # nothing is carried over


@pytest.mark.parametrize(("duration", "seconds"), list(SECONDS.items()))
def test_every_duration_has_its_length(duration: str, seconds: int) -> None:
    assert window(duration) == timedelta(seconds=seconds)  # type: ignore[arg-type]
    assert list(SECONDS.values()) == sorted(SECONDS.values())


def test_lowering_clamps_and_raising_does_not_refill() -> None:
    assert redefined(bucket(value=7), 5, "MINUTE").value == 5
    assert redefined(bucket(value=7), 50, "MINUTE").value == 7
    assert redefined(bucket(value=7), 50, "HOUR").full_at == START + timedelta(hours=1)


def test_units_come_back_into_their_own_window_only() -> None:
    assert returned(bucket(value=3), 2, START).value == 5
    assert returned(bucket(value=9), 5, START).value == 10
    assert returned(bucket(value=3), 2, START - SECOND).value == 3


def test_all_limits_or_none() -> None:
    buckets = {b.id: b for b in (bucket("a", 1), bucket("b", 5))}
    verdicts, after = take(buckets, [[wants(1, "a"), wants(2, "b")], [wants(1, "a"), wants(1, "b")], [wants(3, "b")]], START)
    assert [v is None for v in verdicts] == [True, False, True]
    assert (after[bucket_id("a")].value, after[bucket_id("b")].value) == (0, 0)
    parked = verdicts[1]
    assert parked is not None
    assert (parked.bucket, parked.units, parked.until) == (bucket_id("a"), 1, START + 60 * SECOND)


def test_one_limit_asked_for_twice_is_asked_for_the_sum() -> None:
    verdicts, after = take({bucket_id("a"): bucket("a", 3)}, [[wants(2), wants(2)], [wants(2), wants(1)]], START)
    assert [v is None for v in verdicts] == [False, True]
    assert after[bucket_id("a")].value == 0


def test_a_limit_that_is_not_there_limits_nothing() -> None:
    assert take({}, [[wants(1000)]], START) == ([None], {})


def test_use_redefines_what_use_has_made_and_nothing_else() -> None:
    made, put = bucket("a", 10, fixed=False), bucket("b", 10)
    _, after = take({b.id: b for b in (made, put)}, [[wants(1, "a", most=4), wants(1, "b", most=4)]], START)
    assert (after[made.id].most, after[made.id].value) == (4, 3)
    assert (after[put.id].most, after[put.id].value) == (10, 9)


@pytest.mark.parametrize("seed", range(30))
def test_no_window_ever_gives_more_than_its_limit(seed: int) -> None:
    rng = random.Random(seed)
    most = rng.randint(1, 20)
    current, now, windows = bucket(most=most), START, dict[datetime, int]()
    for _ in range(300):
        now += timedelta(seconds=rng.random() * 5)
        asking = [[wants(rng.randint(1, 4))] for _ in range(rng.randint(1, 5))]
        verdicts, after = take({current.id: current}, asking, now)
        current = after[current.id]
        given = sum(demands[0].units for demands, verdict in zip(asking, verdicts, strict=True) if verdict is None)
        windows[current.refilled_at] = windows.get(current.refilled_at, 0) + given
        assert all(verdict is None or verdict.until == current.full_at for verdict in verdicts)
    assert max(windows.values()) <= most
    starts = sorted(windows)
    assert all(later - earlier >= timedelta(seconds=59.99) for earlier, later in pairwise(starts))


def test_who_comes_as_the_window_ends_stands_behind_those_that_have_waited() -> None:
    full_at = START + 60 * SECOND
    waited_for = replace(bucket(value=0), refill_at=full_at)
    (newcomer, first), after = take({waited_for.id: waited_for}, [[wants()], [wants(10)]], full_at, {1})
    assert (newcomer is not None, first) == (True, None)
    assert after[waited_for.id].value == 0
    alone, untouched = take({waited_for.id: waited_for}, [[wants()]], full_at)
    assert alone[0] is not None
    assert untouched[waited_for.id] == waited_for  # it is filled for those that wait, by whoever lets them go


def test_they_come_first_for_a_moment_and_then_everybody_takes_what_is_left() -> None:
    refilled = replace(bucket(value=4), refill_at=START + timedelta(milliseconds=250))
    moment = START + timedelta(milliseconds=100)
    assert take({refilled.id: refilled}, [[wants()]], moment)[0] == [Parked(refilled.id, 1, START + timedelta(milliseconds=250))]
    assert take({refilled.id: refilled}, [[wants()]], moment, {0})[0] == [None]
    later = replace(refilled, refill_at=refilled.full_at)
    assert take({later.id: later}, [[wants()]], moment)[0] == [None]
    assert take({later.id: later}, [[wants(5)]], moment)[0] == [Parked(later.id, 5, later.full_at)]
