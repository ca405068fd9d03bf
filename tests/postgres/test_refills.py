"""Whom a refill lets go, of those that are parked on a limit: held against the rule, written down a second time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from dispatcher.store import rate_limits
from dispatcher.store.database import Database

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MOST = 10
BUCKET = str(UUID(int=1))

PARKED = """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms, parked_on, parked_for)
    select 1, format('run_%s', lpad(n::text, 4, '0')), 0, 1, 1, 'gated', 1, $1, 1000, $2, units
    from unnest($3::int[]) with ordinality as u (units, n)
"""
LIMIT = """
    insert into rate_limits (tenant_id, id, key, fixed, most, duration, window_ms, value, refilled_at, updated_at, refill_at)
    values (1, $1, 'k', true, $2, 'MINUTE', 60000, $3, $4, $4, $5)
"""


def goes(units: Sequence[int], left: int) -> list[int]:
    """In their turn, as long as there are enough: the places of those that go."""
    found, used = [], 0
    for place, wanted in enumerate(units):
        used += wanted
        if used > left:
            break
        found.append(place)
    return found


def goes_after(units: Sequence[int], left: int) -> list[int]:
    """What the turn has left over is for those it is enough for, in their turn."""
    enough = [place for place, wanted in enumerate(units) if wanted <= left]
    return [enough[place] for place in goes([units[place] for place in enough], left)]


async def _refilled(database: Database, units: Sequence[int], value: int, refilled_at: datetime) -> tuple[list[int], datetime | None]:
    """The places of those let go, and when somebody has to look again."""
    await database.execute(PARKED, NOW, BUCKET, list(units))
    await database.execute(LIMIT, BUCKET, MOST, value, refilled_at, NOW)
    await rate_limits.refill(database, NOW, 100, 1_000)
    rows = await database.fetch("select run_id from tasks where state = 'queued' order by run_id")
    again: datetime | None = await database.fetchval("select refill_at from rate_limits")
    await database.execute("delete from tasks")
    await database.execute("delete from rate_limits")
    return [int(row["run_id"][4:]) - 1 for row in rows], again


@pytest.mark.parametrize("seed", range(40))
async def test_a_window_goes_to_those_in_front_and_what_they_leave_to_whom_it_is_enough_for(database: Database, seed: int) -> None:
    rng = random.Random(seed)
    units = [rng.choice([1, 1, 2, 4, 6, 9, MOST]) for _ in range(rng.randint(1, 12))]
    value = rng.randint(0, MOST)
    gone, again = await _refilled(database, units, 0, NOW - MINUTE)
    assert gone == goes(units, MOST)
    assert gone[:1] == [0], "whoever is in front gets what it wants"
    assert again == NOW + timedelta(milliseconds=250)
    since = NOW - timedelta(seconds=1)
    gone, again = await _refilled(database, units, value, since)
    assert gone == goes_after(units, value)
    assert again == (since + MINUTE if len(gone) < len(units) else None), "nobody is forgotten"


async def test_one_that_wants_more_than_there_ever_is_stands_in_nobodys_way(database: Database) -> None:
    assert await _refilled(database, [MOST + 1, 4, 6, 1], 0, NOW - MINUTE) == ([1, 2], NOW + timedelta(milliseconds=250))
    assert await _refilled(database, [MOST + 1], 0, NOW - MINUTE) == ([], None)


async def test_one_that_was_parked_and_is_not_any_more_keeps_nobody_from_its_turn(database: Database) -> None:
    """As a task may have been left before the rows told of it themselves: it is passed over."""
    await database.execute(PARKED, NOW, BUCKET, [1, 1])
    await database.execute(LIMIT, BUCKET, MOST, 0, NOW - MINUTE, NOW)
    async with database.transaction() as conn:
        await conn.execute("set local session_replication_role = 'replica'")
        await conn.execute("update tasks set state = 'settled', status = 'cancelled' where run_id = 'run_0001'")
    assert await rate_limits.refill(database, NOW, 100, 1_000) == [(1, 1, "")]
    assert await database.fetchval("select parked_on from tasks where state = 'settled'") is not None
    await database.execute("delete from tasks")
    await database.execute("delete from rate_limits")


async def test_whoever_moves_a_parked_task_on_takes_it_away_from_its_limit(database: Database) -> None:
    await database.execute(PARKED, NOW, BUCKET, [1] * 4)
    for n, change in enumerate(("'queued'", "'running', dispatcher_id = 1", "'settled', status = 'cancelled'", "'gated', priority = 2"), 1):
        await database.execute(f"update tasks set state = {change} where run_id = 'run_000{n}'")
    left = await database.fetch("select run_id, parked_for from tasks where parked_on is not null or parked_for is not null")
    assert [(row["run_id"], row["parked_for"]) for row in left] == [("run_0004", 1)]
    await database.execute("delete from tasks")


async def test_buckets_that_somebody_is_parked_on_and_nobody_fills_are_found(database: Database) -> None:
    """And no others: not those on which there are only tasks that want more than the limit ever gives."""
    later = NOW + MINUTE
    await database.execute(PARKED, NOW, BUCKET, [1, 2])
    await database.execute(PARKED.replace("select 1,", "select 2,"), NOW, BUCKET, [MOST + 1])
    await database.execute(PARKED.replace("select 1,", "select 3,"), NOW, BUCKET, [3])
    for tenant in (1, 2, 3, 4):
        await database.execute(LIMIT.replace("values (1,", f"values ({tenant},"), BUCKET, MOST, 0, NOW, later if tenant == 3 else None)
    assert await rate_limits.refill_again(database, NOW) == 1
    assert await rate_limits.refill_again(database, NOW) == 0
    found = await database.fetch("select refill_at from rate_limits order by tenant_id")
    assert [row["refill_at"] for row in found] == [NOW, None, later, None]
    await database.execute("delete from tasks")
    await database.execute("delete from rate_limits")
