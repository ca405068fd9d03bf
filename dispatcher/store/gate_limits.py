"""How many a gate lets in: what workflows declare, and what somebody has set otherwise for a time.

Both are rows of their own and hold from their commit on. What a gate has of them, its number and that somebody at it may have room now, is
brought to the gates a page at a time: a limit may have more groups than a statement can change in its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from dispatcher.engine.definitions.flow import Strategy
from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement

FIRST: Final = str(UUID(int=0))
"""Before the id of any gate."""
_PAGE = 1_000
_ANY_TENANT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A shared limit that is other than declared, until somebody or the clock takes it away."""

    name: str
    max_runs: int
    until: datetime | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DeclaredRow:
    """The definition (JSON text) of a workflow that may declare limits."""

    workflow_id: int
    definition: str


@dataclass(frozen=True, slots=True)
class EndedRow:
    """A shared limit that is as declared again."""

    tenant_id: int
    name: str


@dataclass(frozen=True, slots=True)
class Last:
    """The last gate of a page that was looked at."""

    tenant_id: int
    id: str


LIMITS = Statement(
    """
    select name, max_runs, until, updated_at from concurrency_limits where tenant_id = $1 and name > $2 order by name limit $3
    """,
    LimitRow,
)
SET_LIMIT = Statement(
    """
    insert into concurrency_limits (tenant_id, name, max_runs, until, updated_at) values ($1, $2, $3, $4, $5)
    on conflict (tenant_id, name) do update set max_runs = excluded.max_runs, until = excluded.until, updated_at = excluded.updated_at
    returning name, max_runs, until, updated_at
    """,
    LimitRow,
)
DROP_LIMIT = "delete from concurrency_limits where tenant_id = $1 and name = $2 returning name"
EXPIRE_LIMITS = Statement("delete from concurrency_limits where until <= $1 returning tenant_id, name", EndedRow)

# Whoever is about to stand in line is not seen before the commit, so the page is locked: it waits for them.
ROUSE = Statement(
    """
    with page as materialized (
        select g.tenant_id, g.id, g.waiting from gates g where g.tenant_id = $1 and g.name = $2 and g.id > $3::uuid
        order by g.id limit $4 for no key update
    ), roused as (
        update gates g set wake = true from page p
        where p.waiting > 0 and g.tenant_id = any (array[p.tenant_id]) and g.id = any (array[p.id])
    )
    select tenant_id, id::text from page order by id desc limit 1
    """,
    Last,
)

# Who declares holds the tenant's row, so that nobody else does meanwhile. `most` is null where each run says its own number.
DECLARE = """
    insert into declared_limits as l (tenant_id, id, rule, most, strategy)
    select $1, sha256(convert_to(d.rule, 'UTF8')), d.rule, d.most, d.strategy
    from unnest($2::text[], $3::int[], $4::text[]) as d (rule, most, strategy)
    on conflict (tenant_id, id) do update set most = excluded.most, strategy = excluded.strategy
    where l.most is distinct from excluded.most or l.strategy <> excluded.strategy
"""
UNDECLARE = "delete from declared_limits where tenant_id = $1 and starts_with(rule, $2)"
# What workflows that are served declare, if it has anything of limits in it.
DECLARED = Statement(
    """
    select w.id as workflow_id, v.definition::text as definition
    from workflows w join workflow_versions v on v.tenant_id = w.tenant_id and v.workflow_id = w.id and v.number = w.version
    where w.tenant_id = $1 and w.removed_at is null and v.definition::text like '%"concurrency"%'
      and exists (select from routes r where r.tenant_id = w.tenant_id and r.workflow_id = w.id)
    """,
    DeclaredRow,
)

# Gates that do not go by what is declared now; and those where somebody waits, there is room, and nobody looks: what would be a lost
# wake-up, if there were any.
FOLLOW = Statement(
    """
    with page as materialized (
        select tenant_id, id from gates where (tenant_id, id) > ($1, $2::uuid) and tenant_id <= $4 order by tenant_id, id limit $3
    ), behind as materialized (
        select g.tenant_id, g.id, g.waiting, case when d.rule is null then g.most else coalesce(d.most, g.most) end as most,
               coalesce(d.strategy, g.strategy) as strategy, case when d.rule is null then g.fixed else d.most is not null end as fixed
        from page p
        join gates g on g.tenant_id = any (array[p.tenant_id]) and g.id = any (array[p.id])
        left join lateral (
            select d.rule, d.most, d.strategy from declared_limits d
            where d.tenant_id = g.tenant_id and d.id = sha256(convert_to(g.rule, 'UTF8')) offset 0
        ) d on true
        where g.most <> d.most or g.strategy <> d.strategy or (d.rule is not null and g.fixed <> (d.most is not null))
           or (g.waiting > 0 and not g.wake and g.held < gate_limit(g))
        order by g.tenant_id, g.id for no key update of g
    ), followed as (
        update gates g set most = b.most, strategy = b.strategy, fixed = b.fixed, wake = g.wake or g.waiting > 0
        from behind b where g.tenant_id = any (array[b.tenant_id]) and g.id = any (array[b.id])
    )
    select tenant_id, id::text from page order by tenant_id desc, id desc limit 1
    """,
    Last,
)


async def limits(db: Database, tenant_id: int, after: str, limit: int) -> list[LimitRow]:
    """Shared limits that are other than declared, behind the name `after`."""
    return LIMITS.read(await db.fetch(LIMITS.sql, tenant_id, after, limit))


async def put(db: Database, tenant_id: int, name: str, max_runs: int, until: datetime | None, now: datetime) -> LimitRow:
    """Let a shared limit be other than declared, for good or until a moment."""
    row = SET_LIMIT.read(await db.fetch(SET_LIMIT.sql, tenant_id, name, max_runs, until, now))[0]
    await _rouse_all(db, tenant_id, name)
    return row


async def drop(db: Database, tenant_id: int, name: str) -> bool:
    """Let a shared limit be as declared again; False when it was."""
    found = await db.fetchval(DROP_LIMIT, tenant_id, name) is not None
    await _rouse_all(db, tenant_id, name)
    return found


async def expire(db: Database, now: datetime) -> list[EndedRow]:
    """Let shared limits whose time is over be as declared again; answers which. Those that wait for them are to be roused."""
    return EXPIRE_LIMITS.read(await db.fetch(EXPIRE_LIMITS.sql, now))


async def rouse(db: Database, tenant_id: int, name: str, after: str, limit: int) -> str | None:
    """Have those looked at that wait at gates of a shared limit, one page of them behind the id `after`; its last id, None at the end."""
    last = ROUSE.read(await db.fetch(ROUSE.sql, tenant_id, name, after, limit))
    return last[0].id if last else None


async def _rouse_all(db: Database, tenant_id: int, name: str) -> None:
    after: str | None = FIRST
    while after is not None:
        after = await rouse(db, tenant_id, name, after, _PAGE)


async def declare(conn: Connection, tenant_id: int, rules: Mapping[str, tuple[int | None, Strategy]]) -> bool:
    """Note what groups go by from now on, whatever runs say that were made before: by rule the number, None for what each run says, and
    the strategy. The tenant's row is held. True where that is news, which gates are to `follow` once it is committed.
    """
    numbers, strategies = [most for most, _ in rules.values()], [strategy for _, strategy in rules.values()]
    return await conn.execute(DECLARE, tenant_id, list(rules), numbers, strategies) != "INSERT 0 0"


async def undeclare(conn: Connection, tenant_id: int, workflow_id: int) -> None:
    """Forget what a workflow declared of groups of its own."""
    await conn.execute(UNDECLARE, tenant_id, f"{workflow_id}:")


async def declared(conn: Connection, tenant_id: int) -> list[DeclaredRow]:
    """What a tenant's workflows that are served declare, those without any limit left out."""
    return DECLARED.read(await conn.fetch(DECLARED.sql, tenant_id))


async def follow(db: Database, tenant_id: int | None = None, limit: int = _PAGE) -> None:
    """Let the gates of a tenant, or all of them, go by what is declared now, so many in each statement."""
    last: Sequence[Last] = [Last(tenant_id or 0, FIRST)]
    while last:
        at, most = last[0], tenant_id or _ANY_TENANT
        last = FOLLOW.read(await db.fetch(FOLLOW.sql, at.tenant_id, at.id, limit, most, lane="settle"))
