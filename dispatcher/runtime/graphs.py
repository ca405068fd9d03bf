"""Runs of graphs: whenever something has happened to one, its rules are asked what follows, and that is written.

A run is hinted at by whoever changed it, and found by its `advance_at` if the hint is lost. What is decided on a picture that has
moved on is decided again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, cast

import msgspec

from dispatcher.clock import Clock, monotonic
from dispatcher.engine.admission import queue_of
from dispatcher.engine.definitions import Parent, Sleep, TaskDefinition, UserEvent, compile_condition
from dispatcher.engine.definitions.placement import parse_desired_labels
from dispatcher.engine.expressions import Expression, ExpressionError
from dispatcher.engine.graphs import LETTERS, Advance, GraphState, Status, advance, conditions, ended
from dispatcher.engine.placement import requirement_of
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory, Workflow
from dispatcher.runtime.group_commit import GroupCommit, QueueFull
from dispatcher.runtime.recorder import Recorder
from dispatcher.runtime.settlement import RunFinished, Settlement
from dispatcher.store import graphs
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.graphs import Decision, GraphRow, NewTask, NewWait, RunKey
from dispatcher.store.logs import NewLine
from dispatcher.store.outcomes import TaskKey

_log = logging.getLogger(__name__)

_LETTER: Mapping[Status, str] = {status: letter for letter, status in LETTERS.items()}
_SET = 200
_BOUND = 1_000_000
_TRIES = 20
_STOP_AGAIN = timedelta(seconds=5)  # after the tasks of a cancelled run were told, until they are looked at again
_PUT_OFF = timedelta(minutes=1)  # until a run is looked at again that cannot be moved along
_EXPRESSIONS_KEPT = 10_000


@lru_cache(maxsize=_EXPRESSIONS_KEPT)
def _expression(source: str) -> Expression[bool]:
    return compile_condition(source, parent=True, clock=monotonic)


@dataclass(slots=True)
class _Question:
    """The parent conditions of one run's tasks, asked of what their ancestors gave. What goes wrong is kept to be told."""

    run: GraphRow
    outputs: Mapping[TaskKey, graphs.Output]
    faults: dict[int, str] = field(default_factory=dict)
    _parsed: dict[int, Any] = field(default_factory=dict)

    def holds(self, node: int, condition: Parent) -> bool:
        """Whether the output of the ancestor satisfies the condition; an error is no."""
        given = self.outputs.get((self.run.tenant_id, self.run.id, condition.node))
        if given is None or given.output is None:
            return False
        try:
            if condition.node not in self._parsed:
                self._parsed[condition.node] = msgspec.json.decode(given.output)
            return _expression(condition.expression)(output=self._parsed[condition.node])
        except (ExpressionError, msgspec.DecodeError, RecursionError) as error:
            self.faults[node] = f"its condition {condition.expression!r} cannot be asked: {error}"
            return False


class Graphs:
    """Moves runs of graphs along."""

    def __init__(
        self, database: Database, directory: Directory, capacity: Capacity, settlement: Settlement, recorder: Recorder, clock: Clock
    ) -> None:
        self._database = database
        self._directory = directory
        self._capacity = capacity
        self._settlement = settlement
        self._recorder = recorder
        self._clock = clock
        self._commits: GroupCommit[RunKey, None] = GroupCommit(self._advance, most=_SET, bound=_BOUND)
        self.on_ready: Callable[[], None] = lambda: None
        self.on_gated: Callable[[], None] = lambda: None
        self.on_armed: Callable[[Sequence[NewWait]], None] = lambda _waits: None
        self.on_stop: Callable[[RunKey, str], None] = lambda _run, _reason: None

    def hint(self, runs: Iterable[RunKey]) -> None:
        """Something has happened to these runs. A hint that is lost costs time, nothing else."""
        for key in runs:
            try:
                self._commits.submit(key).add_done_callback(_heard)
            except QueueFull:
                return

    async def drain(self) -> None:
        """Wait until what was hinted at has been looked at."""
        await self._commits.drain()

    async def tick(self, now: datetime, limit: int) -> bool:
        """Look at runs nobody hinted at; True when there may be more."""
        found = await graphs.due(self._database, now, limit)
        heard = await asyncio.gather(*(self._commits.submit(key) for key in found), return_exceptions=True)
        failed = [(key, error) for key, error in zip(found, heard, strict=True) if error is not None]
        broken = [key for key, error in failed if not _passes(error)]
        for key, error in failed:
            if key in broken:
                _log.error("run %s of a graph cannot be moved along", key[1], exc_info=error)
        if broken:
            await graphs.put_off(self._database, broken, now + _PUT_OFF)
        if len(broken) < len(failed):
            raise next(error for key, error in failed if key not in broken)
        return len(found) >= limit

    async def _advance(self, keys: Sequence[RunKey]) -> list[None]:
        left, told = list(dict.fromkeys(keys)), set[TaskKey]()
        for _ in range(_TRIES):
            if not left:
                break
            rows = await graphs.load(self._database, left)
            decisions = await self._decide(rows, told)
            landed = await graphs.apply(self._database, decisions, self._clock.now())
            await self._announce([d for d in decisions if (d.run.tenant_id, d.run.id) in landed])
            left = [(d.run.tenant_id, d.run.id) for d in decisions if (d.run.tenant_id, d.run.id) not in landed]
        return [None] * len(keys)

    async def _decide(self, rows: Sequence[GraphRow], told: set[TaskKey]) -> list[Decision]:
        workflows = [await self._directory.workflow_version(row.tenant_id, row.workflow_id, row.workflow_version) for row in rows]
        states = [_state(row) for row in rows]
        asked = [key for row, w, state in zip(rows, workflows, states, strict=True) for key in _asked(row, w, state)]
        given = await graphs.outputs(self._database, asked)
        now, lines, decisions = self._clock.now(), list[NewLine](), list[Decision]()
        for row, workflow, state in zip(rows, workflows, states, strict=True):
            question = _Question(row, given)
            if _loops(workflow, state):  # conditions that go through lists may take their time: others go on meanwhile
                change = await asyncio.to_thread(advance, workflow.graph, state, question.holds)
            else:
                change = advance(workflow.graph, state, question.holds)
            decisions.append(_decision(row, workflow, state, change, now))
            lines += _fault_lines(row, workflow, state, question.faults, told, now)
            if change.stop:
                self.on_stop((row.tenant_id, row.id), row.cancel_reason or "cancelled")
        try:
            await self._recorder.write(lines)
        except QueueFull:
            _log.warning("%d conditions that could not be asked were not told of", len(lines))
        return decisions

    async def _announce(self, decisions: Sequence[Decision]) -> None:
        over, ready, armed = list[RunFinished](), False, list[NewWait]()
        for decision in decisions:
            run = decision.run
            if decision.finish is not None or decision.tasks:
                workflow = await self._directory.workflow_version(run.tenant_id, run.workflow_id, run.workflow_version)
                if workflow.plan is not None:
                    self.on_gated()
                if decision.finish is not None:
                    over.append(RunFinished(run.tenant_id, run.id, workflow.definition.name, decision.finish, 0))
            for task in decision.tasks:
                self._capacity.backlog.add(queue_of(run.tenant_id, run.workflow_id, task.durable, task.requirement))
                ready = True
            armed += decision.waits
        if over:
            self._settlement.announce(over)
            self._settlement.on_waits()  # a parent may wait for it, children may end with it
        if ready:
            self.on_ready()
        if armed:
            self.on_armed(armed)


def _names(workflow: Workflow) -> str:
    """The tasks by node, and whether each is one that comes last: what a durable parent is told is made with them."""
    definition = workflow.definition
    last = {definition.on_failure, definition.on_success}
    return msgspec.json.encode([(task.name, node in last) for node, task in enumerate(definition.tasks)]).decode()


def _heard(future: Any) -> None:
    """A look that failed is repeated by the loop; only what nobody foresaw is worth a word."""
    error = None if future.cancelled() else future.exception()
    if error is not None and not _passes(error):
        _log.error("a run of a graph cannot be moved along", exc_info=error)


def _passes(error: BaseException) -> bool:
    """Whether another look may go well by itself."""
    return isinstance(error, DatabaseUnavailable | asyncio.CancelledError) or is_transient(error)


def _state(row: GraphRow) -> GraphState:
    """Where a run is: its letters, with the tasks that have ended since they were written."""
    ends = cast("Sequence[Status]", row.statuses)  # the column's check allows no other words
    statuses = ended([LETTERS[letter] for letter in row.graph], zip(row.settled, ends, strict=True))
    met: dict[int, set[int]] = {}
    for node, number in zip(row.met_nodes, row.met, strict=True):
        met.setdefault(node, set()).add(number)
    return GraphState(statuses, {node: frozenset(numbers) for node, numbers in met.items()}, row.cancel_reason is not None)


def _asked(row: GraphRow, workflow: Workflow, state: GraphState) -> set[TaskKey]:
    """The ancestors whose output a task that has not started has a condition on."""
    return {
        (row.tenant_id, row.id, ancestor)
        for node, ancestor in workflow.graph.asks
        if state.statuses[node] in ("pending", "waiting") and state.statuses[ancestor] == "succeeded"
    }


def _loops(workflow: Workflow, state: GraphState) -> bool:
    """Whether a condition that may be asked now goes through lists."""
    asking = {
        node
        for node, above in workflow.graph.asks
        if state.statuses[node] in ("pending", "waiting") and state.statuses[above] == "succeeded"
    }
    rules = (one for node in asking for one in conditions(workflow.definition.tasks[node]) if isinstance(one, Parent))
    return any(_expression(one.expression).loops for one in rules)


def _decision(row: GraphRow, workflow: Workflow, state: GraphState, change: Advance, now: datetime) -> Decision:
    statuses: list[Status] = list(state.statuses)
    after: tuple[tuple[Sequence[int], Status], ...] = (
        (change.start, "active"), (change.arm, "waiting"), (change.skip, "skipped"), (change.cancel, "cancelled"),
    )  # fmt: skip
    for nodes, status in after:
        for node in nodes:
            statuses[node] = status
    waited = {node for node, status in enumerate(state.statuses) if status == "waiting"}
    tasks = workflow.definition.tasks
    return Decision(
        row,
        "".join(_LETTER[status] for status in statuses),
        msgspec.json.encode({str(node): reason for node, reason in change.reasons.items()}).decode() if change.reasons else None,
        [_new_task(row, workflow, node) for node in change.start],
        [wait for node in change.arm for wait in _waits(node, tasks[node], _done(row, tasks[node], now))],
        [node for node in waited if statuses[node] != "waiting"],
        change.finish,
        _names(workflow) if change.finish is not None and row.parent_run_id is not None else None,
        now + _STOP_AGAIN if change.stop else None,
    )


def _new_task(row: GraphRow, workflow: Workflow, node: int) -> NewTask:
    labels = parse_desired_labels(json.loads(row.labels), "labels") if row.labels is not None else {}
    asked = requirement_of(workflow.definition, node, labels, row.sticky_endpoint)
    durable = workflow.definition.tasks[node].durable
    return NewTask(node, workflow.schedule_ms[node], workflow.execution_ms[node], durable, asked.text(), asked.slots)


def _done(row: GraphRow, task: TaskDefinition, now: datetime) -> datetime:
    """When a task's parents were done, which is what its conditions count from: looking may take its time, and events do not wait for it.

    The last of its parents has ended just now, or was skipped because of something that has; else it is the beginning, or a replay.
    """
    ended = dict(zip(row.settled, row.ended, strict=True))
    return max((ended[parent] for parent in task.parents if parent in ended), default=min(ended.values(), default=now))


def _waits(node: int, task: TaskDefinition, since: datetime) -> Iterable[NewWait]:
    """The conditions of a task that are settled by time or by events, counted from when its parents were done."""
    for number, condition in enumerate(conditions(task)):
        if isinstance(condition, Sleep):
            yield NewWait(node, str(number), "sleep", None, None, None, since, since + condition.duration)
        elif isinstance(condition, UserEvent):
            yield NewWait(node, str(number), "event", condition.key, condition.scope, condition.expression, since, None)


def _fault_lines(
    row: GraphRow, workflow: Workflow, state: GraphState, faults: Mapping[int, str], told: set[TaskKey], now: datetime
) -> Iterable[NewLine]:
    """What conditions that cannot be asked leave in the run's log, each once.

    What a task's parents gave does not change while it waits, so all there is to say was said when it was asked for the first time.
    """
    for node, text in faults.items():
        key = (row.tenant_id, row.id, node)
        if state.statuses[node] == "pending" and key not in told:
            told.add(key)
            yield NewLine(row.tenant_id, row.id, node, 0, now, "error", f"{workflow.definition.task_name(node)}: {text}")
