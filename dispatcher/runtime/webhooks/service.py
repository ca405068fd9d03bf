"""The parts of webhooks, joined."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dispatcher.clock import Clock
from dispatcher.delivery import Courier
from dispatcher.errors import problem
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.intake import DeliveryAccepted, Intake
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.webhooks.arrivals import Arrivals
from dispatcher.runtime.webhooks.deliveries import Deliveries
from dispatcher.runtime.webhooks.filtering import Filtering
from dispatcher.runtime.webhooks.management import Management
from dispatcher.runtime.webhooks.notes import Notes
from dispatcher.runtime.webhooks.receiver import Received, Receiver
from dispatcher.runtime.webhooks.samples import Sample, sample_of
from dispatcher.runtime.webhooks.signing import NotSignable, sign
from dispatcher.runtime.webhooks.sources import Hook, Sources
from dispatcher.sealing import Sealer
from dispatcher.settings import Settings
from dispatcher.store.database import Database
from webhooks import KeyCache, KeyRequest
from webhooks.ingest import Status

_PARTY = "webhooks"


@dataclass(frozen=True, slots=True)
class Tested:
    """A sample that was signed and sent the way of any other request."""

    status: int
    received: Received


class Webhooks:
    """Everything the edges may ask of webhooks."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        sealer: Sealer,
        intake: Intake,
        courier: Courier,
        clock: Clock,
        settings: Settings,
        metrics: Metrics,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        async def fetch(wanted: KeyRequest) -> bytes:
            return await courier.fetch(wanted.url, wanted.body, _PARTY)

        async def saved() -> None:
            await changed()
            await self.sources.refresh(clock.now())

        self._clock = clock
        self._settings = settings
        self._notes = Notes(database, metrics)
        self.sources = Sources(database, directory, sealer, (settings.webhook_refused_rate, settings.webhook_refused_burst))
        self.receiver = Receiver(intake, self.sources, self._notes, KeyCache(fetch), clock, settings, metrics)
        self.management = Management(database, self.sources, clock, settings, saved)
        self.deliveries = Deliveries(database, self.receiver, clock, settings)
        self.arrivals = Arrivals(clock, timedelta(seconds=settings.poll))
        self.receiver.on_stored = self.arrivals.came
        self._filtering = Filtering(database, self.deliveries, self.sources)
        self.receiver.on_capture = self.management.capture
        self.receiver.on_filtering = self._filtering.add

    async def refresh(self, now: datetime) -> None:
        """Take note of what has changed, and of what other processes have left behind."""
        await self.sources.refresh(now)
        await self._filtering.look(now)

    async def drain(self) -> None:
        """Wait for what is being written down beside the way; what waits for its filter is left to others."""
        self.arrivals.close()
        await self._filtering.stop()
        await self._notes.drain()

    async def settled(self) -> None:
        """Wait for whatever is still to become of what was answered."""
        await self._filtering.settled()
        await self._notes.drain()

    def url(self, slug: str, name: str) -> str:
        """Where senders post."""
        return f"{self._settings.base_url()}/hooks/{slug}/{name}"

    async def hook(self, slug: str, name: str) -> Hook:
        """A webhook as it receives by now, also when another process has just changed it. Raises Problem unknown_webhook."""
        hook = await self.receiver.newest(slug, name)
        if hook is None:
            raise problem("unknown_webhook", f"there is no webhook {name[:200]!r}")
        return hook

    async def test(self, hook: Hook, sample: Sample | None) -> Tested:
        """Sign a sample with the webhook's own newest secret and receive it. Raises Problem not_signable."""
        scheme, unique = hook.source.scheme, f"test_{secrets.token_hex(12)}"
        if not hook.secrets and scheme.kind != "none":
            raise problem("not_signable", "this webhook has no secret yet")
        chosen = sample or sample_of(hook.row.source)
        request = chosen.request(self.url(hook.tenant.slug, hook.row.name), "" if scheme.id_signed else unique)
        secret = hook.secrets[0].text if hook.secrets else ""
        try:
            signed = sign(scheme, request, secret, dict(hook.source.params), self._clock.now(), unique)
        except NotSignable as error:
            raise problem("not_signable", str(error)) from None
        received = await self.receiver.receive(hook, signed)
        if hook.filter_loops and received.accepted is not None and not received.accepted.duplicate:
            received = await self._after_filter(hook, received, received.accepted)
        return Tested(received.response.status, received)

    async def _after_filter(self, hook: Hook, received: Received, accepted: DeliveryAccepted) -> Received:
        """What became of a delivery once its filter has had its say."""
        stored = await self.deliveries.get(*hook.key, accepted.id)
        if stored.status == "filtering":
            became = await self.deliveries.route(hook, stored)
            accepted = DeliveryAccepted(accepted.id, False, became.event_id, became.runs)
            stored = await self.deliveries.get(*hook.key, accepted.id)
        assert received.delivery is not None, "it was stored"
        status: Status = "unrouted" if stored.status == "unrouted" else "accepted"
        delivery = replace(received.delivery, status=status, reason=stored.reason or "", detail=stored.detail or "")
        return replace(received, delivery=delivery, accepted=replace(accepted, event_id=stored.event_id))
