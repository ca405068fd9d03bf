"""Forward migrations: `migrations/NNNN_name.sql`, each applied once, in order, in a transaction of its own.

Two processes may start at once: an advisory lock lets one migrate while the other waits and then finds nothing to do. The lock is polled,
not waited for inside a statement, since a waiting statement holds a snapshot that blocks what a migration may need. Migrations only add
or relax (the previous release may still be running against the same database). SQL files never call now(): a moment they need would
come as an argument of the statement that first writes it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from importlib.resources.abc import Traversable

import asyncpg

from dispatcher.store.lane import Connection

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_LOCK_KEY = 0x6469737061746368  # "dispatch" in ASCII, for pg_advisory_lock
_LOCK_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 10.0
_TABLE_LOCK_TRIES = 10
_TABLE_LOCK_PAUSE_SECONDS = 0.5


class MigrationError(Exception):
    """The database and this program do not fit together. The message says which is ahead and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name, the SHA-256 of its bytes (hex) and its text."""

    version: int
    name: str
    checksum: str
    sql: str


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of schema_migrations."""

    version: int
    name: str
    checksum: str
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class Status:
    """What the database has, and what this program would still apply."""

    applied: tuple[Applied, ...]
    pending: tuple[Migration, ...]


def load(directory: Traversable | None = None) -> list[Migration]:
    """The migrations of this release (or of `directory`), in order. Raises MigrationError on a bad name, a gap or a double number."""
    directory = directory or files("dispatcher.store").joinpath("migrations")
    found = sorted((_read(file) for file in directory.iterdir() if file.name.endswith(".sql")), key=lambda migration: migration.version)
    for number, migration in enumerate(found, start=1):
        if migration.version != number:
            raise MigrationError(f"migration {number:04} is missing or double: found {migration.version:04}_{migration.name}")
    return found


async def migrate(
    target: str | Connection, now: datetime, *, migrations: Sequence[Migration] | None = None, wait: float = 300.0
) -> list[Migration]:
    """Apply what is pending and return it; `now` is recorded. `target` is a DSN or an idle connection with a session of its own.

    Waits up to `wait` seconds for another process that is migrating. Raises MigrationError when the database is newer than this program,
    or when a file changed after it was applied.
    """
    known = load() if migrations is None else migrations
    async with _connected(target) as connection, _only_one(connection, wait):
        await connection.execute(_CREATE_TABLE)
        pending = _pending(known, await _applied(connection))
        for migration in pending:
            await _apply_patiently(connection, migration, now)
    return pending


async def status(target: str | Connection, *, migrations: Sequence[Migration] | None = None) -> Status:
    """Compare the database with this program; changes nothing. Raises MigrationError as `migrate` does."""
    known = load() if migrations is None else migrations
    async with _connected(target) as connection:
        exists = await connection.fetchval("select to_regclass('schema_migrations') is not null")
        applied = await _applied(connection) if exists else []
    return Status(tuple(applied), tuple(_pending(known, applied)))


_CREATE_TABLE = """
create table if not exists schema_migrations (
    version    integer     primary key,
    name       text        not null,
    checksum   text        not null,
    applied_at timestamptz not null
)
"""
_SELECT_APPLIED = "select version, name, checksum, applied_at from schema_migrations order by version"
_INSERT_APPLIED = "insert into schema_migrations (version, name, checksum, applied_at) values ($1, $2, $3, $4)"
# A migration waits 2 s for a table at most, so that nobody queues behind it for longer, and may then run as long as it needs.
_SET_LIMITS = "select set_config('lock_timeout', '2s', true), set_config('statement_timeout', '0', true)"


def _read(file: Traversable) -> Migration:
    match = _FILE_NAME.fullmatch(file.name)
    if match is None:
        raise MigrationError(f"{file.name}: a migration is called NNNN_name.sql, lower case")
    content = file.read_bytes()
    return Migration(int(match[1]), match[2], hashlib.sha256(content).hexdigest(), content.decode())


def _pending(known: Sequence[Migration], applied: Sequence[Applied]) -> list[Migration]:
    by_version = {migration.version: migration for migration in known}
    for row in applied:
        migration = by_version.get(row.version)
        if migration is None:
            raise MigrationError(
                f"the database has migration {row.version:04}_{row.name}, this program knows {len(known)}: "
                "it was migrated by a newer release. Run that release, or restore a backup made before the upgrade."
            )
        if migration.checksum != row.checksum:
            raise MigrationError(
                f"migration {row.version:04}_{row.name} was changed after it was applied on {row.applied_at:%Y-%m-%d}: "
                "put the file back as it was and make the change in a new migration."
            )
    done = {row.version for row in applied}
    return [migration for migration in known if migration.version not in done]


async def _applied(connection: Connection) -> list[Applied]:
    return [Applied(**row) for row in await connection.fetch(_SELECT_APPLIED)]


async def _apply_patiently(connection: Connection, migration: Migration, now: datetime) -> None:
    for _ in range(_TABLE_LOCK_TRIES - 1):
        try:
            return await _apply(connection, migration, now)
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(_TABLE_LOCK_PAUSE_SECONDS)
    return await _apply(connection, migration, now)


async def _apply(connection: Connection, migration: Migration, now: datetime) -> None:
    async with connection.transaction():
        await connection.execute(_SET_LIMITS)
        await connection.execute(migration.sql)
        await connection.execute(_INSERT_APPLIED, migration.version, migration.name, migration.checksum, now)


@asynccontextmanager
async def _connected(target: str | Connection) -> AsyncIterator[Connection]:
    if not isinstance(target, str):
        yield target
        return
    connection: Connection = await asyncpg.connect(target, timeout=_CONNECT_SECONDS, server_settings={"timezone": "UTC"})
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def _only_one(connection: Connection, wait: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(wait):
            while not await connection.fetchval("select pg_try_advisory_lock($1)", _LOCK_KEY):  # noqa: ASYNC110 - the event is in Postgres
                await asyncio.sleep(_LOCK_POLL_SECONDS)
    except TimeoutError as error:
        raise MigrationError(f"another process has been migrating this database for {wait} s: look for a hung one") from error
    try:
        yield
    finally:
        if not connection.is_closed():
            async with asyncio.timeout(_CONNECT_SECONDS):
                await connection.fetchval("select pg_advisory_unlock($1)", _LOCK_KEY)
