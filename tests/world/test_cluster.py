"""Several dispatchers on one database: shared slots, take-over of what a dead one had open, one picture of what is registered."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

import dispatcher.app
from dispatcher.store.dispatchers import LOCK_GRANTS
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until

SECOND = timedelta(seconds=1)
HANDLER = {"name": "work", "retries": 1, "execution_timeout": "1h", "schedule_timeout": "1h"}
MORTAL: dict[str, Any] = {"lease": 15.0, "heartbeat": 3.0}


async def _settled_shares(world: World, endpoint: str, slots: int) -> dict[str, int]:
    """The dispatchers' grants, once all slots are granted and every live dispatcher has had its turn, and goes by what it was granted."""
    place = await world.database.fetchrow("select tenant_id, id from endpoints where name = $1", endpoint)
    assert place is not None

    async def shared() -> dict[str, int] | None:
        for node in world.nodes:
            node.runtime.loops["slots"].wake()
        rows = await world.database.fetch(
            "select d.name, g.slots from slot_grants g join dispatchers d on d.id = g.dispatcher_id"
            " join endpoints e on e.id = g.endpoint_id where e.name = $1",
            endpoint,
        )
        grants = {row["name"]: row["slots"] for row in rows}
        assert sum(grants.values()) <= slots
        known = {node.name: node.runtime.capacity.grants.get(tuple(place)) for node in world.nodes}
        even = max(grants.values(), default=0) - min(grants.values(), default=0) <= 1
        return grants if known == grants and sum(grants.values()) == slots and even else None

    return await until(shared)


async def _live(world: World, seconds: int) -> None:
    """Let time pass as it does, with signs of life in it."""
    for _ in range(seconds):
        world.clock.advance(SECOND)
        for node in world.nodes:
            await node.turn("heartbeat", "reap", "timers", "claim")


async def test_dispatchers_share_an_endpoints_slots(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER], slots=5)
    two = await world.node("two")
    assert sorted((await _settled_shares(world, "plain", 5)).values()) == [2, 3]
    runs = [await node.trigger("work") for _ in range(10) for node in (one, two)]
    waiting = await endpoint.several(5)
    for node in (one, two):
        await node.turn()
    assert endpoint.waiting == 0
    assert await world.database.fetchval("select count(*) from tasks where state = 'running'") == 5
    served = 0
    while served < len(runs):
        waiting.pop().answer(200, 1)
        served += 1
        if served + len(waiting) < len(runs):
            waiting.append(await endpoint.next())
    for run_id in runs:
        assert (await world.over(run_id))["epoch"] == 1


async def test_a_slot_is_enough_for_one_dispatcher(world: World, one: Node) -> None:
    """With fewer slots than dispatchers somebody has none, and all work still gets done."""
    endpoint = await world.endpoint(one, [HANDLER], slots=1)
    two = await world.node("two")
    assert sorted((await _settled_shares(world, "plain", 1)).values()) == [0, 1]
    runs = [await node.trigger("work") for node in (one, two, one, two)]
    for _ in runs:
        arrival = await endpoint.next()
        assert endpoint.waiting == 0
        arrival.answer(200, 1)
    for run_id in runs:
        assert (await world.over(run_id))["status"] == "succeeded"


async def test_work_that_came_to_another_while_every_slot_was_filled_begins_with_the_first_that_is_free(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER], slots=2)
    two = await world.node("two")
    await _settled_shares(world, "plain", 2)
    for node in (one, two):
        await node.trigger("work")
    begun = {arrival.json["run_id"]: arrival for arrival in await endpoint.several(2)}
    third = await one.trigger("work")
    world.clock.advance(2 * SECOND)
    for node in (one, two):
        await node.turn()  # both look, and have no room
    theirs = await world.database.fetchval(
        "select t.run_id from tasks t join dispatchers d on d.id = t.dispatcher_id where d.name = $1", "two"
    )
    begun[theirs].answer(200, 1)
    assert (await endpoint.next()).json["run_id"] == third


async def _with_open_attempt(world: World) -> tuple[Node, Node, Endpoint, str, Arrival]:
    """Two dispatchers, and an attempt of the first."""
    one = await world.node("one", **MORTAL)
    endpoint = await world.endpoint(one, [HANDLER], slots=4)
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    two = await world.node("two", **MORTAL)  # only now: nobody else can have sent it
    await _settled_shares(world, "plain", 4)
    return one, two, endpoint, run_id, arrival


async def test_another_takes_over_after_the_lease(world: World) -> None:
    one, two, endpoint, run_id, first = await _with_open_attempt(world)
    await _live(world, 2)
    killed_at = world.now
    await world.crash(one)
    await _live(world, 11)
    assert (await world.task(run_id))["epoch"] == 1
    assert endpoint.waiting == 0
    await _live(world, 5)
    second = await endpoint.next()
    assert world.now - killed_at <= 17 * SECOND
    (lost,) = await world.attempts(run_id, 1)
    assert (lost["status"], lost["code"]) == ("lost", "attempt_lost")
    refused = await two.callback(first.json["token"], {"done": "late"}, expect=409)
    assert refused["code"] == "stale_attempt"
    second.answer(200, "second")
    over = await world.over(run_id)
    assert (over["output"], over["epoch"], over["app_retries"], over["infra_retries"]) == (b'"second"', 2, 0, 1)


async def test_the_dead_leave_no_slots_behind(world: World) -> None:
    one, _, endpoint, run_id, _ = await _with_open_attempt(world)
    await world.crash(one)
    await _live(world, 17)
    (await endpoint.next()).answer(200, 1)
    await world.over(run_id)
    assert await _settled_shares(world, "plain", 4) == {"two": 4}
    assert await world.database.fetchval("select count(*) from dispatchers") == 1


async def test_one_that_was_taken_for_dead_finds_its_answers_refused(world: World) -> None:
    """Frozen for longer than its lease, it goes on as if nothing had happened; nobody believes it, and it joins anew."""
    one, _, endpoint, run_id, first = await _with_open_attempt(world)
    world.nodes.remove(one)  # nothing of it moves, its connection stays
    for name in ("heartbeat", "claim", "reap", "slots"):
        await one.runtime.loops[name].stop()
    await _live(world, 17)
    second = await endpoint.next()
    first.answer(200, "from the frozen one")
    second.answer(200, "from the other")
    over = await world.over(run_id)
    assert (over["output"], over["epoch"]) == (b'"from the other"', 2)
    assert [row["status"] for row in await world.attempts(run_id, 2)] == ["lost", "succeeded"]
    before = one.runtime.membership.id
    await one.runtime.membership.heartbeat(world.now)
    assert one.runtime.membership.id != before
    world.nodes.append(one)


async def test_work_of_a_forgotten_dispatcher_is_found(world: World) -> None:
    """A commit that was on its way while its dispatcher was buried: the lease names a dispatcher nobody knows."""
    one = await world.node("one", **MORTAL)
    endpoint = await world.endpoint(one, [HANDLER], slots=4)
    await _settled_shares(world, "plain", 4)
    await one.turn("slots")  # who looks at its share from now on finds that it has none
    await world.database.execute("delete from dispatchers where name = 'one'")
    run_id = await one.trigger("work")
    await endpoint.next()
    await world.task(run_id, dispatcher_id=one.runtime.membership.id)
    two = await world.node("two", **MORTAL)
    await world.crash(one)
    await _live(world, 17)
    (await endpoint.next()).answer(200, 1)
    over = await world.over(run_id)
    assert (over["status"], over["epoch"]) == ("succeeded", 2)
    assert two in world.nodes


async def test_one_that_stops_in_order_lets_its_attempts_end(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    two = await world.node("two")
    world.nodes.remove(one)
    arrival.answer(200, 1)
    await one.runtime.stop(timedelta(seconds=5))
    await one.api.aclose()
    assert (await world.over(run_id))["status"] == "succeeded"
    assert await world.database.fetchval("select count(*) from dispatchers") == 1
    assert two.runtime.membership.id


async def test_one_that_stops_in_order_waits_for_what_is_being_written(world: World, one: Node) -> None:
    """Also where no attempt is open any more: what came of the last has yet to be in the database."""
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    deliveries = one.runtime.deliveries
    async with world.database.transaction() as connection:
        await connection.execute("select from tasks for update")
        arrival.answer(200, 1)

        async def held_up() -> bool:
            return not deliveries._tasks and await world.holds_up(connection)

        await until(held_up)
        drained = asyncio.ensure_future(deliveries.drain())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not drained.done()
    await drained
    assert await world.database.fetchval("select status from task_history where run_id = $1", run_id) == "succeeded"


async def test_one_that_stops_while_the_database_is_away_comes_to_its_end(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of its attempts cannot be written: another finds them open, as after a crash."""
    monkeypatch.setattr(dispatcher.app, "_LAST_WORDS", timedelta(0))
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    await endpoint.next()
    world.nodes.remove(one)
    await one.runtime.services.database.aclose()
    async with asyncio.timeout(30):
        await one.runtime.stop(timedelta(0))
    await one.api.aclose()
    assert (await world.task(run_id))["state"] == "running"


async def test_what_one_registers_the_other_runs_at_once(world: World, one: Node) -> None:
    two = await world.node("two")
    endpoint = await world.endpoint(one, [{"name": "work", "on_events": ["paper.*"]}])
    run_id = await two.trigger("work")
    (await endpoint.next()).answer(200, 1)
    await world.over(run_id)
    accepted = await two.call("POST", "/v1/events", {"type": "paper.low", "data": {}})
    assert len(accepted["runs"]) == 1
    (await endpoint.next()).answer(200, 1)


async def test_what_one_hears_of_before_it_has_slots_for_it_runs_once_it_has(world: World, one: Node) -> None:
    two = await world.node("two")
    heard, signals = asyncio.Event(), one.runtime.membership._signals
    ready = signals._handlers["ready"]

    def hear(arguments: list[str]) -> None:
        ready(arguments)
        heard.set()

    signals.on("ready", hear)
    await two.runtime.loops["slots"].stop()
    async with world.database.transaction() as connection:
        await connection.execute(LOCK_GRANTS)
        endpoint = await world.endpoint(one, [HANDLER])
        run_id = await two.trigger("work")
        await asyncio.wait_for(heard.wait(), 30)
        await one.turn("claim")
        assert endpoint.waiting == 0
    (await endpoint.next()).answer(200, 1)
    await world.over(run_id)


async def test_a_result_recorded_by_one_ends_the_wait_at_the_other(world: World, one: Node) -> None:
    two = await world.node("two")
    endpoint = await world.endpoint(one, [HANDLER])
    await _settled_shares(world, "plain", 100)
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    waiting = asyncio.create_task(two.call("GET", f"/v1/runs/{run_id}?wait=30s", expect=200))
    arrival.answer(200, {"n": 1})
    await world.over(run_id)
    document = await asyncio.wait_for(waiting, 30)
    assert (document["status"], document["output"]) == ("succeeded", {"n": 1})


@pytest.mark.parametrize("answers", ["accepted", "cut"])
async def test_what_goes_on_without_a_dispatcher_keeps_its_slot(world: World, one: Node, answers: str) -> None:
    endpoint = await world.endpoint(one, [HANDLER], slots=2)
    first, second, third = [await one.trigger("work") for _ in range(3)]
    held, other = await endpoint.next(), await endpoint.next()
    if answers == "accepted":
        held.answer(202, {"lease_ms": 60_000})
    else:
        held.cut()
    await world.task(held.json["run_id"], dispatcher_id=None)
    await one.turn("slots", "claim")
    assert endpoint.waiting == 0
    await one.callback(held.json["token"], {"done": 1})
    await one.turn("slots")
    (await endpoint.next()).answer(200, 3)
    other.answer(200, 2)
    for run_id in (first, second, third):
        assert (await world.over(run_id))["status"] == "succeeded"
