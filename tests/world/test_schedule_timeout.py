"""How long a task may wait to be started: nothing starts past it, and nothing is late for what nobody could have taken."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Endpoint, manifest
from tests.world.world import Node, World

MINUTE = timedelta(minutes=1)
WORK: dict[str, Any] = {"name": "work", "schedule_timeout": "1m", "execution_timeout": "1h"}


async def _pause(node: Node, name: str, paused: bool) -> None:
    await node.call("PATCH", f"/v1/endpoints/{name}", {"paused": paused})


def _answering(endpoint: Endpoint) -> None:
    endpoint.way = lambda arrival: arrival.answer(200, 1)


async def test_nothing_is_started_that_is_late_when_the_clock_has_jumped(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK], slots=1)
    await one.trigger("work")
    arrival = await endpoint.next()
    run_id = await one.trigger("work")
    await one.runtime.loops["timers"].stop()
    world.clock.advance(10 * MINUTE)
    arrival.answer(200, 1)
    await one.runtime.deliveries.drain()
    await one.turn("claim")
    await world.task(run_id, state="queued")
    assert endpoint.waiting == 0
    one.runtime.loops["timers"].start()
    assert (await world.over(run_id))["error"]["code"] == "schedule_timeout"


async def test_no_batch_is_started_with_what_is_late(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{**WORK, "batch": {"max_size": 5, "interval": "30s"}}], "batch"))
    late = await one.trigger("work")
    await one.runtime.loops["timers"].stop()
    await one.runtime.loops["batches"].stop()
    world.clock.advance(timedelta(seconds=59))
    run_id = await one.trigger("work")
    world.clock.advance(timedelta(seconds=40))
    one.runtime.loops["batches"].start()
    assert (await endpoint.next()).json["id"] == f"tsk_{run_id[4:]}"
    await world.task(late, state="queued")


async def test_what_waited_for_a_paused_endpoint_starts_when_it_is_resumed(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK], slots=1)
    await _pause(one, "plain", True)
    runs = [await one.trigger("work") for _ in range(6)]
    await world.advance(10 * MINUTE)
    _answering(endpoint)
    await _pause(one, "plain", False)
    assert [(await world.over(run_id))["status"] for run_id in runs] == ["succeeded"] * 6


async def test_a_graph_that_stands_in_line_waits_for_a_paused_endpoint_as_a_task_does(world: World, one: Node) -> None:
    task = {"name": "a", "schedule_timeout": "1m", "execution_timeout": "3h"}
    flow = {"name": "flow", "kind": "workflow", "concurrency": [{"max_runs": 1}], "tasks": [task, {"name": "b", "parents": ["a"]}]}
    endpoint = await world.endpoint(one, [flow])
    await one.trigger("flow")
    held = await endpoint.next()
    second, third = await one.trigger("flow"), await one.trigger("flow")
    await _pause(one, "plain", True)
    await world.advance(10 * MINUTE)
    assert [(await one.call("GET", f"/v1/runs/{run_id}"))["status"] for run_id in (second, third)] == ["queued", "queued"]
    await _pause(one, "plain", False)
    _answering(endpoint)
    held.answer(200, 1)
    assert (await world.run_over(second))["status"] == (await world.run_over(third))["status"] == "succeeded"
    endpoint.way = None
    await one.trigger("flow")
    await endpoint.next()
    last = await one.trigger("flow")
    await _pause(one, "plain", True)
    await world.advance(61 * MINUTE)
    assert (await world.run_over(last))["status"] == "cancelled"


async def test_what_waited_for_a_broken_endpoint_starts_when_it_works_again(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([WORK]), slots=1)
    endpoint.way = lambda arrival: arrival.answer(404, b"")
    await one.trigger("work")
    await world.circuit_is("open", "sdk")
    await one.runtime.loops["probe"].stop()
    runs = [await one.trigger("work") for _ in range(3)]
    endpoint.way = lambda arrival: arrival.answer(200, 1, task_protocol="1")
    await world.advance(10 * MINUTE)
    one.runtime.loops["probe"].start()
    assert [(await world.over(run_id))["status"] for run_id in runs] == ["succeeded"] * 3


async def test_what_waited_for_any_endpoint_starts_at_one_that_is_registered_for_it(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK], name="a")
    await _pause(one, "a", True)
    run_id = await one.trigger("work")
    await world.advance(10 * MINUTE)
    _answering(await world.endpoint(one, [WORK], name="b"))
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_another_endpoint_could_have_taken_is_late_all_the_same(world: World, one: Node) -> None:
    for name in ("a", "b"):
        await world.endpoint(one, [WORK], name=name, slots=1)
    await one.trigger("work")
    await one.trigger("work")
    await _pause(one, "a", True)
    run_id = await one.trigger("work")
    await one.runtime.loops["timers"].stop()
    world.clock.advance(10 * MINUTE)
    await _pause(one, "a", False)
    one.runtime.loops["timers"].start()
    assert (await world.over(run_id))["error"]["code"] == "schedule_timeout"


async def test_registering_waits_for_no_task(world: World, one: Node) -> None:
    """An outcome holds its task and then asks for its gate: who holds the gate and asked for the task would wait for ever."""
    limited = {**WORK, "body": "v1", "concurrency": [{"max_runs": 5}]}
    endpoint = await world.endpoint(one, [limited])
    await one.trigger("work")
    (await endpoint.next()).answer(200, 1)
    await _pause(one, "plain", True)
    run_id = await one.trigger("work")
    await one.runtime.loops["timers"].stop()
    world.clock.advance(10 * MINUTE)
    await world.database.execute("update endpoints set paused = false")  # which nobody has heard of
    changed = {"url": endpoint.url, "handlers": [{**limited, "concurrency": [{"max_runs": 6}]}]}
    async with world.database.transaction() as conn:
        await conn.execute("select from tasks where run_id = $1 for update", run_id)
        await one.call("PUT", "/v1/endpoints/plain", changed)
        assert await world.database.fetchval("select late_at from renewals") == world.now  # what is late has its time again by and by
    assert await world.database.fetchval("select most from gates") == 6


LONG = {"schedule_timeout": "3650d"}


@pytest.mark.parametrize(
    "handler",
    [
        {"name": "work", **LONG},
        {"name": "work", **LONG, "concurrency": 2},
        {"name": "work", "kind": "workflow", "tasks": [{"name": "a", **LONG}, {"name": "b", "parents": ["a"], **LONG}]},
    ],
    ids=["plain", "limited", "graph"],
)
async def test_it_may_be_ten_years(world: World, one: Node, handler: dict[str, Any]) -> None:
    """More milliseconds than 32 bits hold, in every statement that writes a task."""
    _answering(await world.endpoint(one, [handler]))
    run_id = await one.trigger("work")
    assert (await world.run_over(run_id))["status"] == "succeeded"
    await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    assert (await world.run_over(run_id))["status"] == "succeeded"


async def test_so_it_may_of_children(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order", **LONG), {"name": "leaf", **LONG})
    await one.trigger("order")
    ops = [pending("child", "c#0", workflow="leaf"), pending("child", "c#1", workflow="leaf", key="k")]
    answer(await endpoint.next(), "wait", base=0, ops=ops, wake="c#0")
    assert {(await endpoint.next()).json["name"] for _ in ops} == {"leaf"}
