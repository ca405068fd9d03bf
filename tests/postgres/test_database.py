"""The pool: plain use, lanes, which errors pass, a server in trouble, starting without one, LISTEN."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import asyncpg
import pytest

from dispatcher.store.database import Connection, Database, DatabaseUnavailable, LaneStatistics, is_transient, retry_conflicts
from dispatcher.store.embedded import EmbeddedPostgres, orphans
from tests.conftest import make_reset_script
from tests.postgres.proxy import proxied
from tests.scratch import scratch_directory

_FAST = {"fsync": "off"}


@pytest.fixture
async def table(empty_dsn: str) -> AsyncIterator[Database]:
    """A database with one table, `t (id int primary key, note text)`, of two intake connections and one settle connection."""
    async with await Database.open(empty_dsn, min_size=1, max_size=2, reserve=1, acquire_timeout=0.3, command_timeout=2) as database:
        await database.execute("create table t (id int primary key, note text)")
        yield database


@pytest.fixture(scope="module")
async def private() -> AsyncIterator[EmbeddedPostgres]:
    """A server of this file's own, to be frozen and killed."""
    with scratch_directory() as directory:
        async with await EmbeddedPostgres.start(directory / "pg", settings=_FAST) as postgres:
            yield postgres


def _processes(postgres: EmbeddedPostgres) -> list[int]:
    return orphans.find(postgres._layout.data)


@contextmanager
def _frozen(postgres: EmbeddedPostgres) -> Iterator[None]:
    pids = _processes(postgres)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _heals(database: Database) -> None:
    """Within ten seconds a statement works again, and until then every error is one to be tried again."""
    async with asyncio.timeout(10):
        while True:
            try:
                assert await database.fetchval("select 1") == 1
            except Exception as error:
                if not is_transient(error):
                    raise
                await asyncio.sleep(0)
            else:
                return


# ---- plain use -----------------------------------------------------------------------------------------------------------------------


async def test_values_pass_as_asyncpg_has_them(table: Database) -> None:
    row = await table.fetchrow("select $1::jsonb as j, $2::bytea as b, $3::timestamptz as at", '{"a": 1}', b"\x00\xff", None)
    assert row is not None
    assert (row["j"], row["b"], row["at"]) == ('{"a": 1}', b"\x00\xff", None)
    assert await table.execute("insert into t values (1, 'x'), (2, 'y')") == "INSERT 0 2"
    assert [row["id"] for row in await table.fetch("select id from t order by id")] == [1, 2]


async def test_sessions_have_our_settings(empty_dsn: str) -> None:
    async with await Database.open(empty_dsn, command_timeout=3, lock_timeout=0.25, application_name="api 1") as database:
        names = ["application_name", "jit", "timezone", "synchronous_commit", "statement_timeout", "lock_timeout"]
        for lane in ("intake", "settle"):
            rows = await database.fetch("select current_setting(name) as value from unnest($1::text[]) as name", names, lane=lane)
            assert [row["value"] for row in rows] == ["api 1", "off", "UTC", "on", "3s", "250ms"]


async def test_a_statement_is_one_round_trip(empty_dsn: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with proxied(empty_dsn, Path(directory)) as proxy, await Database.open(proxy.dsn, min_size=1) as database:
            await database.fetchval("select $1::int", 1)  # prepared by this one
            proxy.sent.clear()
            assert await database.fetchval("select $1::int", 2) == 2
            assert await database.fetchval("select $1::int", 3) == 3
            assert len(proxy.sent) == 2


async def test_a_transaction_commits_or_leaves_nothing(table: Database) -> None:
    async with table.transaction() as connection:
        await connection.execute("insert into t values (1, 'kept')")
    with pytest.raises(LookupError, match="ours"):
        await _insert_and_fail(table)
    assert await table.fetchval("select array_agg(id) from t") == [1]
    assert table.statistics()["intake"].open == 1  # the connection was good, so it is used again


async def _insert_and_fail(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("insert into t values (2, 'lost')")
        raise LookupError("ours")


async def test_a_refused_statement_leaves_the_connection_in_order(table: Database) -> None:
    await table.execute("insert into t values (1, '')")
    for _ in range(3):
        with pytest.raises(asyncpg.UniqueViolationError) as refused:
            await table.execute("insert into t values (1, '')")
        with pytest.raises(asyncpg.InterfaceError, match="expects 1 argument") as wrong:
            await table.fetchval("select $1::int")
        assert not is_transient(refused.value)
        assert not is_transient(wrong.value)
    assert table.statistics()["intake"] == LaneStatistics(open=1, idle=1, waiting=0)


async def test_a_connection_left_in_a_transaction_is_not_used_again(table: Database) -> None:
    await table.execute("begin")
    assert table.statistics()["intake"].open == 0
    assert await table.fetchval("select 1") == 1


# ---- lanes ---------------------------------------------------------------------------------------------------------------------------


async def test_intake_cannot_starve_settling(table: Database) -> None:
    async with table.transaction(), table.transaction():
        with pytest.raises(DatabaseUnavailable, match="no intake connection") as error:
            await table.fetchval("select 1")
        assert not error.value.sent
        assert is_transient(error.value)
        assert await table.fetchval("select 2", lane="settle") == 2
    assert await table.fetchval("select 3") == 3


async def test_those_who_wait_are_served_in_order(table: Database) -> None:
    served: list[int] = []

    async def use(number: int) -> None:
        async with table.transaction(lane="settle"):
            served.append(number)

    async with asyncio.TaskGroup() as group, table.transaction(lane="settle"):
        for number in range(5):
            group.create_task(use(number))
        await asyncio.sleep(0)
        assert table.statistics()["settle"].waiting == 5
    assert served == [0, 1, 2, 3, 4]


async def test_a_cancelled_wait_loses_no_connection(table: Database) -> None:
    for _ in range(20):
        async with table.transaction(lane="settle"):
            waiting = asyncio.create_task(table.fetchval("select 1", lane="settle"))
            await asyncio.sleep(0)
        waiting.cancel()  # in the same moment as the connection is handed over
        await asyncio.wait([waiting])
    assert await table.fetchval("select 1", lane="settle") == 1
    assert table.statistics()["settle"].open == 1


async def test_a_cancelled_statement_costs_its_connection_only(table: Database) -> None:
    statement = asyncio.create_task(table.fetchval("select pg_sleep(5)"))
    while not await table.fetchval("select count(*) from pg_stat_activity where query = 'select pg_sleep(5)'", lane="settle"):
        pass
    statement.cancel()
    await asyncio.wait([statement])
    assert statement.cancelled()
    assert table.statistics()["intake"].open == 0
    assert await table.fetchval("select 1") == 1


async def test_closed_means_closed(empty_dsn: str) -> None:
    database = await Database.open(empty_dsn)
    await database.aclose()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        await database.fetchval("select 1")


# ---- errors --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["08006", "57P01", "57P03", "53300", "53100", "40001", "40P01", "55P03", "57014", "25006"])
async def test_states_that_pass(state: str) -> None:
    assert is_transient(asyncpg.PostgresError.new({"C": state, "M": "", "S": "ERROR"}))


@pytest.mark.parametrize("state", ["23505", "22P02", "42601", "42501", "28P01", "3D000"])
async def test_states_that_stay(state: str) -> None:
    assert not is_transient(asyncpg.PostgresError.new({"C": state, "M": "", "S": "ERROR"}))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        FileNotFoundError("/run/x/.s.PGSQL.5432"),
        TimeoutError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
        DatabaseUnavailable("", sent=True),
    ],
)
def test_client_side_errors_that_pass(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError(), asyncpg.InterfaceError("the server expects 1 argument")])
def test_client_side_errors_that_stay(error: BaseException) -> None:
    assert not is_transient(error)


_FAIL_TWICE = "do $$ begin if nextval('tries') < 3 then raise exception using errcode = '{}'; end if; end $$"


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_conflict_is_run_again(table: Database, state: str) -> None:
    await table.execute("create sequence tries")
    await table.execute(_FAIL_TWICE.format(state))
    assert await table.fetchval("select last_value from tries") == 3

    async def whole() -> None:
        async with table.transaction() as connection:
            await connection.execute(_FAIL_TWICE.format(state))

    await table.execute("alter sequence tries restart")
    await retry_conflicts(whole)
    assert await table.fetchval("select last_value from tries") == 3


async def test_a_conflict_that_stays_is_reported(table: Database) -> None:
    with pytest.raises(asyncpg.SerializationError):
        await table.execute("do $$ begin raise exception using errcode = '40001'; end $$")


async def test_a_lock_is_not_waited_for_longer_than_its_limit(empty_dsn: str) -> None:
    async with await Database.open(empty_dsn, lock_timeout=0.05) as database:
        await database.execute("create table t ()")
        async with database.transaction() as connection, asyncio.timeout(2):
            await connection.execute("lock table t in access exclusive mode")
            with pytest.raises(asyncpg.LockNotAvailableError) as error:
                await database.fetchval("select count(*) from t")
        assert is_transient(error.value)


async def test_the_server_ends_a_slow_statement_and_the_connection_stays(empty_dsn: str) -> None:
    async with await Database.open(empty_dsn, min_size=1, command_timeout=0.1) as database:
        with pytest.raises(asyncpg.QueryCanceledError) as error:
            await database.fetchval("select pg_sleep(5)")
        assert is_transient(error.value)
        assert database.statistics()["intake"].open == 1


async def test_a_transaction_is_bounded_as_a_whole(empty_dsn: str) -> None:
    async with await Database.open(empty_dsn, command_timeout=0.1) as database:
        with pytest.raises(DatabaseUnavailable) as error:
            await _idle_in_transaction(database)
        assert error.value.sent
        assert await database.fetchval("select 1") == 1


async def _idle_in_transaction(database: Database) -> None:
    async with database.transaction() as connection:
        await asyncio.Event().wait()
        await connection.execute("select 1")


async def test_no_connection_left_on_the_server(private: EmbeddedPostgres) -> None:
    role = "create role limited login connection limit 1"
    async with await Database.open(private.dsn, wait=10) as admin:
        await admin.execute(role)
        async with await Database.open(private.dsn.replace("postgres@", "limited@"), wait=None) as database:
            async with database.transaction():
                with pytest.raises(DatabaseUnavailable, match="too many connections") as error:
                    await database.fetchval("select 1", lane="settle")
            assert not error.value.sent


@pytest.mark.parametrize(("lost", "rows"), [("request", 0), ("reply", 1)])
async def test_a_broken_commit_is_ambiguous(table: Database, lost: Literal["request", "reply"], rows: int) -> None:
    """The client sees the same error whether or not the row is there (finding: 0 of 25 and 25 of 25)."""
    with tempfile.TemporaryDirectory() as directory:
        async with proxied(table.dsn, Path(directory)) as proxy, await Database.open(proxy.dsn, min_size=1) as database:
            proxy.lose = lost
            with pytest.raises(DatabaseUnavailable) as error:
                await _insert(database)
            assert error.value.sent
            assert is_transient(error.value)
            proxy.lose = None
            await _heals(database)
    assert await table.fetchval("select count(*) from t") == rows


async def _insert(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("insert into t values (1, '')")


# ---- a server in trouble -------------------------------------------------------------------------------------------------------------


async def test_a_frozen_server_costs_bounded_time(private: EmbeddedPostgres) -> None:
    async with await Database.open(private.dsn, wait=10, min_size=2, max_size=3, acquire_timeout=0.2, command_timeout=0.2) as database:
        with _frozen(private):
            async with asyncio.timeout(3):
                steps = [database.fetchval("select 1") for _ in range(8)] + [_insert(database), database.execute("select 1", lane="settle")]
                for result in await asyncio.gather(*steps, return_exceptions=True):
                    assert isinstance(result, DatabaseUnavailable), result
            assert database.statistics()["intake"].idle == 0
        await _heals(database)


async def test_what_is_idle_is_dropped_with_a_frozen_server(private: EmbeddedPostgres) -> None:
    """Or each of those connections would cost somebody the whole deadline."""
    async with await Database.open(private.dsn, wait=10, min_size=3, command_timeout=0.1) as database:
        with _frozen(private):
            with pytest.raises(DatabaseUnavailable):
                await database.fetchval("select 1")
            assert [lane.open for lane in database.statistics().values()] == [0, 0]
        await _heals(database)


async def test_a_server_frozen_inside_a_transaction(private: EmbeddedPostgres) -> None:
    async with await Database.open(private.dsn, wait=10, acquire_timeout=0.2, command_timeout=0.2) as database:
        with contextlib.ExitStack() as frozen:
            async with asyncio.timeout(3):
                with pytest.raises(DatabaseUnavailable):
                    await _freeze_inside(private, database, frozen)
        await _heals(database)


async def _freeze_inside(postgres: EmbeddedPostgres, database: Database, frozen: contextlib.ExitStack) -> None:
    async with database.transaction() as connection:
        await connection.execute("select 1")
        frozen.enter_context(_frozen(postgres))
        await connection.execute("select 2")


async def test_every_connection_dies_with_a_killed_backend(private: EmbeddedPostgres) -> None:
    async with await Database.open(private.dsn, wait=10, min_size=3) as database:
        os.kill(await database.fetchval("select pg_backend_pid()"), signal.SIGKILL)
        await _heals(database)


async def test_a_terminated_session_is_transient(private: EmbeddedPostgres) -> None:
    async with await Database.open(private.dsn, wait=10, min_size=1) as database:
        with pytest.raises(DatabaseUnavailable) as error:
            await database.fetchval("select pg_terminate_backend(pg_backend_pid())")
        assert error.value.sent
        await _heals(database)


async def test_a_killed_postmaster_is_started_again(private: EmbeddedPostgres) -> None:
    assert private._server is not None
    before = private.restarts
    async with await Database.open(private.dsn, wait=10, min_size=2) as database:
        private._server.child.send(signal.SIGKILL)
        await _heals(database)
        while private.restarts == before:  # still answered by what the kill left over
            await asyncio.sleep(0)
            await _heals(database)
    assert private.restarts == before + 1


# ---- starting while it is down -------------------------------------------------------------------------------------------------------


async def test_open_without_a_server(tmp_path: Path) -> None:
    address = f"postgresql://postgres@/postgres?host={tmp_path}"
    with pytest.raises(DatabaseUnavailable, match="cannot connect"):
        await Database.open(address)
    with pytest.raises(DatabaseUnavailable, match="within"):
        await Database.open(address, wait=0.15)
    async with await Database.open(address, wait=None) as database:
        with pytest.raises(DatabaseUnavailable) as error:
            await database.fetchval("select 1")
        assert not error.value.sent


async def test_open_waits_for_the_server() -> None:
    with scratch_directory() as directory:
        address = f"postgresql://postgres@/postgres?host={directory}/pg/run"
        lazy = await Database.open(address, wait=None)
        waiting = asyncio.create_task(Database.open(address, wait=30))
        async with await EmbeddedPostgres.start(directory / "pg", settings=_FAST), await waiting as eager, lazy:
            assert await eager.fetchval("select 1") == await lazy.fetchval("select 1") == 1


async def test_a_wrong_name_is_not_waited_for(server: str) -> None:
    address = urlsplit(server)._replace(path="/no_such_database").geturl()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await Database.open(address, wait=30)


# ---- listen --------------------------------------------------------------------------------------------------------------------------


async def test_listen_calls_back_and_reconnects(table: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await table.listen("work", heard.put_nowait)
    async with asyncio.timeout(5):
        assert await heard.get() == ""  # connected: look at the rows once
        await table.execute("select pg_notify('work', 'one')")
        assert await heard.get() == "one"
        await table.execute("select pg_terminate_backend(pid) from pg_stat_activity where query like 'LISTEN%'")
        assert await heard.get() == ""  # something may have been missed
        await table.execute("select pg_notify('work', 'two')")
        assert await heard.get() == "two"
    await listener.aclose()
    assert not listener.connected.is_set()


async def test_listen_without_a_server(tmp_path: Path) -> None:
    async with await Database.open(f"postgresql://postgres@/postgres?host={tmp_path}", wait=None) as database:
        listener = await database.listen("work", lambda _: None)
        await asyncio.sleep(0)
        assert not listener.connected.is_set()


# ---- the fixtures of every other test ------------------------------------------------------------------------------------------------

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("time", ["first", "second"])
async def test_what_a_test_writes_is_gone_for_the_next(database: Database, time: str) -> None:
    await database.execute("insert into tenants (slug, name, created_at) values ('fixture-test', 'x', $1)", _NOW)


async def test_rows_of_the_migrations_come_back(empty_dsn: str) -> None:
    connection: Connection = await asyncpg.connect(empty_dsn)
    await connection.execute(
        "create table parent (id int generated always as identity primary key, twice int generated always as (id * 2) stored);"
        "create table child (parent int not null references parent); insert into parent default values; insert into child values (1);"
        "create function no() returns trigger language plpgsql as $$ begin raise 'append only'; end $$;"
        "create trigger no before delete on child for each row execute function no()"
    )
    script = await make_reset_script(connection)
    await connection.execute("insert into parent default values; insert into child values (2)")
    await connection.execute(script)
    assert [tuple(row) for row in await connection.fetch("select p.*, c.* from parent p join child c on c.parent = p.id")] == [(1, 2, 1)]
    assert await connection.fetchval("select count(*) from parent") == 1
    connection.terminate()
