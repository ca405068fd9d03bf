"""Workflows and their tasks, as the decorators declare them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from handlers_sdk.annotations import calling_namespace
from handlers_sdk.api import Api
from handlers_sdk.definitions import TaskDefaults, TaskDefinition, TaskSettings, WorkflowSettings, check_name
from handlers_sdk.durations import Duration
from handlers_sdk.errors import ConfigError
from handlers_sdk.function import HandlerFunction
from handlers_sdk.mocks import mock_context
from handlers_sdk.runnables import Runnable
from handlers_sdk.schemas import EmptyModel, codec_for

if TYPE_CHECKING:
    from handlers_sdk.decorators import DeclareTask

I = TypeVar("I")  # noqa: E741 - the input
R = TypeVar("R")


class Task(Generic[I, R]):
    """A task within a workflow."""

    def __init__(self, definition: TaskDefinition) -> None:
        self.definition = definition
        self.fn = definition.function.fn

    @property
    def name(self) -> str:
        """The task's name within its workflow."""
        return self.definition.task_name

    @property
    def is_async(self) -> bool:
        """Whether the handler is an async function."""
        return self.definition.function.is_async

    def mock_run(
        self,
        input: I | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        retry_count: int = 0,
        lifespan: Any = None,
        dependencies: Mapping[str, Any] | None = None,
    ) -> R:
        """Call a sync task's function as an attempt would, with these values in its context and these dependencies, given directly."""
        if self.is_async:
            raise TypeError(f"{self.name} is an async task; use aio_mock_run")
        result: R = self._mock(input, additional_metadata, retry_count, lifespan, dependencies)
        return result

    async def aio_mock_run(
        self,
        input: I | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        retry_count: int = 0,
        lifespan: Any = None,
        dependencies: Mapping[str, Any] | None = None,
    ) -> R:
        """Call an async task's function as an attempt would, with these values in its context and these dependencies, given directly."""
        if not self.is_async:
            raise TypeError(f"{self.name} is a sync task; use mock_run")
        result: R = await self._mock(input, additional_metadata, retry_count, lifespan, dependencies)
        return result

    def _mock(
        self,
        input: I | None,
        additional_metadata: Mapping[str, Any] | None,
        retry_count: int,
        lifespan: Any,
        dependencies: Mapping[str, Any] | None,
    ) -> Any:
        given, needed = dict(dependencies or {}), self.definition.function.dependency_names
        if set(given) != needed:
            raise TypeError(f"{self.name} takes the dependencies {sorted(needed)}; given were {sorted(given)}")
        value = EmptyModel() if input is None else input
        context, _ = mock_context(self.definition.workflow.name, input, additional_metadata, retry_count, lifespan, self.name)
        return self.fn(value, context, **given)


class Standalone(Runnable[I, R], Task[I, R]):
    """A task that is its own workflow: declared with one decorator, run by its name."""

    def __init__(self, api: Api, definition: TaskDefinition) -> None:
        Task.__init__(self, definition)
        function = definition.function
        Runnable.__init__(
            self, api, definition.workflow.name, function.input, lambda output: cast("R", function.output.parse(output, "output"))
        )

    @property
    def name(self) -> str:
        """The workflow's name as the dispatcher knows it, namespace included."""
        return self.definition.workflow.name

    @property
    def definitions(self) -> list[TaskDefinition]:
        """What an app has to serve."""
        return [self.definition]


class Workflow(Runnable[I, dict[str, Any]]):
    """A workflow of one task, declared with `@workflow.task()`. A run's result is a dict by task name."""

    def __init__(self, api: Api, settings: WorkflowSettings, input_type: Any, task_defaults: TaskDefaults) -> None:
        super().__init__(api, settings.name, codec_for(input_type), self._by_task)
        self.settings = settings
        self.input_type = input_type
        self._task_defaults = task_defaults
        self._tasks: list[Task[I, Any]] = []

    @property
    def tasks(self) -> list[Task[I, Any]]:
        """The declared tasks."""
        return list(self._tasks)

    @property
    def definitions(self) -> list[TaskDefinition]:
        """What an app has to serve; ConfigError when no task was declared."""
        if not self._tasks:
            raise ConfigError(f"workflow {self.name} has no task; declare one with @<workflow>.task()")
        return [task.definition for task in self._tasks]

    def task(
        self,
        name: str | None = None,
        schedule_timeout: Duration | None = None,
        execution_timeout: Duration | None = None,
        retries: int | None = None,
        backoff_factor: float | None = None,
        backoff_max_seconds: int | None = None,
    ) -> DeclareTask[I]:
        """Declare the workflow's task: `fn(input, ctx, **dependencies)`, sync or async. None takes the workflow's `task_defaults`.

        `schedule_timeout` (5 minutes) bounds the wait in the queue, `execution_timeout` (60 seconds) each attempt. A failed attempt is
        retried `retries` times (0), after `backoff_factor`^n seconds, at most `backoff_max_seconds`; without a factor at once.
        """
        settings = TaskSettings.of(self._task_defaults, schedule_timeout, execution_timeout, retries, backoff_factor, backoff_max_seconds)
        namespace = calling_namespace(sys._getframe(1))  # noqa: SLF001 - annotations may name what is local to the caller

        def declare(fn: Callable[..., Any]) -> Task[Any, Any]:
            if self._tasks:
                raise ConfigError(f"workflow {self.name} has the task {self._tasks[0].name} already; several tasks are not supported yet")
            task: Task[Any, Any] = Task(self._definition(fn, name, settings, namespace))
            self._tasks.append(task)
            return task

        return declare

    def _definition(self, fn: Callable[..., Any], name: str | None, settings: TaskSettings, namespace: Mapping[str, Any]) -> TaskDefinition:
        task_name = name or fn.__name__
        check_name(task_name)
        function = HandlerFunction(fn, self.input_type, namespace)
        return TaskDefinition(self.settings, task_name, settings, function, standalone=False)

    def _by_task(self, output: Any) -> dict[str, Any]:
        return {task.name: output for task in self._tasks}


Served = Workflow[Any] | Standalone[Any, Any]
"""What `app` and `serve` take."""
