"""What arrived at webhooks, partitioned by the moment of arrival. An id holds that moment, so a look-up by id reads few partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import first_id
from dispatcher.store.statement import Statement


@dataclass(slots=True)
class NewDelivery:
    """One request as it will be remembered. `headers` is a JSON object without credentials, `sender_id` the sender's name for it.

    `routes_again` marks a delivery that is stored already, without an event: its row is brought up to date instead of a new one written.
    `body` is None where it is that of `first_id`, or the data of its event. Of a `silent` one nothing is written when it is a duplicate.
    """

    tenant_id: int
    webhook_id: str
    id: str
    status: str
    received_at: datetime
    method: str
    query: str | None
    headers: str
    body: bytes | None
    body_bytes: int
    body_sha256: bytes | None
    reason: str | None = None
    detail: str | None = None
    sender_id: str | None = None
    first_id: str | None = None
    event_id: str | None = None
    event_key: str | None = None
    scope: str | None = None
    secret_number: int | None = None
    routes_again: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One request as it is listed."""

    id: str
    status: str
    reason: str | None
    detail: str | None
    method: str
    body_bytes: int
    sender_id: str | None
    first_id: str | None
    event_id: str | None
    event_key: str | None
    scope: str | None
    secret_number: int | None
    received_at: datetime


@dataclass(frozen=True, slots=True)
class FollowedRow:
    """One request as it is followed, and the name of its webhook."""

    webhook: str
    id: str
    status: str
    reason: str | None
    detail: str | None
    method: str
    body_bytes: int
    sender_id: str | None
    first_id: str | None
    event_id: str | None
    event_key: str | None
    scope: str | None
    secret_number: int | None
    received_at: datetime


@dataclass(frozen=True, slots=True)
class StoredDelivery:
    """One request with everything kept of it. `body` is that of the first delivery, or of the event, where this one has none of its own."""

    webhook_id: str
    id: str
    status: str
    reason: str | None
    detail: str | None
    method: str
    query: str | None
    headers: str
    body: bytes | None
    body_bytes: int
    body_sha256: bytes | None
    sender_id: str | None
    first_id: str | None
    event_id: str | None
    event_key: str | None
    scope: str | None
    secret_number: int | None
    received_at: datetime


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries; None means any."""

    statuses: Sequence[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    reasons: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """A delivery somebody chose, and the bytes of its body."""

    id: str
    status: str
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that waits for its filter."""

    tenant_id: int
    webhook_id: str
    id: str


INSERT = """
    insert into webhook_deliveries (tenant_id, webhook_id, id, status, reason, detail, method, query, headers, body, body_bytes,
                                    body_sha256, sender_id, first_id, event_id, event_key, scope, secret_number, received_at)
    select g.tenant_id, g.webhook_id, g.id, g.status, g.reason, g.detail, g.method, g.query, g.headers::jsonb, g.body, g.body_bytes,
           g.body_sha256, g.sender_id, g.first_id, g.event_id, g.event_key, g.scope, g.secret_number, g.received_at
    from unnest(
        $1::int[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bytea[],
        $11::bigint[], $12::bytea[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::int[], $19::timestamptz[]
    ) as g (tenant_id, webhook_id, id, status, reason, detail, method, query, headers, body, body_bytes, body_sha256, sender_id,
            first_id, event_id, event_key, scope, secret_number, received_at)
"""
ROUTE_AGAIN = """
    update webhook_deliveries d set status = g.status, reason = g.reason, detail = g.detail, event_id = g.event_id,
                                    event_key = g.event_key, scope = g.scope
    from unnest($1::int[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
         as g (tenant_id, id, received_at, status, reason, detail, event_id, event_key, scope)
    where d.tenant_id = g.tenant_id and d.id = g.id and d.received_at = g.received_at and d.status in ('unrouted', 'filtering')
"""
NEWEST = Statement(
    """
    select id, status, reason, detail, method, body_bytes, sender_id, first_id, event_id, event_key, scope, secret_number, received_at
    from webhook_deliveries
    where tenant_id = $1 and webhook_id = $2 and ($3::text is null or id < $3) and ($4::text[] is null or status = any($4))
      and received_at >= coalesce($5::timestamptz, '-infinity') and received_at < coalesce($6::timestamptz, 'infinity')
    order by id desc limit $7
    """,
    DeliveryRow,
)
OLDEST = Statement(
    """
    select id, status, reason, detail, method, body_bytes, sender_id, first_id, event_id, event_key, scope, secret_number, received_at
    from webhook_deliveries
    where tenant_id = $1 and webhook_id = $2 and ($3::text is null or id > $3) and ($4::text[] is null or status = any($4))
      and received_at >= coalesce($5::timestamptz, '-infinity') and received_at < coalesce($6::timestamptz, 'infinity')
    order by id limit $7
    """,
    DeliveryRow,
)
FOLLOW = Statement(
    """
    select w.name as webhook, d.id, d.status, d.reason, d.detail, d.method, d.body_bytes, d.sender_id, d.first_id, d.event_id,
           d.event_key, d.scope, d.secret_number, d.received_at
    from webhook_deliveries d join webhooks w on w.tenant_id = d.tenant_id and w.id = d.webhook_id
    where d.tenant_id = $1 and d.id > $2 and d.received_at >= $3 and ($4::text[] is null or w.name = any($4))
      and ($5::text[] is null or d.status = any($5))
    order by d.id limit $6
    """,
    FollowedRow,
)
LOAD = Statement(
    """
    select d.webhook_id, d.id, d.status, d.reason, d.detail, d.method, d.query, d.headers, coalesce(d.body, f.body, e.data) as body,
           d.body_bytes, d.body_sha256, d.sender_id, d.first_id, d.event_id, d.event_key, d.scope, d.secret_number, d.received_at
    from webhook_deliveries d
    left join webhook_deliveries f on f.tenant_id = d.tenant_id and f.id = d.first_id and f.received_at >= $5 and d.body is null
    left join events e on e.tenant_id = d.tenant_id and e.id = case when d.first_id is null then d.event_id else f.event_id end
                      and e.created_at >= $5 and d.body is null and f.body is null
    where d.tenant_id = $1 and d.webhook_id = $2 and d.id = any($3) and d.received_at >= $4
    order by d.id
    """,
    StoredDelivery,
)
NAMED = Statement(
    """
    select id, status, body_bytes from webhook_deliveries
    where tenant_id = $1 and webhook_id = $2 and id = any($3) and received_at >= $4 order by id
    """,
    Picked,
)
# A replay by filter takes what came, not what replays of it became; but for those that found no place.
CHOSEN = Statement(
    """
    select id, status, body_bytes from webhook_deliveries
    where tenant_id = $1 and webhook_id = $2 and id > $3 and ($4::text[] is null or status = any($4))
      and ($5::text[] is null or reason = any($5)) and (first_id is null or status = 'unrouted')
      and received_at >= coalesce($6::timestamptz, '-infinity') and received_at < coalesce($7::timestamptz, 'infinity')
    order by id limit $8
    """,
    Picked,
)
UNROUTED = Statement(
    """
    select id, status, body_bytes from webhook_deliveries
    where tenant_id = $1 and webhook_id = $2 and id > $3 and status = 'unrouted'
      and received_at >= coalesce($4::timestamptz, '-infinity') and received_at < coalesce($5::timestamptz, 'infinity')
    order by id limit $6
    """,
    Picked,
)
FILTERING = Statement(
    """
    select tenant_id, webhook_id, id from webhook_deliveries where status = 'filtering' and received_at < $1 order by received_at limit $2
    """,
    Waiting,
)


async def write(db: Database | Connection, deliveries: Sequence[NewDelivery]) -> None:
    """Insert deliveries, and bring those up to date that were routed again."""
    new = [d for d in deliveries if not d.routes_again]
    if new:
        await db.execute(
            INSERT,
            [d.tenant_id for d in new],
            [d.webhook_id for d in new],
            [d.id for d in new],
            [d.status for d in new],
            [d.reason for d in new],
            [d.detail for d in new],
            [d.method for d in new],
            [d.query for d in new],
            [d.headers for d in new],
            [d.body for d in new],
            [d.body_bytes for d in new],
            [d.body_sha256 for d in new],
            [d.sender_id for d in new],
            [d.first_id for d in new],
            [d.event_id for d in new],
            [d.event_key for d in new],
            [d.scope for d in new],
            [d.secret_number for d in new],
            [d.received_at for d in new],
        )
    await _route_again(db, [d for d in deliveries if d.routes_again])


async def _route_again(db: Database | Connection, known: Sequence[NewDelivery]) -> None:
    if known:
        await db.execute(
            ROUTE_AGAIN,
            [d.tenant_id for d in known],
            [d.id for d in known],
            [d.received_at for d in known],
            [d.status for d in known],
            [d.reason for d in known],
            [d.detail for d in known],
            [d.event_id for d in known],
            [d.event_key for d in known],
            [d.scope for d in known],
        )


async def page(
    db: Database, tenant_id: int, webhook_id: str, wanted: DeliveryFilter, position: str | None, limit: int, *, oldest_first: bool
) -> list[DeliveryRow]:
    """Deliveries of a webhook behind the id `position`, in the order of their ids."""
    statement = OLDEST if oldest_first else NEWEST
    statuses = list(wanted.statuses) if wanted.statuses is not None else None
    return statement.read(await db.fetch(statement.sql, tenant_id, webhook_id, position, statuses, wanted.since, wanted.until, limit))


async def follow(
    db: Database, tenant_id: int, webhooks: Sequence[str] | None, statuses: Sequence[str] | None, since: datetime, after: str, limit: int
) -> list[FollowedRow]:
    """Deliveries of all of a tenant's webhooks, or of these, that came since a moment and stand behind the id `after`, oldest first."""
    names = list(webhooks) if webhooks is not None else None
    behind = max(after, first_id("dlv", since))
    return FOLLOW.read(await db.fetch(FOLLOW.sql, tenant_id, behind, since, names, list(statuses) if statuses is not None else None, limit))


async def load(
    db: Database, tenant_id: int, webhook_id: str, delivery_ids: Sequence[str], not_before: datetime, kept_since: datetime
) -> list[StoredDelivery]:
    """Deliveries by id, oldest first. None arrived before `not_before`; the first of its kind, whose body may be its own, not before
    `kept_since`.
    """
    return LOAD.read(await db.fetch(LOAD.sql, tenant_id, webhook_id, list(delivery_ids), not_before, kept_since))


async def named(db: Database, tenant_id: int, webhook_id: str, delivery_ids: Sequence[str], not_before: datetime) -> list[Picked]:
    """Those of these ids that are there."""
    return NAMED.read(await db.fetch(NAMED.sql, tenant_id, webhook_id, list(delivery_ids), not_before))


async def chosen(db: Database, tenant_id: int, webhook_id: str, wanted: DeliveryFilter, after: str, limit: int) -> list[Picked]:
    """Deliveries to replay behind the id `after`, oldest first."""
    statuses = list(wanted.statuses) if wanted.statuses is not None else None
    reasons = list(wanted.reasons) if wanted.reasons is not None else None
    return CHOSEN.read(await db.fetch(CHOSEN.sql, tenant_id, webhook_id, after, statuses, reasons, wanted.since, wanted.until, limit))


async def unrouted(db: Database, tenant_id: int, webhook_id: str, wanted: DeliveryFilter, after: str, limit: int) -> list[Picked]:
    """Deliveries that no expression found a place for yet, behind the id `after`, oldest first."""
    return UNROUTED.read(await db.fetch(UNROUTED.sql, tenant_id, webhook_id, after, wanted.since, wanted.until, limit))


async def filtering(db: Database, before: datetime, limit: int) -> list[Waiting]:
    """Deliveries of all tenants that came before a moment and still wait for their filter."""
    return FILTERING.read(await db.fetch(FILTERING.sql, before, limit))
