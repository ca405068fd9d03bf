"""What runs wait for, settled: moments that come, events that arrive or were there before, messages, children whose run is gone.

A wait is settled once, in a statement that also leaves a mark on whoever waits: a task of a durable kind (`wake_at`) or the run of a graph
(`advance_at`). So nothing is lost with the process that settled it; `marks` counts, so that a mark is only taken away by who has seen it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.store.database import Connection, Database
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.pins import PIN
from dispatcher.store.queue import Claimed
from dispatcher.store.runs import ended_after
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody whose wait has just been settled; `graph` when it is a condition of a task that has not started."""

    tenant_id: int
    run_id: str
    node: int
    graph: bool


@dataclass(frozen=True, slots=True)
class Awaited:
    """An event that somebody waits for."""

    tenant_id: int
    id: str
    type: str
    data: bytes
    metadata: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Open:
    """What a suspended task waits for. `event_key` is the key of an event, or the id of a child's run."""

    node: int
    id: str
    kind: str
    event_key: str | None
    scope: str | None
    due_at: datetime | None


@dataclass(frozen=True, slots=True)
class Pair:
    """An event and a wait it may settle, if the wait's expression says so."""

    tenant_id: int
    event_id: str
    run_id: str
    node: int
    id: str
    expression: str | None


@dataclass(frozen=True, slots=True)
class Looking:
    """A wait that looks back: for an event, or for the end of a run, whose id is its key. `created_at` is when it was registered."""

    tenant_id: int
    run_id: str
    node: int
    id: str
    kind: str
    event_key: str
    scope: str | None
    expression: str | None
    since: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Past:
    """A stored event a wait may be settled by; newest first for each wait, `place` being the wait's in what was asked."""

    place: int
    tenant_id: int
    id: str
    type: str
    data: bytes
    metadata: str | None
    created_at: datetime


@dataclass(slots=True)
class Arrival:
    """A wait, and the event that settles it: `document` is what the log will say of it."""

    key: TaskKey
    id: str
    document: bytes


@dataclass(frozen=True, slots=True)
class Marked:
    """A durable task that waits, something having been settled for it: its waits that are over, and whether it waits for messages.

    `workflow_id` and `requirement` say where it will queue, `gated` that it has gates to pass.
    """

    tenant_id: int
    run_id: str
    node: int
    workflow_id: int
    requirement: str
    pin_endpoint: str | None
    gated: bool
    marks: int
    wake: bytes
    ids: list[str]
    outcomes: list[str]
    receives: bool

    @property
    def key(self) -> TaskKey:
        """The task."""
        return self.tenant_id, self.run_id, self.node


@dataclass(frozen=True, slots=True)
class Resumed:
    """The queue a task has gone back to."""

    tenant_id: int
    workflow_id: int
    requirement: str


@dataclass(frozen=True, slots=True)
class Doomed:
    """A run that shall be cancelled because its parent was."""

    tenant_id: int
    id: str


DUE = Statement(
    """
    with due as (
        select tenant_id, run_id, node, id from waits
        where due_at <= $1 and settled_at is null order by due_at limit $2 for update skip locked
    ), settled as (
        update waits w
        set settled_at = $1, position = nextval('wait_positions'),
            outcome = case when w.kind in ('sleep', 'step') then 'ok' else 'timeout' end
        from due d
        where w.tenant_id = any (array[d.tenant_id]) and w.run_id = d.run_id and w.node = d.node and w.id = d.id
        returning w.tenant_id, w.run_id, w.node, w.graph
    ), marked as (
        update tasks t set wake_at = $1, marks = coalesce(t.marks, 0) + 1
        from (select distinct tenant_id, run_id, node from settled where not graph) s
        where t.tenant_id = any (array[s.tenant_id]) and t.run_id = s.run_id and t.node = s.node
    ), advanced as (
        update runs r set advance_at = $1, revision = r.revision + 1
        from (select distinct tenant_id, run_id from settled where graph) s
        where r.tenant_id = any (array[s.tenant_id]) and r.id = s.run_id
    )
    select tenant_id, run_id, node, graph from settled
    """,
    Waiter,
)

AWAITED = Statement(
    """
    select tenant_id, id, type, data, metadata, created_at from events where wakes order by created_at, id limit $1
    """,
    Awaited,
)

# Events and waits are looked at in one picture: a wait that was registered after an event was brought to everybody is not in it together
# with an event that still has to be.
PAIRS = Statement(
    """
    select w.tenant_id, e.id as event_id, w.run_id, w.node, w.id, w.expression
    from unnest($1::int[], $2::text[], $3::timestamptz[]) as g (tenant_id, id, created_at)
    join events e on e.tenant_id = g.tenant_id and e.id = g.id and e.created_at = g.created_at and e.wakes
    cross join lateral (
        select * from waits w
        where w.tenant_id = e.tenant_id and w.event_key = e.type and w.settled_at is null and w.kind = 'event'
          and (w.scope is null or w.scope = e.scope) and e.created_at >= w.since - $4::interval and w.created_at <= $6
          and ($7::text is null or (w.run_id, w.node, w.id) > ($7, $8::smallint, $9::text)) offset 0
    ) w
    order by w.run_id, w.node, w.id, e.created_at desc, e.id desc limit $5
    """,
    Pair,
)

ARRIVE = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::smallint[], $4::text[], $5::int[]) as g (tenant_id, run_id, node, id, document)
    ), settled as (
        update waits w
        set settled_at = $10, position = nextval('wait_positions'), outcome = 'ok', value = ($6::bytea[])[g.document]
        from given g
        where w.tenant_id = any (array[g.tenant_id]) and w.run_id = g.run_id and w.node = g.node and w.id = g.id and w.settled_at is null
        returning w.tenant_id, w.run_id, w.node, w.graph
    ), brought as (
        update events e set wakes = false
        from unnest($7::int[], $8::text[], $9::timestamptz[]) as g (tenant_id, id, created_at)
        where e.tenant_id = g.tenant_id and e.id = g.id and e.created_at = g.created_at
    ), marked as (
        update tasks t set wake_at = $10, marks = coalesce(t.marks, 0) + 1
        from (select distinct tenant_id, run_id, node from settled where not graph) s
        where t.tenant_id = any (array[s.tenant_id]) and t.run_id = s.run_id and t.node = s.node
    ), advanced as (
        update runs r set advance_at = $10, revision = r.revision + 1
        from (select distinct tenant_id, run_id from settled where graph) s
        where r.tenant_id = any (array[s.tenant_id]) and r.id = s.run_id
    )
    select tenant_id, run_id, node, graph from settled
    """,
    Waiter,
)

LOOKING = Statement(
    """
    select tenant_id, run_id, node, id, kind, event_key, scope, expression, since, created_at
    from waits where look_at <= $1 and settled_at is null order by look_at limit $2
    """,
    Looking,
)

# What FINISH and END tell those whose wait they see, of runs that are in history. `names` are a graph's tasks by node: those that come last
# stand behind the others, and are left out where they did not run.
ENDED = Statement(
    """
    with over as (
        select g.tenant_id, g.run_id, g.node, g.id, h.status,
            case when h.status = 'failed' then convert_to(coalesce(
                    (select t.error::text from task_history t
                     where t.tenant_id = h.tenant_id and t.run_id = h.id and t.finished_at = h.finished_at and t.status = 'failed'
                     order by coalesce(t.ended_at, t.finished_at), t.node limit 1),
                    '{"code": "task_failed", "message": "A task of the run failed."}'), 'UTF8')
                when h.status = 'succeeded' and h.graph is null then (
                    select case when t.output_type <> 'application/json'
                                then convert_to(to_json(convert_from(t.output, 'UTF8'))::text, 'UTF8')
                                else coalesce(t.output, 'null') end
                    from task_history t
                    where t.tenant_id = h.tenant_id and t.run_id = h.id and t.finished_at = h.finished_at and t.node = 0)
                when h.status = 'succeeded' then convert_to('{' || coalesce((
                    select string_agg(to_json(n.item ->> 'name')::text || ':' || case when t.node is null then '{"skipped":true}'
                        when t.output_type <> 'application/json' then to_json(convert_from(t.output, 'UTF8'))::text
                        else coalesce(convert_from(t.output, 'UTF8'), 'null') end, ',' order by n.place)
                    from workflow_versions v
                    cross join jsonb_array_elements(
                        v.definition -> 'tasks' || jsonb_path_query_array(v.definition, '$.on_failure')
                        || jsonb_path_query_array(v.definition, '$.on_success')) with ordinality as n (item, place)
                    left join task_history t on t.tenant_id = h.tenant_id and t.run_id = h.id and t.finished_at = h.finished_at
                         and t.node = n.place - 1 and t.status = 'succeeded'
                    where v.tenant_id = h.tenant_id and v.workflow_id = h.workflow_id and v.number = h.workflow_version
                      and (t.node is not null or (substr(h.graph, n.place::int, 1) = 'k'
                                                  and n.place <= jsonb_array_length(v.definition -> 'tasks')))
                    ), '') || '}', 'UTF8') end as value
        from unnest($1::int[], $2::text[], $3::smallint[], $4::text[], $5::text[]) as g (tenant_id, run_id, node, id, child)
        join run_history h on h.tenant_id = g.tenant_id and h.id = g.child and h.finished_at >= $6
    ), settled as (
        update waits w
        set settled_at = $7, position = nextval('wait_positions'), value = o.value,
            outcome = case o.status when 'succeeded' then 'ok' when 'failed' then 'error' else 'cancelled' end
        from over o
        where w.tenant_id = any (array[o.tenant_id]) and w.run_id = o.run_id and w.node = o.node and w.id = o.id and w.settled_at is null
        returning w.tenant_id, w.run_id, w.node, w.graph
    ), marked as (
        update tasks t set wake_at = $7, marks = coalesce(t.marks, 0) + 1
        from (select distinct tenant_id, run_id, node from settled) s
        where t.tenant_id = any (array[s.tenant_id]) and t.run_id = s.run_id and t.node = s.node
    )
    select tenant_id, run_id, node, graph from settled
    """,
    Waiter,
)

PAST = Statement(
    """
    select g.place, e.tenant_id, e.id, e.type, e.data, e.metadata, e.created_at
    from unnest($1::int[], $2::int[], $3::text[], $4::text[], $5::timestamptz[], $6::int[])
         as g (place, tenant_id, event_key, scope, since, most)
    cross join lateral (
        select * from events e
        where e.tenant_id = g.tenant_id and e.type = g.event_key and e.created_at >= g.since and (g.scope is null or e.scope = g.scope)
        order by e.id desc limit g.most
    ) e
    """,
    Past,
)

LOOKED = """
    update waits w set look_at = g.look_at
    from unnest($1::int[], $2::text[], $3::smallint[], $4::text[], $5::timestamptz[]) as g (tenant_id, run_id, node, id, look_at)
    where w.tenant_id = any (array[g.tenant_id]) and w.run_id = g.run_id and w.node = g.node and w.id = g.id
"""

SEND = """
    with task as (
        select tenant_id, run_id, node from tasks
        where tenant_id = $1 and run_id = $2 and node = $3 and durable and state <> 'settled' and inbox_closed is null and cleanup is null
        for update
    ), written as (
        insert into messages (tenant_id, run_id, node, data, created_at) select tenant_id, run_id, node, $4, $5 from task
    )
    update tasks t set wake_at = $5, marks = coalesce(t.marks, 0) + 1
    from task k where t.tenant_id = any (array[k.tenant_id]) and t.run_id = k.run_id and t.node = k.node
    returning t.run_id
"""

# The first message goes to the wait that was first, and so on; waits of one append are told apart by microseconds. A closed inbox with
# nothing left in it ends those that still wait. The mark is left anew: whoever has seen the old one has not seen what is settled here.
RECEIVE = Statement(
    """
    with marked as (
        select tenant_id, run_id, node, inbox_closed from tasks
        where wake_at is not null and state = 'waiting' order by wake_at limit $2
    ), open as (
        select w.tenant_id, w.run_id, w.node, w.id, m.inbox_closed,
               row_number() over (partition by w.tenant_id, w.run_id, w.node order by w.created_at, w.id) as number
        from marked m join waits w on w.tenant_id = any (array[m.tenant_id]) and w.run_id = m.run_id and w.node = m.node
        where w.kind = 'message' and w.settled_at is null
    ), waiting as (
        select m.tenant_id, m.run_id, m.node, m.seq, m.data,
               row_number() over (partition by m.tenant_id, m.run_id, m.node order by m.seq) as number
        from (select distinct tenant_id, run_id, node from open) o
        join messages m on m.tenant_id = any (array[o.tenant_id]) and m.run_id = o.run_id and m.node = o.node
    ), settled as (
        update waits w
        set settled_at = $1, position = nextval('wait_positions'), outcome = case when o.seq is null then 'closed' else 'ok' end,
            value = o.data
        from (select o.*, m.seq, m.data from open o left join waiting m using (tenant_id, run_id, node, number)) o
        where w.tenant_id = any (array[o.tenant_id]) and w.run_id = o.run_id and w.node = o.node and w.id = o.id and w.settled_at is null
          and (o.seq is not null or o.inbox_closed)
        returning w.tenant_id, w.run_id, w.node, w.graph, o.seq
    ), taken as (
        delete from messages m using settled s
        where m.tenant_id = any (array[s.tenant_id]) and m.run_id = s.run_id and m.node = s.node and m.seq = s.seq
    ), told as (
        update tasks t set wake_at = $1, marks = coalesce(t.marks, 0) + 1
        from (select distinct tenant_id, run_id, node from settled) s
        where t.tenant_id = any (array[s.tenant_id]) and t.run_id = s.run_id and t.node = s.node
    )
    select tenant_id, run_id, node, graph from settled
    """,
    Waiter,
)

MARKED = Statement(
    """
    select t.tenant_id, t.run_id, t.node, t.workflow_id, t.requirement, t.pin_endpoint, t.gates is not null as gated, t.marks, t.wake,
           w.ids, w.outcomes,
           exists (select from waits o where o.tenant_id = t.tenant_id and o.run_id = t.run_id and o.node = t.node
                   and o.kind = 'message' and o.settled_at is null) as receives
    from tasks t
    cross join lateral (
        select coalesce(array_agg(w.id), '{}') as ids, coalesce(array_agg(w.outcome), '{}') as outcomes
        from waits w
        where w.tenant_id = t.tenant_id and w.run_id = t.run_id and w.node = t.node and not w.graph and w.settled_at is not null
    ) w
    where t.wake_at is not null and t.state = 'waiting' and t.wake is not null order by t.wake_at limit $1
    """,
    Marked,
)

RESUME = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::boolean[], $7::text[])
            as g (tenant_id, run_id, node, marks, awake, requirement)
    ), seen as (
        update tasks t
        set wake_at = null, state = case when g.awake then 'queued' else t.state end, wake = case when g.awake then null else t.wake end,
            due_at = case when g.awake then $6 else t.due_at end, requirement = g.requirement
        from given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.state = 'waiting'
          and t.marks = g.marks
        returning t.tenant_id, t.workflow_id, t.requirement, g.awake
    )
    select tenant_id, -workflow_id as workflow_id, requirement from seen where awake
    """,
    Resumed,
)

# The same for tasks that find a free slot here: they are leased at once, as a claim would, and wait in no queue, unless what they would run
# at has been paused, closed or drained meanwhile.
LEASE = Statement(
    """
    update tasks t
    set wake_at = null, wake = null, state = 'running', epoch = t.epoch + 1, dispatcher_id = $8, endpoint_id = g.endpoint_id,
        endpoint_version = g.endpoint_version, due_at = $9, started_at = $9,
        deadline = $9::timestamptz + t.execution_ms * interval '1 millisecond', schedule_deadline = null, slot_released = false,
        progress = null, slots = g.slots, batch_id = null
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::int[])
         as g (tenant_id, run_id, node, marks, endpoint_id, endpoint_version, slots)
    join runs r on r.tenant_id = any (array[g.tenant_id]) and r.id = g.run_id
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.state = 'waiting'
      and t.marks = g.marks and t.gates is null
      and not exists (
          select from workflows f where f.tenant_id = g.tenant_id and f.id = t.workflow_id and f.paused_at is not null offset 0)
      and not exists (
          select from endpoints e
          where e.tenant_id = g.tenant_id and e.id = g.endpoint_id
            and (e.paused or e.circuit <> 'closed' or (e.draining and stays_at(t.requirement, t.pin_endpoint) is distinct from e.id))
          offset 0)
    returning t.tenant_id, t.run_id, t.node, t.workflow_id, t.workflow_version, t.epoch, t.priority, t.app_retries, t.infra_retries,
              t.spared_since, t.spared_by, t.endpoint_id, t.endpoint_version, t.started_at, t.deadline,
              r.input, r.metadata, r.priority as run_priority, r.event_id, r.parent_run_id, r.graph,
              r.filter_payload, t.retry_base, case when not t.units_taken then t.flow->'units' end as units, t.schedule_deadline,
              t.requirement, t.slots, t.parked_for is not null as waited, t.pin_endpoint
    """,
    Claimed,
)

DOOMED = Statement(
    """
    select tenant_id, id from runs where doomed_at <= $1 order by doomed_at limit $2
    """,
    Doomed,
)

SPARED = """
    update runs set doomed_at = null where tenant_id = $1 and id = any($2::text[])
"""

NEXT = """
    select least((select min(due_at) from waits where due_at is not null and settled_at is null),
                 (select min(look_at) from waits where look_at is not null and settled_at is null))
"""

OPEN = Statement(
    """
    select w.node, w.id, w.kind, w.event_key, w.scope, w.due_at
    from tasks t join waits w using (tenant_id, run_id, node)
    where t.tenant_id = $1 and t.run_id = $2 and t.state = 'waiting' and not w.graph and w.settled_at is null
    order by w.node, w.created_at, w.id limit $3
    """,
    Open,
)

UNBLOCK = Statement(
    """
    update tasks
    set state = 'queued', due_at = $4, error = null, marks = coalesce(marks, 0) + 1, pin_endpoint = null, pin_version = null,
        requirement = regexp_replace(requirement, $5, '')
    where tenant_id = $1 and state = 'blocked' and ($2::int[] is null or workflow_id = any($2)) and ($3::text is null or run_id = $3)
    returning tenant_id, -workflow_id as workflow_id, requirement
    """,
    Resumed,
)


async def open_of(db: Database, tenant_id: int, run_id: str, limit: int) -> list[Open]:
    """What the suspended tasks of a run wait for."""
    return OPEN.read(await db.fetch(OPEN.sql, tenant_id, run_id, limit))


async def due(db: Database, now: datetime, limit: int) -> list[Waiter]:
    """Settle at most `limit` waits whose moment has come."""
    return DUE.read(await db.fetch(DUE.sql, now, limit))


async def awaited(db: Database, limit: int) -> list[Awaited]:
    """Events that were waited for when they were written and have not been brought to anybody."""
    return AWAITED.read(await db.fetch(AWAITED.sql, limit))


async def pairs(
    db: Database, events: Sequence[Awaited], skew: timedelta, limit: int, registered: datetime, after: Pair | None = None
) -> list[Pair]:
    """Which waits `registered` by then these events may settle: at most `limit`, behind the wait of `after`.

    An event may seem `skew` older than a wait it has met: clocks differ.
    """
    place = (after.run_id, after.node, after.id) if after is not None else (None, None, None)
    tenants, names, moments = [e.tenant_id for e in events], [e.id for e in events], [e.created_at for e in events]
    return PAIRS.read(await db.fetch(PAIRS.sql, tenants, names, moments, skew, limit, registered, *place))


async def arrive(db: Database, arrivals: Sequence[Arrival], brought: Sequence[Awaited], now: datetime) -> list[Waiter]:
    """Settle waits with events, and note that these events have been brought to everybody; together, or not at all."""
    documents: dict[bytes, int] = {}
    for arrival in arrivals:
        documents.setdefault(arrival.document, len(documents) + 1)
    records = await db.fetch(
        ARRIVE.sql,
        [a.key[0] for a in arrivals],
        [a.key[1] for a in arrivals],
        [a.key[2] for a in arrivals],
        [a.id for a in arrivals],
        [documents[a.document] for a in arrivals],
        list(documents),
        [e.tenant_id for e in brought],
        [e.id for e in brought],
        [e.created_at for e in brought],
        now,
    )
    return ARRIVE.read(records)


async def looking(db: Database, now: datetime, limit: int) -> list[Looking]:
    """Waits that are to look back now."""
    return LOOKING.read(await db.fetch(LOOKING.sql, now, limit))


async def past(db: Database, waits: Sequence[Looking], most: int) -> dict[int, list[Past]]:
    """For each wait, by its place, the stored events that may settle it, newest first: one, or `most` where an expression chooses."""
    records = await db.fetch(
        PAST.sql,
        list(range(len(waits))),
        [w.tenant_id for w in waits],
        [w.event_key for w in waits],
        [w.scope for w in waits],
        [w.since for w in waits],
        [1 if w.expression is None else most for w in waits],
    )
    found: dict[int, list[Past]] = {}
    for row in PAST.read(records):
        found.setdefault(row.place, []).append(row)
    return found


async def ended(db: Database, waits: Sequence[Looking], now: datetime) -> list[Waiter]:
    """Settle those waits for children whose runs are over."""
    since = min(filter(None, (ended_after(w.event_key) for w in waits)), default=now)
    keys = [w.tenant_id for w in waits], [w.run_id for w in waits], [w.node for w in waits], [w.id for w in waits]
    return ENDED.read(await db.fetch(ENDED.sql, *keys, [w.event_key for w in waits], since, now))


async def looked(db: Database, waits: Sequence[Looking], again: Sequence[datetime | None]) -> None:
    """Note when waits are to look back again, if at all."""
    await db.execute(
        LOOKED,
        [w.tenant_id for w in waits],
        [w.run_id for w in waits],
        [w.node for w in waits],
        [w.id for w in waits],
        list(again),
    )


async def send(db: Database, key: TaskKey, data: bytes, now: datetime) -> bool:
    """Put a message into a task's inbox; False when that is closed, or there is no such live task."""
    return bool(await db.fetch(SEND, *key, data, now))


async def receive(db: Database, now: datetime, limit: int) -> list[Waiter]:
    """Bring messages to the marked tasks that wait for them."""
    return RECEIVE.read(await db.fetch(RECEIVE.sql, now, limit))


async def marked(db: Database, limit: int) -> list[Marked]:
    """Tasks that wait and have something new to look at, those marked first first."""
    return MARKED.read(await db.fetch(MARKED.sql, limit))


async def resume(db: Database, seen: Sequence[Marked], awake: Container[TaskKey], now: datetime) -> list[Resumed]:
    """Take marks away, and queue the tasks that are awake; answers their queues, one entry a task."""
    records = await db.fetch(
        RESUME.sql,
        [m.tenant_id for m in seen],
        [m.run_id for m in seen],
        [m.node for m in seen],
        [m.marks for m in seen],
        [m.key in awake for m in seen],
        now,
        [m.requirement for m in seen],
    )
    return RESUME.read(records)


async def lease(db: Database, granted: Sequence[tuple[Marked, str, str, int]], dispatcher_id: int, now: datetime) -> list[Claimed]:
    """Lease tasks whose wait is over to `dispatcher_id`, each to the endpoint, in the version and with the slots it was `granted`."""
    records = await db.fetch(
        LEASE.sql,
        [m.tenant_id for m, *_ in granted],
        [m.run_id for m, *_ in granted],
        [m.node for m, *_ in granted],
        [m.marks for m, *_ in granted],
        [endpoint for _, endpoint, _, _ in granted],
        [version for _, _, version, _ in granted],
        [slots for *_, slots in granted],
        dispatcher_id,
        now,
    )
    return LEASE.read(records)


async def doomed(db: Database, now: datetime, limit: int) -> list[Doomed]:
    """Runs whose parent was cancelled and that have not been cancelled for it."""
    return DOOMED.read(await db.fetch(DOOMED.sql, now, limit))


async def spared(db: Database, tenant_id: int, run_ids: Sequence[str]) -> None:
    """These have been asked to end."""
    await db.execute(SPARED, tenant_id, list(run_ids))


async def next_moment(db: Database) -> datetime | None:
    """When the next wait comes due or looks back."""
    moment: datetime | None = await db.fetchval(NEXT)
    return moment


async def unblock(
    db: Database | Connection, tenant_id: int, workflows: Sequence[int] | None, run_id: str | None, now: datetime
) -> list[Resumed]:
    """Let blocked tasks try again, on whatever version is the latest: of these workflows, or of one run."""
    records = await db.fetch(UNBLOCK.sql, tenant_id, list(workflows) if workflows is not None else None, run_id, now, PIN)
    return UNBLOCK.read(records)
