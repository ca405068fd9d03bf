"""Declaring durable tasks: `@dispatcher.durable_task(…)`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from handlers_sdk.annotations import calling_namespace
from handlers_sdk.api import Api
from handlers_sdk.context import Context
from handlers_sdk.definitions import (
    EXECUTION_TIMEOUT,
    SCHEDULE_TIMEOUT,
    Durability,
    Priority,
    TaskDefaults,
    TaskDefinition,
    TaskSettings,
    WorkflowSettings,
)
from handlers_sdk.durations import Duration
from handlers_sdk.flow import ConcurrencyForm, Limits, RateLimit
from handlers_sdk.function import HandlerFunction
from handlers_sdk.gathering import Batching, Gatherer
from handlers_sdk.placement import LabelsForm, Placement, StickyStrategy
from handlers_sdk.workflow import Standalone

if TYPE_CHECKING:
    from handlers_sdk.crons import CronTrigger
    from handlers_sdk.decorators import DeclareDurable, DeclareDurableOf, DeclareReducer
    from handlers_sdk.filters import DefaultFilter
    from handlers_sdk.retries import RetryForm

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
        description: str | None = None,
        input_validator: None = None,
        on_events: Sequence[str] | None = None,
        version: str | None = None,
        default_priority: int = Priority.LOW,
        schedule_timeout: Duration = SCHEDULE_TIMEOUT,
        execution_timeout: Duration = EXECUTION_TIMEOUT,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        retry: RetryForm | None = None,
        concurrency: ConcurrencyForm = None,
        rate_limits: Sequence[RateLimit] | None = None,
        desired_worker_labels: LabelsForm = None,
        slot_cost: int = 1,
        sticky: StickyStrategy | None = None,
        default_filters: Sequence[DefaultFilter] | None = None,
        on_crons: Sequence[str | CronTrigger] | None = None,
        pin: Literal["task", "latest"] = "task",
        checkpoint: Literal["step", "turn"] = "step",
        mode: Literal["replay"] = "replay",
    ) -> DeclareDurable: ...
    @overload
    def durable_task(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        input_validator: type[I],
        on_events: Sequence[str] | None = None,
        version: str | None = None,
        default_priority: int = Priority.LOW,
        schedule_timeout: Duration = SCHEDULE_TIMEOUT,
        execution_timeout: Duration = EXECUTION_TIMEOUT,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        retry: RetryForm | None = None,
        concurrency: ConcurrencyForm = None,
        rate_limits: Sequence[RateLimit] | None = None,
        desired_worker_labels: LabelsForm = None,
        slot_cost: int = 1,
        sticky: StickyStrategy | None = None,
        default_filters: Sequence[DefaultFilter] | None = None,
        on_crons: Sequence[str | CronTrigger] | None = None,
        pin: Literal["task", "latest"] = "task",
        checkpoint: Literal["step", "turn"] = "step",
        mode: Literal["replay"] = "replay",
    ) -> DeclareDurableOf[I]: ...
    @overload
    def durable_task(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        input_validator: Any = None,
        on_events: Sequence[str] | None = None,
        version: str | None = None,
        default_priority: int = Priority.LOW,
        schedule_timeout: Duration = SCHEDULE_TIMEOUT,
        execution_timeout: Duration = EXECUTION_TIMEOUT,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        retry: RetryForm | None = None,
        concurrency: ConcurrencyForm = None,
        rate_limits: Sequence[RateLimit] | None = None,
        desired_worker_labels: LabelsForm = None,
        slot_cost: int = 1,
        sticky: StickyStrategy | None = None,
        default_filters: Sequence[DefaultFilter] | None = None,
        on_crons: Sequence[str | CronTrigger] | None = None,
        pin: Literal["task", "latest"] = "task",
        mode: Literal["state"],
    ) -> DeclareReducer: ...
    def durable_task(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        input_validator: Any = None,
        on_events: Sequence[str] | None = None,
        version: str | None = None,
        default_priority: int = Priority.LOW,
        schedule_timeout: Duration = SCHEDULE_TIMEOUT,
        execution_timeout: Duration = EXECUTION_TIMEOUT,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        retry: RetryForm | None = None,
        concurrency: ConcurrencyForm = None,
        rate_limits: Sequence[RateLimit] | None = None,
        desired_worker_labels: LabelsForm = None,
        slot_cost: int = 1,
        sticky: StickyStrategy | None = None,
        default_filters: Sequence[DefaultFilter] | None = None,
        on_crons: Sequence[str | CronTrigger] | None = None,
        pin: Literal["task", "latest"] = "task",
        checkpoint: Literal["step", "turn"] = "step",
        mode: Literal["replay", "state"] = "replay",
    ) -> Any:
        """Declare a durable task that is its own workflow: `async def fn(input, ctx: DurableContext, **dependencies)`.

        Its code runs again after every wait, and reads from its log what it has done before. `execution_timeout` bounds one turn, not
        the waits; `retries` count from the last progress. `pin` "task" keeps a run on the version it began with as long as that is
        registered, "latest" lets it follow. `checkpoint` "step" has each result recorded before the code goes on, "turn" records them
        with the turn's end: quicker, and a crash repeats the turn. With `mode="state"` the function is a reducer
        (`ctx: StateContext`): nothing is replayed. The rest is described in `task`.
        """
        settings = TaskSettings.of(
            TaskDefaults(),
            schedule_timeout,
            execution_timeout,
            retries or None,
            backoff_factor,
            backoff_max_seconds,
            retry,
            Limits.of(concurrency, rate_limits),
            Placement.of(desired_worker_labels, slot_cost),
        )
        durability = Durability(mode, pin, checkpoint)
        namespace = calling_namespace(sys._getframe(1))  # noqa: SLF001 - annotations may name what is local to the caller

        def declare(fn: Callable[..., Any]) -> Standalone[Any, Any]:
            own = name or fn.__name__
            workflow = self._settings(own, description, on_events, version, default_priority, default_filters, on_crons, sticky)
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
        description: str | None = None,
        input_validator: Any = None,
        on_events: Sequence[str] | None = None,
        version: str | None = None,
        default_priority: int = Priority.LOW,
        schedule_timeout: Duration = SCHEDULE_TIMEOUT,
        execution_timeout: Duration = EXECUTION_TIMEOUT,
        retries: int = 0,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
        retry: RetryForm | None = None,
        concurrency: ConcurrencyForm = None,
        desired_worker_labels: LabelsForm = None,
        slot_cost: int = 1,
        sticky: StickyStrategy | None = None,
        default_filters: Sequence[DefaultFilter] | None = None,
        on_crons: Sequence[str | CronTrigger] | None = None,
    ) -> Callable[[Callable[[list[tuple[I, Context]]], Any]], Standalone[I, Any]]:
        """Declare a task whose handler serves many runs in one call: `fn(items: list[tuple[I, Context]]) -> list[R]`, sync or async.

        It is called with `batch_size` (at most 1,000) runs, or with fewer once the first has waited for `batch_interval`. With
        `batch_group_key` (CEL over `input` and `additional_metadata`) only runs of one group are gathered, and at most
        `batch_group_max_runs` batches of a group run at a time. It gives a result for each, in order, an exception in place of one that
        failed, or a Broadcast for all. A batch fills the slots of one task. The rest is described in `task`.
        """
        settings = TaskSettings.of(
            TaskDefaults(),
            schedule_timeout,
            execution_timeout,
            retries or None,
            backoff_factor,
            backoff_max_seconds,
            retry,
            Limits.of(concurrency),
            Placement.of(desired_worker_labels, slot_cost),
        )
        batching = Batching.of(batch_size, batch_interval, batch_group_key, batch_group_max_runs)
        namespace = calling_namespace(sys._getframe(1))  # noqa: SLF001 - annotations may name what is local to the caller

        def declare(fn: Callable[[list[tuple[I, Context]]], Any]) -> Standalone[I, Any]:
            own, gatherer = name or fn.__name__, Gatherer(fn, batching)
            workflow = self._settings(own, description, on_events, version, default_priority, default_filters, on_crons, sticky)
            function = HandlerFunction(gatherer.member(namespace, input_validator), None, namespace)
            return Standalone(self._api, TaskDefinition(workflow, workflow.name, settings, function, gatherer=gatherer))

        return declare
