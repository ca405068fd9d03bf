"""Filters of events, seen from outside: what starts, what the handler is told, what is recorded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.world.endpoint import Endpoint
from tests.world.world import Node, World, until

EVENTS = {"name": "mail", "on_events": ["user:created", "order:*"]}


def declared(*filters: dict[str, Any]) -> dict[str, Any]:
    return {**EVENTS, "default_filters": list(filters)}


async def _send(node: Node, kind: str = "user:created", **fields: Any) -> dict[str, Any]:
    sent: dict[str, Any] = await node.call("POST", "/v1/events", {"type": kind, "data": {}, **fields})
    return sent


async def _payloads(endpoint: Endpoint, count: int) -> list[Any]:
    """What so many requests say of their filters, answered."""
    found = []
    for _ in range(count):
        arrival = await endpoint.next()
        found.append(arrival.json.get("filter_payload", "none"))
        arrival.answer(200, {})
    return found


async def test_a_workflow_without_filters_runs_and_has_no_payload(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [EVENTS])
    assert len((await _send(one))["runs"]) == 1
    assert await _payloads(endpoint, 1) == ["none"]


async def test_two_filters_that_hold_are_two_runs_with_their_payloads(world: World, one: Node) -> None:
    filters = [
        {"expression": "input.n > 1", "scope": "shop", "payload": {"who": "Anna"}},
        {"expression": "input.n > 100", "scope": "shop", "payload": {"who": "nobody"}},
        {"expression": "true", "scope": "other", "payload": {"who": "elsewhere"}},
        {"expression": "additional_metadata.vip", "scope": "shop", "payload": {"who": "Stiva"}},
    ]
    endpoint = await world.endpoint(one, [declared(*filters)])
    sent = await _send(one, data={"n": 5}, scope="shop", metadata={"vip": True})
    assert len(sent["runs"]) == 2
    assert sorted(p["who"] for p in await _payloads(endpoint, 2)) == ["Anna", "Stiva"]
    assert (await _send(one, data={"n": 5}, metadata={"vip": True}))["runs"] == []
    assert (await _send(one, data={"n": 0}, scope="shop", metadata={"vip": False}))["runs"] == []
    assert len((await one.call("GET", "/v1/events?matched=false"))["rows"]) == 2


async def test_a_payload_survives_the_queue_and_a_retry(world: World, one: Node) -> None:
    filters = [{"expression": "true", "scope": "s", "payload": {"a": [1, "ü"]}}]
    endpoint = await world.endpoint(one, [{**declared(*filters), "retries": 1}], slots=1)
    await _send(one, scope="s")
    await _send(one, scope="s")
    first = await endpoint.next()
    first.answer(500, {})
    seen = [first.json["filter_payload"]]
    for _ in range(2):
        arrival = await endpoint.next()
        seen.append(arrival.json["filter_payload"])
        arrival.answer(200, {})
    assert seen == [{"a": [1, "ü"]}] * 3


async def test_a_filter_made_by_api_judges_the_very_next_event(world: World, one: Node) -> None:
    await world.endpoint(one, [EVENTS])
    two = await world.node("two")
    made = await one.call("POST", "/v1/filters", {"workflow": "mail", "expression": "false", "scope": "s"}, expect=201)
    # The other dispatcher has not heard of it yet: its picture is old, and the statement that writes refuses it.
    assert (await _send(two, scope="s"))["runs"] == []
    await two.call("DELETE", f"/v1/filters/{made['id']}", expect=204)
    assert len((await _send(one, scope="s"))["runs"]) == 1


async def test_two_changes_of_a_filter_at_once_both_count(world: World, one: Node) -> None:
    await world.endpoint(one, [EVENTS])
    made = await one.call("POST", "/v1/filters", {"workflow": "mail", "expression": "false", "scope": "s"}, expect=201)
    path, changes = f"/v1/filters/{made['id']}", ({"expression": "true"}, {"scope": "t"}, {"payload": {"n": 1}})
    async with world.database.transaction() as conn:
        await conn.fetch("select id from tenants for update")
        asked = [asyncio.create_task(one.call("PATCH", path, change)) for change in changes]
        await until(lambda: _all_wait(world, len(changes)))
    await asyncio.gather(*asked)
    changed = await one.call("GET", path)
    assert (changed["expression"], changed["scope"], changed["payload"]) == ("true", "t", {"n": 1})


async def _all_wait(world: World, count: int) -> bool:
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return int(await world.database.fetchval(waiting)) >= count


async def test_what_could_not_be_evaluated_is_shown_on_the_event(world: World, one: Node) -> None:
    bad = {"expression": "input.missing.deep == 1", "scope": "s"}
    good = {"expression": "true", "scope": "s", "payload": {"ok": 1}}
    await world.endpoint(one, [declared(bad, good)])
    sent = await _send(one, scope="s", data={"n": 1})
    assert len(sent["runs"]) == 1
    event = await one.call("GET", f"/v1/events/{sent['event_id']}")
    (failure,) = event["filter_failures"]
    assert (failure["workflow"], failure["expression"], failure["scope"], failure["code"]) == (
        "mail",
        bad["expression"],
        "s",
        "missing_key",
    )
    assert failure["filter_id"].startswith("flt_")
    assert "missing" in failure["message"]


async def test_registering_again_keeps_and_replaces_declared_filters(world: World, one: Node) -> None:
    keep, drop = {"expression": "input.keep", "scope": "s"}, {"expression": "input.drop", "scope": "s"}
    endpoint = await world.endpoint(one, [declared(keep, drop)])
    await one.call("POST", "/v1/filters", {"workflow": "mail", "expression": "input.hand", "scope": "s"})
    before = {f["expression"]: f for f in (await one.call("GET", "/v1/filters"))["rows"]}
    assert {name: f["declared"] for name, f in before.items()} == {"input.keep": True, "input.drop": True, "input.hand": False}
    new = {"expression": "input.fresh", "scope": "s"}
    handlers = [{"body": "v1", **declared(keep, new)}]
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": handlers})
    after = {f["expression"]: f for f in (await one.call("GET", "/v1/filters"))["rows"]}
    assert set(after) == {"input.keep", "input.hand", "input.fresh"}
    assert after["input.keep"] == before["input.keep"]
    assert (await _send(one, scope="s", data={"drop": True, "keep": False, "hand": False, "fresh": False}))["runs"] == []
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": [{"body": "v1", **EVENTS}]})
    assert [f["expression"] for f in (await one.call("GET", "/v1/filters"))["rows"]] == ["input.hand"]


async def test_an_underscore_in_a_key_is_literal(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "mail", "on_events": ["user_*"]}])
    assert len((await _send(one, "user_created"))["runs"]) == 1
    assert (await _send(one, "user:created"))["runs"] == []


async def test_an_event_is_replayed_as_a_new_one(world: World, one: Node) -> None:
    await world.endpoint(one, [declared({"expression": "input.n == 1", "scope": "s", "payload": {"p": 1}})])
    sent = await _send(one, data={"n": 1}, scope="s", metadata={"a": "b"}, priority=2)
    again = await one.call("POST", f"/v1/events/{sent['event_id']}/replay", expect=201)
    assert (len(again["runs"]), again["event_id"] != sent["event_id"]) == (1, True)
    event = await one.call("GET", f"/v1/events/{again['event_id']}")
    assert (event["data"], event["scope"], event["priority"]) == ({"n": 1}, "s", 2)
    assert event["metadata"] == {"a": "b", "dispatcher__replay_of": sent["event_id"]}
    found = await one.call("GET", f"/v1/events?metadata=dispatcher__replay_of:{sent['event_id']}")
    assert [row["id"] for row in found["rows"]] == [again["event_id"]]
    # It is judged by what is registered now.
    await one.call("POST", "/v1/filters", {"workflow": "mail", "expression": "input.n >= 1", "scope": "s"})
    assert len((await one.call("POST", f"/v1/events/{again['event_id']}/replay"))["runs"]) == 2
    await one.call("POST", "/v1/events/evt_01j00000000000000000000000/replay", expect=404)


async def test_a_call_is_replayed_as_a_call(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "resize"}])
    sent = await _send(one, "hot:call", data={"fn": "resize", "args": [{"w": 1}]})
    again = await one.call("POST", f"/v1/events/{sent['event_id']}/replay")
    run = await one.call("GET", f"/v1/runs/{again['runs'][0]}")
    assert (run["workflow"], run["input"]) == ("resize", {"w": 1})


async def test_keys_of_the_system_are_left_out_of_what_callers_send(world: World, one: Node) -> None:
    await world.endpoint(one, [EVENTS])
    text = b'{"type":"user:created","metadata":{"hatchet__x":1,"\\u0064ispatcher__replay_of":"evt_1","mine":{"dispatcher__in":1}}}'
    reply = await one.api.post("/v1/events", content=text)
    event = await one.call("GET", f"/v1/events/{reply.json()['event_id']}")
    assert event["metadata"] == {"mine": {"dispatcher__in": 1}}
    run = await one.call("GET", f"/v1/runs/{reply.json()['runs'][0]}")
    assert run["metadata"] == {"mine": {"dispatcher__in": 1}}


@pytest.mark.parametrize("count", [200])
async def test_hostile_filters_do_not_stall_the_loop(world: World, count: int) -> None:
    """Many that go through lists of lists: they fail within the time they share, while the loop goes on turning."""
    node = await world.node(filter_seconds=0.3)
    loops = "input.list.all(a, input.list.all(b, input.list.all(c, a + b + c != {})))"
    await world.endpoint(node, [declared(*({"expression": loops.format(-i - 1), "scope": "s"} for i in range(count))), {"name": "other"}])
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(turn())
    sent = await _send(node, scope="s", data={"list": list(range(300))})
    ticking.cancel()
    assert turns > 50
    assert sent["runs"] == []
    event = await node.call("GET", f"/v1/events/{sent['event_id']}")
    assert len(event["filter_failures"]) == count
    assert {failure["code"] for failure in event["filter_failures"]} == {"budget"}


async def test_a_tenants_costly_filters_are_bounded(world: World) -> None:
    node = await world.node(filter_seconds=0.2, filter_queue=1)
    loops = {"expression": "input.list.all(a, input.list.all(b, input.list.all(c, a + b + c != -1)))", "scope": "s"}
    await world.endpoint(node, [declared(loops), {"name": "other"}])
    body = {"type": "user:created", "data": {"list": list(range(300))}, "scope": "s"}
    replies = await asyncio.gather(*(node.api.post("/v1/events", json=body) for _ in range(6)))
    assert {reply.status_code for reply in replies} == {201, 503}
    assert [reply.json()["code"] for reply in replies if reply.status_code == 503] == ["overloaded"] * sum(
        reply.status_code == 503 for reply in replies
    )
