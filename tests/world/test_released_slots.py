"""Slots that handlers give up before they are done: never more than they held, whoever says so, how often, and when."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Arrival, manifest
from tests.world.world import Node, World, until

RELEASE = {"type": "release_slot"}
LARGE = {"name": "large", "slot_cost": 2, "retries": 1, "execution_timeout": "1h", "schedule_timeout": "1h"}


async def _release(node: Node, arrival: Arrival | dict[str, Any], *, times: int = 1) -> list[int]:
    """What an attempt is answered that gives up its slots, so many times at once."""
    token = (arrival.json if isinstance(arrival, Arrival) else arrival)["token"]
    head = {"authorization": f"Bearer {token}"}
    return [
        reply.status_code
        for reply in await asyncio.gather(*[node.api.post("/v1/callback", json=RELEASE, headers=head) for _ in range(times)])
    ]


async def _filled(node: Node, slots: int) -> None:
    async def as_said() -> bool:
        return sum(node.runtime.capacity.in_use.values()) == slots

    await until(as_said)


async def test_what_is_given_up_many_times_is_free_once(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [LARGE], slots=4)
    for _ in range(2):
        await one.trigger("large")
    first, second = await endpoint.several(2)
    assert await _release(one, first, times=5) == [200] * 5
    assert await _release(one, {"token": first.json["token"]}, times=2) == [200] * 2
    await _filled(one, 2)
    for _ in range(2):
        await one.trigger("large")
    third = await endpoint.next()
    await one.turn("claim")
    assert endpoint.waiting == 0
    first.answer(200, 1)
    await world.over(first.json["run_id"])
    await one.turn("claim")
    assert endpoint.waiting == 0, "its end frees nothing more"
    assert await _release(one, first) == [410]
    for arrival in (second, third):
        arrival.answer(200, 1)
    (await endpoint.next()).answer(200, 1)
    await _filled(one, 0)
    assert one.runtime.capacity.total == 0


async def test_an_old_attempt_gives_up_nothing_of_the_next(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [LARGE], slots=2)
    run_id = await one.trigger("large")
    first = await endpoint.next()
    assert await _release(one, first) == [200]
    first.answer(500)
    await world.attempts(run_id, 1)
    await world.advance(timedelta(seconds=2))
    second = await endpoint.next()
    assert second.json["attempt"] == 2
    assert await _release(one, first) == [409]
    await _filled(one, 2)
    second.answer(200, 1)
    await _filled(one, 0)


async def test_one_that_ends_as_it_gives_up_its_slots_frees_them_once(world: World, one: Node) -> None:
    two = await world.node("two")
    endpoint = await world.endpoint(one, [LARGE], slots=8)
    for node in (one, two):
        await node.turn("registry", "slots")
    for _ in range(6):
        run_id = await one.trigger("large")
        arrival = await endpoint.next()
        released = asyncio.gather(*[_release(node, arrival, times=2) for node in (one, two)])
        arrival.answer(200, 1)
        assert {status for statuses in await released for status in statuses} <= {200, 409, 410}
        await world.over(run_id)
        for node in (one, two):
            await _filled(node, 0)
            assert node.runtime.capacity.total == 0


async def test_a_batch_fills_its_slots_until_all_of_it_have_given_them_up(world: World, one: Node) -> None:
    mail = {"name": "mail", "batch": {"max_size": 2, "interval": "1h"}, "schedule_timeout": "2h", "slot_cost": 2}
    endpoint = await world.discovered(one, manifest([mail], "batch"), slots=2)
    for _ in range(4):
        await one.trigger("mail")
    arrival = await endpoint.next()
    first, second = arrival.json["items"]
    assert await _release(one, first, times=3) == [200] * 3
    await one.turn("batches", "slots", "batches")
    assert endpoint.waiting == 0
    assert await _release(one, second) == [200]
    assert len((await endpoint.next()).json["items"]) == 2
    arrival.answer(200, {"results": [{"id": item["id"], "status": "ok", "output": 1} for item in (first, second)]}, task_protocol="1")
    for item in (first, second):
        await world.over(item["run_id"])
    await one.turn("slots")
    await _filled(one, 2)


async def test_a_turn_gives_up_its_own_slot_and_the_next_one_fills_it_again(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), durable_slots=1)
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    assert await _release(one, turn, times=3) == [200] * 3
    await _filled(one, 0)
    answer(turn, "wait", base=0, ops=[pending("message", "m#0")], wake="m#0")
    await world.task(run_id, state="waiting")
    assert await _release(one, turn) == [409]
    await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 1})
    again = await endpoint.next()
    await _filled(one, 1)
    answer(again, "done", base=2, output=1)
    await _filled(one, 0)


async def test_what_is_given_up_at_another_dispatcher_is_free_without_the_hint(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [LARGE], slots=2)
    await one.trigger("large")
    arrival = await endpoint.next()
    two = await world.node("two")
    two.runtime.services.callbacks._signals.peers = 0  # it has not looked round yet: hints are not sent
    assert await _release(two, arrival) == [200]
    await _filled(one, 2)
    world.clock.advance(timedelta(seconds=11))
    await one.turn("reap")
    await _filled(one, 0)
    arrival.answer(200, 1)
    await world.over(arrival.json["run_id"])
    await _filled(one, 0)
    assert one.runtime.capacity.total == 0
