"""Reading runs: one with everything about it, and pages of many without their bodies.

A run is in the live tables or in history, never in both: one statement moves it. Each read here is one statement over the two, so it sees
a run on one side of the move or the other. History is partitioned by the end of a run, and a run ends after its id was made: that prunes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from dispatcher import ids
from dispatcher.store.database import Database
from dispatcher.store.statement import Statement

CLOCK_SKEW: Final = timedelta(hours=1)
"""How far the clocks of two dispatchers may differ: the end of a run is looked for from so long before its id was made."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One task of a run, with the run's own columns. `task_status` is a history status, or the state of a live task.

    A graph's run has its letters in `graph`, its definition and the conditions its tasks wait for (`waits`) as JSON texts; where none of
    its tasks has started there is one row without a task.

    `input`, `output` and the responses are JSON text as it came. The attempts are parallel lists, oldest first, of those that are over;
    the one that is running is the task itself, its number `epoch`. The run's children stand with its first task.
    """

    id: str
    workflow: str
    workflow_version: int
    status: str | None
    input: bytes
    metadata: str | None
    priority: int
    trigger: str
    event_id: str | None
    parent_run_id: str | None
    stream_id: str | None
    idempotency_key: str | None
    created_at: datetime
    finished_at: datetime | None
    graph: str | None
    reasons: str | None
    definition: str | None
    waits: str | None
    node: int | None
    task_name: str | None
    task_status: str | None
    output: bytes | None
    output_type: str | None
    error: str | None
    epoch: int
    retries: int
    endpoint: str | None
    endpoint_version: str | None
    task_started_at: datetime | None
    task_finished_at: datetime | None
    due_at: datetime | None
    deadline: datetime | None
    lease_until: datetime | None
    cancel_reason: str | None
    progress: str | None
    children: list[str] | None
    numbers: list[int]
    statuses: list[str]
    http_statuses: list[int | None]
    latencies_ms: list[int | None]
    responses: list[bytes | None]
    errors: list[str | None]
    endpoints: list[str]
    versions: list[str]
    starts: list[datetime]
    ends: list[datetime]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as lists show it. `state` and `epoch` are its first task's."""

    id: str
    workflow: str
    status: str | None
    state: str
    epoch: int
    metadata: str | None
    priority: int
    trigger: str
    event_id: str | None
    parent_run_id: str | None
    idempotency_key: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list is asked for. `workflow` and `endpoint` are names, `metadata` is a jsonpath predicate (see `has_metadata`)."""

    statuses: Sequence[str] | None = None
    workflow: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    metadata: str | None = None
    event_id: str | None = None
    parent_run_id: str | None = None
    endpoint: str | None = None
    among: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A run's id."""

    id: str


RUN = Statement(
    """
    with run as (
        select id, workflow_id, workflow_version, null::text as status, input, metadata, priority, trigger, event_id, parent_run_id,
               stream_id, idempotency_key, created_at, null::timestamptz as finished_at, graph, reasons
        from runs where tenant_id = $1 and id = $2
        union all
        select id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id, parent_run_id,
               stream_id, idempotency_key, created_at, finished_at, graph, reasons
        from run_history where tenant_id = $1 and id = $2 and finished_at >= $3
    ), task as (
        select node, coalesce(status, state) as status, output, output_type, error, epoch,
               retry_base + app_retries + infra_retries as retries, endpoint_id, endpoint_version, started_at, finished_at,
               due_at, deadline, lease_until, case when cancel_at is not null then cancel_reason end as cancel_reason, progress
        from tasks where tenant_id = $1 and run_id = $2
        union all
        select node, status, output, output_type, error, epoch, retry_base + app_retries + infra_retries, endpoint_id, endpoint_version,
               started_at,
               coalesce(ended_at, finished_at), null, null, null, null, progress
        from task_history where tenant_id = $1 and run_id = $2 and finished_at >= $3
    )
    select r.id, (select w.name from workflows w where w.tenant_id = $1 and w.id = r.workflow_id) as workflow,
           r.workflow_version, r.status, r.input, r.metadata, r.priority, r.trigger, r.event_id, r.parent_run_id, r.stream_id,
           r.idempotency_key, r.created_at, r.finished_at, r.graph, r.reasons,
           case when r.graph is not null and coalesce(t.node, 0) = coalesce(min(t.node) over (), 0) then (
               select v.definition from workflow_versions v
               where v.tenant_id = $1 and v.workflow_id = r.workflow_id and v.number = r.workflow_version
           ) end as definition,
           case when strpos(r.graph, 'w') > 0 and coalesce(t.node, 0) = coalesce(min(t.node) over (), 0) then (
               select jsonb_agg(jsonb_build_object('node', node, 'id', id, 'open', settled_at is null, 'due_at', due_at))
               from waits w where w.tenant_id = $1 and w.run_id = $2 and w.graph
           ) end as waits,
           t.node,
           (select v.definition #>> array['tasks', t.node::text, 'name'] from workflow_versions v
            where v.tenant_id = $1 and v.workflow_id = r.workflow_id and v.number = r.workflow_version) as task_name,
           t.status as task_status, t.output, t.output_type, t.error, coalesce(t.epoch, 0) as epoch, coalesce(t.retries, 0) as retries,
           coalesce((select e.name from endpoints e where e.tenant_id = $1 and e.id = t.endpoint_id), t.endpoint_id) as endpoint,
           t.endpoint_version, t.started_at as task_started_at, t.finished_at as task_finished_at, t.due_at, t.deadline, t.lease_until,
           t.cancel_reason, t.progress,
           case when coalesce(t.node, 0) = coalesce(min(t.node) over (), 0) then array(
               (select c.id from runs c where c.tenant_id = $1 and c.parent_run_id = $2 order by c.id limit $4)
               union all
               (select c.id from run_history c where c.tenant_id = $1 and c.parent_run_id = $2 and c.finished_at >= $3
                order by c.id limit $4)
               order by id limit $4) end as children,
           a.numbers, a.statuses, a.http_statuses, a.latencies_ms, a.responses, a.errors, a.endpoints, a.versions, a.starts, a.ends
    from run r
    left join task t on true
    cross join lateral (
        select coalesce(array_agg(number order by number), '{}') as numbers,
               coalesce(array_agg(status order by number), '{}') as statuses,
               coalesce(array_agg(http_status order by number), '{}') as http_statuses,
               coalesce(array_agg(latency_ms order by number), '{}') as latencies_ms,
               coalesce(array_agg(response order by number), '{}') as responses,
               coalesce(array_agg(error::text order by number), '{}') as errors,
               coalesce(array_agg(coalesce(name, endpoint_id) order by number), '{}') as endpoints,
               coalesce(array_agg(endpoint_version order by number), '{}') as versions,
               coalesce(array_agg(started_at order by number), '{}') as starts,
               coalesce(array_agg(finished_at order by number), '{}') as ends
        from (select number, status, http_status, latency_ms, response, error, endpoint_id, endpoint_version, started_at, finished_at,
                     (select e.name from endpoints e where e.tenant_id = $1 and e.id = endpoint_id) as name
              from attempts where tenant_id = $1 and run_id = $2 and node = t.node and finished_at >= $3
              order by number desc limit $4) latest
    ) a
    order by t.node
    """,
    RunRow,
)

# Each page is cut before anything is joined to it. Flags fold to constants because the plan is made for the values (see `page`):
# $9 and $10 say whether live and finished runs are wanted at all, $11 whether only running ones are, which two small indexes know, $16
# whether only those of a workflow that have not succeeded are. Of those there may be none among any number: an index has them by
# workflow and status, newest first, but the planner, which takes them for evenly spread, would rather read all there are in order.
RUNS = Statement(
    """
    with live as (
        select r.id, r.workflow_id, null::text as status,
               case when r.graph is null then t.state when r.graph ~ '[^-]' then 'running' else 'queued' end as state,
               coalesce(t.epoch, 0) as epoch, r.metadata, r.priority, r.trigger, r.event_id,
               r.parent_run_id, r.idempotency_key, r.created_at, t.started_at, null::timestamptz as finished_at
        from runs r left join tasks t on t.tenant_id = $1 and t.run_id = r.id and t.node = 0 and r.graph is null
        where $9 and r.tenant_id = $1
          and ($2::text is null or r.id < $2) and ($3::text is null or r.id >= $3)
          and ($4::int[] is null or r.workflow_id = any($4))
          and ($5::text is null or r.event_id = $5)
          and ($6::text is null or r.parent_run_id = $6)
          and ($7::text is null or t.endpoint_id = $7)
          and ($8::jsonpath is null or r.metadata @@ $8)
          and ($12::text[] is null or case when r.graph ~ '[^-]' or t.state = 'running' then 'running'
               when t.state in ('waiting', 'blocked') then t.state
               when t.state = 'scheduled' and t.epoch > 0 then 'pending_retry' else 'queued' end = any($12))
          and ($15::text[] is null or r.id = any($15))
          and (not $11 or r.id = any(array(
               select k.run_id from tasks k where k.tenant_id = $1 and k.dispatcher_id is not null
               union all
               select k.run_id from tasks k where k.tenant_id = $1 and k.lease_until is not null
               union all
               select g.id from runs g where g.tenant_id = $1 and g.graph is not null and g.graph ~ '[^-]')))
        order by r.id desc limit $13
    ), over as (
        select h.id, h.workflow_id, h.status, h.status as state, 0 as epoch, h.metadata, h.priority, h.trigger, h.event_id,
               h.parent_run_id, h.idempotency_key, h.created_at, h.started_at, h.finished_at
        from run_history h
        where $10 and not $16 and h.tenant_id = $1 and ($14::timestamptz is null or h.finished_at >= $14)
          and ($2::text is null or h.id < $2) and ($3::text is null or h.id >= $3)
          and ($4::int[] is null or h.workflow_id = any($4))
          and ($5::text is null or h.event_id = $5)
          and ($6::text is null or h.parent_run_id = $6)
          and ($7::text is null or exists (
               select from attempts a where a.tenant_id = $1 and a.run_id = h.id and a.endpoint_id = $7
               and a.finished_at >= h.created_at - interval '1 hour' and a.finished_at <= h.finished_at))
          and ($8::jsonpath is null or h.metadata @@ $8)
          and ($12::text[] is null or h.status = any($12))
          and ($15::text[] is null or h.id = any($15))
        order by h.id desc limit $13
    ), unhappy as (
        select f.* from unnest($4::int[]) w (id) cross join unnest($12::text[]) s (status) cross join lateral (
            select h.id, h.workflow_id, h.status, h.status as state, 0 as epoch, h.metadata, h.priority, h.trigger, h.event_id,
                   h.parent_run_id, h.idempotency_key, h.created_at, h.started_at, h.finished_at
            from run_history h
            where $10 and $16 and h.tenant_id = $1 and h.workflow_id = w.id and h.status = s.status and h.status <> 'succeeded'
              and ($14::timestamptz is null or h.finished_at >= $14)
              and ($2::text is null or h.id < $2) and ($3::text is null or h.id >= $3)
            order by h.id desc limit $13
        ) f
    ), page as (
        select * from live union all select * from over union all select * from unhappy order by id desc limit $13
    )
    select p.id, w.name as workflow, p.status, p.state, coalesce(t.epoch, p.epoch) as epoch, p.metadata, p.priority, p.trigger,
           p.event_id, p.parent_run_id, p.idempotency_key, t.error, p.created_at,
           case when coalesce(t.epoch, p.epoch) > 1
                then coalesce((select min(a.started_at) from attempts a where a.tenant_id = $1 and a.run_id = p.id and a.node = 0
                               and a.finished_at >= p.created_at - interval '1 hour'), p.started_at)
                else p.started_at end as started_at,
           p.finished_at
    from page p
    join workflows w on w.tenant_id = $1 and w.id = p.workflow_id
    left join task_history t on t.tenant_id = $1 and t.run_id = p.id and t.node = 0 and t.finished_at = p.finished_at
    order by p.id desc
    """,
    RunSummary,
)

# For a run that was once accepted, the small table answers for the large one: it is over when it is not live any more.
IS_LIVE = "select exists (select from runs where tenant_id = $1 and id = $2)"
# In one picture: a run that begins again moves from history to the live tables.
EXISTS = """
    select exists (select from runs where tenant_id = $1 and id = $2)
        or exists (select from run_history where tenant_id = $1 and id = $2 and finished_at >= $3)
"""
FINISHED_AMONG = Statement(
    """
    select id from run_history where tenant_id = $1 and id = any($2::text[]) and finished_at >= $3
    """,
    Found,
)
ENDED_BY = """
    select exists (select from task_history where tenant_id = $1 and run_id = $2 and node = $3 and finished_at >= $6
                   and epoch = $4 and (status = 'succeeded') = $5)
"""
FAILED_IN = """
    select exists (select from attempts where tenant_id = $1 and run_id = $2 and node = $3 and finished_at >= $5
                   and number = $4 and status = 'failed')
"""
WORKFLOW_IDS = "select id from workflows where tenant_id = $1 and name = $2"
ENDPOINT_ID = "select id from endpoints where tenant_id = $1 and name = $2"
# Plans for these very values: the optional conditions fold away, and what is left decides which index is used. Left to itself, Postgres
# would turn to one plan for all filters after five calls, and that plan reads everything a tenant ever ran.
PLAN_FOR_VALUES = "select set_config('plan_cache_mode', 'force_custom_plan', true)"

_SCALAR: Final = re.compile(r"true|false|null|-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?")
LIVE_STATUSES: Final = frozenset({"queued", "running", "waiting", "pending_retry", "blocked"})
FINAL_STATUSES: Final = frozenset({"succeeded", "failed", "cancelled"})


def ended_after(identifier: str) -> datetime | None:
    """From when on the end of something with this id can have been recorded; None if it is no id."""
    made = ids.created_at(identifier)
    return made - CLOCK_SKEW if made is not None else None


def first_id(prefix: str, moment: datetime) -> str:
    """No id made at `moment` or later sorts before this text, none made earlier after it."""
    return f"{prefix}_{ids.IdMaker().ulid(moment)[:10]}"


def has_metadata(pairs: Sequence[tuple[str, str]]) -> str | None:
    """The predicate "each key has this value", where `5` means the number as well as the text; None for no pairs.

    One predicate, and not a list of documents to contain, because that is what the index can look up in one go.
    """
    terms = []
    for key, value in pairs:
        left, text = f"$.{json.dumps(key)}", json.dumps(value)
        scalar = f" || {left} == {value}" if _SCALAR.fullmatch(value) else ""
        terms.append(f"({left} == {text}{scalar})")
    return " && ".join(terms) or None


async def get(db: Database, tenant_id: int, run_id: str, most: int = 1000) -> list[RunRow]:
    """A run with its tasks, at most `most` of their latest attempts and of its first children; nothing where there is no such run."""
    since = ended_after(run_id)
    if since is None or not run_id.startswith("run_"):
        return []
    return RUN.read(await db.fetch(RUN.sql, tenant_id, run_id, since, most))


async def page(db: Database, tenant_id: int, wanted: RunFilter, before: str | None, limit: int) -> list[RunSummary]:
    """Runs that match, newest first, at most `limit`, all older than `before` where that is given."""
    statuses = None if wanted.statuses is None else list(wanted.statuses)
    asked = LIVE_STATUSES | FINAL_STATUSES if statuses is None else frozenset(statuses)
    upper = [text for text in (before, first_id("run", wanted.until) if wanted.until else None) if text is not None]
    async with db.transaction() as conn:
        await conn.execute(PLAN_FOR_VALUES)
        workflows = endpoint = None
        if wanted.workflow is not None:
            workflows = [record[0] for record in await conn.fetch(WORKFLOW_IDS, tenant_id, wanted.workflow)]
        if wanted.endpoint is not None:
            endpoint = await conn.fetchval(ENDPOINT_ID, tenant_id, wanted.endpoint) or ""
        return RUNS.read(
            await conn.fetch(
                RUNS.sql,
                tenant_id,
                min(upper, default=None),
                first_id("run", wanted.since) if wanted.since else None,
                workflows,
                wanted.event_id,
                wanted.parent_run_id,
                endpoint,
                wanted.metadata,
                bool(asked & LIVE_STATUSES),
                bool(asked & FINAL_STATUSES),
                asked & LIVE_STATUSES == {"running"},
                statuses,
                limit,
                _ended_since(wanted),
                wanted.among,
                _is_unhappy(wanted),
            )
        )


def _is_unhappy(wanted: RunFilter) -> bool:
    """Whether runs of a workflow are wanted that have not succeeded, and nothing else is said that an index leaves fewer of."""
    narrow = (wanted.metadata, wanted.event_id, wanted.parent_run_id, wanted.endpoint, wanted.among)
    unhappy = wanted.statuses is not None and "succeeded" not in wanted.statuses
    return wanted.workflow is not None and unhappy and all(one is None for one in narrow)


def _ended_since(wanted: RunFilter) -> datetime | None:
    """From when on the runs wanted can have ended: none does before its id was made."""
    made = [moment for one in wanted.among or () if (moment := ids.created_at(one)) is not None]
    lower = [moment for moment in (wanted.since, min(made, default=None)) if moment is not None]
    return max(lower) - CLOCK_SKEW if lower else None


async def workflow_ids(db: Database, tenant_id: int, name: str) -> list[int]:
    """The ids a workflow of this name has or had; none where there is no such workflow."""
    return [record[0] for record in await db.fetch(WORKFLOW_IDS, tenant_id, name)]


async def is_finished(db: Database, tenant_id: int, run_id: str) -> bool:
    """Whether a run is over. It must have been accepted: an unknown id is not live either."""
    return not await db.fetchval(IS_LIVE, tenant_id, run_id)


async def exists(db: Database, tenant_id: int, run_id: str) -> bool:
    """Whether there is such a run, live or over."""
    since = ended_after(run_id)
    return since is not None and bool(await db.fetchval(EXISTS, tenant_id, run_id, since))


async def finished_among(db: Database, tenant_id: int, run_ids: Sequence[str]) -> list[str]:
    """Those of these ids that are runs and over."""
    since = [moment for moment in map(ended_after, run_ids) if moment is not None]
    if not since:
        return []
    return [found.id for found in FINISHED_AMONG.read(await db.fetch(FINISHED_AMONG.sql, tenant_id, list(run_ids), min(since)))]


async def ended_by(db: Database, tenant_id: int, run_id: str, node: int, epoch: int, succeeded: bool) -> bool:
    """Whether a task is over and this attempt was its last, with this kind of result: what a repeated callback asks."""
    since = ended_after(run_id)
    return since is not None and bool(await db.fetchval(ENDED_BY, tenant_id, run_id, node, epoch, succeeded, since))


async def failed_in(db: Database, tenant_id: int, run_id: str, node: int, number: int) -> bool:
    """Whether an attempt ended with a failure its handler reported."""
    since = ended_after(run_id)
    return since is not None and bool(await db.fetchval(FAILED_IN, tenant_id, run_id, node, number, since))
