"""Durable tasks on the wire: turns as requests, answers as bytes, callbacks, the log's travels, and everything that is wrong with them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from math import inf
from typing import Annotated, Any

import httpx
import pytest
from pydantic import BaseModel

from handlers_sdk import (
    App,
    ConfigError,
    Context,
    Dispatcher,
    DurableContext,
    EmptyModel,
    IdempotencyCollisionError,
    InvalidInputError,
    RetryableException,
    StateContext,
)
from handlers_sdk.exported import Export, read_export, replay_export
from handlers_sdk.logcache import LogCache
from handlers_sdk.testing import DurableTester
from handlers_sdk.verbatim import raw_items
from tests.sdk.fake_api import Asked, FakeApi, problem
from tests.sdk.pushing import AT, batch, clock, item, push, run, said, turn


class Bill(BaseModel):
    amount: int
    paid_at: datetime


async def echo(value: Any) -> Any:
    return value


def order_app(dispatcher: Dispatcher, **options: Any) -> App:
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        first = await ctx.run("first", echo, 1)
        await ctx.aio_sleep_for("1h")
        return [first, await ctx.run("second", echo, 2)]

    return dispatcher.app([dispatcher.durable_task(**options)(order)], clock=clock)


async def test_a_turn_appends_its_steps_and_answers_what_it_waits_for(api: FakeApi, dispatcher: Dispatcher) -> None:
    answer = said(await push(order_app(dispatcher), turn("order")))
    assert answer["status"] == "wait"
    assert (answer["base"], answer["wake"]) == (1, {"any": ["sleep#0"]})
    (sleep,) = answer["ops"]
    assert {**sleep, "at": AT} == {"id": "sleep#0", "op": "sleep", "status": "pending", "ms": 3_600_000, "at": AT}
    ((token, (append,)),) = api.said()
    assert token == "atk1.token1.mac"
    assert (append["type"], append["base"]) == ("append", 0)
    assert [{**op, "at": AT} for op in append["ops"]] == [{"id": "first#0", "op": "step", "status": "ok", "value": 1, "at": AT}]
    assert append["ops"][0]["at"].startswith("2026-01-01T00:00:0"), "stamped by the dispatcher's clock"


async def test_results_travel_with_the_answer_where_that_is_asked_for(api: FakeApi, dispatcher: Dispatcher) -> None:
    answer = said(await push(order_app(dispatcher, checkpoint="turn"), turn("order")))
    assert ([op["id"] for op in answer["ops"]], answer["base"]) == (["first#0", "sleep#0"], 0)
    assert api.asked == []


async def test_and_where_the_dispatcher_cannot_be_called(api: FakeApi, dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    api.answer = lambda _: httpx.ConnectError("refused")
    answer = said(await push(order_app(dispatcher), turn("order")))
    assert ([op["id"] for op in answer["ops"]], answer["base"]) == (["first#0", "sleep#0"], 0)
    assert "cannot be called" in caplog.text


async def test_a_child_that_never_was_a_run_says_why(dispatcher: Dispatcher) -> None:
    async def parent(input: dict[str, Any], ctx: DurableContext) -> Any:
        return await ctx.run_child("nope")

    app = dispatcher.app([dispatcher.durable_task()(parent)], clock=clock)
    asked = {"id": "nope#0", "op": "child", "status": "pending", "workflow": "nope", "input": {}, "at": AT}
    over = {"id": "nope#0", "op": "child", "status": "error", "error": {"code": "unknown_workflow", "message": "there is none"}, "at": AT}
    answer = said(await push(app, turn("parent", entries=[asked, over])))
    assert (answer["status"], answer["error"]["message"]) == ("failed", "nope: there is none")


async def test_turns_travel_in_batches_beside_runs(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def plain(input: EmptyModel, ctx: Context) -> int:
        return 1

    @dispatcher.durable_task()
    async def durable(input: EmptyModel, ctx: DurableContext) -> Any:
        return await ctx.run("s", echo, 2)

    members = {name: value for name, value in turn("durable").items() if name not in ("protocol", "type", "audience", "api")}
    app = dispatcher.app([plain, durable], clock=clock)
    answer = await batch(app, item("plain", number=1), {**members, "id": item("x", number=2)["id"], "token": "t"})
    lines = answer.by_id()
    assert lines["01"] == {"id": item("x", number=1)["id"], "status": "ok", "output": 1}
    assert lines["02"] == {"id": item("x", number=2)["id"], "status": "done", "base": 1, "ops": [], "output": 2}


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (problem(409, "stale_attempt"), 409, "stale_attempt"),
        (problem(410, "task_ended"), 409, "stale_attempt"),
        (problem(401, "unauthorized"), 409, "stale_attempt"),
        (problem(412, "log_conflict", len=1, entries=[{"id": "other#0", "at": AT}]), 409, "stale_attempt"),
    ],
)
async def test_a_turn_that_lost_its_task_stops(api: FakeApi, dispatcher: Dispatcher, reply: Any, status: int, code: str) -> None:
    api.answer = lambda _: reply
    answer = await push(order_app(dispatcher), turn("order"))
    assert (answer.status, answer.json()["code"]) == (status, code)


async def test_an_append_that_arrived_twice_is_ours(api: FakeApi, dispatcher: Dispatcher) -> None:
    api.answer = lambda asked: problem(412, "log_conflict", len=1, entries=asked.json["events"][0]["ops"])
    assert said(await push(order_app(dispatcher), turn("order")))["base"] == 1


@pytest.mark.parametrize("code", ["journal_too_long", "journal_too_large", "invalid_op", "scope_closed"])
async def test_what_the_dispatcher_does_not_take_fails_the_task_with_its_code(api: FakeApi, dispatcher: Dispatcher, code: str) -> None:
    api.answer = lambda _: problem(422, code)
    answer = said(await push(order_app(dispatcher), turn("order")))
    assert (answer["status"], answer["retry"], answer["error"]["code"]) == ("failed", False, code)


async def test_a_cancelled_turn_gives_way_to_the_one_that_cleans_up(api: FakeApi, dispatcher: Dispatcher) -> None:
    api.answer = lambda _: (200, {"ok": True, "cancel": {"reason": "no longer wanted", "grace_ms": 1000}})
    assert said(await push(order_app(dispatcher), turn("order")))["status"] == "again"


async def test_what_is_nearly_out_of_time_goes_on_in_another_turn(dispatcher: Dispatcher) -> None:
    answer = said(await push(order_app(dispatcher), turn("order", budget_ms=0)))
    assert (answer["status"], answer["base"], answer["ops"]) == ("again", 0, [])


# ---- the log


async def test_the_log_is_kept_asked_for_or_given_up(api: FakeApi, dispatcher: Dispatcher) -> None:
    first = {"id": "first#0", "op": "step", "status": "ok", "value": 1, "at": AT}
    slept = [
        {"id": "sleep#0", "op": "sleep", "status": "pending", "ms": 3_600_000, "at": AT},
        {"id": "sleep#0", "op": "sleep", "status": "ok", "at": AT},
    ]
    tail = {"len": 3, "from": 1, "prefix": "ab" * 32, "head": "cd" * 32, "entries": slept}

    def answer(asked: Asked) -> tuple[int, Any]:
        if asked.path == "/v1/log":
            assert (dict(asked.query), asked.token) == ({"from": "0", "to": "1"}, "atk1.token1.mac")
            return 200, {"entries": [first]}
        return 200, {"ok": True}

    api.answer = answer
    pulled = await push(order_app(dispatcher), turn("order", log=tail))
    assert (pulled.headers["task-log"], said(pulled)["output"]) == ("miss", [1, 2])
    api.answer = lambda asked: problem(503, "busy") if asked.path == "/v1/log" else (200, {"ok": True})
    given_up = await push(order_app(dispatcher), turn("order", log=tail))
    assert (given_up.headers["task-log"], said(given_up)) == ("miss", {"status": "again", "base": 3, "ops": []})


async def test_what_this_process_has_seen_is_not_sent_again() -> None:
    dispatcher = Dispatcher(FakeApi().dispatcher().config)

    @dispatcher.durable_task()
    async def long(input: EmptyModel, ctx: DurableContext) -> int:
        for _ in range(20):
            await ctx.run("s", echo, "x" * 1000)
            await ctx.aio_sleep_for("1s")
        return 19

    delta, whole = DurableTester([long]), DurableTester([long], delta=False)
    assert (await delta.run(long)).output == (await whole.run(long)).output == 19
    assert delta.double.bytes_sent < whole.double.bytes_sent / 5
    assert delta.double.pulls == 0


# ---- what is wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turn": "1"}, "`turn` is a whole number"),
        ({"now": "yesterday"}, "`now` is a moment"),
        ({"seed": None}, "`seed` is a string"),
        ({"mode": "state"}, "mode 'replay'"),
        ({"log": None}, "`log` has"),
        ({"log": {"len": 2, "from": 0, "entries": []}}, "`len` entries"),
        ({"log": {"len": 1, "from": 0, "entries": [{"id": "a#0"}]}}, "an entry of a log"),
    ],
)
async def test_a_turn_that_is_none_is_refused(dispatcher: Dispatcher, changes: dict[str, Any], message: str) -> None:
    answer = await push(order_app(dispatcher), turn("order", **changes))
    assert (answer.status, answer.json()["code"]) == (400, "malformed")
    assert message in answer.json()["detail"]


async def test_a_run_is_no_turn(dispatcher: Dispatcher) -> None:
    assert (await run(order_app(dispatcher), "order")).status == 400


async def test_another_code_is_told_with_the_node(dispatcher: Dispatcher) -> None:
    log = [{"id": "zeroth#0", "op": "step", "status": "ok", "value": 1, "at": AT}]
    answer = said(await push(order_app(dispatcher), turn("order", log)))
    assert answer == {
        "status": "mismatch",
        "at": {
            "id": "zeroth#0",
            "expected": {"id": "zeroth#0", "op": "step", "status": "ok"},
            "got": {"id": "first#0", "op": "step"},
        },
        "base": 1,
        "ops": [],
    }


async def outcome_of(dispatcher: Dispatcher, body: Any, **options: Any) -> dict[str, Any]:
    async def odd(input: dict[str, Any], ctx: DurableContext) -> Any:
        return await body(ctx)

    declared = dispatcher.durable_task(name="odd", **options)(odd)
    return said(await push(dispatcher.app([declared], clock=clock), turn("odd")))


class Opaque:
    pass


async def first_of_coroutines(ctx: DurableContext) -> Any:
    async def slept() -> Any:
        return await ctx.aio_sleep_for("1s")

    return [await each for each in asyncio.as_completed([slept()])]


@pytest.mark.parametrize(
    ("body", "name", "message", "retry"),
    [
        (lambda ctx: ctx.run("s", echo, Opaque()), "StepFailedError", "not JSON", None),
        (lambda ctx: ctx.run("s", echo, float("nan")), "StepFailedError", "not JSON", None),
        (lambda ctx: ctx.run("s", echo, "\0"), "StepFailedError", "NUL", None),
        (lambda ctx: ctx.aio_sleep_for(timedelta(seconds=-1)), "ValueError", "not negative", None),
        (lambda ctx: ctx.aio_sleep_for("90"), "ValueError", "not a duration", None),
        (lambda ctx: ctx.aio_sleep_until(datetime(2026, 1, 1)), "ValueError", "time zone", None),  # noqa: DTZ001 - the fault
        (lambda ctx: ctx.aio_wait_for_event("k", scope="s"), "ValueError", "belong together", None),
        (lambda ctx: ctx.aio_wait_for_event("k", consider_events_since="start"), "ValueError", "belong together", None),
        (lambda ctx: ctx.aio_wait_for_event("k", scope="s", consider_events_since=datetime(2026, 1, 1)), "ValueError", "zone", None),  # noqa: DTZ001
        (lambda ctx: ctx.aio_wait_for("k"), "ConfigError", "at least one", None),
        (lambda ctx: ctx.run("s", echo, 1, retries=-1), "ConfigError", "retries=-1", None),
        (lambda ctx: ctx.memo(echo, Opaque()), "ConfigError", "give it a key", None),
        (lambda ctx: ctx.checkpoint(Opaque()), "IllegalTaskOutputError", "not JSON", False),
        (lambda ctx: ctx.run_child("ship", Opaque()), "InvalidInputError", "not JSON", False),
        (lambda ctx: ctx.run("s", lambda: ctx.run("inner", echo, 1)), "StepFailedError", "inside of a step", None),
        (lambda ctx: ctx.run("a/b", echo, 1), "NotDeterministicError", "cannot name", False),
        (first_of_coroutines, "NotDeterministicError", "give it tasks", False),
    ],
)
async def test_what_a_handler_cannot_mean_fails_it(dispatcher: Dispatcher, body: Any, name: str, message: str, retry: bool | None) -> None:
    answer = await outcome_of(dispatcher, body)
    assert (answer["status"], answer["error"]["name"], answer.get("retry")) == ("failed", name, retry)
    assert message in answer["error"]["message"]


async def test_what_a_step_generates_is_a_list(dispatcher: Dispatcher) -> None:
    assert (await outcome_of(dispatcher, lambda ctx: ctx.run("s", lambda: (n for n in range(3)))))["output"] == [0, 1, 2]


async def test_many_ops_are_appended_in_parts(api: FakeApi, dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> int:
        steps = [ctx.run("s", echo, "x" * 1000) for _ in range(3_000)]
        return len([await one for one in steps])

    answer = await outcome_of(dispatcher, body)
    assert (answer["status"], answer["output"], answer["base"]) == ("done", 3_000, 3_000)
    assert max(len(event["ops"]) for event in api.events()) <= 2_000
    assert max(len(asked.content) for asked in api.asked) < 2_000_000


async def test_an_output_and_an_input_that_are_no_json_fail(dispatcher: Dispatcher) -> None:
    async def opaque(ctx: DurableContext) -> Any:
        return Opaque()

    async def continued(ctx: DurableContext) -> Any:
        ctx.continue_as_new(Opaque())

    assert (await outcome_of(dispatcher, opaque))["error"]["code"] == "invalid_output"
    assert (await outcome_of(dispatcher, continued))["status"] == "failed"


async def test_a_handlers_failure_says_when_to_come_again(dispatcher: Dispatcher) -> None:
    async def later(ctx: DurableContext) -> None:
        await ctx.run("s", echo, 1)
        raise RetryableException("busy", after="5s")

    answer = await outcome_of(dispatcher, later)
    assert (answer["status"], answer["retry"], answer["retry_after_ms"], answer["base"]) == ("failed", True, 5_000, 1)


# ---- what a handler gets


async def test_results_are_validated_as_annotated_live_and_from_the_log(dispatcher: Dispatcher) -> None:
    async def bill() -> Bill:
        return Bill(amount=3, paid_at=datetime(2026, 1, 1, tzinfo=UTC))

    async def pair() -> tuple[int, int]:
        return 1, 2

    async def body(ctx: DurableContext) -> Any:
        first, second = await ctx.run("bill", bill), await ctx.run("pair", pair)
        plain = await ctx.run("plain", echo, (1, 2))
        return [type(first).__name__, first.paid_at.year, type(second).__name__, plain]

    live = await outcome_of(dispatcher, body)
    assert live["output"] == ["Bill", 2026, "tuple", [1, 2]]
    log: list[dict[str, Any]] = [
        {"id": "bill#0", "op": "step", "status": "ok", "value": {"amount": 3, "paid_at": AT}, "at": AT},
        {"id": "pair#0", "op": "step", "status": "ok", "value": [1, 2], "at": AT},
        {"id": "plain#0", "op": "step", "status": "ok", "value": [1, 2], "at": AT},
    ]

    @dispatcher.durable_task(name="again")
    async def again(input: dict[str, Any], ctx: DurableContext) -> Any:
        return await body(ctx)

    assert said(await push(dispatcher.app([again], clock=clock), turn("again", log)))["output"] == live["output"]


def logged(fn: Callable[[], Any]) -> Callable[[], Any]:
    @wraps(fn)
    def called() -> Any:
        return fn()

    return called


async def test_functions_that_one_decorator_made_return_what_each_says(dispatcher: Dispatcher) -> None:
    def bill() -> Bill:
        return Bill(amount=3, paid_at=datetime(2026, 1, 1, tzinfo=UTC))

    def pair() -> tuple[int, int]:
        return 1, 2

    def number() -> Annotated[int, ["has no hash"]]:
        return 3

    async def body(ctx: DurableContext) -> Any:
        given = [await ctx.run(fn.__name__, logged(fn)) for fn in (bill, pair, number, bill)]
        return [type(one).__name__ for one in given]

    assert (await outcome_of(dispatcher, body))["output"] == ["Bill", "tuple", "int", "Bill"]


async def test_a_model_that_is_made_anew_is_what_its_function_returns(dispatcher: Dispatcher) -> None:
    def counting() -> tuple[Callable[[], Any], type]:
        class Count(BaseModel):
            value: int

        def count() -> Any:
            return Count(value=1)

        count.__annotations__["return"] = Count
        return count, Count

    async def body(ctx: DurableContext) -> list[bool]:
        made = [counting() for _ in range(2)]
        return [isinstance(await ctx.run("count", count), model) for count, model in made]

    assert (await outcome_of(dispatcher, body))["output"] == [True, True]


async def test_what_never_ends_is_not_waited_for(dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> Any:
        async with asyncio.timeout(inf):
            never = asyncio.create_task(asyncio.wait_for(asyncio.Event().wait(), inf))
            sleeps: list[asyncio.Future[Any]] = [ctx.aio_sleep_for("1h"), never]
            await asyncio.wait(sleeps, return_when="FIRST_COMPLETED")

    answer = await outcome_of(dispatcher, body)
    assert (answer["status"], answer.get("wake")) == ("wait", {"any": ["sleep#0"]}), answer
    assert [op["id"] for op in answer["ops"]] == ["sleep#0"]


async def test_events_are_validated_and_children_are_asked_for_by_name(dispatcher: Dispatcher) -> None:
    tester = DurableTester([declared := shipping(dispatcher)], children={"ship": lambda given: {"to": given["to"].upper()}})
    tester.push("paid", {"amount": "7", "paid_at": AT}, after="1s")
    run = await tester.run(declared)
    assert run.output == [7, {"to": "A"}, ["run_", {"to": "B"}]]
    keyed = [one.metadata for one in tester.double.runs.values() if one.workflow == "ship"]
    assert keyed == [{"of": "order"}, None]


def shipping(dispatcher: Dispatcher) -> Any:
    ship = dispatcher.stubs.task("ship", dict[str, Any])

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        bill = await ctx.aio_wait_for_event("paid", payload_validator=Bill)
        shipped = await ship.aio_run({"to": "a"}, additional_metadata={"of": "order"})
        ref = await ship.aio_run_no_wait({"to": "b"})
        return [bill.amount, shipped, [ref.workflow_run_id[:4], await ref.aio_result()]]

    return order


GATHERED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "gather": asyncio.gather,
    "gather in gather": lambda event, one, other: asyncio.gather(one, asyncio.gather(event, other)),
    "first exception": lambda *ops: asyncio.wait(ops, return_when=asyncio.FIRST_EXCEPTION),
}


@pytest.mark.parametrize("gathered", GATHERED.values(), ids=GATHERED.keys())
@pytest.mark.parametrize(("amount", "turns", "waited"), [("x", 2, timedelta(minutes=1)), ("7", 3, timedelta(days=30))])
async def test_data_that_is_refused_is_raised_when_it_comes(
    dispatcher: Dispatcher, gathered: Callable[[Any, Any, Any], Any], amount: str, turns: int, waited: timedelta
) -> None:
    """The dispatcher knows it as an event that has come, with which a group goes on waiting for the rest."""

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> str:
        start, bill = ctx.now(), ctx.aio_wait_for_event("paid", payload_validator=Bill)
        with suppress(InvalidInputError):
            await gathered(bill, ctx.aio_sleep_for("30d"), ctx.aio_sleep_for("20d"))
        return str(ctx.now() - start)

    tester = DurableTester([order])
    tester.push("paid", {"amount": amount, "paid_at": AT}, after="1m")
    run = await tester.run(order)
    assert (run.output, run.turn) == (str(waited), turns)


async def test_what_blocks_is_refused_with_what_to_use(dispatcher: Dispatcher) -> None:
    ship = dispatcher.stubs.task("ship", dict[str, Any])

    async def body(ctx: DurableContext) -> Any:
        return ship.run({})

    answer = await outcome_of(dispatcher, body)
    assert "aio_run" in answer["error"]["message"]


async def test_what_a_handler_says_is_said_once(dispatcher: Dispatcher) -> None:
    @dispatcher.durable_task()
    async def talk(input: EmptyModel, ctx: DurableContext) -> None:
        async def step() -> None:
            await ctx.aio_log("in a step", raise_on_error=True)

        for n in range(3):
            ctx.log(f"line {n}")
            await ctx.aio_put_stream(f"piece {n}")
            ctx.progress(n / 3)
            await ctx.aio_sleep_for("1s")
        await ctx.aio_log("awake")
        await ctx.run("step", step)

    tester = DurableTester([talk])
    run = await tester.run(talk)
    assert (run.status, run.turn) == ("succeeded", 4)
    said = [event.get("message") or event.get("data") or event.get("fraction") for event in tester.double.said]
    assert said == ["line 0", "piece 0", 0.0, "line 1", "piece 1", 1 / 3, "line 2", "piece 2", 2 / 3, "awake", "in a step"]


async def test_a_dispatcher_that_takes_one_attempt_at_a_time_is_spoken_to_so(api: FakeApi, dispatcher: Dispatcher) -> None:
    api.answer = lambda _: (200, {"ok": True})
    api.groups = False
    app = order_app(dispatcher)
    for number in (1, 2):
        assert said(await push(app, {**turn("order"), "id": item("order", number=number)["id"]}))["base"] == 1
    assert [asked.path for asked in api.asked] == ["/v1/callbacks", "/v1/callback", "/v1/callback"]


# ---- children of plain tasks


def runs_of(asked: list[Asked]) -> list[dict[str, Any]]:
    bodies = [one.json for one in asked if one.path in ("/v1/runs", "/v1/runs/bulk")]
    return [run for body in bodies for run in body.get("runs", [body])]


async def test_a_plain_tasks_children_are_started_once(api: FakeApi, dispatcher: Dispatcher) -> None:
    child = dispatcher.stubs.task("child", dict[str, Any])

    def answer(asked: Asked) -> tuple[int, Any]:
        document = {"id": "run_1", "status": "succeeded", "output": 5, "duplicate": True}
        return 200, {"rows": [document] * len(asked.json["runs"])} if asked.path.endswith("bulk") else document

    api.answer = answer

    @dispatcher.task()
    async def parent(input: EmptyModel, ctx: Context) -> Any:
        late = child.aio_run({"n": 0})
        results = [await child.aio_run({"n": 1}, child_key="named"), *await child.aio_run_many([child.create_bulk_run_item({"n": 2})])]
        return [*results, await late]

    @dispatcher.task()
    def blocking(input: EmptyModel, ctx: Context) -> Any:
        return [child.run({"n": 3}), child.run_no_wait({"n": 4}).workflow_run_id]

    app = dispatcher.app([parent, blocking], clock=clock)
    assert (await run(app, "parent")).json() == [5, 5, 5]
    assert (await run(app, "blocking")).json() == [5, "run_1"]
    assert (await run(app, "parent", attempt=2)).json() == [5, 5, 5]
    key = f"child:{item('parent')['id']}:"
    found = {(one["input"]["n"], one["idempotency_key"].removeprefix(key), one["parent_run_id"]) for one in runs_of(api.asked)}
    assert found == {(0, "0", item("x")["run_id"]), (1, "named", item("x")["run_id"]), (2, "1", item("x")["run_id"])} | {
        (3, "0", item("x")["run_id"]),
        (4, "1", item("x")["run_id"]),
    }


async def test_outside_of_tasks_a_child_key_says_nothing_and_own_keys_collide(api: FakeApi, dispatcher: Dispatcher) -> None:
    api.answer = lambda _: (200, {"id": "run_1", "status": "succeeded", "output": 5, "duplicate": False})
    child = dispatcher.stubs.task("child", dict[str, Any])
    assert await child.aio_run({}, child_key="x") == 5
    assert runs_of(api.asked) == [{"workflow": "child", "input": {}}]

    @dispatcher.task()
    async def parent(input: EmptyModel, ctx: Context) -> str:
        with pytest.raises(IdempotencyCollisionError):
            await child.aio_run({}, idempotency_key="mine")
        return "raised"

    api.answer = lambda _: (200, {"id": "run_1", "status": "queued", "duplicate": True})
    assert (await run(dispatcher.app([parent], clock=clock), "parent")).json() == "raised"


# ---- state mode


def reducer_app(dispatcher: Dispatcher) -> App:
    @dispatcher.durable_task(mode="state")
    async def order(input: dict[str, Any], ctx: StateContext) -> Any:
        if ctx.cancelled:
            return None
        if ctx.state is None:
            ctx.event("paid", "order/9/paid", timeout="1d")
            ctx.sleep_for("reminder", "1h")
            return ctx.wait({"at": "payment"})
        if "reminder" in ctx.results:
            ctx.child("mail", "mail", {"to": "you"}, on_cancel="abandon")
            return ctx.wait({"at": "reminded"}, all=["mail"])
        if ctx.state["at"] == "reminded":
            return ctx.again({"at": "mailed"})
        return {"paid": ctx.results["paid"].ok}

    return dispatcher.app([order], clock=clock)


async def test_a_reducer_gets_its_state_and_what_has_settled(dispatcher: Dispatcher) -> None:
    app = reducer_app(dispatcher)

    async def next_turn(number: int, state: Any = None, *results: dict[str, Any]) -> dict[str, Any]:
        body = turn("order", turn=number, mode="state", state=state, results=list(results))
        del body["log"]
        return said(await push(app, body))

    first = await next_turn(1)
    assert first == {
        "status": "wait",
        "ops": [
            {"id": "paid#1", "op": "event", "status": "pending", "key": "order/9/paid", "timeout_ms": 86_400_000},
            {"id": "reminder#1", "op": "sleep", "status": "pending", "ms": 3_600_000},
        ],
        "wake": {"any": ["paid#1", "reminder#1"]},
        "state": {"at": "payment"},
    }
    second = await next_turn(2, first["state"], {"id": "reminder#1", "op": "sleep", "status": "ok", "at": AT})
    assert (second["wake"], second["ops"][0]["on_cancel"]) == ({"all": ["mail#2"]}, "abandon")
    third = await next_turn(3, second["state"], {"id": "mail#2", "op": "child", "status": "error", "error": {}, "run_id": "run_1"})
    assert third == {"status": "again", "ops": [], "state": {"at": "mailed"}}
    last = await next_turn(4, third["state"], {"id": "paid#1", "op": "event", "status": "ok", "value": {}, "at": AT})
    assert last == {"status": "done", "ops": [], "output": {"paid": True}}
    broken = await next_turn(5, {"at": "lost"})
    assert (broken["status"], broken["error"]["name"]) == ("failed", "KeyError")


# ---- declarations


def test_durable_tasks_are_declared_in_the_manifest(dispatcher: Dispatcher) -> None:
    @dispatcher.durable_task(pin="latest")
    async def order(input: EmptyModel, ctx: DurableContext) -> None: ...

    wf = dispatcher.workflow("wf")

    @wf.task()
    async def first(input: EmptyModel, ctx: Context) -> None: ...

    @wf.durable_task(parents=[first])
    async def ship(input: EmptyModel, ctx: DurableContext) -> None: ...

    manifest = dispatcher.app([order, wf]).handlers.manifest()
    assert "durable" in manifest["features"]
    entry, workflow = manifest["handlers"]
    assert (entry["kind"], entry["mode"], entry["pin"]) == ("durable", "replay", "latest")
    assert [(task["name"], task.get("kind"), task.get("mode")) for task in workflow["tasks"]] == [
        ("first", None, None),
        ("ship", "durable", "replay"),
    ]


def test_declarations_that_cannot_be_meant(dispatcher: Dispatcher) -> None:
    def blocking(input: EmptyModel, ctx: DurableContext) -> None: ...

    with pytest.raises(ConfigError, match="async"):
        dispatcher.durable_task()(blocking)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pin='newest'"):
        dispatcher.durable_task(pin="newest")  # type: ignore[call-overload]


# ---- an exported run


async def test_an_exported_run_is_replayed_here(dispatcher: Dispatcher) -> None:
    app = order_app(dispatcher)
    tester = DurableTester([app_workflow(dispatcher)])
    run = await tester.run("order")
    document = {"id": run.id, "workflow": "order", "input": run.input, "tasks": [{"id": run.task_id, "name": "order"}]}
    journal = {"id": run.id, "entries": run.entries, "logs": []}
    for text in (json.dumps(document) + "\n" + json.dumps(journal, indent=1), json.dumps({**document, "journal": run.entries})):
        export = read_export(text)
        assert replay_export(export, app.handlers.definitions)["output"] == run.output
    logs = [{"task": "order", "current": True, "seed": "5eed", "started_at": AT, "input": {"n": 1}, "entries": run.entries}]
    told = read_export(json.dumps({**document, "journal": {"entries": [], "logs": logs}}))
    assert (told.seed, told.started_at, told.input, told.task_run_id) == ("5eed", AT, {"n": 1}, run.task_id)
    cut = Export(document, "", run.entries[:2], "", AT, {})
    assert replay_export(cut, app.handlers.definitions) == {"task": "order", "entries": 2, "outcome": "waits", "asks": ["sleep#0"]}
    other = [{**entry, "id": entry["id"].replace("second", "last")} for entry in run.entries]
    assert replay_export(Export(document, "", other, "", AT, {}), app.handlers.definitions)["outcome"] == "mismatch"


def app_workflow(dispatcher: Dispatcher) -> Any:
    @dispatcher.durable_task(name="order")
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        first = await ctx.run("first", echo, 1)
        await ctx.aio_sleep_for("1h")
        return [first, await ctx.run("second", echo, 2)]

    return order


@pytest.mark.parametrize("text", ["{", '{"id": "run_1", "workflow": "order"}', "[]"])
def test_a_file_that_is_no_export_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_export(text)


def test_items_are_taken_as_they_stand() -> None:
    assert raw_items(b'{"a": [1], "ops":[ {"x" : 1.50}, 2 ,"\\u00e9]"]}', "ops") == [b'{"x" : 1.50}', b"2", b'"\\u00e9]"']
    assert raw_items(b"{}", "ops") == []


def test_the_cache_of_logs_counts_what_its_entries_take() -> None:
    """Large values push out the log that was not used for longest; a log that is kept again counts what it was counted as."""
    cache = LogCache(bytes_max=30_000)
    large = json.dumps({"id": "a#0", "value": "é" * 5_000}, ensure_ascii=False).encode()
    head = "00" * 32
    cache.keep("tsk_1", [json.loads(large)], 1, head, [])
    cache.keep("tsk_2", [], 0, None, [large])
    known = cache.prefix("tsk_1", 1, head)
    for _ in range(3):
        assert known is not None
        cache.keep("tsk_1", known, 1, head, [])
        known = cache.prefix("tsk_1", 1, head)
    assert cache.prefix("tsk_2", 1, hashlib.sha256(large).hexdigest()) == [json.loads(large)]
    cache.keep("tsk_3", [json.loads(large)], 1, head, [])
    assert cache.prefix("tsk_1", 1, head) is None
    assert cache.prefix("tsk_2", 1, hashlib.sha256(large).hexdigest()) is not None
    assert cache.prefix("tsk_3", 1, head) is not None
