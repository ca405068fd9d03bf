"""Endpoints' circuits: opened by what deliveries saw, probed by a loop, closed by an answer that makes sense."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from dispatcher.clock import Clock
from dispatcher.delivery import Courier, DiscoveryError
from dispatcher.engine import health
from dispatcher.runtime.directory import Directory, Endpoint
from dispatcher.runtime.signals import Signals
from dispatcher.settings import Settings
from dispatcher.store import registry, renewals
from dispatcher.store.database import Database
from dispatcher.store.registry import Probe

_log = logging.getLogger(__name__)

_ASK_AGAIN = timedelta(seconds=10)
_MOST_NAMES = 16  # other names of one endpoint's versions that are remembered


class Circuits:
    """Changes circuits, each at most once at a time, and probes the open ones."""

    def __init__(
        self, database: Database, directory: Directory, courier: Courier, signals: Signals, clock: Clock, settings: Settings
    ) -> None:
        self._database = database
        self._directory = directory
        self._courier = courier
        self._signals = signals
        self._clock = clock
        self._first = timedelta(seconds=settings.probe_seconds)
        self._longest = timedelta(seconds=settings.probe_max_seconds)
        self._asked: dict[tuple[int, str], datetime] = {}
        self._same: dict[tuple[int, str], deque[tuple[str, str]]] = {}
        self._changing: dict[tuple[int, str], asyncio.Task[None]] = {}
        self.rediscover: Callable[[Endpoint, str], Awaitable[bool]] | None = None

    def change(self, endpoint: Endpoint, circuit: health.Circuit, code: str) -> None:
        """Set an endpoint's circuit soon; a change already under way is enough."""
        if endpoint.place in self._changing or not self._is_current(endpoint):
            return
        self._spawn(endpoint, self._set(endpoint, circuit, code))

    def recovered(self, endpoint: Endpoint) -> None:
        """The endpoint did some work since its circuit was closed: its next relapse is a first one again."""
        if endpoint.place not in self._changing and self._is_current(endpoint):
            self._spawn(endpoint, self._forget_probes(endpoint))

    async def _forget_probes(self, endpoint: Endpoint) -> None:
        async with self._database.transaction(lane="settle") as conn:
            await registry.hold_alone(conn, endpoint.tenant_id)
            if await registry.recovered(conn, endpoint.tenant_id, endpoint.id):
                await registry.bump(conn, endpoint.tenant_id)
        await self._directory.refresh(self._clock.now())
        self._signals.send("registry")

    def drifted(self, endpoint: Endpoint, version: str) -> None:
        """An answer named a version we do not know: ask for the manifest, not more often than every few seconds.

        What turns out to be registered under another name is remembered, and not asked about again.
        """
        if (endpoint.target.version, version) in self._same.get(endpoint.place, ()):
            return
        now, asked = self._clock.now(), self._asked.get(endpoint.place)
        if endpoint.static or endpoint.place in self._changing or (asked is not None and now < asked + _ASK_AGAIN):
            return
        if self.rediscover is not None and self._is_current(endpoint):
            self._asked[endpoint.place] = now
            _log.info("endpoint %s answers as version %s", endpoint.name, version)
            self._spawn(endpoint, self._rediscover(endpoint, version, self.rediscover(endpoint, version)))

    async def _rediscover(self, endpoint: Endpoint, version: str, is_same: Awaitable[bool]) -> None:
        if await is_same:
            self._same.setdefault(endpoint.place, deque(maxlen=_MOST_NAMES)).append((endpoint.target.version, version))

    def _is_current(self, endpoint: Endpoint) -> bool:
        known = self._directory.endpoint(endpoint.place)
        return known is not None and known.open and known.target.version == endpoint.target.version

    def _spawn(self, endpoint: Endpoint, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception:
                _log.exception("the state of endpoint %s could not be changed", endpoint.name)
            finally:
                del self._changing[endpoint.place]

        self._changing[endpoint.place] = asyncio.get_running_loop().create_task(guarded())

    async def _set(self, endpoint: Endpoint, circuit: health.Circuit, code: str) -> None:
        now = self._clock.now()
        probe_at = health.next_probe(endpoint.probes, now, self._first, self._longest) if circuit == "open" else None
        await self._write(endpoint.tenant_id, endpoint.id, circuit, code or None, now, probe_at)
        _log.warning("endpoint %s is %s (%s)", endpoint.name, circuit, code)

    async def _write(
        self, tenant_id: int, endpoint_id: str, circuit: str, code: str | None, now: datetime, probe_at: datetime | None
    ) -> None:
        async with self._database.transaction(lane="settle") as conn:
            await registry.hold_alone(conn, tenant_id)
            if await registry.set_circuit(conn, tenant_id, endpoint_id, circuit, code, now, probe_at):
                await registry.bump(conn, tenant_id)
                if circuit == "closed":
                    await renewals.returned(conn, tenant_id, endpoint_id, now)
        await self._directory.refresh(now)
        self._signals.send("registry")

    async def probe_due(self, now: datetime) -> None:
        """Try the endpoints whose probe is due, all at once."""
        again_at = now + self._longest
        probes = await registry.due_probes(self._database, now, again_at)
        if probes:
            await asyncio.gather(*(self._probe(probe, now) for probe in probes))

    async def _probe(self, probe: Probe, now: datetime) -> None:
        endpoint = self._directory.endpoint((probe.tenant_id, probe.endpoint_id))
        if endpoint is None:
            return
        if await self.answers(endpoint):
            await self._write(probe.tenant_id, probe.endpoint_id, "closed", None, self._clock.now(), None)
            _log.info("endpoint %s answers again", endpoint.name)
            return
        at = health.next_probe(probe.probes, now, self._first, self._longest)
        await registry.schedule_probe(self._database, probe.tenant_id, probe.endpoint_id, at)

    async def answers(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint looks alive: its manifest for one that has one, any connection for a plain one.

        A plain endpoint says nothing to a GET that could be trusted, so being reached is all that is asked; should its next task
        find it broken again, the circuit opens again and no retry is spent.
        """
        target = endpoint.target
        try:
            if endpoint.static:
                return await self._courier.reachable(target.url, endpoint.id)
            await self._courier.discover(target.url, target.signers, target.headers, endpoint.id)
        except DiscoveryError:
            return False
        return True

    async def drain(self) -> None:
        """Wait for changes under way."""
        while self._changing:
            await asyncio.wait(list(self._changing.values()))
