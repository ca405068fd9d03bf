"""Durable loads: (c) tasks of ten steps one after another, fifty outstanding; (d) a parent that waits for a hundred children; and what
ten thousand suspended tasks cost.

In (c) a lane's next task, and in (d) the next parent, begins when the last one's handler has ended, as in the harness peers are measured
by; that all runs have succeeded is looked at afterwards.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.bench.client import Client
from tests.bench.cpu import machine_ms, resident_mb
from tests.bench.endpoint import CHILDREN, STEPS
from tests.bench.loads import Measured, Recorded, check_once, chunks, clients, foreign, names
from tests.bench.sink import Follower
from tests.bench.system import System, pause

OUTSTANDING = 50
ROUNDS = 8
_LIMIT_SECONDS = 120.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Suspended:
    """What `tasks` suspended tasks cost: the server's memory before and with them, and the processors' share while they sleep."""

    tasks: int
    before_mb: float
    with_mb: float
    idle_percent: float


@asynccontextmanager
async def following(system: System) -> AsyncIterator[Follower]:
    """Hear of every body that runs, as it does."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ran"
        follower = Follower(path)
        system.sink.follow(path)
        try:
            yield follower
        finally:
            follower.close()


async def _begin(client: Client, workflow: str, feed: Iterator[str], follower: Follower, run_ids: list[str]) -> None:
    for name in feed:
        ran = follower.ran(name)
        body = msgspec.json.encode({"workflow": workflow, "input": {"id": name}})
        reply = await client.request("POST", "/v1/runs", body)
        if reply.status != 201:
            raise RuntimeError(f"a durable run was not taken: {reply.status} {reply.body[:500]!r}")
        run_ids.append(msgspec.json.decode(reply.body)["id"])
        async with asyncio.timeout(_LIMIT_SECONDS):
            await ran


async def _all_succeeded(client: Client, run_ids: list[str]) -> None:
    for run_id in run_ids:
        document = await client.expect("GET", f"/v1/runs/{run_id}?wait=30s")
        if document.get("status") != "succeeded":
            raise RuntimeError(f"a durable run did not succeed: {document.get('status')} {document.get('error')}")


async def steps(system: System, flavour: str, tasks: int) -> Measured:
    """(c) `tasks` tasks of ten steps, 50 outstanding. `runs` and `rate` count steps."""
    wanted = names(tasks)
    measured = Measured(f"c {flavour}", tasks * STEPS)
    async with following(system) as follower, clients(system, OUTSTANDING) as pool:
        system.sink.expect(tasks)
        feed, run_ids = iter(wanted), list[str]()
        before, busy, first = system.cpu(), machine_ms(), time.monotonic_ns()
        await asyncio.gather(*[_begin(client, f"steps-{flavour}", feed, follower, run_ids) for client in pool])
        moments = check_once(await system.sink.collected(_LIMIT_SECONDS), wanted)
        after = system.cpu()
        measured.foreign = foreign(before, after, machine_ms() - busy, time.monotonic_ns() - first)
        await _all_succeeded(pool[0], run_ids)
    measured.rate = measured.runs / ((max(moments.values()) - first) / 1e9)
    measured.cpu = {part: (after[part] - before[part]) / measured.runs for part in after}
    return measured


async def fanout(system: System, flavour: str, rounds: int = ROUNDS) -> Measured:
    """(d) one parent of a hundred children at a time, after one that is not counted. `runs` counts children, times are the parent's."""
    measured, run_ids = Measured(f"d {flavour}", CHILDREN * rounds), list[str]()
    async with following(system) as follower, clients(system, 1) as (client,):
        await _parent(system, client, flavour, follower, measured, run_ids)
        measured.to_handler.clear()
        before, busy, first = system.cpu(), machine_ms(), time.monotonic_ns()
        for _ in range(rounds):
            await _parent(system, client, flavour, follower, measured, run_ids)
        elapsed = time.monotonic_ns() - first
        after = system.cpu()
        measured.foreign = foreign(before, after, machine_ms() - busy, elapsed)
        await _all_succeeded(client, run_ids)
    measured.to_handler.sort()
    measured.rate = measured.runs / (elapsed / 1e9)
    measured.cpu = {part: (after[part] - before[part]) / measured.runs for part in after}
    return measured


async def _parent(system: System, client: Client, flavour: str, follower: Follower, measured: Measured, run_ids: list[str]) -> None:
    (name,) = names(1)
    system.sink.expect(1)
    first = time.monotonic_ns()
    await _begin(client, f"fanout-{flavour}", iter([name]), follower, run_ids)
    moments = check_once(await system.sink.collected(_LIMIT_SECONDS), [name])
    measured.to_handler.append((moments[name] - first) / 1e6)


async def suspended(system: System, tasks: int, seconds: float) -> Suspended:
    """Let so many tasks fall asleep, and see what that costs."""
    (server,) = system.parts["server"].trees
    before = resident_mb(server)
    wanted = names(tasks)
    async with clients(system, 4) as pool:
        for some in chunks(wanted):
            body = msgspec.json.encode({"runs": [{"workflow": "asleep-batched", "input": {"id": name}} for name in some]})
            await pool[0].request("POST", "/v1/runs/bulk", body)
        async with Recorded.of(system) as recorded, asyncio.timeout(_LIMIT_SECONDS):
            while await recorded.waiting() < tasks:
                await pause(_POLL_SECONDS)
    await pause(2.0)
    used, began = system.cpu(), time.monotonic_ns()
    await pause(seconds)
    spent = system.cpu()
    share = (spent["server"] - used["server"] + spent["postgres"] - used["postgres"]) / ((time.monotonic_ns() - began) / 1e6)
    return Suspended(tasks, before, resident_mb(server), share * 100)
