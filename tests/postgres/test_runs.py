"""Lists of runs read little, however much there is: the plans are made on a store with many rows and then looked at."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from dispatcher.ids import IdMaker
from dispatcher.store import runs
from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import RUNS, RunFilter, has_metadata

NOW = datetime(2026, 6, 30, tzinfo=UTC)
FINISHED, LIVE = 30_000, 10_000
MOST = 700  # rows a page of 50 may read: a small multiple of what it shows

# Two tenants, five workflows; every hundredth finished run failed, every thousandth live one is running. Ids are as old as their runs.
SEED = """
with t as (
    insert into tenants (slug, name, created_at) values ('many', 'many', $1), ('few', 'few', $1) returning id, slug
), w as (
    insert into workflows (tenant_id, name, version, created_at, updated_at)
    select t.id, 'w' || n, 1, $1, $1 from t, generate_series(0, 4) n returning tenant_id, id, name
), over as (
    insert into run_history (tenant_id, id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id,
                             created_at, started_at, finished_at)
    select t.id, 'run_0' || lpad(n::text, 25, '0'), (select w.id from w where w.tenant_id = t.id and w.name = case when n % 50 = 0 then 'w1'
           else 'w0' end), 1, case when n % 100 = 0 then 'failed' else 'succeeded' end, '{}',
           jsonb_build_object('customer', 'c' || n % 3000), 1, 'api', case when n % 1000 = 0 then 'evt_' || n end,
           $1 - (($2::int - n) || ' seconds')::interval, $1, $1 - (($2::int - n) || ' seconds')::interval
    from generate_series(1, $2::int) n join t on t.slug = case when n % 10 = 0 then 'few' else 'many' end
), live as (
    insert into runs (tenant_id, id, workflow_id, workflow_version, input, priority, trigger, created_at)
    select t.id, 'run_1' || lpad(n::text, 25, '0'), (select w.id from w where w.tenant_id = t.id and w.name = 'w0'), 1, '{}', 1, 'api', $1
    from generate_series(1, $3::int) n join t on t.slug = 'many' returning tenant_id, id, workflow_id
)
insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms, epoch, lease_until)
select tenant_id, id, 0, workflow_id, 1, case when right(id, 3) = '000' then 'running' else 'queued' end, 1, $1, 1000, 1,
       case when right(id, 3) = '000' then $1::timestamptz end
from live
"""


class Spy:
    """A database that keeps what it is asked in one statement, in a transaction or without."""

    def __init__(self, database: Database, sql: str = RUNS.sql) -> None:
        self.database = database
        self.sql = sql
        self.asked: tuple[Any, ...] = ()
        self.connection: Connection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Spy]:
        async with self.database.transaction() as self.connection:
            yield self

    async def execute(self, sql: str, *args: Any) -> str:
        assert self.connection is not None
        return await self.connection.execute(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        assert self.connection is not None
        return await self.connection.fetchval(sql, *args)

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        if sql == self.sql:
            self.asked = args
        return cast(list[Any], await (self.connection or self.database).fetch(sql, *args))


@pytest.fixture(scope="module")
async def many(filled: Database) -> Database:
    """A store with 30,000 finished and 10,000 live runs, of which planner and vacuum know."""
    await filled.execute(SEED, NOW, FINISHED, LIVE)
    for table in ("run_history", "runs", "tasks", "task_history", "attempts", "workflows"):
        await filled.execute(f"vacuum analyze {table}")
    return filled


def touched(node: dict[str, Any]) -> int:
    """Rows a plan read from tables and indexes, those it threw away included."""
    own = 0
    if node["Node Type"].endswith(("Scan", "Heap Scan")) and not node.get("Plans"):
        own = int(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0))
            * node["Actual Loops"]
        )
    return own + sum(touched(child) for child in node.get("Plans", ()))


CASES: list[tuple[str, str, RunFilter]] = [
    ("many", "all", RunFilter()),
    ("many", "a workflow", RunFilter(workflow="w0")),
    ("few", "a rare workflow", RunFilter(workflow="w1")),
    ("few", "a workflow without runs", RunFilter(workflow="w4")),
    ("many", "an unknown workflow", RunFilter(workflow="nope")),
    ("few", "failed", RunFilter(statuses=["failed"])),
    ("many", "cancelled", RunFilter(statuses=["cancelled"])),
    ("few", "failed ones of a workflow that never fails", RunFilter(workflow="w4", statuses=["failed"])),
    ("few", "failed ones of a workflow", RunFilter(workflow="w1", statuses=["failed"])),
    ("few", "failed ones of a large workflow that never fails", RunFilter(workflow="w0", statuses=["failed"])),
    ("few", "ones of a large workflow that did not succeed", RunFilter(workflow="w0", statuses=["failed", "cancelled"])),
    ("few", "some ids", RunFilter(among=["run_0" + "1".rjust(25, "0"), "run_0" + "10".rjust(25, "0")])),
    ("many", "succeeded", RunFilter(statuses=["succeeded"])),
    ("many", "running", RunFilter(statuses=["running"])),
    ("few", "running among another tenant's", RunFilter(statuses=["running"])),
    ("many", "queued", RunFilter(statuses=["queued"])),
    ("few", "an event", RunFilter(event_id="evt_1000")),
    ("many", "children of a run that has none", RunFilter(parent_run_id="run_01j00000000000000000000000")),
    ("many", "metadata", RunFilter(statuses=["succeeded"], metadata=has_metadata([("customer", "c77")]))),
    ("many", "metadata nobody has", RunFilter(statuses=["succeeded"], metadata=has_metadata([("customer", "x")]))),
    ("many", "the last minute", RunFilter(statuses=["succeeded"], since=NOW - timedelta(minutes=1))),
]


@pytest.mark.parametrize(("slug", "wanted"), [(c[0], c[2]) for c in CASES], ids=[c[1] for c in CASES])
async def test_a_page_reads_little(many: Database, slug: str, wanted: RunFilter) -> None:
    tenant_id = await many.fetchval("select id from tenants where slug = $1", slug)
    spy = Spy(many)
    found = await runs.page(cast(Database, spy), tenant_id, wanted, None, 50)
    assert all(row.workflow.startswith("w") for row in found)
    async with many.transaction() as conn:
        await conn.execute(runs.PLAN_FOR_VALUES)
        plan = json.loads(await conn.fetchval("explain (analyze, costs off, timing off, format json) " + RUNS.sql, *spy.asked))[0]["Plan"]
    assert touched(plan) <= MOST, json.dumps(plan, indent=1)


async def test_a_page_is_the_newest_first_and_of_one_tenant(many: Database) -> None:
    tenant_id = await many.fetchval("select id from tenants where slug = 'few'")
    first = await runs.page(many, tenant_id, RunFilter(), None, 40)
    second = await runs.page(many, tenant_id, RunFilter(), first[-1].id, 40)
    shown = [row.id for row in first + second]
    expected = await many.fetch("select id from run_history where tenant_id = $1 order by id desc limit 80", tenant_id)
    assert shown == [row["id"] for row in expected]


@pytest.mark.parametrize(
    ("pairs", "predicate"),
    [
        ([], None),
        ([("a", "b")], '($."a" == "b")'),
        ([("a", "5"), ("c", "true")], '($."a" == "5" || $."a" == 5) && ($."c" == "true" || $."c" == true)'),
        ([('q"', "\\")], '($."q\\"" == "\\\\")'),
        ([("a", "1e5")], '($."a" == "1e5")'),
        ([("a", "9" * 40)], f'($."a" == "{"9" * 40}")'),
    ],
)
async def test_metadata_becomes_one_predicate(database: Database, pairs: list[tuple[str, str]], predicate: str | None) -> None:
    assert has_metadata(pairs) == predicate
    if predicate is not None:
        assert await database.fetchval("select $1::jsonpath is not null", predicate)


async def test_ids_that_are_none_are_nowhere(database: Database) -> None:
    assert await runs.get(database, 1, "x") == []
    assert not await runs.exists(database, 1, "run_\x00")
    assert await runs.finished_among(database, 1, ["x", "run_y"]) == []
    assert not await runs.ended_by(database, 1, "x", 0, 1, succeeded=True)


def test_the_first_id_of_a_moment_sorts_between_before_and_after() -> None:
    maker = IdMaker()
    before, after = maker.make("run", NOW - timedelta(milliseconds=1)), maker.make("run", NOW)
    assert before < runs.first_id("run", NOW) <= after
