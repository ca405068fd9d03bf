"""Searching what runs and events carry: what was written is found at once, segments or none, and no page looks at too much."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.engine.search import parse
from dispatcher.runtime import search as searching
from dispatcher.store import search as store
from dispatcher.store.runs import RunFilter
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until


@pytest.fixture
async def node(world: World, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A dispatcher whose segments are of five rows."""
    monkeypatch.setattr(searching, "_CHUNK", 5)
    node = await world.node(search_rows=20, search_seconds=60.0)
    await node.runtime.loops["search"].stop()  # the tests make segments when they want them
    return node


@pytest.fixture
async def endpoint(world: World, node: Node) -> Endpoint:
    """Answers at once with what it was sent."""
    endpoint = await world.endpoint(
        node, [{"name": "echo"}, {"name": "hold", "execution_timeout": "1h"}, {"name": "on", "on_events": ["order:*"]}]
    )

    def echo(arrival: Arrival) -> None:
        item = arrival.json
        if item["name"] != "hold" or item["input"].get("go"):
            arrival.answer(200, {"echo": item["input"]})

    endpoint.way = echo
    return endpoint


async def _ids(node: Node, path: str) -> list[str]:
    """All ids of a list, over its pages."""
    found: list[str] = []
    cursor = ""
    while True:
        page = await node.call("GET", f"{path}{cursor}")
        found += [row["id"] for row in page["rows"]]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


async def _made(world: World, node: Node, count: int, **more: Any) -> list[str]:
    runs = []
    for n in range(count):
        world.clock.advance(timedelta(milliseconds=10))
        runs.append(await node.trigger("echo", input={"order": {"number": n}, "fruit": "apple" if n % 7 == 0 else "pear"}, **more))
        await world.over(runs[-1])
    return runs


async def _build(world: World, node: Node) -> None:
    world.clock.advance(timedelta(minutes=3))
    while await node.runtime.services.search.tick(world.now):
        pass


async def test_what_was_written_is_found_at_once(world: World, node: Node, endpoint: Endpoint) -> None:
    runs = await _made(world, node, 3, metadata={"team": "Blue Whale"})
    assert await _ids(node, "/v1/runs?q=pear") == [runs[2], runs[1]]
    assert await _ids(node, "/v1/runs?q=order.number:2") == [runs[2]]
    assert await _ids(node, "/v1/runs?q=echo.order.number:2+whale&status=succeeded") == [runs[2]]
    assert await _ids(node, "/v1/runs?q=output.order.number:2") == []
    event = await node.call("POST", "/v1/events", {"type": "order:new", "data": {"sku": "Zebra-9"}})
    assert await _ids(node, "/v1/events?q=zebra-9") == [event["event_id"]]
    assert await _ids(node, "/v1/events?q=order:new") == [event["event_id"]]
    assert await _ids(node, "/v1/events?q=zebra") == [event["event_id"]]
    assert await _ids(node, "/v1/events?q=zebr") == []
    assert await _ids(node, "/v1/runs?q=zebra-9") == event["runs"]


async def test_segments_find_what_reading_finds(world: World, node: Node, endpoint: Endpoint) -> None:
    runs = await _made(world, node, 33)
    questions = ["q=apple", "q=pear", "q=order.number:17", "q=order.number:99", "q=%22apple%22&limit=2", "q=fruit:apple+order.number:21"]
    read = [await _ids(node, f"/v1/runs?{question}") for question in questions]
    assert read[0] == [run for n, run in reversed(list(enumerate(runs))) if n % 7 == 0]
    assert read[2:4] == [[runs[17]], []]
    await _build(world, node)
    assert await world.database.fetchval("select count(*) from search_segments where kind = 'run'") >= 6
    assert await world.database.fetchval("select complete from search_indexes where kind = 'run'")
    assert [await _ids(node, f"/v1/runs?{question}") for question in questions] == read
    later = await _made(world, node, 12)
    assert await _ids(node, "/v1/runs?q=order.number:3") == [later[3], runs[3]]
    await _build(world, node)
    assert await _ids(node, "/v1/runs?q=order.number:3") == [later[3], runs[3]]


async def test_a_page_of_a_search_reads_only_segments_that_hold_the_words(
    world: World, node: Node, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = await _made(world, node, 40)
    await _ids(node, "/v1/runs?q=apple")
    await _build(world, node)
    read: list[int] = []
    bodies = store.bodies

    async def spied(*args: Any, **kwargs: Any) -> Any:
        rows = await bodies(*args, **kwargs)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(store, "bodies", spied)
    found = await node.runtime.services.search.runs(await _tenant(world), RunFilter(), parse("order.number:11"), None, 50)
    assert ([row.id for row in found.rows], found.last) == ([runs[11]], None)
    assert sum(read) <= 10


async def test_a_run_that_ends_behind_its_segment_is_found_by_its_output(world: World, node: Node, endpoint: Endpoint) -> None:
    await _made(world, node, 6)
    slow = await node.trigger("hold", input={"n": 1})
    await _made(world, node, 6)
    assert await _ids(node, "/v1/runs?q=quagga") == []
    await _build(world, node)
    assert await world.database.fetchval("select count(*) from search_segments where pending <> '{}'") == 1
    held = next(arrival for arrival in endpoint.seen if not arrival.answered.is_set())
    held.answer(200, {"animal": "quagga"})
    await world.over(slow)
    assert await _ids(node, "/v1/runs?q=quagga") == [slow]
    await _build(world, node)
    await until(lambda: _none_pending(world))
    assert await _ids(node, "/v1/runs?q=quagga") == [slow]


async def test_a_page_looks_at_so_many_rows_and_goes_on_with_its_cursor(world: World, node: Node, endpoint: Endpoint) -> None:
    runs = await _made(world, node, 30)
    first = await node.call("GET", "/v1/runs?q=order.number:3")
    assert (first["rows"], first["next_cursor"] is None) == ([], False)
    assert await _ids(node, "/v1/runs?q=order.number:3") == [runs[3]]
    refused = await node.call("GET", f"/v1/runs?q=other&cursor={first['next_cursor']}", expect=400)
    assert refused["code"] == "invalid_value"


async def test_a_search_among_the_children_of_a_run_takes_no_longer_than_others(world: World) -> None:
    node = await world.node(search_seconds=0.0)
    endpoint = await world.endpoint(node, [{"name": "echo"}])
    endpoint.way = lambda arrival: arrival.answer(200, arrival.json["input"])
    parent = await node.trigger("echo", input={"a": "apple"})
    runs = await _made(world, node, 8, parent_run_id=parent)
    path = f"/v1/runs?parent_run_id={parent}&q=apple"
    assert (await node.call("GET", path))["next_cursor"] is not None
    assert sorted(await _ids(node, path)) == sorted([runs[0], runs[7]])


async def test_bodies_larger_than_a_page_of_them_are_read_one_by_one(
    world: World, node: Node, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(searching, "_SEGMENT_WORDS", 3)
    big = await node.trigger("echo", input={"text": "x" * 500, "note": "needle"})
    small = await _made(world, node, 6)
    assert await _ids(node, "/v1/runs?q=needle") == [big]
    await _build(world, node)
    assert await world.database.fetchval("select bool_and(dense) from search_segments where kind = 'run'")
    assert await _ids(node, "/v1/runs?q=needle") == [big]
    assert await _ids(node, "/v1/runs?q=order.number:0") == [small[0]]


@pytest.mark.parametrize("q", ["%00", "", "+", "a+" * 21])
async def test_a_search_for_nothing_is_refused(node: Node, q: str) -> None:
    for path in ("/v1/runs", "/v1/events"):
        assert (await node.call("GET", f"{path}?q={q}", expect=400))["code"] == "invalid_value"


@pytest.mark.parametrize("q", ["%25_%27%3B--", "*", "a:b:c", "%22", "(", "%5C", "%E2%80%AE", "%F0%9F%A6%8A", ":", "input.:x", "%5Bx%5D%2B"])
async def test_no_sign_in_a_search_is_an_error(world: World, node: Node, endpoint: Endpoint, q: str) -> None:
    await _made(world, node, 1)
    for path in ("/v1/runs", "/v1/events", "/v1/logs"):
        name = "search" if path == "/v1/logs" else "q"
        assert (await node.call("GET", f"{path}?{name}={q}"))["next_cursor"] is None


async def test_another_tenants_words_stay_its_own(world: World, node: Node, endpoint: Endpoint) -> None:
    await _made(world, node, 6)
    await _ids(node, "/v1/runs?q=pear")
    await _build(world, node)
    assert (await node.runtime.services.search.runs(await _tenant(world) + 1, RunFilter(), parse("pear"), None, 9)).rows == []


async def _none_pending(world: World) -> bool:
    return not await world.database.fetchval("select count(*) from search_segments where pending <> '{}'")


async def _tenant(world: World) -> int:
    return int(await world.database.fetchval("select id from tenants where slug = 'default'"))
