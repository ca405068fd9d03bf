"""What arrived at webhooks, partitioned by the moment of arrival. An id holds that moment, so a look-up by id reads few partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement


@dataclass(slots=True)
class NewDelivery:
    """One request as it will be remembered. `headers` is a JSON object without credentials, `sender_id` the sender's name for it.

    `routes_again` marks a delivery that is stored already, as unrouted: its row is brought up to date instead of a new one written.
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
class StoredDelivery:
    """One request with everything kept of it. `body` is that of the first delivery where this one has none of its own."""

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
    where d.tenant_id = g.tenant_id and d.id = g.id and d.received_at = g.received_at and d.status = 'unrouted'
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
GET = Statement(
    """
    select d.webhook_id, d.id, d.status, d.reason, d.detail, d.method, d.query, d.headers, coalesce(d.body, f.body) as body, d.body_bytes,
           d.body_sha256, d.sender_id, d.first_id, d.event_id, d.event_key, d.scope, d.secret_number, d.received_at
    from webhook_deliveries d
    left join webhook_deliveries f on f.tenant_id = d.tenant_id and f.id = d.first_id and f.received_at >= $5 and d.body is null
    where d.tenant_id = $1 and d.webhook_id = $2 and d.id = $3 and d.received_at >= $4
    """,
    StoredDelivery,
)
UNROUTED = Statement(
    """
    select webhook_id, id, status, reason, detail, method, query, headers, body, body_bytes, body_sha256, sender_id, first_id, event_id,
           event_key, scope, secret_number, received_at
    from webhook_deliveries
    where tenant_id = $1 and webhook_id = $2 and status = 'unrouted' and id > $3
      and received_at >= coalesce($4::timestamptz, '-infinity') and received_at < coalesce($5::timestamptz, 'infinity')
    order by id limit $6
    """,
    StoredDelivery,
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


async def get(
    db: Database, tenant_id: int, webhook_id: str, delivery_id: str, not_before: datetime, kept_since: datetime
) -> StoredDelivery | None:
    """One delivery. It did not arrive before `not_before`; the first of its kind, whose body may be its own, not before `kept_since`."""
    return GET.first(await db.fetch(GET.sql, tenant_id, webhook_id, delivery_id, not_before, kept_since))


async def unrouted(
    db: Database, tenant_id: int, webhook_id: str, after: str, since: datetime | None, until: datetime | None, limit: int
) -> list[StoredDelivery]:
    """Deliveries that no expression found a place for yet, behind the id `after`, oldest first."""
    return UNROUTED.read(await db.fetch(UNROUTED.sql, tenant_id, webhook_id, after, since, until, limit))
