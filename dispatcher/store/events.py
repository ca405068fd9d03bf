"""Reading events, and the runs they started as the attempts each took."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher import ids
from dispatcher.store.database import Database
from dispatcher.store.runs import CLOCK_SKEW, PLAN_FOR_VALUES, first_id
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event; `runs` is how many it started. Lists leave `data` out."""

    id: str
    type: str
    data: bytes | None
    metadata: str | None
    scope: str | None
    priority: int | None
    stream_id: str
    idempotency_key: str | None
    runs: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a list is asked for. `metadata` is a jsonpath predicate (see `runs.has_metadata`), `matched` whether any run began."""

    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    scope: str | None = None
    metadata: str | None = None
    matched: bool | None = None
    among: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class AttemptRun:
    """One attempt of a run an event started; number 0 where the run has had none. `latest` marks the last of its run.

    `state` is the run's: a final status, or what its task is doing. Only the latest attempt carries the output.
    """

    run_id: str
    workflow: str
    number: int
    latest: bool
    state: str
    status: str | None
    input: bytes
    output: bytes | None
    output_type: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


EVENT = Statement(
    """
    select id, type, data, metadata, scope, priority, stream_id, idempotency_key, runs, created_at
    from events where tenant_id = $1 and id = $2 and created_at >= $3 and created_at < $4
    """,
    EventRow,
)
EVENTS = Statement(
    """
    select id, type, null::bytea as data, metadata, scope, priority, stream_id, idempotency_key, runs, created_at
    from events
    where tenant_id = $1 and ($2::text is null or type = $2) and ($3::text is null or id < $3) and ($4::text is null or id >= $4)
      and ($5::timestamptz is null or created_at >= $5) and ($7::text is null or scope = $7)
      and ($8::jsonpath is null or metadata @@ $8) and ($9::boolean is null or (not $9 and runs = 0) or ($9 and runs > 0))
    and ($10::text[] is null or id = any($10))
    order by id desc limit $6
    """,
    EventRow,
)
# Pages are counted in attempts, so a page of them needs at most as many runs, and the one the last page ended in. $7 bounds the bytes of a
# page: its first row always fits, or nobody could get past it.
EVENT_RUNS = Statement(
    """
    with run as (
        (select id, workflow_id, workflow_version, input, created_at, null::text as status, null::timestamptz as finished_at, graph
         from runs where tenant_id = $1 and event_id = $2 and id >= $4 order by id limit $6 + 1)
        union all
        (select id, workflow_id, workflow_version, input, created_at, status, finished_at, graph
         from run_history where tenant_id = $1 and event_id = $2 and id >= $4 and finished_at >= $3 order by id limit $6 + 1)
        order by id limit $6 + 1
    ), task as (
        select r.id, r.workflow_id, r.input, r.created_at, t.state, t.epoch, null::bytea as output, null::text as output_type,
               null::jsonb as error, t.started_at, null::timestamptz as finished_at
        from run r join tasks t on t.tenant_id = $1 and t.run_id = r.id and t.node = 0
        where r.graph is null
        union all
        select r.id, r.workflow_id, r.input, r.created_at, t.status, t.epoch, t.output, t.output_type, t.error, t.started_at, t.finished_at
        from run r join task_history t on t.tenant_id = $1 and t.run_id = r.id and t.node = 0 and t.finished_at = r.finished_at
        where r.graph is null
        union all
        select r.id, r.workflow_id, r.input, r.created_at,
               coalesce(r.status, case when r.graph ~ '[^-]' then 'running' else 'queued' end), 0, g.output, 'application/json',
               g.error, g.started_at, r.finished_at
        from run r
        join workflow_versions v on v.tenant_id = $1 and v.workflow_id = r.workflow_id and v.number = r.workflow_version
        cross join lateral (
            select min(t.started_at) as started_at, (array_agg(t.error order by t.node) filter (where t.status = 'failed'))[1] as error,
                   convert_to(json_object_agg(coalesce(v.definition #>> array['tasks', t.node::text, 'name'], t.node::text),
                                              convert_from(t.output, 'UTF8')::json)
                              filter (where t.status = 'succeeded' and t.output_type = 'application/json')::text, 'UTF8') as output
            from task_history t where t.tenant_id = $1 and t.run_id = r.id and t.finished_at = r.finished_at
        ) g
        where r.graph is not null
    ), shown as (
        select t.id as run_id, (select w.name from workflows w where w.tenant_id = $1 and w.id = t.workflow_id) as workflow,
               a.number, a.number = t.epoch as latest, t.state, a.status, t.input,
               case when a.number = t.epoch then t.output end as output, case when a.number = t.epoch then t.output_type end as output_type,
               case when a.number = t.epoch then coalesce(t.error, a.error) else a.error end as error,
               t.created_at, a.started_at, a.finished_at
        from task t cross join lateral (
            select number, status, error, started_at, finished_at from attempts
            where t.epoch > 0 and tenant_id = $1 and run_id = t.id and node = 0 and finished_at >= $3
            union all
            select t.epoch, case t.state when 'running' then 'running' end, t.error, t.started_at, t.finished_at
            where t.epoch = 0 or t.state = 'running'
        ) a
        where (t.id, a.number) > ($4, $5::int) order by t.id, a.number limit $6
    ), measured as (
        select *, row_number() over place as row_number,
               sum(octet_length(input) + coalesce(octet_length(output), 0)) over place as bytes
        from shown window place as (order by run_id, number)
    )
    select run_id, workflow, number, latest, state, status, input, output, output_type, error, created_at, started_at, finished_at
    from measured where bytes <= $7 or row_number = 1 order by run_id, number
    """,
    AttemptRun,
)


async def get(db: Database, tenant_id: int, event_id: str) -> EventRow | None:
    """An event, or None where there is none of this id."""
    made = ids.created_at(event_id)
    if made is None or not event_id.startswith("evt_"):
        return None
    return EVENT.first(await db.fetch(EVENT.sql, tenant_id, event_id, made - CLOCK_SKEW, made + CLOCK_SKEW))


async def page(db: Database, tenant_id: int, wanted: EventFilter, before: str | None, limit: int) -> list[EventRow]:
    """Events that match, newest first, at most `limit`, all older than `before` where that is given."""
    upper = [text for text in (before, first_id("evt", wanted.until) if wanted.until else None) if text is not None]
    lower = first_id("evt", wanted.since) if wanted.since else None
    made = [moment for one in wanted.among or () if (moment := ids.created_at(one)) is not None]
    since = max([moment for moment in (wanted.since, min(made, default=None)) if moment is not None], default=None)
    created = since - CLOCK_SKEW if since is not None else None
    async with db.transaction() as conn:
        await conn.execute(PLAN_FOR_VALUES)
        place = (min(upper, default=None), lower, created, limit)
        choice = (wanted.scope, wanted.metadata, wanted.matched, wanted.among)
        return EVENTS.read(await conn.fetch(EVENTS.sql, tenant_id, wanted.type, *place, *choice))


async def attempts(db: Database, tenant_id: int, event_id: str, after: tuple[str, int], limit: int, most_bytes: int) -> list[AttemptRun]:
    """Attempts of the runs an event started, oldest run first, behind (run id, number) `after`; at most `limit` rows of `most_bytes`."""
    made = ids.created_at(event_id)
    if made is None:
        return []
    return EVENT_RUNS.read(await db.fetch(EVENT_RUNS.sql, tenant_id, event_id, made - CLOCK_SKEW, *after, limit, most_bytes))


@dataclass(frozen=True, slots=True)
class EventFacts:
    """What a run's handler is told of the event that started it."""

    tenant_id: int
    id: str
    type: str
    metadata: str | None


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run an event started."""

    event_id: str
    id: str


RUNS_OF = Statement(
    """
    select event_id, id from runs where tenant_id = $1 and event_id = any($2::text[])
    union all
    select event_id, id from run_history where tenant_id = $1 and event_id = any($2::text[]) and finished_at >= $3
    order by 2
    """,
    StartedRun,
)
FACTS = Statement(
    """
    select e.tenant_id, e.id, e.type, e.metadata from unnest($1::int[], $2::text[]) as g (tenant_id, id)
    join events e on e.tenant_id = g.tenant_id and e.id = g.id and e.created_at >= $3
    """,
    EventFacts,
)


async def facts(db: Database, wanted: Collection[tuple[int, str]]) -> dict[tuple[int, str], EventFacts]:
    """The facts of many events, by (tenant id, event id)."""
    moments = [moment for _, event_id in wanted if (moment := ids.created_at(event_id)) is not None]
    if not moments:
        return {}
    tenants, event_ids = [t for t, _ in wanted], [i for _, i in wanted]
    rows = FACTS.read(await db.fetch(FACTS.sql, tenants, event_ids, min(moments) - CLOCK_SKEW))
    return {(row.tenant_id, row.id): row for row in rows}


async def runs_of(db: Database, tenant_id: int, event_ids: Collection[str]) -> dict[str, list[str]]:
    """The runs each of these events started, in the order they were started in."""
    moments = [moment for event_id in event_ids if (moment := ids.created_at(event_id)) is not None]
    found: dict[str, list[str]] = {event_id: [] for event_id in event_ids}
    if moments:
        for row in RUNS_OF.read(await db.fetch(RUNS_OF.sql, tenant_id, list(event_ids), min(moments) - CLOCK_SKEW)):
            found[row.event_id].append(row.id)
    return found
