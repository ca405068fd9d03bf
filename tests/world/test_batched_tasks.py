"""Tasks that are run many at once: batches that are full, batches that are due, and groups of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime import batches, directory
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until

SECOND = timedelta(seconds=1)


def _handler(**batch: Any) -> dict[str, Any]:
    return {"name": "mail", "batch": {"max_size": 3, "interval": "10s", **batch}, "retries": 1}


async def _endpoint(world: World, node: Node, handler: dict[str, Any], slots: int = 100) -> Endpoint:
    return await world.discovered(node, manifest([handler], "batch"), slots=slots)


def _items(arrival: Arrival) -> list[dict[str, Any]]:
    document = arrival.json
    items: list[dict[str, Any]] = document["items"] if document["type"] == "batch" else [document]
    assert {item["batch"]["size"] for item in items} == {len(items)}
    assert len({item["batch"]["id"] for item in items}) == 1
    return items


def _answer(arrival: Arrival, **failed: str) -> None:
    items = _items(arrival)
    if arrival.json["type"] == "run":
        arrival.answer(200, 1, task_protocol="1")
        return
    results = [
        {"id": item["id"], "status": "fail", "error": {"message": "no"}}
        if item["id"] in failed.values()
        else {"id": item["id"], "status": "ok", "output": 1}
        for item in items
    ]
    arrival.answer(200, {"results": results}, task_protocol="1")


async def _trigger(node: Node, count: int, **input: Any) -> list[str]:
    return [await node.trigger("mail", input={"n": n, **input}) for n in range(count)]


async def _ended(world: World, run_ids: list[str]) -> Counter[str]:
    return Counter([(await world.over(run_id))["status"] for run_id in run_ids])


async def test_ten_inputs_in_batches_of_three_are_four_calls(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler())
    runs = await _trigger(one, 10)
    sizes = []
    for _ in range(3):
        arrival = await endpoint.next()
        sizes.append(len(_items(arrival)))
        _answer(arrival)
    await one.turn("batches")
    assert endpoint.waiting == 0
    world.clock.advance(10 * SECOND)
    await one.turn("batches")
    arrival = await endpoint.next()
    _answer(arrival)
    assert [*sizes, len(_items(arrival))] == [3, 3, 3, 1]
    assert await _ended(world, runs) == {"succeeded": 10}
    assert len(endpoint.seen) == 4


async def test_groups_are_not_mixed(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler(group_key="input.user"))
    for user in ("ann", "bob", "ann", "bob", "ann"):
        await one.trigger("mail", input={"user": user})
    first = await endpoint.next()
    assert [item["input"]["user"] for item in _items(first)] == ["ann"] * 3
    world.clock.advance(10 * SECOND)
    await one.turn("batches")
    second = await endpoint.next()
    assert [item["input"]["user"] for item in _items(second)] == ["bob"] * 2


async def test_so_many_batches_of_a_group_run_at_a_time(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler(group_max_runs=1, max_size=2))
    runs = await _trigger(one, 6)
    for left in (2, 1, 0):
        arrival = await endpoint.next()
        await one.turn("batches")
        assert endpoint.waiting == 0
        _answer(arrival)
        assert left >= 0
    assert await _ended(world, runs) == {"succeeded": 6}


async def test_a_batch_fills_one_slot(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler(), slots=1)
    runs = await _trigger(one, 6)
    first = await endpoint.next()
    await one.turn("batches")
    assert endpoint.waiting == 0
    assert (await one.call("GET", "/v1/endpoints/sdk"))["in_use"] == 1
    _answer(first)
    _answer(await endpoint.next())
    assert await _ended(world, runs) == {"succeeded": 6}

    async def idle() -> bool:
        return not one.runtime.capacity.in_use and one.runtime.capacity.total == 0

    await until(idle)


async def test_one_that_fails_is_batched_again_without_the_others(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler())
    runs = await _trigger(one, 3)
    arrival = await endpoint.next()
    bad = _items(arrival)[1]["id"]
    _answer(arrival, bad=bad)
    await world.attempts(f"run_{bad[4:]}", 1)
    world.clock.advance(10 * SECOND)
    await one.turn("batches")
    again = await endpoint.next()
    assert [item["id"] for item in _items(again)] == [bad]
    _answer(again)
    assert await _ended(world, runs) == {"succeeded": 3}


async def test_one_that_is_cancelled_leaves_the_others_alone(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler())
    runs = await _trigger(one, 3)
    arrival = await endpoint.next()
    await one.call("POST", f"/v1/runs/{runs[1]}/cancel")
    assert (await world.over(runs[1]))["status"] == "cancelled"
    assert not arrival.hung_up.is_set()
    _answer(arrival)
    assert await _ended(world, runs) == {"succeeded": 2, "cancelled": 1}


async def test_two_dispatchers_never_halve_a_batch(world: World, one: Node) -> None:
    two = await world.node("two")
    for node in (one, two):
        await node.turn("slots")
    endpoint = await _endpoint(world, one, _handler())
    for node in (one, two):
        await node.turn("registry", "slots")
    runs = [run_id for _ in range(10) for run_id in await asyncio.gather(*(n.trigger("mail", input={}) for n in (one, two, one)))]
    sizes = Counter[int]()
    for _ in range(10):
        arrival = await endpoint.next()
        sizes[len(_items(arrival))] += 1
        _answer(arrival)
    assert sizes == {3: 10}
    assert await _ended(world, runs) == {"succeeded": 30}


async def test_a_replayed_run_is_batched_again(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler(group_key="input.user"))
    runs = [await one.trigger("mail", input={"user": "ann"}) for _ in range(3)]
    _answer(await endpoint.next())
    await _ended(world, runs)
    for run_id in runs:
        await one.call("POST", f"/v1/runs/{run_id}/replay")
    again = await endpoint.next()
    assert len(_items(again)) == 3


async def test_what_waits_when_its_workflow_is_batched_no_more_is_run_one_by_one(world: World, one: Node) -> None:
    """Also what was in a batch before: it fills slots like any other task now, and gives them back."""
    endpoint = await _endpoint(world, one, _handler(max_size=2))
    runs = await _trigger(one, 2)
    first = await endpoint.next()
    items = first.json["items"]
    failed = [{"id": item["id"], "status": "fail", "error": {"message": "no"}} for item in items]
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": True})
    first.answer(200, {"results": failed}, task_protocol="1")
    for run_id in runs:
        await world.attempts(run_id, 1)
    endpoint.manifest = {**manifest([{"name": "mail", "retries": 1}]), "version": "2"}
    await one.call("PUT", "/v1/endpoints/sdk", {"url": endpoint.url, "slots": 100})
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": False})
    world.clock.advance(10 * SECOND)
    await one.turn("slots", "claim", "batches", "claim")
    for _ in runs:
        arrival = await endpoint.next()
        assert arrival.json["type"] == "run"
        arrival.answer(200, 1, task_protocol="1")
    assert await _ended(world, runs) == {"succeeded": 2}

    async def idle() -> bool:
        return not one.runtime.capacity.in_use and one.runtime.capacity.total == 0

    await until(idle)


async def test_a_batch_is_no_larger_than_what_one_dispatcher_has_open(world: World) -> None:
    one = await world.node(max_in_flight=2)
    endpoint = await _endpoint(world, one, _handler(max_size=3))
    runs = await _trigger(one, 4)
    for _ in range(2):
        arrival = await endpoint.next()
        assert len(_items(arrival)) == 2
        _answer(arrival)
    assert await _ended(world, runs) == {"succeeded": 4}


async def test_what_cannot_be_batched_is_refused(world: World, one: Node) -> None:
    endpoint = await world.listen()
    plain = {"url": endpoint.url, "handlers": [{"name": "mail", "batch": {"max_size": 3}}]}
    assert (await one.call("PUT", "/v1/endpoints/plain", plain, expect=400))["field"] == "handlers[0].batch"
    endpoint.manifest = manifest([_handler()])
    refused = await one.call("PUT", "/v1/endpoints/sdk", {"url": endpoint.url}, expect=400)
    assert "manifest does not say" in refused["detail"]
    endpoint.manifest = manifest([_handler(group_key="input.user")], "batch")
    await one.call("PUT", "/v1/endpoints/sdk", {"url": endpoint.url})
    assert (await one.call("POST", "/v1/runs", {"workflow": "mail", "input": {}}, expect=422))["code"] == "limit_failed"


async def _first_pair(world: World, node: Node) -> tuple[Endpoint, Arrival, list[str]]:
    """A batch of two under way at an endpoint with one slot, with two more tasks waiting: the request, and its items' ids."""
    endpoint = await _endpoint(world, node, _handler(max_size=2), slots=1)
    await _trigger(node, 4)
    arrival = await endpoint.next()
    return endpoint, arrival, [item["id"] for item in _items(arrival)]


async def _next_only_after(node: Node, endpoint: Endpoint, arrival: Arrival) -> None:
    """The slot is filled until the request is over."""
    await node.turn("batches", "slots", "batches")
    assert endpoint.waiting == 0
    assert (await node.call("GET", "/v1/endpoints/sdk"))["in_use"] == 1
    arrival.answer(200, {"results": []}, task_protocol="1")
    await endpoint.next()


async def test_a_batch_keeps_its_slot_when_one_of_it_is_cancelled(world: World, one: Node) -> None:
    endpoint, arrival, (first, _) = await _first_pair(world, one)
    await one.call("POST", f"/v1/runs/run_{first[4:]}/cancel")
    await world.over(f"run_{first[4:]}")
    await _next_only_after(one, endpoint, arrival)


async def test_a_batch_keeps_its_slot_when_one_of_it_is_done_before_the_others(world: World, one: Node) -> None:
    endpoint, arrival, (first, second) = await _first_pair(world, one)
    arrival.begin_stream()
    arrival.line({"id": first, "status": "ok", "output": 1})
    await world.over(f"run_{first[4:]}")
    await one.turn("batches")
    assert endpoint.waiting == 0
    arrival.line({"id": second, "status": "ok", "output": 1})
    arrival.end_stream()
    await endpoint.next()


async def test_a_batch_that_goes_on_without_its_request_keeps_its_slot(world: World, one: Node) -> None:
    endpoint, arrival, (first, second) = await _first_pair(world, one)
    tokens = [item["token"] for item in _items(arrival)]
    results = [{"id": first, "status": "accepted", "lease_ms": 60_000}, {"id": second, "status": "ok", "output": 1}]
    arrival.answer(200, {"results": results}, task_protocol="1")
    await world.over(f"run_{second[4:]}")
    await one.turn("slots", "batches", "slots", "batches")
    assert endpoint.waiting == 0
    await one.callback(tokens[0], {"done": 1})
    await one.turn("slots", "batches")
    await endpoint.next()


async def test_a_due_batch_goes_though_it_is_larger_than_what_a_dispatcher_has_left(world: World) -> None:
    node = await world.node(max_in_flight=5)
    endpoint = await world.discovered(node, manifest([_handler(max_size=5), {"name": "plain"}], "batch"))
    await node.trigger("plain")
    await endpoint.next()
    await node.trigger("mail")
    world.clock.advance(10 * SECOND)
    await node.turn("batches")
    assert len(_items(await endpoint.next())) == 1
    await _trigger(node, 5)
    await node.turn("batches")
    assert endpoint.waiting == 0
    world.clock.advance(10 * SECOND)
    await node.turn("batches")
    assert len(_items(await endpoint.next())) == 3


async def test_so_many_batches_of_a_group_run_at_a_time_whatever_else_they_ask(world: World, one: Node) -> None:
    endpoint = await _endpoint(world, one, _handler(max_size=2, group_key="input.g", group_max_runs=1))
    await one.call("PATCH", "/v1/endpoints/sdk", {"labels": {"gpu": True}})
    for labels in ({}, {"gpu": {"value": True, "required": True}}):
        for n in range(2):
            await one.trigger("mail", input={"n": n, "g": "x"}, labels=labels)
    await one.trigger("mail", input={"n": 0, "g": "y"})
    await one.trigger("mail", input={"n": 1, "g": "y"})
    await one.turn("batches", "batches")
    first = {_items(arrival)[0]["input"]["g"]: arrival for arrival in (await endpoint.next(), await endpoint.next())}
    assert (sorted(first), endpoint.waiting) == (["x", "y"], 0)
    _answer(first["x"])
    assert _items(await endpoint.next())[0]["input"]["g"] == "x"


async def test_a_batch_that_fits_nowhere_keeps_no_slots(world: World, one: Node) -> None:
    large = {**_handler(max_size=2), "slot_cost": 3, "execution_timeout": "1h", "schedule_timeout": "1h"}
    handlers = manifest([large, {"name": "plain"}], "batch")
    small = await world.discovered(one, handlers, name="small", slots=2)
    await _trigger(one, 2)
    await one.turn("batches", "claim")
    await one.trigger("plain")
    await one.turn("batches", "claim")
    (await small.next()).answer(200, 1, task_protocol="1")
    big = await world.discovered(one, handlers, name="big", slots=3)
    await one.turn("registry", "slots", "batches")
    assert len(_items(await big.next())) == 2
    await _trigger(one, 2)  # what fits at the other only, which is full, is nothing to this one
    await one.turn("batches", "claim")
    for _ in range(2):
        await one.trigger("plain")
    await one.turn("batches", "claim")
    assert [(await small.next()).json["name"] for _ in range(2)] == ["plain", "plain"]


async def test_a_full_batch_is_found_behind_more_groups_than_are_looked_at_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST_GROUPS", 3)
    node = await world.node()
    endpoint = await _endpoint(world, node, {**_handler(max_size=2, interval="1h", group_key="input.g"), "schedule_timeout": "10h"})
    for group in ("a", "b", "c", "d", "e", "f", "z", "z"):
        await node.trigger("mail", input={"g": group})
    await node.turn("batches", "batches")
    assert [item["input"]["g"] for item in _items(await endpoint.next())] == ["z", "z"]


async def test_a_dispatcher_keeps_nothing_of_groups_that_are_over(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_MOST_ROUTES", 5)
    endpoint = await _endpoint(world, one, _handler(max_size=2, group_key="input.g"))
    endpoint.way = _answer
    runs = [await one.trigger("mail", input={"g": f"g{n // 2}"}) for n in range(20)]
    assert await _ended(world, runs) == {"succeeded": 20}
    await one.turn("batches", "claim")
    assert not one.runtime.capacity.backlog
    assert all(len(picture.found) <= 5 for picture in one.runtime.services.directory.pictures.values())
