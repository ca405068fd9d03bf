"""Why a task does not run yet: the places and units it waits for, and what is free of its endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.engine.admission import Place, Route, endpoint_at, queue_of
from dispatcher.engine.placement import Requirement, unsatisfied
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory
from dispatcher.store import gates, rate_limits, waits
from dispatcher.store.database import Database
from dispatcher.store.gates import GateRow, Waiting
from dispatcher.store.waits import Open


_MOST_WAITS = 100  # of a run, that are told


@dataclass(slots=True)
class Explaining:
    """Answers for runs that are not over."""

    database: Database
    directory: Directory
    capacity: Capacity

    async def waiting_for(self, tenant_id: int, run_id: str) -> dict[int | None, list[dict[str, Any]]]:
        """What each task of a run that is ready to run waits for, by node; under None what a run of a graph itself waits for."""
        rows = await gates.waiting(self.database, tenant_id, run_id)
        known = await gates.show(self.database, tenant_id, [row.gate for row in rows if row.gate is not None])
        buckets = await rate_limits.get(self.database, tenant_id, [row.parked_on for row in rows if row.parked_on is not None])
        reasons: dict[int | None, list[dict[str, Any]]] = {}
        for row in rows:
            if row.gate is not None and row.gate in known and row.arrived_at is not None:
                ahead = await gates.ahead(self.database, tenant_id, row.gate, row.arrived_at, run_id)
                reasons[row.node] = [_group(known[row.gate], ahead, row.arrived_at)]
            elif row.parked_on is not None:
                bucket = buckets.get(row.parked_on)
                if bucket is not None:
                    reasons[row.node] = [_units(bucket, row)]
            elif row.state == "queued":
                reasons[row.node] = self._slot(tenant_id, row)
        for wait in await waits.open_of(self.database, tenant_id, run_id, _MOST_WAITS):
            reasons.setdefault(wait.node, []).append(_suspended(wait))
        return reasons

    def _slot(self, tenant_id: int, row: Waiting) -> list[dict[str, Any]]:
        """What stands between a queued task and its endpoints, as this process sees them."""
        picture = self.directory.pictures.get(tenant_id)
        if picture is None:
            return []
        paused = picture.paused.get(row.workflow_id)
        if paused is not None:
            return [
                {"kind": "paused", "since": paused.paused_at, "message": "its workflow is paused: nothing of it starts until it is resumed"}
            ]
        places = picture.routes.get(queue_of(tenant_id, row.workflow_id, row.durable), ())
        if not places:
            return [{"kind": "endpoint", "message": "no endpoint serves this workflow any more"}]
        requirement = Requirement.parse(row.requirement)
        route = self.directory.route(queue_of(tenant_id, row.workflow_id, row.durable, row.requirement))
        said = []
        if route.gathers:
            said.append({"kind": "batch", "message": "it waits until enough tasks have come to make a batch, or the batch's time is up"})
        if requirement.sticky == "hard" and requirement.endpoint not in {endpoint_at(place) for place in places}:
            said.append(
                {"kind": "sticky", "message": "its run has to stay at the endpoint where it began, which does not serve it any more"}
            )
        return said + [self._place(place, requirement, route) for place in places if self.directory.endpoint(place) is not None]

    def _place(self, place: Place, requirement: Requirement, route: Route) -> dict[str, Any]:
        endpoint = self.directory.endpoint(place)
        assert endpoint is not None, "asked for before"
        free = self.capacity.free_at(endpoint)
        unmet = unsatisfied(requirement, endpoint_at(place), endpoint.labels)
        state = (
            f"{free} free slots of the {route.slots} it fills"
            if 0 < free < route.slots
            else "free slots"
            if free
            else "every slot is in use"
        )
        if not endpoint.open:
            state = "it is paused, or its circuit is open"
        if unmet is not None:
            state = unmet
        return {
            "kind": "endpoint",
            "endpoint": endpoint.name,
            "suits": unmet is None,
            "free": free,
            "in_use": self.capacity.in_use.get(place, 0),
            "message": f"{endpoint.name}: {state}",
        }


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


def _group(gate: GateRow, ahead: int, since: datetime) -> dict[str, Any]:
    declared = gate.name or gate.rule.split(":", 3)[-1]
    which = f" of {declared}" if declared else ""
    return {
        "kind": "concurrency",
        "limit_name": gate.name,
        "expression": None if gate.name else declared or None,
        "key": gate.key,
        "limit": gate.most,
        "held": gate.held,
        "ahead": ahead,
        "since": since,
        "message": f"group {gate.key!r}{which} has {gate.held} of {gate.most} under way; {ahead} stand before it",
    }


def _units(bucket: rate_limits.BucketRow, row: Waiting) -> dict[str, Any]:
    full_at = bucket.bucket().full_at
    message = f"rate limit {bucket.key!r} has {bucket.value} of {bucket.most} units left; full again at {full_at:%Y-%m-%d %H:%M:%S}Z"
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
