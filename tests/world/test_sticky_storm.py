"""Sticky runs and sticky children in a storm: endpoints are paused, deleted and registered again, labels change, a dispatcher is killed.

Judged by what the endpoints have recorded: a hard run is never at two of them, a sticky child begins where its parent asked for it, and
whoever does not wait for an endpoint that is gone comes to its end.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import pytest

from tests.world.durable import FEATURES, answer, entry, pending
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.random_acts import MILLISECOND, SECOND, RandomActs
from tests.world.world import World, until

COMMON: dict[str, Any] = {"schedule_timeout": "10h", "execution_timeout": "20s", "retries": 3, "idempotent": True}
TASKS = [{"name": "x", **COMMON}, {"name": "y", "parents": ["x"], **COMMON}, {"name": "z", "parents": ["x"], **COMMON}]
LEAF = {"name": "leaf", "sticky": "hard", **COMMON}
FLOWS = [{"name": sticky, "kind": "workflow", "sticky": sticky, "tasks": TASKS} for sticky in ("hard", "soft")]
ORDER = entry("order", schedule_timeout="10h", execution_timeout="20s", retries=50)
SERVED = {"a": [*FLOWS, LEAF, ORDER], "b": [*FLOWS, LEAF, ORDER], "c": [*FLOWS, LEAF]}
SLOTS = 3


class Storm(RandomActs):
    """Random acts, and what the endpoints have seen of them. Endpoints are told apart by their ids: one that comes back is another."""

    loops = ("heartbeat", "reap", "slots", "registry", "deadlines", "timers", "waits", "marks", "asides", "claim")

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self.urls: dict[str, Endpoint] = {}
        self.open: list[Arrival] = []
        self.runs: list[str] = []
        self.places: defaultdict[str, list[str]] = defaultdict(list)
        self.asked_at: defaultdict[str, set[str]] = defaultdict(set)
        self.parents: dict[str, str] = {}

    async def begin(self) -> None:
        mortal = await self.two_nodes()
        for name, handlers in SERVED.items():
            self.urls[name] = endpoint = await self.world.discovered(mortal, manifest(handlers, *FEATURES), name=name, slots=SLOTS)
            endpoint.way = self.arrive
        await self.known()
        self.runs = [await self.node.trigger(workflow) for workflow in ("hard", "soft", "leaf", "order")]

    def arrive(self, arrival: Arrival) -> None:
        body = arrival.json
        if body["type"] == "cancel":
            arrival.answer(204)
            return
        self.open.append(arrival)
        self.places[body["run_id"]].append(body["audience"])
        if body.get("parent_run_id"):
            self.parents[body["run_id"]] = body["parent_run_id"]

    async def act(self) -> None:
        self.world.clock.advance(MILLISECOND)
        act = self.rng.random()
        if act < 0.35:
            zone = self.rng.choice(("x", "y", None, None))
            labels = {"labels": {"zone": {"value": zone, "required": True}}} if zone else {}
            workflow = self.rng.choice(("hard", "soft", "leaf", "order"))
            self.runs.append(await self.node.trigger(workflow, **({} if workflow == "order" else labels)))
        elif act < 0.75:
            if self.waiting():
                self.answer(self.rng.choice(self.waiting()), good=self.rng.random() < 0.7)
        elif act < 0.85:
            await self.patch(self.rng.choice("abc"), paused=self.rng.random() < 0.4)
        elif act < 0.9:
            await self.patch(self.rng.choice("abc"), labels=self.rng.choice(({}, {"zone": "x"}, {"zone": "y"})))
        elif act < 0.92:
            await self.node.call("DELETE", "/v1/endpoints/c?force=true")
            await self.node.call("PUT", "/v1/endpoints/c", {"url": self.urls["c"].url, "slots": SLOTS})
        else:
            await self.live(self.rng.randint(1, 3))
        if self.rng.random() < 0.3:
            await self.node.turn("asides", "claim")

    async def patch(self, name: str, **changes: Any) -> None:
        await self.node.call("PATCH", f"/v1/endpoints/{name}", changes)

    def waiting(self) -> list[Arrival]:
        self.open = [arrival for arrival in self.open if not arrival.answered.is_set() and not arrival.hung_up.is_set()]
        return self.open

    def answer(self, arrival: Arrival, *, good: bool) -> None:
        body = arrival.json
        if not good:
            if self.rng.random() < 0.5:
                arrival.cut()
            else:
                arrival.answer(500, b"", task_protocol="1")
        elif body["type"] == "run":
            arrival.answer(200, {}, task_protocol="1")
        elif body["log"]["len"] == 0:
            self.asked_at[body["run_id"]].add(body["audience"])
            answer(arrival, "wait", base=0, ops=[pending("child", "c#0", workflow="leaf", sticky=True)], wake="c#0")
        else:
            answer(arrival, "done", base=body["log"]["len"], output=1)

    async def calm(self) -> None:
        """Everything is open again, and answers well, until nothing is left that could start."""
        for name in SERVED:
            await self.patch(name, paused=False, labels={})
        for zone in ("x", "y"):
            await self.patch("a", labels={"zone": zone})
            await until(partial(self.settled, zone), 60)

    async def settled(self, zone: str) -> bool:
        for arrival in self.waiting():
            self.answer(arrival, good=True)
        await self.live()
        return not await self.world.database.fetchval(_STARTABLE, zone)


@pytest.mark.parametrize("seed", range(1))
async def test_hard_runs_stay_and_nobody_is_forgotten(world: World, seed: int) -> None:
    storm = Storm(world, seed)
    await storm.begin()
    await storm.acts(60)
    await world.crash(world.nodes[0])
    await storm.acts(25)
    await storm.live(7, 3 * SECOND)  # until the dead one is buried
    await storm.calm()
    left = {row["id"] for row in await world.database.fetch("select id from runs")}
    gone = {row["id"] for row in await world.database.fetch(_GONE)}
    assert left <= gone | {storm.parents.get(run_id) for run_id in gone}, "who waits waits for an endpoint that is gone"
    await _stayed(world, storm)
    await _soft_runs_are_whole(world, storm)
    for run_id in left:
        await storm.node.call("POST", f"/v1/runs/{run_id}/cancel", {})
    await until(lambda: _nothing_left(world, storm), 30)
    for node in world.nodes:
        await node.turn("slots")
        assert (node.runtime.capacity.in_use, node.runtime.capacity.total, node.runtime.capacity.detached) == ({}, 0, {})


async def _stayed(world: World, storm: Storm) -> None:
    hard = {row["id"] for row in await world.database.fetch(_HARD)}
    parted = {run_id: places for run_id, places in storm.places.items() if run_id in hard and len(set(places)) > 1}
    assert parted == {}
    strays = {run for run, parent in storm.parents.items() if not set(storm.places[run]) <= storm.asked_at[parent]}
    assert strays == set()
    assert storm.parents


async def _soft_runs_are_whole(world: World, storm: Storm) -> None:
    """Where there is room for all of them their tasks are together."""
    await storm.live(5)
    run_id = await storm.node.trigger("soft")

    async def over() -> bool:
        for arrival in storm.waiting():
            storm.answer(arrival, good=True)
        await storm.live(1)
        return not await world.database.fetchval("select true from runs where id = $1", run_id)

    await until(over)
    assert len(storm.places[run_id]) == 3
    assert len(set(storm.places[run_id])) == 1


async def _nothing_left(world: World, storm: Storm) -> bool:
    for arrival in storm.waiting():
        storm.answer(arrival, good=True)
    await storm.live(1)
    return not await world.database.fetchval("select count(*) from runs")


_GONE = "select id from runs where sticky_endpoint is not null and sticky_endpoint not in (select id from endpoints)"
_STARTABLE = """
    select exists (
        select from runs r join workflows w on w.tenant_id = r.tenant_id and w.id = r.workflow_id
        where w.name <> 'order' and (r.sticky_endpoint is null or w.name = 'soft' or r.sticky_endpoint in (select id from endpoints))
          and (r.labels is null or r.labels #>> '{zone,value}' = $1)
        union all
        select from tasks t join workflows w on w.tenant_id = t.tenant_id and w.id = t.workflow_id
        where w.name = 'order' and t.state <> 'waiting')
"""
_HARD = """
    select r.id from (select id, workflow_id from runs union all select id, workflow_id from run_history) r
    join workflows w on w.id = r.workflow_id where w.name in ('hard', 'leaf')
"""
