"""The rules of rate limits, also against a count of what they let through."""

from __future__ import annotations

import random
from collections import Counter
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


def test_who_has_waited_for_one_limit_keeps_it_while_it_waits_for_another() -> None:
    a, b = replace(bucket("a", 5), refilled_at=START - 30 * SECOND), bucket("b", 2)
    empty = replace(a, value=0)
    (newcomer, waited), after = take({a.id: empty, b.id: b}, [[wants(1, "a"), wants(1, "b")]] * 2, START, {1})
    assert newcomer == Parked(a.id, 1, a.full_at)  # who comes anew has nothing to lose yet
    assert waited == Parked(a.id, 1, a.full_at, ((b.id, b.refilled_at),))
    assert after[b.id].value == 1
    assert waited is not None
    paid = [wants(1, "a"), replace(wants(1, "b"), paid_in=dict(waited.paid)[b.id])]
    (again,), later = take({a.id: empty, b.id: after[b.id]}, [paid], a.full_at, {0})
    assert again is None
    assert (later[a.id].value, later[b.id].value) == (empty.most - 1, 1), "it is paid for once"


def test_what_is_kept_is_lost_with_its_window() -> None:
    a, b = bucket("a", value=0), replace(bucket("b", 2), refilled_at=START - 30 * SECOND)
    (waited,), after = take({a.id: a, b.id: b}, [[wants(1, "a"), wants(1, "b")]], START, {0})
    assert waited == Parked(a.id, 1, a.full_at), "the window of b ends before that of a"
    assert after[b.id] == b
    paid = [wants(1, "a"), replace(wants(1, "b"), paid_in=b.refilled_at)]
    (started,), after = take({a.id: a, b.id: b}, [paid], a.full_at, {0})
    assert started is None
    assert after[b.id].value == b.most - 1, "a new window, a new unit"


@pytest.mark.parametrize("seed", range(30))
def test_no_window_gives_more_than_its_limit_though_some_keep_what_they_have(seed: int) -> None:
    """Tasks that want several limits come, wait, and come again with what they have kept."""
    rng = random.Random(seed)
    left = {one.id: one for one in (replace(bucket(key, most=4), refilled_at=START - rng.randrange(60) * SECOND) for key in "abc")}
    used: Counter[tuple[str, datetime]] = Counter()
    lines: list[tuple[datetime, tuple[Demand, ...]]] = []
    now, begun = START, 0
    for _ in range(200):
        now += timedelta(seconds=rng.random() * 8)
        due = [demands for until, demands in lines if until <= now]
        lines = [(until, demands) for until, demands in lines if until > now]
        fresh = [tuple(wants(rng.randint(1, 2), key) for key in rng.sample("abc", rng.randint(1, 3))) for _ in range(rng.randint(0, 2))]
        asking = [*due, *fresh]
        verdicts, left = take(left, asking, now, range(len(due)))
        for demands, verdict in zip(asking, verdicts, strict=True):
            paid = dict(verdict.paid) if verdict is not None else {demand.id: left[demand.id].refilled_at for demand in demands}
            for demand in demands:
                if demand.id in paid and demand.paid_in != paid[demand.id]:
                    used[demand.id, paid[demand.id]] += demand.units
            begun += verdict is None
            if verdict is not None:
                kept = tuple(replace(demand, paid_in=paid.get(demand.id)) for demand in demands)
                lines.append((verdict.until, kept))
    assert begun > 20
    assert max(used.values()) <= 4
