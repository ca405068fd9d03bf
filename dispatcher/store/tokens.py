"""API tokens: their hashes, what they may do and until when. The secrets themselves are nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from dispatcher.store.database import Database
from dispatcher.store.statement import Statement

USE_RESOLUTION: Final = timedelta(hours=1)
"""How coarse `last_used_at` is: a token in constant use is written this often."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as it is checked; `tenant` is the slug."""

    tenant_id: int
    tenant: str
    public_id: str
    secret_hash: bytes
    scopes: list[str]
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class TokenSummary:
    """A token as it is listed."""

    public_id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


FIND = Statement(
    """
    select t.tenant_id, n.slug as tenant, t.public_id, t.secret_hash, t.scopes, t.expires_at, t.revoked_at, t.last_used_at
    from tokens t join tenants n on n.id = t.tenant_id where t.public_id = $1
    """,
    TokenRow,
)
LIST = Statement(
    """
    select public_id, name, scopes, created_at, expires_at, revoked_at, last_used_at
    from tokens where tenant_id = $1 and public_id > $2 order by public_id limit $3
    """,
    TokenSummary,
)
CREATE = """
    insert into tokens (tenant_id, public_id, secret_hash, name, scopes, created_at, expires_at) values ($1, $2, $3, $4, $5, $6, $7)
"""
REVOKE = """
    update tokens set revoked_at = coalesce(revoked_at, $3) where tenant_id = $1 and public_id = $2 returning public_id
"""
USED = """
    update tokens set last_used_at = $2 where public_id = any($1::text[]) and (last_used_at is null or last_used_at < $3)
"""


async def find(db: Database, public_id: str) -> TokenRow | None:
    """A token of any tenant, revoked and expired ones included, by the part of it that is no secret."""
    return FIND.first(await db.fetch(FIND.sql, public_id))


async def create(
    db: Database,
    tenant_id: int,
    public_id: str,
    secret_hash: bytes,
    name: str,
    scopes: Sequence[str],
    now: datetime,
    expires: datetime | None,
) -> None:
    """Write a new token."""
    await db.execute(CREATE, tenant_id, public_id, secret_hash, name, list(scopes), now, expires)


async def page(db: Database, tenant_id: int, after: str, limit: int) -> list[TokenSummary]:
    """A tenant's tokens in the order of their public ids, behind `after`."""
    return LIST.read(await db.fetch(LIST.sql, tenant_id, after, limit))


async def revoke(db: Database, tenant_id: int, public_id: str, now: datetime) -> bool:
    """End a token; False where the tenant has none of this id. Revoking twice keeps the first time."""
    return bool(await db.fetch(REVOKE, tenant_id, public_id, now))


async def used(db: Database, public_ids: Sequence[str], now: datetime) -> None:
    """Remember that tokens were used, at the resolution above."""
    await db.execute(USED, list(public_ids), now, now - USE_RESOLUTION)
