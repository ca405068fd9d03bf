"""History ends with its partitions, sooner for a tenant that wants it so; what lives is never touched."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.world.endpoint import Endpoint
from tests.world.world import Node, World

TABLES = ("run_history", "task_history", "attempts", "logs", "chunks", "events")


@pytest.fixture
async def endpoint(world: World, one: Node) -> Endpoint:
    """Who does the work."""
    return await world.endpoint(one, [{"name": "work", "on_events": ["job"], "execution_timeout": "23h"}])


async def _worked(world: World, node: Node, endpoint: Endpoint) -> str:
    event = await node.call("POST", "/v1/events", {"type": "job", "data": {}})
    arrival = await endpoint.next()
    said = [{"type": "log", "message": "line"}, {"type": "chunk", "seq": 0, "data": "piece"}]
    await node.callback(arrival.json["token"], {"events": said})
    arrival.answer(200, None)
    await world.over(event["runs"][0])
    return str(event["runs"][0])


async def _counts(world: World) -> dict[str, int]:
    return {table: await world.database.fetchval(f"select count(*) from {table}") for table in TABLES}


async def test_a_tenants_history_is_deleted_when_it_wants_less(world: World, one: Node, endpoint: Endpoint) -> None:
    old = await _worked(world, one, endpoint)
    await world.advance(timedelta(days=5))
    new = await _worked(world, one, endpoint)
    both = await _counts(world)
    await one.turn("maintenance")
    assert await _counts(world) == both
    assert await one.call("PUT", "/v1/retention", {"days": 3}) == {"days": 3, "effective_days": 3}
    await one.turn("maintenance")
    assert {table: count * 2 for table, count in (await _counts(world)).items()} == both
    await one.call("GET", f"/v1/runs/{old}", expect=404)
    assert (await one.call("GET", f"/v1/runs/{new}"))["status"] == "succeeded"


async def test_what_belongs_to_a_live_run_stays(world: World, one: Node, endpoint: Endpoint) -> None:
    await one.call("PUT", "/v1/retention", {"days": 1})
    run_id = await one.trigger("work", run_at=(world.now + timedelta(days=9)).isoformat())
    columns = "tenant_id, run_id, node, attempt, at, level, message"
    await world.database.execute(f"insert into logs ({columns}) select tenant_id, id, 0, 1, created_at, 'info', 'x' from runs")
    await world.advance(timedelta(days=5))
    await one.turn("maintenance")
    assert (await one.call("GET", f"/v1/runs/{run_id}"))["status"] == "queued"
    assert len((await one.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]) == 1


async def test_the_servers_own_retention_drops_partitions(world: World, one: Node, endpoint: Endpoint) -> None:
    await _worked(world, one, endpoint)
    live = await one.trigger("work", run_at=(world.now + timedelta(days=60)).isoformat())
    await world.advance(timedelta(days=40))
    await one.turn("maintenance")
    assert set((await _counts(world)).values()) == {0}
    assert await world.database.fetchval("select count(*) from streams") == 0
    assert (await one.call("GET", f"/v1/runs/{live}"))["status"] == "queued"


async def test_how_long_a_tenant_may_keep(one: Node) -> None:
    assert await one.call("GET", "/v1/retention") == {"days": None, "effective_days": 30}
    for bad in ({"days": 31}, {"days": 0}, {"days": "x"}, {}, {"days": 1, "weeks": 2}):
        await one.call("PUT", "/v1/retention", bad, expect=400)
    await one.call("PUT", "/v1/retention", {"days": 30})
    assert await one.call("PUT", "/v1/retention", {"days": None}) == {"days": None, "effective_days": 30}
