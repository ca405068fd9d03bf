"""Turns nobody will ever hear of: their endpoint was killed, its gateway spoke in its place, the dispatcher that held them stopped.

None of the handlers here has retries or is `idempotent`: a turn may always be sent again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World

SECOND = timedelta(seconds=1)


async def _first_turn(world: World, one: Node, **settings: Any) -> tuple[Endpoint, str, Arrival]:
    endpoint = await durable_endpoint(world, one, entry("order"), **settings)
    run_id = await one.trigger("order")
    return endpoint, run_id, await endpoint.next()


async def test_a_turn_whose_endpoint_is_killed_is_sent_again_at_once(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _first_turn(world, one)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]})
    turn.cut()
    again = await endpoint.next()
    assert (again.json["attempt"], again.json["turn"]) == (2, 1)
    assert [e["id"] for e in log_of(again)] == ["a#0"]
    late = await one.callback(turn.json["token"], {"type": "append", "base": 1, "ops": [step("b#0", 1)]}, 409)
    assert late["code"] == "stale_attempt"
    late = await one.callback(turn.json["token"], {"type": "turn", "status": "done", "base": 1, "output": "late"}, 409)
    assert late["code"] == "stale_attempt"
    answer(again, "done", base=1, output="fresh")
    over = await world.over(run_id)
    assert (over["status"], over["output"]) == ("succeeded", b'"fresh"')
    assert [(a["status"], a["code"]) for a in await world.attempts(run_id, 2)] == [("lost", "connection_lost"), ("succeeded", None)]


async def test_a_turn_that_brings_its_endpoint_down_is_sent_less_and_less_and_then_waits_for_help(world: World) -> None:
    one = await world.node(infra_retries=4)
    endpoint, run_id, turn = await _first_turn(world, one)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]})
    turn.cut()
    turn = await endpoint.next()
    for after in (1, 2, 4):
        turn.cut()
        assert (await world.task(run_id, state="scheduled"))["due_at"] == world.now + after * SECOND
        await world.advance(after * SECOND)
        turn = await endpoint.next()
    turn.cut()
    blocked = await world.task(run_id, state="blocked")
    assert '"connection_lost"' in blocked["error"]
    await one.call("POST", f"/v1/runs/{run_id}/resume", {})
    turn = await endpoint.next()
    assert [e["id"] for e in log_of(turn)] == ["a#0"], "nothing is lost"
    turn.cut()
    assert (await endpoint.next()).json["attempt"] == 7, "and it is sent again at once, as at first"


async def test_a_log_begins_once_whatever_becomes_of_its_first_turn(world: World, one: Node) -> None:
    """What a handler draws, and what its children are keyed by, is made of that moment: sent again it has to be the same."""
    endpoint, run_id, turn = await _first_turn(world, one)
    began = turn.json["started_at"]
    await world.advance(SECOND)
    turn.cut()
    again = await endpoint.next()
    assert (again.json["attempt"], again.json["started_at"]) == (2, began)
    assert again.json["now"] > began
    answer(again, "continue", base=0, ops=[step("a#0", 1)], input={"n": 2})
    third = await endpoint.next()
    assert third.json["started_at"] > began
    answer(third, "continue", base=0, ops=[step("a#0", 1)], input={"n": 3})
    fourth = await endpoint.next()
    assert fourth.json["started_at"] > third.json["started_at"], "two logs of a task never begin at one moment"
    fourth.cut()
    fifth = await endpoint.next()
    assert fifth.json["started_at"] == fourth.json["started_at"]
    answer(fifth, "done", base=0, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"
    first = [one.json.get("first_started_at") for one in (turn, again, third, fourth, fifth)]
    assert first[:2] == [None, None], "there was no log before"
    assert first[2] == first[3] == first[4] == again.json["now"], "which is when the first was written to, in all that follow"


async def test_one_that_never_began_fails(world: World) -> None:
    one = await world.node(infra_retries=1)
    endpoint, run_id, turn = await _first_turn(world, one)
    turn.cut()
    (await endpoint.next()).cut()
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("failed", "connection_lost")


@pytest.mark.parametrize("status", [502, 504])
@pytest.mark.parametrize("headers", [{}, {"x_vercel_error": "FUNCTION_INVOCATION_TIMEOUT"}], ids=["gateway", "platform"])
async def test_what_a_gateway_says_is_not_the_turns_answer(world: World, one: Node, status: int, headers: dict[str, str]) -> None:
    endpoint, run_id, turn = await _first_turn(world, one)
    turn.answer(status, b"<html>bad gateway", content_type="text/html", **headers)
    again = await endpoint.next()
    answer(again, "done", base=0, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"
    assert (await world.attempts(run_id, 2))[0]["status"] == "lost"


async def test_what_the_endpoint_says_itself_is(world: World, one: Node) -> None:
    _, run_id, turn = await _first_turn(world, one)
    turn.answer(502, {"code": "upstream"}, task_protocol="1")
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("failed", "upstream")


async def _batched(world: World, one: Node) -> tuple[Endpoint, list[str], Arrival]:
    endpoint = await durable_endpoint(world, one, entry("order"), batch=True)
    runs = [{"workflow": "order", "input": {"n": n}} for n in range(3)]
    rows = (await one.call("POST", "/v1/runs/bulk", {"runs": runs}))["rows"]
    return endpoint, [row["id"] for row in rows], await endpoint.next()


@pytest.mark.parametrize("end", ["cut", "short", "missing", "gateway"])
async def test_of_a_batch_that_breaks_off_the_rest_is_sent_again(world: World, one: Node, end: str) -> None:
    endpoint, runs, batch = await _batched(world, one)
    items = batch.json["items"]
    first = {"id": items[0]["id"], "status": "done", "base": 0, "ops": [], "output": "told"}
    if end == "gateway":
        batch.answer(502)
    elif end == "missing":
        batch.answer(200, {"results": [first]}, task_protocol="1")
    else:
        batch.begin_stream()
        batch.line(first)
        batch.cut() if end == "cut" else batch.end_stream()
    left = 3 if end == "gateway" else 2
    while left:  # together or each alone
        again = await endpoint.next()
        items = again.json["items"] if again.json["type"] == "batch" else [again.json]
        results = [{"id": item["id"], "status": "done", "base": 0, "ops": [], "output": "again"} for item in items]
        again.answer(200, {"results": results} if again.json["type"] == "batch" else results[0], task_protocol="1")
        left -= len(items)
    outputs = [(await world.over(run_id))["output"] for run_id in runs]
    assert sorted(outputs) == [b'"again"'] * (3 if end == "gateway" else 2) + [b'"told"'] * (0 if end == "gateway" else 1)


async def test_a_turn_told_to_stop_that_breaks_off_is_cleaned_up_after(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _first_turn(world, one)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("book#0", 1)]})
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "no more"}, 202)
    assert (await endpoint.next()).json["type"] == "cancel"
    turn.cut()
    last = await endpoint.next()
    assert [e["id"] for e in log_of(last)] == ["book#0", "cancel#0"]
    assert last.json["cancel"] == {"reason": "no more"}
    answer(last, "done", base=2, ops=[step("unbook#0", 1)])
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("cancelled", "cancelled")
    assert [a["status"] for a in await world.attempts(run_id, 2)] == ["cancelled", "cancelled"]


async def test_so_is_one_that_does_not_listen(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _first_turn(world, one)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("book#0", 1)]})
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    assert (await endpoint.next()).json["type"] == "cancel"
    world.clock.advance(11 * SECOND)
    await one.turn("cancels")
    await turn.gone()
    last = await endpoint.next()
    assert [e["id"] for e in log_of(last)] == ["book#0", "cancel#0"]
    answer(last, "done", base=2)
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_dispatcher_that_stops_gives_its_turns_to_another(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _first_turn(world, one)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]})
    two = await world.node("two")
    world.nodes.remove(one)
    await one.runtime.stop(timedelta(0))
    await one.api.aclose()
    await turn.gone()
    await two.turn("slots")
    await world.advance(timedelta(seconds=two.runtime.services.settings.poll))
    again = await endpoint.next()
    assert (again.json["attempt"], [e["id"] for e in log_of(again)]) == (2, ["a#0"])
    answer(again, "wait", base=1, ops=[pending("sleep", "nap#0", ms=1)], wake="nap#0")
    await world.task(run_id, state="waiting")
