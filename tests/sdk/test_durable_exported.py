"""Code against recorded logs: with what an attempt of it would be given, and whatever becomes of that."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from handlers_sdk import ClientConfig, Context, Depends, Dispatcher, DurableContext, EmptyModel, InvalidInputError, TaskOutputError
from handlers_sdk.exported import read_export, replay_export
from handlers_sdk.replay import Raised, Returned
from handlers_sdk.testing import DurableTester, replay_journal
from tests.sdk.pushing import AT

LOG: list[dict[str, Any]] = [
    {"id": "sleep#0", "op": "sleep", "status": "pending", "ms": 3_600_000, "at": AT},
    {"id": "sleep#0", "op": "sleep", "status": "ok", "at": AT},
]
dispatcher = Dispatcher(ClientConfig())


class Order(BaseModel):
    number: int


def settings(input: Order, ctx: Context) -> dict[str, Any]:
    return {"currency": "EUR"}


async def connection(input: Order, ctx: Context, settings: Annotated[dict[str, Any], Depends(settings)]) -> AsyncIterator[list[Any]]:
    opened: list[Any] = [ctx.lifespan, input.number, settings["currency"]]
    yield opened
    opened.append("closed")


def broken(input: Order, ctx: Context) -> Iterator[str]:
    raise ConnectionError("no database here")
    yield "never"


@dispatcher.durable_task()
async def order(input: Order, ctx: DurableContext, db: Annotated[list[Any], Depends(connection)]) -> list[Any]:
    await ctx.aio_sleep_for("1h")
    return db


@dispatcher.durable_task()
async def offline(input: Order, ctx: DurableContext, db: Annotated[str, Depends(broken)]) -> str:
    await ctx.aio_sleep_for("1h")
    return db


async def test_dependencies_are_provided_as_for_an_attempt() -> None:
    run = await DurableTester([order], lifespan="pool").run(order, {"number": 7})
    assert run.output == ["pool", 7, "EUR"]
    outcome = replay_journal(order, run.entries, {"number": 7}, lifespan="pool")
    assert outcome == Returned(["pool", 7, "EUR", "closed"]), "and closed when it is over"


def test_or_are_given_and_nobody_is_asked_for_them() -> None:
    assert replay_journal(offline, LOG, {"number": 7}, dependencies={"db": "here"}) == Returned("here")
    with pytest.raises(TypeError, match="given were"):
        replay_journal(offline, LOG, {"number": 7}, dependencies={"database": "here"})


@pytest.mark.parametrize(("input", "error"), [({"number": "x"}, InvalidInputError), ({"number": 7}, ConnectionError)])
def test_what_keeps_a_handler_from_beginning_is_what_it_comes_to(input: Any, error: type[Exception]) -> None:
    outcome = replay_journal(offline, LOG, input)
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, error)


def test_an_exported_input_that_fits_no_more_is_a_failure() -> None:
    text = '{"id": "run_1", "workflow": "order", "input": {"number": "x"}, "journal": []}'
    told = replay_export(read_export(text), order.definitions)
    assert (told["outcome"], told["error"]["name"]) == ("failed", "InvalidInputError")


def test_what_it_says_reaches_nobody_and_names_are_its_apps() -> None:
    app = Dispatcher(ClientConfig(namespace="blue_"))

    @app.durable_task()
    async def waits(input: EmptyModel, ctx: DurableContext) -> str:
        ctx.log("begun")
        ctx.progress(0.5)
        await ctx.aio_wait_for_event("paid")
        ctx.put_stream("done")
        return "paid"

    asked: dict[str, Any] = {"id": "event#0", "op": "event", "status": "pending", "key": "blue_paid", "at": AT}
    log = [asked, {"id": "event#0", "op": "event", "status": "ok", "value": {"data": {}}, "at": AT}]
    assert replay_journal(waits, log, {}) == Returned("paid")


# ---- in a graph

flow = dispatcher.workflow(name="flow")


@flow.task()
def price(input: EmptyModel, ctx: Context) -> dict[str, int]:
    return {"total": 5}


@flow.task()
def coupon(input: EmptyModel, ctx: Context) -> dict[str, int]:
    return {"off": 1}


@flow.durable_task(parents=[price, coupon])
async def bill(input: EmptyModel, ctx: DurableContext) -> int:
    await ctx.aio_sleep_for("1h")
    return ctx.task_output(price)["total"] - (0 if ctx.was_skipped(coupon) else ctx.task_output(coupon)["off"])


def test_a_task_of_a_graph_has_what_its_parents_gave() -> None:
    tasks: list[dict[str, Any]] = [
        {"id": "tsk_1", "name": "price", "status": "succeeded", "output": {"total": 5}},
        {"id": "tsk_2", "name": "coupon", "status": "skipped", "output": None},
        {"id": "tsk_3", "name": "bill", "status": "running", "output": None},
    ]
    run: dict[str, Any] = {"id": "run_1", "workflow": "flow", "input": {}, "tasks": tasks, "journal": LOG}
    assert _replayed(run)["output"] == 5
    tasks[1] |= {"status": "succeeded", "output": {"off": 2}}
    assert _replayed(run)["output"] == 3
    parents = {"price": {"status": "succeeded", "output": {"total": 9}}, "coupon": {"status": "skipped"}}
    assert replay_journal(flow, LOG, {}, {"parents": parents}) == Returned(9)
    outcome = replay_journal(flow, LOG, {})
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, TaskOutputError)


def _replayed(run: dict[str, Any]) -> dict[str, Any]:
    return replay_export(read_export(json.dumps(run)), flow.definitions)
