"""The loads, as every system beside us is measured: (a) throughput, (b) latency, (e) bulk.

A run counts as done when its handler's body ran. Processor time is read later than that, once every outcome is recorded.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import msgspec

from dispatcher.store.database import Connection
from tests.bench.client import Client
from tests.bench.cpu import machine_ms, resident_mb
from tests.bench.system import System, pause

IN_FLIGHT = 32  # calls the client keeps open in (a)
BULK = 500  # runs in one call of (e)
BULK_IN_FLIGHT = 4
RATE = 10.0  # triggers per second in (b)
_LIMIT_SECONDS = 120.0
_RECORDED_POLL_SECONDS = 0.02
_OVER_POLL_SECONDS = 0.002


@dataclass(slots=True)
class Measured:
    """One load, once. Rates are runs per second, times milliseconds; `cpu` is milliseconds per run by part of the system.

    `foreign` is how many processors others kept busy meanwhile: with more than a little of that, rates say nothing.
    """

    load: str
    runs: int
    rate: float = 0.0
    accepted_rate: float = 0.0
    foreign: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    to_handler: list[float] = field(default_factory=list)
    to_result: list[float] = field(default_factory=list)

    @property
    def cpu_total(self) -> float:
        """Of all processes."""
        return sum(self.cpu.values())


def names(count: int) -> list[str]:
    """Names of runs that no other load used."""
    head = secrets.token_hex(3)
    return [f"{head}.{n}" for n in range(count)]


def chunks(wanted: list[str]) -> list[list[str]]:
    """As many as one bulk call takes, and again."""
    return [wanted[start : start + BULK] for start in range(0, len(wanted), BULK)]


def _body(flavour: str, name: str) -> bytes:
    return msgspec.json.encode({"workflow": f"noop-{flavour}", "input": {"id": name}})


@asynccontextmanager
async def clients(system: System, count: int) -> AsyncIterator[list[Client]]:
    """Connections to the API, open already."""
    opened = [system.client() for _ in range(count)]
    await asyncio.gather(*[client.expect("GET", "/livez") for client in opened])
    try:
        yield opened
    finally:
        for client in opened:
            client.close()


class Recorded:
    """Looks whether anything is left to do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @staticmethod
    @asynccontextmanager
    async def of(system: System) -> AsyncIterator[Recorded]:
        """Looks into the system's database."""
        connection = await asyncpg.connect(system.dsn)
        try:
            yield Recorded(connection)
        finally:
            await connection.close()

    async def live(self, flavour: str) -> int:
        """How many tasks of a flavour are not over."""
        return int(await self._connection.fetchval(_LIVE, f"noop-{flavour}"))

    async def waiting(self) -> int:
        """How many durable tasks are suspended."""
        return int(await self._connection.fetchval("select count(*) from tasks where state = 'waiting'"))

    async def over(self, ids: list[str]) -> None:
        """Wait until these runs are over and recorded. The system is not asked: how soon it answers is another matter."""
        async with asyncio.timeout(_LIMIT_SECONDS):
            while int(await self._connection.fetchval(_OVER, ids)) < len(ids):
                await pause(_OVER_POLL_SECONDS)

    async def all(self, flavour: str) -> None:
        """Wait until every run of a flavour is over and recorded."""
        async with asyncio.timeout(_LIMIT_SECONDS):
            while await self.live(flavour):
                await pause(_RECORDED_POLL_SECONDS)


_LIVE = "select count(*) from tasks join workflows w on w.id = tasks.workflow_id and w.tenant_id = tasks.tenant_id where w.name = $1"
_OVER = "select count(*) from run_history where tenant_id = any(array(select id from tenants)) and id = any($1::text[])"


async def warm_up(system: System, flavour: str) -> None:
    """Ten runs one after another and twenty at once, not counted."""
    async with clients(system, 20) as pool:
        for name in names(10):
            system.sink.expect(1)
            await pool[0].expect("POST", "/v1/runs", {"workflow": f"noop-{flavour}", "input": {"id": name}})
            await system.sink.collected(30)
        system.sink.expect(20)
        wanted = names(20)
        await asyncio.gather(*[_submit(client, iter([_body(flavour, name)])) for client, name in zip(pool, wanted, strict=True)])
        await system.sink.collected(30)


async def _submit(client: Client, bodies: Iterator[bytes], path: str = "/v1/runs") -> None:
    for body in bodies:
        reply = await client.request("POST", path, body)
        if reply.status not in (200, 201):
            raise RuntimeError(f"POST {path}: {reply.status} {reply.body[:500]!r}")


async def throughput(system: System, flavour: str, count: int) -> Measured:
    """(a) `count` runs, each its own call, 32 calls in flight."""
    wanted = names(count)
    bodies = [_body(flavour, name) for name in wanted]
    measured = Measured(f"a {flavour}", count)
    async with clients(system, IN_FLIGHT) as pool:
        feed = iter(bodies)
        await _timed(system, flavour, wanted, measured, lambda: [_submit(client, feed) for client in pool])
    return measured


async def bulk(system: System, flavour: str, count: int) -> Measured:
    """(e) `count` runs in calls of 500."""
    wanted = names(count)
    bodies = [
        msgspec.json.encode({"runs": [{"workflow": f"noop-{flavour}", "input": {"id": name}} for name in chunk]})
        for chunk in chunks(wanted)
    ]
    measured = Measured(f"e {flavour}", count)
    async with clients(system, BULK_IN_FLIGHT) as pool:
        feed = iter(bodies)
        await _timed(system, flavour, wanted, measured, lambda: [_submit(client, feed, "/v1/runs/bulk") for client in pool])
    return measured


async def _timed(
    system: System, flavour: str, wanted: list[str], measured: Measured, submitters: Callable[[], list[Awaitable[None]]]
) -> None:
    """Submit, wait for the handlers, then for the records; fill in rates and processor time."""
    async with Recorded.of(system) as recorded:
        system.sink.expect(len(wanted))
        before, busy, first = system.cpu(), machine_ms(), time.monotonic_ns()
        await asyncio.gather(*submitters())
        accepted = time.monotonic_ns()
        moments = check_once(await system.sink.collected(_LIMIT_SECONDS), wanted)
        await recorded.all(flavour)
        after = system.cpu()
        measured.foreign = foreign(before, after, machine_ms() - busy, time.monotonic_ns() - first)
    measured.rate = len(wanted) / ((max(moments.values()) - first) / 1e9)
    measured.accepted_rate = len(wanted) / ((accepted - first) / 1e9)
    measured.cpu = {part: (after[part] - before[part]) / len(wanted) for part in after}


def foreign(before: dict[str, float], after: dict[str, float], busy_ms: float, elapsed_ns: int) -> float:
    """Processors that others kept busy between two looks."""
    ours = sum(after.values()) - sum(before.values())
    return max(busy_ms - ours, 0.0) / (elapsed_ns / 1e6)


def check_once(moments: dict[str, list[int]], wanted: list[str]) -> dict[str, int]:
    """When each ran. Raises AssertionError unless each ran exactly once."""
    assert set(moments) == set(wanted), f"{len(set(wanted) - set(moments))} never ran"
    assert all(len(stamps) == 1 for stamps in moments.values()), "some ran twice"
    return {name: stamps[0] for name, stamps in moments.items()}


async def latency(system: System, flavour: str, seconds: float) -> Measured:
    """(b) ten triggers a second, each waiting for its result on its own connection."""
    wanted = names(int(RATE * seconds))
    measured = Measured(f"b {flavour}", len(wanted))
    async with clients(system, IN_FLIGHT) as pool:
        system.sink.expect(len(wanted))
        before, begun = system.cpu(), asyncio.get_running_loop().time()
        free, calls = list(pool), []
        for n, name in enumerate(wanted):
            await pause(max(begun + n / RATE - asyncio.get_running_loop().time(), 0))
            calls.append(asyncio.create_task(_one(free, flavour, name)))
        results = dict(zip(wanted, await asyncio.gather(*calls), strict=True))
        moments = check_once(await system.sink.collected(_LIMIT_SECONDS), wanted)
        after = system.cpu()
    measured.rate = RATE
    measured.to_handler = sorted((moments[name] - results[name][0]) / 1e6 for name in wanted)
    measured.to_result = sorted((results[name][1] - results[name][0]) / 1e6 for name in wanted)
    measured.cpu = {part: (after[part] - before[part]) / len(wanted) for part in after}
    return measured


@dataclass(frozen=True, slots=True)
class Idle:
    """A system without work: processor time in per cent of one core by part, and the server's memory in megabytes."""

    cpu: dict[str, float]
    server_mb: float


async def idle(system: System, seconds: float) -> Idle:
    """Nothing, for a while."""
    before, begun = system.cpu(), time.monotonic()
    await pause(seconds)
    after, lasted = system.cpu(), time.monotonic() - begun
    share = {part: (after[part] - before[part]) / (lasted * 10) for part in after if part != "client"}
    return Idle(share, resident_mb(system.parts["server"].trees[0]))


async def _one(free: list[Client], flavour: str, name: str) -> tuple[int, int]:
    """Trigger one run and wait for its result: when the call began and ended."""
    client = free.pop()
    begun = time.monotonic_ns()
    reply = await client.request("POST", "/v1/runs?wait=30s", _body(flavour, name))
    ended = time.monotonic_ns()
    if reply.status != 200 or reply.json()["status"] != "succeeded":
        raise RuntimeError(f"POST /v1/runs?wait=30s: {reply.status} {reply.body[:500]!r}")
    free.append(client)
    return begun, ended


def percentile(ordered: list[float], p: float) -> float:
    """Of sorted values, the one that `p` per cent do not exceed."""
    return ordered[max(math.ceil(p / 100 * len(ordered)) - 1, 0)]
