"""Tasks that are run many at once, in a storm: two dispatchers of which one is killed, answers of every kind, cancels, callbacks and slots
that are released. What is judged is what the endpoint has recorded: from a request's arrival to its answer, its hanging up, or, for what it
accepts, its callback or the end of its lease.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from tests.world.endpoint import Arrival, manifest
from tests.world.random_acts import MILLISECOND, SECOND, RandomActs
from tests.world.test_concurrency import MORTAL
from tests.world.world import World

SLOTS = 6
COMMON: dict[str, Any] = {"schedule_timeout": "10h", "execution_timeout": "6s", "retries": 2}
HANDLERS: dict[str, dict[str, Any]] = {
    "mail": {"batch": {"max_size": 3, "interval": "2s", "group_key": "input.g", "group_max_runs": 1}, "idempotent": True},
    "pair": {"batch": {"max_size": 2, "interval": "1s", "group_key": "input.g", "group_max_runs": 2}, "slot_cost": 2},
    "large": {"slot_cost": 2},
    "small": {},
}


@dataclass(eq=False)
class Item:
    """One attempt as the endpoint sees it."""

    body: dict[str, Any]
    arrival: Arrival
    over: bool = False
    released: bool = False
    accepted_until: datetime | None = None

    @property
    def key(self) -> tuple[str, int]:
        return (self.body["run_id"], self.body["attempt"])

    @property
    def unit(self) -> str:
        """What fills slots together: a batch, or a task of its own."""
        return self.body["batch"]["id"] if "batch" in self.body else f"{self.key}"

    def under_way(self, now: datetime) -> bool:
        if self.over:
            return False
        if self.accepted_until is not None:
            return now < self.accepted_until
        return not self.arrival.answered.is_set() and not self.arrival.hung_up.is_set()


@dataclass
class Record:
    """What the endpoint has been asked and has said, and what was wrong at any moment."""

    world: World
    items: list[Item] = field(default_factory=list)
    seen: dict[tuple[str, int], Item] = field(default_factory=dict)
    said: defaultdict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    wrong: list[str] = field(default_factory=list)
    most: Counter[str] = field(default_factory=Counter)

    def arrive(self, arrival: Arrival) -> None:
        document = arrival.json
        if document["type"] == "cancel":
            arrival.answer(204)
            return
        for body in document["items"] if document["type"] == "batch" else [document]:
            self._take(Item(body, arrival))
        self._judge()

    def _take(self, item: Item) -> None:
        now = self.world.now
        for other in self.open():
            if other.body["run_id"] == item.body["run_id"] and other is not item:
                if now < datetime.fromisoformat(other.body["deadline"]):
                    self.wrong.append(f"{item.key} while {other.key} was under way")
                other.over = True
        before = self.seen.get(item.key)
        if before is not None and "halved" not in self.said[item.key]:
            self.wrong.append(f"{item.key} was sent twice")
        item.released = before is not None and before.released
        self.said[item.key].discard("halved")
        self.seen[item.key] = item
        self.items.append(item)

    def open(self) -> list[Item]:
        self.items = [item for item in self.items if item.under_way(self.world.now)]
        return self.items

    def requests(self) -> list[list[Item]]:
        """Items whose request waits for its answer, by request."""
        found: dict[int, list[Item]] = defaultdict(list)
        for item in self.open():
            if item.accepted_until is None:
                found[id(item.arrival)].append(item)
        return list(found.values())

    def _judge(self) -> None:
        groups: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        filled: dict[str, int] = {}
        for item in self.open():
            handler = HANDLERS[item.body["name"]]
            if "batch" in handler:
                groups[item.body["name"], item.body["input"]["g"]].add(item.unit)
            if not item.released:
                filled[item.unit] = handler.get("slot_cost", 1)
        for (name, key), batches in groups.items():
            self.most[name] = max(self.most[name], len(batches))
            if len(batches) > HANDLERS[name]["batch"]["group_max_runs"]:
                self.wrong.append(f"{len(batches)} batches of {name} {key} at {self.world.now}")
        self.most["slots"] = max(self.most["slots"], sum(filled.values()))
        if sum(filled.values()) > SLOTS:
            self.wrong.append(f"{sum(filled.values())} slots at {self.world.now}")


class Storm(RandomActs):
    """Random acts."""

    loops = ("heartbeat", "reap", "slots", "deadlines", "timers", "cancels", "batches", "claim")

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self.record = Record(world)
        self.runs: list[str] = []
        self.cancelled: set[str] = set()

    async def begin(self) -> None:
        handlers = [{"name": name, **COMMON, **more} for name, more in HANDLERS.items()]
        endpoint = await self.world.discovered(await self.two_nodes(), manifest(handlers, "batch", "async"), slots=SLOTS)
        endpoint.way = self.record.arrive
        await self.known()

    async def act(self) -> None:
        self.world.clock.advance(MILLISECOND)
        act = self.rng.random()
        if act < 0.45:
            name = self.rng.choice(list(HANDLERS))
            self.runs.append(await self.node.trigger(name, input={"g": self.rng.choice("ab")}))
        elif act < 0.75:
            if requests := self.record.requests():
                self.answer(self.rng.choice(requests))
        elif act < 0.85:
            if items := self.record.open():
                await self.call_back(self.rng.choice(items))
        elif act < 0.9 and self.runs:
            await self.cancel(self.rng.choice(self.runs))
        else:
            await self.live(self.rng.randint(1, 3))
        if self.rng.random() < 0.3:
            await self.node.turn("batches", "claim", "cancels")

    async def cancel(self, run_id: str) -> None:
        self.cancelled.add(run_id)
        for item in self.record.open():
            item.over |= item.body["run_id"] == run_id
        await self.node.api.post(f"/v1/runs/{run_id}/cancel", json={})

    async def call_back(self, item: Item) -> None:
        """A handler speaks, twice at once and to either dispatcher."""
        said: dict[str, Any] = self.rng.choice(({"type": "release_slot"}, {"type": "release_slot"}, {"type": "heartbeat"}, self._end(item)))
        item.released |= said["type"] == "release_slot"
        item.over |= said["type"] in ("done", "fail")
        head = {"authorization": f"Bearer {item.body['token']}"}
        replies = await asyncio.gather(*[self.node.api.post("/v1/callback", json=said, headers=head) for _ in range(2)])
        assert {reply.status_code for reply in replies} <= {200, 409, 410}, [reply.text for reply in replies]

    def _end(self, item: Item) -> dict[str, Any]:
        if self.rng.random() < 0.5:
            return {"type": "fail", "error": {"message": "no"}}
        return {"type": "done", "output": self._output(item)}

    def _output(self, item: Item) -> str:
        output = f"{item.key} {self.rng.randrange(2**40):x}"
        self.record.said[item.key].add(output)
        return output

    def answer(self, items: list[Item]) -> None:
        arrival = items[0].arrival
        document = arrival.json
        many = document["type"] == "batch"
        whole = many and len(items) == len(document["items"])  # of none it has been said already how it ended
        ways: list[tuple[int, Callable[[], None]]] = [
            (12, lambda: self._each(items) if many else self._one(items[0])),
            (3, lambda: self._lines(items) if many else self._one(items[0])),
            (1, lambda: arrival.answer(500, {"error": {"message": "no"}}, task_protocol="1")),
            (1, lambda: arrival.answer(429, b"", retry_after=str(self.rng.randint(1, 3)), task_protocol="1")),
            (1, arrival.cut),
            (1, lambda: self._too_large(items) if whole else self._each(items) if many else self._one(items[0])),
        ]
        ((_, do),) = self.rng.choices(ways, [weight for weight, _ in ways])
        do()

    def _too_large(self, items: list[Item]) -> None:
        for item in items:
            self.record.said[item.key].add("halved")
        items[0].arrival.answer(413, b"", task_protocol="1")

    def _one(self, item: Item) -> None:
        if self.rng.random() < 0.8:
            item.arrival.answer(200, self._output(item), task_protocol="1")
            return
        lease = self.rng.randint(1, 4)
        item.accepted_until = self.world.now + lease * SECOND
        item.arrival.answer(202, {"lease_ms": lease * 1_000}, task_protocol="1")

    def _results(self, items: list[Item]) -> Iterator[dict[str, Any]]:
        for item in items:
            way = self.rng.choices(("ok", "fail", "final", "retry", "accepted", "missing"), (14, 3, 1, 1, 2, 1))[0]
            if way == "ok":
                yield {"id": item.body["id"], "status": "ok", "output": self._output(item)}
            elif way in ("fail", "final"):
                yield {"id": item.body["id"], "status": "fail", "error": {"message": "no"}, **({"retry": False} if way == "final" else {})}
            elif way == "retry":
                yield {"id": item.body["id"], "status": "retry", "after_ms": 1_000}
            elif way == "accepted":
                lease = self.rng.randint(1, 4)
                item.accepted_until = self.world.now + lease * SECOND
                yield {"id": item.body["id"], "status": "accepted", "lease_ms": lease * 1_000}

    def _each(self, items: list[Item]) -> None:
        items[0].arrival.answer(200, {"results": list(self._results(items))}, task_protocol="1")

    def _lines(self, items: list[Item]) -> None:
        """Some lines now, and the end of them now or never."""
        arrival = items[0].arrival
        arrival.begin_stream()
        for result in self._results([item for item in items if self.rng.random() < 0.8]):
            arrival.line(result)
        if self.rng.random() < 0.5:
            arrival.end_stream()
        else:
            arrival.cut()

    async def crowd(self) -> None:
        """More full batches of a group than may be under way, and nobody of them ends by himself."""
        for name, handler in HANDLERS.items():
            if "batch" in handler:
                count = handler["batch"]["max_size"] * (handler["batch"]["group_max_runs"] + 1)
                self.runs += [await self.node.trigger(name, input={"g": "a"}) for _ in range(count)]
        for node in self.world.nodes:
            await node.turn("batches", "batches")

    def answer_all(self) -> None:
        for items in self.record.requests():
            arrival = items[0].arrival
            if arrival.json["type"] == "batch":
                results = [{"id": item.body["id"], "status": "ok", "output": self._output(item)} for item in items]
                arrival.answer(200, {"results": results}, task_protocol="1")
            else:
                arrival.answer(200, self._output(items[0]), task_protocol="1")


@pytest.mark.parametrize("seed", range(1))
async def test_no_instant_has_more_batches_of_a_group_than_it_may_have(world: World, seed: int) -> None:
    storm = Storm(world, seed)
    await storm.begin()
    await storm.crowd()
    await storm.acts(60)
    await world.crash(world.nodes[0])
    await storm.acts(20)
    await storm.live(7, 3 * SECOND)  # until the dead one is buried
    await world.node("three", **MORTAL)
    await storm.acts(30)
    await storm.crowd()
    await storm.end(storm.answer_all)
    assert storm.record.wrong == []
    assert {"mail", "pair"} <= set(storm.record.most), "the storm was too mild to show anything"
    await _ended_as_they_should(world, storm)
    await _nothing_is_held(world)


async def _ended_as_they_should(world: World, storm: Storm) -> None:
    rows = {row["run_id"]: row for row in await world.database.fetch(_ENDED)}
    assert set(rows) == set(storm.runs)
    for run_id, row in rows.items():
        if row["status"] == "succeeded":
            assert row["output"].decode().strip('"') in storm.record.said[run_id, row["epoch"]], dict(row)
        elif row["status"] == "cancelled":
            assert run_id in storm.cancelled, dict(row)
        else:
            assert row["final"] or row["spent"] == COMMON["retries"] + 1, dict(row)


async def _nothing_is_held(world: World) -> None:
    for _ in range(2):
        for node in world.nodes:
            await node.turn("slots", "batches")
    for node in world.nodes:
        capacity = node.runtime.capacity
        assert (capacity.in_use, capacity.total, capacity.detached, node.runtime.deliveries.open) == ({}, 0, {}, {})
    assert (await world.nodes[0].call("GET", "/v1/endpoints/sdk"))["in_use"] == 0


_ENDED = """
    select h.run_id, h.status, h.output, h.epoch, h.error,
           (select count(*) from attempts a where a.run_id = h.run_id and a.status in ('failed', 'timed_out')) as spent,
           h.app_retries < 2 as final
    from task_history h
"""
