"""`Dispatcher`: declare tasks, serve them, start runs. Making one connects to nothing."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, Unpack, overload

from handlers_sdk.annotations import calling_namespace
from handlers_sdk.api import Api
from handlers_sdk.asgi import App
from handlers_sdk.callbacks import CallbacksClient
from handlers_sdk.clock import unix_seconds
from handlers_sdk.config import ClientConfig
from handlers_sdk.context import WorkerInfo
from handlers_sdk.crons import CronClient
from handlers_sdk.declaring import BatchDeclarations, DurableDeclarations
from handlers_sdk.decorators import DeclareStandalone, DeclareStandaloneOf
from handlers_sdk.definitions import (
    Priority,
    TaskDefaults,
    TaskDefinition,
    TaskSettings,
    WorkflowSettings,
)
from handlers_sdk.errors import ConfigError
from handlers_sdk.events import EventClient
from handlers_sdk.execution import Host
from handlers_sdk.filters import FiltersClient
from handlers_sdk.flow import ConcurrencyForm, RateLimitsClient, concurrency_of
from handlers_sdk.function import HandlerFunction, WorkerThreads
from handlers_sdk.handlers import Handlers
from handlers_sdk.lifespan import Lifespan, LifespanFn
from handlers_sdk.log_lines import LogsClient
from handlers_sdk.logs import TaskLogHandler
from handlers_sdk.metrics import MetricsClient
from handlers_sdk.options import StandaloneOptions, TaskOptions, WorkflowOptions, check_options, part
from handlers_sdk.portal import PORTAL
from handlers_sdk.refs import WorkflowRunRef
from handlers_sdk.runs import RunsClient
from handlers_sdk.scheduled import ScheduledClient
from handlers_sdk.schemas import EmptyModel
from handlers_sdk.stubs import Stubs
from handlers_sdk.verification import verifier_for
from handlers_sdk.webhooks import WebhooksClient
from handlers_sdk.workers import Worker
from handlers_sdk.workflow import Served, Standalone, Workflow
from handlers_sdk.workflows import WorkflowsClient

I = TypeVar("I")  # noqa: E741 - the input

SLOTS = 100


class Dispatcher(DurableDeclarations, BatchDeclarations):
    """The dispatcher as a program sees it. Configuration comes from DISPATCHER_* variables unless a ClientConfig is given."""

    def __init__(self, config: ClientConfig | None = None) -> None:
        self.config = ClientConfig.from_env() if config is None else config
        self._api = Api(self.config)
        self.event = EventClient(self._api)
        self.runs = RunsClient(self._api)
        self.filters = FiltersClient(self._api)
        self.workflows = WorkflowsClient(self._api)
        self.logs = LogsClient(self._api)
        self.metrics = MetricsClient(self._api)
        self.cron = CronClient(self._api)
        self.scheduled = ScheduledClient(self._api)
        self.callbacks = CallbacksClient(self._api)
        self.webhooks = WebhooksClient(self._api)
        self.rate_limits = RateLimitsClient(self._api)
        self.stubs = Stubs(self._api)
        if self.config.logger is not None and not any(isinstance(one, TaskLogHandler) for one in self.config.logger.handlers):
            self.config.logger.addHandler(TaskLogHandler())

    @property
    def namespace(self) -> str:
        """What is put before every workflow name and event key."""
        return self.config.namespace

    # ---- declaring

    @overload
    def task(self, *, name: str | None = None, input_validator: None = None, **options: Unpack[StandaloneOptions]) -> DeclareStandalone: ...
    @overload
    def task(
        self, *, name: str | None = None, input_validator: type[I], **options: Unpack[StandaloneOptions]
    ) -> DeclareStandaloneOf[I]: ...
    def task(self, *, name: str | None = None, input_validator: Any = None, **options: Unpack[StandaloneOptions]) -> Any:
        """Declare a task that is its own workflow: `fn(input, ctx, **dependencies)`, sync or async.

        `name` is the function's unless given. The input is validated as `input_validator`, or as its annotation says, or as EmptyModel.
        The rest is described in `handlers_sdk.options`: AttemptOptions, TaskOptions and WorkflowOptions.
        """
        check_options("task", options, StandaloneOptions)
        settings = TaskSettings.of(TaskDefaults(), part(options, TaskOptions))
        namespace = calling_namespace(sys._getframe(1))  # noqa: SLF001 - annotations may name what is local to the caller

        def declare(fn: Callable[..., Any]) -> Standalone[Any, Any]:
            workflow = self._settings(name or fn.__name__, part(options, WorkflowOptions))
            function = HandlerFunction(fn, input_validator, namespace)
            return Standalone(self._api, TaskDefinition(workflow, workflow.name, settings, function))

        return declare

    @overload
    def workflow(
        self,
        name: str,
        *,
        input_validator: None = None,
        task_defaults: TaskDefaults | None = None,
        concurrency: ConcurrencyForm = None,
        **options: Unpack[WorkflowOptions],
    ) -> Workflow[EmptyModel]: ...
    @overload
    def workflow(
        self,
        name: str,
        *,
        input_validator: type[I],
        task_defaults: TaskDefaults | None = None,
        concurrency: ConcurrencyForm = None,
        **options: Unpack[WorkflowOptions],
    ) -> Workflow[I]: ...
    def workflow(
        self,
        name: str,
        *,
        input_validator: Any = None,
        task_defaults: TaskDefaults | None = None,
        concurrency: ConcurrencyForm = None,
        **options: Unpack[WorkflowOptions],
    ) -> Workflow[Any]:
        """Declare a workflow, whose tasks are then declared with `@<workflow>.task()`.

        `concurrency` limits how many runs are under way, from their first task to their end. The options are described in
        `handlers_sdk.options`: WorkflowOptions.
        """
        check_options("workflow", options, WorkflowOptions)
        settings = replace(self._settings(name, options), concurrency=concurrency_of(concurrency))
        return Workflow(self._api, settings, input_validator or EmptyModel, task_defaults or TaskDefaults())

    def _settings(self, name: str, options: WorkflowOptions) -> WorkflowSettings:
        return WorkflowSettings(
            name=self.config.namespaced(name),
            description=options.get("description"),
            on_events=tuple(self.config.namespaced(key) for key in options.get("on_events") or ()),
            version=options.get("version"),
            default_priority=options.get("default_priority", Priority.LOW),
            default_filters=tuple(options.get("default_filters") or ()),
            on_crons=tuple(options.get("on_crons") or ()),
            sticky=options.get("sticky"),
            default_metadata=options.get("default_additional_metadata"),
        )

    # ---- serving

    def app(
        self,
        workflows: Sequence[Served],
        slots: int = SLOTS,
        labels: Mapping[str, str | int] | None = None,
        lifespan: LifespanFn | None = None,
        *,
        name: str = "",
        version: str = "",
        clock: Callable[[], int] = unix_seconds,
    ) -> App:
        """An ASGI app that runs these workflows' tasks, mountable anywhere.

        `slots` is how many tasks it takes at a time, `lifespan` an async generator function whose value is `ctx.lifespan`. `version` names
        what is deployed; without it a checksum of the definitions does. `clock` gives unix seconds, for the age of signatures.
        """
        if slots < 1:
            raise ConfigError(f"slots={slots} must be at least 1")
        worker = WorkerInfo(f"wrk_{socket.gethostname()}_{os.getpid()}", name, slots, dict(labels or {}))
        verifier = verifier_for(self._api) if self.config.verify_signatures else None
        definitions = [definition for workflow in workflows for definition in workflow.definitions]
        host = Host(self._api, worker, WorkerThreads(slots))
        return App(Handlers(definitions, host, verifier, version=version or self.config.version, lifespan=Lifespan(lifespan), clock=clock))

    def serve(
        self,
        name: str,
        workflows: Sequence[Served],
        slots: int = SLOTS,
        labels: Mapping[str, str | int] | None = None,
        lifespan: LifespanFn | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 8500,
        url: str = "",
        version: str = "",
        register: bool = True,
        shutdown_seconds: int = 30,
        durable_slots: int | None = None,
    ) -> None:
        """Run the app with uvicorn and register it as endpoint `name`; returns when it was told to stop and has finished its work.

        `url` is where the dispatcher reaches this process, `http://host:port` unless given. SIGTERM and SIGINT stop taking work, give
        what is running `shutdown_seconds` to end, and end the process normally. With `register=False` nothing is registered. Turns of
        durable tasks are counted apart, up to `durable_slots` at a time (the dispatcher's default when None): they starve nobody.
        """
        from handlers_sdk.serve import Endpoint, serve  # uvicorn is needed by no one else

        app = self.app(workflows, slots, labels, lifespan, name=name, version=version)
        endpoint = Endpoint(
            name=name, url=url, version=app.handlers.version, slots=slots, labels=dict(labels or {}), durable_slots=durable_slots
        )
        serve(app, self._api if register else None, endpoint, host, port, shutdown_seconds)

    def worker(
        self,
        name: str,
        slots: int | None = None,
        durable_slots: int | None = None,
        labels: Mapping[str, str | int] | None = None,
        workflows: Sequence[Served] | None = None,
        lifespan: LifespanFn | None = None,
    ) -> Worker:
        """What `serve` takes, put together first: `worker.start()` serves it as endpoint `name`, with what else `serve` takes."""
        serve = partial(self.serve, slots=slots or SLOTS, durable_slots=durable_slots, labels=labels, lifespan=lifespan)
        return Worker(name, workflows or (), serve)

    # ---- the rest

    def run_ref(self, workflow_run_id: str) -> WorkflowRunRef[Any]:
        """A reference to any run, its result as parsed JSON."""
        return WorkflowRunRef(self._api, workflow_run_id, lambda output: output)

    def close(self) -> None:
        """Close the connections to the dispatcher. Using it again opens new ones."""
        PORTAL.call(self._api.aclose())

    async def aio_close(self) -> None:
        """Close the connections to the dispatcher. Using it again opens new ones."""
        await PORTAL.aio_call(self._api.aclose())
