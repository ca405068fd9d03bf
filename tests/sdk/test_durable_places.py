"""What durable tasks ask of where they and their children run, and what becomes of their turns when the endpoint ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from handlers_sdk import (
    Context,
    DesiredWorkerLabel,
    Dispatcher,
    DurableContext,
    StateContext,
    TriggerWorkflowOptions,
    WorkerLabelComparator,
)
from tests.sdk.fake_api import FakeApi
from tests.sdk.pushing import AT, ENDPOINT, batch, clock, headers_for, item, push, run, said, turn


async def echo(value: Any) -> Any:
    return value


# ---- turns that are stopped


class Held:
    """An app with a task of two steps, whose second waits until it is let go."""

    def __init__(self, dispatcher: Dispatcher, **options: Any) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

        async def second() -> int:
            self.begun.set()
            await self.go.wait()
            return 2

        async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
            nap = ctx.aio_sleep_for("1h")
            one = await ctx.run("first", echo, 1)
            return [one, await ctx.run("second", second), await ctx.run("third", echo, 3), await nap]

        self.app = dispatcher.app([dispatcher.durable_task(**options)(order)], clock=clock)
        self.answer = asyncio.create_task(push(self.app, turn("order")))

    async def said(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return said(await self.answer)


async def test_what_a_stopped_turn_has_done_goes_with_its_answer(dispatcher: Dispatcher) -> None:
    """Carried results would be lost with it, and their steps run again."""
    held = Held(dispatcher, checkpoint="turn")
    await held.begun.wait()
    await push(held.app, {"protocol": 1, "type": "cancel", "audience": ENDPOINT, "id": turn("order")["id"], "attempt": 1, "reason": "no"})
    answer = await held.said()
    assert (answer["status"], answer["base"], [op["id"] for op in answer["ops"]]) == ("again", 0, ["first#0"])


async def test_so_does_what_one_did_that_ran_out_of_time(dispatcher: Dispatcher) -> None:
    held = Held(dispatcher, checkpoint="turn")
    await held.begun.wait()
    (execution,) = held.app.handlers.host.running.values()
    execution._armed = execution._due
    execution._expire()
    answer = await held.said()
    assert (answer["status"], answer["error"]["code"], [op["id"] for op in answer["ops"]]) == ("failed", "timed_out", ["first#0"])


@pytest.mark.parametrize("checkpoint", ["turn", "step"])
async def test_an_endpoint_that_ends_leaves_its_turns_where_another_goes_on(api: FakeApi, dispatcher: Dispatcher, checkpoint: str) -> None:
    """The step under way comes to its end, and is recorded; none is begun."""
    held = Held(dispatcher, checkpoint=checkpoint)
    await held.begun.wait()
    held.app.handlers.draining = True
    held.go.set()
    answer = await held.said()
    recorded = [op for _, events in api.said() for event in events for op in event["ops"]] + answer["ops"]
    assert answer["status"] == "again"
    assert {op["id"] for op in recorded} == {"sleep#0", "first#0", "second#0"}
    assert answer["base"] == (0 if checkpoint == "turn" else 3)


async def test_one_that_had_done_nothing_is_sent_elsewhere(dispatcher: Dispatcher) -> None:
    """`again` without progress would count as a failure."""

    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        app.handlers.draining = True
        return await ctx.run("first", echo, 1)

    app = dispatcher.app([dispatcher.durable_task()(order)], clock=clock)
    refused = await push(app, turn("order"))
    assert (refused.status, refused.json()["code"], refused.headers["retry-after"]) == (503, "shutting_down", "1")


@pytest.mark.parametrize("checkpoint", ["turn", "step"])
async def test_an_endpoint_whose_time_is_up_says_so_and_keeps_what_was_done(dispatcher: Dispatcher, checkpoint: str) -> None:
    """Its server cancels what is under way. Nothing said would be answered with 500 by the server, which fails the task."""
    held = Held(dispatcher, checkpoint=checkpoint)
    await held.begun.wait()
    held.app.handlers.draining = True
    held.answer.cancel()
    answer = await held.said()
    assert (answer["status"], [op["id"] for op in answer["ops"]]) == ("again", ["first#0"] if checkpoint == "turn" else [])
    assert answer["base"] == (0 if checkpoint == "turn" else 2)


@pytest.mark.parametrize("kind", ["turn", "run", "batch"])
async def test_what_has_done_nothing_yet_is_asked_for_again(dispatcher: Dispatcher, kind: str) -> None:
    begun = asyncio.Event()

    async def stuck() -> None:
        begun.set()
        await asyncio.Event().wait()

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        await ctx.run("stuck", stuck)

    @dispatcher.task()
    async def plain(input: dict[str, Any], ctx: Context) -> Any:
        await stuck()

    app = dispatcher.app([order, plain], clock=clock)
    sent = push(app, turn("order")) if kind == "turn" else run(app, "plain") if kind == "run" else batch(app, item("plain"))
    answer = asyncio.create_task(sent)
    await begun.wait()
    app.handlers.draining = True
    answer.cancel()
    refused = await answer
    assert (refused.status, refused.json()["code"], refused.headers["task-protocol"]) == (503, "shutting_down", "1")


async def test_any_server_that_ends_is_answered_for(dispatcher: Dispatcher) -> None:
    """One that does not tell the app beforehand: it cancels requests, and answers 500 to what says nothing."""
    held = Held(dispatcher)
    held.answer.cancel()
    body = json.dumps(turn("order")).encode()
    headers = [(name.encode(), value.encode()) for name, value in headers_for(body).items()]
    said: list[Any] = []

    async def receive() -> Any:
        if said:
            await asyncio.Event().wait()
        said.append("body")
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        said.append(message)

    request = asyncio.create_task(held.app({"type": "http", "method": "POST", "headers": headers}, receive, send))
    await held.begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert [message.get("status") for message in said[1:]] == [200, None]
    assert json.loads(said[2]["body"]) == {"status": "again", "base": 2, "ops": []}


# ---- children


@pytest.mark.parametrize("by_name", [True, False])
async def test_a_child_says_where_it_wants_to_run(dispatcher: Dispatcher, by_name: bool) -> None:
    ship = dispatcher.stubs.task("ship", dict[str, Any])
    gpu = [DesiredWorkerLabel("gpu", 1, WorkerLabelComparator.GREATER_THAN, required=True)]

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        options: dict[str, Any] = {"key": "k", "priority": 2, "on_cancel": "abandon", "desired_worker_labels": gpu, "sticky": True}
        if by_name:
            return await ctx.run_child("ship", {}, **options)
        return await ctx.run_child(ship, {}, **options)

    app = dispatcher.app([order], clock=clock)
    (op,) = said(await push(app, turn("order")))["ops"]
    wanted = {"value": 1, "comparator": "GREATER_THAN", "required": True, "weight": 100}
    asked = {"key": "k", "priority": 2, "labels": {"gpu": wanted}, "sticky": True, "on_cancel": "abandon"}
    assert {**op, "at": AT} == {"id": "ship#0", "op": "child", "status": "pending", "workflow": "ship", "input": {}, **asked, "at": AT}
    settled = {"id": "ship#0", "op": "child", "status": "ok", "value": {"n": 1}, "run_id": "run_1", "at": AT}
    again = said(await push(app, turn("order", [{**op, "run_id": "run_1"}, settled])))
    assert (again["status"], again["output"]) == ("done", {"n": 1})


async def test_so_do_children_of_tasks_as_they_are_run_anywhere(dispatcher: Dispatcher) -> None:
    ship = dispatcher.stubs.task("ship", dict[str, Any])
    options = TriggerWorkflowOptions(desired_worker_labels={"zone": DesiredWorkerLabel(value="x")}, sticky=True)

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        return await ship.aio_run_many([ship.create_bulk_run_item({}, options=options) for _ in range(2)])

    ops = said(await push(dispatcher.app([order], clock=clock), turn("order")))["ops"]
    assert [(op["labels"]["zone"]["value"], op["sticky"]) for op in ops] == [("x", True)] * 2


async def test_a_key_that_others_may_hold_is_no_childs(dispatcher: Dispatcher) -> None:
    """It would be dropped in silence: children are known by their parent."""
    ship = dispatcher.stubs.task("ship", dict[str, Any])

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        return await ship.aio_run({}, idempotency_key="order-9")

    failed = said(await push(dispatcher.app([order], clock=clock), turn("order")))
    assert (failed["status"], failed["error"]["name"]) == ("failed", "ConfigError")
    assert "child_key" in failed["error"]["message"]


async def test_a_reducers_child_says_so_too(dispatcher: Dispatcher) -> None:
    @dispatcher.durable_task(mode="state")
    async def order(input: dict[str, Any], ctx: StateContext) -> Any:
        ctx.child("mail", "mail", desired_worker_labels=[DesiredWorkerLabel("zone", "x")], sticky=True, priority=3, key="k")
        return ctx.wait({})

    body = turn("order", mode="state", state=None, results=[])
    del body["log"]
    (op,) = said(await push(dispatcher.app([order], clock=clock), body))["ops"]
    assert (op["labels"]["zone"]["value"], op["sticky"], op["priority"], op["key"]) == ("x", True, 3, "k")


# ---- labels of the endpoint


async def test_a_handler_changes_labels_once_and_not_again_in_every_turn(api: FakeApi, dispatcher: Dispatcher) -> None:
    seen: list[Any] = []

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        ctx.worker.upsert_labels({"model": "unset", "old": None})
        await ctx.run("load", echo, 1)
        await ctx.worker.aio_upsert_labels({"model": "v2"})
        seen.append(dict(ctx.worker_labels))
        await ctx.aio_sleep_for("1h")

    app = dispatcher.app([order], labels={"old": True, "zone": "x"}, clock=clock)
    await push(app, turn("order"))
    log = [{"id": "load#0", "op": "step", "status": "ok", "value": 1, "at": AT}]
    await push(app, turn("order", log, attempt=2, turn=2))
    changes = [event["labels"] for _, events in api.said() for event in events if event["type"] == "labels"]
    assert changes == [{"model": "unset", "old": None}, {"model": "v2"}, {"model": "v2"}], "where the log ends is where it goes on"
    assert seen == [{"zone": "x", "model": "v2"}] * 2


async def test_a_plain_task_changes_labels_too(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def load(input: dict[str, Any], ctx: Context) -> Any:
        await ctx.worker.aio_upsert_labels({"model": "v2"})
        return [dict(ctx.worker.labels), ctx.worker.name, ctx.worker.id == ctx.worker_id]

    answer = await run(dispatcher.app([load], labels={"zone": "x"}, name="here", clock=clock), "load")
    assert answer.json() == [{"zone": "x", "model": "v2"}, "here", True]
    assert [event for _, events in api.said() for event in events] == [{"type": "labels", "labels": {"model": "v2"}}]
