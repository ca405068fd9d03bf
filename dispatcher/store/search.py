"""Bodies to search, and the segments that say where a word can be found.

A segment stands for a few hundred consecutive rows of a tenant, by their ids, and holds the words of all their bodies as numbers. An
index is the stretch of ids its segments cover without a gap; what lies outside is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from dispatcher import ids
from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import CLOCK_SKEW
from dispatcher.store.statement import Statement

Kind = Literal["run", "event"]


@dataclass(frozen=True, slots=True)
class Index:
    """From which id on (included) up to which (not included) segments cover a tenant's rows; `complete`: there are none before."""

    tenant_id: int
    kind: str
    lower_id: str
    upper_id: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """Ids from `lower_id` to before `upper_id`."""

    lower_id: str
    upper_id: str


@dataclass(frozen=True, slots=True)
class Bodies:
    """What can be searched of a run or event, as JSON texts; nothing of one that is not `wanted`."""

    id: str
    wanted: bool
    first: bytes | None
    metadata: str | None
    rest: list[bytes] | None
    errors: list[str] | None
    live: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are worth reading the bodies of. `workflows` are ids, `statuses` final ones, `metadata` is a jsonpath predicate."""

    workflows: Sequence[int] | None = None
    statuses: Sequence[str] | None = None
    metadata: str | None = None
    type: str | None = None


EVERYTHING = Choice()
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Id:
    """An id."""

    id: str


INDEX = Statement("select tenant_id, kind, lower_id, upper_id, complete from search_indexes where tenant_id = $1 and kind = $2", Index)
WANT = """
    insert into search_indexes (tenant_id, kind, lower_id, upper_id, wanted_at) values ($1, $2, $3, $3, $4)
    on conflict (tenant_id, kind) do update set wanted_at = excluded.wanted_at where search_indexes.wanted_at < $5
"""
WANTED = Statement("select tenant_id, kind, lower_id, upper_id, complete from search_indexes where wanted_at >= $1", Index)
UNWANTED = """
    with old as (delete from search_indexes where wanted_at < $1 returning tenant_id, kind)
    delete from search_segments s using old where s.tenant_id = old.tenant_id and s.kind = old.kind
"""
LOCKED = Statement(
    """
    select tenant_id, kind, lower_id, upper_id, complete from search_indexes where tenant_id = $1 and kind = $2 for update skip locked
    """,
    Index,
)
# A segment is read when it has all the words, when it has too many words to know them, or when a run of it has ended since it was made.
# Those with the words are found by the words alone and all of them, before the first are taken: whoever went through segments in order
# would read the words of each, which is most of what there is. The numbers of words are a tenant's own.
SEGMENTS = Statement(
    """
    with holding as materialized (
        select tenant_id, kind, lower_id, upper_id from search_segments where $4::int[] <> '{}' and words @> $4
    )
    select lower_id, upper_id from (
        (select lower_id, upper_id from holding
         where tenant_id = $1 and kind = $2 and lower_id < $3 order by lower_id desc limit $5)
        union
        (select lower_id, upper_id from search_segments
         where $4::int[] = '{}' and tenant_id = $1 and kind = $2 and lower_id < $3 order by lower_id desc limit $5)
        union
        (select lower_id, upper_id from search_segments
         where tenant_id = $1 and kind = $2 and lower_id < $3 and dense order by lower_id desc limit $5)
        union
        (select lower_id, upper_id from search_segments s
         where tenant_id = $1 and kind = $2 and lower_id < $3 and pending <> '{}'
           and exists (select from unnest(s.pending) p where not exists (select from runs r where r.tenant_id = $1 and r.id = p))
         order by lower_id desc limit $5)
    ) found order by lower_id desc limit $5
    """,
    Segment,
)
OUTDATED = Statement(
    """
    select lower_id, upper_id from search_segments s
    where tenant_id = $1 and kind = $2 and pending <> '{}'
      and exists (select from unnest(s.pending) p where not exists (select from runs r where r.tenant_id = $1 and r.id = p))
    order by lower_id limit $3
    """,
    Segment,
)
RUN_IDS_UP = Statement(
    """
    select id from (
        (select id from runs where tenant_id = $1 and id >= $2 and id < $3 order by id limit $4)
        union all
        (select id from run_history where tenant_id = $1 and id >= $2 and id < $3 order by id limit $4)) both_places
    order by id limit $4
    """,
    Id,
)
RUN_IDS_DOWN = Statement(
    """
    select id from (
        (select id from runs where tenant_id = $1 and id >= $2 and id < $3 order by id desc limit $4)
        union all
        (select id from run_history where tenant_id = $1 and id >= $2 and id < $3 order by id desc limit $4)) both_places
    order by id desc limit $4
    """,
    Id,
)
EVENT_IDS_UP = Statement("select id from events where tenant_id = $1 and id >= $2 and id < $3 order by id limit $4", Id)
EVENT_IDS_DOWN = Statement("select id from events where tenant_id = $1 and id >= $2 and id < $3 order by id desc limit $4", Id)
# Latest first: at most $4 rows, wanted or not, and no more than $9 bytes together, but always one. Outputs are looked for between the
# beginning and the end of their run, which leaves one or two partitions.
RUN_RANGE = Statement(
    """
    with looked_at as materialized (
        (select id, workflow_id, null::text as status, input, metadata, created_at, null::timestamptz as finished_at
         from runs where tenant_id = $1 and id >= $2 and id < $3 order by id desc limit $4)
        union all
        (select id, workflow_id, status, input, metadata, created_at, finished_at
         from run_history where tenant_id = $1 and id >= $2 and id < $3 and finished_at >= $5 order by id desc limit $4)
        order by id desc limit $4
    ), chosen as (
        select *, ($6::int[] is null or workflow_id = any($6)) and (status is null or $7::text[] is null or status = any($7))
                  and ($8::jsonpath is null or metadata @@ $8) as wanted
        from looked_at
    ), whole as (
        select c.id, coalesce(c.wanted, false) as wanted, case when c.wanted then c.input end as first,
               case when c.wanted then c.metadata end as metadata, t.rest, t.errors, c.status is null as live,
               coalesce(octet_length(c.input), 0) + coalesce(t.size, 0) as size
        from chosen c left join lateral (
            select array_agg(output) filter (where output is not null) as rest,
                   array_agg(error::text) filter (where error is not null) as errors, sum(octet_length(output)) as size
            from task_history where c.wanted and tenant_id = $1 and run_id = c.id
                 and finished_at >= c.created_at - interval '1 hour' and finished_at <= c.finished_at
        ) t on true
    ), measured as (
        select *, sum(case when wanted then size else 0 end) over behind as bytes, row_number() over behind as number
        from whole window behind as (order by id desc)
    )
    select id, wanted, first, metadata, rest, errors, live from measured where bytes <= $9 or number = 1 order by id desc
    """,
    Bodies,
)
EVENT_RANGE = Statement(
    """
    with looked_at as materialized (
        select id, type, data, metadata from events
        where tenant_id = $1 and id >= $2 and id < $3 and created_at >= $5 order by id desc limit $4
    ), chosen as (
        select *, ($6::text is null or type = $6) and ($7::jsonpath is null or metadata @@ $7) as wanted from looked_at
    ), measured as (
        select *, sum(case when wanted then octet_length(data) else 0 end) over behind as bytes, row_number() over behind as number
        from chosen window behind as (order by id desc)
    )
    select id, coalesce(wanted, false) as wanted, case when wanted then data end as first, case when wanted then metadata end as metadata,
           array[convert_to(to_json(type)::text, 'UTF8')] as rest, null::text[] as errors, false as live
    from measured where bytes <= $8 or number = 1 order by id desc
    """,
    Bodies,
)
ADD = """
    insert into search_segments (tenant_id, kind, lower_id, upper_id, words, pending, dense) values ($1, $2, $3, $4, $5, $6, $7)
    on conflict (tenant_id, kind, lower_id) do update set words = excluded.words, pending = excluded.pending, dense = excluded.dense
"""
GROW = """
    update search_indexes set lower_id = $3, upper_id = $4, complete = $5 where tenant_id = $1 and kind = $2
"""
PRUNE = "delete from search_segments where upper_id < case kind when 'run' then $1 else $2 end"


async def index(db: Database, tenant_id: int, kind: Kind) -> Index | None:
    """How far a tenant's segments reach, None where there are none."""
    return INDEX.first(await db.fetch(INDEX.sql, tenant_id, kind))


async def want(db: Database, tenant_id: int, kind: Kind, begin: str, now: datetime, stale: datetime) -> None:
    """Note that a tenant searches: its segments are made from id `begin` on, in both directions."""
    await db.execute(WANT, tenant_id, kind, begin, now, stale)


async def wanted(db: Database, since: datetime) -> list[Index]:
    """The indexes of those who have searched since."""
    return WANTED.read(await db.fetch(WANTED.sql, since))


async def forget(db: Database, before: datetime, lowest: dict[Kind, str]) -> None:
    """Drop the indexes of those who have not searched since `before`, and segments of ids below the `lowest` still kept."""
    await db.execute(UNWANTED, before)
    await db.execute(PRUNE, lowest["run"], lowest["event"])


async def locked(conn: Connection, tenant_id: int, kind: Kind) -> Index | None:
    """An index, for this transaction alone; None while another process works on it."""
    return LOCKED.first(await conn.fetch(LOCKED.sql, tenant_id, kind))


async def segments(db: Database, tenant_id: int, kind: Kind, before: str, words: Sequence[int], limit: int) -> list[Segment]:
    """Segments that begin before an id and may hold rows with all these words, latest first."""
    return SEGMENTS.read(await db.fetch(SEGMENTS.sql, tenant_id, kind, before, words, limit))


async def outdated(conn: Connection, tenant_id: int, kind: Kind, limit: int) -> list[Segment]:
    """Segments some runs of which have ended since they were made."""
    return OUTDATED.read(await conn.fetch(OUTDATED.sql, tenant_id, kind, limit))


async def ids_up(conn: Connection, tenant_id: int, kind: Kind, lower: str, upper: str, limit: int) -> list[str]:
    """The first ids from `lower` on and below `upper`, rising."""
    statement = RUN_IDS_UP if kind == "run" else EVENT_IDS_UP
    return [row.id for row in statement.read(await conn.fetch(statement.sql, tenant_id, lower, upper, limit))]


async def ids_down(conn: Connection, tenant_id: int, kind: Kind, lower: str, upper: str, limit: int) -> list[str]:
    """The last ids from `lower` on and below `upper`, falling."""
    statement = RUN_IDS_DOWN if kind == "run" else EVENT_IDS_DOWN
    return [row.id for row in statement.read(await conn.fetch(statement.sql, tenant_id, lower, upper, limit))]


async def bodies(
    db: Database | Connection, tenant_id: int, kind: Kind, lower: str, upper: str, limit: int, most_bytes: int, choice: Choice = EVERYTHING
) -> list[Bodies]:
    """What can be searched from id `lower` on and below `upper`, latest first: at most `limit` rows that fit into so many bytes, or one."""
    made = ids.created_at(lower)
    place = (tenant_id, lower, upper, limit, made - CLOCK_SKEW if made is not None else _LONG_AGO)
    if kind == "run":
        chosen = (choice.workflows, choice.statuses, choice.metadata, most_bytes)
        return RUN_RANGE.read(await db.fetch(RUN_RANGE.sql, *place, *chosen))
    return EVENT_RANGE.read(await db.fetch(EVENT_RANGE.sql, *place, choice.type, choice.metadata, most_bytes))


async def add(
    conn: Connection, tenant_id: int, kind: Kind, segment: Segment, words: Sequence[int], pending: Sequence[str], *, dense: bool
) -> None:
    """Keep a segment, in place of what was kept of it. `dense` has too many words to keep them."""
    await conn.execute(ADD, tenant_id, kind, segment.lower_id, segment.upper_id, words, pending, dense)


async def grow(conn: Connection, grown: Index) -> None:
    """Note how far an index reaches now."""
    await conn.execute(GROW, grown.tenant_id, grown.kind, grown.lower_id, grown.upper_id, grown.complete)
