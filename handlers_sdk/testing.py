"""Testing durable tasks: in this process, on a clock that jumps, with crashes at every place where one can happen.

tester = DurableTester([order, shipping])
tester.push("order/9/paid", {"amount": 5}, after="2h")
run = await tester.run(order, {"id": 9})
assert run.output == {"shipped": True}

await crash_everywhere(lambda: DurableTester([order, shipping]), order, {"id": 9})
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Final, TypeVar

from handlers_sdk.api import Api
from handlers_sdk.config import ClientConfig
from handlers_sdk.context import CURRENT, WorkerInfo
from handlers_sdk.definitions import TaskDefinition
from handlers_sdk.double import Double
from handlers_sdk.double_run import DoubleRun
from handlers_sdk.durable import DurableContext
from handlers_sdk.durations import Duration, milliseconds
from handlers_sdk.errors import Suspended
from handlers_sdk.execution import Host
from handlers_sdk.function import HandlerFunction, WorkerThreads
from handlers_sdk.handlers import Handlers
from handlers_sdk.longrunning import with_options
from handlers_sdk.mocks import MockControl
from handlers_sdk.ops import ms_of
from handlers_sdk.replay import Mismatched, Raised, Replay, Returned
from handlers_sdk.runnables import Runnable
from handlers_sdk.schemas import as_plain
from handlers_sdk.workflow import Served

T = TypeVar("T")

SLOTS: Final = 16


class DurableTester:
    """A dispatcher in memory with an endpoint that serves `workflows`.

    `children` are functions `input -> output` that stand in for workflows whose code is elsewhere. `expressions(text, data)` evaluates the
    expressions of event waits other than "true". `lifespan` is what `ctx.lifespan` gives. `crash_at` kills the endpoint at that point, or
    at all of which it says so. With `unreachable` it cannot call the dispatcher, and its results travel in its answers.
    """

    def __init__(
        self,
        workflows: Sequence[Served],
        *,
        children: Mapping[str, Callable[[Any], Any]] | None = None,
        expressions: Callable[[str, Any], bool] | None = None,
        lifespan: Any = None,
        crash_at: int | Callable[[int], bool] | None = None,
        unreachable: bool = False,
        delta: bool = True,
        shuffle: Callable[[list[str]], list[str]] | None = None,
    ) -> None:
        self._workflows = workflows
        self._lifespan = lifespan
        self.double = Double(
            self._boot,
            crash_at=crash_at,
            children=children,
            expressions=expressions,
            delta=delta,
            unreachable=unreachable,
            shuffle=shuffle,
        )

    def push(self, key: str, data: Any = None, scope: str | None = None, after: Duration = "0s") -> None:
        """An event, pushed that long after the start. InvalidInputError where the data is not JSON, as of `event.push`."""
        sent = as_plain(data, "input")
        self.double.plan(milliseconds(after), lambda: self.double.push(key, sent, scope))

    def send(self, data: Any, after: Duration = "0s") -> None:
        """A message to the run under test, that long after the start. InvalidInputError where the data is not JSON, as of `runs.send`."""
        sent = as_plain(data, "input")
        self.double.plan(milliseconds(after), lambda: self.double.message(next(iter(self.double.runs)), sent))

    def close_inbox(self, after: Duration = "0s") -> None:
        """No more messages for the run under test."""
        self.double.plan(milliseconds(after), lambda: self.double.close_inbox(next(iter(self.double.runs))))

    def cancel(self, after: Duration = "0s", reason: str = "no longer wanted") -> None:
        """Cancel the run under test, that long after the start."""
        self.double.plan(milliseconds(after), lambda: self.double.cancel(next(iter(self.double.runs)), reason))

    async def run(self, workflow: Runnable[Any, Any] | str, input: Any = None, metadata: dict[str, Any] | None = None) -> DoubleRun:
        """A run of a workflow, worked on until it has ended, is blocked, or waits for what never comes: `status`, `output`, `error`."""
        name = workflow if isinstance(workflow, str) else workflow.name
        run = self.double.start(name, input, metadata)
        try:
            await self.double.finish(run)
        finally:
            await self.double.handlers.host.postbox.aclose()
        assert not self.double.violations, self.double.violations
        return run

    def _boot(self, double: Double) -> Handlers:
        """The endpoint's process, started anew."""
        definitions = [definition for workflow in self._workflows for definition in workflow.definitions]
        config = replace(
            _config(self._workflows), transport=double, retry_attempts=1, verify_signatures=False, api_url="http://dispatcher.test"
        )
        host = Host(Api(config), WorkerInfo("wrk_test", "test", SLOTS), WorkerThreads(SLOTS), lifespan=self._lifespan)
        host.time = lambda: double.now / 1000
        host.on_step = double.stepped
        return Handlers(definitions, host, None, version="test")


async def crash_everywhere(make: Callable[[int | None], DurableTester], workflow: Runnable[Any, Any] | str, input: Any = None) -> int:
    """Run once undisturbed, then once for every point at which the endpoint can die; each must come to the same. How many there were.

    `make(crash_at)` makes a fresh tester. Points are before and after each write to the log and each answer of a turn. AssertionError
    when a result differs, a step whose result was recorded is run again, or a step is left out.
    """
    first = make(None)
    expected = await first.run(workflow, input)
    for point in range(first.double.points):
        tester = make(point)
        run = await tester.run(workflow, input)
        came, should = (run.status, run.output, run.error), (expected.status, expected.output, expected.error)
        assert came == should, f"killed at point {point} it came to {came}, undisturbed to {should}"
        often = {step: count for step, count in (tester.double.steps - first.double.steps).items() if count > 1}
        assert not often, f"killed once, at point {point}, steps were called more than once again: {often}"
        left = sorted(first.double.steps.keys() - tester.double.steps.keys())
        assert not left, f"killed at point {point} it left out steps that it calls undisturbed: {left}"
    return first.double.points


def replay_journal(
    workflow: Served,
    entries: Sequence[Mapping[str, Any]],
    input: Any,
    task: Mapping[str, Any] | None = None,
    *,
    dependencies: Mapping[str, Any] | None = None,
    lifespan: Any = None,
) -> Returned | Raised | Mismatched | None:
    """Run a handler against a recorded log, here, without any effect: what it comes to, None when it waits at the end of the log.

    `task` may have `id`, `run_id`, `seed`, `started_at`, `metadata` and `parents` of the task, as the turn had them. Steps beyond the log
    are not run. Dependencies are provided as for an attempt, but for those given here; `lifespan` is what `ctx.lifespan` gives.
    """
    (definition, *_) = [one for one in workflow.definitions if one.durability is not None]
    config = workflow._api.config  # noqa: SLF001 - as the app has it
    return replay_definition(definition, entries, input, task or {}, dependencies, lifespan, config)[0]


def replay_definition(
    definition: TaskDefinition,
    entries: Sequence[Mapping[str, Any]],
    input: Any,
    task: Mapping[str, Any],
    dependencies: Mapping[str, Any] | None = None,
    lifespan: Any = None,
    config: ClientConfig | None = None,
) -> tuple[Returned | Raised | Mismatched | None, list[str]]:
    """As `replay_journal`, of one task; and the ids of what it asks for beyond the log."""
    function, given = definition.function, dict(dependencies or {})
    if unknown := given.keys() - function.dependency_names:
        raise TypeError(f"{definition.task_name} takes the dependencies {sorted(function.dependency_names)}; given were {sorted(unknown)}")
    started = str(task.get("started_at") or (entries[0].get("at") if entries else "") or "2026-01-01T00:00:00.000Z")
    replay = Replay(entries, started_at=started, seed=str(task.get("seed", "")), now=lambda: ms_of(started), carrying=True)
    control = _Offline(config or ClientConfig(), lifespan)
    control.context = context = DurableContext(_item(definition, input, task, started), control, definition.task_name)
    context._replay = replay  # noqa: SLF001 - as a turn does
    threads = WorkerThreads(1)
    try:
        work = _replayed(function, replay, context, threads, given)
        return _ended(work, waits=bool(function.dependency_names - given.keys()))
    finally:
        threads.close()


class _Offline(MockControl):
    """What a handler that is replayed says reaches nobody; and it runs no steps, which alone ask for more."""

    def __init__(self, config: ClientConfig, lifespan: Any) -> None:
        super().__init__(lifespan)
        self.namespaced = config.namespaced

    async def saved(self, run_id: str) -> Any:
        """Asked in a step."""
        raise AssertionError("a replay runs no steps")

    async def deliver(self, run_id: str, text: bytes) -> bool:
        """Asked in a step."""
        raise AssertionError("a replay runs no steps")


def _item(definition: TaskDefinition, input: Any, task: Mapping[str, Any], started: str) -> Any:
    return {
        "name": definition.delivered_as,
        "workflow": definition.workflow.name,
        "id": task.get("id", "tsk_replay"),
        "run_id": task.get("run_id", "run_replay"),
        "attempt": 1,
        "input": input,
        "metadata": task.get("metadata"),
        "parents": task.get("parents"),
        "started_at": started,
        "token": "",
        "timeout_ms": 0,
    }


async def _replayed(
    function: HandlerFunction, replay: Replay, context: DurableContext, threads: WorkerThreads, given: Mapping[str, Any]
) -> tuple[Returned | Raised | Mismatched | None, list[str]]:
    token = CURRENT.set(context)
    try:
        async with AsyncExitStack() as stack:
            value = function.input.parse(context.workflow_input)
            arguments = await function.provided(value, context, threads, stack, given)
            replay.start(with_options(lambda: function.fn(value, context, **arguments), context))
            replay.advance()
            asked = [op.id for op in replay.asked_steps()] + replay.open_ids
            outcome = replay.outcome
            replay.close(Suspended)
            return outcome, asked
        raise AssertionError("a dependency suppressed the end of a replay")
    except Exception as error:  # the input does not fit any more, or a dependency is not to be had: the turn would have failed
        return Raised(error), []
    finally:
        replay.close(Suspended)
        CURRENT.reset(token)


def _ended(work: Coroutine[Any, Any, T], *, waits: bool) -> T:
    """The result of a coroutine, whether or not an event loop runs here. One that `waits` for nothing needs none."""
    if waits:
        with ThreadPoolExecutor(1, thread_name_prefix="replay") as apart:
            return apart.submit(copy_context().run, asyncio.run, work).result()
    try:
        work.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    raise AssertionError("a replay without dependencies waits for nothing")


def _config(workflows: Sequence[Served]) -> ClientConfig:
    return workflows[0]._api.config if workflows else ClientConfig()  # noqa: SLF001 - the app's own
