"""Gates: which have something to look at, who stands at them, and letting tasks pass. What a gate counts is kept by triggers.

A gate's row is locked while somebody is let through it. Whoever waits for it stands in the index of those that wait, in the order of
arrival; rows that somebody else holds at the moment are passed over, since they are about to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID

from dispatcher.engine.definitions.flow import Strategy
from dispatcher.store.database import Database
from dispatcher.store.statement import Statement

_PARTS = 16  # in which gates are counted again; their ids are digests, so that each has as many
_IDS = 1 << 128


@dataclass(frozen=True, slots=True)
class Waking:
    """A gate where something has happened: room has become free, or somebody has come to one that may send others away."""

    tenant_id: int
    id: str
    strategy: Strategy
    most: int
    arrivals: int
    name: str | None
    key: str


@dataclass(frozen=True, slots=True)
class Standing:
    """A task at a gate, or a run of a graph (then `node` is None)."""

    gate: str
    tenant_id: int
    run_id: str
    node: int | None
    arrived_at: datetime
    holds: bool
    leaving: bool


@dataclass(frozen=True, slots=True)
class Passed:
    """What was let through its last gate: a task of queue `workflow_id`, or a run of a graph. Or how many are `left` at `gate`."""

    tenant_id: int
    workflow_id: int | None
    requirement: str
    run_id: str | None
    gate: str | None
    left: int


@dataclass(frozen=True, slots=True)
class LateRun:
    """A run of a graph that has waited for its gates for too long."""

    tenant_id: int
    id: str


@dataclass(frozen=True, slots=True)
class GateRow:
    """A gate as it is shown."""

    id: str
    rule: str
    name: str | None
    key: str
    strategy: Strategy
    most: int
    held: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task of a run that does not run and waits for nothing but its turn or its time, or a run of a graph at its gates (then `node` is
    None).
    """

    node: int | None
    state: str
    workflow_id: int
    durable: bool
    gate: str | None
    arrived_at: datetime | None
    parked_on: str | None
    parked_for: int | None
    requirement: str
    priority: int
    due_at: datetime
    epoch: int
    unschedulable: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """The last gate of a page that was looked at, and how many of the page were forgotten."""

    tenant_id: int
    id: str
    forgotten: int


@dataclass(frozen=True, slots=True)
class Drift:
    """A gate whose counts were not those of its rows."""

    tenant_id: int
    id: str
    held: int
    was_held: int
    waiting: int
    was_waiting: int


# Of each tenant those behind the one it is given with, then from the beginning: gates that are awake all the time keep nobody from a look.
WAKING = Statement(
    """
    with recursive awake as (
        (select g.tenant_id from gates g where g.wake order by g.tenant_id limit 1)
        union all
        select (select g.tenant_id from gates g where g.wake and g.tenant_id > a.tenant_id order by g.tenant_id limit 1)
        from awake a where a.tenant_id is not null
    ), begun as materialized (
        select a.tenant_id, coalesce(
            (select l.id from unnest($2::int[], $3::uuid[]) as l (tenant_id, id) where l.tenant_id = a.tenant_id limit 1),
            '00000000-0000-0000-0000-000000000000'::uuid
        ) as after
        from awake a where a.tenant_id is not null
    )
    select g.* from begun b cross join lateral (
        (select g.tenant_id, g.id::text, g.strategy, gate_limit(g) as most, g.arrivals, g.name, g.key
         from gates g where g.wake and g.tenant_id = b.tenant_id and g.id > b.after order by g.id limit $1)
        union all
        (select g.tenant_id, g.id::text, g.strategy, gate_limit(g), g.arrivals, g.name, g.key
         from gates g where g.wake and g.tenant_id = b.tenant_id and g.id <= b.after order by g.id limit $1)
        limit $1
    ) g
    """,
    Waking,
)

# What is about to be set aside neither sends others away nor is sent away itself.
STANDING = Statement(
    """
    with g as materialized (
        select tenant_id, id from unnest($1::int[], $2::uuid[]) as g (tenant_id, id)
    )
    select g.id::text as gate, t.tenant_id, t.run_id, t.node, t.arrived_at,
           t.gate_wait is distinct from g.id as holds, t.cancel_at is not null as leaving
    from g cross join lateral (select * from tasks t where t.preempts and t.gates @> array[g.id] offset 0) t
    where t.tenant_id = g.tenant_id and t.arrived_at is not null
      and (array_position(t.gates, g.id) <= t.gates_held or t.gate_wait = g.id and coalesce(
          (select w.aside from workflows w where w.tenant_id = t.tenant_id and w.id = t.workflow_id
           and (w.aside is null or w.paused_at is not null or not goes_on_at(t.tenant_id, stays_at(t.requirement, t.pin_endpoint)))),
          'opening') = 'opening'
          and (t.requirement = '' or coalesce(
              (select u.aside from unschedulable u where u.tenant_id = t.tenant_id and u.requirement = t.requirement
               and u.queue = case when t.durable then -t.workflow_id else t.workflow_id end), 'opening') = 'opening'))
    union all
    select g.id::text, r.tenant_id, r.id, null, r.arrived_at, r.gate_wait is distinct from g.id, r.cancel_reason is not null
    from g cross join lateral (select * from runs r where r.preempts and r.gates @> array[g.id] offset 0) r
    where r.tenant_id = g.tenant_id and r.arrived_at is not null
      and (array_position(r.gates, g.id) <= r.gates_held or r.gate_wait = g.id and coalesce(
          (select w.aside from workflows w where w.tenant_id = r.tenant_id and w.id = r.workflow_id
           and (w.aside is null or w.paused_at is not null
                or not goes_on_at(r.tenant_id, run_stays_at(r.tenant_id, r.workflow_id, r.workflow_version, r.sticky_endpoint)))),
          'opening') = 'opening')
    """,
    Standing,
)

# A gate stays awake where somebody has come since it was looked at ($3), because only who looks can tell whether that sends others away;
# and where room is left for somebody who waits and was not let through: whose row was locked, or who came after this statement began.
# This statement waits for nobody: who would go on to a gate that somebody else holds, stays where it is for now. So the order in which
# it takes gates, that of chains, does not matter to those that take them in the order of ids. Of whose workflow nothing can start is set
# aside instead, but for what goes on at an endpoint that is drained, and so is what nothing can take: places are for those behind.
# Whose row somebody else holds is about to go, and passed over; but not one that is held since its workflow has its time again: nobody
# overtakes the first such at a gate.
ADMIT = Statement(
    """
    with g as materialized (
        select g.tenant_id, g.id, g.strategy, g.arrivals, s.arrivals as seen, g.waiting, greatest(g.most - g.held, 0) as room
        from unnest($1::int[], $2::uuid[], $3::bigint[]) as s (tenant_id, id, arrivals)
        cross join lateral (
            select g.tenant_id, g.id, g.strategy, g.arrivals, g.waiting, g.held, gate_limit(g) as most
            from gates g where g.tenant_id = s.tenant_id and g.id = s.id for update skip locked
        ) g
    ), first_tasks as materialized (
        select g.tenant_id, g.id as gate, t.run_id, t.node, t.arrived_at, t.next,
               (select w.aside from workflows w where w.tenant_id = g.tenant_id and w.id = t.workflow_id and t.cleanup is null
                and (w.aside is null or w.paused_at is not null or not goes_on_at(g.tenant_id, stays_at(t.requirement, t.pin_endpoint)))
               ) as aside,
               case when t.asked is not null
               then (select true from unschedulable u where u.tenant_id = g.tenant_id and u.queue = t.queue and u.requirement = t.asked
                     and u.aside <> 'opening') end as untakeable
        from g cross join lateral (
            select t.run_id, t.node, t.arrived_at, t.gates[t.gates_held + 2] as next, t.workflow_id, t.cleanup,
                   t.requirement, t.pin_endpoint,
                   case when t.durable then -t.workflow_id else t.workflow_id end as queue,
                   case when t.requirement <> '' and t.cleanup is null and coalesce(t.turn, 1) = 1 and coalesce(t.log_len, 0) = 0
                   then t.requirement end as asked
            from tasks t
            where t.tenant_id = g.tenant_id and t.gate_wait = g.id
            order by t.arrived_at, t.run_id, t.node limit least(g.room, $5) for update skip locked
        ) t
    ), first_runs as materialized (
        select g.tenant_id, g.id as gate, r.id as run_id, null::smallint as node, r.arrived_at, r.next,
               (select w.aside from workflows w where w.tenant_id = g.tenant_id and w.id = r.workflow_id
                and (w.aside is null or w.paused_at is not null
                     or not goes_on_at(g.tenant_id, run_stays_at(g.tenant_id, r.workflow_id, r.workflow_version, r.sticky_endpoint)))
               ) as aside, null::boolean
        from g cross join lateral (
            select r.id, r.arrived_at, r.gates[r.gates_held + 2] as next, r.workflow_id, r.workflow_version, r.sticky_endpoint from runs r
            where r.tenant_id = g.tenant_id and r.gate_wait = g.id and r.cancel_reason is null
            order by r.arrived_at, r.id limit least(g.room, $5) for update skip locked
        ) r
    ), kept_up as materialized (
        select g.tenant_id, g.id as gate, s.arrived_at, s.run_id
        from g cross join lateral (
            select s.arrived_at, s.run_id
            from (
                select t.workflow_id, t.arrived_at, t.run_id,
                       (t.run_id, t.node) not in (select run_id, node from first_tasks) as passed_over
                from (select * from tasks t where t.tenant_id = g.tenant_id and t.gate_wait = g.id
                      order by t.arrived_at, t.run_id, t.node limit least(g.room, $5)) t
                union all
                select r.workflow_id, r.arrived_at, r.id, r.id not in (select run_id from first_runs)
                from (select * from runs r where r.tenant_id = g.tenant_id and r.gate_wait = g.id and r.cancel_reason is null
                      order by r.arrived_at, r.id limit least(g.room, $5)) r
            ) s
            where s.passed_over
              and (select true from renewals n where n.tenant_id = g.tenant_id and n.workflow_id = s.workflow_id limit 1)
            order by s.arrived_at, s.run_id limit 1
        ) s
        where (select true from renewals limit 1)
    ), ranked as (
        select *, row_number() over (partition by tenant_id, gate, stays order by arrived_at, run_id, node) as place
        from (select *, coalesce(aside in ('closed', 'clearing'), false) or coalesce(untakeable, false) as stays
              from (select * from first_tasks union all select * from first_runs) waiting) judged
    ), next_gates as materialized (
        select n.tenant_id, n.id
        from (
            select distinct r.tenant_id, r.next from ranked r
            where r.next is not null and not r.stays and not exists (select from g where g.tenant_id = r.tenant_id and g.id = r.next)
        ) w cross join lateral (
            select gates.tenant_id, gates.id from gates where gates.tenant_id = w.tenant_id and gates.id = w.next for update skip locked
        ) n
    ), passing as materialized (
        select r.* from ranked r join g on g.tenant_id = r.tenant_id and g.id = r.gate and r.place <= g.room
        where r.stays
           or (select true from kept_up k where k.tenant_id = r.tenant_id and k.gate = r.gate
               and (k.arrived_at, k.run_id) < (r.arrived_at, r.run_id) limit 1) is null
          and (r.next is null
               or exists (select from g where g.tenant_id = r.tenant_id and g.id = r.next)
               or exists (select from next_gates n where n.tenant_id = r.tenant_id and n.id = r.next)
               or (select true from gates n where n.tenant_id = r.tenant_id and n.id = r.next limit 1) is null)
    ), tasks_on as (
        update tasks t
        set gates_held = case when p.stays then 0 else t.gates_held + 1 end,
            gate_wait = case when not p.stays then t.gates[t.gates_held + 2] end,
            state = case when not p.stays and t.gates_held + 1 = cardinality(t.gates) then 'queued' else 'gated' end,
            due_at = case when not p.stays and t.gates_held + 1 = cardinality(t.gates) then $4 else t.due_at end
        from passing p
        where p.node is not null and t.tenant_id = any (array[p.tenant_id]) and t.run_id = p.run_id and t.node = p.node
        returning t.tenant_id, case when t.durable then -t.workflow_id else t.workflow_id end as workflow_id, t.requirement, t.state
    ), runs_on as (
        update runs r
        set gates_held = case when p.stays then 0 else r.gates_held + 1 end,
            gate_wait = case when not p.stays then r.gates[r.gates_held + 2] end,
            advance_at = case when not p.stays and r.gates_held + 1 = cardinality(r.gates) then $4 end
        from passing p
        where p.node is null and r.tenant_id = any (array[p.tenant_id]) and r.id = p.run_id
        returning r.tenant_id, r.id, r.advance_at
    ), seen as (
        update gates
        set wake = (g.strategy <> 'GROUP_ROUND_ROBIN' and g.arrivals <> g.seen)
                   or least(g.room, g.waiting) > (select count(*) from passing p where p.tenant_id = g.tenant_id and p.gate = g.id)
        from g where gates.tenant_id = any (array[g.tenant_id]) and gates.id = g.id
    )
    select tenant_id, workflow_id, requirement, null::text as run_id, null::text as gate, 0 as left from tasks_on where state = 'queued'
    union all select tenant_id, null, '', id, null, 0 from runs_on where advance_at is not null
    union all select g.tenant_id, null, '', null, g.id::text,
                     (g.waiting - (select count(*) from passing p where p.tenant_id = g.tenant_id and p.gate = g.id))::int
    from g
    """,
    Passed,
)

ANYBODY = "select exists (select from tasks where gate_wait is not null) or exists (select from runs where gate_wait is not null)"

# A run of a graph that was to begin later takes its place in line when its time has come, or is set aside as its workflow is.
ENTER = """
    update runs r
    set gate_wait = case when (select w.aside from workflows w where w.tenant_id = r.tenant_id and w.id = r.workflow_id
                               and (w.paused_at is not null or not goes_on_at(r.tenant_id, run_stays_at(
                                   r.tenant_id, r.workflow_id, r.workflow_version, r.sticky_endpoint)))) is null
                    then gates[1] end,
        advance_at = null, arrived_at = advance_at
    where (tenant_id, id) in (
        select tenant_id, id from runs
        where advance_at <= $1 and gates is not null and gates_held = 0 and gate_wait is null and cancel_reason is null
        order by advance_at limit $2 for update skip locked
    )
"""

# What stands in line while its workflow is paused may wait as long as the pause says; where every route leads to an endpoint that is
# broken, paused or drained, up to $3, as a task may. What may be about to have its time again is left alone.
LATE = Statement(
    """
    select r.tenant_id, r.id from runs r join workflows w on w.tenant_id = r.tenant_id and w.id = r.workflow_id
    where r.gates is not null and r.gates_held < cardinality(r.gates) and r.advance_at is null
      and r.schedule_deadline <= $1 and r.cancel_reason is null
      and not exists (select from renewals n where n.tenant_id = r.tenant_id and n.workflow_id = r.workflow_id)
      and (w.paused_at is null or greatest(r.arrived_at, w.paused_at) + w.queue_ttl_ms * interval '1 millisecond' <= $1)
      and (r.arrived_at + $3::interval <= $1
           or not exists (select from routes o join endpoints e on e.tenant_id = o.tenant_id and e.id = o.endpoint_id
                          where o.tenant_id = r.tenant_id and o.workflow_id = r.workflow_id
                            and (e.circuit <> 'closed' or e.paused or e.draining))
           or exists (select from routes o join endpoints e on e.tenant_id = o.tenant_id and e.id = o.endpoint_id
                      where o.tenant_id = r.tenant_id and o.workflow_id = r.workflow_id and e.circuit = 'closed' and not e.paused
                        and not e.draining)
           or goes_on_at(r.tenant_id, run_stays_at(r.tenant_id, r.workflow_id, r.workflow_version, r.sticky_endpoint)))
    order by r.schedule_deadline limit $2
    """,
    LateRun,
)

ANY_GATE = "select exists (select from gates)"

# One snapshot sees rows and counts as they were together, so what differs in it is wrong. Only what still is as it was seen is put right.
# It counts those whose ids are within bounds: all of them at once are more than a statement can count in its time where many wait.
AUDIT = Statement(
    """
    with held as (
        select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming from tasks where gates is not null
        union all select tenant_id, gate_wait, 0, 1 from tasks where gate_wait is not null
        union all select tenant_id, unnest(gates[1:gates_held]), 1, 0 from runs where gates is not null
        union all select tenant_id, gate_wait, 0, 1 from runs where gate_wait is not null
    ), counted as (
        select tenant_id, id, sum(holding)::int as holding, sum(coming)::int as coming from held where id between $1 and $2
        group by tenant_id, id
    ), wrong as (
        select g.tenant_id, g.id, g.held as was_held, g.waiting as was_waiting,
               coalesce(c.holding, 0) as holding, coalesce(c.coming, 0) as coming
        from gates g left join counted c on c.tenant_id = g.tenant_id and c.id = g.id
        where g.id between $1 and $2 and (g.held <> coalesce(c.holding, 0) or g.waiting <> coalesce(c.coming, 0))
    )
    update gates g set held = w.holding, waiting = w.coming, wake = w.coming > 0
    from wrong w where g.tenant_id = w.tenant_id and g.id = w.id and g.held = w.was_held and g.waiting = w.was_waiting
    returning g.tenant_id, g.id::text, w.holding as held, w.was_held, w.coming as waiting, w.was_waiting
    """,
    Drift,
)

# Gates are looked at a page at a time, in their order, so that nobody waits for long and what is gone is not stepped over again.
PRUNE = Statement(
    """
    with page as materialized (
        select tenant_id, id from gates where (tenant_id, id) > ($1, $2::uuid) order by tenant_id, id limit $3
    ), idle as materialized (
        select g.* from page p cross join lateral (
            select g.tenant_id, g.id, g.idle_since from gates g
            where g.tenant_id = any (array[p.tenant_id]) and g.id = p.id
              and g.held = 0 and g.waiting = 0 and (g.idle_since is null or g.idle_since <= $5)
            for update skip locked
        ) g
    ), marked as (
        update gates g set idle_since = $4 from idle i where i.idle_since is null and g.tenant_id = any (array[i.tenant_id]) and g.id = i.id
    ), forgotten as (
        delete from gates g using idle i where i.idle_since is not null and g.tenant_id = any (array[i.tenant_id]) and g.id = i.id
        returning g.id
    )
    select tenant_id, id::text, (select count(*) from forgotten)::int as forgotten from page order by tenant_id desc, id desc limit 1
    """,
    Pruned,
)

SHOW = Statement(
    """
    select g.id::text, g.rule, g.name, g.key, g.strategy, gate_limit(g) as most, g.held, g.waiting
    from gates g where g.tenant_id = $1 and g.id = any($2::uuid[])
    """,
    GateRow,
)

PAGE = Statement(
    """
    select g.id::text, g.rule, g.name, g.key, g.strategy, gate_limit(g) as most, g.held, g.waiting
    from gates g where g.tenant_id = $1 and g.id > $2::uuid and (g.held > 0 or g.waiting > 0) order by g.id limit $3
    """,
    GateRow,
)

AHEAD = """
    select (select count(*) from tasks t where t.tenant_id = $1 and t.gate_wait = $2::uuid and (t.arrived_at, t.run_id) < ($3, $4))
         + (select count(*) from runs r where r.tenant_id = $1 and r.gate_wait = $2::uuid and (r.arrived_at, r.id) < ($3, $4))
"""

WAITING = Statement(
    """
    select t.node, t.state, t.workflow_id, t.durable, t.gate_wait::text as gate, t.arrived_at, t.parked_on::text, t.parked_for,
           t.requirement, t.priority, t.due_at, t.epoch, t.unschedulable
    from tasks t where t.tenant_id = $1 and t.run_id = $2 and t.state in ('queued', 'gated', 'scheduled')
    union all
    select null, 'gated', r.workflow_id, false, r.gate_wait::text, r.arrived_at, null, null, '', r.priority, r.created_at, 0, false
    from runs r
    where r.tenant_id = $1 and r.id = $2 and r.gates is not null and r.gates_held < cardinality(r.gates) and r.advance_at is null
    union all
    select null, 'scheduled', r.workflow_id, false, null, null, null, null, '', r.priority, r.advance_at, 0, false
    from runs r where r.tenant_id = $1 and r.id = $2 and r.gate_wait is null and r.graph !~ '[^-]' and r.advance_at > $3
    """,
    Waiting,
)


async def waking(db: Database, limit: int, after: Mapping[int, str] = MappingProxyType({})) -> list[Waking]:
    """Gates that have something to look at, at most `limit` of each tenant, those behind the id given `after` first."""
    return WAKING.read(await db.fetch(WAKING.sql, limit, list(after), list(after.values())))


async def standing(db: Database, gates: Sequence[Waking]) -> list[Standing]:
    """Who holds these gates and who waits at them, in no particular order."""
    return STANDING.read(await db.fetch(STANDING.sql, [g.tenant_id for g in gates], [g.id for g in gates]))


async def admit(db: Database, gates: Sequence[Waking], now: datetime, most: int) -> list[Passed]:
    """Let those through for whom there is room, in the order in which they arrived, at most `most` at each gate."""
    return ADMIT.read(
        await db.fetch(ADMIT.sql, [g.tenant_id for g in gates], [g.id for g in gates], [g.arrivals for g in gates], now, most)
    )


async def anybody_waits(db: Database) -> bool:
    """Whether anybody stands in line anywhere."""
    return bool(await db.fetchval(ANYBODY))


async def enter(db: Database, now: datetime, limit: int) -> int:
    """Let runs of graphs whose time has come stand in line; answers how many."""
    return int((await db.execute(ENTER, now, limit)).split()[-1])


async def late(db: Database, now: datetime, limit: int, misconfig_ttl: timedelta) -> list[LateRun]:
    """Runs of graphs past their schedule timeout; while no endpoint could take them, `misconfig_ttl` stands in for it."""
    return LATE.read(await db.fetch(LATE.sql, now, limit, misconfig_ttl))


async def audit(db: Database) -> list[Drift]:
    """Count again from the rows, and put right what differs: nothing should. Where there is no gate nothing is read."""
    drifts = list[Drift]()
    if not await db.fetchval(ANY_GATE):
        return drifts
    for part in range(_PARTS):
        first, last = part * _IDS // _PARTS, (part + 1) * _IDS // _PARTS - 1
        async with db.transaction(lane="settle") as conn:
            await conn.execute("select set_config('enable_seqscan', 'on', true), set_config('enable_hashjoin', 'on', true)")
            drifts += AUDIT.read(await conn.fetch(AUDIT.sql, UUID(int=first), UUID(int=last)))
    return drifts


async def prune(db: Database, now: datetime, idle_before: datetime, limit: int) -> int:
    """Forget gates nobody has held or waited at since `idle_before`, and note since when others are idle; answers how many are forgotten.

    Each statement looks at `limit` of them.
    """
    tenant_id, gate, forgotten = 0, str(UUID(int=0)), 0
    while page := PRUNE.read(await db.fetch(PRUNE.sql, tenant_id, gate, limit, now, idle_before)):
        tenant_id, gate = page[0].tenant_id, page[0].id
        forgotten += page[0].forgotten
    return forgotten


async def show(db: Database, tenant_id: int, ids: Sequence[str]) -> dict[str, GateRow]:
    """Gates by id."""
    if not ids:
        return {}
    return {row.id: row for row in SHOW.read(await db.fetch(SHOW.sql, tenant_id, list(ids)))}


async def page(db: Database, tenant_id: int, after: str, limit: int) -> list[GateRow]:
    """Gates that somebody holds or waits at, behind the id `after`."""
    return PAGE.read(await db.fetch(PAGE.sql, tenant_id, after, limit))


async def ahead(db: Database, tenant_id: int, gate: str, arrived_at: datetime, run_id: str) -> int:
    """How many stand before somebody in a line."""
    return int(await db.fetchval(AHEAD, tenant_id, gate, arrived_at, run_id))


async def waiting(db: Database, tenant_id: int, run_id: str, now: datetime) -> list[Waiting]:
    """What of a run could run and does not."""
    return WAITING.read(await db.fetch(WAITING.sql, tenant_id, run_id, now))
