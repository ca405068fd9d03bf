"""Appends to logs together with the runs they ask for, in one statement where both are as most are.

It writes what APPEND and the statements of intake write one after the other in a transaction: what is in the log has been started, and
nothing else has. What asks for more, or does not land, is for those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from dispatcher.store.database import Database
from dispatcher.store.intake import NewRun
from dispatcher.store.journal import Appended, NewEntries
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.statement import Statement

# Where a child belongs is the place of its append: what an append says is read from the arrays there, and not joined.
BEGIN = Statement(
    """
    with given as (
        select g.* from unnest(
            $1::int[], $2::text[], $3::smallint[], $4::int[], $5::int[], $6::int[], $7::bytea[], $8::text[], $9::bigint[]
        ) with ordinality as g (tenant_id, run_id, node, epoch, base, count, entries, waits, registry_version, place)
        join tenants on tenants.id = g.tenant_id and tenants.registry_version = g.registry_version
    ), grown as (
        update tasks t
        set log_len = g.base + g.count, log_bytes = coalesce(t.log_bytes, 0) + length(g.entries),
            log_since = coalesce(t.log_since, t.started_at), app_retries = 0, infra_retries = 0, spared_since = null, spared_by = null,
            lease_until = case when t.lease > interval '0' then greatest(t.lease_until, least($24::timestamptz + t.lease, t.deadline))
                               else t.lease_until end
        from given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
          and t.state = 'running' and t.durable and coalesce(t.log_len, 0) = g.base and g.base + g.count <= $25
          and coalesce(t.log_bytes, 0) + length(g.entries) <= $26 and t.cleanup is null
          and not exists (
               select from waits w
               where w.tenant_id = g.tenant_id and w.run_id = g.run_id and w.node = g.node
                 and w.id = any(array(select jsonb_array_elements_text(g.waits::jsonb))) offset 0)
        returning t.tenant_id, t.run_id, t.node, coalesce(t.generation, 0) as generation, t.log_len, t.lease_until, t.deadline,
                  t.cancel_at, t.cancel_reason, g.base, g.count, g.entries, g.place
    ), segments as (
        insert into journal (tenant_id, run_id, node, generation, base, count, entries, at)
        select tenant_id, run_id, node, generation, base, count, entries, $24 from grown
    ), started as (
        select ($1::int[])[c.place] as tenant_id, ($2::text[])[c.place] as parent_run_id, ($3::smallint[])[c.place] as parent_node, c.*
        from unnest($10::int[], $11::text[], $12::text[], $13::text[], $14::int[], $15::int[], $16::bytea[], $17::text[], $18::smallint[],
                    $19::bigint[], $20::int[], $21::text[], $22::text[])
             as c (place, id, wait, name, workflow_id, workflow_version, input, metadata, priority, schedule_ms, execution_ms,
                   endpoint_id, endpoint_version)
        where c.place in (select place from grown)
    ), registered as (
        insert into waits (tenant_id, run_id, node, id, graph, kind, event_key, created_at)
        select tenant_id, parent_run_id, parent_node, wait, false, 'child', id, $24 from started
        on conflict (tenant_id, run_id, node, id) do update
        set due_at = null, settled_at = null, outcome = null, position = null, created_at = excluded.created_at
    ), new_runs as (
        insert into runs (tenant_id, id, workflow_id, workflow_version, input, metadata, priority, trigger, parent_run_id, created_at,
                          parent_node, parent_wait)
        select tenant_id, id, workflow_id, workflow_version, input, metadata::jsonb, priority, 'child', parent_run_id, $24,
               parent_node, name
        from started
    ), new_tasks as (
        insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, schedule_deadline,
                           execution_ms, epoch, dispatcher_id, endpoint_id, endpoint_version, started_at, deadline)
        select tenant_id, id, 0, workflow_id, workflow_version, case when endpoint_id is not null then 'running' else 'queued' end,
               priority, $24, case when endpoint_id is null then $24 + schedule_ms * interval '1 millisecond' end,
               execution_ms, case when endpoint_id is not null then 1 else 0 end,
               case when endpoint_id is not null then $23::bigint end, endpoint_id, endpoint_version,
               case when endpoint_id is not null then $24 end,
               case when endpoint_id is not null then $24 + execution_ms * interval '1 millisecond' end
        from started
    )
    select tenant_id, run_id, node, log_len, lease_until, deadline, cancel_at, cancel_reason from grown
    """,
    Appended,
)


def is_simple(row: NewEntries, runs: Sequence[NewRun]) -> bool:
    """Whether BEGIN writes all an append asks for: new runs of one task that ask nothing of their endpoint, and no other waits."""
    entries = row.entries
    return (
        bool(runs)
        and not (row.given or row.again or entries.parents or entries.closes or entries.closes_inbox)
        and entries.checkpoint is None
        and len(entries.waits) == len(runs)
        and all(_is_simple(run, row.key, runs[0].registry_version) for run in runs)
    )


def _is_simple(run: NewRun, parent: TaskKey, version: int) -> bool:
    return (
        run.undemanding
        and not run.limited
        and run.idempotency_key is None
        and run.run_at is None
        and (run.tenant_id, run.parent_run_id, run.parent_node, run.registry_version) == (*parent, version)
        and run.trigger == "child"
        and run.parent_wait is not None
    )


async def begin(
    db: Database,
    rows: Sequence[NewEntries],
    runs: Sequence[Sequence[NewRun]],
    dispatcher_id: int,
    now: datetime,
    most_entries: int,
    most_bytes: int,
) -> dict[TaskKey, Appended]:
    """Append, and start the `runs` of each append; answers the tasks whose append landed. All are simple; one task may appear once."""
    waits = [{run_id: wait for wait, run_id in row.children.items()} for row in rows]
    children = [(place, waits[place - 1][run.id], run) for place, some in enumerate(runs, 1) for run in some]
    records = await db.fetch(
        BEGIN.sql,
        [row.key[0] for row in rows],
        [row.key[1] for row in rows],
        [row.key[2] for row in rows],
        [row.epoch for row in rows],
        [row.base for row in rows],
        [len(row.entries) for row in rows],
        [row.entries.text for row in rows],
        [json.dumps([wait.id for wait in row.entries.waits]) for row in rows],
        [some[0].registry_version for some in runs],
        [place for place, _, _ in children],
        [run.id for _, _, run in children],
        [wait for _, wait, _ in children],
        [run.parent_wait for _, _, run in children],
        [run.workflow_id for _, _, run in children],
        [run.workflow_version for _, _, run in children],
        [run.input for _, _, run in children],
        [run.metadata for _, _, run in children],
        [run.priority for _, _, run in children],
        [run.schedule_timeout_ms for _, _, run in children],
        [run.execution_timeout_ms for _, _, run in children],
        [run.endpoint_id for _, _, run in children],
        [run.endpoint_version for _, _, run in children],
        dispatcher_id,
        now,
        most_entries,
        most_bytes,
        lane="settle",
    )
    return {(row.tenant_id, row.run_id, row.node): row for row in BEGIN.read(records)}
