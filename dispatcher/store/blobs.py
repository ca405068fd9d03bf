"""Values kept by their hash while they travel. Whoever names one in a message notes it as used; what nobody has for long goes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.engine.references import Reference
from dispatcher.store.database import Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Body:
    """The text of a value."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """Whether a value is new here."""

    created: bool


USE = "update blobs set used_at = greatest(used_at, $3) where tenant_id = $1 and sha256 = $2"
PUT = Statement(
    """
    insert into blobs as b (tenant_id, sha256, size, body, used_at) values ($1, $2, octet_length($3::bytea), $3, $4)
    on conflict (tenant_id, sha256) do update set used_at = greatest(b.used_at, excluded.used_at) returning b.xmax = 0 as created
    """,
    Kept,
)
GET = Statement("select body from blobs where tenant_id = $1 and sha256 = $2 and size = $3", Body)
ANY_SIZE = Statement("select body from blobs where tenant_id = $1 and sha256 = $2", Body)
PRUNE = """
    delete from blobs b using (select tenant_id, sha256 from blobs where used_at < $1 order by used_at limit $2 for update skip locked) o
    where b.tenant_id = o.tenant_id and b.sha256 = o.sha256
"""


async def put(db: Database, tenant_id: int, reference: Reference, body: bytes, now: datetime) -> bool:
    """Keep a value, from now on; whether it is new. One that is there already is not sent again."""
    digest = bytes.fromhex(reference.sha256)
    if (await db.execute(USE, tenant_id, digest, now)).endswith(" 1"):
        return False
    kept = PUT.first(await db.fetch(PUT.sql, tenant_id, digest, body, now))
    return kept is not None and kept.created


async def get(db: Database, tenant_id: int, sha256: str, size: int | None = None) -> bytes | None:
    """A tenant's value, of this size where one is named; None where there is none."""
    digest = bytes.fromhex(sha256)
    if size is None:
        row = ANY_SIZE.first(await db.fetch(ANY_SIZE.sql, tenant_id, digest))
    else:
        row = GET.first(await db.fetch(GET.sql, tenant_id, digest, size))
    return row.body if row is not None else None


async def prune(db: Database, before: datetime, limit: int) -> int:
    """Delete up to `limit` values nobody has used since; answers how many."""
    return int((await db.execute(PRUNE, before, limit)).split()[-1])
