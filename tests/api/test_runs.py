"""Runs over HTTP: started, waited for, read, listed, cancelled."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from dispatcher.store import logs
from dispatcher.store.logs import NewLine
from dispatcher.store.outcomes import AttemptFacts
from tests.api.test_bad_input import assert_problem, bulk
from tests.api.world import World


async def rows_of(api: httpx.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    answer = await api.get(path, params=params)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows


async def test_a_run_is_created(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    body = {"workflow": "resize", "input": {"w": 64}, "metadata": {"customer": "c1"}, "priority": 3}
    answer = await api.post("/v1/runs", json=body)
    created = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/runs/{created['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert created == {"id": created["id"], "workflow": "resize", "status": "queued", "created_at": "2026-06-01T12:00:00Z"}
    run = (await api.get(f"/v1/runs/{created['id']}")).json()
    (waiting_for,) = run["tasks"][0].pop("waiting_for")
    assert (waiting_for["kind"], waiting_for["endpoint"]) == ("endpoint", "images")
    assert run == {
        **created, "workflow_version": 1, "input": {"w": 64}, "output": None, "error": None, "metadata": {"customer": "c1"}, "priority": 3,
        "trigger": "api", "started_at": None, "finished_at": None, "event_id": None, "parent_run_id": None,
        "stream_id": created["id"].replace("run_", "str_"),
        "tasks": [{
            "id": created["id"].replace("run_", "tsk_"), "name": "resize", "status": "queued", "output": None, "error": None,
            "retry_count": 0, "endpoint": None, "endpoint_version": None, "started_at": None, "finished_at": None, "attempts": [],
        }],
        "children": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", [b'{"b":1,  "a":[1.0, 1e3]}', b"null", b"[]", b'"\\ud83d\\ude00"', '"ö"'.encode(), b"12345678901234567890.10", b"true"]
)
async def test_an_input_comes_back_as_it_was_sent(world: World, api: httpx.AsyncClient, text: bytes) -> None:
    await world.register()
    created = (await api.post("/v1/runs", content=b'{"input": %b, "workflow": "resize"}' % text)).json()
    assert b'"input":' + text + b"," in (await api.get(f"/v1/runs/{created['id']}")).content


async def test_a_run_without_input_has_an_empty_one(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    created = (await api.post("/v1/runs", json={"workflow": "resize", "metadata": None})).json()
    run = (await api.get(f"/v1/runs/{created['id']}")).json()
    assert (run["input"], run["metadata"]) == ({}, None)


async def test_a_run_may_start_later(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    created = (await api.post("/v1/runs", json={"workflow": "resize", "run_at": "2026-06-02T14:00:00+02:00"})).json()
    task = (await api.get(f"/v1/runs/{created['id']}")).json()["tasks"][0]
    assert (task["status"], task["next_attempt_at"]) == ("queued", "2026-06-02T12:00:00Z")


async def test_a_key_starts_one_run(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    body = {"workflow": "resize", "input": {"n": 1}, "idempotency_key": "k", "idempotency_ttl": "1h"}
    first = await api.post("/v1/runs", json=body)
    again = await api.post("/v1/runs", json=body | {"input": {"n": 2}})
    other = await api.post("/v1/runs", json=body | {"workflow": "mail"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
    assert again.json()["id"] == first.json()["id"]
    assert (again.json()["duplicate"], again.json()["input"], again.json()["idempotency_key"]) == (True, {"n": 1}, "k")
    assert "duplicate" not in first.json()
    world.clock.advance(timedelta(hours=1))
    assert (await api.post("/v1/runs", json=body)).status_code == 201


async def test_waiting_gives_the_result_as_soon_as_there_is_one(
    world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.register()
    run_id = await world.running()
    asked = asyncio.Event()
    waiters = world.services.waiters
    original = type(waiters)._until

    async def until(self: Any, future: asyncio.Future[None], moment: datetime) -> bool:
        assert moment == world.clock.now() + timedelta(seconds=30)
        asked.set()
        return await original(self, future, moment)

    monkeypatch.setattr(type(waiters), "_until", until)
    waiting = asyncio.create_task(api.get(f"/v1/runs/{run_id}?wait=30s"))
    await asked.wait()
    await world.finish(run_id, output=b'{"url":"x"}')
    waiters.finished([(1, run_id), (await world.tenant("default"), run_id)])
    answer = await waiting
    assert (answer.status_code, answer.json()["status"], answer.json()["output"]) == (200, "succeeded", {"url": "x"})


async def test_waiting_ends_with_the_run_so_far(world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.register()
    waited: list[float] = []

    async def until(_self: Any, _future: asyncio.Future[None], moment: datetime) -> bool:
        waited.append((moment - world.clock.now()).total_seconds())
        return False

    monkeypatch.setattr(type(world.services.waiters), "_until", until)
    answer = await api.post("/v1/runs?wait=1h", json={"workflow": "resize"})
    assert (answer.status_code, answer.json()["status"], waited) == (202, "queued", [60])
    assert (await api.get(f"/v1/runs/{answer.json()['id']}?wait=500ms")).status_code == 202
    assert waited == [60, 0.5]


async def test_a_finished_run_is_not_waited_for(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    run_id = await world.running()
    await world.finish(run_id)
    assert (await api.get(f"/v1/runs/{run_id}?wait=30s")).status_code == 200


async def test_a_run_tells_of_every_attempt(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    run_id = await world.running(metadata='{"a": 1}', priority=2)
    world.clock.advance(timedelta(seconds=1))
    running = (await api.get(f"/v1/runs/{run_id}")).json()
    assert (running["status"], running["started_at"]) == ("running", "2026-06-01T12:00:00Z")
    assert [a["status"] for a in running["tasks"][0]["attempts"]] == ["running"]
    await world.fail_once(run_id)
    waiting = (await api.get(f"/v1/runs/{run_id}")).json()
    assert (waiting["status"], waiting["tasks"][0]["next_attempt_at"]) == ("pending_retry", "2026-06-01T12:00:31Z")
    await start_again(world, run_id)
    world.clock.advance(timedelta(seconds=2))
    await world.finish(run_id, epoch=2, output=b"[1]", facts=AttemptFacts(200, 1900, b"[1]"))
    run = (await api.get(f"/v1/runs/{run_id}")).json()
    task = run["tasks"][0]
    stem = run_id.removeprefix("run_")
    assert (run["status"], run["output"], run["started_at"], run["finished_at"]) == (
        "succeeded", [1], "2026-06-01T12:00:00Z", "2026-06-01T12:00:03Z",
    )  # fmt: skip
    assert (task["status"], task["output"], task["retry_count"], task["endpoint"]) == ("succeeded", [1], 1, "images")
    version = task["endpoint_version"]
    assert task["attempts"] == [
        {
            "id": f"att_{stem}_1", "number": 1, "status": "failed", "http_status": 500, "latency_ms": 12, "response": "oops \ufffd",
            "started_at": "2026-06-01T12:00:00Z", "finished_at": "2026-06-01T12:00:01Z",
            "error": {"code": "handler_failed", "message": "try again"}, "endpoint": "images", "endpoint_version": version,
        },
        {
            "id": f"att_{stem}_2", "number": 2, "status": "succeeded", "http_status": 200, "latency_ms": 1900, "response": "[1]",
            "started_at": "2026-06-01T12:00:01Z", "finished_at": "2026-06-01T12:00:03Z",
            "error": None, "endpoint": "images", "endpoint_version": version,
        },
    ]  # fmt: skip


async def start_again(world: World, run_id: str) -> None:
    """What the claim does to a task whose retry is due."""
    await world.database.execute(
        "update tasks set state = 'running', epoch = epoch + 1, started_at = $2, dispatcher_id = $3, "
        "endpoint_id = (select id from endpoints limit 1), endpoint_version = (select version from endpoints limit 1) where run_id = $1",
        run_id,
        world.clock.now(),
        world.dispatcher_id,
    )


async def test_a_run_names_its_children(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    parent = await world.running()
    first = await world.running(parent_run_id=parent)
    second = (await api.post("/v1/runs", json={"workflow": "resize", "parent_run_id": parent})).json()["id"]
    await world.finish(min(first, second))
    run = (await api.get(f"/v1/runs/{parent}")).json()
    assert run["children"] == sorted([first, second])
    assert [row["id"] for row in await rows_of(api, "/v1/runs", parent_run_id=parent)] == sorted([first, second], reverse=True)
    assert (await api.get(f"/v1/runs/{first}")).json()["parent_run_id"] == parent


async def test_an_output_that_is_no_json_is_shown_as_text(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    run_id = await world.running()
    await world.finish(run_id, output=b'caf\xc3\xa9 "1" \xff', output_type="text/plain")
    run = (await api.get(f"/v1/runs/{run_id}")).json()
    assert (run["output"], run["output_type"], run["tasks"][0]["output_type"]) == ('café "1" \ufffd', "text/plain", "text/plain")


async def test_a_failed_run_says_why(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    run_id = await world.running()
    await world.finish(run_id, "failed")
    run = (await api.get(f"/v1/runs/{run_id}")).json()
    assert (run["status"], run["error"]["code"], run["output"]) == ("failed", "handler_failed", None)
    assert (await rows_of(api, "/v1/runs"))[0]["error"]["message"] == "it broke"


@pytest.mark.parametrize("run_id", ["run_1", "run_01j00000000000000000000000", "evt_01j00000000000000000000000", "run_%00", "x" * 300])
async def test_an_unknown_run_is_not_found(api: httpx.AsyncClient, run_id: str) -> None:
    says = "NUL" if "%00" in run_id else "there is no run"
    for path in ("", "?wait=10s", "/logs"):
        assert_problem(await api.get(f"/v1/runs/{run_id}{path}"), 404, "not_found", says)
    assert_problem(await api.post(f"/v1/runs/{run_id}/cancel"), 404, "not_found", says)


async def test_bulk_answers_each_item_in_order(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    items = [
        '{"workflow":"resize","input":{"n":0}}',
        '{"workflow":"nope"}',
        '{"workflow":"resize","priority":9}',
        '{"workflow":"resize","extra":1}',
        "[]",
        '{"workflow":"resize","input":"%s"}' % ("x" * 1_048_576),
        '{"workflow":"resize","input":%s}' % ("[" * 65 + "]" * 65),
        '{"workflow":"resize","idempotency_key":"k"}',
        '{"workflow":"resize","idempotency_key":"k"}',
        '{"workflow":"mail","input":%s}' % ("[" * 64 + "]" * 64),
    ]
    answer = await api.post("/v1/runs/bulk", content=bulk("runs", items))
    rows = answer.json()["rows"]
    assert answer.status_code == 200
    assert [row.get("code", row["status"]) for row in rows] == [
        "queued", "unknown_workflow", "invalid_value", "unknown_field", "invalid_value", "body_too_large", "too_deep", "queued", "queued",
        "queued",
    ]  # fmt: skip
    assert "runs[2].priority" in rows[2]["detail"]
    assert "runs[3].extra" in rows[3]["detail"]
    assert rows[3]["field"] == "runs[3].extra"
    assert (rows[8]["id"], rows[8]["duplicate"]) == (rows[7]["id"], True)
    assert {row["id"] for row in await rows_of(api, "/v1/runs")} == {rows[i]["id"] for i in (0, 7, 9)}


async def test_bulk_has_its_own_limits(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    item = '{"workflow":"resize"}'
    assert len((await api.post("/v1/runs/bulk", content=bulk("runs", [item] * 1_000))).json()["rows"]) == 1_000
    assert_problem(await api.post("/v1/runs/bulk", content=bulk("runs", [item] * 1_001)), 413, "bulk_too_large", "1,001")
    assert_problem(await api.post("/v1/runs/bulk", content=b"[" * 16_777_217), 413, "body_too_large", "16,777,216")
    assert_problem(await api.post("/v1/runs/bulk", json={"runs": {}}), 400, "invalid_value", "runs")
    assert (await api.post("/v1/runs/bulk", json={"runs": []})).json() == {"rows": []}


async def test_pages_go_through_everything_once(world: World, api: httpx.AsyncClient) -> None:
    """Live and finished runs are one list, newest first, whatever ends while it is being read."""
    await world.register()
    run_ids = []
    for i in range(7):
        run_ids.append(await world.running(workflow="mail" if i == 3 else "resize"))
        world.clock.advance(timedelta(seconds=1))
        if i % 2:
            await world.finish(run_ids[-1])
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(4):
        page = (await api.get("/v1/runs", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [row["id"] for row in page["rows"]]
        if len(seen) == 2:
            await world.finish(run_ids[0])
        cursor = page["next_cursor"]
    assert seen == run_ids[::-1]
    assert cursor is None


async def test_a_cursor_belongs_to_its_list(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    for _ in range(3):
        await world.running()
    cursor = (await api.get("/v1/runs?limit=1&workflow=resize")).json()["next_cursor"]
    assert (await api.get("/v1/runs", params={"limit": 2, "workflow": "resize", "cursor": cursor})).status_code == 200
    for other in ({}, {"workflow": "mail"}, {"workflow": "resize", "status": "failed"}):
        assert_problem(await api.get("/v1/runs", params={"cursor": cursor, **other}), 400, "invalid_value", "cursor")
    assert_problem(await api.get("/v1/events", params={"cursor": cursor}), 400, "invalid_value", "cursor")


async def test_filters(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    a = await world.running(metadata='{"customer": "c1", "n": 5}')
    world.clock.advance(timedelta(minutes=1))
    b = await world.running(workflow="mail", metadata='{"customer": "c2", "n": "5"}', event_id="evt_01j00000000000000000000000")
    world.clock.advance(timedelta(minutes=1))
    c = await world.running(parent_run_id=a)
    d = (await api.post("/v1/runs", json={"workflow": "resize"})).json()["id"]
    await world.finish(a, "failed")
    await world.finish(b)
    await world.fail_once(c)

    async def found(**params: Any) -> list[str]:
        return [{a: "a", b: "b", c: "c", d: "d"}[row["id"]] for row in await rows_of(api, "/v1/runs", **params)]

    assert await found() == ["d", "c", "b", "a"]
    assert await found(status="queued") == ["d"]
    assert await found(status="pending_retry") == ["c"]
    assert await found(status="failed") == ["a"]
    assert await found(status=["failed", "succeeded"]) == ["b", "a"]
    assert await found(status="failed,queued") == ["d", "a"]
    assert await found(status="running") == []
    assert await found(workflow="mail") == ["b"]
    assert await found(workflow="nope") == []
    assert await found(metadata="customer:c1") == ["a"]
    assert await found(metadata="n:5") == ["b", "a"]
    assert await found(metadata=["n:5", "customer:c2"]) == ["b"]
    assert await found(metadata="customer:") == []
    assert await found(metadata='a"b.c:x\\') == []
    assert await found(event_id="evt_01j00000000000000000000000") == ["b"]
    assert await found(parent_run_id=a) == ["c"]
    assert await found(endpoint="images") == ["b", "a"]
    assert await found(endpoint="nope") == []
    assert await found(since="2026-06-01T12:01:00Z") == ["d", "c", "b"]
    assert await found(until="2026-06-01T12:01:00Z") == ["a"]
    assert await found(since="2026-06-01T14:01:00+02:00", until="2026-06-01T12:02:00Z") == ["b"]
    assert await found(workflow="resize", status="failed", metadata="customer:c1", since="2026-06-01T12:00:00Z") == ["a"]


async def test_lists_carry_no_bodies(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    await world.finish(await world.running(input=b'"a secret of many pages"'), output=b'"another"')
    text = (await api.get("/v1/runs")).text
    assert "secret" not in text
    assert "another" not in text


async def test_a_list_shows_the_first_start_of_a_run_that_was_retried(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    run_id = await world.running()
    await world.fail_once(run_id)
    world.clock.advance(timedelta(minutes=1))
    await start_again(world, run_id)
    await world.finish(run_id, epoch=2)
    assert (await rows_of(api, "/v1/runs"))[0]["started_at"] == "2026-06-01T12:00:00Z"


async def test_logs_are_pages_in_the_order_of_writing(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    run_id, tenant_id = await world.running(), await world.tenant("default")
    assert await rows_of(api, f"/v1/runs/{run_id}/logs") == []
    lines = [NewLine(tenant_id, run_id, 0, 1, world.clock.now() - timedelta(seconds=i), "info", f"line {i}") for i in range(5)]
    await logs.append(world.database, lines)
    page = (await api.get(f"/v1/runs/{run_id}/logs?limit=3")).json()
    assert page["rows"][0] == {
        "at": "2026-06-01T12:00:00Z", "level": "info", "message": "line 0", "attempt": 1, "task_id": run_id.replace("run_", "tsk_"),
        "run_id": run_id,
    }  # fmt: skip
    rest = (await api.get(f"/v1/runs/{run_id}/logs", params={"limit": 3, "cursor": page["next_cursor"]})).json()
    assert [row["message"] for row in page["rows"] + rest["rows"]] == [f"line {i}" for i in range(5)]
    assert rest["next_cursor"] is None
    other = await world.running()
    assert_problem(await api.get(f"/v1/runs/{other}/logs", params={"cursor": page["next_cursor"]}), 400, "invalid_value", "cursor")


async def test_cancelling(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    queued = (await api.post("/v1/runs", json={"workflow": "resize"})).json()["id"]
    for already in ({}, {"already": True}):
        answer = await api.post(f"/v1/runs/{queued}/cancel", json={"reason": "changed my mind"})
        assert (answer.status_code, answer.json()) == (200, {"id": queued, "status": "cancelled", **already})
    run = (await api.get(f"/v1/runs/{queued}")).json()
    assert (run["status"], run["tasks"][0]["attempts"]) == ("cancelled", [])
    assert "changed my mind" in run["error"]["message"]
    finished = await world.running()
    await world.finish(finished)
    assert_problem(await api.post(f"/v1/runs/{finished}/cancel"), 409, "run_finished", "succeeded")
    assert_problem(await api.post(f"/v1/runs/{finished}/cancel", json={"why": 1}), 400, "unknown_field", "why")


async def test_cancelling_what_runs_is_a_request(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    run_id = await world.running()
    answer = await api.post(f"/v1/runs/{run_id}/cancel", json={"reason": "too slow"})
    assert (answer.status_code, answer.json()) == (202, {"id": run_id, "status": "cancelling"})
    task = (await api.get(f"/v1/runs/{run_id}")).json()["tasks"][0]
    assert (task["status"], task["cancelling"]) == ("running", "too slow")
