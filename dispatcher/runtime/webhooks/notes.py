"""What is written down beside the way of a delivery: refused requests, handshakes, and which secrets are in use.

Nothing here holds up an answer. Of a flood of refused requests a sample is kept, and the rest is counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from dispatcher.runtime.group_commit import GroupCommit, QueueFull
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.webhooks.sources import Hook
from dispatcher.store import webhook_deliveries, webhooks
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.webhook_deliveries import NewDelivery
from dispatcher.store.webhooks import SecretUse

_log = logging.getLogger(__name__)

BODY_BYTES_KEPT: Final = 4_096
USE_RESOLUTION: Final = timedelta(minutes=1)
_WAITING: Final = 2_000


class Notes:
    """Writes in the background, in shared commits."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._used: dict[tuple[int, str, int], datetime] = {}
        self._deliveries: GroupCommit[NewDelivery, None] = GroupCommit(self._write_deliveries, most=500, bound=_WAITING)
        self._uses: GroupCommit[SecretUse, None] = GroupCommit(self._write_uses, most=500, bound=_WAITING)

    def delivery(self, hook: Hook, row: NewDelivery, now: datetime) -> None:
        """Keep a request that became no delivery: all of it but a long body, unless too many came."""
        self._metrics.deliveries[row.status] += 1
        if not hook.recording.take(now):
            self._metrics.deliveries_unrecorded += 1
            return
        kept = replace(row, body=row.body[:BODY_BYTES_KEPT] if row.body is not None else None)
        self._submit(self._deliveries, kept)

    def use(self, hook: Hook, number: int, now: datetime) -> None:
        """Remember that a secret verified something, to the minute."""
        key = (*hook.key, number)
        last = self._used.get(key)
        if last is None or now - last >= USE_RESOLUTION:
            self._used[key] = now
            self._submit(self._uses, SecretUse(*hook.key, number, now))

    async def drain(self) -> None:
        """Wait until everything noted so far has been written."""
        await self._deliveries.drain()
        await self._uses.drain()

    def _submit(self, commits: GroupCommit[Any, None], item: object) -> None:
        try:
            commits.submit(item).add_done_callback(_look)
        except QueueFull:
            self._metrics.deliveries_unrecorded += 1

    async def _write_deliveries(self, rows: Sequence[NewDelivery]) -> list[None]:
        await webhook_deliveries.write(self._database, rows)
        return [None] * len(rows)

    async def _write_uses(self, uses: Sequence[SecretUse]) -> list[None]:
        await webhooks.note_uses(self._database, uses)
        return [None] * len(uses)


def _look(future: asyncio.Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is None:
        return
    if isinstance(error, DatabaseUnavailable) or is_transient(error):
        _log.info("a refused request was not written down: %s", error)
    else:
        _log.error("a refused request could not be written down", exc_info=error)
