"""Deliveries that are stored: replayed, and routed again once an expression has been mended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from dispatcher import ids
from dispatcher.clock import Clock
from dispatcher.errors import Problem, problem
from dispatcher.runtime.intake import DeliveryAccepted
from dispatcher.runtime.webhooks.receiver import Receiver, filtered
from dispatcher.runtime.webhooks.sources import Hook
from dispatcher.settings import Settings
from dispatcher.store import webhook_deliveries as store
from dispatcher.store.database import Database
from dispatcher.store.webhook_deliveries import NewDelivery, StoredDelivery
from webhooks import BodyError, Delivery, Request, route_again

_SET: Final = 100
_REPLAYABLE: Final = frozenset({"accepted", "unrouted"})
_SOON: Final = timedelta(seconds=1)
_ONCE: Final = timedelta(days=30)


@dataclass(slots=True)
class Rerouted:
    """How many unrouted deliveries were looked at, found a place, and did not. `errors` counts the latter by reason."""

    matched: int
    routed: int
    unrouted: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a delivery became when it was replayed: `id` is its own where it was routed at last, else that of the replay."""

    id: str
    status: str
    event_id: str | None
    event_key: str | None
    runs: list[str]
    reason: str | None


class Deliveries:
    """What may still be done with deliveries."""

    def __init__(self, database: Database, receiver: Receiver, clock: Clock, settings: Settings) -> None:
        self._database = database
        self._receiver = receiver
        self._clock = clock
        self._settings = settings

    async def get(self, tenant_id: int, webhook_id: str, delivery_id: str) -> StoredDelivery:
        """A delivery with its body. Raises Problem not_found."""
        made = ids.created_at(delivery_id)
        kept_since = self._clock.now() - timedelta(days=self._settings.retention_days + 1)
        found = None
        if made is not None and "\x00" not in delivery_id:
            found = await store.get(self._database, tenant_id, webhook_id, delivery_id, made - timedelta(days=1), kept_since)
        if found is None:
            raise problem("not_found", f"there is no delivery {delivery_id[:100]!r}")
        return found

    async def replay(self, hook: Hook, delivery_id: str) -> Replayed:
        """Send a delivery through the expressions once more: an unrouted one finds its place, another makes one more event."""
        stored = await self.get(*hook.key, delivery_id)
        if stored.status not in _REPLAYABLE:
            raise problem("not_replayable", f"a delivery that is {stored.status} has nothing to replay")
        if stored.body is None:
            raise problem("not_replayable", "the body of this delivery is no longer kept")
        if stored.status == "unrouted":
            return await self._routed(hook, stored)
        return await self._repeated(hook, stored)

    async def reroute(self, hook: Hook, since: datetime | None, until: datetime | None) -> Rerouted:
        """Give every unrouted delivery of a time to the expressions as they are now."""
        counts = Rerouted(0, 0, 0, {})
        async for stored in self._unrouted(hook, since, until):
            counts.matched += 1
            try:
                became = await self._routed(hook, stored)
            except Problem as refused:
                if refused.status == 503:
                    raise
                became = Replayed(stored.id, "unrouted", None, None, [], refused.code)
            if became.status == "unrouted":
                counts.unrouted += 1
                reason = became.reason or "unrouted"
                counts.errors[reason] = counts.errors.get(reason, 0) + 1
            else:
                counts.routed += 1
        return counts

    async def _unrouted(self, hook: Hook, since: datetime | None, until: datetime | None) -> AsyncIterator[StoredDelivery]:
        after = ""
        until = until or self._clock.now() + _SOON  # not for ever, where others keep coming
        while rows := await store.unrouted(self._database, *hook.key, after, since, until, _SET):
            for row in rows:
                yield row
            after = rows[-1].id

    async def _routed(self, hook: Hook, stored: StoredDelivery) -> Replayed:
        """Bring an unrouted delivery to its event, once, whoever else may be doing the same."""
        request, delivery = await self._again(hook, stored)
        if delivery.status == "unrouted":
            return Replayed(stored.id, "unrouted", None, None, [], delivery.reason)
        row = replace(_row(hook, stored, delivery), routes_again=True)
        keys = ((f"route {hook.row.id}", stored.id, _ONCE),)
        accepted, status = await self._receiver.submit(hook, request, delivery, row, keys)
        return self._replayed(stored.id, status, accepted, row)

    async def _repeated(self, hook: Hook, stored: StoredDelivery) -> Replayed:
        request, delivery = await self._again(hook, stored)
        first = stored.first_id or stored.id
        now = self._clock.now()
        row = replace(_row(hook, stored, delivery), id=self._receiver.new_id(now), received_at=now, body=None, first_id=first)
        row.reason = row.reason or "replay"
        accepted, status = await self._receiver.submit(hook, request, delivery, row, ())
        return self._replayed(row.id, status, accepted, row)

    def _replayed(self, delivery_id: str, status: str, accepted: DeliveryAccepted, row: NewDelivery) -> Replayed:
        event_id = accepted.id if accepted.duplicate else accepted.event_id  # somebody else brought it to its event just before
        return Replayed(delivery_id, status, event_id, row.event_key, accepted.run_ids, row.reason)

    async def _again(self, hook: Hook, stored: StoredDelivery) -> tuple[Request, Delivery]:
        headers: dict[str, str] = json.loads(stored.headers)
        query = stored.query or ""
        request = Request(stored.method, f"https://localhost/?{query}", tuple(headers.items()), query, stored.body or b"")
        record = Delivery(
            source=hook.row.name,
            status="accepted",
            received_at=stored.received_at.astimezone(UTC).timestamp(),
            method=stored.method,
            headers=headers,
            body=request.body,
            delivery_id=stored.sender_id,
        )
        try:
            delivery = await filtered(hook, route_again(hook.source, request, record))
        except BodyError as error:
            delivery = replace(record, status="unrouted", reason=error.code, detail=error.message)
        return request, delivery


def _row(hook: Hook, stored: StoredDelivery, delivery: Delivery) -> NewDelivery:
    return NewDelivery(
        *hook.key,
        stored.id,
        delivery.status,
        stored.received_at,
        stored.method,
        stored.query,
        stored.headers,
        stored.body,
        stored.body_bytes,
        stored.body_sha256,
        delivery.reason or None,
        delivery.detail or None,
        stored.sender_id,
        event_key=delivery.event_key,
        scope=delivery.scope,
        secret_number=stored.secret_number,
    )
