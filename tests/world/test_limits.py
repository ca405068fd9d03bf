"""Bounds: sizes, moments, limits that change, and words that come from strangers."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.api.credentials import new_token
from dispatcher.store import intake, logs, registry, tokens
from dispatcher.store.database import Database, DatabaseUnavailable
from tests.world.endpoint import Arrival, manifest
from tests.world.world import Node, World, until

MEGABYTE = 1_000_000


async def test_large_outputs_are_written_within_the_time_a_statement_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of 4 MB that come together: a statement that held all of them would be cancelled before it ends, again and again."""
    one = await world.node()
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=200)
    waiting: list[Arrival] = []
    endpoint.way = waiting.append
    runs = {"runs": [{"workflow": "work", "input": {}} for _ in range(8)]}
    await one.call("POST", "/v1/runs/bulk", runs)

    async def arrived() -> bool:
        return len(waiting) == 8

    await until(arrived)
    sizes = _sizes_of_sets(one, monkeypatch)
    body = b'"' + os.urandom(2 * MEGABYTE).hex().encode() + b'"'
    for arrival in waiting:
        arrival.answer(200, body)

    async def finished() -> bool:
        return bool(await world.database.fetchval("select count(*) = 8 from task_history"))

    await until(finished)
    assert max(sizes) <= 20 * MEGABYTE


def _sizes_of_sets(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of output in each set of outcomes that is written from now on."""
    sizes: list[int] = []
    settlement = node.runtime.deliveries.settlement
    apply = settlement._apply

    async def measured(items: Any, landed: list[bool]) -> None:
        sizes.append(sum(len(getattr(item.outcome.change, "output", None) or b"") for item in items))
        await apply(items, landed)

    monkeypatch.setattr(settlement, "_apply", measured)
    return sizes


async def test_a_bulk_of_events_that_start_many_runs_is_taken(world: World, one: Node) -> None:
    handlers = [{"name": f"w{i}", "on_events": ["x"]} for i in range(50)]
    await world.endpoint(one, handlers, slots=1)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    events = {"events": [{"type": "x", "data": {"a": 1}} for _ in range(100)]}
    rows = (await one.call("POST", "/v1/events/bulk", events))["rows"]
    assert sum(len(row["runs"]) for row in rows) == 5_000
    assert await world.database.fetchval("select count(*) from runs") == 5_000


async def test_an_event_whose_registry_moves_on_while_it_is_written_loses_no_run(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.endpoint(one, [{"name": "work", "on_events": ["x"]}])
    (tenant_id,) = one.runtime.services.directory.pictures
    write, bumped = intake.write, list[bool]()

    async def overtaken(*given: Any) -> dict[str, bool]:
        if not bumped:
            bumped.append(True)
            async with world.database.transaction() as conn:
                await registry.bump(conn, tenant_id)
        return await write(*given)

    monkeypatch.setattr(intake, "write", overtaken)
    answer = await one.call("POST", "/v1/events", {"type": "x", "data": {}})
    assert bumped
    assert len(answer["runs"]) == 1
    await one.call("GET", f"/v1/runs/{answer['runs'][0]}")
    assert await world.database.fetchval("select count(*) from events") == 1


async def test_nothing_was_accepted_is_said_only_when_it_is_so(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.endpoint(one, [{"name": "work"}])
    write = intake.write

    async def lost(*given: Any) -> dict[str, bool]:
        await write(*given)
        raise DatabaseUnavailable("the reply was lost", sent=True)

    monkeypatch.setattr(intake, "write", lost)
    document = await one.call("POST", "/v1/runs", {"workflow": "work"}, expect=503)
    assert await world.database.fetchval("select count(*) from runs") == 1
    assert "nothing was accepted" not in document["detail"]


async def _streaming(world: World, one: Node) -> tuple[str, Arrival]:
    """A run whose handler has begun to stream its answer."""
    endpoint = await world.endpoint(one, [{"name": "work"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    arrival.begin_stream()
    return run_id, arrival


async def test_a_moment_without_database_does_not_end_a_streaming_attempt(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    append, failed = logs.append, list[bool]()

    async def broken(db: Database, lines: Any) -> None:
        if not failed:
            failed.append(True)
            raise DatabaseUnavailable("restarting", sent=False)
        await append(db, lines)

    monkeypatch.setattr(logs, "append", broken)
    run_id, arrival = await _streaming(world, one)
    arrival.line({"type": "log", "message": "one"})

    async def has_failed() -> bool:
        return bool(failed)

    await until(has_failed)
    arrival.line({"type": "log", "message": "two"})
    arrival.line({"type": "done", "output": {"ok": True}})
    arrival.end_stream()

    async def over() -> bool:
        world.clock.advance(timedelta(seconds=1))  # the pause before it is tried again
        return bool(await world.database.fetchval("select count(*) from task_history"))

    await until(over)
    assert (await world.over(run_id))["status"] == "succeeded"
    rows = (await one.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]
    assert [row["message"] for row in rows] == ["one", "two"]


def _counted_commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many log lines each commit from now on holds."""
    append, commits = logs.append, list[int]()

    async def counted(db: Database, lines: Any) -> None:
        commits.append(len(lines))
        await append(db, lines)

    monkeypatch.setattr(logs, "append", counted)
    return commits


async def test_a_thousand_lines_of_one_callback_share_commits(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    commits = _counted_commits(monkeypatch)
    lines: list[dict[str, Any]] = [{"type": "log", "message": str(i)} for i in range(1000)]
    lines.insert(500, {"type": "progress", "fraction": 0.5})
    await one.callback(arrival.json["token"], {"events": lines})
    assert len(commits) < 5
    rows = (await one.call("GET", f"/v1/runs/{run_id}/logs?limit=1000"))["rows"]
    assert [row["message"] for row in rows] == [str(i) for i in range(1000)]
    assert (await world.task(run_id))["progress"] is not None


async def test_what_comes_before_an_event_that_makes_no_sense_is_kept(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    events = [{"type": "log", "message": "a"}, {"type": "log", "message": "b", "level": "?"}, {"type": "log", "message": "c"}]
    assert (await one.callback(arrival.json["token"], {"events": events}, expect=400))["code"] == "invalid_event"
    assert [row["message"] for row in (await one.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]] == ["a"]


async def test_a_thousand_lines_of_one_answer_share_commits(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = _counted_commits(monkeypatch)
    run_id, arrival = await _streaming(world, one)
    for i in range(1000):
        arrival.line({"type": "log", "message": str(i)})
        if i % 100 == 50:
            arrival.line({"type": "chunk", "seq": -1})  # makes no sense, and costs nobody anything
    arrival.line({"type": "done", "output": {}})
    arrival.end_stream()
    assert (await world.over(run_id))["status"] == "succeeded"
    assert len(commits) < 50
    rows = (await one.call("GET", f"/v1/runs/{run_id}/logs?limit=1000"))["rows"]
    assert [row["message"] for row in rows] == [str(i) for i in range(1000)]


@pytest.mark.parametrize("after", [10**15, 10**19, -5, 1000 * 365 * 86_400_000])
async def test_any_wait_a_handler_asks_for_is_taken_within_a_day(world: World, one: Node, after: int) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 1}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    await one.callback(arrival.json["token"], {"type": "fail", "retry_after_ms": after})
    row = await world.task(run_id, state="scheduled")
    assert world.now < row["due_at"] <= world.now + timedelta(days=1)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z", "2200-01-01T00:00:01Z", "9999-12-31T23:59:59Z"])
async def test_moments_of_no_use_are_refused(world: World, one: Node, moment: str) -> None:
    await world.endpoint(one, [{"name": "work"}])
    refused = await one.call("POST", "/v1/runs", {"workflow": "work", "run_at": moment}, expect=400)
    assert (refused["code"], refused["field"]) == ("invalid_value", "run_at")
    rows = (await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "work", "run_at": moment}]}))["rows"]
    assert rows[0]["field"] == "runs[0].run_at"
    for path in ("/v1/runs", "/v1/events"):
        for field in ("since", "until"):
            reply = await one.api.get(path, params={field: moment})
            assert (reply.status_code, reply.json()["field"]) == (400, field)


async def test_a_run_may_wait_ten_years(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "work"}])
    run_id = await one.trigger("work", run_at=(world.now + timedelta(days=3650)).isoformat())
    await one.call("POST", "/v1/runs", {"workflow": "work", "run_at": (world.now + timedelta(days=3651)).isoformat()}, expect=400)
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {})
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_lower_limits_do_not_stop_a_server_from_starting(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 5}])
    two = await world.node("two", max_retries=3)
    run_id = await two.trigger("work")
    (await endpoint.next()).answer(200, {})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_tenant_made_elsewhere_a_moment_ago_is_known(world: World, one: Node) -> None:
    tenant = await registry.create_tenant(world.database, "acme", "Acme", world.now)
    made = new_token()
    await tokens.create(world.database, tenant.id, made.public_id, made.secret_hash, "t", ["*"], world.now, None)
    reply = await one.api.post("/v1/runs", json={"workflow": "w"}, headers={"authorization": f"Bearer {made.text}"})
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_workflow")


@pytest.mark.parametrize("broken", [{"input_schema": {"title": "a\x00b"}}, {"description": "é\x00"}])
async def test_a_manifest_that_cannot_be_stored_is_refused(world: World, one: Node, broken: dict[str, Any]) -> None:
    endpoint = await world.listen()
    endpoint.manifest = manifest([{"name": "work", **broken}])
    await one.call("PUT", "/v1/endpoints/app", {"url": endpoint.url}, expect=422)


@pytest.mark.parametrize("version", ["a\x00b", "x" * 5000])
async def test_a_manifest_with_an_odd_version_is_refused(world: World, one: Node, version: str) -> None:
    endpoint = await world.listen()
    endpoint.manifest = manifest([{"name": "work"}], version=version)
    await one.call("PUT", "/v1/endpoints/app", {"url": endpoint.url}, expect=422)
