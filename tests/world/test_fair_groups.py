"""Concurrency groups of one workflow that share too few slots: each gets its turns, however many of another wait."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.world.endpoint import Arrival
from tests.world.test_concurrency import GRR, limited, quiet
from tests.world.world import Node, World, until

MILLISECOND = timedelta(milliseconds=1)
CROWD = 120
FEW = 6


async def _start(node: Node, key: str, count: int) -> list[str]:
    runs = [{"workflow": "work", "input": {"key": key}} for _ in range(count)]
    return [row["id"] for row in (await node.call("POST", "/v1/runs/bulk", {"runs": runs}))["rows"]]


async def _order(world: World, one: Node, slots: int, rule: dict[str, Any]) -> list[str]:
    """The groups of what ran, in the order in which it began: many of one, then few of another, where one answer follows the other."""
    endpoint = await world.endpoint(one, [limited(rule)], slots=slots)
    order, open_ = list[str](), list[Arrival]()

    def arrive(arrival: Arrival) -> None:
        order.append(arrival.json["input"]["key"])
        open_.append(arrival)

    endpoint.way = arrive
    await _start(one, "many", CROWD)
    await _start(one, "few", FEW)

    async def over() -> bool:
        if open_:
            world.clock.advance(MILLISECOND)  # who became ready first goes first, and nothing becomes ready at the same moment in life
            open_.pop(0).answer(200, 1)
        return not await world.database.fetchval("select count(*) from runs")

    await until(over, 30)
    await quiet(world)
    return order


async def test_a_group_is_done_in_its_own_time_behind_a_crowd_of_another(world: World, one: Node) -> None:
    order = await _order(world, one, 100, GRR)
    assert order.count("few") == FEW
    last = len(order) - order[::-1].index("few")
    assert last <= 4 * FEW, order[: 4 * FEW]


async def test_so_it_is_where_there_are_fewer_slots_than_groups_may_fill(world: World, one: Node) -> None:
    order = await _order(world, one, 2, {**GRR, "max_runs": 2})
    last = len(order) - order[::-1].index("few")
    assert last <= 4 * FEW, order[: 4 * FEW]
