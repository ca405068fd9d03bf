"""A workflow is removed with what starts it; its history stays, and registering it again brings it back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.world.durable import answer, durable_endpoint, entry
from tests.world.endpoint import Endpoint
from tests.world.world import Node, World, until

WORK = {"name": "work", "on_events": ["job"], "on_crons": ["0 0 1 1 *"], "default_filters": [{"expression": "true", "scope": "s"}]}
OTHER = {"name": "other"}


@pytest.fixture
async def endpoint(world: World, one: Node) -> Endpoint:
    """Who does the work."""
    return await world.endpoint(one, [WORK, OTHER])


async def _ran(world: World, node: Node, endpoint: Endpoint) -> str:
    run_id = await node.trigger("work")
    (await endpoint.next()).answer(200, {"n": 1})
    await world.over(run_id)
    return run_id


async def test_what_starts_it_goes_and_its_history_stays(world: World, one: Node, endpoint: Endpoint) -> None:
    run_id = await _ran(world, one, endpoint)
    await one.call("POST", "/v1/schedules", {"workflow": "work", "in": "1h"})
    await one.call("POST", "/v1/crons", {"workflow": "work", "name": "own", "expression": "* * * * *"})
    await one.call("DELETE", "/v1/workflows/work", expect=204)
    for path in ("crons", "schedules", "filters"):
        assert (await one.call("GET", f"/v1/{path}"))["rows"] == []
    for path in ("workflows", "stats/queues"):
        assert [row.get("name", row.get("workflow")) for row in (await one.call("GET", f"/v1/{path}"))["rows"]] == ["other"]
    assert (await one.call("GET", "/v1/workflows/work", expect=404))["code"] == "unknown_workflow"
    assert (await one.call("DELETE", "/v1/workflows/work", expect=404))["code"] == "unknown_workflow"
    assert (await one.call("PATCH", "/v1/workflows/work", {"paused": True}, expect=404))["code"] == "unknown_workflow"
    assert (await one.call("POST", "/v1/runs", {"workflow": "work"}, expect=404))["code"] == "unknown_workflow"
    assert (await one.call("POST", f"/v1/runs/{run_id}/replay", {}, expect=404))["code"] == "unknown_workflow"
    assert (await one.call("POST", "/v1/events", {"type": "job", "data": {}, "scope": "s"}))["runs"] == []
    assert (await one.call("GET", f"/v1/runs/{run_id}"))["workflow"] == "work"
    assert [row["id"] for row in (await one.call("GET", "/v1/runs?workflow=work"))["rows"]] == [run_id]
    (entry,) = (await one.call("GET", "/v1/audit?action=workflow.delete"))["rows"]
    assert entry["target"] == "work"


async def test_registering_it_again_brings_it_back(world: World, one: Node, endpoint: Endpoint) -> None:
    run_id = await _ran(world, one, endpoint)
    await one.call("PATCH", "/v1/workflows/work", {"paused": True})
    await one.call("DELETE", "/v1/workflows/work")
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": [{**WORK, "body": "v1"}, {**OTHER, "body": "v1"}]})
    found = await one.call("GET", "/v1/workflows/work")
    assert (found["version"], found["paused"], found["endpoints"]) == (1, False, ["plain"])
    assert len((await one.call("GET", "/v1/crons"))["rows"]) == 1
    await _ran(world, one, endpoint)
    await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    (await endpoint.next()).answer(200, None)
    await world.run_over(run_id)


async def test_one_with_live_runs_is_refused(world: World, one: Node, endpoint: Endpoint) -> None:
    run_id = await one.trigger("work", run_at=(world.now + timedelta(days=1)).isoformat())
    refused = await one.call("DELETE", "/v1/workflows/work", expect=409)
    assert refused["code"] == "workflow_has_runs"
    assert "1 runs" in refused["detail"]
    assert "/v1/runs/cancel" in refused["hint"]
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {})
    await one.call("DELETE", "/v1/workflows/work", expect=204)


async def test_another_dispatcher_knows_at_once_that_it_is_gone(world: World, one: Node, endpoint: Endpoint) -> None:
    two = await world.node("two")
    run_id = await two.trigger("other")
    (await endpoint.next()).answer(200, None)
    await world.over(run_id)
    await one.call("DELETE", "/v1/workflows/other")
    assert (await two.call("POST", "/v1/runs", {"workflow": "other"}, expect=404))["code"] == "unknown_workflow"
    assert (await two.call("POST", "/v1/runs/replay", {"ids": [run_id]}))["matched"] == 1

    async def finished() -> list[tuple[int, int]] | None:
        rows = (await two.call("GET", "/v1/bulk?status=finished"))["rows"]
        return [(row["done"], row["skipped"]) for row in rows] or None

    assert await until(finished) == [(0, 1)]


async def test_a_replay_of_a_live_run_says_what_to_do(world: World, one: Node, endpoint: Endpoint) -> None:
    run_id = await one.trigger("other", run_at=(world.now + timedelta(days=1)).isoformat())
    refused = await one.call("POST", f"/v1/runs/{run_id}/replay", {}, expect=409)
    assert refused["code"] == "run_not_finished"
    assert f"/v1/runs/{run_id}/cancel" in refused["detail"]


async def test_a_durable_run_whose_workflow_is_gone_does_not_go_on(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "done", base=0, output=1)
    await world.run_over(run_id)
    await one.call("DELETE", "/v1/workflows/order")
    for path in ("replay", "reset"):
        assert (await one.call("POST", f"/v1/runs/{run_id}/{path}", {}, expect=404))["code"] == "unknown_workflow"
