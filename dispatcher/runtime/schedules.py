"""Making, moving and removing schedules: runs at one moment each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from dispatcher.clock import Clock
from dispatcher.engine.schedules import ScheduleError, parse_delay
from dispatcher.engine.schedules.moments import FURTHEST
from dispatcher.errors import Problem, problem
from dispatcher.ids import IdMaker
from dispatcher.runtime.firing import FiringRequest
from dispatcher.runtime.intake import Intake
from dispatcher.runtime.plans import SCHEDULE_ID
from dispatcher.runtime.submissions import RunRequest
from dispatcher.settings import Settings
from dispatcher.store import registry
from dispatcher.store import schedules as store
from dispatcher.store.database import Database
from dispatcher.store.schedules import NewSchedule, ScheduleFilter, ScheduleRow, ScheduleStep


@dataclass(frozen=True, slots=True)
class ScheduleWanted:
    """A schedule somebody wants. `input` and `metadata` are JSON text, checked by the edge; `grace` is None for the usual one."""

    workflow: str
    run_at: datetime
    input: bytes
    metadata: str | None
    priority: int | None
    missed: str
    grace: timedelta | None


class Schedules:
    """Everything that changes what schedules there are."""

    def __init__(self, database: Database, intake: Intake, clock: Clock, settings: Settings) -> None:
        self._database = database
        self._intake = intake
        self._clock = clock
        self._settings = settings
        self._ids = IdMaker()
        self.on_due: Callable[[datetime], None] = lambda _moment: None

    def moment(self, run_at: datetime | None, delay: str | None, at: str = "") -> datetime:
        """The moment a caller means by `run_at` or `in`. Raises Problem invalid_value, invalid_schedule or schedule_in_past."""
        if (run_at is None) == (delay is None):
            raise problem("invalid_value", f"{at}run_at: give either `run_at` or `in`", field=f"{at}run_at")
        now = self._clock.now()
        if delay is not None:
            try:
                return now + parse_delay(delay)
            except ScheduleError as error:
                raise problem(error.code, f"{at}in: {error}", field=f"{at}in") from None
        assert run_at is not None, "one of them is given"
        return self.checked(run_at, f"{at}run_at")

    def checked(self, run_at: datetime, field: str) -> datetime:
        """A moment that something may run at. Raises Problem schedule_in_past, or invalid_value for one too far away."""
        now = self._clock.now()
        if run_at < now - timedelta(seconds=self._settings.schedule_tolerance):
            raise problem("schedule_in_past", f"{field}: {run_at.isoformat()} has passed", field=field)
        if run_at > now + FURTHEST:
            raise problem("invalid_value", f"{field}: at most ten years from now", field=field)
        return run_at

    async def create(self, tenant_id: int, wanted: ScheduleWanted) -> ScheduleRow:
        """Make a schedule. Raises Problem unknown_workflow, or limit_failed where its run could not be told what limits it."""
        found = await registry.workflow(self._database, tenant_id, wanted.workflow)
        if found is None:
            raise problem("unknown_workflow", f"no workflow {wanted.workflow[:200]!r} is registered")
        await self._intake.judge(RunRequest(tenant_id, found.name, wanted.input, wanted.metadata, wanted.priority))
        now = self._clock.now()
        grace = wanted.grace.total_seconds() if wanted.grace is not None else self._settings.misfire_grace
        row = NewSchedule(
            tenant_id, self._ids.make(SCHEDULE_ID, now), found.id, wanted.run_at, wanted.input, wanted.metadata, wanted.priority,
            wanted.missed, round(grace * 1000),
        )  # fmt: skip
        await store.insert(self._database, [row], now)
        self.on_due(row.run_at)
        return await self.get(tenant_id, row.id)

    async def change(self, tenant_id: int, schedule_id: str, changes: Mapping[str, Any]) -> ScheduleRow:
        """Change what is given, by the names of the row. Raises Problem unknown_schedule, schedule_settled or limit_failed."""
        async with self._database.transaction() as conn:
            before = await store.locked(conn, tenant_id, schedule_id)
            if before is None:
                raise _unknown(schedule_id)
            row = replace(before, **changes)
            if "input" in changes or "metadata" in changes:
                self._intake.judge_as_known(RunRequest(tenant_id, row.workflow, row.input or b"{}", row.metadata, row.priority))
            if not await store.change(conn, tenant_id, row, self._clock.now()):
                raise _settled(before)
        self.on_due(row.run_at)
        return await self.get(tenant_id, schedule_id)

    async def delete(self, tenant_id: int, schedule_id: str) -> None:
        """Remove a schedule; a run it started goes on. Raises Problem unknown_schedule."""
        if not await store.delete(self._database, tenant_id, [schedule_id]):
            raise _unknown(schedule_id)

    async def trigger(self, tenant_id: int, schedule_id: str) -> ScheduleRow:
        """Start its run now instead of at its moment. Raises Problem unknown_schedule or schedule_settled."""
        row = await self.get(tenant_id, schedule_id)
        workflow = await registry.workflow(self._database, tenant_id, row.workflow)
        if row.status != "scheduled" or workflow is None:
            raise _settled(row)
        step = ScheduleStep(tenant_id, row.id, row.run_at, "started", None)
        request = FiringRequest(tenant_id, workflow.id, "schedule", [row.run_at], row.input or b"{}", row.metadata, row.priority, step)
        accepted = (await self._intake.fire([request]))[0]
        if isinstance(accepted, Problem):
            raise accepted
        now_is = await self.get(tenant_id, schedule_id)
        if accepted.lost:
            raise _settled(now_is)
        return now_is

    async def reschedule(self, tenant_id: int, moments: Sequence[tuple[str, datetime]]) -> set[str]:
        """Give many another moment; answers those that were still to come."""
        changed = await store.reschedule(self._database, tenant_id, moments, self._clock.now())
        if moments:
            self.on_due(min(moment for _, moment in moments))
        return changed

    async def reschedule_matching(self, tenant_id: int, wanted: ScheduleFilter, run_at: datetime) -> list[str]:
        """Give all that match, and are still to come, another moment. Raises Problem too_many_matched."""
        async with self._database.transaction() as conn:
            ids = self._bounded(await store.matching(conn, tenant_id, wanted, self._most + 1))
            changed = await store.reschedule(conn, tenant_id, [(one, run_at) for one in ids], self._clock.now())
        self.on_due(run_at)
        return [one for one in ids if one in changed]

    async def delete_many(self, tenant_id: int, ids: Sequence[str]) -> set[str]:
        """Remove many; answers those there were."""
        return await store.delete(self._database, tenant_id, ids)

    async def delete_matching(self, tenant_id: int, wanted: ScheduleFilter) -> list[str]:
        """Remove all that match. Raises Problem too_many_matched."""
        async with self._database.transaction() as conn:
            ids = self._bounded(await store.matching(conn, tenant_id, wanted, self._most + 1))
            await store.delete(conn, tenant_id, ids)
        return ids

    @property
    def _most(self) -> int:
        return self._settings.max_bulk_schedules

    def _bounded(self, ids: list[str]) -> list[str]:
        if len(ids) > self._most:
            raise problem("bulk_too_large", f"more than {self._most:,} schedules match; narrow the filter")
        return ids

    async def get(self, tenant_id: int, schedule_id: str) -> ScheduleRow:
        """A schedule. Raises Problem unknown_schedule."""
        row = await store.get(self._database, tenant_id, schedule_id)
        if row is None:
            raise _unknown(schedule_id)
        return row


def _unknown(schedule_id: str) -> Problem:
    return problem("unknown_schedule", f"there is no schedule {schedule_id[:100]!r}")


def _settled(row: ScheduleRow) -> Problem:
    return problem("schedule_settled", f"{row.id} is {row.status}", run_id=row.run_id)
