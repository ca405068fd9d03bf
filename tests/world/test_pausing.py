"""Paused workflows take work in and hand none out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest

from dispatcher.store import pausing
from dispatcher.store.pages import Page
from tests.world.graph_runs import answer, finished, graph, look, settled
from tests.world.world import Node, World

HANDLER = {"name": "work", "schedule_timeout": "5m", "retries": 1, "backoff_factor": 10}


async def _pause(node: Node, **changes: object) -> None:
    await node.call("PATCH", "/v1/workflows/work", changes)


async def test_a_paused_workflow_hands_nothing_out_until_it_is_resumed(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER, {"name": "other"}])
    await _pause(one, paused=True)
    run_id = await one.trigger("work")
    await one.trigger("other")
    assert (await endpoint.next()).json["name"] == "other"
    await one.turn()
    assert endpoint.waiting == 0
    assert (await one.call("GET", f"/v1/runs/{run_id}"))["status"] == "queued"
    await _pause(one, paused=False)
    (await endpoint.next()).answer(200, {})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_waits_for_a_pause_to_end_outlives_its_schedule_timeout(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    await _pause(one, paused=True)
    run_id = await one.trigger("work")
    await world.advance(timedelta(days=2))
    assert (await world.task(run_id, state="queued"))["schedule_deadline"] is None
    await _pause(one, paused=False)
    arrival = await endpoint.next()
    arrival.answer(200, {})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_after_the_pause_the_whole_schedule_timeout_counts_again(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    await _pause(one, paused=True)
    run_id = await one.trigger("work")
    await world.advance(timedelta(hours=1))
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await _pause(one, paused=False)
    assert (await world.task(run_id))["schedule_deadline"] == world.now + timedelta(minutes=5)
    assert endpoint.waiting == 0


async def test_the_queue_ttl_bounds_how_long_a_task_waits(world: World, one: Node) -> None:
    await world.endpoint(one, [HANDLER])
    await _pause(one, paused=True, queue_ttl="10m")
    run_id = await one.trigger("work")
    await world.advance(timedelta(minutes=9))
    await world.task(run_id, state="queued")
    await world.advance(timedelta(minutes=2))
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("cancelled", "schedule_timeout")


@pytest.mark.parametrize("later", [False, True])
async def test_a_queue_ttl_shorter_than_the_schedule_timeout_bounds_it_too(world: World, one: Node, later: bool) -> None:
    await world.endpoint(one, [{**HANDLER, "schedule_timeout": "1h"}])
    run_id = await one.trigger("work", run_at=(world.now + timedelta(minutes=1)).isoformat()) if later else None
    await _pause(one, paused=True, queue_ttl="2m")
    run_id = run_id or await one.trigger("work")
    await world.advance(timedelta(minutes=1, seconds=50))
    assert (await world.task(run_id))["state"] in ("queued", "scheduled")
    await world.advance(timedelta(minutes=2))
    assert (await world.over(run_id))["error"]["code"] == "schedule_timeout"


@pytest.mark.parametrize("before", [{}, {"queue_ttl": "100h"}])
async def test_a_queue_ttl_set_later_bounds_those_that_were_spared(world: World, one: Node, before: dict[str, Any]) -> None:
    await world.endpoint(one, [HANDLER])
    await _pause(one, paused=True, **before)
    run_id = await one.trigger("work")
    await world.advance(timedelta(minutes=6))
    await world.task(run_id, state="queued")
    await _pause(one, queue_ttl="10m")
    await world.advance(timedelta(minutes=3))
    await world.task(run_id, state="queued")
    await world.advance(timedelta(minutes=2))
    assert (await world.over(run_id))["error"]["code"] == "schedule_timeout"


async def test_who_bounds_a_pause_leaves_what_was_resumed_and_what_has_begun(world: World, one: Node) -> None:
    await world.endpoint(one, [HANDLER, {"name": "other"}])
    await _pause(one, paused=True, queue_ttl="1m")
    run_id = await one.trigger("work")
    await world.database.execute("update tasks set durable = true, turn = 2, schedule_deadline = null where run_id = $1", run_id)
    ((tenant, workflow),) = await world.database.fetch("select tenant_id, id from workflows where name = 'work'")
    await pausing.bound(world.database, tenant, [workflow], Page(), 10)
    assert (await world.task(run_id))["schedule_deadline"] is None
    await world.database.execute("update tasks set turn = null where run_id = $1", run_id)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await _pause(one, paused=False)
    await pausing.bound(world.database, tenant, [workflow], Page(), 10)
    assert (await world.task(run_id))["schedule_deadline"] == world.now + timedelta(minutes=5)


async def test_what_waits_is_bounded_a_page_at_a_time(world: World, one: Node) -> None:
    await world.endpoint(one, [HANDLER, {"name": "other"}])
    await _pause(one, paused=True)
    runs = [await one.trigger(name) for name in ("work", "other", "work", "other", "work")]
    ((tenant, workflow),) = await world.database.fetch(
        "update workflows set queue_ttl_ms = 60000 where name = 'work' returning tenant_id, id"
    )
    seen, page = list[Page](), cast("Page | None", Page())
    while page is not None:
        seen.append(page)
        page = await pausing.bound(world.database, tenant, [workflow], page, 2)
    assert [one.of_tasks for one in seen] == [True] * 3 + [False] * 3  # two full ones and what is left, of the tasks and of the runs
    deadlines = [(await world.task(run_id))["schedule_deadline"] for run_id in runs[::2]]
    assert deadlines == [world.now + timedelta(minutes=1)] * 3


async def test_what_runs_when_a_workflow_is_paused_goes_on_and_its_retry_waits(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    await _pause(one, paused=True)
    arrival.answer(500)
    await world.task(run_id, state="scheduled")
    await world.advance(timedelta(hours=1))
    await world.task(run_id, state="queued")
    assert endpoint.waiting == 0
    await _pause(one, paused=False)
    (await endpoint.next()).answer(200, {})
    assert (await world.over(run_id))["epoch"] == 2


async def test_an_unknown_workflow_cannot_be_paused(one: Node) -> None:
    assert (await one.call("PATCH", "/v1/workflows/nobody", {"paused": True}, expect=404))["code"] == "unknown_workflow"
    refused = await one.call("PATCH", "/v1/workflows/nobody", {"queue_ttl": "soon"}, expect=400)
    assert refused["field"] == "queue_ttl"


async def test_a_durable_task_that_has_begun_gets_no_deadline_from_a_pause(world: World, one: Node) -> None:
    """It has something to lose: nobody gives it up because no endpoint takes it in time."""
    await world.endpoint(one, [HANDLER])
    await _pause(one, paused=True)
    run_id = await one.trigger("work")
    await world.task(run_id, state="queued")
    begun = "update tasks set durable = true, turn = 2, schedule_deadline = null where run_id = $1"
    await world.database.execute(begun, run_id)
    await _pause(one, paused=False)
    assert (await world.task(run_id))["schedule_deadline"] is None


async def test_who_still_thinks_a_workflow_is_paused_takes_no_deadline_away(world: World, one: Node) -> None:
    await world.endpoint(one, [HANDLER])
    await _pause(one, paused=True)
    run_id = await one.trigger("work")
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await _pause(one, paused=False)
    await pausing.postpone(world.database, [((1, run_id, 0), None)], world.now)
    assert (await world.task(run_id))["schedule_deadline"] == world.now + timedelta(minutes=5)


async def test_a_run_that_stands_in_line_waits_for_the_pause_to_end_too(world: World, one: Node) -> None:
    gate = {"expression": "'x'", "max_runs": 1, "limit_strategy": "GROUP_ROUND_ROBIN"}
    endpoint = await graph(world, one, {"name": "a"}, {"name": "b", "parents": ["a"]}, name="work", concurrency=[gate])
    endpoint.way = None
    first = await one.trigger("work")
    arrival = await endpoint.next()
    second = await one.trigger("work")
    await _pause(one, paused=True)
    arrival.answer(200, {})
    await settled(one, first, a="succeeded", b="queued")
    for _ in range(3):
        world.clock.advance(timedelta(minutes=4))
        await one.turn("timers", "gates", "graphs", "claim")
    assert (await look(one, second))["finished_at"] is None
    answer(endpoint)
    await _pause(one, paused=False)
    await one.turn("gates")
    assert (await finished(one, first))["status"] == (await finished(one, second))["status"] == "succeeded"


@pytest.mark.parametrize("timeout", ["1m", "1h"])
async def test_the_queue_ttl_bounds_how_long_a_run_stands_in_line(world: World, one: Node, timeout: str) -> None:
    gate = {"expression": "'x'", "max_runs": 1, "limit_strategy": "GROUP_ROUND_ROBIN"}
    endpoint = await graph(
        world,
        one,
        {"name": "a", "execution_timeout": "1h", "schedule_timeout": timeout},
        {"name": "b", "parents": ["a"]},
        name="work",
        concurrency=[gate],
    )
    endpoint.way = None
    await one.trigger("work")
    await endpoint.next()
    second = await one.trigger("work")
    await _pause(one, paused=True, queue_ttl="10m")
    world.clock.advance(timedelta(minutes=9))
    await one.turn("gates", "graphs")
    assert (await look(one, second))["finished_at"] is None
    world.clock.advance(timedelta(minutes=2))
    await one.turn("gates", "graphs")
    assert (await finished(one, second))["status"] == "cancelled"
