"""A task whose wait is over is leased at once as by way of its queue, and only if nothing has happened to it since it was looked at."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.engine.admission import Slot
from dispatcher.engine.attempts import Yield
from dispatcher.ids import IdMaker
from dispatcher.store import intake, outcomes, queue, registry, waits
from dispatcher.store.database import Connection, Database
from dispatcher.store.intake import NewRun
from dispatcher.store.outcomes import AttemptFacts, Guard, Outcome, TaskKey
from dispatcher.store.queue import Claimed
from dispatcher.store.waits import Marked
from tests.world.world import until

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
GATE = "00000000-0000-0000-0000-000000000001"
IDS = IdMaker()

SUSPEND = """
    update tasks set state = 'waiting', wake = '"w#0"', wake_at = $2, marks = 3, dispatcher_id = null, endpoint_id = null,
                     endpoint_version = null, started_at = null, deadline = null, schedule_deadline = null, progress = '0.5'
    where run_id = $1
"""
SETTLED = """
    insert into waits (tenant_id, run_id, node, id, graph, kind, created_at, settled_at, outcome, position)
    values ($1, $2, 0, 'w#0', false, 'sleep', $3, $3, 'ok', 1)
"""


class Undone(Exception):  # noqa: N818
    """Ends a transaction that was only to be looked at."""


class _Lane:
    """A connection that stands where the store expects a database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *arguments: object, lane: str = "") -> list[Any]:
        return await self._connection.fetch(sql, *arguments)


@pytest.fixture
async def suspended(database: Database) -> NewRun:
    """A durable task whose wait is over."""
    tenant = await registry.create_tenant(database, "default", "Default", NOW)
    version: int = await database.fetchval("select registry_version from tenants where id = $1", tenant.id)
    run = NewRun(
        tenant.id, version, IDS.make("run", NOW), 1, 1, b'{"a": 1}', '{"k": 1}', 2, "api", None, None, None, None, None, 60_000, 30_000,
        "ep_1", "6", durable=True,
    )  # fmt: skip
    assert await intake.write(database, [], [run], 5, NOW)
    await database.execute(SUSPEND, run.id, NOW)
    await database.execute(SETTLED, tenant.id, run.id, NOW)
    return run


async def _marked(database: Database) -> Marked:
    (marked,) = await waits.marked(database, 10)
    return marked


async def _after(database: Database, way: Callable[[Any], Awaitable[list[Claimed]]]) -> tuple[list[Claimed], list[str]]:
    """What a way to lease answers, and what it would leave."""
    claimed, rows = list[Claimed](), list[str]()
    with contextlib.suppress(Undone):
        async with database.transaction() as conn:
            claimed = await way(_Lane(conn))
            rows = [row[0] for row in await conn.fetch("select to_jsonb(t)::text from tasks t")]
            raise Undone
    return claimed, rows


async def test_it_is_leased_as_by_way_of_its_queue(database: Database, suspended: NewRun) -> None:
    marked = await _marked(database)
    assert (marked.workflow_id, marked.requirement, marked.gated) == (1, "", False)

    async def queued(db: Any) -> list[Claimed]:
        assert await waits.resume(db, [marked], {(marked.tenant_id, marked.run_id, marked.node)}, LATER)
        slot = Slot((marked.tenant_id, -1, ""), 1, (marked.tenant_id, "ep_1~durable"))
        return await queue.claim(db, [slot], {slot.place: "7"}, 5, LATER)

    by_queue = await _after(database, queued)
    at_once = await _after(database, lambda db: waits.lease(db, [(marked, "ep_1", "7", 1)], 5, LATER))
    assert at_once == by_queue
    assert at_once[0][0].epoch == 2


@pytest.mark.parametrize(
    "meanwhile",
    [
        "update tasks set marks = marks + 1",
        "update tasks set state = 'queued', wake = null, wake_at = null",
        f"update tasks set gates = array['{GATE}'::uuid], gate_limits = array[1]",
    ],
    ids=["marked again", "let go by another", "gated"],
)
async def test_it_is_not_when_something_has_happened_to_it(database: Database, suspended: NewRun, meanwhile: str) -> None:
    marked = await _marked(database)
    await database.execute(meanwhile)
    before = await database.fetch("select to_jsonb(t)::text from tasks t")
    assert await waits.lease(database, [(marked, "ep_1", "7", 1)], 5, LATER) == []
    assert await database.fetch("select to_jsonb(t)::text from tasks t") == before


ANOTHER = """
    insert into waits (tenant_id, run_id, node, id, graph, kind, created_at) values ($1, $2, 0, 'w#1', false, 'sleep', $3)
"""
RUN_AGAIN = """
    update tasks set state = 'running', wake = null, wake_at = null, epoch = 2, dispatcher_id = 5, endpoint_id = 'ep_1',
                     endpoint_version = '7', started_at = $1, deadline = $1
"""
YIELDED = {
    "nothing has happened": ("select 1", False),
    "its wait is over": ("update waits set settled_at = created_at, outcome = 'ok', position = 1 where id = 'w#0'", True),
    "another of its waits is over": ("update waits set settled_at = created_at, outcome = 'ok', position = 1 where id = 'w#1'", True),
    "it waits for messages": ("update waits set kind = 'message' where id = 'w#1'", True),
    "a wait of its graph is over": ("update waits set graph = true, settled_at = created_at, outcome = 'ok' where id = 'w#1'", False),
    "it has been marked in its turn": ("update tasks set wake_at = started_at, marks = 4", True),
}


@pytest.mark.parametrize("why", YIELDED)
async def test_who_begins_to_wait_is_looked_at_if_there_may_be_something_to_see(database: Database, suspended: NewRun, why: str) -> None:
    tenant_id, run_id = suspended.tenant_id, suspended.id
    await database.execute("update waits set settled_at = null, outcome = null, position = null")
    await database.execute(ANOTHER, tenant_id, run_id, NOW)
    await database.execute(RUN_AGAIN, NOW)
    meanwhile, marked = YIELDED[why]
    await database.execute(meanwhile)
    change = Yield("waiting", "suspended", wake=b'"w#0"')
    landed: list[TaskKey] = []
    outcome = Outcome(Guard(tenant_id, run_id, 0, 2, "running"), change, AttemptFacts())
    await outcomes.apply(database, [outcome], LATER, landed.append)
    assert landed == [(tenant_id, run_id, 0)]
    row = await database.fetchrow("select state, wake_at from tasks")
    assert row is not None
    assert (row["state"], row["wake_at"] is not None) == ("waiting", marked)


async def test_a_mark_that_cannot_be_seen_yet_is_kept(database: Database, suspended: NewRun) -> None:
    """Who settles a wait while its turn ends has the row first, and what the turn's end knew of waits is older."""
    await database.execute("update waits set settled_at = null, outcome = null, position = null, due_at = $1", NOW)
    await database.execute(RUN_AGAIN, NOW)
    change = Yield("waiting", "suspended", wake=b'"w#0"')
    outcome = Outcome(Guard(suspended.tenant_id, suspended.id, 0, 2, "running"), change, AttemptFacts())
    async with database.transaction() as conn:
        await conn.fetch(waits.DUE.sql, NOW, 10)
        ending = asyncio.create_task(outcomes.apply(database, [outcome], LATER))
        await until(lambda: _blocked(database))
    await ending
    row = await database.fetchrow("select state, wake_at from tasks")
    assert row is not None
    assert (row["state"], row["wake_at"]) == ("waiting", NOW)


async def _blocked(database: Database) -> bool:
    return bool(await database.fetchval("select count(*) from pg_stat_activity where wait_event_type = 'Lock'"))


async def test_one_with_gates_is_told_of(database: Database, suspended: NewRun) -> None:
    await database.execute(f"update tasks set gates = array['{GATE}'::uuid], gate_limits = array[1]")
    assert (await _marked(database)).gated
