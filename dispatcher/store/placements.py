"""Where runs are, and which workflows ask something of the endpoints of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dispatcher.engine.admission import Queue
from dispatcher.engine.placement import Requirement, moved_to
from dispatcher.store import registry
from dispatcher.store.database import Database
from dispatcher.store.outcomes import Applied
from dispatcher.store.queue import Claimed, Line
from dispatcher.store.statement import Statement

# Where the task is that asks; of a run that says no more than its id, the endpoint it is bound to, or that of the task that began last. At
# one that is drained it is only if it goes on there.
ENDPOINT_OF = """
    select coalesce((
        select coalesce(t.endpoint_id, t.pin_endpoint) from tasks t where t.tenant_id = $1 and t.run_id = $2 and t.node = $3
    ), (
        select p.endpoint_id from (
            select 1 as rank, r.sticky_endpoint as endpoint_id, null::timestamptz as began,
                   run_stays_at($1, r.workflow_id, r.workflow_version, r.sticky_endpoint) is not null as goes_on
            union all
            select 2, t.endpoint_id, t.started_at, t.state = 'running' from tasks t where t.tenant_id = $1 and t.run_id = $2
        ) p
        where p.endpoint_id is not null
          and (p.goes_on or not exists (select from endpoints e where e.tenant_id = $1 and e.id = p.endpoint_id and e.draining))
        order by p.rank, p.began desc nulls last limit 1
    ))
    from runs r where r.tenant_id = $1 and r.id = $2
"""

# Of a run that has begun at another endpoint already, or had to begin again, nothing is changed by where the next of its tasks begins.
STAY = Statement(
    """
    with given as materialized (
        select * from unnest($1::int[], $2::text[], $3::smallint[], $4::text[], $5::text[])
            as g (tenant_id, run_id, node, endpoint_id, requirement)
    ), moved as (
        update tasks t set requirement = g.requirement
        from given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = 1 and t.state = 'running'
          and (select true from tasks o
               where o.tenant_id = g.tenant_id and o.run_id = g.run_id and o.node <> g.node and o.epoch > 0
                 and o.endpoint_id is distinct from g.endpoint_id limit 1) is null
        returning t.tenant_id, t.run_id, t.node, g.endpoint_id
    ), bound as (
        update runs r set sticky_endpoint = m.endpoint_id
        from moved m where r.tenant_id = any (array[m.tenant_id]) and r.id = m.run_id
    )
    select tenant_id, run_id, node from moved
    """,
    Applied,
)

# Of a run that has several tasks under way, one may have been bound by another already: that holds for all. To an endpoint that is drained
# nobody is.
BIND = Statement(
    """
    with picked as materialized (
        select t.run_id, t.node, row_number() over (order by t.priority desc, t.due_at, t.run_id, t.node) as place
        from (
            select * from tasks
            where tenant_id = $1 and workflow_id = abs($2::int) and durable = ($2 < 0) and requirement = $3 and state = 'queued'
            order by priority desc, due_at, run_id, node limit cardinality($4::text[]) for update skip locked
        ) t
    ), free as materialized (
        select p.* from picked p
        where not exists (select from endpoints e where e.tenant_id = $1 and e.id = ($4::text[])[p.place] and e.draining)
    ), bound as (
        update runs r set sticky_endpoint = coalesce(r.sticky_endpoint, ($4::text[])[p.place])
        from (select run_id, min(place) as place from free group by run_id) p
        where r.tenant_id = any (array[$1]) and r.id = p.run_id
        returning r.id, r.sticky_endpoint
    )
    update tasks t set requirement = $5 || b.sticky_endpoint || $6
    from free p join bound b on b.id = p.run_id
    where t.tenant_id = any (array[$1]) and t.run_id = p.run_id and t.node = p.node
    returning t.tenant_id, case when t.durable then -t.workflow_id else t.workflow_id end as workflow_id, t.requirement
    """,
    Line,
)
_SOMEWHERE = "?"  # no endpoint has such an id


async def endpoint_of(db: Database, tenant_id: int, run_id: str, node: int | None) -> str | None:
    """The endpoint a task of a live run is at, or without a `node` the run; None where it has not begun, is over or is at one that is
    drained and does not go on there.
    """
    found: str | None = await db.fetchval(ENDPOINT_OF, tenant_id, run_id, node)
    return found


async def stay(db: Database, claimed: list[Claimed]) -> list[Claimed]:
    """What has been leased, as it asks from now on: soft runs that begin at another endpoint than they were made for stay there."""
    asking = {row.key: asks for row in claimed if row.epoch == 1 and (asks := moved_to(row.requirement, row.endpoint_id)) is not None}
    if not asking:
        return claimed
    rows = [row for row in claimed if row.key in asking]
    records = await db.fetch(
        STAY.sql,
        [row.tenant_id for row in rows],
        [row.run_id for row in rows],
        [row.node for row in rows],
        [row.endpoint_id for row in rows],
        list(asking.values()),
    )
    moved = {(row.tenant_id, row.run_id, row.node) for row in STAY.read(records)}
    return [replace(row, requirement=asking[row.key]) if row.key in moved else row for row in claimed]


async def mark_asking(db: Database, tenant_id: int, workflow_id: int) -> None:
    """Let every dispatcher look for the queues of tasks of a workflow that ask something."""
    async with db.transaction() as conn:
        await registry.bump(conn, tenant_id)
        await registry.mark_asking(conn, tenant_id, workflow_id)


async def bind(db: Database, queue: Queue, where: Sequence[str]) -> set[Queue]:
    """Let the runs of the first tasks of a queue stay at the endpoints `where`, one for each; answers the queues they wait in then."""
    head, member, tail = replace(Requirement.parse(queue[2]), endpoint=_SOMEWHERE).text().partition(f'"endpoint":"{_SOMEWHERE}"')
    before, after = member.split(_SOMEWHERE)
    records = await db.fetch(BIND.sql, queue[0], queue[1], queue[2], list(where), head + before, after + tail)
    return {(row.tenant_id, row.workflow_id, row.requirement) for row in BIND.read(records)}
