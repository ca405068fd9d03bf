"""Counting what waits and what runs, by task: what autoscalers go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Database
from dispatcher.store.runs import CLOCK_SKEW, PLAN_FOR_VALUES, first_id
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
class StatusCount:
    """Runs in one status."""

    status: str
    runs: int


@dataclass(frozen=True, slots=True)
class CountedRuns:
    """Which runs are counted: those made from `since` on, of these workflows, of this event, children of this run, as far as is said."""

    since: datetime
    until: datetime | None = None
    workflows: Sequence[str] | None = None
    event_id: str | None = None
    parent_run_id: str | None = None


@dataclass(frozen=True, slots=True)
class QueueCount:
    """A workflow's queue: `queued` may start as soon as there is a slot, `gated` (runs of graphs among them) wait for a limit, `scheduled`
    for their time.
    """

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
        union all
        select workflow_id, 'gated', count(*)::int, min(arrived_at)
        from runs where tenant_id = $1 and gates is not null and gates_held < cardinality(gates) and advance_at is null
        group by workflow_id
    ) c on c.workflow_id = w.id
    where w.tenant_id = $1 and w.name > $2 and w.removed_at is null
    group by w.name, w.paused_at order by w.name limit $3
    """,
    QueueCount,
)


# Runs by the moment they were made, which their ids hold.
RUNS = Statement(
    """
    select status, count(*)::int as runs from (
        select case when r.graph ~ '[^-]' or t.state = 'running' then 'running'
                    when t.state in ('waiting', 'blocked') then t.state
                    when t.state = 'scheduled' and t.epoch > 0 then 'pending_retry' else 'queued' end as status
        from runs r left join tasks t on t.tenant_id = $1 and t.run_id = r.id and t.node = 0 and r.graph is null
        where r.tenant_id = $1 and r.id >= $2 and ($3::text is null or r.id < $3)
          and ($4::int[] is null or r.workflow_id = any($4))
          and ($5::text is null or r.event_id = $5) and ($6::text is null or r.parent_run_id = $6)
        union all
        select h.status from run_history h
        where h.tenant_id = $1 and h.finished_at >= $7 and h.id >= $2 and ($3::text is null or h.id < $3)
          and ($4::int[] is null or h.workflow_id = any($4))
          and ($5::text is null or h.event_id = $5) and ($6::text is null or h.parent_run_id = $6)
    ) found group by status
    """,
    StatusCount,
)
WORKFLOW_IDS = "select id from workflows where tenant_id = $1 and name = any($2::text[])"


async def tasks(db: Database, tenant_id: int) -> list[TaskCount]:
    """What waits and runs, by task."""
    return TASKS.read(await db.fetch(TASKS.sql, tenant_id))


async def groups(db: Database, tenant_id: int, most: int) -> list[GroupCount]:
    """The largest groups of what is limited in its concurrency."""
    return GROUPS.read(await db.fetch(GROUPS.sql, tenant_id, most))


async def queues(db: Database, tenant_id: int, after: str, limit: int) -> list[QueueCount]:
    """Queues by the name of their workflow, behind `after`."""
    return QUEUES.read(await db.fetch(QUEUES.sql, tenant_id, after, limit))


async def runs(db: Database, tenant_id: int, wanted: CountedRuns) -> dict[str, int]:
    """How many runs there are in each status that any is in."""
    async with db.transaction() as conn:
        await conn.execute(PLAN_FOR_VALUES)
        workflows = None
        if wanted.workflows is not None:
            workflows = [record[0] for record in await conn.fetch(WORKFLOW_IDS, tenant_id, list(wanted.workflows))]
        until = first_id("run", wanted.until) if wanted.until is not None else None
        given = (first_id("run", wanted.since), until, workflows, wanted.event_id, wanted.parent_run_id, wanted.since - CLOCK_SKEW)
        return {row.status: row.runs for row in RUNS.read(await conn.fetch(RUNS.sql, tenant_id, *given))}
