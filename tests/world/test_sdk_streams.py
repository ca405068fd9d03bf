"""The SDK follows a stream through connections that break, a retry, and a dispatcher that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from handlers_sdk import ApiError, ClientConfig, Context, Dispatcher, EmptyModel
from tests.world.world import Node, World

ODD = ["a\u2028b", "c\u2029\u0085d", "line\nbreak\r\n", "\x0b\x0c\x1c\x1d\x1e", "", "data: x", ":", "\u00e9\U0001f600"]
"""Texts that hold what some take for the end of a line."""


@pytest.fixture
async def node(world: World) -> Node:
    """A dispatcher the SDK can call."""
    return await world.served_node()


@pytest.fixture
async def client(world: World, node: Node) -> AsyncIterator[Dispatcher]:
    """A client and its app: one task that says fifty words, one that fails in the middle at first, one that says bytes."""
    dispatcher = Dispatcher(ClientConfig(api_url=node.runtime.services.settings.base_url(), retry_backoff=0.01))

    @dispatcher.task(name="fifty")
    async def fifty(input: EmptyModel, ctx: Context) -> None:
        for n in range(50):
            await ctx.aio_put_stream(f"{n} ")

    @dispatcher.task(name="again", retries=1)
    async def again(input: EmptyModel, ctx: Context) -> None:
        await ctx.aio_put_stream(f"{ctx.attempt_number}a")
        if ctx.attempt_number == 1:
            raise ValueError("once more")
        await ctx.aio_put_stream("b")

    @dispatcher.task(name="raw")
    async def raw(input: EmptyModel, ctx: Context) -> None:
        await ctx.aio_put_stream(b"\x00\xff")
        with pytest.raises(ValueError, match="send it in several"):
            ctx.put_stream("x" * 600_000)

    @dispatcher.task(name="odd")
    async def odd(input: EmptyModel, ctx: Context) -> None:
        for text in ODD:
            await ctx.aio_put_stream(text)

    app = dispatcher.app(workflows=[fifty, again, raw, odd], slots=10, clock=lambda: int(world.now.timestamp()))
    await node.call("PUT", "/v1/endpoints/talk", {"url": await world.serve(app)})
    yield dispatcher
    await dispatcher.aio_close()


async def test_connections_that_break_are_taken_up(world: World, node: Node, client: Dispatcher) -> None:
    streams = node.runtime.services.streams
    run_id = await node.trigger("fifty")
    heard: list[str] = []
    async for word in client.runs.subscribe_to_stream(run_id):
        heard.append(word)
        if len(heard) % 10 == 0:
            streams.close()  # every reader is let go
            await asyncio.sleep(0)
            streams.closed = False
    assert heard == [f"{n} " for n in range(50)]


async def test_a_retry_is_told(world: World, node: Node, client: Dispatcher) -> None:
    run_id = await node.trigger("again")
    heard: list[str] = []
    async for word in client.runs.subscribe_to_stream(run_id, on_reset=heard.clear):
        heard.append(word)  # noqa: PERF401 - on_reset needs the list while it grows
    assert heard == ["2a", "b"]
    types = await asyncio.to_thread(lambda: [event.type for event in client.runs.stream_events(run_id)])
    assert types == ["run:start", "reset", "stream:data", "stream:data", "run:stop"]


async def test_bytes_come_as_bytes(world: World, node: Node, client: Dispatcher) -> None:
    run_id = await node.trigger("raw")
    assert [piece async for piece in client.runs.subscribe_to_stream(run_id)] == [b"\x00\xff"]
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_run_that_is_not_there_is_said(node: Node, client: Dispatcher) -> None:
    with pytest.raises(ApiError) as refused:
        _ = [piece async for piece in client.runs.subscribe_to_stream("run_nope")]
    assert refused.value.problem_code == "not_found"


async def test_text_with_separators_comes_as_it_was_put(world: World, node: Node, client: Dispatcher) -> None:
    run_id = await node.trigger("odd")
    async with asyncio.timeout(20):
        assert [piece async for piece in client.runs.subscribe_to_stream(run_id)] == ODD
    assert await asyncio.to_thread(lambda: list(client.runs.subscribe_to_stream(run_id))) == ODD
