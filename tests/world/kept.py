"""Connections that outlive the dispatcher that used them.

A new session of Postgres knows nothing: it looks up every table and type and plans every statement anew, for longer than most tests
take. A session has no state but that (whoever uses one sets it with `set_config(…, true)` only), so an idle one of a dispatcher that
has ended serves the next one as well. One in use when its dispatcher ends is cut off like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import dispatcher.app
from dispatcher.clock import Clock
from dispatcher.settings import Settings
from dispatcher.store.database import Connection, Database
from dispatcher.store.lane import Lane

_MOST_IDLE = 30
_open = dispatcher.app._database


class _KeptLane(Lane):
    """A lane that begins with what others have left, and leaves what is in order."""

    def __init__(self, lane: Lane, idle: list[Connection]) -> None:
        super().__init__(lane._name, _first_of(idle, lane._dial), size=lane._size, acquire_timeout=lane._acquire_timeout)
        self._left = idle

    def terminate(self) -> None:
        """Leave the idle ones, and cut off the others."""
        for connection in self._idle:
            if len(self._left) < _MOST_IDLE and not connection.is_closed():
                self._open.discard(connection)
                self._left.append(connection)
        super().terminate()


def _first_of(idle: list[Connection], dial: Callable[[], Awaitable[Connection]]) -> Callable[[], Awaitable[Connection]]:
    async def connect() -> Connection:
        while idle:
            connection = idle.pop()
            if not connection.is_closed():
                return connection
        return await dial()

    return connect


class Kept:
    """The connections to one database, which has been migrated, by the time limit of their sessions."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: dict[float, list[Connection]] = {}

    async def open(self, settings: Settings, clock: Clock, stack: AsyncExitStack) -> Database:
        """The database of a dispatcher that starts. Another one than this is opened as ever."""
        if settings.database_url != self._dsn:
            return await _open(settings, clock, stack)
        database = await Database.open(
            self._dsn,
            max_size=settings.database_connections,
            reserve=settings.database_reserve,
            acquire_timeout=settings.database_timeout,
            command_timeout=settings.database_timeout,
            wait=None,
        )
        idle = self._idle.setdefault(settings.database_timeout, [])
        database._lanes = {name: _KeptLane(lane, idle) for name, lane in database._lanes.items()}
        stack.push_async_callback(database.aclose)
        await database._warm(2, 0)
        return database

    async def close(self) -> None:
        """Cut off what is left."""
        for connections in self._idle.values():
            for connection in connections:
                connection.terminate()
        await asyncio.sleep(0)  # lets the transports report their end
