"""What some endpoint may take and what none may share limits, while labels come and go and endpoints of bound runs are paused, at two
dispatchers of which one is killed.

Attempts are recorded at the endpoints. At no instant are there more than a limit allows; what can start goes on; nobody is forgotten; and
whoever was set aside starts where its arrival puts it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.store import gates
from tests.world.endpoint import Arrival, Endpoint
from tests.world.test_concurrency import MORTAL, quiet
from tests.world.world import Node, World, until

MILLISECOND = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)
MOST = 2
SHARED: dict[str, Any] = {"name": "shared", "expression": "input.key", "max_runs": MOST}
COMMON: dict[str, Any] = {"schedule_timeout": "10h", "execution_timeout": "10h", "retries": 2, "idempotent": True, "concurrency": [SHARED]}
HANDLERS = [{"name": "plain", **COMMON}, {"name": "bound", "sticky": "hard", **COMMON}]
ENDPOINTS = ("a", "b")


def wants(zone: str) -> dict[str, Any]:
    """A trigger of what has to have a label."""
    return {"labels": {"zone": {"value": zone, "required": True}}}


class Storm:
    """Random acts, and what came of them."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.endpoints: dict[str, Endpoint] = {}
        self.open: list[Arrival] = []
        self.began = defaultdict[str, set[str]](set)
        self.runs: list[str] = []
        self.wrong: list[str] = []

    async def begin(self, nodes: Iterable[Node]) -> None:
        nodes = list(nodes)
        for name in ENDPOINTS:
            self.endpoints[name] = await self.world.endpoint(nodes[0], HANDLERS, name=name, slots=4)
            self.endpoints[name].way = self.arrive
        for node in nodes:
            await node.turn("registry", "slots")

    @property
    def node(self) -> Node:
        return self.rng.choice(self.world.nodes)

    def arrive(self, arrival: Arrival) -> None:
        self.open = [one for one in self.open if not one.answered.is_set() and not one.hung_up.is_set()]
        self.open.append(arrival)
        key = arrival.json["input"]["key"]
        self.began[key].add(arrival.json["run_id"])
        under_way = sum(one.json["input"]["key"] == key for one in self.open)
        if under_way > MOST:
            self.wrong.append(f"{under_way} of {key} at {self.world.now}")

    async def act(self) -> None:
        self.world.clock.advance(MILLISECOND)
        act = self.rng.random()
        if act < 0.45:
            zone = self.rng.choice(("x", "y", None))
            self.runs.append(await self.trigger(self.rng.choice(("plain", "bound")), **(wants(zone) if zone else {})))
        elif act < 0.7 and self.open:
            self.answer(self.rng.choice(self.open))
        elif act < 0.8:
            await self.patch(self.rng.choice(ENDPOINTS), paused=self.rng.random() < 0.5)
        elif act < 0.92:
            await self.patch(self.rng.choice(ENDPOINTS), labels=self.rng.choice(({}, {"zone": "x"}, {"zone": "y"})))
        else:
            await self.live()
        if self.rng.random() < 0.3:
            await self.node.turn("asides", "gates", "claim")

    async def trigger(self, workflow: str, **more: Any) -> str:
        return await self.node.trigger(workflow, input={"key": self.rng.choice("ab")}, **more)

    async def patch(self, name: str, **changes: Any) -> None:
        await self.node.call("PATCH", f"/v1/endpoints/{name}", changes)

    def answer(self, arrival: Arrival) -> None:
        if not arrival.answered.is_set() and not arrival.hung_up.is_set():
            arrival.answer(200, 1)

    async def live(self) -> None:
        self.world.clock.advance(SECOND)
        for node in self.world.nodes:
            await node.turn("heartbeat", "reap", "slots", "registry", "timers", "asides", "gates", "claim")

    async def drained(self, runs: Iterable[str]) -> None:
        """Answer what comes until nothing of these runs is left."""
        names = list(runs)

        async def over() -> bool:
            for arrival in self.open:
                self.answer(arrival)
            await self.live()
            return not await self.world.database.fetchval("select count(*) from runs where id = any($1::text[])", names)

        await until(over, 60)


@pytest.mark.parametrize("seed", range(4))
async def test_what_nothing_can_take_holds_up_nobody_and_is_not_forgotten(world: World, seed: int) -> None:
    storm = Storm(world, seed)
    await storm.begin([await world.node(name, **MORTAL) for name in ("one", "two")])
    for _ in range(100):
        await storm.act()
    await world.crash(world.nodes[0])
    for _ in range(60):
        await storm.act()
    for name in ENDPOINTS:
        await storm.patch(name, paused=False, labels={})
    lone = [await storm.trigger("plain", **wants("z")) for _ in range(5)]
    others = [await storm.trigger(workflow) for workflow in ("plain", "bound") for _ in range(3)]
    await storm.drained(others)
    assert not {run_id for began in storm.began.values() for run_id in began}.intersection(lone)
    assert await gates.audit(world.database) == []
    for zone in ("x", "y"):
        await storm.patch("a", labels={"zone": zone})
        await storm.patch("b", labels={"zone": zone})
        await storm.live()
        find = "select id from runs where labels #>> '{zone,value}' = $1"
        await storm.drained([row[0] for row in await world.database.fetch(find, zone)])
    await storm.drained(storm.runs)
    await storm.patch("b", labels={"zone": "z"})
    await storm.drained(lone)
    assert storm.wrong == []
    await quiet(world)
    assert await gates.audit(world.database) == []
    assert sorted(run_id for began in storm.began.values() for run_id in began) == sorted([*storm.runs, *lone, *others])


async def test_a_backlog_starts_in_the_order_of_its_arrival_however_often_its_label_went(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.unschedulable._PAGE", 3)
    nodes = [await world.node(name) for name in ("one", "two")]
    shared = {**SHARED, "max_runs": 1}
    endpoint = await world.endpoint(nodes[0], [{**COMMON, "name": n, "concurrency": [shared]} for n in ("work", "other")], slots=20)
    for node in nodes:
        await node.turn("registry", "slots")
    rng, runs, starts = random.Random(5), defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)

    def way(arrival: Arrival) -> None:
        if arrival.json["workflow"] == "work":
            starts[arrival.json["input"]["key"]].append(arrival.json["run_id"])
        arrival.answer(200, 1)

    endpoint.way = way
    for n in range(80):
        world.clock.advance(MILLISECOND)
        if n % 9 == 4:
            await rng.choice(nodes).call("PATCH", "/v1/endpoints/plain", {"labels": {} if n % 2 == 0 else {"zone": "x"}})
        if n % 5 == 2:
            await rng.choice(nodes).turn("asides")
        key = rng.choice("ab")
        runs[key].append(await rng.choice(nodes).trigger("work", input={"key": key}, priority=rng.randint(1, 3), **wants("x")))
        await rng.choice(nodes).trigger("other", input={"key": key})
    await nodes[0].call("PATCH", "/v1/endpoints/plain", {"labels": {"zone": "x"}})

    async def over() -> bool:
        world.clock.advance(SECOND)
        for node in nodes:
            await node.turn("asides", "gates", "claim")
        return not await world.database.fetchval("select count(*) from runs")

    await until(over)
    assert starts == runs
    await quiet(world)
