"""What some endpoint may take and what none may share limits, while labels come and go and endpoints of bound runs are paused, at two
dispatchers of which one is killed.

Attempts are recorded at the endpoints. At no instant are there more than a limit allows; what can start goes on; nobody is forgotten; and
whoever was set aside starts where its arrival puts it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from dispatcher.store import gates
from tests.world.limits_storm import COMMON, SHARED, Storm, starts_in_order
from tests.world.world import Node, World

HANDLERS = [{"name": "plain", "concurrency": [SHARED], **COMMON}, {"name": "bound", "sticky": "hard", "concurrency": [SHARED], **COMMON}]
ENDPOINTS = ("a", "b")


def wants(zone: str) -> dict[str, Any]:
    """A trigger of what has to have a label."""
    return {"labels": {"zone": {"value": zone, "required": True}}}


class Labels(Storm):
    """Labels of two endpoints come and go, and they are paused."""

    answered = 0.7

    async def come(self) -> None:
        zone = self.rng.choice(("x", "y", None))
        await self.trigger(self.rng.choice(("plain", "bound")), **(wants(zone) if zone else {}))

    async def change(self, act: float) -> bool:
        if act < 0.8:
            await self.patch(self.rng.choice(ENDPOINTS), paused=self.rng.random() < 0.5)
        elif act < 0.92:
            await self.patch(self.rng.choice(ENDPOINTS), labels=self.rng.choice(({}, {"zone": "x"}, {"zone": "y"})))
        return act < 0.92

    async def patch(self, name: str, **changes: Any) -> None:
        await self.node.call("PATCH", f"/v1/endpoints/{name}", changes)


@pytest.mark.parametrize("seed", range(2))
async def test_what_nothing_can_take_holds_up_nobody_and_is_not_forgotten(world: World, seed: int) -> None:
    storm = Labels(world, seed)
    await storm.blow(dict.fromkeys(ENDPOINTS, HANDLERS), slots=4)
    for name in ENDPOINTS:
        await storm.patch(name, paused=False, labels={})
    rest = [run_id for runs in storm.runs.values() for run_id in runs]
    lone = [await storm.trigger("plain", **wants("z")) for _ in range(5)]
    others = [await storm.trigger(workflow) for workflow in ("plain", "bound") for _ in range(3)]
    await storm.drained(others)
    assert not {run_id for starts in storm.starts.values() for run_id in starts}.intersection(lone)
    assert await gates.audit(world.database) == []
    for zone in ("x", "y"):
        await storm.patch("a", labels={"zone": zone})
        await storm.patch("b", labels={"zone": zone})
        await storm.live()
        find = "select id from runs where labels #>> '{zone,value}' = $1"
        await storm.drained([row[0] for row in await world.database.fetch(find, zone)])
    await storm.drained(rest)
    await storm.patch("b", labels={"zone": "z"})
    await storm.drained(lone)
    await storm.over()


async def test_a_backlog_starts_in_the_order_of_its_arrival_however_often_its_label_went(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.unschedulable._PAGE", 3)

    async def relabels(rng: random.Random, nodes: list[Node], n: int) -> None:
        if n == -1:
            await nodes[0].call("PATCH", "/v1/endpoints/plain", {"labels": {"zone": "x"}})
        elif n % 9 == 4:
            await rng.choice(nodes).call("PATCH", "/v1/endpoints/plain", {"labels": {} if n % 2 == 0 else {"zone": "x"}})
        if n >= 0 and n % 5 == 2:
            await rng.choice(nodes).turn("asides")

    await starts_in_order(world, relabels, **wants("x"))
