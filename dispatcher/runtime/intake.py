"""Taking work in: matching requests to workflows, and writing events and runs in shared commits.

A call is a parcel of submissions; a submission is one run, or one event with the runs it starts. All of a submission is written
or none of it, and nothing is answered before its commit. A submission matched against an old registry is matched again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from dispatcher.clock import Clock
from dispatcher.engine.admission import queue_of
from dispatcher.engine.batching import group_of
from dispatcher.engine.definitions import DefinitionError
from dispatcher.engine.definitions.placement import DesiredLabels, dump_desired_labels
from dispatcher.engine.filters import Match
from dispatcher.engine.flow import FlowError
from dispatcher.engine.placement import refuse_long, requirement_of
from dispatcher.errors import Problem, problem
from dispatcher.ids import IdMaker
from dispatcher.runtime import firing, passages
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.departures import Departures
from dispatcher.runtime.directory import Directory, Endpoint, Picture, Workflow
from dispatcher.runtime.firing import Firing, FiringAccepted, FiringRequest
from dispatcher.runtime.gates import Gates
from dispatcher.runtime.group_commit import GroupCommit, QueueFull
from dispatcher.runtime.judging import Judgement, Judging
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.plans import planned
from dispatcher.runtime.submissions import (
    DeliveryAccepted,
    DeliveryRequest,
    EventAccepted,
    EventRequest,
    RunAccepted,
    RunRequest,
    Submission,
)
from dispatcher.runtime.work import Assignment, EventFacts
from dispatcher.settings import Settings
from dispatcher.store import events, filters, placements, webhook_deliveries
from dispatcher.store import intake as store
from dispatcher.store.database import Connection, Database, DatabaseUnavailable, is_transient
from dispatcher.store.filters import NewFailure
from dispatcher.store.intake import NewEvent, NewKey, NewRun, NoRoom
from dispatcher.store.schedules import ScheduleStep
from dispatcher.store.webhook_deliveries import NewDelivery

__all__ = [
    "DeliveryAccepted", "DeliveryRequest", "EventAccepted", "EventRequest", "Intake", "RunAccepted", "RunKey", "RunRequest", "Submission",
]  # fmt: skip

_STALE_TRIES = 10
_WEIGHT_BYTES = 16_384
Request = TypeVar("Request")
RunKey = tuple[int, str]  # (tenant id, run id)


class Intake:
    """The way in for runs and events."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        capacity: Capacity,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        departures: Departures,
        gates: Gates,
        dispatcher_id: Callable[[], int],
    ) -> None:
        self._database = database
        self._directory = directory
        self._capacity = capacity
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._departures = departures
        self._gates = gates
        self._dispatcher_id = dispatcher_id
        self._ids = IdMaker()
        self._judging = Judging(directory, settings)
        self.on_backlog: Callable[[], None] = lambda: None
        self.on_graphs: Callable[[list[RunKey]], None] = lambda _runs: None
        self.on_awaited: Callable[[list[tuple[int, str]]], None] = lambda _events: None
        self._commits: GroupCommit[list[Submission], None] = GroupCommit(
            self._write, most=settings.intake_batch, bound=settings.intake_queue, weigh=_weight, whose=_tenant
        )

    @property
    def waiting(self) -> int:
        """Runs and events waiting for their commit."""
        return self._commits.waiting

    async def drain(self) -> None:
        """Wait for what has been submitted."""
        await self._commits.drain()

    async def trigger(self, requests: Sequence[RunRequest]) -> list[RunAccepted | Problem]:
        """Start runs; answers in order, after the commit. Raises Problem when nothing could be taken."""
        await self._catch_up((r.tenant_id, r.workflow) for r in requests)
        await self.find_places(requests)
        return [_run_answer(fate) for fate in await self._submit(requests, self._run_submission)]

    async def push(self, requests: Sequence[EventRequest]) -> list[EventAccepted | Problem]:
        """Send events; answers in order, after the commit of each event with its runs. Raises Problem when nothing could be taken."""
        await self._catch_up((r.tenant_id, r.workflow) for r in requests)
        fates = await self._submit(requests, self._event_submission, requests)
        answers = [_event_answer(fate) for fate in fates]
        await self._recall(requests, answers)
        return answers

    async def receive(self, requests: Sequence[DeliveryRequest]) -> list[DeliveryAccepted | Problem]:
        """Keep deliveries, each in one commit with its event and runs; answers in order. Raises Problem when nothing could be taken."""
        sent = [request.event for request in requests]
        return [_delivery_answer(fate) for fate in await self._submit(requests, self._delivery_submission, sent)]

    async def judge(self, request: RunRequest) -> None:
        """Raises Problem limit_failed where this run could not be told what limits it, as its workflow is now."""
        await self._catch_up([(request.tenant_id, request.workflow)])
        self.judge_as_known(request)

    def judge_as_known(self, request: RunRequest) -> None:
        """The same by what is known here, for callers that hold a connection while they ask."""
        fate = self.prepare(request) if request.tenant_id in self._directory.pictures else None
        if isinstance(fate, Problem) and fate.code == "limit_failed":
            raise fate

    async def fire(self, requests: Sequence[FiringRequest]) -> list[FiringAccepted | Problem]:
        """Start what is due, each in one commit with its row; answers in order. Raises Problem when nothing could be taken."""
        pictures = self._directory.pictures
        if any((picture := pictures.get(r.tenant_id)) is None or r.workflow_id not in picture.by_id for r in requests):
            await self._directory.catch_up(self._clock.now())
        return [_firing_answer(fate) for fate in await self._submit(requests, self._firing_submission)]

    def prepare(self, request: RunRequest) -> Submission | Problem:
        """A run ready to be written by `write_with`, its id already its own."""
        return self._run_submission(request, self._clock.now())

    async def write_with(self, conn: Connection, submissions: list[Submission]) -> list[Assignment] | None:
        """Write prepared runs in the caller's transaction. None when the registry has moved on: roll back, `refresh`, prepare them again.

        What is answered is to be given to `begin` once it is committed, or to `forget` when it was not.
        """
        self._gates.line_up(run for s in submissions for run in s.runs)
        assignments = await self._write_fresh(conn, submissions)
        if all(s.written for s in submissions):
            return assignments
        self.forget(assignments)
        return None

    async def write_along(
        self, submissions: list[Submission], now: datetime, write: Callable[[int], Awaitable[Collection[str]]]
    ) -> list[Assignment]:
        """Write prepared runs by a statement of the caller's, which is told who this dispatcher is and answers the ids it wrote.

        What is answered is to be given to `begin`.
        """
        endpoints = self._take_express(submissions, now)
        try:
            ids = await write(self._dispatcher_id())
        except BaseException:
            self._return(endpoints, submissions)
            raise
        return self._leased(submissions, endpoints, ids, now)

    async def begin(self, submissions: list[Submission], assignments: list[Assignment]) -> None:
        """Runs written by `write_with` are committed: only now can those that were not leased be found where they wait."""
        now = self._clock.now()
        waiting = [run for s in submissions if s.written for run in s.runs if run.endpoint_id is None and _ready(run, now)]
        self._capacity.backlog.update(queue_of(run.tenant_id, run.workflow_id, run.durable, run.requirement) for run in waiting)
        if self._capacity.backlog:
            self.on_backlog()
        self._hint(submissions, now)
        await self._departures.begin(assignments)

    def forget(self, assignments: list[Assignment]) -> None:
        """Runs written by `write_with` were not committed after all."""
        for assignment in assignments:
            self._capacity.give_back(assignment.endpoint.place, assignment.slots)

    async def refresh(self) -> None:
        """Read the registry again."""
        await self._directory.refresh(self._clock.now())

    async def _catch_up(self, wanted: Iterable[tuple[int, str | None]]) -> None:
        """Read the registry again when something is named that this process has not heard of: another may have just registered it."""
        pictures = self._directory.pictures
        for tenant_id, workflow in wanted:
            picture = pictures.get(tenant_id)
            if picture is None or (workflow is not None and workflow not in picture.workflows):
                await self._directory.catch_up(self._clock.now())
                return

    async def find_places(self, requests: Sequence[RunRequest]) -> None:
        """Find where the parents of sticky children are, and note which workflows will have queues of their own for what is asked."""
        for request in requests:
            if request.sticky and request.parent_run_id is not None:
                parent = (request.tenant_id, request.parent_run_id, request.parent_node)
                request.sticky_to = await placements.endpoint_of(self._database, *parent)
        for request in requests:
            picture = self._directory.pictures[request.tenant_id]
            workflow = picture.workflows.get(request.workflow)
            if request.labels and workflow is not None and workflow.id not in picture.asking:
                await placements.mark_asking(self._database, request.tenant_id, workflow.id)
                await self._directory.refresh(self._clock.now())

    async def _submit(
        self,
        requests: Sequence[Request],
        make: Callable[[Request, datetime], Submission | Problem],
        sent: Sequence[EventRequest | None] = (),
    ) -> list[Submission | Problem]:
        """What became of each request: its submission, written or second to another, or the problem with it. `sent` are their events."""
        fates: dict[int, Submission | Problem] = {}
        left: Sequence[int] = range(len(requests))
        for _ in range(_STALE_TRIES):
            if sent:
                await self._judging.judge([event for i in left if (event := sent[i]) is not None])
            now = self._clock.now()
            for i in left:
                fates[i] = make(requests[i], now)
            submissions = {i: fate for i in left if isinstance(fate := fates[i], Submission)}
            await self._commit(list(submissions.values()))
            left = [i for i, submission in submissions.items() if not submission.settled]
            if not left:
                return [fates[i] for i in range(len(requests))]
            await self._directory.refresh(self._clock.now())
        raise problem("overloaded", "the registry is changing faster than requests can be matched to it; try again")

    async def _recall(self, requests: Sequence[EventRequest], answers: list[EventAccepted | Problem]) -> None:
        """Tell whoever sent an event again which runs the first one started."""
        again: dict[int, list[EventAccepted]] = {}
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, EventAccepted) and answer.duplicate:
                again.setdefault(request.tenant_id, []).append(answer)
        for tenant_id, accepted in again.items():
            started = await events.runs_of(self._database, tenant_id, {answer.id for answer in accepted})
            for answer in accepted:
                answer.run_ids = started[answer.id]

    def _run_submission(self, request: RunRequest, now: datetime) -> Submission | Problem:
        picture = self._directory.pictures[request.tenant_id]
        workflow = picture.workflows.get(request.workflow)
        if workflow is None:
            return _unknown_workflow(request.workflow, picture)
        try:
            run = self._new_run(picture, workflow, request.input, request.metadata, request.priority, None, request.trigger, now)
        except FlowError as error:
            return passages.refusal(workflow, error)
        if request.labels:
            try:
                refuse_long(workflow.definition, request.labels, "labels")
            except DefinitionError as error:
                return problem("invalid_value", str(error), field=error.field)
        if request.labels or request.sticky_to is not None:
            self._place(run, workflow, request.labels, request.sticky_to)
        run.parent_run_id = request.parent_run_id
        run.parent_node, run.parent_wait, run.on_its_own = request.parent_node, request.parent_wait, request.on_its_own
        run.run_at = request.run_at
        run.idempotency_key = request.idempotency_key or request.cause
        keys = self._keys(picture, request.workflow, request.idempotency_key, request.idempotency_ttl, run.id)
        return Submission(None, [run], [workflow], keys, now)

    def _firing_submission(self, request: FiringRequest, now: datetime) -> Submission | Problem:
        picture = self._directory.pictures.get(request.tenant_id)
        workflow = picture.by_id.get(request.workflow_id) if picture is not None else None
        if picture is None or workflow is None:
            return problem("unknown_workflow", f"the workflow of {request.step.id} is gone")
        runs, ticks = [], {}
        for tick in request.ticks:
            try:
                run = self._new_run(picture, workflow, request.input, request.metadata, request.priority, None, request.trigger, now)
            except FlowError as error:
                return passages.refusal(workflow, error)
            run.idempotency_key = firing.key_of(request.step, tick)
            runs.append(run)
            ticks[run.id] = tick
        if isinstance(request.step, ScheduleStep):
            request.step.run_id = runs[0].id if runs else None
        fired = Firing(request.step, picture.tenant.registry_version, ticks)
        return Submission(None, runs, [workflow] * len(runs), (), now, firing=fired)

    def _delivery_submission(self, request: DeliveryRequest, now: datetime) -> Submission | Problem:
        row, event = request.row, request.event
        made = self._event_submission(event, now) if event is not None else Submission(None, [], [], (), now)
        if isinstance(made, Problem):
            return made
        version = self._directory.pictures[row.tenant_id].tenant.registry_version
        # Who routes a stored delivery again goes by the event it makes: the delivery's own name is the same for two who do it at once.
        holder = made.event.id if row.routes_again and made.event is not None else row.id
        made.keys = tuple(
            NewKey(row.tenant_id, version, scope, key, holder, int(ttl.total_seconds() * 1000)) for scope, key, ttl in request.keys
        )
        made.delivery = replace(row, event_id=made.event.id) if made.event is not None else row
        return made

    def _event_submission(self, request: EventRequest, now: datetime) -> Submission | Problem:
        judgement = request.judgement
        assert judgement is not None, "events are judged before they are matched"
        picture = judgement.picture
        if request.workflow is not None and request.workflow not in picture.workflows:
            return _unknown_workflow(request.workflow, picture)
        starts = judgement.matches if judgement.matches is not None else _all_that_listen(request, picture)
        if request.plan is not None:
            starts = []
        if len(starts) > self._settings.max_fan_out:
            return problem("too_many_runs", f"the event would start {len(starts)} runs; at most {self._settings.max_fan_out} may")
        body = request.data if request.input is None else request.input
        if len(starts) * len(body) > self._settings.max_fan_out_bytes:
            most = f"{self._settings.max_fan_out_bytes:,}"
            return problem("too_many_runs", f"{len(starts)} runs would have {len(body):,} bytes of input each; {most} together may be")
        event_id = self._ids.make("evt", now)
        stream_id = f"str_{event_id[4:]}"
        workflows = [picture.workflows[start.workflow] for start in starts]
        runs, started, failed = list[NewRun](), list[Workflow](), list[tuple[Workflow, FlowError]]()
        for workflow, start in zip(workflows, starts, strict=True):
            try:
                run = self._new_run(picture, workflow, body, request.metadata, request.priority, (event_id, stream_id), "event", now)
            except FlowError as error:
                failed.append((workflow, error))
                continue
            run.filter_payload = start.payload.encode() if start.payload is not None else None
            runs.append(run)
            started.append(workflow)
        event = NewEvent(
            request.tenant_id,
            picture.tenant.registry_version,
            event_id,
            request.type,
            request.data,
            request.metadata,
            request.scope,
            request.priority,
            stream_id,
            request.idempotency_key,
            len(runs),
        )
        keys = self._keys(picture, "", request.idempotency_key, request.idempotency_ttl, event_id)
        made = Submission(event, runs, started, keys, now, failures=_failure_rows(event, judgement, failed))
        if request.plan is not None and request.workflow is not None:
            workflow = picture.workflows[request.workflow]
            made.plan = planned(request.plan, event, workflow.id, body, self._ids, self._settings, now)
        return made

    def _new_run(
        self,
        picture: Picture,
        workflow: Workflow,
        body: bytes,
        metadata: str | None,
        priority: int | None,
        event: tuple[str, str] | None,
        trigger: str,
        now: datetime,
    ) -> NewRun:
        metadata = workflow.definition.metadata(metadata)
        flow = passages.ask(workflow, body, metadata)
        run = NewRun(
            picture.tenant.id,
            picture.tenant.registry_version,
            self._ids.make("run", now),
            workflow.id,
            workflow.number,
            body,
            metadata,
            priority or workflow.definition.default_priority,
            trigger,
            event[0] if event else None,
            None,
            event[1] if event else None,
            None,
            None,
            workflow.schedule_ms[0],
            workflow.execution_ms[0],
            graph=workflow.new_graph,
            durable=workflow.definition.tasks[0].durable,
        )
        if flow is not None:
            run.demands = passages.give(run, flow)
        if workflow.definition.asks:
            self._place(run, workflow, {}, None)
        return run

    def _place(self, run: NewRun, workflow: Workflow, labels: DesiredLabels, sticky_to: str | None) -> None:
        """Write down what a run asks of the endpoints of its tasks. A sticky one is bound to where there is most room now."""
        definition = workflow.definition
        if definition.sticky is not None and sticky_to is None:
            asked = requirement_of(definition, 0, labels, None).text()
            calmest = self._capacity.calmest(queue_of(run.tenant_id, run.workflow_id, run.durable, asked))
            sticky_to = calmest.id if calmest is not None else None
        group = group_of(definition, msgspec.json.decode(run.input), msgspec.json.decode(run.metadata) if run.metadata else None)
        requirement = requirement_of(definition, 0, labels, sticky_to, group)
        run.requirement, run.slots = requirement.text(), requirement.slots
        run.labels = json.dumps(dump_desired_labels(labels)) if labels else None
        run.sticky_endpoint = sticky_to if definition.sticky is not None else None

    def _keys(self, picture: Picture, scope: str, key: str | None, ttl: timedelta | None, first_id: str) -> tuple[NewKey, ...]:
        if key is None:
            return ()
        seconds = ttl.total_seconds() if ttl is not None else self._settings.idempotency_ttl
        return (NewKey(picture.tenant.id, picture.tenant.registry_version, scope, key, first_id, int(seconds * 1000)),)

    async def _commit(self, submissions: list[Submission]) -> None:
        if not submissions:
            return
        try:
            await asyncio.shield(self._commits.submit(submissions))
        except QueueFull:
            raise problem("overloaded", "too many runs are waiting to be written; try again in a second") from None
        except Exception as error:
            if isinstance(error, DatabaseUnavailable) and not error.sent:
                raise problem("database_unavailable", "the database cannot be reached; nothing was accepted") from None
            if isinstance(error, DatabaseUnavailable) or is_transient(error):
                raise problem("database_unavailable", "the database did not confirm the write; it may or may not have landed") from error
            raise

    async def _write(self, parcels: Sequence[list[Submission]]) -> list[None]:
        """Write one set. Express slots are taken first, given back for whatever was not written."""
        submissions = [s for parcel in parcels for s in parcel]
        now = self._clock.now()
        await self.begin(submissions, await self._write_limited(submissions, now))
        return [None] * len(parcels)

    async def _write_limited(self, submissions: list[Submission], now: datetime) -> list[Assignment]:
        """Write them; those that would take places in gates without room are written to stand in line there instead."""
        crowded: set[str] = set()
        while True:
            self._gates.assign((run for s in submissions for run in s.runs), crowded, now)
            try:
                if all(s.plain for s in submissions):
                    return await self._write_fresh(self._database, submissions)
                return await self._write_keyed(submissions, now)
            except NoRoom as found:
                crowded |= found.gates
                self._gates.crowd(found.gates)

    def _hint(self, submissions: list[Submission], now: datetime) -> None:
        """Tell those who go on with what has been written: graphs have their first tasks to start, events wake who waits for them."""
        written = [s for s in submissions if s.written]
        graphs = [(r.tenant_id, r.id) for s in written for r in s.runs if r.graph is not None and (r.run_at is None or r.run_at <= now)]
        if graphs:
            self.on_graphs(graphs)
        if any(run.gates is not None and not run.gates_held for s in written for run in s.runs):
            self._gates.queued()
        awaited = [(s.event.tenant_id, s.event.id) for s in written if s.awaited and s.event is not None]
        if awaited:
            self.on_awaited(awaited)

    async def _write_keyed(self, submissions: list[Submission], now: datetime) -> list[Assignment]:
        assignments: list[Assignment] = []
        for s in submissions:
            s.written = False  # a try before this one may have been undone
        try:
            async with self._database.transaction() as conn:
                fresh = await self._claim_keys(conn, await self._claim_firings(conn, submissions, now), now)
                assignments = await self._write_fresh(conn, fresh)
                plans = [(s.event.tenant_id, s.plan) for s in fresh if s.written and s.plan is not None and s.event is not None]
                if plans:
                    await firing.write_plans(conn, plans, now)
                lost = [key for s in fresh if not s.written for key in s.keys]
                if lost:
                    await store.drop_keys(conn, lost)
                failures = [failure for s in fresh if s.written for failure in s.failures]
                if failures:
                    await filters.add_failures(conn, failures, now)
                deliveries = [row for s in submissions if s.delivery is not None and (row := _delivery_row(s, s.delivery)) is not None]
                if deliveries:
                    await webhook_deliveries.write(conn, deliveries)
        except BaseException:
            for assignment in assignments:
                self._capacity.give_back(assignment.endpoint.place, assignment.slots)
            raise
        return assignments

    async def _claim_firings(self, conn: Connection, submissions: list[Submission], now: datetime) -> list[Submission]:
        """All but the firings of crons and schedules that somebody else has started, or whose registry has moved on."""
        firings = [s.firing for s in submissions if s.firing is not None]
        if not firings:
            return submissions
        started = await firing.claim(conn, firings, now)
        for s in submissions:
            if s.firing is not None:
                s.runs = firing.runs_left(s.firing, s.runs, started)
                s.workflows = s.workflows[: len(s.runs)]
        return [s for s in submissions if s.firing is None or s.firing.held]

    async def _claim_keys(self, conn: Connection, submissions: list[Submission], now: datetime) -> list[Submission]:
        """Those that hold all their keys or have none. Of two with one key in a set the first counts."""
        chosen: dict[tuple[int, str, str], NewKey] = {}
        for s in submissions:
            for key in s.keys:
                chosen.setdefault((key.tenant_id, key.scope, key.key), key)
        held = await store.claim_keys(conn, list(chosen.values()), now) if chosen else {}
        fresh: list[Submission] = []
        second: list[Submission] = []
        for s in submissions:
            holders = [held.get((key.tenant_id, key.scope, key.key)) for key in s.keys]
            others = [holder for key, holder in zip(s.keys, holders, strict=True) if holder != key.first_id]
            s.first_id = others[0] if others and None not in others else None
            (second if others else fresh).append(s)
        if second:
            await self._give_up_keys(conn, second, held)
        return fresh

    async def _give_up_keys(self, conn: Connection, second: list[Submission], held: dict[tuple[int, str, str], str]) -> None:
        """Keys of submissions that hold some of theirs and not all. Whoever came second for one of those is matched again."""
        spare = [key for s in second for key in s.keys if held.get((key.tenant_id, key.scope, key.key)) == key.first_id]
        if spare:
            await store.drop_keys(conn, spare)
            gone = {key.first_id for key in spare}
            for s in second:
                s.first_id = None if s.first_id in gone else s.first_id

    async def _write_fresh(self, db: Database | Connection, submissions: list[Submission]) -> list[Assignment]:
        now = self._clock.now()  # what is leased is leased now, however long it took to come here
        endpoints = self._take_express(submissions, now)
        try:
            events = [s.event for s in submissions if s.event is not None]
            ids = await store.write(db, events, [r for s in submissions for r in s.runs], self._dispatcher_id(), now)
        except BaseException:
            self._return(endpoints, submissions)
            raise
        for s in submissions:
            s.awaited = s.event is not None and ids.get(s.event.id, False)
        return self._leased(submissions, endpoints, ids, now)

    def _leased(
        self, submissions: list[Submission], endpoints: dict[str, Endpoint], ids: Collection[str], now: datetime
    ) -> list[Assignment]:
        """The attempts of what was written and leased with it; what was not written has its slots given back."""
        assignments = []
        for s in submissions:
            s.written = s.event.id in ids if s.event is not None else not s.runs or s.runs[0].id in ids
            if s.written:
                s.at = now
                self._count(s)
            for run, workflow in zip(s.runs, s.workflows, strict=True):
                taken = endpoints.get(run.id)
                if taken is None:
                    continue
                if run.id in ids:
                    assignments.append(_assignment(run, s.event, workflow, taken, now))
                else:
                    self._capacity.give_back(taken.place, run.slots)
        return assignments

    def _count(self, submission: Submission) -> None:
        self._metrics.events_received += submission.event is not None
        for workflow in submission.workflows:
            self._metrics.runs_created[workflow.definition.name] += 1

    def _return(self, taken: dict[str, Endpoint], submissions: list[Submission]) -> None:
        """Give back the slots of runs that were not written."""
        for run in (run for s in submissions for run in s.runs if run.id in taken):
            self._capacity.give_back(taken[run.id].place, run.slots)

    def _take_express(self, submissions: list[Submission], now: datetime) -> dict[str, Endpoint]:
        taken: dict[str, Endpoint] = {}
        for s in submissions:
            for run in s.runs:
                run.endpoint_id = run.endpoint_version = None
                if not _ready(run, now):
                    continue
                endpoint = self._capacity.express(queue_of(run.tenant_id, run.workflow_id, run.durable, run.requirement), now)
                if endpoint is not None:
                    run.lease_at(endpoint.id, endpoint.target.version)
                    taken[run.id] = endpoint
        return taken


def _all_that_listen(request: EventRequest, picture: Picture) -> list[Match]:
    names = picture.events.match(request.type) if request.workflow is None else (request.workflow,)
    return [Match(name) for name in names]


def _failure_rows(event: NewEvent, judgement: Judgement, unlimited: Sequence[tuple[Workflow, FlowError]]) -> Sequence[NewFailure]:
    """What an event did not start because an expression failed: a filter's, or that of a limit."""
    rows = [
        NewFailure(event.tenant_id, event.id, number, f.workflow, f.filter_id, f.scope, f.expression, f.code, f.message)
        for number, f in enumerate(judgement.failures)
    ]
    for workflow, error in unlimited:
        name = workflow.definition.name
        scope, number = event.scope or "", len(rows)
        rows.append(NewFailure(event.tenant_id, event.id, number, name, "", scope, error.expression, "limit_failed", str(error)))
    return rows


def _ready(run: NewRun, now: datetime) -> bool:
    """Whether its task may begin at once."""
    return run.graph is None and (run.run_at is None or run.run_at <= now) and (run.gates is None or run.gates_held > 0)


def _tenant(parcel: list[Submission]) -> int | None:
    """Who sent it."""
    first = parcel[0]
    if first.event is not None:
        return first.event.tenant_id
    return first.runs[0].tenant_id if first.runs else None


def _weight(parcel: list[Submission]) -> int:
    """One for every row, and one more for every few kilobytes that are written with them."""
    rows = sum(len(s.runs) + 1 for s in parcel)
    data = sum(len(run.input) for s in parcel for run in s.runs) + sum(len(s.event.data) for s in parcel if s.event is not None)
    data += sum(len(s.delivery.body) for s in parcel if s.delivery is not None and s.delivery.body is not None)
    return rows + data // _WEIGHT_BYTES


def _assignment(run: NewRun, event: NewEvent | None, workflow: Workflow, endpoint: Endpoint, now: datetime) -> Assignment:
    return Assignment(
        tenant_id=run.tenant_id,
        run_id=run.id,
        node=0,
        epoch=1,
        workflow=workflow,
        endpoint=endpoint,
        input=run.input,
        metadata=run.metadata,
        run_priority=run.priority,
        priority=run.priority,
        app_retries=0,
        infra_retries=0,
        spared_since=None,
        spared_by=None,
        started_at=now,
        deadline=now + workflow.definition.tasks[0].execution_timeout,
        event=EventFacts(event.id, event.type, event.metadata) if event is not None else None,
        event_id=run.event_id,
        parent_run_id=run.parent_run_id,
        filter_payload=run.filter_payload,
        requirement=run.requirement,
        slots=run.slots,
        demands=run.demands,
        waits_until=now + timedelta(milliseconds=run.schedule_timeout_ms) if run.demands else None,
    )


def _run_answer(fate: Submission | Problem) -> RunAccepted | Problem:
    if isinstance(fate, Problem):
        return fate
    if fate.first_id is not None:
        return RunAccepted(fate.first_id, True, fate.at)
    return RunAccepted(fate.runs[0].id, False, fate.at)


def _delivery_row(submission: Submission, delivery: NewDelivery) -> NewDelivery | None:
    """What is kept of a delivery: all of it, or that it came again; nothing of one that is still to be matched."""
    if submission.written:
        return delivery
    if submission.first_id is None or delivery.routes_again or delivery.silent:
        return None
    return replace(delivery, status="duplicate", reason=None, detail=None, body=None, event_id=None, first_id=submission.first_id)


def _delivery_answer(fate: Submission | Problem) -> DeliveryAccepted | Problem:
    if isinstance(fate, Problem):
        return fate
    if fate.first_id is not None:
        return DeliveryAccepted(fate.first_id, True, None, [])
    assert fate.delivery is not None, "_delivery_submission sets one"
    return DeliveryAccepted(fate.delivery.id, False, fate.delivery.event_id, [run.id for run in fate.runs])


def _firing_answer(fate: Submission | Problem) -> FiringAccepted | Problem:
    if isinstance(fate, Problem):
        return fate
    assert fate.firing is not None, "_firing_submission makes one"
    return FiringAccepted([run.id for run in fate.runs], fate.firing.lost)


def _event_answer(fate: Submission | Problem) -> EventAccepted | Problem:
    if isinstance(fate, Problem):
        return fate
    if fate.first_id is not None:
        return EventAccepted(fate.first_id, f"str_{fate.first_id[4:]}", [], True)
    assert fate.event is not None, "_event_submission makes one"
    planned_id = fate.plan.id if fate.plan is not None else None
    return EventAccepted(fate.event.id, fate.event.stream_id, [run.id for run in fate.runs], False, planned_id)


def _unknown_workflow(name: str, picture: Picture) -> Problem:
    known = ", ".join(sorted(picture.workflows)[:10]) or "none yet"
    return problem("unknown_workflow", f"no workflow {name!r} is registered; registered: {known}")
