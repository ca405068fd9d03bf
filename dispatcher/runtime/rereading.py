"""Reading again what another process may just have changed, for callers who miss something here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from dispatcher.clock import monotonic


class Rereading:
    """A reading that callers share. It begins after each of them has asked, so it brings whatever was committed before."""

    def __init__(self, read: Callable[[datetime], Awaitable[object]], pace: float) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._next: asyncio.Future[None] | None = None
        self._read_at: float | None = None
        self.pace = pace
        """Seconds from the beginning of one reading to that of the next, at the least: however many ask for what there is nowhere."""
        self.asked = 0
        """How often somebody has missed something here."""

    async def ask(self, now: datetime) -> None:
        """Returns once it has been read. Whoever asks before the reading begins shares it. Raises what the reading raises."""
        self.asked += 1
        if self._next is None:
            self._next = asyncio.ensure_future(self._read_next(now))
            self._next.add_done_callback(self._landed)
        await asyncio.shield(self._next)

    async def _read_next(self, now: datetime) -> None:
        async with self._lock:
            if self._read_at is not None:
                await asyncio.sleep(max(0.0, self._read_at + self.pace - monotonic()))
            self._read_at, self._next = monotonic(), None
            await self._read(now)

    def _landed(self, reading: asyncio.Future[None]) -> None:
        if self._next is reading:
            self._next = None
        if not reading.cancelled():
            reading.exception()  # looked at, even when everybody who waited is gone
