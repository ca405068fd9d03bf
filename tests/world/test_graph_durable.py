"""Graphs and durable tasks together: a durable task as a node, and graphs as children."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from handlers_sdk import ClientConfig, Context, Dispatcher, DurableContext, EmptyModel
from tests.world.durable import answer, durable_endpoint, pending
from tests.world.graph_runs import finished, moved, nothing_is_left, settled, task
from tests.world.world import Node, World, until


def flows(client: Dispatcher) -> list[Any]:
    """A graph with a durable task in its middle, and a durable task that starts graphs."""
    flow = client.workflow(name="flow")

    @flow.task()
    def before(input: EmptyModel, ctx: Context) -> dict[str, int]:
        return {"n": 1}

    @flow.durable_task(parents=[before])
    async def rest(input: EmptyModel, ctx: DurableContext) -> dict[str, int]:
        await ctx.aio_sleep_for(timedelta(hours=1))
        return {"n": ctx.task_output(before)["n"] + 1}

    @flow.task(parents=[rest])
    def after(input: EmptyModel, ctx: Context) -> dict[str, int]:
        return {"n": ctx.task_output(rest)["n"] + 1}

    @client.durable_task(name="leader")
    async def leader(input: EmptyModel, ctx: DurableContext) -> dict[str, Any]:
        results = await flow.aio_run_many([flow.create_bulk_run_item() for _ in range(3)])
        return {"n": [result["after"]["n"] for result in results]}

    return [flow, leader]


@pytest.fixture
async def node(world: World) -> AsyncIterator[Node]:
    """A dispatcher the SDK can call, and the flows behind it."""
    node = await world.served_node()
    client = Dispatcher(ClientConfig(api_url=node.runtime.services.settings.base_url()))
    app = client.app(workflows=flows(client), clock=lambda: int(world.now.timestamp()))
    await node.call("PUT", "/v1/endpoints/flows", {"url": await world.serve(app)})
    yield node
    await client.aio_close()


async def test_a_durable_task_is_a_node_like_any_other(world: World, node: Node) -> None:
    run_id = await node.trigger("flow")
    run = await settled(node, run_id, before="succeeded", rest="waiting", after="pending")
    assert (run["status"], task(run, "after")["waiting_for"]) == ("running", [{"parent": "rest"}])
    await moved(world, minutes=59)
    await settled(node, run_id, rest="waiting")
    await moved(world, minutes=1)
    run = await finished(node, run_id)
    assert (run["status"], run["output"]) == ("succeeded", {"before": {"n": 1}, "rest": {"n": 2}, "after": {"n": 3}})
    await nothing_is_left(world)


async def test_cancelling_a_graph_reaches_a_durable_task_that_waits(world: World, node: Node) -> None:
    run_id = await node.trigger("flow")
    await settled(node, run_id, rest="waiting")
    await node.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    await moved(world, seconds=1)
    assert (await finished(node, run_id))["status"] == "cancelled"


async def test_graphs_are_children_of_a_durable_task(world: World, node: Node) -> None:
    run_id = await node.trigger("leader")
    children = (await settled(node, run_id, leader="waiting"))["children"]
    assert len(children) == 3
    for child in children:
        await settled(node, child, rest="waiting")
    await moved(world, hours=1)
    for child in children:
        await finished(node, child)
    await moved(world, seconds=1)
    run = await finished(node, run_id)
    assert (run["status"], run["output"]) == ("succeeded", {"n": [3, 3, 3]})
    await nothing_is_left(world)


async def test_cancelling_a_graph_reaches_children_though_a_task_has_failed(world: World, one: Node) -> None:
    """The run ends failed then, and what it started does not go on for that."""
    flow = {"name": "flow", "kind": "workflow", "tasks": [{"name": "a"}, {"name": "b", "kind": "durable"}]}
    endpoint = await durable_endpoint(world, one, flow, {"name": "leaf"})
    run_id = await one.trigger("flow")
    arrivals = {arrival.json["name"]: arrival for arrival in (await endpoint.next(), await endpoint.next())}
    answer(arrivals["flow:b"], "wait", base=0, ops=[pending("child", "c#0", workflow="leaf")], wake="c#0")
    leaf = await endpoint.next()
    arrivals["flow:a"].answer(400, {"x": 1})

    async def failed() -> bool:
        return bool(await world.database.fetchval("select count(*) = 1 from tasks where status = 'failed'"))

    await until(failed)
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    turn = await endpoint.next()
    answer(turn, "done", base=turn.json["log"]["len"])
    assert (await world.run_over(run_id))["status"] == "failed"

    async def told() -> bool:
        return bool(await world.database.fetchval("select cancel_at is not null from tasks where run_id = $1", leaf.json["run_id"]))

    await until(told)
