"""What has to stay at an endpoint: SQL says what the rule says, and finding it among all that waits costs what it finds."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.engine.definitions.placement import DesiredLabel
from dispatcher.engine.placement import Requirement
from dispatcher.runtime.pins import bound
from dispatcher.store import asides, catalog, pins, watch
from dispatcher.store.asides import Aside, Moved
from dispatcher.store.database import Connection, Database
from tests.postgres.backlogs import NOW, TENANT, WORKFLOW, cost_the_same, undo
from tests.postgres.backlogs import TASKS as BACKLOG
from tests.postgres.explained import Explained

LABELS = {'"sticky":"hard"': DesiredLabel('{"endpoint":"ep_b","sticky":"hard"}')}
ASKED = [
    Requirement(), Requirement(slots=2), Requirement(LABELS), Requirement(sticky="hard"), Requirement({}, "ep_a", "soft"),
    Requirement({}, "ep_a", "hard"), Requirement(LABELS, "ep_a", "hard", 3, "group"), Requirement(LABELS, "ep_b", "soft"),
    Requirement({}, "ep_a", "hard", batch="\0"), Requirement({}, "ep_a", "hard", batch='"endpoint":"ep_b"'),
    Requirement(batch='"endpoint":"ep_b","sticky":"hard'), Requirement({"endpoint": DesiredLabel("x")}, "ep_a", "hard"),
]  # fmt: skip
ENDPOINT = """
    insert into endpoints (tenant_id, id, name, version, slots, labels, static, created_at, updated_at, draining)
    values ($1, $2, $2, '1', 10, '{}', false, $3, $3, true)
"""
TASKS = """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms, durable, requirement,
                       pin_endpoint)
    select $1, format('run_%s_%s_%s', $4::text, $5::text, g), 0, $2, 1, $4, 1, $7, 1000, true, $6, $5 from generate_series(1, $3::int) as g
"""
VERSIONS = """
    with e as (
        insert into endpoint_versions (tenant_id, endpoint_id, version, url, manifest, registered_at)
        values ($1, $3, '1', 'http://a', '{}', $4)
    )
    insert into workflow_versions (tenant_id, workflow_id, number, checksum, definition, created_at)
    values ($1, $2, 1, 'soft', '{"sticky": "soft"}', $4), ($1, $2, 2, 'hard', '{"sticky": "hard"}', $4)
"""
RUNS = """
    insert into runs (tenant_id, id, workflow_id, workflow_version, input, priority, trigger, created_at, sticky_endpoint)
    select $1, format('run_of_%s_%s_%s', $4::int, $5::text, g), $2, $4, '1', 1, 'api', $6, $5 from generate_series(1, $3::int) as g
"""
RENEWAL = "insert into renewals (tenant_id, workflow_id, late_at, began_at, looked_at) values ($1, $2, $3, $3, $3)"
STATES = "select requirement, count(*) from tasks where state = 'queued' and pin_endpoint = 'ep_a' group by 1"


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("pin", [None, "ep_c"])
async def test_a_task_stays_where_the_rule_says(database: Database, asked: Requirement, pin: str | None) -> None:
    home = Requirement(asked.labels, asked.endpoint, asked.sticky, asked.slots, asked.batch, pin).home
    texts = [asked.text()] if pin is None else [asked.text(), bound(asked.text(), pin)]
    assert [await database.fetchval("select stays_at($1, $2)", text, pin) for text in texts] == [home] * len(texts)


async def _filled(conn: Connection, many: int) -> tuple[int, int]:
    """An endpoint that is drained with few tasks that have begun there and are queued, and many others of all kinds."""
    tenant_id = await conn.fetchval(TENANT, NOW)
    workflow_id = await conn.fetchval(WORKFLOW, tenant_id, "work", NOW, None)
    await conn.execute(ENDPOINT, tenant_id, "ep_a", NOW)
    kinds: list[tuple[str, str | None, str]] = [
        ("waiting", "ep_a", ""), ("queued", None, ""), ("queued", "ep_b", ""), ("queued", "ep_c", '{"pin":"ep_c"}'),
    ]  # fmt: skip
    for state, pin, requirement in kinds:
        await conn.execute(TASKS, tenant_id, workflow_id, many, state, pin, requirement, NOW)
    for number, asked in enumerate(("", '{"slots":2}')):
        await conn.execute(TASKS.replace("'run_", f"'few{number}_"), tenant_id, workflow_id, 5, "queued", "ep_a", asked, NOW)
    return tenant_id, workflow_id


async def test_what_goes_on_waits_for_its_endpoint_alone(database: Database) -> None:
    async with database.transaction() as conn:
        tenant_id, workflow_id = await _filled(conn, 10)
    homeless = await pins.homeless(database)
    assert homeless == [pins.Homeless(tenant_id, workflow_id, "ep_a")]
    alone, asking = (Requirement(slots=slots, pin="ep_a").text() for slots in (1, 2))
    queues = await pins.find_homes(database, homeless)
    assert sorted(queues) == sorted([(tenant_id, -workflow_id, text) for text in (alone, asking)] * 5)
    assert {tuple(row) for row in await database.fetch(STATES)} == {(alone, 5), (asking, 5)}
    assert await pins.homeless(database) == []


async def _cost(database: Database, many: int) -> None:
    async with database.transaction() as conn:
        tenant_id, workflow_id = await _filled(conn, many)
        await conn.execute("analyze tasks")
        explained: Any = Explained(conn)
        await explained.fetch(watch.LOOK.sql, NOW, 1)
        await pins.homeless(explained)
        await pins.find_homes(explained, [pins.Homeless(tenant_id, workflow_id, "ep_a")])
        assert sum(row["count"] for row in await conn.fetch(STATES)) == 10
        undo(explained, "watch", "homeless", "find homes")


async def test_what_goes_on_comes_back_in_the_order_of_its_arrival_once_it_has_its_time_again(database: Database) -> None:
    async with database.transaction() as conn:
        tenant_id = await conn.fetchval(TENANT, NOW)
        workflow_id = await conn.fetchval(WORKFLOW, tenant_id, "closed", NOW, "closed")
        await conn.execute(ENDPOINT, tenant_id, "ep_a", NOW)
        for asked in ("", '{"endpoint":"ep_a","sticky":"hard"}', '{"endpoint":"ep_b","sticky":"hard"}'):
            await conn.execute(BACKLOG, tenant_id, workflow_id, 3, asked, NOW)
        await conn.execute("update tasks set gates_held = 0, gate_wait = null")
        await conn.execute(RENEWAL, tenant_id, workflow_id, NOW)
    workflow = Aside(tenant_id, workflow_id, "closed", NOW)
    assert await asides.let_back(database, workflow, 2) == Moved(False, 0)
    await database.execute("delete from renewals")
    assert [await asides.let_back(database, workflow, 2) for _ in range(3)] == [Moved(True, 2), Moved(True, 1), Moved(True, 0)]
    in_line = "select distinct requirement from tasks where gate_wait is not null"
    assert [row[0] for row in await database.fetch(in_line)] == ['{"endpoint":"ep_a","sticky":"hard"}']


async def _counted(database: Database, many: int) -> None:
    """Beside many tasks and runs of others: five that have begun, and of five with each version those that are bound to stay."""
    async with database.transaction() as conn:
        tenant_id, workflow_id = await _filled(conn, many)
        await conn.execute(ENDPOINT, tenant_id, "ep_d", NOW)
        await conn.execute(VERSIONS, tenant_id, workflow_id, "ep_d", NOW)
        await conn.execute(TASKS, tenant_id, workflow_id, 5, "waiting", "ep_d", "", NOW)
        for version, endpoint, count in ((2, "ep_b", many), (2, None, many), (1, "ep_d", 5), (2, "ep_d", 5)):
            await conn.execute(RUNS, tenant_id, workflow_id, count, version, endpoint, NOW)
        await conn.execute("analyze tasks")
        await conn.execute("analyze runs")
        shown = catalog.ENDPOINTS.first(await conn.fetch(catalog.ENDPOINTS.sql, tenant_id, "ep_d", "", 1))
        assert shown is not None
        assert shown.remaining == 10
        explained: Any = Explained(conn)
        await explained.fetch(catalog.ENDPOINTS.sql, tenant_id, "ep_d", "", 1)
        undo(explained, "remaining")


async def test_telling_what_is_left_costs_what_there_is(database: Database) -> None:
    await cost_the_same(database, _counted)


async def test_finding_what_goes_on_costs_what_it_finds(database: Database) -> None:
    await cost_the_same(database, _cost)
