"""What is set aside costs nobody anything: a backlog of a paused workflow is read by no statement but those that move pages of it."""

from __future__ import annotations

from typing import Any

from dispatcher.store import asides, gates, watch
from dispatcher.store.asides import Aside, Moved
from dispatcher.store.database import Connection, Database
from tests.postgres.backlogs import NOW, PAGE, TASKS, TENANT, WORKFLOW, cost_the_same, undo
from tests.postgres.explained import Explained

RUNS = """
    insert into runs (tenant_id, id, workflow_id, workflow_version, input, priority, trigger, created_at, graph, gates, gate_limits,
                      arrived_at, flow)
    select $1, format('run_%s_%s', $2::int, lpad(g::text, 8, '0')), $2, 1, '1', 1, 'api', $4, '-', array[lpad('1', 32, '0')::uuid],
           array[5], $4::timestamptz + g * interval '1 millisecond',
           '{"gates": [["00000000-0000-0000-0000-000000000001", "=shared", "shared", "", "GROUP_ROUND_ROBIN", 5]]}'
    from generate_series(1, $3::int) as g
"""


async def _filled(conn: Connection, backlog: int) -> tuple[Aside, Aside]:
    """A closed workflow with so much of it aside, and an open one that waits at the same limit."""
    tenant_id = await conn.fetchval(TENANT, NOW)
    closed = await conn.fetchval(WORKFLOW, tenant_id, "closed", NOW, "closed")
    other = await conn.fetchval(WORKFLOW, tenant_id, "other", NOW, None)
    for workflow_id, count in ((closed, backlog), (other, 10)):
        await conn.execute(TASKS, tenant_id, workflow_id, count, "", NOW)
    await conn.execute(RUNS, tenant_id, closed, backlog, NOW)
    await conn.execute("analyze tasks")
    await conn.execute("analyze runs")
    return Aside(tenant_id, closed, "closed", NOW), Aside(tenant_id, other, None, None)


async def _cost(database: Database, backlog: int) -> None:
    """Raises what each statement costs, in pages."""
    async with database.transaction() as conn:
        workflow, _ = await _filled(conn, backlog)
        explained: Any = Explained(conn)
        waking = gates.WAKING.read(await conn.fetch(gates.WAKING.sql, 100, [], []))
        assert [gate.name for gate in waking] == ["shared"]
        await explained.fetch(watch.LOOK.sql, NOW, 1)
        await gates.admit(explained, waking, NOW, 100)
        await explained.fetch(asides.LOOK.sql)
        await explained.fetch(asides.SET_ASIDE.sql, workflow.tenant_id, workflow.workflow_id, PAGE)
        await conn.execute("update workflows set aside = 'opening' where id = $1", workflow.workflow_id)
        await explained.fetch(asides.LET_BACK.sql, workflow.tenant_id, workflow.workflow_id, PAGE)
        assert (
            await conn.fetchval("select count(*) from tasks where gate_wait is not null and workflow_id = $1", workflow.workflow_id) == PAGE
        )
        undo(explained, "watch", "admit", "look", "set aside", "let back")


async def test_a_large_backlog_that_is_aside_costs_what_a_small_one_costs(database: Database) -> None:
    await cost_the_same(database, _cost)


async def test_a_page_is_taken_of_those_that_came_first_and_only_where_nobody_stands_in_line(database: Database) -> None:
    async with database.transaction() as conn:
        workflow, _ = await _filled(conn, 10)
    assert await asides.set_aside(database, workflow, 100) == Moved(True, 0)  # it is aside already
    for state, looked in (("closed", True), ("clearing", False)):
        await database.execute("update workflows set aside = $2 where id = $1", workflow.workflow_id, state)
        assert await asides.let_back(database, workflow, 3) == Moved(looked, 0)
    await asides.cleared(database, workflow, NOW)
    assert await asides.let_back(database, workflow, 3) == Moved(True, 3)
    came = "select right(run_id, 1) from tasks where workflow_id = $1 and gate_wait is not null order by run_id"
    assert [row[0] for row in await database.fetch(came, workflow.workflow_id)] == ["1", "2", "3"]
    async with database.transaction() as conn:
        assert not await asides.opened(conn, workflow, NOW)  # there are more
    assert await asides.let_back(database, workflow, 100) == Moved(True, 7)
    async with database.transaction() as conn:
        assert await asides.opened(conn, workflow, NOW)


async def test_one_looks_at_a_workflow_at_a_time(database: Database) -> None:
    """Two that move pages of one would move the second before the first."""
    async with database.transaction() as conn:
        workflow, _ = await _filled(conn, 4)
    await database.execute("update workflows set aside = 'opening' where id = $1", workflow.workflow_id)
    async with database.transaction() as conn:
        assert await asides.let_back(conn, workflow, 2) == Moved(True, 2)  # type: ignore[arg-type]
        assert await asides.let_back(database, workflow, 2) == Moved(False, 0)
    assert await asides.let_back(database, workflow, 2) == Moved(True, 2)
