"""Who did what: one row for each change made by hand, written in the transaction that makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change. `actor` is the id of a token, None for the developer on this machine; `details` is JSON text."""

    id: str
    at: datetime
    actor: str | None
    action: str
    target: str
    details: str


ADD = """
    insert into audit (tenant_id, id, at, actor, action, target, details) values ($1, $2, $3, $4, $5, $6, $7::jsonb)
"""
PAGE = Statement(
    """
    select id, at, actor, action, target, details from audit
    where tenant_id = $1 and ($2::text is null or id < $2) and ($3::text is null or action = $3)
      and ($4::timestamptz is null or at >= $4) and ($5::timestamptz is null or at < $5)
    order by id desc limit $6
    """,
    AuditRow,
)


async def add(
    conn: Connection, tenant_id: int, id: str, at: datetime, actor: str | None, action: str, target: str, details: Mapping[str, Any]
) -> None:
    """Note a change: `action` is `thing.verb`, `target` what it was done to."""
    await conn.execute(ADD, tenant_id, id, at, actor, action, target, json.dumps(details))


async def page(
    db: Database, tenant_id: int, before: str | None, action: str | None, since: datetime | None, until: datetime | None, limit: int
) -> list[AuditRow]:
    """Changes that match, the latest first, older than the id `before`."""
    return PAGE.read(await db.fetch(PAGE.sql, tenant_id, before, action, since, until, limit))
