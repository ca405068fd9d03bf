"""What is the same in every turn of a durable task, whatever its handler does with it and however much of its log is known already."""

from __future__ import annotations

import gc
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from handlers_sdk import Dispatcher, DurableContext
from handlers_sdk.testing import DurableTester, crash_everywhere


async def echo(value: Any) -> Any:
    return value


@pytest.mark.parametrize("delta", [True, False])
async def test_a_handler_may_change_what_it_was_given(dispatcher: Dispatcher, delta: bool) -> None:
    """The log it is from is kept here, and later turns are replayed from that."""
    seen = []

    async def inside(ctx: DurableContext) -> Any:
        return await ctx.run("in", echo, {"list": [1]})

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        step = await ctx.run("load", echo, {"items": [["a"]]})
        event = await ctx.aio_wait_for_event("paid")
        message = await ctx.receive()
        child = await ctx.run_child("leaf", {})
        scope = await ctx.scope("part", inside, ctx)
        seen.append(repr((step, event, message, child, scope)))
        step["items"][0].append("b")
        for given in (event, message, child, scope):
            given["list"].append(2)
        for _ in range(3):
            await ctx.aio_sleep_for("1h")
        return [step, event, message, child, scope]

    tester = DurableTester([order], children={"leaf": lambda _: {"list": [1]}}, delta=delta)
    tester.push("paid", {"list": [1]}, after="1m")
    tester.send({"list": [1]}, after="2m")
    run = await tester.run(order)
    assert (run.status, run.output) == ("succeeded", [{"items": [["a", "b"]]}, *[{"list": [1, 2]}] * 4])
    assert len(seen) > 3
    assert len(set(seen)) == 1


# ---- chance


async def test_chance_is_the_same_once_a_scope_is_closed(dispatcher: Dispatcher) -> None:
    """What was drawn inside is not drawn again, wherever the numbers were first asked for."""
    seen = []

    async def inner(ctx: DurableContext) -> list[str]:
        return [str(ctx.uuid()), str(ctx.random.random())]

    async def outer(ctx: DurableContext) -> Any:
        return [*await inner(ctx), await ctx.scope("inner", inner, ctx), *await inner(ctx)]

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        drawn: list[Any] = await inner(ctx) if input["before"] else []
        for _ in range(2):
            drawn += [await ctx.scope("outer", outer, ctx), *await inner(ctx)]
            await ctx.aio_sleep_for("1h")
        seen.append(repr(drawn))
        await ctx.run("kept", echo, drawn)
        await ctx.aio_sleep_for("1h")
        return drawn

    for before in (False, True):
        seen.clear()
        run = await DurableTester([order]).run(order, {"before": before})
        assert run.status == "succeeded"
        assert (len(seen), len(set(seen))) == (2, 1)
        texts = re.findall(r"'(.*?)'", seen[0])
        assert len(set(texts)) == len(texts)


# ---- what the collector finds


async def test_when_the_collector_runs_is_the_same_to_a_handler(dispatcher: Dispatcher) -> None:
    """A generator among what a failure holds is left where it is: that it is found, and when, is in no log."""

    async def rows(ctx: DurableContext) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await ctx.run("closed", echo, 1)

    async def failing(ctx: DurableContext) -> None:
        begun = rows(ctx)
        try:
            async for _ in begun:
                raise ValueError("no")
        except ValueError as error:
            last = error  # which knows where it was raised, as that knows it
            await ctx.run("failed", echo, str(last))

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        await failing(ctx)
        await ctx.run("collect", gc.collect)
        await ctx.aio_sleep_for("1h")
        return await ctx.run("done", echo, "done")

    def made(crash_at: int | None) -> DurableTester:
        return DurableTester([order], crash_at=crash_at)

    run = await made(None).run(order)
    assert (run.status, run.output, [entry["id"] for entry in run.entries if entry["op"] == "step"]) == (
        "succeeded",
        "done",
        ["failed#0", "collect#0", "done#0"],
    )
    assert await crash_everywhere(made, order) > 8
