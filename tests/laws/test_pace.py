"""How bulk work shares the event loop: a part in each round, tenants by turns."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.runtime.departures import Departures
from dispatcher.runtime.pace import Pace


async def _parts(pace: Pace, whose: str, count: int, done: list[str]) -> None:
    for _ in range(count):
        await pace.turn(whose)
        done.append(whose)


async def test_one_part_is_done_in_a_round() -> None:
    pace, done, seen = Pace(), list[str](), list[int]()
    work = [asyncio.ensure_future(_parts(pace, "a", 3, done)), asyncio.ensure_future(_parts(pace, "b", 2, done))]
    while not all(task.done() for task in work):
        before = len(done)
        await asyncio.sleep(0)
        seen.append(len(done) - before)
    assert max(seen) == 1
    assert sorted(done) == ["a", "a", "a", "b", "b"]


async def test_a_few_parts_of_one_do_not_wait_behind_the_many_of_another() -> None:
    pace, done = Pace(), list[str]()
    await asyncio.gather(*[_parts(pace, "many", 1, done) for _ in range(20)], _parts(pace, "few", 2, done))
    assert done.index("few") <= 2
    assert done[:6].count("few") == 2


async def test_alone_nobody_waits() -> None:
    pace = Pace()
    turn = pace.turn("a")
    with pytest.raises(StopIteration):
        turn.send(None)


async def test_who_does_not_wait_any_more_is_passed_over() -> None:
    pace, done = Pace(), list[str]()
    waiting = [asyncio.ensure_future(_parts(pace, who, 1, done)) for who in "abcd"]
    await pace.turn("first")
    await asyncio.sleep(0)
    waiting[0].cancel()  # has just got its turn
    waiting[2].cancel()
    await asyncio.wait(waiting)
    assert done == ["b", "d"]
    await pace.turn("later")


def _departures(started: list[list[Any]]) -> Departures:
    return Departures(lambda some: started.append(list(some)), Pace())


async def test_claimed_work_is_sent_some_at_a_time_the_least_of_a_tenant_first() -> None:
    started: list[list[Any]] = []
    work = [SimpleNamespace(tenant_id=1, n=n) for n in range(250)] + [SimpleNamespace(tenant_id=2, n=n) for n in range(3)]
    sending = asyncio.ensure_future(_departures(started).begin(cast(Any, work)))
    before_others: list[int] = []
    asyncio.get_running_loop().call_soon(lambda: before_others.append(len(started)))
    await sending
    assert before_others == [1], "others have their turn before all is sent"
    sent = [one for some in started for one in some]
    assert sent == work[250:] + work[:250]
    assert max(len(some) for some in started) <= 100


async def test_what_is_leased_is_sent_though_nobody_waits_for_it_any_more() -> None:
    started: list[list[Any]] = []
    work = [SimpleNamespace(tenant_id=1, n=n) for n in range(250)]
    sending = asyncio.ensure_future(_departures(started).begin(cast(Any, work)))
    asyncio.get_running_loop().call_soon(sending.cancel)
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [one for some in started for one in some] == work
