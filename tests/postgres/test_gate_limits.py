"""Limits of many groups: what is brought to their gates is brought a page at a time, and none is left out."""

from __future__ import annotations

from uuid import UUID

from dispatcher.store import gate_limits, gates
from dispatcher.store.database import Database

IDS = [UUID(int=n << 120 | 1) for n in range(0, 256, 5)]
FILL = """
    insert into gates (tenant_id, id, rule, name, key, strategy, most, fixed, waiting)
    select t, id, $3, $4, n::text, 'GROUP_ROUND_ROBIN', 1, true, n % 2
    from unnest($1::int[]) t, unnest($2::uuid[]) with ordinality as u (id, n)
"""


async def _fill(database: Database, rule: str, name: str | None = None) -> None:
    await database.execute(FILL, [1, 2], IDS, rule, name)


async def test_a_shared_limit_that_changes_rouses_all_who_wait_and_nobody_else(database: Database) -> None:
    await _fill(database, "=db", "db")
    pages, after = 0, gate_limits.FIRST
    while (last := await gate_limits.rouse(database, 1, "db", after, 2)) is not None:
        pages, after = pages + 1, last
    assert pages == len(IDS) / 2
    rows = await database.fetch("select distinct tenant_id, waiting, wake from gates order by 1, 2")
    assert [tuple(row) for row in rows] == [(1, 0, False), (1, 1, True), (2, 0, False), (2, 1, False)]


async def test_groups_follow_what_is_declared_those_of_other_rules_and_tenants_do_not(database: Database) -> None:
    await _fill(database, "own")
    await database.execute("update gates set rule = 'other' where id = $1", IDS[0])
    async with database.transaction() as conn:
        assert await gate_limits.declare(conn, 1, {"own": (3, "CANCEL_NEWEST")})
        assert await gate_limits.declare(conn, 2, {"own": (4, "GROUP_ROUND_ROBIN")})
    await gate_limits.follow(database, 1, 2)
    rows = await database.fetch("select distinct tenant_id, rule, most, strategy, wake from gates where waiting > 0 order by 1, 2")
    assert [tuple(row) for row in rows] == [
        (1, "other", 1, "GROUP_ROUND_ROBIN", True),  # as somebody waits there though there is room
        (1, "own", 3, "CANCEL_NEWEST", True),
        (2, "other", 1, "GROUP_ROUND_ROBIN", False),
        (2, "own", 1, "GROUP_ROUND_ROBIN", False),
    ]
    await gate_limits.follow(database, limit=2)
    assert await database.fetchval("select bool_and(most = 4) from gates where tenant_id = 2 and rule = 'own'")
    async with database.transaction() as conn:
        assert not await gate_limits.declare(conn, 1, {"own": (3, "CANCEL_NEWEST")}), "nobody need follow what is no news"


async def test_every_gate_is_counted_again_whatever_its_id(database: Database) -> None:
    await _fill(database, "own")
    await database.execute("update gates set held = 5")
    assert len(await gates.audit(database)) == 2 * len(IDS)
    assert await gates.audit(database) == []


async def test_where_there_is_no_gate_nothing_is_counted(database: Database) -> None:
    async with database.transaction() as conn:
        await conn.execute("lock table tasks, runs in access exclusive mode")
        assert await gates.audit(database) == []


async def test_gates_that_are_awake_have_their_turns_and_so_have_tenants(database: Database) -> None:
    await _fill(database, "own")
    await database.execute("update gates set wake = true where tenant_id = 1 or id = $1", IDS[1])
    seen, after = list[UUID](), dict[int, str]()
    for _ in range(len(IDS) // 4):
        found = await gates.waking(database, 4, after)
        assert [UUID(gate.id) for gate in found if gate.tenant_id == 2] == [IDS[1]]
        own = [UUID(gate.id) for gate in found if gate.tenant_id == 1]
        assert len(own) == 4
        seen += own
        after = {gate.tenant_id: gate.id for gate in found}
    assert seen == IDS
