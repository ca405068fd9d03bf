"""Concurrency limits: who waits, who passes, who is sent away, and that a place is free however its task has ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until

SECOND = timedelta(seconds=1)
GRR = {"expression": "input.key", "max_runs": 1}
MORTAL: dict[str, Any] = {"lease": 15.0, "heartbeat": 3.0}


def limited(*concurrency: dict[str, Any], name: str = "work", **fields: Any) -> dict[str, Any]:
    return {"name": name, "schedule_timeout": "1h", "execution_timeout": "1h", "concurrency": list(concurrency), **fields}


async def trigger(node: Node, key: str, workflow: str = "work", **fields: Any) -> str:
    return await node.trigger(workflow, input={"key": key, **fields.pop("also", {})}, **fields)


async def counts(world: World) -> tuple[int, int]:
    """Places held and waited for, by the counts of all gates."""
    row = await world.database.fetchrow("select coalesce(sum(held), 0), coalesce(sum(waiting), 0) from gates")
    assert row is not None
    return (row[0], row[1])


async def quiet(world: World) -> None:
    """Nothing is held once nothing is left to do, and the audit agrees."""

    async def nothing() -> bool:
        return not await world.database.fetchval("select count(*) from runs")

    await until(nothing)
    assert await counts(world) == (0, 0)


async def serve(endpoint: Endpoint, runs: Sequence[str]) -> list[str]:
    """Answer one attempt after the other; the runs in the order in which they came."""
    order = []
    for _ in runs:
        arrival = await endpoint.next()
        order.append(arrival.json["run_id"])
        arrival.answer(200, 1)
    return order


async def settle(node: Node) -> None:
    await node.turn("gates", "claim")


async def test_one_of_a_group_runs_at_a_time(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    runs = [await trigger(one, "a") for _ in range(5)]
    other = await trigger(one, "b")
    first, second = await endpoint.next(), await endpoint.next()
    await settle(one)
    assert endpoint.waiting == 0
    assert {first.json["run_id"], second.json["run_id"]} == {runs[0], other}
    assert await counts(world) == (2, 4)
    second.answer(200, 1)
    first.answer(200, 1)
    assert await serve(endpoint, runs[1:]) == runs[1:]
    await quiet(world)


async def test_priority_is_ignored_within_a_group(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    first = await trigger(one, "a")
    arrival = await endpoint.next()
    runs = [await trigger(one, "a", priority=p) for p in (1, 3, 2, 3)]
    arrival.answer(200, 1)
    assert await serve(endpoint, runs) == runs
    assert first not in runs
    await quiet(world)


async def test_a_number_limits_all_runs(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "concurrency": 2}])
    runs = [await one.trigger("work") for _ in range(3)]
    held = await endpoint.several(2)
    await settle(one)
    assert endpoint.waiting == 0
    held[0].answer(200, 1)
    held.append(await endpoint.next())
    for arrival in held[1:]:
        arrival.answer(200, 1)
    assert len(runs) == len({a.json["run_id"] for a in held})
    await quiet(world)


async def test_max_runs_can_be_an_expression(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({"expression": "input.key", "max_runs": "input.most"})])
    runs = [await trigger(one, "a", also={"most": 3}) for _ in range(4)]
    held = await endpoint.several(3)
    await settle(one)
    assert endpoint.waiting == 0
    for arrival in held:
        arrival.answer(200, 1)
    (await endpoint.next()).answer(200, 1)
    for run_id in runs:
        await world.over(run_id)
    refused = await one.call("POST", "/v1/runs", {"workflow": "work", "input": {"key": "a", "most": 0}}, expect=422)
    assert refused["code"] == "limit_failed"
    assert "it gives 0" in refused["detail"]
    await quiet(world)


async def test_a_key_that_cannot_be_told_fails_the_trigger(world: World, one: Node) -> None:
    await world.endpoint(one, [limited(GRR, on_events=["order.*"])])
    refused = await one.call("POST", "/v1/runs", {"workflow": "work", "input": {}}, expect=422)
    assert refused["code"] == "limit_failed"
    assert "input.key" in refused["detail"]
    number = await one.call("POST", "/v1/runs", {"workflow": "work", "input": {"key": 7}}, expect=422)
    assert "string(…)" in number["detail"]
    long = await one.call("POST", "/v1/runs", {"workflow": "work", "input": {"key": "k" * 10_240}}, expect=422)
    assert "10,240 characters" in long["detail"]
    bulk = await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "work", "input": i} for i in ({"key": "a"}, {})]})
    assert [row.get("code") for row in bulk["rows"]] == [None, "limit_failed"]
    event = await one.call("POST", "/v1/events", {"type": "order.paid", "data": {"no": "key"}})
    assert event["runs"] == []
    shown = await one.call("GET", f"/v1/events/{event['event_id']}")
    (failure,) = shown["filter_failures"]
    assert (failure["workflow"], failure["code"], failure["expression"]) == ("work", "limit_failed", "input.key")


async def test_a_task_holds_its_first_key_while_it_waits_for_the_second(world: World, one: Node) -> None:
    chain = [{"expression": "input.key", "max_runs": 1}, {"expression": "input.other", "max_runs": 1}]
    endpoint = await world.endpoint(one, [limited(*chain)])
    first = await trigger(one, "a", also={"other": "x"})
    arrival = await endpoint.next()
    second = await trigger(one, "b", also={"other": "x"})
    await settle(one)
    third = await trigger(one, "b", also={"other": "y"})
    await settle(one)
    assert endpoint.waiting == 0
    rows = {row["run_id"]: (row["gates_held"], row["state"]) for row in await world.database.fetch("select * from tasks")}
    assert rows == {first: (2, "running"), second: (1, "gated"), third: (0, "gated")}
    arrival.answer(200, 1)
    assert await serve(endpoint, [second, third]) == [second, third]
    await quiet(world)


async def test_two_strategies_with_one_key_are_two_groups(world: World, one: Node) -> None:
    both = [{"expression": "input.key", "max_runs": 2}, {"expression": "input.key", "max_runs": 1, "limit_strategy": "CANCEL_NEWEST"}]
    endpoint = await world.endpoint(one, [limited(*both)])
    first = await trigger(one, "a")
    arrival = await endpoint.next()
    second = await trigger(one, "a")
    assert (await world.over(second))["status"] == "cancelled"
    assert await counts(world) == (2, 0)
    arrival.answer(200, 1)
    assert (await world.over(first))["status"] == "succeeded"
    await quiet(world)


async def test_cancel_newest_keeps_what_came_first(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({**GRR, "max_runs": 2, "limit_strategy": "CANCEL_NEWEST"})])
    bulk = await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "work", "input": {"key": "a"}} for _ in range(5)]})
    runs = [row["id"] for row in bulk["rows"]]
    for run_id in runs[2:]:
        over = await world.over(run_id)
        assert over["status"] == "cancelled"
        assert "CANCEL_NEWEST" in over["error"]["message"]
    assert sorted(await serve(endpoint, runs[:2])) == runs[:2]
    await quiet(world)


async def test_cancel_in_progress_keeps_what_came_last(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({**GRR, "max_runs": 2, "limit_strategy": "CANCEL_IN_PROGRESS"})])
    runs = [await trigger(one, "a") for _ in range(2)]
    arrivals = await endpoint.several(2)
    runs.append(await trigger(one, "a"))
    await arrivals[0].gone()
    cancelled = await world.over(runs[0])
    assert cancelled["status"] == "cancelled"
    assert "CANCEL_IN_PROGRESS" in cancelled["error"]["message"]
    third = await endpoint.next()
    assert third.json["run_id"] == runs[2]
    arrivals[1].answer(200, 1)
    third.answer(200, 1)
    for run_id in runs[1:]:
        assert (await world.over(run_id))["status"] == "succeeded"
    await quiet(world)


async def test_cancel_in_progress_waits_for_the_handler_to_end(world: World, one: Node) -> None:
    from tests.world.endpoint import manifest

    handler = limited({**GRR, "limit_strategy": "CANCEL_IN_PROGRESS"})
    endpoint = await world.discovered(one, manifest([handler], "cancel-push"))
    first = await trigger(one, "a")
    arrival = await endpoint.next()
    second = await trigger(one, "a")
    push = await endpoint.next()
    assert push.json["type"] == "cancel"
    push.answer(200)
    await settle(one)
    assert endpoint.waiting == 0  # the handler has its grace, and the place is its own until it ends
    arrival.answer(200, 1)
    assert (await world.over(first))["status"] == "cancelled"
    (await endpoint.next()).answer(200, 1)
    assert (await world.over(second))["status"] == "succeeded"
    await quiet(world)


async def test_a_named_limit_is_shared_and_can_be_changed(world: World, one: Node) -> None:
    gpu = {"name": "gpu", "max_runs": 1}
    endpoint = await world.endpoint(one, [limited(gpu), limited(gpu, name="other")])
    first = await one.trigger("work")
    arrival = await endpoint.next()
    second, third = await one.trigger("other"), await one.trigger("work")
    await settle(one)
    assert endpoint.waiting == 0
    await one.call("PUT", "/v1/concurrency/gpu", {"max_runs": 2, "expires_in": "10m"})
    two = await endpoint.next()
    assert two.json["run_id"] == second
    listed = await one.call("GET", "/v1/concurrency")
    assert [(row["name"], row["max_runs"]) for row in listed["rows"]] == [("gpu", 2)]
    world.clock.advance(timedelta(minutes=11))
    await settle(one)
    assert (await one.call("GET", "/v1/concurrency"))["rows"] == []
    arrival.answer(200, 1)
    await world.over(first)
    await settle(one)
    assert endpoint.waiting == 0  # lowered below what runs: nobody comes in until there is room
    two.answer(200, 1)
    (await endpoint.next()).answer(200, 1)
    assert (await world.over(third))["status"] == "succeeded"
    await quiet(world)


@pytest.mark.parametrize(
    "body", [{"max_runs": 0}, {"max_runs": -1}, {"max_runs": "2"}, {"max_runs": 1, "expires_in": "0s"}, {}, {"max": 1}]
)
async def test_limits_that_limit_nothing_are_refused(one: Node, body: dict[str, Any]) -> None:
    await one.call("PUT", "/v1/concurrency/gpu", body, expect=400)
    assert (await one.call("GET", "/v1/concurrency"))["rows"] == []


# ---- every way out frees the place


async def test_a_retry_keeps_its_place_in_line(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR, retries=2)])
    runs = [await trigger(one, "a") for _ in range(3)]
    (await endpoint.next()).answer(500, {"error": {"message": "no"}}, task_retry="true")
    again = await endpoint.next()
    assert (again.json["run_id"], again.json["attempt"]) == (runs[0], 2)
    again.answer(200, 1)
    assert await serve(endpoint, runs[1:]) == runs[1:]
    await quiet(world)


@pytest.mark.parametrize("strategy", ["CANCEL_IN_PROGRESS", "CANCEL_NEWEST"])
async def test_a_retry_with_backoff_comes_back_as_the_last_to_arrive(world: World, one: Node, strategy: str) -> None:
    handler = limited({**GRR, "limit_strategy": strategy}, retries=1, backoff_factor=2)
    endpoint = await world.endpoint(one, [handler])
    first = await trigger(one, "a")
    (await endpoint.next()).answer(500, {"error": {"message": "no"}}, task_retry="true")
    await world.task(first, state="scheduled")
    world.clock.advance(timedelta(seconds=1))
    second = await trigger(one, "a")  # the place is free: whoever waits for its retry has left the group
    under_way = await endpoint.next()
    assert under_way.json["run_id"] == second
    await world.advance(timedelta(seconds=2))
    await settle(one)
    if strategy == "CANCEL_IN_PROGRESS":
        await under_way.gone()
        sent_away, kept = second, first
        again = await endpoint.next()
        assert (again.json["run_id"], again.json["attempt"]) == (first, 2)
        again.answer(200, 1)
    else:
        sent_away, kept = first, second
        under_way.answer(200, 1)
    assert strategy in (await world.over(sent_away))["error"]["message"]
    assert (await world.over(kept))["status"] == "succeeded"
    await quiet(world)


async def test_a_retry_with_backoff_goes_to_the_end_of_the_line(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR, retries=1, backoff_factor=2)])
    runs = [await trigger(one, "a") for _ in range(2)]
    (await endpoint.next()).answer(500, {"error": {"message": "no"}}, task_retry="true")
    second = await endpoint.next()
    assert second.json["run_id"] == runs[1]
    runs.append(await trigger(one, "a"))
    await world.advance(3 * SECOND)
    await settle(one)
    second.answer(200, 1)
    assert await serve(endpoint, runs[1:]) == [runs[2], runs[0]]
    await quiet(world)


async def test_places_are_free_after_timeouts_cancels_and_failures(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR, schedule_timeout="30s", execution_timeout="10s")])
    runs = [await trigger(one, "a") for _ in range(4)]
    first = await endpoint.next()
    world.clock.advance(11 * SECOND)
    await one.turn("deadlines")
    await first.gone()
    assert (await world.over(runs[0]))["status"] == "failed"
    second = await endpoint.next()
    await one.call("POST", f"/v1/runs/{runs[1]}/cancel", {})
    await second.gone()
    third = await endpoint.next()
    world.clock.advance(9 * SECOND)
    third.answer(400, {"error": {"message": "no"}})
    await endpoint.next()  # the fourth runs, and blocks those that come
    late = await trigger(one, "a")
    await one.call("POST", f"/v1/runs/{runs[3]}/cancel", {})
    await world.over(runs[3])
    fifth = await endpoint.next()
    assert fifth.json["run_id"] == late
    await one.callback(fifth.json["token"], {"type": "extend", "ms": 60_000})  # its own time shall not end with that of who waits
    waiting = await trigger(one, "a")
    await settle(one)
    await world.advance(31 * SECOND)
    expired = await world.over(waiting)
    assert (expired["status"], expired["error"]["code"]) == ("cancelled", "schedule_timeout")
    fifth.answer(200, {})
    await quiet(world)


async def test_places_of_a_lost_dispatcher_are_free(world: World) -> None:
    one = await world.node("one", **MORTAL)
    endpoint = await world.endpoint(one, [limited(GRR, idempotent=True)])
    runs = [await trigger(one, "a") for _ in range(2)]
    await endpoint.next()
    two = await world.node("two", **MORTAL)  # only now: nobody else can have sent the first
    await world.crash(one)
    for _ in range(17):
        world.clock.advance(SECOND)
        await two.turn("heartbeat", "reap", "slots", "timers", "gates", "claim")
    assert await serve(endpoint, runs) == runs  # the lost one first: it keeps its place in line
    await quiet(world)


async def test_what_is_due_later_takes_its_place_when_it_is_due(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    later = await trigger(one, "a", run_at=(world.now + 60 * SECOND).isoformat())
    assert await counts(world) == (0, 0)
    first, second = await trigger(one, "a"), await trigger(one, "a")
    arrival = await endpoint.next()
    await world.advance(61 * SECOND)
    third = await trigger(one, "a")
    arrival.answer(200, 1)
    assert await serve(endpoint, [second, later, third]) == [second, later, third]
    assert first == arrival.json["run_id"]
    await quiet(world)


async def test_a_run_waits_at_most_its_schedule_timeout_and_says_for_what(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    await trigger(one, "a")
    arrival = await endpoint.next()
    waiting = [await trigger(one, "a") for _ in range(2)]
    await settle(one)
    shown = await one.call("GET", f"/v1/runs/{waiting[1]}")
    (reason,) = shown["tasks"][0]["waiting_for"]
    assert (reason["kind"], reason["key"], reason["limit"], reason["held"], reason["ahead"]) == ("concurrency", "a", 1, 1, 1)
    assert "input.key" in reason["message"]
    arrival.answer(200, 1)
    await serve(endpoint, waiting)
    await quiet(world)


async def test_a_restart_in_the_middle_goes_on_where_it_was(world: World) -> None:
    one = await world.node("one", **MORTAL)
    endpoint = await world.endpoint(one, [limited(GRR, idempotent=True)])
    runs = [await trigger(one, "a") for _ in range(3)]
    await endpoint.next()
    await world.crash(one)
    two = await world.node("two", **MORTAL)
    for _ in range(17):
        world.clock.advance(SECOND)
        await two.turn("heartbeat", "reap", "slots", "timers", "gates", "claim")
    assert await serve(endpoint, runs) == runs
    await quiet(world)


async def test_the_audit_puts_right_what_was_counted_wrong(world: World, one: Node) -> None:
    """Nothing can make a count wrong but a hand in the database."""
    endpoint = await world.endpoint(one, [limited(GRR)])
    runs = [await trigger(one, "a") for _ in range(2)]
    first = await endpoint.next()
    await world.database.execute("update gates set held = 5")
    first.answer(200, 1)
    await world.over(runs[0])
    await settle(one)
    assert endpoint.waiting == 0
    await one.turn("maintenance")
    (await endpoint.next()).answer(200, 1)
    await world.over(runs[1])
    await quiet(world)


async def test_unused_groups_are_forgotten(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    for key in ("a", "b"):
        await trigger(one, key)
    for _ in range(2):
        (await endpoint.next()).answer(200, 1)
    await quiet(world)
    await one.turn("maintenance")
    assert await world.database.fetchval("select count(*) from gates") == 2
    world.clock.advance(timedelta(hours=2))
    await one.turn("maintenance")
    assert await world.database.fetchval("select count(*) from gates") == 0


def _held(arrivals: Sequence[Arrival]) -> int:
    return sum(not a.answered.is_set() and not a.hung_up.is_set() for a in arrivals)


async def test_a_graph_holds_its_workflows_place_until_it_ends(world: World, one: Node) -> None:
    graph = {
        "name": "order", "kind": "workflow", "concurrency": [GRR],
        "tasks": [{"name": "first", "body": "v1"}, {"name": "second", "body": "v1", "parents": ["first"]}],
    }  # fmt: skip
    endpoint = await world.listen()
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 10, "handlers": [graph]})
    runs = [await trigger(one, "a", "order") for _ in range(3)]
    seen = []
    for _ in range(6):
        arrival = await endpoint.next()
        await one.turn("gates", "graphs", "claim")
        assert endpoint.waiting == 0
        seen.append((arrival.json["run_id"], arrival.json["name"]))
        arrival.answer(200, 1)
    assert seen == [(run_id, name) for run_id in runs for name in ("order:first", "order:second")]
    await quiet(world)


async def test_a_task_of_a_graph_holds_its_own_place(world: World, one: Node) -> None:
    graph = {
        "name": "order", "kind": "workflow",
        "tasks": [{"name": "first", "body": "v1", "concurrency": [GRR]}, {"name": "second", "body": "v1", "parents": ["first"]}],
    }  # fmt: skip
    endpoint = await world.listen()
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 10, "handlers": [graph]})
    runs = [await trigger(one, "a", "order") for _ in range(2)]
    first = await endpoint.next()
    await one.turn("gates", "graphs", "claim")
    assert endpoint.waiting == 0
    first.answer(200, 1)
    both = {a.json["run_id"]: a for a in (await endpoint.next(), await endpoint.next())}
    assert {run_id: both[run_id].json["name"] for run_id in runs} == {runs[0]: "order:second", runs[1]: "order:first"}
    for arrival in both.values():
        arrival.answer(200, 1)
    (await endpoint.next()).answer(200, 1)
    await quiet(world)


async def test_a_waiting_graph_can_be_cancelled_and_expires(world: World, one: Node) -> None:
    graph = {
        "name": "order", "kind": "workflow", "concurrency": [GRR],
        "tasks": [{"name": n, "body": "v1", "schedule_timeout": "30s"} for n in ("first", "second")],
    }  # fmt: skip
    endpoint = await world.listen()
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 10, "handlers": [graph]})
    runs = [await trigger(one, "a", "order") for _ in range(3)]
    arrivals = await endpoint.several(2)
    await one.call("POST", f"/v1/runs/{runs[1]}/cancel", {})

    async def over(run_id: str) -> str | None:
        status: str | None = await world.database.fetchval("select status from run_history where id = $1", run_id)
        return status

    assert await until(lambda: over(runs[1])) == "cancelled"
    assert await counts(world) == (1, 1)
    world.clock.advance(31 * SECOND)
    await one.turn("gates", "graphs")
    assert await until(lambda: over(runs[2])) == "cancelled"
    for arrival in arrivals:
        arrival.answer(200, 1)
    assert await until(lambda: over(runs[0])) == "succeeded"
    await quiet(world)


async def test_a_replay_is_limited_anew(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    first = await trigger(one, "a")
    (await endpoint.next()).answer(400, {"error": {"message": "no"}})
    await world.over(first)
    second = await trigger(one, "a")
    arrival = await endpoint.next()
    await one.call("POST", f"/v1/runs/{first}/replay", {})
    await settle(one)
    assert endpoint.waiting == 0
    assert await counts(world) == (1, 1)
    arrival.answer(200, 1)
    await world.over(second)
    (await endpoint.next()).answer(400, {"error": {"message": "no"}})
    await world.over(first)
    other = await trigger(one, "a")
    arrival = await endpoint.next()
    await one.call("POST", f"/v1/runs/{first}/replay", {"input": {"key": "b"}})
    again = await endpoint.next()  # its group is told from the input it is given now
    assert again.json["run_id"] == first
    refused = await one.call("POST", f"/v1/runs/{second}/replay", {"input": {}}, expect=422)
    assert refused["code"] == "limit_failed"
    again.answer(200, 1)
    arrival.answer(200, 1)
    await world.over(other)
    await quiet(world)


async def test_a_new_version_changes_the_limit_for_those_that_wait(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(GRR)])
    runs = [await trigger(one, "a") for _ in range(3)]
    first = await endpoint.next()
    await settle(one)
    assert endpoint.waiting == 0
    raised = {"body": "v1", **limited({**GRR, "max_runs": 3})}
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 100, "handlers": [raised]})
    await settle(one)
    others = await endpoint.several(2)
    assert [a.json["run_id"] for a in (first, *others)] == runs
    for arrival in (first, *others):
        arrival.answer(200, 1)
    await quiet(world)


async def test_a_new_version_that_allows_fewer_than_run_ends_nothing_and_lets_nobody_in(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({**GRR, "max_runs": 3})])
    runs = [await trigger(one, "a") for _ in range(5)]
    open_ = await endpoint.several(3)
    lowered = {"body": "v1", **limited({**GRR, "max_runs": 1})}
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 100, "handlers": [lowered]})
    for left in (2, 1):
        arrival = open_.pop()
        arrival.answer(200, 1)
        await world.over(arrival.json["run_id"])
        await settle(one)
        assert await counts(world) == (left, 2)
        assert endpoint.waiting == 0
    assert not open_[0].hung_up.is_set()
    open_.pop().answer(200, 1)
    assert await serve(endpoint, runs[3:]) == runs[3:]
    await quiet(world)


async def test_one_slot_takes_the_highest_priority_first(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=1)
    await one.trigger("work")
    held = await endpoint.next()
    given = {await one.trigger("work", priority=n % 3 + 1): n % 3 + 1 for n in range(30)}
    held.answer(200, 1)
    order = await serve(endpoint, list(given))
    priorities = [given[run_id] for run_id in order]
    assert priorities == sorted(priorities, reverse=True)
    assert [run for run in order if given[run] == 2] == [run for run, priority in given.items() if priority == 2]


async def test_a_suspended_durable_task_keeps_its_place_and_takes_units_once(world: World, one: Node) -> None:
    once = {"dynamic_key": "input.key", "limit": 1, "duration": "DAY"}
    endpoint = await durable_endpoint(world, one, entry("order", concurrency=[GRR], rate_limits=[once], schedule_timeout="10h"))
    first = await trigger(one, "a", "order")
    nap = pending("sleep", "nap#0", ms=60_000)
    answer(await endpoint.next(), "wait", base=0, ops=[nap], wake="nap#0")
    await world.task(first, state="waiting")
    second = await trigger(one, "a", "order")
    await settle(one)
    assert endpoint.waiting == 0
    assert await counts(world) == (1, 1)
    await world.advance(61 * SECOND)
    await one.turn("waits", "claim")
    again = await endpoint.next()  # it goes on, although nothing is left of its limit
    assert again.json["run_id"] == first
    answer(again, "done", base=2, output=1)
    await world.over(first)
    await one.turn("gates", "claim", "rates")
    assert endpoint.waiting == 0
    assert (await world.task(second, state="gated"))["parked_on"] is not None
    await one.call("POST", f"/v1/runs/{second}/cancel", {})
    await quiet(world)


def _shared(strategy: str, most: int = 1, name: str = "work") -> dict[str, Any]:
    return {"body": "v1", **limited({"name": "shared", "max_runs": most, "limit_strategy": strategy}, name=name)}


async def test_a_new_version_changes_the_strategy_of_a_shared_limit(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [_shared("GROUP_ROUND_ROBIN")])
    await one.trigger("work")
    (await endpoint.next()).answer(200, 1)
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": [_shared("CANCEL_NEWEST")]})
    kept = await one.trigger("work")
    arrival = await endpoint.next()
    assert (await world.over(await one.trigger("work")))["error"]["message"].startswith("The concurrency group 'shared' was full")
    arrival.answer(200, 1)
    assert (await world.over(kept))["status"] == "succeeded"


async def _declare(world: World, one: Node, name: str, strategy: str, most: int) -> tuple[Endpoint, list[str]]:
    """An endpoint with one workflow, both of this name; answers also what the registration was warned of."""
    endpoint = await world.listen()
    document = await one.call("PUT", f"/v1/endpoints/{name}", {"url": endpoint.url, "handlers": [_shared(strategy, most, name)]})
    return endpoint, document["warnings"]


async def test_endpoints_that_declare_a_shared_limit_in_different_ways_are_told_and_the_lowest_holds(world: World, one: Node) -> None:
    first, warnings = await _declare(world, one, "a", "GROUP_ROUND_ROBIN", 5)
    assert warnings == []
    second, warnings = await _declare(world, one, "b", "GROUP_ROUND_ROBIN", 2)
    (warning,) = warnings
    assert "'shared'" in warning
    assert "'a' has it as GROUP_ROUND_ROBIN with max_runs 5; 'b' has it as GROUP_ROUND_ROBIN with max_runs 2" in warning
    assert "max_runs 2 and GROUP_ROUND_ROBIN hold" in warning
    first.way = second.way = (arrived := list[Arrival]()).append

    async def open_after(count: int, *workflows: str) -> None:
        for workflow in workflows:
            await one.trigger(workflow)
        await settle(one)

        async def there() -> bool:
            return len(arrived) == count

        await until(there)

    await open_after(2, "a", "a", "a", "b", "a")  # whoever comes, and in whatever order
    (row,) = (await one.call("GET", "/v1/audit", expect=200))["rows"]
    assert (row["action"], row["target"], row["details"]["max_runs"]) == ("concurrency_limit.disagreement", "shared", 2)
    _, warnings = await _declare(world, one, "b", "GROUP_ROUND_ROBIN", 2)  # the same again is nothing new
    assert len(warnings) == 1
    assert len((await one.call("GET", "/v1/audit"))["rows"]) == 1
    await one.call("PUT", "/v1/endpoints/b", {"url": second.url, "handlers": [_shared("GROUP_ROUND_ROBIN", 4, "b")]})
    await open_after(4)
    document = await one.call("PUT", "/v1/endpoints/b", {"url": second.url, "handlers": [_shared("GROUP_ROUND_ROBIN", 5, "b")]})
    assert document["warnings"] == []
    await open_after(5)
    for arrival in arrived:
        arrival.answer(200, 1)
    await quiet(world)


async def test_the_mildest_strategy_holds_while_endpoints_declare_several(world: World, one: Node) -> None:
    kept, _ = await _declare(world, one, "kept", "GROUP_ROUND_ROBIN", 1)
    other, warnings = await _declare(world, one, "other", "CANCEL_IN_PROGRESS", 1)
    assert "GROUP_ROUND_ROBIN hold" in warnings[0]
    runs = [await one.trigger(workflow) for workflow in ("kept", "other", "kept")]
    for endpoint in (kept, other, kept):
        (await endpoint.next()).answer(200, 1)  # nobody is cancelled for what another says
    assert [(await world.over(run))["status"] for run in runs] == ["succeeded"] * 3
    await one.call("DELETE", "/v1/endpoints/kept")
    runs = [await one.trigger("other") for _ in range(2)]
    await settle(one)
    (await other.next()).hung_up.clear()
    assert (await world.over(runs[0]))["status"] == "cancelled"
    (await other.next()).answer(200, 1)
    await quiet(world)


@pytest.mark.parametrize("other", [_shared("CANCEL_NEWEST", name="b"), _shared("GROUP_ROUND_ROBIN", 2, name="b")])
async def test_a_shared_limit_that_is_declared_in_two_ways_is_refused(one: Node, other: dict[str, Any]) -> None:
    handlers = [_shared("GROUP_ROUND_ROBIN", name="a"), other]
    problem = await one.call("PUT", "/v1/endpoints/plain", {"url": "http://127.0.0.1:9/", "handlers": handlers}, expect=400)
    assert problem["field"] == "handlers[1].concurrency"
    assert "'shared'" in problem["detail"]
