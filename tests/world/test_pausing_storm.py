"""Two workflows share limits while one, then the other, is paused and resumed at any moment, at two dispatchers of which one is killed.

Attempts are recorded at the endpoint. At no instant are there more than a limit allows; what is not paused goes on; nobody is forgotten;
and whoever was set aside starts where its arrival puts it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from dispatcher.store import gates
from tests.world.limits_storm import COMMON, SHARED, Storm, starts_in_order
from tests.world.world import Node, World

WORKFLOWS = ("first", "second", "flow")
HANDLERS: dict[str, list[dict[str, Any]]] = {
    "first": [{"name": "first", "concurrency": [SHARED], **COMMON}],
    "second": [{"name": "second", "concurrency": [SHARED], **COMMON}],
    "flow": [{"name": "flow", "kind": "workflow", "concurrency": [SHARED], "tasks": [{"name": "a", **COMMON}]}],
}


class Pauses(Storm):
    """Workflows are paused, and the only endpoints that serve them."""

    answered = 0.75

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self.paused: set[str] = set()

    async def come(self) -> None:
        await self.trigger(self.rng.choice(WORKFLOWS), self.rng.choice("ab"))

    async def change(self, act: float) -> bool:
        if act < 0.9:
            await self.pause(self.rng.choice(WORKFLOWS), self.rng.random() < 0.5)
        return act < 0.9

    async def pause(self, workflow: str, paused: bool) -> None:
        """The workflow, or the only endpoint that serves it."""
        what = self.rng.choice((f"workflows/{workflow}", f"endpoints/{workflow}"))
        await self.node.call("PATCH", f"/v1/{what}", {"paused": paused})
        (self.paused.add if paused else self.paused.discard)(what)

    def of(self, *workflows: str) -> list[str]:
        """Their runs."""
        return [run_id for (workflow, _), runs in self.runs.items() if workflow in workflows for run_id in runs]


@pytest.mark.parametrize("seed", range(2))
async def test_what_is_paused_holds_up_nobody_and_is_not_forgotten(world: World, seed: int) -> None:
    storm = Pauses(world, seed)
    await storm.blow(HANDLERS, slots=3)
    for what in list(storm.paused):
        await storm.node.call("PATCH", f"/v1/{what}", {"paused": False})
    await storm.node.call("PATCH", "/v1/workflows/first", {"paused": True})
    await storm.node.call("PATCH", "/v1/endpoints/flow", {"paused": True})
    for key in "ab":
        for workflow in WORKFLOWS:
            await storm.trigger(workflow, key)
    await storm.drained(storm.of("second"))
    assert await world.database.fetchval("select count(*) from runs") >= 4, "what is paused is not to start"
    assert await gates.audit(world.database) == []
    await storm.node.call("PATCH", "/v1/workflows/first", {"paused": False})
    await storm.node.call("PATCH", "/v1/endpoints/flow", {"paused": False})
    await storm.drained(storm.of(*WORKFLOWS))
    await storm.over()


async def test_a_backlog_starts_in_the_order_of_its_arrival_however_often_it_was_paused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.asides._PAGE", 3)

    async def pauses(rng: random.Random, nodes: list[Node], n: int) -> None:
        if n == -1:
            await nodes[0].call("PATCH", "/v1/workflows/work", {"paused": False})
        elif n % 9 == 4:
            await rng.choice(nodes).call("PATCH", "/v1/workflows/work", {"paused": n % 2 == 0})

    await starts_in_order(world, pauses)
