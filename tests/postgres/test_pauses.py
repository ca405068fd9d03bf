"""Nothing is leased behind a pause or an open circuit, though who leases has not heard of it: what was queued after it is seen with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.engine.admission import Slot
from dispatcher.store import batches, queue, waits
from dispatcher.store.batches import BatchClaim
from dispatcher.store.database import Database
from dispatcher.store.queue import Claimed

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
QUEUE, DURABLE = (1, 1, ""), (1, -1, "")
PAUSES = {
    "nothing": "select 1",
    "the workflow": "update workflows set paused_at = created_at where name = 'work'",
    "its endpoint": "update endpoints set paused = true where id = 'ep_1'",
    "its endpoint's circuit": "update endpoints set circuit = 'open', circuit_since = created_at where id = 'ep_1'",
    "another workflow": "update workflows set paused_at = created_at where name = 'other'",
    "another endpoint": "update endpoints set paused = true, circuit = 'open', circuit_since = created_at where id = 'ep_2'",
}
STOPS = ("the workflow", "its endpoint", "its endpoint's circuit")

REGISTERED = (
    "insert into tenants overriding system value values (1, 'default', 'Default', 1, $1)",
    """
    insert into workflows (tenant_id, id, name, version, created_at, updated_at) overriding system value
    values (1, 1, 'work', 1, $1, $1), (1, 2, 'other', 1, $1, $1)
    """,
    """
    insert into endpoints (tenant_id, id, name, version, slots, labels, static, created_at, updated_at)
    values (1, 'ep_1', 'one', '1', 9, '{}', true, $1, $1), (1, 'ep_2', 'two', '1', 9, '{}', true, $1, $1)
    """,
    """
    insert into runs (tenant_id, id, workflow_id, workflow_version, input, priority, trigger, created_at)
    select 1, name, 1, 1, '{}', 1, 'api', $1 from unnest(array['run_plain_1', 'run_plain_2', 'run_durable']) as name
    """,
    """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, durable, priority, due_at, execution_ms, marks,
                       wake_at, wake)
    select 1, id, 0, 1, 1, case id when 'run_durable' then 'waiting' else 'queued' end, id = 'run_durable', 1, $1, 1000, 1,
           case id when 'run_durable' then $1::timestamptz end, case id when 'run_durable' then '"w#0"'::bytea end from runs
    """,
    """
    insert into waits (tenant_id, run_id, node, id, graph, kind, created_at, settled_at, outcome, position)
    values (1, 'run_durable', 0, 'w#0', false, 'sleep', $1, $1, 'ok', 1)
    """,
)


async def _claim(database: Database) -> list[Claimed]:
    slots = [Slot(QUEUE, ordinal, (1, "ep_1")) for ordinal in (1, 2)]
    return await queue.claim(database, slots, {(1, "ep_1"): "1"}, 5, NOW)


async def _claim_batch(database: Database) -> list[Claimed]:
    wanted = BatchClaim(QUEUE, 2, 2, timedelta(seconds=1), None, "ep_1", "1", 1, "bat_1")
    return await batches.claim(database, wanted, 5, NOW)


async def _lease(database: Database) -> list[Claimed]:
    return await waits.lease(database, [(marked, "ep_1", "1", 1) for marked in await waits.marked(database, 10)], 5, NOW)


WAYS = {"from the queue": (_claim, 2), "as a batch": (_claim_batch, 2), "at the end of a wait": (_lease, 1)}


@pytest.fixture
async def registered(database: Database) -> None:
    """Two workflows, two endpoints, two tasks that are ready and one whose wait is over."""
    for statement in REGISTERED:
        await database.execute(statement, NOW)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("paused", PAUSES)
@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_leased_behind_a_pause(database: Database, way: str, paused: str) -> None:
    lease: Callable[[Database], Awaitable[list[Claimed]]]
    lease, all_of_them = WAYS[way]
    await database.execute(PAUSES[paused])
    assert len(await lease(database)) == (0 if paused in STOPS else all_of_them)
    running = await database.fetchval("select count(*) from tasks where state = 'running'")
    assert running == (0 if paused in STOPS else all_of_them)


@pytest.mark.usefixtures("registered")
async def test_of_several_endpoints_those_that_are_not_paused_get_what_was_dealt_to_them(database: Database) -> None:
    await database.execute(PAUSES["its endpoint"])
    slots = [Slot(QUEUE, 1, (1, "ep_1")), Slot(QUEUE, 2, (1, "ep_2"))]
    (claimed,) = await queue.claim(database, slots, {(1, "ep_1"): "1", (1, "ep_2"): "1"}, 5, NOW)
    assert (claimed.run_id, claimed.endpoint_id) == ("run_plain_2", "ep_2")
