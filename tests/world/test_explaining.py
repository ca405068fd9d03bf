"""Why a run is not running: what is said is compared with what is in its way, one state after the other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.cli.results import waiting_lines
from dispatcher.engine.health import Breaker
from dispatcher.store import queue
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
PAUSED = ("paused", "its workflow is paused: nothing of it starts until it is resumed")


def _task(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "schedule_timeout": "1h", "execution_timeout": "1h", **fields}


async def _why(node: Node, run_id: str, task: int | None = 0) -> list[tuple[str, str]]:
    """What the API says, after a look at whether the command line says the same."""
    shown = await node.call("GET", f"/v1/runs/{run_id}")
    reasons = (shown if task is None else shown["tasks"][task]).get("waiting_for", [])
    printed = "\n".join(waiting_lines(shown))
    assert all(reason["message"] in printed for reason in reasons)
    return [(reason["kind"], reason["message"]) for reason in reasons]


async def _pause(node: Node, what: str, paused: bool = True) -> None:
    await node.call("PATCH", f"/v1/{what}", {"paused": paused})


def _ok(arrival: Arrival) -> None:
    arrival.answer(200, 1, task_protocol="1")


async def _running(node: Node, endpoint: Endpoint, workflow: str, **fields: Any) -> Arrival:
    await node.trigger(workflow, **fields)
    return await endpoint.next()


async def test_a_moment(world: World, one: Node) -> None:
    graph = {"name": "graph", "kind": "workflow", "tasks": [{"name": "a"}, {"name": "b", "parents": ["a"]}]}
    endpoint = await world.endpoint(one, [_task("work", retries=1, backoff_factor=10), graph])
    later = (world.now + MINUTE).isoformat()
    said = [("time", "it is to start at 2026-03-01 12:01:00Z")]
    assert await _why(one, await one.trigger("work", run_at=later)) == said
    assert await _why(one, await one.trigger("graph", run_at=later), None) == said
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(500)
    await world.task(run_id, state="scheduled")
    assert await _why(one, run_id) == [("time", "attempt 2 of it is made at 2026-03-01 12:00:10Z")]
    await _pause(one, "workflows/work")
    assert await _why(one, run_id) == [PAUSED, ("time", "attempt 2 of it is made at 2026-03-01 12:00:10Z")]


async def test_slots(world: World, one: Node) -> None:
    handlers = [_task("work"), _task("two", slot_cost=2), _task("five", slot_cost=5)]
    endpoint = await world.endpoint(one, handlers, name="e", slots=2)
    assert await _why(one, await one.trigger("five")) == [("endpoint", "e: it has 2 slots, and the task fills 5: it can never start there")]
    await _running(one, endpoint, "work")
    assert await _why(one, await one.trigger("two")) == [("endpoint", "e: 1 of its 2 slots are free, and the task fills 2")]
    await _running(one, endpoint, "work")
    runs = [await one.trigger("work", priority=priority) for priority in (1, 1, 3)]
    full = ("endpoint", "e: all of its 2 slots are filled")
    assert await _why(one, runs[2]) == [full]
    assert await _why(one, runs[0]) == [("queue", "1 of its queue go before it"), full]
    assert await _why(one, runs[1]) == [("queue", "2 of its queue go before it"), full]


async def test_slots_that_others_have(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [_task("work")], name="e", slots=1)
    two = await world.node("two")
    await two.turn("registry", "slots")
    await _running(one, endpoint, "work")
    run_id = await two.trigger("work")
    for node in (one, two):
        assert await _why(node, run_id) == [("endpoint", "e: all of its 1 slots are filled")]
    one.runtime.capacity.draining = True
    endpoint.seen[0].answer(200, 1)
    await one.runtime.deliveries.drain()
    assert await _why(two, run_id) == [("endpoint", "e: slots are free, and it is the turn of another dispatcher to fill them")]


async def test_a_dispatcher_that_has_all_it_may_have_open(world: World) -> None:
    one = await world.node(max_in_flight=1)
    endpoint = await world.endpoint(one, [_task("work")], name="e")
    await _running(one, endpoint, "work")
    said = "e: slots are free, and this dispatcher has 1 attempts open, as many as it may"
    assert await _why(one, await one.trigger("work")) == [("endpoint", said)]


async def test_an_endpoint_that_asked_for_less(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [_task("work")], name="e", slots=8)
    runs = [await one.trigger("work") for _ in range(2)]
    for _ in range(2):
        (await endpoint.next()).answer(429, b"", retry_after="1")
    for run_id in runs:
        await world.task(run_id, state="scheduled")
    await one.turn("claim")  # one that was under way goes by the slots there were
    await world.advance(SECOND)
    await endpoint.next()
    waiting = [run_id for run_id in runs if await _why(one, run_id)]
    said = "e: it has asked for less, so 1 of its slots are filled at most, until it takes more"
    assert [await _why(one, run_id) for run_id in waiting] == [[("endpoint", said)]]


@pytest.mark.parametrize("scarce", ["slots", "pressure", "attempts"])
async def test_slots_that_a_claim_has_set_aside_are_free(world: World, monkeypatch: pytest.MonkeyPatch, scarce: str) -> None:
    """It may find the very task that is asked about, and has begun nothing yet."""
    one = await world.node(max_in_flight=1 if scarce == "attempts" else 100)
    endpoint = await world.endpoint(one, [_task("work")], name="e", slots=1 if scarce == "slots" else 8)
    await _pause(one, "endpoints/e")
    run_id = await one.trigger("work")
    capacity, claim, said = one.runtime.capacity, queue.claim, list[Any]()
    if scarce == "pressure":
        capacity.breakers |= {place: Breaker(limit=1) for place in capacity.grants}

    async def asked(*of: Any) -> list[queue.Claimed]:
        said.append(await _why(one, run_id))
        return await claim(*of)

    monkeypatch.setattr(queue, "claim", asked)
    await _pause(one, "endpoints/e", False)
    await endpoint.next()
    assert said[0] == [("endpoint", "e: slots are free: it starts at any moment")]


async def test_an_endpoint_that_takes_nothing(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([_task("work")]), name="e")
    await _pause(one, "endpoints/e")
    run_id = await one.trigger("work")
    assert await _why(one, run_id) == [("endpoint", "e: it is paused")]
    await _pause(one, "endpoints/e", False)
    (await endpoint.next()).answer(404, b"")
    await world.circuit_is("open", "e")
    await world.task(run_id, state="scheduled")
    await world.advance(SECOND)
    said = "e: its circuit is open (http_404); it is tried again at 2026-03-01 12:00:05Z"
    assert await _why(one, run_id) == [("endpoint", said)]
    world.clock.advance(4 * SECOND)
    await one.turn("probe", "claim")
    arrival = await endpoint.next()
    said = "e: its circuit was open, so it is sent one attempt at a time until one does its work"
    assert await _why(one, await one.trigger("work")) == [("endpoint", said)]
    arrival.answer(410, b"")
    await world.circuit_is("retired", "e")
    assert (await _why(one, await one.trigger("work")))[-1] == (
        "endpoint",
        "e: it has said that it is gone (410): it takes work again once it is registered again",
    )
    await one.call("DELETE", "/v1/endpoints/e?force=true")
    assert await _why(one, await one.trigger("work")) == [("endpoint", "no endpoint serves this workflow any more")]


async def test_batches(world: World, one: Node) -> None:
    handler = _task("mail", batch={"max_size": 3, "interval": "10s", "group_max_runs": 1})
    endpoint = await world.discovered(one, manifest([handler, _task("work")], "batch"), name="e", slots=2)
    first = await one.trigger("mail")
    said = "1 of the 3 tasks of its batch have come; it is due at 2026-03-01 12:00:10Z, full or not"
    assert await _why(one, first) == [("batch", said)]
    world.clock.advance(10 * SECOND)
    await one.turn("batches")
    batch = await endpoint.next()
    run_id = await one.trigger("mail")
    world.clock.advance(10 * SECOND)
    await one.turn("batches")
    assert await _why(one, run_id) == [("batch", "1 of 1 batches of its group are under way")]
    await _running(one, endpoint, "work")
    await one.call("PATCH", "/v1/endpoints/e", {"slots": 1})
    await one.turn("slots")
    _ok(batch)
    await world.over(first)
    await one.turn("slots", "batches")
    ready, full = await _why(one, run_id)
    assert ready == ("batch", "its batch is complete, or its time is up: it waits for a slot")
    assert full == ("endpoint", "e: all of its 1 slots are filled")


async def test_a_batch_that_could_go_nowhere_says_why(world: World, one: Node) -> None:
    await world.discovered(one, manifest([_task("mail", batch={"max_size": 3, "interval": "10s"})], "batch"), name="e")
    gathering = ("batch", "1 of the 3 tasks of its batch have come; it is due at 2026-03-01 12:00:10Z, full or not")
    picky = await one.trigger("mail", labels={"gpu": {"value": True, "required": True}})
    assert await _why(one, picky) == [gathering, ("endpoint", "e: label 'gpu' is not there; EQUAL true is required")]
    run_id = await one.trigger("mail")
    await one.call("PATCH", "/v1/endpoints/e", {"paused": True})
    assert await _why(one, run_id) == [gathering, ("endpoint", "e: it is paused")]


async def test_slots_that_are_kept_for_a_batch(world: World, one: Node) -> None:
    handler = {**_task("mail", batch={"max_size": 1, "interval": "10s"}), "slot_cost": 2}
    endpoint = await world.discovered(one, manifest([handler, _task("work")], "batch"), name="e", slots=2)
    await _running(one, endpoint, "work")
    await one.trigger("mail")
    await one.turn("batches")
    assert await _why(one, await one.trigger("work")) == [("endpoint", "e: slots are free, and kept for a batch that is ready")]


async def test_limits(world: World, one: Node) -> None:
    flow = {"name": "flow", "kind": "workflow", "tasks": [{"name": "a"}, {"name": "b", "parents": ["a"]}], "concurrency": 1}
    handlers = [
        _task("billing:grouped", concurrency=[{"expression": "input.key", "max_runs": 1}]),
        _task("rated", rate_limits=[{"static_key": "api"}]),
        flow,
    ]
    endpoint = await world.endpoint(one, handlers)
    await one.call("PUT", "/v1/rate-limits/api", {"limit": 1})
    await _running(one, endpoint, "billing:grouped", input={"key": "x"})
    grouped = await one.trigger("billing:grouped", input={"key": "x"})
    in_line = ("concurrency", "group 'x' of input.key has 1 of 1 under way; 0 stand before it")
    assert await _why(one, grouped) == [in_line]
    assert [row["expression"] for row in (await one.call("GET", "/v1/concurrency-groups"))["rows"]] == ["input.key"]
    await _pause(one, "workflows/billing:grouped")
    assert await _why(one, grouped) == [PAUSED, in_line]
    await _running(one, endpoint, "rated")
    rated = await one.trigger("rated")
    await world.task(rated, state="gated")
    empty = ("rate_limit", "rate limit 'api' has 0 of 1 units left; full again at 2026-03-01 12:01:00Z")
    assert await _why(one, rated) == [empty]
    await _pause(one, "workflows/rated")
    assert await _why(one, rated) == [PAUSED, empty]
    await _running(one, endpoint, "flow")
    second = await one.trigger("flow")
    first_in_line = ("concurrency", "its concurrency group has 1 of 1 under way; 0 stand before it")
    assert await _why(one, second, None) == [first_in_line]
    await _pause(one, "workflows/flow")
    assert await _why(one, second, None) == [PAUSED, first_in_line]
