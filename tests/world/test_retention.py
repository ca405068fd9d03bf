"""History ends with its partitions, sooner for a tenant that wants it so; what lives is never touched."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.world.endpoint import Endpoint
from tests.world.following import everything, following, told
from tests.world.world import Node, World, until

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


SLOW = {
    "name": "slow",
    "kind": "workflow",
    "on_events": ["slow", "job"],
    "tasks": [{"name": "first", "retries": 1}, {"name": "last", "parents": ["first"], "wait_for": [{"sleep": "120h"}]}],
}
WORK = {"name": "work", "on_events": ["job", "short"], "execution_timeout": "23h"}
OF_SLOW = "select count(*) from {} where run_id = $1"


async def _begun(node: Node, endpoint: Endpoint) -> tuple[str, str]:
    """A run of `slow` whose first task failed once, and has said something; the run, and its event's stream."""
    event = await node.call("POST", "/v1/events", {"type": "slow", "data": {"n": 1}})
    (await endpoint.next()).answer(500, {"title": "no"})
    arrival = await endpoint.next()
    await node.callback(
        arrival.json["token"], {"events": [{"type": "log", "message": "line"}, {"type": "chunk", "seq": 0, "data": "piece"}]}
    )
    arrival.answer(200, {"n": 1})
    return event["runs"][0], event["stream_id"]


@pytest.mark.parametrize("tenant", [True, False], ids=["of the tenant", "of the server"])
async def test_what_a_run_that_lives_for_long_has_said_stays_until_it_ends(world: World, tenant: bool) -> None:
    node = await world.served_node(retention_days=30 if tenant else 2)
    endpoint = await world.endpoint(node, [SLOW, WORK])
    if tenant:
        await node.call("PUT", "/v1/retention", {"days": 2})
    run_id, stream_id = await _begun(node, endpoint)
    other = await node.call("POST", "/v1/events", {"type": "short", "data": {}})
    (await endpoint.next()).answer(200, None)
    url = node.runtime.services.settings.base_url()

    async def attempts() -> int | None:
        found = [a for task in (await node.call("GET", f"/v1/runs/{run_id}"))["tasks"] for a in task["attempts"]]
        return len(found) if len(found) >= 2 else None

    await until(attempts)
    await world.advance(timedelta(days=4))
    await node.turn("maintenance")
    document = await node.call("GET", f"/v1/runs/{run_id}/export")
    assert document["event"]["data"] == {"n": 1}
    assert [line["message"] for line in document["logs"]] == ["line"]
    assert [entry["payload"] for entry in document["stream"] if entry["kind"] == "data"] == ["piece"]
    assert len(document["run"]["tasks"][0]["attempts"]) == 2
    await node.call("GET", f"/v1/events/{other['event_id']}", expect=404)
    await world.advance(timedelta(days=1, hours=1))
    last = await endpoint.next()
    assert last.json["event"]["type"] == "slow"
    last.answer(200, None)
    await world.run_over(run_id)
    await node.turn("maintenance")  # it is kept for as long as its run is
    assert told(await everything(f"{url}/v1/streams/{stream_id}/subscribe")) == ["run:start", "piece", "run:stop"]
    await world.advance(timedelta(days=4))
    await node.turn("maintenance")
    await node.call("GET", f"/v1/runs/{run_id}", expect=404)
    for table in ("logs", "chunks", "attempts"):
        assert await world.database.fetchval(OF_SLOW.format(table), run_id) == 0
    assert await world.database.fetchval("select count(*) from events") == 0


async def test_a_stream_whose_pieces_are_no_longer_kept_is_read_to_its_end(world: World) -> None:
    node = await world.served_node()
    endpoint = await world.endpoint(node, [SLOW, WORK])
    run_id, stream_id = await _begun(node, endpoint)
    url = f"{node.runtime.services.settings.base_url()}/v1/runs/{run_id}/stream"
    await node.call("POST", f"/v1/runs/{run_id}/cancel", {})
    await world.run_over(run_id)
    assert told(await everything(url))[-1] == "run:cancel"
    await world.database.execute("delete from chunks where stream_id = $1", stream_id)
    assert await everything(url) == []


async def test_a_stream_goes_on_without_a_run_that_is_no_longer_kept(world: World) -> None:
    node = await world.served_node()
    endpoint = await world.endpoint(node, [SLOW, WORK])
    event = await node.call("POST", "/v1/events", {"type": "job", "data": {}})
    for _ in range(2):
        (await endpoint.next()).answer(200, None)
    by_name = {(await node.call("GET", f"/v1/runs/{run}"))["workflow"]: run for run in event["runs"]}
    short, live = by_name["work"], by_name["slow"]
    await world.run_over(short)
    url = f"{node.runtime.services.settings.base_url()}/v1/streams/{event['stream_id']}/subscribe"
    async with following(url) as stream:
        assert [(await anext(stream)).name for _ in range(3)].count("run:stop") == 1
        await world.database.execute("delete from run_history where id = $1", short)
    async with following(url) as stream:
        assert [(await anext(stream)).name for _ in range(2)] == ["run:start", "run:start"]
        await node.call("POST", f"/v1/runs/{live}/cancel", {})
        assert [one.name async for one in stream] == ["run:cancel"]


async def test_a_key_that_is_remembered_longer_than_its_run(world: World) -> None:
    node = await world.served_node(retention_days=2)
    endpoint = await world.endpoint(node, [WORK])
    body = {"workflow": "work", "idempotency_key": "k", "idempotency_ttl": "240h"}
    first = await node.call("POST", "/v1/runs", body)
    (await endpoint.next()).answer(200, None)
    await world.run_over(first["id"])
    await world.advance(timedelta(days=5))
    await node.turn("maintenance")
    again = await node.call("POST", "/v1/runs", body, expect=200)
    assert (again["id"], again["duplicate"]) == (first["id"], True)
    assert (await node.call("POST", "/v1/runs?wait=1s", body, expect=404))["code"] == "not_found"
