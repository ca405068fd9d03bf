"""Rate limits: taking units, parking those for whom there are none, and giving them their turn when the bucket is full again.

Whoever takes units holds the rows of their buckets, in the order of their ids, until it is written who got any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from dispatcher.engine.admission import Queue
from dispatcher.engine.definitions.flow import SECONDS, Duration
from dispatcher.engine.rate_limits import FIRST_MS, Bucket, Demand, Parked
from dispatcher.store.database import Connection, Database
from dispatcher.store.outcomes import Applied, TaskKey
from dispatcher.store.queue import Line
from dispatcher.store.statement import Statement

BucketKey = tuple[int, str]
_STEPPED_OVER = 100  # of those that want more than a turn has left, in search of somebody whom it is enough for


@dataclass(frozen=True, slots=True)
class BucketRow:
    """A bucket of a tenant."""

    tenant_id: int
    id: str
    key: str
    fixed: bool
    most: int
    duration: Duration
    value: int
    refilled_at: datetime
    refill_at: datetime | None
    updated_at: datetime

    def bucket(self) -> Bucket:
        """What the rules look at."""
        return Bucket(self.id, self.key, self.fixed, self.most, self.duration, self.value, self.refilled_at, self.refill_at)


@dataclass(frozen=True, slots=True)
class Park:
    """A leased task that does not start, and what its row must still be. `units` are what it takes, as JSON text, where it keeps some."""

    key: TaskKey
    epoch: int
    schedule_deadline: datetime | None
    parked: Parked
    units: str | None = None


@dataclass(frozen=True, slots=True)
class Paid:
    """A leased task that starts and of which that is to be written: one that is durable takes no units again when it goes on; one that had
    kept some has used them, and takes `units` (JSON text) next time.
    """

    key: TaskKey
    epoch: int
    units: str | None


@dataclass(frozen=True, slots=True)
class DueRow:
    """A bucket that is to be filled for those parked on it."""

    tenant_id: int
    id: str


LOCK = Statement(
    """
    select b.tenant_id, b.id::text, b.key, b.fixed, b.most, b.duration, b.value, b.refilled_at, b.refill_at, b.updated_at
    from unnest($1::int[], $2::uuid[]) as g (tenant_id, id)
    cross join lateral (
        select * from rate_limits b where b.tenant_id = g.tenant_id and b.id = g.id offset 0 for update
    ) b
    where not b.gone
    """,
    BucketRow,
)

MAKE = """
    insert into rate_limits as b (tenant_id, id, key, fixed, most, duration, window_ms, value, refilled_at, updated_at)
    select g.tenant_id, g.id, g.key, false, g.most, g.duration, g.window_ms, g.most, $7, $7
    from unnest($1::int[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::bigint[]) as g (tenant_id, id, key, most, duration, window_ms)
    on conflict (tenant_id, id) do update
    set fixed = false, gone = false, most = excluded.most, duration = excluded.duration, window_ms = excluded.window_ms,
        value = excluded.most, refilled_at = excluded.refilled_at, updated_at = excluded.updated_at
    where b.gone
"""

# A parked task is as it was before it was leased: nobody has heard of that attempt, so its number is free again.
SETTLE = Statement(
    """
    with given as (
        select * from unnest($7::int[], $8::text[], $9::smallint[], $10::int[], $11::timestamptz[], $12::uuid[], $13::int[],
                             $14::timestamptz[], $22::text[])
            as g (tenant_id, run_id, node, epoch, schedule_deadline, bucket, units, until, kept)
    ), buckets as (
        update rate_limits b
        set value = g.value, refilled_at = g.refilled_at, most = g.most, duration = g.duration, window_ms = g.window_ms,
            refill_at = case when p.until is not null then least(coalesce(b.refill_at, p.until), p.until)
                             when g.most > b.most and b.refill_at is null -- enough for those that wanted more than there was
                                  and (select true from tasks t where t.tenant_id = b.tenant_id and t.parked_on = b.id limit 1)
                             then g.refilled_at + g.window_ms * interval '1 millisecond'
                             else b.refill_at end
        from unnest($1::int[], $2::uuid[], $3::int[], $4::timestamptz[], $5::int[], $6::text[], $16::bigint[])
             as g (tenant_id, id, value, refilled_at, most, duration, window_ms)
        left join (select tenant_id, bucket, max(until) as until from given group by tenant_id, bucket) p
               on p.tenant_id = g.tenant_id and p.bucket = g.id
        where b.tenant_id = any (array[g.tenant_id]) and b.id = g.id
    ), paid as (
        update tasks t
        set units_taken = t.durable, flow = case when g.units is null then t.flow else jsonb_set(t.flow, '{units}', g.units::jsonb) end
        from unnest($17::int[], $18::text[], $19::smallint[], $20::int[], $21::text[]) as g (tenant_id, run_id, node, epoch, units)
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
          and t.state = 'running'
    )
    update tasks t
    set state = 'gated', parked_on = g.bucket, parked_for = g.units, epoch = t.epoch - 1,
        schedule_deadline = g.schedule_deadline, dispatcher_id = null, endpoint_id = null, endpoint_version = null,
        started_at = null, deadline = null,
        flow = case when g.kept is null then t.flow else jsonb_set(t.flow, '{units}', g.kept::jsonb) end
    from given g
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = 'running'
      and t.dispatcher_id = $15 and t.cancel_at is null
    returning t.tenant_id, t.run_id, t.node
    """,
    Applied,
)

DUE = Statement(
    """
    select tenant_id, id::text from rate_limits where refill_at <= $1 order by refill_at limit $2 for update skip locked
    """,
    DueRow,
)

# As many are let go, in their turn, as there are units for: so whoever wants many is not overtaken by those behind it, whichever process
# they come to. What the turn then leaves over, since the next in line wants more, is for those whom it is enough for. Tasks that want more
# than the limit will ever give stay where they are, until it is raised or their schedule timeout ends them. Those that are let go keep what
# they wanted (`parked_for`), by which they are known as some that have waited; for a moment ($5) they come first.
# Its buckets have been locked by a statement before it, so that it sees everybody who was parked under their locks. Who waits and was not
# looked at (`missed`) has a row that somebody else holds: a moment later it will be free.
REFILL = Statement(
    """
    with due as materialized (
        select b.tenant_id, b.id, b.gone, b.most, b.window_ms, b.fresh,
               case when b.fresh then $1 else b.refilled_at end as refilled_at, case when b.fresh then b.most else b.value end as value,
               least(case when b.gone then $4 when b.fresh then b.most when b.value = 0 then 0 else b.value + $6 end, $4) + 1 as looks
        from unnest($2::int[], $3::uuid[]) as g (tenant_id, id)
        cross join lateral (
            select *, refilled_at + (window_ms - 10) * interval '1 millisecond' <= $1 as fresh
            from rate_limits b where b.tenant_id = g.tenant_id and b.id = g.id offset 0
        ) b
    ), found as materialized (
        select d.tenant_id, d.id, p.run_id, p.node, p.place <= $4 and (d.gone or p.parked_for <= d.value and p.units <= d.value) as goes
        from due d cross join lateral (
            select t.run_id, t.node, t.parked_for, row_number() over turn as place,
                   sum(t.parked_for) filter (where d.fresh or t.parked_for <= d.value) over turn as units
            from (
                select t.run_id, t.node, t.priority, t.parked_for from tasks t
                where t.tenant_id = d.tenant_id and t.parked_on = d.id and t.state = 'gated' and (d.gone or t.parked_for <= d.most)
                order by t.priority desc, t.run_id, t.node limit d.looks for update skip locked
            ) t window turn as (order by t.priority desc, t.run_id, t.node)
        ) p
    ), freed as (
        update tasks t set state = 'queued', parked_on = null, due_at = $1
        from found f join due d on d.tenant_id = f.tenant_id and d.id = f.id
        where f.goes and t.tenant_id = any (array[f.tenant_id]) and t.run_id = f.run_id and t.node = f.node
        returning t.tenant_id, case when t.durable then -t.workflow_id else t.workflow_id end as workflow_id, t.requirement
    ), counted as (
        select d.tenant_id, d.id, count(f.run_id) as found, count(*) filter (where f.goes) as going
        from due d left join found f on f.tenant_id = d.tenant_id and f.id = d.id
        group by d.tenant_id, d.id
    ), more as (
        select d.tenant_id, d.id, c.found > c.going as waiting, c.going >= $4 as at_once, c.going > 0 and not d.gone as freed,
               c.found < d.looks and (
                   select true from tasks t
                   where t.tenant_id = d.tenant_id and t.parked_on = d.id and t.state = 'gated' and (d.gone or t.parked_for <= d.most)
                   order by t.priority desc, t.run_id, t.node offset c.found limit 1
               ) as missed
        from due d join counted c on c.tenant_id = d.tenant_id and c.id = d.id
    ), moved as (
        update rate_limits b
        set value = d.value, refilled_at = d.refilled_at,
            refill_at = case when m.waiting and m.at_once then $1
                             when d.fresh and m.freed or m.missed then $1 + least(d.window_ms / 10, $5) * interval '1 millisecond'
                             when m.waiting then d.refilled_at + d.window_ms * interval '1 millisecond' end
        from due d join more m on m.tenant_id = d.tenant_id and m.id = d.id
        where b.tenant_id = any (array[d.tenant_id]) and b.id = d.id
    )
    select tenant_id, workflow_id, requirement from freed
    """,
    Line,
)

# Whether somebody is parked on a bucket nobody will fill: what would be a lost wake-up, if there were any. Buckets that somebody is parked
# on are found by stepping from one to the next through the index.
REFILL_AGAIN = """
    with recursive parked as (
        (select t.tenant_id, t.parked_on from tasks t where t.parked_on is not null order by t.tenant_id, t.parked_on limit 1)
        union all
        select n.tenant_id, n.parked_on from parked p cross join lateral (
            select t.tenant_id, t.parked_on from tasks t
            where t.parked_on is not null and (t.tenant_id, t.parked_on) > (p.tenant_id, p.parked_on)
            order by t.tenant_id, t.parked_on limit 1
        ) n
    ), forgotten as materialized (
        select b.tenant_id, b.id from parked p cross join lateral (
            select b.tenant_id, b.id from rate_limits b
            where b.tenant_id = p.tenant_id and b.id = p.parked_on and b.refill_at is null
              and (select true from tasks t where t.tenant_id = p.tenant_id and t.parked_on = p.parked_on and t.state = 'gated'
                                              and (b.gone or t.parked_for <= b.most) limit 1)
            offset 0 for update skip locked
        ) b
    )
    update rate_limits b set refill_at = $1 from forgotten f
    where b.tenant_id = any (array[f.tenant_id]) and b.id = f.id and b.refill_at is null
"""

GIVE_BACK = """
    update rate_limits b
    set value = least(b.value + g.units, b.most), refill_at = case when b.refill_at is not null then $5::timestamptz end
    from unnest($1::int[], $2::uuid[], $3::int[], $4::timestamptz[]) as g (tenant_id, id, units, taken_at)
    where b.tenant_id = any (array[g.tenant_id]) and b.id = g.id and b.refilled_at <= g.taken_at
"""

PUT = Statement(
    """
    insert into rate_limits as b (tenant_id, id, key, fixed, most, duration, window_ms, value, refilled_at, updated_at)
    values ($1, $2, $3, true, $4, $5, $6, $4, $7, $7)
    on conflict (tenant_id, id) do update
    set fixed = true, gone = false, most = excluded.most, duration = excluded.duration, window_ms = excluded.window_ms,
        value = case when b.gone then excluded.most else least(b.value, excluded.most) end,
        refilled_at = case when b.gone then excluded.refilled_at else b.refilled_at end, updated_at = excluded.updated_at,
        refill_at = case when b.refill_at is not null or exists (select from tasks t where t.tenant_id = $1 and t.parked_on = $2)
                         then case when b.gone then $7 else b.refilled_at + $6 * interval '1 millisecond' end end
    returning tenant_id, id::text, key, fixed, most, duration, value, refilled_at, refill_at, updated_at
    """,
    BucketRow,
)

DELETE = """
    update rate_limits set gone = true, refill_at = $3 where tenant_id = $1 and id = $2 and not gone returning id
"""

PAGE = Statement(
    """
    select tenant_id, id::text, key, fixed, most, duration, value, refilled_at, refill_at, updated_at from rate_limits
    where tenant_id = $1 and key collate "C" > $2 and not gone order by key collate "C" limit $3
    """,
    BucketRow,
)

GET = Statement(
    """
    select tenant_id, id::text, key, fixed, most, duration, value, refilled_at, refill_at, updated_at from rate_limits
    where tenant_id = $1 and id = any($2::uuid[]) and not gone
    """,
    BucketRow,
)

NEXT_REFILL = "select min(refill_at) from rate_limits where refill_at is not null"

# A bucket nobody set that is full by now is as good as one that is not there.
PRUNE = """
    delete from rate_limits where (tenant_id, id) in (
        select tenant_id, id from rate_limits
        where refill_at is null and (gone or not fixed) and refilled_at + window_ms * interval '1 millisecond' <= $1
          and not exists (select from tasks t where t.tenant_id = rate_limits.tenant_id and t.parked_on = rate_limits.id)
        limit $2 for update skip locked
    )
"""
CLOCKS_APART: Final = timedelta(minutes=1)
"""How far clocks of one installation may be apart."""
# Windows that begin further ahead than that were begun by a clock that was wrong.
REWIND = """
    update rate_limits b
    set refilled_at = $1, refill_at = case when b.refill_at is not null then $1::timestamptz + b.window_ms * interval '1 millisecond' end
    where b.refilled_at > $1::timestamptz + b.window_ms * interval '1 millisecond' + $2::interval
"""


async def lock(conn: Connection, keys: Iterable[BucketKey]) -> dict[BucketKey, BucketRow]:
    """These buckets, those that are there, held until the transaction ends."""
    ordered = sorted(keys)
    rows = LOCK.read(await conn.fetch(LOCK.sql, [tenant for tenant, _ in ordered], [id_ for _, id_ in ordered]))
    return {(row.tenant_id, row.id): row for row in rows}


async def make(conn: Connection, demands: Mapping[BucketKey, Demand], now: datetime) -> None:
    """Make buckets that are made by being asked for, full."""
    wanted = [(key, d.key, d.most, d.duration) for key, d in sorted(demands.items()) if d.most is not None and d.duration is not None]
    await conn.execute(
        MAKE,
        [key[0] for key, _, _, _ in wanted],
        [key[1] for key, _, _, _ in wanted],
        [name for _, name, _, _ in wanted],
        [most for _, _, most, _ in wanted],
        [duration for _, _, _, duration in wanted],
        [SECONDS[duration] * 1000 for _, _, _, duration in wanted],
        now,
    )


async def settle(
    conn: Connection,
    buckets: Sequence[tuple[int, Bucket]],
    parks: Sequence[Park],
    paid: Sequence[Paid],
    dispatcher_id: int,
) -> set[TaskKey]:
    """Write what is left in buckets, and park tasks; answers those that were."""
    records = await conn.fetch(
        SETTLE.sql,
        [tenant for tenant, _ in buckets],
        [b.id for _, b in buckets],
        [b.value for _, b in buckets],
        [b.refilled_at for _, b in buckets],
        [b.most for _, b in buckets],
        [b.duration for _, b in buckets],
        [p.key[0] for p in parks],
        [p.key[1] for p in parks],
        [p.key[2] for p in parks],
        [p.epoch for p in parks],
        [p.schedule_deadline for p in parks],
        [p.parked.bucket for p in parks],
        [p.parked.units for p in parks],
        [p.parked.until for p in parks],
        dispatcher_id,
        [SECONDS[b.duration] * 1000 for _, b in buckets],
        [p.key[0] for p in paid],
        [p.key[1] for p in paid],
        [p.key[2] for p in paid],
        [p.epoch for p in paid],
        [p.units for p in paid],
        [p.units for p in parks],
    )
    return {(row.tenant_id, row.run_id, row.node) for row in SETTLE.read(records)}


async def refill(db: Database, now: datetime, limit: int, most: int) -> list[Queue]:
    """Fill buckets whose time has come, and let those parked on them go back to their queues; answers these, one entry a task."""
    async with db.transaction() as conn:
        keys = await due(conn, now, limit)
        return await let_go(conn, keys, now, most) if keys else []


async def due(conn: Connection, now: datetime, limit: int) -> list[BucketKey]:
    """Buckets whose time has come, held until the transaction ends; none of those that somebody else holds."""
    return [(row.tenant_id, row.id) for row in DUE.read(await conn.fetch(DUE.sql, now, limit))]


async def let_go(conn: Connection, keys: Sequence[BucketKey], now: datetime, most: int) -> list[Queue]:
    """Fill buckets that are held, and let those parked on them go back to their queues, at most so many of each; answers these queues."""
    tenants, ids = [tenant for tenant, _ in keys], [id_ for _, id_ in keys]
    rows = REFILL.read(await conn.fetch(REFILL.sql, now, tenants, ids, most, FIRST_MS, _STEPPED_OVER))
    return [(row.tenant_id, row.workflow_id, row.requirement) for row in rows]


async def refill_again(db: Database, now: datetime) -> int:
    """Let buckets be filled that somebody is parked on and nobody would fill; answers how many."""
    return int((await db.execute(REFILL_AGAIN, now)).split()[-1])


async def give_back(db: Database, units: Sequence[tuple[BucketKey, int, datetime]], now: datetime) -> None:
    """Give back units that were taken at a moment and not used."""
    ordered = sorted(units)
    await db.execute(
        GIVE_BACK,
        [key[0] for key, _, _ in ordered],
        [key[1] for key, _, _ in ordered],
        [n for _, n, _ in ordered],
        [taken_at for _, _, taken_at in ordered],
        now,
        lane="settle",
    )


async def put(db: Database, tenant_id: int, bucket: str, key: str, most: int, duration: Duration, now: datetime) -> BucketRow:
    """Set a limit: lowering takes away what is too much, raising adds nothing before the next window."""
    return PUT.read(await db.fetch(PUT.sql, tenant_id, bucket, key, most, duration, SECONDS[duration] * 1000, now))[0]


async def delete(db: Database, tenant_id: int, bucket: str, now: datetime) -> bool:
    """Let a limit be no more; False when there is none. Those parked on it get their turn."""
    return await db.fetchval(DELETE, tenant_id, bucket, now) is not None


async def page(db: Database, tenant_id: int, after: str, limit: int) -> list[BucketRow]:
    """Limits by key, behind the key `after`."""
    return PAGE.read(await db.fetch(PAGE.sql, tenant_id, after, limit))


async def get(db: Database, tenant_id: int, ids: Sequence[str]) -> dict[str, BucketRow]:
    """Limits by id, those that are there."""
    if not ids:
        return {}
    return {row.id: row for row in GET.read(await db.fetch(GET.sql, tenant_id, list(ids)))}


async def next_refill(db: Database) -> datetime | None:
    """When the next bucket is to be filled for those parked on it."""
    moment: datetime | None = await db.fetchval(NEXT_REFILL)
    return moment


async def rewind(conn: Connection, now: datetime) -> None:
    """Let windows that were begun in a future that is not coming begin now: a clock was ahead, and has been put right."""
    await conn.execute(REWIND, now, CLOCKS_APART)


async def prune(db: Database, now: datetime, limit: int) -> int:
    """Forget at most `limit` buckets that are as good as none; answers how many."""
    return int((await db.execute(PRUNE, now, limit)).split()[-1])
