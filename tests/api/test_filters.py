"""/v1/filters and /v1/audit: made, listed, changed, removed, refused; nobody sees another tenant's."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.test_bad_input import assert_problem
from tests.api.test_runs import rows_of
from tests.api.world import World

FILTER = {"workflow": "mail", "expression": "input.n > 1", "scope": "shop", "payload": {"b": 1, "a": [True, "ü"]}}


async def test_a_filter_is_made_read_changed_and_removed(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    answer = await api.post("/v1/filters", json=FILTER)
    made = answer.json()
    assert answer.status_code == 201
    assert made == {
        **FILTER,
        "id": made["id"],
        "declared": False,
        "created_at": "2026-06-01T12:00:00Z",
        "updated_at": "2026-06-01T12:00:00Z",
    }
    assert (await api.get(f"/v1/filters/{made['id']}")).json() == made
    changed = (await api.patch(f"/v1/filters/{made['id']}", json={"scope": "other", "payload": None})).json()
    assert (changed["scope"], changed["payload"], changed["expression"]) == ("other", None, "input.n > 1")
    assert (await api.patch(f"/v1/filters/{made['id']}", json={})).json() == changed
    assert (await api.delete(f"/v1/filters/{made['id']}")).status_code == 204
    assert_problem(await api.get(f"/v1/filters/{made['id']}"), 404, "not_found", "filter")
    assert [row["action"] for row in await rows_of(api, "/v1/audit")] == [
        "filter.delete",
        "filter.update",
        "filter.update",
        "filter.create",
    ]
    assert [row["target"] for row in await rows_of(api, "/v1/audit", action="filter.create")] == [made["id"]]


async def test_the_same_filter_is_there_once(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    first = (await api.post("/v1/filters", json=FILTER)).json()
    assert_problem(await api.post("/v1/filters", json=FILTER | {"payload": {"a": [True, "ü"], "b": 1}}), 409, "filter_exists", "mail")
    second = (await api.post("/v1/filters", json=FILTER | {"payload": {"b": 2}})).json()
    assert_problem(await api.patch(f"/v1/filters/{second['id']}", json={"payload": FILTER["payload"]}), 409, "filter_exists", "mail")
    assert (await api.post("/v1/filters", json=FILTER | {"workflow": "resize"})).status_code == 201
    assert [row["id"] for row in await rows_of(api, "/v1/filters", workflow="mail")] == [first["id"], second["id"]]


async def test_filters_are_listed_in_pages(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    for i in range(5):
        await api.post(
            "/v1/filters", json={"workflow": "mail" if i % 2 else "resize", "expression": f"input.n == {i}", "scope": f"s{i % 2}"}
        )
    first = (await api.get("/v1/filters?limit=3")).json()
    rest = (await api.get("/v1/filters", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    assert [row["expression"][-1] for row in first["rows"] + rest["rows"]] == list("01234")
    assert rest["next_cursor"] is None
    assert len(await rows_of(api, "/v1/filters", scope="s1")) == 2
    assert len(await rows_of(api, "/v1/filters", scope=["s1", "s0"])) == 5
    assert await rows_of(api, "/v1/filters", workflow="mail", scope="s0") == []
    other = await api.get("/v1/filters", params={"limit": 3, "cursor": first["next_cursor"], "scope": "s1"})
    assert_problem(other, 400, "invalid_value", "cursor")


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"workflow": "nothing"}, 404, "unknown_workflow", "nothing"),
        ({"expression": "input."}, 422, "invalid_expression", "expression"),
        ({"expression": "headers.x == 1"}, 422, "invalid_expression", "headers"),
        ({"expression": ""}, 400, "invalid_value", "expression"),
        ({"expression": "x" * 1025}, 400, "invalid_value", "expression"),
        ({"scope": ""}, 400, "invalid_value", "scope"),
        ({"scope": None}, 400, "invalid_value", "scope"),
        ({"scope": "a\x00b"}, 400, "nul_character", "u0000"),
        ({"payload": []}, 400, "invalid_value", "payload"),
        ({"payload": {"a": "x" * 70_000}}, 413, "body_too_large", "payload"),
        ({"scopes": ["s"]}, 400, "unknown_field", "scopes"),
    ],
)
async def test_a_bad_filter_is_refused(
    world: World, api: httpx.AsyncClient, body: dict[str, Any], status: int, code: str, says: str
) -> None:
    await world.register()
    assert_problem(await api.post("/v1/filters", json=FILTER | body), status, code, says)
    assert await rows_of(api, "/v1/filters") == []


async def test_one_that_is_declared_is_changed_where_it_is_declared(world: World, api: httpx.AsyncClient) -> None:
    declared = {"name": "mail", "on_events": ["a"], "default_filters": [{"expression": "true", "scope": "s"}]}
    await world.register(handlers=[declared])
    (row,) = await rows_of(api, "/v1/filters")
    assert_problem(await api.delete(f"/v1/filters/{row['id']}"), 409, "filter_declared", "mail")
    assert_problem(await api.patch(f"/v1/filters/{row['id']}", json={"scope": "x"}), 409, "filter_declared", "mail")


async def test_nobody_sees_another_tenants(serving: World) -> None:
    await serving.register("one")
    one, two = await serving.token("one"), await serving.token("two")
    async with serving.client(one) as mine, serving.client(two) as theirs:
        made = (await mine.post("/v1/filters", json=FILTER)).json()
        path = f"/v1/filters/{made['id']}"
        assert await rows_of(theirs, "/v1/filters") == []
        assert await rows_of(theirs, "/v1/audit") == []
        for answer in (await theirs.get(path), await theirs.patch(path, json={"scope": "x"}), await theirs.delete(path)):
            assert_problem(answer, 404, "not_found", "filter")
        assert (await mine.get(path)).json() == made
        (row,) = await rows_of(mine, "/v1/audit")
        assert row["actor"] is not None
    reader = await serving.token("one", "events:read")
    async with serving.client(reader) as client:
        assert_problem(await client.post("/v1/filters", json=FILTER), 403, "forbidden", "events:write")
        assert_problem(await client.get("/v1/audit"), 403, "forbidden", "audit:read")


async def test_there_is_a_limit(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    object.__setattr__(world.services.settings, "max_filters", 2)
    for n in range(2):
        assert (await api.post("/v1/filters", json=FILTER | {"expression": f"input.n == {n}"})).status_code == 201
    assert_problem(await api.post("/v1/filters", json=FILTER), 409, "too_many_filters", "2")
