"""Rate limits and what happens beside them: nobody who is parked is forgotten, whoever holds a row, comes or ends at that moment."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from dispatcher.store import rate_limits
from dispatcher.store.statement import Statement
from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Endpoint
from tests.world.test_concurrency import MORTAL
from tests.world.test_rate_limits import MINUTE, SECOND, STATIC, limited, parked, put, window
from tests.world.world import Node, World, until

_WITH_ONE = {"dynamic_key": "input.key", "limit": 2, "duration": "MINUTE"}


async def used_up(world: World, node: Node, endpoint: Endpoint, workflow: str = "work", key: str = "api") -> None:
    """A limit of one unit a minute, whose unit is used."""
    await put(node, 1, key=key)
    run = await node.trigger(workflow)
    (await endpoint.next()).answer(200, 1)
    await world.over(run)


async def _waiting(world: World, one: Node) -> tuple[Endpoint, str]:
    """An endpoint, and a task of it that is parked on a limit which is used up."""
    endpoint = await world.endpoint(one, [limited(STATIC)])
    await used_up(world, one, endpoint)
    run = await one.trigger("work")
    await parked(world, 1)
    return endpoint, run


async def _comes(world: World, one: Node, endpoint: Endpoint, run: str) -> None:
    for _ in range(3):
        await window(world)
    assert endpoint.waiting == 1
    assert (await endpoint.next()).json["run_id"] == run


async def test_a_task_of_a_graph_that_ends_while_it_is_parked_leaves_other_limits_alone(world: World, one: Node) -> None:
    flow = {
        "name": "flow", "kind": "workflow", "tasks": [
            {"name": "a", "schedule_timeout": "10s", "rate_limits": [STATIC], "body": "v1"},
            {"name": "b", "execution_timeout": "1h", "body": "v1"},
        ],
    }  # fmt: skip
    other = limited({"static_key": "other"}, name="other")
    endpoint = await world.listen()
    handlers = [flow, limited(STATIC, body="v1"), {**other, "body": "v1"}]
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 10, "handlers": handlers})
    await used_up(world, one, endpoint)
    await used_up(world, one, endpoint, "other", "other")
    run = await one.trigger("flow")
    assert (await endpoint.next()).json["name"] == "flow:b"
    await parked(world, 1)
    waiting = await one.trigger("other")
    await parked(world, 2)
    await world.advance(20 * SECOND)
    assert await until(lambda: _status(world, run, 0)) == "cancelled"
    await parked(world, 1)
    await _comes(world, one, endpoint, waiting)


async def _status(world: World, run: str, node: int) -> object:
    return await world.database.fetchval("select status from tasks where run_id = $1 and node = $2", run, node)


async def _begun_and_parked(world: World, one: Node) -> tuple[Endpoint, str]:
    """A durable task that has slept, and whose attempt to go on has failed: the next one waits for units."""
    handler = entry("order", rate_limits=[_WITH_ONE], schedule_timeout="10h", execution_timeout="1h", retries=3)
    endpoint = await durable_endpoint(world, one, handler)
    other = await one.trigger("order", input={"key": "a"})
    answer(await endpoint.next(), "done", base=0, output=1)
    await world.over(other)
    run = await one.trigger("order", input={"key": "a"})
    answer(await endpoint.next(), "wait", base=0, ops=[pending("sleep", "nap#0", ms=1000)], wake="nap#0")
    await world.task(run, state="waiting")
    world.clock.advance(2 * SECOND)
    await one.turn("waits", "claim")
    (await endpoint.next()).answer(500, {"error": "boom"})
    await parked(world, 1)
    return endpoint, run


async def test_the_last_turn_of_a_cancelled_task_takes_no_units(world: World, one: Node) -> None:
    endpoint, run = await _begun_and_parked(world, one)
    await one.call("POST", f"/v1/runs/{run}/cancel", {})
    await one.turn("claim")
    assert (await endpoint.next()).json["run_id"] == run
    await parked(world, 0)


async def test_a_refill_takes_nobody_away_who_has_gone_on_otherwise(world: World, one: Node) -> None:
    endpoint, run = await _begun_and_parked(world, one)
    await one.runtime.loops["rates"].stop()
    world.clock.advance(MINUTE)
    await one.call("POST", f"/v1/runs/{run}/cancel", {})
    await one.turn("claim")
    assert (await endpoint.next()).json["run_id"] == run
    await one.runtime.services.rates.tick(world.now)
    await one.turn("claim")
    assert ((await world.task(run))["state"], endpoint.waiting) == ("running", 0)


async def test_who_is_locked_as_the_window_begins_gets_its_turn_a_moment_later(world: World, one: Node) -> None:
    endpoint, run = await _waiting(world, one)
    async with world.database.transaction() as conn:
        await conn.execute("select from tasks where run_id = $1 for update", run)
        await window(world)
        assert await world.database.fetchval("select refill_at - refilled_at from rate_limits") == timedelta(milliseconds=250)
    await window(world, SECOND)
    assert (await endpoint.next()).json["run_id"] == run


async def test_who_is_locked_behind_others_gets_what_they_leave(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({"static_key": "api", "units": "input.units"})])
    await put(one, 4)
    first = await one.trigger("work", input={"units": 4})
    (await endpoint.next()).answer(200, 1)
    await world.over(first)
    runs = [await one.trigger("work", input={"units": units}) for units in (1, 2, 4)]
    await parked(world, 3)
    async with world.database.transaction() as conn:
        await conn.execute("select from tasks where run_id = $1 for update", runs[1])
        await window(world)
        (await endpoint.next()).answer(200, 1)
        await world.over(runs[0])
        await window(world, SECOND)  # the next look finds it locked as well, and another that there is not enough for
    await window(world, SECOND)
    assert (await endpoint.next()).json["run_id"] == runs[1]
    await parked(world, 1)


async def test_a_limit_that_is_set_while_somebody_is_parked_on_it_forgets_nobody(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC)])
    await used_up(world, one, endpoint)
    async with world.database.transaction() as conn:
        await conn.execute("select from rate_limits for update")
        run = await one.trigger("work")  # it is leased, and to be parked as soon as the limit can be looked at
        await until(lambda: _held_up(world, 1))
        setting = asyncio.create_task(put(one, 1))
        await until(lambda: _held_up(world, 2))
    await setting
    await parked(world, 1)
    await _comes(world, one, endpoint, run)


async def test_a_refill_forgets_nobody_who_is_parked_as_it_begins(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a refill has seen before it had the limit to itself is not what there is."""
    endpoint = await world.endpoint(one, [limited(STATIC)])
    await used_up(world, one, endpoint)
    await one.runtime.loops["rates"].stop()
    await world.database.execute("update rate_limits set refill_at = $1, refilled_at = $1", world.now)  # whoever was parked has gone
    late = rate_limits.DUE.sql.replace("refill_at <= $1", "refill_at <= $1 and (select pg_advisory_xact_lock(77)) is not null")
    assert late != rate_limits.DUE.sql
    monkeypatch.setattr(rate_limits, "DUE", Statement(late, rate_limits.DUE.row))
    async with world.database.transaction() as conn:
        await conn.execute("select pg_advisory_xact_lock(77)")
        refilling = asyncio.create_task(rate_limits.refill(world.database, world.now, 100, 1_000))
        await until(lambda: world.holds_up(conn))
        run = await one.trigger("work")
        await parked(world, 1)
    assert await refilling == []
    monkeypatch.undo()
    one.runtime.loops["rates"].start()
    await _comes(world, one, endpoint, run)


async def test_who_has_been_forgotten_is_found_from_time_to_time(world: World, one: Node) -> None:
    endpoint, run = await _waiting(world, one)
    await world.database.execute("update rate_limits set refill_at = null")
    await window(world)
    assert endpoint.waiting == 0
    await one.turn("maintenance")
    await _comes(world, one, endpoint, run)


async def _held_up(world: World, count: int) -> bool:
    sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return bool(await world.database.fetchval(sql) == count)


async def test_what_waits_for_units_while_its_dispatcher_is_taken_for_dead_is_not_sent(world: World) -> None:
    one = await world.node("one", **MORTAL)
    endpoint = await world.endpoint(one, [limited(STATIC, idempotent=True)])
    await put(one, 100)
    await one.turn("slots")
    before = one.runtime.membership.id
    async with world.database.transaction() as conn:
        await conn.execute("select from rate_limits for update")
        run = await one.trigger("work")
        await world.task(run, state="running")
        await until(lambda: world.holds_up(conn))
        world.clock.advance(MINUTE)
        await one.turn("heartbeat")
        assert one.runtime.membership.id != before
    await one.runtime.services.rates.drain()
    assert endpoint.seen == []
    for _ in range(9):  # until its earlier self has been silent for a lease
        world.clock.advance(2 * SECOND)
        await one.turn("heartbeat", "reap", "slots")
    await one.turn("timers", "claim")
    assert [(await endpoint.next()).json["attempt"], len(endpoint.seen)] == [2, 1]
    assert [row["status"] for row in await world.attempts(run, 1)] == ["lost"]
    assert (one.runtime.capacity.total, list(one.runtime.capacity.in_use.values())) == (1, [1])
