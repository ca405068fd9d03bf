"""The replay engine: a durable handler, run against the log of what it has done, without any I/O.

    turn = Replay(entries, started_at=…, seed=…, now=…)
    turn.start(handler(input, ctx))
    turn.advance()          # runs it as far as the log and what was said since allow

Entries are handed to the handler one at a time, in the order of the log, and it runs until it can do no more before it gets the next: so
`gather`, `wait` and TaskGroups see their results in the order they first had. An entry must have been asked for by then, which takes one
look-up, whatever runs concurrently; otherwise the code has changed (`Mismatched`). Only when the log is used up are new steps begun.

What the handler asks for beyond the log gathers in `outgoing`; whoever drives the turn writes it to the log and says so with `recorded`,
and only then the handler goes on: nothing follows a step whose result could still be lost. With `carrying`, results travel in the turn's
answer instead. `asked_steps` are those to run now; `step_done` and `step_failed` say what came of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.errors import (
    Cancelled,
    Interruption,
    NotDeterministicError,
    ScopeClosedError,
    Suspended,
)
from handlers_sdk.inbox import Inbox
from handlers_sdk.matching import described, same, summary, survey
from handlers_sdk.ops import (
    NAME,
    PLAIN,
    Op,
    Sent,
    as_it_is,
    closed_entry,
    failed,
    ms_of,
    parsed,
    pending_entry,
    result_of,
    text_of,
    valued_entry,
)
from handlers_sdk.replay_loop import new_loop, untrace
from handlers_sdk.schemas import Codec
from handlers_sdk.scopes import Scope, was_cancelled
from handlers_sdk.unwinding import announced, is_busy, meant_by, owe_all, reason_of, tell_all, tell_next
from handlers_sdk.wakes import wake_of

SCOPE: Final[ContextVar[str]] = ContextVar("handlers_sdk_scope", default="")
"""Where ids are counted: empty, or the id of the scope this runs in and a slash."""

_TOLD_MAX: Final = 1_000
_NOT_ASKED: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler came to its end. `unconsumed` are ids in the log that it did not ask for."""

    value: Any
    unconsumed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Raised:
    """The handler failed, was cancelled, or asked to begin again (`ContinuedAsNew`)."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The code asks for something else than what is in the log at this place."""

    at: wire.MismatchAt


Outcome = Returned | Raised | Mismatched


class Replay:
    """One turn. `now` gives milliseconds since 1970 by the dispatcher's clock; everything else follows from the log."""

    def __init__(
        self, log: Sequence[Mapping[str, Any]], *, started_at: str, seed: str, now: Callable[[], int], carrying: bool = False
    ) -> None:
        self.loop = new_loop(self._timer, self._seconds)
        self.outcome: Outcome | None = None
        self.carrying = carrying
        self.carried: list[bytes] = []
        self.cancelled = False
        self._cancel_reason = ""
        self._told = 0
        self._log = log
        self._position = 0
        self._now = now
        self._at = started_at
        self._seed = f"{seed}/{started_at}"  # a task has another log, begun at another moment, whenever it begins anew
        self._asked: dict[str, Op[Any]] = {}
        self._counts: dict[str, int] = {}
        self._unrecorded: dict[str, Op[Any]] = {}
        self._waiting: dict[str, Op[Any]] = {}  # asked of the dispatcher, or failed and to be tried again
        self._steps: list[Op[Any]] = []
        self._outgoing: list[Sent] = []
        self._sent: deque[Sent] = deque()
        self._settled: deque[Sent] = deque()
        self._patches: dict[str, bool] = {}
        self._scopes_closed: set[str] = set()
        self._dropped: list[Op[Any]] = []
        self._inbox = Inbox()
        self._main: asyncio.Task[Any] | None = None
        self._closing: type[Interruption] | None = None
        self._frontier, self._recorded_scopes, self._recorded_patches = survey(log)

    # ---- driving

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """The handler, with the context variables of the caller."""
        self._main = self.loop.create_task(coroutine)

    def advance(self) -> None:
        """Run the handler until it can do no more: `outcome` is set, or there are steps to run, entries to record, or it waits."""
        try:
            with self.loop.generators.looked_after():
                self._advance()
        except NotDeterministicError as error:
            self.outcome = Raised(error)

    def _advance(self) -> None:
        assert self._main is not None
        run_ready = self.loop.run_ready
        run_ready()
        while self.outcome is None and (self.cancelled or not self._main.done()):
            if self._position < len(self._log):
                if not self._consume(self._log[self._position]):
                    break
            elif self._settled:
                self._deliver(self._settled.popleft())
            elif self._unrecorded:
                self._begin_unrecorded()
            elif not self._told_next():
                break
            run_ready()
        if self.outcome is None and self._main.done() and not (self.cancelled and is_busy(self._asked.values())):
            if self._unrecorded:
                self._begin_left()
            self.outcome = self._ended(self._main)

    def asked_steps(self) -> list[Op[Any]]:
        """The steps to run now, each once."""
        steps, self._steps = self._steps, []
        return [step for step in steps if not step.done()] if steps else steps

    def dropped_steps(self) -> list[Op[Any]]:
        """Steps nobody waits for any more: they are to be stopped."""
        dropped, self._dropped = self._dropped, []
        return dropped

    @property
    def has_outgoing(self) -> bool:
        """Whether there is something to record."""
        return bool(self._outgoing)

    def exceeds(self, most: int, most_bytes: int) -> bool:
        """Whether more is to be recorded than so many entries or bytes."""
        return len(self._outgoing) > most or sum(len(one.text) for one in self._outgoing) > most_bytes

    @property
    def in_flight(self) -> bool:
        """Whether entries were taken and not yet recorded."""
        return bool(self._sent)

    @property
    def needs_again(self) -> bool:
        """Whether the handler waits to know the run of a child, which only the next turn will tell."""
        return any(_starting(op) for op in self._waiting.values())

    @property
    def has_steps(self) -> bool:
        """Whether `asked_steps` has any."""
        return bool(self._steps)

    @property
    def holds_back(self) -> bool:
        """Whether the handler cannot go on before something is recorded. What only asks the dispatcher can go with the turn's answer."""
        return any(one.settles or _starting(one.op) for one in self._outgoing)

    def take_outgoing(self, most: int, most_bytes: int) -> list[bytes]:
        """The text of the next entries to record, in order; `recorded` or `carry` follows."""
        size = count = 0
        for one in self._outgoing:
            size += len(one.text)
            if count == most or (count and size > most_bytes):
                break
            count += 1
        taken, self._outgoing = self._outgoing[:count], self._outgoing[count:]
        self._sent.extend(taken)
        return [one.text for one in taken]

    def take_unsent(self) -> list[bytes]:
        """The text of entries that were never taken, for the turn's answer."""
        taken, self._outgoing = self._outgoing, []
        return [one.text for one in taken]

    def recorded(self, count: int, children: Mapping[str, str] = _NOT_ASKED) -> None:
        """The first `count` entries taken are in the log; `children` are runs that were started, by the id of what asked for them."""
        for _ in range(count):
            one = self._sent.popleft()
            if one.op.kind == "child" and one.op.id in children:
                one.op.run_id = children[one.op.id]
            self._settled.append(one)

    def carry(self) -> None:
        """Nothing can be recorded before the turn's answer: let the handler go on with what it has."""
        self.carrying = True
        self._sent.extend(self._outgoing)
        self._outgoing = []
        for one in self._sent:
            self.carried.append(one.text)
            self._settled.append(one)
        self._sent.clear()

    def wake(self) -> dict[str, Any] | None:
        """What the handler waits for; None when nothing that is recorded can settle it."""
        return self._inbox.wake(wake_of(self.loop.tasks, [op for op in self._waiting.values() if not op.done()]))

    @property
    def repeating(self) -> bool:
        """Whether the handler is where it was in an earlier turn, going by what that recorded."""
        return self._position < self._frontier

    def asked_before(self, id: str) -> Mapping[str, Any] | None:
        """What an earlier turn asked for under an id."""
        return next((entry for entry in self._log if entry["id"] == id and entry["status"] == "pending"), None)

    @property
    def open_ids(self) -> list[str]:
        """What is asked of the dispatcher and not settled."""
        return [op.id for op in self._waiting.values() if not op.done()]

    def close(self, why: type[Interruption] = Suspended) -> None:
        """Unwind the handler where it stands. What it asks for from now on raises `why` again and is not recorded.

        Since Python 3.12 the frame of a coroutine that an exception ends keeps the frames which called it, with all their variables. So
        nothing here that the handler is run from has an operation or a task of it in a variable: it would hold what it is held by.
        """
        self._closing = why
        self.loop.unwinding = False
        self._interrupt(why)
        for _ in range(3):
            with contextlib.suppress(BaseException), self.loop.generators.looked_after():
                self.loop.run_ready()  # what a handler does while it is put aside has no effect
            if not self._cancel_left():
                break
        self.loop.generators.forget()

    def _interrupt(self, why: type[Interruption]) -> None:
        for op in self._asked.values():
            if not op.done():
                op.drop = None
                op.set_exception(why())

    def _cancel_left(self) -> bool:
        left = [task for task in self.loop.tasks if not task.done()]
        for task in left:
            task.cancel()
        return bool(left)

    def forget(self) -> None:
        """Closed, and nothing of it runs any more: let go of what knows it too, so that all is freed now, not by the collector."""
        for op in self._asked.values():
            op.let_go()
            untrace(op)
        self._asked.clear()
        self._waiting.clear()
        self._unrecorded.clear()
        self._inbox.forget()
        self._main = self.outcome = None
        del self._now
        self.loop.forget()

    # ---- what a context asks for

    def ask(self, name: str, kind: str, asked: Mapping[str, Any] = _NOT_ASKED, read: Callable[[Any], Any] | None = None) -> Op[Any]:
        """Something of the dispatcher, under the next id of that name."""
        op = self._op(name, kind, asked)
        if read is not None:
            op.read = read
        if self.cancelled:
            if not self._insists():
                op.set_exception(Cancelled(self._cancel_reason))
        elif kind == "message" and self._inbox.ask(op):
            pass
        elif self._position < len(self._log) or self._unrecorded:
            self._unrecorded[op.id] = op
        else:
            self._begin(op)
        return op

    def step(self, name: str, work: Any, codec: Codec) -> Op[Any]:
        """A call into the outside world, made at most until its result is recorded."""
        op = self._op(name, "step", _NOT_ASKED)
        op.work = work
        if codec is not PLAIN:
            id = op.id  # not `op`, which would hold itself
            op.read = lambda value: parsed(value, codec, id)
        if self._position < len(self._log) or self._unrecorded:
            self._unrecorded[op.id] = op
        else:
            self._steps.append(op)
        return op

    def checkpoint(self, text: bytes) -> Op[bool]:
        """Save a value under the task."""
        op = self._op("checkpoint", "checkpoint", {"value": text})
        op.read = lambda _: True
        if self._position < len(self._log) or self._unrecorded:
            self._unrecorded[op.id] = op
        else:
            self._begin(op)
        return op

    def closing(self) -> Op[bool]:
        """Close the task's inbox."""
        op = self._op("inbox", "message", _NOT_ASKED)
        op.read = lambda _: True
        op.work = b"closed"
        if self.cancelled:
            op.set_result(True)  # it closes with the run
        elif self._position < len(self._log) or self._unrecorded:
            self._unrecorded[op.id] = op
        else:
            self._begin(op)
        return op

    def child(self, name: str, asked: Mapping[str, Any], read: Callable[[Any], Any]) -> Op[Any]:
        """A run of another workflow."""
        op = self.ask(name, "child", asked, read)
        op.started = self.loop.create_future()
        if op.run_id:
            op.started.set_result(op.run_id)
        return op

    def scope(self, name: str, fn: Callable[[], Coroutine[Any, Any, Any]], codec: Codec) -> Op[Any]:
        """A part of the handler that leaves one entry behind. Closed in the log, it is not run."""
        op = Scope(loop=self.loop)  # type: ignore[abstract]  # see Op
        id = self._op(name, "scope", _NOT_ASKED, op).id
        op.running = None
        op.read = lambda value: parsed(value, codec, id)
        if id not in self._recorded_scopes:
            token = SCOPE.set(id + "/")
            op.running = task = self.loop.create_task(fn())
            SCOPE.reset(token)
            task.add_done_callback(lambda task: self._scope_ended(op, task, codec))
        return op

    def patch(self, name: str) -> bool:
        """Whether a change of the code applies here: it does unless this place was passed without it before. One answer per name."""
        key = SCOPE.get() + name
        if key not in self._patches:
            op = self._op(name, "patch", _NOT_ASKED)
            if op.id in self._recorded_patches:
                self._patches[key] = self._recorded_patches[op.id]
                op.set_result(True)
            else:
                self._patches[key] = self._position >= self._frontier
                op.set_result(True)
                if self._patches[key]:
                    at = self._stamp()
                    self._record(Sent(op, valued_entry(op.id, "patch", b"true", at), at))
                else:  # the code before had none here: what it counted under this name has the number
                    del self._asked[op.id]
                    self._counts[key] -= 1
        return self._patches[key]

    def now(self) -> datetime:
        """The time of the last entry the handler has seen."""
        return datetime.fromisoformat(self._at).astimezone(UTC)

    def random(self, purpose: str) -> random.Random:
        """Numbers that are the same in every replay."""
        return random.Random(f"{self._seed}/{SCOPE.get()}/{purpose}")  # noqa: S311 - repeatable is what is asked for

    # ---- what came of steps

    def step_done(self, step: Op[Any], text: bytes, value: Any) -> None:
        """A step's result, as JSON text and as the handler gets it."""
        at = self._stamp()
        entry = b'{"id":"%b","op":"step","status":"ok","value":%b,"at":"%b"}' % (step.id.encode(), text, at.encode())
        self._record(Sent(step, entry, at, value, None, True))

    def step_failed(self, step: Op[Any], text: Callable[[str], bytes], error: wire.ErrorDetail, after_ms: int | None) -> None:
        """A step's failure: for good, or with `after_ms` to be tried again then. `text` makes the entry for a time."""
        at = self._stamp()
        if after_ms is None:
            self._record(Sent(step, text(at), at, None, failed(step.id, error), True))
            return
        step.failures += 1
        step.due = ms_of(at) + after_ms
        self._record(Sent(step, text(at), at))
        self._waiting[step.id] = step

    # ---- inside: asking

    def _op(self, name: str, kind: str, asked: Mapping[str, Any], made: Op[Any] | None = None) -> Op[Any]:
        if self._closing is not None:
            if not self._insists():
                raise self._closing
        elif asyncio._get_running_loop() is not self.loop:  # noqa: SLF001 - None is an answer too
            raise NotDeterministicError(
                f"{kind} {name!r} was asked for inside of a step or outside of the handler; only the handler itself can"
            )
        scope = SCOPE.get()
        if scope and scope[:-1] in self._scopes_closed:
            raise ScopeClosedError(f"{kind} {name!r} was asked for in the scope {scope[:-1]}, whose function has returned")
        key = scope + name
        count = self._counts.get(key)
        if count is None:
            count = 0
            if not NAME.fullmatch(name):
                raise NotDeterministicError(
                    f"{name!r} cannot name a {kind}: 1 to 200 characters, without control characters, quotes, backslashes, `/` and `#`"
                )
        self._counts[key] = count + 1
        op: Op[Any] = made or Op(loop=self.loop)  # type: ignore[abstract]  # see Op
        op.id = id = f"{key}#{count}"
        op.kind = kind
        op.number = len(self._asked)
        op.asked = asked
        op.read = as_it_is
        op.failures = op.due = 0
        op.recorded = op.checked = False
        op.run_id = ""
        op.started = op.work = None
        op.drop = self._drop
        self._asked[id] = op
        if self._closing is not None:
            self._unrecorded[id] = op  # which keeps it, and what is asked for after it, from beginning
        return op

    def _insists(self) -> bool:
        """Whether the handler goes on asking though it was told to end, as one that catches everything: it is left waiting then."""
        self._told += 1
        return self._told > _TOLD_MAX

    def _begin(self, op: Op[Any]) -> None:
        """Something the log does not have yet."""
        at = self._stamp()
        if op.kind == "checkpoint":
            text = op.asked["value"]
            self._record(Sent(op, valued_entry(op.id, "checkpoint", text, at), at, True, None, True))
            return
        if op.work == b"closed":
            self._record(Sent(op, closed_entry(op.id, at), at, True, None, True))
            return
        self._record(Sent(op, pending_entry(op, at), at))
        self._waiting[op.id] = op
        if op.kind == "message":
            self._inbox.begun(op)

    def _begin_unrecorded(self) -> None:
        """The log is used up: what the handler asked for meanwhile and was not there begins."""
        unrecorded, self._unrecorded = self._unrecorded, {}
        for op in unrecorded.values():
            if op.done():
                continue
            if op.kind == "step":
                if op.due > self._now():
                    self._waiting[op.id] = op
                else:
                    self._steps.append(op)
            elif op.kind == "scope":
                self._record(op.work)
            else:
                self._begin(op)

    def _begin_left(self) -> None:
        """The handler has ended without waiting for all it asked for: what the log does not have of that begins all the same, but steps."""
        there = {entry["id"] for entry in self._log[self._position :]}
        self._unrecorded = {id: op for id, op in self._unrecorded.items() if op.kind != "step" and id not in there}
        self._begin_unrecorded()

    @property
    def next_try(self) -> int | None:
        """When the next failed step is to be tried again, ms."""
        return min((op.due for op in self._waiting.values() if op.kind == "step" and not op.done()), default=None)

    def due_steps(self, by: int = 0) -> None:
        """Failed steps whose time has come, or has `by` then, are asked for again."""
        now = max(self._now(), by)
        for op in list(self._waiting.values()):
            if op.kind == "step" and not op.done() and op.due <= now:
                del self._waiting[op.id]
                self._steps.append(op)

    def _record(self, one: Sent) -> None:
        if self.carrying:
            self.carried.append(one.text)
            self._settled.append(one)
        else:
            self._outgoing.append(one)

    def _stamp(self) -> str:
        return text_of(self._now())

    def _drop(self, op: Op[Any]) -> None:
        self._waiting.pop(op.id, None)
        if op.kind == "step":
            self._dropped.append(op)

    def _timer(self, seconds: float, call: Callable[[], object]) -> asyncio.Future[Any]:
        sleep = self.ask("timer", "sleep", {"ms": round(seconds * 1000)})
        sleep.add_done_callback(lambda sleep: call() if not sleep.cancelled() and sleep.exception() is None else None)
        return sleep

    def _seconds(self) -> float:
        return datetime.fromisoformat(self._at).timestamp()

    # ---- inside: settling

    def _deliver(self, one: Sent) -> None:
        op = one.op
        self._at = one.at
        op.recorded = True
        if one.settles:
            if not op.done():
                if one.error is None:
                    op.set_result(one.value)
                else:
                    op.set_exception(one.error)
            op.spare()
        elif op.kind == "child" and op.run_id and op.started is not None and not op.started.done():
            op.started.set_result(op.run_id)

    def _consume(self, entry: Mapping[str, Any]) -> bool:
        """Hand one entry of the log to the handler; False when it does not fit."""
        op = self._asked.get(entry["id"])
        if op is None:
            return self._unasked(entry)
        self._position += 1
        self._at = entry.get("at") or self._at
        status = entry["status"]
        if entry["op"] != op.kind or (status == "pending" and not same(op, entry)):
            self.outcome = Mismatched({"id": op.id, "expected": summary(entry), "got": described(op)})
            return False
        if status == "retry":
            op.failures += 1
            op.due = ms_of(entry["at"]) + int(entry.get("after_ms") or 0)
            return True
        if status == "cancel" and not self.cancelled and (coming := announced(self._log[self._position - 1 :])) is not None:
            self._cancel(*coming)
        op.recorded = True
        self._unrecorded.pop(op.id, None)
        if status == "pending":
            self._registered(op, entry)
        else:
            self._waiting.pop(op.id, None)
            if op.kind == "message":
                self._inbox.ended(op, entry)
            if not op.done():
                self._settle(op, status, entry)
        return True

    def _registered(self, op: Op[Any], entry: Mapping[str, Any]) -> None:
        if op.kind == "message":
            self._inbox.begun(op)
        if op.done():
            return
        self._waiting[op.id] = op
        run_id = entry.get("run_id")
        if run_id:
            op.run_id = str(run_id)
            if op.started is not None and not op.started.done():
                op.started.set_result(op.run_id)

    def _settle(self, op: Op[Any], status: str, entry: Mapping[str, Any]) -> None:
        if op.kind == "child":
            op.run_id = str(entry.get("run_id") or op.run_id)
            if op.started is not None and not op.started.done() and op.run_id:
                op.started.set_result(op.run_id)
        try:
            op.set_result(op.read(result_of(op, status, entry)))
        except Exception as error:
            op.set_exception(error)
            if op.started is not None and not op.started.done():  # it could not be started at all
                op.started.set_exception(error)
        if op.kind == "step":
            op.spare()

    def _unasked(self, entry: Mapping[str, Any]) -> bool:
        if entry["op"] == "cancel":
            self._position += 1
            self._at = entry.get("at") or self._at
            if not self.cancelled:
                self._cancel(reason_of(entry))
            return True
        if self._hidden(entry["id"]):
            self._position += 1
            return True
        if self._told_next():
            return True
        if self.cancelled and self._main is not None and self._main.done() and not is_busy(self._asked.values()):
            return False
        asked = next((op for op in self._unrecorded.values() if not op.done()), None)
        got = described(asked) if asked is not None else {"id": None, "op": None}
        self.outcome = Mismatched({"id": entry["id"], "expected": summary(entry), "got": got})
        return False

    def _hidden(self, id: str) -> bool:
        """Whether it was done inside a scope that is closed in the log."""
        end = id.find("/")
        while end > 0:
            if id[:end] in self._recorded_scopes:
                return True
            end = id.find("/", end + 1)
        return False

    def _cancel(self, reason: str, spared: Collection[str] = ()) -> None:
        self.cancelled = self.loop.unwinding = True
        self._cancel_reason = reason
        owe_all(self.loop, reason, spared)
        for op in list(self._asked.values()):
            if op.done() or op.id in spared:
                continue
            self._unrecorded.pop(op.id, None)
            if op.kind != "scope":
                self._waiting.pop(op.id, None)
                op.set_exception(Cancelled(reason))
            elif op.work is not None:  # its function has ended, and the log does not say so
                self._deliver(op.work)
        tell_all(self.loop, reason)

    def _told_next(self) -> bool:
        """Whether a cancelled handler, of which nothing goes on, has somebody who is to hear of it, or a generator to end after all."""
        if not self.cancelled or is_busy(self._asked.values()):
            return False
        if tell_next(self.loop, self._cancel_reason):
            return True
        return self._main is not None and self._main.done() and self.loop.generators.end_left()

    def _scope_ended(self, op: Scope, task: asyncio.Future[Any], codec: Codec) -> None:
        if not self.cancelled:  # else those in it whom nobody waits for still undo
            self._scopes_closed.add(op.id)
        op.running = None
        if op.done() or self._closing is not None or task.cancelled():
            op.given_up()
            return
        error = task.exception()
        if error is not None and not isinstance(error, Exception):
            op.set_exception(error)
            return
        # One that was cancelled and came to something all the same is run again in each turn, which cancels it again: who hears before whom
        # is not in the log. So is one in which something goes on, which could not be recorded any more, and one that would hide messages
        # that are not all its own.
        closes = not (self.cancelled or was_cancelled(task) or op.goes_on(reversed(self._asked.values())) or self._inbox.crosses(op.id))
        at = self._stamp() if closes else self._at
        op.work = op.failure(error, at) if error is not None else op.value(task.result(), codec, at)
        if not closes:
            self._deliver(op.work)
        elif self._position < len(self._log) or self._unrecorded:
            self._unrecorded[op.id] = op
        else:
            self._record(op.work)

    def _ended(self, main: asyncio.Task[Any]) -> Outcome:
        if main.cancelled():
            return Raised(Cancelled(self._cancel_reason) if self.cancelled else asyncio.CancelledError("the handler cancelled itself"))
        error = main.exception()
        if error is not None:
            return Raised(meant_by(error))
        left = [entry for entry in self._log[self._position :] if entry["op"] != "cancel"]
        return Returned(main.result(), tuple(dict.fromkeys(str(entry["id"]) for entry in left if entry["id"] not in self._asked)))


def _starting(op: Op[Any]) -> bool:
    """Whether the handler waits to know a child's run."""
    return op.started is not None and not op.started.done() and bool(op.started._callbacks)  # noqa: SLF001 - there is no other way to ask
