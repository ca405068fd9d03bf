"""What no endpoint may take keeps no places of limits from others; once one may take it, it is where it was in line."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.engine.definitions.placement import parse_desired_labels
from dispatcher.engine.placement import Requirement
from dispatcher.store import gates, registry
from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Endpoint
from tests.world.test_concurrency import MORTAL, counts, limited, quiet, serve
from tests.world.world import Node, World, until

SECOND = timedelta(seconds=1)
SHARED = {"name": "shared", "max_runs": 1}
GPU: dict[str, Any] = {"labels": {"gpu": {"value": True, "required": True}}}


async def look(node: Node) -> None:
    """Let everybody find what there is to set aside, to let back and to let through; also those that have just been let through."""
    for _ in range(2):
        await node.turn("registry", "asides", "gates", "claim")


async def patch(node: Node, name: str = "plain", **changes: Any) -> None:
    await node.call("PATCH", f"/v1/endpoints/{name}", changes)
    await look(node)


async def is_aside(world: World, run_id: str) -> bool:
    row = await world.task(run_id)
    return row["unschedulable"] and (row["state"], row["gates_held"], row["gate_wait"], row["parked_on"]) == ("gated", 0, None, None)


async def opened(world: World, node: Node) -> None:
    """Once what was aside is back in line, and nobody is asked to step aside."""

    async def nothing() -> bool:
        await node.turn("asides", "gates", "claim")
        return not await world.database.fetchval("select count(*) from unschedulable")

    await until(nothing)


async def why(node: Node, run_id: str) -> list[tuple[str, str]]:
    shown = await node.call("GET", f"/v1/runs/{run_id}")
    return [(reason["kind"], reason["message"]) for reason in shown["tasks"][0]["waiting_for"]]


async def lone(world: World, node: Node, **more: Any) -> tuple[Endpoint, str]:
    """An endpoint that serves two workflows of one limit, and a run of one of them that asks for a label it lacks."""
    endpoint = await world.endpoint(node, [limited(SHARED, **more), limited(SHARED, name="other")])
    run_id = await node.trigger("work", **GPU)
    await look(node)
    return endpoint, run_id


async def two(world: World, node: Node, *handlers: dict[str, Any]) -> dict[str, Endpoint]:
    """Two endpoints that serve the same."""
    return {name: await world.endpoint(node, handlers, name=name) for name in ("a", "b")}


async def bound(world: World, run_id: str) -> tuple[str, str]:
    """The name of the endpoint a run is bound to, and that of the other."""
    find = "select e.name from runs r join endpoints e on e.tenant_id = r.tenant_id and e.id = r.sticky_endpoint where r.id = $1"
    name = await world.database.fetchval(find, run_id)
    return (name, "b" if name == "a" else "a")


async def test_what_asks_for_a_label_no_endpoint_has_gives_its_place_back(world: World, one: Node) -> None:
    endpoint, first = await lone(world, one)
    others = [await one.trigger(workflow) for workflow in ("other", "work", "other")]
    second = await one.trigger("work", **GPU)
    assert await serve(endpoint, others) == others
    await world.over(others[-1])
    assert [await is_aside(world, run_id) for run_id in (first, second)] == [True, True]
    assert await counts(world) == (0, 0)
    await patch(one, labels={"gpu": True})
    assert await serve(endpoint, [first, second]) == [first, second]
    await opened(world, one)
    await quiet(world)


async def test_so_it_does_for_a_limit_of_its_own_workflow(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({"expression": "input.key", "max_runs": 1})])
    first = await one.trigger("work", input={"key": "a"}, **GPU)
    await look(one)
    other = await one.trigger("work", input={"key": "a"})
    assert await serve(endpoint, [other]) == [other]
    assert await is_aside(world, first)
    await patch(one, labels={"gpu": True})
    assert await serve(endpoint, [first]) == [first]
    await quiet(world)


async def test_who_comes_once_it_can_be_taken_is_behind_them(world: World, one: Node) -> None:
    endpoint, first = await lone(world, one)
    runs = [first, *[await one.trigger("work", **GPU) for _ in range(3)]]
    loop = one.runtime.loops["asides"]
    await loop.stop()
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {"gpu": True}})
    world.clock.advance(SECOND)
    runs.append(await one.trigger("work", **GPU))
    assert await is_aside(world, runs[-1])
    assert await why(one, first) == [
        ("concurrency", "no endpoint could take it until now: it is about to stand in line again for its limits")
    ]
    loop.start()
    assert await serve(endpoint, runs) == runs
    await opened(world, one)
    await quiet(world)


async def test_so_is_who_comes_at_a_dispatcher_that_knows_of_none(world: World) -> None:
    """It has a slot free and has never heard of anybody who waits."""
    one, other = await world.node("one"), await world.node("other")
    endpoint, first = await lone(world, one)
    assert await is_aside(world, first)
    for node in (one, other):
        await node.turn("registry", "slots")
        await node.runtime.loops["asides"].stop()
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {"gpu": True}})
    await other.turn("registry", "claim")
    world.clock.advance(SECOND)
    second = await other.trigger("work", **GPU)
    assert await is_aside(world, second)
    for node in (one, other):
        node.runtime.loops["asides"].start()
    assert await serve(endpoint, [first, second]) == [first, second]
    await opened(world, one)
    await quiet(world)


async def test_an_endpoint_that_comes_with_the_label_takes_them(world: World, one: Node) -> None:
    _, first = await lone(world, one)
    assert await is_aside(world, first)
    there = await world.listen()
    await one.call(
        "PUT", "/v1/endpoints/there", {"url": there.url, "labels": {"gpu": True}, "handlers": [{**limited(SHARED), "body": "v1"}]}
    )
    assert await serve(there, [first]) == [first]
    await opened(world, one)
    await quiet(world)


async def test_a_handler_that_says_so_of_its_endpoint_lets_them_go_on(world: World, one: Node) -> None:
    endpoint, first = await lone(world, one)
    assert await is_aside(world, first)
    other = await one.trigger("other")
    arrival = await endpoint.next()
    await one.callback(arrival.json["token"], {"type": "labels", "labels": {"gpu": True}})
    arrival.answer(200, 1)
    assert await serve(endpoint, [first]) == [first]
    assert (await world.over(other))["status"] == "succeeded"
    await quiet(world)


async def test_what_stands_in_line_as_its_label_goes_stands_aside(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")], slots=1)
    await patch(one, labels={"gpu": True})
    first = await one.trigger("work", **GPU)
    arrival = await endpoint.next()
    waiting = [await one.trigger("work", **GPU) for _ in range(2)]
    other = await one.trigger("other")
    assert await counts(world) == (1, 3)
    await patch(one, labels={})
    arrival.answer(200, 1)
    await world.over(first)
    await look(one)
    assert await serve(endpoint, [other]) == [other]

    async def both() -> bool:
        await look(one)
        return all([await is_aside(world, run_id) for run_id in waiting])

    await until(both)
    await patch(one, labels={"gpu": True})
    assert await serve(endpoint, waiting) == waiting
    await opened(world, one)
    await quiet(world)


async def test_a_hard_run_whose_endpoint_is_paused_keeps_no_place(world: World, one: Node) -> None:
    sticky = limited(SHARED, sticky="hard", retries=2, idempotent=True)
    endpoints = await two(world, one, sticky, limited(SHARED, name="other"))
    first = await one.trigger("work")
    name, there = await bound(world, first)
    arrival = await endpoints[name].next()
    await patch(one, name, paused=True)
    arrival.answer(500, {"error": {"message": "no"}}, task_retry="true")
    await world.attempts(first, 1)
    await world.advance(timedelta(minutes=5))
    await look(one)
    assert await is_aside(world, first)
    others = [await one.trigger("other"), await one.trigger("work")]
    assert await serve(endpoints[there], others) == others
    await world.over(others[-1])
    assert await counts(world) == (0, 0)
    said = dict(await why(one, first))
    assert len(await why(one, first)) == 2
    assert said["endpoint"] in (f"{name}: it is paused", f"{there}: its run has to stay at the endpoint where it began")
    await patch(one, name, paused=False)
    assert await serve(endpoints[name], [first]) == [first]
    await opened(world, one)
    await quiet(world)


async def test_a_hard_run_whose_endpoint_is_gone_ends_at_its_schedule_timeout_without_a_place(world: World, one: Node) -> None:
    endpoints = await two(world, one, limited(SHARED, sticky="hard", retries=2, idempotent=True))
    first = await one.trigger("work")
    name, there = await bound(world, first)
    arrival = await endpoints[name].next()
    await one.call("DELETE", f"/v1/endpoints/{name}?force=true")
    arrival.answer(500, {"error": {"message": "no"}}, task_retry="true")
    await world.attempts(first, 1)
    await world.advance(timedelta(minutes=5))
    await look(one)
    assert await is_aside(world, first)
    assert ("sticky", "its run has to stay at the endpoint where it began, which does not serve it any more") in await why(one, first)
    other = await one.trigger("work")
    assert await serve(endpoints[there], [other]) == [other]
    await world.over(other)
    await world.advance(timedelta(hours=2))
    over = await world.over(first)
    assert (over["status"], over["error"]["code"]) == ("cancelled", "schedule_timeout")
    await quiet(world)


async def test_a_hard_run_whose_endpoint_has_retired_keeps_no_place(world: World, one: Node) -> None:
    """Nothing but a registration brings it back."""
    handler = limited(SHARED, sticky="hard")
    endpoints = await two(world, one, handler)
    first = await one.trigger("work")
    name, there = await bound(world, first)
    (await endpoints[name].next()).answer(410)
    await world.circuit_is("retired", name)
    await world.task(first, dispatcher_id=None)
    await world.advance(timedelta(minutes=5))
    await look(one)
    assert await is_aside(world, first)
    other = await one.trigger("work")
    assert (await bound(world, other))[0] == there
    assert await serve(endpoints[there], [other]) == [other]
    await one.call("PUT", f"/v1/endpoints/{name}", {"url": endpoints[name].url, "handlers": [{"body": "v1", **handler}]})
    assert await serve(endpoints[name], [first]) == [first]
    await opened(world, one)
    await quiet(world)


async def test_a_hard_run_that_found_no_endpoint_keeps_no_place_and_is_bound_when_it_finds_one(world: World, one: Node) -> None:
    endpoints = await two(world, one, limited(SHARED, sticky="hard"), limited(SHARED, name="other"))
    first = await one.trigger("work", **GPU)
    await look(one)
    assert await is_aside(world, first)
    other = await one.trigger("work")
    assert await serve(endpoints[(await bound(world, other))[0]], [other]) == [other]
    await patch(one, "b", labels={"gpu": True})
    assert await serve(endpoints["b"], [first]) == [first]
    await opened(world, one)
    await quiet(world)


async def test_a_hard_run_that_found_no_endpoint_is_bound_as_its_place_is_free(world: World, one: Node) -> None:
    endpoints = await two(world, one, limited(SHARED, sticky="hard"))
    other = await one.trigger("work")
    arrival = await endpoints[(await bound(world, other))[0]].next()
    first = await one.trigger("work", **GPU)
    await patch(one, "b", labels={"gpu": True})
    assert (await world.task(first))["gate_wait"] is not None
    arrival.answer(200, 1)
    assert await serve(endpoints["b"], [first]) == [first]
    await quiet(world)


async def test_and_is_claimed_as_the_slot_is_free_if_it_was_bound_before(world: World, one: Node) -> None:
    a = await world.endpoint(one, [limited(SHARED, sticky="hard")], name="a")
    b = await world.endpoint(one, [limited(SHARED, sticky="hard"), {"name": "fill"}], name="b", slots=1)
    await one.trigger("work")
    arrival = await a.next()
    first = await one.trigger("work", **GPU)
    await patch(one, "b", labels={"gpu": True})
    await one.trigger("fill")
    filling = await b.next()
    arrival.answer(200, 1)

    async def is_bound() -> bool:
        return "endpoint" in (await world.task(first))["requirement"]

    await until(is_bound)
    await one.turn("claim")
    filling.answer(200, 1)
    assert await serve(b, [first]) == [first]


async def test_a_hard_run_that_finds_no_endpoint_wakes_nobody_whatever_others_do(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "sticky": "hard"}, {"name": "easy"}])
    await world.node("two")
    await one.trigger("work", **GPU)
    await look(one)
    woken = list[None]()
    one.runtime.services.intake.on_backlog = lambda: woken.append(None)
    runs = [await one.trigger("easy") for _ in range(5)]
    assert sorted(await serve(endpoint, runs)) == runs
    assert woken == []
    assert one.runtime.capacity.backlog == set()


async def test_the_schedule_timeout_of_what_is_aside_goes_on(world: World, one: Node) -> None:
    _, first = await lone(world, one)
    deadline = (await world.task(first))["schedule_deadline"]
    assert await is_aside(world, first)
    await world.advance(timedelta(minutes=59))
    assert await is_aside(world, first)
    assert (await world.task(first))["schedule_deadline"] == deadline
    await world.advance(timedelta(minutes=2))
    over = await world.over(first)
    assert (over["status"], over["error"]["code"]) == ("cancelled", "schedule_timeout")
    await quiet(world)


async def test_what_is_aside_can_be_cancelled_and_replayed(world: World, one: Node) -> None:
    endpoint, first = await lone(world, one)
    assert await is_aside(world, first)
    await one.call("POST", f"/v1/runs/{first}/cancel", {})
    assert (await world.over(first))["status"] == "cancelled"
    await quiet(world)
    await one.call("POST", f"/v1/runs/{first}/replay", {})
    assert await is_aside(world, first)
    assert await counts(world) == (0, 0)
    await patch(one, labels={"gpu": True})
    assert await serve(endpoint, [first]) == [first]
    await quiet(world)


async def test_why_it_does_not_run_is_said(world: World, one: Node) -> None:
    _, first = await lone(world, one)
    assert await is_aside(world, first)
    assert await why(one, first) == [("endpoint", "plain: label 'gpu' is not there; EQUAL true is required")]


async def test_an_endpoint_that_is_full_or_broken_sets_nothing_aside(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(SHARED), {"name": "free"}], slots=1)
    await world.endpoint(one, [limited(SHARED)], name="bare")
    await patch(one, labels={"gpu": True})
    await one.trigger("free")
    filling = await endpoint.next()
    run_id = await one.trigger("work", **GPU)
    await look(one)
    assert (await world.task(run_id))["state"] == "queued"
    await world.database.execute("update endpoints set circuit = 'open', circuit_since = $1 where name = 'plain'", world.now)
    await patch(one, "bare", labels={"other": 1})
    assert (await world.task(run_id))["state"] == "queued"
    assert await counts(world) == (1, 0)
    await world.database.execute("update endpoints set circuit = 'closed', circuit_since = null where name = 'plain'")
    await patch(one, "bare", labels={})
    filling.answer(200, 1)
    assert await serve(endpoint, [run_id]) == [run_id]
    await quiet(world)


async def test_what_fills_more_slots_than_there_are_keeps_no_place(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(SHARED, slot_cost=3), limited(SHARED, name="other")], slots=4)
    await patch(one, slots=2)
    await one.turn("slots")
    first = await one.trigger("work")
    await look(one)
    assert await is_aside(world, first)
    other = await one.trigger("other")
    assert await serve(endpoint, [other]) == [other]
    await patch(one, slots=3)
    await one.turn("slots", "claim")
    assert await serve(endpoint, [first]) == [first]
    await quiet(world)


async def test_a_task_of_a_graph_keeps_no_place_either(world: World, one: Node) -> None:
    tasks = [{"name": "x"}, {"name": "y", "parents": ["x"], "concurrency": [SHARED], "desired_labels": GPU["labels"]}]
    flow = {"name": "flow", "kind": "workflow", "tasks": tasks}
    endpoint = await world.endpoint(one, [flow, limited(SHARED, name="other")])
    run_id = await one.trigger("flow")
    (await endpoint.next()).answer(200, 1)

    async def aside() -> bool:
        await one.turn("graphs", "asides")
        return bool(await world.database.fetchval("select count(*) from tasks where run_id = $1 and unschedulable", run_id))

    await until(aside)
    other = await one.trigger("other")
    assert await serve(endpoint, [other]) == [other]
    await patch(one, labels={"gpu": True})
    assert await serve(endpoint, [run_id]) == [run_id]
    assert (await world.run_over(run_id))["status"] == "succeeded"
    await quiet(world)


@pytest.mark.parametrize("first_back", ["label", "workflow"])
async def test_whatever_is_back_first_nothing_starts_before_both_are(world: World, one: Node, first_back: str) -> None:
    endpoint, first = await lone(world, one)
    await one.call("PATCH", "/v1/workflows/work", {"paused": True})
    second = await one.trigger("work", **GPU)
    for what in (first_back, "workflow" if first_back == "label" else "label"):
        other = await one.trigger("other")
        assert await serve(endpoint, [other]) == [other]
        await world.over(other)
        assert await counts(world) == (0, 0)
        if what == "label":
            await patch(one, labels={"gpu": True})
        else:
            await one.call("PATCH", "/v1/workflows/work", {"paused": False})
        await look(one)
    assert await serve(endpoint, [first, second]) == [first, second]
    await opened(world, one)
    await quiet(world)


async def test_a_label_that_comes_back_before_all_is_aside_lets_nobody_overtake(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.unschedulable._PAGE", 2)
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")])
    await patch(one, labels={"gpu": True})
    await one.trigger("other")
    arrival = await endpoint.next()
    runs = [await one.trigger("work", **GPU) for _ in range(7)]
    loop = one.runtime.loops["asides"]
    await loop.stop()
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {}})
    (tenant,) = one.runtime.services.directory.pictures
    task = await world.task(runs[0])
    queue = (tenant, task["workflow_id"], task["requirement"])
    await one.runtime.services.unschedulable._close(tenant, [queue], world.now)
    await one.runtime.services.unschedulable._clear([queue], world.now)
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {"gpu": True}})
    assert await world.database.fetchval("select aside from unschedulable") == "clearing"
    loop.start()
    await opened(world, one)
    arrival.answer(200, 1)
    assert await serve(endpoint, runs) == runs
    await quiet(world)


async def test_nobody_closes_what_has_become_takeable(world: World, one: Node) -> None:
    """Who found it may have been told by what was registered before."""
    endpoint, first = await lone(world, one)
    assert await is_aside(world, first)
    ((tenant, number, requirement),) = await world.database.fetch("select tenant_id, queue, requirement from unschedulable")
    await patch(one, labels={"gpu": True})
    await opened(world, one)
    await one.runtime.services.unschedulable._close(tenant, [(tenant, number, requirement)], world.now)
    assert await world.database.fetchval("select count(*) from unschedulable") == 0
    assert await serve(endpoint, [first]) == [first]
    await quiet(world)


async def test_nobody_closes_what_becomes_takeable_at_that_moment(world: World, one: Node) -> None:
    endpoint, first = await lone(world, one)
    await patch(one, labels={"gpu": True})
    await opened(world, one)
    assert await serve(endpoint, [first]) == [first]
    await patch(one, labels={})
    await one.runtime.loops["asides"].stop()
    ((tenant, number),) = await world.database.fetch("select tenant_id, id from workflows where name = 'work'")
    queue = (tenant, number, Requirement(parse_desired_labels(GPU["labels"], "labels")).text())
    async with world.database.transaction() as conn:
        await registry.bump(conn, tenant)
        await conn.execute("""update endpoints set labels = '{"gpu": true}'""")
        closing = asyncio.create_task(one.runtime.services.unschedulable._close(tenant, [queue], world.now))
        await until(lambda: world.holds_up(conn))
    await closing
    assert await world.database.fetchval("select count(*) from unschedulable") == 0


async def test_a_dispatcher_that_is_killed_leaves_nothing_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.runtime.unschedulable._PAGE", 2)
    one = await world.node("one", **MORTAL)
    endpoint, first = await lone(world, one)
    runs = [first, *[await one.trigger("work", **GPU) for _ in range(6)]]
    assert await is_aside(world, runs[-1])
    await one.runtime.loops["asides"].stop()
    await one.runtime.loops["gates"].stop()
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {"gpu": True}})
    await one.runtime.services.unschedulable.tick(world.now)  # it is cleared: nothing stood in line
    await one.runtime.services.unschedulable.tick(world.now)  # and a page comes back
    assert await world.database.fetchval("select count(*) from tasks where unschedulable") == 5
    await world.crash(one)
    other = await world.node("two", **MORTAL)
    for _ in range(17):
        world.clock.advance(SECOND)
        await other.turn("heartbeat", "reap", "slots")
    await opened(world, other)
    assert await serve(endpoint, runs) == runs
    await quiet(world)


async def test_what_another_dispatcher_has_not_heard_of_yet_is_found_all_the_same(world: World) -> None:
    one, other = await world.node("one"), await world.node("other")
    endpoint = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")])
    await patch(one, labels={"gpu": True})
    await other.turn("registry", "slots")
    for name in ("registry", "asides"):
        await other.runtime.loops[name].stop()
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {}})
    first = await other.trigger("work", **GPU)  # its picture is old, and read again
    await look(one)
    assert await is_aside(world, first)
    assert await gates.audit(world.database) == []
    await patch(one, labels={"gpu": True})
    second = await other.trigger("work", **GPU)
    assert await serve(endpoint, [first, second]) == [first, second]
    await opened(world, one)
    await quiet(world)


async def test_a_durable_task_that_has_begun_keeps_its_place(world: World, one: Node) -> None:
    """Its steps have been done under the limit: nobody is to come between."""
    endpoint = await durable_endpoint(
        world, one, entry("order", concurrency=[{**SHARED, "max_runs": 2}], schedule_timeout="10h", execution_timeout="10h")
    )
    await patch(one, "sdk", labels={"gpu": True})
    first = await one.trigger("order", **GPU)
    answer(await endpoint.next(), "wait", base=0, ops=[pending("sleep", "nap#0", ms=60_000)], wake="nap#0")
    await world.task(first, state="waiting")
    await patch(one, "sdk", labels={})
    unbegun = await one.trigger("order", **GPU)
    await look(one)
    assert await is_aside(world, unbegun)
    others = [await one.trigger("order") for _ in range(2)]
    arrival = await endpoint.next()
    assert arrival.json["run_id"] == others[0]
    await world.advance(61 * SECOND)
    await one.turn("waits", "marks")
    await world.task(first, state="queued")
    await look(one)
    assert await counts(world) == (2, 1)
    await patch(one, "sdk", labels={"gpu": True})
    again = await endpoint.next()
    assert again.json["run_id"] == first
    answer(again, "done", base=2, output=1)
    await world.over(first)
    answer(arrival, "done", base=0, output=1)
    for _ in range(2):
        answer(await endpoint.next(), "done", base=0, output=1)
    for run_id in (unbegun, *others):
        assert (await world.over(run_id))["status"] == "succeeded"
    await opened(world, one)
    await quiet(world)
