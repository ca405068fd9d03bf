"""The one place that reads clocks. Everything else is handed a moment, or a Clock to ask for one.

`SystemClock` never goes backwards within a process: ids and leases may rely on later calls giving later moments.
`ManualClock` is for tests: it stands still until advanced, and wakes sleepers in the order of their deadlines.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Moments in UTC, and waiting until one."""

    def now(self) -> datetime: ...

    async def sleep_until(self, moment: datetime) -> None: ...


class SystemClock:
    """Wall-clock time that never runs backwards: after a step back it goes on at nine tenths of its pace until met again."""

    def __init__(self) -> None:
        self._last = time.time()
        self._mark = time.monotonic()

    def now(self) -> datetime:
        mark = time.monotonic()
        self._last = max(time.time(), self._last + 0.9 * (mark - self._mark))
        self._mark = mark
        return datetime.fromtimestamp(self._last, UTC)

    async def sleep_until(self, moment: datetime) -> None:
        delay = (moment - self.now()).total_seconds()
        await asyncio.sleep(max(delay, 0.0))


class ManualClock:
    """A clock that only moves when told to."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []
        self._order = 0

    def now(self) -> datetime:
        return self._now

    async def sleep_until(self, moment: datetime) -> None:
        if moment <= self._now:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (moment, self._order, future))
        await future

    def advance(self, delta: timedelta) -> None:
        """Move on by `delta`, waking whoever slept until a moment now past."""
        self._now += delta
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


def monotonic() -> float:
    """Seconds on a clock that never jumps: for measuring how long something took, never for what time it is."""
    return time.monotonic()
