"""What a turn may wait for: what is pending, and what is over, which counts as satisfied. Nothing else, and no task hangs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.store import tasks
from dispatcher.store.database import DatabaseUnavailable
from dispatcher.store.tasks import LiveTask
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until

_LONG = 3_600_000


async def _turn(world: World, one: Node, **handler: Any) -> tuple[Endpoint, str, Arrival]:
    endpoint = await durable_endpoint(world, one, entry("order", **handler))
    run_id = await one.trigger("order")
    return endpoint, run_id, await endpoint.next()


async def _one_over(world: World, one: Node, **handler: Any) -> tuple[Endpoint, str, Arrival]:
    """A turn in whose log `a#0` is over and `b#0` is pending."""
    endpoint, run_id, turn = await _turn(world, one, **handler)
    answer(turn, "wait", base=0, ops=[pending("sleep", "a#0", ms=1_000), pending("sleep", "b#0", ms=_LONG)], wake="a#0")
    await world.task(run_id, state="waiting")
    world.clock.advance(timedelta(seconds=2))
    await one.turn("waits")
    return endpoint, run_id, await endpoint.next()


@pytest.mark.parametrize(
    ("how", "wake"),
    [
        ("answer", {"all": ["b#0", {"any": ["a#0", "b#0"]}, "paid#0"], "fail_fast": True}),
        ("callback", {"any": [{"all": ["a#0", "b#0"]}, {"all": ["b#0", "paid#0"]}]}),
    ],
)
async def test_what_is_over_counts_as_satisfied(world: World, one: Node, wake: Any, how: str) -> None:
    endpoint, run_id, turn = await _one_over(world, one)
    said = {"base": 3, "ops": [step("paid#0", 5)], "wake": wake}
    if how == "answer":
        answer(turn, "wait", **said)
    else:
        turn.answer(202)
        await one.callback(turn.json["token"], {"type": "turn", "status": "wait", **said})
    await world.task(run_id, state="waiting")
    world.clock.advance(timedelta(hours=1))
    await one.turn("waits")
    last = await endpoint.next()
    assert [e["id"] for e in log_of(last)] == ["a#0", "b#0", "a#0", "paid#0", "b#0"]
    answer(last, "done", base=5, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"


@pytest.mark.parametrize("wake", ["a#0", {"any": ["b#0", {"all": ["a#0", "paid#0"]}]}], ids=str)
async def test_a_wait_that_is_over_brings_the_next_turn_at_once(world: World, one: Node, wake: Any) -> None:
    endpoint, run_id, turn = await _one_over(world, one)
    answer(turn, "wait", base=3, ops=[step("paid#0", 5)], wake=wake)
    last = await endpoint.next()
    assert (last.json["attempt"], [e["id"] for e in log_of(last)]) == (3, ["a#0", "b#0", "a#0", "paid#0"])
    assert [a["status"] for a in await world.attempts(run_id, 2)] == ["suspended", "suspended"]
    answer(last, "done", base=4, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_waiting_for_what_is_over_again_and_again_is_no_progress(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _one_over(world, one, retries=1)
    answer(turn, "wait", base=3, wake="a#0")
    answer(await endpoint.next(), "wait", base=3, wake="a#0")
    row = await world.over(run_id)
    assert (row["status"], [a["code"] for a in await world.attempts(run_id, 3)][1:]) == ("failed", ["no_progress", "no_progress"])


async def test_a_member_that_failed_satisfies_a_wait_that_fails_fast(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _turn(world, one)
    failed = {"id": "a#0", "op": "step", "status": "error", "error": {"name": "E", "message": "no"}}
    sleep = pending("sleep", "b#0", ms=_LONG)
    answer(turn, "wait", base=0, ops=[failed, sleep], wake={"all": ["a#0", "b#0"], "fail_fast": True})
    second = await endpoint.next()
    answer(second, "wait", base=2, wake={"all": ["a#0", "b#0"]})
    await world.task(run_id, state="waiting")


async def test_a_reducer_may_name_what_it_has_been_told_of(world: World, one: Node) -> None:
    endpoint, run_id, turn = await _turn(world, one, mode="state")
    ops = [pending("sleep", "a#0", ms=1_000), pending("sleep", "b#0", ms=_LONG)]
    answer(turn, "wait", ops=ops, wake="a#0", state={"n": 1})
    await world.task(run_id, state="waiting")
    world.clock.advance(timedelta(seconds=2))
    await one.turn("waits")
    second = await endpoint.next()
    assert [r["id"] for r in second.json["results"]] == ["a#0"]
    answer(second, "wait", wake={"all": ["a#0", "b#0"]}, state={"n": 2})
    await world.task(run_id, state="waiting")
    world.clock.advance(timedelta(hours=1))
    await one.turn("waits")
    third = await endpoint.next()
    assert (third.json["state"], [r["id"] for r in third.json["results"]]) == ({"n": 2}, ["b#0"])


@pytest.mark.parametrize(
    ("how", "wake"), [("answer", "a\u0000b"), ("answer", {"all": ["a#0", "zzz"]}), ("callback", {"any": ["b#0", {"all": ["a#0", "zzz"]}]})]
)
async def test_what_nobody_asked_for_is_refused_all_the_same(world: World, one: Node, wake: Any, how: str) -> None:
    endpoint, run_id, turn = await _one_over(world, one, retries=1)
    if how == "answer":
        answer(turn, "wait", base=3, wake=wake)
    else:
        turn.answer(202)
        await one.callback(turn.json["token"], {"type": "turn", "status": "wait", "base": 3, "wake": wake})
    last = await endpoint.next()
    assert (await world.attempts(run_id, 2))[1]["code"] == "unknown_wake"
    answer(last, "done", base=3, output=1)
    assert (await world.over(run_id))["status"] == "succeeded"


@contextmanager
def _away(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """No task can be looked at; set as soon as one was to be."""
    tried = asyncio.Event()

    async def away(*_: Any) -> LiveTask | None:
        tried.set()
        raise DatabaseUnavailable("away", sent=False)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "load_one", away)
        yield tried


async def test_an_answer_waits_for_a_database_that_is_away(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_id, turn = await _turn(world, one)
    with _away(monkeypatch) as tried:
        answer(turn, "failed", base=0, error={"code": "empty", "message": "nothing there"}, retry=False)
        await tried.wait()

    async def over() -> bool:
        world.clock.advance(timedelta(milliseconds=50))
        return bool(await world.database.fetchval("select exists (select from task_history where run_id = $1)", run_id))

    await until(over)
    assert [a["code"] for a in await world.attempts(run_id, 1)] == ["empty"]


async def test_but_not_when_its_dispatcher_is_to_stop(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_id, turn = await _turn(world, one)
    one.runtime.capacity.draining = True
    with _away(monkeypatch) as tried:
        answer(turn, "failed", base=0, error={"code": "empty", "message": "nothing there"}, retry=False)
        await tried.wait()
        await one.runtime.deliveries.drain()
    assert not one.runtime.deliveries.open
    assert (await world.task(run_id))["state"] == "running", "whoever comes next sends it again"
