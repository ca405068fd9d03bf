"""One attempt, one request: what a handler gets, and what each way of ending it answers."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from handlers_sdk import Context, Dispatcher, EmptyModel, NonRetryableError, NonRetryableException, RetryableException
from handlers_sdk.context import CURRENT
from tests.sdk.pushing import clock, config, item, push, run, run_body


class Size(BaseModel):
    width: int
    height: int = 1


@dataclass
class Area:
    square: int


class Words(TypedDict):
    words: list[str]


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(config())


async def test_a_model_in_and_a_dataclass_out(dispatcher: Dispatcher) -> None:
    @dispatcher.task(input_validator=Size)
    async def area(input: Size, ctx: Context) -> Area:
        return Area(input.width * input.height)

    answer = await run(dispatcher.app([area], clock=clock), "area", {"width": 3, "height": 4})
    assert (answer.status, answer.json()) == (200, {"square": 12})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["task-protocol"] == "1"
    assert answer.headers["task-version"]


async def test_the_annotation_is_the_validator_where_none_is_given(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def area(input: Size, ctx: Context) -> int:
        return input.width

    @dispatcher.task()
    async def words(input: Words, ctx: Context) -> Words:
        return {"words": input["words"][::-1]}

    @dispatcher.task()
    async def anything(input: EmptyModel, ctx: Context) -> dict[str, Any]:
        return {"extra": input.model_extra, "same": ctx.workflow_input == ctx.input}

    @dispatcher.task()
    async def plain(input: dict[str, Any], ctx: Context) -> dict[str, Any]:
        return input

    app = dispatcher.app([area, words, anything, plain], clock=clock)
    assert (await run(app, "area", {"width": "3"})).json() == 3
    assert (await run(app, "words", {"words": ["a", "b"]})).json() == {"words": ["b", "a"]}
    assert (await run(app, "anything", {"a": 1})).json() == {"extra": {"a": 1}, "same": True}
    assert (await run(app, "plain", {"a": [1, None]})).json() == {"a": [1, None]}


@pytest.mark.parametrize(
    ("input", "named"),
    [({}, "input.width"), ({"width": "x"}, "input.width"), ({"width": 1, "height": None}, "input.height"), ([], "input"), (None, "input")],
)
async def test_an_input_that_does_not_fit_fails_for_good_and_names_the_field(dispatcher: Dispatcher, input: Any, named: str) -> None:
    @dispatcher.task(input_validator=Size, retries=3)
    async def area(input: Size, ctx: Context) -> int:
        raise AssertionError("not reached")

    answer = await push(dispatcher.app([area], clock=clock), {**run_body("area"), "input": input})
    assert answer.status == 500
    assert answer.headers["task-retry"] == "false"
    problem = answer.json()
    assert (problem["retry"], problem["code"], problem["error"]["code"]) == (False, "invalid_input", "invalid_input")
    assert f"{named}: " in problem["detail"]


class Total(BaseModel):
    total: int


async def test_a_result_that_does_not_fit_fails_for_good_and_names_the_field(dispatcher: Dispatcher) -> None:
    @dispatcher.task(retries=3)
    async def wrong(input: EmptyModel, ctx: Context) -> Total:
        return {"total": "many"}  # type: ignore[return-value]

    @dispatcher.task()
    async def changed(input: EmptyModel, ctx: Context) -> Total:
        total = Total(total=1)
        total.total = "many"  # type: ignore[assignment]
        return total

    @dispatcher.task()
    async def dataclass_wrong(input: EmptyModel, ctx: Context) -> Area:
        return Area(square="big")  # type: ignore[arg-type]

    app = dispatcher.app([wrong, changed, dataclass_wrong], clock=clock)
    for name, field in (("wrong", "output.total"), ("changed", "total"), ("dataclass_wrong", "square")):
        problem = (await run(app, name)).json()
        assert (problem["retry"], problem["code"]) == (False, "invalid_output")
        assert field in problem["detail"]


@pytest.mark.parametrize(
    "result",
    [float("nan"), {"x": [float("inf")]}, "a\0b", {"k\0": 1}, "\ud800", object(), {"a": {1: object()}}],
    ids=["nan", "infinity", "nul", "nul key", "lone surrogate", "object", "object inside"],
)
async def test_what_json_cannot_hold_is_refused_as_a_result(dispatcher: Dispatcher, result: Any) -> None:
    @dispatcher.task()
    async def give(input: EmptyModel, ctx: Context) -> Any:
        return result

    problem = (await run(dispatcher.app([give], clock=clock), "give")).json()
    assert (problem["retry"], problem["code"]) == (False, "invalid_output")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (None, b"null"),
        ("\\u0000 and NaN", b'"\\\\u0000 and NaN"'),
        ([1, "é"], '[1,"é"]'.encode()),
        (
            {"at": datetime(2026, 1, 1, tzinfo=UTC), "id": UUID(int=1)},
            b'{"at":"2026-01-01T00:00:00Z","id":"00000000-0000-0000-0000-000000000001"}',
        ),
        (Size(width=1), b'{"width":1,"height":1}'),
        (2**80, b"1208925819614629174706176"),
    ],
    ids=["null", "words that look bad", "text", "rich values", "model", "big number"],
)
async def test_what_json_can_hold_is_taken_as_it_is(dispatcher: Dispatcher, result: Any, expected: bytes) -> None:
    @dispatcher.task()
    async def give(input: EmptyModel, ctx: Context) -> Any:
        return result

    assert (await run(dispatcher.app([give], clock=clock), "give")).body == expected


async def test_an_exception_is_a_failure_that_leaves_retrying_to_the_task(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def broken(input: EmptyModel, ctx: Context) -> None:
        try:
            raise KeyError("the first")
        except KeyError as error:
            raise RuntimeError("the second") from error

    answer = await run(dispatcher.app([broken], clock=clock), "broken")
    problem = answer.json()
    assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "task-retry" not in answer.headers
    assert "retry" not in problem
    assert problem["error"]["name"] == "RuntimeError"
    assert problem["error"]["message"] == problem["detail"] == "the second"
    assert problem["error"]["cause"] == {"name": "KeyError", "message": "'the first'"}
    stack = problem["error"]["stack"]
    assert "in broken" in stack
    assert "handlers_sdk" not in stack


@pytest.mark.parametrize("kind", [NonRetryableException, NonRetryableError])
async def test_a_non_retryable_exception_says_so(dispatcher: Dispatcher, kind: type[Exception]) -> None:
    @dispatcher.task(retries=5)
    def charge(input: EmptyModel, ctx: Context) -> None:
        raise kind("declined")

    answer = await run(dispatcher.app([charge], clock=clock), "charge")
    assert (answer.status, answer.headers["task-retry"], answer.json()["retry"]) == (500, "false", False)


async def test_one_non_retryable_in_a_group_makes_the_group_so(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def both(input: EmptyModel, ctx: Context) -> None:
        raise ExceptionGroup("two", [ValueError("a"), NonRetryableException("b")])

    assert (await run(dispatcher.app([both], clock=clock), "both")).json()["retry"] is False


async def test_a_retryable_exception_says_when(dispatcher: Dispatcher) -> None:
    @dispatcher.task(retries=5)
    async def busy(input: EmptyModel, ctx: Context) -> None:
        raise RetryableException("come later", after="90s")

    problem = (await run(dispatcher.app([busy], clock=clock), "busy")).json()
    assert (problem["retry"], problem["retry_after_ms"]) == (True, 90_000)


async def test_errors_are_bounded_and_storable(dispatcher: Dispatcher) -> None:
    class Odd(Exception):  # noqa: N818 - the name is shown
        def __str__(self) -> str:
            raise ValueError("no text")

    @dispatcher.task()
    async def long(input: EmptyModel, ctx: Context) -> None:
        raise RuntimeError("x" * 100_000 + "\0\ud800")

    @dispatcher.task()
    async def nul(input: EmptyModel, ctx: Context) -> None:
        raise RuntimeError("a\0b\ud800c")

    @dispatcher.task()
    async def odd(input: EmptyModel, ctx: Context) -> None:
        raise Odd

    app = dispatcher.app([long, nul, odd], clock=clock)
    answer = await run(app, "long")
    assert len(answer.body) < 40_000
    assert (await run(app, "nul")).json()["error"]["message"] == "a\N{REPLACEMENT CHARACTER}b?c"
    assert (await run(app, "odd")).json()["error"]["name"] == "Odd"


async def test_leaving_the_program_is_a_failure_not_the_end_of_the_server(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def leave(input: EmptyModel, ctx: Context) -> None:
        raise SystemExit(3)

    assert (await run(dispatcher.app([leave], clock=clock), "leave")).json()["error"]["name"] == "SystemExit"


async def test_awaiting_something_cancelled_elsewhere_is_a_failure(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def await_cancelled(input: EmptyModel, ctx: Context) -> None:
        other = asyncio.create_task(asyncio.Event().wait())
        other.cancel()
        await other

    problem = (await run(dispatcher.app([await_cancelled], clock=clock), "await_cancelled")).json()
    assert problem["error"]["name"] == "CancelledError"
    assert "retry" not in problem


async def test_sync_handlers_run_in_threads_with_the_callers_context(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    def where(input: EmptyModel, ctx: Context) -> dict[str, Any]:
        return {"thread": threading.current_thread().name, "current": CURRENT.get() is ctx}

    result = (await run(dispatcher.app([where], clock=clock), "where")).json()
    assert result["thread"].startswith("task")
    assert result["current"]


async def test_attempts_do_not_see_each_others_context_variables(dispatcher: Dispatcher) -> None:
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")

    @dispatcher.task()
    async def leave(input: EmptyModel, ctx: Context) -> str:
        before = seen.get()
        seen.set("something")
        return before

    app = dispatcher.app([leave], clock=clock)
    assert [(await run(app, "leave")).json() for _ in range(2)] == ["nothing", "nothing"]


async def test_the_context_knows_its_attempt(dispatcher: Dispatcher) -> None:
    found: list[Context] = []

    @dispatcher.task(name="look")
    async def look(input: EmptyModel, ctx: Context) -> None:
        found.append(ctx)

    app = dispatcher.app([look], slots=7, labels={"zone": "a"}, name="here", clock=clock)
    await run(
        app,
        "look",
        {"a": 1},
        attempt=4,
        retry_count=2,
        metadata={"tag": "x"},
        priority=3,
        event={"id": "evt_1", "type": "user:created", "metadata": None},
        parent_run_id="run_parent",
    )
    ctx = found[0]
    attempt = item("look")
    assert (ctx.workflow_run_id, ctx.task_run_id, ctx.step_run_id) == (attempt["run_id"], attempt["id"], attempt["id"])
    assert (ctx.retry_count, ctx.attempt_number, ctx.max_attempts) == (2, 3, 4)
    assert (ctx.additional_metadata, ctx.priority, ctx.workflow_input) == ({"tag": "x"}, 3, {"a": 1})
    assert (ctx.was_triggered_by_event, ctx.triggering_event) == (True, {"id": "evt_1", "type": "user:created", "metadata": None})
    assert (ctx.workflow_name, ctx.task_name, ctx.workflow_version, ctx.tenant) == ("look", "look", "v7", "default")
    assert (ctx.parent_workflow_run_id, ctx.callback_token) == ("run_parent", attempt["token"])
    assert ctx.deadline == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    assert (ctx.worker.name, ctx.worker.slots, ctx.worker.labels, ctx.worker_id) == ("here", 7, {"zone": "a"}, ctx.worker.id)
    assert (ctx.exit_flag, ctx.done(), ctx.is_cancelled, ctx.cancellation_reason) == (False, False, False, "")
    assert ctx.lifespan is None


async def test_a_context_without_the_optional_members(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def look(input: EmptyModel, ctx: Context) -> list[Any]:
        return [ctx.was_triggered_by_event, ctx.triggering_event, ctx.additional_metadata, ctx.parent_workflow_run_id]

    assert (await run(dispatcher.app([look], clock=clock), "look")).json() == [False, None, {}, None]


@pytest.mark.parametrize(("lease", "body"), [("10m", {"lease_ms": 600_000}), (timedelta(seconds=1.5), {"lease_ms": 1500}), (None, {})])
async def test_a_handler_may_accept_and_finish_elsewhere(dispatcher: Dispatcher, lease: Any, body: dict[str, int]) -> None:
    @dispatcher.task()
    async def hand_over(input: EmptyModel, ctx: Context) -> Total:
        accepted: Total = ctx.accept(lease)
        return accepted

    answer = await run(dispatcher.app([hand_over], clock=clock), "hand_over")
    assert (answer.status, answer.json()) == (202, body)


async def test_a_workflows_task_is_delivered_under_both_names(dispatcher: Dispatcher) -> None:
    order = dispatcher.workflow(name="order", input_validator=Size)

    @order.task()
    def validate(input: Size, ctx: Context) -> dict[str, Any]:
        return {"names": [ctx.workflow_name, ctx.task_name], "width": input.width}

    app = dispatcher.app([order], clock=clock)
    answer = await run(app, "order:validate", {"width": 2}, workflow="order")
    assert answer.json() == {"names": ["order", "validate"], "width": 2}
    assert (await run(app, "order", {"width": 2})).status == 404


async def test_requests_that_are_no_work_are_told_so(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def noop(input: EmptyModel, ctx: Context) -> None: ...

    app = dispatcher.app([noop], clock=clock)

    async def status(body: dict[str, Any]) -> tuple[int, str]:
        answer = await push(app, body)
        return answer.status, answer.json()["code"]

    assert await status(run_body("unknown")) == (404, "unknown_handler")
    assert await status({**run_body("noop"), "protocol": 2}) == (415, "unsupported")
    assert await status({**run_body("noop"), "type": "dance"}) == (415, "unsupported")
    assert await status({**run_body("noop"), "type": "turn"}) == (400, "malformed")
    assert await status({**run_body("noop"), "attempt": "1"}) == (400, "malformed")
    assert await status({"protocol": 1, "type": "batch", "items": {}}) == (400, "malformed")
    assert (await app.handlers.handle("PUT", {}, b"")).status == 405
    assert (await app.handlers.handle("POST", {}, b" " * 4_000_001)).status == 413


async def test_a_body_that_is_not_json_is_malformed(dispatcher: Dispatcher) -> None:
    app = Dispatcher(config(verify_signatures=False)).app([])
    for body in (b"", b"{", b"[1]", b"\xff", b"NaN", b"[" * 1000):
        assert (await app.handlers.handle("POST", {}, body)).status in (400, 415)
