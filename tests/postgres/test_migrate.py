"""Migrations: applied once and in order, refused when they do not fit, safe for two processes at once."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from dispatcher.store import migrate as module
from dispatcher.store.database import Connection
from dispatcher.store.migrate import Migration, MigrationError, load, migrate, status

NOW = datetime(2026, 3, 8, 2, 30, tzinfo=UTC)
LATER = datetime(2026, 4, 1, tzinfo=UTC)

_FILES = {"0001_one.sql": "create table one (id int); insert into one values (1);", "0002_two.sql": "create table two ();"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, text in _FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text("not a migration")
    return tmp_path


async def _tables(dsn: str) -> list[str]:
    connection: Connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public' order by tablename")
        return [row["tablename"] for row in rows]
    finally:
        connection.terminate()


async def test_the_migrations_of_this_release_apply_once(empty_dsn: str) -> None:
    assert await migrate(empty_dsn, NOW) == load()
    assert await migrate(empty_dsn, LATER) == []
    found = await status(empty_dsn)
    assert [(row.version, row.name, row.checksum, row.applied_at) for row in found.applied] == [
        (migration.version, migration.name, migration.checksum, NOW) for migration in load()
    ]
    assert found.pending == ()


def test_no_migration_reads_a_clock() -> None:
    clock = re.compile(r"\bnow\s*\(|current_(time|date)|localtime|(clock|statement|transaction)_timestamp|timeofday", re.IGNORECASE)
    for migration in load():
        assert clock.search(re.sub(r"--.*", "", migration.sql)) is None, migration.name


async def test_only_what_is_new_is_applied(empty_dsn: str, directory: Path) -> None:
    known = load(directory)
    assert [migration.name for migration in await migrate(empty_dsn, NOW, migrations=known[:1])] == ["one"]
    before = await status(empty_dsn, migrations=known)
    assert [migration.name for migration in before.pending] == ["two"]
    assert await migrate(empty_dsn, LATER, migrations=known) == known[1:]
    assert [row.applied_at for row in (await status(empty_dsn, migrations=known)).applied] == [NOW, LATER]


async def test_status_of_an_empty_database_changes_nothing(empty_dsn: str, directory: Path) -> None:
    found = await status(empty_dsn, migrations=load(directory))
    assert (found.applied, [migration.version for migration in found.pending]) == ((), [1, 2])
    assert await _tables(empty_dsn) == []


async def test_a_connection_may_be_given(empty_dsn: str, directory: Path) -> None:
    connection: Connection = await asyncpg.connect(empty_dsn)
    await migrate(connection, NOW, migrations=load(directory))
    assert await connection.fetchval("select id from one") == 1
    assert await connection.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0
    connection.terminate()


async def test_a_changed_file_is_refused(empty_dsn: str, directory: Path) -> None:
    await migrate(empty_dsn, NOW, migrations=load(directory))
    (directory / "0001_one.sql").write_text("create table other ();")
    for step in (migrate(empty_dsn, NOW, migrations=load(directory)), status(empty_dsn, migrations=load(directory))):
        with pytest.raises(MigrationError, match=r"0001_one was changed after it was applied on 2026-03-08"):
            await step


async def test_a_newer_database_is_refused(empty_dsn: str, directory: Path) -> None:
    known = load(directory)
    await migrate(empty_dsn, NOW, migrations=known)
    with pytest.raises(MigrationError, match=r"has migration 0002_two, this program knows 1: .* newer release"):
        await migrate(empty_dsn, NOW, migrations=known[:1])


@pytest.mark.parametrize("rest", ["insert into nowhere values (1)", "drop table schema_migrations"])  # the second fails when it is recorded
async def test_a_failing_migration_leaves_nothing(empty_dsn: str, directory: Path, rest: str) -> None:
    (directory / "0002_two.sql").write_text(f"create table two (); {rest};")
    with pytest.raises(asyncpg.UndefinedTableError):
        await migrate(empty_dsn, NOW, migrations=load(directory))
    assert await _tables(empty_dsn) == ["one", "schema_migrations"]
    (directory / "0002_two.sql").write_text("create table two ();")
    assert [migration.name for migration in await migrate(empty_dsn, NOW, migrations=load(directory))] == ["two"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("0003_Bad.sql", "NNNN_name.sql"),
        ("3_bad.sql", "NNNN_name.sql"),
        ("0004_gap.sql", "0003 is missing"),
        ("0002_again.sql", "0003 is missing"),
    ],
)
def test_files_are_named_and_numbered(directory: Path, name: str, complaint: str) -> None:
    (directory / name).write_text("select 1")
    with pytest.raises(MigrationError, match=complaint):
        load(directory)


_PROGRAM = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from dispatcher.store.migrate import load, migrate
print(len(asyncio.run(migrate(sys.argv[1], datetime(2026, 1, 1, tzinfo=UTC), migrations=load(Path(sys.argv[2]))))))
"""


async def test_two_processes_migrate_at_once(empty_dsn: str, directory: Path) -> None:
    """Without the lock both run CREATE TABLE, and one fails on pg_type_typname_nsp_index."""
    (directory / "0001_one.sql").write_text("create table if not exists one (id int); select pg_sleep(0.2); insert into one values (1);")
    command = [sys.executable, "-c", _PROGRAM, empty_dsn, str(directory)]
    pipe = asyncio.subprocess.PIPE
    processes = [await asyncio.create_subprocess_exec(*command, stdout=pipe, cwd=Path(__file__).parents[2]) for _ in range(2)]
    outputs = [(await process.communicate())[0] for process in processes]
    assert sorted(int(output) for output in outputs) == [0, 2]
    assert await _tables(empty_dsn) == ["one", "schema_migrations", "two"]


async def test_a_hung_migration_is_not_waited_for_without_end(empty_dsn: str, directory: Path) -> None:
    other: Connection = await asyncpg.connect(empty_dsn)
    await other.execute("select pg_advisory_lock($1)", module._LOCK_KEY)
    with pytest.raises(MigrationError, match="another process"):
        await migrate(empty_dsn, NOW, migrations=load(directory), wait=0.15)
    assert await _tables(empty_dsn) == []
    other.terminate()


async def test_a_busy_table_is_tried_again_and_never_queued_on_for_long(
    empty_dsn: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = load(directory)
    await migrate(empty_dsn, NOW, migrations=known)
    known.append(Migration(3, "three", "x", "alter table one add column note text"))
    monkeypatch.setattr(module, "_SET_LIMITS", "select set_config('lock_timeout', '20ms', true)")
    monkeypatch.setattr(module, "_TABLE_LOCK_PAUSE_SECONDS", 0)
    reader: Connection = await asyncpg.connect(empty_dsn)
    transaction = reader.transaction()
    await transaction.start()
    await reader.execute("select * from one")
    with pytest.raises(asyncpg.LockNotAvailableError):
        await migrate(empty_dsn, NOW, migrations=known)
    refused = asyncio.create_task(migrate(empty_dsn, NOW, migrations=known))
    while not await reader.fetchval("select exists (select from pg_locks where not granted)"):
        pass
    await transaction.rollback()
    assert await refused == known[2:]
    reader.terminate()
