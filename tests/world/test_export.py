"""A run as one document, by the API and by the command line; lines and pieces followed by the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Done, invoke
from tests.world.endpoint import Endpoint
from tests.world.world import Node, World


@pytest.fixture
async def node(world: World) -> Node:
    """A dispatcher the command line can call."""
    return await world.served_node()


@pytest.fixture
async def endpoint(world: World, node: Node) -> Endpoint:
    """Who does the work."""
    return await world.endpoint(node, [{"name": "work", "retries": 1, "on_events": ["job"]}])


async def _cli(node: Node, *arguments: str) -> Done:
    url = node.runtime.services.settings.base_url()
    return await asyncio.to_thread(lambda: invoke(*arguments, DISPATCHER_URL=url))


async def _worked(world: World, node: Node, endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
    """A run of an event that logs and streams, fails once, and succeeds."""
    event = await node.call("POST", "/v1/events", {"type": "job", "data": {"n": 1}, "metadata": {"a": "b"}})
    run_id = event["runs"][0]
    for attempt in (1, 2):
        arrival = await endpoint.next()
        said = [{"type": "log", "level": "info" if attempt == 1 else "error", "message": f"line {n} of {attempt}"} for n in range(2)]
        put = [{"type": "chunk", "stream": "out", "seq": n, "data": f"{attempt}.{n} "} for n in range(2)]
        await node.callback(arrival.json["token"], {"events": said + put})
        arrival.answer(500 if attempt == 1 else 200, {"attempt": attempt})
        await world.attempts(run_id, attempt)
    await world.over(run_id)
    return run_id, event


async def test_a_run_is_exported_whole(world: World, node: Node, endpoint: Endpoint, tmp_path: Path) -> None:
    run_id, event = await _worked(world, node, endpoint)
    document = await node.call("GET", f"/v1/runs/{run_id}/export")
    assert document["run"] == await node.call("GET", f"/v1/runs/{run_id}")
    assert [attempt["status"] for attempt in document["run"]["tasks"][0]["attempts"]] == ["failed", "succeeded"]
    assert (document["event"]["id"], document["event"]["data"]) == (event["event_id"], {"n": 1})
    assert [(line["attempt"], line["message"]) for line in document["logs"]] == [(a, f"line {n} of {a}") for a in (1, 2) for n in (0, 1)]
    pieces = [(entry["attempt"], entry["payload"]) for entry in document["stream"] if entry["kind"] == "data"]
    assert pieces == [(1, "1.0 "), (1, "1.1 "), (2, "2.0 "), (2, "2.1 ")]
    done = await _cli(node, "runs", "export", run_id)
    assert (done.code, json.loads(done.out)) == (0, document)
    done = await _cli(node, "runs", "export", run_id, "--to", str(tmp_path / "run.json"))
    assert (done.code, json.loads((tmp_path / "run.json").read_text())) == (0, document)
    assert (await _cli(node, "runs", "export", "run_none")).code == 3


async def test_a_run_without_anything_is_exported_too(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id = await node.trigger("work")
    arrival = await endpoint.next()
    document = await node.call("GET", f"/v1/runs/{run_id}/export")
    assert (document["event"], document["logs"], document["stream"], document["run"]["status"]) == (None, [], [], "running")
    arrival.answer(200, None)


async def test_the_command_line_follows_lines_and_streams(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id, _ = await _worked(world, node, endpoint)
    lines = (await _cli(node, "runs", "logs", run_id, "-o", "table")).out.splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == ["line 0 of 1", "line 1 of 1", "line 0 of 2", "line 1 of 2"]
    followed = await _cli(node, "runs", "logs", run_id, "-f", "--level", "error", "-o", "table")
    assert [line.split("  ")[-1].strip() for line in followed.out.splitlines()] == ["line 0 of 2", "line 1 of 2"]
    found = await _cli(node, "runs", "logs", run_id, "--search", "1 of 1", "--attempt", "1", "-o", "table")
    assert len(found.out.splitlines()) == 1
    streamed = await _cli(node, "runs", "stream", run_id, "-o", "table")
    assert streamed.out.splitlines() == ["[reset]", "2.0 ", "2.1 ", "[run:stop]"]
    assert (await _cli(node, "runs", "list", "-q", "attempt:2")).json["rows"][0]["id"] == run_id


async def test_the_command_line_follows_text_with_separators(world: World, node: Node, endpoint: Endpoint) -> None:
    run_id = await node.trigger("work")
    arrival = await endpoint.next()
    text = "one\u2028two\u0085three"
    said = [{"type": "log", "message": text}, {"type": "chunk", "stream": "out", "seq": 0, "data": text}]
    await node.callback(arrival.json["token"], {"events": said})
    arrival.answer(200, None)
    await world.over(run_id)
    streamed = await _cli(node, "runs", "stream", run_id, "-o", "json")
    assert [json.loads(line).get("payload") for line in streamed.out.strip().split("\n")] == [text, None]
    followed = await _cli(node, "runs", "logs", run_id, "-f", "-o", "json")
    assert [json.loads(line)["message"] for line in followed.out.strip().split("\n")] == [text]
