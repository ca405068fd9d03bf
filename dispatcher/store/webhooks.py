"""Addresses that receive webhooks, and their secrets. Every change raises the tenant's `webhooks_version`, in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """One address. `auth`, `params`, `static_payload` and `response` are JSON text; `repeat_ms` is for bodies without a sender's id."""

    id: str
    name: str
    source: str
    auth: str | None
    params: str
    event_key: str
    scope: str | None
    filter: str | None
    static_payload: str | None
    response: str | None
    body_bytes: int
    rate: float
    burst: int
    repeat_ms: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class WebhookSecretRow:
    """One secret, the highest number the newest. `last_used_at` is exact to a minute."""

    webhook_id: str
    number: int
    sealed: bytes
    captured: bool
    created_at: datetime
    not_after: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class SecretUse:
    """A secret that verified a delivery, and when."""

    tenant_id: int
    webhook_id: str
    number: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Version:
    """How often a tenant's webhooks have been changed."""

    tenant_id: int
    version: int


VERSIONS = Statement("select id as tenant_id, webhooks_version as version from tenants", Version)
LOCK = "update tenants set webhooks_version = webhooks_version + 1 where id = $1 returning webhooks_version"
WEBHOOKS = Statement(
    """
    select id, name, source, auth, params, event_key, scope, filter, static_payload, response, body_bytes, rate, burst, repeat_ms,
           created_at, updated_at
    from webhooks where tenant_id = $1 order by name
    """,
    WebhookRow,
)
WEBHOOK = Statement(
    """
    select id, name, source, auth, params, event_key, scope, filter, static_payload, response, body_bytes, rate, burst, repeat_ms,
           created_at, updated_at
    from webhooks where tenant_id = $1 and name = $2
    """,
    WebhookRow,
)
BY_ID = "select id from webhooks where tenant_id = $1 and id = $2"
PAGE = Statement(
    """
    select id, name, source, auth, params, event_key, scope, filter, static_payload, response, body_bytes, rate, burst, repeat_ms,
           created_at, updated_at
    from webhooks
    where tenant_id = $1 and name > $2 and ($3::text[] is null or name = any($3)) and ($4::text[] is null or source = any($4))
    order by name limit $5
    """,
    WebhookRow,
)
SECRETS = Statement(
    """
    select webhook_id, number, sealed, captured, created_at, not_after, last_used_at from webhook_secrets
    where tenant_id = $1 and ($2::text is null or webhook_id = $2) order by webhook_id, number desc
    """,
    WebhookSecretRow,
)
INSERT = """
    insert into webhooks (tenant_id, id, name, source, auth, params, event_key, scope, filter, static_payload, response, body_bytes,
                          rate, burst, repeat_ms, created_at, updated_at)
    values ($1, $2, $3, $4, $5::jsonb, $6::jsonb, $7, $8, $9, $10::jsonb, $11::jsonb, $12, $13, $14, $15, $16, $17)
    on conflict (tenant_id, name) do nothing returning id
"""
UPDATE = """
    update webhooks set params = $3::jsonb, event_key = $4, scope = $5, filter = $6, static_payload = $7::jsonb, response = $8::jsonb,
                        body_bytes = $9, rate = $10, burst = $11, repeat_ms = $12, updated_at = $13
    where tenant_id = $1 and id = $2 returning id
"""
DELETE = "delete from webhooks where tenant_id = $1 and id = $2 returning id"
ADD_SECRET = """
    with numbered as (
        update webhooks set secrets_made = secrets_made + 1 where tenant_id = $1 and id = $2 returning secrets_made
    )
    insert into webhook_secrets (tenant_id, webhook_id, number, sealed, captured, created_at)
    select $1, $2, secrets_made, $3, $4, $5 from numbered
    returning number
"""
END_SECRETS = """
    update webhook_secrets set not_after = $4
    where tenant_id = $1 and webhook_id = $2 and number <> $3 and (not_after is null or not_after > $4) returning number
"""
REMOVE_SECRET = "delete from webhook_secrets where tenant_id = $1 and webhook_id = $2 and number = $3 returning number"
DROP_ENDED = "delete from webhook_secrets where tenant_id = $1 and webhook_id = $2 and not_after <= $3"
USED = """
    update webhook_secrets s set last_used_at = greatest(s.last_used_at, g.at)
    from unnest($1::int[], $2::text[], $3::int[], $4::timestamptz[]) as g (tenant_id, webhook_id, number, at)
    where s.tenant_id = g.tenant_id and s.webhook_id = g.webhook_id and s.number = g.number
"""


async def versions(db: Database) -> dict[int, int]:
    """Every tenant's version."""
    return {row.tenant_id: row.version for row in VERSIONS.read(await db.fetch(VERSIONS.sql))}


async def lock(conn: Connection, tenant_id: int) -> None:
    """Take the lock of a tenant's webhooks for this transaction and raise their version."""
    await conn.execute(LOCK, tenant_id)


async def webhooks(db: Database | Connection, tenant_id: int) -> list[WebhookRow]:
    """All of a tenant's, by name."""
    return WEBHOOKS.read(await db.fetch(WEBHOOKS.sql, tenant_id))


async def webhook(db: Database | Connection, tenant_id: int, name: str) -> WebhookRow | None:
    """One by its name."""
    return WEBHOOK.first(await db.fetch(WEBHOOK.sql, tenant_id, name))


async def by_id(conn: Connection, tenant_id: int, webhook_id: str) -> str | None:
    """The id of a webhook that is there."""
    found: str | None = await conn.fetchval(BY_ID, tenant_id, webhook_id)
    return found


async def page(
    db: Database, tenant_id: int, after: str, names: Sequence[str] | None, sources: Sequence[str] | None, limit: int
) -> list[WebhookRow]:
    """Those behind the name `after`, of these names and sources where given."""
    wanted = list(names) if names is not None else None
    return PAGE.read(await db.fetch(PAGE.sql, tenant_id, after, wanted, list(sources) if sources is not None else None, limit))


async def secrets(db: Database | Connection, tenant_id: int, webhook_id: str | None = None) -> list[WebhookSecretRow]:
    """Secrets of a webhook, or of all of a tenant's, newest first; ended ones included until they are dropped."""
    return SECRETS.read(await db.fetch(SECRETS.sql, tenant_id, webhook_id))


async def insert(conn: Connection, tenant_id: int, row: WebhookRow) -> bool:
    """Write a new webhook; False when the name is taken."""
    found = await conn.fetchval(
        INSERT, tenant_id, row.id, row.name, row.source, row.auth, row.params, row.event_key, row.scope, row.filter, row.static_payload,
        row.response, row.body_bytes, row.rate, row.burst, row.repeat_ms, row.created_at, row.updated_at,
    )  # fmt: skip
    return found is not None


async def update(conn: Connection, tenant_id: int, row: WebhookRow) -> bool:
    """Write what may change of a webhook; False when it is gone."""
    found = await conn.fetchval(
        UPDATE, tenant_id, row.id, row.params, row.event_key, row.scope, row.filter, row.static_payload, row.response, row.body_bytes,
        row.rate, row.burst, row.repeat_ms, row.updated_at,
    )  # fmt: skip
    return found is not None


async def delete(conn: Connection, tenant_id: int, webhook_id: str) -> bool:
    """Remove a webhook with its secrets; its deliveries stay. False when it was gone."""
    return await conn.fetchval(DELETE, tenant_id, webhook_id) is not None


async def add_secret(conn: Connection, tenant_id: int, webhook_id: str, sealed: bytes, captured: bool, now: datetime) -> int:
    """Add a secret to a webhook that is there; answers its number, which no other secret of it ever had."""
    return int(await conn.fetchval(ADD_SECRET, tenant_id, webhook_id, sealed, captured, now))


async def end_secrets(conn: Connection, tenant_id: int, webhook_id: str, but: int, until: datetime, now: datetime) -> None:
    """Let every secret but one end at `until` at the latest, and forget those that have ended."""
    await conn.execute(END_SECRETS, tenant_id, webhook_id, but, until)
    await conn.execute(DROP_ENDED, tenant_id, webhook_id, now)


async def remove_secret(conn: Connection, tenant_id: int, webhook_id: str, number: int) -> bool:
    """Forget a secret now; False when there is none of this number."""
    return await conn.fetchval(REMOVE_SECRET, tenant_id, webhook_id, number) is not None


async def note_uses(db: Database, uses: Sequence[SecretUse]) -> None:
    """Remember when secrets were last used."""
    await db.execute(USED, [u.tenant_id for u in uses], [u.webhook_id for u in uses], [u.number for u in uses], [u.at for u in uses])
