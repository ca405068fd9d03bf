"""Attempts in flight: leased tasks go out, answers come back as events for the rules, and what the rules say is settled.

Each attempt this process has open is a Flight. It holds its slot until its outcome is durable, whoever wrote it. An answer that
finds its task moved on is looked at once more with the row as it is now, since a cancel may have come in between; after that it
is stale, which is normal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from dispatcher.clock import Clock
from dispatcher.delivery import Courier, Push, Receipt
from dispatcher.engine import health
from dispatcher.engine.answers import Lost
from dispatcher.engine.attempts import CancelEnforced, Event, Hold, Refused, TaskState, step
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.circuits import Circuits
from dispatcher.runtime.directory import Directory, Endpoint
from dispatcher.runtime.metrics import Metrics
from dispatcher.runtime.recorder import CallbackEvent, EventRefused, Recorder
from dispatcher.runtime.settlement import Settled, Settlement
from dispatcher.runtime.tokens import TokenMaker
from dispatcher.runtime.work import Assignment
from dispatcher.settings import Settings
from dispatcher.store import tasks
from dispatcher.store.database import Database
from dispatcher.store.outcomes import AttemptFacts, Guard, Outcome, TaskKey

_log = logging.getLogger(__name__)

TOKEN_GRACE = timedelta(days=1)  # a token outlives its deadline: handlers that were granted more time still hold it


@dataclass(slots=True)
class Flight:
    """One open attempt."""

    assignment: Assignment
    push: Push
    answered: bool = False
    cancel_reason: str = ""
    carrier: asyncio.Task[None] | None = None
    alone: bool = True


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
    open: dict[TaskKey, Flight] = field(default_factory=dict)
    _carriers: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, assignments: Sequence[Assignment]) -> None:
        """Send leased attempts: one request each, or in batches where the endpoint takes them. Their slots are already taken."""
        batches: dict[tuple[int, str], list[Flight]] = {}
        for assignment in assignments:
            flight = Flight(assignment, self._push(assignment))
            self.open[assignment.key] = flight
            if assignment.endpoint.target.batch is None or assignment.workflow.definition.raw:
                self._carry([flight])
            else:
                batches.setdefault(assignment.endpoint.place, []).append(flight)
        for flights in batches.values():
            for batch in _chunks(flights):
                self._carry(batch)

    def _carry(self, flights: list[Flight]) -> None:
        carrier = asyncio.get_running_loop().create_task(self._deliver(flights))
        for flight in flights:
            flight.carrier = carrier
            flight.alone = len(flights) == 1
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)

    def _push(self, a: Assignment) -> Push:
        expires = int((a.deadline + TOKEN_GRACE).timestamp())
        event = a.event
        return Push(
            task_id=f"tsk_{a.run_id[4:]}" if not a.node else f"tsk_{a.run_id[4:]}-{a.node}",
            run_id=a.run_id,
            workflow=a.workflow.definition.name,
            name=a.workflow.definition.task_name,
            attempt=a.epoch,
            retry_count=a.app_retries + a.infra_retries,
            max_attempts=a.workflow.definition.retries + 1,
            priority=a.run_priority,
            input=a.input,
            metadata=a.metadata.encode() if a.metadata is not None else None,
            event=event.document() if event is not None else None,
            parent_run_id=a.parent_run_id,
            deadline=a.deadline,
            timeout=a.deadline - a.started_at,
            token=self.tokens.make(a.tenant_id, a.run_id, a.node, a.epoch, expires),
            tenant=self.directory.pictures[a.tenant_id].tenant.slug,
            raw=a.workflow.definition.raw,
        )

    async def _deliver(self, flights: list[Flight]) -> None:
        self.metrics.requests_sent += 1
        target = flights[0].assignment.endpoint.target
        try:
            if len(flights) == 1:
                flight = flights[0]
                receipt = await self.courier.push(target, flight.push, lambda line: self._said(flight, line))
                self._answered(flight, receipt)
            else:
                await self.courier.push_batch(
                    target, [f.push for f in flights], lambda i, receipt: self._answered(flights[i], receipt)
                )
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a delivery to %s failed in an unforeseen way", target.url)
        finally:
            for flight in flights:
                if not flight.answered:
                    self._answered(flight, Receipt(Lost("The request ended without an answer."), None, None, None, None))

    async def _said(self, flight: Flight, line: bytes) -> None:
        """A line of an NDJSON answer that is not its end. One that makes no sense costs the handler that line, nothing else."""
        try:
            event = msgspec.json.decode(line, type=CallbackEvent)
            if event.type in ("log", "chunk", "progress"):
                await self.recorder.record(flight.assignment.guard(), event)
        except (msgspec.DecodeError, EventRefused) as refused:
            _log.info("a line of the answer for %s was dropped: %s", flight.assignment.run_id, refused)

    def _answered(self, flight: Flight, receipt: Receipt) -> None:
        if flight.answered:
            return
        flight.answered = True
        assignment = flight.assignment
        self._observe(assignment.endpoint, receipt)
        facts = AttemptFacts(receipt.http_status, receipt.latency_ms, receipt.response_excerpt)
        event: Event = CancelEnforced(flight.cancel_reason) if flight.cancel_reason else receipt.answer
        self._settle(flight, assignment.rules(), assignment.guard(), event, facts)

    def _settle(self, flight: Flight, state: TaskState, guard: Guard, event: Event, facts: AttemptFacts, *, again: bool = True) -> None:
        change = step(state, flight.assignment.workflow.policy, event, self.clock.now())
        if isinstance(change, Refused):
            self._close(flight, detached=False)
            return
        held = isinstance(change, Hold)

        def done(landed: bool) -> None:
            if landed or not again:
                self._close(flight, detached=held and landed)
            else:
                self._revisit(flight, event, facts)

        _ = self.settlement.submit(Settled(Outcome(guard, change, facts), flight.assignment.workflow, done))

    def _revisit(self, flight: Flight, event: Event, facts: AttemptFacts) -> None:
        revisit = asyncio.get_running_loop().create_task(self._settle_again(flight, event, facts))
        self._carriers.add(revisit)
        revisit.add_done_callback(self._carriers.discard)

    async def _settle_again(self, flight: Flight, event: Event, facts: AttemptFacts) -> None:
        row = None
        try:
            row = await tasks.load_one(self.database, flight.assignment.key)
        finally:
            if row is None or row.epoch != flight.assignment.epoch or row.state != "running":
                self._close(flight, detached=False)
        if flight.assignment.key in self.open and row is not None:
            self._settle(flight, row.rules(), row.guard(), event, facts, again=False)

    def _close(self, flight: Flight, *, detached: bool) -> None:
        assignment = flight.assignment
        if self.open.get(assignment.key) is flight:
            del self.open[assignment.key]
        if assignment.slot_released:
            return
        if detached:
            self.capacity.detach(assignment.endpoint.place)
        else:
            self.capacity.give_back(assignment.endpoint.place)

    def _observe(self, endpoint: Endpoint, receipt: Receipt) -> None:
        place = endpoint.place
        if receipt.latency_ms is not None:
            self.metrics.attempt_seconds += receipt.latency_ms / 1000
        breaker = self.capacity.breakers.get(place)
        verdict = health.observe(
            breaker or health.Breaker(), receipt.answer, self.capacity.in_use.get(place, 0), self.settings.breaker_failures
        )
        if verdict.breaker.limit is not None and verdict.breaker.limit >= self.capacity.grants.get(place, 0):
            verdict = health.Verdict(health.Breaker(verdict.breaker.unreachable), verdict.circuit, verdict.code)
        if verdict.breaker != (breaker or health.Breaker()):
            self.capacity.breakers[place] = verdict.breaker
        if verdict.circuit is not None:
            self.circuits.change(endpoint, verdict.circuit, verdict.code)
        elif receipt.version_seen is not None and receipt.version_seen != endpoint.target.version:
            self.circuits.drifted(endpoint, receipt.version_seen)

    # --- what others ask of open attempts

    def extend(self, key: TaskKey, epoch: int, deadline: datetime, released: bool) -> None:
        """An attempt was given more time, or has given up its slot."""
        flight = self.open.get(key)
        if flight is None or flight.assignment.epoch != epoch:
            return
        flight.assignment.deadline = deadline
        if deadline > flight.push.deadline:
            self.courier.extend(flight.push, deadline)
        if released and not flight.assignment.slot_released:
            flight.assignment.slot_released = True
            self.capacity.give_back(flight.assignment.endpoint.place)

    async def cancelling(self, found: Iterable[tasks.Cancelling]) -> None:
        """Tell handlers that can hear it that their attempt shall end, and end those whose grace is over."""
        for row in found:
            flight = self.open.get((row.tenant_id, row.run_id, row.node))
            if flight is None or flight.assignment.epoch != row.epoch:
                continue
            if not flight.assignment.cancelling:
                flight.assignment.cancelling = True
                self._tell(flight.assignment, flight.push, row.reason)
            if row.cancel_at <= self.clock.now():
                self._abort(flight, row.reason)

    def _tell(self, assignment: Assignment, push: Push, reason: str) -> None:
        if "cancel-push" in assignment.endpoint.target.features:
            told = asyncio.get_running_loop().create_task(
                self.courier.cancel(assignment.endpoint.target, push.task_id, push.attempt, reason)
            )
            self._carriers.add(told)
            told.add_done_callback(self._carriers.discard)

    def _abort(self, flight: Flight, reason: str) -> None:
        """Close the connection of a request made for this attempt alone; an attempt in a batch is just given up."""
        flight.cancel_reason = reason or "cancelled"
        if flight.alone and flight.carrier is not None and not flight.answered:
            flight.carrier.cancel()
        else:
            self._answered(flight, Receipt(Lost("Given up after a cancel."), None, None, None, None))

    def abandon(self) -> None:
        """Close every connection without settling: others have taken this dispatcher for dead."""
        for flight in list(self.open.values()):
            flight.answered = True
            if flight.carrier is not None:
                flight.carrier.cancel()
            self._close(flight, detached=False)

    async def drain(self) -> None:
        """Wait until no attempt is open."""
        while self._carriers:
            await asyncio.wait(list(self._carriers))
            await self.settlement.drain()


def _chunks(flights: list[Flight]) -> Iterable[list[Flight]]:
    """Batches within the endpoint's bounds on items and bytes; a flight too big for company goes alone."""
    limits = flights[0].assignment.endpoint.target.batch
    assert limits is not None
    batch: list[Flight] = []
    size = 0
    for flight in flights:
        weight = len(flight.push.input) + _ENVELOPE_BYTES
        if batch and (len(batch) >= limits.max_items or size + weight > limits.max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(flight)
        size += weight
    yield batch


_ENVELOPE_BYTES = 700  # what the envelope adds to an input, generously
