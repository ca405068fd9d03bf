"""Durable tasks, from the server's side: an endpoint written by hand, a clock that stands still, and every promise held to."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, rolled, step
from tests.world.world import Node, World, until


async def test_a_turn_says_all_a_handler_needs(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order", execution_timeout="60s"))
    run_id = await one.trigger("order", input={"n": 1})
    body = (await endpoint.next()).json
    assert body["type"] == "turn"
    assert body["mode"] == "replay"
    assert (body["turn"], body["attempt"], body["input"], body["run_id"]) == (1, 1, {"n": 1}, run_id)
    assert body["log"] == {"len": 0, "from": 0, "prefix": "", "head": "", "entries": []}
    assert body["now"] == body["started_at"] == "2026-03-01T12:00:00.000Z"
    assert body["budget_ms"] == 54_000
    assert body["timeout_ms"] == 60_000
    assert len(body["seed"]) == 32


async def test_a_step_is_in_the_log_of_the_next_turn_as_it_was_written(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    first = await endpoint.next()
    raw = b'{"id":"a#0", "op":"step",  "status":"ok","value":{"x": 1.50, "u":"\\u00e4"},"at":"2026-03-01T12:00:00Z"}'
    text = b'{"type":"append","base":0,"ops":[' + raw + b"]}"
    reply = await one.api.post("/v1/callback", content=text, headers={"authorization": f"Bearer {first.json['token']}"})
    assert (reply.status_code, reply.json()["len"]) == (200, 1), reply.text
    answer(first, "wait", base=1, ops=[pending("sleep", "nap#0", ms=60_000)], wake="nap#0")
    await world.task(run_id, state="waiting")
    await world.advance(timedelta(seconds=61))
    second = await endpoint.next()
    assert raw in second.body
    assert [e["id"] for e in log_of(second)] == ["a#0", "nap#0", "nap#0"]
    texts = second.body.split(b'"entries":[', 1)[1]
    sleep, over = json.dumps(log_of(second)[1]).encode(), second.json["log"]["entries"][2]
    assert second.json["log"]["head"] == rolled([raw, sleep, texts[texts.rindex(b'{"id":"nap#0"') : -3]]), texts
    assert over["status"] == "ok"
    assert second.json["turn"] == 2
    assert second.json["attempt"] == 2
    answer(second, "done", base=3, output={"ok": True})
    over_row = await world.over(run_id)
    assert (over_row["status"], json.loads(over_row["output"])) == ("succeeded", {"ok": True})


async def test_a_suspended_task_holds_nothing(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("sleep", "nap#0", ms=3_600_000)], wake="nap#0")
    row = await world.task(run_id, state="waiting")
    assert row["dispatcher_id"] is None
    assert row["lease_until"] is None
    assert row["deadline"] is None
    assert row["schedule_deadline"] is None

    async def idle() -> bool:
        return not one.runtime.deliveries.open and one.runtime.capacity.total == 0

    await until(idle)
    document = await one.call("GET", f"/v1/runs/{run_id}")
    assert document["status"] == "waiting", document
    await world.advance(timedelta(minutes=59))
    assert (await world.task(run_id))["state"] == "waiting"
    await world.advance(timedelta(minutes=2))
    assert (await endpoint.next()).json["turn"] == 2


async def test_children_start_with_the_append_that_asks_for_them(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("parent"), {"name": "child"})
    run_id = await one.trigger("parent")
    first = await endpoint.next()
    ops = [pending("child", f"c#{n}", workflow="child", input={"n": n}) for n in range(3)]
    reply = await one.callback(first.json["token"], {"type": "append", "base": 0, "ops": ops})
    assert set(reply["children"]) == {"c#0", "c#1", "c#2"}
    again = await one.callback(first.json["token"], {"type": "append", "base": 0, "ops": ops})
    assert again["duplicate"]
    assert again["children"] == reply["children"]
    answer(first, "wait", base=3, wake={"all": ["c#0", "c#1", "c#2"]})
    outputs: dict[str, Any] = {}
    for _ in range(3):
        child = await endpoint.next()
        assert child.json["parent_run_id"] == run_id
        outputs[child.json["run_id"]] = child.json["input"]["n"]
        child.answer(200, {"n": child.json["input"]["n"] * 10})
    second = await endpoint.next()
    over = [e for e in log_of(second) if e["status"] != "pending"]
    assert {e["id"]: (e["status"], e["value"]["n"]) for e in over} == {f"c#{n}": ("ok", n * 10) for n in range(3)}
    assert {e["run_id"] for e in over} == set(outputs)
    answer(second, "done", base=6, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"
    assert sorted((await one.call("GET", f"/v1/runs/{run_id}"))["children"]) == sorted(outputs)


async def test_an_event_wakes_all_who_wait_for_it_once(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    runs = [await one.trigger("order") for _ in range(3)]
    for _ in runs:
        answer(await endpoint.next(), "wait", base=0, ops=[pending("event", "paid#0", key="paid", expression="input.n > 1")], wake="paid#0")
    for run_id in runs:
        await world.task(run_id, state="waiting")
    await one.call("POST", "/v1/events", {"type": "paid", "data": {"n": 1}})
    sent = await one.call("POST", "/v1/events", {"type": "paid", "data": {"n": 2}, "metadata": {"k": "v"}})
    for _ in runs:
        turn = await endpoint.next()
        value = log_of(turn)[1]["value"]
        assert (value["id"], value["type"], value["data"], value["metadata"]) == (sent["event_id"], "paid", {"n": 2}, {"k": "v"})
        answer(turn, "done", base=2, output=step("a#0", 1))
    for run_id in runs:
        assert (await world.over(run_id))["status"] == "succeeded"
