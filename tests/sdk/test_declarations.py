"""Declarations: names, defaults, what the manifest says of them, and what is refused where it is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from handlers_sdk import (
    ClientConfig,
    ConfigError,
    Context,
    Dispatcher,
    EmptyModel,
    Priority,
    Standalone,
    Task,
    TaskDefaults,
    Workflow,
    WorkflowRunRef,
)
from handlers_sdk.options import BatchOptions, NodeOptions, StandaloneOptions, TaskOptions, WorkflowOptions
from handlers_sdk.runnables import Runnable
from tests.sdk.pushing import config


class Order(BaseModel):
    id: int
    note: str = ""


@dataclass
class Receipt:
    total: float


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(config())


def entry(dispatcher: Dispatcher, one: Any) -> dict[str, Any]:
    (handler,) = dispatcher.app([one]).handlers.manifest()["handlers"]
    return dict(handler)


def test_the_defaults_of_a_task(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    def simple(input: EmptyModel, ctx: Context) -> dict[str, str]:
        return {}

    handler = entry(dispatcher, simple)
    assert handler.pop("input_schema")["additionalProperties"] is True
    assert handler.pop("output_schema") == {"additionalProperties": {"type": "string"}, "type": "object"}
    assert handler == {
        "name": "simple",
        "kind": "task",
        "body": "v1",
        "retries": 0,
        "execution_timeout": "1m",
        "schedule_timeout": "5m",
        "default_priority": 1,
        "on_events": [],
    }


def test_everything_that_can_be_said_of_a_task(dispatcher: Dispatcher) -> None:
    @dispatcher.task(
        name="pay",
        description="Charges a card",
        input_validator=Order,
        on_events=["order:created", "order:*"],
        version="3",
        default_priority=Priority.HIGH,
        schedule_timeout="10m",
        execution_timeout=timedelta(seconds=1.5),
        retries=4,
        backoff_factor=2.0,
        backoff_max_seconds=60,
    )
    async def charge(input: Order, ctx: Context) -> Receipt:
        return Receipt(1.0)

    handler = entry(dispatcher, charge)
    assert handler["input_schema"]["required"] == ["id"]
    assert handler["output_schema"]["properties"]["total"]["type"] == "number"
    said = {name: handler[name] for name in handler if not name.endswith("_schema")}
    assert said == {
        "name": "pay",
        "kind": "task",
        "body": "v1",
        "description": "Charges a card",
        "on_events": ["order:created", "order:*"],
        "default_priority": 3,
        "schedule_timeout": "10m",
        "execution_timeout": "1s500ms",
        "retries": 4,
        "backoff_factor": 2.0,
        "backoff_max_seconds": 60,
    }
    assert charge.name == "pay"
    assert charge.is_async


def test_a_workflow_carries_its_task(dispatcher: Dispatcher) -> None:
    defaults = TaskDefaults(execution_timeout="2m", retries=3)
    order = dispatcher.workflow(
        name="order", description="Orders", input_validator=Order, on_events=["o"], default_priority=2, task_defaults=defaults
    )

    @order.task(retries=0, schedule_timeout="1h")
    def validate(input: Order, ctx: Context) -> None: ...

    handler = entry(dispatcher, order)
    (task,) = handler.pop("tasks")
    assert handler == {"name": "order", "kind": "workflow", "description": "Orders", "on_events": ["o"], "default_priority": 2}
    assert (task["name"], task["retries"], task["execution_timeout"], task["schedule_timeout"]) == ("validate", 0, "2m", "1h")
    assert order.tasks == [validate]
    assert (order.name, validate.name, validate.is_async) == ("order", "validate", False)


def test_the_arguments_are_those_that_work() -> None:
    """What the dispatcher does not do yet is absent, not accepted and ignored."""
    settings = {"schedule_timeout", "execution_timeout", "retries", "backoff_factor", "backoff_max_seconds", "retry"}
    settings |= {"concurrency", "desired_worker_labels", "slot_cost"}
    declared = {"description", "on_events", "version", "default_priority", "default_filters", "on_crons", "sticky"}
    declared |= {"default_additional_metadata"}
    node = {"parents", "wait_for", "skip_if", "cancel_if"}
    batching = {"batch_size", "batch_interval", "batch_group_key", "batch_group_max_runs"}
    assert arguments(Dispatcher.task, StandaloneOptions) == {"name", "input_validator", "rate_limits"} | declared | settings
    assert arguments(Dispatcher.batch_task, BatchOptions) == {"name", "input_validator"} | declared | settings | batching
    assert arguments(Dispatcher.workflow, WorkflowOptions) == {"name", "input_validator", "task_defaults", "concurrency"} | declared
    assert arguments(Workflow.task, NodeOptions) == {"name", "rate_limits"} | settings | node
    assert arguments(Workflow.on_failure_task, TaskOptions) == {"name", "rate_limits"} | settings


def arguments(decorator: Callable[..., Any], options: type) -> set[str]:
    """All a decorator can be told."""
    return set(inspect.signature(decorator).parameters) - {"self", "options"} | set(options.__annotations__)


def test_an_argument_that_does_not_exist_is_refused(dispatcher: Dispatcher) -> None:
    workflow: Any = dispatcher.workflow("order")
    alone: Any = dispatcher
    declarations = [
        alone.task,
        alone.durable_task,
        partial(alone.batch_task, batch_size=2),
        partial(alone.workflow, "w"),
        workflow.task,
        workflow.durable_task,
        workflow.on_failure_task,
        workflow.on_success_task,
    ]
    for declare in declarations:
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            declare(colour=1)
    with pytest.raises(TypeError, match="rate_limits"):
        alone.batch_task(batch_size=2, rate_limits=[])
    with pytest.raises(TypeError, match="parents"):
        workflow.on_failure_task(parents=[])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retries": -1}, "retries=-1"),
        ({"backoff_factor": 0.5}, "backoff_factor=0.5"),
        ({"backoff_max_seconds": 0}, "backoff_max_seconds=0"),
        ({"execution_timeout": "90"}, "not a duration: '90'"),
        ({"execution_timeout": timedelta(0)}, "must be above zero"),
        ({"schedule_timeout": "-5s"}, "not a duration"),
        ({"default_priority": 4}, "priority=4 is not 1"),
        ({"name": "a b"}, "'a b' is not a name"),
        ({"name": "x" * 201}, "is not a name"),
        ({"on_events": ["a\nb"]}, "on_events"),
        ({"on_events": [""]}, "on_events"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(dispatcher: Dispatcher, arguments: dict[str, Any], message: str) -> None:
    async def work(input: EmptyModel, ctx: Context) -> None: ...

    with pytest.raises(ConfigError, match=message):
        dispatcher.task(**arguments)(work)


def test_names_are_given_once(dispatcher: Dispatcher) -> None:
    @dispatcher.task(name="same")
    def first(input: EmptyModel, ctx: Context) -> None: ...

    same = dispatcher.workflow(name="same")

    @same.task()
    def second(input: EmptyModel, ctx: Context) -> None: ...

    with pytest.raises(ConfigError, match="need different names: same"):
        dispatcher.app([first, same])
    with pytest.raises(ConfigError, match="given once each, and need different names: same"):
        dispatcher.app([same, same])
    with pytest.raises(ConfigError, match="workflow empty has no task"):
        dispatcher.app([dispatcher.workflow(name="empty")])
    with pytest.raises(ConfigError, match="slots=0"):
        dispatcher.app([first], slots=0)


def test_types_that_cannot_be_had(dispatcher: Dispatcher) -> None:
    class Opaque: ...

    async def opaque(input: Opaque, ctx: Context) -> None: ...
    async def unknown(input: Missing, ctx: Context) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the case

    with pytest.raises(ConfigError, match="cannot be validated"):
        dispatcher.task()(opaque)
    with pytest.raises(ConfigError, match="'Missing', which cannot be found at run time"):
        dispatcher.task()(unknown)


def test_the_version_is_what_was_given_or_a_checksum(dispatcher: Dispatcher) -> None:
    def declare(retries: int, version: str | None = None) -> Standalone[EmptyModel, None]:
        @dispatcher.task(name="work", retries=retries, version=version)
        async def work(input: EmptyModel, ctx: Context) -> None: ...

        return work

    def version(one: Any, **settings: Any) -> str:
        return dispatcher.app([one], **settings).handlers.version

    assert version(declare(1)) == version(declare(1)) != version(declare(2))
    assert version(declare(1)) != version(declare(1, version="2"))
    assert version(declare(1), version="4f2c") == "4f2c"
    assert Dispatcher(config(version="env")).app([declare(1)]).handlers.version == "env"
    with pytest.raises(ConfigError, match="version"):
        version(declare(1), version="ü\n")


def test_the_manifest_of_the_endpoint(dispatcher: Dispatcher) -> None:
    manifest = dict(dispatcher.app([], slots=7, version="v1").handlers.manifest("abc"))
    assert manifest == {
        "protocol": {"min": 1, "max": 1},
        "sdk": "py/0.1",
        "version": "v1",
        "challenge": "abc",
        "features": ["async", "batch", "ndjson", "cancel-push", "durable", "refs"],
        "limits": {"request_bytes": 4_000_000, "concurrency": 7},
        "batch": {"max_items": 100, "max_bytes": 1_000_000, "concurrency": 7},
        "handlers": [],
        "verified": "v1",
    }


def test_a_namespace_goes_before_names_and_keys() -> None:
    dispatcher = Dispatcher(ClientConfig(namespace="staging_"))

    @dispatcher.task(on_events=["user:created", "staging_user:deleted"])
    async def work(input: EmptyModel, ctx: Context) -> None: ...

    assert work.name == "staging_work"
    assert entry(dispatcher, work)["on_events"] == ["staging_user:created", "staging_user:deleted"]
    assert dispatcher.stubs.task("work").name == "staging_work"
    assert dispatcher.namespace == "staging_"


def test_types_are_kept(dispatcher: Dispatcher) -> None:
    """Checked by the type checker; at run time only that the calls exist."""

    @dispatcher.task(input_validator=Order)
    async def charge(input: Order, ctx: Context) -> Receipt:
        return Receipt(1.0)

    @dispatcher.task()
    def sync(input: Order, ctx: Context) -> list[int]:
        return []

    order = dispatcher.workflow(name="order", input_validator=Order)

    @order.task()
    async def validate(input: Order, ctx: Context) -> Receipt:
        return Receipt(1.0)

    assert_type(charge, Standalone[Order, Receipt])
    assert_type(sync, Standalone[Order, list[int]])
    assert_type(order, Workflow[Order])
    assert_type(validate, Task[Order, Receipt])
    assert_type(dispatcher.stubs.task("a", Order, Receipt), Runnable[Order, Receipt])
    assert_type(dispatcher.stubs.workflow("a", Order), Runnable[Order, dict[str, Any]])
    assert_type(charge.get_run_ref("run_1"), WorkflowRunRef[Receipt])
    assert_type(sync.mock_run(Order(id=1)), list[int])


async def test_mock_runs(dispatcher: Dispatcher) -> None:
    @dispatcher.task(input_validator=Order)
    async def charge(input: Order, ctx: Context) -> dict[str, Any]:
        ctx.log("charging")
        await ctx.aio_put_stream("x")
        await ctx.aio_refresh_timeout("1m")
        return {
            "id": input.id,
            "retry": ctx.retry_count,
            "attempt": ctx.attempt_number,
            "metadata": ctx.additional_metadata,
            "lifespan": ctx.lifespan,
            "worker": ctx.worker.name,
            "names": [ctx.workflow_name, ctx.task_name],
        }

    @dispatcher.task()
    def sync(input: EmptyModel, ctx: Context) -> str:
        ctx.log("said", raise_on_error=True)
        ctx.release_slot()
        ctx.cancel()
        return f"{ctx.exit_flag} {ctx.cancellation_reason} {ctx.deadline.year}"

    result = await charge.aio_mock_run(Order(id=7), additional_metadata={"a": "b"}, retry_count=2, lifespan={"db": 1})
    assert result == {
        "id": 7,
        "retry": 2,
        "attempt": 3,
        "metadata": {"a": "b"},
        "lifespan": {"db": 1},
        "worker": "mock",
        "names": ["charge", "charge"],
    }
    assert sync.mock_run() == "True cancelled by the task itself 9999"
    with pytest.raises(TypeError, match="use aio_mock_run"):
        charge.mock_run(Order(id=1))
    with pytest.raises(TypeError, match="use mock_run"):
        await sync.aio_mock_run()
