"""Writing what became of attempts, in shared commits, and telling whoever waits for it.

An outcome is written until the database has taken it: while Postgres is away outcomes gather here, and the epoch in each guard
makes writing one twice harmless. An outcome that cannot be stored for its own content becomes a failure that can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count

from dispatcher.clock import Clock
from dispatcher.engine.admission import Queue, queue_of
from dispatcher.engine.attempts import AttemptStatus, Change, CleanUp, Error, Finish, Requeue, Yield
from dispatcher.runtime.directory import Workflow
from dispatcher.runtime.group_commit import GroupCommit
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.signals import Signals
from dispatcher.runtime.waiters import Waiters
from dispatcher.store import outcomes
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.outcomes import AttemptFacts, Outcome, TaskKey

_log = logging.getLogger(__name__)

_PAUSE_FIRST = timedelta(milliseconds=50)
_PAUSE_LAST = timedelta(seconds=2)
_TRIES_WHOLE = 2
_WEIGHT_BYTES = 16_384
_BOUND = 1_000_000  # attempts in flight are bounded elsewhere; an outcome is never turned away


@dataclass(slots=True)
class Settled:
    """An outcome on its way. `done` is called with whether it landed, in the turn of the loop its commit is known.

    `input_bytes` is how large the input is that moves to history with it, where that is known.
    """

    outcome: Outcome
    workflow: Workflow
    done: Callable[[bool], None] | None = None
    input_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run that has just ended, for whoever shows it. `attempts` counts those of its task; 0 where there were several."""

    tenant_id: int
    run_id: str
    workflow: str
    status: str
    attempts: int


class Settlement:
    """The way out for outcomes."""

    def __init__(self, database: Database, clock: Clock, waiters: Waiters, signals: Signals, metrics: Metrics, most: int) -> None:
        self._database = database
        self._clock = clock
        self._waiters = waiters
        self._signals = signals
        self._metrics = metrics
        self._commits: GroupCommit[Settled, bool] = GroupCommit(
            self._write, most=most, bound=_BOUND, weigh=_weight, whose=lambda settled: settled.outcome.guard.tenant_id
        )
        self.on_task_over: Callable[[list[tuple[int, str]]], None] = lambda _runs: None
        self.on_requeued: Callable[[Queue, datetime], None] = lambda _queue, _due_at: None
        self.on_waits: Callable[[], None] = lambda: None
        self.on_marked: Callable[[], None] = lambda: None
        self.on_freed: Callable[[bool], None] = lambda _again: None
        self.on_finished: list[Callable[[RunFinished], None]] = []

    def submit(self, settled: Settled) -> asyncio.Future[bool]:
        """Whether the change landed, known after its commit. False means the task had moved on."""
        definition, task = settled.workflow.definition, settled.workflow.definition.tasks[settled.outcome.guard.node]
        settled.outcome.of_graph = definition.is_graph
        settled.outcome.pinned = task.durable and task.pin == "task"
        return self._commits.submit(settled)

    @property
    def writers(self) -> list[asyncio.Task[None]]:
        """What is writing at the moment."""
        return self._commits.writers

    async def drain(self) -> None:
        """Wait until everything submitted is written."""
        await self._commits.drain()

    async def _write(self, items: Sequence[Settled]) -> list[bool]:
        """Write until it is written. A set that fails twice is halved: it may be too much for the time a statement has."""
        pause, landed = _PAUSE_FIRST, [False] * len(items)
        for tries in count(1):
            try:
                await self._apply(items, landed)
                break
            except Exception as error:
                if isinstance(error, DatabaseUnavailable) or is_transient(error):
                    if tries >= _TRIES_WHOLE and len(items) > 1:
                        half = len(items) // 2
                        return await self._write(items[:half]) + await self._write(items[half:])
                    await self._clock.sleep_until(self._clock.now() + pause)
                    pause = min(pause * 2, _PAUSE_LAST)
                elif len(items) == 1:
                    _log.exception("the outcome of %s cannot be stored", items[0].outcome.guard.run_id)
                    items[0].outcome = _storable(items[0].outcome)
                else:
                    raise
        return self._announce(items, landed)

    async def _apply(self, items: Sequence[Settled], landed: list[bool]) -> None:
        """In waves, because one statement can change a task once: the later of two outcomes sees what the first has done.

        What has landed is noted as it lands, so that writing the rest again does not make it look stale.
        """
        waves: list[dict[TaskKey, int]] = []
        for i, item in enumerate(items):
            if landed[i]:
                continue
            key = item.outcome.guard.key
            wave = next((w for w in waves if key not in w), None)
            if wave is None:
                waves.append(wave := {})
            wave[key] = i
        for wave in waves:

            def note(key: TaskKey, wave: dict[TaskKey, int] = wave) -> None:
                landed[wave[key]] = True

            if await outcomes.apply(self._database, [items[i].outcome for i in wave.values()], self._clock.now(), note):
                self.on_marked()

    def _announce(self, items: Sequence[Settled], landed: list[bool]) -> list[bool]:
        over: list[RunFinished] = []
        of_graphs: dict[tuple[int, str], None] = {}
        freed: set[bool] = set()
        for item, applied in zip(items, landed, strict=True):
            change, guard = item.outcome.change, item.outcome.guard
            if not applied:
                self._metrics.stale_outcomes += 1
            elif isinstance(change, Finish):
                if change.attempt is not None:
                    self._metrics.attempts[change.attempt] += 1
                if item.outcome.of_graph:
                    of_graphs[(guard.tenant_id, guard.run_id)] = None
                else:
                    name = item.workflow.definition.name
                    over.append(RunFinished(guard.tenant_id, guard.run_id, name, change.status, guard.epoch))
            else:
                self._going_on(item, change)
            if applied and item.workflow.plan is not None:
                freed.add(not isinstance(change, Finish))
            if item.done is not None:
                item.done(applied)
        if freed:
            self.on_freed(True in freed)
        if over:
            self.announce(over)
        if of_graphs:
            self.on_task_over(list(of_graphs))
        return landed

    def _going_on(self, item: Settled, change: Change) -> None:
        """Whoever takes up a task that is not over hears of it."""
        if isinstance(change, Requeue | Yield):
            self._metrics.attempts[change.attempt] += 1
        if isinstance(change, Requeue) or (isinstance(change, Yield) and change.to == "queued") or isinstance(change, CleanUp):
            guard = item.outcome.guard
            durable = item.workflow.definition.tasks[guard.node].durable
            due_at = change.due_at if isinstance(change, Requeue) else self._clock.now()
            self.on_requeued(queue_of(guard.tenant_id, item.workflow.id, durable, guard.requirement), due_at)
        elif isinstance(change, Yield) and change.to == "waiting":
            self.on_waits()

    def announce(self, over: Sequence[RunFinished]) -> None:
        """Tell everybody that runs have ended."""
        self._waiters.finished((run.tenant_id, run.run_id) for run in over)
        self._signals.send("finished", *[run.run_id for run in over])
        for run in over:
            self._metrics.runs_finished[(run.workflow, run.status)] += 1
            for listener in self.on_finished:
                listener(run)


def _weight(settled: Settled) -> int:
    """One for the row, and one more for every few kilobytes that are written with it."""
    change = settled.outcome.change
    output = len(change.output) if isinstance(change, Finish) and change.output is not None else 0
    return 1 + (output + settled.input_bytes) // _WEIGHT_BYTES


def _storable(outcome: Outcome) -> Outcome:
    """The failure that stands in for an outcome the database refuses."""
    error = Error("unstorable_outcome", "The attempt's result could not be stored; the server's log says why.")
    attempt: AttemptStatus | None = "failed" if outcome.guard.state == "running" else None
    return Outcome(outcome.guard, Finish("failed", attempt, error=error), AttemptFacts())
