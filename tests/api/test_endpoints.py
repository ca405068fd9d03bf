"""Endpoints and workflows over HTTP: registered, changed, looked at, removed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx

from tests.api.test_bad_input import assert_problem
from tests.api.test_runs import rows_of, start_again
from tests.api.world import HANDLERS, World

PLAIN = {"url": "http://127.0.0.1:9/", "handlers": HANDLERS}


async def put(api: httpx.AsyncClient, name: str = "images", **changes: Any) -> httpx.Response:
    return await api.put(f"/v1/endpoints/{name}", json=PLAIN | changes)


async def test_an_endpoint_is_registered_and_its_secret_shown_once(api: httpx.AsyncClient) -> None:
    first = await put(api, slots=5, labels={"gpu": 2, "zone": "a"}, version="1")
    document = first.json()
    assert first.status_code == 201
    assert document["secret"].startswith("whsec_")
    assert document["diff"] == {"added": ["mail", "resize"], "removed": [], "changed": []}
    again = await put(api, version="1")
    assert (again.status_code, again.json()["changed"], "secret" in again.json()) == (200, False, False)
    shown = await api.get("/v1/endpoints/images")
    assert document["secret"] not in shown.text
    assert shown.json() == {
        "id": document["id"], "name": "images", "url": "http://127.0.0.1:9/", "version": "1", "slots": 5, "in_use": 0,
        "durable_slots": None, "durable_in_use": 0,
        "labels": {"gpu": 2, "zone": "a"}, "paused": False, "draining": False, "remaining": None, "static": True,
        "health": "healthy", "circuit_code": None, "circuit_since": None,
        "probe_at": None, "verified": None, "features": [], "handlers": ["mail", "resize"],
        "created_at": "2026-06-01T12:00:00Z", "updated_at": "2026-06-01T12:00:00Z",
    }  # fmt: skip


async def test_a_version_never_changes(api: httpx.AsyncClient) -> None:
    await put(api, version="1")
    assert_problem(await put(api, version="1", handlers=[{"name": "resize"}]), 409, "version_exists", "'1'")
    assert (await put(api, version="2", handlers=[{"name": "resize"}])).json()["diff"]["removed"] == ["mail"]
    rows = await rows_of(api, "/v1/endpoints/images/versions")
    assert [(row["version"], row["current"], row["handlers"]) for row in rows] == [
        ("2", True, ["resize"]), ("1", False, ["mail", "resize"]),
    ]  # fmt: skip


async def test_versions_come_in_pages(world: World, api: httpx.AsyncClient) -> None:
    for i in range(5):
        await put(api, version=str(i))
        world.clock.advance(timedelta(minutes=i % 2))
    first = (await api.get("/v1/endpoints/images/versions?limit=3")).json()
    rest = (await api.get("/v1/endpoints/images/versions", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    assert [row["version"] for row in first["rows"] + rest["rows"]] == ["4", "3", "2", "1", "0"]
    assert rest["next_cursor"] is None


async def test_slots_in_use_are_counted(world: World, api: httpx.AsyncClient) -> None:
    await put(api)
    await put(api, "others", handlers=[{"name": "other"}])
    await world.running()
    await world.running()
    await api.post("/v1/runs", json={"workflow": "resize"})
    assert [(row["name"], row["in_use"]) for row in await rows_of(api, "/v1/endpoints")] == [("images", 2), ("others", 0)]
    assert (await rows_of(api, "/v1/endpoints/images/versions"))[0]["open_tasks"] == 2


async def test_an_endpoint_is_paused_and_changed(api: httpx.AsyncClient) -> None:
    await put(api)
    paused = (await api.patch("/v1/endpoints/images", json={"paused": True})).json()
    assert (paused["paused"], paused["health"], paused["slots"]) == (True, "paused", 100)
    changed = (await api.patch("/v1/endpoints/images", json={"paused": False, "slots": 7, "labels": {"a": 1}})).json()
    assert (changed["paused"], changed["health"], changed["slots"], changed["labels"]) == (False, "healthy", 7, {"a": 1})
    assert_problem(await api.patch("/v1/endpoints/images", json={}), 400, "invalid_value", "at least one")
    assert_problem(await api.patch("/v1/endpoints/images", json={"url": "x"}), 400, "unknown_field", "url")
    assert_problem(await api.patch("/v1/endpoints/nope", json={"slots": 1}), 404, "unknown_endpoint", "nope")


async def test_an_endpoint_is_removed_when_nothing_runs_there(world: World, api: httpx.AsyncClient) -> None:
    await put(api)
    run_id = await world.running()
    assert_problem(await api.delete("/v1/endpoints/images"), 409, "endpoint_in_use", "images")
    await world.finish(run_id)
    gone = await api.delete("/v1/endpoints/images")
    assert (gone.status_code, gone.content) == (204, b"")
    assert_problem(await api.delete("/v1/endpoints/images"), 404, "unknown_endpoint", "images")
    attempt = (await api.get(f"/v1/runs/{run_id}")).json()["tasks"][0]["attempts"][0]
    assert attempt["endpoint"].startswith("ep_")  # its name went with it


async def test_an_endpoint_in_use_is_removed_by_force(world: World, api: httpx.AsyncClient) -> None:
    await put(api)
    await world.running()
    assert (await api.delete("/v1/endpoints/images?force=true")).status_code == 204


async def test_secrets_rotate_one_at_a_time(world: World, api: httpx.AsyncClient) -> None:
    first = (await put(api)).json()["secret"]
    rotated = await api.post("/v1/endpoints/images/secret/rotate", json={"overlap": "2h"})
    assert (rotated.status_code, rotated.json()["previous_until"]) == (200, "2026-06-01T14:00:00Z")
    assert rotated.json()["secret"] not in ("", first)
    assert_problem(await api.post("/v1/endpoints/images/secret/rotate"), 409, "rotation_in_progress", "images")
    assert (await api.delete("/v1/endpoints/images/secret/rotate")).status_code == 204
    assert_problem(await api.delete("/v1/endpoints/images/secret/rotate"), 409, "no_rotation", "images")
    assert (await api.post("/v1/endpoints/images/secret/rotate")).json()["previous_until"] == "2026-06-02T12:00:00Z"
    assert_problem(await api.post("/v1/endpoints/images/secret/rotate", json={"overlap": "-1h"}), 400, "invalid_value", "overlap")


async def test_a_ping_says_what_is_wrong(api: httpx.AsyncClient) -> None:
    await put(api)
    answer = (await api.post("/v1/endpoints/images/ping")).json()
    assert (answer["ok"], answer["error"]["code"]) == (False, "discovery_unreachable")


async def test_deliveries_are_the_attempts_of_an_endpoint(world: World, api: httpx.AsyncClient) -> None:
    await put(api)
    first, second = await world.running(), await world.running(workflow="mail")
    world.clock.advance(timedelta(seconds=1))
    await world.fail_once(first)
    world.clock.advance(timedelta(seconds=1))
    await world.finish(second)
    await start_again(world, first)
    await world.finish(first, epoch=2)
    path = "/v1/endpoints/images/deliveries"
    rows = await rows_of(api, path)
    assert {(row["run_id"], row["number"], row["workflow"], row["status"]) for row in rows} == {
        (first, 1, "resize", "failed"), (first, 2, "resize", "succeeded"), (second, 1, "mail", "succeeded"),
    }  # fmt: skip
    assert (rows[-1]["run_id"], rows[-1]["http_status"], rows[-1]["latency_ms"], rows[-1]["error"]["code"]) == (
        first,
        500,
        12,
        "handler_failed",
    )
    assert [row["number"] for row in await rows_of(api, path, status="failed")] == [1]
    page = (await api.get(path, params={"limit": 2})).json()
    rest = (await api.get(path, params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert page["rows"] + rest["rows"] == rows
    assert rest["next_cursor"] is None


async def test_workflows_say_what_starts_them(api: httpx.AsyncClient) -> None:
    await put(api)
    await put(api, "more", handlers=[*HANDLERS, {"name": "audit", "on_events": ["*"], "description": "Writes it down."}])
    rows = await rows_of(api, "/v1/workflows")
    assert [(row["name"], row["on_events"], row["endpoints"]) for row in rows] == [
        ("audit", ["*"], ["more"]), ("mail", ["user:created", "order:*"], ["images", "more"]), ("resize", [], ["images", "more"]),
    ]  # fmt: skip
    page = (await api.get("/v1/workflows?limit=2")).json()
    rest = (await api.get("/v1/workflows", params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert page["rows"] + rest["rows"] == rows


async def test_a_workflow_shows_its_versions(api: httpx.AsyncClient) -> None:
    await put(api)
    await put(api, handlers=[{"name": "resize", "retries": 3}])
    workflow = (await api.get("/v1/workflows/resize")).json()
    assert (workflow["version"], workflow["definition"]["retries"]) == (2, 3)
    assert [(version["number"], version["definition"]["retries"]) for version in workflow["versions"]] == [(2, 3), (1, 0)]
    assert_problem(await api.get("/v1/workflows/nope"), 404, "unknown_workflow", "nope")
