"""Slots that become free one at a time: whoever waits for them gets a turn, however much another has waiting."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from dispatcher.api.credentials import new_token
from dispatcher.store import registry, tokens
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until

GATHER = {"max_size": 2, "interval": "10s"}
BATCHED = {"name": "mail", "batch": GATHER}


async def _bulk(node: Node, workflow: str, count: int, **input: Any) -> list[str]:
    runs = [{"workflow": workflow, "input": input} for _ in range(count)]
    return [row["id"] for row in (await node.call("POST", "/v1/runs/bulk", {"runs": runs}))["rows"]]


def _answer(arrival: Arrival) -> None:
    items = arrival.json.get("items")
    results = [{"id": item["id"], "status": "ok", "output": 1} for item in items or ()]
    arrival.answer(200, {"results": results} if items else 1, task_protocol="1")


async def _served(endpoint: Endpoint, first: Arrival, count: int) -> list[dict[str, Any]]:
    """Answer what runs, one after the other: what came in its place each time (the first of it, where that was a batch)."""
    seen, running = [], first
    for _ in range(count):
        _answer(running)
        running = await endpoint.next()
        seen.append(running.json["items"][0] if "items" in running.json else running.json)
    return seen


async def test_workflows_that_share_one_slot_take_turns(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": name} for name in ("alpha", "beta", "gamma")], slots=1)
    await one.trigger("alpha")
    first = await endpoint.next()
    for name, count in (("alpha", 30), ("beta", 3), ("gamma", 3)):
        await _bulk(one, name, count)
    names = [task["name"] for task in await _served(endpoint, first, 11)]
    assert names.count("beta") == names.count("gamma") == 3


async def test_workflows_with_a_requirement_of_their_own_take_turns_too(world: World, one: Node) -> None:
    asking = {"desired_labels": {"zone": {"value": "x", "required": True}}}
    endpoint = await world.endpoint(one, [{"name": "plain"}, {"name": "zoned", **asking}], slots=1)
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {"zone": "x"}})
    await one.trigger("plain")
    first = await endpoint.next()
    for name in ("plain", "zoned"):
        await _bulk(one, name, 9)
    names = [task["name"] for task in await _served(endpoint, first, 6)]
    assert names.count("zoned") == 3


async def test_tenants_take_turns_where_a_dispatcher_has_room_for_one(world: World) -> None:
    one = await world.node(max_in_flight=1)
    endpoint = await world.endpoint(one, [{"name": "work"}])
    await one.trigger("work")
    first = await endpoint.next()
    await _bulk(one, "work", 20)
    tenant, made = await registry.create_tenant(world.database, "other", "Other", world.now), new_token()
    await tokens.create(world.database, tenant.id, made.public_id, made.secret_hash, "t", ["*"], world.now, None)
    one.api.headers["authorization"] = f"Bearer {made.text}"
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": [{"name": "theirs", "body": "v1"}]})
    await one.turn("slots")
    await _bulk(one, "theirs", 3)
    names = [task["name"] for task in await _served(endpoint, first, 7)]
    assert names.count("theirs") == 3


async def test_groups_of_a_batch_take_turns(world: World, one: Node) -> None:
    handler = {"name": "mail", "batch": {**GATHER, "group_key": "input.user"}}
    endpoint = await world.discovered(one, manifest([handler], "batch"), slots=1)
    await _bulk(one, "mail", 30, user="ann")
    first = await endpoint.next()
    await _bulk(one, "mail", 4, user="bob")
    users = [item["input"]["user"] for item in await _served(endpoint, first, 5)]
    assert users.count("bob") == 2


async def test_batches_and_tasks_on_their_own_take_turns(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([BATCHED, {"name": "plain"}], "batch", max_items=100), slots=1)
    await one.trigger("plain")
    first = await endpoint.next()
    await _bulk(one, "plain", 30)
    await _bulk(one, "mail", 6)
    await one.turn("batches")
    names = [task["name"] for task in await _served(endpoint, first, 9)]
    assert names.count("mail") == 3
    assert names.index("plain") < 2


async def _streaming(node: Node, endpoint: Endpoint, count: int) -> list[Arrival]:
    """A backlog, and as many requests as there are slots for."""
    await _bulk(node, "work", 40)
    return await endpoint.several(count)


async def test_fewer_slots_count_though_there_is_always_more_to_run(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=4)
    running = await _streaming(one, endpoint, 4)
    await one.call("PATCH", "/v1/endpoints/plain", {"slots": 1})
    await one.turn("slots")
    for arrival in running:
        _answer(arrival)
        await world.over(arrival.json["run_id"])
        await one.runtime.deliveries.settlement.drain()
        await one.turn("slots", "claim")
    await endpoint.next()
    await one.turn("slots", "claim")
    assert endpoint.waiting == 0


async def test_a_dispatcher_that_joins_gets_its_share_though_the_first_is_always_busy(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=4)
    running = await _streaming(one, endpoint, 4)
    two = await world.node("two")
    for arrival in running:
        _answer(arrival)
        await world.over(arrival.json["run_id"])
        await one.runtime.deliveries.settlement.drain()
        world.clock.advance(timedelta(seconds=1))  # for the newcomer to look
        await one.turn("slots", "claim")
        await two.turn("slots", "claim")

    async def even() -> bool:
        return sorted(sum(node.runtime.capacity.in_use.values()) for node in (one, two)) == [2, 2]

    await until(even)
    assert sum(sum(node.runtime.capacity.grants.values()) for node in (one, two)) == 4
