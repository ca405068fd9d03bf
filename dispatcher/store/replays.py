"""Bringing runs that are over back to life: from history to the live tables in one statement, guarded by the moment of their end.

Ids, inputs, metadata and keys stay what they were. The numbers of attempts go on, so that whatever is still on its way from an earlier
attempt is refused; attempts that were made stay recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import ended_after
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run that is over. `graph` has a letter for each node of a run of several tasks; `reasons` is JSON text."""

    id: str
    workflow_id: int
    workflow_version: int
    status: str
    graph: str | None
    reasons: str | None
    finished_at: datetime
    labels: str | None
    sticky_endpoint: str | None


@dataclass(slots=True)
class Revival:
    """A run as it shall begin again. In `graph`, nodes that run again are '-'; None is a run of one task.

    `input` stands in for the one it had, where that is given. `gates`, `gate_limits`, `preempts` and `flow` are those of a NewRun, told
    anew; it stands in line at the first of its gates.
    """

    run_id: str
    finished_at: datetime
    workflow_version: int
    schedule_ms: int
    execution_ms: int
    graph: str | None
    reasons: str | None
    input: bytes | None
    requirement: str = ""
    slots: int = 1
    gates: str | None = None
    gate_limits: str | None = None
    preempts: bool = False
    flow: str | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """What a run that is over was given."""

    input: bytes
    metadata: str | None


@dataclass(frozen=True, slots=True)
class Revived:
    """A run that is live again. `requirement` is what its one task asks."""

    id: str
    workflow_id: int
    graph: str | None
    requirement: str


ENDED = Statement(
    """
    select id, workflow_id, workflow_version, status, graph, reasons, finished_at, labels, sticky_endpoint
    from run_history where tenant_id = $1 and id = any($2::text[]) and finished_at >= $3
    """,
    EndedRun,
)
BODY = Statement("select input, metadata from run_history where tenant_id = $1 and id = $2 and finished_at = $3", Body)
LIVE = "select id from runs where tenant_id = $1 and id = any($2::text[])"
# Tasks of a graph come back as over, for those that need their output and for the numbers of their attempts; one that is to run again has
# no output any more. The revision of a run begins far above that of its earlier life, so that nothing decided then can be written now.
REVIVE = Statement(
    """
    with given as (
        select * from unnest($2::text[], $3::timestamptz[], $4::int[], $5::bigint[], $6::int[], $7::text[], $8::text[], $9::bytea[],
                             $12::text[], $13::int[], $14::text[], $15::text[], $16::boolean[], $17::text[])
            as g (id, finished_at, workflow_version, schedule_ms, execution_ms, graph, reasons, input, requirement, slots,
                  gates, gate_limits, preempts, flow)
    ), back as (
        delete from run_history h using given g
        where h.tenant_id = $1 and h.id = g.id and h.finished_at = g.finished_at and h.finished_at >= $11
        returning h.*, g.workflow_version as next_version, g.schedule_ms, g.execution_ms, g.graph as next_graph,
                  g.reasons as next_reasons, g.input as next_input, g.requirement, g.slots,
                  string_to_array(g.gates, ',')::uuid[] as gates, string_to_array(g.gate_limits, ',')::int[] as gate_limits, g.preempts,
                  g.flow::jsonb as flow
    ), over as (
        delete from task_history t using back b
        where t.tenant_id = $1 and t.run_id = b.id and t.finished_at = b.finished_at and t.finished_at >= $11
        returning t.*
    ), new_runs as (
        insert into runs (tenant_id, id, workflow_id, workflow_version, input, metadata, priority, trigger, event_id, parent_run_id,
                          stream_id, idempotency_key, created_at, graph, reasons, revision, advance_at, parent_node, parent_wait,
                          filter_payload, labels, sticky_endpoint, gates, gate_limits, gate_wait, arrived_at, preempts, flow,
                          schedule_deadline)
        select tenant_id, id, workflow_id, next_version, coalesce(next_input, input), metadata, priority, trigger, event_id, parent_run_id,
               stream_id, idempotency_key, created_at, next_graph, next_reasons::jsonb,
               extract(epoch from $10::timestamptz)::int - 1600000000, case when next_graph is not null and gates is null then $10 end,
               parent_node, parent_wait, filter_payload, labels, sticky_endpoint,
               case when next_graph is not null then gates end, case when next_graph is not null then gate_limits end,
               case when next_graph is not null and (select w.aside from workflows w where w.tenant_id = $1 and w.id = workflow_id
                         and (w.paused_at is not null
                              or not goes_on_at($1, run_stays_at($1, workflow_id, next_version, sticky_endpoint)))) is null
                    then gates[1] end,
               case when next_graph is not null and gates is not null then $10 end, next_graph is not null and preempts,
               case when next_graph is not null then flow end,
               case when next_graph is not null and gates is not null then $10 + schedule_ms * interval '1 millisecond' end
        from back
    ), new_tasks as (
        insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, schedule_deadline,
                           execution_ms, epoch, retry_base, durable, status, output, output_type, error, started_at, finished_at,
                           app_retries, infra_retries, endpoint_id, endpoint_version, requirement, slots,
                           gates, gate_limits, preempts, flow)
        select $1, b.id, o.node, b.workflow_id, b.next_version, a.state, b.priority, $10,
               case when a.state = 'queued' then $10 + b.schedule_ms * interval '1 millisecond' end, b.execution_ms, o.epoch,
               case when a.again then o.retry_base + o.app_retries + o.infra_retries + 1 else o.retry_base end, o.durable,
               case when a.state = 'settled' then case when a.again then 'skipped' else o.status end end,
               case when not a.again then o.output end, case when not a.again then o.output_type end,
               case when not a.again then o.error end, case when not a.again then o.started_at end,
               case when a.state = 'settled' then coalesce(o.ended_at, o.finished_at) end,
               case when a.again then 0 else o.app_retries end, case when a.again then 0 else o.infra_retries end,
               case when not a.again then o.endpoint_id end, case when not a.again then o.endpoint_version end, b.requirement, b.slots,
               case when a.state = 'queued' then b.gates end, case when a.state = 'queued' then b.gate_limits end,
               a.state = 'queued' and b.preempts, case when a.state = 'queued' then b.flow end
        from back b join over o on o.run_id = b.id
        cross join lateral (
            select case when b.next_graph is null then 'queued' else 'settled' end as state,
                   b.next_graph is null or substr(b.next_graph, o.node + 1, 1) = '-' as again
        ) a
    )
    select id, workflow_id, next_graph as graph, requirement from back
    """,
    Revived,
)


async def ended(db: Database | Connection, tenant_id: int, run_ids: Sequence[str]) -> list[EndedRun]:
    """Those of these ids that are runs and over."""
    since = [moment for moment in map(ended_after, run_ids) if moment is not None]
    if not since:
        return []
    return ENDED.read(await db.fetch(ENDED.sql, tenant_id, list(run_ids), min(since)))


async def body(db: Database | Connection, tenant_id: int, run: EndedRun) -> Body | None:
    """What a run was given; None where somebody has begun it again."""
    return BODY.first(await db.fetch(BODY.sql, tenant_id, run.id, run.finished_at))


async def live(db: Database | Connection, tenant_id: int, run_ids: Sequence[str]) -> set[str]:
    """Those of these ids that are runs and not over."""
    return {record[0] for record in await db.fetch(LIVE, tenant_id, list(run_ids))}


async def revive(db: Database | Connection, tenant_id: int, revivals: Sequence[Revival], now: datetime) -> list[Revived]:
    """Begin runs again; one missing from the answer has meanwhile been begun again by somebody else."""
    if not revivals:
        return []
    return REVIVE.read(
        await db.fetch(
            REVIVE.sql,
            tenant_id,
            [r.run_id for r in revivals],
            [r.finished_at for r in revivals],
            [r.workflow_version for r in revivals],
            [r.schedule_ms for r in revivals],
            [r.execution_ms for r in revivals],
            [r.graph for r in revivals],
            [r.reasons for r in revivals],
            [r.input for r in revivals],
            now,
            min(r.finished_at for r in revivals),
            [r.requirement for r in revivals],
            [r.slots for r in revivals],
            [r.gates for r in revivals],
            [r.gate_limits for r in revivals],
            [r.preempts for r in revivals],
            [r.flow for r in revivals],
        )
    )
