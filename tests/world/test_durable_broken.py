"""Durable tasks in trouble: what broke them once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from dispatcher.store import waits
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World


async def test_a_plain_task_has_no_log(world: World, one: Node) -> None:
    """Or its retries would begin anew with each append."""
    endpoint = await durable_endpoint(world, one, {"name": "plain"})
    await one.trigger("plain")
    turn = await endpoint.next()
    for ops in ([step("a#0", 1)], [pending("sleep", "b#0", ms=1)]):
        refused = await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": ops}, 409)
        assert refused["code"] == "not_durable"
    assert await world.database.fetchval("select count(*) from journal") == 0


@pytest.mark.parametrize(
    "op",
    [pending("sleep", "a#0", until="0001-01-01T00:00:00+14:00"), pending("event", "a#0", key="k", since="0001-01-01T00:00:00+14:00")],
    ids=["until", "since"],
)
async def test_a_moment_before_all_others_is_a_moment(world: World, one: Node, op: dict[str, Any]) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    await one.trigger("order")
    turn = await endpoint.next()
    assert (await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [op]}))["len"] == 1


async def test_a_state_that_cannot_be_kept_fails_the_turn(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order", mode="state"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    answer(turn, "wait", ops=[pending("sleep", "a#0", ms=0)], wake="a#0", state={"at": "\0"})
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("failed", "invalid_output")


async def test_many_who_wait_for_messages_get_them_in_the_order_they_asked(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    names = [f"m#{n}" for n in range(12)]
    for n in range(12):
        await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": n}, 202)
    answer(turn, "wait", base=0, ops=[pending("message", name) for name in names], wake={"all": names})
    turn = await endpoint.next()
    assert {e["id"]: e["value"] for e in log_of(turn)[12:]} == {f"m#{n}": n for n in range(12)}


async def test_again_of_somebody_who_counts_wrong_is_no_progress(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "again", base=10)
    over = await world.over(run_id)
    assert over["error"]["code"] == "no_progress"


@pytest.mark.parametrize("status", [503, 409, "cut"])
async def test_cleaning_up_is_tried_again_where_nobody_took_it(world: World, one: Node, status: Any) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[step("book#0", 1), pending("sleep", "nap#0", ms=3_600_000)], wake="nap#0")
    await world.task(run_id, state="waiting")
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    turn = await endpoint.next()
    if status == "cut":
        turn.cut()
    else:
        turn.answer(status)
    await world.task(run_id, state="scheduled")
    await world.advance(timedelta(seconds=3))
    again = await endpoint.next()
    assert [e["id"] for e in log_of(again)] == ["book#0", "nap#0", "cancel#0"]
    answer(again, "done", base=3)
    assert (await world.over(run_id))["status"] == "cancelled"


def _unstamped() -> list[dict[str, Any]]:
    """A step and a child whose writer does not say when, and which run the child is the dispatcher says."""
    ops = [step("a#0", 1), pending("child", "c#0", workflow="leaf")]
    return [{name: value for name, value in op.items() if name != "at"} for op in ops]


async def test_an_append_is_the_same_again_later(world: World, one: Node) -> None:
    """Its reply was lost, and it says no moment of its own."""
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    await one.trigger("order")
    turn = await endpoint.next()
    event = {"type": "append", "base": 0, "ops": _unstamped()}
    first = await one.callback(turn.json["token"], event)
    world.clock.advance(timedelta(seconds=1))
    again = await one.callback(turn.json["token"], event)
    assert (again["len"], again["children"], again["duplicate"]) == (2, first["children"], True)
    other = {"type": "append", "base": 0, "ops": [{**_unstamped()[0], "value": 2}]}
    assert (await one.callback(turn.json["token"], other, 412))["code"] == "log_conflict"


async def test_an_answer_may_repeat_later_what_an_append_has_recorded(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": _unstamped()})
    assert (await endpoint.next()).json["type"] == "run"
    world.clock.advance(timedelta(seconds=1))
    answer(turn, "done", base=0, ops=[*_unstamped(), step("b#0", 2)], output=1)
    over = await world.over(run_id)
    assert (over["status"], over["error"]) == ("succeeded", None)


async def test_cancelling_again_while_it_cleans_up_changes_nothing(world: World, one: Node) -> None:
    """Before its last turn begins, and while it is under way."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[step("book#0", 1), pending("sleep", "nap#0", ms=3_600_000)], wake="nap#0")
    await world.task(run_id, state="waiting")
    await one.runtime.loops["claim"].stop()
    for _ in range(2):
        assert (await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202))["status"] == "cancelling"
    one.runtime.loops["claim"].start()
    turn = await endpoint.next()
    assert (await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202))["status"] == "cancelling"
    answer(turn, "done", base=3, ops=[step("unbook#0", 1)])
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_step_that_is_due_is_due_by_the_clock_of_whoever_sends_its_turn(world: World, one: Node) -> None:
    """A dispatcher whose clock is behind says no earlier time than the one at which another has found the step due; nor does the next."""
    endpoint = await durable_endpoint(world, one, entry("order", retries=1))
    run_id = await one.trigger("order")
    retry = {"id": "a#0", "op": "step", "status": "retry", "error": {"message": "no"}, "after_ms": 5_000}
    answer(await endpoint.next(), "wait", base=0, ops=[retry], wake="a#0")
    await world.task(run_id, state="waiting")
    ahead = world.now + timedelta(seconds=9)
    await waits.due(world.database, ahead, 10)
    await one.turn("waits")
    turn = await endpoint.next()
    assert datetime.fromisoformat(turn.json["now"]) >= ahead.replace(microsecond=ahead.microsecond // 1000 * 1000)
    answer(turn, "wait", base=1, wake="a#0")
    assert (await endpoint.next()).json["turn"] == 3


async def test_an_event_meets_a_wait_that_was_registered_by_a_clock_ahead(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("event", "e#0", key="paid")], wake="e#0")
    await world.task(run_id, state="waiting")
    await world.database.execute(
        "update waits set created_at = created_at + interval '2 s', since = since + interval '2 s', look_at = null"
    )
    await one.call("POST", "/v1/events", {"type": "paid", "data": {}})
    assert log_of(await endpoint.next())[-1]["status"] == "ok"


# ---- answers that do not come with the request's, and say no length


async def _second_state_turn(world: World, one: Node) -> tuple[Endpoint, str, Arrival]:
    endpoint = await durable_endpoint(world, one, entry("order", mode="state"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", ops=[pending("message", "m#1")], wake="m#1", state={"at": 1})
    await world.task(run_id, state="waiting")
    await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 1}, 202)
    return endpoint, run_id, await endpoint.next()


async def test_a_reducer_that_was_accepted_need_not_know_how_long_its_log_is(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _second_state_turn(world, one)
    turn.answer(202, {"lease_ms": 60_000})
    await world.task(run_id, dispatcher_id=None, state="running")
    asked = {"ops": [pending("message", "m#2")], "wake": "m#2", "state": {"at": 2}}
    await one.callback(turn.json["token"], {"type": "turn", "status": "wait", **asked})
    await world.task(run_id, state="waiting")
    await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 2}, 202)
    third = await endpoint.next()
    assert (third.json["state"], [e["value"] for e in third.json["results"]]) == ({"at": 2}, [2])


@pytest.mark.parametrize("accepted", [False, True])
async def test_what_a_reducer_records_before_its_answer_comes_before_it(world: World, one: Node, accepted: bool) -> None:
    """The second operation of its answer is one that an append has recorded: it is not asked for twice."""
    _, run_id, turn = await _second_state_turn(world, one)
    again = pending("sleep", "nap#2", ms=60_000)
    ops = [{"id": "save#2", "op": "checkpoint", "status": "ok", "value": 7}, again]
    length = (await one.callback(turn.json["token"], {"type": "append", "base": 2, "ops": ops}))["len"]
    assert length == 4
    said: dict[str, Any] = {"ops": [pending("message", "m#2"), again], "wake": {"any": ["m#2", "nap#2"]}, "state": {"at": 2}}
    if accepted:
        turn.answer(202, {"lease_ms": 60_000})
        await world.task(run_id, dispatcher_id=None, state="running")
        await one.callback(turn.json["token"], {"type": "turn", "status": "wait", **said})
    else:
        answer(turn, "wait", **said)
    await world.task(run_id, state="waiting", log_len=5)
    assert (await one.call("GET", f"/v1/runs/{run_id}/checkpoint"))["value"] == 7


async def test_a_reducer_hears_what_came_of_a_turn_that_broke_off_once_it_has_said_what_it_was_for(world: World, one: Node) -> None:
    """The state that goes with it was never recorded: until it is, nobody knows what the nap was for, though it is over."""
    endpoint = await durable_endpoint(world, one, entry("order", mode="state"))
    run_id = await one.trigger("order")
    turn, nap = await endpoint.next(), pending("sleep", "nap#0", ms=1_000)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1), nap]})
    await one.runtime.loops["claim"].stop()
    turn.cut()
    await world.task(run_id, state="queued")
    world.clock.advance(timedelta(seconds=5))
    await one.turn("waits")
    one.runtime.loops["claim"].start()
    again = await endpoint.next()
    assert (again.json["state"], [e["id"] for e in again.json["results"]]) == (None, ["a#0"])
    answer(again, "wait", ops=[nap], wake="nap#0", state={"at": 1})
    third = await endpoint.next()
    assert (third.json["state"], [e["id"] for e in third.json["results"]]) == ({"at": 1}, ["nap#0"])
    answer(third, "done", output=1)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_again_of_a_turn_that_was_accepted_is_progress_if_it_recorded_something(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    turn.answer(202, {"lease_ms": 60_000})
    await world.task(run_id, dispatcher_id=None, state="running")
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]})
    await one.callback(turn.json["token"], {"type": "turn", "status": "again", "base": 1})
    second = await endpoint.next()
    assert [e["id"] for e in log_of(second)] == ["a#0"]
    second.answer(202, {"lease_ms": 60_000})
    await world.task(run_id, dispatcher_id=None, state="running")
    await one.callback(second.json["token"], {"type": "turn", "status": "again", "base": 1})
    assert (await world.over(run_id))["error"]["code"] == "no_progress"


async def test_a_reset_goes_on_waiting_for_children_by_the_keys_they_have(world: World, one: Node) -> None:
    """They are still at work: nothing is asked for again, whatever names they were given."""
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await one.trigger("order")
    ops = [pending("child", "c#0", workflow="leaf", key="k"), pending("child", "c#1", workflow="leaf"), step("a#0", 1)]
    answer(await endpoint.next(), "wait", base=0, ops=ops, wake={"all": ["c#0", "c#1"]})
    leaves = [await endpoint.next(), await endpoint.next()]
    await world.task(run_id, state="waiting")
    await one.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": "a#0"})
    turn = await endpoint.next()
    assert [e["id"] for e in log_of(turn)] == ["c#0", "c#1"]
    answer(turn, "wait", base=2, ops=[step("a#0", 2)], wake={"all": ["c#0", "c#1"]})
    await world.task(run_id, state="waiting")
    for n, leaf in enumerate(leaves):
        leaf.answer(200, n)
    last = await endpoint.next()
    assert {e["id"] for e in log_of(last)[3:]} == {"c#0", "c#1"}
    assert await world.database.fetchval("select count(*) from run_history where workflow_id <> (select workflow_id from runs)") == 2
