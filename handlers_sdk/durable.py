"""What a durable task can do beside what any task can: wait without holding anything, and do each thing once.

Every method that starts something starts it when it is called, under an id counted at the call, and gives an awaitable for the result.
The handler around these calls runs again from its beginning after every wait; what they gave is read from the log then, and what stands
between them has to come out the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context as Variables
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol, TypeVar, overload
from uuid import UUID

from handlers_sdk import wire
from handlers_sdk.conditions import Condition, OrGroup, SleepCondition, UserEventCondition, alternatives
from handlers_sdk.context import CURRENT, DEFAULT_STREAM, Context, Control, Label
from handlers_sdk.durations import Duration, format_duration, milliseconds, parse_duration
from handlers_sdk.errors import ConfigError, ContinuedAsNew, NotDeterministicError
from handlers_sdk.memos import Memos, key_of
from handlers_sdk.ops import PLAIN, Op, text_of
from handlers_sdk.placement import LabelsForm, label_entries
from handlers_sdk.replay import SCOPE, Replay
from handlers_sdk.schemas import Codec, codec_for, dump_json
from handlers_sdk.wakes import Combination

if TYPE_CHECKING:
    from handlers_sdk.runnables import Runnable
    from handlers_sdk.triggers import WorkflowRunTriggerConfig

T = TypeVar("T")
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Trial:
    """One call of a step's function: its children have their places from the start in each, and it draws the same numbers."""

    step: str
    places: count[int] = field(default_factory=count)
    randoms: dict[str, Random] = field(default_factory=dict)


STEP: Final[ContextVar[Trial | None]] = ContextVar("handlers_sdk_step", default=None)
"""The step running here, None outside of steps."""


@dataclass(frozen=True, slots=True)
class SleepResult:
    """What a sleep gives: how long it was asked to be."""

    duration: timedelta


@dataclass(frozen=True, slots=True)
class Step:
    """One call into the outside world and how its failures are dealt with."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    is_async: bool
    codec: Codec
    retries: int
    backoff_factor: float | None
    backoff_max_seconds: int | None
    timeout: float | None
    variables: Variables
    """As they were where it was asked for. Each call has a copy: what one sets would be seen live, and not in a replay."""

    @property
    def policy(self) -> dict[str, Any]:
        """As entries say it."""
        named = {"retries": self.retries, "backoff_factor": self.backoff_factor, "backoff_max_seconds": self.backoff_max_seconds}
        return {name: value for name, value in named.items() if value is not None}


class DurableControl(Control, Protocol):
    """What a durable context asks of whoever runs the turn."""

    def namespaced(self, key: str) -> str:
        """A workflow name or event key as the dispatcher knows it."""

    async def saved(self, run_id: str) -> Any:
        """The state a run has saved, None when it has none."""

    async def deliver(self, run_id: str, text: bytes) -> bool:
        """Put a message into a run's inbox; False when it is closed."""


class DurableContext(Context):
    """The second argument of a durable task."""

    __slots__ = ("_durable", "_memos", "_randoms", "_replay")

    _replay: Replay

    def __init__(self, item: wire.RunItem, control: DurableControl, task_name: str = "") -> None:
        super().__init__(item, control, task_name)
        self._durable = control
        self._memos = Memos()
        self._randoms: dict[str, Random] = {}

    # ---- steps

    @overload
    def run(
        self,
        name: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        timeout: Duration | None = None,
    ) -> Op[T]: ...
    @overload
    def run(
        self,
        name: str,
        fn: Callable[..., T],
        *args: Any,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        timeout: Duration | None = None,
    ) -> Op[T]: ...
    def run(
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        timeout: Duration | None = None,
    ) -> Op[Any]:
        """A step: `fn(*args)`, async or blocking, whose result is in the log before the handler goes on, and which is not run again then.

        The result is what JSON makes of it, validated as the function's return annotation says. A step that fails is tried again
        `retries` times, after `backoff_factor`^n seconds, at most `backoff_max_seconds`; without a factor at once. Its last failure
        is a StepFailedError. `timeout` bounds one try; a blocking function cannot be stopped, and may go on beside the next try. A crash
        between the end of `fn` and the log runs it again: pass `ctx.task_run_id` and `name` on as an idempotency key where that matters.
        `fn` sees the context variables of where it was asked for, and those it sets are its own.
        """
        if retries < 0:
            raise ConfigError(f"step {name}: retries={retries} must not be negative")
        if backoff_factor is not None and backoff_factor < 1:
            raise ConfigError(f"step {name}: backoff_factor={backoff_factor} must be at least 1, or waits would shrink")
        codec, is_async = _known(fn)
        seconds = None if timeout is None else parse_duration(timeout) / timedelta(seconds=1)
        step = Step(fn, args, is_async, codec, retries, backoff_factor, backoff_max_seconds, seconds, copy_context())
        return self._replay.step(name, step, codec)

    @overload
    def memo(self, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any, key: str | None = None) -> Op[T]: ...
    @overload
    def memo(self, fn: Callable[..., T], *args: Any, key: str | None = None) -> Op[T]: ...
    def memo(self, fn: Callable[..., Any], *args: Any, key: str | None = None) -> Op[Any]:
        """A step known by its function and arguments: called again with the same, it gives the first result.

        `key` stands in for both. Without one it is a ConfigError where the arguments are not JSON, and where it cannot be told which
        function it is: lambdas, methods, partials and objects that are called; and one of the same name that was called with the same
        arguments in this turn, unless both have the same code and what they have captured (defaults included) is the same, or was equal
        when they were asked for: numbers, texts, and lists and dicts of them; what else has a hash; and dataclasses, models, sets and
        functions of these, a few hundred in all. Other objects are the same only if they are one: a client made anew is another. One
        function is always the same, whatever it or others have changed of what it has captured.

        Branches that ask for the same share it, and it is given up when the last of them is cancelled. What is asked for first in a scope
        belongs to that scope: after it, or in the next one, it is a step of its own. What the handler has asked for before the scope is
        known in it.
        """
        named = key is None
        told = key_of(fn, args) if key is None else key
        return self._memos.ask(SCOPE.get(), told, fn if named else None, lambda: self.run(f"memo:{told}", fn, *args))

    def scope(self, name: str, fn: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Op[T]:
        """A part of the handler that becomes one entry: once `fn(*args)` has returned, what it did inside is no longer sent or replayed.

        `fn` uses this context as the handler does. Long loops run their iterations in scopes. Cancelled, by a timeout or its TaskGroup, a
        scope ends as a task does: `fn` hears so where it waits, and is waited for. Where the run is cancelled, `fn` hears so and may
        undo what it did, and who waits for the scope hears once it is over.
        """
        return self._replay.scope(name, lambda: fn(*args), _known(fn)[0])

    # ---- waiting

    def aio_sleep_for(self, duration: Duration) -> Op[SleepResult]:
        """Wait for so long, from the first time this was asked. Holds nothing while it waits."""
        length = parse_duration(duration)
        return self._replay.ask("sleep", "sleep", {"ms": milliseconds(length)}, lambda _: SleepResult(length))

    def aio_sleep_until(self, moment: datetime) -> Op[SleepResult]:
        """Wait until then; a moment with a time zone. Not at all when it has passed."""
        if moment.tzinfo is None:
            raise ValueError(f"{moment.isoformat()} has no time zone; use datetime(…, tzinfo=UTC), or ctx.now() + timedelta(…)")
        length = max(timedelta(0), moment - self.now())
        until = text_of(round(moment.timestamp() * 1000))
        return self._replay.ask("sleep", "sleep", {"until": until}, lambda _: SleepResult(length))

    @overload
    def aio_wait_for_event(
        self,
        key: str,
        expression: str | None = None,
        scope: str | None = None,
        consider_events_since: datetime | Literal["start"] | None = None,
        payload_validator: None = None,
        timeout: Duration | None = None,
    ) -> Op[dict[str, Any]]: ...
    @overload
    def aio_wait_for_event(
        self,
        key: str,
        expression: str | None = None,
        scope: str | None = None,
        consider_events_since: datetime | Literal["start"] | None = None,
        *,
        payload_validator: type[M],
        timeout: Duration | None = None,
    ) -> Op[M]: ...
    def aio_wait_for_event(
        self,
        key: str,
        expression: str | None = None,
        scope: str | None = None,
        consider_events_since: datetime | Literal["start"] | None = None,
        payload_validator: Any = None,
        timeout: Duration | None = None,
    ) -> Op[Any]:
        """Wait for an event of this key, and give its data, validated as `payload_validator`.

        `expression` is CEL over the event's data as `input`. With `scope` and `consider_events_since` (a moment, or "start" for that of
        the task's log), which belong together, an event of that scope pushed since then counts too, the newest first. `timeout` bounds
        the wait with a TimeoutError.
        """
        if (scope is None) != (consider_events_since is None):
            raise ValueError("scope and consider_events_since belong together: an event that came before the wait is found by its scope")
        since = consider_events_since
        if isinstance(since, datetime) and since.tzinfo is None:
            raise ValueError(f"{since.isoformat()} has no time zone; use datetime(…, tzinfo=UTC), or ctx.now() - timedelta(…)")
        asked = {
            "key": self._durable.namespaced(key),
            "expression": expression,
            "scope": scope,
            "since": since if since is None or isinstance(since, str) else text_of(round(since.timestamp() * 1000)),
            "timeout_ms": None if timeout is None else milliseconds(timeout),
        }
        codec = PLAIN if payload_validator is None else codec_for(payload_validator)
        given = {name: value for name, value in asked.items() if value is not None}
        op = self._replay.ask("event", "event", given, lambda event: codec.parse((event or {}).get("data"), "input"))
        op.checked = payload_validator is not None
        return op

    async def aio_wait_for(self, signal_key: str, *conditions: SleepCondition | UserEventCondition | OrGroup) -> dict[str, Any]:
        """Wait for all of these; of an `or_` group, for any. The result has what was met: `{"CREATE": {key: [data]}}`.

        The key is that of the event, or `sleep:5s`. `signal_key` says in the log what is waited for; it need not be the same in replays.
        """
        if not conditions:
            raise ConfigError("aio_wait_for() of no conditions; give it at least one")
        groups = [[(one, self._condition(signal_key, one)) for one in alternatives(group)] for group in conditions]

        def met() -> dict[str, Any]:
            found: dict[str, list[Any]] = {}
            for one, op in [pair for group in groups for pair in group]:
                if op.done() and not op.cancelled() and op.exception() is None:
                    found.setdefault(_readable(one), []).append(op.result())
            return {"CREATE": found}

        result: dict[str, Any] = await Combination([[op for _, op in group] for group in groups], met, self._replay.loop)
        return result

    def _condition(self, label: str, condition: Condition) -> Op[Any]:
        if isinstance(condition, SleepCondition):
            ms = milliseconds(condition.duration)
            return self._replay.ask("sleep", "sleep", {"ms": ms, "label": label}, lambda _: {"duration_ms": ms})
        if isinstance(condition, UserEventCondition):
            asked = {
                "key": self._durable.namespaced(condition.event_key),
                "expression": condition.expression,
                "scope": condition.scope,
                "label": label,
            }
            given = {name: value for name, value in asked.items() if value is not None}
            return self._replay.ask("event", "event", given, lambda event: (event or {}).get("data"))
        raise ConfigError(f"{condition!r}: a durable task waits for SleepCondition, UserEventCondition and or_() of them")

    # ---- time and chance

    def now(self) -> datetime:
        """The time, the same in every replay: that of the last thing that was recorded."""
        return self._replay.now()

    @property
    def random(self) -> Random:
        """Random numbers, the same in every replay. Each scope has its own, and each step: ask for it where it is used."""
        return self._stream("random")

    def uuid(self) -> UUID:
        """A random UUID (version 4), the same in every replay, and whenever a step is tried again."""
        return UUID(int=self._stream("uuid").getrandbits(128), version=4)

    def _stream(self, purpose: str) -> Random:
        """The numbers of this scope: what is drawn in one that is closed is not drawn again, and must not be missed elsewhere. Nor what is
        drawn in a step, which has its own.
        """
        trial = STEP.get()
        randoms = self._randoms if trial is None else trial.randoms
        whose = purpose if trial is None else f"{trial.step}/{purpose}"
        place = SCOPE.get() + whose
        if place not in randoms:
            randoms[place] = self._replay.random(whose)
        return randoms[place]

    # ---- children

    @overload
    def run_child(
        self,
        workflow: Runnable[Any, T],
        input: Any = None,
        *,
        key: str | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        on_cancel: Literal["propagate", "abandon"] = "propagate",
        desired_worker_labels: LabelsForm = None,
        sticky: bool = False,
    ) -> Op[T]: ...
    @overload
    def run_child(
        self,
        workflow: str,
        input: Any = None,
        *,
        key: str | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        on_cancel: Literal["propagate", "abandon"] = "propagate",
        desired_worker_labels: LabelsForm = None,
        sticky: bool = False,
    ) -> Op[Any]: ...
    def run_child(
        self,
        workflow: Runnable[Any, Any] | str,
        input: Any = None,
        *,
        key: str | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        on_cancel: Literal["propagate", "abandon"] = "propagate",
        desired_worker_labels: LabelsForm = None,
        sticky: bool = False,
    ) -> Op[Any]:
        """Start a run of another workflow and wait for its result. It is started once, whatever becomes of this task's turns.

        `key` names it among the children of this task: a second one with the same key is the first. FailedTaskRunExceptionGroup when it
        fails, CancelledRunError when it is cancelled. When this task is cancelled it is too, unless `on_cancel="abandon"`.
        `desired_worker_labels` are asked of the endpoints of its tasks; a `sticky` one begins where this task is, if its workflow is so.
        """
        from handlers_sdk.triggers import NO_OPTIONS, TriggerWorkflowOptions, WorkflowRunTriggerConfig

        options = NO_OPTIONS
        if sticky or not (additional_metadata is None and priority is None and key is None and desired_worker_labels is None):
            options = TriggerWorkflowOptions(
                additional_metadata, priority, child_key=key, desired_worker_labels=desired_worker_labels, sticky=sticky
            )
        if isinstance(workflow, str):
            text = dump_json({} if input is None else input, "input")
            item = WorkflowRunTriggerConfig(self._durable.namespaced(workflow), text, options)
            return self._child_of(item, _as_it_is, on_cancel)
        return self._child_of(workflow.create_bulk_run_item(input, None, options), workflow.read_result, on_cancel)

    def _child_of(
        self, item: WorkflowRunTriggerConfig, read: Callable[[Any], Any], on_cancel: Literal["propagate", "abandon"] = "propagate"
    ) -> Op[Any]:
        from handlers_sdk.triggers import NO_OPTIONS

        options = item.options
        if options.idempotency_key is not None:
            raise ConfigError(
                f"a child {item.workflow_name!r} of a durable task is started once as it is; name it with child_key, "
                "or start a run that others may have started in a step of ctx.run"
            )
        given: dict[str, Any] = {"workflow": item.workflow_name, "input": item.input}
        if options is not NO_OPTIONS or item.key is not None or on_cancel != "propagate":
            more = {
                "key": options.child_key if item.key is None else item.key,
                "metadata": options.additional_metadata,
                "priority": options.priority,
                "labels": label_entries(options.desired_worker_labels) or None,
                "sticky": options.sticky or None,
                "on_cancel": None if on_cancel == "propagate" else on_cancel,
            }
            given |= {name: value for name, value in more.items() if value is not None}
        return self._replay.child(item.workflow_name, given, read)

    # ---- a long-running task's inbox and state

    def receive(self, timeout: Duration | None = None) -> Op[Any]:
        """The next message sent to this run, in the order they were sent; None when the inbox is closed or `timeout` has passed.

        A cancellation arrives as `{"$cancel": true}`: save or undo what is to be, and return. What else is asked for then raises Cancelled.
        One that is given up, by a timeout or in a race, takes no message along: the next has it.
        """
        return self._replay.ask("message", "message", {} if timeout is None else {"timeout_ms": milliseconds(timeout)})

    def send(self, run_id: str, data: Any) -> Op[bool]:
        """Send a message to another run; False when its inbox is closed. A crash between the sending and the log sends it again."""
        return self.run("send", self._durable.deliver, run_id, dump_json({"data": data}, "input"))

    def close_inbox(self) -> Op[bool]:
        """Take no more messages: whoever sends one from now on is told so."""
        return self._replay.closing()

    def checkpoint(self, value: Any) -> Op[bool]:
        """Save a state under this task, in place of the one before. True once it is saved."""
        return self._replay.checkpoint(dump_json(value))

    def restore(self, run_id: str | None = None) -> Op[Any]:
        """The state that this run, or another, had saved when this was called first; None when there was none."""
        return self.run("restore", self._durable.saved, run_id or self.workflow_run_id)

    # ---- saying something: once, not again in every replay

    def log(self, line: str | Mapping[str, Any], raise_on_error: bool = False, level: wire.LogLevel = "info") -> None:
        """Send a log line. What an earlier turn said is not said again."""
        if not self._repeats:
            super().log(line, raise_on_error and not self._in_handler, level)

    async def aio_log(self, line: str | Mapping[str, Any], raise_on_error: bool = False, level: wire.LogLevel = "info") -> None:
        """Send a log line. In a step, `raise_on_error` waits for it to arrive."""
        if self._in_handler:
            self.log(line, level=level)
        else:
            await super().aio_log(line, raise_on_error, level)

    def put_stream(self, data: str | bytes, stream: str = DEFAULT_STREAM) -> None:
        """Send a piece of a stream. What an earlier turn sent is not sent again."""
        if not self._repeats:
            super().put_stream(data, stream)

    async def aio_put_stream(self, data: str | bytes, stream: str = DEFAULT_STREAM) -> None:
        """Send a piece of a stream; in a step, wait until it has arrived."""
        if self._in_handler:
            self.put_stream(data, stream)
        else:
            await super().aio_put_stream(data, stream)

    def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the task is. What an earlier turn said is not said again."""
        if not self._repeats:
            super().progress(fraction, note)

    def _relabel(self, labels: Mapping[str, Label | None]) -> None:
        if not self._repeats:
            super()._relabel(labels)

    async def _aio_relabel(self, labels: Mapping[str, Label | None]) -> None:
        if self._in_handler:
            self._relabel(labels)
        else:
            await super()._aio_relabel(labels)

    @property
    def _era(self) -> Sequence[str]:
        turn: Any = self._item
        return (turn["started_at"],)

    @property
    def _in_handler(self) -> bool:
        return asyncio._get_running_loop() is self._replay.loop  # noqa: SLF001 - None is an answer too

    @property
    def _repeats(self) -> bool:
        return self._in_handler and self._replay.repeating

    # ---- changing

    def patch(self, name: str) -> bool:
        """Whether a change of the code applies to this run: `if ctx.patch("new-tax"): …new… else: …old…`.

        True where this place had not been reached before the change was deployed. One answer per name for the whole run.
        """
        return self._replay.patch(name)

    def continue_as_new(self, input: Any = None) -> NoReturn:
        """Begin again with this input and an empty log, as the same run: for tasks that never end."""
        raise ContinuedAsNew({} if input is None else input)


def durable_here() -> DurableContext | None:
    """The durable context of the handler running here; None elsewhere, and in its steps."""
    context = CURRENT.get()
    if not isinstance(context, DurableContext):
        return None
    return context if asyncio._get_running_loop() is context._replay.loop else None  # noqa: SLF001 - None is an answer too


def refuse_blocking(what: str) -> None:
    """A durable handler cannot block: NotDeterministicError says what to use."""
    if durable_here() is not None:
        raise NotDeterministicError(f"{what} would block a durable task; use `await ….aio_{what}(…)`")


_KNOWN: dict[Any, tuple[Codec, bool]] = {}
_KNOWN_MAX: Final = 1_000
"""A model that a handler makes for itself is another in every turn."""


def _known(fn: Callable[..., Any]) -> tuple[Codec, bool]:
    """How a function's result travels, and whether it is async; worked out once for all closures of one definition that say they return
    the same. What a decorator makes of several has one definition, and the annotations of each.
    """
    code = getattr(fn, "__code__", None)
    if code is None:
        return _seen(fn)
    key = (code, getattr(fn, "__annotations__", {}).get("return"), getattr(fn, "__module__", None))
    try:
        found = _KNOWN.get(key)
    except TypeError:  # an annotation without a hash
        return _seen(fn)
    if found is None:
        if len(_KNOWN) >= _KNOWN_MAX:
            _KNOWN.clear()
        found = _KNOWN[key] = _seen(fn)
    return found


def _seen(fn: Callable[..., Any]) -> tuple[Codec, bool]:
    return _codec(fn), asyncio.iscoroutinefunction(fn) or asyncio.iscoroutinefunction(getattr(fn, "func", None))


def _codec(fn: Callable[..., Any]) -> Codec:
    from handlers_sdk.annotations import returned_by

    if "return" not in getattr(fn, "__annotations__", {}):
        return PLAIN
    try:
        codec = codec_for(returned_by(fn))
    except (ConfigError, TypeError, ValueError):  # an annotation that means nothing at run time: its value is JSON, or refused
        return PLAIN
    return PLAIN if type(codec) is type(PLAIN) else codec


def _readable(condition: Condition) -> str:
    if isinstance(condition, SleepCondition):
        return f"sleep:{format_duration(parse_duration(condition.duration))}"
    assert isinstance(condition, UserEventCondition)
    return condition.event_key


def _as_it_is(value: Any) -> Any:
    return value
