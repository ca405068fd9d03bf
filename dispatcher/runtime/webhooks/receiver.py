"""One request, from its bytes to its answer: verified, read and routed by `webhooks`, stored by intake, answered after the commit."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil
from typing import Final

from dispatcher.clock import Clock
from dispatcher.engine.definitions import EVENT_KEY
from dispatcher.errors import Problem
from dispatcher.ids import IdMaker
from dispatcher.runtime.intake import DeliveryAccepted, DeliveryRequest, EventRequest, Intake
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.webhooks.notes import Notes
from dispatcher.runtime.webhooks.payloads import event_data, new_delivery
from dispatcher.runtime.webhooks.sources import Hook, Sources
from dispatcher.settings import Settings
from dispatcher.store.webhook_deliveries import NewDelivery
from webhooks import Delivery, Ingest, KeyCache, Outcome, Request, Response, Scheme, Submitted, refuse_unknown
from webhooks.body import kept_headers
from webhooks.ingest import DETAIL_CHARS_MAX, SIGNED_AT, UNVERIFIED
from webhooks.response import problem

RESERVED: Final = ("hot:", "schedule:new")
_RETRY_SECONDS: Final = 1
_RETRY_SECONDS_MAX: Final = 3_600
_NO_SCHEME: Final = Scheme(kind="none")
_MAYBE_OUTDATED: Final = frozenset({"mismatch", "no_secret"})
_SEALED: Final = problem(503, "key_unavailable", "Try again", "A secret of this webhook cannot be read just now.")
_RATE_LIMITED: Final = problem(429, "rate_limited", "Too many requests", "This webhook takes fewer requests a second.")


Keys = tuple[tuple[str, str, timedelta], ...]
"""(scope, key, how long): what must all be new."""


@dataclass(frozen=True, slots=True)
class Received:
    """What a request is answered, its record unless there were too many, and what became of it where it was stored."""

    response: Response
    delivery: Delivery | None = None
    accepted: DeliveryAccepted | None = None


class _TooMany(Exception):  # noqa: N818 - reads as what happened
    """A proven delivery came too soon after others."""


@dataclass(slots=True)
class _Storing:
    """Stores the one delivery of a request."""

    receiver: Receiver
    hook: Hook
    request: Request
    now: datetime
    accepted: DeliveryAccepted | None = None

    async def submit(self, delivery: Delivery) -> Submitted:
        """Persist it with its event; raises Problem when nothing could be written.

        What is proven counts for the rate, and nothing else: what anybody can send must not use up what the sender may.
        """
        if not self.hook.bucket.take(self.now, self.receiver.live()):
            raise _TooMany
        self.accepted, status = await self.receiver.store(self.hook, self.request, delivery, self.now)
        if self.accepted.duplicate:
            return Submitted("duplicate", self.accepted.id)
        return Submitted("unrouted" if status == "unrouted" else "accepted", self.accepted.id)


class Receiver:
    """Takes requests for webhooks."""

    def __init__(
        self, intake: Intake, sources: Sources, notes: Notes, keys: KeyCache, clock: Clock, settings: Settings, metrics: Metrics
    ) -> None:
        self._intake = intake
        self._sources = sources
        self._notes = notes
        self._keys = keys
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._ids = IdMaker()
        self.on_capture: Callable[[Hook, str], Awaitable[bool]] = _forget
        self.live: Callable[[], int] = lambda: 1
        """How many processes receive."""
        self.on_filtering: Callable[[Hook, str], None] = lambda _hook, _delivery: None
        self.on_stored: Callable[[Hook], None] = lambda _hook: None

    def new_id(self, now: datetime) -> str:
        """The id of a delivery; later ones sort behind earlier ones."""
        return self._ids.make("dlv", now)

    async def find(self, slug: str, name: str) -> Hook | None:
        """The address, also one that another process has made a moment ago."""
        now = self._clock.now()
        hook = self._sources.find(slug, name, now)
        return hook if hook is not None else await self.newest(slug, name)

    async def newest(self, slug: str, name: str) -> Hook | None:
        """The address as it is now, whoever changed it a moment ago."""
        now = self._clock.now()
        await self._sources.catch_up(now)
        return self._sources.find(slug, name, now)

    def busy(self, hook: Hook, method: str) -> Response | None:
        """The refusal of a request that comes too soon after others; None when there is room."""
        wait = hook.bucket.wait(self._clock.now(), self.live())
        return self._too_many(hook, method, wait, 0) if wait else None

    def _too_many(self, hook: Hook, method: str, wait: float, body_bytes: int) -> Response:
        seconds = max(_RETRY_SECONDS, ceil(min(wait, _RETRY_SECONDS_MAX)))
        self.refused(hook, method, "rate_limited", f"more than {hook.bucket.rate:g} deliveries a second", body_bytes)
        return replace(_RATE_LIMITED, headers=(*_RATE_LIMITED.headers, ("retry-after", str(seconds))))

    def refuse_unknown(self, slug: str, name: str, request: Request) -> Response:
        """The answer for an address that is none: that of a wrong secret, after the work a request with one costs."""
        now = self._clock.now()
        headers = kept_headers(request, _NO_SCHEME)
        delivery = Delivery(
            source=name, status="rejected", received_at=now.timestamp(), method=request.method, headers=headers, body=request.body
        )
        new_delivery((0, slug), self.new_id(now), delivery, request, _NO_SCHEME, now)
        return refuse_unknown(request)

    def refused(self, hook: Hook, method: str, reason: str, detail: str, body_bytes: int) -> None:
        """Write down a request that was refused before its body was read."""
        now = self._clock.now()
        row = NewDelivery(*hook.key, self.new_id(now), "rejected", now, method[:32], None, "{}", None, body_bytes, None, reason, detail)
        self._notes.delivery(hook, row, now)

    async def receive(self, hook: Hook, request: Request) -> Received:
        """Handle one request whose body has been read. Raises Problem when nothing could be stored just now."""
        try:
            received, outcome = await self._tried(hook, request)
            if outcome.delivery.reason in _MAYBE_OUTDATED:
                newer = await self.newest(*hook.place)
                if newer is not None and newer is not hook:  # another process may have added the secret a moment ago
                    hook = newer
                    received, outcome = await self._tried(hook, request)
        except _TooMany:
            wait = hook.bucket.wait(self._clock.now(), self.live())
            return Received(self._too_many(hook, request.method, wait, len(request.body)))
        if outcome.capture is not None and not await self.on_capture(hook, outcome.capture):
            received, outcome = self._told_too_late(outcome)
        elif hook.sealed and outcome.delivery.reason in _MAYBE_OUTDATED:  # what the sender cannot help shall not put it off
            received = replace(received, response=_SEALED)
        self._note(hook, request, outcome)
        return received

    async def _tried(self, hook: Hook, request: Request) -> tuple[Received, Outcome]:
        now = self._clock.now()
        storing = _Storing(self, hook, request, now)
        outcome = await Ingest(storing.submit, self._keys).receive(hook.source, request, now.timestamp())
        return Received(outcome.response, outcome.delivery, storing.accepted), outcome

    def _told_too_late(self, outcome: Outcome) -> tuple[Received, Outcome]:
        """The refusal of a secret that is told to a webhook which has another by now."""
        detail = "this webhook has a secret already; remove it to let the sender tell another"
        delivery = replace(outcome.delivery, status="rejected", reason="mismatch", detail=detail)
        return Received(UNVERIFIED, delivery), replace(outcome, response=UNVERIFIED, delivery=delivery)

    def _note(self, hook: Hook, request: Request, outcome: Outcome) -> None:
        """Write down, beside the way, what was not stored. A secret the sender told is kept sealed and nowhere else."""
        delivery, now = outcome.delivery, self._clock.now()
        if delivery.secret_index is not None:
            self._notes.use(hook, hook.secrets[delivery.secret_index].number, now)
        if delivery.status in {"rejected", "handshake"}:
            row = new_delivery(hook.key, self.new_id(now), delivery, request, hook.source.scheme, now)
            if outcome.capture is not None:
                row.body = None
            self._notes.delivery(hook, row, now)

    async def store(self, hook: Hook, request: Request, delivery: Delivery, now: datetime) -> tuple[DeliveryAccepted, str]:
        """Write a verified delivery, as unrouted where it cannot become an event; answers it with its status. Raises Problem.

        A filter that goes through lists may take a while, so it has its say after the commit.
        """
        later = hook.filter_loops and delivery.status == "accepted"
        delivery = replace(delivery, routed=False) if later else filtered(hook, delivery)
        row = new_delivery(hook.key, self.new_id(now), delivery, request, hook.source.scheme, now)
        if delivery.secret_index is not None:
            row.secret_number = hook.secrets[delivery.secret_index].number
        if later:
            row.status = "filtering"
        accepted, status = await self.submit(hook, request, delivery, row, self._keys_of(hook, delivery))
        self._metrics.deliveries["duplicate" if accepted.duplicate else status] += 1
        if later and not accepted.duplicate:
            self.on_filtering(hook, accepted.id)
        return accepted, status

    async def submit(self, hook: Hook, request: Request, delivery: Delivery, row: NewDelivery, keys: Keys) -> tuple[DeliveryAccepted, str]:
        """Write a row and the event of a delivery in one commit; the row as unrouted where there can be no event. Raises Problem."""
        event, body = self._event(hook, request, delivery, row), row.body
        if event is not None and event.data is body and not row.routes_again:
            row.body = None  # it is written once
        taken = (await self._intake.receive([DeliveryRequest(row, event, keys)]))[0]
        if isinstance(taken, Problem):
            row.status, row.reason, row.detail, row.body = "unrouted", taken.code, taken.detail[:DETAIL_CHARS_MAX], body
            if row.routes_again:
                raise taken
            taken = (await self._intake.receive([DeliveryRequest(row, None, keys)]))[0]
            if isinstance(taken, Problem):
                raise taken
        self.on_stored(hook)
        return taken, row.status

    def _event(self, hook: Hook, request: Request, delivery: Delivery, row: NewDelivery) -> EventRequest | None:
        """The event a delivery becomes; None when it starts nothing. Notes in the row why not, or what was changed."""
        kind = delivery.event_key
        if delivery.status == "unrouted" or not delivery.routed or kind is None:
            return None
        if not EVENT_KEY.fullmatch(kind) or kind == "call" or kind.startswith(RESERVED):
            row.status, row.reason = "unrouted", "event_key_reserved"
            row.detail = "the event key has control characters, or is one the dispatcher keeps for itself"
            return None
        data, changed = event_data(request, delivery.input, hook.source.static_payload is not None)
        if changed:
            row.reason, row.detail = "characters_replaced", "NUL and half surrogate pairs of the body are U+FFFD in the event"
        metadata = json.dumps({"webhook": hook.row.name, "webhook_delivery": row.first_id or row.id})
        return EventRequest(hook.tenant.id, kind, data, metadata, delivery.scope)

    def _keys_of(self, hook: Hook, delivery: Delivery) -> Keys:
        """What must be new: the sender's id for long, a body without an id for as long as a sender takes to repeat it.

        A time of signing is remembered for as long as it may be taken for fresh: it may lie as far ahead as behind.
        """
        scope = f"webhook {hook.row.id}"
        known = delivery.delivery_id is not None
        ttl = timedelta(seconds=self._settings.webhook_dedupe_ttl) if known else timedelta(milliseconds=hook.row.repeat_ms)
        fresh = timedelta(seconds=2 * hook.source.scheme.tolerance)
        keys = ((scope, key, fresh if key.startswith(SIGNED_AT) else ttl) for key in delivery.dedupe_keys)
        return tuple(key for key in keys if key[2])


async def _forget(_hook: Hook, _secret: str) -> bool:
    """Nobody keeps secrets that senders tell."""
    return False


def filtered(hook: Hook, delivery: Delivery) -> Delivery:
    """The delivery as the filter of its webhook leaves it."""
    if hook.filter is None or delivery.status != "accepted":
        return delivery
    try:
        passed = hook.filter(delivery.input, delivery.headers)
    except Exception as error:
        return replace(delivery, status="unrouted", routed=False, reason="filter_failed", detail=str(error)[:DETAIL_CHARS_MAX])
    return delivery if passed else replace(delivery, routed=False, reason="filtered")
