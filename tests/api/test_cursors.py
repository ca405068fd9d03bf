"""Cursors that nobody was given, made by somebody who knows how: refused, whatever stands in them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from dispatcher.api.endpoints import DeliveriesQuery
from dispatcher.api.events import EventsQuery
from dispatcher.api.listing import PageQuery, cursor
from dispatcher.api.logs import LinesQuery, LogsQuery
from dispatcher.api.runs import RunsQuery
from tests.api.test_bad_input import assert_problem
from tests.api.world import World

MOMENT = "2026-06-01T12:00:00Z"


@pytest.mark.parametrize(
    ("path", "name", "query", "behind"),
    [
        ("/v1/runs", "runs", RunsQuery(), "run_\x00"),
        ("/v1/runs", "runs", RunsQuery(), 7),
        ("/v1/events", "events", EventsQuery(), "\x00"),
        ("/v1/workflows", "workflows", PageQuery(), "a\x00"),
        ("/v1/logs", "lines", LinesQuery(), [MOMENT, 1 << 63]),
        ("/v1/logs", "lines", LinesQuery(), [MOMENT, -(10**30)]),
        ("/v1/logs", "lines", LinesQuery(), ["0001-01-01T00:00:00+14:00", 1]),
    ],
)
async def test_what_no_list_could_have_given_is_refused(
    world: World, api: httpx.AsyncClient, path: str, name: str, query: PageQuery, behind: Any
) -> None:
    await world.register()
    answer = await api.get(path, params={"cursor": cursor(name, query, behind)})
    assert_problem(answer, 400, "invalid_value", "cursor")


@pytest.mark.parametrize("behind", [1 << 63, 10**30, -1, "x", [1]])
async def test_numbers_of_lines_are_numbers(world: World, api: httpx.AsyncClient, behind: Any) -> None:
    await world.register()
    run_id = (await api.post("/v1/runs", json={"workflow": "resize"})).json()["id"]
    answer = await api.get(f"/v1/runs/{run_id}/logs", params={"cursor": cursor(f"logs {run_id}", LogsQuery(), behind)})
    if behind == -1:
        assert answer.json() == {"rows": [], "next_cursor": None}
    else:
        assert_problem(answer, 400, "invalid_value", "cursor")


@pytest.mark.parametrize("behind", [["run_\x00", 0, 1], ["run_x", 1 << 40, 1], ["run_x", 0, 1 << 40]])
async def test_places_among_deliveries(world: World, api: httpx.AsyncClient, behind: list[Any]) -> None:
    await world.register()
    (endpoint,) = (await api.get("/v1/endpoints")).json()["rows"]
    made = cursor(f"deliveries {endpoint['id']}", DeliveriesQuery(), [MOMENT, *behind])
    assert_problem(await api.get(f"/v1/endpoints/{endpoint['name']}/deliveries", params={"cursor": made}), 400, "invalid_value", "cursor")


@pytest.mark.parametrize("behind", [["evt\x00", 1], ["run_x", 1 << 40]])
async def test_places_among_attempts_of_an_event(world: World, api: httpx.AsyncClient, behind: Any) -> None:
    await world.register()
    event_id = (await api.post("/v1/events", json={"type": "user:created", "data": {}})).json()["event_id"]
    answer = await api.get(f"/v1/events/{event_id}/runs", params={"cursor": cursor(f"event runs {event_id}", PageQuery(), behind)})
    assert_problem(answer, 400, "invalid_value", "cursor")
