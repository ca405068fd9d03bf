"""Workflows of several tasks: what the manifest says of them, what is refused where it is written, and what their tasks are told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type, cast

import pytest
from pydantic import BaseModel

from handlers_sdk import (
    ConfigError,
    Context,
    Dispatcher,
    EmptyModel,
    IllegalTaskOutputError,
    ParentCondition,
    SleepCondition,
    Task,
    TaskDefaults,
    TaskOutputError,
    UserEventCondition,
    Workflow,
    or_,
)
from handlers_sdk.mocks import mock_context
from tests.sdk.pushing import clock, config, item, run


class Number(BaseModel):
    n: int


@pytest.fixture
def dispatcher() -> Dispatcher:
    """A client that reaches nothing."""
    return Dispatcher(config(namespace="eu"))


def diamond(dispatcher: Dispatcher) -> tuple[Workflow[EmptyModel], Task[EmptyModel, Number], Task[EmptyModel, Number]]:
    """top, then left and right, then bottom, and both of the tasks that come last."""
    flow = dispatcher.workflow(name="diamond", task_defaults=TaskDefaults(retries=2))

    @flow.on_failure_task(name="mend", retries=0)
    def on_failure(input: EmptyModel, ctx: Context) -> dict[str, str]:
        return ctx.task_run_errors

    @flow.task()
    def top(input: EmptyModel, ctx: Context) -> Number:
        return Number(n=1)

    left_rules: dict[str, Any] = {
        "wait_for": [or_(SleepCondition(timedelta(seconds=90)), UserEventCondition("go", "input.ok", scope="s"))],
        "skip_if": [ParentCondition(parent=top, expression="output.n > 5"), UserEventCondition(event_key="skip")],
        "cancel_if": [ParentCondition("top", "output.n < 0")],
    }

    @flow.task(parents=[top], retries=0, execution_timeout="5s", **left_rules)
    async def left(input: EmptyModel, ctx: Context) -> Number:
        return Number(n=ctx.task_output(top).n + 1)

    @flow.task(parents=["top"])
    def right(input: EmptyModel, ctx: Context) -> Number:
        return Number(n=10)

    @flow.task(parents=[left, right])
    def bottom(input: EmptyModel, ctx: Context) -> Number:
        assert_type(ctx.task_output(right), Number)
        return Number(n=ctx.task_output(right).n + (0 if ctx.was_skipped(left) else ctx.task_output(left).n))

    @flow.on_success_task()
    def celebrate(input: EmptyModel, ctx: Context) -> None: ...

    return flow, left, bottom


def test_the_manifest_of_a_graph(dispatcher: Dispatcher) -> None:
    flow, _, _ = diamond(dispatcher)
    (entry,) = dispatcher.app([flow]).handlers.manifest()["handlers"]
    tasks = {task["name"]: task for task in entry["tasks"]}
    assert (entry["name"], entry["kind"], list(tasks)) == ("eudiamond", "workflow", ["top", "left", "right", "bottom"])
    assert [tasks[name].get("parents") for name in tasks] == [None, ["top"], ["top"], ["left", "right"]]
    assert {name: tasks["left"][name] for name in ("wait_for", "skip_if", "cancel_if")} == {
        "wait_for": [{"or": [{"sleep": "1m30s"}, {"event": "eugo", "expression": "input.ok", "scope": "s"}]}],
        "skip_if": [{"parent": "top", "expression": "output.n > 5"}, {"event": "euskip"}],
        "cancel_if": [{"parent": "top", "expression": "output.n < 0"}],
    }
    assert "wait_for" not in tasks["top"]
    assert [tasks[name]["retries"] for name in tasks] == [2, 0, 2, 2]
    assert (entry["on_failure"]["name"], entry["on_failure"]["retries"], entry["on_success"]["name"]) == ("mend", 0, "celebrate")


def test_the_server_reads_what_the_client_says(dispatcher: Dispatcher) -> None:
    """The two ends of the manifest, joined."""
    from dispatcher.engine.definitions import STORED, Sleep, parse_definitions

    flow, _, _ = diamond(dispatcher)
    (definition,) = parse_definitions(dispatcher.app([flow]).handlers.manifest()["handlers"], STORED, static=False)
    assert [task.name for task in definition.tasks] == ["top", "left", "right", "bottom", "mend", "celebrate"]
    assert (definition.on_failure, definition.on_success, definition.tasks[3].parents) == (4, 5, (1, 2))
    assert definition.tasks[1].wait_for[0][0] == Sleep(timedelta(seconds=90))


def test_the_version_is_of_the_graph(dispatcher: Dispatcher) -> None:
    versions = set()
    for parents in ([], ["a"]):
        flow = dispatcher.workflow(name="flow")

        @flow.task()
        def a(input: EmptyModel, ctx: Context) -> None: ...

        @flow.task(parents=parents)
        def b(input: EmptyModel, ctx: Context) -> None: ...

        versions.add(dispatcher.app([flow]).handlers.version)
    assert len(versions) == 2


def graph_of(dispatcher: Dispatcher, **parents: list[str]) -> Workflow[EmptyModel]:
    """A workflow with these tasks and parents."""
    flow = dispatcher.workflow(name="flow")
    for name, before in parents.items():

        @flow.task(name=name, parents=before)
        def work(input: EmptyModel, ctx: Context) -> None: ...

    return flow


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"a": ["b"]}, "flow, task a: there is no parent 'b'; the tasks are a"),
        ({"a": ["a"]}, "in a circle: a -> a$"),
        ({"a": ["c"], "b": ["a"], "c": ["b"], "d": ["c"]}, "in a circle: a -> b -> c -> a$"),
        ({"z": [], "d": ["c", "z"], "c": ["b"], "b": ["c"]}, "in a circle: c -> b -> c$"),
        ({"a": [], "b": ["a", "a"]}, "each is named once"),
    ],
)
def test_what_is_no_graph_is_refused(dispatcher: Dispatcher, parents: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dispatcher.app([graph_of(dispatcher, **parents)])


def test_a_long_chain_of_names_is_a_graph(dispatcher: Dispatcher) -> None:
    names = {f"t{n}": [f"t{n + 1}"] if n < 999 else [] for n in range(1000)}
    assert len(dispatcher.app([graph_of(dispatcher, **names)]).handlers.manifest()["handlers"][0]["tasks"]) == 1000


def test_a_condition_asks_about_what_comes_before(dispatcher: Dispatcher) -> None:
    flow = dispatcher.workflow(name="flow")

    @flow.task()
    def a(input: EmptyModel, ctx: Context) -> None: ...

    @flow.task(parents=[a])
    def b(input: EmptyModel, ctx: Context) -> None: ...

    @flow.task(parents=[b], skip_if=[ParentCondition(a, "true")])
    def c(input: EmptyModel, ctx: Context) -> None: ...

    dispatcher.app([flow])

    @flow.task(parents=[a], skip_if=[or_(SleepCondition("1s"), ParentCondition(b, "true"))])
    def d(input: EmptyModel, ctx: Context) -> None: ...

    with pytest.raises(ConfigError, match="task d: a condition asks about 'b', which is not a task it comes after"):
        dispatcher.app([flow])


def test_tasks_of_another_workflow_are_refused(dispatcher: Dispatcher) -> None:
    other, flow = dispatcher.workflow(name="other"), dispatcher.workflow(name="flow")

    @other.task()
    def theirs(input: EmptyModel, ctx: Context) -> None: ...

    with pytest.raises(ConfigError, match="task theirs belongs to the workflow euother, not to euflow"):
        flow.task(parents=[theirs])
    with pytest.raises(ConfigError, match="task theirs belongs"):
        flow.task(skip_if=[or_(SleepCondition("1s"), ParentCondition(theirs, "true"))])


def test_names_and_last_tasks_are_given_once(dispatcher: Dispatcher) -> None:
    flow, _, _ = diamond(dispatcher)

    def work(input: EmptyModel, ctx: Context) -> None: ...

    with pytest.raises(ConfigError, match="has a task top already"):
        flow.task(name="top")(work)
    with pytest.raises(ConfigError, match="has a task top already"):
        flow.on_success_task(name="top")(work)
    with pytest.raises(ConfigError, match="has its on_failure_task already"):
        flow.on_failure_task(name="another")(work)
    alone = dispatcher.workflow(name="alone")
    alone.on_failure_task()(work)
    with pytest.raises(ConfigError, match="has no task"):
        dispatcher.app([alone])


@pytest.mark.parametrize("duration", ["0s", "10", timedelta(0), timedelta(seconds=-1)])
def test_sleeps_last(duration: Any) -> None:
    with pytest.raises(ConfigError, match="SleepCondition"):
        SleepCondition(duration)


def test_groups_have_members() -> None:
    with pytest.raises(ConfigError, match="or_"):
        or_()


async def test_tasks_are_told_apart_by_name_and_told_of_their_parents(dispatcher: Dispatcher) -> None:
    flow, _, _ = diamond(dispatcher)
    app = dispatcher.app([flow], clock=clock)
    parents = {"left": {"status": "skipped"}, "right": {"status": "succeeded", "output": {"n": 4}}}
    answer = await run(app, "eudiamond:bottom", workflow="eudiamond", parents=parents)
    assert (answer.status, answer.json()) == (200, {"n": 4})
    errors = {"left": {"code": "failed", "message": "no luck"}}
    answer = await run(app, "eudiamond:mend", workflow="eudiamond", errors=errors)
    assert answer.json() == {"left": "no luck"}


async def test_an_output_that_is_not_what_was_declared(dispatcher: Dispatcher) -> None:
    flow, _, _ = diamond(dispatcher)
    app = dispatcher.app([flow], clock=clock)
    parents = {"top": {"status": "succeeded", "output": [1, 2]}}
    answer = await run(app, "eudiamond:left", workflow="eudiamond", parents=parents)
    assert (answer.json()["code"], answer.json()["retry"]) == (IllegalTaskOutputError.code, False)


def context_with(task: Task[Any, Any], **members: Any) -> Context:
    """The context of a task as it is told these things."""
    context, _ = mock_context("eudiamond")
    context._item.update(cast("Any", item("eudiamond:" + task.name, workflow="eudiamond", **members)))
    return context


def test_an_output_there_is_not(dispatcher: Dispatcher) -> None:
    flow, left, bottom = diamond(dispatcher)
    context = context_with(bottom, parents={"left": {"status": "skipped"}})
    assert context.was_skipped(left)
    with pytest.raises(TaskOutputError, match="left has no output: it was skipped"):
        context.task_output(left)
    with pytest.raises(ValueError, match="does not come after bottom"):
        context.was_skipped(bottom)
    other = dispatcher.workflow(name="other")

    @other.task(name="left")
    def same_name(input: EmptyModel, ctx: Context) -> None: ...

    with pytest.raises(TaskOutputError):
        context.task_output(same_name)
    assert [task.name for task in flow.tasks] == ["top", "left", "right", "bottom", "mend", "celebrate"]


def test_the_error_of_a_task(dispatcher: Dispatcher) -> None:
    _, left, bottom = diamond(dispatcher)
    context = context_with(bottom, errors={"left": {"code": "timed_out", "message": "too slow"}})
    error = context.get_task_run_error(left)
    assert error is not None
    assert (error.error_code, error.message, error.task_name) == ("timed_out", "too slow", "left")
    assert context.get_task_run_error(bottom) is None
    assert mock_context("x")[0].task_run_errors == {}


def test_parents_in_a_unit_test(dispatcher: Dispatcher) -> None:
    _, left, bottom = diamond(dispatcher)
    assert bottom.mock_run(parent_outputs={"right": {"n": 3}}) == Number(n=3)
    assert bottom.mock_run(parent_outputs={"right": {"n": 3}, "left": {"n": 4}}) == Number(n=7)
    with pytest.raises(TypeError, match="aio_mock_run"):
        left.mock_run()


async def test_parents_in_a_unit_test_of_an_async_task(dispatcher: Dispatcher) -> None:
    _, left, _ = diamond(dispatcher)
    assert await left.aio_mock_run(parent_outputs={"top": {"n": 3}}) == Number(n=4)
