"""Going back in a log: what is kept of it is what it was, whatever happens meanwhile, and nothing of it is done again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime.durable import Durable
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until

NAP = pending("sleep", "nap#0", ms=3_600_000)


async def _waiting(world: World, one: Node, endpoint: Endpoint, *ops: dict[str, Any], wake: Any = "nap#0") -> str:
    run_id = await one.trigger("order")
    answer(await endpoint.next(), "wait", base=0, ops=list(ops), wake=wake)
    await world.task(run_id, state="waiting")
    return run_id


async def _settled(world: World, name: str) -> None:
    async def settled() -> bool:
        return bool(await world.database.fetchval("select settled_at from waits where id = $1", name))

    await until(settled)


async def _reset(one: Node, run_id: str, node: str | None = None, expect: int | None = None) -> Any:
    return await one.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": node} if node is not None else {}, expect)


def _brief(turn: Any) -> list[tuple[str, str]]:
    return [(e["id"], e["status"]) for e in log_of(turn)]


# ---- at the same time


async def test_a_turn_while_the_log_is_read_is_not_cut_off(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, step("a#0", 1), pending("event", "e#0", key="k"), wake="e#0")
    read = Durable._seed

    async def slow(self: Durable, *given: Any) -> Any:
        found = await read(self, *given)
        await one.call("POST", "/v1/events", {"type": "k", "data": {}})
        answer(await endpoint.next(), "wait", base=3, ops=[step("charge#0", 2), NAP], wake="nap#0")
        await world.task(run_id, state="waiting", turn=3)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Durable, "_seed", slow)
        assert (await _reset(one, run_id, expect=409))["code"] == "turn_running"
    await _reset(one, run_id)
    assert [e["id"] for e in log_of(await endpoint.next())] == ["a#0", "e#0", "e#0", "charge#0", "nap#0"]


@pytest.mark.parametrize("ended", [False, True])
async def test_of_resets_at_the_same_time_one_counts(world: World, one: Node, ended: bool) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, step("a#0", 1), step("b#0", 2), NAP)
    if ended:
        await world.advance(timedelta(hours=1))
        answer(await endpoint.next(), "done", base=4)
        await world.over(run_id)
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": True})
    bodies = [{"journal_node": "b#0"}] * 6
    replies = await asyncio.gather(*[one.api.post(f"/v1/runs/{run_id}/reset", json=body) for body in bodies])
    codes = [reply.json().get("code") for reply in replies]
    assert None in codes
    assert {*codes} <= {None, "turn_running", "unknown_node"}, "who comes when another is done finds no such node any more"
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": False})
    assert log_of(await endpoint.next()) == [step("a#0", 1)]


async def test_who_is_to_clean_up_is_not_reset(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await _waiting(world, one, endpoint, step("a#0", 1), NAP)
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": True})
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    refused = await _reset(one, run_id, "nap#0", 409)
    assert (refused["code"], "being cancelled" in refused["detail"]) == ("turn_running", True)
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": False})
    turn = await endpoint.next()
    assert turn.json["cancel"]["reason"]
    answer(turn, "done", base=3)
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_log_that_was_begun_anew_and_has_nothing_is_reset_as_it_is(world: World, one: Node) -> None:
    """And not to the log before it."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": True})
    answer(turn, "continue", base=0, ops=[step("a#0", 1)], input={"round": 2})
    await world.task(run_id, state="queued", turn=2)
    assert (await _reset(one, run_id, "a#0", 404))["code"] == "unknown_node"
    await _reset(one, run_id)
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": False})
    turn = await endpoint.next()
    assert (log_of(turn), turn.json["input"]) == ([], {"round": 2})


# ---- children


async def test_a_child_that_is_over_is_not_begun_again(world: World, one: Node) -> None:
    """It was asked for before the node, and is not in the log yet, since its parent waits for another as well."""
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    ops = [pending("child", "c#0", workflow="leaf"), pending("child", "c#1", workflow="leaf"), step("a#0", 1), NAP]
    run_id = await _waiting(world, one, endpoint, *ops, wake={"all": ["c#0", "c#1", "nap#0"]})
    (await endpoint.next()).answer(200, {"shipped": 1})
    (await endpoint.next()).answer(422, {"no": 1})
    await _settled(world, "c#0")
    await _settled(world, "c#1")
    await _reset(one, run_id, "a#0")
    brief = _brief(await endpoint.next())
    assert brief[:2] == [("c#0", "pending"), ("c#1", "pending")]
    assert sorted(status for _, status in brief[2:]) == ["error", "ok"]


async def test_nor_where_its_parent_failed_before_it_heard_of_it(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    await one.callback(turn.json["token"], {"type": "append", "base": 0, "ops": [pending("child", "c#0", workflow="leaf")]})
    (await endpoint.next()).answer(200, {"shipped": 1})
    await _settled(world, "c#0")
    answer(turn, "failed", base=1, retry=False, error={"message": "a mistake in the code"})
    await world.over(run_id)
    await one.call("POST", f"/v1/runs/{run_id}/replay", {})
    turn = await endpoint.next()
    assert _brief(turn)[:1] == [("c#0", "pending")]
    if len(log_of(turn)) == 1:  # it was begun before the wait has looked
        answer(turn, "wait", base=1, wake="c#0")
        turn = await endpoint.next()
    assert log_of(turn)[1]["value"] == {"shipped": 1}


async def test_a_child_that_was_cancelled_with_its_parent_begins_again(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await _waiting(world, one, endpoint, pending("child", "c#0", workflow="leaf"), wake="c#0")
    await endpoint.next()
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {}, 202)
    turn = await endpoint.next()
    answer(turn, "done", base=len(log_of(turn)))
    await world.over(run_id)
    first = log_of(turn)[0]["run_id"]
    await _reset(one, run_id)
    turn, child = await _both(endpoint)
    [asked] = log_of(turn)
    assert (asked["id"], asked["status"], asked["run_id"]) == ("c#0", "pending", child.json["run_id"])
    assert asked["run_id"] != first
    answer(turn, "wait", base=1, wake="c#0")
    child.answer(200, {"shipped": 1})
    assert log_of(await endpoint.next())[1]["value"] == {"shipped": 1}


async def test_so_does_one_whose_parent_has_not_heard_yet_that_it_was_cancelled(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await _waiting(world, one, endpoint, pending("child", "c#0", workflow="leaf"), NAP, wake={"all": ["c#0", "nap#0"]})
    leaf = await endpoint.next()
    first = leaf.json["run_id"]
    await one.call("POST", f"/v1/runs/{first}/cancel", {}, 202)
    leaf.answer(422, {"stopped": True})
    await _settled(world, "c#0")
    await _reset(one, run_id)
    turn, child = await _both(endpoint)
    assert _brief(turn) == [("c#0", "pending"), ("nap#0", "pending")]
    assert log_of(turn)[0]["run_id"] == child.json["run_id"] != first
    answer(turn, "wait", base=2, wake="c#0")
    child.answer(200, {"shipped": 1})
    assert log_of(await endpoint.next())[2]["value"] == {"shipped": 1}


async def _both(endpoint: Endpoint) -> tuple[Arrival, Arrival]:
    """The next turn of a parent and its child, whichever comes first."""
    came: dict[str, Arrival] = {}
    while {*came} != {"order", "leaf"}:
        arrival = await endpoint.next()
        if arrival.json["type"] != "cancel":
            came[arrival.json["name"]] = arrival
    return came["order"], came["leaf"]


# ---- what the log says of its task


async def test_an_inbox_that_the_log_has_closed_stays_closed(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    turn = await endpoint.next()
    closing = {"id": "inbox#0", "op": "message", "status": "closed", "at": "2026-03-01T12:00:00.000Z"}
    answer(turn, "wait", base=0, ops=[closing, pending("message", "m#0")], wake="m#0")
    answer(await endpoint.next(), "done", base=3)
    await world.over(run_id)
    await _reset(one, run_id, "m#0")
    turn = await endpoint.next()
    assert log_of(turn) == [closing]
    assert (await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 1}, 409))["code"] == "inbox_closed"
    answer(turn, "wait", base=1, ops=[pending("message", "m#0")], wake="m#0")
    turn = await endpoint.next()
    assert _brief(turn) == [("inbox#0", "closed"), ("m#0", "pending"), ("m#0", "closed")]
    answer(turn, "done", base=3)
    await world.over(run_id)
    await _reset(one, run_id, "inbox#0")
    await one.call("POST", f"/v1/runs/{run_id}/messages", {"data": 1}, 202)


@pytest.mark.parametrize(
    "op",
    [
        {"ms": 3_600_000, "at": "0001-01-01T00:00:00+14:00"},
        {"ms": 3_600_000, "at": "9999-12-31T23:59:59Z"},
        {"ms": 3_600_000, "at": "2026-03-01T12:00:00"},
        {"until": "2026-03-02T12:00:00Z", "at": "2026-03-01T12:00:00"},
        {"until": "2036-02-27T12:00:00Z", "at": "2016-03-01T12:00:00Z"},
    ],
    ids=["first", "last", "naive", "naive until", "ten years"],
)
@pytest.mark.parametrize("ended", [False, True])
async def test_any_clock_may_have_written_what_is_kept(world: World, one: Node, op: dict[str, Any], ended: bool) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    nap = {"id": "nap#0", "op": "sleep", "status": "pending", **op}
    run_id = await _waiting(world, one, endpoint, nap, step("b#0", 1), pending("event", "e#0", key="k"), wake="e#0")
    if ended:
        await one.call("POST", "/v1/events", {"type": "k", "data": {}})
        answer(await endpoint.next(), "done", base=4)
        await world.over(run_id)
    await _reset(one, run_id, "b#0")
    assert log_of(await endpoint.next()) == [nap]
    waits = await world.database.fetch("select id, due_at from waits")
    assert [(row["id"], row["due_at"] > world.now) for row in waits] == [("nap#0", True)]


async def test_what_was_saved_last_is_what_is_shown(world: World, one: Node) -> None:
    """Also where an earlier life of the run was reset, and so had more generations."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")

    async def saves(value: str, base: int) -> None:
        saved = {"id": "checkpoint#0", "op": "checkpoint", "status": "ok", "value": value}
        answer(await endpoint.next(), "done", base=base, ops=[*([] if base else [step("a#0", 1)]), saved], output=value)

        async def over() -> bool:
            document = await one.call("GET", f"/v1/runs/{run_id}")
            return bool(document["status"] == "succeeded" and document["output"] == value)

        await until(over)
        await world.advance(timedelta(seconds=5))
        assert (await one.call("GET", f"/v1/runs/{run_id}/checkpoint"))["value"] == value

    await saves("first", 0)
    await _reset(one, run_id, "checkpoint#0")
    await saves("second", 1)
    await one.call("POST", f"/v1/runs/{run_id}/replay", {"input": {"other": 1}})
    await saves("third", 0)
