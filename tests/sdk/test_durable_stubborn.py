"""Handlers that do not let themselves be put aside: a turn is answered all the same, and its process goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from handlers_sdk import Dispatcher, DurableContext
from handlers_sdk.testing import DurableTester

dispatcher = Dispatcher()


@dispatcher.durable_task(name="stubborn")
async def stubborn(input: dict[str, Any], ctx: DurableContext) -> Any:
    """A bare `except` in a loop catches what puts the handler aside as well."""
    while True:
        try:
            if input["how"] == "asyncio":
                await asyncio.wait([ctx.aio_sleep_for("2s")])
            else:
                await ctx.aio_sleep_for("2s")
            return await ctx.run("step", lambda: "slept")
        except GeneratorExit:
            raise  # its end as an object, which the interpreter complains about where it is caught too
        except BaseException:
            pass


@pytest.mark.parametrize("how", ["asyncio", "context"])
async def test_a_handler_that_catches_everything_holds_nobody_up(how: str) -> None:
    run = await DurableTester([stubborn]).run(stubborn, {"how": how})
    assert (run.status, run.output) == ("succeeded", "slept")
    assert [entry["status"] for entry in run.entries] == ["pending", "ok", "ok"]


async def test_nor_one_that_does_so_when_it_is_cancelled() -> None:
    tester = DurableTester([stubborn])
    tester.cancel(after="1s")
    run = await tester.run(stubborn, {"how": "context"})
    assert (run.status, [entry["id"] for entry in run.entries]) == ("cancelled", ["sleep#0", "cancel#0"])
