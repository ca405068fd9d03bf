"""Durable tasks in trouble: what broke them once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from dispatcher.store import waits
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
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
