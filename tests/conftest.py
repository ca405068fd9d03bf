"""A real Postgres for every test that asks for `dsn`, `database` or `empty_dsn`.

One server and one database per pytest process, made from a template that has all migrations; rows are deleted after each test (under a
millisecond, where TRUNCATE takes 13-118 ms). DISPATCHER_TEST_DATABASE_URL names a server to use instead; its role must be a superuser.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from dispatcher.store.database import Connection, Database
from dispatcher.store.embedded import EmbeddedPostgres
from dispatcher.store.migrate import load, migrate
from tests.scratch import remove_leftovers, scratch_directory

_TEMPLATE_LOCK = 0x74656D706C617465
# Speed instead of durability: nothing here outlives the process.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--graphs` makes the long form of a test whose length is a matter of patience."""
    parser.addoption("--graphs", type=int, default=3_000, help="random graphs compared with the oracle (3,000; long: 100,000)")
    parser.addoption("--crash-stride", type=int, default=5, help="dispatchers are killed at every so-manieth statement (5; long: 1)")
    parser.addoption("--replay-programs", type=int, default=300, help="random durable programs compared with a model (300; long: 10,000)")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, lest one process should still be at it when the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
async def server() -> AsyncIterator[str]:
    """DSN of a superuser on a server where databases may be made and dropped."""
    given = os.environ.get("DISPATCHER_TEST_DATABASE_URL")
    if given:
        yield given
        return
    remove_leftovers()
    with scratch_directory() as directory:
        async with await EmbeddedPostgres.start(directory / "pg", settings=_SETTINGS) as postgres:
            yield postgres.dsn


@pytest.fixture(scope="session")
async def _migrated_dsn(server: str) -> AsyncIterator[str]:
    async with _migrated(server) as dsn:
        yield dsn


@pytest.fixture(scope="session")
async def _cleaner(_migrated_dsn: str) -> AsyncIterator[Connection]:
    connection: Connection = await asyncpg.connect(_migrated_dsn, server_settings={"lock_timeout": "5s"})
    yield connection
    connection.terminate()


@pytest.fixture(scope="session")
async def _reset_script(_cleaner: Connection) -> str:
    return await make_reset_script(_cleaner)


@pytest.fixture(scope="session")
async def _pool(_migrated_dsn: str) -> AsyncIterator[Database]:
    async with await Database.open(_migrated_dsn, min_size=1, max_size=10, reserve=4) as database:
        yield database


@pytest.fixture
async def dsn(_migrated_dsn: str, _cleaner: Connection, _reset_script: str) -> AsyncIterator[str]:
    """DSN of this process's migrated database, as the migrations leave it. Whatever the test writes is deleted after it."""
    yield _migrated_dsn
    while not await _reset(_cleaner, _reset_script):
        pass  # what stood in its way is over now


async def _reset(cleaner: Connection, script: str) -> bool:
    """False if a session that the test cut off was still at its last statement, and Postgres chose it to go on."""
    try:
        await cleaner.execute(script)
    except asyncpg.PostgresError as refused:
        await cleaner.execute("rollback")
        if not isinstance(refused, asyncpg.DeadlockDetectedError):
            raise
        return False
    return True


@pytest.fixture
def database(dsn: str, _pool: Database) -> Database:
    """An open Database on `dsn`, shared by all tests of this process."""
    return _pool


@pytest.fixture
async def empty_dsn(server: str) -> AsyncIterator[str]:
    """DSN of a new database without any table, dropped after the test."""
    admin: Connection = await asyncpg.connect(server)
    try:
        async with _temporary_database(admin, server, "template0") as dsn:
            yield dsn
    finally:
        await admin.close()


@pytest.fixture
async def fresh_dsn(server: str) -> AsyncIterator[str]:
    """DSN of a migrated database in which nothing has been written yet, dropped after the test."""
    async with _migrated(server) as dsn:
        yield dsn


@pytest.fixture(scope="module")
async def filled(server: str) -> AsyncIterator[Database]:
    """A database of the module's own, migrated, for rows that all its tests read and none changes."""
    async with _migrated(server) as dsn, await Database.open(dsn, min_size=1, max_size=10, reserve=4) as database:
        yield database


@asynccontextmanager
async def _migrated(server: str) -> AsyncIterator[str]:
    admin: Connection = await asyncpg.connect(server)
    try:
        await admin.execute("select pg_advisory_lock($1)", _TEMPLATE_LOCK)
        template = await _template(admin, server)
        async with _temporary_database(admin, server, template) as dsn:
            await admin.execute("select pg_advisory_unlock($1)", _TEMPLATE_LOCK)
            yield dsn
    finally:
        await admin.close()


@asynccontextmanager
async def _temporary_database(admin: Connection, server: str, template: str) -> AsyncIterator[str]:
    name = f"dispatcher_test_{os.getpid()}_{secrets.token_hex(4)}"
    await admin.execute(f'create database "{name}" template "{template}"')
    try:
        yield _with_database(server, name)
    finally:
        await admin.execute(f'drop database "{name}" with (force)')


async def _template(admin: Connection, server: str) -> str:
    """The name of the migrated template of these migrations, made now if this server does not have it yet. Needs the template lock."""
    digest = hashlib.sha256("".join(migration.checksum for migration in load()).encode()).hexdigest()
    name = f"dispatcher_template_{digest[:12]}"
    if not await admin.fetchval("select exists (select from pg_database where datname = $1)", name):
        await admin.execute(f'drop database if exists "{name}_new" with (force)')
        await admin.execute(f'create database "{name}_new" template template0')
        await migrate(_with_database(server, f"{name}_new"), datetime(2026, 1, 1, tzinfo=UTC))
        await _wait_until_unused(admin, f"{name}_new")
        await admin.execute(f'alter database "{name}_new" rename to "{name}"')
    return name


async def _wait_until_unused(admin: Connection, name: str) -> None:
    async with asyncio.timeout(10):
        while await admin.fetchval("select count(*) from pg_stat_activity where datname = $1", name):  # noqa: ASYNC110 - it is in Postgres
            await asyncio.sleep(0.01)  # the session just ended is still on its way out


def _with_database(server: str, name: str) -> str:
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))


async def make_reset_script(connection: Connection) -> str:
    """Statements that empty every table and put back the rows the migrations made, whatever the tables are called.

    session_replication_role makes the order of the tables irrelevant (no foreign key is checked) and silences triggers that forbid DELETE.
    """
    steps = ["begin", "set local session_replication_role = replica"]
    for table in await connection.fetch(_TABLES):
        name, columns = table["name"], table["columns"]
        steps.append(f"delete from {name}")
        if await connection.fetchval(f"select exists (select from {name})"):
            copy = f'pg_temp."seed {table["oid"]}"'
            await connection.execute(f"create temporary table {copy.removeprefix('pg_temp.')} as select {columns} from {name}")
            steps.append(f"insert into {name} ({columns}) overriding system value select {columns} from {copy}")
    return ";\n".join([*steps, "commit"])


_TABLES = """
select c.oid, c.oid::regclass::text as name, string_agg(quote_ident(a.attname), ', ' order by a.attnum) as columns
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
where c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^(pg_|information_schema$)' and c.relname <> 'schema_migrations'
group by c.oid
"""
