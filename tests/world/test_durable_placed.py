"""Where the children of durable tasks go: to endpoints with the labels they ask for, to the one where their parent is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.world.durable import FEATURES, answer, durable_endpoint, entry, pending
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until


async def _two(world: World, node: Node, **leaf: Any) -> tuple[Endpoint, Endpoint]:
    handlers = [entry("order"), {"name": "leaf", **leaf}]
    served = manifest(handlers, *FEATURES)
    return await world.discovered(node, served, name="a"), await world.discovered(node, served, name="b")


def _parent(asked: dict[str, Any], went: dict[str, str], name: str) -> Any:
    """A handler that asks for one child and is done; it notes where parents and their children went."""

    def way(arrival: Arrival) -> None:
        body = arrival.json
        went[body["parent_run_id"] if body["type"] == "run" else body["run_id"] + "!"] = name
        if body["type"] == "run":
            arrival.answer(200, {})
        elif body["log"]["len"] == 0:
            answer(arrival, "wait", base=0, ops=[pending("child", "c#0", workflow="leaf", **asked)], wake="c#0")
        else:
            answer(arrival, "done", base=2, output=body["log"]["entries"][1]["status"])

    return way


@pytest.mark.parametrize("sticky", [True, False])
async def test_a_sticky_child_begins_where_its_parent_is(world: World, one: Node, sticky: bool) -> None:
    a, b = await _two(world, one, sticky="hard")
    went: dict[str, str] = {}
    a.way, b.way = _parent({"sticky": sticky}, went, "a"), _parent({"sticky": sticky}, went, "b")
    runs = [await one.trigger("order") for _ in range(16)]
    for run_id in runs:
        assert (await world.over(run_id))["output"] == b'"ok"'
    parted = [run_id for run_id in runs if went[run_id] != went[f"{run_id}!"]]
    assert {went[f"{run_id}!"] for run_id in runs} == {"a", "b"}
    assert bool(parted) != sticky


async def test_a_child_asks_for_labels_nobody_has_asked_of_it_before(world: World, one: Node) -> None:
    """And every dispatcher looks for the queue it stands in."""
    a, b = await _two(world, one)
    await one.call("PATCH", "/v1/endpoints/b", {"labels": {"gpu": 2}})
    went: dict[str, str] = {}
    asked = {"labels": {"gpu": {"value": 1, "comparator": "GREATER_THAN", "required": True}}}
    a.way, b.way = _parent(asked, went, "a"), _parent(asked, went, "b")
    runs = [await one.trigger("order") for _ in range(6)]
    for run_id in runs:
        await world.over(run_id)
    assert {went[run_id] for run_id in runs} == {"b"}

    await one.call("PATCH", "/v1/endpoints/b", {"labels": {}})
    await one.trigger("order")

    async def waits() -> bool:
        return bool(await world.database.fetchval("select count(*) from tasks where state = 'queued' and not durable"))

    await until(waits)
    two = await world.node("two")
    assert [row["asks"] for row in await world.database.fetch("select asks from workflows where name = 'leaf'")] == [True]
    await one.call("PATCH", "/v1/endpoints/a", {"labels": {"gpu": 9}})
    await two.turn("registry", "slots", "claim")
    await until(lambda: _none_left(world))


async def _none_left(world: World) -> bool:
    return not await world.database.fetchval("select count(*) from tasks")


@pytest.mark.parametrize(
    "members",
    [{"sticky": "soft"}, {"labels": 5}, {"labels": {"gpu": {"value": "x", "comparator": "LESS_THAN"}}}, {"labels": {"gpu": {"value": []}}}],
    ids=json.dumps,
)
async def test_what_a_child_may_not_ask(world: World, one: Node, members: dict[str, Any]) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    await one.trigger("order")
    turn = await endpoint.next()
    op = pending("child", "c#0", workflow="leaf", **members)
    refused = await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [op]}, 422)
    assert (refused["code"], "c#0" in refused["detail"] or "operation 0" in refused["detail"]) == ("invalid_op", True)
    assert await world.database.fetchval("select count(*) from journal") == 0
