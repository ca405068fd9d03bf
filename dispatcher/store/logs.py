"""Log lines: written as sets in an order every reader can rely on, and read a run at a time or newest first over a whole tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import PLAN_FOR_VALUES, ended_after
from dispatcher.store.statement import Statement

ALARMING = frozenset({"warning", "error", "critical"})
"""Levels that have an index of their own."""


@dataclass(slots=True)
class NewLine:
    """A log line of an attempt; `at` is when the handler says it was written."""

    tenant_id: int
    run_id: str
    node: int
    attempt: int
    at: datetime
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Line:
    """A log line as it is read."""

    seq: int
    run_id: str
    node: int
    attempt: int
    at: datetime
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """The last line a page has looked at, and how many it has."""

    seq: int | None
    lines: int


@dataclass(frozen=True, slots=True)
class ScannedTenant:
    """The last line a page of a tenant's has looked at, and how many it has."""

    at: datetime | None
    seq: int | None
    lines: int


@dataclass(frozen=True, slots=True)
class LineFilter:
    """Which lines a list is asked for. `search` is a text they hold, whatever its case."""

    levels: Sequence[str] | None = None
    search: str | None = None
    node: int | None = None
    attempt: int | None = None
    since: datetime | None = None
    until: datetime | None = None


EVERY_LINE = LineFilter()

# The numbers of one run's lines become visible in their order, because whoever writes to it holds the lock of its bucket from before the
# number is given out until the commit. Otherwise a reader that goes on behind a number could miss one that commits later.
APPEND = """
    with locked as materialized (
        select pg_advisory_xact_lock(7240157, bucket) from (
            select distinct hashtext(run_id) & 63 as bucket from unnest($2::text[]) as g (run_id) order by bucket) buckets
    )
    insert into logs (tenant_id, run_id, node, attempt, at, level, message)
    select g.* from (select count(*) from locked) held
    cross join unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::timestamptz[], $6::text[], $7::text[]) as g
"""
LINES = Statement(
    """
    with looked_at as materialized (
        select seq, run_id, node, attempt, at, level, message from logs
        where tenant_id = $1 and run_id = $2 and seq > $3 and at >= $4 order by seq limit $5
    )
    select seq, run_id, node, attempt, at, level, message from looked_at
    where ($7::text[] is null or level = any($7)) and ($8::text is null or strpos(lower(message), lower($8)) > 0)
      and ($9::smallint is null or node = $9) and ($10::int is null or attempt = $10)
      and ($11::timestamptz is null or at >= $11) and ($12::timestamptz is null or at < $12)
    order by seq limit $6
    """,
    Line,
)
LOOKED_AT = Statement(
    """
    select max(seq) as seq, count(*) as lines from (
        select seq from logs where tenant_id = $1 and run_id = $2 and seq > $3 and at >= $4 order by seq limit $5) looked_at
    """,
    Scanned,
)
# By time and not by number, so that lines from long ago are found without going through all since. The condition on alarming levels is
# spelled as in its index; the plan is made for the values, so what is not asked for folds away.
TENANT_LINES = Statement(
    """
    with looked_at as materialized (
        select seq, run_id, node, attempt, at, level, message from logs
        where tenant_id = $1 and ($2::timestamptz is null or (at, seq) < ($2, $10::bigint)) and ($3::timestamptz is null or at >= $3)
          and ($4::timestamptz is null or at < $4) and (not $8 or level in ('warning', 'error', 'critical'))
        order by at desc, seq desc limit $5
    )
    select seq, run_id, node, attempt, at, level, message from looked_at
    where ($7::text[] is null or level = any($7)) and ($9::text is null or strpos(lower(message), lower($9)) > 0)
    order by at desc, seq desc limit $6
    """,
    Line,
)
TENANT_LOOKED_AT = Statement(
    """
    select (array_agg(at order by at, seq))[1] as at, (array_agg(seq order by at, seq))[1] as seq, count(*) as lines from (
        select at, seq from logs
        where tenant_id = $1 and ($2::timestamptz is null or (at, seq) < ($2, $7::bigint)) and ($3::timestamptz is null or at >= $3)
          and ($4::timestamptz is null or at < $4) and (not $6 or level in ('warning', 'error', 'critical'))
        order by at desc, seq desc limit $5) looked_at
    """,
    ScannedTenant,
)


ONE_SNAPSHOT = "set transaction isolation level repeatable read"


async def append(db: Database | Connection, lines: Sequence[NewLine]) -> None:
    """Write log lines in this order."""
    if not lines:
        return
    await db.execute(
        APPEND,
        [line.tenant_id for line in lines],
        [line.run_id for line in lines],
        [line.node for line in lines],
        [line.attempt for line in lines],
        [line.at for line in lines],
        [line.level for line in lines],
        [line.message for line in lines],
    )


@dataclass(frozen=True, slots=True)
class LinePage:
    """Lines found. `position` is the last number looked at, to go on behind; `more` says whether there may be others."""

    lines: list[Line]
    position: int | None
    more: bool


async def lines(
    db: Database, tenant_id: int, run_id: str, wanted: LineFilter, after: int, limit: int, most: int, floor: datetime | None = None
) -> LinePage:
    """Lines of a run behind number `after`, in the order they were written, at most `limit` out of the next `most`.

    `floor` hides what was written before it.
    """
    since = ended_after(run_id)
    if since is None:
        return LinePage([], None, False)
    place = (tenant_id, run_id, after, max(since, floor) if floor is not None else since)
    choice = (wanted.levels, wanted.search, wanted.node, wanted.attempt, wanted.since, wanted.until)
    # Where all are wanted the last found says how far this has looked. Else that is settled first, and no line written since is looked at.
    scanned = LOOKED_AT.read(await db.fetch(LOOKED_AT.sql, *place, most))[0] if wanted != EVERY_LINE else None
    found = LINES.read(await db.fetch(LINES.sql, *place, most if scanned is None else scanned.lines, limit + 1, *choice))
    if len(found) > limit:
        return LinePage(found[:limit], found[limit - 1].seq, True)
    if scanned is None:
        return LinePage(found, found[-1].seq if found else None, len(found) >= most)
    return LinePage(found, scanned.seq, scanned.lines >= most)


Moment = tuple[datetime, int]
"""Where a line stands among all of a tenant: when it was written, and its number."""


@dataclass(frozen=True, slots=True)
class TenantPage:
    """Lines found of a tenant. `position` is where the last of those looked at stands; `more` says whether there may be others."""

    lines: list[Line]
    position: Moment | None
    more: bool


async def tenant_lines(db: Database, tenant_id: int, wanted: LineFilter, before: Moment | None, limit: int, most: int) -> TenantPage:
    """Lines of a tenant, latest first, all before `before` where that is given, at most `limit` out of the next `most`."""
    alarming = wanted.levels is not None and ALARMING.issuperset(wanted.levels)
    at, seq = before or (None, None)
    place = (tenant_id, at, wanted.since, wanted.until, most)
    async with db.transaction() as conn:
        await conn.execute(ONE_SNAPSHOT)  # what is looked at and what is found are of one moment
        await conn.execute(PLAN_FOR_VALUES)
        found = TENANT_LINES.read(await conn.fetch(TENANT_LINES.sql, *place, limit + 1, wanted.levels, alarming, wanted.search, seq))
        if len(found) > limit:
            return TenantPage(found[:limit], (found[limit - 1].at, found[limit - 1].seq), True)
        scanned = TENANT_LOOKED_AT.read(await conn.fetch(TENANT_LOOKED_AT.sql, *place, alarming, seq))[0]
    position = (scanned.at, scanned.seq) if scanned.at is not None and scanned.seq is not None else None
    return TenantPage(found, position, scanned.lines >= most)
