"""What is set aside: tasks and runs of workflows of which nothing can start, that would use limits others share.

A task is aside where it is gated and waits at no gate and for no units; a run of a graph, where it has gates, holds none and waits at none.
What is `unschedulable` is aside for a reason of its own (`store/unschedulable.py`).
Whoever moves them holds the workflow's row, so that one does at a time, and nobody closes or opens the workflow meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Aside:
    """A workflow of which something is set aside, or is to be; `aside` None where that is not so any more."""

    tenant_id: int
    workflow_id: int
    aside: Literal["closed", "clearing", "opening"] | None
    aside_at: datetime | None


@dataclass(frozen=True, slots=True)
class Moved:
    """Whether this statement was the one to look, and how many tasks or runs it moved at most."""

    alone: bool
    moved: int


# Nothing of a workflow can start while it is paused, or while every endpoint that serves it is, or is drained. An older version may have
# runs still, so the names any version gives to limits count.
JUDGE = """
    with judged as (
        select w.id, case
            when w.removed_at is null
                 and (w.paused_at is not null
                      or not exists (select from routes r join endpoints e on e.tenant_id = r.tenant_id and e.id = r.endpoint_id
                                     where r.tenant_id = $1 and r.workflow_id = w.id and not e.paused and not e.draining))
                 and exists (select from workflow_versions v where v.tenant_id = $1 and v.workflow_id = w.id
                             and jsonb_path_exists(v.definition, '$.**.concurrency[*].name ? (@ != null)'))
            then 'closed' when w.aside = 'closed' then 'clearing' else w.aside end as aside
        from workflows w where w.tenant_id = $1
    )
    update workflows w set aside = j.aside, aside_at = $2
    from judged j where w.tenant_id = $1 and w.id = j.id and w.aside is distinct from j.aside
"""
# Who was set aside by a statement that began before its workflow opened is found among all that are, by stepping from one workflow to the
# next.
LOOK = Statement(
    """
    with recursive of_tasks as (
        (select t.tenant_id, t.workflow_id from tasks t
         where t.state = 'gated' and t.gate_wait is null and t.parked_on is null and not t.unschedulable
         order by t.tenant_id, t.workflow_id limit 1)
        union all
        select n.tenant_id, n.workflow_id from of_tasks o cross join lateral (
            select t.tenant_id, t.workflow_id from tasks t
            where t.state = 'gated' and t.gate_wait is null and t.parked_on is null and not t.unschedulable
              and (t.tenant_id, t.workflow_id) > (o.tenant_id, o.workflow_id)
            order by t.tenant_id, t.workflow_id limit 1
        ) n
    ), of_runs as (
        (select r.tenant_id, r.workflow_id from runs r
         where r.gates is not null and r.gates_held = 0 and r.gate_wait is null and r.advance_at is null
         order by r.tenant_id, r.workflow_id limit 1)
        union all
        select n.tenant_id, n.workflow_id from of_runs o cross join lateral (
            select r.tenant_id, r.workflow_id from runs r
            where r.gates is not null and r.gates_held = 0 and r.gate_wait is null and r.advance_at is null
              and (r.tenant_id, r.workflow_id) > (o.tenant_id, o.workflow_id)
            order by r.tenant_id, r.workflow_id limit 1
        ) n
    )
    select f.tenant_id, f.workflow_id, w.aside, w.aside_at
    from (
        select tenant_id, workflow_id from of_tasks union select tenant_id, workflow_id from of_runs
        union select tenant_id, id from workflows where aside is not null
    ) f join workflows w on w.tenant_id = f.tenant_id and w.id = f.workflow_id
    order by f.tenant_id, f.workflow_id
    """,
    Aside,
)
# Whose row somebody else has at hand is passed over: it is about to be leased or to end, or is found by the next look. What cleans up after
# it was cancelled keeps its places: its time is short; and so does what goes on at an endpoint that is drained. Before a workflow opens,
# all of it has to have been seen: not while what is late of it has its time again (see LET_BACK).
SET_ASIDE = Statement(
    """
    with w as materialized (
        select tenant_id, id, paused_at is null as drained from workflows
        where tenant_id = $1 and id = $2
          and (aside = 'closed' or aside = 'clearing' and not exists (
              select from renewals n where n.tenant_id = workflows.tenant_id and n.workflow_id = workflows.id))
        for no key update skip locked
    ), there as materialized (
        select e.id from w join endpoints e on e.tenant_id = w.tenant_id
        where w.drained and e.draining and not e.paused and e.circuit <> 'retired'
    ), hard as materialized (
        select v.number from w join workflow_versions v on v.tenant_id = w.tenant_id and v.workflow_id = w.id
        where exists (select from there) and v.definition->>'sticky' = 'hard'
    ), standing as materialized (
        select t.tenant_id, t.run_id, t.node from w cross join lateral (
            select t.tenant_id, t.run_id, t.node from tasks t
            where t.tenant_id = w.tenant_id and t.workflow_id = w.id
              and t.state = 'gated' and (t.gate_wait is not null or t.parked_on is not null) and t.gates is not null and t.cleanup is null
              and not coalesce(stays_at(t.requirement, t.pin_endpoint) in (select id from there), false)
            limit $3 for update skip locked
        ) t
    ), queued as materialized (
        select t.tenant_id, t.run_id, t.node from w cross join lateral (
            select t.tenant_id, t.run_id, t.node from tasks t
            where t.tenant_id = w.tenant_id and t.workflow_id = w.id and t.state = 'queued' and t.gates is not null and t.cleanup is null
              and not coalesce(stays_at(t.requirement, t.pin_endpoint) in (select id from there), false)
            limit $3 for update skip locked
        ) t
    ), runs_standing as materialized (
        select r.tenant_id, r.id from w cross join lateral (
            select r.tenant_id, r.id from runs r
            where r.tenant_id = w.tenant_id and r.workflow_id = w.id and r.gate_wait is not null and r.cancel_reason is null
              and not coalesce(r.sticky_endpoint in (select id from there) and r.workflow_version in (select number from hard), false)
            limit $3 for update skip locked
        ) r
    ), tasks_moved as (
        update tasks t set state = 'gated', gates_held = 0, gate_wait = null, parked_on = null
        from (select * from queued union all select * from standing) s
        where t.tenant_id = any (array[s.tenant_id]) and t.run_id = s.run_id and t.node = s.node
    ), runs_moved as (
        update runs r set gates_held = 0, gate_wait = null
        from runs_standing s where r.tenant_id = any (array[s.tenant_id]) and r.id = s.id
    )
    select exists (select from w) as alone,
           greatest((select count(*) from standing), (select count(*) from queued), (select count(*) from runs_standing))::int as moved
    """,
    Moved,
)
# All of it, or, of a workflow of which nothing else can start, what has to stay at an endpoint that is drained: it was set aside while that
# was paused. What has its time again is held by a page at a time, and would be overtaken by those behind it: all of it comes before.
LET_BACK = Statement(
    """
    with w as materialized (
        select tenant_id, id, aside is distinct from 'closed' as open, paused_at is null as drained from workflows
        where tenant_id = $1 and id = $2 and aside is distinct from 'clearing'
          and not exists (select from renewals n where n.tenant_id = workflows.tenant_id and n.workflow_id = workflows.id)
        for no key update skip locked
    ), there as materialized (
        select e.id from w join endpoints e on e.tenant_id = w.tenant_id
        where not w.open and w.drained and e.draining and not e.paused and e.circuit <> 'retired'
    ), hard as materialized (
        select v.number from w join workflow_versions v on v.tenant_id = w.tenant_id and v.workflow_id = w.id
        where exists (select from there) and v.definition->>'sticky' = 'hard'
    ), able as materialized (
        select tenant_id, id, open from w where open or exists (select from there)
    ), first_tasks as materialized (
        select t.tenant_id, t.run_id, t.node from able w cross join lateral (
            select t.tenant_id, t.run_id, t.node from tasks t
            where t.tenant_id = w.tenant_id and t.workflow_id = w.id
              and t.state = 'gated' and t.gate_wait is null and t.parked_on is null and not t.unschedulable
              and (w.open or stays_at(t.requirement, t.pin_endpoint) in (select id from there))
            order by t.arrived_at, t.run_id, t.node limit $3 for update skip locked
        ) t
    ), first_runs as materialized (
        select r.tenant_id, r.id from able w cross join lateral (
            select r.tenant_id, r.id from runs r
            where r.tenant_id = w.tenant_id and r.workflow_id = w.id
              and r.gates is not null and r.gates_held = 0 and r.gate_wait is null and r.advance_at is null and r.cancel_reason is null
              and (w.open or r.sticky_endpoint in (select id from there) and r.workflow_version in (select number from hard))
            order by r.arrived_at, r.id limit $3 for update skip locked
        ) r
    ), tasks_moved as (
        update tasks t set gate_wait = t.gates[1] from first_tasks f
        where t.tenant_id = any (array[f.tenant_id]) and t.run_id = f.run_id and t.node = f.node
    ), runs_moved as (
        update runs r set gate_wait = r.gates[1] from first_runs f where r.tenant_id = any (array[f.tenant_id]) and r.id = f.id
    )
    select exists (select from w) as alone,
           greatest((select count(*) from first_tasks), (select count(*) from first_runs))::int as moved
    """,
    Moved,
)
CLEARED = "update workflows set aside = 'opening', aside_at = $3 where tenant_id = $1 and id = $2 and aside = 'clearing'"
OPENED = """
    update workflows w set aside = null, aside_at = $3
    where w.tenant_id = $1 and w.id = $2 and w.aside = 'opening'
      and (select true from tasks t where t.tenant_id = w.tenant_id and t.workflow_id = w.id
           and t.state = 'gated' and t.gate_wait is null and t.parked_on is null and not t.unschedulable limit 1) is null
      and (select true from runs r where r.tenant_id = w.tenant_id and r.workflow_id = w.id
           and r.gates is not null and r.gates_held = 0 and r.gate_wait is null and r.advance_at is null limit 1) is null
    returning w.id
"""


async def judge(conn: Connection, tenant_id: int, now: datetime) -> bool:
    """Say of which workflows nothing can start, as the registry stands in this transaction, which holds it; whether that is news."""
    return await conn.execute(JUDGE, tenant_id, now) != "UPDATE 0"


async def look(db: Database) -> list[Aside]:
    """Workflows of which something is set aside, or is to be."""
    return LOOK.read(await db.fetch(LOOK.sql))


async def set_aside(db: Database, workflow: Aside, limit: int) -> Moved:
    """Take places and turns from what waits for a workflow of which nothing can start, `limit` of each kind at most."""
    return SET_ASIDE.read(await db.fetch(SET_ASIDE.sql, workflow.tenant_id, workflow.workflow_id, limit))[0]


async def cleared(db: Database, workflow: Aside, now: datetime) -> None:
    """Nothing of a workflow that can start again stands in line any more: what is aside comes back now."""
    await db.execute(CLEARED, workflow.tenant_id, workflow.workflow_id, now)


async def let_back(db: Database, workflow: Aside, limit: int) -> Moved:
    """Let those of what is aside and can start that arrived first come back into line, `limit` of each kind at most."""
    return LET_BACK.read(await db.fetch(LET_BACK.sql, workflow.tenant_id, workflow.workflow_id, limit))[0]


async def opened(conn: Connection, workflow: Aside, now: datetime) -> bool:
    """Let a workflow be like any other again, where nothing of it is aside any more; whether it is. The registry's version is bumped."""
    return await conn.fetchval(OPENED, workflow.tenant_id, workflow.workflow_id, now) is not None
