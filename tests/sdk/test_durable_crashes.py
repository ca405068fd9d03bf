"""Every shape of durable handler comes to the same result, killed at every place where it can be, with every side effect counted.

The dispatcher is the double of the testing kit, which refuses what the wire forbids: an op twice, a step whose result it has, a wrong base.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from handlers_sdk import ClientConfig, Dispatcher, NonRetryableError
from handlers_sdk.conditions import SleepCondition, UserEventCondition, or_
from handlers_sdk.durable import DurableContext
from handlers_sdk.errors import Cancelled, StepFailedError
from handlers_sdk.testing import DurableTester, crash_everywhere
from handlers_sdk.workflow import Standalone

LOOP = 1_000
FAN_OUT = 1_000

dispatcher = Dispatcher(ClientConfig())
Shape = tuple[Standalone[Any, Any], Any, Callable[[DurableTester], None]]


async def echo(value: Any) -> Any:
    return value


def blocking(value: int) -> int:
    return value * 2


async def refuse(reason: str) -> None:
    raise NonRetryableError(reason)


def nothing(_: DurableTester) -> None:
    pass


@dispatcher.durable_task()
async def sequence(input: dict[str, Any], ctx: DurableContext) -> Any:
    first = await ctx.run("first", echo, 1)
    second = await ctx.run("second", blocking, first)
    await ctx.aio_sleep_for("30d")
    third = await ctx.run("first", echo, second + 1)
    return {"values": [first, second, third], "now": ctx.now().isoformat(), "id": str(ctx.uuid()), "chance": ctx.random.random()}


@dispatcher.durable_task()
async def gathered(input: dict[str, Any], ctx: DurableContext) -> Any:
    async def branch(n: int) -> list[Any]:
        before = await ctx.run(f"before-{n}", echo, n)
        await ctx.aio_sleep_for(timedelta(seconds=10 * (3 - n) + 1))
        return [before, await ctx.run(f"after-{n}", echo, n * n), ctx.now().isoformat()]

    async with asyncio.TaskGroup() as group:
        alone = group.create_task(ctx.run("alone", echo, "x"))
        branches = [group.create_task(branch(n)) for n in range(3)]
    return [alone.result(), [one.result() for one in branches]]


@dispatcher.durable_task()
async def either(input: dict[str, Any], ctx: DurableContext) -> Any:
    met = await ctx.aio_wait_for("either", or_(SleepCondition("10s"), UserEventCondition("paid")), UserEventCondition("packed"))
    done, pending = await asyncio.wait(
        [asyncio.ensure_future(ctx.aio_sleep_for("1m")), asyncio.ensure_future(ctx.aio_wait_for_event("late"))],
        return_when=asyncio.FIRST_COMPLETED,
    )
    for one in pending:
        one.cancel()
    return [met, len(done), [one.result()["n"] for one in done], await ctx.run("last", echo, 1)]


def either_events(tester: DurableTester) -> None:
    tester.push("packed", {"by": "hand"}, after="3s")
    tester.push("paid", {"n": 1}, after="5s")
    tester.push("late", {"n": 2}, after="20s")


@dispatcher.durable_task()
async def loop(input: dict[str, Any], ctx: DurableContext) -> int:
    total = 0
    for n in range(input["n"]):
        total += int(await ctx.run("add", echo, n))
        if n % 100 == 99:
            await ctx.aio_sleep_for("1s")
    return total


@dispatcher.durable_task()
async def fan_out(input: dict[str, Any], ctx: DurableContext) -> int:
    results = await asyncio.gather(*[ctx.run_child("double", {"n": n}) for n in range(input["n"])])
    return sum(results)


@dispatcher.durable_task()
async def leaf(input: dict[str, Any], ctx: DurableContext) -> int:
    await ctx.aio_sleep_for(f"{input['n']}s")
    if input["n"] == 2:
        raise NonRetryableError("two is refused")
    value: int = await ctx.run("work", echo, input["n"])
    return value


@dispatcher.durable_task()
async def nested(input: dict[str, Any], ctx: DurableContext) -> Any:
    if input["depth"]:
        return [input["depth"], await ctx.run_child(nested, {"depth": input["depth"] - 1})]
    results = await asyncio.gather(*[leaf.aio_run({"n": n}) for n in range(1, 4)], return_exceptions=True)
    return [str(one).partition(" failed")[0][:4] if isinstance(one, Exception) else one for one in results]


@dispatcher.durable_task()
async def race(input: dict[str, Any], ctx: DurableContext) -> Any:
    found = await ctx.aio_wait_for_event("order", scope="9", consider_events_since="start")
    more = [await ctx.aio_wait_for_event("order", scope="9", consider_events_since=ctx.now() + timedelta(milliseconds=1))]
    try:
        await ctx.aio_wait_for_event("never", timeout="5s")
    except TimeoutError:
        more.append("timeout")
    return [found, more]


def race_events(tester: DurableTester) -> None:
    tester.push("order", {"n": 0}, scope="8")
    tester.push("order", {"n": 1}, scope="9")
    tester.push("order", {"n": 2}, scope="9", after="2s")


@dispatcher.durable_task()
async def undone(input: dict[str, Any], ctx: DurableContext) -> Any:
    booked = []
    try:
        booked.append(await ctx.run("book", echo, "flight"))
        await ctx.aio_sleep_for("1d")
        booked.append(await ctx.run("book", echo, "hotel"))
        await ctx.aio_wait_for_event("paid")
    except Cancelled as cancelled:
        for one in reversed(booked):
            await ctx.run("unbook", echo, f"{one} because {cancelled.reason}")
        raise
    return booked


@dispatcher.durable_task()
async def memos(input: dict[str, Any], ctx: DurableContext) -> Any:
    one = await ctx.memo(echo, 2)
    other = await ctx.memo(blocking, 2)  # the same arguments, another function
    again = await ctx.memo(echo, 2)
    return [one, other, again, await ctx.memo(echo, 3, key="named"), await ctx.memo(blocking, 3, key="named")]


@dispatcher.durable_task()
async def continued(input: dict[str, Any], ctx: DurableContext) -> Any:
    total = input.get("total", 0) + await ctx.run("page", echo, input.get("page", 0))
    await ctx.aio_sleep_for("1h")
    if input.get("page", 0) < 4:
        ctx.continue_as_new({"page": input.get("page", 0) + 1, "total": total})
    return total


@dispatcher.durable_task()
async def continued_by_a_branch(input: dict[str, Any], ctx: DurableContext) -> Any:
    """The others are ended first, and tidy up."""
    page = input.get("page", 0)

    async def beside() -> None:
        try:
            await ctx.aio_sleep_for("1d")
        finally:
            await ctx.run("tidy", echo, page)

    async def loop() -> None:
        await ctx.aio_sleep_for("1h")
        if page < 2:
            ctx.continue_as_new({"page": page + 1})

    async with asyncio.TaskGroup() as group:
        other = group.create_task(beside())
        async with asyncio.TaskGroup() as inner:
            inner.create_task(loop())
        other.cancel()
    return page


@dispatcher.durable_task()
async def patched(input: dict[str, Any], ctx: DurableContext) -> Any:
    values = []
    for n in range(3):
        if ctx.patch("newer"):
            values.append(await ctx.run("new", echo, n))
        await ctx.aio_sleep_for("1s")
    return values


@dispatcher.durable_task()
async def scoped(input: dict[str, Any], ctx: DurableContext) -> Any:
    async def page(n: int) -> int:
        got: int = await ctx.run("fetch", echo, n)
        await ctx.aio_sleep_for("1s")
        inner = await ctx.scope("inner", part, n)
        return int(got + inner)

    async def part(n: int) -> int:
        value: int = await ctx.run("part", echo, n * 10)
        return value

    one = [await ctx.scope("page", page, n) for n in range(3)]
    return [one, await asyncio.gather(*[ctx.scope("page", page, n) for n in range(3)])]


@dispatcher.durable_task(retries=1)
async def tried(input: dict[str, Any], ctx: DurableContext) -> Any:
    calls = {"n": 0}

    async def flaky() -> str:
        calls["n"] += 1
        raise ConnectionError("no answer")

    said: list[Any] = []
    try:
        await ctx.run("flaky", flaky, retries=3, backoff_factor=2, backoff_max_seconds=3)
    except StepFailedError as error:
        said.append([error.step, error.name, error.message])
    said.append(ctx.now().isoformat())
    try:
        await ctx.run("refused", refuse, "not today", retries=5)
    except StepFailedError as error:
        said.append(error.message)
    return said


@dispatcher.durable_task()
async def inbox(input: dict[str, Any], ctx: DurableContext) -> Any:
    state = await ctx.restore() or {"seen": []}
    while (message := await ctx.receive()) is not None:
        if message == {"$cancel": True}:
            await ctx.checkpoint({**state, "stopped": await ctx.run("sweep", echo, len(state["seen"]))})
            return None
        state = {"seen": [*state["seen"], message]}
        await ctx.checkpoint(state)
    return {"closed": state["seen"]}


def inbox_messages(tester: DurableTester) -> None:
    for n in range(3):
        tester.send({"n": n}, after=f"{n}s")
    tester.close_inbox(after="5s")


def inbox_cancelled(tester: DurableTester) -> None:
    tester.send({"n": 0}, after="1s")
    tester.cancel(after="3s")


@dispatcher.durable_task()
async def timers(input: dict[str, Any], ctx: DurableContext) -> Any:
    said: list[Any] = []
    try:
        async with asyncio.timeout(60):
            await ctx.aio_wait_for_event("never")
    except TimeoutError:
        said.append("timeout")
    said.append(await asyncio.wait_for(ctx.run("quick", echo, 1), 60))
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 5)
    return [*said, ctx.now().isoformat()]


SHAPES: dict[str, Shape] = {
    "sequence": (sequence, {}, nothing),
    "gather and TaskGroup": (gathered, {}, nothing),
    "or-wait and wait": (either, {}, either_events),
    "loop": (loop, {"n": 12}, nothing),
    "fan-out": (fan_out, {"n": 7}, nothing),
    "nested children": (nested, {"depth": 2}, nothing),
    "event race": (race, {}, race_events),
    "cancelled while it sleeps": (undone, {}, lambda tester: tester.cancel(after="1h")),
    "cancelled while it waits for an event": (undone, {}, lambda tester: tester.cancel(after="2d")),
    "cancelled too late": (sequence, {}, lambda tester: tester.cancel(after="31d")),
    "memo collision": (memos, {}, nothing),
    "continue": (continued, {}, nothing),
    "continue from a branch": (continued_by_a_branch, {}, nothing),
    "patch": (patched, {}, nothing),
    "scopes": (scoped, {}, nothing),
    "retried steps": (tried, {}, nothing),
    "an inbox that closes": (inbox, {}, inbox_messages),
    "an inbox that is cancelled": (inbox, {}, inbox_cancelled),
    "timers": (timers, {}, nothing),
}
SERVED = [
    sequence,
    gathered,
    either,
    loop,
    fan_out,
    leaf,
    nested,
    race,
    undone,
    memos,
    continued,
    continued_by_a_branch,
    patched,
    scoped,
    tried,
    inbox,
    timers,
]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def with_world(shape: Shape, **options: Any) -> DurableTester:
    tester = DurableTester(SERVED, children={"double": lambda given: given["n"] * 2}, **options)
    shape[2](tester)
    return tester


EXPECTED: dict[str, tuple[str, Any]] = {
    "loop": ("succeeded", 66),
    "fan-out": ("succeeded", 42),
    "nested children": ("succeeded", [2, [1, [1, "run_", 3]]]),
    "event race": ("succeeded", [{"n": 1}, [{"n": 2}, "timeout"]]),
    "or-wait and wait": ("succeeded", [{"CREATE": {"paid": [{"n": 1}], "packed": [{"by": "hand"}]}}, 1, [2], 1]),
    "cancelled while it sleeps": ("cancelled", None),
    "cancelled while it waits for an event": ("cancelled", None),
    "memo collision": ("succeeded", [2, 4, 2, 3, 3]),
    "continue": ("succeeded", 10),
    "continue from a branch": ("succeeded", 2),
    "patch": ("succeeded", [0, 1, 2]),
    "scopes": ("succeeded", [[0, 11, 22], [0, 11, 22]]),
    "an inbox that closes": ("succeeded", {"closed": [{"n": 0}, {"n": 1}, {"n": 2}]}),
    "an inbox that is cancelled": ("cancelled", None),
    "timers": ("succeeded", ["timeout", 1, "2026-01-01T00:01:05+00:00"]),
}


@pytest.mark.parametrize("name", EXPECTED)
async def test_what_each_comes_to(name: str) -> None:
    run = await with_world(SHAPES[name]).run(SHAPES[name][0], SHAPES[name][1])
    assert (run.status, run.output) == EXPECTED[name]


@EVERY_SHAPE
async def test_killed_everywhere(shape: Shape) -> None:
    assert await crash_everywhere(lambda at: with_world(shape, crash_at=at), shape[0], shape[1]) >= 2


@EVERY_SHAPE
async def test_killed_everywhere_when_the_dispatcher_cannot_be_called(shape: Shape, caplog: pytest.LogCaptureFixture) -> None:
    if shape[0] is inbox:
        pytest.skip("restore calls the dispatcher")
    await crash_everywhere(lambda at: with_world(shape, crash_at=at, unreachable=True), shape[0], shape[1])


@EVERY_SHAPE
async def test_the_way_the_log_travels_changes_nothing(shape: Shape) -> None:
    whole, delta = with_world(shape, delta=False), with_world(shape)
    first, second = await whole.run(shape[0], shape[1]), await delta.run(shape[0], shape[1])
    assert (first.status, first.output, first.log) == (second.status, second.output, second.log)
    assert delta.double.pulls == 0, "what this process has seen is not asked for"
    assert delta.double.bytes_sent <= whole.double.bytes_sent


def at_every(point: int) -> bool:
    """Before each write of the log, once, and after it: what was lost is done again, and so passes."""
    return point % 3 != 1


@pytest.mark.parametrize("unreachable", [False, True])
async def test_a_long_loop_killed_at_every_checkpoint(unreachable: bool, pytestconfig: pytest.Config) -> None:
    """A thousand steps in the long form, a part of them in the short one."""
    steps = LOOP // int(pytestconfig.getoption("--crash-stride"))
    tester = with_world(SHAPES["loop"], crash_at=at_every, unreachable=unreachable)
    run = await tester.run(loop, {"n": steps})
    assert (run.status, run.output) == ("succeeded", steps * (steps - 1) // 2)
    deaths, checkpoints = sum(map(at_every, range(tester.double.points))), steps // 100 if unreachable else steps + steps // 100
    assert deaths >= 2 * checkpoints
    assert sum(tester.double.lost.values()) >= steps, "each was lost once"
    assert sum(tester.double.steps.values()) == steps + sum(tester.double.lost.values()), "and done again"


async def test_a_fan_out_of_a_thousand_wakes_its_parent_once() -> None:
    tester = with_world(SHAPES["fan-out"])
    run = await tester.run(fan_out, {"n": FAN_OUT})
    assert run.output == FAN_OUT * (FAN_OUT - 1)
    assert run.turn == 2
    for point in range(tester.double.points):
        again = with_world(SHAPES["fan-out"], crash_at=point)
        assert (await again.run(fan_out, {"n": FAN_OUT})).output == run.output
        assert len(again.double.runs) == FAN_OUT + 1, "children are never started twice"


async def test_a_step_that_is_left_out_after_a_crash_is_told_of() -> None:
    def make(crash_at: int | None) -> DurableTester:
        async def forgetful(input: dict[str, Any], ctx: DurableContext) -> None:
            await ctx.run("kept", echo, 1)
            if crash_at != 2:
                await ctx.run("left", echo, 2)

        return DurableTester([Dispatcher().durable_task(name="forgetful")(forgetful)], crash_at=crash_at)

    with pytest.raises(AssertionError, match=r"killed at point 2 it left out steps.*left#0"):
        await crash_everywhere(make, "forgetful")
