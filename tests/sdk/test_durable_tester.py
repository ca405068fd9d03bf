"""The testing kit's dispatcher: what is given to it travels as it does to a real one, and turns are sent again as they are by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, DurableContext, EmptyModel, StateContext
from handlers_sdk.errors import InvalidInputError
from handlers_sdk.testing import DurableTester, crash_everywhere
from tests.sdk.fake_api import FakeApi

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Order(BaseModel):
    """An input."""

    number: int
    placed: datetime


@dataclass
class Payment:
    """What an event may hold."""

    amount: int
    at: datetime


# ---- what it is given


async def test_what_is_not_json_yet_arrives_as_the_client_sends_it(api: FakeApi, dispatcher: Dispatcher) -> None:
    data = {"paid": AT, "payment": Payment(5, AT), "order": Order(number=1, placed=AT)}
    api.answer = lambda _: (202, {"event_id": "evt_1", "runs": []})
    dispatcher.event.push("paid", data)
    sent = api.asked[-1].json["data"]

    @dispatcher.durable_task()
    async def order(input: Order, ctx: DurableContext) -> Any:
        event, message = await ctx.aio_wait_for_event("paid"), await ctx.receive()
        return [input.placed == AT, event, message, await ctx.run_child("leaf", {"at": AT})]

    tester = DurableTester([order], children={"leaf": lambda given: {**given, "done": AT}})
    tester.push("paid", data, after="1m")
    tester.send(data, after="2m")
    data.clear()  # what becomes of it now is nobody's business
    run = await tester.run(order, Order(number=1, placed=AT))
    at = "2026-01-02T03:04:05Z"
    assert (run.status, run.output) == ("succeeded", [True, sent, sent, {"at": at, "done": at}]), run.error


@pytest.mark.parametrize(
    ("push", "real"),
    [
        (lambda tester, data: tester.push("paid", data, after="1m"), lambda client, data: client.event.push("paid", data)),
        (lambda tester, data: tester.double.push("paid", data), lambda client, data: client.event.push("paid", data)),
        (lambda tester, data: tester.send(data), lambda client, data: client.runs.send("run_1", data)),
        (lambda tester, data: tester.double.start("order", data), lambda client, data: client.runs.create("order", data)),
    ],
    ids=["push", "double.push", "send", "start"],
)
@pytest.mark.parametrize("wrong", [object(), float("nan"), "\0"], ids=["object", "nan", "nul"])
def test_what_cannot_be_json_is_refused_as_by_the_client(
    dispatcher: Dispatcher, push: Callable[[DurableTester, Any], Any], real: Callable[[Dispatcher, Any], Any], wrong: Any
) -> None:
    data = {"amount": wrong}
    with pytest.raises(InvalidInputError) as refused:
        real(dispatcher, data)
    with pytest.raises(InvalidInputError) as here:
        push(DurableTester([]), data)
    assert str(here.value) == str(refused.value)


async def test_a_stand_in_whose_output_cannot_be_json_fails(dispatcher: Dispatcher) -> None:
    @dispatcher.durable_task()
    async def order(input: EmptyModel, ctx: DurableContext) -> Any:
        return await ctx.run_child("leaf", {})

    tester = DurableTester([order], children={"leaf": lambda _: object()})
    run = await tester.run(order)
    [leaf] = [one for one in tester.double.runs.values() if one.workflow == "leaf"]
    assert (run.status, leaf.status) == ("failed", "failed")
    assert "not JSON" in (leaf.error or {})["message"]


# ---- turns


def which(ctx: Context) -> tuple[int, int]:
    """A turn's number, and its attempt's."""
    item: Any = ctx.item
    return item["turn"], item["attempt"]


async def test_a_turn_that_broke_off_is_sent_again_as_the_same(dispatcher: Dispatcher) -> None:
    seen: list[tuple[int, int, Any, list[str]]] = []

    @dispatcher.durable_task(mode="state")
    async def order(input: dict[str, Any], ctx: StateContext) -> Any:
        seen.append((*which(ctx), ctx.state, sorted(ctx.results)))
        if ctx.state is None:
            ctx.sleep_for("nap", "1h")
            return ctx.wait("asleep")
        return "rested"

    undisturbed = await DurableTester([order]).run(order)
    assert (undisturbed.output, seen) == ("rested", [(1, 1, None, []), (2, 2, "asleep", ["nap"])])
    seen.clear()
    await DurableTester([order], crash_at=lambda point: point in (0, 3)).run(order)  # as an answer is on its way
    assert seen == [(1, 1, None, []), (1, 2, None, []), (2, 3, "asleep", ["nap"]), (2, 4, "asleep", ["nap"])]
    await crash_everywhere(lambda at: DurableTester([order], crash_at=at), order)


async def test_a_turn_that_is_cancelled_and_breaks_off_is_followed_by_the_one_to_clean_up(dispatcher: Dispatcher) -> None:
    seen: list[Any] = []

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        seen.append(which(ctx))
        await ctx.run("a", seen.append, "a")
        try:
            await ctx.run("b", lambda: tester.double.cancel(ctx.workflow_run_id))
            await ctx.aio_sleep_for("1h")
        finally:
            await ctx.run("undo", seen.append, "undo")

    tester = DurableTester([order], crash_at=2)  # as the second step is recorded
    run = await tester.run(order)
    assert (run.status, seen) == ("cancelled", [(1, 1), "a", (2, 2), "undo"])
