"""Why a task does not run yet: the moment, the places and the units it waits for, who stands before it, what its endpoints have free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.clock import Clock
from dispatcher.engine.admission import Place, Queue, endpoint_at, queue_of
from dispatcher.engine.concurrency import declared_by
from dispatcher.engine.placement import Requirement, unsatisfied
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory, Endpoint, Picture, asked_of
from dispatcher.store import batches, catalog, gates, queue, rate_limits, waits
from dispatcher.store.catalog import EndpointState
from dispatcher.store.database import Database
from dispatcher.store.gates import GateRow, Waiting
from dispatcher.store.waits import Open

Reason = dict[str, Any]
_MOST_ENDPOINTS = 1_000  # of a tenant, that are looked at
_MOST_AHEAD = 1_000
_MOST_WAITS = 100  # of a run, that are told
_UNSERVED: Reason = {"kind": "endpoint", "message": "no endpoint serves this workflow any more"}
_GONE: Reason = {"kind": "sticky", "message": "its run has to stay at the endpoint where it began, which does not serve it any more"}
_READY: Reason = {"kind": "batch", "message": "its batch is complete, or its time is up: it waits for a slot"}
_PAUSED = "its workflow is paused: nothing of it starts until it is resumed"
_BACK = "nothing of its workflow could start until now: it is about to stand in line again for the limits it shares"
_TAKEN_AGAIN = "no endpoint could take it until now: it is about to stand in line again for its limits"


@dataclass(slots=True)
class Explaining:
    """Answers for runs that are not over. What dispatchers share is read; how an endpoint is treated is as this process treats it."""

    database: Database
    directory: Directory
    capacity: Capacity
    clock: Clock

    async def waiting_for(self, tenant_id: int, run_id: str) -> dict[int | None, list[Reason]]:
        """What each task of a run that is ready to run waits for, by node; under None what a run of a graph itself waits for."""
        rows = await gates.waiting(self.database, tenant_id, run_id, self.clock.now())
        known = await gates.show(self.database, tenant_id, [row.gate for row in rows if row.gate is not None])
        buckets = await rate_limits.get(self.database, tenant_id, [row.parked_on for row in rows if row.parked_on is not None])
        picture, reasons = self.directory.pictures.get(tenant_id), dict[int | None, list[Reason]]()
        for row in rows:
            found = _paused(picture, row)
            if row.gate is not None and row.gate in known and row.arrived_at is not None:
                ahead = await gates.ahead(self.database, tenant_id, row.gate, row.arrived_at, run_id)
                found.append(_group(known[row.gate], ahead, row.arrived_at))
            elif row.parked_on is not None:
                found.append(_units(buckets.get(row.parked_on), row))
            elif row.state == "scheduled":
                found.append(_later(row))
            elif row.state == "queued" and picture is not None and not found:
                found += await self._queued(picture, tenant_id, run_id, row)
            elif row.state == "gated" and picture is not None and not found:
                found += await self._aside(picture, tenant_id, row)
            if found:
                reasons[row.node] = found
        for wait in await waits.open_of(self.database, tenant_id, run_id, _MOST_WAITS):
            reasons.setdefault(wait.node, []).append(_suspended(wait))
        return reasons

    async def _queued(self, picture: Picture, tenant_id: int, run_id: str, row: Waiting) -> list[Reason]:
        """What stands between a queued task and its endpoints."""
        places = picture.routes.get(queue_of(tenant_id, row.workflow_id, row.durable), ())
        if not places:
            return [_UNSERVED]
        q = queue_of(tenant_id, row.workflow_id, row.durable, row.requirement)
        requirement, found = asked_of(picture, q), list[Reason]()
        route = self.directory.route(q)
        if route.gathers:
            gathering = await self._gathering(picture, q)
            if gathering is not None and any(e is not None and e.open for e in map(self.directory.endpoint, route.places)):
                return [gathering]
            found.append(gathering or _READY)
        elif row.node is not None:
            ahead = await queue.ahead(self.database, q, (row.priority, row.due_at, run_id, row.node), _MOST_AHEAD)
            found += _behind(ahead)
        known = await self._known(tenant_id, dict.fromkeys((*places, *route.places)))
        return found + self._endpoints(requirement, row.durable, places, known)

    def _endpoints(
        self, requirement: Requirement, durable: bool, places: Iterable[Place], known: Iterable[tuple[Place, EndpointState]]
    ) -> list[Reason]:
        """What keeps each endpoint that is known from taking a task, whose workflow those at these places serve."""
        found = list[Reason]()
        hard = requirement.sticky == "hard" and not requirement.unbound
        if hard and requirement.endpoint not in {endpoint_at(place) for place in places}:
            found.append(_GONE)
        return found + [self._place(place, state, requirement, durable) for place, state in known]

    async def _aside(self, picture: Picture, tenant_id: int, row: Waiting) -> list[Reason]:
        """Why what waits in no line has been set aside, where its workflow is not paused."""
        routes = [picture.routes.get(queue_of(tenant_id, row.workflow_id, durable), ()) for durable in (False, True)]
        places = {endpoint_at(place): place for route in routes for place in route}.values()
        known = await self._known(tenant_id, places)
        if not known:
            return [_UNSERVED]
        q = queue_of(tenant_id, row.workflow_id, row.durable, row.requirement)
        stuck = row.unschedulable and self.directory.stuck(q)
        if stuck or all(state.paused or state.draining for _, state in known):
            return self._endpoints(asked_of(picture, q), row.durable, places, known)
        return [{"kind": "concurrency", "since": row.arrived_at, "message": _TAKEN_AGAIN if row.unschedulable else _BACK}]

    async def _known(self, tenant_id: int, places: Iterable[Place]) -> list[tuple[Place, EndpointState]]:
        """The endpoints at these places, as they are."""
        states = {state.id: state for state in await catalog.endpoints(self.database, tenant_id, "", _MOST_ENDPOINTS)}
        return [(place, states[id]) for place in places if (id := endpoint_at(place)) in states]

    async def _gathering(self, picture: Picture, q: Queue) -> Reason | None:
        """Why the batch a task would go with does not go, whatever is free; None where it would."""
        workflow = picture.by_id.get(q[1])
        batching = workflow.definition.tasks[0].batch if workflow is not None else None
        rows = await batches.groups(self.database, [(q, batching.max_size)]) if batching is not None else []
        if batching is None or not rows:
            return None
        if batching.group_max_runs is not None:
            running = (await batches.running(self.database, [q[:2]]))[batches.group(q)]
            if running >= batching.group_max_runs:
                message = f"{running} of {batching.group_max_runs} batches of its group are under way"
                return {"kind": "batch", "running": running, "limit": batching.group_max_runs, "message": message}
        until = rows[0].oldest + batching.interval
        if rows[0].waiting >= batching.max_size or until <= self.clock.now():
            return None
        message = f"{rows[0].waiting} of the {batching.max_size} tasks of its batch have come; it is due at {_said(until)}, full or not"
        return {"kind": "batch", "waiting": rows[0].waiting, "size": batching.max_size, "until": until, "message": message}

    def _place(self, place: Place, state: EndpointState, requirement: Requirement, durable: bool) -> Reason:
        endpoint = self.directory.endpoint(place)
        slots = (state.durable_slots or 0) if durable else state.slots
        in_use = state.durable_in_use if durable else state.in_use
        unmet = unsatisfied(requirement, endpoint.host) if endpoint is not None else None
        usable = state.circuit == "closed" and not state.paused
        free = max(slots - in_use, 0) if usable else 0
        said = unmet or _closed(state) or _full(slots, in_use, requirement.slots)
        if said is None:
            said = self._held_back(endpoint, requirement) if endpoint is not None else "its slots are about to be shared out"
        return {
            "kind": "endpoint",
            "endpoint": state.name,
            "suits": unmet is None and requirement.slots <= slots,
            "free": free,
            "in_use": in_use,
            "slots": slots,
            "message": f"{state.name}: {said}",
        }

    def _held_back(self, endpoint: Endpoint, requirement: Requirement) -> str:
        """Why this process does not fill slots that are free; those that a claim under way has set aside are."""
        capacity, slots = self.capacity.attempted(), requirement.slots
        pressure, in_use = capacity.pressure(endpoint), capacity.in_use.get(endpoint.place, 0)
        fits = capacity.fits(endpoint, slots, batch=requirement.batch is not None)
        if not fits and pressure is not None and pressure - in_use < slots:
            if endpoint.probes:
                return "its circuit was open, so it is sent one attempt at a time until one does its work"
            return f"it has asked for less, so {pressure} of its slots are filled at most, until it takes more"
        if endpoint.place in capacity.savings.places:
            return "slots are free, and saved for a task that fills several of them and has been passed over for a while"
        if capacity.room(self.clock.now()) == 0:
            return f"slots are free, and this dispatcher has {capacity.total} attempts open, as many as it may"
        if not fits and capacity.fits(endpoint, slots, batch=True):
            return "slots are free, and kept for a batch that is ready"
        if not fits:
            return "slots are free, and it is the turn of another dispatcher to fill them"
        return "slots are free: it starts at any moment"


def _paused(picture: Picture | None, row: Waiting) -> list[Reason]:
    paused = picture.paused.get(row.workflow_id) if picture is not None else None
    if paused is None:
        return []
    why = "its workflow is resumed once all that waits for it has its time again" if paused.resuming else _PAUSED
    return [{"kind": "paused", "since": paused.paused_at, "message": why}]


def _suspended(wait: Open) -> dict[str, Any]:
    """An operation of a durable task that is not over."""
    at = f"{wait.due_at:%Y-%m-%d %H:%M:%S}Z" if wait.due_at is not None else ""
    until, more = f" until {at}" if at else "", dict[str, Any]()
    match wait.kind:
        case "sleep":
            what = f"it sleeps{until}"
        case "step":
            what = f"it is tried again at {at}"
        case "child":
            what, more = f"run {wait.event_key} is to end", {"run_id": wait.event_key}
        case "event":
            of = f" of scope {wait.scope!r}" if wait.scope is not None else ""
            what, more = f"an event {wait.event_key!r}{of} is to come{until}", {"event": wait.event_key}
        case _:
            what = f"a message is to come{until}"
    moment = {"until": wait.due_at} if wait.due_at is not None else {}
    return {"kind": wait.kind, "id": wait.id, **more, **moment, "message": f"{wait.id}: {what}"}


def _later(row: Waiting) -> Reason:
    what = f"attempt {row.epoch + 1} of it is made" if row.epoch else "it is to start"
    return {"kind": "time", "until": row.due_at, "message": f"{what} at {_said(row.due_at)}"}


def _behind(ahead: int) -> list[Reason]:
    if not ahead:
        return []
    number = f"{ahead:,}" if ahead < _MOST_AHEAD else f"{ahead:,} or more"
    return [{"kind": "queue", "ahead": ahead, "message": f"{number} of its queue go before it"}]


def _closed(state: EndpointState) -> str | None:
    if state.paused:
        return "it is paused"
    if state.circuit == "retired":
        return "it has said that it is gone (410): it takes work again once it is registered again"
    if state.circuit != "closed":
        again = f"; it is tried again at {_said(state.probe_at)}" if state.probe_at is not None else ""
        return f"its circuit is open ({state.circuit_code}){again}"
    return None


def _full(slots: int, in_use: int, wanted: int) -> str | None:
    if wanted > slots:
        return f"it has {slots} slots, and the task fills {wanted}: it can never start there"
    if slots - in_use >= wanted:
        return None
    if in_use >= slots:
        return f"all of its {slots} slots are filled"
    return f"{slots - in_use} of its {slots} slots are free, and the task fills {wanted}"


def _group(gate: GateRow, ahead: int, since: datetime) -> Reason:
    declared = gate.name or declared_by(gate.rule, gate.strategy)[1]
    which = f" of {declared}" if declared else ""
    group = f"group {gate.key!r}" if gate.key else "its concurrency group"
    return {
        "kind": "concurrency",
        "limit_name": gate.name,
        "expression": None if gate.name else declared or None,
        "key": gate.key,
        "limit": gate.most,
        "held": gate.held,
        "ahead": ahead,
        "since": since,
        "message": f"{group}{which} has {gate.held} of {gate.most} under way; {ahead} stand before it",
    }


def _units(bucket: rate_limits.BucketRow | None, row: Waiting) -> Reason:
    if bucket is None:
        return {"kind": "rate_limit", "units": row.parked_for, "message": "the rate limit it waited for is gone: it starts at any moment"}
    full_at = bucket.bucket().full_at
    message = f"rate limit {bucket.key!r} has {bucket.value} of {bucket.most} units left; full again at {_said(full_at)}"
    if row.parked_for is not None and row.parked_for > bucket.most:
        message = f"it takes {row.parked_for} units of rate limit {bucket.key!r}, which allows {bucket.most}: it starts when that is raised"
    return {
        "kind": "rate_limit",
        "key": bucket.key,
        "units": row.parked_for,
        "left": bucket.value,
        "limit": bucket.most,
        "until": full_at,
        "message": message,
    }


def _said(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"
