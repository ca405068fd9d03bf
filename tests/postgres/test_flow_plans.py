"""What flow control costs does not grow with what waits: statements explained on few groups and on many."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from dispatcher.engine.admission import Slot, queue_of
from dispatcher.engine.rate_limits import Bucket, Parked
from dispatcher.store import gates, queue, rate_limits
from dispatcher.store.database import Connection, Database
from dispatcher.store.rate_limits import Park
from tests.postgres.explained import Explained, Undone, nodes_of, pages_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAITING_EACH = 3

# For each group one task that holds its only place, and some that stand in line; beside them tasks that are ready.
FILL = """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms, epoch, dispatcher_id,
                       endpoint_id, endpoint_version, started_at, deadline, gates, gate_limits, gates_held, arrived_at, flow)
    select 1, format('run_%s_%s', lpad(g::text, 8, '0'), n), 0, 1, 1, case when n = 0 then 'running' else 'queued' end, 1,
           $2::timestamptz, 1000,
           case when n = 0 then 1 else 0 end, case when n = 0 then 1 end, case when n = 0 then 'ep_1' end, case when n = 0 then '1' end,
           case when n = 0 then $2::timestamptz end, case when n = 0 then $2::timestamptz end,
           array[lpad(to_hex(g), 32, '0')::uuid], array[1], case when n = 0 then 1 else 0 end, $2,
           jsonb_build_object('gates', jsonb_build_array(jsonb_build_array(
               lpad(to_hex(g), 32, '0')::uuid::text, 'rule', null, g::text, 'GROUP_ROUND_ROBIN', 1)))
    from generate_series(1, $1::int) as g, generate_series($3::int, $4::int) as n
"""
READY = """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms)
    select 1, format('run_ready_%s', g), 0, 1, 1, 'queued', 1, $1, 1000 from generate_series(1, 200) as g
"""
RUNS = """
    insert into runs (tenant_id, id, workflow_id, workflow_version, input, priority, trigger, created_at)
    select tenant_id, run_id, 1, 1, '{}', 1, 'api', $1 from tasks where run_id like 'run_ready%'
"""


async def _cost(database: Database, groups: int) -> dict[str, int]:
    """Pages each statement touches, with so many groups in which somebody waits."""
    found = {}
    async with database.transaction() as conn:
        await conn.execute(FILL, groups, NOW, 0, 0)
        await conn.execute(FILL, groups, NOW, 1, WAITING_EACH)
        await conn.execute(READY, NOW)
        await conn.execute(RUNS, NOW)
        assert await conn.fetchval("select count(*) from gates where waiting = $1", WAITING_EACH) == groups
        await conn.execute("delete from tasks where run_id like 'run_0000000%_0' and state = 'running'")
        waking = gates.WAKING.read(await conn.fetch(gates.WAKING.sql, 100, [], []))
        assert len(waking) == 9
        await conn.execute("analyze tasks")
        explained = Explained(conn)
        await gates.waking(explained, 100)  # type: ignore[arg-type]
        await gates.admit(explained, waking, NOW, 100)  # type: ignore[arg-type]
        of = queue_of(1, 1, False)
        slots = [Slot(of, n, (1, "ep_1")) for n in range(1, 101)]
        await queue.claim(explained, slots, {(1, "ep_1"): "1"}, 1, NOW)  # type: ignore[arg-type]
        for name, plan in zip(("waking", "admit", "claim"), explained.plans, strict=True):
            scans = [node["Relation Name"] for node in nodes_of(plan) if node["Node Type"] == "Seq Scan"]
            assert not scans, f"{name} reads all of {scans}"
            found[name] = pages_of(plan)
        raise Undone(found)


async def _measured(database: Database, groups: int) -> dict[str, int]:
    with pytest.raises(Undone) as undone:
        await _cost(database, groups)
    return undone.value.found


async def test_ten_thousand_groups_cost_what_ten_cost(database: Database) -> None:
    few, many = await _measured(database, 10), await _measured(database, 10_000)
    assert all(many[name] <= 2 * few[name] + 50 for name in few), (few, many)


KEYS = 100_000
USED = """
    insert into gates (tenant_id, id, rule, key, strategy, most, wake)
    select 1, ('f' || lpad(to_hex(g), 31, '0'))::uuid, 'rule', g, 'GROUP_ROUND_ROBIN', 1, false from generate_series(1, $1::int) as g
"""
LIMITED = """
    insert into rate_limits (tenant_id, id, key, fixed, most, duration, window_ms, value, refilled_at, updated_at)
    select 1, lpad(to_hex(g), 32, '0')::uuid, g, false, 9, 'MINUTE', 60000, 1, $2, $2 from generate_series(1, $1::int) as g
"""


async def _cost_beside(database: Database, keys: int) -> dict[str, int]:
    """Pages, and rows of gates, that a handful of groups and limits cost beside so many others that were used once."""
    found = {}
    async with database.transaction() as conn:
        await conn.execute(USED, keys)
        await conn.execute(LIMITED, keys, NOW)
        before = await conn.fetchval(_READ)
        await conn.execute(FILL, 9, NOW, 0, 0)
        await conn.execute(FILL, 9, NOW, 1, WAITING_EACH)
        await conn.execute("delete from tasks where state = 'running'")
        found["counting"] = await conn.fetchval(_READ) - before
        explained = Explained(conn)
        waking = gates.WAKING.read(await conn.fetch(gates.WAKING.sql, 100, [], []))
        await gates.waking(explained, 100)  # type: ignore[arg-type]
        await gates.admit(explained, waking, NOW, 100)  # type: ignore[arg-type]
        await rate_limits.lock(explained, [(1, str(UUID(int=n))) for n in range(1, 9)])  # type: ignore[arg-type]
        await rate_limits.due(explained, NOW, 100)  # type: ignore[arg-type]
        await rate_limits.let_go(explained, [(1, str(UUID(int=n))) for n in range(1, 9)], NOW, 1_000)  # type: ignore[arg-type]
        for name, plan in zip(("waking", "admit", "lock", "due", "refill"), explained.plans, strict=True):
            assert not [node for node in nodes_of(plan) if node["Node Type"] == "Seq Scan"]
            found[name] = pages_of(plan)
        raise Undone(found)


async def test_a_hundred_thousand_keys_cost_nothing_to_those_that_use_others(database: Database) -> None:
    found = []
    for keys in (9, KEYS):
        with pytest.raises(Undone) as undone:
            await _cost_beside(database, keys)
        found.append(undone.value.found)
    few, many = found
    assert all(many[name] <= 2 * few[name] + 20 for name in few), (few, many)


async def test_a_refill_costs_what_it_lets_go(database: Database) -> None:
    """Of many parked on one limit only those are looked at that get their turn."""
    bucket = str(UUID(int=1))
    async with database.transaction() as conn:
        await conn.execute(READY, NOW)
        await conn.execute(
            "update tasks set state = 'running', epoch = 1, dispatcher_id = 1, endpoint_id = 'ep', endpoint_version = '1', started_at = $1",
            NOW,
        )
        await conn.execute(
            "insert into rate_limits (tenant_id, id, key, fixed, most, duration, window_ms, value, refilled_at, updated_at)"
            " values (1, $1, 'k', true, 10, 'MINUTE', 60000, 0, $2, $2)", bucket, NOW,
        )  # fmt: skip
        empty = Bucket(bucket, "k", True, 10, "MINUTE", 0, NOW)
        leased = await conn.fetch("select run_id from tasks")
        parked = Parked(bucket, 1, empty.full_at)
        parks = [Park((1, row["run_id"], 0), 1, NOW + timedelta(hours=1), parked) for row in leased]
        assert len(await rate_limits.settle(conn, [(1, empty)], parks, [], 1)) == 200
        explained = Explained(conn)
        assert await rate_limits.due(conn, empty.full_at, 100) == [(1, bucket)]
        await rate_limits.let_go(explained, [(1, bucket)], empty.full_at, 1_000)  # type: ignore[arg-type]
        (plan,) = explained.plans
        assert not [node["Relation Name"] for node in nodes_of(plan) if node["Node Type"] == "Seq Scan"]
        looked = [node for node in nodes_of(plan) if node.get("Index Name") == "tasks_parked"]
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in looked) <= 11
        assert await conn.fetchval("select count(*) from tasks where state = 'queued'") == 10
        await conn.execute("delete from tasks")
        await conn.execute("delete from rate_limits")


async def test_what_holds_a_gate_is_counted_whoever_writes(database: Database) -> None:
    """The counts are those of the rows after any statement, also of one that forgets about gates."""

    async def counted(conn: Connection) -> tuple[int, int]:
        row = await conn.fetchrow("select sum(held)::int as held, sum(waiting)::int as waiting from gates")
        assert row is not None
        return (row["held"], row["waiting"])

    async with database.transaction() as conn:
        await conn.execute(FILL, 4, NOW, 0, 2)
        assert await counted(conn) == (4, 8)
        await conn.execute("update tasks set state = 'waiting', dispatcher_id = null where state = 'running'")
        assert await counted(conn) == (4, 8)  # a durable task that is suspended keeps its place
        await conn.execute("update tasks set state = 'queued' where state = 'waiting'")
        assert await conn.fetchval("select count(*) from tasks where state = 'queued'") == 4
        assert await counted(conn) == (4, 8)
        await conn.execute("update tasks set state = 'queued', gates_held = 0 where state = 'queued'")
        assert await conn.fetchval("select count(*) from tasks where state = 'gated'") == 12
        assert await counted(conn) == (0, 12)
        await conn.execute("update tasks set state = 'scheduled' where run_id like '%1'")
        assert await counted(conn) == (0, 8)
        await conn.execute("update tasks set state = 'queued' where state = 'scheduled'")
        assert await counted(conn) == (0, 12)
        await conn.execute("update tasks set state = 'blocked' where run_id like '%2'")
        assert await counted(conn) == (0, 8)
        await conn.execute("update tasks set state = 'settled', status = 'failed' where run_id like '%0'")
        assert await counted(conn) == (0, 4)
        await conn.execute("delete from tasks")
        assert await counted(conn) == (0, 0)
        await conn.execute("delete from gates")
    assert await gates.audit(database) == []


async def test_two_that_come_at_once_do_not_both_get_the_last_place(database: Database) -> None:
    """Whoever would be too many is refused as a whole, and its gates are named."""
    from asyncpg import PostgresError

    async with database.transaction() as conn:
        await conn.execute(FILL, 1, NOW, 0, 0)
        with pytest.raises(PostgresError) as refused:
            async with conn.transaction():
                await conn.execute(FILL.replace("format('run_", "format('run_b"), 1, NOW, 0, 0)
        assert (refused.value.sqlstate, refused.value.detail) == ("DG001", str(UUID(int=1)))
        assert gates.WAKING.read(await conn.fetch(gates.WAKING.sql, 10, [], [])) == []
        await conn.execute("delete from tasks")
        await conn.execute("delete from gates")


_READ = "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables where relname = 'gates'"


async def test_counting_reads_the_gates_it_changes_however_few_there_were_when_it_was_planned(database: Database) -> None:
    """The plans of the triggers are made by a session once, perhaps while there is no gate at all."""
    async with database.transaction() as conn:
        await conn.execute("delete from gates")
        for groups in (1, 5_000):
            await conn.execute(FILL, groups, NOW, groups, groups)  # plans on one gate; then there are many
            await conn.execute("update tasks set state = 'scheduled'")
            await conn.execute("delete from tasks")
        assert await conn.fetchval("select count(*) from gates") == 5_000
        for write in ("update tasks set state = 'scheduled'", "update tasks set state = 'queued'", "delete from tasks"):
            await conn.execute(FILL, 10, NOW, 1, 1) if "scheduled" in write else None
            before = await conn.fetchval(_READ)
            await conn.execute(write)
            assert 10 <= await conn.fetchval(_READ) - before <= 20, write
        before = await conn.fetchval(_READ)
        await conn.execute(FILL, 10, NOW, 1, 1)
        assert 10 <= await conn.fetchval(_READ) - before <= 20
        await conn.execute("delete from tasks")
        await conn.execute("delete from gates")


async def _blocked(database: Database) -> None:
    while not await database.fetchval("select count(*) from pg_stat_activity where wait_event_type = 'Lock'"):
        pass


@pytest.mark.parametrize(("most", "comes_in"), [(1, False), (2, True)])
async def test_two_that_make_a_gate_at_once_are_both_counted(database: Database, most: int, comes_in: bool) -> None:
    """The second to make a gate waits for the first, and is judged by what the first has left."""
    first, second = (FILL.replace("array[1]", f"array[{most}]").replace("format('run_", f"format('run_{name}") for name in "ab")
    async with database.transaction() as conn:
        await conn.execute(first, 3, NOW, 0, 0)
        writing = asyncio.create_task(database.execute(second, 3, NOW, 0, 0))
        await _blocked(database)
    if comes_in:
        await writing
    else:
        with pytest.raises(asyncpg.PostgresError) as refused:
            await writing
        assert refused.value.sqlstate == "DG001"
        assert sorted((refused.value.detail or "").split(",")) == [str(UUID(int=n)) for n in (1, 2, 3)]
    held = await database.fetch("select held from gates order by id")
    assert [row["held"] for row in held] == [2 if comes_in else 1] * 3
    assert await gates.audit(database) == []


async def test_a_chain_of_gates_of_which_some_are_new_is_counted_once(database: Database) -> None:
    """Gates that are there and gates that have to be made, of two tenants that have gates of one id."""
    chain = """
        insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms, epoch,
                           dispatcher_id, gates, gate_limits, gates_held, arrived_at, flow)
        select n, 'run_' || $1::int, 0, 1, 1, 'running', 1, $2::timestamptz, 1000, 1, 1, ids, limits, cardinality(ids), $2,
               jsonb_build_object('gates', (select jsonb_agg(jsonb_build_array(id, 'rule', null, 'k', 'GROUP_ROUND_ROBIN', 9))
                                            from unnest(ids) as u (id)))
        from unnest($3::int[]) as t (n),
             (select array_agg(lpad(to_hex(g), 32, '0')::uuid) as ids, array_agg(9) as limits from unnest($4::int[]) as g) as c
    """
    await database.execute(chain, 1, NOW, [1], [2])
    await database.execute(chain, 2, NOW, [1, 2], [3, 2, 1])
    counted = await database.fetch("select tenant_id, id, held, waiting, wake from gates order by tenant_id, id")
    assert [tuple(row) for row in counted] == [
        (tenant, UUID(int=n), 2 if (tenant, n) == (1, 2) else 1, 0, False) for tenant in (1, 2) for n in (1, 2, 3)
    ]
    assert await gates.audit(database) == []


async def test_who_keeps_his_place_is_not_counted_again_where_a_gate_is_made_for_another(database: Database) -> None:
    """One statement for a task that stays where it is and for one that comes to a gate that has been forgotten meanwhile."""
    async with database.transaction() as conn:
        await conn.execute(FILL, 2, NOW, 0, 1)
        await conn.execute("update tasks set state = 'scheduled', gates_held = 0, dispatcher_id = null where run_id like 'run_00000002%'")
        await conn.execute("delete from gates where id = $1", UUID(int=2))
        await conn.execute("update tasks set state = case when state = 'scheduled' then 'queued' else state end, priority = 2")
        counted = await conn.fetch("select id, held, waiting from gates order by id")
        assert [tuple(row) for row in counted] == [(UUID(int=1), 1, 1), (UUID(int=2), 0, 2)]
        await conn.execute("delete from tasks")
        await conn.execute("delete from gates")


async def test_gates_nobody_uses_are_forgotten_after_a_while_and_no_others(database: Database) -> None:
    """A hundred groups, some held and some waited at, in pages of seven; what somebody has locked waits for the next time."""
    hour = timedelta(hours=1)
    await database.execute(FILL, 100, NOW, 0, 0)
    await database.execute("delete from tasks where run_id > 'run_00000010'")
    await database.execute(FILL, 3, NOW, 1, 1)
    await database.execute("delete from tasks where run_id = 'run_00000003_0'")  # only waited at
    assert await gates.prune(database, NOW, NOW - hour, 7) == 0
    assert await database.fetchval("select count(*) from gates where idle_since = $1", NOW) == 91
    await database.execute(FILL, 20, NOW, 5, 5)
    await database.execute("delete from tasks where run_id like '%_5'")  # those have been used since
    async with database.transaction() as conn:
        await conn.execute("select from gates where key = '99' for update")
        assert await gates.prune(database, NOW + hour, NOW, 7) == 79
    assert await gates.prune(database, NOW + hour, NOW, 7) == 1
    kept = await database.fetch("select key::int as key from gates order by 1")
    assert [row["key"] for row in kept] == list(range(1, 21))
    await database.execute("delete from tasks")
    assert await gates.prune(database, NOW + 3 * hour, NOW + 2 * hour, 7) == 11
    assert await gates.prune(database, NOW + 5 * hour, NOW + 4 * hour, 7) == 9
    assert await database.fetchval("select count(*) from gates") == 0


async def test_forgetting_gates_reads_each_once(database: Database) -> None:
    async with database.transaction() as conn:
        await conn.execute(FILL, 2_000, NOW, 0, 0)
        await conn.execute("delete from tasks")
        await conn.execute("update gates set idle_since = $1", NOW)
        explained = Explained(conn)
        await gates.prune(explained, NOW, NOW, 500)  # type: ignore[arg-type]
        (plan,) = explained.plans
        assert not [node for node in nodes_of(plan) if node["Node Type"] == "Seq Scan"]
        read = [node for node in nodes_of(plan) if node.get("Relation Name") == "gates" and "Index" in node["Node Type"]]
        assert max(node["Actual Rows"] * node["Actual Loops"] for node in read) <= 500
        assert await conn.fetchval("select count(*) from gates") == 1_500
        await conn.execute("delete from gates")
