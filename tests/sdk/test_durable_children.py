"""Children that steps of durable tasks start: once for a try that is repeated, and others in a log that begins anew."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from handlers_sdk import Context, Depends, Dispatcher, DurableContext, EmptyModel, StateContext
from handlers_sdk.children import child_here
from handlers_sdk.testing import DurableTester
from tests.sdk.pushing import clock, push, said, turn


def key(of: str | None = None) -> str:
    """What a child started here is keyed by."""
    child = child_here(of)
    assert child is not None
    return child.key


async def test_a_step_that_is_tried_again_asks_for_the_same_children(dispatcher: Dispatcher) -> None:
    tries: list[list[str]] = []

    async def ship() -> None:
        tries.append([key(), key("named"), *await asyncio.gather(started(), started())])
        if len(tries) < 3:
            raise ValueError("once more")

    def blocking() -> list[str]:
        return [key(), key()]

    async def started() -> str:
        return key()

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        await ctx.run("ship", ship, retries=2)
        return [*await ctx.run("ship", blocking), *await ctx.run("ship", blocking)]

    run = await DurableTester([order]).run(order)
    assert run.status == "succeeded"
    assert tries == [tries[0]] * 3
    keys = {*tries[0], *run.output}
    assert len(keys) == 4 + 4
    assert all(one.startswith(f"child:{run.task_id}:") for one in keys)


async def test_after_continue_all_is_another_but_what_has_a_key(dispatcher: Dispatcher) -> None:
    keys: list[str] = []
    named: list[str] = []
    drawn: list[Any] = []
    provided: list[str] = []

    async def ship() -> None:
        keys.append(key())
        named.append(key("named"))

    async def needed(input: Any, ctx: Context) -> None:
        provided.append(key())

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext, _: Annotated[None, Depends(needed)]) -> None:
        drawn.append((str(ctx.uuid()), ctx.random.random()))
        await ctx.run("ship", ship)
        if input["n"] < 2:
            ctx.continue_as_new({"n": input["n"] + 1})

    run = await DurableTester([order]).run(order, {"n": 0})
    assert run.status == "succeeded"
    assert [len(set(one)) for one in (keys, provided, drawn, named)] == [3, 3, 3, 1]


async def test_a_reducer_counts_the_children_of_each_turn(dispatcher: Dispatcher) -> None:
    keys: list[list[str]] = []

    @dispatcher.durable_task(mode="state")
    async def order(input: EmptyModel, ctx: StateContext) -> Any:
        keys.append([key(), key()])
        ctx.sleep_for("nap", "1h")
        return ctx.wait("napping")

    app = dispatcher.app([order], clock=clock)
    for attempt, number in ((1, 1), (2, 1), (3, 2)):
        body = turn("order", attempt=attempt, turn=number, mode="state", state=None, results=[])
        del body["log"]
        assert said(await push(app, body))["status"] == "wait"
    first, sent_again, second = keys
    assert first == sent_again
    assert len({*first, *second}) == 4
