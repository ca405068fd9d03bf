"""What a durable task's endpoint may not do: each has a documented code, stores nothing, and leaves the task able to go on."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
from tests.world.world import Node, World, until


async def _turn(world: World, one: Node, **handler: Any) -> tuple[Any, str, Any]:
    endpoint = await durable_endpoint(world, one, entry("order", **handler))
    run_id = await one.trigger("order")
    return endpoint, run_id, await endpoint.next()


async def _nothing_stored(world: World) -> None:
    assert await world.database.fetchval("select count(*) from journal") == 0
    assert await world.database.fetchval("select count(*) from waits") == 0


BAD: dict[str, Any] = {
    "no id": {"op": "step", "status": "ok"},
    "an empty id": {"id": "", "op": "step", "status": "ok"},
    "an unknown operation": {"id": "a#0", "op": "dance", "status": "pending"},
    "a step in a request of its own": {"id": "a#0", "op": "run", "status": "pending"},
    "a step that is pending": {"id": "a#0", "op": "step", "status": "pending"},
    "a cancel of its own": {"id": "cancel#0", "op": "cancel", "status": "ok"},
    "a sleep that is over": {"id": "a#0", "op": "sleep", "status": "ok"},
    "a sleep of less than nothing": pending("sleep", "a#0", ms=-1),
    "a sleep of nothing at all": pending("sleep", "a#0"),
    "a sleep of both kinds": pending("sleep", "a#0", ms=1, until="2026-03-01T12:00:00Z"),
    "a sleep beyond reason": pending("sleep", "a#0", ms=1e15),
    "a sleep until some local time": pending("sleep", "a#0", until="2026-03-01T12:00:00"),
    "an event without a key": pending("event", "a#0"),
    "an event with a bad expression": pending("event", "a#0", key="k", expression="input.x >"),
    "an event since some word": pending("event", "a#0", key="k", since="yesterday"),
    "an event that waits for less than nothing": pending("event", "a#0", key="k", timeout_ms=-5),
    "a child of no workflow": pending("child", "a#0", input={}),
    "a child of no such priority": pending("child", "a#0", workflow="child", priority=9),
    "metadata that is no object": pending("child", "a#0", workflow="child", metadata=[1]),
    "a retry in the past": {"id": "a#0", "op": "step", "status": "retry", "after_ms": -1},
    "a number for a name": {"id": 5, "op": "step", "status": "ok"},
}


@pytest.mark.parametrize("op", BAD.values(), ids=BAD)
async def test_a_bad_operation_is_refused_by_name(world: World, one: Node, op: Any) -> None:
    _endpoint, run_id, turn = await _turn(world, one)
    refused = await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("fine#0", 1), op]}, 422)
    assert refused["code"] == "invalid_op"
    assert "operation" in refused["detail"]
    await _nothing_stored(world)
    answer(turn, "wait", base=0, ops=[op], wake="a#0")
    attempts = await world.attempts(run_id, 1)
    assert (attempts[0]["status"], attempts[0]["code"]) == ("failed", "invalid_op")
    assert (await world.over(run_id))["status"] == "failed"
    assert await world.database.fetchval("select count(*) from journal_history") == 0


@pytest.mark.parametrize(
    "text", [b'{"type":"append","base":0,"ops":[{"id":"a#0","op":"step","status":"ok","value":NaN}]}', b'{"ops": [', b"[]"]
)
async def test_what_is_no_json_is_refused(world: World, one: Node, text: bytes) -> None:
    _, _, turn = await _turn(world, one)
    reply = await one.api.post("/v1/callback", content=text, headers={"authorization": f"Bearer {turn.json['token']}"})
    assert reply.status_code == 400
    assert reply.json()["code"] in ("invalid_json", "invalid_event")
    await _nothing_stored(world)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, {"ok": True}, {}),
        (200, {"status": "done", "output": 1}, {}),
        (200, {"hello": 1}, {"task_protocol": "1"}),
        (200, {"status": "dancing"}, {"task_protocol": "1"}),
        (200, b"hello", {"content_type": "text/plain", "task_protocol": "1"}),
        (204, b"", {"task_protocol": "1"}),
        (200, [1, 2], {"task_protocol": "1"}),
        (200, {"status": "wait", "base": "x"}, {"task_protocol": "1"}),
    ],
)
async def test_a_stray_page_is_never_a_turn(world: World, one: Node, status: int, body: Any, headers: dict[str, str]) -> None:
    endpoint, run_id, turn = await _turn(world, one, retries=1)
    turn.answer(status, body, **headers)
    second = await endpoint.next()
    assert second.json["attempt"] == 2
    attempts = await world.attempts(run_id, 1)
    assert attempts[0]["code"] == "bad_turn"
    answer(second, "done", base=0, output="done")
    assert (await world.over(run_id))["output"] == b'"done"'


@pytest.mark.parametrize(
    "wake",
    [None, "zzz", {"any": []}, {"any": ["nap#0", "zzz"]}, {"all": [{"any": ["zzz"]}]}, {"any": ["nap#0"], "all": ["nap#0"]}, 5, ["nap#0"]],
)
async def test_a_wait_for_what_is_not_there_fails_the_turn_and_does_not_hang(world: World, one: Node, wake: Any) -> None:
    endpoint, run_id, turn = await _turn(world, one, retries=1)
    answer(turn, "wait", base=0, ops=[pending("sleep", "nap#0", ms=60_000)], wake=wake)
    second = await endpoint.next()
    assert [e["id"] for e in log_of(second)] == ["nap#0"], "what it recorded stays"
    attempts = await world.attempts(run_id, 1)
    assert attempts[0]["code"] == "unknown_wake"
    answer(second, "wait", base=1, wake="nap#0")
    await world.task(run_id, state="waiting")


@pytest.mark.parametrize("base", [2**31 - 1, 2**31, 10**30])
async def test_a_base_beyond_all_logs_is_a_conflict_like_any_other(world: World, one: Node, base: int) -> None:
    endpoint, run_id, turn = await _turn(world, one, retries=1)
    conflict = await one.callback(turn.json["token"], {"type": "append", "base": base, "ops": [step("a#0", 1)]}, 412)
    assert (conflict["code"], conflict["len"]) == ("log_conflict", 0)
    answer(turn, "wait", base=base, ops=[pending("sleep", "nap#0", ms=1)], wake="nap#0")
    second = await endpoint.next()
    assert (await world.attempts(run_id, 1))[0]["code"] == "log_conflict"
    answer(second, "done", base=0, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_two_appends_on_one_base(world: World, one: Node) -> None:
    _, _, turn = await _turn(world, one)
    token = turn.json["token"]
    replies = await asyncio.gather(
        *[
            one.api.post(
                "/v1/callback",
                json={"type": "append", "base": 0, "ops": [step(f"a#{n}", n)]},
                headers={"authorization": f"Bearer {token}"},
            )
            for n in range(20)
        ]
    )
    codes = [reply.status_code for reply in replies]
    assert sorted(codes) == [200] + [412] * 19
    winner = codes.index(200)
    for reply in replies:
        if reply.status_code == 412:
            document = reply.json()
            assert (document["code"], document["len"], document["entries"]) == ("log_conflict", 1, [step(f"a#{winner}", winner)])
    assert await world.database.fetchval("select count(*) from journal") == 1


async def test_an_answer_repeats_what_an_append_has_recorded(world: World, one: Node) -> None:
    """The reply to the append was lost; the answer brings the same operations again, and one more."""
    endpoint, run_id, turn = await _turn(world, one)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]})
    answer(turn, "again", base=0, ops=[step("a#0", 1), step("b#0", 2)])
    second = await endpoint.next()
    assert [e["id"] for e in log_of(second)] == ["a#0", "b#0"]
    answer(second, "done", base=0, ops=[step("x#0", 1)])
    third = None
    attempts = await world.attempts(run_id, 2)
    assert attempts[1]["code"] == "log_conflict"
    assert third is None


async def test_a_stale_turn_may_record_nothing(world: World, one: Node) -> None:
    endpoint, run_id, first = await _turn(world, one, retries=1)
    await one.callback(first.json["token"], {"type": "fail", "error": {"message": "by callback"}})
    second = await endpoint.next()
    refused = await one.callback(first.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]}, 409)
    assert refused["code"] == "stale_attempt"
    answer(first, "done", base=0, ops=[step("b#0", 1)], output="stale")
    assert (await world.task(run_id))["state"] == "running"
    answer(second, "done", base=0, output="fresh")
    assert (await world.over(run_id))["output"] == b'"fresh"'
    late = await one.callback(second.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]}, 410)
    assert late["code"] == "task_ended"
    assert await world.database.fetchval("select count(*) from journal_history") == 0


async def test_an_occurrence_is_asked_for_once(world: World, one: Node) -> None:
    _, _, turn = await _turn(world, one)
    token = turn.json["token"]
    twice = await one.callback(
        token, {"type": "append", "base": 0, "ops": [pending("sleep", "a#0", ms=1), pending("sleep", "a#0", ms=1)]}, 422
    )
    assert twice["code"] == "invalid_op"
    await one.callback(token, {"type": "append", "base": 0, "ops": [pending("sleep", "a#0", ms=1)]})
    again = await one.callback(token, {"type": "append", "base": 1, "ops": [pending("event", "a#0", key="k")]}, 422)
    assert again["code"] == "invalid_op"
    assert "pending already" in again["detail"]


@pytest.mark.parametrize("first", ["step", "sleep", "child"])
@pytest.mark.parametrize("second", ["step", "event", "child"])
async def test_an_id_that_waits_is_not_reused_for_something_else(world: World, one: Node, first: str, second: str) -> None:
    """What waits would be waited for by another rule than its own, or be wiped away with what it has come to."""
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    ops = {
        "step": {"id": "x#0", "op": "step", "status": "retry", "error": {"message": "no"}, "after_ms": 60_000},
        "sleep": pending("sleep", "x#0", ms=60_000),
        "event": pending("event", "x#0", key="k"),
        "child": pending("child", "x#0", workflow="leaf"),
    }
    before = await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [ops[first]]})
    known = await world.database.fetch("select * from waits")
    if first == second == "step":
        await one.callback(turn.json["token"], {"type": "append", "base": 1, "ops": [ops[second]]})
        return
    refused = await one.callback(turn.json["token"], {"type": "append", "base": before["len"], "ops": [ops[second]]}, 422)
    assert refused["code"] == "invalid_op"
    assert await world.database.fetch("select * from waits") == known
    assert await world.database.fetchval("select log_len from tasks where run_id = $1", run_id) == 1


async def test_limits_have_names_and_leave_the_task_whole(world: World) -> None:
    one = await world.node(journal_entries=5, journal_bytes=2_000, turn_ops=3)
    endpoint = await durable_endpoint(world, one, entry("order", retries=3))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    token = turn.json["token"]
    many = await one.callback(token, {"type": "append", "base": 0, "ops": [step(f"a#{n}", n) for n in range(4)]}, 422)
    assert many["code"] == "too_many_ops"
    large = await one.callback(token, {"type": "append", "base": 0, "ops": [step("a#0", "x" * 3_000)]}, 422)
    assert large["code"] == "journal_too_large"
    await one.callback(token, {"type": "append", "base": 0, "ops": [step(f"a#{n}", n) for n in range(3)]})
    long = await one.callback(token, {"type": "append", "base": 3, "ops": [step(f"b#{n}", n) for n in range(3)]}, 422)
    assert long["code"] == "journal_too_long"
    grown = await one.callback(token, {"type": "append", "base": 3, "ops": [step("b#0", "x" * 1_800)]}, 422)
    assert grown["code"] == "journal_too_large"
    answer(turn, "again", base=3, ops=[step(f"c#{n}", n) for n in range(4)])
    second = await endpoint.next()
    assert (await world.attempts(run_id, 1))[0]["code"] == "too_many_ops"
    assert len(log_of(second)) == 3
    answer(second, "continue", base=3, input={"rest": True})
    third = await endpoint.next()
    assert third.json["log"]["len"] == 0
    answer(third, "done", base=0)
    assert (await world.over(run_id))["status"] == "succeeded"


SCOPE = {"id": "i#0", "op": "scope", "status": "ok", "value": 1, "at": "2026-03-01T12:00:00.000Z"}


@pytest.mark.parametrize(
    ("ops", "code"),
    [
        ([step("i#0/b#0", 1)], "scope_closed"),
        ([step(f"b#{n}", n) for n in range(4)], "journal_too_long"),
        ([step("b#0", "x" * 1_700)], "journal_too_large"),
        ([step(f"b#{n}", n) for n in range(6)], "too_many_ops"),
        ([step("b#0", 1), pending("sleep", "c#0", ms=-1)], "invalid_op"),
        ([step("b#0", 1), {"id": "c#0", "op": "run", "status": "pending"}], "invalid_op"),
        ([pending("sleep", "nap#0", ms=1)], "invalid_op"),
        ([step("b#0", "\0")], "invalid_op"),
    ],
    ids=["closed", "long", "large", "many", "negative", "run", "twice", "nul"],
)
async def test_what_an_answer_may_not_record_leaves_the_log_as_it_was(world: World, ops: Any, code: str) -> None:
    """In a batch, too, where half of them are."""
    one = await world.node(journal_entries=6, journal_bytes=2_000, turn_ops=5)
    endpoint = await durable_endpoint(world, one, entry("order", retries=1), batch=code != "invalid_op")
    run_id = await one.trigger("order")
    before = [SCOPE, step("a#0", 1), pending("sleep", "nap#0", ms=3_600_000)]
    answer(await endpoint.next(), "again", base=0, ops=before)
    answer(await endpoint.next(), "done", base=3, ops=ops, output="never")
    again = await endpoint.next()
    assert log_of(again) == before
    refused = (await world.attempts(run_id, 2))[1]
    assert (refused["status"], refused["code"]) == ("failed", code)
    answer(again, "done", base=3, ops=[step("b#0", 1)], output="fine")
    assert (await world.over(run_id))["output"] == b'"fine"'


async def test_an_answer_beyond_all_bounds_fails_the_task(world: World) -> None:
    one = await world.node(max_response_bytes=100_000)
    endpoint = await durable_endpoint(world, one, entry("order", retries=1))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "again", base=0, ops=[step("a#0", "x" * 200_000)])
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("failed", "response_too_large")
    await _nothing_stored(world)


async def test_what_comes_true_is_told_beyond_the_limit(world: World) -> None:
    """A log that is full takes nothing more from its endpoint, and ends well all the same."""
    one = await world.node(journal_entries=3)
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    names = [f"nap#{n}" for n in range(3)]
    answer(await endpoint.next(), "wait", base=0, ops=[pending("sleep", name, ms=1_000) for name in names], wake={"all": names})
    await world.task(run_id, state="waiting")
    world.clock.advance(timedelta(seconds=2))
    await one.turn("waits")
    turn = await endpoint.next()
    assert turn.json["log"]["len"] == 6
    full = await one.callback(turn.json["token"], {"type": "append", "base": 6, "ops": [step("a#0", 1)]}, 422)
    assert full["code"] == "journal_too_long"
    answer(turn, "done", base=6, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_hundred_thousand_operations_by_callback_are_too_many_too(world: World, one: Node) -> None:
    _, _, turn = await _turn(world, one)
    ops = [{"id": f"a#{n}", "op": "step", "status": "ok"} for n in range(100_000)]
    text = json.dumps({"type": "append", "base": 0, "ops": ops})
    reply = await one.api.post("/v1/callback", content=text, headers={"authorization": f"Bearer {turn.json['token']}"})
    assert (reply.status_code, reply.json()["code"]) in ((422, "too_many_ops"), (413, "body_too_large"))
    await _nothing_stored(world)
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": ops[:1]})


async def test_a_hundred_thousand_operations_are_too_many(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _turn(world, one)
    ops = [{"id": f"a#{n}", "op": "step", "status": "ok"} for n in range(100_000)]
    answer(turn, "again", base=0, ops=ops)
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) in (("failed", "too_many_ops"), ("failed", "response_too_large"))
    del endpoint


async def test_again_and_again_without_progress_is_a_failure(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _turn(world, one, retries=2)
    for _ in range(2):
        answer(turn, "again", base=0)
        turn = await endpoint.next()
    answer(turn, "again", base=0)
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"]) == ("failed", "no_progress")


async def test_a_closed_scope_takes_nothing_from_the_same_append_either(world: World, one: Node) -> None:
    _, _, turn = await _turn(world, one)
    scope = {"id": "i#0", "op": "scope", "status": "ok", "value": 1}
    refused = await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [scope, step("i#0/a#0", 1)]}, 422)
    assert refused["code"] == "scope_closed"


async def test_callbacks_in_groups_are_judged_one_by_one(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    for _ in range(3):
        await one.trigger("order")
    turns = await endpoint.several(3)
    items = [
        {"token": turn.json["token"], "events": [{"type": "append", "base": 0, "ops": [step("a#0", n)]}]} for n, turn in enumerate(turns)
    ]
    bad = [
        {"token": "atk1.forged", "events": []},
        {"token": turns[0].json["token"], "events": [{"type": "append", "base": 7, "ops": []}]},
        {"nothing": 1},
    ]
    reply = await one.call("POST", "/v1/callbacks", {"items": [*items, *bad]})
    assert [result["status"] for result in reply["results"]] == [200, 200, 200, 401, 412, 400]
    assert [result["body"]["len"] for result in reply["results"][:3]] == [1, 1, 1]
    assert await world.database.fetchval("select count(*) from journal") == 3
    assert (await one.call("POST", "/v1/callbacks", {"items": 5}, 400))["code"] == "invalid_event"


async def test_a_turn_may_be_answered_by_callback(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _turn(world, one)
    turn.answer(202, {"lease_ms": 60_000})
    await world.task(run_id, dispatcher_id=None)
    token = turn.json["token"]
    refused = await one.callback(token, {"type": "turn", "status": "dancing"}, 400)
    assert refused["code"] == "invalid_event"
    event = {"type": "turn", "status": "wait", "base": 0, "ops": [pending("message", "m#0")], "wake": "m#0"}
    await one.callback(token, event)
    await world.task(run_id, state="waiting")
    await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 1}, 202)
    second = await endpoint.next()
    second.answer(202, {"lease_ms": 60_000})
    await world.task(run_id, dispatcher_id=None, state="running")
    await one.callback(second.json["token"], {"type": "turn", "status": "done", "base": 2, "ops": [step("a#0", 1)], "output": 5})
    assert (await world.over(run_id))["output"] == b"5"

    async def freed() -> bool:
        await one.turn("slots")
        return one.runtime.capacity.total == 0

    await until(freed)


async def test_what_was_never_recorded_can_be_refused_by_name(world: World, one: Node) -> None:
    await durable_endpoint(world, one, entry("order"))
    assert (await one.call("GET", "/v1/runs/run_01kjmma2g0czyrhcbp8za2pvxp/journal", expect=404))["code"] == "not_found"
    assert (await one.call("POST", "/v1/runs/nonsense/reset", {}, 404))["code"] == "not_found"
    assert (await one.call("POST", "/v1/runs/nonsense/messages", {"data": 1}, 404))["code"] == "not_found"
    assert (await one.call("POST", "/v1/runs/nonsense/resume", {}, 404))["code"] == "not_found"
    assert (await one.call("GET", "/v1/log", expect=401))["code"] == "unauthorized"
