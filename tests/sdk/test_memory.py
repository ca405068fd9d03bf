"""What is over leaves nothing behind: attempts are freed as they end, without waiting for the collector to look for cycles."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handlers_sdk import App, Context, Dispatcher, DurableContext, EmptyModel, StateContext
from handlers_sdk.errors import NonRetryableException
from tests.sdk.pushing import clock, item, push, run_body, turn


async def double(value: int) -> int:
    return value * 2


def app(dispatcher: Dispatcher) -> App:
    @dispatcher.task()
    async def plain(input: EmptyModel, ctx: Context) -> int:
        return 1

    @dispatcher.task(execution_timeout="10s")
    async def fails(input: EmptyModel, ctx: Context) -> int:
        raise NonRetryableException("no")

    @dispatcher.durable_task()
    async def steps(input: EmptyModel, ctx: DurableContext) -> int:
        several = await asyncio.gather(*[ctx.run("s", double, number) for number in range(3)])
        last: int = await ctx.memo(double, 4)
        return sum(several) + last

    @dispatcher.durable_task()
    async def sleeps(input: EmptyModel, ctx: DurableContext) -> int:
        async with asyncio.timeout(60):
            await ctx.scope("part", ctx.run, "inner", double, 1)
            await ctx.aio_sleep_for("1h")
        return 2

    @dispatcher.durable_task(mode="state")
    async def reduces(input: EmptyModel, ctx: StateContext) -> int:
        return 3

    return dispatcher.app([plain, fails, steps, sleeps, reduces], clock=clock)


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


# On newer Pythons something of an attempt that is suspended is in a cycle until the collector comes.
_LATER = pytest.mark.skipif(sys.version_info >= (3, 12), reason="what is suspended is freed by the collector there")


@pytest.mark.parametrize("name", ["plain", "fails", "steps", pytest.param("sleeps", marks=_LATER), "reduces"])
async def test_an_attempt_is_freed_when_it_ends(dispatcher: Dispatcher, name: str, collector: Callable[[], list[Any]]) -> None:
    served = app(dispatcher)

    async def attempt(number: int) -> None:
        taken = item(name, number=number)
        changes: dict[str, Any] = {"id": taken["id"], "run_id": taken["run_id"], "token": taken["token"]}
        if name == "reduces":
            changes["mode"] = "state"
        answer = await push(served, run_body(name, number=number) if name in ("plain", "fails") else turn(name, **changes))
        assert answer.status == (500 if name == "fails" else 200), answer.body

    await attempt(1)  # what is made once, and kept
    gc.collect()
    await attempt(2)
    ours = [one for one in collector() if type(one).__module__.startswith("handlers_sdk") or isinstance(one, asyncio.Task)]
    assert [type(one).__name__ for one in ours] == []
