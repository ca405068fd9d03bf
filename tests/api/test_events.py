"""Events over HTTP: sent, read, and the runs they started."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from dispatcher.api import events as events_api
from tests.api.test_bad_input import assert_problem, bulk
from tests.api.test_runs import rows_of, start_again
from tests.api.world import World


async def test_an_event_starts_what_listens_for_it(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    answer = await api.post(
        "/v1/events", json={"type": "user:created", "data": {"id": 5}, "metadata": {"source": "shop"}, "scope": "s", "priority": 2}
    )
    sent = answer.json()
    assert answer.status_code == 201
    event_id, (run_id,) = sent["event_id"], sent["runs"]
    assert sent == {
        "event_id": event_id, "stream_id": event_id.replace("evt_", "str_"), "runs": [run_id],
        "data": {"event_id": event_id, "stream_id": event_id.replace("evt_", "str_")},
    }  # fmt: skip
    assert (await api.get(f"/v1/events/{event_id}")).json() == {
        "id": event_id, "type": "user:created", "metadata": {"source": "shop"}, "scope": "s", "priority": 2, "stream_id": sent["stream_id"],
        "runs": 1, "created_at": "2026-06-01T12:00:00Z", "data": {"id": 5},
    }  # fmt: skip
    run = (await api.get(f"/v1/runs/{run_id}")).json()
    assert (run["workflow"], run["input"], run["event_id"], run["trigger"], run["stream_id"], run["priority"]) == (
        "mail", {"id": 5}, event_id, "event", sent["stream_id"], 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "data"),
    [
        ('{"type":"order:paid","data":[1]}', [1]),
        ('{"event_type":"order:paid","event_data":{"a":1}}', {"a": 1}),
        ('{"event_data":"x","event_type":"order:paid"}', "x"),
        ('{"type":"order:paid"}', {}),
        ('{"type":"order:paid","data":null}', None),
    ],
)
async def test_both_shapes_are_taken(world: World, api: httpx.AsyncClient, body: str, data: Any) -> None:
    await world.register()
    sent = (await api.post("/v1/events", content=body)).json()
    assert (await api.get(f"/v1/events/{sent['event_id']}")).json()["data"] == data
    assert len(sent["runs"]) == 1


async def test_an_event_nobody_listens_for_is_kept(api: httpx.AsyncClient) -> None:
    sent = (await api.post("/v1/events", json={"type": "never:heard"})).json()
    assert sent["runs"] == []
    assert (await api.get(f"/v1/events/{sent['event_id']}")).json()["runs"] == 0


@pytest.mark.parametrize("kind", ["call", "hot:call"])
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ('[{"order_id":"12345"}]', {"order_id": "12345"}),
        ("[]", {}),
        ("[5]", {"args": [5]}),
        ('[[{"a":1}]]', {"args": [[{"a": 1}]]}),
        ('[{"a":1}, "b"]', {"args": [{"a": 1}, "b"]}),
    ],
)
async def test_a_call_runs_one_function(world: World, api: httpx.AsyncClient, kind: str, args: str, expected: Any) -> None:
    await world.register(handlers=[{"name": "resize"}, {"name": "audit", "on_events": ["*"]}])
    answer = await api.post("/v1/events", content=f'{{"type":"{kind}","data":{{"fn":"resize","args":{args}}}}}')
    assert answer.status_code == 201
    (run_id,) = answer.json()["runs"]
    run = (await api.get(f"/v1/runs/{run_id}")).json()
    assert (run["workflow"], run["input"], run["event_id"]) == ("resize", expected, answer.json()["event_id"])


async def test_a_key_keeps_an_event_from_counting_twice(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    body = {"type": "user:created", "data": {}, "idempotency_key": "k"}
    first, again = await api.post("/v1/events", json=body), await api.post("/v1/events", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert (again.json()["event_id"], again.json()["duplicate"]) == (first.json()["event_id"], True)
    assert len(await rows_of(api, "/v1/runs")) == 1


async def test_bulk_answers_each_item_in_order(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    items = [
        '{"type":"user:created"}',
        '{"type":""}',
        '{"typ":"x"}',
        '{"type":"call","data":{"fn":"resize"}}',
        '{"event_type":"x","event_data":1}',
    ]
    rows = (await api.post("/v1/events/bulk", content=bulk("events", items))).json()["rows"]
    assert [row.get("code") for row in rows] == [None, "invalid_value", "unknown_field", None, None]
    assert [len(row["runs"]) for row in rows if "runs" in row] == [1, 1, 0]
    assert "events[1].type" in rows[1]["detail"]
    assert len(await rows_of(api, "/v1/events")) == 3
    many = bulk("events", ['{"type":"x"}'] * 1_001)
    assert_problem(await api.post("/v1/events/bulk", content=many), 413, "bulk_too_large", "1,001")


async def test_events_are_listed_without_their_data(world: World, api: httpx.AsyncClient) -> None:
    for i in range(3):
        await api.post("/v1/events", json={"type": f"t{i % 2}", "data": "secret"})
        world.clock.advance(timedelta(minutes=1))
    assert "secret" not in (await api.get("/v1/events")).text
    assert [row["type"] for row in await rows_of(api, "/v1/events")] == ["t0", "t1", "t0"]
    assert [row["type"] for row in await rows_of(api, "/v1/events", type="t1")] == ["t1"]
    assert len(await rows_of(api, "/v1/events", since="2026-06-01T12:01:00Z")) == 2
    assert len(await rows_of(api, "/v1/events", until="2026-06-01T12:01:00Z")) == 1
    first = (await api.get("/v1/events?limit=2")).json()
    rest = (await api.get("/v1/events", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    ids = [row["id"] for row in first["rows"] + rest["rows"]]
    assert (len(ids), ids) == (3, sorted(ids, reverse=True))


async def test_an_unknown_event_is_not_found(api: httpx.AsyncClient) -> None:
    for event_id in ("evt_01j00000000000000000000000", "run_01j00000000000000000000000", "x"):
        assert_problem(await api.get(f"/v1/events/{event_id}"), 404, "not_found", "event")
        assert_problem(await api.get(f"/v1/events/{event_id}/runs"), 404, "not_found", "event")


async def event_with_run(world: World, api: httpx.AsyncClient) -> tuple[str, str]:
    """An event, and a run it started that is under way."""
    event_id = (await api.post("/v1/events", json={"type": "never:heard"})).json()["event_id"]
    return event_id, await world.running(event_id=event_id)


async def test_the_runs_of_an_event_are_its_attempts(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    event_id, run_id = await event_with_run(world, api)
    path, retry = f"/v1/events/{event_id}/runs", run_id.replace("run_", "att_") + "_2"

    async def shown() -> list[tuple[str, str, Any, str | None]]:
        return [(row["run_id"], row["status"], row["result"], row["origin_run_id"]) for row in await rows_of(api, path)]

    assert await shown() == [(run_id, "running", None, None)]
    world.clock.advance(timedelta(seconds=2))
    await world.fail_once(run_id)
    why = {"code": "handler_failed", "message": "try again"}
    assert await shown() == [(run_id, "pending_retry", why, None)]
    await start_again(world, run_id)
    assert await shown() == [(run_id, "failed", why, None), (retry, "running", None, run_id)]
    world.clock.advance(timedelta(seconds=1))
    await world.finish(run_id, epoch=2)
    assert await shown() == [(run_id, "failed", why, None), (retry, "succeeded", {"ok": True}, run_id)]
    row = (await rows_of(api, path))[1]
    assert (row["function"], row["input"], row["duration_ms"], row["trigger"], row["started_at"], row["completed_at"]) == (
        "resize", {"w": 64}, 1000, {"type": "event", "event_id": event_id}, "2026-06-01T12:00:02Z", "2026-06-01T12:00:03Z",
    )  # fmt: skip


async def test_a_run_that_never_started_is_shown_too(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    sent = (await api.post("/v1/events", json={"type": "user:created"})).json()
    path, (run_id,) = f"/v1/events/{sent['event_id']}/runs", sent["runs"]
    assert [(row["run_id"], row["status"], row["attempt"]) for row in await rows_of(api, path)] == [(run_id, "queued", 0)]
    await api.post(f"/v1/runs/{run_id}/cancel")
    row = (await rows_of(api, path))[0]
    assert (row["run_id"], row["status"], row["result"]["code"]) == (run_id, "cancelled", "cancelled")


async def test_pages_of_attempts_keep_to_the_limit(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    event_id, first = await event_with_run(world, api)
    second = await world.running(event_id=event_id)
    for run_id in (first, second):
        await world.fail_once(run_id)
        await start_again(world, run_id)
        await world.finish(run_id, epoch=2)
    seen: list[tuple[str, int]] = []
    cursor = None
    while True:
        answer = await api.get(f"/v1/events/{event_id}/runs", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        page = answer.json()
        assert len(page["rows"]) <= 3
        seen += [(row["origin_run_id"] or row["run_id"], row["attempt"]) for row in page["rows"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [(first, 1), (first, 2), (second, 1), (second, 2)]


async def test_pages_of_attempts_end_early_when_bodies_are_large(
    world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "_MOST_PAGE_BYTES", 2_500)
    await world.register()
    event_id = (await api.post("/v1/events", json={"type": "never:heard"})).json()["event_id"]
    runs = [await world.running(event_id=event_id, input=b'"' + b"x" * 1_000 + b'"') for _ in range(3)]
    runs += [await world.running(event_id=event_id, input=b'"' + b"x" * 5_000 + b'"')]
    sizes, seen, cursor = [], [], None
    while True:
        page = (await api.get(f"/v1/events/{event_id}/runs", params={"cursor": cursor} if cursor else {})).json()
        sizes.append(len(page["rows"]))
        seen += [row["run_id"] for row in page["rows"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert (seen, sizes) == (runs, [2, 1, 1])
