"""Daily partitions of history: made ahead of time, dropped when their last moment is older than what is kept.

A partition is named after its table and day. Rows of days nobody made a partition for fall into the default one, so nothing is
ever refused; they are moved out when their day's partition is made. What a run that is still kept has left behind, or
the event it came from, goes there before its partition is dropped, and is deleted after the run.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import first_id

TABLES = (
    "run_history", "task_history", "attempts", "events", "logs", "chunks", "webhook_deliveries", "filter_failures", "audit", "cron_ticks",
    "journal_history",
)  # fmt: skip
_DAY_PARTITION = re.compile(r"_(\d{8})$")
_MADE_WITHIN = timedelta(days=2)  # rows of a day belong to runs made before its end, by whichever dispatcher's clock

LOCK = "select pg_advisory_xact_lock(7240156)"
PARTITIONS = """
    select p.relname, c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent
    where p.relname = any($1::text[]) and c.relname <> p.relname || '_default'
"""
# DDL takes no parameters: Postgres itself quotes the names and moments into the statement it then runs.
MAKE = """
    select format('create table %I (like %I including defaults including constraints)', $1::text, $2::text),
           format('with moved as (delete from %I where %I >= %L and %I < %L returning *) insert into %I select * from moved',
                  $2::text || '_default', $3::text, $4::timestamptz, $3::text, $5::timestamptz, $1::text),
           format('alter table %I attach partition %I for values from (%L) to (%L)', $2::text, $1::text, $4::timestamptz, $5::timestamptz)
"""
DROP = "select format('drop table %I', $1::text)"
KEEP = """
    select format('alter table %I detach partition %I', $2::text, $1::text),
           format('insert into %I overriding system value select * from %I p', $2::text, $1::text)
           || format(' where (p.tenant_id, p.%I) in (select tenant_id, %I from runs where id < %L', $3::text, $4::text, $5::text)
           || format(' union all select h.tenant_id, h.%I from tenants t join run_history h on h.tenant_id = t.id', $4::text)
           || format(' and h.id < %L and h.finished_at >= %L)', $5::text, $6::timestamptz)
"""
OLDEST_RUN = """
    select min(found.id) from tenants t cross join lateral (
        select min(id) as id from runs where tenant_id = t.id
        union all
        select min(id) from run_history where tenant_id = t.id and finished_at >= $1
    ) found
"""
DELETE_OLD = """
    select format('delete from %I where ctid = any(array(select ctid from %I p where %I < %L and ', $1::text, $1::text, $2::text,
                  $3::timestamptz)
        || case when $4::text is null then 'true'
                else format('not exists (select from runs r where r.tenant_id = p.tenant_id and r.%I = p.%I)', $5::text, $4::text)
                     || format(' and not exists (select from run_history r where r.tenant_id = p.tenant_id and r.%I = p.%I)',
                               $5::text, $4::text) end
        || format(' limit %s))', $6::int)
"""
# Which column names the run that rows belong to, and the run's column that it names.
OF_RUN = {
    "attempts": ("run_id", "id"),
    "logs": ("run_id", "id"),
    "chunks": ("run_id", "id"),
    "events": ("id", "event_id"),
}
KEY_OF = {
    "run_history": "finished_at",
    "journal_history": "finished_at",
    "task_history": "finished_at",
    "attempts": "finished_at",
    "events": "created_at",
    "logs": "at",
    "chunks": "at",
    "webhook_deliveries": "received_at",
    "filter_failures": "created_at",
    "audit": "at",
    "cron_ticks": "tick",
}
OVERDUE = " union all ".join(
    f"select '{table}' where exists (select from {table}_default where {key} < $1)" for table, key in KEY_OF.items()
)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


async def existing(db: Database | Connection, *tables: str) -> dict[str, set[date]]:
    """The days these tables have partitions for."""
    days: dict[str, set[date]] = {table: set() for table in tables}
    for table, name in await db.fetch(PARTITIONS, tables):
        if found := _DAY_PARTITION.search(name):
            days[table].add(_day(found[1]))
    return days


def _day(digits: str) -> date:
    return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))


async def make(db: Database, today: date, days_ahead: int) -> int:
    """See to it that every day from yesterday to `days_ahead` has its partitions; answers how many were made."""
    made = 0
    for table, days in (await existing(db, *TABLES)).items():
        for offset in range(-1, days_ahead + 1):
            day = today + timedelta(days=offset)
            if day not in days:
                made += await _make_one(db, table, day)
    return made


async def _make_one(db: Database, table: str, day: date) -> int:
    async with db.transaction() as conn:
        await conn.execute(LOCK)
        if day in (await existing(conn, table))[table]:
            return 0
        name = f"{table}_{day:%Y%m%d}"
        statements = await conn.fetchrow(MAKE, name, table, KEY_OF[table], _midnight(day), _midnight(day + timedelta(days=1)))
        for statement in statements or ():
            await conn.execute(statement)
    return 1


async def drop_before(db: Database, oldest: date) -> int:
    """Drop the partitions of days before `oldest`; answers how many."""
    dropped = 0
    for table, days in (await existing(db, *TABLES)).items():
        for day in [day for day in sorted(days) if day < oldest]:
            async with db.transaction() as conn:
                await conn.execute(LOCK)
                if day in (await existing(conn, table))[table]:
                    await _drop_one(conn, table, day, oldest)
                    dropped += 1
    return dropped


async def _drop_one(conn: Connection, table: str, day: date, oldest: date) -> None:
    name = f"{table}_{day:%Y%m%d}"
    before = first_id("run", _midnight(day) + _MADE_WITHIN)
    first = await conn.fetchval(OLDEST_RUN, _midnight(oldest)) if table in OF_RUN else None
    if first is not None and first < before:
        for statement in await conn.fetchrow(KEEP, name, table, *OF_RUN[table], before, _midnight(oldest)) or ():
            await conn.execute(statement)
    await conn.execute(await conn.fetchval(DROP, name))


async def delete_before(db: Database, oldest: date, limit: int) -> int:
    """Delete what is older than `oldest` and in no partition of its own, `limit` rows in a statement; answers how many."""
    deleted = 0
    for (table,) in await db.fetch(OVERDUE, _midnight(oldest)):
        column, of = OF_RUN.get(table, (None, None))
        statement = await db.fetchval(DELETE_OLD, f"{table}_default", KEY_OF[table], _midnight(oldest), column, of, limit)
        while some := int((await db.execute(statement)).split()[-1]):
            deleted += some
    return deleted
