"""What is over leaves nothing behind: attempts are freed as they end, without waiting for the collector to look for cycles."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from handlers_sdk import App, Context, Dispatcher, DurableContext, EmptyModel, StateContext
from handlers_sdk.errors import NonRetryableException, StepFailedError
from tests.sdk.pushing import clock, item, push, run_body, turn

PLAIN = {"plain": 200, "logs": 200, "fails": 500, "blocks": 500}
TURNS = {
    "steps": "done",
    "reduces": "done",
    "sleeps": "wait",
    "holds": "wait",
    "groups": "wait",
    "cleans": "wait",
    "iterates": "wait",
    "keeps": "wait",
    "raises": "failed",
    "step_fails": "failed",
    "scope_fails": "done",
    "again": "continue",
}
"""What each handler's attempt comes to."""


async def double(value: int) -> int:
    return value * 2


async def bad() -> None:
    raise NonRetryableException("no")


def app(dispatcher: Dispatcher) -> App:
    """A handler of each name."""
    served: dict[str, Any] = {one.name: one for one in [*attempts(dispatcher), *suspended(dispatcher), *failing(dispatcher)]}
    assert sorted(served) == sorted([*PLAIN, *TURNS])
    return dispatcher.app([*served.values()], clock=clock)


def attempts(dispatcher: Dispatcher) -> list[Any]:
    @dispatcher.task()
    async def plain(input: EmptyModel, ctx: Context) -> int:
        return 1

    @dispatcher.task()
    async def logs(input: EmptyModel, ctx: Context) -> int:
        ctx.log("here")
        return 1

    @dispatcher.task()
    def blocks(input: EmptyModel, ctx: Context) -> int:
        raise ValueError("in a thread")

    @dispatcher.task(execution_timeout="10s")
    async def fails(input: EmptyModel, ctx: Context) -> int:
        raise NonRetryableException("no")

    @dispatcher.durable_task()
    async def steps(input: EmptyModel, ctx: DurableContext) -> int:
        several = await asyncio.gather(*[ctx.run("s", double, number) for number in range(3)])

        async def captured(value: int) -> int:
            return value * ctx.attempt_number

        last: int = await ctx.memo(captured, 4)
        return sum(several) + last

    @dispatcher.durable_task(mode="state")
    async def reduces(input: EmptyModel, ctx: StateContext) -> int:
        return 3

    return [plain, logs, blocks, fails, steps, reduces]


def suspended(dispatcher: Dispatcher) -> list[Any]:
    @dispatcher.durable_task()
    async def sleeps(input: EmptyModel, ctx: DurableContext) -> int:
        async with asyncio.timeout(60):
            await ctx.scope("part", ctx.run, "inner", double, 1)
            await ctx.aio_sleep_for("1h")
        return 2

    @dispatcher.durable_task()
    async def holds(input: EmptyModel, ctx: DurableContext) -> int:
        several = [asyncio.create_task(ctx.scope("part", ctx.aio_sleep_for, f"{number}h")) for number in (1, 2)]
        await asyncio.wait(several, return_when="FIRST_COMPLETED")
        for one in several:
            await one
        return 4

    @dispatcher.durable_task()
    async def groups(input: EmptyModel, ctx: DurableContext) -> int:
        async def outer() -> None:
            async with asyncio.TaskGroup() as inner:
                inner.create_task(ctx.aio_sleep_for("1h"))

        async with asyncio.TaskGroup() as group:
            group.create_task(outer())
            group.create_task(ctx.aio_sleep_for("2h"))
        return 5

    @dispatcher.durable_task()
    async def cleans(input: EmptyModel, ctx: DurableContext) -> int:
        nap = ctx.aio_sleep_for("1h")
        try:
            await nap
        finally:
            await ctx.run("clean", double, 1)
        return 6

    return [sleeps, holds, groups, cleans, *refused(dispatcher)]


def refused(dispatcher: Dispatcher) -> list[Any]:
    """As they are put aside they still ask for something."""

    async def rows_of(ctx: DurableContext) -> AsyncIterator[int]:
        try:
            while True:
                yield await ctx.run("row", double, 1)
        finally:
            await ctx.run("closed", double, 1)

    @dispatcher.durable_task()
    async def iterates(input: EmptyModel, ctx: DurableContext) -> int:
        try:
            async for _ in rows_of(ctx):
                await ctx.aio_sleep_for("1h")
        finally:
            async for _ in rows_of(ctx):
                pass
        return 7

    @dispatcher.durable_task()
    async def keeps(input: EmptyModel, ctx: DurableContext) -> int:
        rows = rows_of(ctx)
        async for _ in rows:
            await ctx.aio_sleep_for("1h")
        return 8

    return [iterates, keeps]


def failing(dispatcher: Dispatcher) -> list[Any]:
    @dispatcher.durable_task()
    async def raises(input: EmptyModel, ctx: DurableContext) -> int:
        try:
            raise ValueError("no")
        except ValueError as error:
            raise NonRetryableException("neither") from error

    @dispatcher.durable_task()
    async def step_fails(input: EmptyModel, ctx: DurableContext) -> int:
        with contextlib.suppress(StepFailedError):
            await ctx.run("first", bad)
        await asyncio.gather(ctx.run("second", bad), ctx.aio_sleep_for("1h"))
        return 7

    @dispatcher.durable_task()
    async def scope_fails(input: EmptyModel, ctx: DurableContext) -> int:
        with contextlib.suppress(StepFailedError):
            await ctx.scope("part", ctx.run, "inner", bad)
        return 8

    @dispatcher.durable_task()
    async def again(input: EmptyModel, ctx: DurableContext) -> int:
        ctx.continue_as_new(EmptyModel())

    return [raises, step_fails, scope_fails, again]


@pytest.fixture
def collector() -> Iterator[Callable[[], list[Any]]]:
    """Nothing is collected but by calling this, which tells what was."""

    def collect() -> list[Any]:
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        found = list(gc.garbage)
        gc.garbage.clear()
        return found

    gc.disable()
    try:
        yield collect
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [*PLAIN, *TURNS])
async def test_an_attempt_is_freed_when_it_ends(dispatcher: Dispatcher, name: str, collector: Callable[[], list[Any]]) -> None:
    served = app(dispatcher)

    async def attempt(number: int) -> None:
        taken = item(name, number=number)
        changes: dict[str, Any] = {"id": taken["id"], "run_id": taken["run_id"], "token": taken["token"]}
        if name == "reduces":
            changes["mode"] = "state"
        if name in PLAIN:
            answer = await push(served, run_body(name, number=number))
            assert answer.status == PLAIN[name], answer.body
        else:
            answer = await push(served, turn(name, **changes))
            assert json.loads(answer.body)["status"] == TURNS[name], answer.body

    await attempt(1)  # what is made once, and kept
    gc.collect()
    await attempt(2)
    ours = [one for one in collector() if type(one).__module__.startswith("handlers_sdk") or isinstance(one, asyncio.Task)]
    assert [type(one).__name__ for one in ours] == []
