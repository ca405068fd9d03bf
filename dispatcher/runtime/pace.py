"""How bulk work shares the event loop with everything else: one stretch of it in each round, tenants by turns.

A thousand tasks to be sent, or the results of a hundred in one answer, are a few dozen milliseconds of work at a stretch. Whoever has so
much to do asks for a turn before each part of it, so that a request that arrives meanwhile, or the few tasks of another tenant, wait for
one part and not for all that is at hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from dispatcher.runtime.fair_queue import FairQueue


class Pace:
    """Hands out turns, one in each round of the event loop."""

    def __init__(self) -> None:
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._taken = False

    async def turn(self, whose: Hashable) -> None:
        """Wait until nobody else has the turn of this round; at once where nobody has."""
        loop = asyncio.get_running_loop()
        if self._taken:
            granted: asyncio.Future[None] = loop.create_future()
            self._waiting.add(whose, granted)
            await granted
        else:
            self._taken = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        """A round is over: the turn of the next goes to whoever still waits for it."""
        self._taken = False
        while self._waiting and not self._taken:
            granted = self._waiting.pop()
            if not granted.done():
                granted.set_result(None)
                self._taken = True
        if self._taken:
            asyncio.get_running_loop().call_soon(self._next)
