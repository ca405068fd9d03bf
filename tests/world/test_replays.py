"""Running again what is over: one run, a task of a graph, and thousands."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from dispatcher.store import bulk
from tests.world.durable import answer, durable_endpoint, entry, log_of, step
from tests.world.world import Node, World, until

HANDLER = {"name": "work", "retries": 1}


async def _replay(node: Node, run_id: str, expect: int = 200, **body: Any) -> Any:
    return await node.call("POST", f"/v1/runs/{run_id}/replay", body, expect=expect)


async def _run(node: Node, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = await node.call("GET", f"/v1/runs/{run_id}?wait=10s")
    return run


async def test_a_failed_run_is_run_again_under_its_own_id(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work", input={"n": 1}, metadata={"a": "b"}, priority=2, idempotency_key="k")
    for _ in range(2):
        (await endpoint.next()).answer(500, {"error": {"name": "E", "message": "broken"}})
    before = await _run(one, run_id)
    assert before["status"] == "failed"
    world.clock.advance(timedelta(minutes=5))
    begun = await _replay(one, run_id)
    assert (begun["id"], begun["output"], begun["error"]) == (run_id, None, None)
    arrival = await endpoint.next()
    assert (arrival.json["input"], arrival.json["metadata"], arrival.json["priority"]) == ({"n": 1}, {"a": "b"}, 2)
    assert (arrival.json["attempt"], arrival.json["retry_count"], arrival.json["max_attempts"]) == (3, 2, 4)
    # Its budget is fresh: a failure is retried once more.
    arrival.answer(500, {"error": {"name": "E", "message": "broken"}})
    again = await endpoint.next()
    assert again.json["retry_count"] == 3
    again.answer(200, {"ok": True})
    after = await _run(one, run_id)
    assert (after["status"], after["output"], after["created_at"]) == ("succeeded", {"ok": True}, before["created_at"])
    (task,) = after["tasks"]
    assert [attempt["status"] for attempt in task["attempts"]] == ["failed", "failed", "failed", "succeeded"]
    assert [attempt["number"] for attempt in task["attempts"]] == [1, 2, 3, 4]
    assert task["retry_count"] == 3
    assert [row["id"] for row in (await one.call("GET", "/v1/runs"))["rows"]] == [run_id]
    known = await one.api.post("/v1/runs", json={"workflow": "work", "idempotency_key": "k"})
    assert (known.status_code, known.json()["id"]) == (200, run_id)


async def test_a_succeeded_run_may_get_another_input(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work", input={"n": 1})
    (await endpoint.next()).answer(200, {"n": 1})
    await _run(one, run_id)
    await _replay(one, run_id, input={"n": 2})
    arrival = await endpoint.next()
    assert arrival.json["input"] == {"n": 2}
    arrival.answer(200, {"n": 2})
    assert ((await _run(one, run_id))["input"], (await _run(one, run_id))["output"]) == ({"n": 2}, {"n": 2})


async def test_what_cannot_be_replayed_says_so(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    assert (await _replay(one, run_id, expect=409))["code"] == "run_not_finished"
    assert (await _replay(one, "run_01j00000000000000000000000", expect=404))["code"] == "not_found"
    assert (await _replay(one, "x", expect=404))["code"] == "not_found"
    arrival.answer(200, {})
    await _run(one, run_id)
    assert (await _replay(one, run_id, expect=400, task="other"))["field"] == "task"
    assert (await _replay(one, run_id, expect=400, tasks=1))["code"] == "unknown_field"
    assert (await _replay(one, run_id, expect=400, task="work", input={}))["field"] == "input"


async def test_late_answers_of_an_earlier_life_are_refused(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    first = await endpoint.next()
    first.answer(202, {"status": "accepted"})
    await world.task(run_id, dispatcher_id=None)
    await one.call("POST", f"/v1/runs/{run_id}/cancel")
    await world.advance(timedelta(minutes=10))
    assert (await _run(one, run_id))["status"] == "cancelled"
    await _replay(one, run_id)
    second = await endpoint.next()
    late = await one.callback(first.json["token"], {"type": "done", "output": "late"}, expect=409)
    assert late["code"] == "stale_attempt"
    second.answer(200, {"ok": 1})
    assert (await _run(one, run_id))["output"] == {"ok": 1}


async def test_of_many_who_replay_a_run_one_begins_it(world: World, one: Node) -> None:
    two = await world.node("two")
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(200, {})
    await _run(one, run_id)
    replies: list[httpx.Response] = await asyncio.gather(
        *(node.api.post(f"/v1/runs/{run_id}/replay", json={}) for node in (one, two) for _ in range(5))
    )
    assert sorted(reply.status_code for reply in replies) == [200, *[409] * 9]
    (await endpoint.next()).answer(200, {})
    await _run(one, run_id)
    assert endpoint.waiting == 0


async def test_a_replay_goes_by_the_newest_definition(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{**HANDLER, "execution_timeout": "1s", "retries": 0}])
    run_id = await one.trigger("work")
    await endpoint.next()
    await world.advance(timedelta(seconds=2))
    assert (await _run(one, run_id))["error"]["code"] == "timed_out"
    await world.endpoint(one, [])  # another endpoint's address, the same name
    handlers = [{"body": "v1", **HANDLER, "execution_timeout": "10m"}]
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": handlers})
    await _replay(one, run_id)
    arrival = await endpoint.next()
    assert arrival.json["timeout_ms"] > 590_000
    arrival.answer(200, {})
    assert (await _run(one, run_id))["workflow_version"] == 2


async def test_the_runs_of_an_event_show_what_was_replayed(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "mail", "on_events": ["user:created"]}])
    sent = await one.call("POST", "/v1/events", {"type": "user:created", "data": {"n": 1}})
    (run_id,) = sent["runs"]
    (await endpoint.next()).answer(200, {"n": 1})
    await _run(one, run_id)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    await _replay(one, run_id)
    path = f"/v1/events/{sent['event_id']}/runs"
    assert [row["status"] for row in (await one.call("GET", path))["rows"]] == ["succeeded"]
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    arrival = await endpoint.next()
    assert arrival.json["event"]["id"] == sent["event_id"]
    arrival.answer(200, {"n": 2})
    await _run(one, run_id)
    rows = (await one.call("GET", path))["rows"]
    assert [(row["status"], row["result"], row["origin_run_id"]) for row in rows] == [
        ("succeeded", None, None), ("succeeded", {"n": 2}, run_id),
    ]  # fmt: skip


async def test_a_graph_an_event_started_is_one_run_of_it(world: World, one: Node) -> None:
    tasks = [{"name": "a", "body": "v1"}, {"name": "b", "body": "v1", "parents": ["a"]}]
    endpoint = await world.endpoint(one, [{"name": "order", "kind": "workflow", "tasks": tasks, "on_events": ["order:new"]}])
    sent = await one.call("POST", "/v1/events", {"type": "order:new", "data": {"n": 1}})
    path = f"/v1/events/{sent['event_id']}/runs"
    first = await endpoint.next()
    (row,) = (await one.call("GET", path))["rows"]
    assert (row["run_id"], row["function"], row["status"], row["result"]) == (sent["runs"][0], "order", "running", None)
    first.answer(200, {"a": 1})
    (await endpoint.next()).answer(200, {"b": 2})
    await _run(one, sent["runs"][0])
    (row,) = (await one.call("GET", path))["rows"]
    assert (row["status"], row["result"], row["origin_run_id"]) == ("succeeded", {"a": {"a": 1}, "b": {"b": 2}}, None)
    assert row["duration_ms"] is not None


# ---- graphs

GRAPH = {
    "name": "order",
    "kind": "workflow",
    "tasks": [
        {"name": "a", "body": "v1"},
        {"name": "b", "body": "v1", "parents": ["a"]},
        {"name": "c", "body": "v1", "parents": ["a"]},
        {"name": "d", "body": "v1", "parents": ["b", "c"]},
    ],
}


async def _play(world: World, node: Node, fails: set[str], run_id: str | None = None, **replay: Any) -> tuple[str, list[str]]:
    """Run the graph, or replay one; its id, and the tasks that were sent, in order. Those in `fails` fail."""
    (endpoint,) = world.endpoints or [await world.endpoint(node, [GRAPH])]
    sent: list[str] = []

    def way(arrival: Any) -> None:
        name = arrival.json["name"].removeprefix("order:")
        sent.append(name)
        arrival.answer(
            500 if name in fails else 200, {"from": name, "attempt": arrival.json["attempt"], "parents": arrival.json.get("parents")}
        )

    endpoint.way = way
    if run_id is None:
        run_id = await node.trigger("order", input={"n": 1})
    else:
        await _replay(node, run_id, **replay)
    await _run(node, run_id)
    return run_id, sent


async def test_a_task_of_a_graph_is_replayed_with_what_comes_after(world: World, one: Node) -> None:
    run_id, sent = await _play(world, one, {"b"})
    assert sorted(sent) == ["a", "b", "c"]
    before = await _run(one, run_id)
    assert (before["status"], {t["name"]: t["status"] for t in before["tasks"]}) == (
        "failed", {"a": "succeeded", "b": "failed", "c": "succeeded", "d": "cancelled"},
    )  # fmt: skip
    _, sent = await _play(world, one, set(), run_id, task="b")
    assert sent == ["b", "d"]
    after = await _run(one, run_id)
    assert (after["status"], {t["name"]: t["status"] for t in after["tasks"]}) == (
        "succeeded", dict.fromkeys("abcd", "succeeded"),
    )  # fmt: skip
    assert after["output"]["d"]["parents"]["c"]["output"]["from"] == "c"
    tasks = {task["name"]: task for task in after["tasks"]}
    assert [a["status"] for a in tasks["b"]["attempts"]] == ["failed", "succeeded"]
    assert (tasks["b"]["retry_count"], tasks["a"]["retry_count"], len(tasks["a"]["attempts"])) == (1, 0, 1)
    assert [row["id"] for row in (await one.call("GET", "/v1/runs"))["rows"]] == [run_id]


async def test_a_graph_is_replayed_whole(world: World, one: Node) -> None:
    run_id, _ = await _play(world, one, set())
    _, sent = await _play(world, one, set(), run_id)
    assert (sent[0], sorted(sent), sent[-1]) == ("a", ["a", "b", "c", "d"], "d")
    after = await _run(one, run_id)
    assert {name: output["attempt"] for name, output in after["output"].items()} == dict.fromkeys("abcd", 2)
    assert (await _replay(one, run_id, expect=400, task="nope"))["field"] == "task"
    _, sent = await _play(world, one, set(), run_id, task="order:d")
    assert sent == ["d"]


# ---- in bulk


async def _failed(world: World, node: Node, count: int, **fields: Any) -> list[str]:
    """Runs that have failed."""
    (endpoint,) = world.endpoints or [await world.endpoint(node, [{"name": "work"}, {"name": "other"}], slots=500)]
    endpoint.way = lambda arrival: arrival.answer(500, {"error": {"name": "E", "message": "x"}})
    body = {"runs": [{"workflow": "work", "input": {"n": i}, **fields} for i in range(count)]}
    run_ids = [row["id"] for row in (await node.call("POST", "/v1/runs/bulk", body))["rows"]]

    async def over() -> bool:
        rows = await world.database.fetch("select id from run_history where id = any($1::text[]) and status = 'failed'", run_ids)
        return len(rows) == count

    await until(over, 60)
    return run_ids


async def _finished(node: Node, bulk_id: str) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        row: dict[str, Any] = await node.call("GET", f"/v1/bulk/{bulk_id}")
        return row if row["status"] != "running" else None

    return await until(found, 60)


async def test_a_bulk_replay_does_what_its_preview_says(world: World, one: Node) -> None:
    run_ids = await _failed(world, one, 30, metadata={"batch": "b1"})
    await _failed(world, one, 3, metadata={"batch": "b2"})
    world.endpoints[0].way = lambda arrival: arrival.answer(200, {})
    wanted = {"workflow": "work", "status": "failed", "metadata": {"batch": "b1"}, "since": "2026-03-01T00:00:00Z"}
    preview = await one.call("POST", "/v1/runs/replay", {"filter": wanted, "dry_run": True}, expect=200)
    assert preview == {"id": None, "matched": 30, "status": "preview"}
    begun = await one.call("POST", "/v1/runs/replay", {"filter": wanted}, expect=202)
    assert (begun["kind"], begun["matched"], begun["asked"]["filter"]["workflow"]) == ("replay", 30, "work")
    done = await _finished(one, begun["id"])
    assert (done["status"], done["done"], done["skipped"]) == ("finished", 30, 0)
    for run_id in run_ids[:3]:
        assert (await _run(one, run_id))["status"] == "succeeded"
    assert (await one.call("POST", "/v1/runs/replay", {"filter": wanted, "dry_run": True}))["matched"] == 0
    assert [row["id"] for row in (await one.call("GET", "/v1/bulk"))["rows"]] == [begun["id"]]
    (noted,) = (await one.call("GET", "/v1/audit"))["rows"]
    assert (noted["action"], noted["target"], noted["actor"], noted["details"]["matched"]) == ("runs.replay", begun["id"], None, 30)


async def test_ids_that_are_not_over_are_not_replayed(world: World, one: Node) -> None:
    failed = await _failed(world, one, 2)
    world.endpoints[0].way = None
    live = await one.trigger("other")
    begun = await one.call("POST", "/v1/runs/replay", {"ids": [*failed, live, "run_01j00000000000000000000000", failed[0]]}, expect=202)
    assert begun["matched"] == 2
    assert (await _finished(one, begun["id"]))["done"] == 2


async def test_runs_are_cancelled_in_bulk(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=3)
    run_ids = [row["id"] for row in (await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "work"}] * 40}))["rows"]]
    arrivals = await endpoint.several(3)
    assert (await one.call("POST", "/v1/runs/cancel", {"filter": {"status": "queued"}, "dry_run": True}))["matched"] == 37
    begun = await one.call("POST", "/v1/runs/cancel", {"filter": {"workflow": ["work"]}, "reason": "enough"}, expect=202)
    done = await _finished(one, begun["id"])
    assert (done["matched"], done["done"], done["reason"]) == (40, 40, "enough")
    for arrival in arrivals:
        await arrival.gone()
    for run_id in run_ids:
        run = await _run(one, run_id)
        assert (run["status"], run["error"]["message"]) == ("cancelled", "enough")
    assert endpoint.waiting == 0


async def test_a_bulk_action_is_ended_where_it_stands(world: World) -> None:
    node = await world.node(bulk_chunk=1)
    run_ids = await _failed(world, node, 20)
    world.endpoints[0].way = lambda arrival: arrival.answer(200, {})
    loop = node.runtime.loops["bulk"]
    await loop.stop()
    begun = await node.call("POST", "/v1/runs/replay", {"ids": run_ids})
    await node.runtime.services.bulk.tick(world.now)
    ended = await node.call("POST", f"/v1/bulk/{begun['id']}/cancel")
    assert (ended["status"], ended["done"]) == ("cancelled", 1)
    assert await node.runtime.services.bulk.tick(world.now) is False
    assert (await node.call("GET", f"/v1/bulk/{begun['id']}"))["done"] == 1
    await node.call("POST", f"/v1/bulk/{begun['id']}/cancel", expect=200)
    assert (await node.call("POST", "/v1/bulk/blk_x/cancel", expect=404))["code"] == "not_found"


async def test_ending_an_action_waits_for_the_set_under_way(world: World) -> None:
    """They meet on the runs first and on the action then, both of them: neither has what the other waits for."""
    node = await world.node(bulk_chunk=5)
    run_ids = await _failed(world, node, 20)
    await node.runtime.loops["bulk"].stop()
    begun = await node.call("POST", "/v1/runs/replay", {"ids": run_ids})
    async with world.database.transaction() as conn:
        tenant_id = await conn.fetchval("select tenant_id from bulk_actions where id = $1", begun["id"])
        taken = await bulk.take(conn, tenant_id, begun["id"], 5)
        ending = asyncio.create_task(node.call("POST", f"/v1/bulk/{begun['id']}/cancel"))
        await until(lambda: world.holds_up(conn))
        await bulk.drop(conn, tenant_id, begun["id"], taken)
        await bulk.count(conn, tenant_id, begun["id"], 5, 0)
    assert ((await ending)["status"], (await ending)["done"]) == ("cancelled", 5)


async def test_who_finds_nothing_left_of_an_action_waits_for_nobody(world: World) -> None:
    node = await world.node()
    run_ids = await _failed(world, node, 20)
    await node.runtime.loops["bulk"].stop()
    begun = await node.call("POST", "/v1/runs/replay", {"ids": run_ids})
    async with world.database.transaction() as conn:
        tenant_id = await conn.fetchval("select tenant_id from bulk_actions where id = $1", begun["id"])
        assert sorted(await bulk.take(conn, tenant_id, begun["id"], 20)) == sorted(run_ids)
        await bulk.count(conn, tenant_id, begun["id"], 20, 0)
        assert await node.runtime.services.bulk.tick(world.now) is False
    assert (await node.call("GET", f"/v1/bulk/{begun['id']}"))["done"] == 20


async def test_a_finished_bulk_action_cannot_be_ended(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "work"}])
    empty = await one.call("POST", "/v1/runs/replay", {"ids": []}, expect=202)
    assert (empty["status"], empty["matched"]) == ("finished", 0)
    assert (await one.call("POST", f"/v1/bulk/{empty['id']}/cancel", expect=409))["code"] == "bulk_finished"


async def test_two_dispatchers_share_an_action_and_begin_each_run_once(world: World) -> None:
    one, two = await world.node("one", bulk_chunk=5), await world.node("two", bulk_chunk=5)
    run_ids = await _failed(world, one, 100)
    seen: list[str] = []

    def way(arrival: Any) -> None:
        seen.append(arrival.json["run_id"])
        arrival.answer(200, {})

    world.endpoints[0].way = way
    begun = await one.call("POST", "/v1/runs/replay", {"ids": run_ids})

    async def carry_out(node: Node) -> None:
        while await node.runtime.services.bulk.tick(world.now):
            pass

    # A few at a time: they wait for each other's commits, and none of them for longer than a lock is waited for.
    await asyncio.gather(*(carry_out(node) for node in (one, two) for _ in range(3)))
    done = await _finished(two, begun["id"])
    assert (done["done"], done["skipped"]) == (100, 0)
    for run_id in run_ids:
        assert (await _run(one, run_id))["status"] == "succeeded"
    assert sorted(seen) == sorted(run_ids)


async def test_durable_runs_go_on_from_their_logs(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "work"})
    run_ids = [await one.trigger("order"), await one.trigger("work")]
    for _ in run_ids:
        arrival = await endpoint.next()
        if arrival.json["type"] == "turn":
            await one.callback(arrival.json["token"], {"type": "append", "base": 0, "ops": [step("charge#0", {"paid": 1})]})
            answer(arrival, "failed", base=1, error={"name": "E", "message": "broken"}, retry=False)
        else:
            arrival.answer(500, {"error": {"name": "E", "message": "broken"}})
    for run_id in run_ids:
        assert (await _run(one, run_id))["status"] == "failed"
    begun = await one.call("POST", "/v1/runs/replay", {"ids": run_ids})
    for _ in run_ids:
        again = await endpoint.next()
        if again.json["type"] == "turn":
            assert [e["id"] for e in log_of(again)] == ["charge#0"]
            answer(again, "done", base=1, output={"ok": True})
        else:
            again.answer(200, {"ok": True})
    assert (await _finished(one, begun["id"]))["done"] == 2
    for run_id in run_ids:
        assert (await _run(one, run_id))["output"] == {"ok": True}


async def test_a_bulk_action_over_the_limit_is_refused(world: World) -> None:
    node = await world.node(max_bulk_runs=5)
    run_ids = await _failed(world, node, 6)
    refused = await node.call("POST", "/v1/runs/replay", {"filter": {"status": "failed"}}, expect=422)
    assert refused["code"] == "too_many_matched"
    assert (await node.call("POST", "/v1/runs/replay", {"ids": run_ids, "dry_run": True}, expect=422))["code"] == "too_many_matched"
    assert (await node.call("GET", "/v1/bulk"))["rows"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "ids"),
        ({"ids": ["run_x"], "filter": {"workflow": "work"}}, "ids"),
        ({"filter": {}}, "filter"),
        ({"filter": {"metadata": {}}}, "filter"),
        ({"filter": {"status": []}}, "filter"),
        ({"filter": {"workflow": []}}, "filter"),
        ({"filter": {"status": "running"}}, "filter.status"),
        ({"filter": {"status": ["failed", "no"]}}, "filter.status"),
        ({"filter": {"since": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}}, "filter.since"),
        ({"filter": {"since": "1826-02-01T00:00:00Z"}}, "filter.since"),
        ({"filter": {"metadata": {str(i): "x" for i in range(11)}}}, "filter.metadata"),
        ({"filter": {"metadata": {"a": [1]}}}, "filter.metadata[...]"),
        ({"filter": {"name": "x"}}, "filter.name"),
        ({"ids": [5]}, "ids[0]"),
        ({"ids": ["run_x"], "dry": True}, "dry"),
    ],
)
async def test_a_bad_bulk_action_is_refused(one: Node, body: dict[str, Any], field: str) -> None:
    assert (await one.call("POST", "/v1/runs/replay", body, expect=400))["field"] == field
