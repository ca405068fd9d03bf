"""Turns of pinned tasks where several endpoints serve one workflow: each fills a slot of the endpoint it is sent to, or waits for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.engine.placement import Requirement
from tests.world.durable import FEATURES, asleep, done, durable_endpoint, entry
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until

Relief = Callable[[], Awaitable[None]]


async def _beside(world: World, node: Node, *, slots: int = 10, **handler: Any) -> Endpoint:
    """Another endpoint that serves the same workflow, and ends every turn it is sent."""
    endpoint = await durable_endpoint(world, node, entry("order", **handler), name="b", durable_slots=slots)
    endpoint.way = done
    return endpoint


async def _turn_of(endpoint: Endpoint, run_id: str) -> Arrival:
    """The next turn of a run; all others end."""
    turn = await endpoint.next()
    while turn.json["run_id"] != run_id:
        done(turn)
        turn = await endpoint.next()
    return turn


async def _is_there(world: World, run_id: str, name: str) -> None:
    """Wait until a run's task stands in the queue of an endpoint."""
    endpoint_id = await world.database.fetchval("select id from endpoints where name = $1", name)

    async def there() -> bool:
        row = await world.task(run_id, state="queued")
        return bool(Requirement.parse(row["requirement"]).pin == endpoint_id)

    await until(there)


async def _full(world: World, one: Node, a: Endpoint) -> Relief:
    await one.call("PATCH", "/v1/endpoints/a", {"durable_slots": 1})
    await one.trigger("order")
    turn = await a.next()

    async def relieve() -> None:
        done(turn)

    return relieve


async def _paused(world: World, one: Node, a: Endpoint) -> Relief:
    await one.call("PATCH", "/v1/endpoints/a", {"paused": True})

    async def relieve() -> None:
        await one.call("PATCH", "/v1/endpoints/a", {"paused": False})

    return relieve


async def _broken(world: World, one: Node, a: Endpoint) -> Relief:
    await one.trigger("order")
    (await a.next()).answer(404)
    await world.circuit_is("open", "a")

    async def relieve() -> None:
        await world.advance(timedelta(minutes=2))
        await one.turn("probe")
        await world.circuit_is("closed", "a")

    return relieve


async def _backing_off(world: World, one: Node, a: Endpoint) -> Relief:
    for _ in range(2):
        await one.trigger("order")
    kept, refused = await a.next(), await a.next()
    refused.answer(429)

    async def halved() -> bool:
        return any(breaker.limit == 1 for breaker in one.runtime.services.capacity.breakers.values())

    await until(halved)

    async def relieve() -> None:
        done(kept)

    return relieve


@pytest.mark.parametrize("hindered", [_full, _paused, _broken, _backing_off])
async def test_a_turn_waits_for_the_endpoint_it_is_pinned_to(world: World, hindered: Callable[..., Awaitable[Relief]]) -> None:
    one = await world.node(probe_seconds=60)
    a = await durable_endpoint(world, one, entry("order"), name="a", durable_slots=2)
    b = await _beside(world, one)
    await one.call("PATCH", "/v1/endpoints/b", {"paused": True})
    run_id = await asleep(world, one, a)
    relieve = await hindered(world, one, a)
    await one.call("PATCH", "/v1/endpoints/b", {"paused": False})
    await world.advance(timedelta(seconds=2))
    await _is_there(world, run_id, "a")

    other = await one.trigger("order")
    assert (await world.over(other))["endpoint_id"] != (await world.attempts(run_id, 1))[0]["endpoint_id"]
    assert a.waiting == 0
    await relieve()
    turn = await _turn_of(a, run_id)
    assert turn.json["turn"] == 2
    done(turn)
    assert (await world.over(run_id))["epoch"] == 2, "what was claimed for another endpoint and not sent has no number"
    assert run_id not in {arrival.json["run_id"] for arrival in b.seen}


@pytest.mark.parametrize("awake", ["before", "after"])
async def test_so_does_one_that_was_pinned_before_another_endpoint_came(world: World, one: Node, awake: str) -> None:
    a = await durable_endpoint(world, one, entry("order"), name="a", durable_slots=1)
    runs = [await asleep(world, one, a) for _ in range(3)]
    relieve = await _full(world, one, a)
    if awake == "before":
        await world.advance(timedelta(seconds=2))
        for run_id in runs:
            await world.task(run_id, state="queued", requirement="")
    b = await _beside(world, one, slots=1)
    if awake == "after":
        await world.advance(timedelta(seconds=2))
    for run_id in runs:
        await _is_there(world, run_id, "a")

    await world.over(await one.trigger("order"))
    assert (len(b.seen), a.waiting) == (1, 0)
    await relieve()
    for _ in runs:
        turn = await a.next()
        assert turn.json["run_id"] in runs
        assert a.waiting == 0, "it has one slot"
        done(turn)
    for run_id in runs:
        assert (await world.over(run_id))["epoch"] == 2


async def test_those_behind_are_taken_out_of_the_way_together(world: World, one: Node) -> None:
    a = await durable_endpoint(world, one, entry("order"), name="a", durable_slots=1)
    runs = [await asleep(world, one, a) for _ in range(12)]
    relieve = await _full(world, one, a)
    await world.advance(timedelta(seconds=2))
    for run_id in runs:
        await world.task(run_id, state="queued", requirement="")
    await _beside(world, one, slots=1)
    claimed = one.runtime.services.metrics.claimed
    for run_id in runs:
        await _is_there(world, run_id, "a")
    assert one.runtime.services.metrics.claimed - claimed <= 2
    await relieve()
    for _ in runs:
        done(await a.next())
    for run_id in runs:
        await world.over(run_id)


async def test_another_dispatcher_finds_what_waits_for_its_endpoint(world: World, one: Node) -> None:
    a = await durable_endpoint(world, one, entry("order"), name="a", durable_slots=2)
    run_id = await asleep(world, one, a)
    await one.call("PATCH", "/v1/endpoints/a", {"paused": True})
    await _beside(world, one)
    await world.advance(timedelta(seconds=2))
    await _is_there(world, run_id, "a")
    one.runtime.services.capacity.draining = True
    two = await world.node("two")
    await one.call("PATCH", "/v1/endpoints/a", {"paused": False})
    for node in (one, two):
        await node.turn("registry", "slots", "claim")
    turn = await a.next()
    assert turn.json["run_id"] == run_id
    assert (await world.task(run_id))["dispatcher_id"] == two.runtime.membership.id


async def test_the_endpoint_need_not_serve_the_workflow_any_more(world: World, one: Node) -> None:
    a = await durable_endpoint(world, one, entry("order"), entry("other"), name="a")
    run_id = await asleep(world, one, a)
    a.manifest = manifest([entry("other")], *FEATURES, version="2")
    b = await _beside(world, one)
    await one.call("PUT", "/v1/endpoints/a", {"url": a.url})
    await world.over(await one.trigger("order"))
    await world.advance(timedelta(seconds=2))
    turn = await a.next()
    assert (turn.json["run_id"], turn.json["turn"]) == (run_id, 2)
    done(turn)
    assert (await world.over(run_id))["status"] == "succeeded"
    assert len(b.seen) == 1


@pytest.mark.parametrize("waits", [False, True], ids=["suspended", "in the queue of the endpoint"])
async def test_one_whose_endpoint_is_deleted_is_blocked_and_may_go_on_elsewhere(world: World, one: Node, waits: bool) -> None:
    a = await durable_endpoint(world, one, entry("order"), name="a")
    run_id = await asleep(world, one, a)
    b = await _beside(world, one)
    if waits:
        await one.call("PATCH", "/v1/endpoints/a", {"paused": True})
        await world.advance(timedelta(seconds=2))
        await _is_there(world, run_id, "a")
    await one.call("DELETE", "/v1/endpoints/a?force=true")
    await world.advance(timedelta(seconds=2))
    row = await world.task(run_id, state="blocked")
    assert "version_gone" in row["error"]
    assert b.seen == []
    await one.call("POST", f"/v1/runs/{run_id}/resume", {})
    assert (await world.over(run_id))["status"] == "succeeded"
    assert [arrival.json["run_id"] for arrival in b.seen] == [run_id]


async def test_a_log_that_begins_anew_asks_only_for_what_its_task_does(world: World, one: Node) -> None:
    asks: dict[str, Any] = {"desired_labels": {"zone": {"value": "x", "required": True}}}
    a = await durable_endpoint(world, one, entry("order", **asks), name="a")
    await one.call("PATCH", "/v1/endpoints/a", {"labels": {"zone": "x"}})
    run_id = await asleep(world, one, a)
    asked = (await world.task(run_id))["requirement"]
    await _beside(world, one, **asks)
    await one.call("PATCH", "/v1/endpoints/a", {"paused": True})
    await world.advance(timedelta(seconds=2))
    await _is_there(world, run_id, "a")
    both = Requirement.parse((await world.task(run_id))["requirement"])
    assert both.labels == Requirement.parse(asked).labels
    await one.call("POST", f"/v1/runs/{run_id}/reset", {})
    assert (await world.task(run_id, state="queued", pin_endpoint=None))["requirement"] == asked
    await one.call("PATCH", "/v1/endpoints/b", {"labels": {"zone": "x"}})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_it_says_which_endpoint_it_waits_for(world: World, one: Node) -> None:
    a = await durable_endpoint(world, one, entry("order"), name="a", durable_slots=1)
    run_id = await asleep(world, one, a)
    await _full(world, one, a)
    await _beside(world, one)
    await world.advance(timedelta(seconds=2))
    await _is_there(world, run_id, "a")

    async def said() -> dict[str, str]:
        shown = await one.call("GET", f"/v1/runs/{run_id}")
        return {reason["endpoint"]: reason["message"] for reason in shown["tasks"][0]["waiting_for"] if reason["kind"] == "endpoint"}

    assert await said() == {"a": "a: all of its 1 slots are filled", "b": "b: the task is pinned to the endpoint where it began"}
    await one.call("PATCH", "/v1/endpoints/a", {"paused": True})
    assert (await said())["a"] == "a: it is paused"
