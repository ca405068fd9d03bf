"""The composition root: the one place that knows every part. It builds them, joins them, starts the loops, and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from litestar import Litestar

from dispatcher.api import create_app
from dispatcher.clock import Clock, SystemClock
from dispatcher.delivery import Courier, CourierBounds, EgressPolicy
from dispatcher.engine.admission import Queue
from dispatcher.loops import Loop
from dispatcher.runtime.batches import Batches
from dispatcher.runtime.bulk import Bulk
from dispatcher.runtime.callbacks import Callbacks
from dispatcher.runtime.cancellation import Cancellation
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.circuits import Circuits
from dispatcher.runtime.claims import Claims
from dispatcher.runtime.crons import Crons
from dispatcher.runtime.deliveries import Deliveries
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
from dispatcher.runtime.pausing import Pausing
from dispatcher.runtime.rates import Rates
from dispatcher.runtime.recorder import Recorder
from dispatcher.runtime.registration import Registration
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
from dispatcher.runtime.waiters import Waiters
from dispatcher.runtime.waits import Waits
from dispatcher.runtime.webhooks import Webhooks
from dispatcher.sealing import Sealer, development_key, parse_master_key
from dispatcher.settings import Settings, SettingsError
from dispatcher.store import bulk as bulk_store
from dispatcher.store import intake as intake_store
from dispatcher.store import partitions, queue, rate_limits, registry, retention, schedules, tasks
from dispatcher.store import streams as streams_store
from dispatcher.store.database import Database, DatabaseUnavailable
from dispatcher.store.embedded import EmbeddedPostgres
from dispatcher.store.migrate import migrate

_log = logging.getLogger(__name__)

DEFAULT_TENANT = "default"
_BATCH = 1_000
_PARTITION_DAYS = 7
_MAINTENANCE = timedelta(minutes=10)
_SEARCH = timedelta(seconds=10)  # between looks for rows to put into segments; while there are any, it goes on
_GATES_KEPT = timedelta(hours=1)  # concurrency groups nobody is in
_CLAIM_REST = 2.0  # claims may keep the database busy for a third of the time
_GATES_REST = 1.0  # and gates for half of it
_RECOUNT = timedelta(milliseconds=50)  # slots freed by callbacks are counted together, not one by one


@dataclass(slots=True)
class Runtime:
    """A running dispatcher: its services, its HTTP application, and its loops by name."""

    services: Services
    app: Litestar
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
            await self.deliveries.drain()
        for loop in self.loops.values():
            await loop.stop()
        try:
            await self.membership.leave()
        except DatabaseUnavailable:
            _log.warning("the database is away: the other dispatchers will notice by themselves that this one has gone")
        await self._exit.aclose()


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


@dataclass(slots=True)
class _Parts:
    services: Services
    membership: Membership
    deliveries: Deliveries
    capacity: Capacity
    claims: Claims
    circuits: Circuits
    settlement: Settlement
    signals: Signals
    graphs: Graphs
    waits: Waits
    batches: Batches


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
) -> _Parts:
    metrics, signals = Metrics(), Signals(database)
    waiters = Waiters(database, clock)
    capacity = Capacity(directory, settings.max_in_flight)
    streams = Streams(database, clock, settings, signals, waiters)
    recorder = Recorder(database, clock, settings, streams)
    settlement = Settlement(database, clock, waiters, signals, metrics, _BATCH)
    circuits = Circuits(database, directory, courier, signals, clock, settings)
    journals = Journals(database, lambda: intake, clock, settings)
    turns = Turns(database, directory, journals, clock, settings)
    deliveries = Deliveries(
        database, directory, capacity, courier, settlement, tokens, clock, settings, metrics, circuits, recorder, turns
    )  # fmt: skip
    waits = Waits(database, capacity, clock, settings, tell=recorder.write)
    membership = Membership(database, directory, capacity, deliveries, settlement, signals, clock, settings, name)
    cancellation = Cancellation(database, directory, settlement, signals, clock, settings)
    gates = Gates(database, directory, capacity, cancellation, signals)
    rates = Rates(database, capacity, clock, deliveries.start, lambda: membership.id)
    intake = Intake(database, directory, capacity, settings, clock, metrics, rates.start, gates, lambda: membership.id)
    graphs = Graphs(database, directory, capacity, settlement, recorder, clock)
    claims = Claims(database, directory, capacity, rates.start, metrics, lambda: membership.id, _BATCH)
    batches = Batches(database, directory, capacity, claims, deliveries.start, lambda: membership.id)
    registration = Registration(database, directory, keyring, courier, egress, signals, clock, settings)
    callbacks = Callbacks(database, directory, deliveries, settlement, recorder, signals, tokens, clock, settings, journals, turns)
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
        crons=Crons(database, intake, clock, settings),
        schedules=Schedules(database, intake, clock, settings),
        timetable=Timetable(database, intake, settings),
        gates=gates,
        rates=rates,
        limits=Limits(database, clock),
        explaining=Explaining(database, directory, capacity),
    )  # fmt: skip
    return _Parts(services, membership, deliveries, capacity, claims, circuits, settlement, signals, graphs, waits, batches)


async def _run(parts: _Parts, settings: Settings, clock: Clock, stack: AsyncExitStack) -> Runtime:
    await parts.membership.join()
    await _Maintenance(parts.services).tick(clock.now())
    await parts.services.webhooks.refresh(clock.now())
    await parts.signals.start()
    stack.push_async_callback(parts.signals.stop)
    stack.push_async_callback(parts.circuits.drain)
    loops = _loops(parts, settings, clock)
    _wire(parts, loops)
    for loop in loops.values():
        loop.start()
        stack.push_async_callback(loop.stop)
    return Runtime(
        parts.services, create_app(parts.services), loops, parts.membership, parts.deliveries, parts.capacity, parts.graphs, stack
    )


def _loops(parts: _Parts, settings: Settings, clock: Clock) -> dict[str, Loop]:
    services, membership = parts.services, parts.membership
    poll, beat = timedelta(seconds=settings.poll), timedelta(seconds=settings.heartbeat)
    database = services.database

    async def batch(now: datetime) -> datetime | None:
        return await parts.batches.tick(now)

    async def claim(now: datetime) -> datetime | None:
        return now if await parts.claims.tick(now, now + poll) else None

    async def timers(now: datetime) -> datetime | None:
        promoted = await queue.promote(database, now, _BATCH)
        parts.capacity.backlog.update(promoted)
        if promoted:
            loops["claim"].wake()
            parts.signals.send("ready")
            services.gates.promoted(promoted)
        more = len(promoted) >= _BATCH
        more |= await membership.end_leases(now, _BATCH)
        more |= await membership.expire(now, _BATCH)
        more |= await services.cancellation.enforce_due(now, _BATCH) >= _BATCH
        return now if more else _later(await tasks.next_timer(database), now)

    async def advance(now: datetime) -> datetime | None:
        return now if await parts.graphs.tick(now, _BATCH) else None

    async def gates(now: datetime) -> datetime | None:
        return now if await services.gates.tick(now, _BATCH) else None

    async def rates(now: datetime) -> datetime | None:
        more = await services.rates.tick(now, _BATCH)
        return now if more else _later(await rate_limits.next_refill(database), now)

    async def waits(now: datetime) -> datetime | None:
        return now if await parts.waits.tick(now) else _later(await parts.waits.next_moment(), now)

    async def cancels(now: datetime) -> datetime | None:
        marked = await tasks.cancelling(database, membership.id)
        parts.deliveries.cancelling(marked)
        return _later(min((row.cancel_at for row in marked), default=None), now)

    async def deadlines(now: datetime) -> datetime | None:
        return _later(await parts.deliveries.time_out(now), now)

    async def heartbeat(now: datetime) -> None:
        await membership.heartbeat(now)

    async def rebalance(now: datetime) -> None:
        await membership.rebalance(now)

    async def reap(now: datetime) -> datetime | None:
        await membership.audit(now)
        return now if await membership.bury(now, _BATCH) else None

    async def refresh(now: datetime) -> None:
        if await services.directory.refresh(now):
            loops["slots"].wake()
        await services.webhooks.refresh(now)
        await services.waiters.look()
        await services.streams.look()

    async def bulk(now: datetime) -> datetime | None:
        return now if await services.bulk.tick(now) else None

    async def probe(now: datetime) -> None:
        await parts.circuits.probe_due(now)

    ticks = {
        "claim": (claim, poll),
        "batches": (batch, poll),
        "timers": (timers, poll),
        "timetable": (services.timetable.tick, poll),
        "graphs": (advance, poll),
        "waits": (waits, poll),
        "gates": (gates, poll),
        "rates": (rates, poll),
        "cancels": (cancels, poll),
        "deadlines": (deadlines, poll),
        "heartbeat": (heartbeat, beat),
        "slots": (rebalance, beat),
        "reap": (reap, beat),
        "registry": (refresh, poll),
        "probe": (probe, poll),
        "bulk": (bulk, poll),
        "search": (services.search.tick, _SEARCH),
        "maintenance": (_Maintenance(services).tick, _MAINTENANCE),
    }
    loops = {name: Loop(name, tick, clock, every) for name, (tick, every) in ticks.items()}
    loops["claim"].rest = _CLAIM_REST
    loops["search"].rest = _CLAIM_REST
    services.search.on_wanted = loops["search"].wake
    loops["gates"].rest = _GATES_REST
    return loops


def _later(moment: datetime | None, now: datetime) -> datetime | None:
    """A moment still to come. What is past and was left alone has its reasons, and is looked at again with the next poll."""
    return moment if moment is not None and moment > now else None


def _wire(parts: _Parts, loops: dict[str, Loop]) -> None:
    """Hints: who wakes whom, within this process and from others."""
    claim, capacity = loops["claim"], parts.capacity

    def requeued(queue: Queue, due_at: datetime) -> None:
        if due_at <= parts.services.clock.now():
            capacity.backlog.add(queue)
            work()
        else:
            loops["timers"].wake_by(due_at)

    def work() -> None:
        claim.wake()
        if parts.batches.wanted:
            loops["batches"].wake()

    def backlogged() -> None:
        work()
        parts.signals.send("ready")

    def revived() -> None:
        backlogged()
        services.gates.queued()

    def graphs_revived(runs: list[tuple[int, str]]) -> None:
        parts.graphs.hint(runs)
        services.gates.queued()

    def registry_changed() -> None:
        parts.claims.sweep()
        loops["slots"].wake()
        loops["timetable"].wake()

    def ready(_arguments: list[str]) -> None:
        parts.claims.sweep()
        work()

    def lease(arguments: list[str]) -> None:
        for argument in arguments:
            tenant, run_id, node, epoch, moment, released = argument.split(":")
            deadline = datetime.fromtimestamp(float(moment), parts.services.clock.now().tzinfo)
            parts.deliveries.extend((int(tenant), run_id, int(node)), int(epoch), deadline, released == "1")

    services, wake_gates = parts.services, loops["gates"].wake
    services.gates.wake = services.limits.on_gates = wake_gates
    services.gates.on_ready = services.rates.on_ready = backlogged
    services.gates.on_graphs = parts.graphs.hint
    services.rates.on_parked = loops["rates"].wake_by
    services.limits.on_rates = loops["rates"].wake
    parts.deliveries.on_unsent = services.rates.unsent
    parts.settlement.on_freed = services.gates.freed
    parts.graphs.on_gated = services.gates.queued
    parts.signals.on("gated", lambda _: services.gates.heard())
    parts.deliveries.on_deadline = loops["deadlines"].wake_by
    parts.services.callbacks.on_detached_end = lambda: loops["slots"].wake_by(parts.services.clock.now() + _RECOUNT)
    capacity.on_free = work
    parts.membership.on_capacity = work
    parts.settlement.on_requeued = requeued
    parts.settlement.on_waits = services.durable.on_waits = loops["waits"].wake
    parts.waits.on_ready = services.durable.on_ready = backlogged
    parts.waits.on_graphs = parts.graphs.hint
    parts.waits.cancel = services.cancellation.cancel
    parts.graphs.on_armed = lambda _: loops["waits"].wake()
    services.intake.on_awaited = lambda _: loops["waits"].wake()
    parts.settlement.on_task_over = parts.graphs.hint
    parts.services.intake.on_graphs = parts.graphs.hint
    parts.services.cancellation.on_graphs = parts.graphs.hint
    parts.graphs.on_ready = backlogged
    parts.graphs.on_stop = parts.services.cancellation.stop
    parts.services.intake.on_backlog = backlogged
    parts.services.registration.on_change = registry_changed
    parts.circuits.on_change = registry_changed
    parts.services.timetable.drops = parts.services.directory.drops
    parts.services.crons.on_due = loops["timetable"].wake_by
    parts.services.schedules.on_due = loops["timetable"].wake_by
    parts.services.cancellation.on_marked = loops["cancels"].wake
    parts.services.replays.on_ready = revived
    parts.services.replays.on_graphs = graphs_revived
    parts.services.bulk.on_made = loops["bulk"].wake
    parts.services.bulk.go_on = lambda tenant_id, run_id: parts.services.durable.reset(tenant_id, run_id, None, None)
    parts.signals.on("ready", ready)
    parts.signals.on("registry", lambda _: loops["registry"].wake())
    parts.signals.on("finished", parts.services.streams.finished_ids)
    parts.signals.on("stream", parts.services.streams.hinted)
    parts.signals.on("cancel", lambda _: loops["cancels"].wake())
    parts.signals.on("bulk", lambda _: loops["bulk"].wake())
    parts.signals.on("lease", lease)


@dataclass(slots=True)
class _Maintenance:
    """Partitions made and dropped, expired keys forgotten, places in gates counted again."""

    services: Services

    async def tick(self, now: datetime) -> datetime | None:
        database, settings = self.services.database, self.services.settings
        await partitions.make(database, now.date(), _PARTITION_DAYS)
        await partitions.drop_before(database, (now - timedelta(days=settings.retention_days)).date())
        await bulk_store.prune(database, now - timedelta(days=settings.retention_days))
        await self.services.timetable.reckon(now)
        while await schedules.prune(database, now - timedelta(days=settings.retention_days), _BATCH) >= _BATCH:
            pass
        while await intake_store.prune_keys(database, now, _BATCH) >= _BATCH:
            pass
        await retention.delete_expired(database, now, settings.retention_days, _BATCH)
        await self.services.search.prune(now, now - timedelta(days=settings.retention_days))
        while await streams_store.prune(database, now - timedelta(days=settings.retention_days), _BATCH) >= _BATCH:
            pass
        await self.services.gates.audit(now, _GATES_KEPT, _BATCH)
        while await rate_limits.prune(database, now, _BATCH) >= _BATCH:
            pass
        return None
