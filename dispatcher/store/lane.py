"""A bounded set of connections with a bounded wait, for one kind of work.

asyncpg's own pool is not used: it sends a RESET on every release (a second round trip), starts a task for it, and has waits without a
bound when the server is frozen (asyncpg#1326). Here a connection that failed in any doubtful way is terminated, never closed politely.
Rules for users: session state is set with `set_config(…, true)` only, so there is nothing to reset.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg

from dispatcher.store.faults import DatabaseUnavailable, is_transient

Connection = asyncpg.Connection


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """Connections of a lane: established, unused at this moment, and callers waiting for one."""

    open: int
    idle: int
    waiting: int


class Lane:
    """Up to `size` connections. The last one given back is used first, those who wait are served in order."""

    def __init__(self, name: str, dial: Callable[[], Awaitable[Connection]], *, size: int, acquire_timeout: float) -> None:
        self._name = name
        self._dial = dial
        self._size = size
        self._acquire_timeout = acquire_timeout
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._dialling = 0
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False

    def statistics(self) -> LaneStatistics:
        """How the lane stands at this moment."""
        return LaneStatistics(len(self._open), len(self._idle), len(self._waiters))

    def take(self) -> Connection | None:
        """An idle connection, at once, or None. Connections the server has hung up on are dropped on the way."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._forget(connection)
        return None

    async def acquire(self) -> Connection:
        """A connection, waited for at most the acquire timeout. Raises DatabaseUnavailable(sent=False)."""
        connection = self.take()
        if connection is not None:
            return connection
        try:
            async with asyncio.timeout(self._acquire_timeout):
                return await self._wait()
        except TimeoutError as error:
            raise DatabaseUnavailable(f"no {self._name} connection within {self._acquire_timeout} s", sent=False) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if not is_transient(error):
                raise
            raise DatabaseUnavailable(f"cannot connect to Postgres: {error}", sent=False) from error

    def release(self, connection: Connection) -> None:
        """Give back a connection that is in order; one left inside a transaction is terminated."""
        if self._closed or connection.is_closed() or connection.is_in_transaction():
            self.discard(connection)
            return
        if not self._hand_over(connection):
            self._idle.append(connection)

    def discard(self, connection: Connection) -> None:
        """Terminate a connection of this lane and let somebody open another in its place."""
        self._forget(connection)
        self._hand_over(None)

    def distrust(self) -> None:
        """Terminate what is idle: the server stopped answering, so these lead nowhere either."""
        while self._idle:
            self._forget(self._idle.pop())

    async def warm(self, count: int) -> None:
        """Open connections until `count` are there. Raises as `acquire` does."""
        taken = [await self.acquire() for _ in range(min(count, self._size))]
        for connection in taken:
            self.release(connection)

    def terminate(self) -> None:
        """Drop every connection, also those in use, and refuse new ones. For good."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._open):
            self._forget(connection)
        while self._hand_over(None):
            pass

    async def _wait(self) -> Connection:
        while not self._closed:
            connection = self.take()
            if connection is None and len(self._open) + self._dialling < self._size:
                connection = await self._connect()
            if connection is None:
                connection = await self._queue()
            if connection is not None:
                return connection
        raise DatabaseUnavailable("the database is closed", sent=False)

    async def _connect(self) -> Connection:
        self._dialling += 1
        try:
            connection = await self._dial()
        except BaseException:
            self._dialling -= 1
            self._hand_over(None)
            raise
        self._dialling -= 1
        self._open.add(connection)
        if self._closed:
            self._forget(connection)
            raise DatabaseUnavailable("the database is closed", sent=False)
        return connection

    async def _queue(self) -> Connection | None:
        """Wait for a connection somebody gives back; None means that there is room to open one."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            self._decline(waiter)
            raise

    def _decline(self, waiter: asyncio.Future[Connection | None]) -> None:
        """Whoever waited was cancelled: pass on what had been handed over in the same moment."""
        if waiter.cancelled() or not waiter.done():
            with contextlib.suppress(ValueError):  # a release may already have skipped it
                self._waiters.remove(waiter)
            return
        connection = waiter.result()
        if connection is None:
            self._hand_over(None)
        else:
            self.release(connection)

    def _hand_over(self, connection: Connection | None) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.terminate()
