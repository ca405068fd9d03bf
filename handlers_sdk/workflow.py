"""Workflows and their tasks, as the decorators declare them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, Unpack, cast

from handlers_sdk import wire
from handlers_sdk.annotations import calling_namespace
from handlers_sdk.api import Api
from handlers_sdk.conditions import ParentCondition, Rule, alternatives, rule_entries
from handlers_sdk.definitions import Durability, Role, TaskDefaults, TaskDefinition, TaskSettings, WorkflowSettings, check_name
from handlers_sdk.errors import ConfigError
from handlers_sdk.function import HandlerFunction
from handlers_sdk.graph import Edges, check_graph
from handlers_sdk.mocks import mock_context
from handlers_sdk.options import NodeOptions, TaskOptions, check_options, part
from handlers_sdk.runnables import Runnable
from handlers_sdk.schemas import EmptyModel, codec_for

if TYPE_CHECKING:
    from handlers_sdk.decorators import DeclareDurableTask, DeclareTask

I = TypeVar("I")  # noqa: E741 - the input
R = TypeVar("R")

ROLES: Final[Sequence[Role]] = ("task", "on_failure", "on_success")


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
        parent_outputs: Mapping[str, Any] | None = None,
    ) -> R:
        """Call a sync task's function as an attempt would, with these values in its context and these dependencies, given directly.

        `parent_outputs` are what `ctx.task_output` gives, by the parent's name; other parents count as skipped.
        """
        if self.is_async:
            raise TypeError(f"{self.name} is an async task; use aio_mock_run")
        result: R = self._mock(input, additional_metadata, retry_count, lifespan, dependencies, parent_outputs)
        return result

    async def aio_mock_run(
        self,
        input: I | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        retry_count: int = 0,
        lifespan: Any = None,
        dependencies: Mapping[str, Any] | None = None,
        parent_outputs: Mapping[str, Any] | None = None,
    ) -> R:
        """Call an async task's function as an attempt would, with these values in its context and these dependencies, given directly.

        `parent_outputs` are what `ctx.task_output` gives, by the parent's name; other parents count as skipped.
        """
        if not self.is_async:
            raise TypeError(f"{self.name} is a sync task; use mock_run")
        result: R = await self._mock(input, additional_metadata, retry_count, lifespan, dependencies, parent_outputs)
        return result

    def _mock(
        self,
        input: I | None,
        additional_metadata: Mapping[str, Any] | None,
        retry_count: int,
        lifespan: Any,
        dependencies: Mapping[str, Any] | None,
        parent_outputs: Mapping[str, Any] | None,
    ) -> Any:
        given, needed = dict(dependencies or {}), self.definition.function.dependency_names
        if set(given) != needed:
            raise TypeError(f"{self.name} takes the dependencies {sorted(needed)}; given were {sorted(given)}")
        value = EmptyModel() if input is None else input
        context, _ = mock_context(
            self.definition.workflow.name,
            input,
            additional_metadata,
            retry_count,
            lifespan,
            self.definition.task_name,
            self._mocked(parent_outputs or {}),
        )
        return self.fn(value, context, **given)

    def _mocked(self, outputs: Mapping[str, Any]) -> dict[str, wire.ParentResult]:
        skipped: dict[str, wire.ParentResult] = {name: {"status": "skipped"} for name in self.definition.edges.parents}
        return {**skipped, **{name: {"status": "succeeded", "output": output} for name, output in outputs.items()}}


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
    """A workflow of one or more tasks, declared with `@workflow.task()`. A run's result is a dict by task name."""

    def __init__(self, api: Api, settings: WorkflowSettings, input_type: Any, task_defaults: TaskDefaults) -> None:
        super().__init__(api, settings.name, codec_for(input_type), self._by_task)
        self.settings = settings
        self.input_type = input_type
        self._task_defaults = task_defaults
        self._tasks: dict[str, Task[I, Any]] = {}

    @property
    def tasks(self) -> list[Task[I, Any]]:
        """The declared tasks; those that run after the others come last."""
        return sorted(self._tasks.values(), key=lambda task: ROLES.index(task.definition.role))

    @property
    def definitions(self) -> list[TaskDefinition]:
        """What an app has to serve; ConfigError when there is no task, or the tasks make no graph."""
        definitions = [task.definition for task in self.tasks]
        if not any(one.role == "task" for one in definitions):
            raise ConfigError(f"workflow {self.name} has no task; declare one with @<workflow>.task()")
        check_graph(self.name, {one.task_name: one.edges for one in definitions if one.role == "task"})
        return definitions

    def task(self, name: str | None = None, **options: Unpack[NodeOptions]) -> DeclareTask[I]:
        """Declare a task of the workflow: `fn(input, ctx, **dependencies)`, sync or async. None takes the workflow's `task_defaults`.

        The options are described in `handlers_sdk.options`: AttemptOptions, TaskOptions and NodeOptions.
        """
        check_options("task", options, NodeOptions)
        return self._declare("task", name, options, calling_namespace(sys._getframe(1)))  # noqa: SLF001 - annotations may name locals

    def durable_task(
        self,
        name: str | None = None,
        *,
        pin: Literal["task", "latest"] = "task",
        checkpoint: Literal["step", "turn"] = "step",
        **options: Unpack[NodeOptions],
    ) -> DeclareDurableTask[I]:
        """Declare a durable task of the workflow: `async def fn(input, ctx: DurableContext, **dependencies)`.

        Options are those of `task`; `execution_timeout`, `pin` and `checkpoint` are described in `Dispatcher.durable_task`.
        """
        check_options("durable_task", options, NodeOptions)
        durability = Durability("replay", pin, checkpoint)
        return self._declare("task", name, options, calling_namespace(sys._getframe(1)), durability)  # noqa: SLF001 - as in `task`

    def on_failure_task(self, name: str | None = None, **options: Unpack[TaskOptions]) -> DeclareTask[I]:
        """Declare the task that runs once when a task has failed for good: at the first such failure, never on cancellation.

        `ctx.task_run_errors` has what went wrong so far. Options are those of `task`, but for those of its place in the graph.
        """
        check_options("on_failure_task", options, TaskOptions)
        return self._declare("on_failure", name, options, calling_namespace(sys._getframe(1)))  # noqa: SLF001 - as in `task`

    def on_success_task(self, name: str | None = None, **options: Unpack[TaskOptions]) -> DeclareTask[I]:
        """Declare the task that runs once all tasks have succeeded or were skipped. Options are those of `on_failure_task`."""
        check_options("on_success_task", options, TaskOptions)
        return self._declare("on_success", name, options, calling_namespace(sys._getframe(1)))  # noqa: SLF001 - as in `task`

    def _declare(
        self,
        role: Role,
        name: str | None,
        options: TaskOptions | NodeOptions,
        namespace: Mapping[str, Any],
        durability: Durability | None = None,
    ) -> Callable[[Callable[..., Any]], Task[Any, Any]]:
        settings, edges = TaskSettings.of(self._task_defaults, part(options, TaskOptions)), self._edges(part(options, NodeOptions))

        def declare(fn: Callable[..., Any]) -> Task[Any, Any]:
            task: Task[Any, Any] = Task(self._definition(fn, name or fn.__name__, settings, namespace, role, edges, durability))
            self._tasks[task.name] = task
            return task

        return declare

    def _definition(
        self,
        fn: Callable[..., Any],
        name: str,
        settings: TaskSettings,
        namespace: Mapping[str, Any],
        role: Role,
        edges: Edges,
        durability: Durability | None,
    ) -> TaskDefinition:
        check_name(name)
        if name in self._tasks:
            raise ConfigError(f"workflow {self.name} has a task {name} already; give this one another name")
        if role != "task" and any(task.definition.role == role for task in self._tasks.values()):
            raise ConfigError(f"workflow {self.name} has its {role}_task already; there is at most one")
        function = HandlerFunction(fn, self.input_type, namespace)
        rules = {of: rule_entries(rule, self._api.config.namespaced) for of, rule in edges.rules.items()}
        return TaskDefinition(self.settings, name, settings, function, False, role, edges, rules, durability)

    def _edges(self, options: NodeOptions) -> Edges:
        rules = {"wait_for": options.get("wait_for"), "skip_if": options.get("skip_if"), "cancel_if": options.get("cancel_if")}
        return Edges(self._names(options.get("parents") or ()), **{name: self._own(rule or ()) for name, rule in rules.items()})

    def _names(self, parents: Sequence[Task[Any, Any] | str]) -> tuple[str, ...]:
        return tuple(parent if isinstance(parent, str) else self._mine(parent).name for parent in parents)

    def _own(self, rule: Rule) -> Rule:
        """The rule, whose parent conditions ask about tasks of this workflow."""
        for group in rule:
            for condition in alternatives(group):
                if isinstance(condition, ParentCondition) and isinstance(condition.parent, Task):
                    self._mine(condition.parent)
        return tuple(rule)

    def _mine(self, task: Task[Any, Any]) -> Task[Any, Any]:
        if task.definition.workflow is not self.settings:
            raise ConfigError(f"task {task.name} belongs to the workflow {task.definition.workflow.name}, not to {self.name}")
        return task

    def _by_task(self, output: Any) -> dict[str, Any]:
        if len(self._tasks) == 1:
            return dict.fromkeys(self._tasks, output)
        return cast("dict[str, Any]", output)


Served = Workflow[Any] | Standalone[Any, Any]
"""What `app` and `serve` take."""
