"""Filters that go through lists, evaluated once their deliveries are stored and answered.

Such a filter may take a tenth of a second, so no sender waits for it, and no other webhook: they take turns by webhook, and rest for as
long as they ran. What is waiting here is a list of ids: the rows are the truth, and those of a process that died are found by looking.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from dispatcher.clock import monotonic
from dispatcher.errors import Problem
from dispatcher.runtime.webhooks.deliveries import Deliveries
from dispatcher.runtime.webhooks.sources import Hook, Sources
from dispatcher.store import webhook_deliveries as store
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.webhook_deliveries import NewDelivery, StoredDelivery

_log = logging.getLogger(__name__)

FORGOTTEN_AFTER: Final = timedelta(minutes=1)
"""How long a delivery may wait before any process takes it for one that another has left behind."""
_LOOK_EVERY: Final = timedelta(seconds=10)
_WAITING: Final = 10_000
_SET: Final = 10

Key = tuple[int, str]


class Filtering:
    """Gives deliveries to their filters, a few of each webhook in turn."""

    def __init__(self, database: Database, deliveries: Deliveries, sources: Sources) -> None:
        self._database = database
        self._deliveries = deliveries
        self._sources = sources
        self._waiting: OrderedDict[Key, deque[str]] = OrderedDict()
        self._known: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._looked: datetime | None = None

    def add(self, hook: Hook, delivery_id: str) -> None:
        """Let a stored delivery wait for its turn. Where too many do, it is found by looking."""
        self._add(hook.key, delivery_id)

    def _add(self, key: Key, delivery_id: str) -> None:
        if delivery_id in self._known or len(self._known) >= _WAITING:
            return
        self._known.add(delivery_id)
        self._waiting.setdefault(key, deque()).append(delivery_id)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="webhook filters")

    async def look(self, now: datetime) -> None:
        """Take up what was left behind, every few seconds."""
        if self._looked is not None and now < self._looked + _LOOK_EVERY:
            return
        self._looked = now
        for row in await store.filtering(self._database, now - FORGOTTEN_AFTER, _WAITING):
            self._add((row.tenant_id, row.webhook_id), row.id)

    async def settled(self) -> None:
        """Wait until everybody has had a turn."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """Leave the rest to others."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._waiting:
            key, waiting = self._waiting.popitem(last=False)
            taken = [waiting.popleft() for _ in range(min(_SET, len(waiting)))]
            if waiting:
                self._waiting[key] = waiting
            await self._turn(key, taken)
            self._known.difference_update(taken)

    async def _turn(self, key: Key, taken: list[str]) -> None:
        try:
            hook = self._sources.by_key(key)
            for stored in await self._deliveries.load(*key, taken):
                if stored.status == "filtering":
                    await self._decide(key, hook, stored)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable | Problem) or is_transient(error):
                _log.info("deliveries wait longer for their filter: %s", error)
            else:
                _log.exception("deliveries of webhook %s wait longer for their filter", key[1])

    async def _decide(self, key: Key, hook: Hook | None, stored: StoredDelivery) -> None:
        if hook is None:
            await store.write(self._database, [_left(key, stored)])
            return
        started = monotonic()
        await self._deliveries.route(hook, stored)
        await asyncio.sleep(monotonic() - started)


def _left(key: Key, stored: StoredDelivery) -> NewDelivery:
    """The row of a delivery whose webhook was removed before its filter had its say."""
    row = NewDelivery(*key, stored.id, "unrouted", stored.received_at, stored.method, None, stored.headers, None, 0, None)
    return replace(row, reason="unknown_webhook", event_key=stored.event_key, scope=stored.scope, routes_again=True)
