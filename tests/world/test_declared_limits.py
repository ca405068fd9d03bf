"""Whose number a concurrency limit has: what is declared now, whatever runs were told when they were made. A change is heard of."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime import gates
from dispatcher.store import gate_limits
from tests.world.endpoint import Endpoint
from tests.world.test_concurrency import GRR, counts, limited, quiet, settle, trigger
from tests.world.world import Node, World, until

HOUR = timedelta(hours=1)
CALM: dict[str, Any] = {"execution_timeout": "1h", "schedule_timeout": "1h", "body": "v1"}


def shared(most: int | str) -> dict[str, Any]:
    return {"name": "db", "max_runs": most}


def flow(*tasks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "flow", "kind": "workflow", "tasks": [{**CALM, **task} for task in tasks], **fields}


async def declare(one: Node, endpoint: Endpoint, handler: dict[str, Any]) -> None:
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 100, "handlers": [handler]})


async def left(world: World, one: Node, *loops: str) -> None:
    """Let everything happen that can."""
    for _ in range(4):
        await one.turn(*loops, "gates", "claim")


async def numbers(world: World) -> list[int]:
    return [row[0] for row in await world.database.fetch("select most from gates order by id")]


async def lowered_for_delayed(world: World, one: Node, before: dict[str, Any], after: dict[str, Any]) -> None:
    endpoint = await world.endpoint(one, [limited(before)])
    at = (world.now + HOUR).isoformat()
    runs = [await one.trigger("work", run_at=at) for _ in range(3)]
    await declare(one, endpoint, {"body": "v1", **limited(after)})
    await world.advance(HOUR)
    for run_id in runs:
        arrival = await endpoint.next()
        await left(world, one, "timers")
        assert endpoint.waiting == 0
        arrival.answer(200, 1)
        await world.over(run_id)
    await quiet(world)


async def test_delayed_runs_go_by_what_is_declared_when_they_start(world: World, one: Node) -> None:
    await lowered_for_delayed(world, one, {"expression": "'k'", "max_runs": 3}, {"expression": "'k'", "max_runs": 1})


async def test_delayed_runs_go_by_a_shared_limit_as_it_is_declared_when_they_start(world: World, one: Node) -> None:
    await lowered_for_delayed(world, one, shared(3), shared(1))


async def test_graphs_under_way_go_by_what_is_declared_when_they_come_to_a_gate(world: World, one: Node) -> None:
    def version(most: int) -> dict[str, Any]:
        return flow({"name": "a"}, {"name": "b", "parents": ["a"], "concurrency": [{"expression": "'k'", "max_runs": most}]})

    endpoint = await world.endpoint(one, [version(3)])
    for _ in range(3):
        await one.trigger("flow")
    first = await endpoint.several(3)
    await declare(one, endpoint, version(1))
    for arrival in first:
        arrival.answer(200, 1)
    for _ in range(3):
        arrival = await endpoint.next()
        await left(world, one, "graphs")
        assert endpoint.waiting == 0
        arrival.answer(200, 1)
    await quiet(world)


async def test_a_replayed_graph_goes_by_what_is_declared_now(world: World, one: Node) -> None:
    def version(most: int) -> dict[str, Any]:
        return flow({"name": "a"}, {"name": "b", "parents": ["a"]}, concurrency=[{"max_runs": most}])

    endpoint = await world.endpoint(one, [version(3)])
    runs = [await one.trigger("flow") for _ in range(3)]
    for _ in runs:
        (await endpoint.next()).answer(400, {"error": {"message": "no"}})
    for run_id in runs:
        await world.run_over(run_id)
    await declare(one, endpoint, version(1))
    await one.trigger("flow")
    await endpoint.next()
    for run_id in runs:
        await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    await left(world, one, "graphs")
    assert endpoint.waiting == 0
    assert await counts(world) == (1, 3)


async def test_a_limit_that_becomes_an_expression_and_a_number_again(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({**GRR, "max_runs": 1})])
    runs = [await trigger(one, "k", also={"most": 2}) for _ in range(3)]
    first = await endpoint.next()
    await declare(one, endpoint, {"body": "v1", **limited({**GRR, "max_runs": "input.most"})})
    runs.append(await trigger(one, "k", also={"most": 2}))
    second = await endpoint.next()
    await left(world, one)
    assert endpoint.waiting == 0
    await declare(one, endpoint, {"body": "v1", **limited({**GRR, "max_runs": 4})})
    for arrival in (first, second, *await endpoint.several(2)):
        arrival.answer(200, 1)
    await quiet(world)


async def test_a_run_that_says_its_number_is_heard_where_a_task_of_a_graph_comes_to_a_gate(world: World, one: Node) -> None:
    task = {"name": "a", "concurrency": [{"expression": "'first'", "max_runs": 9}, {"expression": "'k'", "max_runs": "input.most"}]}
    endpoint = await world.endpoint(one, [flow(task, {"name": "z", "parents": ["a"]})])
    await one.trigger("flow", input={"most": 1})
    (await endpoint.next()).answer(200, 1)
    await endpoint.next()  # the gate is there, made by a run that said 1
    for _ in range(3):
        await one.trigger("flow", input={"most": 3})
    assert [a.json["name"] for a in await endpoint.several(3)] == ["flow:a"] * 3


async def test_a_delayed_run_that_says_its_number_is_heard_when_it_comes(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({**GRR, "max_runs": "input.most"})])
    await trigger(one, "k", also={"most": 2}, run_at=(world.now + timedelta(minutes=1)).isoformat())
    await trigger(one, "k", also={"most": 1})
    await endpoint.next()
    await world.advance(timedelta(minutes=1))
    await one.turn("timers")
    await endpoint.next()


async def test_a_gate_made_while_its_rule_was_declared_anew_is_put_right(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({**GRR, "max_runs": 3})])
    await trigger(one, "k")
    await endpoint.next()
    await declare(one, endpoint, {"body": "v1", **limited({**GRR, "max_runs": 1})})
    await world.database.execute("update gates set most = 3")
    await gate_limits.follow(world.database)
    assert await numbers(world) == [1]


async def test_a_removed_workflow_holds_a_shared_limit_down_no_more(world: World, one: Node) -> None:
    await world.endpoint(one, [limited(shared(1), name="a"), limited(GRR, name="x")], name="a")
    endpoint = await world.endpoint(one, [limited(shared(3), name="b")], name="b")
    for _ in range(3):
        await one.trigger("b")
    await endpoint.next()
    await settle(one)
    assert endpoint.waiting == 0
    assert (await one.api.delete("/v1/workflows/x")).status_code < 300
    assert await world.database.fetchval("select count(*) from declared_limits") == 1
    assert (await one.api.delete("/v1/workflows/a")).status_code < 300
    await endpoint.several(2)


async def test_a_raised_limit_is_looked_at_at_once(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    for _ in range(3):
        await trigger(one, "k")
    await endpoint.next()
    await settle(one)
    await declare(one, endpoint, {"body": "v1", **limited({**GRR, "max_runs": 3})})
    await endpoint.several(2)  # no clock has moved, and nobody has turned a loop


async def test_a_shared_limit_is_looked_at_once_the_endpoint_with_the_lower_one_is_deleted(world: World, one: Node) -> None:
    await world.endpoint(one, [limited(shared(1), name="a")], name="a")
    endpoint = await world.endpoint(one, [limited(shared(3), name="b")], name="b")
    for _ in range(3):
        await one.trigger("b")
    await endpoint.next()
    await settle(one)
    assert (await one.api.delete("/v1/endpoints/a")).status_code < 300
    await endpoint.several(2)


async def test_raising_a_shared_limit_waits_for_who_is_about_to_stand_in_line(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(shared(1))])
    await one.trigger("work")
    await endpoint.next()
    async with world.database.transaction() as conn:
        await conn.execute("update gates set arrivals = arrivals + 1")  # as somebody does who comes, and whom nobody sees before the commit
        raised = asyncio.create_task(one.call("PUT", "/v1/concurrency/db", {"max_runs": 2}))
        await until(lambda: world.holds_up(conn))
    await raised


async def test_all_groups_of_a_limit_that_has_ended_are_looked_at_a_page_at_a_time(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "_ROUSED", 2)
    endpoint = await world.endpoint(one, [limited({**shared(2), "expression": "input.key"})])
    await one.call("PUT", "/v1/concurrency/db", {"max_runs": 1, "expires_in": "1m"})
    for key in "abcde":
        for _ in range(2):
            await trigger(one, key)
    await endpoint.several(5)
    await left(world, one)
    assert endpoint.waiting == 0
    await world.advance(timedelta(minutes=1))
    await one.turn("gates")
    await endpoint.several(5)
