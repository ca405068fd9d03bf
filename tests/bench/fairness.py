"""(fair) whether fifty runs take long because many others wait: of another tenant, and of another concurrency group of one workflow.

Each run takes 20 ms at its endpoint. The other tenant's crowd is queued before anything of it starts; its endpoint has as many slots as one
gets that names no number, and then so many that the crowd takes all the machine has.
"""

from __future__ import annotations

import asyncio
import base64
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dispatcher.api.credentials import new_token
from dispatcher.runtime.keyring import Keyring
from dispatcher.sealing import Sealer
from dispatcher.store import registry, tokens
from dispatcher.store.database import Database
from tests.bench.client import Client
from tests.bench.endpoint import GATES, SLOTS
from tests.bench.loads import BULK_IN_FLIGHT, Recorded, chunks, clients, names
from tests.bench.system import System, free_port, start_endpoint

FEW = 50
_SLOTS = 100
_PLAIN = "gates-busy"
_LIMITED = "gates-fair"  # ten of a group at a time


@dataclass(frozen=True, slots=True)
class Fairness:
    """Seconds in which fifty runs finish, several times: alone, and while a crowd is served."""

    what: str
    crowd: int
    alone: list[float]
    behind: list[float]

    @property
    def ratio(self) -> float:
        """How much longer they take at the median."""
        return statistics.median(self.behind) / statistics.median(self.alone)

    def __str__(self) -> str:
        alone, behind = statistics.median(self.alone), statistics.median(self.behind)
        most = max(self.behind)
        return (
            f"fifty {self.what} {self.crowd:,}: {alone:.3f} s alone, {behind:.3f} s behind them ({self.ratio:.2f} ×; at most {most:.3f} s)"
        )


async def measure(system: System, crowd: int, times: int) -> list[Fairness]:
    """All of it, the fifty as many `times`; a crowd that fits into all the slots would keep nobody waiting."""
    many = [SLOTS] if crowd > SLOTS else []
    return [*[await tenants(system, crowd, slots, times) for slots in (_SLOTS, *many)], await groups(system, crowd, times)]


async def tenants(system: System, crowd: int, slots: int, times: int) -> Fairness:
    """Fifty runs of one tenant behind those of another."""
    async with _other_tenant(system, slots) as other:
        return await _measured(f"runs of a tenant behind another's, with {slots:,} slots,", system, other, _PLAIN, crowd, times)


async def groups(system: System, crowd: int, times: int) -> Fairness:
    """Fifty runs of one concurrency group behind those of another."""
    return await _measured("runs of a group behind another's", system, system, _LIMITED, crowd, times)


async def _measured(what: str, system: System, other: System, flavour: str, crowd: int, times: int) -> Fairness:
    async with clients(system, 1) as (client,), clients(other, BULK_IN_FLIGHT) as crowded, Recorded.of(system) as recorded:
        await _fifty(client, flavour, recorded)
        alone = [await _fifty(client, flavour, recorded) for _ in range(times)]
        if other is not system:
            await crowded[0].expect("PATCH", f"/v1/workflows/noop-{flavour}", {"paused": True})
        feed = iter(chunks(names(crowd)))
        await asyncio.gather(*[_enqueue(one, flavour, feed) for one in crowded])
        if other is not system:
            await crowded[0].expect("PATCH", f"/v1/workflows/noop-{flavour}", {"paused": False})
        before = await recorded.live(flavour)
        behind = [took async for took in _while_others_wait(client, flavour, recorded, times)]
        assert before > crowd * 0.9, f"only {before:,} of {crowd:,} were waiting"
        assert behind, "the crowd was served before the fifty were"
        await crowded[0].expect("POST", "/v1/runs/cancel", {"filter": {"workflow": f"noop-{flavour}"}})
        await recorded.all(flavour)
    return Fairness(what, crowd, alone, behind)


async def _while_others_wait(client: Client, flavour: str, recorded: Recorded, times: int) -> AsyncIterator[float]:
    for _ in range(times):
        took = await _fifty(client, flavour, recorded)
        if not await recorded.live(flavour):
            return
        yield took


async def _enqueue(client: Client, flavour: str, feed: Iterator[list[str]]) -> None:
    for chunk in feed:
        await _start(client, flavour, chunk, "crowd")


async def _start(client: Client, flavour: str, wanted: list[str], key: str) -> list[str]:
    runs = [{"workflow": f"noop-{flavour}", "input": {"id": name, "key": key}} for name in wanted]
    return [row["id"] for row in (await client.expect("POST", "/v1/runs/bulk", {"runs": runs}))["rows"]]


async def _fifty(client: Client, flavour: str, recorded: Recorded) -> float:
    """Seconds from the call that starts them until the last is recorded as over."""
    wanted, began = names(FEW), time.monotonic()
    ids = await _start(client, flavour, wanted, "few")
    await recorded.over(ids)
    return time.monotonic() - began


@asynccontextmanager
async def _other_tenant(system: System, slots: int) -> AsyncIterator[System]:
    """The server as another tenant sees it, which has an endpoint of its own."""
    async with AsyncExitStack() as stack:
        made, now = new_token(), datetime.now(UTC)
        async with await Database.open(system.dsn, min_size=1) as database:
            tenant = await registry.create_tenant(database, "crowd", "Crowd", now)
            await Keyring(database, Sealer(base64.b64decode(system.master_key))).create_first(tenant.id, now)
            await tokens.create(database, tenant.id, made.public_id, made.secret_hash, "bench", ["*"], now, None)
        other = replace(system, token=made.text, endpoint_port=free_port())
        log, sink = system.directory / "crowd.log", system.directory / "sink.sock"
        await start_endpoint(stack, log, sink, system.port, other.endpoint_port, made.text, DISPATCHER_TENANT=tenant.slug)
        document = await other.register(GATES, slots=slots)
        assert document["verified"] == "v1a", document
        yield other
