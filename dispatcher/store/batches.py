"""Leasing tasks that are run many at once: a whole batch in one statement, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.engine.admission import Queue
from dispatcher.store.database import Database
from dispatcher.store.queue import Claimed
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What waits in one queue, counted up to the size of a batch, and how many batches of it run."""

    tenant_id: int
    workflow_id: int
    requirement: str
    waiting: int
    oldest: datetime
    running: int


@dataclass(frozen=True, slots=True)
class BatchClaim:
    """A batch to lease: of which queue, how it is gathered, where it goes. There is room for `room` of `max_size` tasks."""

    queue: Queue
    max_size: int
    room: int
    interval: timedelta
    most: int | None
    endpoint_id: str
    endpoint_version: str
    slots: int
    id: str


GROUPS = Statement(
    """
    select g.tenant_id, g.workflow_id, g.requirement, c.waiting, c.oldest,
           (select count(distinct b.batch_id)::int from tasks b
            where b.tenant_id = g.tenant_id and b.workflow_id = g.workflow_id and b.requirement = g.requirement
              and b.batch_id is not null and b.state = 'running') as running
    from unnest($1::int[], $2::int[], $3::text[], $4::int[]) as g (tenant_id, workflow_id, requirement, most)
    cross join lateral (
        select count(*)::int as waiting, min(due_at) as oldest from (
            select due_at from tasks t
            where t.tenant_id = g.tenant_id and t.workflow_id = g.workflow_id and not t.durable and t.requirement = g.requirement
              and t.state = 'queued'
            order by priority desc, due_at, run_id, node limit g.most
        ) counted
    ) c
    where c.waiting > 0
    """,
    GroupRow,
)
# One dispatcher at a time fills batches of a group: two at once would each find half a batch.
LOCK = "select pg_advisory_xact_lock(hashtextextended($1, 7240157))"
CLAIM = Statement(
    """
    with picked as materialized (
        select run_id, node, due_at, schedule_deadline from tasks t
        where t.tenant_id = $1 and t.workflow_id = $2 and not t.durable and t.requirement = $3 and t.state = 'queued'
          and (t.schedule_deadline is null or t.schedule_deadline > $6)
          and not exists (select from workflows f where f.tenant_id = $1 and f.id = $2 and f.paused_at is not null)
          and not exists (select from endpoints e where e.tenant_id = $1 and e.id = $8 and (e.paused or e.circuit <> 'closed'))
        order by priority desc, due_at, run_id, node limit $13 for update skip locked
    ), whole as (
        select from picked
        having (count(*) >= $4 or min(due_at) + $5::interval <= $6)
           and ($12::int is null or $12 > (
               select count(distinct b.batch_id) from tasks b
               where b.tenant_id = $1 and b.workflow_id = $2 and b.requirement = $3 and b.batch_id is not null and b.state = 'running'))
    )
    update tasks t
    set state = 'running', epoch = t.epoch + 1, dispatcher_id = $7, endpoint_id = $8, endpoint_version = $9, started_at = $6,
        deadline = $6::timestamptz + t.execution_ms * interval '1 millisecond', schedule_deadline = null,
        slot_released = false, progress = null, batch_id = $10, slots = $11::int
    from picked p
    join runs r on r.tenant_id = $1 and r.id = p.run_id
    where t.tenant_id = $1 and t.run_id = p.run_id and t.node = p.node and exists (select from whole)
    returning t.tenant_id, t.run_id, t.node, t.workflow_id, t.workflow_version, t.epoch, t.priority, t.app_retries, t.infra_retries,
              t.spared_since, t.spared_by, t.endpoint_id, t.endpoint_version, t.started_at, t.deadline,
              r.input, r.metadata, r.priority as run_priority, r.event_id, r.parent_run_id, r.graph,
              r.filter_payload, t.retry_base, null::jsonb as units, p.schedule_deadline, t.requirement, t.slots, false as waited
    """,
    Claimed,
)


async def groups(db: Database, queues: Sequence[tuple[Queue, int]]) -> list[GroupRow]:
    """What waits in queues, each counted up to the number given with it."""
    keys = [queue for queue, _ in queues]
    return GROUPS.read(
        await db.fetch(GROUPS.sql, [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], [most for _, most in queues])
    )


async def claim(db: Database, wanted: BatchClaim, dispatcher_id: int, now: datetime) -> list[Claimed]:
    """Lease a batch; nothing when it is neither full nor due, or too many of its group run."""
    tenant_id, workflow_id, requirement = wanted.queue
    async with db.transaction() as conn:
        await conn.execute(LOCK, f"{tenant_id}:{workflow_id}:{requirement}")
        return CLAIM.read(
            await conn.fetch(
                CLAIM.sql,
                tenant_id,
                workflow_id,
                requirement,
                wanted.max_size,
                wanted.interval,
                now,
                dispatcher_id,
                wanted.endpoint_id,
                wanted.endpoint_version,
                wanted.id,
                wanted.slots,
                wanted.most,
                wanted.room,
            )
        )
