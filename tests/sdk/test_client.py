"""Starting runs and events: what is sent, what comes back, in both faces, and what happens when the dispatcher says no or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from handlers_sdk import (
    ApiError,
    ApiUnreachableError,
    BulkPushEventWithMetadata,
    BulkTriggerError,
    CancelledRunError,
    ConfigError,
    Context,
    Dispatcher,
    FailedTaskRunExceptionGroup,
    IdempotencyCollisionError,
    IllegalTaskOutputError,
    InvalidInputError,
    Priority,
    Standalone,
    TriggerWorkflowOptions,
    WorkflowRunRef,
)
from handlers_sdk.triggers import BULK_BYTES_MAX, chunks
from tests.sdk.fake_api import Asked, FakeApi, problem


class Order(BaseModel):
    id: int
    note: str = ""


@dataclass
class Receipt:
    total: float


def run_view(run_id: str = "run_1", status: str = "succeeded", output: Any = None, **extra: Any) -> dict[str, Any]:
    view = {"id": run_id, "workflow": "charge", "status": status, "input": {}, "output": output, "error": None, "metadata": None}
    return {**view, "priority": 1, "created_at": "2026-01-01T00:00:00Z", "tasks": [], **extra}


@pytest.fixture
def api() -> FakeApi:
    return FakeApi(lambda _: (200, run_view(output={"total": 2})))


@pytest.fixture
def dispatcher(api: FakeApi) -> Dispatcher:
    return api.dispatcher(token="api-token")


@pytest.fixture
def charge(dispatcher: Dispatcher) -> Standalone[Order, Receipt]:
    @dispatcher.task(input_validator=Order)
    async def charge(input: Order, ctx: Context) -> Receipt:
        return Receipt(1.0)

    return charge


def test_run_waits_for_the_typed_result(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    assert charge.run(Order(id=7)) == Receipt(2.0)
    (asked,) = api.asked
    assert (asked.method, asked.path, asked.token) == ("POST", "/v1/runs", "api-token")
    assert asked.query["wait"] == "30s"
    assert asked.json == {"workflow": "charge", "input": {"id": 7, "note": ""}}


async def test_both_faces_work_in_a_running_loop(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    assert charge.run(Order(id=1)) == await charge.aio_run(Order(id=1)) == Receipt(2.0)
    assert len(api.asked) == 2


def test_a_run_that_takes_longer_is_polled(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    views = [(202, run_view(status="queued")), (202, run_view(status="running")), (200, run_view(output={"total": 5}))]
    api.answer = lambda _: views[len(api.asked) - 1]
    assert charge.run(Order(id=1)) == Receipt(5.0)
    assert [(asked.method, asked.path, asked.query["wait"]) for asked in api.asked[1:]] == [("GET", "/v1/runs/run_1", "30s")] * 2


def test_options_as_a_value_and_as_keywords(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    options = TriggerWorkflowOptions(additional_metadata={"a": "1"}, priority=2, idempotency_key="k", idempotency_ttl="1h")
    charge.run(Order(id=1), options, priority=Priority.HIGH)
    charge.run(Order(id=1), options=options)
    expected = {"metadata": {"a": "1"}, "priority": 3, "idempotency_key": "k", "idempotency_ttl": "1h"}
    first, second = ({name: asked.json[name] for name in expected} for asked in api.asked)
    assert first == expected
    assert second == {**expected, "priority": 2}
    for wrong in ({"priority": 4}, {"priority": 0}):
        with pytest.raises(ConfigError, match="priority"):
            charge.run(Order(id=1), **wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="colour"):
        charge.run(Order(id=1), colour="red")  # type: ignore[call-overload]


def test_an_input_that_does_not_fit_is_refused_before_it_is_sent(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    for wrong in (None, {"id": "x"}, Order.model_construct(id="x")):  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="id"):
            charge.run(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"input\.id"):
        charge.create_bulk_run_item({"id": []})  # type: ignore[arg-type]
    assert api.asked == []


def test_no_wait_gives_a_reference(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda asked: (
        (201, {"id": "run_9", "status": "queued"}) if asked.method == "POST" else (200, run_view(output={"total": 3}))
    )
    for ref in (charge.run_no_wait(Order(id=1)), charge.run(Order(id=1), wait_for_result=False)):
        assert isinstance(ref, WorkflowRunRef)
        assert (ref.workflow_run_id, repr(ref)) == ("run_9", "WorkflowRunRef('run_9')")
        assert ref.result() == Receipt(3.0)
    assert "wait" not in api.asked[0].query


async def test_no_wait_gives_a_reference_async(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda asked: (
        (201, {"id": "run_9", "status": "queued"}) if asked.method == "POST" else (200, run_view(output={"total": 3}))
    )
    refs = (await charge.aio_run_no_wait(Order(id=1)), await charge.aio_run(Order(id=1), wait_for_result=False))
    assert [await ref.aio_result() for ref in refs] == [Receipt(3.0)] * 2
    assert charge.get_run_ref("run_9").result() == charge.get_result("run_9") == await charge.aio_get_result("run_9")


def test_a_reference_waits_no_longer_than_it_is_told(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: (202, run_view(status="running"))
    with pytest.raises(TimeoutError):
        charge.get_run_ref("run_1").result(timeout=0.01)


async def test_an_async_wait_can_be_bounded(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: (202, run_view(status="running"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await charge.get_run_ref("run_1").aio_result()


def test_a_failed_run_raises_what_failed(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    task = {"id": "tsk_1", "name": "charge", "status": "failed", "error": {"code": "task_failed", "message": "declined"}}
    api.answer = lambda _: (200, run_view(status="failed", error=task["error"], tasks=[task]))
    with pytest.raises(FailedTaskRunExceptionGroup, match="run_1 failed: charge: declined") as caught:
        charge.run(Order(id=1))
    (error,) = caught.value.exceptions
    assert (error.task_run_id, error.task_name, error.error_code, error.message) == ("tsk_1", "charge", "task_failed", "declined")
    api.answer = lambda _: (200, run_view(status="failed"))
    with pytest.raises(FailedTaskRunExceptionGroup, match="no error was recorded"):
        charge.run(Order(id=1))


async def test_a_cancelled_run_raises_in_both_faces(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: (200, run_view(status="cancelled", error={"code": "cancelled", "message": "not wanted"}))
    with pytest.raises(CancelledRunError, match="run_1 was cancelled: not wanted"):
        charge.run(Order(id=1))
    with pytest.raises(CancelledRunError):
        await charge.aio_run(Order(id=1))


def test_a_result_of_another_type_is_told_by_field(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: (200, run_view(output={"total": "much"}))
    with pytest.raises(IllegalTaskOutputError, match=r"output\.total"):
        charge.run(Order(id=1))


def test_a_workflows_result_is_by_task_name(api: FakeApi, dispatcher: Dispatcher) -> None:
    order = dispatcher.workflow(name="order")

    @order.task()
    def validate(input: Any, ctx: Context) -> None: ...

    assert order.run() == {"validate": {"total": 2}}
    assert api.asked[0].json == {"workflow": "order", "input": {}}


def test_a_known_idempotency_key_raises_with_the_first_run(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: (200, run_view("run_first", duplicate=True))
    with pytest.raises(IdempotencyCollisionError, match="'k' already started run_first") as caught:
        charge.run(Order(id=1), idempotency_key="k")
    assert (caught.value.existing_run_id, caught.value.key) == ("run_first", "k")


# ---- many


def bulk(answer_row: Callable[[int, dict[str, Any]], dict[str, Any]]) -> Callable[[Asked], tuple[int, Any]]:
    """A dispatcher's bulk call, and runs that are over when they are looked at."""
    count = iter(range(1_000_000))

    def answer(asked: Asked) -> tuple[int, Any]:
        if asked.path == "/v1/runs/bulk":
            return 200, {"rows": [answer_row(next(count), one) for one in asked.json["runs"]]}
        number = asked.path.rpartition("_")[2]
        return 200, run_view(asked.path.rpartition("/")[2], output={"total": float(number)})

    return answer


def queued(number: int, _: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"run_{number}", "status": "queued"}


def test_many_are_chunked_in_order(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = bulk(queued)
    refs = charge.run_many_no_wait([charge.create_bulk_run_item(Order(id=n)) for n in range(2_500)])
    assert [ref.workflow_run_id for ref in refs] == [f"run_{n}" for n in range(2_500)]
    assert [len(asked.json["runs"]) for asked in api.asked] == [1_000, 1_000, 500]
    assert [one["input"]["id"] for asked in api.asked for one in asked.json["runs"]] == list(range(2_500))


def test_chunks_stay_below_the_largest_body() -> None:
    items = [b"x" * 900_000 for _ in range(10)] + [b"y" * (BULK_BYTES_MAX + 1), b"z"]
    made = list(chunks(items))
    assert [item for chunk in made for item in chunk] == items
    assert [len(chunk) for chunk in made] == [4, 4, 2, 1, 1]


async def test_results_of_many_come_in_order(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = bulk(queued)
    items = [charge.create_bulk_run_item(Order(id=n), additional_metadata={"n": str(n)}) for n in range(120)]
    assert charge.run_many(items) == [Receipt(float(n)) for n in range(120)]
    assert api.asked[0].json["runs"][3] == {"workflow": "charge", "input": {"id": 3, "note": ""}, "metadata": {"n": "3"}}
    api.answer = bulk(queued)
    assert await charge.aio_run_many(items[:2]) == [Receipt(0.0), Receipt(1.0)]
    assert charge.run_many([]) == []


def test_items_of_one_key_are_one_run(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = bulk(queued)
    items = [charge.create_bulk_run_item(Order(id=n), key=key) for n, key in enumerate(("a", None, "a", "b"))]
    refs = charge.run_many_no_wait(items)
    assert [ref.workflow_run_id for ref in refs] == ["run_0", "run_1", "run_0", "run_2"]
    assert [one["input"]["id"] for one in api.asked[0].json["runs"]] == [0, 1, 3]


def mostly(number: int, asked: dict[str, Any]) -> dict[str, Any]:
    if number == 1:
        return problem(422, "unknown_workflow")[1]
    if number == 2:
        return {"id": "run_first", "status": "queued", "duplicate": True}
    return queued(number, asked)


async def test_items_that_were_not_started_are_told_apart(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    items = [charge.create_bulk_run_item(Order(id=n), idempotency_key=f"k{n}") for n in range(4)]
    api.answer = bulk(mostly)
    with pytest.raises(BulkTriggerError, match="2 of 4 items were not started; the first, item 1: 422 unknown_workflow") as caught:
        await charge.aio_run_many_no_wait(items)
    first, refused, collision, last = caught.value.results
    assert (first.workflow_run_id, last.workflow_run_id) == ("run_0", "run_3")
    assert isinstance(refused, ApiError)
    assert isinstance(collision, IdempotencyCollisionError)
    assert (collision.existing_run_id, collision.key) == ("run_first", "k2")
    api.answer = bulk(mostly)
    results = charge.run_many(items, return_exceptions=True)
    assert [type(one) for one in results] == [Receipt, ApiError, IdempotencyCollisionError, Receipt]
    api.answer = bulk(mostly)
    with pytest.raises(ApiError):
        charge.run_many(items)


def test_a_chunk_that_cannot_be_sent_fails_only_its_items(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    answer = bulk(queued)
    api.answer = lambda asked: answer(asked) if len(api.asked) == 1 else httpx.ReadError("cut")
    with pytest.raises(BulkTriggerError) as caught:
        charge.run_many_no_wait([charge.create_bulk_run_item(Order(id=n)) for n in range(1_500)])
    results = caught.value.results
    assert all(isinstance(one, WorkflowRunRef) for one in results[:1_000])
    assert all(isinstance(one, ApiUnreachableError) for one in results[1_000:])


def test_an_answer_with_too_few_rows_is_no_answer(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: (200, {"rows": []})
    with pytest.raises(BulkTriggerError, match="did not answer one row for each of 1 items"):
        charge.run_many_no_wait([charge.create_bulk_run_item(Order(id=1))])


# ---- events


async def test_events(api: FakeApi, dispatcher: Dispatcher) -> None:
    answer = {"event_id": "evt_1", "stream_id": "str_1", "runs": ["run_1"], "data": {}}
    api.answer = lambda _: (201, answer)
    event = dispatcher.event.push("user:create", {"id": 1}, additional_metadata={"source": "api"}, priority=2, idempotency_key="k")
    assert (event.event_id, event.stream_id, event.runs, event.duplicate) == ("evt_1", "str_1", ["run_1"], False)
    expected = {"type": "user:create", "data": {"id": 1}, "metadata": {"source": "api"}, "priority": 2, "idempotency_key": "k"}
    assert (api.asked[0].path, api.asked[0].json) == ("/v1/events", expected)
    api.answer = lambda _: (200, {**answer, "duplicate": True})
    assert (await dispatcher.event.aio_push("user:create", {})).duplicate
    assert api.asked[1].json == {"type": "user:create", "data": {}}
    with pytest.raises(InvalidInputError, match="not JSON"):
        dispatcher.event.push("user:create", {"x": float("nan")})


async def test_events_in_bulk(api: FakeApi, dispatcher: Dispatcher) -> None:
    def answer(asked: Asked) -> tuple[int, Any]:
        return 200, {"rows": [{"event_id": f"evt_{one['data']['n']}"} for one in asked.json["events"]]}

    api.answer = answer
    events = [BulkPushEventWithMetadata("user:create", {"n": n}, {"source": "bulk"}) for n in range(1_200)]
    assert [event.event_id for event in dispatcher.event.bulk_push(events)] == [f"evt_{n}" for n in range(1_200)]
    assert [len(asked.json["events"]) for asked in api.asked] == [1_000, 200]
    assert api.asked[0].json["events"][0] == {"type": "user:create", "data": {"n": 0}, "metadata": {"source": "bulk"}}
    api.answer = lambda _: (200, {"rows": [{"event_id": "evt_0"}, problem(422, "invalid_value")[1]]})
    with pytest.raises(BulkTriggerError) as caught:
        await dispatcher.event.aio_bulk_push(events[:2])
    assert [type(one).__name__ for one in caught.value.results] == ["Event", "ApiError"]
    api.answer = lambda _: httpx.ReadError("cut")
    with pytest.raises(BulkTriggerError):
        dispatcher.event.bulk_push(events[:1])


# ---- runs


async def test_looking_at_runs(api: FakeApi, dispatcher: Dispatcher) -> None:
    attempt = {"id": "att_1", "number": 1, "status": "succeeded", "http_status": 200, "error": None, "new_member": 1}
    task = {"id": "tsk_1", "name": "charge", "status": "succeeded", "output": 5, "error": None, "retry_count": 0, "attempts": [attempt]}
    api.answer = lambda _: (200, run_view(output=5, tasks=[task], metadata={"a": "b"}, started_at="2026-01-01T00:00:01Z"))
    run = dispatcher.runs.get("run_1")
    assert run == await dispatcher.runs.aio_get("run_1")
    assert (run.ended, run.output, run.metadata, run.tasks[0].attempts[0].http_status) == (True, 5, {"a": "b"}, 200)
    assert run.started_at == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert dispatcher.runs.get_status("run_1") == await dispatcher.runs.aio_get_status("run_1") == "succeeded"
    assert dispatcher.runs.get_result("run_1") == await dispatcher.runs.aio_get_result("run_1") == 5
    assert dispatcher.run_ref("run_1").result() == 5
    assert {asked.path for asked in api.asked} == {"/v1/runs/run_1"}


async def test_listing_runs(api: FakeApi, dispatcher: Dispatcher, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: (200, {"rows": [{"id": "run_1", "workflow": "charge", "status": "queued"}], "next_cursor": "c2"})
    since = datetime(2026, 1, 1, tzinfo=UTC)
    page = dispatcher.runs.list(since, since, ["queued", "failed"], "charge", {"a": "b", "c": "d"}, event_id="evt_1", limit=10, cursor="c1")
    assert ([run.id for run in page.rows], page.next_cursor) == (["run_1"], "c2")
    (asked,) = api.asked
    assert sorted(asked.query.multi_items()) == [
        ("cursor", "c1"),
        ("event_id", "evt_1"),
        ("limit", "10"),
        ("metadata", "a:b"),
        ("metadata", "c:d"),
        ("since", "2026-01-01T00:00:00+00:00"),
        ("status", "failed"),
        ("status", "queued"),
        ("until", "2026-01-01T00:00:00+00:00"),
        ("workflow", "charge"),
    ]
    await dispatcher.runs.aio_list()
    assert list(api.asked[1].query) == []
    charge.list_runs()
    await charge.aio_list_runs(statuses=["running"])
    assert [dict(asked.query) for asked in api.asked[2:]] == [
        {"workflow": "charge", "limit": "100"},
        {"status": "running", "workflow": "charge", "limit": "100"},
    ]


async def test_cancelling_runs(api: FakeApi, dispatcher: Dispatcher) -> None:
    api.answer = lambda _: (202, {"id": "run_1", "status": "cancelling"})
    dispatcher.runs.cancel("run_1")
    await dispatcher.runs.aio_cancel("run_1")
    assert [(asked.method, asked.path, asked.json) for asked in api.asked] == [("POST", "/v1/runs/run_1/cancel", {})] * 2
    api.answer = lambda _: problem(409, "run_finished")
    dispatcher.runs.cancel("run_1")
    api.answer = lambda _: problem(404, "not_found")
    with pytest.raises(ApiError, match="404 not_found"):
        dispatcher.runs.cancel("run_1")


# ---- stubs


async def test_stubs(api: FakeApi, dispatcher: Dispatcher) -> None:
    stub = dispatcher.stubs.task(name="elsewhere", input_validator=Order, output_validator=Receipt)
    assert stub.run(Order(id=1)) == await stub.aio_run(input=Order(id=1)) == Receipt(2.0)
    assert api.asked[0].json == {"workflow": "elsewhere", "input": {"id": 1, "note": ""}}
    assert dispatcher.stubs.task(name="loose").run() == {"total": 2}
    assert dispatcher.stubs.workflow(name="flow").run() == {"total": 2}


# ---- refusals and silence


def test_a_refusal_is_an_error_with_its_code_and_hint(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    api.answer = lambda _: problem(401, "unauthorized", hint="set DISPATCHER_TOKEN")
    with pytest.raises(ApiError, match=r"401 unauthorized: because of unauthorized \(set DISPATCHER_TOKEN\)") as caught:
        charge.run(Order(id=1))
    assert (caught.value.status, caught.value.problem_code, caught.value.hint) == (401, "unauthorized", "set DISPATCHER_TOKEN")
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("reply", "tries"),
    [
        (httpx.ConnectError("refused"), 5),
        (httpx.ConnectTimeout("slow"), 5),
        (problem(503, "overloaded"), 5),
        (problem(429, "slow_down"), 5),
        (httpx.ReadError("cut"), 1),
        (httpx.ReadTimeout("silent"), 1),
        (problem(500, "internal"), 1),
        (problem(409, "conflict"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value[0]) if isinstance(value, tuple) else None,
)
def test_only_what_certainly_did_nothing_is_tried_again(api: FakeApi, charge: Standalone[Order, Receipt], reply: Any, tries: int) -> None:
    api.answer = lambda _: reply
    with pytest.raises((ApiError, ApiUnreachableError)):
        charge.run(Order(id=1))
    assert len(api.asked) == tries


def test_reading_is_tried_again_whatever_happened(api: FakeApi, dispatcher: Dispatcher) -> None:
    replies: list[Any] = [httpx.ReadError("cut"), problem(500, "internal"), problem(503, "overloaded"), (200, run_view())]
    api.answer = lambda _: replies[len(api.asked) - 1]
    assert dispatcher.runs.get("run_1").status == "succeeded"
    assert len(api.asked) == 4


def test_an_answer_that_is_not_json_is_no_answer(api: FakeApi, dispatcher: Dispatcher) -> None:
    class Page(httpx.AsyncBaseTransport):
        def __init__(self, status: int) -> None:
            self.status = status

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(self.status, content=b"<html>")

    with pytest.raises(ApiUnreachableError, match="not JSON"):
        FakeApi().dispatcher(transport=Page(200)).runs.get("run_1")
    with pytest.raises(ApiError, match="418"):
        FakeApi().dispatcher(transport=Page(418)).runs.get("run_1")


def test_making_a_dispatcher_calls_nothing_and_closing_it_is_not_the_end(
    api: FakeApi, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPATCHER_TOKEN", "t")
    assert Dispatcher().config.token == "t"
    assert api.asked == []
    dispatcher.runs.get("run_1")
    dispatcher.close()
    dispatcher.close()
    dispatcher.runs.get("run_1")
    asyncio.run(dispatcher.aio_close())
    assert len(api.asked) == 2


def test_no_token_no_header(api: FakeApi) -> None:
    api.dispatcher().runs.get("run_1")
    assert "authorization" not in api.asked[0].headers


def test_the_clients_own_loop_cannot_wait_for_itself(dispatcher: Dispatcher) -> None:
    from handlers_sdk.portal import PORTAL

    async def inside() -> None:
        dispatcher.runs.get("run_1")

    with pytest.raises(RuntimeError, match="client's own event loop"):
        PORTAL.submit(inside()).result()


def test_json_of_many_calls_is_json(api: FakeApi, charge: Standalone[Order, Receipt]) -> None:
    item = charge.create_bulk_run_item(Order(id=1, note='"quoted"\n'), additional_metadata={"é": 1})
    assert json.loads(item.text())["input"]["note"] == '"quoted"\n'
