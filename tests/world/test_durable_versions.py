"""Code that does not fit a log, and what is registered while it says so: what may fit is tried, once, and nothing is blocked for ever."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.store import waits
from tests.world.durable import answer, durable_endpoint, entry, log_of, pending, step
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until


async def _second_turn(world: World, one: Node, endpoint: Endpoint) -> tuple[str, Arrival]:
    run_id = await one.trigger("order")
    nap = pending("sleep", "nap#0", ms=1_000)
    answer(await endpoint.next(), "wait", base=0, ops=[step("a#0", 1), nap], wake="nap#0")
    await world.task(run_id, state="waiting")
    await world.advance(timedelta(seconds=2))
    return run_id, await endpoint.next()


async def _register(node: Node, endpoint: Endpoint, version: str, pin: str = "task", name: str = "sdk") -> None:
    endpoint.manifest = manifest([entry("order", pin=pin)], "durable", "cancel-push", version=version)
    await node.call("PUT", f"/v1/endpoints/{name}", {"url": endpoint.url})


def _mismatch(turn: Arrival) -> None:
    answer(turn, "mismatch", at={"id": "a#0", "expected": {}, "got": {}})


async def _at_last(endpoint: Endpoint) -> Arrival:
    """The next turn that is not of the old version, which may be leased once more by who has not heard of the new one."""
    turn = await endpoint.next()
    while turn.json["version"] == "1":
        _mismatch(turn)
        turn = await endpoint.next()
    return turn


@pytest.mark.parametrize("pin", ["task", "latest"])
async def test_a_version_that_registers_before_the_old_one_says_it_does_not_fit_is_tried(world: World, one: Node, pin: str) -> None:
    endpoint = await durable_endpoint(world, one, entry("order", pin=pin))
    run_id, turn = await _second_turn(world, one, endpoint)
    await _register(one, endpoint, "2", pin)
    _mismatch(turn)
    turn = await endpoint.next()
    assert (turn.json["version"], turn.json["turn"], len(log_of(turn))) == ("2", 2, 3)
    _mismatch(turn)
    row = await world.task(run_id, state="blocked")
    assert row["epoch"] == 3, "one that does not fit either blocks it"
    attempts = await world.attempts(run_id, 3)
    assert [(a["status"], a["code"]) for a in attempts[1:]] == [("blocked", "code_mismatch")] * 2


async def test_so_is_one_by_the_same_name(world: World, one: Node) -> None:
    """Code may change where no version is named."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id, turn = await _second_turn(world, one, endpoint)
    world.clock.advance(timedelta(milliseconds=1))
    await _register(one, endpoint, "1")
    world.clock.advance(timedelta(milliseconds=1))
    _mismatch(turn)
    _mismatch(await endpoint.next())
    await world.task(run_id, state="blocked", epoch=3)


async def test_and_one_of_another_endpoint(world: World, one: Node) -> None:
    old = await durable_endpoint(world, one, entry("order"))
    run_id, turn = await _second_turn(world, one, old)
    new = await world.listen()
    await _register(one, new, "2", name="other")
    await one.call("PATCH", "/v1/endpoints/sdk", {"paused": True})
    _mismatch(turn)
    turn = await new.next()
    assert turn.json["run_id"] == run_id
    answer(turn, "done", base=3)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_it_may_say_so_later_and_to_another_dispatcher(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"))
    run_id, turn = await _second_turn(world, one, endpoint)
    turn.answer(202, {"lease_ms": 60_000})
    await world.task(run_id, state="running", dispatcher_id=None)
    two = await world.node("two")
    await _register(one, endpoint, "2")
    await two.callback(turn.json["token"], {"type": "turn", "status": "mismatch", "at": {"id": "a#0"}})
    await world.advance(timedelta(seconds=1))
    assert (await _at_last(endpoint)).json["version"] == "2"


async def test_what_registers_as_it_is_blocked_lets_it_go_on(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who blocks waits for a registration that has looked for what is blocked already, and is not committed."""
    endpoint = await durable_endpoint(world, one, entry("order"))
    _, turn = await _second_turn(world, one, endpoint)
    unblock = waits.unblock

    async def slow(conn: Any, *given: Any) -> Any:
        found = await unblock(conn, *given)
        _mismatch(turn)
        await until(lambda: world.holds_up(conn))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(waits, "unblock", slow)
        await _register(one, endpoint, "2")
    assert (await _at_last(endpoint)).json["version"] == "2"


async def test_who_is_bound_to_a_version_is_not_taken_to_another_for_a_mistake_of_its_own(world: World, one: Node) -> None:
    old = await durable_endpoint(world, one, entry("order"))
    run_id = await one.trigger("order")
    nap = pending("sleep", "nap#0", ms=1_000)
    answer(await old.next(), "wait", base=0, ops=[nap], wake="nap#0")
    await world.task(run_id, state="waiting")
    new = await world.listen()
    await _register(one, new, "2")
    await world.advance(timedelta(seconds=2))
    _mismatch(await old.next())
    await world.task(run_id, state="blocked")
    await one.call("POST", f"/v1/runs/{run_id}/resume", {})
    assert (await new.next()).json["version"] == "2"
