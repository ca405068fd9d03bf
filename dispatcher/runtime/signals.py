"""The hints dispatchers give each other, and what each makes this process do.

A hint is a word and its arguments: `ready`, `registry`, `finished <run>…`, `cancel`, `lease <task> <epoch> <deadline> <released>`.
Hints are sent only while other dispatchers live, gathered while the last is on its way, and received by the sender as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from dispatcher.store import signals
from dispatcher.store.database import Database, DatabaseUnavailable, Listener, is_transient

_log = logging.getLogger(__name__)

_FIRST_SECONDS = 1.0  # a start waits for hints no longer than this

Handler = Callable[[list[str]], None]


class Signals:
    """Sends and receives hints."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._handlers: dict[str, Handler] = {}
        self._waiting: dict[str, dict[str, None]] = {}
        self._sender: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self.peers = 0
        """Other live dispatchers, as of the last look."""

    def on(self, word: str, handler: Handler) -> None:
        """Call `handler(arguments)` for each hint of this word; also with none when hints may have been missed."""
        self._handlers[word] = handler

    async def start(self) -> None:
        """Begin to listen. Returns once hints are heard, so that what begins then misses none, or where that takes too long."""
        self._listener = await self._database.listen(signals.CHANNEL, self._received)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SECONDS):
                await self._listener.connected.wait()

    async def stop(self) -> None:
        """Stop sending."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])

    def _received(self, payload: str) -> None:
        if not payload:
            for handler in self._handlers.values():
                handler([])
            return
        for line in payload.split("\n"):
            word, *arguments = line.split(" ")
            handler_of_word = self._handlers.get(word)
            if handler_of_word is not None:
                handler_of_word(arguments)

    def send(self, word: str, *arguments: str) -> None:
        """Give a hint, if there is anyone to hear it."""
        if self.peers == 0:
            return
        self._waiting.setdefault(word, {}).update(dict.fromkeys(arguments))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            for word, arguments in waiting.items():
                try:
                    await signals.notify(self._database, " ".join([word, *arguments]))
                except Exception as error:
                    if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                        _log.exception("a hint could not be sent")
