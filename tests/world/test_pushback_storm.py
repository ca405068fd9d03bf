"""An endpoint that asks two dispatchers for less, in every form there is, each of them hearing of it by itself.

Judged by what the endpoint has recorded: nobody comes before the time it was told, a dispatcher that was told has no more open than half of
what it had and what good answers since have added, and in the end everybody has run without having spent a retry.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.world.endpoint import Arrival
from tests.world.world import Node, World, until

MILLISECOND, SECOND, DAY = timedelta(milliseconds=1), timedelta(seconds=1), timedelta(days=1)
SLOTS = 8
HANDLER: dict[str, Any] = {"name": "work", "retries": 0, "schedule_timeout": "10h", "execution_timeout": "24h"}
SECONDS = {"3": 3, "30": 30, "0": 1, "-5": 1, "1e9": 1, "soon": 1, "": 1, "9" * 30: 86_400}
"""`Retry-After` as it is written, and how many seconds it asks for at least."""


NEVER = datetime(1, 1, 1, tzinfo=UTC)


def started(arrival: Arrival) -> datetime:
    """When an attempt was leased, which may have been before its dispatcher was told to send less."""
    return datetime.fromisoformat(arrival.json["deadline"]) - DAY


@dataclass
class Record:
    """Who is under way for whom, and what was wrong at any moment."""

    world: World
    open: dict[str, list[Arrival]] = field(default_factory=lambda: defaultdict(list))
    most: dict[str, int] = field(default_factory=lambda: defaultdict(lambda: SLOTS))
    halved: dict[str, datetime] = field(default_factory=dict)
    not_before: dict[str, datetime] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def arrive(self, arrival: Arrival) -> None:
        run_id, now = arrival.json["run_id"], self.world.now
        (sender,) = (node.name for node in self.world.nodes if self.carries(node, arrival))
        self.open[sender].append(arrival)
        if now < self.not_before.get(run_id, now):
            self.wrong.append(f"{run_id} at {now}, and not before {self.not_before[run_id]}")
        if started(arrival) > self.halved.get(sender, NEVER) and len(self.open[sender]) > self.most[sender]:
            self.wrong.append(f"{len(self.open[sender])} of {sender} at {now}, and {self.most[sender]} may be")
        if sum(map(len, self.open.values())) > SLOTS:
            self.wrong.append(f"more than there are slots at {now}")

    def carries(self, node: Node, arrival: Arrival) -> bool:
        flights = node.runtime.deliveries.open.values()
        return any((f.push.run_id, f.push.attempt) == (arrival.json["run_id"], arrival.json["attempt"]) for f in flights)


class Storm:
    """Random acts."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.record = Record(world)
        self.runs: list[str] = []

    async def begin(self) -> None:
        nodes = [await self.world.node(name) for name in ("one", "two")]
        endpoint = await self.world.endpoint(nodes[0], [HANDLER], slots=SLOTS)
        endpoint.way = self.record.arrive
        for _ in range(2):
            for node in nodes:
                await node.turn("registry", "slots")

    @property
    def node(self) -> Node:
        return self.rng.choice(self.world.nodes)

    async def trigger(self) -> None:
        self.runs.append(await self.node.trigger("work"))

    async def act(self, patience: float) -> None:
        """Something happens; `patience` is how likely an answer is a good one."""
        self.world.clock.advance(MILLISECOND)
        act = self.rng.random()
        if act < 0.4:
            await self.trigger()
        elif act < 0.9:
            if senders := [name for name, arrivals in self.record.open.items() if arrivals]:
                await self.answer(self.rng.choice(senders), good=self.rng.random() < patience)
        else:
            await self.world.advance(self.rng.randint(1, 4) * SECOND)

    async def answer(self, sender: str, *, good: bool) -> None:
        """Answer one attempt, and wait until whoever sent it has taken note."""
        record, now = self.record, self.world.now
        arrivals = record.open[sender]
        arrival = arrivals.pop(self.rng.randrange(len(arrivals)))
        run_id = arrival.json["run_id"]
        if good:
            arrival.answer(200, 1)
        else:
            value, seconds = self._retry_after()
            record.not_before[run_id] = now + seconds * SECOND
            arrival.answer(self.rng.choice((429, 503)), b"", retry_after=value)
        node = next(node for node in self.world.nodes if node.name == sender)
        await until(lambda: self._noted(node, arrival))
        if good:
            record.most[sender] += 1
        elif started(arrival) > record.halved.get(sender, NEVER):
            under_way = len(node.runtime.deliveries.open) + 1  # with those that are still on the way
            record.most[sender] = max(min(record.most[sender], under_way) // 2, 1)
            record.halved[sender] = now

    async def _noted(self, node: Node, arrival: Arrival) -> bool:
        return not self.record.carries(node, arrival)

    def _retry_after(self) -> tuple[str, int]:
        if self.rng.random() < 0.4:
            seconds = self.rng.choice((-3_600, 2, 20))
            moment = self.world.now.replace(microsecond=0) + seconds * SECOND
            return format_datetime(moment, usegmt=True), max(seconds - 1, 1)  # a date has whole seconds
        return self.rng.choice(list(SECONDS.items()))

    async def widens(self) -> bool:
        """Whether so much is under way as there are slots for, while there is enough to do and all of it is answered well."""
        for _ in range(2):
            await self.trigger()
        await self.act(1.0)
        return sum(map(len, self.record.open.values())) == SLOTS

    async def end(self) -> None:
        """Answer everything well until nothing is left."""

        async def over() -> bool:
            for name in [name for name, arrivals in self.record.open.items() for _ in arrivals]:
                await self.answer(name, good=True)
            await self.world.advance(SECOND)
            left = await self.world.database.fetch("select due_at, state from tasks order by due_at")
            if left and all(row["state"] == "scheduled" for row in left):
                await self.world.advance(max(left[0]["due_at"] - self.world.now, SECOND))
            return not left

        await until(over, 60)


@pytest.mark.parametrize("seed", range(1))
async def test_an_endpoint_that_asks_for_less_gets_less_and_nobody_is_lost(world: World, seed: int) -> None:
    storm = Storm(world, seed)
    await storm.begin()
    for patience in (0.5, 0.1, 0.8):
        for _ in range(40):
            await storm.act(patience)
    await storm.end()
    await until(storm.widens, 60)
    await storm.end()
    assert storm.record.wrong == []
    rows = await world.database.fetch("select run_id, status, app_retries from task_history")
    assert {(row["status"], row["app_retries"]) for row in rows} == {("succeeded", 0)}
    assert sorted(row["run_id"] for row in rows) == sorted(storm.runs)
    assert [(node.runtime.capacity.in_use, node.runtime.capacity.total) for node in world.nodes] == [({}, 0)] * 2
