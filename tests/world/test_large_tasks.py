"""What needs much at once, beside a stream of what needs little: it is not overtaken for ever, at slots nor at rate limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from tests.world.endpoint import Arrival
from tests.world.world import Node, World, until

STEP = timedelta(milliseconds=250)
COSTS = {"large": 3, "small": 1}
SMALL, LARGE = ({"name": name, "slot_cost": cost, "schedule_timeout": "1h"} for name, cost in (("small", 1), ("large", 3)))
PATIENCE = 8  # steps


@dataclass(slots=True)
class Stream:
    """What runs at one endpoint, ended one after the other, the longest first: each time somebody else has a use for the slot."""

    world: World
    node: Node
    slots: int
    order: list[str] = field(default_factory=list)
    open: list[Arrival] = field(default_factory=list)

    async def begin(self) -> None:
        """All slots are filled with small ones."""
        assert timedelta(seconds=self.node.runtime.services.settings.slot_patience) == PATIENCE * STEP
        endpoint = await self.world.endpoint(self.node, [SMALL, LARGE], slots=self.slots)
        endpoint.way = self._arrive
        for _ in range(2):
            for node in self.world.nodes:
                await node.turn("registry", "slots")
        await self.start("small", self.slots)
        for node in self.world.nodes:
            await node.turn("claim")

        async def full() -> bool:
            return len(self.open) == self.slots

        await until(full)

    def _arrive(self, arrival: Arrival) -> None:
        self.order.append(arrival.json["name"])
        self.open.append(arrival)

    async def start(self, workflow: str, count: int = 1) -> None:
        await self.node.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": workflow} for _ in range(count)]})

    async def step(self) -> None:
        """One ends, and what can begin begins."""
        self.world.clock.advance(STEP)
        self.open.pop(0).answer(200, 1)
        await self._settled()

    async def _settled(self) -> None:
        await until(self._counted)
        for node in self.world.nodes:
            await node.turn("claim")
        await until(self._counted)

    async def _counted(self) -> bool:
        used = sum(COSTS[arrival.json["name"]] for arrival in self.open)
        return used == sum(sum(node.runtime.capacity.in_use.values()) for node in self.world.nodes)

    @property
    def saved(self) -> bool:
        """Whether free slots are left free for somebody."""
        return any(node.runtime.capacity.savings.places for node in self.world.nodes)

    async def end(self) -> None:
        """Let everything come to its end."""

        async def over() -> bool:
            for arrival in self.open:
                arrival.answer(200, 1)
            self.open.clear()
            return not await self.world.database.fetchval("select count(*) from runs")

        await until(over)
        self.world.clock.advance(timedelta(seconds=1))
        for node in self.world.nodes:
            await node.turn("claim")
        assert not self.saved


@pytest.mark.parametrize("slots", [3, 5])
async def test_a_task_of_several_slots_gets_them_beside_a_queue_of_small_ones(world: World, one: Node, slots: int) -> None:
    stream = Stream(world, one, slots)
    await stream.begin()
    await stream.start("large", 2)
    await stream.start("small", 100)
    starts = []
    for step in range(2 * PATIENCE + 3 * slots):
        before = len(stream.order)
        await stream.step()
        starts += [step] * stream.order[before:].count("large")
    assert len(starts) == 2
    assert PATIENCE <= starts[0] <= PATIENCE + slots, "once it was passed over for a while, and not before"
    assert starts[0] < starts[1] <= starts[0] + PATIENCE + 2 * slots, "and so it goes on"
    assert stream.order.count("small") >= 2 * PATIENCE
    await stream.end()


async def test_those_on_the_express_lane_do_not_take_what_is_saved(world: World, one: Node) -> None:
    stream = Stream(world, one, 4)
    await stream.begin()
    await stream.start("large")
    steps = 0
    while "large" not in stream.order:
        assert steps < PATIENCE + 5
        await stream.step()
        await stream.start("small")  # finds a slot free
        steps += 1
    assert steps >= PATIENCE
    await stream.end()


async def test_two_dispatchers_that_share_the_slots_do_not_keep_each_other_from_it(world: World, one: Node) -> None:
    await world.node("two")
    stream = Stream(world, one, 6)
    await stream.begin()
    await stream.start("large", 2)
    await stream.start("small", 100)
    for _ in range(2 * PATIENCE + 12):
        await stream.step()
        assert sum(COSTS[arrival.json["name"]] for arrival in stream.open) <= 6
    assert stream.order.count("large") == 2
    await stream.end()


async def test_nothing_is_saved_for_one_that_does_not_wait_any_more(world: World, one: Node) -> None:
    stream = Stream(world, one, 4)
    await stream.begin()
    await stream.start("small", 40)
    run_id = await one.trigger("large")
    while not stream.saved:
        await stream.step()
    await stream.step()
    shown = await one.call("GET", f"/v1/runs/{await one.trigger('small')}")
    (reason,) = (reason for reason in shown["tasks"][0]["waiting_for"] if reason["kind"] == "endpoint")
    assert "saved for a task that fills several" in reason["message"]
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {})
    world.clock.advance(timedelta(seconds=1))
    await stream._settled()
    assert not stream.saved
    assert len(stream.open) == 4
    await stream.end()


async def test_small_tasks_alone_wait_for_nobody(world: World, one: Node) -> None:
    stream = Stream(world, one, 4)
    await stream.begin()
    await stream.start("small", 40)
    for _ in range(PATIENCE + 4):
        await stream.step()
        assert len(stream.open) == 4
        assert not stream.saved
    await stream.end()
