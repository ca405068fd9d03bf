"""What a cancelled task undoes: steps that fail are tried again in the one turn there is for it, as long as that has time."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import count
from typing import Any

import pytest

from handlers_sdk import App, Cancelled, ClientConfig, Dispatcher, DurableContext, NonRetryableError, RetryableException, StepFailedError
from handlers_sdk.testing import DurableTester, crash_everywhere
from tests.sdk.fake_api import FakeApi
from tests.sdk.pushing import AT, clock, push, said, turn

KIT = Dispatcher(ClientConfig())
CANCEL: dict[str, Any] = {"id": "cancel#0", "op": "cancel", "status": "ok", "value": {"reason": "enough"}, "at": AT}
BOOKED: list[dict[str, Any]] = [
    {"id": "book#0", "op": "step", "status": "ok", "value": 1, "at": AT},
    {"id": "sleep#0", "op": "sleep", "status": "pending", "ms": 86_400_000, "at": AT},
    CANCEL,
]


def trip(dispatcher: Dispatcher, failures: int, calls: Counter[str], after: str) -> Any:
    async def refund() -> str:
        calls["refund"] += 1
        if calls["refund"] <= failures:
            raise RetryableException("the bank is away", after=after)
        return "refunded"

    @dispatcher.durable_task(name="trip")
    async def trip(input: dict[str, Any], ctx: DurableContext) -> None:
        await ctx.run("book", lambda: 1)
        try:
            await ctx.aio_sleep_for("1d")
        except Cancelled:
            await ctx.run("refund", refund, retries=3)
            raise

    return trip


async def test_a_step_that_fails_is_tried_again_before_the_end() -> None:
    calls = Counter[str]()
    tester = DurableTester([trip(KIT, 2, calls, "2s")])
    tester.cancel(after="1h")
    run = await tester.run("trip")
    assert (run.status, calls["refund"]) == ("cancelled", 3)
    assert [(e["id"], e["status"]) for e in run.entries[-3:]] == [("refund#0", "retry"), ("refund#0", "retry"), ("refund#0", "ok")]


async def test_and_wherever_it_is_killed() -> None:
    def made(crash_at: int | None) -> DurableTester:
        tester = DurableTester([trip(KIT, 2, Counter(), "2s")], crash_at=crash_at)
        tester.cancel(after="1h")
        return tester

    assert await crash_everywhere(made, "trip") > 6


def app(dispatcher: Dispatcher, calls: Counter[str], after: str) -> App:
    return dispatcher.app([trip(dispatcher, 2, calls, after)], clock=clock)


async def test_it_waits_for_its_time_by_the_clock(api: FakeApi, dispatcher: Dispatcher) -> None:
    calls = Counter[str]()
    answer = said(await push(app(dispatcher, calls, "10ms"), turn("trip", BOOKED)))
    assert (answer["status"], calls["refund"]) == ("failed", 3)
    statuses = [op["status"] for event in api.events() for op in event["ops"]] + [op["status"] for op in answer["ops"]]
    assert statuses == ["retry", "retry", "ok"]


async def test_what_is_to_be_tried_again_too_late_is_left(dispatcher: Dispatcher) -> None:
    calls = Counter[str]()
    answer = said(await push(app(dispatcher, calls, "10m"), turn("trip", BOOKED, timeout_ms=5_000)))
    assert (answer["status"], answer["wake"], calls["refund"]) == ("wait", {"any": ["refund#0"]}, 1)


# ---- several who undo


async def one(value: Any) -> Any:
    return value


async def refuse() -> None:
    raise NonRetryableError("no")


async def booked(ctx: DurableContext, name: str, steps: int = 2) -> None:
    """Undone in so many steps, one after the other."""
    try:
        await ctx.run(f"book-{name}", one, 1)
        await ctx.aio_sleep_for("1d")
    except Cancelled:
        for n in range(steps):
            await ctx.run(f"undo-{name}", one, n)
        raise


async def plain(ctx: DurableContext) -> None:
    await ctx.aio_sleep_for("2d")


async def in_a_scope(ctx: DurableContext) -> None:
    try:
        await ctx.scope("part", booked, ctx, "inner")
    except Cancelled:
        await ctx.run("undo-outer", one, 1)
        raise


async def in_scopes_of_scopes(ctx: DurableContext) -> None:
    async def part() -> None:
        try:
            await asyncio.gather(ctx.scope("left", booked, ctx, "left", 3), ctx.scope("right", booked, ctx, "right", 1))
        finally:
            await ctx.run("undo-part", one, 1)

    await ctx.scope("part", part)


async def that_come_to_something(ctx: DurableContext) -> None:
    """Who waits for them hears that all is cancelled once they are over, whatever they have come to, and knows why one has failed."""

    async def kept() -> str:
        try:
            await ctx.aio_sleep_for("1d")
        except Cancelled:
            await ctx.run("undo-kept", one, 1)
        return "kept"

    async def refused() -> None:
        try:
            await ctx.aio_sleep_for("1d")
        finally:
            await ctx.run("undo-refused", refuse)

    async def waiting(others: Awaitable[Any]) -> None:
        try:
            await others
        except Cancelled as heard:
            await ctx.run(f"undo-{type(heard.__cause__).__name__}", one, 1)
            raise

    async with asyncio.TaskGroup() as group:
        group.create_task(waiting(ctx.scope("kept", kept)))
        group.create_task(waiting(ctx.scope("refused", refused)))
        group.create_task(waiting(asyncio.create_task(kept())))
        group.create_task(waiting(asyncio.wait([ctx.scope("kept", kept)])))
        group.create_task(waiting(asyncio.gather(kept(), refused(), return_exceptions=True)))


async def that_wait_for_what_others_free(ctx: DurableContext) -> None:
    """What becomes free as one ends is not begun with by the next: he has heard where he waited for it."""
    places, lock = asyncio.Semaphore(2), asyncio.Lock()

    async def guarded(number: int) -> None:
        async with places:
            await booked(ctx, f"trip-{number}", 1)

    async def kept() -> None:
        with suppress(Cancelled):
            await booked(ctx, "round", 1)

    async def rounds() -> None:
        async with lock:
            for _ in range(20):
                await ctx.scope("round", kept)

    await asyncio.gather(*[guarded(number) for number in range(4)], rounds(), rounds())


async def under_what_others_wait_for(ctx: DurableContext) -> None:
    """Who has heard where he waited for a lock has given it up: it is there for who undoes under it."""
    lock, place, condition = asyncio.Lock(), asyncio.Semaphore(1), asyncio.Condition()

    async def guarded(by: AbstractAsyncContextManager[Any], name: str) -> None:
        try:
            async with by:
                await ctx.run(f"book-{name}", one, 1)
                await ctx.aio_sleep_for("1d")
        except Cancelled:
            async with by:
                await ctx.run(f"undo-{name}", one, 1)
            raise

    guards = [("lock", lock), ("place", place), ("condition", condition)]
    await asyncio.gather(*[guarded(by, name) for name, by in guards for _ in range(3)])


async def left_in_a_scope(ctx: DurableContext) -> None:
    """What a scope has begun and does not wait for undoes all it did, though the scope is over."""

    async def gathered() -> None:
        await asyncio.gather(booked(ctx, "a", 3), plain(ctx))

    async def shielded() -> None:
        await asyncio.shield(booked(ctx, "b", 3))

    async def first() -> None:
        await asyncio.wait([asyncio.create_task(booked(ctx, "c", 3)), asyncio.create_task(plain(ctx))], return_when="FIRST_COMPLETED")

    await asyncio.gather(*[ctx.scope(part.__name__, part) for part in (gathered, shielded, first)])


async def by_a_generator(ctx: DurableContext) -> None:
    """One that the handler is about to take the next of undoes as well."""

    async def rows() -> AsyncIterator[int]:
        try:
            for n in range(20):
                yield await ctx.run("row", one, n)
        finally:
            await ctx.run("undo-rows", one, 1)

    async for _ in rows():
        await ctx.aio_sleep_for("1d")


async def by_generators_that_are_kept(ctx: DurableContext) -> None:
    """Those that are still held when all is over end then, in the order they began, and those that the collector has found meanwhile."""
    ends = count()

    async def rows(name: str) -> AsyncIterator[int]:
        try:
            for n in range(20):
                yield n
        finally:
            await ctx.run(f"undo-{name}-{next(ends)}", one, 1)

    async def failing() -> None:
        begun = rows("found")
        try:
            async for _ in begun:
                raise ValueError("no")
        except ValueError as error:
            last = error  # which knows where it was raised, as that knows it
            await ctx.run("failed", one, str(last))

    begun = rows("first")
    async for _ in begun:
        await failing()
        await ctx.run("collect", gc.collect)
        last = rows("last")
        async for _ in last:
            await ctx.aio_sleep_for("1d")


async def that_nobody_knows_of(ctx: DurableContext) -> None:
    """A task that waits for what is its own lives until it has undone what it did, whatever the collector takes meanwhile."""
    collected: list[int] = []

    async def collect() -> None:
        if not collected:  # once in a turn, when the first of them undoes
            collected.append(gc.collect())

    async def sleeping(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await ctx.run(f"undo-{name}", collect)

    async def as_they_come() -> None:
        try:
            for coming in asyncio.as_completed([asyncio.create_task(sleeping(name)) for name in "ab"]):
                await coming
        finally:
            await ctx.run("undo-main", collect)

    await asyncio.gather(as_they_come(), sleeping("c"), plain(ctx))


async def in_scopes_one_after_the_other(ctx: DurableContext) -> None:
    """Those that come to something, or fail, are not followed by others: who begins them hears."""

    async def kept(name: str, *, fails: bool) -> None:
        try:
            await ctx.aio_sleep_for("1d")
        except Cancelled:
            await ctx.run(f"undo-{name}", refuse if fails else one, *([] if fails else [1]))

    async def keeps(name: str, *, fails: bool) -> None:
        for _ in range(20):
            with suppress(StepFailedError):
                await ctx.scope(name, lambda: kept(name, fails=fails))

    async with asyncio.TaskGroup() as group:
        group.create_task(keeps("kept", fails=False))
        group.create_task(keeps("failing", fails=True))
        group.create_task(ctx.scope("outer", lambda: keeps("inner", fails=False)))


async def begun_to_undo(ctx: DurableContext) -> None:
    """Scopes that undo come to something as always."""
    try:
        await ctx.aio_sleep_for("1d")
    finally:
        said = [await ctx.scope("undo", one, n) for n in range(2)]
        await ctx.run(f"undo-{said}", one, 1)


async def that_are_ended_and_close(ctx: DurableContext) -> None:
    """Who ends what comes to something all the same is given that, as always."""

    async def kept() -> str:
        try:
            await ctx.aio_sleep_for("1d")
        except Cancelled:
            for n in range(2):
                await ctx.run("undo-kept", one, n)
        return "kept"

    left = ctx.scope("kept", kept)
    try:
        await ctx.aio_sleep_for("2d")
    finally:
        asked = left.cancel()
        await ctx.run(f"undo-{asked}-{await left}-{left.cancel()}", one, 1)


async def in_a_group(ctx: DurableContext) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(booked(ctx, "a", 1))
        group.create_task(plain(ctx))
        group.create_task(booked(ctx, "b", 3))
        group.create_task(ctx.aio_sleep_for("3d"))
        try:
            await ctx.aio_sleep_for("4d")
        except Cancelled:
            await ctx.run("undo-body", one, 1)
            await ctx.run("undo-body", one, 1)
            raise


async def where_groups_are_out_of_sight(ctx: DurableContext) -> None:
    """Who waits for a group in a context manager, a generator or an object hears once its tasks are over, as in a function."""

    async def grouped(name: str, over: list[str]) -> AsyncIterator[str]:
        async def working(part: str) -> None:
            try:
                await booked(ctx, f"{name}-{part}")
            finally:
                over.append(part)

        async with asyncio.TaskGroup() as group:
            group.create_task(working("a"))
            group.create_task(working("b"))
            if name == "managed":
                yield name
        yield name

    class Taken:
        """Awaited by a generator, as that of an object written in Python is."""

        def __init__(self, taken: Awaitable[Any]) -> None:
            self.taken = taken

        def __await__(self) -> Generator[Any, None, Any]:
            return (yield from self.taken.__await__())

    async def managed(name: str, over: list[str]) -> None:
        async with asynccontextmanager(grouped)(name, over):
            pass

    async def iterated(name: str, over: list[str]) -> None:
        async for _ in grouped(name, over):
            pass

    async def taken(name: str, over: list[str]) -> None:
        await Taken(anext(grouped(name, over), ""))

    async def wrapped(name: str, over: list[str]) -> None:
        await Taken(Taken(iterated(name, over)))

    async def waiting(by: Callable[[str, list[str]], Awaitable[None]]) -> None:
        over: list[str] = []
        try:
            await by(by.__name__, over)
        finally:
            await ctx.run(f"undo-{by.__name__}-main-{'-'.join(over)}", one, 1)

    await asyncio.gather(*[waiting(by) for by in (managed, iterated, taken, wrapped)])


async def in_a_gather(ctx: DurableContext) -> None:
    await asyncio.gather(booked(ctx, "a"), plain(ctx), booked(ctx, "b", 3))


async def in_the_background(ctx: DurableContext) -> None:
    background = asyncio.create_task(booked(ctx, "a"))
    await ctx.aio_sleep_for("3d")
    await background


async def together_when_one_fails(ctx: DurableContext) -> None:
    """Who undoes is not cut off by whom he is in a group with, whatever becomes of that one."""

    async def failing() -> None:
        try:
            await ctx.aio_sleep_for("1d")
        finally:
            await ctx.run("undo-failing", refuse)

    async with asyncio.TaskGroup() as group:
        group.create_task(failing())
        group.create_task(booked(ctx, "a", 3))


async def waiting_for_each_other(ctx: DurableContext) -> None:
    """The one waits for what the other gives it, which nothing durable says of."""
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def giving() -> None:
        await booked(ctx, "giving", 1)
        await queue.put(1)

    async def taking() -> None:
        try:
            await queue.get()
        except Cancelled:
            await ctx.run("undo-taking", one, 1)
            await ctx.run("undo-taking", one, 1)
            raise

    async with asyncio.TaskGroup() as group:
        group.create_task(giving())
        group.create_task(ctx.scope("taking", taking))


async def one_after_the_other(ctx: DurableContext) -> None:
    """Who hears before whom is the same after a crash, whether they are in scopes or not."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    heard: list[str] = []

    async def kept() -> None:
        try:
            async with asyncio.timeout(36_000):
                await queue.get()
        except Cancelled:
            await ctx.run("undo-kept", one, 1)

    async def beside(name: str) -> None:
        try:
            await queue.get()
        finally:
            heard.append(name)

    left = [ctx.scope("kept", kept), asyncio.create_task(beside("a")), asyncio.create_task(beside("b"))]
    try:
        await asyncio.wait(left)
    finally:
        for n in range(2):
            await ctx.run(f"undo-{'-'.join(heard)}", one, n)


async def told_by_a_message(ctx: DurableContext) -> None:
    """Who waits for a message has heard with it, and saves what is to be saved without being told again."""

    async def working(name: str) -> None:
        while await ctx.receive(timeout="2d") != {"$cancel": True}:
            pass
        for n in range(2):
            await ctx.run(f"undo-{name}", one, n)
        await ctx.checkpoint({"saved": name})
        assert await ctx.close_inbox()
        with pytest.raises(Cancelled):
            await ctx.receive()
        await ctx.run(f"undo-{name}-again", one, 1)

    async with asyncio.TaskGroup() as group:
        group.create_task(booked(ctx, "beside"))
        group.create_task(working("a"))
        group.create_task(working("b"))
    await ctx.run("undo-main", one, 1)  # which hears before, as it waits for the group


async def that_end_others(ctx: DurableContext) -> None:
    """What the handler itself ends as it undoes hears it as always."""
    event = asyncio.Event()

    async def beside() -> None:
        try:
            await event.wait()
        except asyncio.CancelledError:
            await ctx.run("undo-beside", one, 1)
            raise

    task = asyncio.create_task(beside())
    try:
        await ctx.aio_sleep_for("1d")
    finally:
        task.cancel()
        await asyncio.wait([task])
        await ctx.run(f"undo-main-{task.cancelled()}", one, 1)


async def waiting_as_they_undo(ctx: DurableContext) -> None:
    """Whoever waits again hears again, after all others have heard once."""

    async def waiting(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await ctx.run(f"undo-{name}", one, 1)
            try:
                await asyncio.Event().wait()
            finally:
                await ctx.run(f"undo-{name}", one, 2)

    async with asyncio.timeout(86_400):
        await asyncio.gather(waiting("a"), waiting("b"), ctx.scope("part", waiting, "part"))


async def that_end_what_was_refused(ctx: DurableContext) -> None:
    """The idiom of asyncio: ask it to end, and wait until it has; whatever it waits for."""

    async def beat() -> None:
        while True:
            await ctx.aio_sleep_for("1h")

    async def beat_inside() -> None:
        await asyncio.create_task(beat())

    async def together() -> None:
        await asyncio.gather(beat(), ctx.aio_sleep_for("1d"))

    async def within() -> None:
        async with asyncio.timeout(86_400):
            await beat()

    tasks: list[asyncio.Future[Any]] = [asyncio.create_task(beats()) for beats in (beat, beat_inside, together, within)]
    tasks += [ctx.aio_sleep_for("1d"), ctx.scope("beat", beat)]
    try:
        await ctx.aio_wait_for_event("never")
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await ctx.run("undo-main", one, 1)


OUT_OF_SIGHT = {
    f"{name}-{part}": steps for name in ("managed", "iterated", "taken", "wrapped") for part, steps in (("a", 2), ("b", 2), ("main-a-b", 1))
}

UNDONE: dict[str, tuple[Callable[[DurableContext], Coroutine[Any, Any, None]], dict[str, int]]] = {
    "in a scope": (in_a_scope, {"inner": 2, "outer": 1}),
    "in scopes of scopes": (in_scopes_of_scopes, {"left": 3, "right": 1, "part": 1}),
    "that come to something": (that_come_to_something, {"kept": 4, "refused": 2, "NoneType": 4, "StepFailedError": 1}),
    "that wait for what others free": (that_wait_for_what_others_free, {"trip-0": 1, "trip-1": 1, "round": 1}),
    "under what others wait for": (under_what_others_wait_for, {"lock": 3, "place": 3, "condition": 3}),
    "left in a scope": (left_in_a_scope, {"a": 3, "b": 3, "c": 3}),
    "by a generator": (by_a_generator, {"rows": 1}),
    "by generators that are kept": (by_generators_that_are_kept, {"first-0": 1, "found-1": 1, "last-2": 1}),
    "that nobody knows of": (that_nobody_knows_of, {"a": 1, "b": 1, "c": 1, "main": 1}),
    "in scopes one after the other": (in_scopes_one_after_the_other, {"kept": 1, "failing": 1, "inner": 1}),
    "begun to undo": (begun_to_undo, {"[0, 1]": 1}),
    "that are ended and close": (that_are_ended_and_close, {"kept": 2, "True-kept-False": 1}),
    "in a group": (in_a_group, {"a": 1, "b": 3, "body": 2}),
    "where groups are out of sight": (where_groups_are_out_of_sight, OUT_OF_SIGHT),
    "in a gather": (in_a_gather, {"a": 2, "b": 3}),
    "in the background": (in_the_background, {"a": 2}),
    "together when one fails": (together_when_one_fails, {"failing": 1, "a": 3}),
    "waiting for each other": (waiting_for_each_other, {"giving": 1, "taking": 2}),
    "one after the other": (one_after_the_other, {"kept": 1, "b-a": 2}),
    "told by a message": (told_by_a_message, {"a": 2, "a-again": 1, "b": 2, "b-again": 1, "beside": 2}),
    "waiting as they undo": (waiting_as_they_undo, {"a": 2, "b": 2, "part": 2}),
    "that end what was refused": (that_end_what_was_refused, {"main": 6}),
    "that end others": (that_end_others, {"beside": 1, "main-True": 1}),
}


def several(name: str, **options: Any) -> DurableTester:
    async def handler(input: dict[str, Any], ctx: DurableContext) -> None:
        await UNDONE[name][0](ctx)

    tester = DurableTester([Dispatcher().durable_task(name="several")(handler)], **options)
    tester.cancel(after="1h")
    return tester


def undone(tester: DurableTester) -> dict[str, int]:
    (run,) = tester.double.runs.values()
    steps = [entry["id"].rpartition("/")[2] for entry in run.entries if entry["op"] == "step"]
    return dict(Counter(step.removeprefix("undo-").partition("#")[0] for step in steps if step.startswith("undo-")))


@pytest.mark.parametrize("name", UNDONE)
async def test_everybody_undoes_to_the_end(name: str) -> None:
    tester = several(name)
    run = await tester.run("several")
    assert (run.status, undone(tester)) == ("cancelled", UNDONE[name][1])


@pytest.mark.parametrize("unreachable", [False, True])
@pytest.mark.parametrize("name", UNDONE)
async def test_and_does_so_wherever_it_is_killed(name: str, unreachable: bool, caplog: pytest.LogCaptureFixture) -> None:
    made: list[DurableTester] = []

    def make(crash_at: int | None) -> DurableTester:
        made.append(several(name, crash_at=crash_at, unreachable=unreachable))
        return made[-1]

    assert await crash_everywhere(make, "several") >= 3
    assert [undone(tester) for tester in made] == [UNDONE[name][1]] * len(made)
