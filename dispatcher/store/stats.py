"""Counting what waits and what runs, by task: what autoscalers go by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class TaskCount:
    """Tasks of one node of a workflow that wait or run; `oldest` is when the first of them became ready, or started."""

    workflow: str
    node: int
    task: str | None
    running: bool
    requirement: str
    tasks: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class GroupCount:
    """Tasks of one node of a workflow in one group of a concurrency limit."""

    workflow: str
    node: int
    running: bool
    rule: str
    name: str | None
    strategy: str
    key: str
    tasks: int


@dataclass(frozen=True, slots=True)
class QueueCount:
    """A workflow's queue: `queued` may start as soon as there is a slot, `gated` wait for a limit, `scheduled` for their time."""

    workflow: str
    paused: bool
    queued: int
    gated: int
    scheduled: int
    running: int
    waiting: int
    oldest: datetime | None


TASKS = Statement(
    """
    select w.name as workflow, c.node, n.task, c.running, c.requirement, sum(c.tasks)::int as tasks, min(c.oldest) as oldest
    from (
        select workflow_id, workflow_version, node, state = 'running' as running, requirement, count(*)::int as tasks,
               min(case when state = 'running' then started_at else coalesce(arrived_at, due_at) end) as oldest
        from tasks where tenant_id = $1 and state in ('queued', 'gated', 'running')
        group by workflow_id, workflow_version, node, state = 'running', requirement
    ) c
    join workflows w on w.tenant_id = $1 and w.id = c.workflow_id
    cross join lateral (
        select coalesce(v.definition #>> array['tasks', c.node::text, 'name'],
                        case c.node - jsonb_array_length(v.definition->'tasks')
                            when 0 then coalesce(v.definition #>> '{on_failure,name}', v.definition #>> '{on_success,name}')
                            when 1 then v.definition #>> '{on_success,name}' end) as task
        from workflow_versions v where v.tenant_id = $1 and v.workflow_id = c.workflow_id and v.number = c.workflow_version
    ) n
    group by w.name, c.node, n.task, c.running, c.requirement order by w.name, c.node
    """,
    TaskCount,
)
# The groups with the most members: a limit may have a hundred thousand.
GROUPS = Statement(
    """
    select w.name as workflow, c.node, c.running, g.rule, g.name, g.strategy, left(g.key, 200) as key, c.tasks
    from (
        select workflow_id, node, state = 'running' as running, gate, count(*)::int as tasks
        from tasks, unnest(gates) as gate
        where tenant_id = $1 and state in ('queued', 'gated', 'running') and gates is not null
        group by workflow_id, node, state = 'running', gate
        order by count(*) desc limit $2
    ) c
    join gates g on g.tenant_id = $1 and g.id = c.gate
    join workflows w on w.tenant_id = $1 and w.id = c.workflow_id
    order by w.name, c.node, g.rule, c.tasks desc
    """,
    GroupCount,
)
QUEUES = Statement(
    """
    select w.name as workflow, w.paused_at is not null as paused,
           coalesce(sum(c.tasks) filter (where c.state = 'queued'), 0)::int as queued,
           coalesce(sum(c.tasks) filter (where c.state = 'gated'), 0)::int as gated,
           coalesce(sum(c.tasks) filter (where c.state = 'scheduled'), 0)::int as scheduled,
           coalesce(sum(c.tasks) filter (where c.state = 'running'), 0)::int as running,
           coalesce(sum(c.tasks) filter (where c.state = 'waiting'), 0)::int as waiting,
           min(c.oldest) filter (where c.state in ('queued', 'gated')) as oldest
    from workflows w
    left join (
        select workflow_id, state, count(*)::int as tasks, min(coalesce(arrived_at, due_at)) as oldest
        from tasks where tenant_id = $1 and state <> 'settled' group by workflow_id, state
    ) c on c.workflow_id = w.id
    where w.tenant_id = $1 and w.name > $2
    group by w.name, w.paused_at order by w.name limit $3
    """,
    QueueCount,
)


async def tasks(db: Database, tenant_id: int) -> list[TaskCount]:
    """What waits and runs, by task."""
    return TASKS.read(await db.fetch(TASKS.sql, tenant_id))


async def groups(db: Database, tenant_id: int, most: int) -> list[GroupCount]:
    """The largest groups of what is limited in its concurrency."""
    return GROUPS.read(await db.fetch(GROUPS.sql, tenant_id, most))


async def queues(db: Database, tenant_id: int, after: str, limit: int) -> list[QueueCount]:
    """Queues by the name of their workflow, behind `after`."""
    return QUEUES.read(await db.fetch(QUEUES.sql, tenant_id, after, limit))
