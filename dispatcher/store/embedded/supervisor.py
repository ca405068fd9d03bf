"""The life of the embedded server.

One process owns a directory (flock) and runs the server as its child; others attach to it, and one of them takes over when the owner ends.
However the owner ends, the server ends with it: asked by `stop`, by the death signal, or by the next owner's search for orphans. A server
that dies under a live owner is started again, for ever, with a pause that grows: a full disk may be emptied.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import asyncpg

from dispatcher.store.embedded import account, binaries, cluster, orphans
from dispatcher.store.embedded.child import Child
from dispatcher.store.embedded.errors import EmbeddedPostgresError
from dispatcher.store.embedded.layout import Layout, dsn
from dispatcher.store.faults import is_transient

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.03
_TAKE_OVER_POLL_SECONDS = 0.5
_HOUSEKEEPING_SECONDS = 60.0
_PAUSE_FIRST_SECONDS = 0.1
_PAUSE_LAST_SECONDS = 5.0
_ATTACH_SECONDS = 2.0
_STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


class EmbeddedPostgres:
    """A running Postgres in a directory of its own. Make it with `start`, and `stop` it (or use `async with`).

    `dsn` is its address, `version` such as "18.4", `owner` whether this process runs the server (it may become True later, when the owner
    ends), `restarts` how often it had to be started again, `closed` is set once it has been stopped for good.
    """

    def __init__(self, root: Path, settings: Mapping[str, str]) -> None:
        self.owner = False
        self.version = ""
        self.dsn = ""
        self.restarts = 0
        self.closed = asyncio.Event()
        self._layout = Layout(root)
        self._settings = settings
        self._server: _Server | None = None
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, root: Path, *, settings: Mapping[str, str] | None = None) -> Self:
        """Start the server of `root`, made if it does not exist, or attach to the process that already runs it.

        `settings` are Postgres settings over our defaults; those that keep the server private cannot be changed. Waits as long as crash
        recovery takes. Call it in the main thread. Raises EmbeddedPostgresError.
        """
        embedded = cls(root, settings or {})
        try:
            await embedded._begin()
        except BaseException:
            await embedded.stop()
            raise
        return embedded

    async def stop(self) -> None:
        """Stop the server if it is ours (fast, then immediate, then by force), else only detach. May be called twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._server is not None:
            await self._server.child.end(*_STOP_STEPS)
            self._server = None
            self._layout.remove_socket_directory()
        self._layout.unlock()
        self.owner = False
        self.closed.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _begin(self) -> None:
        self._layout.make()
        while not await self._own_or_attach():  # noqa: ASYNC110 - what we wait for happens in another process
            await asyncio.sleep(_POLL_SECONDS)
        self._keeper = asyncio.create_task(self._keep(), name="embedded postgres")

    async def _own_or_attach(self) -> bool:
        if self._layout.try_lock():
            self._server = await _prepare_and_launch(self._layout, self._settings)
            self._became_owner(self._server)
            return True
        return await self._attach()

    def _became_owner(self, server: _Server) -> None:
        self.owner = True
        self.version = server.version
        self.dsn = server.dsn

    async def _attach(self) -> bool:
        directory = self._layout.socket_directory()
        if directory is None:
            return False
        try:
            connection = await asyncpg.connect(dsn(directory), timeout=_ATTACH_SECONDS)
        except PermissionError as error:
            raise EmbeddedPostgresError(f"{directory} belongs to another user, who runs this Postgres. Start as that user.") from error
        except Exception as error:
            if not is_transient(error):
                raise
            return False  # the owner is still starting it, or ending
        self.version = connection.get_settings().server_version.split()[0]
        self.dsn = dsn(directory)
        connection.terminate()
        return True

    async def _keep(self) -> None:
        """Take over when the owner ends, then start the server again whenever it ends."""
        while not self.owner and not self._layout.try_lock():  # noqa: ASYNC110 - the lock is released by another process
            await asyncio.sleep(_TAKE_OVER_POLL_SECONDS)
        pause = _PAUSE_FIRST_SECONDS
        while True:
            if self._server is not None and await self._outlived_a_minute(self._server):
                pause = _PAUSE_FIRST_SECONDS
            try:
                self._server = None
                self._server = await _prepare_and_launch(self._layout, self._settings)
            except Exception as error:
                _log.error("the embedded Postgres does not start: %s", error, exc_info=not isinstance(error, EmbeddedPostgresError))
            else:
                self.restarts += self.owner
                self._became_owner(self._server)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_LAST_SECONDS)

    async def _outlived_a_minute(self, server: _Server) -> bool:
        """Wait for the end of the server, keeping its log short meanwhile."""
        minutes = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HOUSEKEEPING_SECONDS):
                    code = await server.child.exited()
                    _log.warning("the embedded Postgres ended (%s), starting it again", code)
                    return minutes > 0
            minutes += 1
            await asyncio.to_thread(self._layout.trim_log)


class _Server:
    """A postmaster that was ready once."""

    def __init__(self, child: Child, version: str, address: str) -> None:
        self.child = child
        self.version = version
        self.dsn = address


async def _prepare_and_launch(layout: Layout, settings: Mapping[str, str]) -> _Server:
    """Everything from an arbitrary state of the directory to a server that accepts connections. The lock must be held."""
    ended = await orphans.end(layout.data)
    if ended:
        _log.warning("ended %d Postgres processes that had outlived their owner or postmaster", ended)
    user = account.choose(layout.data)
    chosen = await asyncio.to_thread(binaries.select, cluster.major(layout.data))
    chosen = await asyncio.to_thread(binaries.within_reach, chosen, user, layout.root)
    if cluster.major(layout.data) is None:
        await cluster.create(layout, chosen, user, durable=settings.get("fsync") != "off")
    sockets = layout.make_socket_directory(user)
    cluster.disown(layout.data)
    cluster.remove_sockets(sockets)
    child = await _launch(layout, user, cluster.command_line(chosen, layout.data, sockets, settings))
    return _Server(child, chosen.version, dsn(sockets))


async def _launch(layout: Layout, user: account.Account, command: list[str]) -> Child:
    output = layout.open_log()
    since = layout.log.stat().st_size
    try:
        child = Child(user, command, directory=layout.data, output=output, death_signal=signal.SIGINT)
    finally:
        os.close(output)
    try:
        await _until_ready(layout, child, since)
    except BaseException:
        await child.end(*_STOP_STEPS)
        raise
    return child


async def _until_ready(layout: Layout, child: Child, since: int) -> None:
    exited = asyncio.create_task(child.exited())
    try:
        while not cluster.is_ready(layout.data, child.pid):
            await asyncio.wait([exited], timeout=_POLL_SECONDS)
            if exited.done():
                raise EmbeddedPostgresError(f"Postgres ended while starting ({exited.result()}):\n{layout.log_tail(since)}")
    finally:
        exited.cancel()
