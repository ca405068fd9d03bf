"""Health, metrics, keys, the description of the API, and what happens when the database is away."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from dispatcher.api import ROUTES
from dispatcher.api.metrics import METRICS
from dispatcher.store.database import Database
from dispatcher.store.migrate import Status, load
from tests.api.test_bad_input import assert_problem
from tests.api.world import World, open_world


async def test_alive_and_ready(api: httpx.AsyncClient) -> None:
    assert (await api.get("/livez")).json() == {"status": "ok"}
    assert (await api.get("/readyz")).json() == {"status": "ready"}


async def test_not_ready_before_the_migrations(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def behind(_conn: object) -> Status:
        return Status((), tuple(load()))

    monkeypatch.setattr("dispatcher.api.health.status", behind)
    answer = await api.get("/readyz")
    assert_problem(answer, 503, "not_ready", "migrations")
    assert answer.headers["retry-after"]


async def test_not_ready_on_the_way_out(world: World, api: httpx.AsyncClient) -> None:
    world.services.capacity.draining = True
    assert_problem(await api.get("/readyz"), 503, "not_ready", "shutting down")
    assert (await api.get("/livez")).status_code == 200


@pytest.fixture
async def cut_off(dsn: str) -> AsyncIterator[tuple[World, Database]]:
    """A dispatcher with a pool of its own, to be cut off from the database by the test."""
    async with AsyncExitStack() as stack:
        database = await Database.open(dsn, min_size=1, max_size=2, acquire_timeout=0.2, command_timeout=1)
        stack.push_async_callback(database.aclose)
        yield await open_world(database, stack), database


async def test_without_the_database_everything_says_so(cut_off: tuple[World, Database]) -> None:
    world, database = cut_off
    await world.register()
    await database.aclose()
    async with world.client() as client:
        assert (await client.get("/livez")).status_code == 200
        assert_problem(await client.get("/readyz"), 503, "not_ready", "database")
        for method, path, body in [
            ("POST", "/v1/runs", '{"workflow":"resize"}'),
            ("POST", "/v1/runs/bulk", '{"runs":[{"workflow":"resize"}]}'),
            ("POST", "/v1/events", '{"type":"user:created"}'),
            ("GET", "/v1/runs", ""),
            ("GET", "/v1/runs/run_01j00000000000000000000000", ""),
            ("GET", "/v1/endpoints", ""),
            ("PATCH", "/v1/endpoints/images", '{"paused":true}'),
        ]:
            answer = await client.request(method, path, content=body)
            assert_problem(answer, 503, "database_unavailable", "database")
            assert int(answer.headers["retry-after"]) > 0
    async with world.client("dsp_live_AAAAAAAAAAAA_" + "A" * 43 + "_000000") as client:
        assert (await client.get("/v1/runs")).status_code == 401


async def test_too_much_waiting_is_refused(database: Database) -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(database, stack, intake_queue=5)
        await world.register()
        intake = world.services.intake
        intake._commits._weight = 6  # stands for a queue that is full
        async with world.client() as client:
            answer = await client.post("/v1/runs", json={"workflow": "resize"})
        assert_problem(answer, 503, "overloaded", "waiting")
        assert answer.headers["retry-after"]


async def test_metrics_are_prometheus_text(world: World, api: httpx.AsyncClient) -> None:
    await world.register()
    await api.post("/v1/runs", json={"workflow": "resize"})
    await api.post("/v1/events", json={"type": "user:created"})
    answer = await api.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert (values["dispatcher_runs_created_total"], values["dispatcher_events_received_total"]) == ("2", "1")
    assert values['dispatcher_database_connections{lane="intake",state="idle"}']
    assert "resize" not in answer.text


def test_metrics_are_named_as_is_the_custom() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"dispatcher_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert len(metric.help.split()) > 2


async def test_keys_are_published(world: World, api: httpx.AsyncClient) -> None:
    key = (await api.get("/.well-known/task-keys")).json()["keys"][0]
    assert (key["kty"], key["crv"], key["whpk"][:5]) == ("OKP", "Ed25519", "whpk_")
    assert_problem(await api.get("/.well-known/task-keys?tenant=nobody"), 404, "not_found", "nobody")
    await world.tenant("north")
    assert (await api.get("/.well-known/task-keys?tenant=north")).json() == {"keys": []}


async def test_the_type_of_a_problem_leads_to_what_it_means(api: httpx.AsyncClient) -> None:
    refused = (await api.post("/v1/runs", content=b"{")).json()
    meaning = (await api.get(refused["type"])).json()
    assert (meaning["code"], meaning["status"], meaning["title"]) == (refused["code"], refused["status"], refused["title"])
    assert_problem(await api.get("/errors/bad_luck"), 404, "not_found", "bad_luck")


async def test_the_api_describes_itself_completely(api: httpx.AsyncClient) -> None:
    answer = await api.get("/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert set(operation["responses"]) & {"200", "201", "202", "204"}
    refs = set(re.findall(r"#/components/schemas/(\w+)", answer.text))
    assert refs <= set(document["components"]["schemas"])
    assert "http://" not in answer.text
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
