"""Writing what was asked for: events, runs and their tasks, in one statement for a whole set.

A set is written against one picture of the registry: a submission whose tenant's registry has moved on is left out and comes
back as stale, for the caller to match again. So an event never misses a workflow registered before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from dispatcher.engine.placement import moved_to
from dispatcher.engine.rate_limits import Demand
from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement

ASIDE: Final = -1
_NO_ROOM: Final = "DG001"  # raised by the trigger that counts what holds a gate


@dataclass(slots=True)
class NewRun:
    """One run. Times are relative to the moment of writing unless `run_at` is given.

    `endpoint_id` set means its one task is leased in the same statement: it starts as running attempt 1 of this dispatcher. `graph` set,
    a letter for each node, means its tasks come later, by the rules of its graph. `parent_wait` is what its end settles in its parent.
    `gates` are the ids of the gates it has to pass and `gate_limits` how many may hold each, both as lists with commas; `gates_held` of
    them are taken in the same statement, which is refused where there is no room (NoRoom). ASIDE in its place sets the run aside: it stands
    in no line. `flow` says what they are. `requirement` and `slots` are its one task's; `labels` (JSON text) and `sticky_endpoint` hold for
    all tasks it will have.
    """

    tenant_id: int
    registry_version: int
    id: str
    workflow_id: int
    workflow_version: int
    input: bytes
    metadata: str | None
    priority: int
    trigger: str
    event_id: str | None
    parent_run_id: str | None
    stream_id: str | None
    idempotency_key: str | None
    run_at: datetime | None
    schedule_timeout_ms: int
    execution_timeout_ms: int
    endpoint_id: str | None = None
    endpoint_version: str | None = None
    graph: str | None = None
    durable: bool = False
    filter_payload: bytes | None = None
    parent_node: int | None = None
    parent_wait: str | None = None
    on_its_own: bool = False
    gates: str | None = None
    gate_limits: str | None = None
    gates_held: int = 0
    preempts: bool = False
    flow: str | None = None
    requirement: str = ""
    slots: int = 1
    labels: str | None = None
    sticky_endpoint: str | None = None
    demands: tuple[Demand, ...] = ()

    def lease_at(self, endpoint_id: str, version: str) -> None:
        """Let its one task begin at an endpoint as it is written. A soft run stays there, whichever it was made for."""
        self.endpoint_id, self.endpoint_version = endpoint_id, version
        if (asks := moved_to(self.requirement, endpoint_id)) is not None:
            self.requirement, self.sticky_endpoint = asks, endpoint_id

    @property
    def undemanding(self) -> bool:
        """A run of one task that no event started and that asks nothing of its endpoint."""
        return (
            self.graph is self.labels is self.sticky_endpoint is None
            and self.event_id is self.stream_id is None
            and self.filter_payload is None
            and self.slots == 1
            and not (self.durable or self.requirement or self.on_its_own)
        )

    @property
    def simple(self) -> bool:
        """An undemanding run that belongs to nothing."""
        return self.undemanding and self.parent_run_id is self.parent_wait is None and self.parent_node is None

    @property
    def limited(self) -> bool:
        """Whether it passes gates or takes units of a rate limit."""
        return self.gates is not None or self.flow is not None or self.preempts


class NoRoom(Exception):  # noqa: N818 - what was found
    """Nothing was written: a gate that was to be passed at once has no room. `gates` are those."""

    def __init__(self, gates: frozenset[str]) -> None:
        super().__init__("a gate has no room")
        self.gates = gates


@dataclass(slots=True)
class NewEvent:
    """One event as it will be stored; `runs` counts what it starts."""

    tenant_id: int
    registry_version: int
    id: str
    type: str
    data: bytes
    metadata: str | None
    scope: str | None
    priority: int | None
    stream_id: str
    idempotency_key: str | None
    runs: int


@dataclass(slots=True)
class NewKey:
    """An idempotency key to claim for `first_id`; `scope` is the workflow's name for runs, empty for events."""

    tenant_id: int
    registry_version: int
    scope: str
    key: str
    first_id: str
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Stored:
    """An id that was written. `wakes` says that it is an event somebody waits for."""

    id: str
    wakes: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of a key: `won` now, or held by the id that came first."""

    tenant_id: int
    scope: str
    key: str
    first_id: str


# Events and runs stand in one statement, so that both are judged by one picture of the registry and no event is without its runs.
WRITE = Statement(
    """
    with given as (
        select g.* from unnest(
            $1::int[], $2::bigint[], $3::text[], $4::int[], $5::int[], $6::bytea[], $7::text[], $8::smallint[], $9::text[],
            $10::text[], $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::bigint[], $16::int[], $17::text[], $18::text[],
            $32::text[], $33::boolean[], $34::bytea[], $35::smallint[], $36::text[], $37::text[], $38::text[], $39::smallint[],
            $40::boolean[], $41::text[], $42::boolean[], $43::text[], $44::int[], $45::text[], $46::text[]
        ) as g (tenant_id, registry_version, id, workflow_id, workflow_version, input, metadata, priority, trigger,
                event_id, parent_run_id, stream_id, idempotency_key, run_at, schedule_ms, execution_ms, endpoint_id, endpoint_version,
                graph, durable, filter_payload, parent_node, parent_wait, gates, gate_limits, gates_held, preempts, flow,
                on_its_own, requirement, slots, labels, sticky_endpoint)
        join tenants on tenants.id = g.tenant_id and tenants.registry_version = g.registry_version
    ), given_events as (
        select g.*, exists (
            select from waits w where w.tenant_id = any (array[g.tenant_id]) and w.event_key = g.type and w.settled_at is null
        ) as wakes
        from unnest(
            $21::int[], $22::bigint[], $23::text[], $24::text[], $25::bytea[], $26::text[], $27::text[], $28::smallint[], $29::text[],
            $30::text[], $31::int[]
        ) as g (tenant_id, registry_version, id, type, data, metadata, scope, priority, stream_id, idempotency_key, runs)
        join tenants on tenants.id = g.tenant_id and tenants.registry_version = g.registry_version
    ), new_runs as (
        insert into runs (tenant_id, id, workflow_id, workflow_version, input, metadata, priority, trigger, event_id,
                          parent_run_id, stream_id, idempotency_key, created_at, graph, advance_at, filter_payload,
                          parent_node, parent_wait, gates, gate_limits, gates_held, gate_wait, arrived_at, preempts, flow,
                          schedule_deadline, on_its_own, labels, sticky_endpoint)
        select tenant_id, id, workflow_id, workflow_version, input, metadata::jsonb, priority, trigger, event_id,
               parent_run_id, stream_id, idempotency_key, $20, graph,
               case when graph is not null and (run_at > $20 or gates is null or gates_held > 0) then greatest(run_at, $20) end,
               filter_payload, parent_node, parent_wait,
               case when graph is not null then string_to_array(gates, ',')::uuid[] end,
               case when graph is not null then string_to_array(gate_limits, ',')::int[] end,
               case when graph is not null then greatest(gates_held, 0) else 0 end,
               case when graph is not null and gates_held = 0 and (run_at > $20) is not true then split_part(gates, ',', 1)::uuid end,
               case when graph is not null and gates is not null then greatest(run_at, $20) end,
               graph is not null and preempts, case when graph is not null then flow::jsonb end,
               case when graph is not null and gates is not null then greatest(run_at, $20) + schedule_ms * interval '1 millisecond' end,
               case when on_its_own then true end, labels::jsonb, sticky_endpoint
        from given
    ), new_tasks as (
        insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, schedule_deadline,
                           execution_ms, epoch, dispatcher_id, endpoint_id, endpoint_version, started_at, deadline, durable,
                           gates, gate_limits, gates_held, gate_wait, arrived_at, preempts, flow, requirement, slots)
        select tenant_id, id, 0, workflow_id, workflow_version,
               case when endpoint_id is not null then 'running' when run_at > $20 then 'scheduled'
                    when gates is not null and gates_held <= 0 then 'gated' else 'queued' end,
               priority, coalesce(run_at, $20),
               case when endpoint_id is null then greatest(run_at, $20) + schedule_ms * interval '1 millisecond' end,
               execution_ms, case when endpoint_id is not null then 1 else 0 end,
               case when endpoint_id is not null then $19::bigint end, endpoint_id, endpoint_version,
               case when endpoint_id is not null then $20 end,
               case when endpoint_id is not null then $20 + execution_ms * interval '1 millisecond' end, durable,
               string_to_array(gates, ',')::uuid[], string_to_array(gate_limits, ',')::int[], greatest(gates_held, 0),
               case when gates_held = 0 and (run_at > $20) is not true then split_part(gates, ',', 1)::uuid end,
               case when gates is not null then coalesce(run_at, $20) end, preempts, flow::jsonb, requirement, slots
        from given where graph is null
    ), new_events as (
        insert into events (tenant_id, id, type, data, metadata, scope, priority, stream_id, idempotency_key, runs, created_at, wakes)
        select tenant_id, id, type, data, metadata::jsonb, scope, priority, stream_id, idempotency_key, runs, $20, wakes from given_events
    )
    select id, false as wakes from given union all select id, wakes from given_events
    """,
    Stored,
)

# The same for runs of one task that are nothing but that, which is most of them: arrays of nothing and columns that stay empty cost time
# as well. It writes the same rows, where all runs of a set are `simple` and none is `limited`.
WRITE_PLAIN = Statement(
    """
    with given as (
        select g.* from unnest(
            $1::int[], $2::bigint[], $3::text[], $4::int[], $5::int[], $6::bytea[], $7::text[], $8::smallint[], $9::text[],
            $10::text[], $11::timestamptz[], $12::bigint[], $13::int[], $14::text[], $15::text[]
        ) as g (tenant_id, registry_version, id, workflow_id, workflow_version, input, metadata, priority, trigger,
                idempotency_key, run_at, schedule_ms, execution_ms, endpoint_id, endpoint_version)
        join tenants on tenants.id = g.tenant_id and tenants.registry_version = g.registry_version
    ), new_runs as (
        insert into runs (tenant_id, id, workflow_id, workflow_version, input, metadata, priority, trigger, idempotency_key, created_at)
        select tenant_id, id, workflow_id, workflow_version, input, metadata::jsonb, priority, trigger, idempotency_key, $17 from given
    ), new_tasks as (
        insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, schedule_deadline,
                           execution_ms, epoch, dispatcher_id, endpoint_id, endpoint_version, started_at, deadline)
        select tenant_id, id, 0, workflow_id, workflow_version,
               case when endpoint_id is not null then 'running' when run_at > $17 then 'scheduled' else 'queued' end,
               priority, coalesce(run_at, $17),
               case when endpoint_id is null then greatest(run_at, $17) + schedule_ms * interval '1 millisecond' end,
               execution_ms, case when endpoint_id is not null then 1 else 0 end,
               case when endpoint_id is not null then $16::bigint end, endpoint_id, endpoint_version,
               case when endpoint_id is not null then $17 end,
               case when endpoint_id is not null then $17 + execution_ms * interval '1 millisecond' end
        from given
    )
    select id, false as wakes from given
    """,
    Stored,
)

# The same where some are limited.
WRITE_LIMITED = Statement(
    """
    with given as (
        select g.* from unnest(
            $1::int[], $2::bigint[], $3::text[], $4::int[], $5::int[], $6::bytea[], $7::text[], $8::smallint[], $9::text[],
            $10::text[], $11::timestamptz[], $12::bigint[], $13::int[], $14::text[], $15::text[],
            $18::text[], $19::text[], $20::smallint[], $21::boolean[], $22::text[]
        ) as g (tenant_id, registry_version, id, workflow_id, workflow_version, input, metadata, priority, trigger,
                idempotency_key, run_at, schedule_ms, execution_ms, endpoint_id, endpoint_version,
                gates, gate_limits, gates_held, preempts, flow)
        join tenants on tenants.id = g.tenant_id and tenants.registry_version = g.registry_version
    ), new_runs as (
        insert into runs (tenant_id, id, workflow_id, workflow_version, input, metadata, priority, trigger, idempotency_key, created_at)
        select tenant_id, id, workflow_id, workflow_version, input, metadata::jsonb, priority, trigger, idempotency_key, $17 from given
    ), new_tasks as (
        insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, schedule_deadline,
                           execution_ms, epoch, dispatcher_id, endpoint_id, endpoint_version, started_at, deadline,
                           gates, gate_limits, gates_held, gate_wait, arrived_at, preempts, flow)
        select tenant_id, id, 0, workflow_id, workflow_version,
               case when endpoint_id is not null then 'running' when run_at > $17 then 'scheduled'
                    when gates is not null and gates_held <= 0 then 'gated' else 'queued' end,
               priority, coalesce(run_at, $17),
               case when endpoint_id is null then greatest(run_at, $17) + schedule_ms * interval '1 millisecond' end,
               execution_ms, case when endpoint_id is not null then 1 else 0 end,
               case when endpoint_id is not null then $16::bigint end, endpoint_id, endpoint_version,
               case when endpoint_id is not null then $17 end,
               case when endpoint_id is not null then $17 + execution_ms * interval '1 millisecond' end,
               ('{' || gates || '}')::uuid[], ('{' || gate_limits || '}')::int[], greatest(gates_held, 0),
               case when gates_held = 0 and (run_at > $17) is not true then split_part(gates, ',', 1)::uuid end,
               case when gates is not null then coalesce(run_at, $17) end, preempts, flow::jsonb
        from given
    )
    select id, false as wakes from given
    """,
    Stored,
)

CLAIM_KEYS = Statement(
    """
    insert into idempotency as i (tenant_id, scope, key, first_id, expires_at)
    select g.tenant_id, g.scope, g.key, g.first_id, $7::timestamptz + g.ttl_ms * interval '1 millisecond'
    from unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[])
         as g (tenant_id, registry_version, scope, key, first_id, ttl_ms)
    join tenants on tenants.id = g.tenant_id and tenants.registry_version = g.registry_version
    on conflict (tenant_id, scope, key) do update set first_id = excluded.first_id, expires_at = excluded.expires_at
        where i.expires_at <= $7
    returning tenant_id, scope, key, first_id
    """,
    Claim,
)

HELD_KEYS = Statement(
    """
    select i.tenant_id, i.scope, i.key, i.first_id
    from unnest($1::int[], $2::text[], $3::text[]) as g (tenant_id, scope, key)
    join idempotency i on i.tenant_id = any (array[g.tenant_id]) and i.scope = g.scope and i.key = g.key
    """,
    Claim,
)

DROP_KEYS = """
    delete from idempotency i using unnest($1::int[], $2::text[], $3::text[], $4::text[]) as g (tenant_id, scope, key, first_id)
    where i.tenant_id = any (array[g.tenant_id]) and i.scope = g.scope and i.key = g.key and i.first_id = g.first_id
"""

PRUNE_KEYS = """
    delete from idempotency where ctid in (select ctid from idempotency where expires_at <= $1 limit $2)
"""


async def write(
    db: Database | Connection, events: Sequence[NewEvent], runs: Sequence[NewRun], dispatcher_id: int, now: datetime
) -> dict[str, bool]:
    """Insert events, and runs with their tasks; answers the ids written, true for events somebody waits for. An id left out was stale.

    Raises NoRoom, then nothing is written.
    """
    if not events and not runs:
        return {}
    try:
        if events or not all(run.simple for run in runs):
            records = await _write_whole(db, events, runs, dispatcher_id, now)
        elif any(run.limited for run in runs):
            records = await _write_limited(db, runs, dispatcher_id, now)
        else:
            records = await _write_plain(db, runs, dispatcher_id, now)
    except asyncpg.PostgresError as error:
        if error.sqlstate == _NO_ROOM:
            raise NoRoom(frozenset((error.detail or "").split(","))) from None
        raise
    return {record[0]: record[1] for record in records}


async def _write_plain(db: Database | Connection, runs: Sequence[NewRun], dispatcher_id: int, now: datetime) -> list[Any]:
    return await db.fetch(WRITE_PLAIN.sql, *_simple(runs), dispatcher_id, now)


async def _write_limited(db: Database | Connection, runs: Sequence[NewRun], dispatcher_id: int, now: datetime) -> list[Any]:
    return await db.fetch(
        WRITE_LIMITED.sql,
        *_simple(runs),
        dispatcher_id,
        now,
        [r.gates for r in runs],
        [r.gate_limits for r in runs],
        [r.gates_held for r in runs],
        [r.preempts for r in runs],
        [r.flow for r in runs],
    )


def _simple(runs: Sequence[NewRun]) -> tuple[list[Any], ...]:
    """What is written of simple runs."""
    return (
        [r.tenant_id for r in runs],
        [r.registry_version for r in runs],
        [r.id for r in runs],
        [r.workflow_id for r in runs],
        [r.workflow_version for r in runs],
        [r.input for r in runs],
        [r.metadata for r in runs],
        [r.priority for r in runs],
        [r.trigger for r in runs],
        [r.idempotency_key for r in runs],
        [r.run_at for r in runs],
        [r.schedule_timeout_ms for r in runs],
        [r.execution_timeout_ms for r in runs],
        [r.endpoint_id for r in runs],
        [r.endpoint_version for r in runs],
    )


async def _write_whole(
    db: Database | Connection, events: Sequence[NewEvent], runs: Sequence[NewRun], dispatcher_id: int, now: datetime
) -> list[Any]:
    return await db.fetch(
        WRITE.sql,
        [r.tenant_id for r in runs],
        [r.registry_version for r in runs],
        [r.id for r in runs],
        [r.workflow_id for r in runs],
        [r.workflow_version for r in runs],
        [r.input for r in runs],
        [r.metadata for r in runs],
        [r.priority for r in runs],
        [r.trigger for r in runs],
        [r.event_id for r in runs],
        [r.parent_run_id for r in runs],
        [r.stream_id for r in runs],
        [r.idempotency_key for r in runs],
        [r.run_at for r in runs],
        [r.schedule_timeout_ms for r in runs],
        [r.execution_timeout_ms for r in runs],
        [r.endpoint_id for r in runs],
        [r.endpoint_version for r in runs],
        dispatcher_id,
        now,
        [e.tenant_id for e in events],
        [e.registry_version for e in events],
        [e.id for e in events],
        [e.type for e in events],
        [e.data for e in events],
        [e.metadata for e in events],
        [e.scope for e in events],
        [e.priority for e in events],
        [e.stream_id for e in events],
        [e.idempotency_key for e in events],
        [e.runs for e in events],
        [r.graph for r in runs],
        [r.durable for r in runs],
        [r.filter_payload for r in runs],
        [r.parent_node for r in runs],
        [r.parent_wait for r in runs],
        [r.gates for r in runs],
        [r.gate_limits for r in runs],
        [r.gates_held for r in runs],
        [r.preempts for r in runs],
        [r.flow for r in runs],
        [r.on_its_own for r in runs],
        [r.requirement for r in runs],
        [r.slots for r in runs],
        [r.labels for r in runs],
        [r.sticky_endpoint for r in runs],
    )


async def claim_keys(conn: Connection, keys: Sequence[NewKey], now: datetime) -> dict[tuple[int, str, str], str]:
    """Claim keys in one order for all processes, so that two sets never wait for each other; answers who holds each now.

    A key missing from the answer was stale. Each key may be given once.
    """
    ordered = sorted(keys, key=lambda k: (k.tenant_id, k.scope, k.key))
    tenants, scopes, names = [k.tenant_id for k in ordered], [k.scope for k in ordered], [k.key for k in ordered]
    versions, ids, ttls = [k.registry_version for k in ordered], [k.first_id for k in ordered], [k.ttl_ms for k in ordered]
    won = CLAIM_KEYS.read(await conn.fetch(CLAIM_KEYS.sql, tenants, versions, scopes, names, ids, ttls, now))
    # A second statement, because the first cannot see a row that was committed after it began, only collide with it.
    held = won if len(won) == len(ordered) else HELD_KEYS.read(await conn.fetch(HELD_KEYS.sql, tenants, scopes, names))
    return {(c.tenant_id, c.scope, c.key): c.first_id for c in held}


async def drop_keys(conn: Connection, keys: Sequence[NewKey]) -> None:
    """Give up keys whose submission was not written after all."""
    await conn.execute(DROP_KEYS, [k.tenant_id for k in keys], [k.scope for k in keys], [k.key for k in keys], [k.first_id for k in keys])


async def prune_keys(db: Database, now: datetime, limit: int) -> int:
    """Forget at most `limit` expired keys; answers how many."""
    return int((await db.execute(PRUNE_KEYS, now, limit)).split()[-1])
