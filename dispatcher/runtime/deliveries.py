"""Attempts in flight: leased tasks go out, answers come back as events for the rules, and what the rules say is settled.

Each attempt this process has open is a Flight. It holds its slot until its outcome is durable, whoever wrote it. An answer that
finds its task moved on is looked at once more with the row as it is now, since a cancel may have come in between; after that it
is stale, which is normal.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from dispatcher.clock import Clock
from dispatcher.delivery import Courier, Push, Receipt
from dispatcher.engine import health
from dispatcher.engine.answers import (
    Accepted,
    Again,
    Answer,
    Continued,
    Failed,
    LocalFault,
    Lost,
    Mismatched,
    Referred,
    Succeeded,
    Suspended,
    TimedOut,
    Turned,
    Unreachable,
)
from dispatcher.engine.attempts import CancelEnforced, Event, Hold, Refused, Requeue, TaskState, step
from dispatcher.engine.definitions import format_duration
from dispatcher.runtime.blobs import Blobs, is_large
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.circuits import Circuits
from dispatcher.runtime.deadlines import Deadlines
from dispatcher.runtime.directory import Directory, Endpoint
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.pace import Pace
from dispatcher.runtime.recorder import Recorder
from dispatcher.runtime.settlement import Settled, Settlement
from dispatcher.runtime.stream import Stream
from dispatcher.runtime.tokens import TokenMaker
from dispatcher.runtime.turns import Turns, after, pinned_answer
from dispatcher.runtime.work import Assignment
from dispatcher.settings import Settings
from dispatcher.store import tasks
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.outcomes import AttemptFacts, Guard, Outcome, TaskKey
from dispatcher.store.tasks import LiveTask

_log = logging.getLogger(__name__)

_ENVELOPE_BYTES = 1_000  # what the envelope adds to an input
_LOOK_AGAIN = timedelta(seconds=1)
_AWAY = timedelta(milliseconds=500)  # between looks for a database that is away
_WORTH_REFERRING = 4_096  # bytes of a member that is sent by reference to an endpoint that found its request too large
_PROGRESS = (Succeeded, Suspended, Again, Continued, Mismatched, Accepted)  # answers that do not depend on how often a turn has failed
_UNSENT = frozenset({"not_sent", "unreachable", "busy"})  # nothing of the handler has run
TOKEN_GRACE = timedelta(days=1)  # a token outlives its deadline: handlers that were granted more time still hold it


@dataclass(slots=True)
class Carrier:
    """One call of the courier. When the last of its flights is given up by us, it is ended, which closes the connection."""

    size: int
    pending: int
    observed: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Flight:
    """One open attempt. `bucket` is where its deadline is noted."""

    assignment: Assignment
    push: Push
    carrier: Carrier
    bucket: int
    answered: bool = False
    closed: bool = False


async def _nothing(_assignment: Assignment) -> None:
    pass


@dataclass(slots=True)
class Deliveries:
    """All attempts this process has open, by task."""

    database: Database
    directory: Directory
    capacity: Capacity
    courier: Courier
    settlement: Settlement
    tokens: TokenMaker
    clock: Clock
    settings: Settings
    metrics: Metrics
    circuits: Circuits
    recorder: Recorder
    turns: Turns
    blobs: Blobs
    pace: Pace
    on_deadline: Callable[[datetime], None] = lambda _moment: None
    on_unsent: Callable[[Assignment], Coroutine[Any, Any, None]] = _nothing
    open: dict[TaskKey, Flight] = field(default_factory=dict)
    _abandoned_at: datetime | None = None
    _deadlines: Deadlines[Flight] = field(default_factory=Deadlines)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Send leased attempts: one request each, or in batches where the endpoint takes them. Their slots are already taken."""
        plain = [assignment for assignment in assignments if not assignment.task.durable]
        if len(plain) < len(assignments):
            later = [a for a in assignments if a.task.durable and a.epoch > 1]
            for assignment in assignments:
                if assignment.task.durable and assignment.epoch == 1:
                    self.turns.first(assignment)
                    plain.append(assignment)
            if later:
                _ = self._spawn(self._open(later))
        self._send(plain)

    async def _open(self, assignments: list[Assignment]) -> None:
        """Send turns of durable tasks once their logs are read. What cannot be sent is let go; the audit finds its lease."""
        opened: list[Assignment] = []
        places = {assignment.key: (assignment.endpoint.place, assignment.slots) for assignment in assignments}
        try:
            opened = await self.turns.open(assignments)
        except Exception as error:
            if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                _log.exception("turns could not be opened")
        finally:
            for assignment in opened:
                del places[assignment.key]
            for place, slots in places.values():
                self.capacity.give_back(place, slots)
        self._send([a for a in opened if a.turn is None or a.turn.blocked is None])
        for assignment in opened:
            if assignment.turn is not None and assignment.turn.blocked is not None:
                self._refuse(assignment, assignment.turn.blocked)

    def _refuse(self, assignment: Assignment, reason: Mismatched) -> None:
        """An attempt that is not sent."""
        flight = Flight(assignment, self._push(assignment), Carrier(1, 1), 0)
        self.open[assignment.key] = flight
        self._end(flight, reason, AttemptFacts())

    def _send(self, assignments: Sequence[Assignment]) -> None:
        now, since = self.clock.now(), self._abandoned_at
        if since is not None or not self.capacity.listed(now):
            assignments = [a for a in assignments if self._is_ours(a, now, since)]
        batches: dict[tuple[int, str, str], list[Assignment]] = {}
        whole: dict[str, list[Assignment]] = {}
        for assignment in assignments:
            if assignment.batch is not None:
                whole.setdefault(assignment.batch.id, []).append(assignment)
            elif assignment.endpoint.target.batch is None or assignment.task.raw:
                self._carry([assignment])
            else:
                batches.setdefault((*assignment.endpoint.place, assignment.endpoint.target.url), []).append(assignment)
        for batch in whole.values():
            self._carry(batch)
        for batch in batches.values():
            for request in _requests(batch):
                self._carry(request)

    def _is_ours(self, assignment: Assignment, now: datetime, since: datetime | None) -> bool:
        """Whether a lease still holds. Where others have taken this dispatcher for dead since, it is theirs to put back, and not sent."""
        if self.capacity.listed(now) and (since is None or assignment.started_at >= since):
            return True
        self._let_go(assignment, detached=False)
        return False

    def _carry(self, assignments: list[Assignment]) -> None:
        carrier = Carrier(len(assignments), len(assignments))
        flights = []
        for assignment in assignments:
            flight = Flight(assignment, self._push(assignment), carrier, 0)
            flight.bucket = self._deadlines.add(flight, assignment.deadline)
            self.open[assignment.key] = flight
            flights.append(flight)
        self.on_deadline(min(assignment.deadline for assignment in assignments))
        carrier.task = self._spawn(self._deliver(flights))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background, and be waited for by `drain`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _push(self, a: Assignment) -> Push:
        expires = int((a.deadline + TOKEN_GRACE).timestamp())
        event = a.event
        return Push(
            task_id=f"tsk_{a.run_id[4:]}" if not a.node else f"tsk_{a.run_id[4:]}-{a.node}",
            run_id=a.run_id,
            workflow=a.workflow.definition.name,
            name=a.workflow.definition.task_name(a.node),
            attempt=a.epoch,
            retry_count=a.retry_base + a.app_retries + a.infra_retries,
            max_attempts=a.retry_base + a.task.retries + 1,
            priority=a.run_priority,
            input=a.input,
            metadata=a.metadata.encode() if a.metadata is not None else None,
            event=event.document() if event is not None else None,
            parent_run_id=a.parent_run_id,
            deadline=a.deadline,
            timeout=a.deadline - a.started_at,
            patience=a.workflow.policies[a.node].max_execution_timeout,  # deadlines are kept here, where they can be moved
            token=self.tokens.make(a.tenant_id, a.run_id, a.node, a.epoch, expires),
            tenant=self.directory.pictures[a.tenant_id].tenant.slug,
            raw=a.task.raw,
            parents=a.parents,
            errors=a.errors,
            filter_payload=a.filter_payload,
            batch=msgspec.json.encode({"id": a.batch.id, "size": a.batch.size}) if a.batch is not None else None,
            turn=a.turn.members if a.turn is not None else None,
        )

    async def _deliver(self, flights: list[Flight]) -> None:
        self.metrics.requests_sent += 1
        target = flights[0].assignment.endpoint.target
        try:
            for flight in flights:
                if is_large(flight.push, self.settings.inline_bytes):
                    await self._refer(flight, self.settings.inline_bytes)
            if len(flights) == 1:
                self._answered(flights[0], await self._pushed(flights[0]))
            else:
                await self._deliver_batch(flights)
        except Exception:
            _log.exception("a delivery to %s failed in an unforeseen way", target.url)
        finally:
            for flight in flights:
                self._answered(flight, Receipt(Lost("The request ended without an answer.")))

    async def _deliver_batch(self, flights: list[Flight]) -> None:
        """One request for all. What the endpoint finds too large even alone follows by itself, by reference."""
        again: list[Flight] = []

        def came(index: int, receipt: Receipt) -> None:
            flight = flights[index]
            if self._too_large(flight, receipt):
                again.append(flight)
            else:
                self._answered(flight, receipt)

        first = flights[0].assignment
        turn = functools.partial(self.pace.turn, first.tenant_id)
        await self.courier.push_batch(first.endpoint.target, [flight.push for flight in flights], came, turn)
        for flight in again:
            await self._refer(flight, _WORTH_REFERRING)
            self._answered(flight, await self._pushed(flight))

    async def _pushed(self, flight: Flight) -> Receipt:
        """One request, and a second by reference where the endpoint finds it too large: nothing has run then."""
        receipt = await self._sent(flight)
        if not self._too_large(flight, receipt):
            return receipt
        await self._refer(flight, _WORTH_REFERRING)
        return await self._sent(flight)

    async def _sent(self, flight: Flight) -> Receipt:
        """What the handler said on the way is durable before its answer counts."""
        if flight.answered:
            return Receipt(Lost("given up before it was sent"))
        stream = Stream(self.recorder, self.clock, flight.assignment.guard(), lambda: flight.answered)
        receipt = await self.courier.push(flight.assignment.endpoint.target, flight.push, stream.say)
        await stream.flush()
        return receipt

    def _too_large(self, flight: Flight, receipt: Receipt) -> bool:
        """Whether the endpoint has refused a request for its size that could be smaller."""
        refused = receipt.http_status == 413 and isinstance(receipt.answer, Failed) and receipt.answer.code == "input_too_large"
        return refused and not flight.answered and self._takes_refs(flight) and is_large(flight.push, _WORTH_REFERRING)

    def _takes_refs(self, flight: Flight) -> bool:
        return flight.assignment.endpoint.target.takes_refs and not flight.push.raw

    async def _refer(self, flight: Flight, above: int) -> None:
        """Send what is larger than `above` by reference where the endpoint takes that. While the database is away all stays inline."""
        if not self._takes_refs(flight):
            return
        try:
            flight.push = await self.blobs.refer(flight.assignment.tenant_id, flight.push, flight.assignment.endpoint.target.api, above)
        except Exception as error:
            if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                raise
            _log.info("a value could not be put by: %s", error)

    def _answered(self, flight: Flight, receipt: Receipt) -> None:
        """What the courier brought back. Whatever was decided here before it came stands."""
        if flight.answered:
            return
        turn, answer = flight.assignment.turn, receipt.answer
        facts = AttemptFacts(receipt.http_status, receipt.latency_ms, receipt.response_excerpt)
        if turn is not None and turn.elsewhere:
            answer = pinned_answer(answer)
        else:
            self._observe(flight, receipt)
        if turn is not None and isinstance(answer, Turned):
            self._turned(flight, answer, facts)
        else:
            self._ended(flight, answer, facts)

    def _ended(self, flight: Flight, answer: Answer, facts: AttemptFacts) -> None:
        """An answer that says it all, but for an output that has to be fetched."""
        if not isinstance(answer, Referred):
            self._end(flight, answer, facts)
            return
        self._leave(flight)

        async def fetched() -> None:
            event: Event = LocalFault("unresolved", "the output that was answered by reference could not be read")
            try:
                event = await self.blobs.resolved(flight.assignment.tenant_id, answer)
            finally:
                self._decide(flight, event, facts)

        _ = self._spawn(fetched())

    def _turned(self, flight: Flight, answer: Turned, facts: AttemptFacts) -> None:
        """A turn's answer counts once its operations are in the log."""
        turn = flight.assignment.turn
        assert turn is not None
        if not answer.ops and not (isinstance(answer.then, Again) and answer.base is not None and answer.base > turn.base):
            self._ended(flight, after(answer, turn, turn.base), facts)
            return
        self._leave(flight)

        async def recorded() -> None:
            event: Event = LocalFault("unrecorded", "the turn's operations could not be recorded")
            try:
                event = await self.blobs.resolved(flight.assignment.tenant_id, await self.turns.take(flight.assignment, answer))
            finally:
                self._decide(flight, event, facts)

        _ = self._spawn(recorded())

    def _give_up(self, flight: Flight, event: Event) -> None:
        """End an attempt from our side. The connection is closed once nobody else is waiting on it."""
        if flight.answered:
            return
        flight.push.progress.given_up = True
        self._end(flight, event, AttemptFacts())
        if flight.carrier.pending == 0 and flight.carrier.task is not None:
            flight.carrier.task.cancel()

    def _leave(self, flight: Flight) -> None:
        flight.answered = True
        flight.carrier.pending -= 1
        self._deadlines.discard(flight, flight.bucket)

    def _end(self, flight: Flight, event: Event, facts: AttemptFacts) -> None:
        self._leave(flight)
        self._decide(flight, event, facts)

    def _decide(self, flight: Flight, event: Event, facts: AttemptFacts) -> None:
        if flight.assignment.turn is not None and not isinstance(event, _PROGRESS):
            self._revisit(flight, event, facts)  # how often it may fail depends on how far its log has come
        else:
            self._settle(flight, flight.assignment.rules(), flight.assignment.guard(), event, facts)

    def _settle(self, flight: Flight, state: TaskState, guard: Guard, event: Event, facts: AttemptFacts, *, again: bool = True) -> None:
        change = step(state, flight.assignment.workflow.policies[flight.assignment.node], event, self.clock.now())
        if isinstance(change, Refused):
            self._close(flight, detached=False)
            return
        held = isinstance(change, Hold)

        def done(landed: bool) -> None:
            if landed and flight.assignment.units_at is not None and isinstance(change, Requeue) and change.attempt in _UNSENT:
                _ = self._spawn(self.on_unsent(flight.assignment))
            if landed or not again:
                self._close(flight, detached=held and landed)
            else:
                self._revisit(flight, event, facts, tried=True)

        assignment = flight.assignment
        outcome = Outcome(guard, change, facts, alone=assignment.parent_run_id is None and not assignment.task.durable)
        _ = self.settlement.submit(Settled(outcome, flight.assignment.workflow, done, len(flight.assignment.input)))

    def _revisit(self, flight: Flight, event: Event, facts: AttemptFacts, *, tried: bool = False) -> None:
        _ = self._spawn(self._settle_again(flight, event, facts, tried=tried))

    async def _settle_again(self, flight: Flight, event: Event, facts: AttemptFacts, *, tried: bool) -> None:
        """Once more, with the row as it is now: only if it is still this attempt's."""
        row = None
        try:
            row, event = await self._seen_again(flight, event, tried=tried)
        finally:
            if row is None or row.epoch != flight.assignment.epoch or row.state != "running":
                self._close(flight, detached=False)
            else:
                waits = isinstance(event, Suspended)  # for less than it asked for, or it would have failed
                self._settle(flight, row.rules(), row.guard(), event, facts, again=not tried or waits)

    async def _seen_again(self, flight: Flight, event: Event, *, tried: bool) -> tuple[LiveTask | None, Event]:
        """A task as it is, once the database says, and what happened to it.

        A wait that has been `tried` and did not land though nothing has happened to its task names what is not pending.
        """
        while True:
            try:
                row = await tasks.load_one(self.database, flight.assignment.key)
                turn = flight.assignment.turn
                if tried and row is not None and row.cancel_at is None and isinstance(event, Suspended) and turn is not None:
                    event = await self.turns.reconsidered(flight.assignment.key, event, turn.base)
                return row, event
            except Exception as error:
                if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                    raise
            if self.capacity.draining:  # nobody waits for the database to stop: the turn is sent again by another
                return None, event
            await self.clock.sleep_until(self.clock.now() + _AWAY)

    def _close(self, flight: Flight, *, detached: bool) -> None:
        """Give back what an attempt held, once."""
        if flight.closed:
            return
        flight.closed = True
        assignment = flight.assignment
        if self.open.get(assignment.key) is flight:
            del self.open[assignment.key]
        if not assignment.slot_released:
            self._let_go(assignment, detached=detached)

    def _let_go(self, assignment: Assignment, *, detached: bool) -> None:
        """Give back the slots of an attempt; those of a batch with the last of it, since its request goes on until then."""
        slots = assignment.slots
        if assignment.batch is not None:
            slots, detached = assignment.batch.leave(detached)
        if detached:
            self.capacity.detach(assignment.endpoint.place, slots)
        else:
            self.capacity.give_back(assignment.endpoint.place, slots)

    def _observe(self, flight: Flight, receipt: Receipt) -> None:
        """Let the endpoint's health take note of an answer. What several tasks had in one request counts once."""
        if receipt.latency_ms is not None:
            self.metrics.attempt_seconds += receipt.latency_ms / 1000
        endpoint, answer = flight.assignment.endpoint, receipt.answer
        breaker = self.capacity.breakers.get(endpoint.place)
        as_known = receipt.version_seen in (None, endpoint.answers_as)
        if breaker is None and isinstance(answer, Succeeded | Referred | Turned) and as_known and not endpoint.probes:
            return  # the rule for this, by far the most common case, is to change nothing
        told = isinstance(answer, Succeeded | Referred | Failed | Turned)
        if flight.carrier.observed if receipt.shared else not told and flight.carrier.size > 1:
            return  # said once already, or by one task about itself alone
        flight.carrier.observed |= receipt.shared
        sighting = health.Sighting(answer, self.capacity.attempting(endpoint.place), flight.assignment.started_at, self.clock.now())
        self._judge(endpoint, breaker or health.Breaker(), sighting)
        if not as_known and receipt.version_seen is not None:
            self.circuits.drifted(endpoint, receipt.version_seen)

    def _judge(self, endpoint: Endpoint, breaker: health.Breaker, sighting: health.Sighting) -> None:
        verdict = health.observe(breaker, sighting, self.settings.breaker_failures)
        if endpoint.probes and verdict.works:
            self.circuits.recovered(endpoint)
            if breaker.since is None:
                self.capacity.breakers.pop(endpoint.place, None)
        else:
            self.capacity.hold(endpoint.place, verdict.breaker)
        if verdict.circuit is not None:
            self.circuits.change(endpoint, verdict.circuit, verdict.code)

    # --- what time and others ask of open attempts

    async def time_out(self, now: datetime) -> datetime | None:
        """End attempts whose deadline has come; answers when to look again.

        The deadline is the row's: another dispatcher may have taken the callback that moved it, and a hint may be lost.
        """
        due = self._deadlines.due(now)
        try:
            rows = {row.guard().key: row for row in await tasks.load(self.database, [flight.assignment.key for flight in due])}
        except BaseException:
            for flight in due:
                flight.bucket = self._deadlines.add(flight, now + _LOOK_AGAIN)
            raise
        for flight in due:
            row = rows.get(flight.assignment.key)
            if row is not None and row.epoch == flight.assignment.epoch and row.deadline is not None:
                self._moved(flight, row.deadline, row.slot_released)
            self._time_out(flight, now)
        return self._deadlines.next()

    def _time_out(self, flight: Flight, now: datetime) -> None:
        deadline = flight.assignment.deadline
        if flight.answered:
            return
        if deadline > now:
            flight.bucket = self._deadlines.add(flight, deadline)
        else:
            self._give_up(flight, self._too_late(flight, deadline))

    def _too_late(self, flight: Flight, deadline: datetime) -> TimedOut | Unreachable:
        """The handler took too long, or was never reached: then nothing ran, and it is the endpoint that did not do its part."""
        if flight.push.progress.sent:
            return TimedOut(f"Task exceeded timeout of {format_duration(deadline - flight.assignment.started_at)}")
        unreachable = Unreachable("connect_timeout", "No connection to the endpoint could be made in time.")
        self._observe(flight, Receipt(unreachable, shared=True))
        return unreachable

    def extend(self, key: TaskKey, epoch: int, deadline: datetime, released: bool) -> None:
        """An attempt was given more time, or has given up its slot."""
        flight = self.open.get(key)
        if flight is None or flight.assignment.epoch != epoch:
            return
        self._moved(flight, deadline, released)

    def _moved(self, flight: Flight, deadline: datetime, released: bool) -> None:
        assignment = flight.assignment
        assignment.deadline = max(deadline, assignment.deadline)
        if released and not assignment.slot_released and not flight.closed:
            assignment.slot_released = True
            self._let_go(assignment, detached=False)

    def cancelling(self, found: Iterable[tasks.Cancelling]) -> None:
        """Tell handlers that can hear it that their attempt shall end, and end those whose grace is over."""
        for row in found:
            flight = self.open.get((row.tenant_id, row.run_id, row.node))
            if flight is None or flight.assignment.epoch != row.epoch:
                continue
            assignment = flight.assignment
            if not assignment.cancelling:
                assignment.cancelling = True
                push = flight.push
                _ = self._spawn(self.courier.cancel(assignment.endpoint.target, push.task_id, push.attempt, row.reason))
            if row.cancel_at <= self.clock.now():
                self._give_up(flight, CancelEnforced(row.reason or "cancelled"))

    def let_go(self) -> None:
        """Leave what is open to its handlers: their connections end with us, and their results may still come by callback."""
        for flight in list(self.open.values()):
            self._give_up(flight, Lost("The dispatcher that held the request has stopped."))

    def abandon(self) -> None:
        """Close every connection without settling: others have taken this dispatcher for dead. What waits to be sent is let go."""
        self._abandoned_at = self.clock.now()
        for flight in list(self.open.values()):
            if not flight.answered:
                flight.answered = True
                self._deadlines.discard(flight, flight.bucket)
            if flight.carrier.task is not None:
                flight.carrier.task.cancel()
            self._close(flight, detached=False)

    async def drain(self) -> None:
        """Wait until no attempt is open, and what came of each is written."""
        await self.settlement.drain()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
            await self.settlement.drain()

    async def cut_short(self) -> None:
        """End what is about to be written, for good: others will find these attempts open, as after a crash."""
        while left := [*self._tasks, *self.settlement.writers]:
            for task in left:
                task.cancel()
            await asyncio.wait(left)


def _requests(assignments: list[Assignment]) -> Iterator[list[Assignment]]:
    """What goes into one request each, within the endpoint's bounds on items and bytes; what is too big for company goes alone."""
    limits = assignments[0].endpoint.target.batch
    assert limits is not None, "batches are made for endpoints that take them"
    request: list[Assignment] = []
    size = 0
    for assignment in assignments:
        weight = len(assignment.input) + _ENVELOPE_BYTES
        if request and (len(request) >= limits.max_items or size + weight > limits.max_bytes):
            yield request
            request, size = [], 0
        request.append(assignment)
        size += weight
    yield request
