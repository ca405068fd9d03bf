"""Making, changing and removing crons, and keeping those that workflows declare as they are declared."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dispatcher.clock import Clock
from dispatcher.engine.definitions import CronTrigger
from dispatcher.engine.schedules import RULES, ScheduleError, parse_cron
from dispatcher.errors import Problem, problem
from dispatcher.ids import IdMaker
from dispatcher.runtime.intake import Intake, RunAccepted, RunRequest
from dispatcher.runtime.plans import CRON_ID, reckoned
from dispatcher.settings import Settings
from dispatcher.store import crons as store
from dispatcher.store import registry
from dispatcher.store.crons import CronRow, NewCron
from dispatcher.store.database import Connection, Database

_TIMING = ("expression", "timezone", "enabled")
_OF_DECLARED = frozenset({"enabled"})


@dataclass(frozen=True, slots=True)
class CronWanted:
    """A cron somebody wants. `input` and `metadata` are JSON text, checked by the edge."""

    workflow: str
    name: str
    expression: str
    timezone: str
    input: bytes
    metadata: str | None
    priority: int | None
    missed: str
    enabled: bool


class Crons:
    """Everything that changes what crons there are."""

    def __init__(self, database: Database, intake: Intake, clock: Clock, settings: Settings) -> None:
        self._database = database
        self._intake = intake
        self._clock = clock
        self._settings = settings
        self._ids = IdMaker()
        self._planned: dict[int, asyncio.Lock] = {}
        self.on_due: Callable[[datetime], None] = lambda _moment: None

    async def create(self, tenant_id: int, wanted: CronWanted) -> CronRow:
        """Make a cron. Raises Problem unknown_workflow, invalid_cron, invalid_timezone, cron_exists or too_many_crons."""
        found = await registry.workflow(self._database, tenant_id, wanted.workflow)
        if found is None:
            raise problem("unknown_workflow", f"no workflow {wanted.workflow[:200]!r} is registered")
        now = self._clock.now()
        expression = " ".join(wanted.expression.split())
        row = NewCron(
            self._ids.make(CRON_ID, now), found.id, wanted.name, expression, wanted.timezone, wanted.input, wanted.metadata,
            wanted.priority, wanted.missed, wanted.enabled, False, None, None, RULES,
        )  # fmt: skip
        row = _checked(row, now)
        await self._intake.judge(RunRequest(tenant_id, wanted.workflow, wanted.input, wanted.metadata, wanted.priority))
        async with self._database.transaction() as conn:
            await check_room(conn, tenant_id, 1, self._settings.max_crons)
            if not await store.insert(conn, tenant_id, row, now):
                raise problem("cron_exists", f"{wanted.workflow!r} has a cron {wanted.name!r} with the expression {expression!r} already")
        self._due(row)
        return await self.get(tenant_id, row.id)

    async def change(self, tenant_id: int, cron_id: str, changes: Mapping[str, Any]) -> CronRow:
        """Change what is given, by the names of the row. Raises Problem unknown_cron, cron_declared, cron_exists or what `create` does."""
        now = self._clock.now()
        async with self._database.transaction() as conn:
            before = await store.locked(conn, tenant_id, cron_id)
            if before is None:
                raise _unknown(cron_id)
            if before.declared and not _OF_DECLARED.issuperset(changes):
                raise problem("cron_declared", f"the workflow {before.workflow!r} declares {before.name!r}; only `enabled` can be changed")
            row = _changed(before, changes, now)
            if "input" in changes or "metadata" in changes:
                self._intake.judge_as_known(RunRequest(tenant_id, before.workflow, row.input, row.metadata, row.priority))
            if not await store.update(conn, tenant_id, row, now):
                raise problem("cron_exists", f"{before.workflow!r} has another cron {row.name!r} with the expression {row.expression!r}")
        self._due(row)
        return await self.get(tenant_id, cron_id)

    async def delete(self, tenant_id: int, cron_id: str) -> None:
        """Remove a cron; the runs it started go on. Raises Problem unknown_cron or cron_declared."""
        before = await self.get(tenant_id, cron_id)
        if before.declared:
            raise problem("cron_declared", f"the workflow {before.workflow!r} declares {before.name!r}: it would come back")
        if not await store.delete(self._database, tenant_id, cron_id):
            raise _unknown(cron_id)

    async def trigger(self, tenant_id: int, cron_id: str) -> RunAccepted:
        """Start a run now, with what the cron gives its runs. Its ticks stay as they are."""
        row = await self.get(tenant_id, cron_id)
        request = RunRequest(tenant_id, row.workflow, row.input, row.metadata, row.priority, trigger="cron", cause=row.id)
        accepted = (await self._intake.trigger([request]))[0]
        if isinstance(accepted, Problem):
            raise accepted
        return accepted

    async def get(self, tenant_id: int, cron_id: str) -> CronRow:
        """A cron. Raises Problem unknown_cron."""
        row = await store.get(self._database, tenant_id, cron_id)
        if row is None:
            raise _unknown(cron_id)
        return row

    @asynccontextmanager
    async def planning(self, tenant_id: int, wanted: int) -> AsyncIterator[None]:
        """Room for so many crons that events plan, for nobody else of this process meanwhile. Raises Problem too_many_crons."""
        async with self._planned.setdefault(tenant_id, asyncio.Lock()):
            async with self._database.transaction() as conn:
                await check_room(conn, tenant_id, wanted, self._settings.max_crons)
            yield

    def _due(self, row: NewCron) -> None:
        if row.due_at is not None:
            self.on_due(row.due_at)


async def check_room(conn: Connection, tenant_id: int, wanted: int, most: int) -> None:
    """Hold a tenant, and raise Problem too_many_crons where so many more would be too many for it."""
    await registry.hold_alone(conn, tenant_id)
    if await store.count(conn, tenant_id) + wanted > most:
        raise problem("too_many_crons", f"a tenant has {most:,} crons at most")


async def declare(conn: Connection, tenant_id: int, workflow_id: int, declared: Sequence[CronTrigger], ids: IdMaker, now: datetime) -> None:
    """Let a workflow declare exactly these. One it declared before stays where it is in time; those made by hand stay altogether."""
    rows = await store.of_workflow(conn, tenant_id, workflow_id)
    wanted = {(cron.name, cron.expression): cron for cron in declared}
    known = {(row.name, row.expression): row for row in rows}
    gone = [row.id for key, row in known.items() if row.declared and key not in wanted]
    if gone:
        await store.delete_many(conn, tenant_id, gone)
    for key, cron in wanted.items():
        before = known.get(key)
        if before is None:
            row = _declared(ids.make(CRON_ID, now), workflow_id, cron)
            await store.insert(conn, tenant_id, reckoned(row, now), now)
        elif before.declared and _differs(before, cron):
            await store.update(conn, tenant_id, _changed(before, _members(cron), now), now)


def _members(cron: CronTrigger) -> dict[str, Any]:
    return {
        "timezone": cron.timezone,
        "input": cron.input.encode(),
        "metadata": cron.metadata,
        "priority": cron.priority,
        "missed": cron.missed,
    }


def _differs(row: CronRow, cron: CronTrigger) -> bool:
    kept = replace(row, metadata=_parsed(row.metadata))
    return any(getattr(kept, name) != value for name, value in {**_members(cron), "metadata": _parsed(cron.metadata)}.items())


def _parsed(metadata: str | None) -> Any:
    """What the text says, however it is written."""
    return json.loads(metadata) if metadata is not None else None


def _declared(cron_id: str, workflow_id: int, cron: CronTrigger) -> NewCron:
    return NewCron(
        cron_id, workflow_id, cron.name, cron.expression, cron.timezone, cron.input.encode(), cron.metadata, cron.priority, cron.missed,
        True, True, None, None, RULES,
    )  # fmt: skip


def _changed(before: CronRow, changes: Mapping[str, Any], now: datetime) -> NewCron:
    """The row with its changes. Its next tick is reckoned again if they move it, from where it is in time: nothing comes twice."""
    row = NewCron(
        before.id, before.workflow_id, before.name, before.expression, before.timezone, before.input, before.metadata, before.priority,
        before.missed, before.enabled, before.declared, before.due_at, before.due_wall, RULES,
    )  # fmt: skip
    row = replace(row, **changes)
    if all(getattr(row, name) == getattr(before, name) for name in _TIMING):
        return row
    same = (row.expression, row.timezone) == (before.expression, before.timezone)
    last = before.last_tick if before.last_tick is not None and before.last_tick > now else now
    return _checked(row, last, before.last_wall if same else None)


def _checked(row: NewCron, after: datetime, wall: datetime | None = None) -> NewCron:
    try:
        parse_cron(row.expression)
        return reckoned(row, after, wall)
    except ScheduleError as error:
        field = "timezone" if error.code == "invalid_timezone" else "expression"
        raise problem(error.code, f"{field}: {error}", field=field) from None


def _unknown(cron_id: str) -> Problem:
    return problem("unknown_cron", f"there is no cron {cron_id[:100]!r}")
