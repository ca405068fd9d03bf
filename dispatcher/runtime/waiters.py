"""Waiting for runs to end: woken in the process that ends them at once, elsewhere by a hint, and by looking if all hints fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from dispatcher.clock import Clock
from dispatcher.store import runs
from dispatcher.store.database import Database

RunKey = tuple[int, str]


class Waiters:
    """Futures by run. `look` is called by a loop for runs whose end may have been missed."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._waiting: dict[RunKey, set[asyncio.Future[None]]] = {}
        self.watch: Callable[[Iterable[RunKey]], None] | None = None
        """Told of every end this process makes, while somebody wants to know."""

    async def wait(self, tenant_id: int, run_id: str, seconds: float) -> bool:
        """Wait until a run is over, at most `seconds`; True when it is. Registers first and looks second, so no end falls between."""
        key, until = (tenant_id, run_id), self._clock.now() + timedelta(seconds=seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(future)
        try:
            if await runs.is_finished(self._database, tenant_id, run_id):
                return True
            return await self._until(future, until)
        finally:
            waiting = self._waiting.get(key, set())
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(key, None)

    async def _until(self, future: asyncio.Future[None], until: datetime) -> bool:
        timer = asyncio.ensure_future(self._clock.sleep_until(until))
        try:
            await asyncio.wait([future, timer], return_when=asyncio.FIRST_COMPLETED)
            return future.done()
        finally:
            timer.cancel()

    def finished(self, keys: Iterable[RunKey]) -> None:
        """Wake whoever waits for these runs."""
        if self.watch is not None:
            keys = list(keys)
            self.watch(keys)
        if not self._waiting:
            return
        for key in keys:
            for future in self._waiting.get(key, ()):
                if not future.done():
                    future.set_result(None)

    def finished_ids(self, run_ids: Iterable[str]) -> None:
        """The same by id alone, as hints carry it."""
        wanted = set(run_ids)
        self.finished([key for key in self._waiting if key[1] in wanted])

    async def look(self) -> None:
        """Ask the database about every run somebody waits for."""
        by_tenant: dict[int, list[str]] = {}
        for tenant_id, run_id in self._waiting:
            by_tenant.setdefault(tenant_id, []).append(run_id)
        for tenant_id, run_ids in by_tenant.items():
            over = await runs.finished_among(self._database, tenant_id, run_ids)
            self.finished((tenant_id, run_id) for run_id in over)
