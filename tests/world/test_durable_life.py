"""What becomes of durable tasks: cancelled, blocked, retried, continued, reset, told things, in state mode, in batches."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime.intake import RunAccepted, RunRequest
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, rolled, step
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until


async def _waiting(world: World, one: Node, endpoint: Endpoint, *ops: dict[str, Any], wake: Any, **fields: Any) -> str:
    run_id = await one.trigger("order", **fields)
    answer(await endpoint.next(), "wait", base=0, ops=list(ops), wake=wake)
    await world.task(run_id, state="waiting")
    return run_id


# ---- cancelling


async def test_a_cancelled_wait_gets_one_turn_to_clean_up_in(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, step("book#0", 1), pending("sleep", "nap#0", ms=3_600_000), wake="nap#0")
    assert (await one.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "changed my mind"}, 202))["status"] == "cancelling"
    turn = await endpoint.next()
    assert turn.json["cancel"] == {"reason": "changed my mind"}
    cancel = log_of(turn)[-1]
    assert (cancel["id"], cancel["op"], cancel["value"]) == ("cancel#0", "cancel", {"reason": "changed my mind"})
    assert turn.json["timeout_ms"] == 10_000
    refused = await one.callback(turn.json["token"], {"type": "append", "base": 3, "ops": [pending("sleep", "z#0", ms=1)]}, 422)
    assert refused["code"] == "invalid_op"
    await one.callback(turn.json["token"], {"type": "append", "base": 3, "ops": [step("refund#0", True)]})
    answer(turn, "done", base=4, output="never mind")
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"], over["output"]) == ("cancelled", "cancelled", None)


async def test_what_is_cancelled_saves_its_state_and_closes_its_scopes_but_asks_for_nothing(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, pending("message", "message#0"), wake="message#0")
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "stop"}, 202)
    turn = await endpoint.next()
    assert [(e["id"], e["status"]) for e in log_of(turn)] == [("message#0", "pending"), ("message#0", "cancel"), ("cancel#0", "ok")]
    saved = {"id": "checkpoint#0", "op": "checkpoint", "status": "ok", "value": {"at": 9}}
    patch, scope = {"id": "p#0", "op": "patch", "status": "ok", "value": True}, {"id": "undo#0", "op": "scope", "status": "ok", "value": 1}
    await one.callback(turn.json["token"], {"type": "append", "base": 3, "ops": [saved, step("undo#0/refund#0", 1), scope, patch]})
    for op in (pending("child", "c#0", workflow="order"), {"id": "inbox#0", "op": "message", "status": "closed"}):
        refused = await one.callback(turn.json["token"], {"type": "append", "base": 7, "ops": [step("a#0", 1), op]}, 422)
        assert refused["code"] == "invalid_op"
    answer(turn, "done", base=7)
    assert (await world.over(run_id))["status"] == "cancelled"
    assert (await one.call("GET", f"/v1/runs/{run_id}/checkpoint"))["value"] == {"at": 9}


async def test_a_live_turn_that_gives_way_to_a_cancel_is_cleaned_up_after(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [step("a#0", 1)]})
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "stop"}, 202)
    told = await one.callback(turn.json["token"], {"type": "append", "base": 1, "ops": [step("b#0", 1)]})
    assert told["cancel"]["reason"] == "stop"
    answer(turn, "again", base=2)
    second = next_turn = await endpoint.next()
    while second.json.get("type") == "cancel":
        second.answer(200)
        second = next_turn = await endpoint.next()
    assert [e["id"] for e in log_of(next_turn)] == ["a#0", "b#0", "cancel#0"]
    answer(next_turn, "failed", base=3, error={"message": "whatever"})
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_nobody_to_clean_up_does_not_keep_a_run_alive(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, pending("sleep", "nap#0", ms=3_600_000), wake="nap#0")
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": True})
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    await world.advance(timedelta(minutes=2))
    await world.advance(timedelta(hours=2))
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_cancel_reaches_children_that_are_not_on_their_own(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "child"})
    ops = [pending("child", "a#0", workflow="child"), pending("child", "b#0", workflow="child", on_cancel="abandon")]
    run_id = await one.trigger("order")
    first = await endpoint.next()
    ids = (await one.callback(first.json["token"], {"type": "append", "base": 0, "ops": ops}))["children"]
    children = {(arrival := await endpoint.next()).json["run_id"]: arrival for _ in ops}
    answer(first, "wait", base=2, wake={"all": ["a#0", "b#0"]})
    await world.task(run_id, state="waiting")
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    cleanup = await endpoint.next()
    answer(cleanup, "done", base=3)
    over = await world.over(run_id)
    assert over["status"] == "cancelled"
    await world.task(ids["a#0"], cancel_reason="the run that started it was cancelled")
    children[ids["a#0"]].answer(200, "too late")
    assert (await world.over(ids["a#0"]))["status"] == "cancelled"
    children[ids["b#0"]].answer(200, {"fine": True})
    assert (await world.over(ids["b#0"]))["status"] == "succeeded"


# ---- failing


async def test_retries_count_from_where_the_log_last_grew(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order", retries=1))
    run_id = await one.trigger("order")
    for attempt in range(1, 5):
        turn = await endpoint.next()
        assert turn.json["attempt"] == attempt
        await one.callback(turn.json["token"], {"type": "append", "base": attempt - 1, "ops": [step(f"s#{attempt}", attempt)]})
        answer(turn, "failed", base=attempt, error={"message": "boom"})
    for attempt in (5,):
        turn = await endpoint.next()
        assert (turn.json["attempt"], len(log_of(turn))) == (attempt, 4)
        answer(turn, "failed", base=4, error={"name": "Boom", "message": "boom for good"})
    over = await world.over(run_id)
    assert (over["status"], over["error"]["message"]) == ("failed", "boom for good")


async def test_a_failure_that_says_so_is_final(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order", retries=5))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "failed", base=0, error={"message": "no"}, retry=False)
    assert (await world.over(run_id))["status"] == "failed"


async def test_a_step_that_failed_is_run_again_when_it_is_due(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    retry = {"id": "pay#0", "op": "step", "status": "retry", "error": {"message": "busy"}, "after_ms": 5_000, "at": "2026-03-01T12:00:00Z"}
    run_id = await _waiting(world, one, endpoint, retry, wake="pay#0")
    await world.advance(timedelta(seconds=4))
    assert (await world.task(run_id))["state"] == "waiting"
    await world.advance(timedelta(seconds=2))
    turn = await endpoint.next()
    assert log_of(turn) == [retry]
    answer(turn, "done", base=1, ops=[step("pay#0", "paid")], output=1)
    assert (await world.over(run_id))["status"] == "succeeded"
    assert await world.database.fetchval("select count(*) from waits") == 0


async def test_a_failed_child_and_a_cancelled_one_say_so(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "child"})
    run_id = await one.trigger("order")
    first = await endpoint.next()
    ops = [pending("child", "a#0", workflow="child"), pending("child", "b#0", workflow="child"), pending("child", "c#0", workflow="nope")]
    ids = (await one.callback(first.json["token"], {"type": "append", "base": 0, "ops": ops}))["children"]
    assert set(ids) == {"a#0", "b#0"}
    children = {(arrival := await endpoint.next()).json["run_id"]: arrival for _ in ids}
    answer(first, "wait", base=3, wake={"all": ["a#0", "b#0", "c#0"]})
    children[ids["a#0"]].answer(400, {"detail": "bad input"}, content_type="application/problem+json")
    await one.call("POST", f"/v1/runs/{ids['b#0']}/cancel", {})
    children[ids["b#0"]].answer(200, "too late")
    second = await endpoint.next()
    while second.json["type"] == "cancel":
        second = await endpoint.next()
    over = {e["id"]: e for e in log_of(second)[3:]}
    assert over["a#0"]["status"] == "error"
    assert over["a#0"]["error"]["message"] == "bad input", over
    assert over["b#0"]["status"] == "cancelled"
    assert over["c#0"]["status"] == "error"
    assert over["c#0"]["error"]["code"] == "unknown_workflow"
    answer(second, "done", base=6)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_one_failure_is_enough_where_all_shall_go_well(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "child"})
    run_id = await one.trigger("order")
    first = await endpoint.next()
    ops = [pending("child", "a#0", workflow="child"), pending("sleep", "nap#0", ms=3_600_000)]
    await one.callback(first.json["token"], {"type": "append", "base": 0, "ops": ops})
    child = await endpoint.next()
    answer(first, "wait", base=2, wake={"all": ["a#0", "nap#0"], "fail_fast": True})
    child.answer(400, {"detail": "no"})
    assert [e["status"] for e in log_of(await endpoint.next())] == ["pending", "pending", "error"]
    assert (await world.task(run_id))["state"] == "running"


# ---- going on


async def test_again_is_delivered_at_once_and_continue_begins_a_new_log(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order", input={"n": 1})
    answer(await endpoint.next(), "again", base=0, ops=[step("a#0", 1)])
    second = await endpoint.next()
    assert (second.json["turn"], len(log_of(second))) == (2, 1)
    answer(second, "continue", base=1, ops=[pending("sleep", "nap#0", ms=60_000)], input={"n": 2})
    third = await endpoint.next()
    assert (third.json["turn"], third.json["input"], third.json["log"]["len"]) == (3, {"n": 2}, 0)
    assert third.json["id"] == second.json["id"]
    answer(third, "done", base=0, output={"n": 2})
    await world.over(run_id)
    journal = await one.call("GET", f"/v1/runs/{run_id}/journal")
    assert [(log["generation"], len(log["entries"])) for log in journal["logs"]] == [(0, 2)]
    assert await world.database.fetchval("select count(*) from waits") == 0


async def test_any_of_several_wakes(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    ops = [
        pending("event", "paid#0", key="paid"),
        pending("sleep", "late#0", ms=60_000),
        pending("event", "x#0", key="x", timeout_ms=30_000),
    ]
    run_id = await _waiting(world, one, endpoint, *ops, wake={"any": ["paid#0", {"all": ["late#0", "x#0"]}]})
    await world.advance(timedelta(seconds=31))
    await one.turn("waits")
    assert (await world.task(run_id))["state"] == "waiting"
    await one.call("POST", "/v1/events", {"type": "paid", "data": {}})
    turn = await endpoint.next()
    assert [(e["id"], e["status"]) for e in log_of(turn)[3:]] == [("x#0", "timeout"), ("paid#0", "ok")]
    answer(turn, "done", base=5)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_came_true_in_a_turn_is_in_the_next(world: World, one: Node) -> None:
    """The event arrives while the turn that asked for it is still under way."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [pending("event", "paid#0", key="paid")]})
    await one.call("POST", "/v1/events", {"type": "paid", "data": 7})

    async def settled() -> bool:
        return bool(await world.database.fetchval("select count(*) from waits where settled_at is not null"))

    await until(settled)
    assert (await world.task(run_id))["state"] == "running"
    answer(turn, "wait", base=1, wake="paid#0")
    second = await endpoint.next()
    assert log_of(second)[1]["value"]["data"] == 7


async def test_a_wait_looks_back_and_takes_the_newest(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    for n, scope in ((1, "a"), (2, "a"), (3, "b")):
        world.clock.advance(timedelta(seconds=1))
        await one.call("POST", "/v1/events", {"type": "paid", "data": {"n": n}, "scope": scope})
    answer(turn, "wait", base=0, ops=[pending("event", "paid#0", key="paid", scope="a", since="start")], wake="paid#0")
    second = await endpoint.next()
    assert log_of(second)[1]["value"]["data"] == {"n": 2}
    world.clock.advance(timedelta(seconds=1))
    answer(
        second,
        "wait",
        base=2,
        ops=[pending("event", "paid#1", key="paid", since="2026-03-01T12:00:00Z", expression="input.n == 1")],
        wake="paid#1",
    )
    third = await endpoint.next()
    assert log_of(third)[3]["value"]["data"] == {"n": 1}
    answer(third, "wait", base=4, ops=[pending("event", "paid#2", key="paid")], wake="paid#2")
    await world.task(run_id, state="waiting", turn=4)
    await one.turn("waits")
    assert (await world.task(run_id))["state"] == "waiting", "without lookback what was before is not seen"


# ---- code that changed


async def test_a_mismatch_blocks_until_a_version_that_may_fit_registers(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order", retries=0))
    run_id = await _waiting(world, one, endpoint, step("a#0", 1), pending("sleep", "nap#0", ms=1_000), wake="nap#0")
    await world.advance(timedelta(seconds=2))
    at = {"id": "b#0", "expected": {"id": "a#0", "op": "step"}, "got": {"id": "b#0", "op": "step"}}
    answer(await endpoint.next(), "mismatch", at=at)
    row = await world.task(run_id, state="blocked")
    assert json.loads(row["error"])["detail"] == at
    assert row["app_retries"] == 0
    document = await one.call("GET", f"/v1/runs/{run_id}")
    assert document["status"] == "blocked", document
    assert document["tasks"][0]["error"]["code"] == "code_mismatch", document["tasks"][0]
    assert endpoint.manifest is not None
    endpoint.manifest = {**endpoint.manifest, "version": "2"}
    await one.call("PUT", "/v1/endpoints/sdk", {"url": endpoint.url})
    turn = await endpoint.next()
    assert (turn.json["version"], len(log_of(turn))) == ("2", 3)
    answer(turn, "done", base=3)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_what_is_blocked_can_be_resumed_and_cancelled(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    assert (await one.call("POST", f"/v1/runs/{run_id}/resume", {}, 409))["code"] == "not_blocked"
    answer(await endpoint.next(), "mismatch", at={"id": "x#0"})
    await world.task(run_id, state="blocked")
    await one.call("POST", f"/v1/runs/{run_id}/resume", {})
    answer(await endpoint.next(), "mismatch", at={"id": "x#0"})
    await world.task(run_id, state="blocked", epoch=2)
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {})
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_pinned_task_goes_to_its_version_while_that_answers(world: World, one: Node) -> None:
    old = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, old, pending("sleep", "nap#0", ms=1_000), wake="nap#0")
    new = await world.listen()
    new.manifest = manifest([entry("order")], "durable", version="2")
    await one.call("PUT", "/v1/endpoints/sdk", {"url": new.url})
    await world.advance(timedelta(seconds=2))
    turn = await old.next()
    assert turn.json["version"] == "1"
    answer(turn, "wait", base=2, ops=[pending("sleep", "nap#1", ms=1_000)], wake="nap#1")
    await world.task(run_id, state="waiting", turn=3)
    (task,) = (await one.call("GET", f"/v1/runs/{run_id}"))["tasks"]
    assert [attempt["endpoint_version"] for attempt in task["attempts"]] == ["1", "1"], "where it went, not where others go"
    versions = (await one.call("GET", "/v1/endpoints/sdk/versions"))["rows"]
    assert {row["version"]: row["open_tasks"] for row in versions} == {"1": 1, "2": 0}, "it is to be left there"
    refused = await one.api.delete("/v1/endpoints/sdk")
    assert (refused.status_code, refused.json()["code"]) == (409, "endpoint_in_use")
    await world.advance(timedelta(seconds=2))
    (await old.next()).answer(404, {"detail": "gone"})
    row = await world.task(run_id, state="blocked")
    assert json.loads(row["error"])["code"] == "version_gone"
    assert await world.circuit("sdk") == "closed", "the endpoint as it is now is not to blame"
    await one.call("POST", f"/v1/runs/{run_id}/resume", {})
    assert (await new.next()).json["version"] == "2"


# ---- the log as it travels


async def test_a_long_log_travels_as_its_tail_and_a_hash(world: World) -> None:
    one = await world.node(log_inline_bytes=1_000)
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    texts = [json.dumps(step(f"s#{n}", "x" * 300)).encode() for n in range(10)]
    for n, text in enumerate(texts):
        body = b'{"type":"append","base":%d,"ops":[%b]}' % (n, text)
        reply = await one.api.post("/v1/callback", content=body, headers={"authorization": f"Bearer {turn.json['token']}"})
        assert reply.status_code == 200
    answer(turn, "again", base=10)
    second = await endpoint.next()
    assert second.json["log"] == {"len": 10, "from": 10, "prefix": rolled(texts), "head": rolled(texts), "entries": []}
    read = await one.api.get("/v1/log?from=2&to=5", headers={"authorization": f"Bearer {second.json['token']}"})
    assert read.status_code == 200
    assert [e["id"] for e in read.json()["entries"]] == ["s#2", "s#3", "s#4"]
    assert read.json()["head"] == rolled(texts)
    assert texts[3] in read.content
    second.answer(200, {"status": "again", "base": 10, "ops": []}, task_protocol="1", task_log="miss")
    third = await endpoint.next()
    assert third.json["log"]["from"] == 0
    assert len(log_of(third)) == 10
    answer(third, "done", base=10, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"
    late = await one.api.get("/v1/log", headers={"authorization": f"Bearer {third.json['token']}"})
    assert late.json()["code"] == "task_ended"


async def test_what_is_inside_a_closed_scope_is_left_out(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    ops = [step("i#0/a#0", 1), step("i#0/b#0", 2), {"id": "i#0", "op": "scope", "status": "ok", "value": 3}, step("c#0", 4)]
    answer(turn, "again", base=0, ops=ops)
    second = await endpoint.next()
    log = second.json["log"]
    assert ([e["id"] for e in log["entries"]], log["len"], log["hidden"]) == (["i#0", "c#0"], 4, 2)
    refused = await one.callback(second.json["token"], {"type": "append", "base": 4, "ops": [step("i#0/z#0", 1)]}, 422)
    assert refused["code"] == "scope_closed"
    answer(second, "done", base=4)
    await world.over(run_id)


# ---- state mode, messages, checkpoints


async def test_a_reducer_needs_no_sdk(world: World, one: Node) -> None:
    """A durable order in plain Python: it is told what it last returned and what has happened since."""
    endpoint = await durable_endpoint(world, one, entry("order", mode="state"))

    def reducer(arrival: Arrival) -> None:
        body = arrival.json
        state = body["state"] or {"at": "new"}
        if state["at"] == "new":
            reply = {
                "status": "wait",
                "state": {"at": "unpaid"},
                "ops": [{"id": "paid", "op": "event", "status": "pending", "key": "paid"}],
                "wake": "paid",
            }
        elif state["at"] == "unpaid":
            amount = body["results"][0]["value"]["data"]["amount"]
            sleep = {"id": "pack", "op": "sleep", "status": "pending", "ms": 60_000}
            reply = {"status": "wait", "state": {"at": "packing", "amount": amount}, "ops": [sleep], "wake": "pack"}
        else:
            reply = {"status": "done", "output": {"shipped": True, "amount": state["amount"]}}
        arrival.answer(200, reply, task_protocol="1")

    endpoint.way = reducer
    run_id = await one.trigger("order")
    await world.task(run_id, state="waiting")
    await one.call("POST", "/v1/events", {"type": "paid", "data": {"amount": 12}})
    await world.task(run_id, state="waiting", turn=3)
    await world.advance(timedelta(minutes=2))
    assert json.loads((await world.over(run_id))["output"]) == {"shipped": True, "amount": 12}
    assert len((await one.call("GET", f"/v1/runs/{run_id}/journal"))["entries"]) == 4


async def test_messages_come_in_order_and_an_inbox_closes(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    for n in (1, 2):
        assert (await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": {"n": n}}, 202)) == {"delivered": True}
    base = 0
    for n in (1, 2):
        answer(turn, "wait", base=base, ops=[pending("message", f"m#{n}")], wake=f"m#{n}")
        turn = await endpoint.next()
        assert log_of(turn)[-1]["value"] == {"n": n}
        base += 2
    answer(turn, "wait", base=base, ops=[pending("message", "m#3")], wake="m#3")
    await world.task(run_id, state="waiting", turn=4)
    await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": "three"}, 202)
    turn = await endpoint.next()
    assert log_of(turn)[-1]["value"] == "three"
    await one.callback(turn.json["token"], {"type": "append", "base": 6, "ops": [{"id": "inbox#0", "op": "message", "status": "closed"}]})
    assert (await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 4}, 409))["code"] == "inbox_closed"
    answer(turn, "wait", base=7, ops=[pending("message", "m#4")], wake="m#4")
    turn = await endpoint.next()
    assert log_of(turn)[-1]["status"] == "closed"
    answer(turn, "done", base=9)
    await world.over(run_id)
    assert (await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 5}, 409))["code"] == "inbox_closed"
    plain = await durable_endpoint(world, one, {"name": "plain"}, name="other")
    other = await one.trigger("plain")
    await plain.next()
    assert (await one.call("POST", f"/v1/runs/{other}/messages", {"data": 5}, 409))["code"] == "not_durable"


async def test_a_cancel_is_told_to_who_waits_for_a_message(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, pending("message", "m#0"), wake="m#0")
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    turn = await endpoint.next()
    assert [(e["id"], e["status"], e.get("value")) for e in log_of(turn)[1:]] == [
        ("m#0", "cancel", {"$cancel": True}),
        ("cancel#0", "ok", {"reason": "cancelled by request"}),
    ]
    answer(turn, "done", base=3)
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_checkpoint_is_read_by_others_while_it_runs_and_after(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    assert (await one.call("GET", f"/v1/runs/{run_id}/checkpoint", expect=404))["code"] == "not_found"
    for n in (1, 2):
        op = {"id": f"checkpoint#{n}", "op": "checkpoint", "status": "ok", "value": {"n": n}}
        await one.callback(turn.json["token"], {"type": "append", "base": n - 1, "ops": [op]})
        assert (await one.call("GET", f"/v1/runs/{run_id}/checkpoint"))["value"] == {"n": n}
    answer(turn, "done", base=2)
    await world.over(run_id)
    assert (await one.call("GET", f"/v1/runs/{run_id}/checkpoint"))["value"] == {"n": 2}


# ---- going back


async def test_a_reset_keeps_what_came_before_the_node(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, step("a#0", 1), step("b#0", 2), pending("sleep", "nap#0", ms=3_600_000), wake="nap#0")
    assert (await one.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": "zzz"}, 404))["code"] == "unknown_node"
    await one.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": "b#0"})
    turn = await endpoint.next()
    assert log_of(turn) == [step("a#0", 1)]
    busy = await one.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": "a#0"}, 409)
    assert busy["code"] == "turn_running"
    answer(turn, "done", base=1, ops=[step("b#0", 3)], output=3)
    await world.over(run_id)
    logs = (await one.call("GET", f"/v1/runs/{run_id}/journal"))["logs"]
    assert [(log["generation"], [e["id"] for e in log["entries"]]) for log in logs] == [(0, ["a#0", "b#0", "nap#0"]), (1, ["a#0", "b#0"])]


async def test_a_finished_run_is_replayed_from_its_log(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, step("a#0", 1), pending("sleep", "nap#0", ms=1_000), wake="nap#0")
    await world.advance(timedelta(seconds=2))
    answer(await endpoint.next(), "done", base=3, output="first")
    await world.over(run_id)
    await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    turn = await endpoint.next()
    assert [e["id"] for e in log_of(turn)] == ["a#0", "nap#0", "nap#0"]
    assert turn.json["run_id"] == run_id
    answer(turn, "done", base=3, output="second")

    async def again() -> bool:
        document = await one.call("GET", f"/v1/runs/{run_id}")
        return bool(document["output"] == "second")

    await until(again)
    await one.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": "nap#0"})
    turn = await endpoint.next()
    assert [e["id"] for e in log_of(turn)] == ["a#0"]


# ---- batches


async def test_turns_travel_in_batches(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "plain"}, batch=True)
    bulk = await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "order", "input": {"n": n}} for n in range(3)]})
    batch = await endpoint.next()
    items = batch.json["items"]
    assert [item["type"] for item in items] == ["turn"] * 3
    results: list[Any] = [
        {"id": items[0]["id"], "status": "done", "base": 0, "ops": [step("a#0", 1)], "output": "done"},
        {"id": items[1]["id"], "status": "wait", "base": 0, "ops": [pending("sleep", "nap#0", ms=60_000)], "wake": "nap#0"},
        {"id": items[2]["id"], "status": "ok", "output": "a plain result"},
    ]
    batch.answer(200, {"results": results}, task_protocol="1")
    ids = [row["id"] for row in bulk["rows"]]
    assert (await world.over(ids[0]))["output"] == b'"done"'
    await world.task(ids[1], state="waiting")
    over = await world.over(ids[2])
    assert (over["status"], over["error"]["code"]) == ("failed", "bad_response")


@pytest.mark.parametrize("durable_slots", [1])
async def test_parents_do_not_keep_children_from_running(world: World, one: Node, durable_slots: int) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "child"}, slots=1, durable_slots=durable_slots)
    parents = [await one.trigger("order") for _ in range(3)]
    plain: list[Arrival] = []
    for n in range(3):
        turn = await endpoint.next()
        await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [pending("child", "c#0", workflow="child")]})
        if n == 0:
            plain.append(await endpoint.next())  # the turn is still open: its slot is not the child's
        answer(turn, "wait", base=1, wake="c#0")
    done = 0
    plain[0].answer(200, 1)
    while done < 3:
        arrival = await endpoint.next()
        if arrival.json["type"] == "run":
            arrival.answer(200, 1)
        else:
            answer(arrival, "done", base=2)
            done += 1
    for run_id in parents:
        assert (await world.over(run_id))["status"] == "succeeded"


async def test_who_is_woken_goes_on_at_once_where_there_is_a_slot_and_waits_for_one_elsewhere(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), durable_slots=1)
    runs = {await one.trigger("order") for _ in range(3)}
    for _ in runs:
        answer(await endpoint.next(), "wait", base=0, ops=[pending("event", "e#0", key="go")], wake="e#0")
    for run_id in runs:
        await world.task(run_id, state="waiting")
    await one.call("POST", "/v1/events", {"type": "go", "data": {}})
    gone: list[str] = []
    for left in (2, 1, 0):
        turn = await endpoint.next()
        gone.append(turn.json["run_id"])
        assert turn.json["attempt"] == 2
        for run_id in runs.difference(gone):
            await world.task(run_id, state="queued")
        assert sum(one.runtime.capacity.in_use.values()) == 1
        assert len(runs.difference(gone)) == left
        answer(turn, "done", base=2)
        await world.over(gone[-1])
    assert set(gone) == runs


# ---- children of tasks that are not durable


async def test_an_attempt_starts_children_with_its_own_token_and_a_retry_finds_them(world: World) -> None:
    one = await world.node(dev=False, api_url="http://127.0.0.1:1", egress_allow="127.0.0.0/8", allow_http=True)
    parent = RunRequest(1, "parent", b"{}")
    endpoint = await world.listen()
    endpoint.manifest = manifest([{"name": "parent", "retries": 1}, {"name": "child"}])
    tenant = next(iter(one.runtime.services.directory.pictures))
    await one.runtime.services.registration.put(tenant, "sdk", url=endpoint.url)
    parent.tenant_id = tenant
    (accepted,) = await one.runtime.services.intake.trigger([parent])
    assert isinstance(accepted, RunAccepted)
    first = await endpoint.next()
    bearer = {"authorization": f"Bearer {first.json['token']}"}
    body = {"workflow": "child", "input": {"n": 1}, "child_key": "a"}
    made = await one.api.post("/v1/runs", json=body, headers=bearer)
    assert made.status_code == 201, made.text
    bulk = await one.api.post("/v1/runs/bulk", json={"runs": [body, {**body, "child_key": "b"}]}, headers=bearer)
    assert [row["id"] == made.json()["id"] for row in bulk.json()["rows"]] == [True, False]
    for path in ("/v1/runs", f"/v1/runs/{accepted.id}"):
        assert (await one.api.get(path, headers=bearer)).status_code == 403, "it may start children, and nothing else"
    children = [await endpoint.next(), await endpoint.next()]
    assert {arrival.json["parent_run_id"] for arrival in children} == {accepted.id}
    first.answer(500, {"detail": "again"})
    second = await endpoint.next()
    late = await one.api.post("/v1/runs", json=body, headers=bearer)
    assert (late.status_code, late.json()["code"]) == (409, "stale_attempt")
    again = await one.api.post("/v1/runs", json=body, headers={"authorization": f"Bearer {second.json['token']}"})
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])
    forged = await one.api.post("/v1/runs", json=body, headers={"authorization": f"Bearer {second.json['token'][:-2]}xx"})
    assert (forged.status_code, forged.json()["code"]) == (401, "unauthorized")
