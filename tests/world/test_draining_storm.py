"""Endpoints are drained, paused and resumed at any moment, at two dispatchers of which one is killed.

Attempts are recorded at the endpoints. Once it has been answered that an endpoint is drained, nothing comes there but of runs that had to
stay there at that moment, and nothing at all once it is said that none is left; and nobody is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Arrival, Endpoint
from tests.world.limits_storm import COMMON, SHARED, Storm
from tests.world.random_acts import MILLISECOND
from tests.world.world import Node, World

SHARING: dict[str, Any] = {**COMMON, "concurrency": [SHARED]}
PAIR = [{"name": "first", **COMMON}, {"name": "last", "parents": ["first"], **COMMON}]
HANDLERS: list[dict[str, Any]] = [
    {"name": "plain", **SHARING},
    {"name": "soft", "sticky": "soft", **SHARING},
    {"name": "bound", "sticky": "hard", **SHARING},
    {"name": "flow", "kind": "workflow", "sticky": "hard", "concurrency": [SHARED], "tasks": PAIR},
    entry("order", **SHARING),
]
ENDPOINTS = ("a", "b")
STAYS = """
    select r.id from runs r join workflows w on w.tenant_id = r.tenant_id and w.id = r.workflow_id
    where r.sticky_endpoint = $1 and w.name in ('bound', 'flow')
    union
    select run_id from tasks where durable and state <> 'settled' and (pin_endpoint = $1 or endpoint_id = $1)
"""


@dataclass(slots=True)
class Drained:
    """An endpoint as it was answered that it is drained: since when, which runs had to stay there, and since when none was left."""

    since: datetime
    stays: set[str]
    empty_since: datetime | None = None


class Drains(Storm):
    """Endpoints are drained, paused and resumed."""

    answered = 0.75
    loops = ("heartbeat", "reap", "slots", "registry", "timers", "waits", "renewals", "pins", "asides", "gates", "graphs", "claim")

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self.ids: dict[str, str] = {}
        self.drained_at: dict[str, Drained] = {}
        self.late: list[tuple[str, int, datetime]] = []
        """Attempts that have come and should have been leased by a moment: their runs, numbers, and when that was."""

    async def register(self, node: Node, name: str, served: Sequence[Mapping[str, Any]], slots: int) -> Endpoint:
        found = await durable_endpoint(self.world, node, *map(dict, served), name=name, slots=slots, durable_slots=slots)
        self.ids[name] = (await node.call("GET", f"/v1/endpoints/{name}"))["id"]
        return found

    def arrive(self, arrival: Arrival) -> None:
        body, drained = arrival.json, self.drained_at.get(arrival.json["audience"])
        if drained is not None and (drained.empty_since is not None or body["run_id"] not in drained.stays):
            self.late.append((body["run_id"], body["attempt"], drained.empty_since or drained.since))
        super().arrive(arrival)

    async def come(self) -> None:
        await self.trigger(self.rng.choice(HANDLERS)["name"])

    async def change(self, act: float) -> bool:
        name = self.rng.choice(ENDPOINTS)
        if act < 0.85:
            await self.patch(name, draining=self.rng.random() < 0.5)
        elif act < 0.9:
            await self.patch(name, paused=self.rng.random() < 0.5)
        elif act < 0.93:
            self.note(name, await self.node.call("GET", f"/v1/endpoints/{name}"), self.world.now)
        return act < 0.93

    async def patch(self, name: str, **changes: bool) -> None:
        if changes.get("draining") is False:
            self.drained_at.pop(self.ids[name], None)
        shown = await self.node.call("PATCH", f"/v1/endpoints/{name}", changes)
        at = self.world.now
        self.world.clock.advance(MILLISECOND)
        if shown["draining"] and self.ids[name] not in self.drained_at:
            stays = await self.world.database.fetch(STAYS, self.ids[name])
            self.drained_at[self.ids[name]] = Drained(at, {row[0] for row in stays})
        self.note(name, shown, at)

    def note(self, name: str, shown: dict[str, Any], at: datetime) -> None:
        """Remember whether it is said that nothing is left."""
        if shown["health"] == "drained":
            drained = self.drained_at[self.ids[name]]
            drained.empty_since = drained.empty_since or at

    def answer(self, arrival: Arrival) -> None:
        if arrival.answered.is_set() or arrival.hung_up.is_set():
            return
        if "log" not in arrival.json:
            arrival.answer(200, {}, task_protocol="1")
        elif arrival.json["log"]["len"] == 0 and self.rng.random() < 0.7:
            nap = pending("sleep", "nap#0", ms=self.rng.choice((1, 500, 3_000)))
            answer(arrival, "wait", base=0, ops=[nap], wake="nap#0")
        else:
            answer(arrival, "done", base=arrival.json["log"]["len"])


@pytest.mark.parametrize("seed", range(1))
async def test_what_is_drained_is_sent_what_has_to_stay_there_and_nothing_else(world: World, seed: int) -> None:
    storm = Drains(world, seed)
    await storm.blow(dict.fromkeys(ENDPOINTS, HANDLERS), slots=4)
    for name in ENDPOINTS:
        await storm.patch(name, draining=False, paused=False)
    await storm.drained(run_id for runs in storm.runs.values() for run_id in runs)
    leased = "select bool_and(started_at <= $3) from attempts where run_id = $1 and number = $2"
    assert [one for one in storm.late if not await world.database.fetchval(leased, *one)] == []
    await storm.over()
