"""Logs of durable tasks: appending to them, opening turns, reading them. Entries are text this room never looks into.

Every append is compared on the task's attempt, its state and the length of its log in the statement that makes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dispatcher.engine.journal import Entries, Settled, Wait
from dispatcher.store.database import Connection, Database
from dispatcher.store.outcomes import Applied, TaskKey
from dispatcher.store.pins import PIN
from dispatcher.store.statement import Statement


@dataclass(slots=True)
class NewEntries:
    """An append of a running attempt. `children` are the ids of the runs its operations ask for, `again` the waits for runs that
    were there before and may be over; `given` are waits settled already.
    """

    key: TaskKey
    epoch: int
    base: int
    entries: Entries
    children: dict[str, str]
    given: dict[str, tuple[str, bytes | None]]
    again: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Appended:
    """An append that landed, and how the attempt stands."""

    tenant_id: int
    run_id: str
    node: int
    log_len: int
    lease_until: datetime | None
    deadline: datetime | None
    cancel_at: datetime | None
    cancel_reason: str | None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a durable task stands with its log."""

    tenant_id: int
    run_id: str
    node: int
    workflow_id: int
    workflow_version: int
    state: str
    epoch: int
    turn: int
    generation: int
    log_len: int
    log_bytes: int
    log_since: datetime | None
    started_at: datetime | None
    known_len: int
    hashed_len: int
    hashed: bytes | None
    memory: bytes | None
    input: bytes | None
    cleanup: bool
    cancel_reason: str | None
    pin_endpoint: str | None
    pin_version: str | None
    first_since: datetime | None

    @property
    def key(self) -> TaskKey:
        """Which task."""
        return (self.tenant_id, self.run_id, self.node)

    @property
    def continued(self) -> datetime | None:
        """When its log began, if that goes on from another, which had seen what came before."""
        return self.log_since if self.input is not None else None


@dataclass(frozen=True, slots=True)
class Over:
    """A wait that is over and not yet in the log."""

    tenant_id: int
    run_id: str
    node: int
    id: str
    kind: str
    outcome: str
    settled_at: datetime
    value: bytes | None
    child: str | None

    def rules(self) -> Settled:
        """As the rules know it."""
        return Settled(self.id, self.kind, self.outcome, self.settled_at, self.value, self.child)  # type: ignore[arg-type]  # by check


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries that were appended together, as JSON texts with commas between them."""

    tenant_id: int
    run_id: str
    node: int
    base: int
    entries: bytes
    scopes: list[str] | None


@dataclass(slots=True)
class Merge:
    """What is appended as a turn is opened: what came true meanwhile, whose waits are done with."""

    key: TaskKey
    epoch: int
    base: int
    entries: Sequence[bytes]
    waits: Sequence[str]
    hashed_len: int | None
    hashed: bytes | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole log as it is kept, live or in history."""

    node: int
    generation: int
    entries: bytes | None
    live: bool
    since: datetime | None
    input: bytes | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a task last saved, and when."""

    value: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class Seeded:
    """The queue of a task whose log has begun anew."""

    tenant_id: int
    workflow_id: int
    requirement: str


@dataclass(frozen=True, slots=True)
class OfRun:
    """What a run is of, and whether it is live or when it ended."""

    workflow_id: int
    workflow_version: int
    live: bool
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A run some task has started, under the name it has among that task's children."""

    id: str
    name: str
    over: bool


# What is asked for has no wait yet: each occurrence has an id of its own. Only a step that has failed before waits once more by the same.
APPEND = Statement(
    """
    with given as (
        select * from unnest(
            $1::int[], $2::text[], $3::smallint[], $4::int[], $5::int[], $6::int[], $7::bytea[], $8::text[], $9::text[], $10::text[],
            $11::bytea[], $12::boolean[], $13::boolean[]
        ) as g (tenant_id, run_id, node, epoch, base, count, entries, parents, closes, waits, checkpoint, closes_inbox, asks)
    ), grown as (
        update tasks t
        set log_len = g.base + g.count, log_bytes = coalesce(t.log_bytes, 0) + length(g.entries),
            log_since = coalesce(t.log_since, t.started_at), app_retries = 0, infra_retries = 0, spared_since = null, spared_by = null,
            inbox_closed = case when g.closes_inbox then true else t.inbox_closed end,
            lease_until = case when t.lease > interval '0' then greatest(t.lease_until, least($24::timestamptz + t.lease, t.deadline))
                               else t.lease_until end
        from given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
          and t.state = 'running' and t.durable and coalesce(t.log_len, 0) = g.base and g.base + g.count <= $25
          and coalesce(t.log_bytes, 0) + length(g.entries) <= $26 and (t.cleanup is null or not g.asks)
          and (g.parents is null or not exists (
               select from journal j
               where j.tenant_id = g.tenant_id and j.run_id = g.run_id and j.node = g.node and j.generation = coalesce(t.generation, 0)
                 and j.scopes && array(select jsonb_array_elements_text(g.parents::jsonb))))
          and (g.waits is null or not exists (
               select from waits w
               where w.tenant_id = g.tenant_id and w.run_id = g.run_id and w.node = g.node
                 and w.id = any(array(select jsonb_object_keys(g.waits::jsonb)))
                 and (w.kind <> 'step' or g.waits::jsonb ->> w.id <> 'step')))
        returning t.tenant_id, t.run_id, t.node, coalesce(t.generation, 0) as generation, t.log_len, t.lease_until, t.deadline,
                  t.cancel_at, t.cancel_reason, g.base, g.count, g.entries, g.closes, g.checkpoint
    ), segments as (
        insert into journal (tenant_id, run_id, node, generation, base, count, entries, scopes, checkpoint, at)
        select tenant_id, run_id, node, generation, base, count, entries,
               case when closes is not null then array(select jsonb_array_elements_text(closes::jsonb)) end, checkpoint, $24
        from grown where count > 0
    ), registered as (
        insert into waits as w (tenant_id, run_id, node, id, graph, kind, event_key, scope, expression, since, due_at, look_at, created_at,
                                settled_at, outcome, value, position)
        select n.tenant_id, n.run_id, n.node, n.id, false, n.kind, n.event_key, n.scope, n.expression, n.since, n.due_at,
               case when n.kind = 'event' or n.again then $24::timestamptz end,
               $24 + case when n.kind = 'message' then n.place * interval '1 microsecond' else interval '0' end,
               case when n.outcome is not null then $24 end, n.outcome, n.value,
               case when n.outcome is not null then nextval('wait_positions') end
        from unnest($14::int[], $15::text[], $16::smallint[], $17::text[], $18::text[], $19::text[], $20::text[], $21::text[],
                    $22::timestamptz[], $23::timestamptz[], $27::text[], $28::bytea[], $29::boolean[]) with ordinality
             as n (tenant_id, run_id, node, id, kind, event_key, scope, expression, since, due_at, outcome, value, again, place)
        join grown g using (tenant_id, run_id, node)
        on conflict (tenant_id, run_id, node, id) do update
        set due_at = excluded.due_at, settled_at = null, outcome = null, position = null, created_at = excluded.created_at
    )
    select tenant_id, run_id, node, log_len, lease_until, deadline, cancel_at, cancel_reason from grown
    """,
    Appended,
)

# The same for what most appends are: steps that are over, in no scope.
APPEND_STEPS = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::int[], $6::int[], $7::bytea[])
            as g (tenant_id, run_id, node, epoch, base, count, entries)
    ), grown as (
        update tasks t
        set log_len = g.base + g.count, log_bytes = coalesce(t.log_bytes, 0) + length(g.entries),
            log_since = coalesce(t.log_since, t.started_at), app_retries = 0, infra_retries = 0, spared_since = null, spared_by = null,
            lease_until = case when t.lease > interval '0' then greatest(t.lease_until, least($8::timestamptz + t.lease, t.deadline))
                               else t.lease_until end
        from given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
          and t.state = 'running' and t.durable and coalesce(t.log_len, 0) = g.base and g.base + g.count <= $9
          and coalesce(t.log_bytes, 0) + length(g.entries) <= $10
        returning t.tenant_id, t.run_id, t.node, coalesce(t.generation, 0) as generation, t.log_len, t.lease_until, t.deadline,
                  t.cancel_at, t.cancel_reason, g.base, g.count, g.entries
    ), segments as (
        insert into journal (tenant_id, run_id, node, generation, base, count, entries, at)
        select tenant_id, run_id, node, generation, base, count, entries, $8 from grown where count > 0
    )
    select tenant_id, run_id, node, log_len, lease_until, deadline, cancel_at, cancel_reason from grown
    """,
    Appended,
)

HEADS = Statement(
    """
    select t.tenant_id, t.run_id, t.node, t.workflow_id, t.workflow_version, t.state, t.epoch, coalesce(t.turn, 1) as turn,
           coalesce(t.generation, 0) as generation, coalesce(t.log_len, 0) as log_len, coalesce(t.log_bytes, 0) as log_bytes,
           t.log_since, t.started_at, coalesce(t.known_len, 0) as known_len, coalesce(t.hashed_len, 0) as hashed_len, t.hashed, t.memory,
           t.input, coalesce(t.cleanup, false) as cleanup, t.cancel_reason, t.pin_endpoint, t.pin_version,
           case when t.generation > 0 then (
               select j.at from journal j where j.tenant_id = t.tenant_id and j.run_id = t.run_id and j.node = t.node
               order by j.generation, j.base limit 1) end as first_since
    from unnest($1::int[], $2::text[], $3::smallint[]) as g (tenant_id, run_id, node)
    join tasks t on t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node
    where t.durable
    """,
    Head,
)

OVER = Statement(
    """
    select w.tenant_id, w.run_id, w.node, w.id, w.kind, w.outcome, w.settled_at, w.value,
           case when w.kind = 'child' then w.event_key end as child
    from unnest($1::int[], $2::text[], $3::smallint[]) as g (tenant_id, run_id, node)
    join waits w on w.tenant_id = any (array[g.tenant_id]) and w.run_id = g.run_id and w.node = g.node
    where not w.graph and w.settled_at is not null
    order by w.position
    """,
    Over,
)

SEGMENTS = Statement(
    """
    select j.tenant_id, j.run_id, j.node, j.base, j.entries, j.scopes
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::int[]) as g (tenant_id, run_id, node, generation, base)
    join journal j on j.tenant_id = any (array[g.tenant_id]) and j.run_id = g.run_id and j.node = g.node and j.generation = g.generation
         and j.base >= g.base
    order by g.tenant_id, g.run_id, g.node, j.base
    """,
    Segment,
)

MERGE = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::int[], $6::int[], $7::bytea[], $8::int[], $9::bytea[])
            as g (tenant_id, run_id, node, epoch, base, count, entries, hashed_len, hashed)
    ), grown as (
        update tasks t
        set log_len = g.base + g.count, log_bytes = coalesce(t.log_bytes, 0) + length(g.entries),
            log_since = coalesce(t.log_since, t.started_at), hashed_len = coalesce(g.hashed_len, t.hashed_len),
            hashed = coalesce(g.hashed, t.hashed)
        from given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
          and t.state = 'running' and coalesce(t.log_len, 0) = g.base
        returning t.tenant_id, t.run_id, t.node, coalesce(t.generation, 0) as generation, g.base, g.count, g.entries
    ), segments as (
        insert into journal (tenant_id, run_id, node, generation, base, count, entries, at)
        select tenant_id, run_id, node, generation, base, count, entries, $14 from grown where count > 0
    ), done as (
        delete from waits w using grown g, unnest($10::int[], $11::text[], $12::smallint[], $13::text[]) as n (tenant_id, run_id, node, id)
        where g.tenant_id = n.tenant_id and g.run_id = n.run_id and g.node = n.node
          and w.tenant_id = any (array[n.tenant_id]) and w.run_id = n.run_id and w.node = n.node and w.id = n.id
          and w.settled_at is not null
    )
    select tenant_id, run_id, node from grown
    """,
    Applied,
)

# Attempts that are sent to an older version of the endpoint they were leased to say so.
SENT_TO = """
    update tasks t set endpoint_version = g.version
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[]) as g (tenant_id, run_id, node, epoch, version)
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = 'running'
"""

LOGS = Statement(
    """
    select j.node, j.generation, string_agg(j.entries, ','::bytea order by j.base) as entries, true as live, t.log_since as since, t.input,
           null::timestamptz as finished_at
    from journal j
    left join tasks t on t.tenant_id = $1 and t.run_id = $2 and t.node = j.node and coalesce(t.generation, 0) = j.generation
    where j.tenant_id = $1 and j.run_id = $2 group by j.node, j.generation, t.log_since, t.input
    union all
    select h.node, h.generation, h.entries, false, h.since, h.input, h.finished_at
    from journal_history h where h.tenant_id = $1 and h.run_id = $2 and h.finished_at >= $3
    order by node, live, finished_at, generation
    """,
    Kept,
)

SAVED = Statement(
    """
    select checkpoint as value, at from (
        (select j.checkpoint, j.at from journal j
         where j.tenant_id = $1 and j.run_id = $2 and j.node = $3 and j.checkpoint is not null
         order by j.generation desc, j.base desc limit 1)
        union all
        (select h.checkpoint, h.checkpoint_at from journal_history h
         where h.tenant_id = $1 and h.run_id = $2 and h.node = $3 and h.finished_at >= $4 and h.checkpoint is not null
         order by h.finished_at desc, h.generation desc limit 1)
    ) found order by at desc limit 1
    """,
    Checkpoint,
)

CHILDREN = Statement(
    """
    select r.id, r.parent_wait as name, false as over
    from runs r where r.tenant_id = $1 and r.parent_run_id = $2 and r.parent_node = $3 and r.parent_wait = any($4::text[])
    union all
    select h.id, h.parent_wait, true
    from run_history h
    where h.tenant_id = $1 and h.parent_run_id = $2 and h.parent_node = $3 and h.parent_wait = any($4::text[]) and h.finished_at >= $5
    order by over desc, id
    """,
    ChildRun,
)

# Of runs that were started as children those that end or have ended by themselves: what was cancelled gives nothing to wait for.
UNCANCELLED = """
    select r.id from runs r
    where r.tenant_id = $1 and r.id = any($2::text[]) and r.doomed_at is null and r.cancel_reason is null
      and not exists (select from tasks t where t.tenant_id = r.tenant_id and t.run_id = r.id and (t.cancel_at is not null or t.cleanup)
                      offset 0)
    union all
    select h.id from run_history h where h.tenant_id = $1 and h.id = any($2::text[]) and h.status <> 'cancelled' and h.finished_at >= $3
"""


async def append(
    db: Database | Connection, items: Sequence[NewEntries], now: datetime, most_entries: int, most_bytes: int
) -> dict[TaskKey, Appended]:
    """Append to logs, and register what the entries wait for; answers the tasks whose append landed. One task may appear once."""
    if all(item.entries.plain for item in items):
        return await _append_steps(db, items, now, most_entries, most_bytes)
    waits = [(item, wait) for item in items for wait in item.entries.waits]
    records = await db.fetch(
        APPEND.sql,
        *_keys([item.key for item in items]),
        [item.epoch for item in items],
        [item.base for item in items],
        [len(item.entries) for item in items],
        [item.entries.text for item in items],
        [_names(item.entries.parents) for item in items],
        [_names(item.entries.closes) for item in items],
        [json.dumps({wait.id: wait.kind for wait in item.entries.waits}) if item.entries.waits else None for item in items],
        [item.entries.checkpoint for item in items],
        [item.entries.closes_inbox for item in items],
        [item.entries.asks for item in items],
        *_keys([item.key for item, _ in waits]),
        [wait.id for _, wait in waits],
        [wait.kind for _, wait in waits],
        [wait.event_key if wait.kind != "child" else item.children.get(wait.id) for item, wait in waits],
        [wait.scope for _, wait in waits],
        [wait.expression for _, wait in waits],
        [wait.since for _, wait in waits],
        [wait.due_at for _, wait in waits],
        now,
        most_entries,
        most_bytes,
        [item.given[wait.id][0] if wait.id in item.given else None for item, wait in waits],
        [item.given[wait.id][1] if wait.id in item.given else None for item, wait in waits],
        [wait.id in item.again for item, wait in waits],
    )
    return {(row.tenant_id, row.run_id, row.node): row for row in APPEND.read(records)}


async def _append_steps(
    db: Database | Connection, items: Sequence[NewEntries], now: datetime, most_entries: int, most_bytes: int
) -> dict[TaskKey, Appended]:
    records = await db.fetch(
        APPEND_STEPS.sql,
        *_keys([item.key for item in items]),
        [item.epoch for item in items],
        [item.base for item in items],
        [len(item.entries) for item in items],
        [item.entries.text for item in items],
        now,
        most_entries,
        most_bytes,
    )
    return {(row.tenant_id, row.run_id, row.node): row for row in APPEND_STEPS.read(records)}


async def heads(db: Database | Connection, keys: Sequence[TaskKey]) -> dict[TaskKey, Head]:
    """Durable tasks that are live."""
    return {row.key: row for row in HEADS.read(await db.fetch(HEADS.sql, *_keys(keys)))}


async def over(db: Database, keys: Sequence[TaskKey]) -> dict[TaskKey, list[Over]]:
    """What has come true for tasks and is not in their logs, in the order it did."""
    found: dict[TaskKey, list[Over]] = {}
    for row in OVER.read(await db.fetch(OVER.sql, *_keys(keys))):
        found.setdefault((row.tenant_id, row.run_id, row.node), []).append(row)
    return found


async def segments(db: Database, wanted: Sequence[tuple[Head, int]]) -> dict[TaskKey, list[Segment]]:
    """Logs from a position on, which is where an append began."""
    keys = _keys([head.key for head, _ in wanted])
    records = await db.fetch(SEGMENTS.sql, *keys, [head.generation for head, _ in wanted], [base for _, base in wanted])
    found: dict[TaskKey, list[Segment]] = {}
    for row in SEGMENTS.read(records):
        found.setdefault((row.tenant_id, row.run_id, row.node), []).append(row)
    return found


async def merge(db: Database, merges: Sequence[Merge], now: datetime) -> set[TaskKey]:
    """Append what came true to the logs of attempts that begin; answers those that still are what they were."""
    waits = [(m.key, wait) for m in merges for wait in m.waits]
    records = await db.fetch(
        MERGE.sql,
        *_keys([m.key for m in merges]),
        [m.epoch for m in merges],
        [m.base for m in merges],
        [len(m.entries) for m in merges],
        [b",".join(m.entries) for m in merges],
        [m.hashed_len for m in merges],
        [m.hashed for m in merges],
        *_keys([key for key, _ in waits]),
        [wait for _, wait in waits],
        now,
    )
    return {(row.tenant_id, row.run_id, row.node) for row in MERGE.read(records)}


async def sent_to(db: Database, attempts: Sequence[tuple[TaskKey, int, str]]) -> None:
    """Note the version of their endpoint that attempts, by task and number, are sent to."""
    await db.execute(SENT_TO, *_keys([key for key, _, _ in attempts]), [epoch for _, epoch, _ in attempts], [v for *_, v in attempts])


async def logs(db: Database, tenant_id: int, run_id: str, since: datetime) -> list[Kept]:
    """All logs of a run's tasks, by node and generation. A run that may have ended `since` then is looked for in history."""
    return LOGS.read(await db.fetch(LOGS.sql, tenant_id, run_id, since))


async def saved(db: Database, tenant_id: int, run_id: str, node: int, since: datetime) -> Checkpoint | None:
    """The latest checkpoint of a task."""
    return SAVED.first(await db.fetch(SAVED.sql, tenant_id, run_id, node, since))


async def children(db: Database, parent: TaskKey, names: Sequence[str], created: datetime) -> dict[str, ChildRun]:
    """Children a task has started before, by name. `created` is when the parent was, at the latest."""
    since = created - timedelta(hours=1)
    rows = CHILDREN.read(await db.fetch(CHILDREN.sql, *parent, list(names), since))
    return {row.name: row for row in rows}  # of several the one that is live, or the latest


async def uncancelled(db: Database, tenant_id: int, run_ids: Sequence[str], created: datetime) -> set[str]:
    """Those of these runs whose end somebody may wait for, or has missed. `created` is when the first of them was, at the earliest."""
    records = await db.fetch(UNCANCELLED, tenant_id, list(run_ids), created - timedelta(hours=1))
    return {record[0] for record in records}


def _keys(keys: Sequence[TaskKey]) -> tuple[list[int], list[str], list[int]]:
    return [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]


def _names(names: Sequence[Any]) -> str | None:
    return json.dumps(list(names)) if names else None


# A log begins anew with what is kept of another: the task has another generation of it, and nothing it waited for before counts. A log
# that has grown since it was read is left alone, and so is a task that is about to clean up.
SEED = Statement(
    """
    with seeded as (
        update tasks t
        set generation = $4, log_len = $5, log_bytes = length($6::bytea), log_since = coalesce(t.log_since, $9), known_len = null,
            hashed_len = null, hashed = null, memory = null, wake = null, wake_at = null, marks = coalesce(t.marks, 0) + 1,
            state = 'queued', due_at = $10, schedule_deadline = null, error = null, inbox_closed = $23::boolean,
            app_retries = 0, infra_retries = 0, spared_since = null, spared_by = null, pin_endpoint = null, pin_version = null,
            requirement = regexp_replace(t.requirement, $24, ''),
            input = coalesce($20, t.input)
        where t.tenant_id = $1 and t.run_id = $2 and t.node = $3 and t.durable and t.epoch = $11
          and coalesce(t.generation, 0) = $21 and coalesce(t.log_len, 0) = $22 and t.cleanup is null
          and t.state in ('waiting', 'blocked', 'queued', 'scheduled')
        returning t.tenant_id, t.run_id, t.node, t.workflow_id, t.requirement
    ), segment as (
        insert into journal (tenant_id, run_id, node, generation, base, count, entries, scopes, checkpoint, at)
        select tenant_id, run_id, node, $4, 0, $5, $6, $7::text[], $8::bytea, $10 from seeded where $5 > 0
    ), gone as (
        delete from waits w using seeded s
        where w.tenant_id = any (array[s.tenant_id]) and w.run_id = s.run_id and w.node = s.node and not w.graph
          and w.id <> all(array(select jsonb_array_elements_text($12::jsonb)))
    ), registered as (
        insert into waits as w (tenant_id, run_id, node, id, graph, kind, event_key, scope, expression, since, due_at, look_at, created_at)
        select s.tenant_id, s.run_id, s.node, n.id, false, n.kind, n.event_key, n.scope, n.expression, n.since, n.due_at,
               case when n.kind in ('event', 'child') then $10::timestamptz end,
               $10 + case when n.kind = 'message' then n.place * interval '1 microsecond' else interval '0' end
        from seeded s, unnest($13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::timestamptz[], $19::timestamptz[])
             with ordinality as n (id, kind, event_key, scope, expression, since, due_at, place)
        on conflict (tenant_id, run_id, node, id) do update
        set event_key = excluded.event_key, look_at = excluded.look_at, created_at = excluded.created_at, settled_at = null, outcome = null,
            value = null, position = null
        where w.kind = 'child' and w.event_key is distinct from excluded.event_key -- it begins again, as another run
    )
    select tenant_id, -workflow_id as workflow_id, requirement from seeded
    """,
    Seeded,
)
OF_RUN = Statement(
    """
    select workflow_id, workflow_version, true as live, null::timestamptz as finished_at from runs where tenant_id = $1 and id = $2
    union all
    select workflow_id, workflow_version, false, finished_at from run_history where tenant_id = $1 and id = $2 and finished_at >= $3
    """,
    OfRun,
)


@dataclass(slots=True)
class Seed:
    """What a log begins with. `waits` are what its operations still wait for, `children` the runs of those that wait for one; `scopes`
    are those it has closed, and it may have closed the inbox.
    """

    key: TaskKey
    generation: int
    entries: Sequence[bytes]
    scopes: Sequence[str]
    checkpoint: bytes | None
    since: datetime | None
    waits: Sequence[Wait]
    children: dict[str, str]
    input: bytes | None
    inbox_closed: bool


async def seed(db: Database | Connection, wanted: Seed, stands: Head, now: datetime) -> list[Seeded]:
    """Begin a log anew; nothing is answered when the task does not stand where it did any more, or is at work."""
    waits = wanted.waits
    records = await db.fetch(
        SEED.sql,
        *wanted.key,
        wanted.generation,
        len(wanted.entries),
        b",".join(wanted.entries),
        list(wanted.scopes) or None,
        wanted.checkpoint,
        wanted.since,
        now,
        stands.epoch,
        json.dumps([wait.id for wait in waits]),
        [wait.id for wait in waits],
        [wait.kind for wait in waits],
        [wanted.children.get(wait.id) if wait.kind == "child" else wait.event_key for wait in waits],
        [wait.scope for wait in waits],
        [wait.expression for wait in waits],
        [wait.since for wait in waits],
        [wait.due_at for wait in waits],
        wanted.input,
        stands.generation,
        stands.log_len,
        wanted.inbox_closed or None,
        PIN,
    )
    return SEED.read(records)


async def of_run(db: Database, tenant_id: int, run_id: str, since: datetime) -> OfRun | None:
    """Which version of which workflow a run is of."""
    return OF_RUN.first(await db.fetch(OF_RUN.sql, tenant_id, run_id, since))


IS_DURABLE = """
    select exists (select from tasks where tenant_id = $1 and run_id = $2 and durable)
        or exists (select from task_history where tenant_id = $1 and run_id = $2 and durable and finished_at >= $3)
"""


async def is_durable(db: Database, tenant_id: int, run_id: str, since: datetime) -> bool:
    """Whether a run has a durable task."""
    return bool(await db.fetchval(IS_DURABLE, tenant_id, run_id, since))
