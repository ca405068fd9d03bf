"""A durable run that is cancelled undoes what it did although its workflow is paused for a while: its last turn keeps its place."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Endpoint
from tests.world.test_concurrency import counts, limited, quiet, serve
from tests.world.world import Node, World

SHARED = {"name": "shared", "max_runs": 1}
NAP = timedelta(minutes=1)
LOOPS = ("asides", "gates", "timers")


async def suspended(world: World, node: Node) -> tuple[Endpoint, str]:
    """A durable run that sleeps in the only place of the limit, and the endpoint it is sent to."""
    endpoint = await durable_endpoint(world, node, entry("work", concurrency=[SHARED], schedule_timeout="10h", execution_timeout="10h"))
    run_id = await node.trigger("work")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("sleep", "nap#0", ms=NAP // timedelta(milliseconds=1))], wake="nap#0")
    await world.task(run_id, state="waiting")
    return endpoint, run_id


async def pause(node: Node, what: str, paused: bool) -> None:
    await node.call("PATCH", f"/v1/{what}", {"paused": paused})
    await node.turn(*LOOPS)


async def cancel(node: Node, run_id: str) -> None:
    await node.call("POST", f"/v1/runs/{run_id}/cancel", {})
    await node.turn("cancels", *LOOPS)


async def undone(world: World, endpoint: Endpoint, run_id: str) -> None:
    """Answer the last turn."""
    last = await endpoint.next()
    assert last.json["run_id"] == run_id
    assert last.json["cancel"]
    answer(last, "done", base=2)
    assert (await world.run_over(run_id))["status"] == "cancelled"


@pytest.mark.parametrize(("what", "seconds"), [("workflows/work", 10), ("workflows/work", 120), ("endpoints/sdk", 10)])
async def test_a_run_that_is_cancelled_while_it_is_paused_keeps_its_place(world: World, one: Node, what: str, seconds: int) -> None:
    """It has a minute to be sent, and waits for longer where its workflow is paused for longer."""
    elsewhere = await world.endpoint(one, [limited(SHARED, name="other", schedule_timeout="10h")], name="elsewhere")
    endpoint, run_id = await suspended(world, one)
    other = await one.trigger("other")
    await pause(one, what, True)
    await cancel(one, run_id)
    assert await world.task(run_id, state="queued", gates_held=1)
    assert await counts(world) == (1, 1)
    await world.advance(timedelta(seconds=seconds))
    await one.turn(*LOOPS)
    await pause(one, what, False)
    await undone(world, endpoint, run_id)
    assert await serve(elsewhere, [other]) == [other]
    await quiet(world)


@pytest.mark.parametrize("what", ["workflows/work", "endpoints/sdk"])
async def test_one_that_was_cancelled_before_keeps_it_as_it_is_paused(world: World, one: Node, what: str) -> None:
    elsewhere = await world.endpoint(one, [limited(SHARED, name="other", schedule_timeout="10h")], name="elsewhere")
    endpoint, run_id = await suspended(world, one)
    other = await one.trigger("other")
    claim = one.runtime.loops["claim"]
    await claim.stop()
    await cancel(one, run_id)
    await pause(one, what, True)
    assert await world.task(run_id, state="queued", gates_held=1)
    assert await counts(world) == (1, 1)
    claim.start()
    await pause(one, what, False)
    await undone(world, endpoint, run_id)
    assert await serve(elsewhere, [other]) == [other]
    await quiet(world)


async def test_one_that_was_aside_takes_a_place_as_it_is_free(world: World, one: Node) -> None:
    elsewhere = await world.endpoint(one, [limited(SHARED, name="other", schedule_timeout="10h")], name="elsewhere")
    endpoint, run_id = await suspended(world, one)
    await pause(one, "workflows/work", True)
    await world.advance(NAP)
    await one.turn(*LOOPS)
    assert await world.task(run_id, state="gated", gates_held=0)
    other = await one.trigger("other")
    arrival = await elsewhere.next()
    await cancel(one, run_id)
    assert await counts(world) == (1, 1)
    arrival.answer(200, 1)
    await world.over(other)
    assert await world.task(run_id, state="queued", gates_held=1)
    await pause(one, "workflows/work", False)
    await undone(world, endpoint, run_id)
    await quiet(world)
