"""The queue: what is ready, claiming it, and moving what has come due. Each is one statement over a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from dispatcher.engine.admission import Place, Queue, Slot, endpoint_at
from dispatcher.engine.attempts import Sparer
from dispatcher.store.database import Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Ready:
    """How many tasks wait in a queue, counted no further than was asked."""

    tenant_id: int
    workflow_id: int
    requirement: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A task leased to this dispatcher, with all its request needs."""

    tenant_id: int
    run_id: str
    node: int
    workflow_id: int
    workflow_version: int
    epoch: int
    priority: int
    app_retries: int
    infra_retries: int
    spared_since: datetime | None
    spared_by: Sparer | None
    endpoint_id: str
    endpoint_version: str
    started_at: datetime
    deadline: datetime
    input: bytes
    metadata: str | None
    run_priority: int
    event_id: str | None
    parent_run_id: str | None
    graph: str | None
    filter_payload: bytes | None
    retry_base: int
    units: str | None
    schedule_deadline: datetime | None
    requirement: str
    slots: int
    waited: bool
    pin_endpoint: str | None

    @property
    def key(self) -> tuple[int, str, int]:
        """Which task."""
        return (self.tenant_id, self.run_id, self.node)


@dataclass(frozen=True, slots=True)
class Line:
    """A queue that has work."""

    tenant_id: int
    workflow_id: int
    requirement: str


READY = Statement(
    """
    select g.tenant_id, g.workflow_id, g.requirement, waiting
    from unnest($1::int[], $2::int[], $3::text[], $4::int[]) as g (tenant_id, workflow_id, requirement, most)
    cross join lateral (
        select count(*)::int as waiting from (
            select from tasks t
            where t.tenant_id = g.tenant_id and t.workflow_id = abs(g.workflow_id) and t.durable = (g.workflow_id < 0)
              and t.requirement = g.requirement and t.state = 'queued'
            order by t.priority desc, t.due_at limit g.most -- as the index of what is ready has them, so that no other is taken
        ) counted
    ) counts
    where waiting > 0
    """,
    Ready,
)

# A queue's rows are numbered in the order they are taken, and each number looks up its slot: `base` is where the queue's slots begin
# in $5, which holds, for every slot, the number of its place in $6 and $7. (Arrays per queue would be copied into every row.)
# Who deals slots out may not have heard of a pause yet, or of a circuit that has been opened. What is queued after that is seen with it.
# What is drained takes what has to stay there.
# What is late is left, but for what is to have its time again since an endpoint came back: that is leased in its turn.
CLAIM = Statement(
    """
    with closed as materialized (
        select o.place, not (e.paused or e.circuit <> 'closed') as drained
        from unnest($6::text[], $12::int[]) with ordinality as o (endpoint_id, tenant_id, place)
        join endpoints e on e.tenant_id = o.tenant_id and e.id = o.endpoint_id and (e.paused or e.circuit <> 'closed' or e.draining)
    ), picked as materialized (
        select w.tenant_id, p.run_id, p.node,
               ($5::int[])[w.base + row_number() over (
                   partition by w.place order by p.priority desc, p.due_at, p.run_id, p.node
               )] as place, p.schedule_deadline, w.slots
        from unnest($1::int[], $2::int[], $3::int[], $4::int[], $10::text[], $11::int[]) with ordinality
             as w (tenant_id, workflow_id, n, base, requirement, slots, place)
        cross join lateral (
            select run_id, node, priority, due_at, schedule_deadline from tasks t
            where t.tenant_id = w.tenant_id and t.workflow_id = abs(w.workflow_id) and t.durable = (w.workflow_id < 0)
              and t.requirement = w.requirement and t.state = 'queued'
              and (t.schedule_deadline is null or t.schedule_deadline > $9 or (
                  select true from renewals n
                  where n.tenant_id = t.tenant_id and n.workflow_id = t.workflow_id and n.late_at >= t.schedule_deadline limit 1))
            order by priority desc, due_at, run_id, node limit w.n for update skip locked
        ) p
        where not exists (
            select from workflows f where f.tenant_id = w.tenant_id and f.id = abs(w.workflow_id) and f.paused_at is not null)
    )
    update tasks t
    set state = 'running', epoch = t.epoch + 1, dispatcher_id = $8, endpoint_id = ($6::text[])[p.place],
        endpoint_version = ($7::text[])[p.place], started_at = $9,
        deadline = $9::timestamptz + t.execution_ms * interval '1 millisecond', schedule_deadline = null,
        slot_released = false, progress = null, slots = p.slots, batch_id = null
    from picked p
    join runs r on r.tenant_id = any (array[p.tenant_id]) and r.id = p.run_id
    where t.tenant_id = any (array[p.tenant_id]) and t.run_id = p.run_id and t.node = p.node
      and p.place not in (select place from closed where not drained)
      and (p.place not in (select place from closed where drained)
           or stays_at(t.requirement, t.pin_endpoint) is not distinct from ($6::text[])[p.place])
    returning t.tenant_id, t.run_id, t.node, t.workflow_id, t.workflow_version, t.epoch, t.priority, t.app_retries, t.infra_retries,
              t.spared_since, t.spared_by, t.endpoint_id, t.endpoint_version, t.started_at, t.deadline,
              r.input, r.metadata, r.priority as run_priority, r.event_id, r.parent_run_id, r.graph,
              r.filter_payload, t.retry_base, case when not t.units_taken then t.flow->'units' end as units, p.schedule_deadline,
              t.requirement, t.slots, t.parked_for is not null as waited, t.pin_endpoint
    """,
    Claimed,
)

PROMOTE = Statement(
    """
    update tasks set state = 'queued'
    where (tenant_id, run_id, node) in (
        select tenant_id, run_id, node from tasks where state = 'scheduled' and due_at <= $1
        order by due_at limit $2 for update skip locked
    )
    returning tenant_id, case when durable then -workflow_id else workflow_id end as workflow_id, requirement
    """,
    Line,
)

# Which requirements a workflow's waiting tasks have, behind one of each kind, found by stepping from one to the next through the index.
REQUIREMENTS = Statement(
    """
    select g.tenant_id, case when k.durable then -g.workflow_id else g.workflow_id end as workflow_id, d.requirement
    from unnest($1::int[], $2::int[], $4::text[], $5::text[]) as g (tenant_id, workflow_id, after, after_durable)
    cross join lateral (values (false, g.after), (true, g.after_durable)) as k (durable, after)
    cross join lateral (
        with recursive d as (
            (select t.requirement from tasks t
             where t.tenant_id = g.tenant_id and t.workflow_id = g.workflow_id and t.durable = k.durable and t.state = 'queued'
               and t.requirement > k.after order by t.requirement limit 1)
            union all
            select (select t.requirement from tasks t
                    where t.tenant_id = g.tenant_id and t.workflow_id = g.workflow_id and t.durable = k.durable and t.state = 'queued'
                      and t.requirement > d.requirement order by t.requirement limit 1)
            from d where d.requirement is not null
        )
        select d.requirement from d where d.requirement is not null limit $3
    ) d
    """,
    Line,
)

AHEAD = """
    select count(*) from (
        select from tasks t
        where t.tenant_id = $1 and t.workflow_id = abs($2::int) and t.durable = ($2 < 0) and t.requirement = $3 and t.state = 'queued'
          and (t.priority > $4 or (t.priority = $4 and (t.due_at, t.run_id, t.node) < ($5, $6, $7::smallint)))
        limit $8
    ) counted
"""


async def ready(db: Database, most: dict[Queue, int]) -> dict[Queue, int]:
    """Queues that have work, and how much of it up to the number given for each."""
    records = await db.fetch(READY.sql, [q[0] for q in most], [q[1] for q in most], [q[2] for q in most], list(most.values()))
    return {(row.tenant_id, row.workflow_id, row.requirement): row.waiting for row in READY.read(records)}


async def requirements(db: Database, workflows: Sequence[tuple[int, int]], most: int, after: Mapping[tuple[int, int], str]) -> list[Queue]:
    """The queues of tasks that ask something, of (tenant id, workflow id) `workflows`; at most `most` of each, the first in the order of
    what they ask. Where `after` names something (by the number of their queues), only what comes behind that.
    """
    records = await db.fetch(
        REQUIREMENTS.sql,
        [w[0] for w in workflows],
        [w[1] for w in workflows],
        most,
        [after.get((w[0], w[1]), "") for w in workflows],
        [after.get((w[0], -w[1]), "") for w in workflows],
    )
    return [(row.tenant_id, row.workflow_id, row.requirement) for row in REQUIREMENTS.read(records)]


async def claim(db: Database, slots: Sequence[Slot], versions: dict[Place, str], dispatcher_id: int, now: datetime) -> list[Claimed]:
    """Lease the first tasks of the slots' queues to `dispatcher_id`; `versions` names the endpoint version at each place."""
    by_queue: dict[Queue, list[Slot]] = {}
    numbers: dict[Place, int] = {}
    for slot in slots:
        by_queue.setdefault(slot.queue, []).append(slot)
        numbers.setdefault(slot.place, len(numbers) + 1)
    bases = accumulate((len(dealt) for dealt in by_queue.values()), initial=0)
    records = await db.fetch(
        CLAIM.sql,
        [queue[0] for queue in by_queue],
        [queue[1] for queue in by_queue],
        [len(dealt) for dealt in by_queue.values()],
        list(bases)[:-1],
        [numbers[slot.place] for dealt in by_queue.values() for slot in dealt],
        [endpoint_at(place) for place in numbers],
        [versions[place] for place in numbers],
        dispatcher_id,
        now,
        [queue[2] for queue in by_queue],
        [dealt[0].slots for dealt in by_queue.values()],
        [place[0] for place in numbers],
    )
    return CLAIM.read(records)


async def ahead(db: Database, where: Queue, of: tuple[int, datetime, str, int], most: int) -> int:
    """How many tasks of a queue are taken before the one of this priority, due moment, run and node; counted up to `most`."""
    return int(await db.fetchval(AHEAD, *where, *of, most))


async def promote(db: Database, now: datetime, limit: int) -> list[Queue]:
    """Make at most `limit` scheduled tasks that have come due claimable; answers their queues, one entry a task."""
    return [(row.tenant_id, row.workflow_id, row.requirement) for row in PROMOTE.read(await db.fetch(PROMOTE.sql, now, limit))]
