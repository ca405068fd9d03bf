"""Housekeeping, every few minutes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.runtime.services import Services
from dispatcher.store import bulk as bulk_store
from dispatcher.store import intake as intake_store
from dispatcher.store import partitions, rate_limits, retention, schedules
from dispatcher.store import streams as streams_store
from dispatcher.store.database import DatabaseUnavailable, is_transient

_log = logging.getLogger(__name__)

_BATCH = 1_000
_PARTITION_DAYS = 7
_AGAIN = timedelta(minutes=1)
_GATES_KEPT = timedelta(hours=1)  # concurrency groups nobody is in


@dataclass(slots=True)
class Maintenance:
    """Partitions made and dropped, expired keys and values forgotten, places in gates counted again."""

    services: Services

    async def begin(self, now: datetime) -> None:
        """What is best done before the first write: the days to come have their partitions. The rest is for the first tick."""
        await self._done(self._partitions, now)

    async def tick(self, now: datetime) -> datetime | None:
        """Do all of it. What cannot be done keeps nothing behind it from being done, and is tried again before long."""
        done = [await self._done(part, now) for part in (self._partitions, self._history, self._places, self._units, self._values)]
        return None if all(done) else now + _AGAIN

    async def _done(self, part: Callable[[datetime], Awaitable[None]], now: datetime) -> bool:
        try:
            await part(now)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable) or is_transient(error):
                _log.warning("maintenance: the database is away (%s)", error)
            else:
                _log.exception("maintenance failed; it goes on")
            return False
        return True

    async def _partitions(self, now: datetime) -> None:
        database, settings = self.services.database, self.services.settings
        await partitions.make(database, now.date(), _PARTITION_DAYS)
        oldest = (now - timedelta(days=settings.retention_days)).date()
        await partitions.drop_before(database, oldest)
        await partitions.delete_before(database, oldest, _BATCH)

    async def _history(self, now: datetime) -> None:
        database, days = self.services.database, self.services.settings.retention_days
        await bulk_store.prune(database, now - timedelta(days=days))
        await self.services.timetable.reckon(now)
        while await schedules.prune(database, now - timedelta(days=days), _BATCH) >= _BATCH:
            pass
        while await intake_store.prune_keys(database, now, _BATCH) >= _BATCH:
            pass
        await retention.delete_expired(database, now, days, _BATCH)
        await self.services.search.prune(now, now - timedelta(days=days))
        while await streams_store.prune(database, now - timedelta(days=days), _BATCH) >= _BATCH:
            pass

    async def _places(self, now: datetime) -> None:
        await self.services.asides.judge(now)
        await self.services.unschedulable.forget_unused()
        await self.services.gates.audit(now, _GATES_KEPT, _BATCH)

    async def _units(self, now: datetime) -> None:
        database = self.services.database
        await self.services.rates.rewind()
        await rate_limits.refill_again(database, now)
        while await rate_limits.prune(database, now, _BATCH) >= _BATCH:
            pass

    async def _values(self, now: datetime) -> None:
        await self.services.blobs.prune(now)
