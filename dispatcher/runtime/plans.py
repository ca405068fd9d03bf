"""Rows of crons and schedules as they shall be: when they are due next, reckoned once here for all who make them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from dispatcher.engine.schedules import RULES, Ticks, parse_cron, zone
from dispatcher.ids import IdMaker
from dispatcher.runtime.firing import Plan
from dispatcher.settings import Settings
from dispatcher.store.crons import NewCron
from dispatcher.store.intake import NewEvent
from dispatcher.store.schedules import NewSchedule

CRON_ID: Final = "crn"
SCHEDULE_ID: Final = "sch"


def reckoned(row: NewCron, after: datetime, wall: datetime | None = None) -> NewCron:
    """A cron with its next tick behind a moment, none where it is disabled. Raises ScheduleError."""
    row.due_at = row.due_wall = None
    row.rules = RULES
    tick = Ticks(parse_cron(row.expression), zone(row.timezone)).after(after, wall)
    if row.enabled and tick is not None:
        row.due_at, row.due_wall = tick.at, tick.wall
    return row


def upcoming(expression: str, timezone: str, due_at: datetime | None, due_wall: datetime | None, count: int) -> Sequence[datetime]:
    """The next ticks of a cron, the one it is due at first."""
    ticks = Ticks(parse_cron(expression), zone(timezone))
    found: list[datetime] = []
    at, wall = due_at, due_wall
    while at is not None and len(found) < count:
        found.append(at)
        tick = ticks.after(at, wall)
        at, wall = (tick.at, tick.wall) if tick is not None else (None, None)
    return found


def planned(
    plan: Plan, event: NewEvent, workflow_id: int, body: bytes, ids: IdMaker, settings: Settings, now: datetime
) -> NewCron | NewSchedule:
    """The row an event plans."""
    if isinstance(plan.when, datetime):
        grace = round(settings.misfire_grace * 1000)
        made = ids.make(SCHEDULE_ID, now)
        return NewSchedule(event.tenant_id, made, workflow_id, plan.when, body, event.metadata, event.priority, "run_once", grace)
    made = ids.make(CRON_ID, now)
    name = plan.name or event.id
    row = NewCron(
        made, workflow_id, name, plan.when, plan.timezone, body, event.metadata, event.priority, "skip", True, False, None, None, RULES
    )
    return reckoned(row, now)
