"""Durable tasks made with the SDK, pushed by a real dispatcher: both sides of the wire joined."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from handlers_sdk import (
    ClientConfig,
    Context,
    Dispatcher,
    DurableContext,
    EmptyModel,
    NonRetryableError,
    SleepCondition,
    StateContext,
    UserEventCondition,
    or_,
)
from handlers_sdk.errors import Cancelled
from handlers_sdk.testing import DurableTester
from tests.world.served import dispatcher_for, serving
from tests.world.world import Node, World, until


@dataclass
class Shop:
    """An app with durable tasks, and how often each of their steps was run."""

    dispatcher: Dispatcher
    ran: Counter[str] = field(default_factory=Counter)

    async def step(self, name: str) -> str:
        self.ran[name] += 1
        return name

    def tasks(self) -> list[Any]:
        @self.dispatcher.task(name="leaf")
        async def leaf(input: dict[str, Any], ctx: Context) -> int:
            if input["n"] == 13:
                raise NonRetryableError("unlucky")
            return int(input["n"]) * 2

        @self.dispatcher.durable_task(name="order")
        async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
            first, second = await asyncio.gather(ctx.run("first", self.step, "first"), ctx.run("second", self.step, "second"))
            await ctx.aio_sleep_for("1h")
            paid = await ctx.aio_wait_for("paid", or_(SleepCondition("1d"), UserEventCondition("paid", "input.n > 1")))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(leaf.aio_run({"n": n})) for n in range(3)]
            return [first, second, paid, [task.result() for task in tasks], await ctx.run("last", self.step, "last")]

        @self.dispatcher.durable_task(name="fan-out")
        async def fan_out(input: dict[str, Any], ctx: DurableContext) -> Any:
            results = await leaf.aio_run_many([leaf.create_bulk_run_item({"n": n}) for n in range(20)], return_exceptions=True)
            return [type(one).__name__ if isinstance(one, Exception) else one for one in results]

        @self.dispatcher.durable_task(name="worker")
        async def worker(input: EmptyModel, ctx: DurableContext) -> Any:
            seen: list[Any] = []
            while (message := await ctx.receive()) != {"$cancel": True}:
                seen.append(message)
                await ctx.checkpoint({"seen": seen})
            return {"stopped": seen}

        return [leaf, order, fan_out, worker]


@pytest.fixture
async def node(world: World) -> Node:
    return await world.served_node()


@pytest.fixture
async def shop(world: World, node: Node) -> AsyncIterator[Shop]:
    shop = Shop(dispatcher_for(node))
    async with serving(world, node, shop.dispatcher, shop.tasks):
        yield shop


async def ended(node: Node, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = await node.call("GET", f"/v1/runs/{run_id}?wait=20s")
    return run


async def waiting(node: Node, run_id: str, kind: str) -> None:
    """Wait until a run waits for something of a kind: `sleep`, `event`."""

    async def so() -> bool:
        [task] = (await node.call("GET", f"/v1/runs/{run_id}"))["tasks"]
        return any(reason["kind"] == kind for reason in task.get("waiting_for", ()))

    await until(so)


async def test_an_order_sleeps_waits_and_fans_out(world: World, node: Node, shop: Shop) -> None:
    run = await node.call("POST", "/v1/runs", {"workflow": "order", "input": {}})
    await waiting(node, run["id"], "sleep")
    await world.advance(timedelta(hours=1))
    await waiting(node, run["id"], "event")
    await node.call("POST", "/v1/events", {"type": "paid", "data": {"n": 1}})
    await node.call("POST", "/v1/events", {"type": "paid", "data": {"n": 2}})
    done = await ended(node, run["id"])
    assert (done["status"], done["output"]) == ("succeeded", ["first", "second", {"CREATE": {"paid": [{"n": 2}]}}, [0, 2, 4], "last"])
    assert shop.ran == {"first": 1, "second": 1, "last": 1}
    assert sorted(entry["op"] for entry in (await node.call("GET", f"/v1/runs/{run['id']}/journal"))["entries"]).count("child") == 6


async def test_children_fail_into_their_parent(node: Node, shop: Shop) -> None:
    run = await node.call("POST", "/v1/runs", {"workflow": "fan-out", "input": {}})
    done = await ended(node, run["id"])
    assert done["output"] == [n * 2 if n != 13 else "FailedTaskRunExceptionGroup" for n in range(20)]


async def test_a_worker_is_spoken_to_and_stopped(node: Node, shop: Shop) -> None:
    worker = shop.dispatcher.stubs.task("worker")
    info = await worker.aio_start()
    for n in range(3):
        assert await shop.dispatcher.runs.aio_send(info.id, {"n": n})

    async def saved() -> bool:
        return bool(await shop.dispatcher.runs.aio_restore(info.id) == {"seen": [{"n": 0}, {"n": 1}, {"n": 2}]})

    await until(saved)
    assert await shop.dispatcher.runs.aio_cancel(info.id) is True
    done = await ended(node, info.id)
    assert done["status"] == "cancelled"
    assert await shop.dispatcher.runs.aio_cancel(info.id) is False
    assert await shop.dispatcher.runs.aio_send(info.id, "late") is False


async def test_a_child_that_is_not_waited_for_is_the_same_run_in_every_turn(world: World, node: Node) -> None:
    dispatcher = dispatcher_for(node)

    @dispatcher.task(name="leaf")
    async def leaf(input: dict[str, Any], ctx: Context) -> int:
        return 1

    @dispatcher.durable_task(name="refers")
    async def refers(input: dict[str, Any], ctx: DurableContext) -> Any:
        ref = await leaf.aio_run_no_wait({"n": 1})
        first = await ctx.run("first", lambda: ref.workflow_run_id)
        await ctx.aio_sleep_for("1h")
        return [first == ref.workflow_run_id, await ref.aio_result()]

    async with serving(world, node, dispatcher, lambda: [leaf, refers]):
        run = await node.call("POST", "/v1/runs", {"workflow": "refers", "input": {}})
        await waiting(node, run["id"], "sleep")
        await world.advance(timedelta(hours=1))
        over = await world.over(run["id"])
        assert (over["status"], over["output"]) == ("succeeded", b"[true,1]")


# ---- the testing kit


Stop = Callable[[str], Awaitable[Any]]
Seen = list[tuple[Any, ...]]


def _which(ctx: Context) -> tuple[int, int]:
    """A turn's number, and its attempt's."""
    item: Any = ctx.item
    return item["turn"], item["attempt"]


def _reducer(dispatcher: Dispatcher, seen: Seen, _: Stop) -> Any:
    @dispatcher.durable_task(name="counted", mode="state", retries=1)
    async def counted(input: dict[str, Any], ctx: StateContext) -> Any:
        seen.append((*_which(ctx), ctx.retry_count, ctx.state, sorted(ctx.results)))
        if ctx.item["attempt"] in (1, 3):
            raise ValueError("once more")
        if ctx.state is None:
            ctx.sleep_for("nap", "1h")
            return ctx.wait("asleep")
        return ctx.again("rested") if ctx.state == "asleep" else "done"

    return counted


def _replayed(dispatcher: Dispatcher, seen: Seen, _: Stop) -> Any:
    @dispatcher.durable_task(name="counted", retries=1)
    async def counted(input: dict[str, Any], ctx: DurableContext) -> Any:
        seen.append((*_which(ctx), ctx.retry_count))
        if input:
            return "done"
        await ctx.run("a", lambda: 1)
        if ctx.item["attempt"] == 1:
            raise ValueError("once more")
        await ctx.aio_sleep_for("1h")
        if ctx.item["attempt"] == 3:
            raise ValueError("once more")
        return ctx.continue_as_new({"anew": True})

    return counted


def _cancelled(dispatcher: Dispatcher, seen: Seen, stop: Stop) -> Any:
    @dispatcher.durable_task(name="counted")
    async def counted(input: dict[str, Any], ctx: DurableContext) -> Any:
        seen.append((*_which(ctx), ctx.retry_count))
        await ctx.run("a", lambda: 1)
        try:
            await ctx.run("b", stop, ctx.workflow_run_id)
            await ctx.aio_sleep_for("1d")
        except Cancelled:
            seen.append(("undone", await ctx.run("undo", lambda: 1)))
            raise

    return counted


_COUNTED: dict[str, tuple[Callable[[Dispatcher, Seen, Stop], Any], str, Seen]] = {
    "a reducer": (
        _reducer,
        "succeeded",
        [(1, 1, 0, None, []), (1, 2, 1, None, []), (2, 3, 0, "asleep", ["nap"]), (2, 4, 1, "asleep", ["nap"]), (3, 5, 0, "rested", [])],
    ),
    "a log": (_replayed, "succeeded", [(1, 1, 0), (1, 2, 1), (2, 3, 0), (2, 4, 1), (3, 5, 0)]),
    "a cancel in a turn": (_cancelled, "cancelled", [(1, 1, 0), (2, 2, 0), ("undone", 1)]),
}


@pytest.mark.parametrize("what", _COUNTED)
async def test_turns_are_counted_as_the_testing_kit_counts_them(world: World, node: Node, what: str) -> None:
    """A turn that failed is sent again as the same, in a new attempt, with all that it was to hear of."""
    make, status, turns = _COUNTED[what]
    here: Seen = []
    there: Seen = []

    async def stop_here(run_id: str) -> None:
        assert tester.double.cancel(run_id)

    async def stop_there(run_id: str) -> None:
        await node.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "no longer wanted"})

    counted = make(Dispatcher(ClientConfig()), here, stop_here)
    tester = DurableTester([counted])
    run = await tester.run(counted)
    assert (run.status, here) == (status, turns)

    dispatcher = dispatcher_for(node)
    async with serving(world, node, dispatcher, lambda: [make(dispatcher, there, stop_there)]):
        started = await node.call("POST", "/v1/runs", {"workflow": "counted", "input": {}})
        if status == "succeeded":
            await world.task(started["id"], state="waiting")
            await world.advance(timedelta(hours=1))
        over = await world.over(started["id"])
        assert (over["status"], there) == (status, turns)
