"""Dependency injection: what is provided, in which order it is given back, and declarations that cannot work."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import pytest

from handlers_sdk import ConfigError, Context, Depends, Dispatcher, EmptyModel, NonRetryableError
from tests.sdk.pushing import batch, clock, config, item, run

LOG: list[str] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(config())


async def async_dep(input: EmptyModel, ctx: Context) -> str:
    LOG.append("async")
    return "async"


def sync_dep(input: EmptyModel, ctx: Context) -> str:
    LOG.append(f"sync in {'a thread' if threading.current_thread() is not threading.main_thread() else 'the loop'}")
    return "sync"


@asynccontextmanager
async def async_cm_dep(input: EmptyModel, ctx: Context, async_dep: Annotated[str, Depends(async_dep)]) -> AsyncGenerator[str, None]:
    LOG.append("open async cm")
    try:
        yield f"async cm over {async_dep}"
    finally:
        LOG.append("close async cm")


@contextmanager
def sync_cm_dep(input: EmptyModel, ctx: Context, sync_dep: Annotated[str, Depends(sync_dep)]) -> Generator[str, None, None]:
    LOG.append("open sync cm")
    try:
        yield f"sync cm over {sync_dep}"
    finally:
        LOG.append("close sync cm")


def generator_dep(input: EmptyModel, ctx: Context) -> Generator[str, None, None]:
    yield "generator"
    LOG.append("close generator")


async def async_generator_dep(input: EmptyModel, ctx: Context) -> AsyncGenerator[str, None]:
    yield "async generator"
    LOG.append("close async generator")


def chained(input: EmptyModel, ctx: Context, base: Annotated[str, Depends(sync_cm_dep)]) -> str:
    return f"chained {base}"


async def of_the_task(input: dict[str, Any], ctx: Context) -> str:
    return f"{input['who']} {ctx.attempt_number}"


async def test_every_kind_in_an_async_task(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def work(
        _i: EmptyModel,
        ctx: Context,
        a: Annotated[str, Depends(async_dep)],
        b: Annotated[str, Depends(sync_dep)],
        c: Annotated[str, Depends(async_cm_dep)],
        d: Annotated[str, Depends(sync_cm_dep)],
        e: Annotated[str, Depends(chained)],
        f: Annotated[str, Depends(generator_dep)],
        g: Annotated[str, Depends(async_generator_dep)],
        plain: int = 7,
    ) -> list[Any]:
        LOG.append("work")
        return [a, b, c, d, e, f, g, plain]

    answer = await run(dispatcher.app([work], clock=clock), "work")
    sync_cm = "sync cm over sync"
    assert answer.json() == ["async", "sync", "async cm over async", sync_cm, f"chained {sync_cm}", "generator", "async generator", 7]
    closed = ["close async generator", "close generator", "close sync cm", "close async cm"]
    opened = ["async", "sync in a thread", "open async cm", "open sync cm"]
    assert [*opened, "work", *closed] == LOG


async def test_a_sync_task_with_async_dependencies(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    def work(
        input: EmptyModel, ctx: Context, c: Annotated[str, Depends(async_cm_dep)], *, s: Annotated[str, Depends(sync_dep)]
    ) -> list[str]:
        return [c, s, threading.current_thread().name[:4]]

    assert (await run(dispatcher.app([work], clock=clock), "work")).json() == ["async cm over async", "sync", "task"]
    assert LOG[-1] == "close async cm"


def over_a_default(input: EmptyModel, ctx: Context, base: str = Depends(sync_cm_dep)) -> str:
    return f"over {base}"


async def test_depends_as_a_default_is_what_it_is_in_an_annotation(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def work(
        input: EmptyModel,
        ctx: Context,
        a: Annotated[str, Depends(sync_dep)],
        b: str = Depends(over_a_default),
        *,
        c: str = Depends(async_cm_dep),
        plain: int = 7,
    ) -> list[Any]:
        LOG.append("work")
        return [a, b, c, plain]

    answer = await run(dispatcher.app([work], clock=clock), "work")
    assert answer.json() == ["sync", "over sync cm over sync", "async cm over async", 7]
    assert LOG == ["sync in a thread", "open sync cm", "async", "open async cm", "work", "close async cm", "close sync cm"]
    assert await work.aio_mock_run(dependencies={"a": "1", "b": "2", "c": "3"}) == ["1", "2", "3", 7]


async def test_dependencies_see_the_attempts_input_and_context(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def work(input: dict[str, Any], ctx: Context, who: Annotated[str, Depends(of_the_task)]) -> str:
        return who

    app = dispatcher.app([work], clock=clock)
    answer = await batch(app, item("work", {"who": "a"}, 1), item("work", {"who": "b"}, 2, retry_count=4))
    assert {line["output"] for line in answer.lines()} == {"a 1", "b 5"}


async def test_what_was_opened_is_closed_when_the_handler_fails_and_sees_its_error(dispatcher: Dispatcher) -> None:
    @contextmanager
    def watching(input: EmptyModel, ctx: Context) -> Generator[None, None, None]:
        try:
            yield
        except ValueError as error:
            LOG.append(f"saw {error}")
            raise

    @dispatcher.task()
    async def work(
        input: EmptyModel, ctx: Context, w: Annotated[None, Depends(watching)], c: Annotated[str, Depends(async_cm_dep)]
    ) -> None:
        raise ValueError("bad")

    answer = await run(dispatcher.app([work], clock=clock), "work")
    assert answer.json()["error"]["message"] == "bad"
    assert LOG[-2:] == ["close async cm", "saw bad"]


async def test_a_dependency_that_fails_fails_the_attempt(dispatcher: Dispatcher) -> None:
    def failing(input: EmptyModel, ctx: Context) -> None:
        raise NonRetryableError("no licence")

    @dispatcher.task()
    async def work(input: EmptyModel, ctx: Context, c: Annotated[str, Depends(async_cm_dep)], f: Annotated[None, Depends(failing)]) -> None:
        LOG.append("not reached")

    problem = (await run(dispatcher.app([work], clock=clock), "work")).json()
    assert (problem["detail"], problem["retry"]) == ("no licence", False)
    assert LOG == ["async", "open async cm", "close async cm"]


async def test_a_dependency_that_swallows_the_error_leaves_no_result(dispatcher: Dispatcher) -> None:
    @asynccontextmanager
    async def swallowing(input: EmptyModel, ctx: Context) -> AsyncGenerator[None, None]:
        try:
            yield
        except ValueError:
            LOG.append("swallowed")

    @dispatcher.task()
    async def work(input: EmptyModel, ctx: Context, s: Annotated[None, Depends(swallowing)]) -> None:
        raise ValueError("bad")

    problem = (await run(dispatcher.app([work], clock=clock), "work")).json()
    assert problem["code"] == "invalid_output"
    assert LOG == ["swallowed"]


def test_declarations_that_cannot_work(dispatcher: Dispatcher) -> None:
    async def unprovided(input: EmptyModel, ctx: Context, extra: str) -> None: ...
    async def too_few(input: EmptyModel) -> None: ...
    def ring(input: EmptyModel, ctx: Context, other: Annotated[str, Depends(sync_dep)]) -> None: ...

    async def twice(input: EmptyModel, ctx: Context, s: Annotated[str, Depends(sync_dep)] = Depends(async_dep)) -> None: ...
    async def no_context(input: EmptyModel, s: str = Depends(sync_dep)) -> None: ...

    with pytest.raises(ConfigError, match=r"'s' has more than one Depends"):
        dispatcher.task()(twice)
    with pytest.raises(ConfigError, match="must take two positional arguments: the input and the context"):
        dispatcher.task()(no_context)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"nothing provides 'extra'; annotate it as Annotated"):
        dispatcher.task()(unprovided)
    with pytest.raises(ConfigError, match="must take two positional arguments"):
        dispatcher.task()(too_few)  # type: ignore[arg-type]
    ring.__annotations__["other"] = Annotated[str, Depends(ring)]
    with pytest.raises(ConfigError, match="form a ring"):
        dispatcher.task()(ring)


def test_mock_runs_take_their_dependencies_directly(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    def work(input: EmptyModel, ctx: Context, s: Annotated[str, Depends(sync_dep)]) -> str:
        return s

    assert work.mock_run(dependencies={"s": "given"}) == "given"
    assert LOG == []
    for wrong in ({}, {"s": "a", "t": "b"}):
        with pytest.raises(TypeError, match=r"takes the dependencies \['s'\]"):
            work.mock_run(dependencies=wrong)
