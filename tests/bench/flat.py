"""Whether cost depends on what is stored: the same loads with a hundred thousand runs queued, and with a million finished.

Also the claim itself: the statement as the server runs it, explained on the real tables and rolled back.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import msgspec

from dispatcher.engine.admission import Slot
from dispatcher.store.database import Connection, Database
from dispatcher.store.queue import claim
from tests.bench.client import Client
from tests.bench.loads import Measured, Recorded, check_once, chunks, clients, names
from tests.bench.system import System

BACKLOG = "backlog"
_CLAIMS = 15
_CLAIM_SIZE = 100


@dataclass(frozen=True, slots=True)
class ClaimCost:
    """Claiming a hundred tasks: median milliseconds and pages touched."""

    queued: int
    ms: float
    pages: int


async def enqueue(system: System, count: int) -> list[str]:
    """Pause the backlog's endpoint and queue `count` runs for it; their names."""
    wanted = names(count)
    async with clients(system, 4) as pool:
        await pool[0].expect("PATCH", f"/v1/endpoints/{BACKLOG}", {"paused": True})
        feed = iter(chunks(wanted))

        async def submit(client: Client) -> None:
            for chunk in feed:
                runs = [{"workflow": f"noop-{BACKLOG}", "input": {"id": name}} for name in chunk]
                reply = await client.request("POST", "/v1/runs/bulk", msgspec.json.encode({"runs": runs}))
                if reply.status not in (200, 201):
                    raise RuntimeError(f"{reply.status} {reply.body[:500]!r}")

        await asyncio.gather(*[submit(client) for client in pool])
    return wanted


async def drain(system: System, wanted: list[str]) -> Measured:
    """Resume the endpoint; how fast, and for how much, a backlog is claimed and run."""
    measured = Measured(f"drain {len(wanted):,}", len(wanted))
    async with clients(system, 1) as pool, Recorded.of(system) as recorded:
        system.sink.expect(len(wanted))
        before, begun = system.cpu(), asyncio.get_running_loop().time()
        await pool[0].expect("PATCH", f"/v1/endpoints/{BACKLOG}", {"paused": False})
        check_once(await system.sink.collected(300), wanted)
        measured.rate = len(wanted) / (asyncio.get_running_loop().time() - begun)
        await recorded.all(BACKLOG)
        after = system.cpu()
    measured.cpu = {part: (after[part] - before[part]) / len(wanted) for part in after}
    return measured


async def claim_cost(system: System) -> ClaimCost:
    """The claim of a hundred of the backlog, as the store makes it, explained and rolled back, again and again."""
    async with await Database.open(system.dsn) as database:
        await database.execute("vacuum analyze tasks")
        found = [await _explained(database) for _ in range(_CLAIMS)]
        queued = await database.fetchval("select count(*) from tasks where state = 'queued'")
    return ClaimCost(int(queued), statistics.median(ms for ms, _ in found), int(statistics.median(pages for _, pages in found)))


class _Explaining:
    """Stands where the store expects its database: statements are explained instead of answered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.plans: list[dict[str, Any]] = []

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        text = await self._connection.fetchval(f"explain (analyze, buffers, format json) {sql}", *arguments)
        self.plans.append(json.loads(text)[0])
        return []


async def _explained(database: Database) -> tuple[float, int]:
    """(milliseconds, pages touched) of one claim."""
    queue = await database.fetchrow(_QUEUE, f"noop-{BACKLOG}")
    assert queue is not None
    place, of = (queue["tenant_id"], queue["endpoint_id"]), (queue["tenant_id"], queue["workflow_id"], "")
    slots = [Slot(of, ordinal, place) for ordinal in range(1, _CLAIM_SIZE + 1)]
    with suppress(_RolledBack):
        async with database.transaction() as connection:
            explaining = _Explaining(connection)
            await claim(cast(Database, explaining), slots, {place: queue["version"]}, queue["dispatcher_id"], datetime.now(UTC))
            (plan,) = explaining.plans
            raise _RolledBack
    return float(plan["Execution Time"]), int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


class _RolledBack(Exception):  # noqa: N818 - no error: what was explained shall not have happened
    """Leave the transaction without its changes."""


_QUEUE = """
    select w.tenant_id, w.id as workflow_id, r.endpoint_id, e.version, (select max(id) from dispatchers) as dispatcher_id
    from workflows w join routes r on r.workflow_id = w.id and r.tenant_id = w.tenant_id
    join endpoints e on e.id = r.endpoint_id and e.tenant_id = r.tenant_id where w.name = $1
"""


async def fill_history(system: System, count: int) -> None:
    """`count` finished runs with their tasks and attempts, as if they had ended within the last day."""
    connection: Connection = await asyncpg.connect(system.dsn)
    try:
        queue = await connection.fetchrow(_QUEUE, f"noop-{BACKLOG}")
        assert queue is not None
        await connection.execute("create temporary table made (id text, at timestamptz)")
        await connection.execute(_MADE, count, datetime.now(UTC) - timedelta(days=1), 86_400_000 / count)
        for statement in (_RUNS, _TASKS, _ATTEMPTS):
            await connection.execute(statement, queue["tenant_id"], queue["workflow_id"], queue["endpoint_id"], queue["version"])
        await connection.execute("drop table made")
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    finally:
        await connection.close()


# Ids as the server makes them: ten letters of milliseconds in Crockford's base 32, sixteen of chance (hexadecimal digits will do).
_MADE = """
    insert into made
    select 'run_' || (select string_agg(substr('0123456789abcdefghjkmnpqrstvwxyz', ((ms >> (45 - 5 * k)) & 31)::int + 1, 1), '' order by k)
                      from generate_series(0, 9) k) || substr(md5(n::text), 1, 16),
           to_timestamp(ms / 1000.0)
    from (select n, (extract(epoch from $2::timestamptz) * 1000)::bigint + (n * $3::float8)::bigint as ms
          from generate_series(1, $1::int) n) moments
"""
_RUNS = """
    insert into run_history (tenant_id, id, workflow_id, workflow_version, status, input, priority, trigger, created_at, started_at,
                             finished_at)
    select $1, id, $2, 1, 'succeeded', '{"id": "x"}'::bytea, 1, 'api', at, at, at + interval '5 milliseconds' from made
    where $3::text is not null and $4::text is not null
"""
_TASKS = """
    insert into task_history (tenant_id, run_id, node, status, output, epoch, app_retries, infra_retries, endpoint_id, endpoint_version,
                              started_at, finished_at)
    select $1, id, 0, 'succeeded', '{"id": "x"}'::bytea, 1, 0, 0, $3, $4, at, at + interval '5 milliseconds' from made
    where $2::int is not null
"""
_ATTEMPTS = """
    insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, response, endpoint_id, endpoint_version,
                          started_at, finished_at)
    select $1, id, 0, 1, 'succeeded', 200, 3, '{"id": "x"}'::bytea, $3, $4, at, at + interval '5 milliseconds' from made
    where $2::int is not null
"""
