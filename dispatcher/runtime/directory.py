"""This process's picture of what is registered: tenants, workflows, endpoints, routes. Refreshed when a version moves on.

A picture may be old; nothing depends on its being new. Intake is guarded by the registry version in the statement that
writes, claims read the task rows themselves, and everything else is a moment behind at most.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import msgspec

from dispatcher.delivery import BatchLimits, Target
from dispatcher.engine.admission import NOWHERE, Place, Queue, Route, endpoint_at, place_of, queue_of
from dispatcher.engine.attempts import Policy
from dispatcher.engine.definitions import STORED, Definition, DefinitionError, Limits, TaskDefinition, parse_definition
from dispatcher.engine.definitions.placement import Label
from dispatcher.engine.filters import Filter, FilterIndex, index
from dispatcher.engine.flow import Plan
from dispatcher.engine.graphs import Graph
from dispatcher.engine.placement import Host, Requirement, tiers
from dispatcher.engine.shared_limits import agreed, disagreements
from dispatcher.engine.triggers import EventIndex
from dispatcher.runtime.keyring import Keyring, Signers
from dispatcher.runtime.manifests import StoredManifest
from dispatcher.runtime.rereading import Rereading
from dispatcher.sealing import SealError
from dispatcher.settings import Settings
from dispatcher.store import registry
from dispatcher.store.database import Database
from dispatcher.store.filters import FilterRow
from dispatcher.store.registry import EndpointRow, Registered, Tenant, WorkflowRow

_log = logging.getLogger(__name__)

PENDING = "-"
_CATCH_UP_SECONDS = 0.01  # between looks for what is not known here, at the least
_MOST_ROUTES = 20_000  # of queues, that are remembered: each group of a batch has one of its own


@dataclass(frozen=True, slots=True)
class Workflow:
    """One version of a workflow. `policies` are what its tasks are retried by, and the timeouts theirs, by node."""

    tenant_id: int
    id: int
    number: int
    definition: Definition
    policies: tuple[Policy, ...]
    schedule_ms: tuple[int, ...]
    execution_ms: tuple[int, ...]
    graph: Graph
    plan: Plan | None = None

    def schedule_timeout(self, node: int) -> timedelta:
        """How long a task waits whose time begins again, also one of another version, that had more nodes."""
        return timedelta(milliseconds=self.schedule_ms[node] if node < len(self.schedule_ms) else self.schedule_ms[0])

    @property
    def new_graph(self) -> str | None:
        """The letters of a run that has just begun, None where its one task is all there is to it."""
        return PENDING * len(self.definition.tasks) if self.definition.is_graph else None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as this process pushes to it; `place` is where its slots are counted, `answers_as` the version its answers name. It is
    `open` where it takes work now, `there` where it does or will once its circuit closes: neither paused nor retired. One that is
    `draining` takes only what has to stay there.
    """

    tenant_id: int
    id: str
    name: str
    slots: int
    open: bool
    there: bool
    draining: bool
    static: bool
    target: Target
    answers_as: str
    verified: str | None
    probes: int
    place: Place
    labels: Mapping[str, Label]

    @property
    def host(self) -> Host:
        """As tasks are placed by it."""
        return Host(self.id, self.labels, self.slots, self.draining)


@dataclass(frozen=True, slots=True)
class Picture:
    """One tenant's registry at one version, as it is until `good_until`, when a secret that was replaced stops signing."""

    tenant: Tenant
    workflows: dict[str, Workflow]
    by_id: dict[int, Workflow]
    events: EventIndex
    endpoints: dict[str, Endpoint]
    routes: dict[Queue, tuple[Place, ...]]
    good_until: datetime | None
    filters: FilterIndex = field(default_factory=dict)
    paused: dict[int, WorkflowRow] = field(default_factory=dict)
    held: dict[Queue, tuple[Place, ...]] = field(default_factory=dict)
    """Routes of paused workflows."""
    asking: frozenset[int] = frozenset()
    """Workflows whose tasks may ask something of the endpoint they run at."""
    batching: frozenset[int] = frozenset()
    """Workflows whose tasks are run many at once."""
    aside: frozenset[int] = frozenset()
    """Workflows whose runs take no places in limits for now, and stand in no line."""
    returning: frozenset[int] = frozenset()
    """Workflows of which tasks come back into line that nothing could take: who comes may be one that belongs behind them."""
    found: dict[Queue, Route] = field(default_factory=dict)

    def outlived(self, now: datetime) -> bool:
        """Whether time alone has made it old."""
        return self.good_until is not None and now >= self.good_until

    def limited(self, workflow_id: int) -> bool:
        """Whether tasks of a workflow pass gates of their own, by its newest version."""
        workflow = self.by_id.get(workflow_id)
        return workflow is not None and workflow.plan is not None and any(gates for gates, _ in workflow.plan.tasks)


@dataclass(slots=True)
class Directory:
    """Pictures of all tenants. `refresh` brings them up to date; the rest answers from memory."""

    database: Database
    settings: Settings
    keyring: Keyring
    pictures: dict[int, Picture] = field(default_factory=dict)
    slugs: dict[str, int] = field(default_factory=dict)
    on_change: Callable[[], None] = lambda: None
    """Called when something newer has been read, whoever asked for it."""
    _versions: dict[tuple[int, int, int], Workflow] = field(default_factory=dict)
    _filters: dict[int, dict[FilterRow, Filter]] = field(default_factory=dict)
    _rereading: Rereading = field(init=False)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._rereading = Rereading(self.refresh, _CATCH_UP_SECONDS)

    @property
    def limits(self) -> Limits:
        """The bounds definitions are read against."""
        s = self.settings
        return Limits(
            s.max_retries,
            timedelta(seconds=s.execution_timeout),
            timedelta(seconds=s.schedule_timeout),
            timedelta(seconds=s.max_execution_timeout),
        )

    async def refresh(self, now: datetime) -> None:
        """Read again whatever has a newer version."""
        async with self._lock:
            for tenant in await registry.tenants(self.database):
                self.slugs[tenant.slug] = tenant.id
                picture = self.pictures.get(tenant.id)
                if picture is None or picture.tenant.registry_version != tenant.registry_version or picture.outlived(now):
                    await self._reload(tenant, now)

    async def _reload(self, tenant: Tenant, now: datetime) -> None:
        """Read one tenant again. One whose rows make no sense keeps its old picture, and does not stand in the others' way."""
        loaded = await registry.load(self.database, tenant)
        try:
            self.pictures[tenant.id] = await self._picture(loaded, now)
        except (DefinitionError, SealError, msgspec.MsgspecError, ValueError):
            _log.exception("what tenant %s has registered cannot be read", tenant.slug)
        else:
            self.on_change()

    async def catch_up(self, now: datetime) -> None:
        """Read what is newer, for callers who name something not known here."""
        await self._rereading.ask(now)

    async def _picture(self, loaded: Registered, now: datetime) -> Picture:
        tenant = loaded.tenant
        by_id = {row.id: self._workflow(tenant.id, row.id, row.version, row.definition) for row in loaded.workflows}
        keys = await self.keyring.active(tenant.id, now)
        secrets: dict[str, list[registry.SecretRow]] = {}
        for secret in loaded.secrets:
            secrets.setdefault(secret.endpoint_id, []).append(secret)
        endpoints = {}
        for row in loaded.endpoints:
            signers = self.keyring.signers(tenant.id, row.id, secrets.get(row.id, []), keys, now)
            endpoints[row.id] = self._endpoint(tenant.id, row, signers)
        durable_slots = {row.id: row.durable_slots or 0 for row in loaded.endpoints}
        routes: dict[Queue, tuple[Place, ...]] = {}
        for route in loaded.routes:
            kinds = {task.durable for task in by_id[route.workflow_id].definition.tasks} if route.workflow_id in by_id else {False}
            for durable in kinds:
                queue, place = queue_of(tenant.id, route.workflow_id, durable), place_of(tenant.id, route.endpoint_id, durable)
                routes[queue] = (*routes.get(queue, ()), place)
                if durable and place[1] not in endpoints and (plain := endpoints.get(route.endpoint_id)) is not None:
                    endpoints[place[1]] = replace(plain, place=place, slots=durable_slots[plain.id])
        served_ids = {abs(number) for _, number, _ in routes}
        by_id = _agreeing(by_id, served_ids)
        served = [(w.definition.name, w.definition.on_events) for w in by_id.values() if w.id in served_ids]
        ends = [s.not_after for s in loaded.secrets if s.not_after is not None and s.not_after > now]
        by_name = {w.definition.name: w for w in by_id.values()}
        paused = {row.id: row for row in loaded.workflows if row.paused_at is not None}
        held = {queue: route for queue, route in routes.items() if abs(queue[1]) in paused}
        routes = {queue: route for queue, route in routes.items() if queue not in held}
        filters = await self._compiled(tenant.id, loaded.filters)
        asking = frozenset(row.id for row in loaded.workflows if row.asks)
        batching = frozenset(id for id, w in by_id.items() if w.definition.tasks[0].batch is not None and id not in paused)
        aside = frozenset(row.id for row in loaded.workflows if row.aside is not None)
        index_of_events, good_until = EventIndex.build(served), min(ends, default=None)
        return Picture(
            tenant, by_name, by_id, index_of_events, endpoints, routes, good_until, filters, paused, held, asking, batching, aside,
            frozenset(loaded.returning),
        )  # fmt: skip

    async def _compiled(self, tenant_id: int, rows: list[FilterRow]) -> FilterIndex:
        """The filters ready to be asked. Making thousands takes seconds, so each is made once, and not on the loop."""
        known = self._filters.get(tenant_id, {})
        fresh = [row for row in rows if row not in known]
        made = await asyncio.to_thread(_made, fresh) if fresh else {}
        self._filters[tenant_id] = {row: known.get(row) or made[row] for row in rows}
        return index((row.workflow, one) for row, one in self._filters[tenant_id].items())

    def _workflow(self, tenant_id: int, workflow_id: int, number: int, definition: str) -> Workflow:
        key = (tenant_id, workflow_id, number)
        if key not in self._versions:
            parsed = parse_definition(json.loads(definition), STORED, static=False)
            self._versions[key] = Workflow(
                tenant_id,
                workflow_id,
                number,
                parsed,
                tuple(self._policy(task) for task in parsed.tasks),
                tuple(_millis(task.schedule_timeout) for task in parsed.tasks),
                tuple(_millis(task.execution_timeout) for task in parsed.tasks),
                Graph.of(parsed),
                Plan.of(workflow_id, parsed),
            )
        return self._versions[key]

    def _policy(self, task: TaskDefinition) -> Policy:
        s = self.settings
        return Policy(
            task.retries,
            task.backoff_factor,
            task.backoff_max_seconds,
            task.schedule_timeout,
            task.idempotent,
            s.infra_retries,
            timedelta(seconds=s.misconfig_ttl),
            timedelta(seconds=s.pushback_ttl),
            timedelta(seconds=s.max_execution_timeout),
            timedelta(seconds=s.cancel_grace),
        )

    async def workflow_version(self, tenant_id: int, workflow_id: int, number: int) -> Workflow:
        """A workflow as it was when a run started: runs finish on the version they started with."""
        known = self._versions.get((tenant_id, workflow_id, number))
        if known is not None:
            return known
        row = await registry.workflow_version(self.database, tenant_id, workflow_id, number)
        return self._workflow(tenant_id, workflow_id, number, row.definition)

    def _endpoint(self, tenant_id: int, row: EndpointRow, signers: Signers) -> Endpoint:
        manifest = msgspec.json.decode(row.manifest, type=StoredManifest)
        chosen = signers.chosen(manifest.verified)
        batch = None
        if "batch" in manifest.features and manifest.batch is not None:
            batch = BatchLimits(
                min(manifest.batch.max_items, self.settings.batch_items), min(manifest.batch.max_bytes, self.settings.batch_bytes)
            )
        html = any(isinstance(h, dict) and bool(h.get("allow_html")) for h in manifest.handlers)
        target = Target(
            endpoint_id=row.id,
            url=row.url,
            version=row.version,
            signers=chosen,
            headers=self.keyring.auth_headers(tenant_id, row.id, row.auth_sealed),
            api=self.settings.base_url(),
            features=frozenset(manifest.features),
            batch=batch,
            allow_html=html,
            response_limit=self.settings.max_response_bytes,
        )
        usable = row.circuit == "closed" and not row.paused
        return Endpoint(
            tenant_id=tenant_id,
            id=row.id,
            name=row.name,
            slots=row.slots,
            open=usable,
            there=not row.paused and row.circuit != "retired",
            draining=row.draining,
            static=row.static,
            target=target,
            answers_as=manifest.version or row.version,
            verified=manifest.verified,
            probes=row.probes,
            place=(tenant_id, row.id),
            labels=json.loads(row.labels),
        )

    def drops(self, tenant_id: int, workflow_id: int) -> bool:
        """Whether a workflow is paused, and not about to be resumed, and lets go what its crons and schedules would start."""
        picture = self.pictures.get(tenant_id)
        row = picture.paused.get(workflow_id) if picture is not None else None
        return row is not None and row.on_schedule == "drop" and not row.resuming

    def tenant(self, slug: str) -> Tenant | None:
        """A tenant by its slug."""
        tenant_id = self.slugs.get(slug)
        return self.pictures[tenant_id].tenant if tenant_id in self.pictures else None

    async def version_url(self, endpoint: Endpoint, version: str) -> str | None:
        """Where a version of an endpoint is, the latest or not; None when it is no longer registered."""
        rows = await registry.endpoint_versions(self.database, endpoint.tenant_id, endpoint.id)
        return next((row.url for row in rows if row.version == version and row.retired_at is None), None)

    def route(self, queue: Queue) -> Route:
        """Where the tasks of a queue may run, as the registry stands."""
        picture = self.pictures.get(queue[0])
        if picture is None:
            return NOWHERE
        if queue not in picture.found:
            if len(picture.found) >= _MOST_ROUTES:
                picture.found.clear()
            picture.found[queue] = _route(picture, queue)
        return picture.found[queue]

    def tiers(self, queue: Queue) -> tuple[tuple[Place, ...], ...]:
        """Where the tasks of a queue could run, the best places first, also while their workflow is paused."""
        picture = self.pictures.get(queue[0])
        held = picture.held.get((queue[0], queue[1], "")) if picture is not None else None
        return _tiers(picture, held, asked_of(picture, queue)) if picture is not None and held is not None else self.route(queue).tiers

    def shared(self, tenant_id: int, workflow_id: int) -> bool:
        """Whether several endpoints serve the durable tasks of a workflow, or one that is drained, and dispatchers look for queues of what
        they ask.
        """
        picture = self.pictures.get(tenant_id)
        if picture is None or workflow_id not in picture.asking:
            return False
        places = picture.routes.get(queue_of(tenant_id, workflow_id, True), ())
        return len(places) > 1 or any(endpoint.draining for place in places if (endpoint := self.endpoint(place)) is not None)

    def stuck(self, queue: Queue) -> bool:
        """Whether no endpoint may take the tasks of a queue, while some may take others of their workflow. A circuit that is open passes,
        and so do tasks that fill slots.
        """
        route, served = self.route(queue), self.route((queue[0], queue[1], ""))
        if not self._there(served) or any(endpoint.slots >= route.slots for endpoint in self._there(route)):
            return False
        return Requirement.parse(queue[2]).pin is None  # what is pinned is under way, and keeps what it holds

    def _there(self, route: Route) -> list[Endpoint]:
        return [e for place in route.places if (e := self.endpoint(place)) is not None and e.there]

    def goes_on(self, tenant_id: int, endpoint_id: str | None) -> bool:
        """Whether what has to stay at an endpoint goes on there although that is drained."""
        endpoint = self.endpoint((tenant_id, endpoint_id)) if endpoint_id is not None else None
        return endpoint is not None and endpoint.draining and endpoint.there

    def largest(self) -> dict[Place, int]:
        """How many slots the largest task of each place fills, where that is more than one."""
        found: dict[Place, int] = {}
        for picture in self.pictures.values():
            for (_, number, _), places in picture.routes.items():
                tasks = picture.by_id[abs(number)].definition.tasks if abs(number) in picture.asking else ()
                most = max((task.slot_cost for task in tasks if task.durable == (number < 0)), default=1)
                found |= {place: max(most, found.get(place, 1)) for place in places if most > 1}
        return found

    def endpoint(self, place: Place) -> Endpoint | None:
        """The endpoint at a place."""
        picture = self.pictures.get(place[0])
        return picture.endpoints.get(place[1]) if picture is not None else None


def _agreeing(by_id: dict[int, Workflow], served: Collection[int]) -> dict[int, Workflow]:
    """The workflows, with what holds for all where those that are served declare a shared limit in different ways."""
    found = disagreements(by_id[id].definition for id in served if id in by_id and by_id[id].plan is not None)
    if not found:
        return by_id
    return {id: replace(w, plan=agreed(w.plan, found)) if w.plan is not None else w for id, w in by_id.items()}


def asked_of(picture: Picture, queue: Queue) -> Requirement:
    """What the tasks of a queue ask. Pinned to an endpoint that takes no turns any more, they may go anywhere, and hear of it there."""
    asked = Requirement.parse(queue[2])
    gone = asked.pin is not None and home_of(queue[0], asked.pin)[1] not in picture.endpoints
    return replace(asked, pin=None) if gone else asked


def home_of(tenant_id: int, pin: str) -> Place:
    """Where the slots of what is pinned to an endpoint are counted."""
    return place_of(tenant_id, pin, durable=True)


def _route(picture: Picture, queue: Queue) -> Route:
    requirement = asked_of(picture, queue)
    found = _tiers(picture, picture.routes.get((queue[0], queue[1], ""), ()), requirement)
    workflow = picture.by_id.get(abs(queue[1]))  # one that is batched no more may have tasks left that were to be
    gathers = requirement.batch is not None and workflow is not None and workflow.definition.tasks[0].batch is not None
    return Route(found, requirement.slots, gathers and not requirement.unbound, requirement.unbound)


def _tiers(picture: Picture, places: Sequence[Place], requirement: Requirement) -> tuple[tuple[Place, ...], ...]:
    if requirement.pin is not None and places:  # also where only an older version of it serves the workflow
        places = (home_of(places[0][0], requirement.pin),)
    by_id = {endpoint_at(place): place for place in places}
    hosts = [picture.endpoints[place[1]].host for place in by_id.values() if place[1] in picture.endpoints]
    return tuple(tuple(by_id[id] for id in tier) for tier in tiers(requirement, hosts))


def _millis(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)


def _made(rows: list[FilterRow]) -> dict[FilterRow, Filter]:
    return {row: Filter.make(row.id, row.scope, row.expression, row.payload) for row in rows}
