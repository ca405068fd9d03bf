"""The way to Postgres: single statements, transactions and LISTEN, each bounded in time.

A statement outside a transaction is one round trip and commits by itself. Every step has its own deadline, and what misses it loses its
connection (terminated, never closed politely: a frozen server would not answer the goodbye either). The server's own limits are set a
little tighter, so that a deadline missed here means the server or the way to it is dead, not that the statement was slow.

Two lanes keep apart what may starve and what must not: `intake` takes the work in, `settle` writes outcomes and heartbeats.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, Self, TypeAlias, TypeVar

import asyncpg

from dispatcher.store.faults import DatabaseUnavailable, is_conflict, is_lost, is_transient
from dispatcher.store.lane import Connection, Lane, LaneStatistics
from dispatcher.store.listener import Listener

__all__ = ["Connection", "Database", "DatabaseUnavailable", "LaneName", "LaneStatistics", "Listener", "is_transient", "retry_conflicts"]

LaneName: TypeAlias = Literal["intake", "settle"]
T = TypeVar("T")

_GRACE_SECONDS = 0.5  # how much longer than the server's statement_timeout we wait for its answer
_CONFLICT_TRIES = 5
_CONFLICT_PAUSE_SECONDS = 0.01
_DIAL_PAUSE_SECONDS = 0.1
_DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class Database:
    """A pool of connections in two lanes. Make it with `Database.open`; `aclose` it in the event loop that opened it.

    Rows are asyncpg records; jsonb arrives and leaves as `str`, bytea as `bytes`. Errors of the server are asyncpg's own, except a
    connection that could not be had or broke, which is DatabaseUnavailable. `is_transient` tells which are worth another try.
    Sessions are shared: set session state only with `set_config(…, true)` inside a transaction.
    """

    def __init__(self, dsn: str, lanes: Mapping[LaneName, Lane], bound: float, dial: Callable[[], Awaitable[Connection]]) -> None:
        self.dsn = dsn
        self._lanes = lanes
        self._bound = bound
        self._dial = dial
        self._listeners: list[Listener] = []

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        min_size: int = 2,
        max_size: int = 10,
        reserve: int = 4,
        acquire_timeout: float = 2.0,
        command_timeout: float = 10.0,
        lock_timeout: float = 1.0,
        application_name: str = "dispatcher",
        wait: float | None = 0.0,
    ) -> Database:
        """Connect `min_size` intake connections and one settle connection; up to `max_size` and `reserve` are opened when needed.

        `wait` is how many seconds to go on trying while the server is away before DatabaseUnavailable; None connects nothing now, so that
        a process can start, and answer its liveness probe, while Postgres is down. All times are seconds; `command_timeout` bounds a
        statement and a whole transaction alike.
        """
        settings = _session_settings(application_name, command_timeout, lock_timeout)

        async def dial() -> Connection:
            return await asyncpg.connect(dsn, timeout=acquire_timeout, server_settings=settings, max_cacheable_statement_size=0)

        lanes: dict[LaneName, Lane] = {
            "intake": Lane("intake", dial, size=max_size, acquire_timeout=acquire_timeout),
            "settle": Lane("settle", dial, size=reserve, acquire_timeout=acquire_timeout),
        }
        database = cls(dsn, lanes, command_timeout + _GRACE_SECONDS, dial)
        if wait is not None:
            await database._warm(min_size, wait)
        return database

    async def fetch(self, sql: str, *args: object, lane: LaneName = "intake") -> list[asyncpg.Record]:
        """Run one statement in its own transaction and return its rows."""
        return await self._run(lane, asyncpg.Connection.fetch, sql, args)

    async def fetchrow(self, sql: str, *args: object, lane: LaneName = "intake") -> asyncpg.Record | None:
        """Run one statement in its own transaction and return its first row."""
        return await self._run(lane, asyncpg.Connection.fetchrow, sql, args)

    async def fetchval(self, sql: str, *args: object, lane: LaneName = "intake") -> Any:
        """Run one statement in its own transaction and return the first column of its first row."""
        return await self._run(lane, asyncpg.Connection.fetchval, sql, args)

    async def execute(self, sql: str, *args: object, lane: LaneName = "intake") -> str:
        """Run one statement in its own transaction and return its command tag, such as "UPDATE 3"."""
        return await self._run(lane, asyncpg.Connection.execute, sql, args)

    @asynccontextmanager
    async def transaction(self, *, lane: LaneName = "intake") -> AsyncIterator[Connection]:
        """One transaction, committed at the end of the block, rolled back when the block raises.

        The whole block has `command_timeout` seconds. An error of COMMIT with `sent` True is ambiguous. Conflicts (is_conflict) are left to
        the caller, who alone can run the block again: see `retry_conflicts`.
        """
        pool = self._lanes[lane]
        connection = pool.take() or await pool.acquire()
        scope = asyncio.timeout(self._bound)
        try:
            async with scope:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    yield connection
                except Exception:  # a cancelled block is not rolled back over the wire: its connection is terminated
                    if not connection.is_closed():
                        await transaction.rollback()
                    raise
                await transaction.commit()
        except BaseException as error:
            self._give_back(pool, connection, error, late=scope.expired())
            raise
        pool.release(connection)

    async def listen(self, channel: str, callback: Callable[[str], None]) -> Listener:
        """Call `callback(payload)` for each NOTIFY on `channel`, over a connection of its own that is replaced whenever it breaks.

        A hint only: messages sent while the connection was away are lost. After each (re)connect the callback is called with "", since
        something may have been missed. Returns at once, connected or not.
        """
        listener = Listener(self._dial, channel, callback)
        self._listeners.append(listener)
        return listener

    def statistics(self) -> dict[LaneName, LaneStatistics]:
        """Connections by lane, for metrics."""
        return {name: lane.statistics() for name, lane in self._lanes.items()}

    async def aclose(self) -> None:
        """Terminate every connection, those in use as well: stop the users first."""
        for listener in self._listeners:
            await listener.aclose()
        for lane in self._lanes.values():
            lane.terminate()
        await asyncio.sleep(0)  # lets the transports report their end before the loop may be closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, lane: LaneName, method: Callable[..., Awaitable[T]], sql: str, args: tuple[object, ...]) -> T:
        pool = self._lanes[lane]
        tries = 0
        while True:
            connection = pool.take() or await pool.acquire()
            scope = asyncio.timeout(self._bound)
            try:
                async with scope:
                    result = await method(connection, sql, *args)
            except BaseException as error:
                self._give_back(pool, connection, error, late=scope.expired())
                tries += 1
                if not is_conflict(error) or tries == _CONFLICT_TRIES:
                    raise
            else:
                pool.release(connection)
                return result
            await _pause(tries)  # rolled back by the server in favour of another transaction: nothing happened, so run it again

    def _give_back(self, pool: Lane, connection: Connection, error: BaseException, *, late: bool) -> None:
        """After an error: release what is certainly in order, terminate the rest; raise DatabaseUnavailable if that is what happened."""
        broken = late or is_lost(error) or (connection.is_closed() and isinstance(error, _DATABASE_ERRORS))
        if late:
            for lane in self._lanes.values():
                lane.distrust()
        if broken or isinstance(error, TimeoutError) or not isinstance(error, Exception):
            pool.discard(connection)
        else:
            pool.release(connection)
        if broken and isinstance(error, Exception):  # a cancellation stays one, also when it meets our own deadline
            reason = f"no answer within {self._bound} s" if late else str(error)
            raise DatabaseUnavailable(f"the connection to Postgres broke: {reason}", sent=True) from error

    async def _warm(self, min_size: int, wait: float) -> None:
        try:
            async with asyncio.timeout(wait or None):
                await self._connect_until_there(min_size, patient=wait > 0)
        except TimeoutError as error:
            await self.aclose()
            raise DatabaseUnavailable(f"Postgres did not answer within {wait} s", sent=False) from error
        except BaseException:
            await self.aclose()
            raise

    async def _connect_until_there(self, min_size: int, *, patient: bool) -> None:
        while True:
            try:
                await self._lanes["intake"].warm(min_size)
                await self._lanes["settle"].warm(1)
            except DatabaseUnavailable:
                if not patient:
                    raise
            else:
                return
            await asyncio.sleep(_DIAL_PAUSE_SECONDS)


async def retry_conflicts(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`, a whole transaction, again while the server rolls it back for another one (deadlock, serialization): 5 times at most."""
    tries = 0
    while True:
        try:
            return await work()
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            tries += 1
            if tries == _CONFLICT_TRIES:
                raise
        await _pause(tries)


async def _pause(tries: int) -> None:
    await asyncio.sleep(random.uniform(0.5, 1.5) * _CONFLICT_PAUSE_SECONDS * 2**tries)  # noqa: S311 - jitter, not a secret


def _session_settings(application_name: str, command_timeout: float, lock_timeout: float) -> dict[str, str]:
    # Sent with the start-up message: no round trip of their own, and no way back to the server's defaults.
    return {
        "application_name": application_name,
        "timezone": "UTC",
        "jit": "off",  # compiling costs more than these statements run
        # The live tables go from empty to a hundred thousand rows within seconds, so a plan must not depend on when it was made: every
        # statement goes through an index, row by row, and is planned once. Lists that want otherwise say so in their transaction.
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "synchronous_commit": "on",  # accepted means durable
        "statement_timeout": _milliseconds(command_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(command_timeout),
        "lock_timeout": _milliseconds(lock_timeout),
    }


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
