"""What no scheduler's own counters can show: at no instant are more handlers at work than their limits allow.

Handlers' intervals are recorded at the endpoint, from a request's arrival to its answer or to the moment it is hung up on. Runs are
started, answered, failed, left to time out and cancelled at random, at two dispatchers, one of which is killed in the middle.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.world.endpoint import Arrival
from tests.world.random_acts import MILLISECOND, RandomActs
from tests.world.test_concurrency import quiet
from tests.world.world import World, until

SHARED = {"name": "shared", "max_runs": 3}
KEYED = {"expression": "input.key", "max_runs": 2}
COMMON: dict[str, Any] = {"schedule_timeout": "10h", "execution_timeout": "20s", "retries": 2, "idempotent": True}
WORKFLOWS: dict[str, list[dict[str, Any]]] = {
    "queue": [KEYED],
    "chain": [{"expression": "input.key", "max_runs": 1}, {"expression": "input.other", "max_runs": 2}, SHARED],
    "shared": [SHARED],
    "newest": [{**KEYED, "limit_strategy": "CANCEL_IN_PROGRESS"}],
    "oldest": [{**KEYED, "limit_strategy": "CANCEL_NEWEST"}],
}


@dataclass
class Record:
    """Open attempts by the groups they are in, and what was wrong at any moment."""

    open: list[Arrival] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    starts: list[tuple[str, str]] = field(default_factory=list)

    def arrive(self, arrival: Arrival) -> None:
        self.open = [one for one in self.open if not one.answered.is_set() and not one.hung_up.is_set()]
        self.open.append(arrival)
        self.starts.append((arrival.json["workflow"], arrival.json["run_id"]))
        held: dict[tuple[str, ...], int] = defaultdict(int)
        most: dict[tuple[str, ...], int] = {}
        for one in self.open:
            for group, limit in groups(one.json):
                held[group] += 1
                most[group] = limit
        self.wrong += [f"{group}: {n} of {most[group]}" for group, n in held.items() if n > most[group]]


def groups(body: dict[str, Any]) -> list[tuple[tuple[str, ...], int]]:
    """The groups of an attempt, told by the test's own reading of what is declared."""
    workflow, given = body["workflow"], body["input"]
    found: list[tuple[tuple[str, ...], int]] = []
    for i, rule in enumerate(WORKFLOWS[workflow]):
        key = given[rule["expression"].removeprefix("input.")] if "expression" in rule else ""
        found.append((("named", rule["name"]) if "name" in rule else (workflow, str(i), key), rule["max_runs"]))
    return found


class Storm(RandomActs):
    """Random acts on a world of two dispatchers."""

    loops = ("heartbeat", "reap", "slots", "deadlines", "timers", "gates", "claim")

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self.record = Record()
        self.runs: dict[str, tuple[str, str]] = {}
        self.touched: set[str] = set()

    async def begin(self) -> None:
        handlers = [{"name": name, "concurrency": rules, **COMMON} for name, rules in WORKFLOWS.items()]
        endpoint = await self.world.endpoint(await self.two_nodes(), handlers, slots=40)
        endpoint.way = self.record.arrive
        await self.known()

    async def act(self) -> None:
        self.world.clock.advance(MILLISECOND)
        act = self.rng.random()
        if act < 0.5:
            workflow = self.rng.choice(list(WORKFLOWS))
            given = {"key": self.rng.choice("ab"), "other": self.rng.choice("xy")}
            run_id = await self.node.trigger(workflow, input=given, priority=self.rng.randint(1, 3))
            self.runs[run_id] = (workflow, given["key"])
        elif act < 0.9 and self.record.open:
            self.answer(self.rng.choice(self.record.open))
        elif act < 0.96 and self.runs:
            run_id = self.rng.choice(list(self.runs))
            self.touched.add(run_id)
            await self.node.api.post(f"/v1/runs/{run_id}/cancel", json={})
        else:
            await self.live(self.rng.randint(1, 4))
        if self.rng.random() < 0.3:
            await self.node.turn("gates", "claim", "cancels")

    def answer(self, arrival: Arrival) -> None:
        if arrival.answered.is_set() or arrival.hung_up.is_set():
            return
        if self.rng.random() < 0.7:
            arrival.answer(200, 1)
        else:
            self.touched.add(arrival.json["run_id"])
            arrival.answer(500, {"error": {"message": "no"}}, task_retry=self.rng.choice(["true", "false"]))

    async def crowd(self) -> None:
        """Fill groups that send away who is too many, and let nobody in them end by itself."""
        for _ in range(4):
            for workflow in ("newest", "oldest"):
                self.world.clock.advance(MILLISECOND)
                run_id = await self.node.trigger(workflow, input={"key": "a", "other": "x"}, priority=1)
                self.runs[run_id] = (workflow, "a")
        for node in self.world.nodes:
            await node.turn("gates", "claim", "cancels")

    def answer_all(self) -> None:
        for arrival in self.record.open:
            if not arrival.answered.is_set() and not arrival.hung_up.is_set():
                arrival.answer(200, 1)


@pytest.mark.parametrize("seed", range(3))
async def test_no_instant_exceeds_any_limit(world: World, seed: int) -> None:
    storm = Storm(world, seed)
    await storm.begin()
    await storm.acts(120)
    await world.crash(world.nodes[0])
    await storm.acts(60)
    await storm.live(20)
    await storm.acts(40)
    await storm.crowd()
    await storm.end(storm.answer_all)
    assert storm.record.wrong == []
    await quiet(world)
    drifts = await world.nodes[0].runtime.services.gates._database.fetch("select * from gates where held <> 0 or waiting <> 0")
    assert drifts == []
    await _kept_as_declared(world, storm)


async def _kept_as_declared(world: World, storm: Storm) -> None:
    """Of each group, CANCEL_IN_PROGRESS never sends away the last that came, CANCEL_NEWEST never the first."""
    rows = await world.database.fetch("select run_id, status, error from task_history")
    sent_away = {row["run_id"] for row in rows if "CANCEL_" in str(json.loads(row["error"] or "null"))}
    for key in "ab":
        last = [run for run, of in storm.runs.items() if of == ("newest", key)][-2:]
        first = [run for run, of in storm.runs.items() if of == ("oldest", key)][:2]
        assert not sent_away & {*last, *first}
    assert sent_away, "the storm was too mild to show anything"


async def test_within_a_group_the_first_to_come_is_the_first_to_start(world: World) -> None:
    nodes = [await world.node(name) for name in ("one", "two")]
    endpoint = await world.endpoint(nodes[0], [{"name": "work", "concurrency": {"expression": "input.key", "max_runs": 1}}], slots=20)
    for node in nodes:
        await node.turn("registry", "slots")
    rng, runs, starts = random.Random(7), defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)

    def way(arrival: Arrival) -> None:
        starts[arrival.json["input"]["key"]].append(arrival.json["run_id"])
        arrival.answer(200, 1)

    endpoint.way = way
    for _ in range(60):
        world.clock.advance(MILLISECOND)
        key = rng.choice("abc")
        runs[key].append(await rng.choice(nodes).trigger("work", input={"key": key}, priority=rng.randint(1, 3)))

    async def over() -> bool:
        for node in nodes:
            await node.turn("gates", "claim")
        return not await world.database.fetchval("select count(*) from runs")

    await until(over)
    assert starts == runs
    await quiet(world)
