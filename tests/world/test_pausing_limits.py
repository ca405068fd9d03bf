"""A paused workflow keeps no places of limits that others share, and stands in nobody's way; resumed, it is where it was in line."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.store import asides, gates
from dispatcher.store.asides import Aside, Moved
from tests.world.endpoint import Arrival, Endpoint
from tests.world.graph_runs import graph
from tests.world.test_concurrency import counts, limited, quiet, serve
from tests.world.world import Node, World, until

SECOND = timedelta(seconds=1)
SHARED = {"name": "shared", "max_runs": 1}


async def pause(node: Node, workflow: str = "work", **changes: object) -> None:
    await node.call("PATCH", f"/v1/workflows/{workflow}", changes or {"paused": True})
    await node.turn("asides", "gates", "claim")


async def resume(node: Node, workflow: str = "work") -> None:
    await pause(node, workflow, paused=False)


async def opened(world: World, node: Node) -> None:
    """Wait until nothing is aside any more, and nobody is asked to step aside."""

    async def nobody() -> bool:
        await node.turn("asides", "gates")
        return not await world.database.fetchval("select count(*) from workflows where aside is not null")

    await until(nobody)


async def is_aside(world: World, run_id: str) -> bool:
    row = await world.task(run_id)
    return (row["state"], row["gates_held"], row["gate_wait"], row["parked_on"]) == ("gated", 0, None, None)


async def test_what_comes_for_a_paused_workflow_takes_no_place_and_stands_in_nobodys_way(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")])
    await pause(one)
    waiting = [await one.trigger("work") for _ in range(3)]
    assert [await is_aside(world, run_id) for run_id in waiting] == [True] * 3
    assert await counts(world) == (0, 0)
    others = [await one.trigger("other") for _ in range(2)]
    assert await serve(endpoint, others) == others
    await resume(one)
    assert await serve(endpoint, waiting) == waiting
    await quiet(world)


async def test_what_is_queued_gives_its_place_back_when_its_workflow_is_paused(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")])
    await one.call("PATCH", "/v1/endpoints/plain", {"slots": 1})
    await one.turn("slots")
    blocker = await one.trigger("other")
    first = await endpoint.next()
    waiting = [await one.trigger("work") for _ in range(2)]
    third = await one.trigger("other")
    first.answer(200, 1)
    await world.over(blocker)

    async def passed() -> bool:
        return bool((await world.task(waiting[0]))["state"] in ("queued", "running"))

    await until(passed)
    running = await endpoint.next()
    assert running.json["run_id"] == waiting[0]
    await pause(one)
    assert await is_aside(world, waiting[1])
    running.answer(200, 1)  # what is running keeps its place until it ends
    assert await serve(endpoint, [third]) == [third]
    await resume(one)
    assert await serve(endpoint, waiting[1:]) == waiting[1:]
    await quiet(world)


async def _queued_with_a_place(world: World, node: Node, **more: Any) -> tuple[Endpoint, str, Arrival]:
    """An endpoint, a run that holds the only place of the limit and waits for the endpoint's only slot, and the attempt that fills it."""
    endpoint = await world.endpoint(node, [limited(SHARED, **more), limited(SHARED, name="other"), {"name": "free"}], slots=1)
    await node.trigger("free")
    filling = await endpoint.next()
    run_id = await node.trigger("work")
    await world.task(run_id, state="queued")
    assert await counts(world) == (1, 0)
    return endpoint, run_id, filling


async def test_a_place_held_in_the_queue_is_free_when_its_workflow_is_paused(world: World, one: Node) -> None:
    endpoint, run_id, filling = await _queued_with_a_place(world, one)
    other = await one.trigger("other")
    assert await counts(world) == (1, 1)
    await pause(one)
    assert await is_aside(world, run_id)
    await world.task(other, state="queued")
    filling.answer(200, 1)
    assert await serve(endpoint, [other]) == [other]
    await resume(one)
    assert await serve(endpoint, [run_id]) == [run_id]
    await quiet(world)


async def test_the_same_where_every_endpoint_that_serves_it_is_paused(world: World, one: Node) -> None:
    elsewhere = await world.endpoint(one, [limited(SHARED, name="other")], name="elsewhere")
    endpoint, run_id, filling = await _queued_with_a_place(world, one)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await one.turn("asides", "gates", "claim")
    assert await is_aside(world, run_id)
    other = await one.trigger("other")
    assert await serve(elsewhere, [other]) == [other]
    filling.answer(200, 1)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    assert await serve(endpoint, [run_id]) == [run_id]
    await quiet(world)


@pytest.mark.parametrize("paused", [True, False])
async def test_the_same_where_no_endpoint_serves_it_any_more(world: World, one: Node, paused: bool) -> None:
    elsewhere = await world.endpoint(one, [limited(SHARED, name="other")], name="elsewhere")
    endpoint, run_id, filling = await _queued_with_a_place(world, one)
    if paused:
        await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
        await one.turn("asides", "gates", "claim")
    await one.call("DELETE", "/v1/endpoints/plain?force=true")
    await one.turn("asides", "gates", "claim")
    assert await is_aside(world, run_id)
    shown = await one.call("GET", f"/v1/runs/{run_id}")
    assert [reason["message"] for reason in shown["tasks"][0]["waiting_for"]] == ["no endpoint serves this workflow any more"]
    later, other = await one.trigger("work"), await one.trigger("other")
    assert await serve(elsewhere, [other]) == [other]
    filling.answer(200, 1)
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": [{"body": "v1", **limited(SHARED)}]})
    assert await serve(endpoint, [run_id, later]) == [run_id, later]
    await quiet(world)


async def test_what_no_endpoint_serves_ends_at_its_schedule_timeout(world: World, one: Node) -> None:
    _, run_id, _ = await _queued_with_a_place(world, one)
    await one.call("DELETE", "/v1/endpoints/plain?force=true")
    await one.turn("asides", "gates", "claim")
    await world.advance(timedelta(hours=1))
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("cancelled", "schedule_timeout")
    assert await counts(world) == (0, 0)


async def test_where_another_endpoint_serves_it_too_nothing_changes(world: World, one: Node) -> None:
    second = await world.endpoint(one, [limited(SHARED), {"name": "there"}], name="second", slots=1)
    await one.trigger("there")
    there = await second.next()
    _, run_id, _ = await _queued_with_a_place(world, one)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await one.turn("asides", "gates", "claim")
    assert (await world.task(run_id))["state"] == "queued"
    assert await counts(world) == (1, 0)
    there.answer(200, 1)
    assert await serve(second, [run_id]) == [run_id]


async def test_an_endpoint_that_comes_while_the_others_are_paused_lets_them_go_on(world: World, one: Node) -> None:
    _, run_id, _ = await _queued_with_a_place(world, one)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await one.turn("asides")
    assert await is_aside(world, run_id)
    second = await world.endpoint(one, [limited(SHARED)], name="second")
    assert await serve(second, [run_id]) == [run_id]


async def test_an_open_circuit_sets_nothing_aside(world: World, one: Node) -> None:
    _, run_id, _ = await _queued_with_a_place(world, one)
    await world.database.execute("update endpoints set circuit = 'open', circuit_since = $1", world.now)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    await one.turn("asides")
    assert (await world.task(run_id))["state"] == "queued"
    assert await counts(world) == (1, 0)


async def test_groups_of_its_own_are_left_as_they_are(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({"expression": "input.key", "max_runs": 1})])
    await pause(one)
    runs = [await one.trigger("work", input={"key": "a"}) for _ in range(2)]
    assert await counts(world) == (1, 1)
    await resume(one)
    assert await serve(endpoint, runs) == runs


async def test_a_retry_takes_no_place_while_its_workflow_is_paused(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(SHARED, retries=2, idempotent=True), limited(SHARED, name="other")])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    await pause(one)
    assert await counts(world) == (1, 0)
    arrival.answer(500, {"error": {"message": "no"}}, task_retry="true")
    await world.task(run_id, epoch=1, dispatcher_id=None)
    await world.advance(timedelta(hours=1))
    assert await is_aside(world, run_id)
    other = await one.trigger("other")
    assert await serve(endpoint, [other]) == [other]
    await resume(one)
    assert await serve(endpoint, [run_id]) == [run_id]
    await quiet(world)


async def test_what_waits_for_units_gives_its_place_back(world: World, one: Node) -> None:
    await one.call("PUT", "/v1/rate-limits/model", {"limit": 1, "duration": "minute"})
    rates: dict[str, Any] = {"rate_limits": [{"static_key": "model"}]}
    endpoint = await world.endpoint(one, [limited(SHARED, **rates), limited(SHARED, name="other"), {"name": "free", **rates}])
    await one.trigger("free")
    (await endpoint.next()).answer(200, 1)
    run_id = await one.trigger("work")

    async def parked() -> bool:
        return (await world.task(run_id))["parked_on"] is not None

    await until(parked)
    assert await counts(world) == (1, 0)
    await pause(one)
    assert await is_aside(world, run_id)
    await resume(one)
    await until(parked)
    await world.advance(timedelta(minutes=1))
    await one.turn("rates", "gates", "claim")
    assert await serve(endpoint, [run_id]) == [run_id]
    await quiet(world)


async def test_what_took_its_place_as_its_workflow_was_paused_gives_it_back_a_moment_later(world: World, one: Node) -> None:
    """A statement that began before the pause may end behind the first look."""
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")])
    await pause(one)
    run_id = await one.trigger("work")
    await world.database.execute("alter table tasks disable trigger tasks_gated")
    await world.database.execute("update tasks set state = 'queued', gates_held = 1 where run_id = $1", run_id)
    await world.database.execute("alter table tasks enable trigger tasks_gated")
    assert await counts(world) == (1, 0)
    other = await one.trigger("other")
    world.clock.advance(SECOND)
    await one.turn("asides", "gates", "claim")
    assert await is_aside(world, run_id)
    assert await serve(endpoint, [other]) == [other]


async def test_who_is_set_aside_as_its_workflow_opens_is_not_forgotten(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(SHARED)])
    await pause(one)
    run_id = await one.trigger("work")
    assert await is_aside(world, run_id)
    await world.database.execute("update workflows set aside = null, paused_at = null where name = 'work'")
    await world.database.execute("update tenants set registry_version = registry_version + 1")
    await one.turn("registry", "asides", "gates", "claim")
    assert await serve(endpoint, [run_id]) == [run_id]
    await quiet(world)


async def test_what_a_dispatcher_of_a_former_release_paused_is_found_by_housekeeping(world: World, one: Node) -> None:
    _, run_id, _ = await _queued_with_a_place(world, one)
    await world.database.execute("update workflows set paused_at = $1 where name = 'work'", world.now)
    await one.turn("asides")
    assert (await world.task(run_id))["state"] == "queued"
    await one.turn("maintenance", "asides")
    assert await is_aside(world, run_id)


async def test_a_backlog_comes_back_in_pages_in_its_order_and_who_comes_then_is_behind_it(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.asides._PAGE", 2)
    endpoint = await world.endpoint(one, [limited(SHARED)])
    await pause(one)
    runs = []
    for n in (4, 2, 0, 3, 1):
        runs.append((n, await one.trigger("work")))
        await world.database.execute(
            "update tasks set arrived_at = arrived_at + $2 where run_id = $1", runs[-1][1], n * timedelta(milliseconds=1)
        )
    ordered = [run_id for _, run_id in sorted(runs)]
    loop = one.runtime.loops["asides"]
    await loop.stop()  # while they come back
    world.clock.advance(SECOND)
    await one.call("PATCH", "/v1/workflows/work", {"paused": False})
    ordered.append(await one.trigger("work"))
    assert await is_aside(world, ordered[-1])
    loop.start()
    assert await serve(endpoint, ordered) == ordered
    await opened(world, one)
    await quiet(world)


async def test_a_run_of_a_graph_is_passed_over_while_its_workflow_is_paused(world: World, one: Node) -> None:
    await graph(world, one, {"name": "a"}, {"name": "b", "parents": ["a"]}, concurrency=[SHARED])
    endpoint = await world.endpoint(one, [limited(SHARED, name="other")])
    held = await one.trigger("other")
    arrival = await endpoint.next()
    standing = await one.trigger("flow")
    assert await counts(world) == (1, 1)
    await pause(one, "flow")
    assert await counts(world) == (1, 0)
    later = await one.trigger("flow", run_at=(world.now + SECOND).isoformat())
    coming = await one.trigger("flow")
    others = [await one.trigger("other") for _ in range(2)]
    arrival.answer(200, 1)
    assert await serve(endpoint, others) == others
    world.clock.advance(2 * SECOND)
    await one.turn("gates")
    assert await counts(world) == (0, 0)
    shown = await one.call("GET", f"/v1/runs/{standing}")
    assert [reason["kind"] for reason in shown["waiting_for"]] == ["paused"]
    (queue,) = [row for row in (await one.call("GET", "/v1/stats/queues"))["rows"] if row["workflow"] == "flow"]
    assert queue["gated"] == 3
    await resume(one, "flow")
    for run_id in (standing, coming, later):
        assert (await world.run_over(run_id))["status"] == "succeeded"
    assert held
    await quiet(world)


async def test_runs_of_a_graph_that_are_aside_wait_as_long_as_the_pause_says(world: World, one: Node) -> None:
    await graph(world, one, {"name": "a", "schedule_timeout": "10s"}, concurrency=[SHARED])
    await pause(one, "flow", paused=True, queue_ttl="1m")
    run_id = await one.trigger("flow")
    await world.advance(timedelta(seconds=50))
    await one.turn("gates")
    assert await world.database.fetchval("select count(*) from runs where cancel_reason is null") == 1
    await world.advance(timedelta(seconds=20))
    await one.turn("gates", "graphs")
    assert (await world.run_over(run_id))["status"] == "cancelled"


async def test_tasks_that_are_aside_wait_as_long_as_the_pause_says(world: World, one: Node) -> None:
    await world.endpoint(one, [limited(SHARED)])
    await pause(one, paused=True, queue_ttl="10m")
    run_id = await one.trigger("work")
    await world.advance(timedelta(minutes=9))
    assert await is_aside(world, run_id)
    await world.advance(timedelta(minutes=2))
    assert (await world.over(run_id))["error"]["code"] == "schedule_timeout"


async def test_who_is_aside_can_be_cancelled(world: World, one: Node) -> None:
    await graph(world, one, {"name": "a"}, concurrency=[SHARED])
    await world.endpoint(one, [limited(SHARED)])
    for workflow in ("work", "flow"):
        await pause(one, workflow)
        run_id = await one.trigger(workflow)
        await one.call("POST", f"/v1/runs/{run_id}/cancel", {})
        assert (await world.run_over(run_id))["status"] == "cancelled"
    await quiet(world)


@pytest.mark.parametrize("strategy", ["CANCEL_IN_PROGRESS", "CANCEL_NEWEST"])
async def test_what_is_paused_neither_sends_others_away_nor_is_sent_away(world: World, one: Node, strategy: str) -> None:
    shared = {**SHARED, "limit_strategy": strategy}
    endpoint = await world.endpoint(one, [limited(shared), limited(shared, name="other")])
    await pause(one)
    aside = await one.trigger("work")
    world.clock.advance(SECOND)
    other = await one.trigger("other")
    arrival = await endpoint.next()
    world.clock.advance(SECOND)
    second = await one.trigger("work")
    await one.turn("gates", "cancels")
    assert [await is_aside(world, run_id) for run_id in (aside, second)] == [True, True]
    assert not arrival.hung_up.is_set()
    await resume(one)
    await opened(world, one)
    if strategy == "CANCEL_IN_PROGRESS":  # the last that came is kept, and that is one that was paused
        assert {(await world.over(run_id))["status"] for run_id in (aside, other)} == {"cancelled"}
        assert await serve(endpoint, [second]) == [second]
    else:  # who came first has no place, and one is taken
        assert (await world.over(second))["status"] == "cancelled"
        arrival.answer(200, 1)
        assert await serve(endpoint, [aside]) == [aside]
    await quiet(world)


async def test_why_it_does_not_run_is_said(world: World, one: Node) -> None:
    await world.endpoint(one, [limited(SHARED)])
    await pause(one)
    run_id = await one.trigger("work")

    async def why() -> list[tuple[str, str]]:
        shown = await one.call("GET", f"/v1/runs/{run_id}")
        return [(reason["kind"], reason["message"]) for reason in shown["tasks"][0]["waiting_for"]]

    assert await why() == [("paused", "its workflow is paused: nothing of it starts until it is resumed")]
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await resume(one)
    assert await why() == [("endpoint", "plain: it is paused")]


async def test_counts_are_those_of_the_rows_whatever_is_paused(world: World, one: Node) -> None:
    _, run_id, _ = await _queued_with_a_place(world, one)
    standing = await one.trigger("work")
    await pause(one)
    assert await gates.audit(world.database) == []
    await resume(one)
    await world.task(run_id, state="queued")
    assert (await world.task(standing))["gate_wait"] is not None
    assert await gates.audit(world.database) == []


async def test_who_stands_in_line_as_its_workflow_is_paused_holds_up_nobody_behind_it(world: World, one: Node) -> None:
    """Whoever lets others through passes over those that have not been set aside yet, runs of graphs as well."""
    await graph(world, one, {"name": "a"}, concurrency=[SHARED])
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")])
    await one.trigger("other")
    arrival = await endpoint.next()
    standing = [await one.trigger(workflow) for workflow in ("work", "flow", "work")]
    behind = await one.trigger("other")
    assert await counts(world) == (1, 4)
    await one.runtime.loops["asides"].stop()
    for workflow in ("work", "flow"):
        await one.call("PATCH", f"/v1/workflows/{workflow}", {"paused": True})
    assert await counts(world) == (1, 4)
    arrival.answer(200, 1)
    assert await serve(endpoint, [behind]) == [behind]
    assert await gates.audit(world.database) == []
    one.runtime.loops["asides"].start()
    await resume(one, "flow")
    assert (await world.run_over(standing[1]))["status"] == "succeeded"
    await resume(one)
    assert await serve(endpoint, standing[::2]) == standing[::2]
    await quiet(world)


async def test_where_a_workflow_is_resumed_before_all_of_it_was_aside_nobody_overtakes(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.asides._PAGE", 2)
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")])
    await one.trigger("other")
    arrival = await endpoint.next()
    runs = [await one.trigger("work") for _ in range(5)]
    loop = one.runtime.loops["asides"]
    await loop.stop()
    await one.call("PATCH", "/v1/workflows/work", {"paused": True})
    ((tenant, workflow),) = await world.database.fetch("select tenant_id, id from workflows where name = 'work'")
    moved = await asides.set_aside(world.database, Aside(tenant, workflow, "closed", world.now), 2)
    assert moved == Moved(True, 2)
    await one.call("PATCH", "/v1/workflows/work", {"paused": False})
    assert await world.database.fetchval("select aside from workflows where name = 'work'") == "clearing"
    loop.start()
    await opened(world, one)
    arrival.answer(200, 1)
    assert await serve(endpoint, runs) == runs
    await quiet(world)


async def test_a_task_of_a_graph_under_way_takes_no_place_while_its_workflow_is_paused(world: World, one: Node) -> None:
    tasks = [{"name": "a"}, {"name": "b", "parents": ["a"], "concurrency": [SHARED]}]
    flow = await world.endpoint(one, [{"name": "flow", "kind": "workflow", "tasks": tasks}], name="flow")
    endpoint = await world.endpoint(one, [limited(SHARED, name="other")])
    run_id = await one.trigger("flow")
    first = await flow.next()
    await pause(one, "flow")
    first.answer(200, 1)

    async def came() -> bool:
        return bool(await world.database.fetchval("select count(*) from tasks where run_id = $1 and node = 1 and state = 'gated'", run_id))

    await until(came)
    assert await counts(world) == (0, 0)
    other = await one.trigger("other")
    assert await serve(endpoint, [other]) == [other]
    await resume(one, "flow")
    assert await serve(flow, [run_id]) == [run_id]
    await quiet(world)


async def test_what_is_replayed_while_its_workflow_is_paused_is_aside(world: World, one: Node) -> None:
    await graph(world, one, {"name": "a"}, concurrency=[SHARED])
    endpoint = await world.endpoint(one, [limited(SHARED)])
    runs = [await one.trigger("flow"), await one.trigger("work")]
    assert await serve(endpoint, runs[1:]) == runs[1:]
    for run_id in runs:
        await world.run_over(run_id)
    for workflow in ("work", "flow"):
        await pause(one, workflow)
    for run_id in runs:
        await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    assert await counts(world) == (0, 0)
    for workflow in ("work", "flow"):
        await resume(one, workflow)
    assert await serve(endpoint, runs[1:]) == runs[1:]
    assert (await world.run_over(runs[0]))["status"] == "succeeded"
    await quiet(world)
