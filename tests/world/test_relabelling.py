"""Handlers change the labels of the endpoint they run at, and what waits for these labels goes there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World

PICKY = {"name": "picky", "desired_labels": {"model": {"value": "v2", "required": True}}}


async def _at_work(world: World, one: Node) -> tuple[Endpoint, Arrival]:
    endpoint = await world.endpoint(one, [{"name": "any"}, PICKY])
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {"zone": "x", "old": True}})
    await one.trigger("any")
    return endpoint, await endpoint.next()


async def _labels(world: World) -> Any:
    return json.loads(await world.database.fetchval("select labels from endpoints"))


async def test_what_a_handler_says_of_its_endpoint_is_what_tasks_ask_for(world: World, one: Node) -> None:
    endpoint, arrival = await _at_work(world, one)
    run_id = await one.trigger("picky")
    await one.turn()
    await world.task(run_id, state="queued")
    assert endpoint.waiting == 0
    await one.callback(arrival.json["token"], {"type": "labels", "labels": {"model": "v2", "old": None}})
    assert await _labels(world) == {"zone": "x", "model": "v2"}
    assert (await endpoint.next()).json["run_id"] == run_id


async def test_who_says_the_same_again_costs_nobody_a_look_at_the_registry(world: World, one: Node) -> None:
    _, arrival = await _at_work(world, one)
    await one.callback(arrival.json["token"], {"type": "labels", "labels": {"model": "v2"}})
    version = await world.database.fetchval("select registry_version from tenants")
    for labels in ({"model": "v2"}, {"zone": "x", "missing": None}):
        await one.callback(arrival.json["token"], {"type": "labels", "labels": labels})
    assert await world.database.fetchval("select registry_version from tenants") == version


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {},
        [],
        "gpu",
        {"a": []},
        {"a": {"b": 1}},
        {"": 1},
        {"a" * 201: 1},
        {"a": "x" * 201},
        {"a": "\0"},
        {f"l{n}": n for n in range(101)},
    ],
    ids=lambda labels: json.dumps(labels)[:20],
)
async def test_labels_that_are_none_are_refused(world: World, one: Node, labels: Any) -> None:
    _, arrival = await _at_work(world, one)
    refused = await one.api.post(
        "/v1/callback", json={"type": "labels", "labels": labels}, headers={"authorization": f"Bearer {arrival.json['token']}"}
    )
    assert (refused.status_code, refused.json()["code"]) in ((400, "invalid_event"), (422, "invalid_value"), (400, "invalid_value"))
    assert await _labels(world) == {"zone": "x", "old": True}


async def test_a_stale_attempt_changes_nothing(world: World, one: Node) -> None:
    _, arrival = await _at_work(world, one)
    arrival.answer(200, 1)
    await world.over(arrival.json["run_id"])
    late = await one.callback(arrival.json["token"], {"type": "labels", "labels": {"zone": "y"}}, 410)
    assert late["code"] == "task_ended"
    assert (await _labels(world))["zone"] == "x"
