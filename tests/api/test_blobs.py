"""Uploading, fetching and naming values too large for a call."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.api.test_bad_input import assert_problem
from tests.api.world import World

LARGE = json.dumps({"text": "x" * 2_000_000}).encode()
JSON = {"content-type": "application/json"}


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


async def put(api: httpx.AsyncClient, text: bytes, name: str = "") -> httpx.Response:
    return await api.put(f"/v1/blobs{name}", content=text, headers=JSON)


async def start(api: httpx.AsyncClient, **members: Any) -> httpx.Response:
    return await api.post("/v1/runs", json={"workflow": "resize", **members})


async def kept(world: World) -> int:
    return int(await world.database.fetchval("select count(*) from blobs"))


async def test_a_value_is_kept_under_its_hash_once(world: World, api: httpx.AsyncClient) -> None:
    first, again = await put(api, LARGE), await put(api, LARGE, f"/sha256-{digest(LARGE)}")
    name = f"sha256-{digest(LARGE)}"
    url = f"{world.services.settings.base_url()}/v1/blobs/{name}"
    target = {"url": url, "sha256": digest(LARGE), "size": len(LARGE)}
    assert (first.status_code, first.json()) == (201, {"id": name, "ref": {"$ref": target}})
    assert (again.status_code, again.json()) == (200, first.json())
    assert first.headers["location"] == f"/v1/blobs/{name}"
    assert (await api.get(first.headers["location"])).content == LARGE
    assert await kept(world) == 1


async def test_a_run_can_be_started_with_one(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    ref = (await put(api, LARGE)).json()["ref"]
    answer = await start(api, input=ref, refs=["input"])
    assert answer.status_code == 201, answer.text
    assert (await api.get(f"/v1/runs/{answer.json()['id']}")).json()["input"] == json.loads(LARGE)


@pytest.mark.parametrize("refs", [{}, {"refs": []}])
async def test_an_input_that_looks_like_one_is_an_input(world: World, api: httpx.AsyncClient, refs: dict[str, Any]) -> None:
    await world.register()
    ref = (await put(api, b'"value"')).json()["ref"]
    answer = await start(api, input=ref, **refs)
    assert (await api.get(f"/v1/runs/{answer.json()['id']}")).json()["input"] == ref


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        ({"$ref": {"sha256": "0" * 64, "size": 3}}, 422, "unknown_ref"),
        ({"$ref": {"sha256": digest(b"123"), "size": 4}}, 422, "unknown_ref"),
        ({"$ref": {"sha256": digest(b"123").upper(), "size": 3}}, 400, "invalid_ref"),
        ({"$ref": {"sha256": "../../x", "size": 3}}, 400, "invalid_ref"),
        ({"$ref": {"sha256": digest(b"123"), "size": -1}}, 400, "invalid_ref"),
        ({"$ref": {"sha256": digest(b"123"), "size": 2**63}}, 400, "invalid_ref"),
        ({"$ref": {"sha256": digest(b"123"), "size": 3}, "more": 1}, 400, "invalid_ref"),
        ({"$ref": None}, 400, "invalid_ref"),
        ({}, 400, "invalid_ref"),
        (7, 400, "invalid_ref"),
    ],
)
async def test_a_reference_that_leads_nowhere_starts_nothing(
    world: World, api: httpx.AsyncClient, given: Any, status: int, code: str
) -> None:
    await world.register()
    await put(api, b"123")
    assert_problem(await start(api, input=given, refs=["input"]), status, code, "input")
    assert (await api.get("/v1/runs")).json()["rows"] == []


async def test_a_reference_where_none_is_taken_is_refused(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    ref = (await put(api, b"{}")).json()["ref"]
    assert_problem(await start(api, input=ref, refs=["metadata"]), 400, "invalid_value", "refs")
    assert_problem(await start(api, refs=["input"]), 400, "invalid_ref", "input")
    event = {"type": "user:created", "data": ref}
    for refs in (["input"], ["data", "event_data"], ["event_data"], ["data", "data", "event_data"]):
        refused = await api.post("/v1/events", json={**event, "refs": refs})
        assert_problem(refused, 400, "invalid_value" if refs == ["input"] else "invalid_ref", "refs")
    called = {"type": "call", "data": ref, "refs": ["data"]}
    rows = (await api.post("/v1/events/bulk", json={"events": [called]})).json()["rows"]
    assert (rows[0]["code"], "POST /v1/events" in rows[0]["detail"]) == ("invalid_ref", True)


async def test_inputs_of_many_runs_go_by_reference(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    small, large = b'{"width":1}', b'{"text":"%b"}' % (b"x" * 2_000_000)
    refs = [(await put(api, text)).json()["ref"] for text in (small, large)]
    nowhere = {"$ref": {"sha256": "0" * 64, "size": 3}}
    items = [
        {"workflow": "resize", "input": refs[0], "refs": ["input"]},
        {"workflow": "resize", "input": {"width": 2}},
        {"workflow": "resize", "input": nowhere, "refs": ["input"]},
        {"workflow": "resize", "input": refs[1], "refs": ["input"]},
        {"workflow": "none", "input": refs[1], "refs": ["input"]},
        {"workflow": "resize", "refs": ["input"]},
        {"workflow": "resize", "input": refs[0]},
    ]
    rows = (await api.post("/v1/runs/bulk", json={"runs": items})).json()["rows"]
    assert [row.get("code") for row in rows] == [None, None, "unknown_ref", None, "unknown_workflow", "invalid_ref", None]
    assert "runs[2].input" in rows[2]["detail"]
    inputs = [(await api.get(f"/v1/runs/{rows[i]['id']}")).json()["input"] for i in (0, 1, 3, 6)]
    assert inputs == [{"width": 1}, {"width": 2}, {"text": "x" * 2_000_000}, refs[0]]
    many = [{"workflow": "resize", "input": refs[1], "refs": ["input"]}] * 9
    rows = (await api.post("/v1/runs/bulk", json={"runs": many})).json()["rows"]
    assert [row.get("code") for row in rows] == [None] * 8 + ["bulk_too_large"]


async def test_data_of_events_goes_by_reference(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    ref = (await put(api, b'{"width":1}')).json()["ref"]
    called = (await put(api, b'{"fn":"resize","args":[{"width":2}]}')).json()["ref"]
    for body in (
        {"type": "user:created", "data": ref, "refs": ["data"]},
        {"event_type": "user:created", "event_data": ref, "refs": ["event_data"]},
    ):
        sent = (await api.post("/v1/events", json=body)).json()
        assert (await api.get(f"/v1/events/{sent['event_id']}")).json()["data"] == {"width": 1}
        (row,) = (await api.post("/v1/events/bulk", json={"events": [body]})).json()["rows"]
        assert (await api.get(f"/v1/events/{row['event_id']}")).json()["data"] == {"width": 1}
    sent = (await api.post("/v1/events", json={"type": "call", "data": called, "refs": ["data"]})).json()
    assert (await api.get(f"/v1/runs/{sent['runs'][0]}")).json()["input"] == {"width": 2}
    plain = (await api.post("/v1/events", json={"type": "user:created", "data": ref})).json()
    assert (await api.get(f"/v1/events/{plain['event_id']}")).json()["data"] == ref
    gone = {"$ref": {"sha256": "0" * 64, "size": 3}}
    assert_problem(await api.post("/v1/events", json={"type": "user:created", "data": gone, "refs": ["data"]}), 422, "unknown_ref", "data")
    (row,) = (await api.post("/v1/events/bulk", json={"events": [{"type": "x", "data": gone, "refs": ["data"]}]})).json()["rows"]
    assert (row["code"], "events[0].data" in row["detail"]) == ("unknown_ref", True)


async def test_what_arrives_must_be_what_was_announced(world: World, api: httpx.AsyncClient) -> None:
    assert_problem(await put(api, b"[1]", f"/sha256-{digest(b'[2]')}"), 422, "blob_mismatch", digest(b"[1]"))
    for name in ("/sha256-00", "/x", f"/{digest(b'[1]')}", f"/sha256-{digest(b'[1]').upper()}"):
        assert_problem(await put(api, b"[1]", name), 404, "not_found", "hex digits")
        assert_problem(await api.get(f"/v1/blobs{name}"), 404, "not_found", "hex digits")
    assert await kept(world) == 0


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b'"\xff"', 400, "invalid_utf8"),
        (b'"\\u0000"', 400, "nul_character"),
        (b"1e9999", 400, "number_out_of_range"),
        (b"[" * 100 + b"]" * 100, 400, "too_deep"),
        (b'"' + b"x" * 16_777_216 + b'"', 413, "body_too_large"),
    ],
)
async def test_only_values_that_can_be_kept_are_taken(world: World, api: httpx.AsyncClient, text: bytes, status: int, code: str) -> None:
    assert_problem(await put(api, text), status, code, "")
    assert await kept(world) == 0


async def test_an_upload_that_is_cut_leaves_nothing(world: World) -> None:
    parts = iter([{"type": "http.request", "body": LARGE[:1_000], "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost:8400"), (b"content-type", b"application/json"), (b"content-length", str(len(LARGE)).encode())]
    scope: Any = {
        "type": "http", "method": "PUT", "path": "/v1/blobs", "raw_path": b"/v1/blobs", "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 40_000), "server": ("localhost", 8400), "scheme": "http", "root_path": "", "http_version": "1.1",
        "asgi": {"version": "3.0"}, "extensions": {},
    }  # fmt: skip
    await asyncio.wait_for(world.app(scope, receive, send), 10)
    assert sent[0]["status"] == 499
    assert await kept(world) == 0


async def test_what_belongs_to_another_tenant_is_not_there(serving: World) -> None:
    async with serving.client(await serving.token("a")) as mine, serving.client(await serving.token("b")) as theirs:
        await serving.register("b")
        ref = (await put(mine, b'"secret"')).json()["ref"]
        secret = digest(b'"secret"')
        assert_problem(await theirs.get(f"/v1/blobs/sha256-{secret}"), 404, "not_found", secret)
        assert_problem(await start(theirs, input=ref, refs=["input"]), 422, "unknown_ref", "input")
        assert (await put(theirs, b'"secret"')).status_code == 201  # and who uploads it learns nothing of the other


async def test_tokens_need_the_scopes_of_runs(serving: World) -> None:
    async with serving.client(await serving.token("a", "runs:read")) as reader, serving.client(await serving.token("a")) as writer:
        assert_problem(await put(reader, b"1"), 403, "forbidden", "runs:write")
        location = (await put(writer, b"1")).headers["location"]
        assert (await reader.get(location)).content == b"1"
    async with serving.client(await serving.token("a", "runs:write")) as blind, serving.client() as nobody:
        assert_problem(await blind.get(location), 403, "forbidden", "runs:read")
        assert_problem(await put(nobody, b"1"), 401, "unauthorized", "token")


async def test_a_running_attempt_may_upload_and_fetch_and_an_old_one_may_not(serving: World) -> None:
    await serving.register()
    run_id = await serving.running()
    expires = int((serving.clock.now() + timedelta(hours=1)).timestamp())
    token = serving.tokens.make(await serving.tenant("default"), run_id, 0, 1, expires)
    async with serving.client(token) as attempt, serving.client(token + "x") as forged:
        location = (await put(attempt, b"[1]")).headers["location"]
        assert (await attempt.get(location)).content == b"[1]"
        assert_problem(await put(forged, b"[1]"), 401, "unauthorized", "forged")
        await serving.fail_once(run_id)
        assert_problem(await put(attempt, b"[1]"), 409, "stale_attempt", "attempt 1")
        assert_problem(await attempt.get(location), 409, "stale_attempt", "attempt 1")
