"""What became late while no endpoint could take it, and has its time again as one comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Stranded:
    """A workflow that endpoints serve, of which none takes work."""

    workflow_id: int


@dataclass(frozen=True, slots=True)
class Returned:
    """How many of a page were given time, and the latest of the deadlines they had; None where there were none."""

    late: datetime | None
    count: int


# Of those that an endpoint serves, or is about to by the names it gives ($3), where nothing else keeps it from taking work: it is paused no
# more, and its circuit closes.
STRANDED = Statement(
    """
    select w.id as workflow_id from workflows w
    where w.tenant_id = $1
      and (w.name = any ($3::text[])
           or exists (select from routes r where r.tenant_id = $1 and r.workflow_id = w.id and r.endpoint_id = $2))
      and not exists (select from endpoints e where e.tenant_id = $1 and e.id = $2
                      and (e.paused and not $4::boolean or e.circuit <> 'closed' and $4::boolean))
      and exists (select from routes r where r.tenant_id = $1 and r.workflow_id = w.id)
      and not exists (select from routes o join endpoints e on e.tenant_id = o.tenant_id and e.id = o.endpoint_id
                      where o.tenant_id = $1 and o.workflow_id = w.id and e.circuit = 'closed' and not e.paused)
    """,
    Stranded,
)
# The same as RETURNED and RETURNED_RUNS a page at a time, before the endpoint comes back: what is late may be more than one statement can
# change in its time. What somebody else has at hand is left to the whole.
SOME = Statement(
    """
    with late as materialized (
        select t.tenant_id, t.run_id, t.node, t.schedule_deadline from tasks t
        where t.schedule_deadline >= coalesce($4::timestamptz, '-infinity') and t.schedule_deadline <= $3
          and t.tenant_id = $1 and t.workflow_id = any ($2::int[])
          and t.state in ('queued', 'gated', 'scheduled') and t.cleanup is null
        order by t.schedule_deadline limit $5 for update skip locked
    ), returned as (
        update tasks t set schedule_deadline = $3::timestamptz + greatest(t.schedule_deadline - t.due_at, interval '1 minute')
        from late l where t.tenant_id = any (array[l.tenant_id]) and t.run_id = l.run_id and t.node = l.node
    )
    select max(schedule_deadline) as late, count(*)::int as count from late
    """,
    Returned,
)
SOME_RUNS = Statement(
    """
    with late as materialized (
        select q.tenant_id, q.id, q.schedule_deadline from runs q
        where q.schedule_deadline >= coalesce($4::timestamptz, '-infinity') and q.schedule_deadline <= $3
          and q.tenant_id = $1 and q.workflow_id = any ($2::int[]) and q.cancel_reason is null
          and q.gates is not null and q.gates_held < cardinality(q.gates) and q.advance_at is null
        order by q.schedule_deadline limit $5 for update skip locked
    ), returned as (
        update runs q set schedule_deadline = $3::timestamptz + greatest(q.schedule_deadline - q.arrived_at, interval '1 minute')
        from late l where q.tenant_id = any (array[l.tenant_id]) and q.id = l.id
    )
    select max(schedule_deadline) as late, count(*)::int as count from late
    """,
    Returned,
)
# What became late while nobody could take it waits as long again as it could when it became ready. Where another endpoint was there all the
# time it is late for another reason.
RETURNED = """
    update tasks t
    set schedule_deadline = $3::timestamptz + greatest(t.schedule_deadline - t.due_at, interval '1 minute')
    from routes r
    where r.tenant_id = $1 and r.endpoint_id = $2 and t.tenant_id = $1 and t.workflow_id = r.workflow_id
      and t.schedule_deadline <= $3 and t.state in ('queued', 'gated', 'scheduled') and t.cleanup is null
      and exists (select from endpoints e where e.tenant_id = $1 and e.id = $2 and e.circuit = 'closed' and not e.paused)
      and not exists (select from routes o join endpoints e on e.tenant_id = o.tenant_id and e.id = o.endpoint_id
                      where o.tenant_id = $1 and o.workflow_id = r.workflow_id and o.endpoint_id <> $2
                        and e.circuit = 'closed' and not e.paused)
"""
# So do runs of graphs that stood in line meanwhile.
RETURNED_RUNS = """
    update runs q
    set schedule_deadline = $3::timestamptz + greatest(q.schedule_deadline - q.arrived_at, interval '1 minute')
    from routes r
    where r.tenant_id = $1 and r.endpoint_id = $2 and q.tenant_id = $1 and q.workflow_id = r.workflow_id
      and q.schedule_deadline <= $3 and q.cancel_reason is null
      and q.gates is not null and q.gates_held < cardinality(q.gates) and q.advance_at is null
      and exists (select from endpoints e where e.tenant_id = $1 and e.id = $2 and e.circuit = 'closed' and not e.paused)
      and not exists (select from routes o join endpoints e on e.tenant_id = o.tenant_id and e.id = o.endpoint_id
                      where o.tenant_id = $1 and o.workflow_id = r.workflow_id and o.endpoint_id <> $2
                        and e.circuit = 'closed' and not e.paused)
"""


async def stranded(db: Database, tenant_id: int, endpoint_id: str, names: Sequence[str], *, paused: bool) -> list[int]:
    """Workflows that an endpoint serves, or is about to, and nobody else takes: `paused` where it is to be paused no more, else its circuit
    is to close.
    """
    found = STRANDED.read(await db.fetch(STRANDED.sql, tenant_id, endpoint_id, list(names), paused))
    return [row.workflow_id for row in found]


async def some(db: Database, tenant_id: int, workflow_ids: Sequence[int], now: datetime, late: datetime | None, limit: int) -> Returned:
    """Give time to tasks of these workflows that are late, `limit` of them at most, from the deadline `late` on."""
    return SOME.read(await db.fetch(SOME.sql, tenant_id, list(workflow_ids), now, late, limit))[0]


async def some_runs(
    db: Database, tenant_id: int, workflow_ids: Sequence[int], now: datetime, late: datetime | None, limit: int
) -> Returned:
    """The same for runs of graphs that stand in line."""
    return SOME_RUNS.read(await db.fetch(SOME_RUNS.sql, tenant_id, list(workflow_ids), now, late, limit))[0]


async def returned(conn: Connection, tenant_id: int, endpoint_id: str, now: datetime) -> None:
    """An endpoint takes work again: give time to what became late while it did not. Nothing, if it does not after all."""
    await conn.execute(RETURNED, tenant_id, endpoint_id, now)
    await conn.execute(RETURNED_RUNS, tenant_id, endpoint_id, now)
