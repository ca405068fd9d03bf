"""Waiting for deliveries: woken at once by those stored in this process; whoever waits looks for the others' now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from dispatcher.clock import Clock
from dispatcher.runtime.webhooks.sources import Hook

T = TypeVar("T")


@dataclass(eq=False, frozen=True, slots=True)
class _Waiter:
    """Somebody who waits for deliveries of some webhooks, or of all."""

    webhooks: frozenset[str]
    woken: asyncio.Event


class Arrivals:
    """Who waits for the deliveries of a tenant."""

    def __init__(self, clock: Clock, look_every: timedelta) -> None:
        self._clock = clock
        self._look_every = look_every
        self._waiting: dict[int, set[_Waiter]] = {}
        self._closed = False

    def came(self, hook: Hook) -> None:
        """Wake whoever waits for deliveries of this webhook."""
        for waiter in self._waiting.get(hook.tenant.id, ()):
            if not waiter.webhooks or hook.row.name in waiter.webhooks:
                waiter.woken.set()

    def close(self) -> None:
        """Let nobody wait any longer: the server is about to end."""
        self._closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.woken.set()

    async def first(self, tenant_id: int, webhooks: Iterable[str], seconds: float, look: Callable[[], Awaitable[list[T]]]) -> list[T]:
        """What `look` finds: at once, or when something has come, or after `seconds` at the latest.

        Registers first and looks second, so that nothing falls between. What came and is not what is looked for ends the waiting too:
        it may have been made before something that was found already.
        """
        until = self._clock.now() + timedelta(seconds=seconds)
        with self._registered(tenant_id, _Waiter(frozenset(webhooks), asyncio.Event())) as event:
            found = await look()
            while not found and not event.is_set() and not self._closed and (now := self._clock.now()) < until:
                await self._until(event, min(until - now, self._look_every))
                found = await look()
        return found

    @contextmanager
    def _registered(self, tenant_id: int, waiter: _Waiter) -> Iterator[asyncio.Event]:
        self._waiting.setdefault(tenant_id, set()).add(waiter)
        try:
            yield waiter.woken
        finally:
            waiting = self._waiting[tenant_id]
            waiting.discard(waiter)
            if not waiting:
                del self._waiting[tenant_id]

    async def _until(self, event: asyncio.Event, delay: timedelta) -> None:
        timer = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + delay))
        woken = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait([timer, woken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            woken.cancel()
