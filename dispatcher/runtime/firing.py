"""What crons and schedules start: the runs of what is due, in one transaction with what its row says afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from dispatcher.store import crons, registry, schedules
from dispatcher.store.crons import CronStep, NewCron, TickKey
from dispatcher.store.database import Connection
from dispatcher.store.intake import NewRun
from dispatcher.store.schedules import NewSchedule, ScheduleStep


@dataclass(slots=True)
class FiringRequest:
    """A cron or a schedule that is due: the ticks that start a run each, what the runs are given, and how the row moves on."""

    tenant_id: int
    workflow_id: int
    trigger: Literal["cron", "schedule"]
    ticks: Sequence[datetime]
    input: bytes
    metadata: str | None
    priority: int | None
    step: CronStep | ScheduleStep


@dataclass(slots=True)
class Firing:
    """The same with its runs, matched to one version of the registry. `lost` says that somebody else has moved the row on."""

    step: CronStep | ScheduleStep
    registry_version: int
    ticks: dict[str, datetime]
    lost: bool = False
    held: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class FiringAccepted:
    """Runs that are durable; `lost` says that somebody else has started them."""

    run_ids: list[str]
    lost: bool


@dataclass(slots=True)
class Plan:
    """What an event plans: a run at a moment, or a cron by its expression; `name` is the cron's, the event's id where there is none."""

    when: datetime | str
    timezone: str
    name: str | None


def key_of(step: CronStep | ScheduleStep, tick: datetime) -> str:
    """What a run is known by: which cron or schedule started it for which tick."""
    return f"{step.id}@{tick.isoformat().replace('+00:00', 'Z')}"


async def claim(conn: Connection, firings: Sequence[Firing], now: datetime) -> set[str]:
    """Move on the rows of those that are first, and claim the ticks; answers the runs to be started.

    The tenants are held, so that what was matched to their registries still fits when the runs are written. Those whose registry has
    moved on are neither held nor lost: they are to be matched again.
    """
    versions = await registry.hold(conn, sorted({f.step.tenant_id for f in firings}))
    current = [f for f in firings if versions.get(f.step.tenant_id) == f.registry_version]
    steps = [f.step for f in current if isinstance(f.step, CronStep)]
    moments = [f.step for f in current if isinstance(f.step, ScheduleStep)]
    moved = await crons.advance(conn, steps) if steps else set()
    moved |= await schedules.settle(conn, moments, now) if moments else set()
    for firing in current:
        firing.held = (firing.step.tenant_id, firing.step.id) in moved
        firing.lost = not firing.held
    ticks = [
        TickKey(f.step.tenant_id, f.step.id, tick, run_id)
        for f in current
        if f.held and isinstance(f.step, CronStep)
        for run_id, tick in f.ticks.items()
    ]
    started = await crons.claim_ticks(conn, ticks) if ticks else set()
    return started | {run_id for f in current if f.held and isinstance(f.step, ScheduleStep) for run_id in f.ticks}


async def write_plans(conn: Connection, plans: Sequence[tuple[int, NewCron | NewSchedule]], now: datetime) -> None:
    """Write what events plan, each with its tenant. A plan for a cron its workflow has already gets the id of that one, which stays."""
    moments = [plan for _, plan in plans if isinstance(plan, NewSchedule)]
    if moments:
        await schedules.insert(conn, moments, now)
    for tenant_id, plan in plans:
        if isinstance(plan, NewCron) and not await crons.insert(conn, tenant_id, plan, now):
            plan.id = await crons.known(conn, tenant_id, plan) or plan.id


def runs_left(firing: Firing, runs: Sequence[NewRun], started: set[str]) -> list[NewRun]:
    """The runs whose tick is theirs."""
    return [run for run in runs if run.id in started] if firing.held else []
