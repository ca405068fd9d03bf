"""Two workflows share limits while one, then the other, is paused and resumed at any moment, at two dispatchers of which one is killed.

Attempts are recorded at the endpoint. At no instant are there more than a limit allows; what is not paused goes on; nobody is forgotten;
and whoever was set aside starts where its arrival puts it.
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
WORKFLOWS = ("first", "second", "flow")
COMMON: dict[str, Any] = {"schedule_timeout": "10h", "execution_timeout": "10h", "retries": 2, "idempotent": True}


class Storm:
    """Random acts, and what came of them."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.endpoints: dict[str, Endpoint] = {}
        self.open: list[Arrival] = []
        self.starts: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.runs: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.wrong: list[str] = []
        self.paused: set[str] = set()

    async def begin(self, nodes: Iterable[Node]) -> None:
        nodes = list(nodes)
        handlers: dict[str, list[dict[str, Any]]] = {
            "first": [{"name": "first", "concurrency": [SHARED], **COMMON}],
            "second": [{"name": "second", "concurrency": [SHARED], **COMMON}],
            "flow": [{"name": "flow", "kind": "workflow", "concurrency": [SHARED], "tasks": [{"name": "a", **COMMON}]}],
        }
        for name, served in handlers.items():
            self.endpoints[name] = await self.world.endpoint(nodes[0], served, name=name, slots=3)
            self.endpoints[name].way = self.arrive
        for node in nodes:
            await node.turn("registry", "slots")

    @property
    def node(self) -> Node:
        return self.rng.choice(self.world.nodes)

    def arrive(self, arrival: Arrival) -> None:
        self.open = [one for one in self.open if not one.answered.is_set() and not one.hung_up.is_set()]
        self.open.append(arrival)
        workflow, key, run_id = of(arrival)
        if run_id not in self.starts[workflow, key]:
            self.starts[workflow, key].append(run_id)
        under_way = sum(of(one)[1] == key for one in self.open)
        if under_way > MOST:
            self.wrong.append(f"{under_way} of {key} at {self.world.now}")

    async def act(self) -> None:
        self.world.clock.advance(MILLISECOND)
        act = self.rng.random()
        if act < 0.45:
            workflow, key = self.rng.choice(WORKFLOWS), self.rng.choice("ab")
            self.runs[workflow, key].append(await self.node.trigger(workflow, input={"key": key}))
        elif act < 0.75 and self.open:
            self.answer(self.rng.choice(self.open))
        elif act < 0.9:
            await self.pause(self.rng.choice(WORKFLOWS), self.rng.random() < 0.5)
        else:
            await self.live()
        if self.rng.random() < 0.3:
            await self.node.turn("asides", "gates", "claim")

    async def pause(self, workflow: str, paused: bool) -> None:
        """The workflow, or the only endpoint that serves it."""
        what = self.rng.choice((f"workflows/{workflow}", f"endpoints/{workflow}"))
        await self.node.call("PATCH", f"/v1/{what}", {"paused": paused})
        (self.paused.add if paused else self.paused.discard)(what)

    def answer(self, arrival: Arrival) -> None:
        if not arrival.answered.is_set() and not arrival.hung_up.is_set():
            arrival.answer(200, 1)

    async def live(self) -> None:
        self.world.clock.advance(SECOND)
        for node in self.world.nodes:
            await node.turn("heartbeat", "reap", "slots", "registry", "timers", "asides", "gates", "graphs", "claim")

    async def drained(self, workflows: Iterable[str]) -> None:
        """Answer what comes until nothing of these workflows is left."""
        names = list(workflows)

        async def over() -> bool:
            for arrival in self.open:
                self.answer(arrival)
            await self.live()
            left = (
                "select count(*) from runs r join workflows w on w.tenant_id = r.tenant_id and w.id = r.workflow_id where w.name = any($1)"
            )
            return not await self.world.database.fetchval(left, names)

        await until(over, 60)


def of(arrival: Arrival) -> tuple[str, str, str]:
    """Workflow, key and run of an attempt."""
    body = arrival.json
    return body["workflow"], body["input"]["key"], body["run_id"]


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_paused_holds_up_nobody_and_is_not_forgotten(world: World, seed: int) -> None:
    storm = Storm(world, seed)
    await storm.begin([await world.node(name, **MORTAL) for name in ("one", "two")])
    for _ in range(100):
        await storm.act()
    await world.crash(world.nodes[0])
    for _ in range(60):
        await storm.act()
    for what in list(storm.paused):
        await storm.node.call("PATCH", f"/v1/{what}", {"paused": False})
    await storm.node.call("PATCH", "/v1/workflows/first", {"paused": True})
    await storm.node.call("PATCH", "/v1/endpoints/flow", {"paused": True})
    for key in "ab":
        for workflow in WORKFLOWS:
            storm.runs[workflow, key].append(await storm.node.trigger(workflow, input={"key": key}))
    await storm.drained(["second"])
    assert await world.database.fetchval("select count(*) from runs") >= 4, "what is paused is not to start"
    assert await gates.audit(world.database) == []
    await storm.node.call("PATCH", "/v1/workflows/first", {"paused": False})
    await storm.node.call("PATCH", "/v1/endpoints/flow", {"paused": False})
    await storm.drained(WORKFLOWS)
    assert storm.wrong == []
    await quiet(world)
    assert await gates.audit(world.database) == []
    assert {of: sorted(runs) for of, runs in storm.starts.items()} == {of: sorted(runs) for of, runs in storm.runs.items()}


async def test_a_backlog_starts_in_the_order_of_its_arrival_however_often_it_was_paused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.asides._PAGE", 3)
    nodes = [await world.node(name) for name in ("one", "two")]
    shared = {**SHARED, "max_runs": 1}
    endpoint = await world.endpoint(nodes[0], [{"name": n, "concurrency": [shared], **COMMON} for n in ("work", "other")], slots=20)
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
            await rng.choice(nodes).call("PATCH", "/v1/workflows/work", {"paused": n % 2 == 0})
        key = rng.choice("ab")
        runs[key].append(await rng.choice(nodes).trigger("work", input={"key": key}, priority=rng.randint(1, 3)))
        await rng.choice(nodes).trigger("other", input={"key": key})
    await nodes[0].call("PATCH", "/v1/workflows/work", {"paused": False})

    async def over() -> bool:
        world.clock.advance(SECOND)
        for node in nodes:
            await node.turn("asides", "gates", "claim")
        return not await world.database.fetchval("select count(*) from runs")

    await until(over)
    assert starts == runs
    await quiet(world)
