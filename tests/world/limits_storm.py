"""Random acts at two dispatchers whose workflows share a limit of two for each key: what comes, ends and changes, and what came of it.

Attempts are recorded at the endpoints. A storm says what comes and what changes; here is what holds whatever that is.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from dispatcher.store import gates
from tests.world.endpoint import Arrival, Endpoint
from tests.world.random_acts import MILLISECOND, SECOND, RandomActs
from tests.world.test_concurrency import quiet
from tests.world.world import Node, World, until

MOST = 2
SHARED: dict[str, Any] = {"name": "shared", "expression": "input.key", "max_runs": MOST}
COMMON: dict[str, Any] = {"schedule_timeout": "10h", "execution_timeout": "10h", "retries": 2, "idempotent": True}
Of = tuple[str, str]
"""A workflow and a key."""


class Storm(RandomActs):
    """Random acts, and what came of them: which runs were triggered, and which began in what order."""

    answered: ClassVar[float]
    """Below this an act that is not a trigger answers an attempt."""
    loops: ClassVar[tuple[str, ...]] = ("heartbeat", "reap", "slots", "registry", "timers", "asides", "gates", "graphs", "claim")

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self.endpoints: dict[str, Endpoint] = {}
        self.open: list[Arrival] = []
        self.starts: dict[Of, list[str]] = defaultdict(list)
        self.runs: dict[Of, list[str]] = defaultdict(list)
        self.wrong: list[str] = []

    @abstractmethod
    async def come(self) -> None:
        """Trigger a run of some kind."""

    @abstractmethod
    async def change(self, act: float) -> bool:
        """What an act from `answered` on changes, by its number; False if it is to let everybody live for a while."""

    async def blow(self, handlers: Mapping[str, Sequence[Mapping[str, Any]]], slots: int) -> None:
        """Endpoints with these handlers, two dispatchers, acts, a crash of one of them, and more acts."""
        mortal = await self.two_nodes()
        for name, served in handlers.items():
            self.endpoints[name] = await self.register(mortal, name, served, slots)
            self.endpoints[name].way = self.arrive
        await self.known()
        await self.acts(100)
        await self.world.crash(mortal)
        await self.acts(60)

    async def register(self, node: Node, name: str, served: Sequence[Mapping[str, Any]], slots: int) -> Endpoint:
        """An endpoint that serves these handlers."""
        return await self.world.endpoint(node, served, name=name, slots=slots)

    def arrive(self, arrival: Arrival) -> None:
        self.open = [one for one in self.open if not one.answered.is_set() and not one.hung_up.is_set()]
        self.open.append(arrival)
        of, run_id = _of(arrival), arrival.json["run_id"]
        if run_id not in self.starts[of]:
            self.starts[of].append(run_id)
        under_way = sum(_of(one)[1] == of[1] for one in self.open)
        if under_way > MOST:
            self.wrong.append(f"{under_way} of {of[1]} at {self.world.now}")

    async def act(self) -> None:
        self.world.clock.advance(MILLISECOND)
        act = self.rng.random()
        if act < 0.45:
            await self.come()
        elif act < self.answered and self.open:
            self.answer(self.rng.choice(self.open))
        elif not await self.change(act):
            await self.live()
        if self.rng.random() < 0.3:
            await self.node.turn("asides", "gates", "claim")

    async def trigger(self, workflow: str, key: str | None = None, **more: Any) -> str:
        node = self.node
        key = key or self.rng.choice("ab")
        run_id = await node.trigger(workflow, input={"key": key}, **more)
        self.runs[workflow, key].append(run_id)
        return run_id

    def answer(self, arrival: Arrival) -> None:
        if not arrival.answered.is_set() and not arrival.hung_up.is_set():
            arrival.answer(200, 1)

    async def drained(self, runs: Iterable[str]) -> None:
        """Answer what comes until nothing of these runs is left."""
        await self.end(self.answer_all, runs)

    def answer_all(self) -> None:
        for arrival in self.open:
            self.answer(arrival)

    async def over(self) -> None:
        """All has been drained: there were never too many, nothing is held, and what was triggered began, and nothing else."""
        assert self.wrong == []
        await quiet(self.world)
        assert await gates.audit(self.world.database) == []
        assert {of: sorted(runs) for of, runs in self.starts.items()} == {of: sorted(runs) for of, runs in self.runs.items()}


async def starts_in_order(world: World, disturb: Callable[[random.Random, list[Node], int], Awaitable[None]], **asked: Any) -> None:
    """A backlog of `work` starts as it arrived, whatever `disturb` does between (by the number of the run that comes next; -1 once all
    have come, when it is to let them go). Another workflow shares the limit of one.
    """
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
        await disturb(rng, nodes, n)
        key = rng.choice("ab")
        runs[key].append(await rng.choice(nodes).trigger("work", input={"key": key}, priority=rng.randint(1, 3), **asked))
        await rng.choice(nodes).trigger("other", input={"key": key})
    await disturb(rng, nodes, -1)

    async def over() -> bool:
        world.clock.advance(SECOND)
        for node in nodes:
            await node.turn("asides", "gates", "claim")
        return not await world.database.fetchval("select count(*) from runs")

    await until(over)
    assert starts == runs
    await quiet(world)


def _of(arrival: Arrival) -> Of:
    body = arrival.json
    return body["workflow"], body["input"]["key"]
