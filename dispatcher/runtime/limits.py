"""Limits somebody sets while work goes on: rate limits, and how many may share a named concurrency limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.clock import Clock
from dispatcher.engine.definitions.flow import Duration
from dispatcher.engine.rate_limits import bucket_id
from dispatcher.errors import problem
from dispatcher.ids import IdMaker
from dispatcher.store import audit, gate_limits, rate_limits
from dispatcher.store.database import Database
from dispatcher.store.gate_limits import LimitRow
from dispatcher.store.rate_limits import BucketRow


@dataclass(slots=True)
class RateLimitChanges:
    """A limit as it shall be."""

    key: str
    most: int
    duration: Duration


class Limits:
    """Everything that changes limits by hand."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._ids = IdMaker()
        self.on_rates: Callable[[], None] = lambda: None
        self.on_gates: Callable[[], None] = lambda: None

    async def put_rate(self, tenant_id: int, wanted: RateLimitChanges, actor: str | None) -> BucketRow:
        """Set a rate limit, or change it."""
        now = self._clock.now()
        row = await rate_limits.put(self._database, tenant_id, bucket_id(wanted.key), wanted.key, wanted.most, wanted.duration, now)
        await self._note(tenant_id, actor, "rate_limit.put", wanted.key, {"limit": wanted.most, "duration": wanted.duration})
        self.on_rates()
        return row

    async def delete_rate(self, tenant_id: int, key: str, actor: str | None) -> None:
        """Let a rate limit be no more; those that wait for it start. Raises Problem not_found."""
        if not await rate_limits.delete(self._database, tenant_id, bucket_id(key), self._clock.now()):
            raise problem("not_found", f"there is no rate limit {key[:100]!r}")
        await self._note(tenant_id, actor, "rate_limit.delete", key, {})
        self.on_rates()

    async def rate(self, tenant_id: int, key: str) -> BucketRow:
        """A rate limit. Raises Problem not_found."""
        id_ = bucket_id(key)
        found = await rate_limits.get(self._database, tenant_id, [id_])
        if id_ not in found:
            raise problem("not_found", f"there is no rate limit {key[:100]!r}")
        return found[id_]

    async def put_concurrency(self, tenant_id: int, name: str, max_runs: int, until: datetime | None, actor: str | None) -> LimitRow:
        """Let a shared concurrency limit be other than declared, for good or until a moment."""
        row = await gate_limits.put(self._database, tenant_id, name, max_runs, until, self._clock.now())
        ends = until.isoformat() if until is not None else None
        await self._note(tenant_id, actor, "concurrency_limit.put", name, {"max_runs": max_runs, "until": ends})
        self.on_gates()
        return row

    async def delete_concurrency(self, tenant_id: int, name: str, actor: str | None) -> None:
        """Let a shared concurrency limit be as declared again. Raises Problem not_found."""
        if not await gate_limits.drop(self._database, tenant_id, name):
            raise problem("not_found", f"the concurrency limit {name[:100]!r} is as its workflows declare it")
        await self._note(tenant_id, actor, "concurrency_limit.delete", name, {})
        self.on_gates()

    async def _note(self, tenant_id: int, actor: str | None, action: str, target: str, details: Mapping[str, Any]) -> None:
        now = self._clock.now()
        async with self._database.transaction() as conn:
            await audit.add(conn, tenant_id, self._ids.make("aud", now), now, actor, action, target, details)
