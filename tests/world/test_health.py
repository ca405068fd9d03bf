"""Circuits, pressure and shares: what an endpoint's misfortune costs it, its tasks and everybody else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.store import dispatchers, queue, registry
from tests.world.endpoint import Arrival, manifest
from tests.world.world import Node, World, until


async def _bulk(node: Node, count: int) -> None:
    await node.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "work", "input": {}} for _ in range(count)]})


async def test_the_timers_rest_while_overdue_tasks_wait_for_a_broken_endpoint(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=1)
    endpoint.way = lambda arrival: arrival.answer(404, b"")
    first = await one.trigger("work")
    await world.attempts(first, 1)
    await world.circuit_is("open")
    await one.runtime.loops["probe"].stop()
    await one.trigger("work")  # behind the open circuit, with a schedule timeout of 5 min
    await world.advance(timedelta(minutes=6))
    timers = one.runtime.loops["timers"]
    for _ in range(100):  # what would spin, spins at every call of the others
        await world.database.fetchval("select 1")
    before = timers.ticks
    for _ in range(500):
        await world.database.fetchval("select 1")
    assert timers.ticks - before < 5


@contextmanager
def _hole() -> Iterator[str]:
    """A URL whose connections are neither made nor refused, because the backlog is full."""
    with ExitStack() as opened:
        hole = opened.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(3):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(hole.getsockname())
        yield f"http://127.0.0.1:{hole.getsockname()[1]}/"


async def test_a_circuit_that_opens_while_the_endpoint_is_changed_waits_for_the_change(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}])
    await one.trigger("work")
    arrival = await endpoint.next()
    async with world.database.transaction() as connection:
        tenant_id = await connection.fetchval("select tenant_id from endpoints")
        await registry.bump(connection, tenant_id)
        arrival.answer(404, b"")
        await until(lambda: world.holds_up(connection))
        await connection.execute("update endpoints set slots = 7")
    await world.circuit_is("open")


async def test_an_endpoint_that_takes_no_connections_costs_no_retries(world: World, one: Node) -> None:
    with _hole() as url:
        handlers = [{"name": "work", "execution_timeout": "2s", "retries": 0}]
        await one.call("PUT", "/v1/endpoints/hole", {"url": url, "handlers": handlers})
        run_id = await one.trigger("work")
        await world.task(run_id, state="running")
        world.clock.advance(timedelta(seconds=3))
        await one.turn("deadlines")
        (attempt,) = await world.attempts(run_id, 1)
    assert attempt["status"] in {"unreachable", "not_sent"}


async def test_one_429_for_a_batch_halves_concurrency_once(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{"name": "work"}], "batch"), slots=64)
    await _bulk(one, 32)
    arrival = await endpoint.next()
    assert len(arrival.json["items"]) == 32
    arrival.answer(429, b"")

    async def pushed_back() -> int | None:
        return next((breaker.limit for breaker in one.runtime.capacity.breakers.values()), None)

    assert await until(pushed_back) >= 16


async def test_an_endpoint_that_asked_for_less_is_given_more_by_every_few_answers(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=40)
    await _bulk(one, 300)
    held = await endpoint.several(40)
    held.pop().answer(429)
    (breaker,) = await until(lambda: _pushed_back(one))
    assert (breaker.limit, breaker.level) == (20, 40)
    world.clock.advance(timedelta(milliseconds=1))

    async def filled() -> bool:
        (breaker,) = one.runtime.capacity.breakers.values()
        return len(held) + endpoint.waiting == breaker.limit

    answers = 0
    while (await _pushed_back(one))[0].limit < 28:
        for _ in range(max(len(held) - 19, 1)):  # first all that were under way and are too many now, then one by one
            held.pop(0).answer(200, 1)
            answers += 1
        await until(filled)
        held += [await endpoint.next() for _ in range(endpoint.waiting)]
    assert answers < 120, "one for every full window of answers would take 188"


async def _pushed_back(node: Node) -> list[Any]:
    return [breaker for breaker in node.runtime.capacity.breakers.values() if breaker.level is not None]


async def test_a_429_halves_what_is_open_and_not_what_a_claim_has_set_aside(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=64)
    runs = [await one.trigger("work") for _ in range(4)]
    arrivals = await endpoint.several(4)
    await one.turn("claim")
    claim, begun, found = queue.claim, asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> list[queue.Claimed]:
        begun.set()
        await found.wait()
        return await claim(*given)

    monkeypatch.setattr(queue, "claim", slow)
    directory, capacity = one.runtime.services.directory, one.runtime.capacity
    capacity.backlog.update(*(picture.routes for picture in directory.pictures.values()))  # there may be something
    one.runtime.loops["claim"].wake()
    await asyncio.wait_for(begun.wait(), 30)
    assert sum(capacity.in_use.values()) > 8
    arrivals[0].answer(429, b"")
    await world.task(runs[0], state="scheduled")
    assert [breaker.limit for breaker in capacity.breakers.values()] == [2]
    found.set()
    for arrival in arrivals[1:]:
        arrival.answer(200, 1)
    for run_id in runs[1:]:
        await world.over(run_id)


async def test_one_refused_batch_does_not_count_as_many_refused_connections(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{"name": "work"}], "batch"), slots=64)
    await endpoint.stop()
    await _bulk(one, 8)

    async def seen() -> int:
        return sum(breaker.unreachable for breaker in one.runtime.capacity.breakers.values())

    assert await until(seen) == 1
    assert await world.circuit("sdk") == "closed"


async def test_a_broken_post_behind_a_good_get_is_tried_less_and_less(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{"name": "work"}]), slots=50)
    endpoint.way = lambda arrival: arrival.answer(404, b"")
    await _bulk(one, 50)
    for _ in range(60):  # five minutes
        world.clock.advance(timedelta(seconds=5))
        await one.turn("probe", "timers", "claim")
        await one.runtime.deliveries.settlement.drain()
    assert len(endpoint.seen) < 500


async def test_a_task_claimed_for_an_endpoint_deleted_meanwhile_gives_its_slot_back(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=1)
    await one.trigger("work")
    arrival = await endpoint.next()
    await one.trigger("work")  # queued behind the first
    claim = queue.claim

    async def slow(*given: Any) -> Any:
        claimed = await claim(*given)
        if claimed:
            await one.call("DELETE", "/v1/endpoints/plain?force=true")
        return claimed

    monkeypatch.setattr(queue, "claim", slow)
    arrival.answer(200, {})

    async def given_back() -> bool:
        return one.runtime.capacity.total == 0

    await until(given_back)
    await one.turn()
    assert one.runtime.capacity.total == 0


async def test_a_share_that_shrinks_is_not_overdrawn_while_it_is_written(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=10)
    endpoint.way = lambda _: None
    await one.runtime.membership.rebalance(world.now)
    two = await world.node("two")
    set_grants = dispatchers.set_grants

    async def slow(conn: Any, dispatcher_id: int, grants: Any) -> None:
        await set_grants(conn, dispatcher_id, grants)
        for _ in range(10):  # these come between the reckoning and its commit
            await one.trigger("work")

    with monkeypatch.context() as patch:
        patch.setattr(dispatchers, "set_grants", slow)
        await one.runtime.membership.rebalance(world.now)
    await two.runtime.membership.rebalance(world.now)
    for _ in range(10):
        await two.trigger("work")
    await two.turn()
    assert await world.database.fetchval("select count(*) from tasks where state = 'running'") <= 10


async def test_an_endpoint_that_is_deleted_as_its_slots_are_shared_keeps_nobody_from_the_others(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.endpoint(one, [{"name": "gone"}], name="gone")
    slots = one.runtime.loops["slots"]
    await slots.stop()
    await world.endpoint(one, [{"name": "work"}], name="stays", slots=7)
    await world.database.execute("delete from slot_grants")
    set_grants = dispatchers.set_grants

    async def late(*given: Any) -> None:
        await world.database.execute("delete from endpoints where name = 'gone'")
        await set_grants(*given)

    monkeypatch.setattr(dispatchers, "set_grants", late)
    await slots.tick(world.now)
    assert await world.database.fetchval("select array_agg(slots) from slot_grants") == [7]


async def test_a_paused_endpoint_keeps_its_queue(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "work"}])
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    run_id = await one.trigger("work")
    await world.advance(timedelta(minutes=6))
    assert (await one.call("GET", f"/v1/runs/{run_id}"))["status"] == "queued"


async def test_a_version_an_operator_named_stays(world: World, one: Node) -> None:
    endpoint = await world.listen()
    endpoint.manifest = manifest([{"name": "work"}], version="7")
    await one.call("PUT", "/v1/endpoints/app", {"url": endpoint.url, "version": "release-1"})
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(200, {}, task_version="7", task_protocol="1")
    await world.over(run_id)
    await one.runtime.deliveries.circuits.drain()
    assert (await one.call("GET", "/v1/endpoints/app"))["version"] == "release-1"


async def test_another_version_of_the_same_handlers_is_asked_about_once(world: World, one: Node) -> None:
    asked = 0
    endpoint = await world.discovered(one, manifest([{"name": "work"}], version="7"))
    offer = endpoint._offer

    def counted(arrival: Arrival) -> None:
        nonlocal asked
        asked += 1
        offer(arrival)

    endpoint._offer = counted  # type: ignore[method-assign]
    endpoint.manifest = manifest([{"name": "work"}], version="8")
    for _ in range(3):
        world.clock.advance(timedelta(minutes=1))
        run_id = await one.trigger("work")
        (await endpoint.next()).answer(200, {}, task_version="8", task_protocol="1")
        await world.over(run_id)
        await one.runtime.deliveries.circuits.drain()
    assert asked == 1
    assert (await one.call("GET", "/v1/endpoints/sdk"))["version"] == "7"


async def test_another_version_with_other_handlers_is_registered(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{"name": "work"}], version="7"))
    endpoint.manifest = manifest([{"name": "work", "retries": 9}], version="8")
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(200, {}, task_version="8", task_protocol="1")
    await world.over(run_id)
    await one.runtime.deliveries.circuits.drain()
    assert (await one.call("GET", "/v1/endpoints/sdk"))["version"] == "8"
