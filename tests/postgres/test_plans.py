"""Plans made while the live tables were empty do not read all of them once they are full: what a set names is looked up, row by row.

Statements are planned once, and anew when a table has been analyzed, which may be at a moment when it holds nothing. To go through all of
it costs as much as one look-up then, as far as the planner can know.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from dispatcher.store.database import Connection, Database
from tests.postgres.explained import nodes_of
from tests.postgres.test_statements import ALL

LIVE = (
    "tasks", "runs", "waits", "journal", "messages", "gates", "rate_limits", "streams", "idempotency", "crons", "cron_ticks", "schedules",
)  # fmt: skip
READ_ALL = {"gates.AUDIT", "runs.RUNS", "search.OUTDATED", "search.SEGMENTS", "stats.GROUPS"}
"""Lists and counts of all there is, and what somebody does to all of a workflow now and then."""
BY_MARK = {
    "tasks_wake",
    "tasks_due",
    "tasks_overdue",
    "tasks_lease",
    "tasks_cancel",
    "waits_due",
    "waits_look",
    "runs_doomed",
    "gates_wake",
}
"""Indexes of what is to be looked at, which a loop reads from their beginning."""
DUE = {f"tasks.{name}" for name in ("OF_RUNS", "LEASES_ENDED", "HELD_SINCE", "ORPHANS", "OVERDUE", "CANCELS_DUE", "CANCELLING")}
DUE |= {"pausing.BOUND", "pausing.BOUND_RUNS", "pausing.RESUME", "pausing.WAITING", "renewals.TASKS", "renewals.RUNS", "renewals.RETURNED"}
"""What a loop or a cancel looks for among the tasks, in sets as well, though their keys are not what it is told."""
READING = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan")
STATEMENTS = [(where.removeprefix("dispatcher.store."), sql) for where, sql, _ in ALL]
SETS = [(where, sql) for where, sql in STATEMENTS if ("unnest(" in sql and where not in READ_ALL) or where in DUE]

SOME_OF_EACH = """
    insert into runs (tenant_id, id, workflow_id, workflow_version, input, priority, trigger, created_at)
    select 1, 'run_' || n, 1, 1, '{}', 1, 'api', now() from generate_series(1, $1::int) n;
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms)
    select 1, 'run_' || n, 0, 1, 1, 'queued', 1, now(), 1000 from generate_series(1, $1::int) n;
    insert into waits (tenant_id, run_id, node, id, graph, kind, event_key, created_at)
    select 1, 'run_' || n, 0, 'w', false, 'event', 'key', now() from generate_series(1, $1::int) n;
    insert into journal (tenant_id, run_id, node, generation, base, count, entries, at)
    select 1, 'run_' || n, 0, 0, 0, 1, '{}', now() from generate_series(1, $1::int) n;
    insert into messages (tenant_id, run_id, node, data, created_at)
    select 1, 'run_' || n, 0, '1', now() from generate_series(1, $1::int) n;
    insert into events (tenant_id, id, type, data, stream_id, runs, created_at)
    select 1, 'evt_' || n, 'key', '1', 'str_' || n, 0, now() from generate_series(1, $1::int) n;
    insert into gates (tenant_id, id, rule, key, strategy, most)
    select 1, lpad(n::text, 32, '0')::uuid, 'rule', n, 'GROUP_ROUND_ROBIN', 1 from generate_series(1, $1::int) n;
    insert into rate_limits (tenant_id, id, key, fixed, most, duration, window_ms, value, refilled_at, updated_at)
    select 1, lpad(n::text, 32, '0')::uuid, n, true, 1, 'MINUTE', 60000, 1, now(), now() from generate_series(1, $1::int) n;
    insert into streams (tenant_id, id, created_at, updated_at) select 1, 'str_' || n, now(), now() from generate_series(1, $1::int) n;
    insert into idempotency (tenant_id, scope, key, first_id, expires_at)
    select 1, 'run', n, 'run_' || n, now() from generate_series(1, $1::int) n;
    delete from runs; delete from tasks; delete from waits; delete from journal; delete from messages; delete from events;
    delete from gates; delete from rate_limits; delete from streams; delete from idempotency
"""


@pytest.fixture(params=["never analyzed", "analyzed while empty"])
def analyzed(request: pytest.FixtureRequest) -> bool:
    """Whether the planner has looked at the tables when they held nothing."""
    return bool(request.param == "analyzed while empty")


@pytest.fixture(params=[1, 3_000])
async def planner(request: pytest.FixtureRequest, fresh_dsn: str, analyzed: bool) -> AsyncIterator[Connection]:
    """A session that plans as a dispatcher's do, for live tables that have held so many rows and hold nothing."""
    async with await Database.open(fresh_dsn, min_size=0) as database:
        connection = await database._dial()
        try:
            for statement in SOME_OF_EACH.replace("$1", str(request.param)).split(";"):
                await connection.execute(statement)
            if analyzed:
                for table in LIVE:
                    await connection.execute(f"vacuum (analyze, truncate false) {table}")
            yield connection
        finally:
            await connection.close()


def _goes_through(plan: dict[str, Any], indexes: dict[str, tuple[str, str]]) -> list[str]:
    """The live tables a plan reads all of, or all that a tenant has there, and by which way. `indexes` are by name: of which table, and
    the first column behind the tenant, without which an index leads nowhere.
    """
    found = []
    for node in nodes_of(plan):
        way = node.get("Index Name", "")
        table, column = indexes.get(way) or (node.get("Relation Name", ""), "no column")
        if table not in LIVE or way in BY_MARK or node["Node Type"] not in READING:
            continue
        if not re.search(rf"\b{column} ", node.get("Index Cond", "")):
            found.append(f"{table} by {way or 'itself'}")
    return found


async def _plan(connection: Connection, sql: str) -> dict[str, Any]:
    types = [parameter.name for parameter in (await connection.prepare(sql)).get_parameters()]
    await connection.execute(f"prepare looked_at ({', '.join(types)}) as {sql}")
    try:
        nothing = ", ".join(["null"] * len(types))
        text = await connection.fetchval(f"explain (format json) execute looked_at({nothing})")
    finally:
        await connection.execute("deallocate looked_at")
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


_INDEXES = """
    select i.indexrelid::regclass::text, i.indrelid::regclass::text,
           (select a.attname from unnest(i.indkey) with ordinality as k (number, place)
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
            where a.attname <> 'tenant_id' order by k.place limit 1)
    from pg_index i where i.indrelid = any (select name::regclass from unnest($1::text[]) as name)
"""


async def _found(planner: Connection, sets: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    indexes = {row[0]: (row[1], row[2]) for row in await planner.fetch(_INDEXES, LIVE)}
    return {where: _goes_through(await _plan(planner, sql), indexes) for where, sql in sets}


async def test_what_a_set_names_is_looked_up(planner: Connection) -> None:
    found = await _found(planner, SETS)
    assert {where: ways for where, ways in found.items() if ways} == {}
    assert len(found) > 60
    assert found.keys() >= DUE


async def test_a_join_by_equality_alone_would_be_seen(planner: Connection, analyzed: bool) -> None:
    joined = """
        update tasks t set priority = 1 from unnest($1::int[], $2::text[], $3::smallint[]) as g (tenant_id, run_id, node)
        where t.tenant_id = g.tenant_id and t.run_id = g.run_id and t.node = g.node
    """
    by_tenant = """
        update tasks t set priority = 1 from unnest($1::int[], $2::text[]) as g (tenant_id, run_id)
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id || '' = g.run_id
    """
    by_partial_index = """
        update schedules s set priority = 1 from unnest($1::int[], $2::text[]) as g (tenant_id, id)
        where s.tenant_id = g.tenant_id and s.id = g.id and s.status = 'scheduled'
    """
    found = await _found(planner, [("joined", joined), ("by tenant", by_tenant), ("by partial index", by_partial_index)])
    assert found["joined"] == (["tasks by tasks_pkey"] if analyzed else [])
    assert found["by tenant"]
    assert found["by partial index"]
