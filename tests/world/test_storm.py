"""A hundred runs at an endpoint that does everything wrong it can, drawn from a seed; afterwards the books have to balance.

The checker is the one of the chaos runs: acknowledgements, database and the endpoint's own record, compared.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from tests.chaos.ledger import Ack, Attempt, Ledger, Request, Run, check, shown
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until

RUNS = 60
HANDLERS = [
    {"name": "work", "retries": 3, "backoff_factor": 2, "execution_timeout": "40s", "schedule_timeout": "12h", "on_events": ["storm.*"]},
    {"name": "twice", "retries": 2, "idempotent": True, "execution_timeout": "40s", "schedule_timeout": "12h"},
]
_MOST_STEPS = 600


@dataclass
class Rude:
    """Answers each attempt in a way drawn by lot, and remembers what it was asked and what it said."""

    world: World
    node: Node
    rng: random.Random
    requests: list[Request] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    promised: list[tuple[str, Any]] = field(default_factory=list)
    hanging: list[Arrival] = field(default_factory=list)

    def __call__(self, arrival: Arrival) -> None:
        push = arrival.json
        if push["type"] == "cancel":
            arrival.answer(204)
        elif push["type"] == "batch":
            self._batch(arrival, push["items"])
        else:
            self._single(arrival, push)

    def _saw(self, item: dict[str, Any]) -> str:
        nonce = f"{self.rng.randrange(2**60):x}"
        self.requests.append(Request(item["run_id"], item["attempt"], nonce))
        return nonce

    def _single(self, arrival: Arrival, push: dict[str, Any]) -> None:
        output = {"nonce": self._saw(push)}
        ways: dict[str, Callable[[], None]] = {
            "well": lambda: arrival.answer(200, output),
            "streamed": lambda: self._streamed(arrival, {"type": "done", "output": output}),
            "failing": lambda: arrival.answer(500, {"detail": "it happens"}),
            "cut": arrival.cut,
            "stream cut": lambda: self._streamed(arrival, {"type": "log", "message": "x"}),
            "hanging": lambda: self.hanging.append(arrival),
            "accepted": lambda: self._accept(arrival, push["token"], output),
            "accepted, never done": lambda: arrival.answer(202, {"lease_ms": 5_000}),
            "less": lambda: arrival.answer(503, b"", retry_after="3"),
            "busy": lambda: arrival.answer(409),
            "nonsense": lambda: arrival.answer(200, b"{nonsense"),
        }
        name = self.rng.choices(list(ways), [30, 8, 10, 6, 4, 4, 10, 4, 5, 3, 1])[0]
        self.ways[name] += 1
        ways[name]()

    def _accept(self, arrival: Arrival, token: str, output: object) -> None:
        self.promised.append((token, output))
        arrival.answer(202, {"lease_ms": 30_000})

    def _streamed(self, arrival: Arrival, line: object) -> None:
        arrival.begin_stream()
        arrival.line(line)
        arrival.end_stream()

    def _batch(self, arrival: Arrival, items: list[dict[str, Any]]) -> None:
        results: list[dict[str, Any]] = []
        for item in items:
            output = {"nonce": self._saw(item)}
            fate = self.rng.choices(["ok", "fail", "retry", "accepted", "missing"], [60, 12, 8, 12, 8])[0]
            self.ways[f"batch {fate}"] += 1
            if fate == "accepted":
                self.promised.append((item["token"], output))
            if fate != "missing":
                extras: dict[str, dict[str, Any]] = {
                    "ok": {"output": output},
                    "retry": {"after_ms": 2_000},
                    "accepted": {"lease_ms": 30_000},
                }
                results.append({"id": item["id"], "status": fate, **extras.get(fate, {})})
        self.rng.shuffle(results)
        arrival.answer(200, {"results": results})

    async def keep_promises(self) -> None:
        """Call back for what was accepted: in any order, often twice, sometimes too late."""
        self.rng.shuffle(self.promised)
        kept, self.promised = self.promised[: len(self.promised) // 2 + 1], self.promised[len(self.promised) // 2 + 1 :]
        for token, output in kept:
            for _ in range(self.rng.choice([1, 1, 2, 3])):
                reply = await self.node.api.post("/v1/callback", json={"done": output}, headers={"authorization": f"Bearer {token}"})
                assert reply.status_code in (200, 409, 410), reply.text
                self.ways[f"callback {reply.status_code}"] += 1


async def _submit(node: Node, rng: random.Random) -> list[Ack]:
    acks = []
    for n in range(RUNS // 4):
        body = {"workflow": rng.choice(["work", "twice"]), "input": {}, "idempotency_key": f"key {n}"}
        answers = [await node.call("POST", "/v1/runs", body) for _ in range(rng.choice([1, 1, 2]))]
        acks += [Ack(f"key {n}", answer["id"]) for answer in answers]
    runs = [{"workflow": rng.choice(["work", "twice"]), "input": {}, "idempotency_key": f"bulk {n}"} for n in range(RUNS // 2)]
    rows = (await node.call("POST", "/v1/runs/bulk", {"runs": runs}))["rows"]
    acks += [Ack(str(run["idempotency_key"]), row["id"]) for run, row in zip(runs, rows, strict=True)]
    for n in range(RUNS // 4):
        answer = await node.call("POST", "/v1/events", {"type": "storm.rain", "data": n, "idempotency_key": f"event {n}"})
        acks.append(Ack(f"event {n}", answer["event_id"], len(answer["runs"]), event=True))
    return acks


async def _until_over(world: World, rude: Rude, rng: random.Random) -> None:
    """Let time pass in steps until nothing is left, keeping promises on the way; what hangs is left to its deadline."""
    for _ in range(_MOST_STEPS):
        await _answered(world)
        await rude.keep_promises()
        if not await world.database.fetchval("select count(*) from tasks"):
            return
        await world.advance(timedelta(seconds=rng.choice([0.5, 1, 2, 5, 20])))
    left = await world.database.fetch("select run_id, state, epoch, due_at, spared_since, lease_until, deadline from tasks")
    raise AssertionError(f"it never came to an end: it is {world.now}, and there are {[dict(row) for row in left]}")


async def _answered(world: World) -> None:
    """Until every request that was answered is settled: what is open then hangs, and waits for its deadline."""

    async def settled() -> bool:
        for node in world.nodes:
            await node.turn("slots", "timers", "claim")
        held = sum(len(node.runtime.deliveries.open) for node in world.nodes)
        hanging = sum(1 for endpoint in world.endpoints for arrival in endpoint.seen if _hangs(arrival))
        return held <= hanging

    await until(settled)


def _hangs(arrival: Arrival) -> bool:
    return not arrival.answered.is_set() and not arrival.hung_up.is_set()


async def _books(world: World, acks: list[Ack], requests: list[Request]) -> Ledger:
    runs = await world.database.fetch(
        "select r.id, r.status, r.idempotency_key, r.event_id, t.epoch, t.output from run_history r"
        " left join task_history t on t.tenant_id = r.tenant_id and t.run_id = r.id"
    )
    attempts = await world.database.fetch("select run_id, number, status, started_at, finished_at from attempts")
    events = await world.database.fetch("select id, idempotency_key from events")
    live = await world.database.fetchval("select (select count(*) from tasks) + (select count(*) from runs)")
    return Ledger(
        acks,
        requests,
        [Run(r["id"], r["status"], r["idempotency_key"], r["event_id"], r["epoch"], _nonce(r["output"])) for r in runs],
        [Attempt(*row) for row in attempts],
        {row["id"]: row["idempotency_key"] for row in events},
        int(live),
    )


def _nonce(output: bytes | None) -> str | None:
    document = json.loads(output) if output else None
    return document.get("nonce") if isinstance(document, dict) else None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["plain", "batched"])
async def test_the_books_balance(world: World, one: Node, seed: int, kind: str) -> None:
    rng = random.Random(f"{seed} {kind}")
    endpoint: Endpoint
    if kind == "plain":
        endpoint = await world.endpoint(one, HANDLERS, slots=20)
    else:
        endpoint = await world.discovered(one, manifest(HANDLERS, "batch", "ndjson"), slots=20)
    rude = Rude(world, one, rng)
    endpoint.way = rude
    acks = await _submit(one, rng)
    await _until_over(world, rude, rng)
    ledger = await _books(world, acks, rude.requests)
    assert not (broken := check(ledger)), shown(broken)
    await one.turn("slots", "claim")  # nor has a claim that finds nothing slots set aside
    assert one.runtime.capacity.in_use == {}
    assert one.runtime.capacity.total == 0
    assert len(ledger.runs) >= RUNS
    await _within_budgets(world)


async def _within_budgets(world: World) -> None:
    """No more attempts than there were retries, losses and spared ones; nobody's failure hidden in another's budget."""
    row = await world.database.fetchrow(
        """
        select count(*) filter (where app_retries > 3) as too_many, count(*) filter (where infra_retries > 10) as too_lost,
               count(*) filter (where epoch <> 1 + app_retries + infra_retries + spared) as uneven
        from (select t.*, (select count(*) from attempts a where a.run_id = t.run_id
                           and a.status in ('pushed_back', 'busy', 'unreachable', 'endpoint_broken', 'not_sent')) as spared
              from task_history t) tasks
        """
    )
    assert row is not None
    assert tuple(row) == (0, 0, 0)
