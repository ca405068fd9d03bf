"""Who shares a commit: what has gathered, in turns where it is more than fits. And in which order claimed work is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.runtime.claims import Claims
from dispatcher.runtime.group_commit import GroupCommit, QueueFull
from dispatcher.runtime.metrics import Metrics

Item = tuple[str, int]


def _commits(sets: list[list[Item]], most: int, **how: Any) -> GroupCommit[Item, Item]:
    async def write(items: Sequence[Item]) -> list[Item]:
        sets.append(list(items))
        return list(items)

    return GroupCommit(write, most=most, bound=1_000, **how)


async def test_a_few_of_one_do_not_wait_behind_the_many_of_another() -> None:
    sets: list[list[Item]] = []
    commits = _commits(sets, 4, whose=lambda item: item[0])
    many, few = [("many", n) for n in range(9)], [("few", n) for n in range(3)]
    results = await asyncio.gather(*[commits.submit(item) for item in many + few])
    assert results == many + few
    assert sets == [[many[0], few[0], many[1], few[1]], [many[2], few[2], *many[3:5]], many[5:9]]


async def test_turns_go_on_from_one_set_to_the_next() -> None:
    sets: list[list[Item]] = []
    commits = _commits(sets, 1, whose=lambda item: item[0])
    await asyncio.gather(*[commits.submit((who, n)) for who in "abc" for n in range(2)])
    assert sets == [[("a", 0)], [("b", 0)], [("c", 0)], [("a", 1)], [("b", 1)], [("c", 1)]]


async def test_what_is_too_large_for_a_set_goes_alone_and_nothing_overtakes_its_like() -> None:
    sets: list[list[Item]] = []
    commits = _commits(sets, 4, whose=lambda item: item[0], weigh=lambda item: item[1])
    await asyncio.gather(*[commits.submit(item) for item in [("a", 9), ("a", 1), ("b", 3), ("b", 2)]])
    assert sets == [[("a", 9)], [("b", 3), ("a", 1)], [("b", 2)]]
    assert commits.waiting == 0


async def test_without_turns_all_are_written_as_they_came_up_to_the_bound() -> None:
    sets: list[list[Item]] = []
    commits = _commits(sets, 2, weigh=lambda _item: 400)
    futures = [commits.submit(("a", 0)), commits.submit(("b", 0))]
    with pytest.raises(QueueFull):
        _ = commits.submit(("a", 1))
    await asyncio.gather(*futures)
    assert sets == [[("a", 0)], [("b", 0)]]


async def test_claimed_work_is_sent_some_at_a_time_the_least_of_a_tenant_first() -> None:
    started: list[list[Any]] = []
    claims = Claims(cast(Any, None), cast(Any, None), cast(Any, None), started.append, Metrics(), lambda: 1, 1_000)
    work = [SimpleNamespace(tenant_id=1, n=n) for n in range(250)] + [SimpleNamespace(tenant_id=2, n=n) for n in range(3)]
    sending = asyncio.ensure_future(claims._begin(cast(Any, work)))
    before_others: list[int] = []
    asyncio.get_running_loop().call_soon(lambda: before_others.append(len(started)))
    await sending
    assert before_others == [1], "others have their turn before all is sent"
    sent = [one for some in started for one in some]
    assert sent == work[250:] + work[:250]
    assert max(len(some) for some in started) <= 100


async def test_what_is_leased_is_sent_though_nobody_waits_for_it_any_more() -> None:
    started: list[list[Any]] = []
    claims = Claims(cast(Any, None), cast(Any, None), cast(Any, None), started.append, Metrics(), lambda: 1, 1_000)
    work = [SimpleNamespace(tenant_id=1, n=n) for n in range(250)]
    sending = asyncio.ensure_future(claims._begin(cast(Any, work)))
    asyncio.get_running_loop().call_soon(sending.cancel)
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [one for some in started for one in some] == work
