"""Lists of events, of attempts of an event's runs and of log lines read little, however much there is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from dispatcher.ids import IdMaker
from dispatcher.store import events, logs
from dispatcher.store.database import Database
from dispatcher.store.events import EVENT_RUNS, EVENTS, EventFilter
from dispatcher.store.logs import LINES, TENANT_LINES, LineFilter
from dispatcher.store.runs import PLAN_FOR_VALUES, has_metadata
from tests.postgres.test_runs import MOST, Spy, touched

NOW = datetime(2026, 6, 30, tzinfo=UTC)
COUNT = 30_000
EVENT, RUN = IdMaker().make("evt", NOW), IdMaker().make("run", NOW)

# Two tenants, one with a tenth of it all. Every fiftieth event has a type of its own kind, every hundredth a scope, every thousandth has
# started nothing; one event has started a thousand runs of two attempts each. One run has logged half of all lines, every five-hundredth
# line is an error.
SEED = """
with t as (
    insert into tenants (slug, name, created_at) values ('many', 'many', $1), ('few', 'few', $1) returning id, slug
), w as (
    insert into workflows (tenant_id, name, version, created_at, updated_at) select id, 'w', 1, $1, $1 from t returning tenant_id, id
), e as (
    insert into events (tenant_id, id, type, data, metadata, scope, stream_id, runs, created_at)
    select t.id, 'evt_0' || lpad(n::text, 25, '0'), case when n % 50 = 0 then 'rare' else 'usual:' || n % 5 end, '{}',
           jsonb_build_object('customer', 'c' || n % 3000), case when n % 100 = 0 then 's' || n % 1000 end, 'str_' || n,
           case when n % 1000 = 0 then 0 else 1 end, $1 - (($2::int - n) || ' seconds')::interval
    from generate_series(1, $2::int) n join t on t.slug = case when n % 10 = 0 then 'few' else 'many' end
), l as (
    insert into logs (tenant_id, run_id, node, attempt, at, level, message)
    select t.id, case when n % 2 = 0 then $4 else 'run_0' || lpad((n % 100)::text, 25, '0') end, 0, 1,
           $1 + (n || ' milliseconds')::interval, case when n % 500 = 0 then 'error' else 'info' end, 'line ' || n
    from generate_series(1, $2::int) n join t on t.slug = 'many' order by n
), r as (
    insert into run_history (tenant_id, id, workflow_id, workflow_version, status, input, priority, trigger, event_id, created_at,
                             started_at, finished_at)
    select t.id, 'run_0' || lpad(n::text, 25, '0'), w.id, 1, 'succeeded', '{}', 1, 'event',
           case when n <= 1000 then $3 else 'evt_0' || lpad(n::text, 25, '0') end, $1, $1, $1
    from generate_series(1, $2::int) n join t on t.slug = 'many' join w on w.tenant_id = t.id returning tenant_id, id
), k as (
    insert into task_history (tenant_id, run_id, node, status, epoch, app_retries, infra_retries, endpoint_id, endpoint_version, started_at,
                              finished_at)
    select tenant_id, id, 0, 'succeeded', 2, 1, 0, 'ep_0', '', $1, $1 from r returning tenant_id, run_id
)
insert into attempts (tenant_id, run_id, node, number, status, endpoint_id, endpoint_version, started_at, finished_at)
select tenant_id, run_id, 0, number, case number when 2 then 'succeeded' else 'failed' end, 'ep_0', '', $1, $1
from k, generate_series(1, 2) number
"""


@pytest.fixture(scope="module")
async def much(filled: Database) -> Database:
    """A store of which planner and vacuum know."""
    await filled.execute(SEED, NOW, COUNT, EVENT, RUN)
    for table in ("events", "logs", "run_history", "task_history", "attempts", "workflows"):
        await filled.execute(f"vacuum analyze {table}")
    return filled


async def _tenant(database: Database, slug: str) -> int:
    return cast(int, await database.fetchval("select id from tenants where slug = $1", slug))


async def _read(database: Database, sql: str, asked: tuple[Any, ...], *, for_values: bool) -> int:
    """Rows that are read for a page, by the plan it is read with."""
    async with database.transaction() as conn:
        if for_values:
            await conn.execute(PLAN_FOR_VALUES)
        plan = json.loads(await conn.fetchval("explain (analyze, costs off, timing off, format json) " + sql, *asked))[0]["Plan"]
    return touched(plan)


LISTS: list[tuple[str, str, EventFilter]] = [
    ("many", "all", EventFilter()),
    ("few", "all of a small tenant", EventFilter()),
    ("many", "a type", EventFilter(type="usual:1")),
    ("few", "a rare type", EventFilter(type="rare")),
    ("many", "a type nobody sends", EventFilter(type="nobody")),
    ("few", "a scope", EventFilter(scope="s100")),
    ("many", "a scope nobody has", EventFilter(scope="nobody")),
    ("few", "unmatched", EventFilter(matched=False)),
    ("many", "unmatched where all matched", EventFilter(matched=False)),
    ("many", "matched", EventFilter(matched=True)),
    ("many", "metadata", EventFilter(metadata=has_metadata([("customer", "c77")]))),
    ("many", "metadata nobody has", EventFilter(metadata=has_metadata([("customer", "x")]))),
    ("many", "the last minute", EventFilter(since=NOW - timedelta(minutes=1))),
    ("few", "unmatched of a type", EventFilter(type="rare", matched=False)),
    ("few", "some ids", EventFilter(among=["evt_0" + "10".rjust(25, "0"), "evt_0" + "20".rjust(25, "0")])),
]


@pytest.mark.parametrize(("slug", "wanted"), [(c[0], c[2]) for c in LISTS], ids=[c[1] for c in LISTS])
async def test_a_page_of_events_reads_little(much: Database, slug: str, wanted: EventFilter) -> None:
    spy = Spy(much, EVENTS.sql)
    await events.page(cast(Database, spy), await _tenant(much, slug), wanted, None, 50)
    assert await _read(much, EVENTS.sql, spy.asked, for_values=True) <= MOST


@pytest.mark.parametrize("after", [("", -1), ("run_0" + "500".rjust(25, "0"), 1)], ids=["first", "in the middle"])
async def test_a_page_of_the_attempts_of_an_event_reads_little(much: Database, after: tuple[str, int]) -> None:
    asked = (await _tenant(much, "many"), EVENT, NOW - timedelta(hours=1), *after, 50, 1_000_000)
    found = EVENT_RUNS.read(await much.fetch(EVENT_RUNS.sql, *asked))
    assert len(found) == 50
    assert await _read(much, EVENT_RUNS.sql, asked, for_values=False) <= MOST


@pytest.mark.parametrize(
    ("wanted", "most"),
    [
        (LineFilter(), 200),
        (LineFilter(levels=["info"]), 200),
        (LineFilter(levels=["error"]), 200),
        (LineFilter(levels=["error", "warning"], search="line"), 200),
        (LineFilter(search="nothing"), 200),
        (LineFilter(since=NOW + timedelta(seconds=29)), 200),
        (LineFilter(until=NOW + timedelta(seconds=1)), 200),
    ],
    ids=str,
)
async def test_a_page_of_a_tenants_lines_reads_no_more_than_it_may(much: Database, wanted: LineFilter, most: int) -> None:
    spy = Spy(much, TENANT_LINES.sql)
    await logs.tenant_lines(cast(Database, spy), await _tenant(much, "many"), wanted, None, 50, most)
    assert await _read(much, TENANT_LINES.sql, spy.asked, for_values=True) <= MOST


@pytest.mark.parametrize("wanted", [LineFilter(), LineFilter(search="nothing"), LineFilter(levels=["error"])], ids=str)
async def test_a_page_of_a_runs_lines_reads_no_more_than_it_may(much: Database, wanted: LineFilter) -> None:
    spy = Spy(much, LINES.sql)
    await logs.lines(cast(Database, spy), await _tenant(much, "many"), RUN, wanted, 0, 50, 200)
    assert await _read(much, LINES.sql, spy.asked, for_values=False) <= MOST
