"""Where sticky runs and their children go: to the endpoint a run began at, and to that of the task that asks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.world.durable import FEATURES, answer, entry, pending
from tests.world.endpoint import Endpoint, manifest
from tests.world.world import Node, World

LEAF = {"name": "leaf", "sticky": "hard"}


async def _two(world: World, node: Node, handlers: list[dict[str, Any]], slots: int = 10) -> dict[str, Endpoint]:
    served = manifest(handlers, *FEATURES)
    return {name: await world.discovered(node, served, name=name, slots=slots) for name in ("a", "b")}


def _in(zone: str) -> dict[str, Any]:
    return {"zone": {"value": zone, "required": True}}


async def _parted(world: World, node: Node, workflow: str) -> tuple[str, str, str]:
    """A soft run that was made for one endpoint and begins at the other, since that was paused meanwhile: its id, and both."""
    await node.call("PATCH", f"/v1/workflows/{workflow}", {"paused": True})
    run_id = await node.trigger(workflow)
    made_for = await world.database.fetchval(
        "select e.name from runs r join endpoints e on e.id = r.sticky_endpoint where r.id = $1", run_id
    )
    await node.call("PATCH", f"/v1/endpoints/{made_for}", {"paused": True})
    await node.call("PATCH", f"/v1/workflows/{workflow}", {"paused": False})
    return run_id, made_for, "b" if made_for == "a" else "a"


async def test_a_child_of_a_soft_run_begins_where_its_parent_is_and_not_where_that_was_to_begin(world: World, one: Node) -> None:
    endpoints = await _two(world, one, [entry("order", sticky="soft"), LEAF])
    _, there, here = await _parted(world, one, "order")
    turn = await endpoints[here].next()
    await one.call("PATCH", f"/v1/endpoints/{there}", {"paused": False})
    answer(turn, "wait", base=0, ops=[pending("child", "c#0", workflow="leaf", sticky=True)], wake="c#0")
    assert (await endpoints[here].next()).json["name"] == "leaf"


async def test_a_child_begins_where_the_task_is_that_asks_for_it(world: World, one: Node) -> None:
    """And not where another task of the same run is, which began later."""
    nodes = [{"name": name, "desired_labels": _in(name)} for name in ("a", "b")]
    endpoints = await _two(world, one, [{"name": "flow", "kind": "workflow", "tasks": nodes}, LEAF])
    for name in endpoints:
        await one.call("PATCH", f"/v1/endpoints/{name}", {"labels": {"zone": name}})
    await one.call("PATCH", "/v1/endpoints/b", {"paused": True})
    await one.trigger("flow")
    asking = {"a": await endpoints["a"].next()}
    world.clock.advance(timedelta(milliseconds=1))
    await one.call("PATCH", "/v1/endpoints/b", {"paused": False})
    asking["b"] = await endpoints["b"].next()
    for name, arrival in asking.items():
        head = {"authorization": f"Bearer {arrival.json['token']}"}
        made = await one.api.post("/v1/runs", json={"workflow": "leaf", "input": {}, "sticky": True}, headers=head)
        assert (await endpoints[name].next()).json["run_id"] == made.json()["id"]


async def test_the_tasks_of_a_soft_run_go_where_it_began_and_not_where_it_was_to_begin(world: World, one: Node) -> None:
    nodes = [{"name": "x"}, {"name": "y", "parents": ["x"], "retries": 1}]
    endpoints = await _two(world, one, [{"name": "flow", "kind": "workflow", "sticky": "soft", "tasks": nodes}])
    _, there, here = await _parted(world, one, "flow")
    first = await endpoints[here].next()
    await one.call("PATCH", f"/v1/endpoints/{there}", {"paused": False})
    first.answer(200, {}, task_protocol="1")
    assert (await endpoints[here].next()).json["name"] == "flow:y"


async def test_a_soft_run_that_began_elsewhere_is_retried_there(world: World, one: Node) -> None:
    endpoints = await _two(world, one, [{"name": "work", "sticky": "soft", "retries": 3}])
    _, there, here = await _parted(world, one, "work")
    arrival = await endpoints[here].next()
    await one.call("PATCH", f"/v1/endpoints/{there}", {"paused": False})
    for _ in range(2):
        arrival.answer(500, b"", task_protocol="1")
        arrival = await endpoints[here].next()


async def test_one_that_took_a_slot_elsewhere_as_it_was_made_stays_there_too(world: World, one: Node) -> None:
    handlers: list[dict[str, Any]] = [{"name": "work", "sticky": "soft", "retries": 3}, {"name": "other", "desired_labels": _in("a")}]
    endpoints = await _two(world, one, handlers, slots=1)
    await one.call("PATCH", "/v1/endpoints/a", {"labels": {"zone": "a"}})
    await one.turn("slots")
    await one.trigger("other")
    other = await endpoints["a"].next()
    capacity = one.runtime.capacity
    capacity.bound |= {place: 9 for place in capacity.grants if place not in capacity.in_use}  # as if many had been made for the other
    run_id = await one.trigger("work")
    arrival = await endpoints["b"].next()
    at = await world.database.fetchval("select e.name from runs r join endpoints e on e.id = r.sticky_endpoint where r.id = $1", run_id)
    assert at == "b"
    other.answer(200, 1, task_protocol="1")
    await world.over(other.json["run_id"])
    arrival.answer(500, b"", task_protocol="1")
    assert (await endpoints["b"].next()).json["attempt"] == 2


async def test_a_soft_run_that_has_begun_is_drawn_back_by_nothing_that_strays(world: World, one: Node) -> None:
    """A later task that had to go elsewhere does not move the run there."""
    nodes = [{"name": "x"}, {"name": "y", "parents": ["x"]}, {"name": "z", "parents": ["y"]}]
    endpoints = await _two(world, one, [{"name": "flow", "kind": "workflow", "sticky": "soft", "tasks": nodes}])
    _, there, here = await _parted(world, one, "flow")
    first = await endpoints[here].next()
    await one.call("PATCH", f"/v1/endpoints/{there}", {"paused": False})
    await one.call("PATCH", f"/v1/endpoints/{here}", {"paused": True})
    first.answer(200, {}, task_protocol="1")
    second = await endpoints[there].next()
    assert second.json["name"] == "flow:y"
    await one.call("PATCH", f"/v1/endpoints/{here}", {"paused": False})
    second.answer(200, {}, task_protocol="1")
    assert (await endpoints[here].next()).json["name"] == "flow:z"
