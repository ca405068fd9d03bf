"""Tenants' ed25519 signing keys, sealed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key: published from `created_at`, signs from `active_from`, gone after `expires_at`."""

    kid: str
    seed_sealed: bytes
    public_key: str
    created_at: datetime
    active_from: datetime
    expires_at: datetime | None


KEYS = Statement(
    """
    select kid, seed_sealed, public_key, created_at, active_from, expires_at from signing_keys
    where tenant_id = $1 and (expires_at is null or expires_at > $2) order by active_from desc, kid
    """,
    SigningKey,
)
ADD_KEY = """
    insert into signing_keys (tenant_id, kid, seed_sealed, public_key, created_at, active_from)
    select $1, $2, $3, $4, $5, $5 where not exists (select from signing_keys where tenant_id = $1)
    on conflict do nothing
"""


async def signing_keys(db: Database, tenant_id: int, now: datetime) -> list[SigningKey]:
    """Keys that are published now, the newest first."""
    return KEYS.read(await db.fetch(KEYS.sql, tenant_id, now))


async def add_first_key(db: Database, tenant_id: int, kid: str, seed_sealed: bytes, public_key: str, now: datetime) -> None:
    """Give a tenant its first key, unless it has one."""
    await db.execute(ADD_KEY, tenant_id, kid, seed_sealed, public_key, now)
