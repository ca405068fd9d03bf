"""Queues of tasks nothing can take while others of their workflow can start: which they are, and moving their tasks aside and back.

Who moves tasks holds the rows of their queues, so that one does at a time, and waits for none. Rows are deleted in a transaction that looks
for tasks after it has locked them: who sets a task aside holds them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from dispatcher.engine.admission import Queue
from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement

BEFORE_ALL: Final = (-(2**31), "")
"""What comes before the first queue of a tenant, by number and requirement."""


@dataclass(frozen=True, slots=True)
class Unschedulable:
    """A queue whose tasks are set aside, or come back."""

    tenant_id: int
    queue: int
    requirement: str
    aside: Literal["closed", "clearing", "opening"]

    @property
    def key(self) -> Queue:
        """The queue."""
        return (self.tenant_id, self.queue, self.requirement)


@dataclass(frozen=True, slots=True)
class Named:
    """A queue."""

    tenant_id: int
    queue: int
    requirement: str


@dataclass(frozen=True, slots=True)
class Serving:
    """An endpoint that serves a workflow and is neither paused nor retired. Labels are JSON text."""

    workflow_id: int
    endpoint_id: str
    labels: str
    draining: bool
    slots: int
    durable_slots: int


@dataclass(frozen=True, slots=True)
class Moved:
    """How many of the queues this statement had to itself, and how many tasks it moved."""

    held: int
    moved: int


PAGE = Statement(
    """
    select tenant_id, queue, requirement, aside from unschedulable
    where tenant_id = $1 and (queue, requirement) > ($2, $3) order by queue, requirement limit $4
    """,
    Unschedulable,
)
MOVING = Statement(
    """
    select tenant_id, queue, requirement, aside from unschedulable where aside <> 'closed' order by tenant_id, queue, requirement limit $1
    """,
    Unschedulable,
)
RETURNING = "select distinct abs(queue) from unschedulable where tenant_id = $1 and aside <> 'closed'"
UNKNOWN = Statement(
    """
    select g.tenant_id, g.queue, g.requirement from unnest($1::int[], $2::int[], $3::text[]) as g (tenant_id, queue, requirement)
    where (select true from unschedulable u where u.tenant_id = g.tenant_id and u.queue = g.queue and u.requirement = g.requirement
           limit 1) is null
    """,
    Named,
)
SERVING = Statement(
    """
    select r.workflow_id, e.id as endpoint_id, e.labels::text as labels, e.draining, e.slots, coalesce(e.durable_slots, 0) as durable_slots
    from routes r join endpoints e on e.tenant_id = r.tenant_id and e.id = r.endpoint_id
    where r.tenant_id = $1 and r.workflow_id = any ($2::int[]) and not e.paused and e.circuit <> 'retired'
    """,
    Serving,
)
CLOSE = """
    insert into unschedulable (tenant_id, queue, requirement, aside_at)
    select $1, g.queue, g.requirement, $4 from unnest($2::int[], $3::text[]) as g (queue, requirement)
    on conflict (tenant_id, queue, requirement) do nothing
"""
TURN = """
    update unschedulable u set aside = g.aside, aside_at = $5
    from unnest($2::int[], $3::text[], $4::text[]) as g (queue, requirement, aside)
    where u.tenant_id = $1 and u.queue = g.queue and u.requirement = g.requirement and u.aside <> g.aside
"""
CLEARED = """
    with q as materialized (
        select u.tenant_id, u.queue, u.requirement
        from unnest($1::int[], $2::int[], $3::text[]) as g (tenant_id, queue, requirement)
        cross join lateral (
            select * from unschedulable u
            where u.tenant_id = g.tenant_id and u.queue = g.queue and u.requirement = g.requirement and u.aside = 'clearing'
            for no key update skip locked
        ) u
    )
    update unschedulable u set aside = 'opening', aside_at = $4
    from q where u.tenant_id = q.tenant_id and u.queue = q.queue and u.requirement = q.requirement
"""
# Whose row somebody else has at hand is passed over: it is about to be leased or to end, or is found by the next look. The trigger that
# finds the queue's row marks those that are set aside. What cleans up after it was cancelled keeps its places, as does a durable task that
# has begun. Before what is aside comes back, all of it has to have been seen: not while what is late has its time again (see LET_BACK).
SET_ASIDE = Statement(
    """
    with q as materialized (
        select u.tenant_id, u.queue, u.requirement
        from unnest($1::int[], $2::int[], $3::text[]) as g (tenant_id, queue, requirement)
        cross join lateral (
            select * from unschedulable u
            where u.tenant_id = g.tenant_id and u.queue = g.queue and u.requirement = g.requirement
              and (u.aside = 'closed' or u.aside = 'clearing' and (
                  select true from renewals n where n.tenant_id = u.tenant_id and n.workflow_id = abs(u.queue) limit 1) is null)
            for no key update skip locked
        ) u
    ), queued as materialized (
        select t.tenant_id, t.run_id, t.node from q cross join lateral (
            select t.tenant_id, t.run_id, t.node from tasks t
            where t.tenant_id = q.tenant_id and t.workflow_id = abs(q.queue) and t.durable = (q.queue < 0)
              and t.requirement = q.requirement and t.state = 'queued' and t.gates is not null
              and t.cleanup is null and coalesce(t.turn, 1) = 1 and coalesce(t.log_len, 0) = 0
            order by t.priority desc, t.due_at, t.run_id, t.node limit $4 for update skip locked
        ) t limit $4
    ), standing as materialized (
        select t.tenant_id, t.run_id, t.node from q cross join lateral (
            select t.tenant_id, t.run_id, t.node from tasks t
            where t.tenant_id = q.tenant_id and t.workflow_id = abs(q.queue) and t.durable = (q.queue < 0)
              and t.requirement = q.requirement and t.requirement <> '' and t.state = 'gated'
              and (t.gate_wait is not null or t.parked_on is not null) and t.gates is not null
              and t.cleanup is null and coalesce(t.turn, 1) = 1 and coalesce(t.log_len, 0) = 0
            order by t.arrived_at, t.run_id, t.node limit $4 for update skip locked
        ) t limit $4
    ), moved as (
        update tasks t set state = 'gated', gates_held = 0, gate_wait = null, parked_on = null
        from (select * from queued union all select * from standing) s
        where t.tenant_id = any (array[s.tenant_id]) and t.run_id = s.run_id and t.node = s.node
    )
    select (select count(*) from q)::int as held, greatest((select count(*) from queued), (select count(*) from standing))::int as moved
    """,
    Moved,
)
# Where nothing of their workflow can start they are set aside with it, by the trigger. What has its time again is held by a page at a time,
# and would be overtaken by those behind it: all of their workflow comes before.
LET_BACK = Statement(
    """
    with q as materialized (
        select u.tenant_id, u.queue, u.requirement
        from unnest($1::int[], $2::int[], $3::text[]) as g (tenant_id, queue, requirement)
        cross join lateral (
            select * from unschedulable u
            where u.tenant_id = g.tenant_id and u.queue = g.queue and u.requirement = g.requirement and u.aside = 'opening'
              and (select true from renewals n where n.tenant_id = u.tenant_id and n.workflow_id = abs(u.queue) limit 1) is null
            for no key update skip locked
        ) u
    ), first as materialized (
        select t.tenant_id, t.run_id, t.node from q cross join lateral (
            select t.tenant_id, t.run_id, t.node from tasks t
            where t.tenant_id = q.tenant_id and t.workflow_id = abs(q.queue) and t.durable = (q.queue < 0)
              and t.requirement = q.requirement and t.unschedulable
            order by t.arrived_at, t.run_id, t.node limit $4 for update skip locked
        ) t limit $4
    ), moved as (
        update tasks t set gate_wait = t.gates[1], unschedulable = false from first f
        where t.tenant_id = any (array[f.tenant_id]) and t.run_id = f.run_id and t.node = f.node
    )
    select (select count(*) from q)::int as held, (select count(*) from first)::int as moved
    """,
    Moved,
)
HOLD = Statement(
    """
    select u.tenant_id, u.queue, u.requirement
    from unnest($1::int[], $2::int[], $3::text[]) as g (tenant_id, queue, requirement)
    cross join lateral (
        select * from unschedulable u
        where u.tenant_id = g.tenant_id and u.queue = g.queue and u.requirement = g.requirement and u.aside = $4
        for update skip locked
    ) u
    """,
    Named,
)
FORGET = Statement(
    """
    delete from unschedulable u
    using unnest($1::int[], $2::int[], $3::text[]) as g (tenant_id, queue, requirement)
    where u.tenant_id = g.tenant_id and u.queue = g.queue and u.requirement = g.requirement
      and (select true from tasks t
           where t.tenant_id = u.tenant_id and t.workflow_id = abs(u.queue) and t.durable = (u.queue < 0) and t.requirement = u.requirement
             and t.unschedulable limit 1) is null
    returning u.tenant_id, u.queue, u.requirement
    """,
    Named,
)


async def page(conn: Connection, tenant_id: int, after: tuple[int, str], limit: int) -> list[Unschedulable]:
    """A tenant's rows behind one of them, `limit` at most."""
    return PAGE.read(await conn.fetch(PAGE.sql, tenant_id, *after, limit))


async def moving(db: Database, limit: int) -> list[Unschedulable]:
    """Queues whose tasks come back, or are about to."""
    return MOVING.read(await db.fetch(MOVING.sql, limit))


async def returning(db: Database, tenant_id: int) -> list[int]:
    """Workflows of which there are such."""
    return [record[0] for record in await db.fetch(RETURNING, tenant_id)]


async def unknown(db: Database, queues: Sequence[Queue]) -> list[Queue]:
    """Of these queues those whose tasks are not set aside."""
    return [(row.tenant_id, row.queue, row.requirement) for row in UNKNOWN.read(await db.fetch(UNKNOWN.sql, *_arrays(queues)))]


async def serving(conn: Connection, tenant_id: int, workflow_ids: Sequence[int]) -> list[Serving]:
    """The endpoints that serve workflows and are neither paused nor retired."""
    return SERVING.read(await conn.fetch(SERVING.sql, tenant_id, list(workflow_ids)))


async def close(conn: Connection, tenant_id: int, queues: Sequence[Queue], now: datetime) -> None:
    """Nothing can take the tasks of these queues. The tenant's registry is held."""
    await conn.execute(CLOSE, tenant_id, [q[1] for q in queues], [q[2] for q in queues], now)


async def turn(conn: Connection, tenant_id: int, rows: Sequence[Unschedulable], now: datetime) -> None:
    """Let these rows say what they say here. The tenant's registry is held."""
    await conn.execute(TURN, tenant_id, [r.queue for r in rows], [r.requirement for r in rows], [r.aside for r in rows], now)


async def set_aside(db: Database, queues: Sequence[Queue], limit: int) -> Moved:
    """Take places and turns from tasks of these queues, `limit` of those that hold all places and `limit` of others at most."""
    return SET_ASIDE.read(await db.fetch(SET_ASIDE.sql, *_arrays(queues), limit))[0]


async def cleared(db: Database, queues: Sequence[Queue], now: datetime) -> None:
    """Nothing of these queues stands in line any more: what is aside comes back now."""
    await db.execute(CLEARED, *_arrays(queues), now)


async def let_back(db: Database, queues: Sequence[Queue], limit: int) -> Moved:
    """Let those of these queues that arrived first come back into line, `limit` at most."""
    return LET_BACK.read(await db.fetch(LET_BACK.sql, *_arrays(queues), limit))[0]


async def forget(conn: Connection, queues: Sequence[Queue], aside: Literal["closed", "opening"]) -> int:
    """Delete the rows of these queues that say `aside` and have no task aside; answers how many."""
    held = [(row.tenant_id, row.queue, row.requirement) for row in HOLD.read(await conn.fetch(HOLD.sql, *_arrays(queues), aside))]
    return len(FORGET.read(await conn.fetch(FORGET.sql, *_arrays(held)))) if held else 0


def _arrays(queues: Sequence[Queue]) -> tuple[list[int], list[int], list[str]]:
    return [q[0] for q in queues], [q[1] for q in queues], [q[2] for q in queues]
