"""Filters of events: those that workflows declare and those made by hand, and what became of evaluating them.

Every change raises the tenant's registry version in its transaction, as those of workflows do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher import ids
from dispatcher.store.database import Connection, Database
from dispatcher.store.statement import Statement

_SKEW = timedelta(hours=1)  # as of runs: how far the clocks of two dispatchers may differ


@dataclass(frozen=True, slots=True)
class FilterRow:
    """A filter. `payload` is JSON text; `declared` says that it came with its workflow."""

    id: str
    workflow_id: int
    workflow: str
    scope: str
    expression: str
    payload: str | None
    declared: bool
    created_at: datetime
    updated_at: datetime


@dataclass(slots=True)
class NewFilter:
    """A filter as it shall be."""

    id: str
    workflow_id: int
    scope: str
    expression: str
    payload: str | None

    @property
    def digest(self) -> bytes:
        """What no two filters of a workflow have in common."""
        return hashlib.sha256(json.dumps([self.scope, self.expression, self.payload]).encode()).digest()


@dataclass(slots=True)
class NewFailure:
    """A filter that could not be evaluated on an event; `number` counts those of the event."""

    tenant_id: int
    event_id: str
    number: int
    workflow: str
    filter_id: str
    scope: str
    expression: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class FailureRow:
    """The same as it is shown."""

    workflow: str
    filter_id: str
    scope: str
    expression: str
    code: str
    message: str


FILTERS = Statement(
    """
    select f.id, f.workflow_id, w.name as workflow, f.scope, f.expression, f.payload, f.declared, f.created_at, f.updated_at
    from filters f join workflows w on w.tenant_id = f.tenant_id and w.id = f.workflow_id
    where f.tenant_id = $1 order by f.id
    """,
    FilterRow,
)
PAGE = Statement(
    """
    select f.id, f.workflow_id, w.name as workflow, f.scope, f.expression, f.payload, f.declared, f.created_at, f.updated_at
    from filters f join workflows w on w.tenant_id = f.tenant_id and w.id = f.workflow_id
    where f.tenant_id = $1 and f.id > $2 and ($3::text[] is null or w.name = any($3)) and ($4::text[] is null or f.scope = any($4))
    order by f.id limit $5
    """,
    FilterRow,
)
FILTER = Statement(
    """
    select f.id, f.workflow_id, w.name as workflow, f.scope, f.expression, f.payload, f.declared, f.created_at, f.updated_at
    from filters f join workflows w on w.tenant_id = f.tenant_id and w.id = f.workflow_id
    where f.tenant_id = $1 and f.id = $2
    """,
    FilterRow,
)
COUNT = "select count(*) from filters where tenant_id = $1"
ADD = """
    insert into filters (tenant_id, id, workflow_id, scope, expression, payload, digest, declared, created_at, updated_at)
    values ($1, $2, $3, $4, $5, $6, $7, false, $8, $8) on conflict (tenant_id, workflow_id, digest) do nothing returning id
"""
CHANGE = """
    update filters set scope = $3, expression = $4, payload = $5, digest = $6, updated_at = $7
    where tenant_id = $1 and id = $2 and not exists (
        select from filters o where o.tenant_id = $1 and o.workflow_id = filters.workflow_id and o.digest = $6 and o.id <> $2)
    returning id
"""
DELETE = "delete from filters where tenant_id = $1 and id = $2 returning id"
# One that was declared before keeps its id and its age; one made by hand that is the same stays what it was.
DECLARE = """
    with given as (
        select * from unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[]) as g (id, scope, expression, payload, digest)
    ), gone as (
        delete from filters f where f.tenant_id = $1 and f.workflow_id = $2 and f.declared and f.digest not in (select digest from given)
    )
    insert into filters (tenant_id, id, workflow_id, scope, expression, payload, digest, declared, created_at, updated_at)
    select $1, id, $2, scope, expression, payload, digest, true, $8, $8 from given
    on conflict (tenant_id, workflow_id, digest) do nothing
"""
ADD_FAILURES = """
    insert into filter_failures (tenant_id, event_id, number, workflow, filter_id, scope, expression, code, message, created_at)
    select *, $10 from unnest($1::int[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
"""
FAILURES = Statement(
    """
    select workflow, filter_id, scope, expression, code, message from filter_failures
    where tenant_id = $1 and event_id = $2 and created_at >= $3 and created_at < $4 order by number
    """,
    FailureRow,
)


async def every(db: Database, tenant_id: int) -> list[FilterRow]:
    """All filters of a tenant, in the order they are asked in."""
    return FILTERS.read(await db.fetch(FILTERS.sql, tenant_id))


async def page(
    db: Database, tenant_id: int, after: str, workflows: Sequence[str] | None, scopes: Sequence[str] | None, limit: int
) -> list[FilterRow]:
    """Filters of these workflows and scopes, the oldest first, behind the id `after`."""
    return PAGE.read(await db.fetch(PAGE.sql, tenant_id, after, workflows, scopes, limit))


async def get(db: Database | Connection, tenant_id: int, filter_id: str) -> FilterRow | None:
    """A filter, or None where there is none of this id."""
    return FILTER.first(await db.fetch(FILTER.sql, tenant_id, filter_id))


async def count(conn: Connection, tenant_id: int) -> int:
    """How many filters a tenant has."""
    return int(await conn.fetchval(COUNT, tenant_id))


async def add(conn: Connection, tenant_id: int, new: NewFilter, now: datetime) -> bool:
    """Make a filter; False where there is the same already."""
    row = (new.workflow_id, new.scope, new.expression, new.payload, new.digest)
    return await conn.fetchval(ADD, tenant_id, new.id, *row, now) is not None


async def change(conn: Connection, tenant_id: int, new: NewFilter, now: datetime) -> bool:
    """Change a filter; False where it would become the same as another."""
    return await conn.fetchval(CHANGE, tenant_id, new.id, new.scope, new.expression, new.payload, new.digest, now) is not None


async def delete(conn: Connection, tenant_id: int, filter_id: str) -> bool:
    """Remove a filter; False where there is none."""
    return await conn.fetchval(DELETE, tenant_id, filter_id) is not None


async def declare(conn: Connection, tenant_id: int, workflow_id: int, declared: Sequence[NewFilter], now: datetime) -> None:
    """Let a workflow declare exactly these. Those made by hand stay."""
    await conn.execute(
        DECLARE,
        tenant_id,
        workflow_id,
        [f.id for f in declared],
        [f.scope for f in declared],
        [f.expression for f in declared],
        [f.payload for f in declared],
        [f.digest for f in declared],
        now,
    )


async def add_failures(conn: Connection, failures: Sequence[NewFailure], now: datetime) -> None:
    """Keep what went wrong with events that are written in the same transaction."""
    await conn.execute(
        ADD_FAILURES,
        [f.tenant_id for f in failures],
        [f.event_id for f in failures],
        [f.number for f in failures],
        [f.workflow for f in failures],
        [f.filter_id for f in failures],
        [f.scope for f in failures],
        [f.expression for f in failures],
        [f.code for f in failures],
        [f.message for f in failures],
        now,
    )


async def failures_of(db: Database, tenant_id: int, event_id: str) -> list[FailureRow]:
    """The filters that could not be evaluated on an event."""
    made = ids.created_at(event_id)
    if made is None:
        return []
    return FAILURES.read(await db.fetch(FAILURES.sql, tenant_id, event_id, made - _SKEW, made + _SKEW))
