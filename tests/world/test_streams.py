"""What runs say while they run, followed over real sockets: in order, complete, for early, late, slow and cut-off readers alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.world.endpoint import Arrival, Endpoint
from tests.world.following import Event, everything, following, told, unread
from tests.world.world import Node, World, until

HANDLERS: list[dict[str, Any]] = [
    {"name": "say", "retries": 2},
    {"name": "also", "on_events": ["both"]},
    {"name": "as-well", "on_events": ["both"]},
]


@pytest.fixture
async def node(world: World) -> Node:
    """A dispatcher on a real socket."""
    return await world.served_node()


@pytest.fixture
async def endpoint(world: World, node: Node) -> Endpoint:
    """Who does the talking."""
    return await world.endpoint(node, HANDLERS)


def _url(node: Node, path: str) -> str:
    return f"{node.runtime.services.settings.base_url()}{path}"


def _chunk(seq: int, data: Any, **more: Any) -> dict[str, Any]:
    return {"type": "chunk", "stream": "out", "seq": seq, "data": data, **more}


async def _say(node: Node, arrival: Arrival, *data: Any, first: int = 0) -> None:
    chunks = [_chunk(first + n, value) for n, value in enumerate(data)]
    await node.callback(arrival.json["token"], {"events": chunks})


async def _run(node: Node, endpoint: Endpoint) -> tuple[str, Arrival, str]:
    run_id = await node.trigger("say")
    return run_id, await endpoint.next(), _url(node, f"/v1/runs/{run_id}/stream")


async def test_history_first_then_what_comes_then_the_result(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id, arrival, url = await _run(node, endpoint)
    await _say(node, arrival, "one", {"n": 2})
    async with following(url) as stream:
        early = [await anext(stream) for _ in range(3)]
        await _say(node, arrival, "three", first=2)
        early.append(await anext(stream))
        arrival.answer(200, {"ok": True})
        early += [event async for event in stream]
    assert told(early) == ["run:start", "one", {"n": 2}, "three", "run:stop"]
    assert [int(event.id) for event in early] == [1, 2, 3, 4, 5]
    assert early[1].data == {
        "type": "stream:data", "run_id": run_id, "payload": "one", "task_id": f"tsk_{run_id[4:]}", "attempt": 1, "stream": "out",
    }  # fmt: skip
    assert early[-1].data["run"] == {"id": run_id, "workflow": "say", "status": "succeeded", "result": {"ok": True}, "error": None}
    stream_id = (await node.call("GET", f"/v1/runs/{run_id}"))["stream_id"]
    assert await everything(url) == await everything(_url(node, f"/v1/streams/{stream_id}/subscribe")) == early
    assert await everything(url, last="3") == early[3:]


async def test_an_answer_that_streams_is_followed_too(world: World, node: Node, endpoint: Endpoint) -> None:
    _, arrival, url = await _run(node, endpoint)
    arrival.begin_stream()
    async with following(url) as stream:
        for n in range(3):
            arrival.line(_chunk(n, n))
        arrival.line({"type": "done", "output": 9})
        arrival.end_stream()
        found = [event async for event in stream]
    assert told(found) == ["run:start", 0, 1, 2, "run:stop"]


async def test_twenty_cut_connections_in_five_hundred_chunks_lose_nothing(world: World, node: Node, endpoint: Endpoint) -> None:
    _, arrival, url = await _run(node, endpoint)
    seen: list[Event] = []
    cuts = 0

    async def produce() -> None:
        for n in range(0, 500, 5):
            await _say(node, arrival, *range(n, n + 5), first=n)
        arrival.answer(200, "over")

    producer = asyncio.create_task(produce())
    while not seen or seen[-1].name != "run:stop":
        wanted = len(seen) + 24 if cuts < 20 else 1_000
        async with following(url, seen[-1].id if seen else None) as stream:
            async for event in stream:
                seen.append(event)
                if len(seen) == wanted:
                    cuts += 1
                    break
    await producer
    assert cuts == 20
    assert told(seen) == ["run:start", *range(500), "run:stop"]


async def test_a_retry_resets_and_voids_what_the_attempt_before_said(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id, arrival, url = await _run(node, endpoint)
    async with following(url) as stream:
        await _say(node, arrival, "dead", "too")
        found = [await anext(stream) for _ in range(3)]
        arrival.answer(500, {"title": "no"})
        await world.attempts(run_id, 1)
        again = await endpoint.next()
        await _say(node, again, "alive")
        again.answer(200, None)
        found += [event async for event in stream]
    assert told(found) == ["run:start", "dead", "too", "reset", "alive", "run:stop"]
    assert found[3].data == {"type": "reset", "run_id": run_id, "task_id": f"tsk_{run_id[4:]}", "attempt": 2}
    assert told(await everything(url)) == ["run:start", "reset", "alive", "run:stop"]
    assert told(await everything(url, last=found[1].id)) == ["reset", "alive", "run:stop"]


async def test_a_retry_that_says_nothing_resets_before_the_end(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id, arrival, url = await _run(node, endpoint)
    await _say(node, arrival, "dead")
    arrival.answer(500, {"title": "no"})
    await world.attempts(run_id, 1)
    (await endpoint.next()).answer(400, {"title": "never"})
    await world.over(run_id)
    found = await everything(url)
    assert told(found) == ["run:start", "reset", "run:fail"]
    assert found[-1].data["run"]["error"]["message"]


async def test_a_stale_attempt_says_nothing_any_more(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id, arrival, url = await _run(node, endpoint)
    arrival.answer(500, {"title": "no"})
    await world.attempts(run_id, 1)
    await node.callback(arrival.json["token"], _chunk(0, "late"), expect=409)
    await node.call("POST", f"/v1/runs/{run_id}/cancel", {})
    assert told(await everything(url)) == ["run:start", "run:cancel"]


async def test_the_stream_of_an_event_is_that_of_all_its_runs(world: World, node: Node, endpoint: Endpoint) -> None:
    event = await node.call("POST", "/v1/events", {"type": "both", "data": {}})
    one, two = await endpoint.next(), await endpoint.next()
    url = _url(node, f"/v1/streams/{event['stream_id']}/subscribe")
    async with following(url) as stream:
        await _say(node, one, "1a")
        await _say(node, two, "2a")
        one.answer(200, 1)
        found = [await anext(stream) for _ in range(5)]
        await _say(node, two, "2b", first=1)
        two.answer(200, 2)
        found += [item async for item in stream]
    assert sorted(str(item) for item in told(found)) == ["1a", "2a", "2b", "run:start", "run:start", "run:stop", "run:stop"]
    assert [item.data["run"]["result"] for item in found if item.name == "run:stop"] == [1, 2]
    assert [int(item.id) for item in found] == [*range(1, 8)]
    assert told(await everything(_url(node, f"/v1/runs/{two.json['run_id']}/stream"))) == ["run:start", "2a", "2b", "run:stop"]


async def test_an_event_that_started_nothing_has_a_stream_without_entries(world: World, node: Node, endpoint: Endpoint) -> None:
    event = await node.call("POST", "/v1/events", {"type": "nobody", "data": {}})
    assert await everything(_url(node, f"/v1/streams/{event['stream_id']}/subscribe")) == []


async def test_a_reader_at_another_dispatcher_sees_the_same(world: World, node: Node, endpoint: Endpoint) -> None:
    other = await world.served_node("two", heartbeat=1.0, lease=30.0)
    node.runtime.services.streams._signals.peers = 1
    run_id, arrival, _ = await _run(node, endpoint)
    async with following(_url(other, f"/v1/runs/{run_id}/stream")) as stream:
        await _say(node, arrival, "one")
        found = [await anext(stream) for _ in range(2)]
        await _say(node, arrival, "two", first=1)
        found.append(await anext(stream))
        arrival.answer(200, None)
        found += [event async for event in stream]
    assert told(found) == ["run:start", "one", "two", "run:stop"]


async def test_without_hints_a_reader_elsewhere_looks_by_itself(world: World, node: Node, endpoint: Endpoint) -> None:
    other = await world.served_node("two")
    node.runtime.services.streams._signals.peers = 0
    run_id, arrival, _ = await _run(node, endpoint)
    async with following(_url(other, f"/v1/runs/{run_id}/stream")) as stream:
        assert (await anext(stream)).name == "run:start"
        await _say(node, arrival, "one")
        await other.turn("registry")
        assert told([await anext(stream)]) == ["one"]
        arrival.answer(200, None)
        await world.over(run_id)
        await other.turn("registry")
        assert told([event async for event in stream]) == ["run:stop"]


async def test_a_chunk_sent_again_is_there_once(world: World, node: Node, endpoint: Endpoint) -> None:
    _, arrival, url = await _run(node, endpoint)
    await _say(node, arrival, "a", "b")
    await _say(node, arrival, "a", "b", "c")
    await node.callback(arrival.json["token"], {"events": [_chunk(3, "d"), _chunk(3, "d")]})
    arrival.answer(200, None)
    assert told(await everything(url)) == ["run:start", "a", "b", "c", "d", "run:stop"]


async def test_bytes_say_so(world: World, node: Node, endpoint: Endpoint) -> None:
    _, arrival, url = await _run(node, endpoint)
    await node.callback(arrival.json["token"], _chunk(0, "AAE=", encoding="base64"))
    await node.callback(arrival.json["token"], _chunk(1, "x", encoding="rot13"), expect=400)
    arrival.answer(200, None)
    found = await everything(url)
    assert [event.data.get("encoding") for event in found] == [None, "base64", None]


async def test_what_is_beyond_the_limit_is_dropped_and_said(world: World) -> None:
    node = await world.served_node(stream_chunks_per_attempt=3, stream_bytes_per_attempt=1_000)
    endpoint = await world.endpoint(node, HANDLERS)
    run_id, arrival, url = await _run(node, endpoint)
    await _say(node, arrival, *range(10))
    arrival.answer(500, {"title": "no"})
    await world.attempts(run_id, 1)
    again = await endpoint.next()
    await _say(node, again, "short", "x" * 2_000, "never")
    again.answer(200, None)
    found = await everything(url)
    assert told(found) == ["run:start", "reset", "short", "stream:limit", "run:stop"]
    stored = await world.database.fetch("select data from chunks where kind = 'data' and attempt = 1 order by position")
    assert [row["data"] for row in stored] == [b"0", b"1", b"2"]


async def test_readers_that_never_read_are_let_go_and_cost_nobody_else(world: World) -> None:
    node = await world.served_node(stream_stall=1.5, stream_buffer_bytes=65_536)
    endpoint = await world.endpoint(node, HANDLERS)
    _, arrival, url = await _run(node, endpoint)
    streams = node.runtime.services.streams
    idle = [await unread(url) for _ in range(3)]
    async with following(url) as stream:
        names: list[str] = []

        async def read() -> None:
            names.extend([event.name async for event in _first(stream, 101)])

        reader = asyncio.create_task(read())
        for n in range(100):  # far more than sockets and the channel hold
            await _say(node, arrival, "x" * 65_536, first=n)
        await reader
        assert names == ["run:start", *["stream:data"] * 100]

        async def let_go() -> bool:
            return streams._readers == 1

        await until(let_go)
        arrival.answer(200, None)
        assert [event.name async for event in stream] == ["run:stop"]
    for _, writer in idle:
        writer.close()


async def _first(stream: AsyncIterator[Event], count: int) -> AsyncIterator[Event]:
    for _ in range(count):
        yield await anext(stream)


@pytest.mark.slow
async def test_two_hundred_slow_readers_do_not_slow_the_producer(world: World, node: Node, endpoint: Endpoint) -> None:
    async def produced(readers: int) -> tuple[float, int]:
        _, arrival, url = await _run(node, endpoint)
        slow = [await unread(url) for _ in range(readers)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        for n in range(100):
            await _say(node, arrival, "x" * 2_000, first=n)
        took = loop.time() - began
        arrival.answer(200, None)
        found = await everything(url)
        for _, writer in slow:
            writer.transport.abort()
        return took, len(found)

    await produced(0)
    alone, alone_found = await produced(0)
    crowded, crowded_found = await produced(200)
    print(f"100 chunks: {alone:.3f} s alone, {crowded:.3f} s with 200 slow readers")
    assert alone_found == crowded_found == 102
    assert crowded < 10 * alone + 2.0  # waiting for any of them would be forever


async def test_a_finished_stream_makes_event_sources_stop(world: World, node: Node, endpoint: Endpoint) -> None:
    _, arrival, url = await _run(node, endpoint)
    arrival.answer(200, None)
    last = (await everything(url))[-1].id
    async with httpx.AsyncClient() as client:
        assert (await client.get(url, headers={"last-event-id": last})).status_code == 204
        assert (await client.get(url, params={"last_event_id": last})).status_code == 204
        assert (await client.get(url, headers={"last-event-id": "x1"})).json()["code"] == "invalid_value"
        assert (await client.get(url, params={"last_event_id": "-1"})).json()["code"] == "invalid_value"
        assert (await client.head(url)).headers["content-type"].startswith("text/event-stream")
    assert told(await everything(url, last="999999")) == ["run:start", "run:stop"]


@pytest.mark.parametrize("path", ["/v1/streams/str_01j00000000000000000000000/subscribe", "/v1/runs/run_01j00000000000000000000000/stream",
                                  "/v1/streams/x/subscribe", "/v1/runs/nope/stream"])  # fmt: skip
async def test_what_is_not_there_cannot_be_followed(node: Node, path: str) -> None:
    assert (await node.call("GET", path, expect=404))["code"] == "not_found"


async def test_more_readers_than_allowed_are_refused(world: World) -> None:
    node = await world.served_node(max_stream_readers=1)
    endpoint = await world.endpoint(node, HANDLERS)
    _, arrival, url = await _run(node, endpoint)
    async with following(url) as stream:
        assert (await anext(stream)).name == "run:start"
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).json()["code"] == "overloaded"
        arrival.answer(200, None)
        assert [event.name async for event in stream] == ["run:stop"]


async def test_who_asks_for_the_head_of_a_stream_takes_no_place(world: World) -> None:
    node = await world.served_node(max_stream_readers=1)
    endpoint = await world.endpoint(node, HANDLERS)
    _, arrival, url = await _run(node, endpoint)
    async with httpx.AsyncClient() as client:
        for _ in range(3):
            assert (await client.head(url)).status_code == 200
    async with following(url) as stream:
        assert (await anext(stream)).name == "run:start"
        arrival.answer(200, None)
        assert [event.name async for event in stream] == ["run:stop"]


async def test_readers_are_let_go_when_their_dispatcher_ends(world: World, node: Node, endpoint: Endpoint) -> None:
    _, arrival, url = await _run(node, endpoint)
    async with following(url) as stream:
        assert (await anext(stream)).name == "run:start"
        node.runtime.services.streams.close()
        assert [event async for event in stream] == []
    arrival.answer(200, None)


async def test_logs_are_followed_to_the_end_of_the_run(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id, arrival, _ = await _run(node, endpoint)
    url = _url(node, f"/v1/runs/{run_id}/logs")

    async def log(*lines: tuple[str, str]) -> None:
        events = [{"type": "log", "level": level, "message": message} for level, message in lines]
        await node.callback(arrival.json["token"], {"events": events})

    await log(("info", "one"), ("debug", "two"))
    async with following(f"{url}?follow=true&level=info") as stream:
        assert (await anext(stream)).data["message"] == "one"
        await log(("error", "three"), ("info", "four"))
        fourth = await anext(stream)
        assert fourth.data["message"] == "four"
        arrival.answer(200, None)
        assert [event.name async for event in stream] == ["end"]
    assert [event.name for event in await everything(f"{url}?follow=true", last=fourth.id)] == ["end"]


async def test_a_line_too_long_is_cut_and_too_many_are_dropped_with_a_mark(world: World) -> None:
    node = await world.served_node(log_lines_per_attempt=3, log_line_bytes=100)
    endpoint = await world.endpoint(node, HANDLERS)
    run_id, arrival, _ = await _run(node, endpoint)
    lines = [{"type": "log", "message": "x" * 900_000}, *[{"type": "log", "message": f"line {n}"} for n in range(6)]]
    await node.callback(arrival.json["token"], {"events": lines})
    rows = (await node.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]
    assert rows[0]["message"] == "x" * 100 + " … [cut, 900000 bytes in all]"
    assert [row["message"] for row in rows[1:3]] == ["line 0", "line 1"]
    assert rows[3]["level"] == "warning"
    assert "limit of 3 lines" in rows[3]["message"]
    assert len(rows) == 4
    arrival.answer(200, None)


async def test_lines_of_all_runs_are_listed_latest_first(world: World, node: Node, endpoint: Endpoint) -> None:
    for n in range(3):
        _, arrival, _ = await _run(node, endpoint)
        level = "error" if n == 1 else "info"
        await node.callback(arrival.json["token"], {"type": "log", "level": level, "message": f"run {n}"})
        arrival.answer(200, None)
    rows = (await node.call("GET", "/v1/logs"))["rows"]
    assert [row["message"] for row in rows] == ["run 2", "run 1", "run 0"]
    assert [row["message"] for row in (await node.call("GET", "/v1/logs?level=error,critical"))["rows"]] == ["run 1"]
    assert [row["message"] for row in (await node.call("GET", "/v1/logs?search=RUN%202"))["rows"]] == ["run 2"]
    first = await node.call("GET", "/v1/logs?limit=2")
    second = await node.call("GET", f"/v1/logs?limit=2&cursor={first['next_cursor']}")
    assert [row["message"] for row in first["rows"] + second["rows"]] == ["run 2", "run 1", "run 0"]
    for bad in (f"/v1/logs?level=info&cursor={first['next_cursor']}", "/v1/logs?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
                "/v1/logs?search=%00", "/v1/logs?level=loud"):  # fmt: skip
        assert (await node.call("GET", bad, expect=400))["code"] == "invalid_value"
