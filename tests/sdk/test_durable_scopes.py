"""Scopes that are cancelled, by a timeout, by a TaskGroup or by hand: their functions hear so and end, as those of tasks do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from handlers_sdk import Dispatcher, DurableContext, NonRetryableError, StepFailedError
from handlers_sdk.testing import DurableTester, crash_everywhere

Handler = Callable[[DurableContext], Coroutine[Any, Any, Any]]


async def echo(value: Any) -> Any:
    return value


async def refuse() -> None:
    raise NonRetryableError("no")


async def slow(ctx: DurableContext) -> Any:
    await ctx.aio_sleep_for("1h")
    return await ctx.run("too late", echo, 1)


async def tidy(ctx: DurableContext) -> Any:
    """Tidies up before it ends, which takes two steps and a wait."""
    await ctx.run("open", echo, 1)
    try:
        return await slow(ctx)
    finally:
        await ctx.run("close", echo, 1)
        await ctx.aio_sleep_for("5m")
        await ctx.run("closed", echo, 1)


async def by_a_timeout(ctx: DurableContext) -> Any:
    try:
        async with asyncio.timeout(60):
            await ctx.scope("part", tidy, ctx)
    except TimeoutError:
        return ["timeout", ctx.now().isoformat(), await ctx.run("after", echo, 2)]


async def by_wait_for(ctx: DurableContext) -> Any:
    try:
        await asyncio.wait_for(ctx.scope("part", tidy, ctx), 60)
    except TimeoutError:
        return ["timeout", ctx.now().isoformat(), await ctx.run("after", echo, 2)]


async def by_a_group(ctx: DurableContext) -> Any:
    async def failing() -> None:
        await ctx.aio_sleep_for("1m")
        await ctx.run("refused", refuse)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.scope("part", tidy, ctx))
            group.create_task(ctx.scope("other", tidy, ctx))
            group.create_task(failing())
    except* StepFailedError:
        pass
    return [ctx.now().isoformat(), await ctx.run("after", echo, 2)]


async def by_hand_in_a_race(ctx: DurableContext) -> Any:
    part, nap = ctx.scope("part", tidy, ctx), ctx.aio_sleep_for("1m")
    done, pending = await asyncio.wait({part, nap}, return_when=asyncio.FIRST_COMPLETED)
    told = [one.cancel() for one in pending]
    await asyncio.wait(pending)
    return [len(done), told, part.cancelled(), part.cancel(), await ctx.run("after", echo, 2)]


async def in_another(ctx: DurableContext) -> Any:
    async def outer() -> Any:
        return await ctx.scope("inner", tidy, ctx)

    try:
        async with asyncio.timeout(60):
            await ctx.scope("outer", outer)
    except TimeoutError:
        return await ctx.run("after", echo, 2)


async def that_comes_to_something_all_the_same(ctx: DurableContext) -> Any:
    async def part() -> Any:
        try:
            return await slow(ctx)
        except asyncio.CancelledError:
            return await ctx.run("instead", echo, "instead")

    async def failing() -> Any:
        try:
            return await slow(ctx)
        except asyncio.CancelledError:
            return await ctx.run("refused", refuse)

    scopes = [ctx.scope("part", part), ctx.scope("failing", failing)]
    await ctx.aio_sleep_for("1m")
    told = [one.cancel() for one in scopes]
    results = await asyncio.gather(*scopes, return_exceptions=True)
    await ctx.aio_sleep_for("1m")
    return [told, *[type(one).__name__ if isinstance(one, Exception) else one for one in results]]


async def of_one_thing(ctx: DurableContext) -> Any:
    """What is no coroutine, but one thing asked for, may be a scope too."""
    done = await ctx.scope("done", ctx.run, "one", echo, 1)
    try:
        async with asyncio.timeout(60):
            await ctx.scope("part", ctx.aio_sleep_for, "1h")
    except TimeoutError:
        return [done, await ctx.run("after", echo, 2)]


async def that_leaves_something_behind(ctx: DurableContext) -> Any:
    """What a closed scope still did could not be recorded; so it does not close before."""
    left: list[Any] = []

    async def part() -> str:
        left.append(asyncio.create_task(asyncio.wait([ctx.run("left", echo, 1)])))
        await ctx.aio_sleep_for("1m")
        left.append(ctx.run("behind", echo, 1))
        return "part"

    said = await ctx.scope("part", part)
    return [said, await left[1], await ctx.run("after", echo, 2)]


async def when_it_is_over(ctx: DurableContext) -> Any:
    """What it came to is on its way into the log, or is there: the one who waits is cancelled, the scope is not."""

    async def waiting(part: Any) -> Any:
        return await part

    part = ctx.scope("part", echo, 7)
    waiter = asyncio.create_task(waiting(part))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiter.cancel()
    told = part.cancel()
    await asyncio.wait([waiter])
    await ctx.aio_sleep_for("1m")
    return [told, waiter.cancelled(), await part]


TIDIED = ["after#0", "part#0/close#0", "part#0/closed#0", "part#0/open#0"]
SHAPES: dict[str, tuple[Handler, Any, list[str]]] = {
    "by a timeout": (by_a_timeout, ["timeout", "2026-01-01T00:06:00+00:00", 2], TIDIED),
    "by wait_for": (by_wait_for, ["timeout", "2026-01-01T00:06:00+00:00", 2], TIDIED),
    "by a group": (
        by_a_group, ["2026-01-01T00:06:00+00:00", 2],
        ["after#0", *[f"{one}#0/{step}#0" for one in ("other", "part") for step in ("close", "closed", "open")], "refused#0"],
    ),
    "by hand": (by_hand_in_a_race, [1, [True], True, False, 2], TIDIED),
    "in another": (in_another, 2, ["after#0", "outer#0/inner#0/close#0", "outer#0/inner#0/closed#0", "outer#0/inner#0/open#0"]),
    "that comes to something": (
        that_comes_to_something_all_the_same,
        [[True, True], "instead", "StepFailedError"],
        ["failing#0/refused#0", "part#0/instead#0"],
    ),
    "of one thing": (of_one_thing, [1, 2], ["after#0", "done#0/one#0"]),
    "that leaves something behind": (
        that_leaves_something_behind, ["part", 1, 2], ["after#0", "part#0/behind#0", "part#0/left#0"],
    ),
    "when it is over": (when_it_is_over, [False, True, 7], []),
}  # fmt: skip


def made(name: str, **options: Any) -> DurableTester:
    async def parted(input: dict[str, Any], ctx: DurableContext) -> Any:
        value = await SHAPES[name][0](ctx)
        await ctx.aio_sleep_for("1d")
        return value

    return DurableTester([Dispatcher().durable_task(name="parted")(parted)], **options)


@pytest.mark.parametrize("name", SHAPES)
async def test_it_ends_and_does_nothing_more(name: str) -> None:
    tester = made(name)
    run = await tester.run("parted")
    assert (run.status, run.output) == ("succeeded", SHAPES[name][1])
    assert sorted(step for _, step in tester.double.steps) == SHAPES[name][2]
    closed: set[str] = set()
    for entry in run.entries:
        assert entry["op"] != "step" or not closed & {entry["id"].rpartition("/")[0]}, "nothing is recorded in a closed scope"
        closed |= {entry["id"]} if entry["op"] == "scope" else set()


@pytest.mark.parametrize("unreachable", [False, True])
@pytest.mark.parametrize("name", SHAPES)
async def test_and_wherever_it_is_killed(name: str, unreachable: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert await crash_everywhere(lambda at: made(name, crash_at=at, unreachable=unreachable), "parted") >= 4


async def test_a_step_under_way_is_stopped_with_its_scope() -> None:
    stopped = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def parted(input: dict[str, Any], ctx: DurableContext) -> Any:
        async def part() -> None:
            await ctx.run("long", long)

        part_, refused = ctx.scope("part", part), ctx.run("refused", refuse)
        await asyncio.wait([refused])
        part_.cancel()
        await asyncio.wait([part_])
        return part_.cancelled()

    run = await DurableTester([Dispatcher().durable_task(name="parted")(parted)]).run("parted")
    assert (run.status, run.output, stopped.is_set()) == ("succeeded", True, True)
