"""A durable run that was cancelled and has undone something is replayed: it goes on from where it was cancelled, on the code as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from handlers_sdk import Dispatcher, DurableContext
from handlers_sdk.errors import Cancelled
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
from tests.world.served import dispatcher_for, serving
from tests.world.test_durable_sdk import ended, waiting
from tests.world.world import Node, World, until


@dataclass
class Shop:
    """Durable tasks that undo when they are cancelled, and how often each of their steps was run."""

    dispatcher: Dispatcher
    ran: Counter[str] = field(default_factory=Counter)

    async def step(self, name: str) -> str:
        self.ran[name] += 1
        return name

    def tasks(self) -> list[Any]:
        @self.dispatcher.durable_task(name="order")
        async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
            await ctx.run("charge", self.step, "charge")
            await ctx.checkpoint("charged")
            try:
                await ctx.aio_sleep_for("1d")
            except Cancelled:
                ctx.patch("mail")
                await ctx.run("refund", self.step, "refund")
                await ctx.checkpoint("refunded")
                raise
            return await ctx.run("ship", self.step, "ship")

        @self.dispatcher.durable_task(name="scoped")
        async def scoped(input: dict[str, Any], ctx: DurableContext) -> Any:
            async def shipping() -> Any:
                await ctx.run("charge", self.step, "charge")
                try:
                    await ctx.aio_sleep_for("1d")
                    return await ctx.run("ship", self.step, "ship")
                except Cancelled:
                    return await ctx.run("refund", self.step, "refund")

            return await ctx.scope("shipping", shipping)

        @self.dispatcher.durable_task(name="worker")
        async def worker(input: dict[str, Any], ctx: DurableContext) -> Any:
            seen: list[Any] = []
            while (message := await ctx.receive()) not in ({"$cancel": True}, "stop"):
                seen.append(message)
            await ctx.run("refund", self.step, "refund")
            return {"stopped": seen}

        return [order, scoped, worker]


@pytest.fixture
async def node(world: World) -> Node:
    return await world.served_node()


@pytest.fixture
async def shop(world: World, node: Node) -> AsyncIterator[Shop]:
    shop = Shop(dispatcher_for(node))
    async with serving(world, node, shop.dispatcher, shop.tasks):
        yield shop


async def _cancelled(node: Node, run_id: str) -> None:
    await node.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    assert (await ended(node, run_id))["status"] == "cancelled"


async def _journal(node: Node, run_id: str) -> list[tuple[str, str]]:
    return [(one["id"], one["status"]) for one in (await node.call("GET", f"/v1/runs/{run_id}/journal"))["entries"]]


@pytest.mark.parametrize("how", ["replay", "reset"])
@pytest.mark.parametrize(("workflow", "charges"), [("order", {"charge": 1}), ("scoped", {"charge": 1})])
async def test_a_sleep_goes_on_to_the_moment_it_had(
    world: World, node: Node, shop: Shop, workflow: str, charges: dict[str, int], how: str
) -> None:
    run = await node.call("POST", "/v1/runs", {"workflow": workflow, "input": {}})
    await waiting(node, run["id"], "sleep")
    before = await _journal(node, run["id"])
    await world.advance(timedelta(hours=12))
    await _cancelled(node, run["id"])
    assert shop.ran == charges | {"refund": 1}
    undone = await _journal(node, run["id"])
    assert undone[: len(before) + 1] == [*before, ("cancel#0", "ok")]
    await node.call("POST", f"/v1/runs/{run['id']}/{how}", {})
    await waiting(node, run["id"], "sleep")
    assert await _journal(node, run["id"]) == before
    await world.advance(timedelta(hours=12, minutes=1))
    done = await ended(node, run["id"])
    assert (done["status"], done["output"], shop.ran) == ("succeeded", "ship", charges | {"refund": 1, "ship": 1})


async def test_what_was_saved_before_the_cleaning_up_is_what_is_saved(world: World, node: Node, shop: Shop) -> None:
    run = await node.call("POST", "/v1/runs", {"workflow": "order", "input": {}})
    await waiting(node, run["id"], "sleep")
    await _cancelled(node, run["id"])
    assert (await node.call("GET", f"/v1/runs/{run['id']}/checkpoint"))["value"] == "refunded"
    await node.call("POST", f"/v1/runs/{run['id']}/replay", {})
    await waiting(node, run["id"], "sleep")
    assert (await node.call("GET", f"/v1/runs/{run['id']}/checkpoint"))["value"] == "charged"


@pytest.mark.parametrize("journal_node", ["refund#0", "cancel#0", "sleep#0", "charge#0"])
async def test_a_reset_to_any_node_takes_the_cleaning_up_away(world: World, node: Node, shop: Shop, journal_node: str) -> None:
    """To one that the cleaning up has recorded too: the run goes on from where it was cancelled."""
    run = await node.call("POST", "/v1/runs", {"workflow": "order", "input": {}})
    await waiting(node, run["id"], "sleep")
    await _cancelled(node, run["id"])
    await node.call("POST", f"/v1/runs/{run['id']}/reset", {"journal_node": journal_node})
    await waiting(node, run["id"], "sleep")
    assert shop.ran == {"charge": 2 if journal_node == "charge#0" else 1, "refund": 1}
    await world.advance(timedelta(days=1, minutes=1))
    assert (await ended(node, run["id"]))["output"] == "ship"


async def test_who_was_told_in_his_inbox_waits_for_a_message_again(node: Node, shop: Shop) -> None:
    run = await node.call("POST", "/v1/runs", {"workflow": "worker", "input": {}})
    await waiting(node, run["id"], "message")
    for number in (0, 1):
        await node.call("POST", f"/v1/runs/{run['id']}/messages", {"data": number}, 202)

        async def heard(asked: str = f"message#{number + 1}") -> bool:
            return (asked, "pending") in await _journal(node, run["id"])

        await until(heard)
        await waiting(node, run["id"], "message")
        await _cancelled(node, run["id"])
        told = [(f"message#{number + 1}", "cancel"), ("cancel#0", "ok"), ("refund#0", "ok")]
        assert (await _journal(node, run["id"]))[-3:] == told
        await node.call("POST", f"/v1/runs/{run['id']}/replay", {})
        await waiting(node, run["id"], "message")
    await node.call("POST", f"/v1/runs/{run['id']}/messages", {"data": "stop"}, 202)
    done = await ended(node, run["id"])
    assert (done["status"], done["output"], shop.ran) == ("succeeded", {"stopped": [0, 1]}, {"refund": 3})


async def test_it_is_cancelled_again_and_undoes_again(world: World, node: Node, shop: Shop) -> None:
    run = await node.call("POST", "/v1/runs", {"workflow": "scoped", "input": {}})
    for time in (1, 2, 3):
        await waiting(node, run["id"], "sleep")
        await _cancelled(node, run["id"])
        assert shop.ran == {"charge": 1, "refund": time}
        await node.call("POST", f"/v1/runs/{run['id']}/replay", {})
    await waiting(node, run["id"], "sleep")
    kept = await world.database.fetch("select entries from journal_history where run_id = $1", run["id"])
    assert [row["entries"].count(b"refund#0") for row in kept] == [1, 1, 1], "each life keeps what it has undone"


async def test_a_scope_is_open_again_and_what_was_done_in_it_is_sent(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    ops = [step("box#0/in#0", 1), {**step("box#0/lid#0", 2), "op": "scope"}, pending("sleep", "box#0/nap#0", ms=3_600_000)]
    answer(await endpoint.next(), "wait", base=0, ops=[step("box#0/lid#0/deep#0", 0), *ops], wake="box#0/nap#0")
    await world.task(run_id, state="waiting")
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    undone = [step("box#0/undo#0", 1), {**step("box#0", 2), "op": "scope"}]
    answer(await endpoint.next(), "done", base=5, ops=undone)
    await world.over(run_id)
    await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    turn = await endpoint.next()
    assert log_of(turn) == ops, "of what stays hidden is what stands in a scope that was closed before"
    again = [step("box#0/more#0", 3), {**step("box#0", 4), "op": "scope"}]
    answer(turn, "done", base=4, ops=again, output="shipped")
    done = await one.call("GET", f"/v1/runs/{run_id}?wait=20s")
    assert (done["status"], done["output"]) == ("succeeded", "shipped")


# ---- children


@dataclass
class Parent:
    """A durable task that starts a child by each way there is, and what its children did."""

    dispatcher: Dispatcher
    began: list[str] = field(default_factory=list)

    def tasks(self) -> list[Any]:
        @self.dispatcher.durable_task(name="leaf")
        async def leaf(input: dict[str, Any], ctx: DurableContext) -> Any:
            await ctx.run("begin", lambda: self.began.append(ctx.workflow_run_id))
            await ctx.aio_sleep_for("1h")
            return input["n"]

        @self.dispatcher.durable_task(name="refers")
        async def refers(input: dict[str, Any], ctx: DurableContext) -> Any:
            ref = await leaf.aio_run_no_wait({"n": 1})
            await ctx.run("first", lambda: None)
            await ctx.aio_sleep_for("1m")
            return await ref.aio_result()

        @self.dispatcher.durable_task(name="keyed")
        async def keyed(input: dict[str, Any], ctx: DurableContext) -> Any:
            first = await ctx.run_child(leaf, {"n": 1}, key="k")
            return first if await ctx.run_child(leaf, {"n": 1}, key="k") == first else None

        return [leaf, refers, keyed]


@pytest.mark.parametrize("workflow", ["refers", "keyed"])
async def test_children_that_were_cancelled_with_their_parent_begin_again(world: World, node: Node, workflow: str) -> None:
    parent = Parent(dispatcher_for(node))
    async with serving(world, node, parent.dispatcher, parent.tasks):
        await _begin_again(world, node, parent, workflow)


async def _begin_again(world: World, node: Node, parent: Parent, workflow: str) -> None:
    run = await node.call("POST", "/v1/runs", {"workflow": workflow, "input": {}})

    async def sleeping(number: int) -> None:
        async def so() -> bool:
            return len(parent.began) == number

        await until(so)
        await world.task(parent.began[-1], state="waiting")
        await world.task(run["id"], state="waiting")

    await sleeping(1)
    await _cancelled(node, run["id"])
    assert (await ended(node, parent.began[0]))["status"] == "cancelled"
    before = await _journal(node, run["id"])
    await node.call("POST", f"/v1/runs/{run['id']}/replay", {})
    await sleeping(2)
    assert await _journal(node, run["id"]) == [one for one in before if one[0] != "cancel#0"]
    await world.advance(timedelta(hours=1, minutes=1))
    done = await ended(node, run["id"])
    assert (done["status"], done["output"], len({*parent.began})) == ("succeeded", 1, 2)
