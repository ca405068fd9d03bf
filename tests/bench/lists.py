"""`python -m tests.bench.lists`: every list and search with a million runs and events behind it, and how long its pages take.

    python -m tests.bench.lists [--rows 1000000] [--requests 40]

A server process, a Postgres of its own, a month of history written straight into the tables. Times are a client's: the server's and a
little more. Searches are measured twice: with nothing but the rows, and once the segments are made, which the first search asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import asyncpg

from dispatcher.store import partitions
from dispatcher.store.database import Connection, Database
from tests.bench.client import Client
from tests.bench.system import System, pause, running, workspace

_DAYS = 28
_PATIENCE_SECONDS = 900.0
_BOUND_MS = 200.0


@dataclass(frozen=True, slots=True)
class Taken:
    """Milliseconds of one kind of request, and how many rows its pages held."""

    name: str
    ms: Sequence[float]
    rows: int

    @property
    def p95(self) -> float:
        return sorted(self.ms)[int(len(self.ms) * 0.95)]


@dataclass(slots=True)
class Kept:
    """Ids to ask for."""

    runs: list[str]
    events: list[str]
    talkative: list[str]


async def fill(system: System, count: int, say: Callable[[str], None]) -> Kept:
    """A month of history: runs of events, one in a hundred failed, with tasks, attempts and log lines."""
    now = datetime.now(UTC)
    async with await Database.open(system.dsn) as database:
        await partitions.make(database, (now - timedelta(days=_DAYS)).date(), _DAYS + 7)
    connection: Connection = await asyncpg.connect(system.dsn)
    try:
        await connection.execute("create temporary table made (n int, ulid text, at timestamptz)")
        await connection.execute(_MADE, count, now - timedelta(days=_DAYS), _DAYS * 86_400_000 / count)
        facts = await connection.fetchrow(_FACTS)
        assert facts is not None
        for name, statement in (("events", _EVENTS), ("runs", _RUNS), ("tasks", _TASKS), ("attempts", _ATTEMPTS), ("log lines", _LOGS)):
            say(f"writing {name}")
            await connection.execute(statement, *facts)
        say("vacuum analyze")
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
        sample = "select '{}' || ulid from made where n % 997 = 1 limit 400"
        runs = [row[0] for row in await connection.fetch(sample.format("run_"))]
        events = [row[0] for row in await connection.fetch(sample.format("evt_"))]
        talkative = [row[0] for row in await connection.fetch("select 'run_' || ulid from made where n % 1000 = 0 limit 40")]
    finally:
        await connection.close()
    return Kept(runs, events, talkative)


def lists(kept: Kept, now: datetime) -> dict[str, Callable[[int], str]]:
    """Paths by what they ask for; each is given the number of the request."""
    chance = random.Random(7)

    def moment(days: float) -> str:
        return quote((now - timedelta(days=days)).isoformat())

    return {
        "runs": lambda _: "/v1/runs?limit=50",
        "runs, failed": lambda _: "/v1/runs?status=failed&limit=50",
        "runs, running": lambda _: "/v1/runs?status=running",
        "runs of a workflow": lambda n: f"/v1/runs?workflow=noop-{('single', 'batched')[n % 2]}",
        "runs of a workflow, failed": lambda _: "/v1/runs?workflow=noop-single&status=failed",
        "runs by metadata": lambda n: f"/v1/runs?metadata=customer:c{n * 31 % 3000}",
        "runs by metadata nobody has": lambda n: f"/v1/runs?metadata=customer:x{n}",
        "runs of an event": lambda _: f"/v1/runs?event_id={chance.choice(kept.events)}",
        "runs of a parent": lambda _: f"/v1/runs?parent_run_id={chance.choice(kept.runs)}",
        "runs of an endpoint": lambda _: "/v1/runs?endpoint=single",
        "runs of a day": lambda n: f"/v1/runs?since={moment(n % 25 + 1)}&until={moment(n % 25)}",
        "runs before a month": lambda _: f"/v1/runs?until={moment(27)}",
        "a run": lambda _: f"/v1/runs/{chance.choice(kept.runs)}",
        "events": lambda _: "/v1/events?limit=50",
        "events of a type": lambda n: f"/v1/events?type=bench:{n % 50}",
        "events of a rare type": lambda _: "/v1/events?type=nobody",
        "events by metadata": lambda n: f"/v1/events?metadata=customer:c{n * 31 % 3000}",
        "events of a day": lambda n: f"/v1/events?since={moment(n % 25 + 1)}&until={moment(n % 25)}",
        "an event": lambda _: f"/v1/events/{chance.choice(kept.events)}",
        "an event's runs": lambda _: f"/v1/events/{chance.choice(kept.events)}/runs",
        "logs of a run": lambda n: f"/v1/runs/{kept.talkative[n % len(kept.talkative)]}/logs",
        "logs of a run, searched": lambda n: f"/v1/runs/{kept.talkative[n % len(kept.talkative)]}/logs?search=number%20{n}",
        "logs": lambda _: "/v1/logs?limit=50",
        "logs, errors": lambda _: "/v1/logs?level=error&limit=50",
        "logs, searched": lambda n: f"/v1/logs?search=number%20{n}",
        "logs, searched in vain": lambda n: f"/v1/logs?search=nothing{n}",
    }


SEARCHES: dict[str, Callable[[int], str]] = {
    "a word of every row": lambda _: "/v1/runs?q=bench",
    "a word of one row in a thousand": lambda n: f"/v1/runs?q=word{n * 7 % 1000}",
    "a word of one row": lambda n: f"/v1/runs?q=only{n * 9973 + 1}",
    "a value at a path": lambda n: f"/v1/runs?q=customer.id:{n * 31 % 3000}",
    "a word nobody wrote": lambda n: f"/v1/runs?q=nobody{n}",
    "two words, never together": lambda n: f"/v1/runs?q=word{n % 1000}+word{(n + 1) % 1000}",
    "failed, with a word": lambda n: f"/v1/runs?status=failed&q=word{n * 7 % 1000}",
    "events with a word": lambda n: f"/v1/events?q=word{n * 7 % 1000}",
    "events with a word of one row": lambda n: f"/v1/events?q=only{n * 9973 + 1}",
    "events with a value at a path": lambda n: f"/v1/events?q=customer.id:{n * 31 % 3000}",
    "events with a word nobody wrote": lambda n: f"/v1/events?q=nobody{n}",
}


async def measure(client: Client, paths: dict[str, Callable[[int], str]], requests: int) -> list[Taken]:
    """Each path asked for so many times, after one that does not count."""
    loop, taken = asyncio.get_running_loop(), []
    for name, path in paths.items():
        await client.expect("GET", path(0))
        times, rows = [], 0
        for n in range(1, requests + 1):
            begun = loop.time()
            document = await client.expect("GET", path(n))
            times.append((loop.time() - begun) * 1000)
            rows += len(document.get("rows", [document]))
        taken.append(Taken(name, times, rows))
    return taken


async def pages(client: Client, path: str, count: int) -> Taken:
    """The first pages of a list, each by the cursor of the one before."""
    loop, times, rows, cursor = asyncio.get_running_loop(), [], 0, ""
    for _ in range(count):
        begun = loop.time()
        document = await client.expect("GET", f"{path}{cursor}")
        times.append((loop.time() - begun) * 1000)
        rows += len(document["rows"])
        cursor = f"&cursor={document['next_cursor']}"
    return Taken(f"{path} by cursors", times, rows)


async def segments_made(system: System) -> float:
    """Seconds until every index that was asked for is complete."""
    connection: Connection = await asyncpg.connect(system.dsn)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        while await connection.fetchval("select count(*) from search_indexes where not complete"):
            if loop.time() - begun > _PATIENCE_SECONDS:
                raise RuntimeError("the segments were not made")
            await pause(0.5)
        await connection.execute("vacuum analyze search_segments")
        sizes = await connection.fetchrow(_SIZES)
        assert sizes is not None
        print(f"segments: {sizes[0]:,} in {sizes[1]}; bodies: {sizes[2]}")
    finally:
        await connection.close()
    return loop.time() - begun


def table(taken: Sequence[Taken]) -> Iterator[str]:
    """Rows of the report."""
    for one in taken:
        late = "" if one.p95 < _BOUND_MS else "  OVER"
        yield f"{one.name:38} {statistics.median(one.ms):8.1f} {one.p95:8.1f} {max(one.ms):8.1f}  {one.rows:6}{late}"


async def bench(rows: int, requests: int, say: Callable[[str], None]) -> bool:
    """Measure and print; whether every p95 is below the bound."""
    async with workspace() as directory, running(directory, "v1a") as system:
        kept = await fill(system, rows, say)
        client = system.client()
        taken = await measure(client, lists(kept, datetime.now(UTC)), requests)
        taken += [await pages(client, "/v1/runs?limit=100", requests), await pages(client, "/v1/events?limit=100", requests)]
        read = await measure(client, SEARCHES, max(3, requests // 4))
        seconds = await segments_made(system)
        found = await measure(client, SEARCHES, requests)
        client.close()
    print(f"\n{rows:,} runs and as many events{'':8}   median      p95      max    rows  (milliseconds)")
    print("\n".join(table(taken)))
    print("\nsearches by reading")
    print("\n".join(table(read)))
    print(f"\nsearches by segments (made in {seconds:.0f} s beside the measuring)")
    print("\n".join(table(found)))
    return all(one.p95 < _BOUND_MS for one in (*taken, *read, *found))


_MADE = """
    insert into made
    select n, (select string_agg(substr('0123456789abcdefghjkmnpqrstvwxyz', ((ms >> (45 - 5 * k)) & 31)::int + 1, 1), '' order by k)
               from generate_series(0, 9) k) || substr(md5(n::text), 1, 16), to_timestamp(ms / 1000.0)
    from (select n, (extract(epoch from $2::timestamptz) * 1000)::bigint + (n * $3::float8)::bigint as ms
          from generate_series(1, $1::int) n) moments
"""
_FACTS = """
    select e.tenant_id, e.id, e.version, array_agg(w.id order by w.name) from endpoints e
    join workflows w on w.tenant_id = e.tenant_id and w.name in ('noop-single', 'noop-batched')
    where e.name = 'single' group by 1, 2, 3
"""
_BODY = """convert_to(format('{"bench": true, "note": "word%s only%s", "customer": {"id": %s, "name": "Ann \\u00d6z"}, "text": "%s"}',
                             n % 1000, n, n % 3000, repeat(md5(n::text) || ' ', 3)), 'UTF8')"""
_EVENTS = f"""
    insert into events (tenant_id, id, type, data, metadata, stream_id, runs, created_at)
    select $1, 'evt_' || ulid, 'bench:' || n % 50, {_BODY}, jsonb_build_object('customer', 'c' || n % 3000), 'str_' || ulid, 1, at
    from made where $2::text <> '' and $3::text <> '' and $4::int[] is not null order by n
"""
_RUNS = f"""
    insert into run_history (tenant_id, id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id, stream_id,
                             created_at, started_at, finished_at)
    select $1, 'run_' || ulid, ($4::int[])[1 + n % 2], 1, case when n % 100 = 0 then 'failed' else 'succeeded' end, {_BODY},
           jsonb_build_object('customer', 'c' || n % 3000), 1, 'event', 'evt_' || ulid, 'str_' || ulid, at, at,
           at + interval '5 milliseconds'
    from made where $2::text <> '' and $3::text <> '' order by n
"""
_TASKS = """
    insert into task_history (tenant_id, run_id, node, status, output, output_type, epoch, app_retries, infra_retries, endpoint_id,
                              endpoint_version, started_at, finished_at)
    select $1, 'run_' || ulid, 0, case when n % 100 = 0 then 'failed' else 'succeeded' end, convert_to('{"n": ' || n || '}', 'UTF8'),
           'application/json', 1, 0, 0, $2, $3, at, at + interval '5 milliseconds'
    from made where $4::int[] is not null order by n
"""
_ATTEMPTS = """
    insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, endpoint_id, endpoint_version, started_at,
                          finished_at)
    select $1, 'run_' || ulid, 0, 1, case when n % 100 = 0 then 'failed' else 'succeeded' end, 200, 3, $2, $3, at,
           at + interval '5 milliseconds'
    from made where $4::int[] is not null order by n
"""
_LOGS = """
    insert into logs (tenant_id, run_id, node, attempt, at, level, message)
    select $1, 'run_' || ulid, 0, 1, at, case when k % 500 = 0 then 'error' else 'info' end, 'line number ' || k || ' of a run'
    from made, generate_series(1, 1000) k where n % 1000 = 0 and $2::text <> '' and $3::text <> '' and $4::int[] is not null order by n, k
"""
_SIZES = """
    select count(*), pg_size_pretty(pg_total_relation_size('search_segments')),
           (select pg_size_pretty(sum(pg_total_relation_size(inhrelid))) from pg_inherits where inhparent = 'run_history'::regclass)
    from search_segments
"""


def main() -> None:
    """Measure, print, and fail when a p95 is not below the bound."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lists", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=40)
    arguments = parser.parse_args()
    good = asyncio.run(bench(arguments.rows, arguments.requests, lambda text: print(text, file=sys.stderr, flush=True)))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
