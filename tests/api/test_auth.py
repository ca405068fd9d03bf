"""Who is let in, as whom, and to what."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest

from dispatcher.api import ROUTES
from dispatcher.api.credentials import new_token, parse_token
from dispatcher.api.edge import Route
from dispatcher.api.tokens import SCOPES
from dispatcher.store import registry, tokens
from dispatcher.store.database import Database
from tests.api.test_bad_input import assert_problem
from tests.api.world import ELSEWHERE, LOOPBACK, World

GUARDED = [route for route in ROUTES if route.scope is not None]
OPEN = {
    "/livez",
    "/readyz",
    "/metrics",
    "/.well-known/task-keys",
    "/openapi.json",
    "/v1/callback",
    "/v1/callbacks",
    "/v1/log",
    "/errors/{code}",
    "/hooks/{tenant}/{webhook}",
}


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def filled(route: Route, run_id: str = "run_01j00000000000000000000000") -> str:
    """The path with something in the place of its parameters."""
    values = {
        "run_id": run_id,
        "event_id": "evt_01j00000000000000000000000",
        "name": "images",
        "token_id": "A" * 12,
        "number": "1",
        "delivery_id": "dlv_01j00000000000000000000000",
        "stream_id": "str_01j00000000000000000000000",
        "bulk_id": "blk_01j00000000000000000000000",
        "filter_id": "flt_01j00000000000000000000000",
        "cron_id": "crn_01j00000000000000000000000",
        "blob_id": "sha256-" + "0" * 64,
        "schedule_id": "sch_01j00000000000000000000000",
        "key": "openai",
    }
    return route.path.format(**values)


def test_what_is_open_is_listed_here() -> None:
    assert {route.path for route in ROUTES if route.scope is None} == OPEN
    assert {route.scope for route in GUARDED} == SCOPES - {"*"}


@pytest.mark.parametrize("route", GUARDED, ids=name_of)
async def test_nobody_gets_in_without_a_token(serving: World, route: Route) -> None:
    async with serving.client() as client:
        answer = await client.request(route.method, filled(route), content=b"{}")
    assert_problem(answer, 401, "unauthorized", "")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("route", GUARDED, ids=name_of)
async def test_a_token_needs_the_scope(serving: World, route: Route) -> None:
    others = SCOPES - {"*", route.scope}
    async with serving.client(await serving.token("default", *sorted(map(str, others)))) as client:
        answer = await client.request(route.method, filled(route), content=b"{}")
    assert_problem(answer, 403, "forbidden", str(route.scope))


async def test_a_token_names_its_tenant(serving: World) -> None:
    await serving.register("north")
    await serving.register("south", handlers=[{"name": "other"}])
    async with serving.client(await serving.token("north", "endpoints:read")) as client:
        names = [row["name"] for row in (await client.get("/v1/workflows")).json()["rows"]]
    assert names == ["mail", "resize"]


async def test_what_belongs_to_another_tenant_is_not_there(serving: World) -> None:
    """The answers are those for ids that never were, to the letter."""
    await serving.register("north")
    run_id = await serving.running("north")
    async with serving.client(await serving.token("north")) as north:
        event_id = (await north.post("/v1/events", json={"type": "user:created"})).json()["event_id"]
        token_id = (await north.post("/v1/tokens", json={"name": "n"})).json()["id"]
    unborn = {run_id: "run_01j00000000000000000000000", event_id: "evt_01j00000000000000000000000", token_id: "A" * 12, "images": "imagez"}
    async with serving.client(await serving.token("south")) as south:
        for method, path, known in [
            ("GET", "/v1/runs/{}", run_id),
            ("GET", "/v1/runs/{}?wait=1s", run_id),
            ("GET", "/v1/runs/{}/logs", run_id),
            ("POST", "/v1/runs/{}/cancel", run_id),
            ("GET", "/v1/events/{}", event_id),
            ("GET", "/v1/events/{}/runs", event_id),
            ("DELETE", "/v1/tokens/{}", token_id),
            ("GET", "/v1/endpoints/{}", "images"),
            ("PATCH", "/v1/endpoints/{}", "images"),
            ("DELETE", "/v1/endpoints/{}?force=true", "images"),
            ("POST", "/v1/endpoints/{}/ping", "images"),
            ("POST", "/v1/endpoints/{}/secret/rotate", "images"),
            ("GET", "/v1/endpoints/{}/versions", "images"),
            ("GET", "/v1/endpoints/{}/deliveries", "images"),
            ("GET", "/v1/workflows/{}", "resize"),
        ]:
            body = b'{"paused":true}' if method == "PATCH" else b"{}"
            theirs = await south.request(method, path.format(known), content=body)
            never = await south.request(method, path.format(unborn.get(known, "nope")), content=body)
            assert theirs.status_code == never.status_code == 404, (method, path, theirs.text)
            assert theirs.text.replace(known, "?") == never.text.replace(unborn.get(known, "nope"), "?")
        for path in (
            "/v1/runs",
            "/v1/events",
            "/v1/endpoints",
            "/v1/workflows",
            f"/v1/runs?parent_run_id={run_id}",
            f"/v1/runs?event_id={event_id}",
        ):
            assert (await south.get(path)).json()["rows"] == []
        assert (await south.post("/v1/runs", json={"workflow": "resize"})).status_code == 404


@pytest.mark.parametrize("spoiled", ["", "dsp_live_", "x", "dsp_live_AAAAAAAAAAAA_" + "A" * 43 + "_AAAAAA", "é"])
async def test_a_damaged_token_is_refused_without_a_look_at_the_database(serving: World, spoiled: str) -> None:
    async with serving.client() as client:
        answer = await client.get("/v1/runs", headers=[(b"authorization", b"Bearer " + spoiled.encode())])
    assert_problem(answer, 401, "unauthorized", "")


async def test_unknown_wrong_expired_and_revoked_tokens_are_one_to_the_caller(serving: World) -> None:
    expired = await serving.token("default", expires=serving.clock.now() + timedelta(minutes=1))
    serving.clock.advance(timedelta(minutes=1))
    unknown = new_token().text
    stolen = await serving.token()
    known = parse_token(stolen)
    assert known is not None
    async with serving.client(await serving.token()) as admin:
        assert (await admin.delete(f"/v1/tokens/{known[0]}")).status_code == 204
    answers = []
    for token in (expired, unknown, stolen):
        async with serving.client(token) as client:
            answers.append(await client.get("/v1/runs"))
    for answer in answers:
        assert_problem(answer, 401, "unauthorized", "unknown, expired or revoked")
    assert len({answer.text for answer in answers}) == 1


async def test_a_revocation_is_felt_at_once_here_and_soon_elsewhere(serving: World) -> None:
    token = await serving.token()
    parts = parse_token(token)
    assert parts is not None
    async with serving.client(token) as client:
        assert (await client.get("/v1/runs")).status_code == 200
        await serving.database.execute("update tokens set revoked_at = $1", serving.clock.now())  # another process did this
        assert (await client.get("/v1/runs")).status_code == 200
        serving.clock.advance(timedelta(seconds=5))
        assert (await client.get("/v1/runs")).status_code == 401


async def test_a_known_token_costs_no_query(serving: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving.client(await serving.token()) as client:
        assert (await client.get("/openapi.json")).status_code == 200
        assert (await client.get("/v1/runs")).status_code == 200
        monkeypatch.setattr("dispatcher.store.tokens.find", None)
        assert (await client.get("/v1/runs")).status_code == 200


class Held:
    """Looks for tokens, which are answered when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.begun, self.answered = 0, asyncio.Event(), asyncio.Event()
        self._find = tokens.find
        monkeypatch.setattr(tokens, "find", self._held)

    async def _held(self, database: Database, public_id: str) -> tokens.TokenRow | None:
        self.count += 1
        row = await self._find(database, public_id)
        self.begun.set()
        await self.answered.wait()
        return row


async def test_calls_that_come_together_with_one_token_cost_one_query(serving: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    async with serving.client(await serving.token()) as client, asyncio.TaskGroup() as group:
        calls = [group.create_task(client.get("/v1/runs")) for _ in range(20)]
        await held.begun.wait()
        for _ in range(100):
            await asyncio.sleep(0)  # the others come, and wait for what the first finds
        calls[0].cancel()  # who hangs up takes nothing from them
        held.answered.set()
    assert {call.result().status_code for call in calls[1:]} == {200}
    assert held.count == 1
    async with serving.client(new_token().text) as client, asyncio.TaskGroup() as group:
        refused = [group.create_task(client.get("/v1/runs")) for _ in range(3)]
    for call in refused:
        assert_problem(call.result(), 401, "unauthorized", "unknown, expired or revoked")


async def test_what_was_looked_up_before_a_revocation_is_not_remembered(serving: World, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await serving.token()
    parts = parse_token(token)
    assert parts is not None
    async with serving.client(await serving.token()) as admin, serving.client(token) as client, asyncio.TaskGroup() as group:
        assert (await admin.get("/v1/runs")).status_code == 200
        held = Held(monkeypatch)
        early = group.create_task(client.get("/v1/runs"))
        await held.begun.wait()
        assert (await admin.delete(f"/v1/tokens/{parts[0]}")).status_code == 204
        held.answered.set()
        assert (await early).status_code == 200
        assert (await client.get("/v1/runs")).status_code == 401


async def test_an_expiry_is_kept_to_the_moment(serving: World) -> None:
    token = await serving.token("default", expires=serving.clock.now() + timedelta(seconds=2))
    async with serving.client(token) as client:
        assert (await client.get("/v1/runs")).status_code == 200
        serving.clock.advance(timedelta(seconds=2))
        assert (await client.get("/v1/runs")).status_code == 401


async def test_use_is_noted_coarsely(serving: World) -> None:
    token = await serving.token()
    parts = parse_token(token)
    assert parts is not None
    noted = []
    async with serving.client(token) as client:
        for wait in (0, 60, 3_600):
            serving.clock.advance(timedelta(seconds=wait))
            rows = (await client.get("/v1/tokens")).json()["rows"]
            noted.append(next(row["last_used_at"] for row in rows if row["id"] == parts[0]))
    assert noted == ["2026-06-01T12:00:00Z", "2026-06-01T12:00:00Z", "2026-06-01T13:01:00Z"]


async def test_no_token_gives_away_what_it_does_not_have(serving: World) -> None:
    async with serving.client(await serving.token("default", "tokens:write", "runs:read")) as client:
        assert_problem(await client.post("/v1/tokens", json={"name": "x"}), 403, "forbidden", "*")
        assert_problem(await client.post("/v1/tokens", json={"name": "x", "scopes": ["runs:write"]}), 403, "forbidden", "runs:write")
        assert_problem(await client.post("/v1/tokens", json={"name": "x", "scopes": ["root"]}), 400, "invalid_value", "root")
        made = (await client.post("/v1/tokens", json={"name": "x", "scopes": ["runs:read"], "expires_in": "1h"})).json()
    assert made["scopes"] == ["runs:read"]
    assert made["expires_at"] == "2026-06-01T13:00:00Z"
    async with serving.client(made["token"]) as client:
        assert (await client.get("/v1/runs")).status_code == 200
        assert_problem(await client.post("/v1/runs", json={"workflow": "x"}), 403, "forbidden", "runs:write")


async def test_no_secret_is_stored_or_shown_again(serving: World) -> None:
    async with serving.client(await serving.token()) as client:
        made = (await client.post("/v1/tokens", json={"name": "x"})).json()
        secret = made["token"].split("_")[3]
        assert secret not in (await client.get("/v1/tokens")).text
    rows = await serving.database.fetch("select tokens::text as row from tokens")
    assert not any(secret in row["row"] for row in rows)


async def test_in_development_this_machine_needs_no_token(world: World) -> None:
    for address in (LOOPBACK, ("::1", 1), ("::ffff:127.0.0.1", 1)):
        for host in ("localhost:8400", "127.0.0.1", "[::1]:8400", "app.localhost"):
            async with world.client(address=address, host=host) as client:
                assert (await client.get("/v1/runs")).status_code == 200, (address, host)


async def test_in_development_others_need_one(world: World) -> None:
    async with world.client(address=ELSEWHERE) as client:
        assert_problem(await client.get("/v1/runs"), 401, "unauthorized", "")
    async with world.client(await world.token(), address=ELSEWHERE, host="dispatcher.example") as client:
        assert (await client.get("/v1/runs")).status_code == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
async def test_in_development_what_a_proxy_forwards_needs_one(api: httpx.AsyncClient, header: str) -> None:
    assert_problem(await api.get("/v1/runs", headers={header: "for=203.0.113.7"}), 401, "unauthorized", "")


async def test_a_tenant_made_elsewhere_is_known_by_its_first_token(serving: World) -> None:
    made = new_token()
    tenant = await registry.create_tenant(serving.database, "fresh", "Fresh", serving.clock.now())
    await tokens.create(serving.database, tenant.id, made.public_id, made.secret_hash, "t", ["*"], serving.clock.now(), None)
    async with serving.client(made.text) as client:
        assert_problem(await client.post("/v1/runs", json={"workflow": "x"}), 404, "unknown_workflow", "x")
        assert (await client.post("/v1/events", json={"type": "x"})).status_code == 201


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example", None),  # DNS rebinding: a name of the attacker's that points here
        ("localhost.evil.example", None),
        ("127.0.0.1.evil.example", None),
        ("localhost:8400", "https://evil.example"),
        ("localhost:8400", "null"),
        ("localhost:8400", "https://localhost.evil.example"),
    ],
)
async def test_in_development_pages_of_other_sites_are_refused(world: World, host: str, origin: str | None) -> None:
    headers = {"origin": origin} if origin else {}
    async with world.client(host=host) as client:
        assert_problem(await client.post("/v1/runs", content=b"{}", headers=headers), 403, "host_not_allowed", "")
        assert (await client.get("/livez")).status_code == 200


async def test_in_development_a_token_that_is_sent_is_checked(world: World) -> None:
    async with world.client(new_token().text) as client:
        assert_problem(await client.get("/v1/runs"), 401, "unauthorized", "")


async def test_a_callback_is_judged_by_its_own_token(world: World, api: httpx.AsyncClient) -> None:
    assert_problem(await api.post("/v1/callback", content=b'{"type":"heartbeat"}'), 401, "unauthorized", "attempt")
    forged = {"authorization": "Bearer atk1.1.01j00000000000000000000000.0.1.9999999999.AAAA"}
    assert_problem(await api.post("/v1/callback", content=b'{"type":"heartbeat"}', headers=forged), 401, "unauthorized", "forged")
