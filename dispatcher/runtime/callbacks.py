"""The endpoint's side of the conversation: callbacks that carry an attempt token.

Each event is judged by the task's row as it is: another epoch is stale (409), no row means the task is over (410). A result
becomes an answer like any other and is settled with a guard, so ten copies of one callback end the task once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import msgspec

from dispatcher.clock import Clock
from dispatcher.delivery.classify import referred
from dispatcher.engine.answers import Answer, Failed, Succeeded, Suspended
from dispatcher.engine.attempts import Refused, extended, renewed, step
from dispatcher.engine.definitions.placement import Label
from dispatcher.engine.journal import Entries, OpRefused
from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.errors import Problem, problem
from dispatcher.ids import created_at, task_id
from dispatcher.runtime.blobs import Blobs
from dispatcher.runtime.deliveries import Deliveries
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.group_commit import QueueFull
from dispatcher.runtime.journals import Answer as Appended
from dispatcher.runtime.journals import Begun, Journals, refusal
from dispatcher.runtime.recorder import CallbackEvent, EventRefused, Recorder
from dispatcher.runtime.settlement import Settled, Settlement
from dispatcher.runtime.signals import Signals
from dispatcher.runtime.tokens import AttemptToken, TokenMaker
from dispatcher.runtime.turns import Turns, after, as_turn
from dispatcher.settings import Settings
from dispatcher.store import journal, runs, tasks
from dispatcher.store.database import Database
from dispatcher.store.outcomes import AttemptFacts, Outcome, TaskKey
from dispatcher.store.tasks import LiveTask

Said = tuple[int, dict[str, Any]]
"""The status and the document that a callback is answered with."""

NDJSON = "application/x-ndjson"
_RECORDED = frozenset({"log", "chunk", "progress"})
_SHORTHANDS = ("done", "fail", "heartbeat", "progress", "log")
_MOST_EVENTS = 10_000
_RENEW_TRIES = 20
_RETRY_MS = (1_000, 86_400_000)  # what a handler may ask for as the wait before its next attempt, as in an answer


class _Many(msgspec.Struct, frozen=True):
    events: list[msgspec.Raw]


class _Kind(msgspec.Struct, frozen=True):
    type: str = ""


class _Item(msgspec.Struct, frozen=True):
    token: str
    events: list[msgspec.Raw]


class _Group(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw]


_MAY_BE_TURN = re.compile(rb"turn|\\u")  # a name may be written with escapes
_MAY_BE_EVENT = re.compile(rb"event|\\u")
_Leased = tuple[datetime, datetime | None]  # when a turn was, and when its log began where it goes on from another
_KIND, _EVENT = msgspec.json.Decoder(_Kind), msgspec.json.Decoder(CallbackEvent)
_ITEM, _GROUP = msgspec.json.Decoder(_Item), msgspec.json.Decoder(_Group)


def parse_events(body: bytes, content_type: str) -> list[CallbackEvent]:
    """One event, `{"events": […]}`, NDJSON, or curl's shorthand `{"done": …}`. Raises Problem invalid_json or invalid_event."""
    try:
        if content_type.partition(";")[0].strip().lower() == NDJSON:
            events = [_event(line) for line in body.split(b"\n") if line.strip()]
        else:
            events = _parse_object(body)
    except (msgspec.ValidationError, EventRefused) as error:
        raise problem("invalid_event", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problem("invalid_json", f"the callback is not JSON: {error}") from None
    if len(events) > _MOST_EVENTS:
        raise problem("bulk_too_large", f"{len(events)} events in one callback; at most {_MOST_EVENTS}")
    return events


def _parse_object(body: bytes) -> list[CallbackEvent]:
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    if "type" in members:
        return [_event(body)]
    if "events" in members:
        return [_event(event) for event in msgspec.json.decode(body, type=_Many).events]
    word = next((w for w in _SHORTHANDS if w in members), None)
    if word is None:
        raise EventRefused('send {"type": "heartbeat"}, {"events": […]}, or a shorthand such as {"done": {…}}')
    return [_shorthand(word, members[word])]


def _event(text: bytes | msgspec.Raw) -> CallbackEvent:
    """One event. A turn's answer is kept as it came: its members mean other things than those of the same name elsewhere."""
    if _MAY_BE_TURN.search(text) and _KIND.decode(text).type == "turn":
        return CallbackEvent(type="turn", turn=msgspec.Raw(bytes(text)))
    return _EVENT.decode(text)


def _shorthand(word: str, value: msgspec.Raw) -> CallbackEvent:
    if word == "done":
        return CallbackEvent(type="done", output=value)
    if word == "fail":
        return CallbackEvent(type="fail", error=value)
    if word == "log":
        return CallbackEvent(type="log", message=msgspec.json.decode(value, type=str))
    if word == "progress":
        return CallbackEvent(type="progress", fraction=msgspec.json.decode(value, type=float))
    return CallbackEvent(type="heartbeat")


def as_answer(event: CallbackEvent, most_bytes: int) -> Answer:
    """A `done` or `fail` event as the answer it is."""
    if event.type == "done":
        output = bytes(event.output)
        if (said := referred(output, event.refs)) is not None:
            return said
        try:
            check(output, max_bytes=most_bytes)
        except JsonRefused as refused:
            return Failed("invalid_output", f"The output cannot be stored: {refused}", retry=False)
        return Succeeded(output)
    detail: bytes | None = bytes(event.error) or None
    message, code = "The handler reported a failure.", "handler_failed"
    if detail is not None:
        try:
            check(detail, max_bytes=most_bytes)
            message, code = _words(msgspec.json.decode(detail), message, code)
        except JsonRefused:
            detail = None
    asked = event.retry_after_ms
    after = timedelta(milliseconds=min(max(asked, _RETRY_MS[0]), _RETRY_MS[1])) if asked is not None else None
    return Failed(code, message, event.retry, after, detail)


def _words(error: Any, message: str, code: str) -> tuple[str, str]:
    if isinstance(error, str):
        return error[:2_000], code
    if isinstance(error, dict):
        text, name = error.get("message"), error.get("code")
        return (text[:2_000] if isinstance(text, str) else message), (name[:100] if isinstance(name, str) and name else code)
    return message, code


async def _unheard(_tenant_id: int, _endpoint_id: str, _labels: Mapping[str, Label | None]) -> None:
    raise problem("invalid_event", "labels are not taken here")


class Callbacks:
    """Handles POST /v1/callback."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        deliveries: Deliveries,
        settlement: Settlement,
        recorder: Recorder,
        signals: Signals,
        tokens: TokenMaker,
        clock: Clock,
        settings: Settings,
        journals: Journals,
        turns: Turns,
        blobs: Blobs,
    ) -> None:
        self._database = database
        self._directory = directory
        self._deliveries = deliveries
        self._settlement = settlement
        self._recorder = recorder
        self._signals = signals
        self._tokens = tokens
        self._clock = clock
        self._settings = settings
        self._journals = journals
        self._turns = turns
        self._blobs = blobs
        self.on_labels: Callable[[int, str, Mapping[str, Label | None]], Awaitable[None]] = _unheard
        self.on_detached_end: Callable[[], None] = lambda: None

    async def handle(self, token: str, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        """Take the events of one callback in order; answers (status, document). Raises Problem for all that is refused."""
        speaker = self._speaker(token, self._clock.now())
        return await self._say(speaker, parse_events(body, content_type))

    async def handle_group(self, body: bytes) -> list[Said]:
        """Take what several attempts have to say, each by its own token and as if it had called alone; appends are committed together."""
        try:
            items = _GROUP.decode(body).items
        except msgspec.ValidationError as error:
            raise problem("invalid_event", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise problem("invalid_json", f"the callbacks are not JSON: {error}") from None
        if len(items) > _MOST_EVENTS:
            raise problem("bulk_too_large", f"{len(items)} callbacks in one; at most {_MOST_EVENTS}")
        now = self._clock.now()
        begun = [self._begin(item, now) for item in items]
        rest = [number for number, one in enumerate(begun) if one is None]
        others = dict(zip(rest, await asyncio.gather(*[self._handle_item(items[number]) for number in rest]), strict=True)) if rest else {}
        return [others[number] if one is None else await self._landed(one) for number, one in enumerate(begun)]

    def _begin(self, text: msgspec.Raw, now: datetime) -> Begun | Said | None:
        """Put a lone append on its way, which takes no task of its own; None for all else, which is said in full."""
        try:
            item = _ITEM.decode(text)
            if len(item.events) != 1 or (event := _event(item.events[0])).type != "append":
                return None
            speaker = self._speaker(item.token, now)
            key = (speaker.tenant_id, speaker.run_id, speaker.node)
            leased = self._leased(key, event, now)
            return self._journals.begin(key, speaker.epoch, *self._checked(key, event, leased, now)) if leased is not None else None
        except (msgspec.MsgspecError, EventRefused):
            return None
        except Problem as refused:
            return refused.status, refused.document()

    async def _landed(self, begun: Begun | Said) -> Said:
        if isinstance(begun, tuple):
            return begun
        try:
            return 200, self._appended(await self._journals.landed(begun))
        except Problem as refused:
            return refused.status, refused.document()

    async def _handle_item(self, text: msgspec.Raw) -> Said:
        try:
            try:
                item = _ITEM.decode(text)
                speaker, events = self._speaker(item.token, self._clock.now()), [_event(event) for event in item.events]
            except (msgspec.MsgspecError, EventRefused) as error:
                raise problem("invalid_event", str(error)) from None
            return await self._say(speaker, events)
        except Problem as refused:
            return refused.status, refused.document()

    def _speaker(self, token: str, now: datetime) -> AttemptToken:
        speaker = self._tokens.read(token, int(now.timestamp()))
        if speaker is None:
            raise problem("unauthorized", "the attempt token is forged, damaged or expired")
        return speaker

    async def _say(self, speaker: AttemptToken, events: Sequence[CallbackEvent]) -> tuple[int, dict[str, Any]]:
        key = (speaker.tenant_id, speaker.run_id, speaker.node)
        if len(events) == 1 and events[0].type == "append":  # compared in the statement that writes it: nothing need be read before
            return 200, await self._append(key, speaker.epoch, events[0])
        task = await tasks.load_one(self._database, key)
        for is_recorded, group in groupby(events, key=lambda event: event.type in _RECORDED):
            for some in [list(group)] if is_recorded else [[event] for event in group]:
                if task is None or task.epoch != speaker.epoch or task.state != "running":
                    return await self._too_late(key, speaker.epoch, some[0], task)
                task = await self._record(task, some) if is_recorded else await self._take(task, some[0])
        return 200, self._reply(task)

    async def _too_late(self, key: TaskKey, epoch: int, event: CallbackEvent, task: LiveTask | None) -> tuple[int, dict[str, Any]]:
        """The attempt is over: the repetition of the result that ended it is welcome, anything else is too late."""
        if await self._is_repetition(key, epoch, event, task):
            return 200, {"ok": True, "duplicate": True, "lease_until": None, "cancel": None}
        if task is None or (task.status is not None and task.epoch == epoch):
            raise problem("task_ended", f"{task_id(*key[1:])} is over")
        raise problem("stale_attempt", f"attempt {epoch} of {task_id(*key[1:])} no longer owns the task")

    async def _is_repetition(self, key: TaskKey, epoch: int, event: CallbackEvent, task: LiveTask | None) -> bool:
        """Whether this result has been taken before: it ended the task, or it was a failure that led to another attempt."""
        if event.type not in ("done", "fail"):
            return False
        if task is None:
            return await runs.ended_by(self._database, *key, epoch, event.type == "done")
        if task.status is not None and task.epoch == epoch:
            return task.status == ("succeeded" if event.type == "done" else "failed")
        return event.type == "fail" and await runs.failed_in(self._database, *key, epoch)

    async def _record(self, task: LiveTask, events: Sequence[CallbackEvent]) -> LiveTask:
        """Log lines, chunks and progress, together. One that makes no sense is refused, and those behind it."""
        entries, refused = [], None
        for event in events:
            try:
                entry = self._recorder.entry(task.guard(), event)
            except EventRefused as error:
                refused = problem("invalid_event", f"{event.type}: {error}")
                break
            if entry is not None:
                entries.append(entry)
        try:
            await self._recorder.write(entries)
        except QueueFull:
            raise problem("overloaded", "more is being logged than can be written; repeat this a little later") from None
        if refused is not None:
            raise refused
        return task

    async def _take(self, task: LiveTask, event: CallbackEvent) -> LiveTask | None:
        """An event that changes the attempt; answers the task as it is afterwards, None once it is over."""
        if event.type == "heartbeat":
            return await self._renew(task)
        if event.type == "extend":
            return await self._renew(task, by=self._extension(event))
        if event.type == "release_slot":
            return await self._renew(task, released=True)
        if event.type == "append":
            await self._append(task.guard().key, task.epoch, event)
            return task
        if event.type == "labels":
            await self._label(task, event)
            return task
        if event.type == "turn":
            await self._turn(task, event)
            return await tasks.load_one(self._database, task.guard().key)
        if event.type in ("done", "fail"):
            await self._finish(task, event)
            return await tasks.load_one(self._database, task.guard().key)
        raise problem("invalid_event", f"unknown event type {event.type!r}")

    async def _append(self, key: TaskKey, epoch: int, event: CallbackEvent) -> dict[str, Any]:
        """Operations of a durable task's turn."""
        now = self._clock.now()
        leased = self._leased(key, event, now)
        if leased is None:
            head = (await journal.heads(self._database, [key])).get(key)
            leased = (head.started_at or now, head.continued) if head is not None else (now, None)
        base, entries = self._checked(key, event, leased, now)
        return self._appended(await self._journals.append(key, epoch, base, entries))

    def _leased(self, key: TaskKey, event: CallbackEvent, now: datetime) -> _Leased | None:
        """What the moments of an append are counted from, or None where that has to be looked up: of turns others have sent, for events."""
        flight = self._deliveries.open.get(key)
        if flight is not None:
            return flight.assignment.started_at, flight.assignment.turn.since if flight.assignment.turn is not None else None
        if any(_MAY_BE_EVENT.search(op) for op in event.ops):
            return None
        return created_at(key[1]) or now, None

    def _checked(self, key: TaskKey, event: CallbackEvent, leased: _Leased, now: datetime) -> tuple[int, Entries]:
        """What an append holds, and how much of the log it knows. Raises Problem for what cannot be recorded."""
        if event.base is None or event.base < 0:
            raise problem("invalid_event", "append: `base` is how many entries of the log are known")
        leased_at, since = leased
        try:
            return event.base, self._journals.check(key, [bytes(op) for op in event.ops], leased_at, now, since)
        except OpRefused as refused:
            raise refusal(refused) from None

    def _appended(self, answer: Appended) -> dict[str, Any]:
        reply: dict[str, Any] = {"ok": True, "len": answer.length, "lease_until": None, "cancel": None}
        if answer.children:
            reply["children"] = answer.children
        if answer.task is None:
            reply["duplicate"] = True
            return reply
        task = answer.task
        reply["lease_until"] = task.lease_until or task.deadline
        if task.cancel_at is not None:
            reply["cancel"] = self._cancel(task.cancel_at, task.cancel_reason)
        return reply

    async def _turn(self, task: LiveTask, event: CallbackEvent) -> None:
        """The answer of a turn whose request was accepted with 202, or is still open."""
        turned = as_turn(bytes(event.turn), int(self._clock.now().timestamp()), self._settings.max_response_bytes)
        if turned is None:
            raise problem("invalid_event", "turn: not an answer of a durable task's turn")
        key = task.guard().key
        flight = self._deliveries.open.get(key)
        known = flight.assignment.turn if flight is not None else None
        turn = known or await self._turns.found(key, task)
        length = await self._turns.record(key, task.epoch, task.started_at or self._clock.now(), turned, turn)
        answer = length if not isinstance(length, int) else await self._blobs.resolve(key[0], after(turned, turn, length))
        current = await tasks.load_one(self._database, key)
        if current is None or current.epoch != task.epoch or current.state != "running":
            raise problem("stale_attempt", f"attempt {task.epoch} no longer owns the task")
        await self._settle(current, answer, event, turn.base)

    async def _label(self, task: LiveTask, event: CallbackEvent) -> None:
        """What a handler says of the endpoint it runs at."""
        if not event.labels or task.endpoint_id is None:
            raise problem("invalid_event", "labels: `labels` is an object of texts, numbers and booleans; null takes one away")
        await self.on_labels(task.tenant_id, task.endpoint_id, event.labels)

    def _extension(self, event: CallbackEvent) -> timedelta:
        if event.ms is None or not 0 < event.ms <= self._settings.max_execution_timeout * 1000:
            raise problem("invalid_event", "extend: `ms` is a whole number of milliseconds greater than zero")
        return timedelta(milliseconds=event.ms)

    async def _renew(self, task: LiveTask, *, by: timedelta | None = None, released: bool = False) -> LiveTask:
        """Renew a lease, move a deadline, give up a slot. Judged anew on the newest row when another callback came in between."""
        for _ in range(_RENEW_TRIES):
            wanted = self._renewed(task, by, released or task.slot_released)
            if wanted == task:
                return task
            if await tasks.renew(self._database, task, wanted):
                self._announce(task, wanted)
                return wanted
            current = await tasks.load_one(self._database, task.guard().key)
            if current is None or current.epoch != task.epoch or current.state != "running":
                raise problem("stale_attempt", f"attempt {task.epoch} no longer owns the task")
            task = current
        raise problem("overloaded", "too many callbacks of one attempt at the same time; repeat this one")

    def _renewed(self, task: LiveTask, by: timedelta | None, released: bool) -> LiveTask:
        assert task.deadline is not None and task.started_at is not None, "a running task has both"
        deadline, lease_until = task.deadline, task.lease_until
        if by is not None:
            deadline = extended(deadline, task.started_at, by, timedelta(seconds=self._settings.max_execution_timeout))
        if lease_until is not None:
            at_deadline = lease_until >= task.deadline
            lease_until = deadline if at_deadline else renewed(lease_until, task.lease or timedelta(0), deadline, self._clock.now())
        return replace(task, lease_until=lease_until, deadline=deadline, slot_released=released)

    def _announce(self, before: LiveTask, after: LiveTask) -> None:
        """Tell whoever holds the request, here or elsewhere, that its deadline or its slot has changed."""
        if after.deadline is None or (after.deadline == before.deadline and after.slot_released == before.slot_released):
            return
        self._deliveries.extend(after.guard().key, after.epoch, after.deadline, after.slot_released)
        if after.slot_released and not before.slot_released and after.dispatcher_id is None:
            self.on_detached_end()
        moment = str(after.deadline.timestamp())
        self._signals.send("lease", f"{after.tenant_id}:{after.run_id}:{after.node}:{after.epoch}:{moment}:{int(after.slot_released)}")

    async def _finish(self, task: LiveTask, event: CallbackEvent) -> None:
        answer = await self._blobs.resolve(task.tenant_id, as_answer(event, self._settings.max_response_bytes))
        await self._settle(task, answer, event)

    async def _settle(self, task: LiveTask, answer: Answer, event: CallbackEvent, base: int = 0) -> None:
        """Until it lands, or turns out to be too late. `base` is how long the log of a turn was as it was opened."""
        workflow = await self._directory.workflow_version(task.tenant_id, task.workflow_id, task.workflow_version)
        change = step(task.rules(), workflow.policies[task.node], answer, self._clock.now())
        if isinstance(change, Refused):
            raise problem("stale_attempt", change.reason)
        key = task.guard().key
        landed = await self._settlement.submit(Settled(Outcome(task.guard(), change, AttemptFacts()), workflow))
        if landed:
            if task.dispatcher_id is None:
                self.on_detached_end()
            return
        current = await tasks.load_one(self._database, key)
        ours = current is not None and current.epoch == task.epoch and current.state == "running"
        if current is not None and ours and current.cancel_at is not None and task.cancel_at is None:
            await self._settle(current, answer, event, base)
        elif current is not None and ours and current.cancel_at is None and isinstance(answer, Suspended):
            await self._settle(current, await self._turns.reconsidered(key, answer, base), event, base)
        else:
            await self._too_late(key, task.epoch, event, current)

    def _reply(self, task: LiveTask | None) -> dict[str, Any]:
        if task is None or task.state != "running":
            return {"ok": True, "lease_until": None, "cancel": None}
        return {"ok": True, "lease_until": task.lease_until or task.deadline, "cancel": self._cancel(task.cancel_at, task.cancel_reason)}

    def _cancel(self, cancel_at: datetime | None, reason: str | None) -> dict[str, Any] | None:
        if cancel_at is None:
            return None
        return {"reason": reason or "", "grace_ms": max(int((cancel_at - self._clock.now()).total_seconds() * 1000), 0)}
