"""What nothing can take costs nobody anything while it is aside, and whoever lets it back forgets nobody who comes in that moment."""

from __future__ import annotations

import asyncio
from typing import Any

from dispatcher.engine.admission import Queue
from dispatcher.store import asides, gates, renewals, unschedulable, watch
from dispatcher.store.database import Connection, Database
from dispatcher.store.unschedulable import BEFORE_ALL, Moved
from tests.postgres.backlogs import NOW, PAGE, TASKS, TENANT, WORKFLOW, cost_the_same, undo
from tests.postgres.explained import Explained
from tests.world.world import until

HELD_UP = "select exists (select from pg_stat_activity where $1 = any (pg_blocking_pids(pid)))"
ASIDE = "select count(*) from tasks where unschedulable"


async def _filled(conn: Connection, backlog: int, rest: int = 10) -> Queue:
    """A queue nothing can take with so much of it aside, and others of its workflow that stand in line at the same limit."""
    tenant_id = await conn.fetchval(TENANT, NOW)
    workflow_id = await conn.fetchval(WORKFLOW, tenant_id, "work", NOW, None)
    queue = (tenant_id, workflow_id, "lone")
    await unschedulable.close(conn, tenant_id, [queue], NOW)
    for requirement, count in (("lone", backlog), ("other", rest), ("", 10)):
        await conn.execute(TASKS, tenant_id, workflow_id, count, requirement, NOW)
    assert await conn.fetchval(ASIDE) == backlog
    return queue


async def _turn(conn: Connection, queue: Queue, aside: Any) -> None:
    (row,) = await unschedulable.page(conn, queue[0], BEFORE_ALL, 10)
    await unschedulable.turn(conn, queue[0], [unschedulable.Unschedulable(*row.key, aside)], NOW)


async def _cost(database: Database, backlog: int) -> None:
    """Raises what each statement costs, in pages."""
    async with database.transaction() as conn:
        queue = await _filled(conn, backlog, rest=backlog)
        await conn.execute("analyze tasks")
        explained: Any = Explained(conn)
        named = [[part] for part in queue]
        waking = gates.WAKING.read(await conn.fetch(gates.WAKING.sql, 100, [], []))
        await explained.fetch(watch.LOOK.sql, NOW, 1)
        await gates.admit(explained, waking, NOW, 100)
        await explained.fetch(asides.LOOK.sql)
        await explained.fetch(unschedulable.SET_ASIDE.sql, *named, PAGE)
        await _turn(conn, queue, "opening")
        await explained.fetch(unschedulable.LET_BACK.sql, *named, PAGE)
        assert await conn.fetchval(ASIDE) == backlog - PAGE
        await unschedulable.moving(explained, 100)
        undo(explained, "watch", "admit", "look", "set aside", "let back", "moving")


async def test_a_large_backlog_that_is_aside_costs_what_a_small_one_costs(database: Database) -> None:
    await cost_the_same(database, _cost)


async def test_pages_are_taken_in_the_order_of_arrival_by_one_at_a_time(database: Database) -> None:
    async with database.transaction() as conn:
        queue = await _filled(conn, 6)
    assert await unschedulable.let_back(database, [queue], 2) == Moved(0, 0)  # nothing can take them yet
    async with database.transaction() as conn:
        await _turn(conn, queue, "opening")
    assert await unschedulable.set_aside(database, [queue], 2) == Moved(0, 0)
    async with database.transaction() as conn:
        assert await unschedulable.let_back(conn, [queue], 2) == Moved(1, 2)  # type: ignore[arg-type]
        assert await unschedulable.let_back(database, [queue], 2) == Moved(0, 0)
    assert await unschedulable.let_back(database, [queue], 2) == Moved(1, 2)
    left = await database.fetch("select right(run_id, 1) from tasks where unschedulable order by run_id")
    assert [row[0] for row in left] == ["5", "6"]
    async with database.transaction() as conn:
        assert await unschedulable.forget(conn, [queue], "opening") == 0  # there are more
    assert await unschedulable.let_back(database, [queue], 3) == Moved(1, 2)
    async with database.transaction() as conn:
        assert await unschedulable.forget(conn, [queue], "closed") == 0
        assert await unschedulable.forget(conn, [queue], "opening") == 1


async def test_nobody_moves_while_what_is_late_of_its_workflow_has_its_time_again(database: Database) -> None:
    async with database.transaction() as conn:
        queue = await _filled(conn, 1)
        await renewals.resuming(conn, *queue[:2], NOW)
    for aside, move in (("clearing", unschedulable.set_aside), ("opening", unschedulable.let_back)):
        async with database.transaction() as conn:
            await _turn(conn, queue, aside)
        assert await move(database, [queue], 2) == Moved(0, 0)
    async with database.transaction() as conn:
        assert await renewals.drop(conn, *queue[:2])
        await _turn(conn, queue, "clearing")
    assert await unschedulable.set_aside(database, [queue], 2) == Moved(1, 0)
    await unschedulable.cleared(database, [queue], NOW)
    assert await unschedulable.let_back(database, [queue], 2) == Moved(1, 1)


async def test_who_is_set_aside_as_the_last_comes_back_is_not_forgotten(database: Database) -> None:
    async with database.transaction() as conn:
        queue = await _filled(conn, 0)
        await _turn(conn, queue, "opening")
    async with database.transaction() as coming:
        await coming.execute(TASKS, queue[0], queue[1], 1, "lone", NOW)
        async with database.transaction() as conn:
            assert await unschedulable.forget(conn, [queue], "opening") == 0
    assert await unschedulable.let_back(database, [queue], 2) == Moved(1, 1)


async def test_who_comes_as_the_row_goes_is_not_set_aside(database: Database) -> None:
    async with database.transaction() as conn:
        queue = await _filled(conn, 0)
        await _turn(conn, queue, "opening")

    async with database.transaction() as conn:
        assert await unschedulable.forget(conn, [queue], "opening") == 1
        coming = asyncio.create_task(database.execute(TASKS, queue[0], queue[1], 1, "lone", NOW))

        async def held_up() -> bool:
            return bool(await database.fetchval(HELD_UP, conn.get_server_pid()))

        await until(held_up)
    await coming
    assert await database.fetchval(ASIDE) == 0


async def test_what_has_none_aside_is_forgotten_and_what_has_is_not(database: Database) -> None:
    async with database.transaction() as conn:
        queue = await _filled(conn, 1)
        empty = (queue[0], queue[1], "empty")
        await unschedulable.close(conn, queue[0], [queue, empty], NOW)
        assert await unschedulable.unknown(conn, [queue, empty, (*queue[:2], "new")]) == [(*queue[:2], "new")]  # type: ignore[arg-type]
        assert await unschedulable.forget(conn, [queue, empty], "closed") == 1
        assert [row.requirement for row in await unschedulable.page(conn, queue[0], BEFORE_ALL, 10)] == ["lone"]
