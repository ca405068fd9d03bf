"""Changes that meet each other, and deliveries that meet changes: at one process, and at two."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest

from dispatcher.store import webhooks
from dispatcher.store.database import Database
from tests.api.world import World, open_world
from tests.webhooks_server.senders import PULL_REQUEST, SECRET, Senders, encoded, github, numbered

_PATIENCE_SECONDS = 30.0
NAIVE = "'github:' + headers['x-github-event'] + ':' + input.action"
MENDED = "'github:' + headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')"


@dataclass
class Peer:
    """Another dispatcher on the same database, and a client of it."""

    world: World
    http: httpx.AsyncClient


@pytest.fixture
async def peer(senders: Senders) -> AsyncIterator[Peer]:
    """It has no loops: what it knows it was asked for."""
    async with AsyncExitStack() as stack:
        world = await open_world(senders.world.database, stack)
        await world.services.webhooks.refresh(world.clock.now())
        yield Peer(world, await stack.enter_async_context(world.client()))
        await world.services.webhooks.drain()


async def until(holds: Callable[[], bool]) -> None:
    """Let the others work until this holds. Raises TimeoutError."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in Postgres
            await asyncio.sleep(0)


async def _somebody_waits_for_a_lock(database: Database) -> None:
    waiting = 0
    while not waiting:
        waiting = await database.fetchval("select count(*) from pg_locks where not granted and locktype = 'transactionid'")


async def test_patches_of_different_members_at_once_both_count(senders: Senders) -> None:
    await senders.webhook()
    for turn in range(5):
        scope, passes = f"'s{turn}'", f"input.number > {turn}"
        answers = await asyncio.gather(
            senders.http.patch("/v1/webhooks/github", json={"scope_expression": scope}),
            senders.http.patch("/v1/webhooks/github", json={"filter_expression": passes}),
            senders.http.patch("/v1/webhooks/github", json={"max_body_bytes": 1_000 + turn}),
        )
        assert [answer.status_code for answer in answers] == [200] * 3
        shown = (await senders.http.get("/v1/webhooks/github")).json()
        assert (shown["scope_expression"], shown["filter_expression"], shown["max_body_bytes"]) == (scope, passes, 1_000 + turn)


@pytest.mark.parametrize(("method", "path"), [("POST", "/secrets"), ("DELETE", "/secrets/1"), ("PATCH", ""), ("DELETE", "")])
async def test_a_change_that_meets_a_removal_finds_nothing(senders: Senders, method: str, path: str) -> None:
    made = await senders.webhook()
    database, tenant_id = senders.world.database, await senders.world.tenant("default")
    async with database.transaction() as conn:
        await webhooks.lock(conn, tenant_id)
        await webhooks.delete(conn, tenant_id, made["id"])
        content = None if method == "DELETE" else b"{}"
        request = asyncio.ensure_future(senders.http.request(method, f"/v1/webhooks/github{path}", content=content))
        await _somebody_waits_for_a_lock(database)
    answer = await request
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_webhook")


async def test_the_number_of_a_secret_is_never_anothers(senders: Senders) -> None:
    """A removal that is sent twice must not remove what was added in between."""
    await senders.webhook()
    number = (await senders.http.post("/v1/webhooks/github/secrets", json={"secret": "two"})).json()["number"]
    assert (await senders.http.delete(f"/v1/webhooks/github/secrets/{number}")).status_code == 204
    again = (await senders.http.post("/v1/webhooks/github/secrets", json={"secret": "three"})).json()["number"]
    assert again > number
    assert (await senders.http.delete(f"/v1/webhooks/github/secrets/{number}")).status_code == 404
    body = numbered(1)
    assert (await senders.post("github", body, github(body, "three"))).status_code == 200


async def test_a_secret_added_elsewhere_counts_at_once(senders: Senders, peer: Peer) -> None:
    """However lately the other process has looked, and whatever strangers make it look for."""
    await senders.webhook()
    for turn in range(5):
        wrong = numbered(1_000 + turn)
        assert (await peer.http.post("/hooks/default/github", content=wrong, headers=github(wrong, "wrong"))).status_code == 401
        secret = (await senders.http.post("/v1/webhooks/github/secrets", json={})).json()["secret"]
        body = numbered(turn)
        assert (await peer.http.post("/hooks/default/github", content=body, headers=github(body, secret))).status_code == 200


async def test_a_secret_added_while_the_other_process_is_reading(senders: Senders, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    await senders.webhook()
    sources, reading, go_on = peer.world.services.webhooks.sources, asyncio.Event(), asyncio.Event()
    read = webhooks.versions

    async def slow(database: Database) -> dict[int, int]:
        found = await read(database)
        if database is sources._database and not reading.is_set():
            reading.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(webhooks, "versions", slow)
    wrong = numbered(0)
    stranger = asyncio.ensure_future(peer.http.post("/hooks/default/github", content=wrong, headers=github(wrong, "wrong")))
    await reading.wait()
    secret = (await senders.http.post("/v1/webhooks/github/secrets", json={})).json()["secret"]
    body = numbered(1)
    real = asyncio.ensure_future(peer.http.post("/hooks/default/github", content=body, headers=github(body, secret)))
    await until(lambda: sources.rereading.asked > 1)
    go_on.set()
    assert [(await stranger).status_code, (await real).status_code] == [401, 200]


async def test_an_expression_mended_elsewhere_is_used_at_once(senders: Senders, peer: Peer) -> None:
    await senders.webhook(event_key_expression=NAIVE)
    await peer.world.services.webhooks.refresh(peer.world.clock.now())
    for number in range(3):
        body = encoded({"ref": "main", "n": number})
        assert (await peer.http.post("/hooks/default/github", content=body, headers=github(body, event="push"))).status_code == 202
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    [last, *_] = await senders.deliveries()
    assert (await peer.http.post(f"/v1/webhooks/github/deliveries/{last['id']}/replay")).json()["status"] == "accepted"
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED.replace("github:", "gh:")})
    done = (await peer.http.post("/v1/webhooks/github/reroute")).json()
    assert (done["matched"], done["routed"]) == (2, 2)
    assert {row["event_key"] for row in await senders.deliveries()} == {"github:push", "gh:push"}
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": "'tested'"})
    assert (await peer.http.post("/v1/webhooks/github/test", json={})).json()["event_key"] == "tested"


async def test_a_replay_that_found_no_place_keeps_its_body(senders: Senders) -> None:
    await senders.webhook(event_key_expression="'key'")
    first = (await senders.github()).json()["id"]
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": "input.nothing"})
    replay = (await senders.http.post(f"/v1/webhooks/github/deliveries/{first}/replay")).json()
    assert replay["status"] == "unrouted"
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": "'mended'"})
    assert (await senders.http.post("/v1/webhooks/github/reroute")).json()["routed"] == 1
    [event] = [event for event in await senders.events() if event["type"] == "mended"]
    assert (await senders.event(event["id"]))["data"] == PULL_REQUEST


async def test_deliveries_while_the_webhook_changes_all_the_time(senders: Senders, peer: Peer) -> None:
    """Two processes take deliveries in while expressions, limits and secrets change as fast as they can: each is stored, once."""
    await senders.webhook(rate_limit={"per_second": 10_000, "burst": 10_000})
    await peer.world.services.webhooks.refresh(peer.world.clock.now())
    done, statuses = False, list[int]()
    version = await senders.world.database.fetchval("select registry_version from tenants")

    async def change() -> None:
        turn = 0
        while not done:
            turn += 1
            await senders.http.patch("/v1/webhooks/github", json={"scope_expression": f"'s{turn}'", "max_body_bytes": 100_000 + turn})
            added = (await senders.http.post("/v1/webhooks/github/secrets", json={})).json()
            assert (await senders.http.delete(f"/v1/webhooks/github/secrets/{added['number']}")).status_code == 204

    async def send(http: httpx.AsyncClient, numbers: range) -> None:
        for number in numbers:
            body = numbered(number)
            statuses.append((await http.post("/hooks/default/github", content=body, headers=github(body))).status_code)

    changes = asyncio.ensure_future(change())
    each = range(0, 200, 50)
    await asyncio.gather(*(send(http, range(i + at, i + at + 50)) for at, http in ((0, senders.http), (1_000, peer.http)) for i in each))
    done = True
    await changes
    assert statuses == [200] * 400
    assert await senders.world.database.fetchval("select registry_version from tenants") == version, "the way in was made to match again"
    assert len(await senders.events()) == 400


async def test_one_webhook_that_cannot_be_read_is_in_nobodys_way(senders: Senders) -> None:
    """A master key that was lost, a sender that a newer version knew: they cost their own webhook."""
    sealed, unknown = await senders.webhook("sealed"), await senders.webhook("unknown")
    await senders.webhook()
    database = senders.world.database
    await database.execute("update webhook_secrets set sealed = 'garbage' where webhook_id = $1", sealed["id"])
    await database.execute("update webhooks set source = 'of the future' where id = $1", unknown["id"])
    async with AsyncExitStack() as stack:
        later = await open_world(database, stack)
        http = await stack.enter_async_context(later.client())
        await later.services.webhooks.refresh(later.clock.now())
        body = numbered(1)
        codes = [
            (await http.post(f"/hooks/default/{name}", content=body, headers=github(body))).status_code for name in ("github", "sealed")
        ]
        assert codes == [200, 503]
        assert (await http.post("/hooks/default/unknown", content=body, headers=github(body))).status_code == 401
        await later.services.webhooks.drain()
        for name in ("github", "sealed", "unknown"):
            assert (await http.get(f"/v1/webhooks/{name}")).status_code == 200, name
        assert (await http.post("/v1/webhooks/sealed/secrets", json={"secret": SECRET})).status_code == 201
        assert (await http.post("/hooks/default/sealed", content=body, headers=github(body))).status_code == 200
        await later.services.webhooks.drain()


async def test_of_two_secrets_told_at_once_one_is_kept_and_the_other_refused(senders: Senders, peer: Peer) -> None:
    await senders.webhook("asana", "asana", secrets=[])
    await peer.world.services.webhooks.refresh(peer.world.clock.now())
    told = ["b537207f20cbfa02357cf448134da559", "c537207f20cbfa02357cf448134da559"]
    answers = await asyncio.gather(
        *(
            http.post("/hooks/default/asana", content=b"{}", headers={"x-hook-secret": t})
            for http, t in zip((senders.http, peer.http), told, strict=True)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, 401]
    kept = next(answer.headers["x-hook-secret"] for answer in answers if answer.status_code == 200)
    [secret] = (await senders.http.get("/v1/webhooks/asana")).json()["secrets"]
    assert secret["secret"] == kept


async def test_a_secret_that_was_told_is_nowhere_in_the_clear(senders: Senders) -> None:
    await senders.webhook("notion", "notion", secrets=[])
    told = "secret_" + "a" * 32
    await senders.post("notion", json.dumps({"verification_token": told}).encode(), {"content-type": "application/json"})
    [row] = await senders.deliveries("notion")
    assert row["status"] == "handshake"
    for name in ("webhooks", "webhook_secrets", "webhook_deliveries"):
        assert not await senders.world.database.fetchval(f"select count(*) from {name} t where t::text like $1", f"%{told}%")
    hexed = told.encode().hex()
    assert not await senders.world.database.fetchval("select count(*) from webhook_deliveries t where t::text like $1", f"%{hexed}%")


async def test_questions_of_strangers_use_up_nothing(senders: Senders) -> None:
    await senders.webhook("graph", "microsoft_graph", rate_limit={"per_second": 1, "burst": 2}, params={"client_state": SECRET})
    for _ in range(5):
        assert (await senders.post("graph", b"", {}, "?validationToken=x")).status_code == 200
    answer = await senders.http.post("/v1/webhooks/graph/test", json={})
    assert answer.json()["status"] != 429


async def test_a_rate_so_low_that_nobody_can_wait_for_it(senders: Senders) -> None:
    await senders.webhook(rate_limit={"per_second": 1e-320, "burst": 1})
    assert (await senders.github(numbered(1))).status_code == 200
    late = await senders.github(numbered(2))
    assert late.status_code == 429
    assert 0 < int(late.headers["retry-after"]) <= 3_600
