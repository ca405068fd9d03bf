"""Runs of graphs: reading where they are, and writing what their rules have decided, each guarded by the run's revision.

A revision moves with everything the rules look at, so a decision made on an old picture changes nothing and is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Database
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.statement import Statement

RunKey = tuple[int, str]  # (tenant id, run id)


@dataclass(frozen=True, slots=True)
class DueRun:
    """A run whose rules have something to look at."""

    tenant_id: int
    id: str


@dataclass(frozen=True, slots=True)
class GraphRow:
    """A run of a graph. `settled`, `statuses` and `ended` are tasks that are over and not yet in the letters, and when; `met` are
    conditions that came true, as nodes and their numbers.
    """

    tenant_id: int
    id: str
    workflow_id: int
    workflow_version: int
    graph: str
    revision: int
    priority: int
    cancel_reason: str | None
    parent_run_id: str | None
    labels: str | None
    sticky_endpoint: str | None
    settled: list[int]
    statuses: list[str]
    ended: list[datetime]
    met_nodes: list[int]
    met: list[int]


@dataclass(frozen=True, slots=True)
class Output:
    """What a task of a graph that is over has given."""

    tenant_id: int
    run_id: str
    node: int
    status: str
    output: bytes | None
    output_type: str | None
    error: str | None


@dataclass(slots=True)
class NewTask:
    """A task of a graph that may run now."""

    node: int
    schedule_ms: int
    execution_ms: int
    durable: bool
    requirement: str = ""
    slots: int = 1


@dataclass(slots=True)
class NewWait:
    """A condition of a task that waits: a moment, or an event since a moment. `id` is its number among the task's conditions."""

    node: int
    id: str
    kind: str
    event_key: str | None
    scope: str | None
    expression: str | None
    since: datetime
    due_at: datetime | None


@dataclass(slots=True)
class Decision:
    """What follows for one run: its letters from now on, what starts, what waits, or how it ends (`finish`).

    `again` is when it is looked at again whatever happens.
    """

    run: GraphRow
    graph: str
    reasons: str | None
    tasks: Sequence[NewTask] = ()
    waits: Sequence[NewWait] = ()
    left: Sequence[int] = ()
    finish: str | None = None
    names: str | None = None
    again: datetime | None = None


DUE = Statement(
    """
    select tenant_id, id from runs
    where advance_at <= $1 and (gates is null or gates_held = cardinality(gates) or cancel_reason is not null)
    order by advance_at limit $2
    """,
    DueRun,
)

LOAD = Statement(
    """
    select r.tenant_id, r.id, r.workflow_id, r.workflow_version, r.graph, r.revision, r.priority, r.cancel_reason, r.parent_run_id,
           r.labels, r.sticky_endpoint, t.settled, t.statuses, t.ended, w.met_nodes, w.met
    from unnest($1::int[], $2::text[]) as g (tenant_id, id)
    cross join lateral (
        select * from runs r
        where r.tenant_id = g.tenant_id and r.id = g.id and r.graph is not null
          and (r.gates is null or r.gates_held = cardinality(r.gates) or r.cancel_reason is not null) offset 0
    ) r
    cross join lateral (
        select coalesce(array_agg(node), '{}') as settled, coalesce(array_agg(status), '{}') as statuses,
               coalesce(array_agg(finished_at), '{}') as ended
        from tasks t
        where t.tenant_id = r.tenant_id and t.run_id = r.id and t.state = 'settled' and substr(r.graph, t.node + 1, 1) = 'a'
    ) t
    cross join lateral (
        select coalesce(array_agg(node), '{}') as met_nodes, coalesce(array_agg(id::int), '{}') as met
        from waits w where w.tenant_id = r.tenant_id and w.run_id = r.id and w.graph and w.outcome = 'ok' and strpos(r.graph, 'w') > 0
    ) w
    """,
    GraphRow,
)

OUTPUTS = Statement(
    """
    select t.tenant_id, t.run_id, t.node, t.status, t.output, t.output_type, t.error
    from unnest($1::int[], $2::text[], $3::smallint[]) as g (tenant_id, run_id, node)
    join tasks t on t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node
    where t.state = 'settled'
    """,
    Output,
)

# A task that is started again keeps the number of its attempts, which fences what is still under way of the earlier ones.
ADVANCE = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::int[], $4::text[], $5::text[], $28::timestamptz[])
            as g (tenant_id, id, revision, graph, reasons, again)
    ), moved as (
        update runs r
        set graph = g.graph, revision = r.revision + 1, advance_at = g.again, reasons = coalesce(r.reasons, '{}') || g.reasons::jsonb
        from given g where r.tenant_id = any (array[g.tenant_id]) and r.id = g.id and r.revision = g.revision
        returning r.tenant_id, r.id, r.workflow_id, r.workflow_version, r.priority, r.flow->'nodes' as flow
    ), started as (
        insert into tasks as t (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, schedule_deadline,
                                execution_ms, durable, gates, gate_limits, preempts, flow, requirement, slots)
        select m.tenant_id, m.id, n.node, m.workflow_id, m.workflow_version, 'queued', m.priority, $12,
               $12::timestamptz + n.schedule_ms * interval '1 millisecond', n.execution_ms, n.durable,
               (select array_agg(v::uuid order by place)
                from jsonb_array_elements_text(m.flow->n.node::text->'ids') with ordinality as e (v, place)),
               (select array_agg((v->>5)::int order by place)
                from jsonb_array_elements(m.flow->n.node::text->'gates') with ordinality as e (v, place)),
               coalesce((m.flow->n.node::text->'preempts')::boolean, false), m.flow->n.node::text,
               n.requirement, n.slots
        from unnest($6::int[], $7::text[], $8::smallint[], $9::bigint[], $10::int[], $11::boolean[], $25::text[], $26::int[])
             as n (tenant_id, id, node, schedule_ms, execution_ms, durable, requirement, slots)
        join moved m using (tenant_id, id)
        on conflict (tenant_id, run_id, node) do update
        set state = 'queued', priority = excluded.priority, due_at = excluded.due_at, schedule_deadline = excluded.schedule_deadline,
            execution_ms = excluded.execution_ms, app_retries = 0, infra_retries = 0, spared_since = null, spared_by = null,
            endpoint_id = null, endpoint_version = null, gates = excluded.gates, gate_limits = excluded.gate_limits,
            preempts = excluded.preempts, flow = excluded.flow, requirement = excluded.requirement, slots = excluded.slots,
            started_at = null, deadline = null, cancel_reason = null, progress = null, units_taken = false,
            status = null, output = null, output_type = null, error = null, finished_at = null
        where t.state = 'settled'
    ), gone as (
        delete from waits w using moved m, unnest($21::int[], $22::text[], $23::smallint[]) as l (tenant_id, id, node)
        where m.tenant_id = l.tenant_id and m.id = l.id
          and w.tenant_id = any (array[l.tenant_id]) and w.run_id = l.id and w.node = l.node and w.graph
    ), armed as (
        insert into waits (tenant_id, run_id, node, id, graph, kind, event_key, scope, expression, since, due_at, look_at, created_at)
        select m.tenant_id, m.id, n.node, n.wait, true, n.kind, n.event_key, n.scope, n.expression, n.since, n.due_at,
               case when n.event_key is not null then $12 end, $12
        from unnest($13::int[], $14::text[], $15::smallint[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[],
                    $27::timestamptz[], $24::timestamptz[])
             as n (tenant_id, id, node, wait, kind, event_key, scope, expression, since, due_at)
        join moved m using (tenant_id, id)
    )
    select tenant_id, id from moved
    """,
    DueRun,
)

# All tasks of a run that ends are over: its rows and theirs move to history together. A task that has run before a replay, and was
# settled without running after it, is what the letters say.
END = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $8::text[])
            as g (tenant_id, id, revision, graph, reasons, status, names)
    ), closed as (
        delete from runs r using given g
        where r.tenant_id = any (array[g.tenant_id]) and r.id = g.id and r.revision = g.revision
        returning r.*, g.graph as last_graph, g.reasons as last_reasons, g.status, g.names
    ), ended as (
        delete from tasks t using closed c where t.tenant_id = any (array[c.tenant_id]) and t.run_id = c.id
        returning t.*, case substr(c.last_graph, t.node + 1, 1) when 'c' then 'cancelled' when 'k' then 'skipped' else t.status end as fate
    ), waits_gone as (
        delete from waits w using closed c where w.tenant_id = any (array[c.tenant_id]) and w.run_id = c.id and w.graph
    ), told as (
        update waits w
        set settled_at = $7, position = nextval('wait_positions'),
            outcome = case c.status when 'succeeded' then 'ok' when 'failed' then 'error' else 'cancelled' end,
            value = case when c.status = 'failed' then convert_to(coalesce(
                        (select e.error::text from ended e where e.tenant_id = c.tenant_id and e.run_id = c.id and e.status = 'failed'
                         order by e.finished_at, e.node limit 1),
                        '{"code": "task_failed", "message": "A task of the run failed."}'), 'UTF8')
                    when c.status = 'succeeded' then convert_to('{' || coalesce((
                        select string_agg(to_json(n.item ->> 0)::text || ':' || case when e.node is null then '{"skipped":true}'
                            when e.output_type <> 'application/json' then to_json(convert_from(e.output, 'UTF8'))::text
                            else coalesce(convert_from(e.output, 'UTF8'), 'null') end, ',' order by n.place)
                        from jsonb_array_elements(c.names::jsonb) with ordinality as n (item, place)
                        left join ended e on e.tenant_id = c.tenant_id and e.run_id = c.id and e.node = n.place - 1
                             and e.status = 'succeeded'
                        where e.node is not null or (substr(c.last_graph, n.place::int, 1) = 'k' and not (n.item ->> 1)::boolean)
                        ), '') || '}', 'UTF8') end
        from closed c
        cross join lateral (
            select w.tenant_id, w.run_id, w.node, w.id from waits w
            where c.parent_wait is not null and w.tenant_id = c.tenant_id and w.event_key = c.id and w.kind = 'child'
              and w.settled_at is null offset 0
        ) l
        where w.tenant_id = any (array[l.tenant_id]) and w.run_id = l.run_id and w.node = l.node and w.id = l.id and w.settled_at is null
        returning w.tenant_id, w.run_id, w.node
    ), woken as (
        update tasks t set wake_at = $7, marks = coalesce(t.marks, 0) + 1
        from (select distinct tenant_id, run_id, node from told) w
        where t.tenant_id = any (array[w.tenant_id]) and t.run_id = w.run_id and t.node = w.node
          and (t.tenant_id, t.run_id, t.node) not in (select tenant_id, run_id, node from ended)
    ), doomed as (
        update runs r set doomed_at = $7
        from closed c
        cross join lateral (
            select r.tenant_id, r.id from runs r
            where (c.status = 'cancelled' or c.cancel_reason is not null) -- it is 'failed' where a task had failed before
              and r.tenant_id = c.tenant_id and r.parent_run_id = c.id and r.on_its_own is null offset 0
        ) l
        where r.tenant_id = any (array[l.tenant_id]) and r.id = l.id
          and (r.tenant_id, r.id) not in (select tenant_id, id from closed)
    ), log_rows as (
        delete from journal j using ended e
        where e.durable and j.tenant_id = any (array[e.tenant_id]) and j.run_id = e.run_id and j.node = e.node
        returning j.*, case when j.generation = coalesce(e.generation, 0) then e.log_since end as log_since,
                  case when j.generation = coalesce(e.generation, 0) then e.input end as task_input
    ), logs as (
        insert into journal_history (tenant_id, run_id, node, generation, count, entries, checkpoint, checkpoint_at, since, input,
                                     finished_at)
        select tenant_id, run_id, node, generation, sum(count), string_agg(entries, ','::bytea order by base),
               (array_agg(checkpoint order by base desc) filter (where checkpoint is not null))[1],
               max(at) filter (where checkpoint is not null), log_since, task_input, $7
        from log_rows group by tenant_id, run_id, node, generation, log_since, task_input
    ), task_rows as (
        insert into task_history (tenant_id, run_id, node, status, output, output_type, error, epoch, app_retries, infra_retries,
                                  endpoint_id, endpoint_version, started_at, finished_at, progress, durable, ended_at,
                                  retry_base)
        select tenant_id, run_id, node, fate, output, output_type, error, epoch, app_retries, infra_retries,
               endpoint_id, endpoint_version, started_at, $7, progress, durable, finished_at, retry_base
        from ended
    ), run_rows as (
        insert into run_history (tenant_id, id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id,
                                 parent_run_id, stream_id, idempotency_key, created_at, started_at, finished_at,
                                 parent_node, parent_wait, filter_payload, labels, sticky_endpoint, graph, reasons)
        select c.tenant_id, c.id, c.workflow_id, c.workflow_version, c.status, c.input, c.metadata, c.priority, c.trigger, c.event_id,
               c.parent_run_id, c.stream_id, c.idempotency_key, c.created_at,
               (select min(e.started_at) from ended e where e.tenant_id = c.tenant_id and e.run_id = c.id), $7,
               c.parent_node, c.parent_wait, c.filter_payload, c.labels, c.sticky_endpoint, c.last_graph,
               coalesce(c.reasons, '{}') || c.last_reasons::jsonb
        from closed c
    )
    select tenant_id, id from closed
    """,
    DueRun,
)

CANCEL = Statement(
    """
    update runs set cancel_reason = $3, revision = revision + 1, advance_at = $4
    where tenant_id = $1 and id = any($2::text[]) and graph is not null and cancel_reason is null
    returning tenant_id, id
    """,
    DueRun,
)

PUT_OFF = """
    update runs r set advance_at = $3 from unnest($1::int[], $2::text[]) as g (tenant_id, id)
    where r.tenant_id = any (array[g.tenant_id]) and r.id = g.id and coalesce(r.advance_at <= $3, false)
"""


async def due(db: Database, now: datetime, limit: int) -> list[RunKey]:
    """Runs whose rules have something to look at, those that wait longest first."""
    return [(row.tenant_id, row.id) for row in DUE.read(await db.fetch(DUE.sql, now, limit))]


async def put_off(db: Database, keys: Sequence[RunKey], until: datetime) -> None:
    """Look at these runs again later, so that they stand in nobody's way."""
    await db.execute(PUT_OFF, [k[0] for k in keys], [k[1] for k in keys], until)


async def load(db: Database, keys: Sequence[RunKey]) -> list[GraphRow]:
    """Runs of graphs that are not over, in no particular order."""
    return LOAD.read(await db.fetch(LOAD.sql, [k[0] for k in keys], [k[1] for k in keys], lane="settle"))


async def outputs(db: Database, keys: Sequence[TaskKey]) -> dict[TaskKey, Output]:
    """What tasks that are over have given, of those that are."""
    if not keys:
        return {}
    records = await db.fetch(OUTPUTS.sql, [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], lane="settle")
    return {(row.tenant_id, row.run_id, row.node): row for row in OUTPUTS.read(records)}


async def apply(db: Database, decisions: Sequence[Decision], now: datetime) -> set[RunKey]:
    """Write decisions; answers the runs whose decision landed. The others have moved on and are to be decided again."""
    going = [d for d in decisions if d.finish is None]
    ending = [d for d in decisions if d.finish is not None]
    landed = await _advance(db, going, now) if going else []
    landed += await _end(db, ending, now) if ending else []
    return {(row.tenant_id, row.id) for row in landed}


async def _advance(db: Database, decisions: Sequence[Decision], now: datetime) -> list[DueRun]:
    tasks = [(d.run, task) for d in decisions for task in d.tasks]
    waits = [(d.run, wait) for d in decisions for wait in d.waits]
    left = [(d.run, node) for d in decisions for node in d.left]
    records = await db.fetch(
        ADVANCE.sql,
        [d.run.tenant_id for d in decisions],
        [d.run.id for d in decisions],
        [d.run.revision for d in decisions],
        [d.graph for d in decisions],
        [d.reasons or "{}" for d in decisions],
        [run.tenant_id for run, _ in tasks],
        [run.id for run, _ in tasks],
        [task.node for _, task in tasks],
        [task.schedule_ms for _, task in tasks],
        [task.execution_ms for _, task in tasks],
        [task.durable for _, task in tasks],
        now,
        [run.tenant_id for run, _ in waits],
        [run.id for run, _ in waits],
        [wait.node for _, wait in waits],
        [wait.id for _, wait in waits],
        [wait.kind for _, wait in waits],
        [wait.event_key for _, wait in waits],
        [wait.scope for _, wait in waits],
        [wait.expression for _, wait in waits],
        [run.tenant_id for run, _ in left],
        [run.id for run, _ in left],
        [node for _, node in left],
        [wait.due_at for _, wait in waits],
        [task.requirement for _, task in tasks],
        [task.slots for _, task in tasks],
        [wait.since for _, wait in waits],
        [d.again for d in decisions],
        lane="settle",
    )
    return ADVANCE.read(records)


async def _end(db: Database, decisions: Sequence[Decision], now: datetime) -> list[DueRun]:
    records = await db.fetch(
        END.sql,
        [d.run.tenant_id for d in decisions],
        [d.run.id for d in decisions],
        [d.run.revision for d in decisions],
        [d.graph for d in decisions],
        [d.reasons or "{}" for d in decisions],
        [d.finish for d in decisions],
        now,
        [d.names for d in decisions],
        lane="settle",
    )
    return END.read(records)


async def cancel(db: Database, tenant_id: int, run_ids: Sequence[str], reason: str, now: datetime) -> list[RunKey]:
    """Let runs of graphs start nothing any more; answers those that had not been cancelled before."""
    records = await db.fetch(CANCEL.sql, tenant_id, list(run_ids), reason, now, lane="settle")
    return [(row.tenant_id, row.id) for row in CANCEL.read(records)]
