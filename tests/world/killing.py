"""Dispatchers that are killed as they write, and others that take over: what is kept must not tell the difference.

A dispatcher here has a database of its own, which is cut off in the statement that it is to die in: rolled back, or committed without
word of it. From then on it can write nothing, and is ended as by kill -9 at once; another one starts. `Fates` chooses the statements: each
one that changes something, at each length of the logs, once before its commit and once after it. So every run gets to its end.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast
from zlib import crc32

import pytest

import dispatcher.app
from dispatcher.api import create_app
from dispatcher.app.maintenance import Maintenance
from dispatcher.runtime.services import Services
from dispatcher.store.database import Connection, Database, LaneName, Listener
from tests.world.world import Node, World

T = TypeVar("T")
Fate = Literal["before", "after"]
Reply = tuple[int, Any]

_WRITE = re.compile(r"\b(insert\s+into\s+\w+|delete\s+from\s+\w+|update\s+\w+(?=\s+(?:as\s+)?(?:\w+\s+)?set\b))")
_OF_RUNS = re.compile(r"\b(tasks|runs|waits|journal|messages|events)\b")
_PROGRESS = "select coalesce(sum(log_len), 0) + (select count(*) from task_history) from tasks"
_LAST = "select * from task_history where run_id = $1 order by finished_at desc limit 1"
_DEAD = "update dispatchers set live_until = $1 where id <> all($2::int[])"
_LONG_AGO = timedelta(days=20_000)
_QUIET_SECONDS = 0.01
_BUSY_SECONDS = 2.0  # after which time passes all the same
_PATIENCE_SECONDS = 60.0  # without an end, or at least a death
_POLL = timedelta(seconds=1)
_LOOPS = ("reap", "slots", "registry", "timers", "waits", "marks", "claim")
# What will happen without anybody's doing, and when the next thing does.
_AHEAD = """
    select exists (select from tasks where state in ('queued', 'running') or (state = 'waiting' and wake_at is not null))
           or exists (select from waits where look_at <= $1 and settled_at is null)
           or exists (select from events where wakes) or exists (select from runs where doomed_at <= $1) as busy,
           least((select min(due_at) from waits where settled_at is null),
                 (select min(due_at) from tasks where state = 'scheduled')) as next
"""


@lru_cache(maxsize=2_000)
def written_by(sql: str) -> str:
    """What a statement changes; empty for one that only reads."""
    return ", ".join(dict.fromkeys(" ".join(found.split()) for found in _WRITE.findall(sql)))


def _changed(result: Any) -> bool:
    """Whether a statement that may write has done so: those of runs return what they did."""
    if isinstance(result, str):
        return not result.endswith(" 0")
    return bool(result)


@dataclass(slots=True)
class Fates:
    """Chooses in which statements dispatchers die. With a `stride` of 1 all of them; else about so many times fewer, by the `seed`."""

    stride: int
    seed: str
    armed: bool = False
    kills: list[str] = field(default_factory=list)
    under_way: int = 0
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    dying: list[MortalDatabase] = field(default_factory=list)
    _met: Counter[tuple[int, int]] = field(default_factory=Counter)

    async def judge(self, connection: Connection, statements: Sequence[str]) -> Fate | None:
        """What becomes of the dispatcher that is about to commit these. One dies at a time."""
        if not self.armed or self.dying or not statements:
            return None
        of_runs = any(_OF_RUNS.search(written_by(sql)) for sql in statements)
        progress = int(await connection.fetchval(_PROGRESS)) if of_runs else 0
        place = (crc32("\n".join(statements).encode()), progress)
        self._met[place] += 1
        fate = self._fate(self._met[place])
        if fate is not None:
            self.kills.append(f"{fate} {' + '.join(map(written_by, statements))} at {progress}")
        return fate

    def _fate(self, met: int) -> Fate | None:
        if self.stride == 1:
            return None if met > 2 else ("before" if met == 1 else "after")
        place = len(self._met) + crc32(self.seed.encode())
        return None if met > 1 or place % self.stride else ("before" if place // self.stride % 2 else "after")


class _Killed(Exception):  # noqa: N818
    """Here the process ends."""


class _Deaf(Listener):
    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.connected.set()


class MortalDatabase(Database):
    """The database of a dispatcher that may die: the pool is everybody's, its end its own.

    Once it is dead, whoever comes to it is cancelled, since a dead process does nothing more.
    """

    def __init__(self, shared: Database, fates: Fates) -> None:
        super().__init__(shared.dsn, shared._lanes, shared._bound, shared._dial)
        self._fates = fates
        self.died = asyncio.Event()

    def _die(self) -> None:
        self.died.set()
        self._fates.dying.append(self)

    async def listen(self, channel: str, callback: Callable[[str], None]) -> Listener:
        """Nothing depends on a hint, and none is heard."""
        return _Deaf()

    async def aclose(self) -> None:
        """The pool goes on."""
        self.died.set()

    async def _run(self, lane: LaneName, method: Callable[..., Awaitable[Any]], sql: str, args: tuple[object, ...]) -> Any:
        with _UnderWay(self._fates, self.died):
            judged = self._judged(method) if self._fates.armed and written_by(sql) else method
            return await super()._run(lane, judged, sql, args)

    def _judged(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def judged(connection: Connection, sql: str, *args: object) -> Any:
            async with connection.transaction():
                result = await method(connection, sql, *args)
                fate = await self._judge(connection, [sql] if _changed(result) else [])
            if fate == "after":
                raise _Killed
            return result

        return judged

    async def _judge(self, connection: Connection, statements: Sequence[str]) -> Fate | None:
        fate = await self._fates.judge(connection, statements) if not self.died.is_set() else "before"
        if fate is not None and not self.died.is_set():
            self._die()
        if fate == "before":
            raise _Killed
        return fate

    @asynccontextmanager
    async def transaction(self, *, lane: LaneName = "intake") -> AsyncIterator[Connection]:
        """As of any database."""
        with _UnderWay(self._fates, self.died):
            async with super().transaction(lane=lane) as connection:
                noted = _Noted(connection)
                yield cast(Connection, noted)
                fate = await self._judge(connection, noted.statements)
            if fate == "after":
                raise _Killed


class _Noted:
    """A connection in a transaction, and what has been changed in it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.statements: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in ("fetch", "fetchrow", "fetchval", "execute"):
            return found

        async def noted(sql: str, *args: Any, **options: Any) -> Any:
            result = await found(sql, *args, **options)
            if written_by(sql) and _changed(result):
                self.statements.append(sql)
            return result

        return noted


class _UnderWay:
    """While somebody is at the database, nothing is quiet; and the dead do not come there."""

    def __init__(self, fates: Fates, died: asyncio.Event) -> None:
        self._fates, self._died = fates, died

    def __enter__(self) -> None:
        if self._died.is_set():
            raise asyncio.CancelledError
        self._fates.under_way += 1
        self._fates.stirred.set()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._fates.under_way -= 1
        self._fates.stirred.set()
        if kind is _Killed:
            raise asyncio.CancelledError from None


class _Lazy:
    """An application that is made when it is first called: most dispatchers here die before that."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._app: Any = None

    async def __call__(self, *call: Any) -> None:
        self._app = self._app or create_app(self._services)
        await self._app(*call)


@dataclass(frozen=True, slots=True)
class Act:
    """Something somebody does to a run while nothing else happens, once this (SQL, of the run's id) is true."""

    when: str
    do: Callable[[Succession, str], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Succession:
    """Dispatchers one after the other, `at_once` of them at a time, and the time that passes while they do nothing."""

    world: World
    fates: Fates
    at_once: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    faults: list[BaseException] = field(default_factory=list)
    _born: int = 0
    _reborn: asyncio.Event = field(default_factory=asyncio.Event)
    _acting: asyncio.Task[None] | None = None
    _patience: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))

    async def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Start the first ones."""

        async def opened(*_: object) -> Database:
            return MortalDatabase(self.world.database, self.fates)

        async def nothing(*_: object) -> None:
            """There is nothing old enough to be tidied up."""

        monkeypatch.setattr(dispatcher.app, "_database", opened)
        monkeypatch.setattr(dispatcher.app, "create_app", _Lazy)
        monkeypatch.setattr(Maintenance, "tick", nothing)
        for _ in range(self.at_once):
            await self._bear()

    async def _bear(self) -> None:
        """Start another one, which may be killed before it is there."""
        while True:
            self._born += 1
            living = [node.runtime.membership.id for node in self.world.nodes]
            await self.world.database.execute(_DEAD, self.world.now - _LONG_AGO, living)
            birth = asyncio.ensure_future(self.world.newborn(f"number {self._born}", **self.settings))
            await asyncio.wait([birth])
            if not birth.cancelled():
                break
            bodies = [_database_of(node) for node in self.world.nodes]
            self.fates.dying = [database for database in self.fates.dying if database in bodies]
        birth.result()
        self._reborn.set()

    async def asked(self, node: Node, question: Coroutine[Any, Any, T]) -> T | None:
        """What a dispatcher answers; None where it dies before it has."""
        answer, died = asyncio.ensure_future(question), asyncio.ensure_future(_database_of(node).died.wait())
        try:
            await asyncio.wait([answer, died], return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if not died.done() else None
        finally:
            answer.cancel()
            died.cancel()
            await asyncio.wait([answer, died])

    async def alive(self) -> Node:
        """A dispatcher that is, as a balancer finds it."""
        while True:
            for node in self.world.nodes:
                if not _database_of(node).died.is_set():
                    return node
            self._reborn.clear()
            await self._reborn.wait()

    def fail(self, fault: BaseException) -> None:
        """What went wrong at an endpoint is told to whoever waits for the end."""
        self.faults.append(fault)
        self.fates.stirred.set()

    async def call(self, method: str, path: str, document: object = None) -> Reply:
        """A call to the API, repeated while dispatchers die of it."""
        while True:
            node = await self.alive()
            reply = await self.asked(node, node.api.request(method, path, json=document))
            if reply is not None:
                return reply.status_code, reply.json()

    async def until_over(self, run_id: str, acts: Sequence[Act] = ()) -> dict[str, Any]:
        """The row of a run's task, once it is over and nothing else is live. Acts are done in their order, as their time comes."""
        left = list(acts)
        async with asyncio.timeout(_PATIENCE_SECONDS) as self._patience:
            while True:
                await self._quiet()
                ahead = await self.world.database.fetchrow(_AHEAD, self.world.now)  # first: time jumps only over what no act is for
                assert ahead is not None
                if self._acting is not None and self._acting.done():
                    self._acting = self._acting.result()
                elif self._acting is None and left and await self.world.database.fetchval(left[0].when, run_id):
                    self._acting = asyncio.create_task(left.pop(0).do(self, run_id))
                elif self._acting is None and not left and (row := await self._over(run_id)) is not None:
                    return row
                else:
                    self._pass_time(ahead["busy"], ahead["next"])

    async def _over(self, run_id: str) -> dict[str, Any] | None:
        if await self.world.database.fetchval("select exists (select from tasks)"):
            return None
        row = await self.world.database.fetchrow(_LAST, run_id)
        return dict(row) if row is not None else None

    async def _quiet(self) -> None:
        """Wait until nobody is at the database any more, if not for long, burying those who die meanwhile."""
        now = asyncio.get_running_loop().time
        until = now() + _BUSY_SECONDS
        while True:
            if self.faults:
                raise self.faults[0]
            while self.fates.dying:
                await self._replace(self.fates.dying[0])
            try:
                async with asyncio.timeout(_QUIET_SECONDS):  # `wait_for` may take the end of our patience for its own
                    await self.fates.stirred.wait()
                self.fates.stirred.clear()
            except TimeoutError:
                if not self.fates.under_way and not self.fates.dying:
                    return
            if now() > until and not self.fates.dying:
                return

    async def end(self) -> None:
        """Nobody is killed any more; who has been is buried."""
        self.fates.armed = False
        for node in [node for node in self.world.nodes if _database_of(node).died.is_set()]:
            await self.world.crash(node)

    async def _replace(self, dead: MortalDatabase) -> None:
        """End a dispatcher whose database is cut off, let its lease be over, and start another one."""
        node = next(node for node in self.world.nodes if _database_of(node) is dead)
        await self.world.crash(node)
        self.fates.dying.remove(dead)
        await self._bear()
        self._patience.reschedule(asyncio.get_running_loop().time() + _PATIENCE_SECONDS)
        self._wake()

    def _pass_time(self, busy: bool, next: datetime | None) -> None:
        """On to the next moment at which something happens; a little where somebody is still busy."""
        jumps = not busy and self._acting is None and next is not None
        self.world.clock.advance(max(next - self.world.now, timedelta(milliseconds=1)) if jumps and next is not None else _POLL)
        self._wake()

    def _wake(self) -> None:
        for node in self.world.nodes:
            for loop in _LOOPS:
                node.runtime.loops[loop].wake()


def _database_of(node: Node) -> MortalDatabase:
    return cast(MortalDatabase, node.runtime.services.database)
