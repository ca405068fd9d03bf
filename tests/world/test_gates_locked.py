"""Gates and the locks of others: nobody is forgotten because a row was held, or a task came, while the gate was looked at."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.runtime import gates as passing
from dispatcher.store import gates
from tests.world.test_concurrency import GRR, counts, limited, quiet, serve, settle, trigger
from tests.world.world import Node, World


async def test_who_was_locked_when_the_place_became_free_gets_it_all_the_same(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    first, second = await trigger(one, "a"), await trigger(one, "a")
    arrival = await endpoint.next()
    await settle(one)
    async with world.database.transaction() as conn:
        await conn.execute("select from tasks where run_id = $1 for update", second)
        arrival.answer(200, 1)
        await world.over(first)
        await settle(one)
        assert await counts(world) == (0, 1)
    await settle(one)
    assert await serve(endpoint, [second]) == [second]
    await quiet(world)


async def test_who_lets_others_through_waits_for_no_gate_that_somebody_else_holds(world: World, one: Node) -> None:
    """Others take gates in the order of ids, and a chain has another: whoever waited here could be waited for."""
    second = {"expression": "input.other", "max_runs": 5}
    endpoint = await world.endpoint(one, [limited(GRR, second)])
    runs = [await trigger(one, "a", also={"other": "x"}) for _ in range(2)]
    arrival = await endpoint.next()
    await settle(one)
    async with world.database.transaction() as conn:
        await conn.execute("update gates set most = 2, wake = true where key = 'a'")
    async with world.database.transaction() as conn:
        await conn.execute("select from gates where key = 'x' for update")
        waking = await gates.waking(world.database, 10)
        async with asyncio.timeout(30):
            passed = await gates.admit(world.database, waking, world.now, 10)
        assert [row.run_id for row in passed if row.gate is None] == []
    await settle(one)
    arrival.answer(200, 1)
    assert await serve(endpoint, runs[1:]) == runs[1:]
    await quiet(world)


async def test_a_gate_that_is_awake_all_the_time_keeps_nobody_from_a_look(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "_SET", 1)
    endpoint = await world.endpoint(one, [limited(GRR)])
    first = [await trigger(one, key) for key in "abc"]
    second = [await trigger(one, key) for key in "abc"]
    arrivals = await endpoint.several(3)
    await settle(one)
    await one.runtime.loops["gates"].stop()
    for arrival in arrivals:
        arrival.answer(200, 1)
    for run_id in first:
        await world.over(run_id)
    for _ in range(3):
        await world.database.execute("update gates set wake = true where id = (select id from gates order by id limit 1)")
        await one.runtime.services.gates.tick(world.now)
    for arrival in await endpoint.several(3):
        arrival.answer(200, 1)
    for run_id in second:
        await world.over(run_id)
    one.runtime.loops["gates"].start()
    await quiet(world)
