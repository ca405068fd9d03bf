"""Leasing tasks that are run many at once: a whole batch in one statement, or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.engine.admission import Queue
from dispatcher.engine.placement import Requirement
from dispatcher.store.database import Connection, Database
from dispatcher.store.queue import Claimed
from dispatcher.store.statement import Statement

Group = tuple[int, int, str]
"""(tenant id, workflow id, key): tasks that are batched with each other where they ask the same of their endpoint."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What waits in one queue, counted up to the size of a batch."""

    tenant_id: int
    workflow_id: int
    requirement: str
    waiting: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class RunningRow:
    """How many batches of one queue run."""

    tenant_id: int
    workflow_id: int
    requirement: str
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
    select g.tenant_id, g.workflow_id, g.requirement, c.waiting, c.oldest
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
# Tasks of one group may wait in several queues, since what else they ask of their endpoint may differ.
RUNNING = Statement(
    """
    select g.tenant_id, g.workflow_id, b.requirement, count(distinct b.batch_id)::int as running
    from unnest($1::int[], $2::int[]) as g (tenant_id, workflow_id)
    cross join lateral (
        select t.requirement, t.batch_id from tasks t
        where t.tenant_id = g.tenant_id and t.workflow_id = g.workflow_id and t.batch_id is not null and t.state = 'running' offset 0
    ) b
    group by g.tenant_id, g.workflow_id, b.requirement
    """,
    RunningRow,
)
# One dispatcher at a time fills batches of a queue: two at once would each find half a batch. Where so many of a group may run, one at a
# time fills batches of that.
LOCK = "select pg_advisory_xact_lock(hashtextextended($1, 7240157))"
CLAIM = Statement(
    """
    with picked as materialized (
        select run_id, node, due_at, schedule_deadline from tasks t
        where t.tenant_id = $1 and t.workflow_id = $2 and not t.durable and t.requirement = $3 and t.state = 'queued'
          and (t.schedule_deadline is null or t.schedule_deadline > $6 or (
              select true from renewals n
              where n.tenant_id = t.tenant_id and n.workflow_id = t.workflow_id and n.late_at >= t.schedule_deadline limit 1))
          and not exists (select from workflows f where f.tenant_id = $1 and f.id = $2 and f.paused_at is not null)
          and not exists (select from endpoints e where e.tenant_id = $1 and e.id = $8 and (
              e.paused or e.circuit <> 'closed' or e.draining and stays_at($3, null) is distinct from e.id))
        order by priority desc, due_at, run_id, node limit $12 for update skip locked
    ), whole as (
        select from picked having count(*) >= $4 or min(due_at) + $5::interval <= $6
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
              r.filter_payload, t.retry_base, null::jsonb as units, p.schedule_deadline, t.requirement, t.slots, false as waited,
              null::text as pin_endpoint
    """,
    Claimed,
)


async def groups(db: Database, queues: Sequence[tuple[Queue, int]]) -> list[GroupRow]:
    """What waits in queues, each counted up to the number given with it."""
    keys = [queue for queue, _ in queues]
    return GROUPS.read(
        await db.fetch(GROUPS.sql, [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], [most for _, most in queues])
    )


async def running(conn: Connection | Database, workflows: Collection[tuple[int, int]]) -> Counter[Group]:
    """How many batches of each group of these workflows run."""
    found: Counter[Group] = Counter()
    if workflows:
        records = await conn.fetch(RUNNING.sql, [w[0] for w in workflows], [w[1] for w in workflows])
        for row in RUNNING.read(records):
            found[group((row.tenant_id, row.workflow_id, row.requirement))] += row.running
    return found


def group(queue: Queue) -> Group:
    """What the tasks of a queue are batched with."""
    return (queue[0], queue[1], Requirement.parse(queue[2]).batch or "")


async def claim(db: Database, wanted: BatchClaim, dispatcher_id: int, now: datetime) -> list[Claimed]:
    """Lease a batch; nothing when it is neither full nor due, or too many of its group run."""
    tenant_id, workflow_id, requirement = wanted.queue
    of = group(wanted.queue)
    async with db.transaction() as conn:
        await conn.execute(LOCK, repr(of) if wanted.most is not None else f"{tenant_id}:{workflow_id}:{requirement}")
        if wanted.most is not None and (await running(conn, [of[:2]]))[of] >= wanted.most:
            return []
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
                wanted.room,
            )
        )
