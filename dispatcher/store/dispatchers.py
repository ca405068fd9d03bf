"""Dispatcher processes: signs of life, and their shares of endpoints' slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.engine.admission import Grant, Place, endpoint_at, place_of
from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class SlotRow:
    """An endpoint's slots, or one dispatcher's grant of them (then `slots` is the grant)."""

    tenant_id: int
    endpoint_id: str
    dispatcher_id: int | None
    slots: int
    durable: bool

    @property
    def place(self) -> Place:
        """Where these slots are."""
        return place_of(self.tenant_id, self.endpoint_id, self.durable)


@dataclass(frozen=True, slots=True)
class Owner:
    """An id that tasks are leased to."""

    id: int


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """A dispatcher process."""

    id: int
    name: str
    started_at: datetime
    live_until: datetime


REGISTER = "insert into dispatchers (name, started_at, live_until) values ($1, $2, $3) returning id"
HEARTBEAT = "update dispatchers set live_until = $2 where id = $1 returning id"
LIVE = Statement("select id, name, started_at, live_until from dispatchers where live_until > $1 order by id", Dispatcher)
OTHERS = Statement("select id, name, started_at, live_until from dispatchers where id <> $1 order by id", Dispatcher)
LEAVE = "delete from dispatchers where id = $1"
# Work can be leased to a dispatcher that is no longer listed: its statement was on the way when it was buried. Its id is found by
# stepping from one owner to the next through the index, a few probes however many tasks there are.
UNLISTED = Statement(
    """
    with recursive owners as (
        (select dispatcher_id from tasks where dispatcher_id is not null order by dispatcher_id limit 1)
        union all
        select (select t.dispatcher_id from tasks t where t.dispatcher_id > o.dispatcher_id order by t.dispatcher_id limit 1)
        from owners o where o.dispatcher_id is not null
    )
    select o.dispatcher_id as id from owners o
    where o.dispatcher_id is not null and not exists (select from dispatchers d where d.id = o.dispatcher_id)
    """,
    Owner,
)
FORGET = """
    delete from dispatchers d where d.id = $1 and not exists (select from tasks t where t.dispatcher_id = d.id)
"""
LOCK_GRANTS = "select pg_advisory_xact_lock(7240155)"
SLOTS = Statement(
    """
    select tenant_id, id as endpoint_id, null::bigint as dispatcher_id, slots, false as durable from endpoints
    union all
    select tenant_id, id, null, durable_slots, true from endpoints where durable_slots is not null
    union all
    select tenant_id, endpoint_id, dispatcher_id, slots, durable from slot_grants
    """,
    SlotRow,
)
# A batch fills its slots once, and as long as a dispatcher has anything of it open it counts them.
DETACHED = Statement(
    """
    select tenant_id, endpoint_id, null::bigint as dispatcher_id, sum(slots)::int as slots, durable
    from (
        select tenant_id, endpoint_id, slots, durable from tasks
        where lease_until is not null and not slot_released and batch_id is null
        union all
        select tenant_id, endpoint_id, max(slots), false from tasks
        where batch_id is not null and state = 'running' and not slot_released
        group by tenant_id, endpoint_id, batch_id having bool_and(lease_until is not null)
    ) filled
    group by tenant_id, endpoint_id, durable
    """,
    SlotRow,
)
IS_LISTED = "select true from dispatchers where id = $1 for key share"
# An endpoint that was deleted since its slots were read has none to share.
SET_GRANTS = """
    insert into slot_grants as s (tenant_id, endpoint_id, dispatcher_id, slots, durable)
    select g.tenant_id, g.endpoint_id, $4, g.slots, g.durable
    from unnest($1::int[], $2::text[], $3::int[], $5::boolean[]) as g (tenant_id, endpoint_id, slots, durable)
    cross join lateral (
        select from endpoints e where e.tenant_id = g.tenant_id and e.id = g.endpoint_id for key share
    ) there
    on conflict (tenant_id, endpoint_id, dispatcher_id, durable) do update set slots = excluded.slots where s.slots <> excluded.slots
"""


@dataclass(frozen=True, slots=True)
class Slots:
    """Everything a dispatcher needs to work out its share of each endpoint."""

    slots: dict[Place, int]
    grants: dict[Place, list[Grant]]
    detached: dict[Place, int]
    live: list[int]


async def register(db: Database, name: str, now: datetime, live_until: datetime) -> int:
    """Join as a new dispatcher; answers its id, which no earlier process ever had."""
    return int(await db.fetchval(REGISTER, name, now, live_until))


async def heartbeat(db: Database, dispatcher_id: int, live_until: datetime) -> bool:
    """Stay alive until `live_until`; False when others have already given this dispatcher up."""
    return bool(await db.fetch(HEARTBEAT, dispatcher_id, live_until, lane="settle"))


async def is_listed(conn: Connection, dispatcher_id: int) -> bool:
    """Whether nobody has given this dispatcher up; it stays so until the transaction ends."""
    return bool(await conn.fetchval(IS_LISTED, dispatcher_id))


async def live(db: Database, now: datetime) -> list[Dispatcher]:
    """Dispatchers that have shown a sign of life in time."""
    return LIVE.read(await db.fetch(LIVE.sql, now))


async def others(db: Database, me: int) -> list[Dispatcher]:
    """All other dispatchers that are listed, alive or not."""
    return OTHERS.read(await db.fetch(OTHERS.sql, me))


async def unlisted(db: Database, me: int) -> list[int]:
    """Dispatchers that tasks are leased to and that are not listed any more."""
    return [owner.id for owner in UNLISTED.read(await db.fetch(UNLISTED.sql)) if owner.id != me]


async def leave(db: Database, dispatcher_id: int) -> None:
    """Be listed no more."""
    await db.execute(LEAVE, dispatcher_id, lane="settle")


async def forget(db: Database, dispatcher_id: int) -> None:
    """Remove a dispatcher and its grants, once no task is left to it."""
    await db.execute(FORGET, dispatcher_id, lane="settle")


async def lock_slots(conn: Connection, now: datetime) -> Slots:
    """The picture of all slots, with the right to change grants until the transaction ends.

    The lock comes in a statement before the reads, because a statement sees what was committed before it began.
    """
    await conn.execute(LOCK_GRANTS)
    slots: dict[Place, int] = {}
    grants: dict[Place, list[Grant]] = {}
    for row in SLOTS.read(await conn.fetch(SLOTS.sql)):
        place = row.place
        if row.dispatcher_id is None:
            slots[place] = row.slots
        else:
            grants.setdefault(place, []).append(Grant(row.dispatcher_id, row.slots))
    detached = {row.place: row.slots for row in DETACHED.read(await conn.fetch(DETACHED.sql))}
    return Slots(slots, grants, detached, [d.id for d in LIVE.read(await conn.fetch(LIVE.sql, now))])


async def set_grants(conn: Connection, dispatcher_id: int, grants: Sequence[tuple[Place, int]]) -> None:
    """Write this dispatcher's own grants."""
    places = [place for place, _ in grants]
    slots, durable = [n for _, n in grants], [endpoint_at(p) != p[1] for p in places]
    await conn.execute(SET_GRANTS, [p[0] for p in places], [endpoint_at(p) for p in places], slots, dispatcher_id, durable)
