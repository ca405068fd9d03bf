"""Events around the moment a wait is registered: none is lost, one wakes everybody once, whoever is killed on the way."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.store import journal, waits
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until


def _ask(arrival: Arrival, key: str, **members: Any) -> None:
    answer(arrival, "wait", base=0, ops=[pending("event", "e#0", key=key, **members)], wake="e#0")


@pytest.mark.parametrize("seed", range(6))
async def test_an_event_around_the_registration_is_never_lost(world: World, one: Node, seed: int) -> None:
    """Sixteen tasks ask for an event each while it is pushed, through two dispatchers, at random moments."""
    two = await world.node("two")
    rng = random.Random(seed)
    endpoint = await durable_endpoint(world, one, entry("order"))
    await two.turn("registry")
    got: dict[str, Any] = {}

    def way(arrival: Arrival) -> None:
        body = arrival.json
        if len(body["log"]["entries"]) < 2:
            asyncio.get_running_loop().call_later(rng.random() * 0.02, _ask, arrival, f"key-{body['input']['n']}")
        else:
            got[body["run_id"]] = log_of(arrival)[1]["value"]["data"]
            answer(arrival, "done", base=2, output=1)

    endpoint.way = way
    runs = [await rng.choice([one, two]).trigger("order", input={"n": n}) for n in range(16)]

    async def begun() -> bool:
        return len(endpoint.seen) >= 16

    await until(begun)

    async def push(n: int) -> None:
        for _ in range(rng.randrange(300)):
            await asyncio.sleep(0)
        world.clock.advance(timedelta(milliseconds=1))  # it comes after the turn began, if only just
        await rng.choice([one, two]).call("POST", "/v1/events", {"type": f"key-{n}", "data": {"n": n}})

    await asyncio.gather(*[push(n) for n in range(16)])

    async def over() -> bool:
        world.clock.advance(timedelta(milliseconds=200))
        for node in (one, two):
            for loop in ("waits", "claim"):
                node.runtime.loops[loop].wake()
        return bool(await world.database.fetchval("select count(*) from task_history") == 16)

    await until(over, 30.0)
    assert got == {run_id: {"n": n} for n, run_id in enumerate(runs)}


async def test_a_message_that_another_brings_meanwhile_is_not_overlooked(world: World, one: Node) -> None:
    """Whoever looked before takes no mark away with what was settled since, though the one who settled it dies there and then."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("message", "m#0")], wake="m#0")
    await world.task(run_id, state="waiting")
    for name in ("waits", "marks"):
        await one.runtime.loops[name].stop()
    await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 1})
    seen = await waits.marked(world.database, 10)
    assert [task.receives for task in seen] == [True]
    assert len(await waits.receive(world.database, world.now, 10)) == 1
    await waits.resume(world.database, seen, (), world.now)
    assert [task.ids for task in await waits.marked(world.database, 10)] == [["m#0"]]
    one.runtime.loops["marks"].start()
    arrival = await endpoint.next()
    assert log_of(arrival)[1]["value"] == 1
    answer(arrival, "done", base=2, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_one_event_wakes_a_thousand_once_each(world: World) -> None:
    one = await world.node(max_in_flight=2_000)
    endpoint = await durable_endpoint(world, one, entry("order"), batch=True, durable_slots=2_000)
    seen: Counter[str] = Counter()

    def way(arrival: Arrival) -> None:
        body = arrival.json
        results = []
        for item in body["items"] if body["type"] == "batch" else [body]:
            if item["log"]["len"] == 0:
                go = pending("event", "e#0", key="go", expression="input.go == true")
                reply = {"status": "wait", "base": 0, "ops": [go], "wake": "e#0"}
            else:
                seen[item["run_id"]] += 1
                reply = {"status": "done", "base": 2, "output": 1}
            results.append({**reply, "id": item["id"]})
        arrival.answer(200, {"results": results} if body["type"] == "batch" else results[0], task_protocol="1")

    endpoint.way = way
    await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "order"} for _ in range(1_000)]})

    async def all_wait() -> bool:
        return bool(await world.database.fetchval("select count(*) from tasks where state = 'waiting' and wake_at is null") == 1_000)

    await until(all_wait, 60.0)
    await one.call("POST", "/v1/events", {"type": "go", "data": {"go": False}})
    await one.call("POST", "/v1/events", {"type": "go", "data": {"go": True}})

    async def over() -> bool:
        return bool(await world.database.fetchval("select count(*) from task_history") == 1_000)

    await until(over, 60.0)
    assert len(seen) == 1_000
    assert set(seen.values()) == {1}
    assert await world.database.fetchval("select count(*) from events where wakes") == 0


async def test_an_event_whose_dispatcher_died_is_brought_by_another(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    _ask(await endpoint.next(), "paid")
    await world.task(run_id, state="waiting")
    await one.runtime.loops["waits"].stop()
    await one.call("POST", "/v1/events", {"type": "paid", "data": 1})
    assert await world.database.fetchval("select count(*) from events where wakes") == 1
    two = await world.node("two")
    await two.turn("waits")
    assert log_of(await endpoint.next())[1]["value"]["data"] == 1


async def test_an_event_that_could_not_see_the_wait_is_found_by_looking_back(world: World, one: Node) -> None:
    """Its statement had begun before the wait was there, and ended after: it was not flagged."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    _ask(await endpoint.next(), "paid")
    await world.task(run_id, state="waiting")
    await one.turn("waits")
    world.clock.advance(timedelta(milliseconds=1))
    await one.call("POST", "/v1/events", {"type": "other", "data": 1})
    await world.database.execute("update events set type = 'paid', wakes = false")
    await one.turn("waits")
    assert (await world.task(run_id))["state"] == "waiting"
    world.clock.advance(timedelta(seconds=2))
    await one.turn("waits")
    assert log_of(await endpoint.next())[1]["value"]["data"] == 1


async def test_an_event_is_not_taken_twice_by_a_loop_of_waits(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn, base, got = await endpoint.next(), 0, []
    for n in range(5):
        world.clock.advance(timedelta(milliseconds=10))
        answer(turn, "wait", base=base, ops=[pending("event", f"e#{n}", key="tick")], wake=f"e#{n}")
        await world.task(run_id, state="waiting", turn=n + 2)
        await one.turn("waits")
        assert (await world.task(run_id))["state"] == "waiting", f"event {n - 1} woke two waits"
        world.clock.advance(timedelta(milliseconds=10))
        await one.call("POST", "/v1/events", {"type": "tick", "data": n})
        turn = await endpoint.next()
        base += 2
        got.append(log_of(turn)[-1]["value"]["data"])
    assert got == [0, 1, 2, 3, 4]
    answer(turn, "done", base=base, output=json.dumps(got))
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_nor_one_that_comes_while_the_loop_looks(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is younger than the look that finds it, and the turn it begins is not older than the event."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("event", "e#0", key="tick")], wake="e#0")
    await world.task(run_id, state="waiting")
    awaited = waits.awaited

    async def late(*given: Any) -> Any:
        monkeypatch.setattr(waits, "awaited", awaited)
        world.clock.advance(timedelta(milliseconds=10))
        await one.call("POST", "/v1/events", {"type": "tick", "data": 0})
        return await awaited(*given)

    monkeypatch.setattr(waits, "awaited", late)
    await one.turn("waits")
    turn = await endpoint.next()
    answer(turn, "wait", base=2, ops=[pending("event", "e#1", key="tick")], wake="e#1")
    await world.task(run_id, state="waiting", turn=3)
    await one.turn("waits")
    assert (await world.task(run_id))["state"] == "waiting", "the event woke two waits"


@pytest.mark.parametrize("grouped", [False, True])
async def test_nor_where_the_wait_is_recorded_by_another_dispatcher(world: World, one: Node, grouped: bool) -> None:
    """By an endpoint whose clock is a minute behind: what counts is when its turn was leased, wherever that was."""
    two = await world.node("two")
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("event", "e#0", key="k")], wake="e#0")
    await world.task(run_id, state="waiting")
    await world.advance(timedelta(seconds=10))
    await one.call("POST", "/v1/events", {"type": "k", "data": 1})
    turn = await endpoint.next()
    await world.advance(timedelta(seconds=10))
    (other,) = (node for node in (one, two) if not node.runtime.services.callbacks._deliveries.open)
    append = {"type": "append", "base": 2, "ops": [{**pending("event", "e#1", key="k"), "at": "2026-03-01T11:59:05.000Z"}]}
    if grouped:
        await other.call("POST", "/v1/callbacks", {"items": [{"token": turn.json["token"], "events": [append]}]})
    else:
        await other.callback(turn.json["token"], append)
    since = await world.database.fetchval("select since from waits where id = 'e#1'")
    assert since > (await world.task(run_id))["started_at"]
    answer(turn, "wait", base=3, wake="e#1")
    await world.task(run_id, state="waiting")
    for node in (one, two):
        await node.turn("waits")
    assert (await world.task(run_id))["state"] == "waiting", "the event woke two waits"


async def test_what_a_log_has_seen_is_before_the_start_of_the_next(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    wait = pending("event", "e#0", key="k", scope="s", since="start")
    for n in range(2):
        answer(turn, "wait", base=0, ops=[wait], wake="e#0")
        await world.task(run_id, state="waiting", turn=2 * n + 2)
        await one.turn("waits")
        assert (await world.task(run_id))["state"] == "waiting", "it was for the log before"
        await world.advance(timedelta(seconds=10))
        await one.call("POST", "/v1/events", {"type": "k", "data": n, "scope": "s"})
        turn = await endpoint.next()
        assert log_of(turn)[-1]["value"]["data"] == n
        await world.advance(timedelta(seconds=10))
        answer(turn, "continue", base=2, input={"round": n})
        turn = await endpoint.next()
    await one.call("POST", "/v1/events", {"type": "k", "data": 2, "scope": "s"})
    answer(turn, "wait", base=0, ops=[wait], wake="e#0")
    assert log_of(await endpoint.next())[-1]["value"]["data"] == 2, "and what came in its own life counts"


async def test_a_scope_keeps_others_out(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    _ask(await endpoint.next(), "paid", scope="order-1")
    await world.task(run_id, state="waiting")
    for scope in ("order-2", None):
        await one.call("POST", "/v1/events", {"type": "paid", "data": 1, **({"scope": scope} if scope else {})})
    await one.turn("waits")
    assert (await world.task(run_id))["state"] == "waiting"
    await one.call("POST", "/v1/events", {"type": "paid", "data": 2, "scope": "order-1"})
    assert log_of(await endpoint.next())[1]["value"]["data"] == 2


async def test_sleeps_keep_their_deadline_through_a_restart(world: World) -> None:
    one = await world.node(lease=6.0, heartbeat=1.0)
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("sleep", "nap#0", ms=30 * 86_400_000)], wake="nap#0")
    await world.task(run_id, state="waiting")
    await world.crash(one)
    world.clock.advance(timedelta(days=29, hours=23))
    two = await world.node("two", lease=6.0, heartbeat=1.0)
    await two.turn("waits")
    assert (await world.task(run_id))["state"] == "waiting"
    world.clock.advance(timedelta(hours=2))
    for _ in range(10):
        world.clock.advance(timedelta(seconds=1))
        await two.turn("heartbeat", "reap", "slots", "waits", "claim")
    assert (await endpoint.next()).json["turn"] == 2


# ---- children that are asked for again by their key


async def _gone(world: World, run_id: str) -> None:
    async def gone() -> bool:
        return not await world.database.fetchval("select count(*) from runs where id = $1", run_id)

    await until(gone)


async def _asked_twice(world: World, one: Node, *more: dict[str, Any]) -> tuple[Arrival, Endpoint, Arrival, str]:
    """A turn that has asked for the child `k`, and the child's only task, at work."""
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"}, *more)
    await one.trigger("order")
    turn = await endpoint.next()
    reply = await one.callback(turn.json["token"], _again(0))
    return turn, endpoint, await endpoint.next(), reply["children"]["c#0"]


def _again(number: int, workflow: str = "leaf") -> dict[str, Any]:
    return {"type": "append", "base": number, "ops": [pending("child", f"c#{number}", workflow=workflow, key="k")]}


def _told(turn: Arrival) -> dict[str, Any]:
    return {e["id"]: {k: v for k, v in e.items() if k not in ("id", "at")} for e in log_of(turn) if e["status"] != "pending"}


async def test_a_child_that_ends_while_it_is_asked_for_again_is_not_waited_for(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, endpoint, leaf, child = await _asked_twice(world, one)
    read = journal.children

    async def slow(*given: Any) -> Any:
        found = await read(*given)
        leaf.answer(200, {"x": 1})
        await _gone(world, child)
        return found

    monkeypatch.setattr(journal, "children", slow)
    await one.callback(turn.json["token"], _again(1))
    answer(turn, "wait", base=2, wake={"all": ["c#0", "c#1"]})
    told = _told(await endpoint.next())
    assert told["c#1"] == told["c#0"]
    assert told["c#1"]["value"] == {"x": 1}


async def test_the_end_of_a_child_that_could_not_see_the_wait_is_found_by_looking_back(world: World, one: Node) -> None:
    """The statement that ended it had begun before the wait was there, and ended after the wait had looked."""
    turn, endpoint, leaf, child = await _asked_twice(world, one)
    await one.callback(turn.json["token"], _again(1))
    answer(turn, "wait", base=2, wake="c#1")
    await world.task(turn.json["run_id"], state="waiting")
    await one.turn("waits")
    await world.database.execute("update waits set event_key = 'unseen' where id = 'c#1'")
    leaf.answer(200, {"x": 1})
    await _gone(world, child)
    await world.database.execute("update waits set event_key = $1 where id = 'c#1'", child)
    await one.turn("waits")
    assert (await world.task(turn.json["run_id"]))["state"] == "waiting"
    world.clock.advance(timedelta(seconds=2))
    await one.turn("waits")
    assert _told(await endpoint.next())["c#1"]["value"] == {"x": 1}


async def test_a_child_that_ends_as_its_parent_is_reset_is_not_waited_for(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=[pending("child", "c#0", workflow="leaf")], wake="c#0")
    leaf = await endpoint.next()
    await world.task(run_id, state="waiting")
    child = await world.database.fetchval("select id from runs where parent_run_id = $1", run_id)
    read = journal.seed

    async def slow(conn: Any, *given: Any) -> Any:
        """The wait that saw the end goes with the old log."""
        await world.database.execute("delete from waits where id = 'c#0'")
        leaf.answer(200, {"x": 1})
        await _gone(world, child)
        return await read(conn, *given)

    monkeypatch.setattr(journal, "seed", slow)
    await one.call("POST", f"/v1/runs/{run_id}/reset", {})
    turn = await endpoint.next()
    if not _told(turn):  # it was begun before the wait has looked
        answer(turn, "wait", base=1, wake="c#0")
        turn = await endpoint.next()
    assert _told(turn)["c#0"]["value"] == {"x": 1}


SKIPPED = {"name": "b", "parents": ["a"], "skip_if": [{"parent": "a", "expression": "true"}]}
FLOW = {
    "name": "flow",
    "kind": "workflow",
    "tasks": [{"name": "a"}, SKIPPED, {"name": "c", "parents": ["a"]}],
    "on_failure": {"name": "f"},
}


@pytest.mark.parametrize("workflow", ["leaf", "flow"])
@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [(200, {"x": 1}, None), (200, b'a "text"', "text/plain"), (200, None, None), (422, {"detail": "no"}, None)],
)
async def test_a_child_that_is_over_tells_the_same_again(
    world: World, one: Node, workflow: str, status: int, body: Any, content_type: str | None
) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"}, FLOW)
    turns: asyncio.Queue[Arrival] = asyncio.Queue()

    def way(arrival: Arrival) -> None:
        if arrival.json["type"] == "turn":
            turns.put_nowait(arrival)
        else:
            arrival.answer(status, body, **({"content_type": content_type} if content_type else {}))

    endpoint.way = way
    await one.trigger("order")
    turn = await turns.get()
    answer(turn, "wait", base=0, ops=_again(0, workflow)["ops"], wake="c#0")
    turn = await asyncio.wait_for(turns.get(), 20)
    answer(turn, "wait", base=2, ops=[pending("child", "c#1", workflow=workflow, key="k")], wake="c#1")
    told = _told(await asyncio.wait_for(turns.get(), 20))
    assert told["c#1"] == told["c#0"]
    assert ("value" in told["c#1"]) == (status == 200), told
