"""Where tasks run: labels, sticky runs, what fills several slots, endpoints that come and go."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime import claims
from tests.world.endpoint import Endpoint, manifest
from tests.world.world import Node, World, until

GPU = {"name": "train", "desired_labels": {"gpu": {"value": 1, "comparator": "GREATER_THAN_OR_EQUAL", "required": True}}}
ANY = {"name": "any"}


async def _label(node: Node, name: str, **labels: Any) -> None:
    await node.call("PATCH", f"/v1/endpoints/{name}", {"labels": labels})


async def _two(world: World, node: Node, handlers: list[dict[str, Any]], **options: Any) -> tuple[Endpoint, Endpoint]:
    return await world.endpoint(node, handlers, name="a", **options), await world.endpoint(node, handlers, name="b", **options)


async def test_a_required_label_chooses_the_endpoint(world: World, one: Node) -> None:
    a, b = await _two(world, one, [GPU])
    await _label(one, "b", gpu=2)
    for _ in range(4):
        await one.trigger("train")
        (await b.next()).answer(200, {})
    assert a.seen == []


async def test_what_no_endpoint_satisfies_waits_for_one_that_does(world: World, one: Node) -> None:
    a, _ = await _two(world, one, [GPU, ANY])
    run_id = await one.trigger("train")
    await one.turn()
    await world.task(run_id, state="queued")
    await _label(one, "a", gpu=1)
    (await a.next()).answer(200, {})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_waits_for_a_label_stands_in_nobodys_way(world: World, one: Node) -> None:
    a, b = await _two(world, one, [GPU, {"name": "other"}])
    for _ in range(3):
        await one.trigger("train")
    run_id = await one.trigger("train", labels={"gpu": {"value": 0, "required": False}})
    arrival = await _first(a, b)
    assert arrival.json["id"] == f"tsk_{run_id[4:]}"
    arrival.answer(200, {})


async def test_labels_of_a_trigger_are_asked_at_a_retry_too(world: World, one: Node) -> None:
    a, b = await _two(world, one, [{"name": "any", "retries": 2, "backoff_factor": 2}])
    await _label(one, "b", zone="x")
    run_id = await one.trigger("any", labels={"zone": {"value": "x", "required": True}})
    (await b.next()).answer(500)
    await world.task(run_id, state="scheduled")
    await world.advance(timedelta(seconds=2))
    (await b.next()).answer(200, {})
    assert (await world.over(run_id))["epoch"] == 2
    assert a.seen == []


async def test_the_weightier_endpoint_is_taken_while_it_has_room(world: World, one: Node) -> None:
    handler = {"name": "any", "desired_labels": {"big": {"value": True, "weight": 10}}}
    a, b = await _two(world, one, [handler], slots=1)
    await _label(one, "b", big=True)
    for _ in range(2):
        await one.trigger("any")
    first, second = await b.next(), await a.next()
    first.answer(200, {})
    await one.trigger("any")
    (await b.next()).answer(200, {})
    second.answer(200, {})


async def test_all_tasks_of_a_sticky_run_go_where_it_began(world: World, one: Node) -> None:
    tasks = [{"name": "x"}, {"name": "y", "parents": ["x"]}, {"name": "z", "parents": ["x"]}]
    a, b = await _two(world, one, [{"name": "flow", "kind": "workflow", "sticky": "HARD", "tasks": tasks}])
    for endpoint in (a, b):
        endpoint.way = lambda arrival: arrival.answer(200, {})
    runs = [await one.trigger("flow") for _ in range(6)]
    for run_id in runs:
        await world.run_over(run_id)
    for endpoint in (a, b):
        seen = [arrival.json["run_id"] for arrival in endpoint.seen]
        assert all(seen.count(run_id) == 3 for run_id in set(seen))
    assert len(a.seen) + len(b.seen) == 18


async def test_a_hard_run_waits_for_its_endpoint(world: World, one: Node) -> None:
    a, b = await _two(world, one, [{"name": "work", "sticky": "hard", "retries": 1}])
    run_id = await one.trigger("work")
    arrival = await _first(a, b)
    name, here, there = ("a", a, b) if arrival in a.seen else ("b", b, a)
    await one.call("PATCH", f"/v1/endpoints/{name}", {"paused": True})
    arrival.answer(500)
    await world.attempts(run_id, 1)
    await one.turn()
    assert there.waiting == 0
    await one.call("PATCH", f"/v1/endpoints/{name}", {"paused": False})
    (await here.next()).answer(200, {})
    assert (await world.over(run_id))["epoch"] == 2


async def test_a_soft_run_goes_elsewhere_when_its_endpoint_cannot_take_it(world: World, one: Node) -> None:
    a, b = await _two(world, one, [{"name": "work", "sticky": "soft", "retries": 1}])
    run_id = await one.trigger("work")
    arrival = await _first(a, b)
    name, there = ("a", b) if arrival in a.seen else ("b", a)
    await one.call("PATCH", f"/v1/endpoints/{name}", {"paused": True})
    arrival.answer(500)
    (await there.next()).answer(200, {})
    assert (await world.over(run_id))["epoch"] == 2


async def test_a_hard_run_whose_endpoint_is_gone_ends_at_its_schedule_timeout(world: World, one: Node) -> None:
    a, b = await _two(world, one, [{"name": "work", "sticky": "hard", "retries": 1, "schedule_timeout": "1m"}])
    run_id = await one.trigger("work")
    arrival = await _first(a, b)
    await one.call("PATCH", f"/v1/endpoints/{'a' if arrival in a.seen else 'b'}", {"paused": True})
    arrival.answer(500)
    await world.attempts(run_id, 1)
    await world.advance(timedelta(minutes=2))
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("cancelled", "schedule_timeout")


async def test_what_fills_several_slots_leaves_as_many_fewer(world: World, one: Node) -> None:
    heavy = {"name": "heavy", "slot_cost": 3}
    endpoint = await world.endpoint(one, [heavy, ANY], slots=4)
    await one.trigger("heavy")
    first = await endpoint.next()
    await one.trigger("heavy")
    await one.trigger("any")
    light = await endpoint.next()
    assert light.json["name"] == "any"
    await one.turn()
    assert endpoint.waiting == 0
    assert (await one.call("GET", "/v1/endpoints/plain"))["in_use"] == 4
    first.answer(200, {})
    light.answer(200, {})
    (await endpoint.next()).answer(200, {})


async def test_slots_lowered_below_what_runs_end_nothing_and_let_nobody_in(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [ANY], slots=4)
    runs = [await one.trigger("any") for _ in range(6)]
    open_ = await endpoint.several(4)
    await one.call("PATCH", "/v1/endpoints/plain", {"slots": 2})
    await one.turn("slots")  # before that its share is the old one
    for left in (3, 2):
        arrival = open_.pop()
        arrival.answer(200, {})
        await world.over(arrival.json["run_id"])
        await one.turn("slots", "claim")
        assert (await one.call("GET", "/v1/endpoints/plain"))["in_use"] == left
        assert endpoint.waiting == 0
    assert not any(arrival.hung_up.is_set() for arrival in open_)
    for _ in range(2):
        open_.pop().answer(200, {})
        open_.insert(0, await endpoint.next())
    for arrival in open_:
        arrival.answer(200, {})
    for run_id in runs:
        assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_fills_all_slots_runs_though_two_dispatchers_share_them(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "big", "slot_cost": 2}], slots=2)
    two = await world.node("two")
    for _ in range(2):
        for node in (one, two):
            await node.turn("heartbeat", "slots")
    run_id = await one.trigger("big")
    for node in (one, two):
        await node.turn("claim")
    (await endpoint.next()).answer(200, {})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_label_that_cannot_be_meant_is_refused(world: World, one: Node) -> None:
    await world.endpoint(one, [ANY])
    wrong = {"workflow": "any", "labels": {"gpu": {"value": "x", "comparator": "LESS_THAN"}}}
    assert (await one.call("POST", "/v1/runs", wrong, expect=400))["field"] == "labels.gpu.value"


def _long(letter: str, count: int) -> dict[str, Any]:
    return {f"{letter}{n}": {"value": letter * 150, "weight": 1} for n in range(count)}


async def test_labels_that_are_too_long_are_refused_where_they_are_given(world: World, one: Node) -> None:
    """A requirement is part of an index: one that does not fit there would never be queued."""
    url = (await world.listen()).url
    handler = {"name": "any", "body": "v1", "desired_labels": _long("a", 20)}
    refused = await one.call("PUT", "/v1/endpoints/plain", {"url": url, "handlers": [handler]}, expect=400)
    assert (refused["code"], refused["field"]) == ("invalid_value", "any.desired_labels")
    nodes = [{"name": "x"}, {"name": "y", "parents": ["x"], "desired_labels": _long("a", 5)}]
    endpoint = await world.endpoint(
        one, [{"name": "any", "desired_labels": _long("a", 5)}, {"name": "flow", "kind": "workflow", "tasks": nodes}]
    )
    for workflow in ("any", "flow"):
        body = {"workflow": workflow, "input": {}, "labels": _long("b", 4)}
        refused = await one.call("POST", "/v1/runs", body, expect=400)
        assert (refused["code"], refused["field"]) == ("invalid_value", "labels")
        assert "bytes" in refused["detail"]
    run_id = await one.trigger("any", labels=_long("b", 1))
    (await endpoint.next()).answer(200, {})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_replay_whose_labels_do_not_fit_the_newest_definition_goes_by_the_one_it_had(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [ANY])
    run_id = await one.trigger("any", labels=_long("b", 5))
    (await endpoint.next()).answer(200, {})
    await world.over(run_id)
    handler = {"name": "any", "body": "v1", "desired_labels": _long("a", 5)}
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": [handler]})
    await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    (await endpoint.next()).answer(200, {"again": True})
    assert (await world.over(run_id))["epoch"] == 2


async def _first(*endpoints: Endpoint) -> Any:
    """The next POST at any of them."""
    asked = [asyncio.ensure_future(endpoint.next()) for endpoint in endpoints]
    done, rest = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    for other in rest:
        other.cancel()
    await asyncio.wait(rest)
    return done.pop().result()


async def _why(node: Node, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await node.call("GET", f"/v1/runs/{run_id}"))["tasks"][0]["waiting_for"]
    return found


async def test_a_task_says_which_label_it_lacks_at_which_endpoint(world: World, one: Node) -> None:
    await _two(world, one, [GPU])
    await _label(one, "b", gpu=0)
    reasons = await _why(one, await one.trigger("train"))
    assert [(r["endpoint"], r["suits"]) for r in reasons] == [("a", False), ("b", False)]
    assert reasons[0]["message"] == "a: label 'gpu' is not there; GREATER_THAN_OR_EQUAL 1 is required"
    assert reasons[1]["message"] == "b: label 'gpu' is 0; GREATER_THAN_OR_EQUAL 1 is required"


async def test_a_task_whose_one_endpoint_is_paused_says_so_and_why_the_other_will_not_do(world: World, one: Node) -> None:
    await _two(world, one, [GPU])
    await _label(one, "b", gpu=2)
    await one.call("PATCH", "/v1/endpoints/b", {"paused": True})
    first, second = await _why(one, await one.trigger("train"))
    assert (first["suits"], second["suits"], second["free"]) == (False, True, 0)
    assert "paused" in second["message"]


async def test_a_task_says_that_its_workflow_is_paused(world: World, one: Node) -> None:
    await _two(world, one, [GPU])
    await one.call("PATCH", "/v1/workflows/train", {"paused": True})
    (reason,) = await _why(one, await one.trigger("train"))
    assert reason["kind"] == "paused"
    assert reason["since"] == "2026-03-01T12:00:00Z"


async def test_a_task_that_must_stay_where_its_run_began_says_so(world: World, one: Node) -> None:
    tasks = [{"name": "x"}, {"name": "y", "parents": ["x"]}]
    a, b = await _two(world, one, [{"name": "flow", "kind": "workflow", "sticky": "HARD", "tasks": tasks}])
    run_id = await one.trigger("flow")
    arrival = await _first(a, b)
    gone, other = ("a", "b") if a.seen else ("b", "a")
    await one.call("PATCH", f"/v1/endpoints/{gone}", {"paused": True})
    arrival.answer(200, {})

    async def queued() -> list[dict[str, Any]] | None:
        shown = await one.call("GET", f"/v1/runs/{run_id}")
        task = shown["tasks"][1]
        return task["waiting_for"] if task["status"] == "queued" else None

    said = {reason["endpoint"]: reason for reason in await until(queued)}
    assert said[gone]["suits"]
    assert not said[other]["suits"]
    assert "where it began" in said[other]["message"]


async def _whole(world: World, a: Endpoint, b: Endpoint, runs: list[str]) -> list[int]:
    """How many runs had all their three tasks at each of two endpoints, once all are over."""
    for run_id in runs:
        await world.run_over(run_id)
    whole = []
    for endpoint in (a, b):
        seen = [arrival.json["run_id"] for arrival in endpoint.seen]
        whole.append(sum(seen.count(run_id) == 3 for run_id in runs))
    return whole


STICKY: dict[str, Any] = {
    "name": "flow", "kind": "workflow", "sticky": "HARD",
    "tasks": [{"name": "x"}, {"name": "y", "parents": ["x"]}, {"name": "z", "parents": ["x"]}],
}  # fmt: skip


async def test_a_run_made_while_its_workflow_is_paused_stays_where_it_begins_too(world: World, one: Node) -> None:
    a, b = await _two(world, one, [STICKY])
    await one.call("PATCH", "/v1/workflows/flow", {"paused": True})
    runs = [await one.trigger("flow") for _ in range(8)]
    for endpoint in (a, b):
        endpoint.way = lambda arrival: arrival.answer(200, {})
    await one.call("PATCH", "/v1/workflows/flow", {"paused": False})
    here, there = await _whole(world, a, b, runs)
    assert here + there == 8
    assert min(here, there) > 1


async def test_a_run_made_while_no_endpoint_is_open_stays_where_it_begins_too(world: World, one: Node) -> None:
    a, b = await _two(world, one, [STICKY])
    for name in ("a", "b"):
        await one.call("PATCH", f"/v1/endpoints/{name}", {"paused": True})
    runs = [await one.trigger("flow") for _ in range(8)]
    for endpoint in (a, b):
        endpoint.way = lambda arrival: arrival.answer(200, {})
    for name in ("a", "b"):
        await one.call("PATCH", f"/v1/endpoints/{name}", {"paused": False})
    here, there = await _whole(world, a, b, runs)
    assert here + there == 8
    assert min(here, there) > 1


@pytest.mark.parametrize("tasks", [STICKY["tasks"], [{"name": "x"}, {"name": "y"}, {"name": "z", "parents": ["x", "y"]}]])
async def test_a_run_made_while_no_endpoint_suits_stays_where_it_begins_too(world: World, one: Node, tasks: list[dict[str, Any]]) -> None:
    await world.node("two")
    a, b = await _two(world, one, [{**STICKY, "tasks": tasks}])
    asked = {"zone": {"value": "x", "required": True}}
    runs = [await one.trigger("flow", labels=asked) for _ in range(8)]
    for endpoint in (a, b):
        endpoint.way = lambda arrival: arrival.answer(200, {})
    for name in ("a", "b"):
        await _label(one, name, zone="x")
    here, there = await _whole(world, a, b, runs)
    assert here + there == 8


@pytest.mark.parametrize("sticky", ["hard", "soft"])
async def test_a_task_that_found_no_endpoint_goes_back_to_the_one_it_got(world: World, one: Node, sticky: str) -> None:
    a, b = await _two(world, one, [{**GPU, "sticky": sticky, "retries": 3}])
    run_id = await one.trigger("train")
    await one.turn()
    await world.task(run_id, state="queued")
    for name in ("a", "b"):
        await _label(one, name, gpu=1)
    arrival = await _first(a, b)
    here, there = (a, b) if arrival in a.seen else (b, a)
    for _ in range(3):
        arrival.answer(500)
        arrival = await here.next()
    arrival.answer(200, {})
    assert (await world.over(run_id))["epoch"] == 4
    assert there.seen == []


async def test_many_sticky_runs_that_come_at_once_are_spread(world: World, one: Node) -> None:
    a, b = await _two(world, one, [{"name": "work", "sticky": "hard"}], slots=3)
    for endpoint in (a, b):
        endpoint.way = lambda arrival: arrival.answer(200, {})
    made = await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "work", "input": {}} for _ in range(40)]})
    for row in made["rows"]:
        await world.run_over(row["id"])
    assert min(len(a.seen), len(b.seen)) >= 15


async def test_what_fills_several_slots_runs_at_an_endpoint_that_asked_for_less(world: World, one: Node) -> None:
    lasting = {"schedule_timeout": "1h", "execution_timeout": "1h"}  # a claim may have begun before the clock is moved
    endpoint = await world.endpoint(one, [{"name": "work", "slot_cost": 2, **lasting}], slots=8)
    run_id = await one.trigger("work")
    for _ in range(4):
        (await endpoint.next()).answer(429, b"", retry_after="1")
        await one.runtime.deliveries.drain()
        await world.advance(timedelta(minutes=1))
    assert [breaker.limit for breaker in one.runtime.capacity.breakers.values()] == [1]
    (await endpoint.next()).answer(200, {})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_fills_several_slots_tries_an_endpoint_whose_circuit_was_open(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{"name": "work", "slot_cost": 2}]), slots=8)
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(404, b"")
    await world.circuit_is("open", "sdk")
    world.clock.advance(timedelta(seconds=10))
    await one.turn("probe", "timers")
    (await endpoint.next()).answer(200, {}, task_protocol="1")
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_can_run_is_found_behind_more_that_cannot_than_is_looked_at_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_MOST_REQUIREMENTS", 3)
    one = await world.node("one")
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "1h", "execution_timeout": "1h"}])
    await one.call("PATCH", "/v1/endpoints/plain", {"labels": {"z": True}, "paused": True})
    for n in range(7):
        await one.trigger("work", labels={f"a{n}": {"value": True, "required": True}})
    run = await one.trigger("work", labels={"z": {"value": True, "required": True}})
    world.nodes.remove(one)
    await one.runtime.stop()
    await one.api.aclose()
    two = await world.node("two")  # it remembers nothing of what was triggered
    await two.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    await two.turn("registry", "slots")
    for _ in range(3):
        world.clock.advance(timedelta(seconds=2))
        await two.turn("claim")
    assert (await endpoint.next()).json["run_id"] == run


async def test_nothing_is_kept_of_what_found_no_endpoint_in_time(world: World, one: Node) -> None:
    """Each asked for something else, so that each made a queue of its own."""
    await world.endpoint(one, [{"name": "any", "schedule_timeout": "1m"}])
    runs = [await one.trigger("any", labels={"zone": {"value": n, "required": True}}) for n in range(3)]
    await one.turn("claim")
    assert len(one.runtime.capacity.backlog) == 3
    await world.advance(timedelta(minutes=2))
    for run_id in runs:
        assert (await world.over(run_id))["error"]["code"] == "schedule_timeout"
    await world.advance(timedelta(minutes=1))
    assert not one.runtime.capacity.backlog
