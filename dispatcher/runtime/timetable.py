"""Firing what is due: ticks of crons and moments of schedules become runs, exactly one each, whichever dispatcher comes first.

Every dispatcher looks. What a row's ticks become is reckoned from the row; the transaction that starts the runs moves the row on from
where it was seen, so a second one finds it moved and starts nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import cast

from dispatcher.engine.schedules import RULES, Due, Missed, ScheduleError, Tick, Ticks, Watch, due_ticks, parse_cron, still_runs, zone
from dispatcher.errors import Problem
from dispatcher.runtime.firing import FiringAccepted, FiringRequest
from dispatcher.runtime.intake import Intake
from dispatcher.settings import Settings
from dispatcher.store import crons, schedules
from dispatcher.store.crons import CronStep, DueCron, OldCron
from dispatcher.store.database import Database
from dispatcher.store.schedules import DueSchedule, ScheduleStep

_log = logging.getLogger(__name__)

_RECKONED_AT_ONCE = 500
_INSTANT = timedelta(microseconds=1)


class Timetable:
    """Starts what is due."""

    def __init__(self, database: Database, intake: Intake, settings: Settings) -> None:
        self._database = database
        self._intake = intake
        self._settings = settings
        self._since: datetime | None = None
        self.drops: Callable[[int, int], bool] = lambda _tenant_id, _workflow_id: False
        """Whether a workflow (tenant id, workflow id) wants nothing started by the clock: what comes due then is let go."""

    async def tick(self, now: datetime) -> datetime | None:
        """Start what is due; answers when to look again, None for the usual time."""
        if self._since is None:
            await self.reckon(now)
            self._since = now
        watch = self._watch(now, self._since)
        left = most = self._settings.intake_batch
        requests: list[FiringRequest] = []
        for cron in await crons.due(self._database, now, most):
            request = self._readable(cron, watch, left) if left > 0 else None
            if request is not None:
                requests.append(request)
                left -= max(1, len(request.ticks))
        requests += [self._schedule(one, watch) for one in await schedules.due(self._database, now, max(left, 1))]
        fired = await self._fire(requests) if requests else 0
        return await self._again(now, fired > 0)

    async def _fire(self, requests: list[FiringRequest]) -> int:
        """How many rows were moved on here."""
        fates = await self._intake.fire(requests)
        hopeless = [
            _left_out(request, fate)
            for request, fate in zip(requests, fates, strict=True)
            if isinstance(fate, Problem) and fate.code == "limit_failed" and request.ticks
        ]
        moved = await self._fire(hopeless) if hopeless else 0
        for request, fate in zip(requests, fates, strict=True):
            if isinstance(fate, Problem):
                _log.warning("%s could not start anything: %s", request.step.id, fate)
            elif not fate.lost and isinstance(request.step, CronStep) and request.step.skipped_at is not None:
                _log.warning("cron %s: ticks were left out, the last of them at %s", request.step.id, request.step.skipped_at.isoformat())
        return moved + sum(isinstance(fate, FiringAccepted) and not fate.lost for fate in fates)

    async def _again(self, now: datetime, moved: bool) -> datetime | None:
        """When something is due next. What is due and could not be moved on is in other hands, or is looked at with the next poll."""
        moments = [await crons.next_due(self._database), await schedules.next_due(self._database)]
        first = min((moment for moment in moments if moment is not None), default=None)
        return first if first is not None and (moved or first > now) else None

    def _watch(self, now: datetime, since: datetime) -> Watch:
        grace, tolerance = self._settings.cron_grace, self._settings.cron_tolerance
        return Watch(now, since, timedelta(seconds=grace), timedelta(seconds=tolerance))

    def _readable(self, cron: DueCron, watch: Watch, most: int) -> FiringRequest | None:
        """What one cron starts; None for one that these rules cannot read any more, which must not stand in the others' way."""
        try:
            return self._cron(cron, watch, most)
        except ScheduleError as error:
            _log.error("cron %s does not run: %s", cron.id, error)
            return None

    def _cron(self, cron: DueCron, watch: Watch, most: int) -> FiringRequest:
        first = Tick(cron.due_at, cron.due_wall)
        ticks = Ticks(parse_cron(cron.expression), zone(cron.timezone))
        if self.drops(cron.tenant_id, cron.workflow_id):
            last = ticks.last(first, watch.now + _INSTANT)
            due = Due((), last.at, ticks.after(last.at, last.wall))
        else:
            due = due_ticks(ticks, first, cast("Missed", cron.missed), watch, most)
        at, wall = (due.next.at, due.next.wall) if due.next is not None else (None, None)
        last_at, last_wall = (due.run[-1].at, due.run[-1].wall) if due.run else (None, None)
        step = CronStep(cron.tenant_id, cron.id, cron.due_at, at, wall, last_at, last_wall, due.skipped, RULES)
        moments = [tick.at for tick in due.run]
        return FiringRequest(cron.tenant_id, cron.workflow_id, "cron", moments, cron.input, cron.metadata, cron.priority, step)

    def _schedule(self, one: DueSchedule, watch: Watch) -> FiringRequest:
        dropped = self.drops(one.tenant_id, one.workflow_id)
        runs = not dropped and still_runs(one.run_at, cast("Missed", one.missed), timedelta(milliseconds=one.grace_ms), watch)
        step = ScheduleStep(one.tenant_id, one.id, one.run_at, "dropped" if dropped else "started" if runs else "missed", None)
        moments = [one.run_at] if runs else []
        return FiringRequest(one.tenant_id, one.workflow_id, "schedule", moments, one.input, one.metadata, one.priority, step)

    async def reckon(self, now: datetime) -> int:
        """Look again at ticks that older rules of time zones gave; answers how many crons that were.

        A tick that has passed already by these rules, and is still to come by the old ones, stays where it was: it is late, not lost.
        """
        count = 0
        while True:
            async with self._database.transaction() as conn:
                old = await crons.of_old_rules(conn, RULES, _RECKONED_AT_ONCE)
                if old:
                    await crons.reckon(conn, [(cron, *_by_new_rules(cron, now)) for cron in old], RULES)
            count += len(old)
            if len(old) < _RECKONED_AT_ONCE:
                return count


def _left_out(request: FiringRequest, why: Problem) -> FiringRequest:
    """The same without its runs: what it gives them is nothing its workflow's limits can be reckoned from, now or later.

    Its row moves on all the same. One that stayed would be tried with every look, and stand before those that are due behind it.
    """
    if isinstance(request.step, CronStep):
        step: CronStep | ScheduleStep = replace(request.step, last_tick=None, last_wall=None, skipped_at=request.ticks[-1], error=str(why))
    else:
        step = replace(request.step, status="missed", run_id=None, error=str(why))
    return replace(request, ticks=[], step=step)


def _by_new_rules(cron: OldCron, now: datetime) -> tuple[datetime, datetime]:
    try:
        tick = Ticks(parse_cron(cron.expression), zone(cron.timezone)).after(cron.since, cron.last_wall)
    except ScheduleError as error:
        _log.error("cron %s will not run: %s", cron.id, error)
        tick = None
    return (tick.at, tick.wall) if tick is not None and tick.at > now else (cron.due_at, cron.due_wall)
