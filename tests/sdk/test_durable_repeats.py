"""What is the same in every turn of a durable task, whatever its handler does with it and however much of its log is known already."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from handlers_sdk import Dispatcher, DurableContext, StepFailedError
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


async def test_what_a_step_draws_is_not_missed_by_its_handler(dispatcher: Dispatcher) -> None:
    """It draws the same whenever it is tried, and nobody else draws that."""
    drawn: list[list[str]] = []

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        async def draw() -> list[str]:
            drawn.append([str(ctx.uuid()), str(ctx.random.random())])
            if len(drawn) % 2:
                raise ValueError("again")
            return drawn[-1]

        def draw_blocking() -> list[str]:
            return [str(ctx.uuid()), str(ctx.random.random())]

        before = str(ctx.uuid())
        inside = [*await ctx.run("draw", draw, retries=1), *await ctx.run("draw", draw, retries=1), *await ctx.run("block", draw_blocking)]
        after = [str(ctx.uuid()), str(ctx.random.random())]
        kept = await ctx.run("kept", echo, after)
        await ctx.aio_sleep_for("1h")
        return [before, *inside, *after, *kept]

    run = await DurableTester([order]).run(order)
    assert run.status == "succeeded", run.error
    *others, first, second, kept_first, kept_second = run.output
    assert [first, second] == [kept_first, kept_second]
    assert len({*others, first, second}) == 9
    assert (drawn[0], drawn[2]) == (drawn[1], drawn[3])


# ---- context variables


SEEN: ContextVar[str] = ContextVar("seen", default="nothing")


async def test_a_step_sees_what_its_handler_has_set_and_sets_nothing_for_others(dispatcher: Dispatcher) -> None:
    """As in a task of its own: what it sets would be seen live, and not in a replay."""
    started = asyncio.Event()

    async def look(setting: str) -> str:
        before = SEEN.get()
        SEEN.set(setting)
        await asyncio.sleep(0)
        return f"{before}-{SEEN.get()}"

    def look_blocking(setting: str) -> str:
        return SEEN.get()

    async def fails() -> None:
        SEEN.set("failed")
        await asyncio.sleep(0)
        raise ValueError("no")

    async def cancelled() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert SEEN.get() == "scope"
        return "never"

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        async def part() -> Any:
            SEEN.set("scope")
            slow = ctx.run("slow", cancelled)
            seen = await ctx.run("scoped", look, "d")
            slow.cancel()
            return seen

        first = await ctx.run("first", look, "a")
        SEEN.set("handler")
        both = await asyncio.gather(ctx.run("second", look, "b"), ctx.run("block", look_blocking, "c"))
        with suppress(StepFailedError):
            await ctx.run("fails", fails)
        return [first, *both, await ctx.scope("part", part), await ctx.run("timed", look, "e", timeout="1m"), SEEN.get()]

    def made(crash_at: int | None) -> DurableTester:
        return DurableTester([order], crash_at=crash_at)

    run = await made(None).run(order)
    assert (run.status, run.output) == ("succeeded", ["nothing-a", "handler-b", "handler", "scope-d", "handler-e", "handler"]), run.error
    assert started.is_set()
    assert await crash_everywhere(made, order) > 10


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
