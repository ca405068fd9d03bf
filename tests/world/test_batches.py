"""Batches: many attempts in one POST, each with its own fate; what is not mentioned is tried again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World

SECOND = timedelta(seconds=1)
HANDLER = {"name": "work", "retries": 1, "backoff_factor": 10, "execution_timeout": "50s"}


async def _batch(world: World, node: Node, count: int, max_items: int = 100) -> tuple[Endpoint, list[str]]:
    endpoint = await world.discovered(node, manifest([HANDLER], "batch", "ndjson", "cancel-push", max_items=max_items))
    runs = [{"workflow": "work", "input": {"n": n}} for n in range(count)]
    rows = (await node.call("POST", "/v1/runs/bulk", {"runs": runs}))["rows"]
    return endpoint, [row["id"] for row in rows]


def _items(arrival: Arrival) -> dict[int, Any]:
    """The batch's items by the number in their input."""
    assert arrival.json["type"] == "batch"
    return {item["input"]["n"]: item for item in arrival.json["items"]}


async def test_each_item_has_its_own_fate(world: World, one: Node) -> None:
    endpoint, runs = await _batch(world, one, 6)
    arrival = await endpoint.next()
    items = _items(arrival)
    assert len(items) == 6
    arrival.answer(
        200,
        {
            "results": [
                {"id": items[0]["id"], "status": "ok", "output": {"n": 0}},
                {"id": items[1]["id"], "status": "fail", "retry": False, "error": {"code": "x", "message": "m"}},
                {"id": items[2]["id"], "status": "fail", "error": {"code": "y", "message": "m"}},
                {"id": items[3]["id"], "status": "retry", "after_ms": 5000},
                {"id": items[4]["id"], "status": "accepted", "lease_ms": 60_000},
            ]
        },
    )
    assert (await world.over(runs[0]))["output"] == b'{"n": 0}'
    assert (await world.over(runs[1]))["error"]["code"] == "x"
    failed, pushed_back = await world.task(runs[2], state="scheduled"), await world.task(runs[3], state="scheduled")
    assert (failed["due_at"], failed["app_retries"]) == (world.now + 10 * SECOND, 1)
    assert (pushed_back["due_at"], pushed_back["app_retries"]) == (world.now + 5 * SECOND, 0)
    accepted = await world.task(runs[4], dispatcher_id=None)
    assert accepted["lease_until"] == world.now + 60 * SECOND
    missing = await world.task(runs[5], state="scheduled")
    (attempt,) = await world.attempts(runs[5], 1)
    assert (missing["app_retries"], attempt["status"], attempt["code"]) == (1, "failed", "missing_result")
    await one.callback(items[4]["token"], {"done": 4})
    assert (await world.over(runs[4]))["output"] == b"4"


async def test_what_was_missing_is_sent_again(world: World, one: Node) -> None:
    endpoint, runs = await _batch(world, one, 3)
    first = await endpoint.next()
    first.answer(200, {"results": [{"id": _items(first)[1]["id"], "status": "ok", "output": 1}]})
    for n in (0, 2):
        await world.task(runs[n], state="scheduled")
    await world.advance(10 * SECOND)
    second = await endpoint.next()
    items = _items(second)
    assert {n: item["attempt"] for n, item in items.items()} == {0: 2, 2: 2}
    second.answer(200, {"results": [{"id": item["id"], "status": "ok", "output": n} for n, item in items.items()]})
    assert [(await world.over(run))["epoch"] for run in runs] == [2, 1, 2]


async def test_lines_count_as_they_come(world: World, one: Node) -> None:
    endpoint, runs = await _batch(world, one, 3)
    arrival = await endpoint.next()
    items = _items(arrival)
    arrival.begin_stream()
    arrival.line({"id": items[1]["id"], "status": "ok", "output": 1})
    assert (await world.over(runs[1]))["status"] == "succeeded"
    arrival.line({"id": items[0]["id"], "status": "ok", "output": 0})
    arrival.line({"id": items[0]["id"], "status": "fail", "retry": False, "error": {"message": "said twice"}})
    arrival.line({"id": "tsk_somebody_elses", "status": "ok", "output": 0})
    arrival.end_stream()
    assert (await world.over(runs[0]))["status"] == "succeeded"
    (attempt,) = await world.attempts(runs[2], 1)
    assert attempt["code"] == "missing_result"


@pytest.mark.parametrize(("status", "attempt", "spent"), [(500, "failed", 1), (503, "pushed_back", 0), (404, "endpoint_broken", 0)])
async def test_a_refused_batch_is_every_items_fate(world: World, one: Node, status: int, attempt: str, spent: int) -> None:
    endpoint, runs = await _batch(world, one, 3)
    (await endpoint.next()).answer(status)
    for run_id in runs:
        (row,) = await world.attempts(run_id, 1)
        assert (row["status"], row["http_status"]) == (attempt, status)
        assert (await world.task(run_id))["app_retries"] == spent


async def test_a_batch_is_no_larger_than_the_endpoint_takes(world: World, one: Node) -> None:
    endpoint, runs = await _batch(world, one, 7, max_items=3)
    sizes = []
    for _ in range(3):
        arrival = await endpoint.next()
        items = arrival.json["items"] if arrival.json["type"] == "batch" else [arrival.json]
        sizes.append(len(items))
        if arrival.json["type"] == "batch":
            arrival.answer(200, {"results": [{"id": item["id"], "status": "ok", "output": 1} for item in items]})
        else:
            arrival.answer(200, 1)
    assert sorted(sizes) == [1, 3, 3]
    for run_id in runs:
        assert (await world.over(run_id))["status"] == "succeeded"


async def test_one_items_deadline_is_not_the_batchs(world: World, one: Node) -> None:
    """The items end at their deadline; the connection is closed with the last of them."""
    endpoint, runs = await _batch(world, one, 2)
    arrival = await endpoint.next()
    items = _items(arrival)
    arrival.begin_stream()
    arrival.line({"id": items[0]["id"], "status": "ok", "output": 0})
    await world.over(runs[0])
    await world.advance(50 * SECOND)
    (attempt,) = await world.attempts(runs[1], 1)
    assert attempt["status"] == "timed_out"
    await arrival.gone()


async def test_cancelling_one_item_leaves_the_others(world: World, one: Node) -> None:
    endpoint, runs = await _batch(world, one, 2)
    arrival = await endpoint.next()
    items = _items(arrival)
    await one.call("POST", f"/v1/runs/{runs[0]}/cancel", {})
    told = await endpoint.next()
    assert (told.json["type"], told.json["id"]) == ("cancel", items[0]["id"])
    told.answer(204)
    await world.advance(10 * SECOND)
    await one.turn()
    assert (await world.over(runs[0]))["status"] == "cancelled"
    assert not arrival.hung_up.is_set()
    arrival.answer(200, {"results": [{"id": items[1]["id"], "status": "ok", "output": 1}]})
    assert (await world.over(runs[1]))["status"] == "succeeded"


async def test_a_batch_that_breaks_off_loses_only_its_unreported_tail(world: World, one: Node) -> None:
    endpoint, runs = await _batch(world, one, 2)
    arrival = await endpoint.next()
    items = _items(arrival)
    arrival.begin_stream()
    arrival.line({"id": items[0]["id"], "status": "ok", "output": 0})
    await world.over(runs[0])
    arrival.cut()
    (attempt,) = await world.attempts(runs[1], 1)
    assert attempt["status"] == "failed"
    task = await world.task(runs[1], state="scheduled")
    assert (task["due_at"], task["app_retries"]) == (world.now + 10 * SECOND, 1)
