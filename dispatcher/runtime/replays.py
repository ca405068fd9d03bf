"""Running again what is over: a run whole, or one task of a graph with all that comes after it.

A run of one task begins again by the newest definition of its workflow, because what has made it fail may have been mended there. A graph
goes on by the one it had: its nodes are places in that.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from dispatcher.clock import Clock
from dispatcher.engine.admission import queue_of
from dispatcher.engine.batching import group_of
from dispatcher.engine.definitions import DefinitionError
from dispatcher.engine.definitions.placement import DesiredLabels, parse_desired_labels
from dispatcher.engine.flow import FlowError
from dispatcher.engine.graphs import LETTERS, reset
from dispatcher.engine.placement import Requirement, refuse_long, requirement_of
from dispatcher.errors import problem
from dispatcher.runtime import passages
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import PENDING, Directory, Workflow
from dispatcher.store import removals, replays
from dispatcher.store.database import Connection, Database
from dispatcher.store.replays import EndedRun, Revival, Revived

_TRIES: Final = 3  # a run may end, or be begun again by somebody else, between a look and the write


class Replays:
    """Begins runs again."""

    def __init__(self, database: Database, directory: Directory, capacity: Capacity, clock: Clock) -> None:
        self._database = database
        self._directory = directory
        self._capacity = capacity
        self._clock = clock
        self.on_ready: Callable[[], None] = lambda: None
        self.on_graphs: Callable[[list[tuple[int, str]]], None] = lambda _runs: None

    async def replay(self, tenant_id: int, run_id: str, task: str | None, input: bytes | None) -> None:
        """Begin a run again, with another input where one is given; of a graph only `task` and what comes after it.

        Raises Problem not_found, run_not_finished, unknown_workflow where that was removed, or invalid_value for a task it does not have.
        """
        for _ in range(_TRIES):
            found = await replays.ended(self._database, tenant_id, [run_id])
            if not found:
                break
            if await removals.among(self._database, tenant_id, [found[0].workflow_id]):
                raise problem("unknown_workflow", f"the workflow of run {run_id} was removed; register it again")
            revival = await self._revival(tenant_id, found[0], task, input)
            try:
                await self._limit(self._database, tenant_id, found[0], revival)
            except FlowError as error:
                workflow = await self._directory.workflow_version(tenant_id, found[0].workflow_id, revival.workflow_version)
                raise passages.refusal(workflow, error) from None
            revived = await replays.revive(self._database, tenant_id, [revival], self._clock.now())
            if revived:
                self.announce(tenant_id, revived)
                return
        if await replays.live(self._database, tenant_id, [run_id]):
            raise problem("run_not_finished", f"run {run_id} is not over: POST /v1/runs/{run_id}/cancel ends it, then it can be replayed")
        raise problem("not_found", f"there is no run {run_id[:100]!r}")

    async def revive(
        self, conn: Connection, tenant_id: int, run_ids: Sequence[str], now: datetime, *, ended_at: datetime | None = None
    ) -> list[Revived]:
        """Begin those of these runs again that are over (since `ended_at`, where that is given), in the caller's transaction; `announce`
        them once it is committed.
        """
        found = await replays.ended(conn, tenant_id, run_ids)
        removed = await removals.among(conn, tenant_id, (run.workflow_id for run in found))
        revivals = []
        for run in found:
            if run.workflow_id in removed or (ended_at is not None and run.finished_at != ended_at):
                continue
            revival = await self._revival(tenant_id, run, None, None)
            with contextlib.suppress(FlowError):  # its workflow has other limits by now, and does not take this input
                await self._limit(conn, tenant_id, run, revival)
                revivals.append(revival)
        return await replays.revive(conn, tenant_id, revivals, now)

    async def with_logs(self, conn: Connection, tenant_id: int, run_ids: Sequence[str]) -> set[str]:
        """Those of these runs that are over and go on from the log of their durable task, instead of beginning anew."""
        found = set[str]()
        for run in await replays.ended(conn, tenant_id, run_ids):
            definition = (await self._directory.workflow_version(tenant_id, run.workflow_id, run.workflow_version)).definition
            if not definition.is_graph and definition.tasks[0].durable and definition.tasks[0].mode == "replay":
                found.add(run.id)
        return found

    def announce(self, tenant_id: int, revived: Sequence[Revived]) -> None:
        """Let runs that are live again be taken up."""
        graphs = [(tenant_id, run.id) for run in revived if run.graph is not None]
        if graphs:
            self.on_graphs(graphs)
        if len(graphs) < len(revived):
            self._capacity.backlog.update(
                queue_of(tenant_id, run.workflow_id, durable, run.requirement)
                for run in revived
                if run.graph is None
                for durable in (False, True)
            )
            self.on_ready()

    async def _revival(self, tenant_id: int, run: EndedRun, task: str | None, input: bytes | None) -> Revival:
        before = await self._directory.workflow_version(tenant_id, run.workflow_id, run.workflow_version)
        if run.graph is None:
            if task not in (None, before.definition.name, before.definition.tasks[0].name, before.definition.task_name(0)):
                raise problem("invalid_value", f"task: run {run.id} has no task {task[:200]!r}", field="task")
            labels = parse_desired_labels(json.loads(run.labels), "labels") if run.labels is not None else {}
            workflow = self._newest(tenant_id, before, labels)
            asked = requirement_of(workflow.definition, 0, labels, run.sticky_endpoint)
            times = (workflow.schedule_ms[0], workflow.execution_ms[0])
            return Revival(run.id, run.finished_at, workflow.number, *times, None, None, input, asked.text(), asked.slots)
        graph, reasons = _reset(run, before, task)
        return Revival(run.id, run.finished_at, before.number, 0, 0, graph, reasons, input)

    async def _limit(self, db: Database | Connection, tenant_id: int, run: EndedRun, revival: Revival) -> None:
        """Tell anew what the run is limited by. Raises FlowError."""
        workflow = await self._directory.workflow_version(tenant_id, run.workflow_id, revival.workflow_version)
        batched = workflow.definition.tasks[0].batch is not None
        body = await replays.body(db, tenant_id, run) if workflow.plan is not None or batched else None
        if body is not None and batched:
            asked = Requirement.parse(revival.requirement)
            metadata = json.loads(body.metadata) if body.metadata is not None else None
            group = group_of(workflow.definition, json.loads(revival.input or body.input), metadata)
            revival.requirement = replace(asked, batch=group).text()
        if body is not None:
            flow = passages.ask(workflow, revival.input or body.input, body.metadata)
            if flow is not None:
                passages.give(revival, flow)
                revival.schedule_ms = revival.schedule_ms or workflow.schedule_ms[0]

    def _newest(self, tenant_id: int, before: Workflow, labels: DesiredLabels) -> Workflow:
        picture = self._directory.pictures.get(tenant_id)
        newest = picture.by_id.get(before.id) if picture is not None else None
        alike = newest is not None and not newest.definition.is_graph and newest.definition.kind == before.definition.kind
        if newest is None or not alike:
            return before
        try:
            refuse_long(newest.definition, labels, "labels")
        except DefinitionError:
            return before  # together with the labels of the run it would ask for more than can be written
        return newest


def _reset(run: EndedRun, workflow: Workflow, task: str | None) -> tuple[str, str]:
    """The letters a run of a graph begins again with, and the reasons of the nodes it keeps."""
    letters = run.graph or ""
    names = [one.name for one in workflow.definition.tasks]
    name = task.removeprefix(f"{workflow.definition.name}:") if task is not None else None
    if name is not None and name not in names:
        raise problem("invalid_value", f"task: run {run.id} has no task {name[:200]!r}; it has {', '.join(names[:20])}", field="task")
    again = reset(workflow.graph, [LETTERS[letter] for letter in letters], names.index(name) if name is not None else None)
    reasons = {node: reason for node, reason in json.loads(run.reasons or "{}").items() if int(node) not in again}
    return "".join(PENDING if node in again else letter for node, letter in enumerate(letters)), json.dumps(reasons)
