"""What runs wait for: sleeps that come due, events that arrive or were there before, messages, children. Of graphs and of durable tasks.

Whoever settles a wait leaves a mark with the one who waits, in the same statement; `tick` goes by the marks, so nothing hangs on a process
that has ended. No event is lost: one that was written while somebody waited for it is flagged by the statement that writes it, and a wait
looks back at once and twice again, beyond the time any statement may take that began before the wait could be seen. So does a wait for a
child that was there before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw

from dispatcher.clock import Clock, monotonic
from dispatcher.engine import journal as rules
from dispatcher.engine.admission import queue_of
from dispatcher.engine.definitions import compile_condition
from dispatcher.engine.expressions import Expression, ExpressionError
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Endpoint
from dispatcher.runtime.group_commit import QueueFull
from dispatcher.runtime.pins import awake_at_home
from dispatcher.settings import Settings
from dispatcher.store import waits
from dispatcher.store.database import Database
from dispatcher.store.logs import NewLine
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.waits import Arrival, Awaited, Looking, Marked, Pair, Past, Waiter

_log = logging.getLogger(__name__)

RunKey = tuple[int, str]
Wait = tuple[int, str, int, str]
_EVENTS = 200
_PAIRS = 5_000
_SET = 1_000
_SKEW = timedelta(seconds=5)  # what clocks of dispatchers may be apart for an event to be no older than a wait it has met
_LOOKS = (timedelta(seconds=1), timedelta(minutes=1))  # after registering; longer than any statement takes
_TURN_SECONDS = 0.02  # of evaluations in a row, before others get their turn
_EXPRESSIONS_KEPT = 10_000
_TOLD = 10_000


@lru_cache(maxsize=_EXPRESSIONS_KEPT)
def _expression(source: str) -> Expression[bool]:
    return compile_condition(source, parent=False, clock=monotonic)


@dataclass(slots=True)
class _Body:
    """An event's data, parsed when the first expression asks for it."""

    event: Awaited | Past
    faults: dict[str, str] = field(default_factory=dict)
    """Why expressions could not be asked of it."""
    _parsed: Any = None
    _done: bool = False
    _answers: dict[str, bool] = field(default_factory=dict)

    def satisfies(self, expression: str | None) -> bool:
        """Whether an expression is true of it; an error is no. Many may wait with the same one: it is asked once."""
        if expression is None:
            return True
        if expression not in self._answers:
            self._answers[expression] = self._ask(expression)
        return self._answers[expression]

    def _ask(self, expression: str) -> bool:
        try:
            if not self._done:
                self._parsed, self._done = msgspec.json.decode(self.event.data), True
            return _expression(expression)(input=self._parsed)
        except (ExpressionError, msgspec.DecodeError, RecursionError) as error:
            self.faults[expression] = f"the condition {expression!r} cannot be asked of event {self.event.id}: {error}"
            return False

    def document(self) -> bytes:
        """The event as a log has it."""
        event = self.event
        metadata = Raw(event.metadata.encode()) if event.metadata is not None else None
        return msgspec.json.encode(
            {"id": event.id, "type": event.type, "data": Raw(event.data), "metadata": metadata, "at": event.created_at}
        )


class _Pace:
    """Lets others have their turn once evaluations have gone on for a while: one that goes through lists may take a tenth of a second."""

    def __init__(self) -> None:
        self._since = monotonic()

    async def breathe(self) -> None:
        if monotonic() - self._since >= _TURN_SECONDS:
            await asyncio.sleep(0)
            self._since = monotonic()


@dataclass(slots=True)
class Waits:
    """Settles waits and lets go on who waited."""

    database: Database
    capacity: Capacity
    clock: Clock
    settings: Settings
    lease: Callable[[Sequence[tuple[Marked, Endpoint]], datetime], Awaitable[set[TaskKey]]]
    on_ready: Callable[[], None] = lambda: None
    on_graphs: Callable[[list[RunKey]], None] = lambda _runs: None
    cancel: Callable[[int, Sequence[str], str], Awaitable[Any]] = field(default=lambda *_: asyncio.sleep(0))
    tell: Callable[[Sequence[NewLine]], Awaitable[None]] = field(default=lambda _: asyncio.sleep(0))
    _told: set[Wait] = field(default_factory=set)

    async def tick(self, now: datetime) -> bool:
        """Everything that can be done now; True when there may be more."""
        due = await waits.due(self.database, now, _SET)
        looking = await waits.looking(self.database, now, _SET)
        settled = due + (await self._look_back(looking, now) if looking else [])
        events = await waits.awaited(self.database, _EVENTS)
        settled += await self._bring(events, now) if events else []
        self._hint_graphs(settled)
        more = await self.go_on(now)
        return more or len(due) >= _SET or len(looking) >= _SET or len(events) >= _EVENTS

    async def go_on(self, now: datetime) -> bool:
        """What is left to do where a wait was settled by the statement that ended a run; True when there may be more."""
        resumed = await self._evaluate(now)
        doomed = await self._doom(now)
        return resumed or doomed

    async def next_moment(self) -> datetime | None:
        """When there will be something to do, as far as that is known."""
        return await waits.next_moment(self.database)

    def _hint_graphs(self, settled: Iterable[Waiter]) -> None:
        graphs = {(waiter.tenant_id, waiter.run_id): None for waiter in settled if waiter.graph}
        if graphs:
            self.on_graphs(list(graphs))

    # ---- events

    async def _bring(self, events: Sequence[Awaited], now: datetime) -> list[Waiter]:
        """Bring events to all that wait for them. Where there are very many, one event at a time, page by page."""
        found = await waits.pairs(self.database, events, _SKEW, _PAIRS, now + _SKEW)
        if len(found) < _PAIRS:
            return await waits.arrive(self.database, await self._arrivals(events, found, now), events, now)
        settled: list[Waiter] = []
        for event in events:
            page, last = [event], None
            while len(pairs := await waits.pairs(self.database, page, _SKEW, _PAIRS, now, last)) == _PAIRS:
                settled += await waits.arrive(self.database, await self._arrivals(page, pairs, now), (), now)
                last = pairs[-1]
            settled += await waits.arrive(self.database, await self._arrivals(page, pairs, now), page, now)
        return settled

    async def _arrivals(self, events: Sequence[Awaited], pairs: Sequence[Pair], now: datetime) -> list[Arrival]:
        """The waits whose expressions hold, each once. What could not be asked is told."""
        bodies = {event.id: _Body(event) for event in events}
        documents: dict[str, bytes] = {}
        arrivals, faults = dict[tuple[str, int, str], Arrival](), dict[Wait, str]()
        pace = _Pace()
        for pair in pairs:
            await pace.breathe()
            wait, body = (pair.run_id, pair.node, pair.id), bodies[pair.event_id]
            if wait not in arrivals and body.satisfies(pair.expression):
                if pair.event_id not in documents:
                    documents[pair.event_id] = body.document()
                arrivals[wait] = Arrival((pair.tenant_id, pair.run_id, pair.node), pair.id, documents[pair.event_id])
            elif pair.expression in body.faults:
                faults[(pair.tenant_id, *wait)] = body.faults[pair.expression]
        await self._complain(faults, now)
        return list(arrivals.values())

    async def _complain(self, faults: Mapping[Wait, str], now: datetime) -> None:
        """Say in a run's log that its condition could not be asked: once a condition, however many events there are to fail it."""
        news = {wait: text for wait, text in faults.items() if wait not in self._told}
        if not news:
            return
        if len(self._told) > _TOLD:
            self._told.clear()
        self._told.update(news)
        try:
            await self.tell([NewLine(wait[0], wait[1], wait[2], 0, now, "error", text) for wait, text in news.items()])
        except QueueFull:
            _log.warning("%d conditions that could not be asked were not told of", len(news))

    async def _look_back(self, looking: Sequence[Looking], now: datetime) -> list[Waiter]:
        """Settle waits with what was there before them: the newest event that fits, a child that ended as it was asked for again."""
        asking = [wait for wait in looking if wait.kind == "event"]
        children = [wait for wait in looking if wait.kind == "child"]
        past = await waits.past(self.database, asking, self.settings.wait_scan) if asking else {}
        arrivals, faults, pace = list[Arrival](), dict[Wait, str](), _Pace()
        for place, wait in enumerate(asking):
            bodies, found = [_Body(row) for row in past.get(place, ())], None
            for body in bodies:
                await pace.breathe()
                if body.satisfies(wait.expression):
                    found = body
                    break
            if found is not None:
                arrivals.append(Arrival((wait.tenant_id, wait.run_id, wait.node), wait.id, found.document()))
            if texts := [text for body in bodies for text in body.faults.values()]:
                faults[(wait.tenant_id, wait.run_id, wait.node, wait.id)] = texts[0]
        await self._complain(faults, now)
        settled = await waits.arrive(self.database, arrivals, (), now) if arrivals else []
        settled += await waits.ended(self.database, children, now) if children else []
        await waits.looked(self.database, looking, [_look_again(wait.created_at, now) for wait in looking])
        return settled

    # ---- who waited

    async def _evaluate(self, now: datetime) -> bool:
        """Let tasks go on whose wait is over; True when there may be more."""
        marked = await waits.marked(self.database, _SET)
        if any(task.receives for task in marked) and await waits.receive(self.database, now, _SET):
            marked = await waits.marked(self.database, _SET)
        if not marked:
            return False
        now = self.clock.now()  # a turn begins no earlier than the event that woke it, lest the next wait should take that again
        marked = [awake_at_home(self.capacity.directory, task) for task in marked]
        awake = [task for task in marked if _awake(task)]
        granted = [(task, endpoint) for task in awake if (endpoint := self._slot(task, now)) is not None]
        leased = await self.lease(granted, now) if granted else set[TaskKey]()
        left = [task for task in marked if task.key not in leased]
        resumed = await waits.resume(self.database, left, {task.key for task in awake}, now) if left else []
        if resumed:
            self.capacity.backlog.update((row.tenant_id, row.workflow_id, row.requirement) for row in resumed)
            self.on_ready()
        return len(marked) >= _SET or len(leased) < len(granted)

    def _slot(self, task: Marked, now: datetime) -> Endpoint | None:
        """A slot for a task whose wait is over, if one is free here and nothing waits ahead. What has gates to pass goes to its queue."""
        if task.gated:
            return None
        return self.capacity.express(queue_of(task.tenant_id, task.workflow_id, True, task.requirement), now)

    async def _doom(self, now: datetime) -> bool:
        """Cancel the children of what was cancelled."""
        doomed = await waits.doomed(self.database, now, _SET)
        by_tenant: dict[int, list[str]] = {}
        for run in doomed:
            by_tenant.setdefault(run.tenant_id, []).append(run.id)
        for tenant_id, run_ids in by_tenant.items():
            await self.cancel(tenant_id, run_ids, "the run that started it was cancelled")
            await waits.spared(self.database, tenant_id, run_ids)
        return len(doomed) >= _SET


def _awake(task: Marked) -> bool:
    try:
        wake = rules.parse_wake(task.wake)
    except rules.OpRefused:
        return True  # nobody else will ever wake it: let its code see
    return rules.awake(wake, {name: outcome == "ok" for name, outcome in zip(task.ids, task.outcomes, strict=True)})


def _look_again(registered: datetime, now: datetime) -> datetime | None:
    return next((registered + after for after in _LOOKS if registered + after > now), None)
