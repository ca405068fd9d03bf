"""The loops that move time and work along. Each is a tick that selects and hands on; none decides.

A tick is told the moment and answers when it wants to run again, at the latest; a wake-up makes it run at once. Every loop would
find its work without wake-ups, just later. A tick that fails is logged and tried again: a loop ends only with its process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dispatcher.clock import Clock, monotonic
from dispatcher.store.database import DatabaseUnavailable, is_transient

_log = logging.getLogger(__name__)

Tick = Callable[[datetime], Awaitable[datetime | None]]
_PAUSE = timedelta(seconds=1)
_LONGEST_REST = 0.05


@dataclass(slots=True)
class Loop:
    """One tick, run again and again. `ticks` counts its runs, for tests and metrics.

    `rest` keeps a loop that is woken all the time from taking many small bites: after a tick it rests for that many times as long
    as the tick took, at most a twentieth of a second, and what gathers meanwhile is taken at once.
    """

    name: str
    tick: Tick
    clock: Clock
    every: timedelta
    rest: float = 0.0
    ticks: int = 0
    _until: datetime | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _shortened: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first tick runs at once."""
        self._task = asyncio.create_task(self._run(), name=f"loop {self.name}")

    def wake(self) -> None:
        """Run the next tick now."""
        self._wake.set()

    def wake_by(self, moment: datetime) -> None:
        """Run a tick no later than at `moment`."""
        if self._until is None:
            self.wake()
        elif moment < self._until:
            self._until = moment
            self._shortened.set()

    async def stop(self) -> None:
        """End, in the middle of a tick if need be: ticks are safe to cut anywhere."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self._until = None
            now, began = self.clock.now(), monotonic()
            again = now + self.every
            try:
                wanted = await self.tick(now)
                if wanted is not None:
                    again = min(wanted, again)
            except Exception as error:
                again = now + _PAUSE
                if isinstance(error, DatabaseUnavailable) or is_transient(error):
                    _log.warning("loop %s: the database is away (%s)", self.name, error)
                else:
                    _log.exception("loop %s failed; it goes on", self.name)
            self.ticks += 1
            if self.rest:
                await asyncio.sleep(min((monotonic() - began) * self.rest, _LONGEST_REST))
            await self._sleep(again)

    async def _sleep(self, until: datetime) -> None:
        """Wait until the moment, which may come nearer meanwhile, or until woken."""
        if self._wake.is_set():
            await asyncio.sleep(0)
            return
        self._until = until
        waker = asyncio.ensure_future(self._wake.wait())
        try:
            while not waker.done() and not await self._slept(self._until, waker):
                pass
        finally:
            waker.cancel()

    async def _slept(self, until: datetime, waker: asyncio.Future[Any]) -> bool:
        """Wait until the moment or the waker; False when the moment has come nearer."""
        self._shortened.clear()
        timer = asyncio.ensure_future(self.clock.sleep_until(until))
        nearer = asyncio.ensure_future(self._shortened.wait())
        try:
            await asyncio.wait([timer, waker, nearer], return_when=asyncio.FIRST_COMPLETED)
            return timer.done() or waker.done()
        finally:
            timer.cancel()
            nearer.cancel()
