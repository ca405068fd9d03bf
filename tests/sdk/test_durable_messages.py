"""Messages to receives that were given up: none is lost, none comes twice, and each comes in its turn, wherever the endpoint dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from handlers_sdk import Dispatcher, DurableContext
from handlers_sdk.testing import DurableTester, crash_everywhere

Handler = Callable[[DurableContext], Coroutine[Any, Any, Any]]


async def bounded(ctx: DurableContext, seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await ctx.receive()
    except TimeoutError:
        return "timeout"


async def after_a_timeout(ctx: DurableContext) -> Any:
    """The first message comes to the first receive, the second to the second, neither of which is waited for by then."""
    first = [await bounded(ctx, 60), await ctx.receive(), await ctx.receive()]
    return [*first, ctx.now().isoformat(), await ctx.receive(timeout="1h"), await ctx.receive(timeout="1h")]


async def in_a_race(ctx: DurableContext) -> Any:
    got: list[Any] = []
    while len(got) < 3:
        message, minute = ctx.receive(), ctx.aio_sleep_for("1m")
        done, pending = await asyncio.wait({message, minute}, return_when=asyncio.FIRST_COMPLETED)
        for one in pending:
            one.cancel()
        if message in done:
            got.append(await ctx.run("work", message.result))
    return got


async def while_nobody_waits(ctx: DurableContext) -> Any:
    first = await bounded(ctx, 60)
    await ctx.aio_sleep_for("1h")
    return [first, await ctx.receive(), await ctx.receive(), await bounded(ctx, 60)]


async def in_scopes(ctx: DurableContext) -> Any:
    """A closed scope hides what comes to it: one that has given up a receive stays open."""

    async def part() -> Any:
        got = await bounded(ctx, 60)
        return await ctx.run("part", lambda: got)

    return [await ctx.scope("part", part) for _ in range(6)]


async def from_one_scope_to_another(ctx: DurableContext) -> Any:
    async def inner() -> Any:
        return await ctx.receive()

    async def outer() -> Any:
        return [await bounded(ctx, 60), await ctx.scope("inner", inner)]

    return [await bounded(ctx, 1), await ctx.scope("outer", outer), await ctx.receive(), ctx.now().isoformat()]


async def several_at_once(ctx: DurableContext) -> Any:
    first = await bounded(ctx, 60)
    return [first, await asyncio.gather(ctx.receive(), ctx.receive()), await ctx.receive()]


async def until_it_closes(ctx: DurableContext) -> Any:
    got = [await bounded(ctx, 60)]
    while (message := await ctx.receive()) is not None:
        got.append(message)
    return got


def sending(*times: str) -> Callable[[DurableTester], None]:
    def send(tester: DurableTester) -> None:
        for n, after in enumerate(times):
            tester.send(n, after=after)

    return send


def closing(tester: DurableTester) -> None:
    sending("2m", "3m")(tester)
    tester.close_inbox(after="4m")


SHAPES: dict[str, tuple[Handler, Callable[[DurableTester], None], Any]] = {
    "after a timeout": (after_a_timeout, sending("2m", "3m", "4m"), ["timeout", 0, 1, "2026-01-01T00:03:00+00:00", 2, None]),
    "in a race": (in_a_race, sending("150s", "160s", "290s"), [0, 1, 2]),
    "while nobody waits": (while_nobody_waits, sending("2m", "3m"), ["timeout", 0, 1, "timeout"]),
    "in scopes": (in_scopes, sending("10s", "100s", "101s", "102s"), [0, "timeout", 1, 2, 3, "timeout"]),
    "from one scope to another": (
        from_one_scope_to_another, sending("90s", "2m"), ["timeout", ["timeout", 0], 1, "2026-01-01T00:02:00+00:00"],
    ),
    "several at once": (several_at_once, sending("2m", "3m", "4m"), ["timeout", [0, 1], 2]),
    "until it closes": (until_it_closes, closing, ["timeout", 0, 1]),
}  # fmt: skip


def made(name: str, **options: Any) -> DurableTester:
    handler, prepare, _ = SHAPES[name]

    async def worker(input: dict[str, Any], ctx: DurableContext) -> Any:
        return await handler(ctx)

    tester = DurableTester([Dispatcher().durable_task(name="worker")(worker)], **options)
    prepare(tester)
    return tester


@pytest.mark.parametrize("name", SHAPES)
async def test_every_message_is_received(name: str) -> None:
    run = await made(name).run("worker")
    assert (run.status, run.output) == ("succeeded", SHAPES[name][2])


@pytest.mark.parametrize("unreachable", [False, True])
@pytest.mark.parametrize("name", SHAPES)
async def test_and_wherever_it_is_killed(name: str, unreachable: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert await crash_everywhere(lambda at: made(name, crash_at=at, unreachable=unreachable), "worker") >= 4
