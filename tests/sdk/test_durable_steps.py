"""How the function of a step is called: bounded in time, whatever kind of function it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from handlers_sdk import Dispatcher, DurableContext
from handlers_sdk.errors import StepFailedError
from handlers_sdk.testing import DurableTester
from tests.sdk.pushing import clock, idle, push, said, turn

TIMEOUT = "10ms"


class Blocking:
    """Functions that take until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls = 0

    def blocks(self) -> int:
        self.calls += 1
        self.go.wait()
        return 7

    async def waits(self) -> int:
        self.calls += 1
        await asyncio.Event().wait()
        return 7

    def returns_what_waits(self) -> Any:
        return self.waits()


@pytest.fixture
def blocking() -> Any:
    made = Blocking()
    yield made
    made.go.set()


@pytest.mark.parametrize("kind", ["blocks", "waits", "returns_what_waits"])
async def test_a_step_that_takes_too_long_has_failed(dispatcher: Dispatcher, blocking: Blocking, kind: str) -> None:
    slow: Callable[..., Any] = getattr(blocking, kind)

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> str:
        try:
            await ctx.run("slow", slow, timeout=TIMEOUT, retries=1)
        except StepFailedError as error:
            return error.message
        return "in time"

    run = await DurableTester([order]).run(order)
    assert (run.output, blocking.calls) == ("the step took longer than 0.01s", 2)


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_timeout_of_its_own_is_told_as_it_is(dispatcher: Dispatcher, is_async: bool) -> None:
    def late() -> int:
        raise TimeoutError("of the database")

    async def late_too() -> int:
        return late()

    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        in_time = await ctx.run("quick", lambda: 1, timeout="1m")
        try:
            return await ctx.run("late", late_too if is_async else late, timeout="1m")
        except StepFailedError as error:
            return [in_time, error.message]

    assert (await DurableTester([order]).run(order)).output == [1, "of the database"]


async def test_an_attempt_whose_step_still_blocks_is_known_until_that_ends(dispatcher: Dispatcher, blocking: Blocking) -> None:
    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        return await ctx.run("slow", blocking.blocks, timeout=TIMEOUT)

    app = dispatcher.app([order], clock=clock)
    assert said(await push(app, turn("order")))["error"]["name"] == "StepFailedError"
    assert len(app.handlers.host.running) == 1
    blocking.go.set()
    await idle(app)
