"""Housekeeping, every few minutes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.runtime.services import Services
from dispatcher.store import bulk as bulk_store
from dispatcher.store import intake as intake_store
from dispatcher.store import partitions, rate_limits, retention, schedules
from dispatcher.store import streams as streams_store

_BATCH = 1_000
_PARTITION_DAYS = 7
_GATES_KEPT = timedelta(hours=1)  # concurrency groups nobody is in


@dataclass(slots=True)
class Maintenance:
    """Partitions made and dropped, expired keys and values forgotten, places in gates counted again."""

    services: Services

    async def tick(self, now: datetime) -> datetime | None:
        """Do all of it."""
        database, settings = self.services.database, self.services.settings
        await partitions.make(database, now.date(), _PARTITION_DAYS)
        oldest = (now - timedelta(days=settings.retention_days)).date()
        await partitions.drop_before(database, oldest)
        await partitions.delete_before(database, oldest, _BATCH)
        await bulk_store.prune(database, now - timedelta(days=settings.retention_days))
        await self.services.timetable.reckon(now)
        while await schedules.prune(database, now - timedelta(days=settings.retention_days), _BATCH) >= _BATCH:
            pass
        while await intake_store.prune_keys(database, now, _BATCH) >= _BATCH:
            pass
        await retention.delete_expired(database, now, settings.retention_days, _BATCH)
        await self.services.search.prune(now, now - timedelta(days=settings.retention_days))
        while await streams_store.prune(database, now - timedelta(days=settings.retention_days), _BATCH) >= _BATCH:
            pass
        await self.services.asides.judge(now)
        await self.services.gates.audit(now, _GATES_KEPT, _BATCH)
        await self.services.blobs.prune(now)
        await rate_limits.rewind(database, now)
        await rate_limits.refill_again(database, now)
        while await rate_limits.prune(database, now, _BATCH) >= _BATCH:
            pass
        return None
