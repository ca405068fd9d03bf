"""Who shares a commit: what has gathered, in turns where it is more than fits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from dispatcher.runtime.group_commit import GroupCommit, QueueFull

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
    assert sets == [[many[0], few[0], many[1], few[1]], [many[2], few[2]], many[3:7], many[7:9]]


async def test_a_few_of_one_share_no_large_set_with_the_many_of_another() -> None:
    sets: list[list[Item]] = []
    commits = _commits(sets, 100, whose=lambda item: item[0])
    await asyncio.gather(*[commits.submit((who, n)) for who, count in (("many", 250), ("few", 3), ("some", 20)) for n in range(count)])
    assert [len(items) for items in sets] == [43, 100, 100, 30]
    assert {who for who, _ in sets[0]} == {"many", "few", "some"}


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


async def test_who_has_nothing_in_the_set_that_is_written_does_not_wait_for_its_end() -> None:
    """A second lane; and none of the same whose set is being written, whose order would be lost."""
    sets: list[list[Item]] = []
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def write(items: Sequence[Item]) -> list[Item]:
        sets.append(list(items))
        begun.set()
        if items[0][0] == "many":
            await goes_on.wait()
        return list(items)

    commits = GroupCommit(write, most=4, bound=1_000, whose=lambda item: item[0])
    many = [commits.submit(("many", n)) for n in range(6)]
    await begun.wait()
    few = [commits.submit(("few", n)) for n in range(3)]
    assert await asyncio.gather(*few) == [("few", n) for n in range(3)]
    assert [len(items) for items in sets] == [4, 3], "the rest of the many waits for the set before it"
    few = [commits.submit(("few", n)) for n in range(2)]
    assert await asyncio.gather(*few) == [("few", n) for n in range(2)], "the lane is opened anew"
    goes_on.set()
    await commits.drain()
    assert [one.result() for one in many] == [("many", n) for n in range(6)]
    assert sets[3:] == [[("many", 4), ("many", 5)]]


async def test_no_more_than_two_sets_are_written_at_once_and_all_are() -> None:
    under_way: list[int] = []
    most = 0

    async def write(items: Sequence[Item]) -> list[Item]:
        nonlocal most
        under_way.append(len(items))
        most = max(most, len(under_way))
        await asyncio.sleep(0)
        under_way.pop()
        return list(items)

    commits = GroupCommit(write, most=1, bound=1_000, whose=lambda item: item[0])
    items = [(who, n) for n in range(20) for who in "abcde"]
    assert await asyncio.gather(*[commits.submit(item) for item in items]) == items
    assert most == 2
    assert not under_way
