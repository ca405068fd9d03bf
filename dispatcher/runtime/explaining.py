"""Why a task does not run yet: the places and units it waits for, and what is free of its endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.engine.admission import place_of, queue_of
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory
from dispatcher.store import gates, rate_limits
from dispatcher.store.database import Database
from dispatcher.store.gates import GateRow, Waiting


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
                reasons[row.node] = [_place(known[row.gate], ahead, row.arrived_at)]
            elif row.parked_on is not None:
                bucket = buckets.get(row.parked_on)
                if bucket is not None:
                    reasons[row.node] = [_units(bucket, row)]
            elif row.state == "queued":
                reasons[row.node] = self._slot(tenant_id, row)
        return reasons

    def _slot(self, tenant_id: int, row: Waiting) -> list[dict[str, Any]]:
        """What stands between a queued task and its endpoints, as this process sees them."""
        picture = self.directory.pictures.get(tenant_id)
        if picture is None:
            return []
        queue = queue_of(tenant_id, row.workflow_id, row.durable)
        places = picture.routes.get(queue, ())
        if not places:
            return [{"kind": "endpoint", "message": "no endpoint serves this workflow any more"}]
        said = []
        for place in places:
            endpoint = self.directory.endpoint(place)
            if endpoint is None:
                continue
            counted = place_of(tenant_id, endpoint.id, row.durable)
            free = self.capacity.free_at(endpoint)
            state = "free slots" if free else "every slot is in use"
            if not endpoint.open:
                state = "it is paused, or its circuit is open"
            in_use = self.capacity.in_use.get(counted, 0)
            said.append(
                {"kind": "endpoint", "endpoint": endpoint.name, "free": free, "in_use": in_use, "message": f"{endpoint.name}: {state}"}
            )
        return said


def _place(gate: GateRow, ahead: int, since: datetime) -> dict[str, Any]:
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
