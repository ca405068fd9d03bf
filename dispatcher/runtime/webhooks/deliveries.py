"""Deliveries that are stored: replayed, and routed again once an expression has been mended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from dispatcher import ids
from dispatcher.clock import Clock
from dispatcher.errors import Problem, problem
from dispatcher.runtime.intake import DeliveryAccepted
from dispatcher.runtime.webhooks.payloads import storable
from dispatcher.runtime.webhooks.receiver import Keys, Receiver, filtered
from dispatcher.runtime.webhooks.sources import Hook
from dispatcher.settings import Settings
from dispatcher.store import webhook_deliveries as store
from dispatcher.store.database import Database
from dispatcher.store.webhook_deliveries import DeliveryFilter, NewDelivery, Picked, StoredDelivery
from webhooks import BodyError, Delivery, Request, WebhookError, route_again

_SET: Final = 50
_SET_BYTES: Final = 4 * 1024 * 1024
_OPEN: Final = frozenset({"unrouted", "filtering"})
_REPLAYABLE: Final = frozenset({"accepted", *_OPEN})
_SKEW: Final = timedelta(days=1)
_ONCE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a delivery became when it was replayed.

    `id` is its own where it was routed at last, else that of the replay; None where there was nothing to replay. `status` is accepted,
    unrouted, duplicate (of a replay with the same key) or refused.
    """

    delivery_id: str
    id: str | None
    status: str
    event_id: str | None = None
    event_key: str | None = None
    runs: list[str] = field(default_factory=list)
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Replays:
    """What became of a set, oldest first. `last` is the newest that was looked at, where there may be more behind it."""

    rows: list[Replayed]
    last: str | None


class Deliveries:
    """What may still be done with deliveries."""

    def __init__(self, database: Database, receiver: Receiver, clock: Clock, settings: Settings) -> None:
        self._database = database
        self._receiver = receiver
        self._clock = clock
        self._settings = settings
        self._filters = ThreadPoolExecutor(1, "filter")  # one: what loops must not keep the others from the processor

    async def get(self, tenant_id: int, webhook_id: str, delivery_id: str) -> StoredDelivery:
        """A delivery with its body. Raises Problem not_found."""
        found = await self.load(tenant_id, webhook_id, [delivery_id])
        if not found:
            raise problem("not_found", f"there is no delivery {delivery_id[:100]!r}")
        return found[0]

    async def load(self, tenant_id: int, webhook_id: str, delivery_ids: Sequence[str]) -> list[StoredDelivery]:
        """Those of these deliveries that are there, with their bodies."""
        since = _made_since(delivery_ids)
        if since is None:
            return []
        kept_since = self._clock.now() - timedelta(days=self._settings.retention_days + 1)
        return await store.load(self._database, tenant_id, webhook_id, _sound(delivery_ids), since, kept_since)

    async def replay(self, hook: Hook, delivery_id: str) -> Replayed:
        """Send a delivery through the expressions once more: an unrouted one finds its place, another makes one more event."""
        stored = await self.get(*hook.key, delivery_id)
        became = await self._one(hook, stored, None)
        if became.status == "refused":
            raise problem(became.reason or "not_replayable", _REFUSED[stored.status in _REPLAYABLE].format(stored.status))
        return became

    async def replay_named(self, hook: Hook, delivery_ids: Sequence[str], key: str | None) -> Replays:
        """The same for each of a list. With a `key` a delivery is replayed once, however often it is asked for with that key."""
        since = _made_since(delivery_ids)
        picked = await store.named(self._database, *hook.key, _sound(delivery_ids), since) if since is not None else []
        rows = [row async for row in self._each(hook, picked, key)]
        known = {row.delivery_id for row in rows}
        missing = [Replayed(name, None, "refused", reason="not_found") for name in dict.fromkeys(delivery_ids) if name not in known]
        return Replays(rows + missing, None)

    async def replay_chosen(self, hook: Hook, wanted: DeliveryFilter, after: str, limit: int, key: str | None) -> Replays:
        """The same for at most `limit` deliveries a filter finds behind the id `after`, oldest first."""
        picked = await store.chosen(self._database, *hook.key, wanted, after, limit)
        rows = [row async for row in self._each(hook, picked, key)]
        return Replays(rows, picked[-1].id if len(picked) == limit else None)

    async def reroute(self, hook: Hook, wanted: DeliveryFilter, after: str, limit: int) -> Replays:
        """Give at most `limit` unrouted deliveries behind the id `after` to the expressions as they are now."""
        picked = await store.unrouted(self._database, *hook.key, wanted, after, limit)
        rows = [row async for row in self._each(hook, picked, None)]
        return Replays(rows, picked[-1].id if len(picked) == limit else None)

    async def _each(self, hook: Hook, picked: Sequence[Picked], key: str | None) -> AsyncIterator[Replayed]:
        """Sets of them, each loaded at once and written in shared commits: no larger than anybody would notice."""
        at = 0
        while at < len(picked):
            size = taken = 0
            while at + taken < len(picked) and taken < _SET and (taken == 0 or size + picked[at + taken].body_bytes <= _SET_BYTES):
                size += picked[at + taken].body_bytes
                taken += 1
            found = {one.id: one.status for one in picked[at : at + taken]}
            loaded = await self.load(*hook.key, list(found))
            for became in await asyncio.gather(*(self._chosen(hook, found[stored.id], stored, key) for stored in loaded)):
                yield became
            at += taken

    async def _chosen(self, hook: Hook, status: str, stored: StoredDelivery, key: str | None) -> Replayed:
        """One that had this status when it was chosen. One that somebody has brought to its event since then is not replayed besides."""
        if status in _OPEN and stored.status not in _OPEN:
            return Replayed(stored.id, stored.id, stored.status, stored.event_id, stored.event_key, reason=stored.reason)
        return await self._one(hook, stored, key)

    async def _one(self, hook: Hook, stored: StoredDelivery, key: str | None) -> Replayed:
        if stored.status not in _REPLAYABLE or stored.body is None:
            return Replayed(stored.id, None, "refused", reason="not_replayable")
        try:
            return await (self.route(hook, stored) if stored.status in _OPEN else self._repeated(hook, stored, key))
        except Problem as refused:
            if refused.status == 503:
                raise
            return Replayed(stored.id, stored.id, "unrouted", reason=refused.code)

    async def route(self, hook: Hook, stored: StoredDelivery) -> Replayed:
        """Bring a delivery without an event to its event, once, whoever else may be doing the same. Raises Problem."""
        request, delivery = await self._again(hook, stored)
        row = replace(_row(hook, stored, delivery), routes_again=True)
        if delivery.status == "unrouted":
            if stored.status == "filtering":
                await store.write(self._database, [row])
            return Replayed(stored.id, stored.id, "unrouted", reason=delivery.reason)
        keys = ((f"route {hook.row.id}", stored.id, _ONCE),)
        try:
            accepted, status = await self._receiver.submit(hook, request, delivery, row, keys)
        except Problem as refused:
            if refused.status == 503 or stored.status != "filtering":
                raise
            await store.write(self._database, [row])
            return Replayed(stored.id, stored.id, "unrouted", reason=refused.code)
        event_id = accepted.event_id
        if accepted.duplicate and accepted.id.startswith("evt_"):
            event_id = accepted.id  # somebody else brought it to its event just before
        return self._replayed(stored, stored.id, status, event_id, accepted, row)

    async def _repeated(self, hook: Hook, stored: StoredDelivery, key: str | None) -> Replayed:
        request, delivery = await self._again(hook, stored)
        first = stored.first_id or stored.id
        now = self._clock.now()
        row = replace(_row(hook, stored, delivery), id=self._receiver.new_id(now), received_at=now, body=None, first_id=first, silent=True)
        row.reason = row.reason or "replay"
        keys: Keys = ((f"replay {hook.row.id}", f"{key} {first}", _ONCE),) if key is not None else ()
        accepted, status = await self._receiver.submit(hook, request, delivery, row, keys)
        if accepted.duplicate:
            return Replayed(stored.id, accepted.id, "duplicate")
        return self._replayed(stored, row.id, status, accepted.event_id, accepted, row)

    def _replayed(
        self, stored: StoredDelivery, id_: str, status: str, event_id: str | None, accepted: DeliveryAccepted, row: NewDelivery
    ) -> Replayed:
        return Replayed(stored.id, id_, status, event_id, row.event_key, accepted.run_ids, row.reason)

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
            delivery = route_again(hook.source, request, record)
        except WebhookError as error:
            code = error.code if isinstance(error, BodyError) else "invalid_body"
            return request, replace(record, status="unrouted", reason=code, detail=error.message)
        if hook.filter_loops:
            return request, await asyncio.get_running_loop().run_in_executor(self._filters, filtered, hook, delivery)
        return request, filtered(hook, delivery)


_REFUSED: Final = {
    False: "a delivery that is {} has nothing to replay",
    True: "the body of this delivery is no longer kept",
}


def _sound(delivery_ids: Sequence[str]) -> list[str]:
    return [one for one in delivery_ids if "\x00" not in one and ids.created_at(one) is not None]


def _made_since(delivery_ids: Sequence[str]) -> datetime | None:
    """A moment before all of these deliveries came, by what their ids say; None when none is an id."""
    made = [moment for one in _sound(delivery_ids) if (moment := ids.created_at(one)) is not None]
    return min(made) - _SKEW if made else None


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
        storable(delivery.detail) or None,
        stored.sender_id,
        event_key=delivery.event_key,
        scope=delivery.scope,
        secret_number=stored.secret_number,
    )
