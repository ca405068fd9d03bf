"""Cancelling runs: at once where nothing runs, by asking where an attempt does, by force when its grace is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from dispatcher.clock import Clock
from dispatcher.engine.attempts import CancelEnforced, CancelRequested, Change, CleanUp, Event, MarkCancelling, Refused, step
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.settlement import Settled, Settlement
from dispatcher.runtime.signals import Signals
from dispatcher.settings import Settings
from dispatcher.store import graphs, runs, tasks
from dispatcher.store.database import Database
from dispatcher.store.outcomes import AttemptFacts, Outcome, TaskKey
from dispatcher.store.tasks import LiveTask

_log = logging.getLogger(__name__)

Fate = Literal["cancelled", "cancelling", "finished", "not_found"]
_TRIES = 20  # a task may change hands between being read and being cancelled; each look is at its newest row


class Cancellation:
    """Handles requests to cancel."""

    def __init__(
        self, database: Database, directory: Directory, settlement: Settlement, signals: Signals, clock: Clock, settings: Settings
    ) -> None:
        self._database = database
        self._directory = directory
        self._settlement = settlement
        self._signals = signals
        self._clock = clock
        self._grace = timedelta(seconds=settings.cancel_grace)
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_marked: Callable[[], None] = lambda: None
        self.on_graphs: Callable[[list[tuple[int, str]]], None] = lambda _runs: None

    async def cancel(self, tenant_id: int, run_ids: Sequence[str], reason: str) -> dict[str, Fate]:
        """Ask for runs to end. `cancelling` means an attempt was told, and ends within its grace."""
        left = list(dict.fromkeys(run_ids))
        of_graphs = await graphs.cancel(self._database, tenant_id, left, reason, self._clock.now())
        fates = await self._cancel_tasks(tenant_id, left, reason)
        for run_id in {run_id for _, run_id in of_graphs}:
            fates[run_id] = "cancelling"
        if of_graphs:
            self.on_graphs(of_graphs)
        if "cancelling" in fates.values():
            self._signals.send("cancel")
            self.on_marked()
        return fates

    async def _cancel_tasks(self, tenant_id: int, left: list[str], reason: str) -> dict[str, Fate]:
        fates: dict[str, Fate] = {}
        for _ in range(_TRIES):
            live = await tasks.of_runs(self._database, tenant_id, left)
            if not live:
                break
            moved = set[str]()
            # Those that run come last: a slot that becomes free would be given to one that is cancelled next.
            for task in sorted(live, key=lambda task: task.dispatcher_id is not None):
                fate = await self._cancel(task, reason)
                if fate is None:
                    moved.add(task.run_id)
                elif fates.get(task.run_id) != "cancelling":  # of a run with several tasks, if one of them still has to end
                    fates[task.run_id] = fate
            left = [run_id for run_id in left if run_id not in fates or run_id in moved]
        left = [run_id for run_id in left if run_id not in fates]
        over = set(await runs.finished_among(self._database, tenant_id, left)) if left else set()
        for run_id in left:
            fates[run_id] = "finished" if run_id in over else "not_found"
        return fates

    def stop(self, run: tuple[int, str], reason: str) -> None:
        """End the tasks of a run that has been cancelled before: whoever cancelled it did not get that far."""
        work = asyncio.get_running_loop().create_task(self._stop(run, reason))
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def _stop(self, run: tuple[int, str], reason: str) -> None:
        try:
            fates = await self._cancel_tasks(run[0], [run[1]], reason)
            if "cancelling" in fates.values():
                self._signals.send("cancel")
                self.on_marked()
        except Exception:
            _log.exception("the tasks of %s cannot be stopped yet; its next look tries again", run[1])

    async def _cancel(self, task: LiveTask, reason: str) -> Fate | None:
        change = await self._settle(task, CancelRequested(reason, self._grace_of(task)))
        if change is None:
            return "cancelling" if task.cancel_at is not None or task.cleanup else None
        return "cancelling" if isinstance(change.change, MarkCancelling | CleanUp) else "cancelled"

    async def dismiss(self, keys: Sequence[TaskKey], reason: str) -> None:
        """Ask for tasks to end, together: of a graph these alone. What moves on meanwhile is left to the next look."""
        submitted: list[tuple[Change, asyncio.Future[bool]]] = []
        for task in await tasks.load(self._database, keys):
            workflow = await self._directory.workflow_version(task.tenant_id, task.workflow_id, task.workflow_version)
            change = step(task.rules(), workflow.policies[task.node], CancelRequested(reason, self._grace_of(task)), self._clock.now())
            if not isinstance(change, Refused):
                submitted.append((change, self._settlement.submit(Settled(Outcome(task.guard(), change, AttemptFacts()), workflow))))
        marked = False
        for change, landed in submitted:
            marked |= await landed and isinstance(change, MarkCancelling | CleanUp)
        if marked:
            self._signals.send("cancel")
            self.on_marked()

    def _grace_of(self, task: LiveTask) -> timedelta:
        """A handler that cannot be told gets no grace: closing its connection is how it learns of it."""
        if task.endpoint_id is None:
            return timedelta(0)
        endpoint = self._directory.endpoint((task.tenant_id, task.endpoint_id))
        hears = endpoint is not None and "cancel-push" in endpoint.target.features
        return self._grace if hears or task.dispatcher_id is None else timedelta(0)

    async def _settle(self, task: LiveTask, event: Event) -> Outcome | None:
        workflow = await self._directory.workflow_version(task.tenant_id, task.workflow_id, task.workflow_version)
        change = step(task.rules(), workflow.policies[task.node], event, self._clock.now())
        if isinstance(change, Refused):
            return None
        outcome = Outcome(task.guard(), change, AttemptFacts())
        return outcome if await self._settlement.submit(Settled(outcome, workflow)) else None

    async def enforce_due(self, now: datetime, limit: int) -> int:
        """End attempts whose grace is over and that no dispatcher's connection will end; answers how many were found."""
        due = await tasks.cancels_due(self._database, now, now - self._grace, limit)
        for task in due:
            await self._settle(task, CancelEnforced(task.cancel_reason or "cancelled"))
        return len(due)
