"""The composition root: the one place that knows every part. It builds them, joins them, starts the loops, and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

from dispatcher.api import App, create_app
from dispatcher.app.hints import Hints
from dispatcher.app.maintenance import Maintenance
from dispatcher.app.parts import Parts
from dispatcher.app.ticks import Ticks
from dispatcher.clock import Clock, SystemClock
from dispatcher.delivery import Courier, CourierBounds, EgressPolicy
from dispatcher.engine.admission import Savings
from dispatcher.loops import Loop
from dispatcher.runtime.asides import Asides
from dispatcher.runtime.batches import Batches
from dispatcher.runtime.blobs import Blobs
from dispatcher.runtime.bulk import Bulk
from dispatcher.runtime.callbacks import Callbacks
from dispatcher.runtime.cancellation import Cancellation
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.circuits import Circuits
from dispatcher.runtime.claims import Claims
from dispatcher.runtime.crons import Crons
from dispatcher.runtime.deliveries import Deliveries
from dispatcher.runtime.departures import Departures
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.durable import Durable
from dispatcher.runtime.explaining import Explaining
from dispatcher.runtime.filters import Filters
from dispatcher.runtime.gates import Gates
from dispatcher.runtime.graphs import Graphs
from dispatcher.runtime.intake import Intake
from dispatcher.runtime.journals import Journals
from dispatcher.runtime.keyring import Keyring
from dispatcher.runtime.limits import Limits
from dispatcher.runtime.membership import Membership
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.pace import Pace
from dispatcher.runtime.pausing import Pausing
from dispatcher.runtime.rates import Rates
from dispatcher.runtime.recorder import Recorder
from dispatcher.runtime.registration import Registration
from dispatcher.runtime.renewals import Renewals
from dispatcher.runtime.replays import Replays
from dispatcher.runtime.schedules import Schedules
from dispatcher.runtime.search import Search
from dispatcher.runtime.services import Services
from dispatcher.runtime.settlement import Settlement
from dispatcher.runtime.signals import Signals
from dispatcher.runtime.streams import Streams
from dispatcher.runtime.timetable import Timetable
from dispatcher.runtime.tokens import TokenMaker
from dispatcher.runtime.turns import Turns
from dispatcher.runtime.unschedulable import Unschedulable
from dispatcher.runtime.waiters import Waiters
from dispatcher.runtime.waits import Waits
from dispatcher.runtime.webhooks import Webhooks
from dispatcher.sealing import Sealer, development_key, parse_master_key
from dispatcher.settings import Settings, SettingsError
from dispatcher.store import registry
from dispatcher.store.database import Database, DatabaseUnavailable
from dispatcher.store.embedded import EmbeddedPostgres
from dispatcher.store.migrate import migrate

_log = logging.getLogger(__name__)

DEFAULT_TENANT = "default"
_LAST_WORDS = timedelta(seconds=5)  # after the grace, for writing what came of attempts that were still open
_SET = 250  # tasks leased, or outcomes written, in one statement: more would save little and keep others waiting


@dataclass(slots=True, repr=False)  # it would write out the whole program
class Runtime:
    """A running dispatcher: its services, its HTTP application, and its loops by name."""

    services: Services
    app: App
    loops: dict[str, Loop]
    membership: Membership
    deliveries: Deliveries
    capacity: Capacity
    graphs: Graphs
    _exit: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def stop(self, grace: timedelta = timedelta(seconds=25)) -> None:
        """Stop taking work, let what is open end for up to `grace`, then leave; what is still open is picked up by others."""
        self.capacity.draining = True
        self.services.streams.close()
        await self.loops["claim"].stop()
        await self.services.intake.drain()
        await self.services.rates.drain()
        await self.services.webhooks.drain()
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await self.deliveries.drain()
            await self.graphs.drain()
        except TimeoutError:
            _log.warning("%d attempts were still open when the grace ended", len(self.deliveries.open))
            self.deliveries.let_go()
            await self._last_words()
        for loop in self.loops.values():
            await loop.stop()
        try:
            await self.membership.leave()
        except DatabaseUnavailable:
            _log.warning("the database is away: the other dispatchers will notice by themselves that this one has gone")
        await self._exit.aclose()

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(_LAST_WORDS.total_seconds()):
                await self.deliveries.drain()
        except TimeoutError:
            _log.warning("what came of attempts cannot be written: the other dispatchers will find them open")
            await self.deliveries.cut_short()


async def start(settings: Settings, clock: Clock | None = None, *, name: str | None = None) -> Runtime:
    """Start a dispatcher: connect (or start the embedded Postgres), migrate, join, run the loops.

    Raises SettingsError for settings that cannot work, DatabaseUnavailable when a configured database cannot be reached.
    """
    clock = clock or SystemClock()
    stack = AsyncExitStack()
    try:
        return await _start(settings, clock, name or f"{socket.gethostname()}-{os.getpid()}", stack)
    except BaseException:
        await stack.aclose()
        raise


async def _start(settings: Settings, clock: Clock, name: str, stack: AsyncExitStack) -> Runtime:
    master_key = _master_key(settings)
    database = await _database(settings, clock, stack)
    sealer = Sealer(master_key)
    keyring = Keyring(database, sealer)
    tenant = await registry.create_tenant(database, DEFAULT_TENANT, "Default", clock.now())
    await keyring.create_first(tenant.id, clock.now())
    directory = Directory(database, settings, keyring)
    await directory.refresh(clock.now())
    own = f"127.0.0.0/8:{settings.port},[::1/128]:{settings.port}"  # an endpoint that is this server could only harm
    egress = EgressPolicy.parse(allow=settings.egress_allow, deny=own, dev=settings.dev, allow_http=settings.allow_http)
    courier = Courier(
        egress,
        clock=lambda: int(clock.now().timestamp()),
        user_agent=f"dispatcher/{version('handlers-dispatcher')}",
        bounds=CourierBounds(excerpt=settings.response_excerpt_bytes),
    )
    stack.push_async_callback(courier.aclose)
    parts = _join(settings, clock, database, directory, keyring, courier, egress, TokenMaker(master_key), name)
    return await _run(parts, settings, clock, stack)


def _master_key(settings: Settings) -> bytes:
    if settings.master_key:
        return parse_master_key(settings.master_key)
    if settings.dev:
        return development_key(Path(settings.data_dir))
    raise SettingsError("DISPATCHER_MASTER_KEY is required: base64 of 32 random bytes; make one with: openssl rand -base64 32")


async def _database(settings: Settings, clock: Clock, stack: AsyncExitStack) -> Database:
    dsn = settings.database_url
    if not dsn:
        postgres = await EmbeddedPostgres.start(Path(settings.data_dir) / "postgres")
        stack.push_async_callback(postgres.stop)
        dsn = postgres.dsn
    await migrate(dsn, clock.now())
    database = await Database.open(
        dsn,
        max_size=settings.database_connections,
        reserve=settings.database_reserve,
        acquire_timeout=settings.database_timeout,
        command_timeout=settings.database_timeout,
    )
    stack.push_async_callback(database.aclose)
    return database


def _join(
    settings: Settings,
    clock: Clock,
    database: Database,
    directory: Directory,
    keyring: Keyring,
    courier: Courier,
    egress: EgressPolicy,
    tokens: TokenMaker,
    name: str,
) -> Parts:
    metrics, signals, pace = Metrics(), Signals(database), Pace()
    waiters = Waiters(database, clock)
    capacity = Capacity(directory, settings.max_in_flight, Savings(timedelta(seconds=settings.slot_patience)))
    streams = Streams(database, clock, settings, signals, waiters)
    recorder = Recorder(database, clock, settings, streams)
    settlement = Settlement(database, clock, waiters, signals, metrics, _SET)
    circuits = Circuits(database, directory, courier, signals, clock, settings)
    journals = Journals(database, lambda: intake, clock, settings)
    turns = Turns(database, directory, journals, clock, settings)
    blobs = Blobs(database, clock, settings)
    deliveries = Deliveries(
        database, directory, capacity, courier, settlement, tokens, clock, settings, metrics, circuits, recorder, turns, blobs, pace
    )  # fmt: skip
    membership = Membership(database, directory, capacity, deliveries, settlement, signals, clock, settings, name)
    cancellation = Cancellation(database, directory, settlement, signals, clock, settings)
    gates = Gates(database, directory, capacity, cancellation, signals, settings)
    rates = Rates(database, capacity, clock, deliveries.start, lambda: membership.id)
    departures = Departures(rates.start, pace)
    intake = Intake(database, directory, capacity, settings, clock, metrics, departures, gates, lambda: membership.id)
    graphs = Graphs(database, directory, capacity, settlement, recorder, clock)
    claims = Claims(database, directory, capacity, departures, metrics, clock, lambda: membership.id, _SET)
    waits = Waits(database, capacity, clock, settings, claims.resume, tell=recorder.write)
    batches = Batches(database, directory, capacity, claims, deliveries.start, clock, lambda: membership.id)
    registration = Registration(database, directory, keyring, courier, egress, signals, clock, settings)
    callbacks = Callbacks(database, directory, deliveries, settlement, recorder, signals, tokens, clock, settings, journals, turns, blobs)
    callbacks.on_labels = registration.relabel
    circuits.rediscover = registration.rediscover
    webhooks = Webhooks(database, directory, keyring.sealer, intake, courier, clock, settings, metrics, registration.changed)
    webhooks.receiver.live = lambda: signals.peers + 1
    replays = Replays(database, directory, capacity, clock)
    services = Services(
        settings, clock, database, intake, waiters, cancellation, registration, callbacks, directory, metrics, settlement, capacity,
        webhooks,
        durable=Durable(database, directory, capacity, journals, turns, settlement, tokens, replays, clock, settings),
        filters=Filters(database, directory, clock, settings, registration.changed),
        replays=replays,
        bulk=Bulk(database, replays, cancellation, signals, clock, settings),
        streams=streams,
        search=Search(database, clock, settings),
        pausing=Pausing(database, directory, clock, registration.changed),
        asides=Asides(database, directory, gates, registration.changed),
        renewals=Renewals(database, directory, registration.changed),
        unschedulable=Unschedulable(database, directory, gates, registration.changed),
        crons=Crons(database, intake, clock, settings),
        schedules=Schedules(database, intake, clock, settings),
        timetable=Timetable(database, intake, settings),
        gates=gates,
        rates=rates,
        limits=Limits(database, clock),
        explaining=Explaining(database, directory, capacity, clock),
        blobs=blobs,
    )  # fmt: skip
    return Parts(services, membership, deliveries, capacity, claims, circuits, settlement, signals, graphs, waits, batches)


async def _run(parts: Parts, settings: Settings, clock: Clock, stack: AsyncExitStack) -> Runtime:
    await parts.membership.join()
    await Maintenance(parts.services).begin(clock.now())
    await parts.services.webhooks.refresh(clock.now())
    await parts.signals.start()
    stack.push_async_callback(parts.signals.stop)
    stack.push_async_callback(parts.circuits.drain)
    loops = Ticks(parts).make()
    Hints(parts, loops).wire()
    for loop in loops.values():
        loop.start()
        stack.push_async_callback(loop.stop)
    return Runtime(
        parts.services, create_app(parts.services), loops, parts.membership, parts.deliveries, parts.capacity, parts.graphs, stack
    )
