"""Declaring durable tasks: `@dispatcher.durable_task(…)`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from handlers_sdk.annotations import calling_namespace
from handlers_sdk.api import Api
from handlers_sdk.context import Context
from handlers_sdk.definitions import (
    Durability,
    TaskDefaults,
    TaskDefinition,
    TaskSettings,
    WorkflowSettings,
)
from handlers_sdk.durations import Duration
from handlers_sdk.function import HandlerFunction
from handlers_sdk.gathering import Batching, Gatherer
from handlers_sdk.options import BatchOptions, StandaloneOptions, TaskOptions, WorkflowOptions, check_options, part
from handlers_sdk.workflow import Standalone

if TYPE_CHECKING:
    from handlers_sdk.decorators import DeclareDurable, DeclareDurableOf, DeclareReducer

I = TypeVar("I")  # noqa: E741 - the input


class DurableDeclarations:
    """The part of `Dispatcher` that declares durable tasks."""

    _api: Api
    _settings: Callable[..., WorkflowSettings]

    @overload
    def durable_task(
        self,
        *,
        name: str | None = None,
        input_validator: None = None,
        pin: Literal["task", "latest"] = "task",
        checkpoint: Literal["step", "turn"] = "step",
        mode: Literal["replay"] = "replay",
        **options: Unpack[StandaloneOptions],
    ) -> DeclareDurable: ...
    @overload
    def durable_task(
        self,
        *,
        name: str | None = None,
        input_validator: type[I],
        pin: Literal["task", "latest"] = "task",
        checkpoint: Literal["step", "turn"] = "step",
        mode: Literal["replay"] = "replay",
        **options: Unpack[StandaloneOptions],
    ) -> DeclareDurableOf[I]: ...
    @overload
    def durable_task(
        self,
        *,
        name: str | None = None,
        input_validator: Any = None,
        pin: Literal["task", "latest"] = "task",
        mode: Literal["state"],
        **options: Unpack[StandaloneOptions],
    ) -> DeclareReducer: ...
    def durable_task(
        self,
        *,
        name: str | None = None,
        input_validator: Any = None,
        pin: Literal["task", "latest"] = "task",
        checkpoint: Literal["step", "turn"] = "step",
        mode: Literal["replay", "state"] = "replay",
        **options: Unpack[StandaloneOptions],
    ) -> Any:
        """Declare a durable task that is its own workflow: `async def fn(input, ctx: DurableContext, **dependencies)`.

        Its code runs again after every wait, and reads from its log what it has done before. `execution_timeout` bounds one turn, not
        the waits; `retries` count from the last progress. `pin` "task" keeps a run on the version it began with as long as that is
        registered, "latest" lets it follow. `checkpoint` "step" has each result recorded before the code goes on, "turn" records them
        with the turn's end: quicker, and a crash repeats the turn. With `mode="state"` the function is a reducer
        (`ctx: StateContext`): nothing is replayed. The rest is described in `task`.
        """
        check_options("durable_task", options, StandaloneOptions)
        settings = TaskSettings.of(TaskDefaults(), part(options, TaskOptions))
        durability = Durability(mode, pin, checkpoint)
        namespace = calling_namespace(sys._getframe(1))  # noqa: SLF001 - annotations may name what is local to the caller

        def declare(fn: Callable[..., Any]) -> Standalone[Any, Any]:
            workflow = self._settings(name or fn.__name__, part(options, WorkflowOptions))
            function = HandlerFunction(fn, input_validator, namespace)
            return Standalone(self._api, TaskDefinition(workflow, workflow.name, settings, function, durability=durability))

        return declare


class BatchDeclarations:
    """The part of `Dispatcher` that declares tasks which are run many at once."""

    _api: Api
    _settings: Callable[..., WorkflowSettings]

    def batch_task(
        self,
        *,
        batch_size: int,
        batch_interval: Duration = timedelta(seconds=1),
        batch_group_key: str | None = None,
        batch_group_max_runs: int | None = None,
        name: str | None = None,
        input_validator: Any = None,
        **options: Unpack[BatchOptions],
    ) -> Callable[[Callable[[list[tuple[I, Context]]], Any]], Standalone[I, Any]]:
        """Declare a task whose handler serves many runs in one call: `fn(items: list[tuple[I, Context]]) -> list[R]`, sync or async.

        It is called with `batch_size` (at most 1,000) runs, or with fewer once the first has waited for `batch_interval`. With
        `batch_group_key` (CEL over `input` and `additional_metadata`) only runs of one group are gathered, and at most
        `batch_group_max_runs` batches of a group run at a time. It gives a result for each, in order, an exception in place of one that
        failed, or a Broadcast for all. A batch fills the slots of one task. The rest is described in `task`.
        """
        check_options("batch_task", options, BatchOptions)
        settings = TaskSettings.of(TaskDefaults(), part(options, TaskOptions))
        batching = Batching.of(batch_size, batch_interval, batch_group_key, batch_group_max_runs)
        namespace = calling_namespace(sys._getframe(1))  # noqa: SLF001 - annotations may name what is local to the caller

        def declare(fn: Callable[[list[tuple[I, Context]]], Any]) -> Standalone[I, Any]:
            gatherer = Gatherer(fn, batching)
            workflow = self._settings(name or fn.__name__, part(options, WorkflowOptions))
            function = HandlerFunction(gatherer.member(namespace, input_validator), None, namespace)
            return Standalone(self._api, TaskDefinition(workflow, workflow.name, settings, function, gatherer=gatherer))

        return declare
