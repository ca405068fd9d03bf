"""Handlers made with the SDK, on a real socket: what they return, raise and say is what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from handlers_sdk import ClientConfig, Context, Dispatcher, EmptyModel, NonRetryableError
from tests.world.world import Node, World, until


class Order(BaseModel):
    """An input with one member that must be there."""

    n: int


@dataclass
class Shop:
    """An app with a handful of tasks, and what happened in them."""

    dispatcher: Dispatcher
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[Any] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def tasks(self) -> list[Any]:
        @self.dispatcher.task(name="double", input_validator=Order, on_events=["order.*"])
        async def double(input: Order, ctx: Context) -> dict[str, int]:
            self.seen.append((ctx.attempt_number, ctx.retry_count, ctx.additional_metadata))
            return {"n": input.n * 2}

        @self.dispatcher.task(name="thread")
        def thread(input: EmptyModel, ctx: Context) -> dict[str, str]:
            ctx.log("from a thread")
            return {"ran": "in a thread"}

        @self.dispatcher.task(name="flaky", retries=2, backoff_factor=2)
        async def flaky(input: EmptyModel, ctx: Context) -> dict[str, int]:
            ctx.log(f"attempt {ctx.attempt_number}")
            if ctx.attempt_number < 3:
                raise ValueError(f"not yet, {ctx.retry_count}")
            return {"attempt": ctx.attempt_number}

        @self.dispatcher.task(name="hopeless", retries=5)
        async def hopeless(input: EmptyModel, ctx: Context) -> None:
            raise NonRetryableError("never")

        @self.dispatcher.task(name="patient", retries=1)
        async def patient(input: EmptyModel, ctx: Context) -> dict[str, bool]:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.stopped.append(ctx.cancellation_reason)
                raise
            return {"waited": True}

        return [double, thread, flaky, hopeless, patient]


@pytest.fixture
async def node(world: World) -> Node:
    """A dispatcher the SDK can call."""
    return await world.served_node()


@pytest.fixture
async def shop(world: World, node: Node) -> AsyncIterator[Shop]:
    """The shop, registered: signatures are verified with the keys the dispatcher publishes."""
    api_url = node.runtime.services.settings.base_url()
    shop = Shop(Dispatcher(ClientConfig(api_url=api_url)))
    app = shop.dispatcher.app(workflows=shop.tasks(), slots=50, clock=lambda: int(world.now.timestamp()))
    answer = await node.call("PUT", "/v1/endpoints/shop", {"url": await world.serve(app)})
    assert answer["verified"] == "v1a"
    yield shop
    await shop.dispatcher.aio_close()


async def _output(world: World, node: Node, run_id: str) -> Any:
    await world.over(run_id)
    return (await node.call("GET", f"/v1/runs/{run_id}"))["output"]


async def test_what_a_handler_returns_is_the_result(world: World, node: Node, shop: Shop) -> None:
    run_id = await node.trigger("double", input={"n": 21}, metadata={"who": "me"})
    assert await _output(world, node, run_id) == {"n": 42}
    assert shop.seen == [(1, 0, {"who": "me"})]


async def test_a_sync_handler_runs_in_a_thread_and_may_log(world: World, node: Node, shop: Shop) -> None:
    run_id = await node.trigger("thread")
    assert await _output(world, node, run_id) == {"ran": "in a thread"}
    rows = (await node.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]
    assert [row["message"] for row in rows] == ["from a thread"]


async def test_an_exception_is_a_retry(world: World, node: Node, shop: Shop) -> None:
    run_id = await node.trigger("flaky")
    for number, seconds in ((1, 2), (2, 4)):
        await world.attempts(run_id, number)
        task = await world.task(run_id, state="scheduled")
        assert task["due_at"] == world.now + timedelta(seconds=seconds)
        await world.advance(timedelta(seconds=seconds))
    assert await _output(world, node, run_id) == {"attempt": 3}
    attempts = await world.attempts(run_id, 3)
    assert [(row["status"], row["number"]) for row in attempts] == [("failed", 1), ("failed", 2), ("succeeded", 3)]
    assert "not yet, 0" in attempts[0]["error"]
    rows = (await node.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]
    assert [(row["message"], row["attempt"]) for row in rows] == [(f"attempt {n}", n) for n in (1, 2, 3)]


async def test_a_final_exception_is_the_end(world: World, node: Node, shop: Shop) -> None:
    over = await world.over(await node.trigger("hopeless"))
    assert (over["status"], over["epoch"]) == ("failed", 1)
    assert over["error"]["message"] == "never"


async def test_an_input_the_handler_cannot_take_is_not_tried_again(world: World, node: Node, shop: Shop) -> None:
    over = await world.over(await node.trigger("double", input={"n": "many"}))
    assert (over["status"], over["epoch"], over["app_retries"]) == ("failed", 1, 0)
    assert shop.seen == []


async def test_a_cancelled_handler_is_told_why(world: World, node: Node, shop: Shop) -> None:
    run_id = await node.trigger("patient")
    await _running(shop)
    assert (await node.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "changed my mind"}))["status"] == "cancelling"
    assert (await world.over(run_id))["status"] == "cancelled"
    assert shop.stopped == ["changed my mind"]


async def test_a_handler_at_its_deadline_is_stopped(world: World, node: Node, shop: Shop) -> None:
    run_id = await node.trigger("patient")
    await _running(shop)
    await world.advance(timedelta(seconds=60))
    (attempt,) = await world.attempts(run_id, 1)
    assert attempt["status"] == "timed_out"
    await until(lambda: _stopped(shop))
    shop.gate.set()
    assert await _output(world, node, run_id) == {"waited": True}


async def _running(shop: Shop) -> None:
    async def waiting() -> bool:
        return bool(shop.gate._waiters)

    await until(waiting)


async def _stopped(shop: Shop) -> bool:
    return bool(shop.stopped)


async def test_a_hundred_go_in_batches(world: World, node: Node, shop: Shop) -> None:
    before = node.runtime.services.metrics.requests_sent
    rows = (await node.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "double", "input": {"n": n}} for n in range(300)]}))["rows"]
    for n, row in enumerate(rows):
        assert await _output(world, node, row["id"]) == {"n": 2 * n}
    assert node.runtime.services.metrics.requests_sent - before < 100
    assert len(shop.seen) == 300


async def test_the_sdks_client_triggers_waits_and_pushes(world: World, node: Node, shop: Shop) -> None:
    ref = await shop.dispatcher.stubs.workflow("double", input_validator=Order).aio_run_no_wait(Order(n=4))
    assert await asyncio.wait_for(ref.aio_result(), 30) == {"n": 8}
    event = await shop.dispatcher.event.aio_push("order.created", {"n": 5})
    runs = (await node.call("GET", f"/v1/events/{event.event_id}/runs"))["rows"]
    assert len(runs) == 1
    await until(lambda: _seen(shop, 2))


async def _seen(shop: Shop, count: int) -> bool:
    return len(shop.seen) == count
