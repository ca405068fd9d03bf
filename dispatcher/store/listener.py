"""LISTEN on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from dispatcher.store.faults import is_transient
from dispatcher.store.lane import Connection

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 10.0  # how often a silent connection is asked whether it is alive
_ANSWER_SECONDS = 2.0
_PAUSE_FIRST_SECONDS = 0.1
_PAUSE_LAST_SECONDS = 5.0


class Listener:
    """Calls back for each notification on one channel until closed. Made by `Database.listen`."""

    def __init__(self, dial: Callable[[], Awaitable[Connection]], channel: str, callback: Callable[[str], None]) -> None:
        self._dial = dial
        self._channel = channel
        self._callback = callback
        self.connected = asyncio.Event()
        """Set while the connection is believed to work."""
        self._task = asyncio.create_task(self._listen(), name=f"listen {channel}")

    async def aclose(self) -> None:
        """Stop listening and drop the connection."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _listen(self) -> None:
        pause = _PAUSE_FIRST_SECONDS
        while True:
            try:
                connection = await self._dial()
            except Exception as error:
                if not is_transient(error):
                    _log.exception("cannot listen on %s", self._channel)
            else:
                pause = _PAUSE_FIRST_SECONDS
                await self._serve(connection)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_LAST_SECONDS)

    async def _serve(self, connection: Connection) -> None:
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await connection.add_listener(self._channel, self._notified)
            self.connected.set()
            self._callback("")
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _PROBE_SECONDS)
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await connection.execute("select 1")
        except Exception as error:
            _log.info("listening on %s was interrupted: %r", self._channel, error)
        finally:
            self.connected.clear()
            connection.terminate()

    def _notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._callback(str(payload))
