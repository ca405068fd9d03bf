"""Memos: which calls are the same, who shares them, and what becomes of one that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial, wraps
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from handlers_sdk import Dispatcher, DurableContext
from handlers_sdk.errors import Cancelled, StepFailedError
from handlers_sdk.memos import key_of
from handlers_sdk.testing import DurableTester, crash_everywhere

Body = Callable[[DurableContext], Awaitable[Any]]


async def echo(value: Any) -> Any:
    return value


async def bad() -> None:
    raise ValueError("no")


async def slow(value: int) -> int:
    for _ in range(20):
        await asyncio.sleep(0)
    return value


def charge(value: int) -> str:
    return f"charged {value}"


def refund(value: int) -> str:
    return f"refunded {value}"


def module(name: str) -> ModuleType:
    made = ModuleType(name)
    exec(f"def load(id): return '{name} ' + str(id)", made.__dict__)  # two functions of one name
    return made


class Api:
    def __init__(self, name: str) -> None:
        self.name = name

    def get(self, value: int) -> str:
        return f"{self.name} {value}"


@dataclass
class Config:
    url: str
    tries: list[int]


class Settings(BaseModel):
    url: str


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise TypeError("no")

    def __hash__(self) -> int:
        return 1


def task(dispatcher: Dispatcher, body: Body) -> Any:
    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        found = await body(ctx)
        await ctx.aio_sleep_for("1h")
        return found

    return order


async def came_to(dispatcher: Dispatcher, body: Body, **options: Any) -> Any:
    """What a handler comes to, once undisturbed; and the same wherever it is killed."""
    order = task(dispatcher, body)
    await crash_everywhere(lambda at: DurableTester([order], crash_at=at, **options), order)
    run = await DurableTester([order], **options).run(order)
    assert run.status == "succeeded", run.error
    return run.output


# ---- which calls are the same


async def test_functions_of_one_name_in_two_modules_are_two(dispatcher: Dispatcher) -> None:
    orders, users = module("orders"), module("users")

    async def body(ctx: DurableContext) -> Any:
        return [await ctx.memo(orders.load, 7), await ctx.memo(users.load, 7), await ctx.memo(orders.load, 8)]

    assert await came_to(dispatcher, body) == ["orders 7", "users 7", "orders 8"]


@pytest.mark.parametrize("fn", [lambda: 1, Api("a").get, partial(charge, 7), "abc".upper], ids=["lambda", "method", "partial", "builtin"])
async def test_what_has_no_name_of_its_own_needs_a_key(dispatcher: Dispatcher, fn: Any) -> None:
    async def unnamed(ctx: DurableContext) -> Any:
        return await ctx.memo(fn)

    order = task(dispatcher, unnamed)
    run = await DurableTester([order]).run(order)
    assert run.error is not None
    assert "give it a key" in run.error["message"]


async def test_with_a_key_all_are_told_apart(dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> Any:
        first = await ctx.memo(Api("a").get, 7, key="a"), await ctx.memo(Api("b").get, 7, key="b")
        return [*first, await ctx.memo(partial(charge, 7), key="c"), await ctx.memo(lambda: 1, key="d"), await ctx.memo(refund, 7, key="a")]

    assert await came_to(dispatcher, body) == ["a 7", "b 7", "charged 7", 1, "a 7"]


def noted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows more once its function has run."""
    calls, last, seen = 0, None, {}

    @wraps(fn)
    async def inner(value: int) -> Any:
        nonlocal calls, last
        calls, last, seen[value] = calls + 1, object(), calls
        return await fn(value)

    return inner


@noted
async def rate(value: int) -> int:
    return value


def undecorated() -> Callable[..., Any]:
    return noted(rate)


def local() -> Callable[..., Any]:
    @noted
    async def load(value: int) -> Any:
        return await rate(value)

    return load


def recursive() -> Callable[..., Any]:
    async def load(value: int) -> int:
        return await load(value - 1) + 1 if value else 0

    return load


def mutual() -> Callable[..., Any]:
    async def even(value: int) -> int:
        return value if value == 0 else await odd(value - 1) + 1

    async def odd(value: int) -> int:
        return await even(value - 1) + 1

    return even


def filling() -> Callable[..., Any]:
    seen: list[int] = []

    async def load(value: int) -> int:
        seen.append(value)
        return value

    return load


def counting() -> Callable[[], Callable[..., Any]]:
    calls = 0

    def made() -> Callable[..., Any]:
        async def load(value: int) -> int:
            nonlocal calls
            calls += 1
            return value

        return load

    return made


@pytest.mark.parametrize("how", [lambda: rate, undecorated, local, recursive, mutual, filling, None])
async def test_what_a_function_changes_as_it_runs_does_not_make_it_another(dispatcher: Dispatcher, how: Any) -> None:
    async def body(ctx: DurableContext) -> Any:
        made = how or counting()
        found = [await ctx.memo(made(), 2), await ctx.memo(made(), 2)]
        await ctx.aio_sleep_for("1h")
        return [*found, await ctx.memo(made(), 2)]

    order = task(dispatcher, body)
    tester = DurableTester([order])
    run = await tester.run(order)
    assert (run.status, run.output, sum(tester.double.steps.values())) == ("succeeded", [2, 2, 2], 1), run.error
    await crash_everywhere(lambda at: DurableTester([order], crash_at=at), order)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, True), (0.5, 1.5), ("a", "b"), (b"a", b"b"), ((1, "a"), (1, "b")), ((), (None,))])
async def test_what_is_captured_tells_functions_apart_where_it_cannot_change(dispatcher: Dispatcher, one: Any, other: Any) -> None:
    def made(captured: Any) -> Callable[..., Any]:
        def load(value: int) -> Any:
            return [value, repr(captured)]

        return load

    async def body(ctx: DurableContext) -> Any:
        return [await ctx.memo(made(one), 7), await ctx.memo(made(one), 7), await ctx.memo(made(other), 7)]

    order = task(dispatcher, body)
    tester = DurableTester([order])
    run = await tester.run(order)
    assert "another function of that name" in (run.error or {})["message"]
    assert await crash_everywhere(lambda at: DurableTester([order], crash_at=at), order) > 1


def keyed(value: int, *, by: int = 1) -> int:
    return value * by


@pytest.mark.parametrize("how", ["captured", "default", "keyword", "function", "wrapper"])
async def test_two_that_differ_in_what_they_hold_are_refused(dispatcher: Dispatcher, how: str) -> None:
    def made(number: int) -> Callable[..., Any]:
        inner = {"captured": None, "function": charge if number else refund}.get(how)
        if how == "default":

            def load(value: int, more: int = number) -> Any:
                return value + more
        elif how == "keyword":

            def load(value: int, *, more: int = number) -> Any:  # type: ignore[misc]
                return value + more
        elif how == "wrapper":

            def inner_load(value: int) -> Any:
                return value + number

            def load(value: int) -> Any:  # type: ignore[misc]
                return inner_load(value)
        else:

            def load(value: int) -> Any:  # type: ignore[misc]
                return inner(value) if inner is not None else value + number

        return load

    async def body(ctx: DurableContext) -> Any:
        first = [await ctx.memo(made(0), 7), await ctx.memo(made(0), 7)]
        return [*first, await ctx.memo(made(1), 7)]

    order = task(dispatcher, body)
    tester = DurableTester([order])
    run = await tester.run(order)
    assert run.error is not None
    assert "another function of that name" in run.error["message"]
    assert sum(tester.double.steps.values()) == 1, "two of one kind are one"


CONFIG = {"url": "a", "tries": [1, 2]}


def cyclic() -> list[Any]:
    made: list[Any] = [1]
    made.append(made)
    return made


def deep(levels: int) -> list[Any]:
    made: list[Any] = [Decimal(1)]
    for _ in range(levels):
        made = [made]
    return made


def holding(captured: Any) -> Callable[..., Any]:
    def load(value: int) -> Any:
        return [value, repr(captured)]

    return load


def cached(captured: Any) -> Callable[..., Any]:
    @lru_cache
    def load(value: int) -> Any:
        return [value, repr(captured)]

    return load


def starting(at: int) -> Callable[..., Any]:
    def load(value: int) -> int:
        nonlocal at
        at += value
        return at

    return load


async def shared(dispatcher: Dispatcher, *made: Callable[[], Callable[..., Any]]) -> bool:
    """Whether one memo serves all that are made so. If not, it has been refused, and the first alone was called."""

    async def body(ctx: DurableContext) -> Any:
        return [await ctx.memo(make(), 7) for make in made]

    order = task(dispatcher, body)
    tester = DurableTester([order])
    run = await tester.run(order)
    assert sum(tester.double.steps.values()) == 1
    if run.status == "succeeded":
        assert run.output == [run.output[0]] * len(made)
        return True
    assert 'give each a key: ctx.memo(…, key="…")' in (run.error or {})["message"]
    return False


ALIKE: dict[str, tuple[Callable[[Any], Callable[..., Any]], Any, Any]] = {
    "the same object": (holding, CLIENT := Api("a"), CLIENT),
    "a class": (holding, Api, Api),
    "a method": (holding, CLIENT.get, CLIENT.get),
    "an equal list": (holding, [1, ["a"]], [1, ["a"]]),
    "an equal dict": (holding, CONFIG, {"url": "a", "tries": [1, 2]}),
    "an equal set": (holding, {1, 2}, {2, 1}),
    "an equal value": (holding, Decimal("1.0"), Decimal("1.0")),
    "a function in a list": (holding, [holding(1)], [holding(1)]),
    "what holds itself": (holding, cyclic(), cyclic()),
    "the same list, however long": (holding, LONG := list(range(100_000)), LONG),
    "an equal list, however long": (holding, [*LONG], [*LONG]),
    "an equal dataclass": (holding, Config("a", [1]), Config("a", [1])),
    "an equal model": (holding, [Settings(url="a")], [Settings(url="a")]),
    "a variable of its own": (starting, 1, 1),
}
OTHERS: dict[str, tuple[Callable[[Any], Callable[..., Any]], Any, Any]] = {
    "another object": (holding, Api("a"), Api("b")),
    "another class": (holding, Api, Dispatcher),
    "another method": (holding, Api("a").get, Api("b").get),
    "another list": (holding, [1, ["a"]], [1, ["b"]]),
    "another dict": (holding, CONFIG, CONFIG | {"url": "b"}),
    "another set": (holding, {1, 2}, {1, 3}),
    "another value": (holding, Decimal("1.0"), Decimal("1.1")),
    "another kind of number": (holding, [1], [True]),
    "another function in a list": (holding, [holding(1)], [holding(2)]),
    "another list, however long": (holding, list(range(100_000)), list(range(1, 100_001))),
    "too much to look at": (holding, [Decimal(1)] * 1_000, [Decimal(1)] * 1_000),
    "what is too deep to look at": (holding, deep(400), deep(400)),
    "another field": (holding, Config("a", [1]), Config("a", [2])),
    "another model": (holding, Settings(url="a"), Settings(url="b")),
    "what cannot be compared": (holding, (Incomparable(),), (Incomparable(),)),
    "what may have been changed": (holding, bytearray(b"a"), bytearray(b"a")),
    "a variable that begins otherwise": (starting, 1, 2),
    "what says nothing of itself": (cached, 1, 2),
}


@pytest.mark.parametrize("case", ALIKE)
async def test_two_that_hold_the_same_are_one(dispatcher: Dispatcher, case: str) -> None:
    made, one, other = ALIKE[case]
    assert await shared(dispatcher, lambda: made(one), lambda: made(other))


@pytest.mark.parametrize("case", OTHERS)
async def test_two_of_which_it_cannot_be_said_that_they_are_one_are_refused(dispatcher: Dispatcher, case: str) -> None:
    made, one, other = OTHERS[case]
    assert not await shared(dispatcher, lambda: made(one), lambda: made(other))


async def test_one_function_is_the_same_whatever_became_of_what_it_holds(dispatcher: Dispatcher) -> None:
    kept: list[int] = []

    def filled() -> Callable[..., Any]:
        def load(value: int) -> int:
            kept.append(value)
            return value

        return load

    fn = starting(1)
    assert await shared(dispatcher, lambda: fn, lambda: fn)
    assert await shared(dispatcher, filled, filled)


async def test_functions_made_in_a_loop_are_not_taken_for_one(dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> Any:
        found = []
        for client in (Api("a"), Api("b")):

            def load(value: int) -> str:
                return client.get(value)  # noqa: B023 - as it is when it is called

            found.append(await ctx.memo(load, 7))
        return found

    order = task(dispatcher, body)
    run = await DurableTester([order]).run(order)
    assert "another function of that name" in (run.error or {})["message"]


def test_a_long_name_makes_a_key_that_can_be_an_id() -> None:
    long: Any = lambda: None  # noqa: E731 - only its name matters
    long.__qualname__ = "outer.<locals>." * 30 + "load"
    assert len(key_of(long, (1,))) < 150
    assert key_of(long, (1,)) != key_of(long, (2,))


# ---- scopes


async def test_a_scope_has_memos_of_its_own_and_knows_those_around_it(dispatcher: Dispatcher) -> None:
    async def inside(ctx: DurableContext, number: int) -> Any:
        return [await ctx.memo(echo, 1), await ctx.memo(echo, 2), await ctx.memo(echo, 2), number]

    async def body(ctx: DurableContext) -> Any:
        first = await ctx.memo(echo, 1)
        return [first, *[await ctx.scope("part", inside, ctx, n) for n in range(2)], await ctx.memo(echo, 2)]

    order = task(dispatcher, body)
    tester = DurableTester([order])
    run = await tester.run(order)
    assert (run.status, run.output) == ("succeeded", [1, [1, 2, 2, 0], [1, 2, 2, 1], 2])
    assert sum(tester.double.steps.values()) == 4
    await crash_everywhere(lambda at: DurableTester([order], crash_at=at), order)


# ---- those who share one


async def test_one_branch_gives_up_and_the_other_has_it(dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> Any:
        async def branch() -> Any:
            return await ctx.memo(slow, 7)

        first, second = asyncio.create_task(branch()), asyncio.create_task(branch())
        await asyncio.sleep(0)
        first.cancel()
        return [await second, await ctx.memo(slow, 7)]

    assert await came_to(dispatcher, body) == [7, 7]


async def test_what_all_gave_up_is_asked_for_anew(dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> Any:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.run("bad", bad))
                group.create_task(ctx.memo(slow, 7))
                group.create_task(ctx.memo(slow, 7))
        except* StepFailedError:
            pass
        return [await ctx.memo(slow, 7), *await asyncio.gather(ctx.memo(slow, 7), ctx.memo(slow, 8))]

    assert await came_to(dispatcher, body) == [7, 7, 8]


@pytest.mark.parametrize("asked", [1, 2])
async def test_what_the_handler_gave_up_is_anew_though_a_scope_goes_on_with_it(dispatcher: Dispatcher, asked: int) -> None:
    async def body(ctx: DurableContext) -> Any:
        async def branch() -> Any:
            return await ctx.memo(slow, 7)

        first = asyncio.create_task(branch())
        await ctx.run("asked", echo, 1)
        part = ctx.scope("part", branch)
        await ctx.run("shared", echo, 1)
        first.cancel()
        found = [await part]
        if asked == 2:
            found.append(await ctx.memo(slow, 7))
        await ctx.aio_sleep_for("1h")  # the scope is closed: from here on it asks for nothing
        return [*found, await ctx.memo(slow, 7)]

    order = task(dispatcher, body)
    tester = DurableTester([order])
    run = await tester.run(order)
    assert (run.status, run.output) == ("succeeded", [7] * (asked + 1)), run.error
    assert [step.rpartition("#")[2] for _, step in tester.double.steps if step.startswith("memo")] == ["0", "1"]
    assert set(tester.double.steps.values()) == {1}
    await crash_everywhere(lambda at: DurableTester([order], crash_at=at), order)


@pytest.mark.parametrize("goes", ["handler", "scope"])
async def test_what_a_scope_shares_with_the_handler_has_one_that_goes_on(dispatcher: Dispatcher, goes: str) -> None:
    async def body(ctx: DurableContext) -> Any:
        async def branch() -> Any:
            return await ctx.memo(slow, 7)

        async def inner() -> Any:
            one = asyncio.create_task(branch())
            await ctx.run("asked", echo, 1)
            if goes == "scope":
                one.cancel()
            await asyncio.wait([one])
            return 1

        one, two = asyncio.create_task(branch()), asyncio.create_task(branch())
        await ctx.run("asked", echo, 1)
        part = ctx.scope("part", inner)
        await ctx.run("shared", echo, 1)
        if goes == "handler":
            one.cancel()
        found = [await part, await two, await ctx.memo(slow, 7)]
        await ctx.aio_sleep_for("1h")
        return [*found, await ctx.memo(slow, 7)]

    order = task(dispatcher, body)
    tester = DurableTester([order])
    run = await tester.run(order)
    assert (run.status, run.output) == ("succeeded", [1, 7, 7, 7]), run.error
    assert len([step for _, step in tester.double.steps if step.startswith("memo")]) == 1
    await crash_everywhere(lambda at: DurableTester([order], crash_at=at), order)


async def test_a_cancelled_task_undoes_things_with_memos(dispatcher: Dispatcher) -> None:
    undone = []

    async def undo() -> None:
        undone.append(1)

    async def body(ctx: DurableContext) -> Any:
        pending = ctx.memo(slow, 7)
        try:
            await asyncio.gather(pending, ctx.aio_sleep_for("1h"))
        except Cancelled:
            await ctx.memo(undo)
            raise

    order = task(dispatcher, body)
    tester = DurableTester([order])
    tester.cancel(after="1m")
    run = await tester.run(order)
    assert (run.status, undone) == ("cancelled", [1])


async def test_a_failure_is_remembered_too(dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> Any:
        return [type(one).__name__ for one in await asyncio.gather(ctx.memo(bad), ctx.memo(bad), return_exceptions=True)]

    assert await came_to(dispatcher, body) == ["StepFailedError"] * 2


async def test_a_set_of_them_is_waited_for_in_one_order(dispatcher: Dispatcher) -> None:
    async def body(ctx: DurableContext) -> Any:
        done, pending = await asyncio.wait({ctx.memo(slow, number) for number in (3, 1, 2)}, return_when=asyncio.ALL_COMPLETED)
        assert not pending
        return [one.result() for one in done]

    first = await came_to(dispatcher, body)
    assert sorted(first) == [1, 2, 3]
    assert all([await came_to(dispatcher, body) == first for _ in range(3)])
