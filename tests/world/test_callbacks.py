"""202 and what follows: leases, heartbeats, extensions, results by callback; stale, late and repeated ones."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HANDLER = {"name": "work", "retries": 1, "backoff_factor": 10, "execution_timeout": "2m"}


async def _accepted(world: World, node: Node, **answer: Any) -> tuple[Endpoint, str, Arrival]:
    """A run whose first attempt was answered 202."""
    endpoint = await world.endpoint(node, [HANDLER])
    run_id = await node.trigger("work")
    arrival = await endpoint.next()
    arrival.answer(202, answer)
    await world.task(run_id, dispatcher_id=None, state="running")
    return endpoint, run_id, arrival


async def test_a_result_comes_by_callback(world: World, one: Node) -> None:
    _, run_id, arrival = await _accepted(world, one, lease_ms=600_000)
    task = await world.task(run_id)
    assert (task["lease_until"], task["lease"]) == (world.now + 10 * MINUTE, 10 * MINUTE)
    await world.advance(9 * MINUTE)
    reply = await one.callback(arrival.json["token"], {"type": "done", "output": {"n": 1}})
    assert (reply["ok"], reply["cancel"]) == (True, None)
    over = await world.over(run_id)
    assert (over["status"], over["output"], over["epoch"]) == ("succeeded", b'{"n":1}', 1)
    (attempt,) = await world.attempts(run_id, 1)
    assert attempt["finished_at"] - attempt["started_at"] == 9 * MINUTE


async def test_curls_shorthand_will_do(world: World, one: Node) -> None:
    _, run_id, arrival = await _accepted(world, one)
    await one.callback(arrival.json["token"], {"done": {"ok": True}})
    assert (await world.over(run_id))["output"] == b'{"ok":true}'


async def test_a_result_given_again_is_welcome_and_changes_nothing(world: World, one: Node) -> None:
    _, run_id, arrival = await _accepted(world, one)
    token = arrival.json["token"]
    await one.callback(token, {"done": 1})
    for output in (1, 2):
        assert (await one.callback(token, {"done": output}))["duplicate"] is True
    assert (await world.over(run_id))["output"] == b"1"
    assert len(await world.attempts(run_id, 1)) == 1


async def test_after_the_end_anything_else_is_too_late(world: World, one: Node) -> None:
    _, run_id, arrival = await _accepted(world, one)
    token = arrival.json["token"]
    await one.callback(token, {"done": 1})
    await world.over(run_id)
    for event in ({"type": "heartbeat"}, {"type": "fail", "error": {"message": "m"}}, {"type": "log", "message": "x"}):
        assert (await one.callback(token, event, expect=410))["code"] == "task_ended"


async def test_a_heartbeat_renews_the_lease_but_not_the_deadline(world: World, one: Node) -> None:
    _, run_id, arrival = await _accepted(world, one, lease_ms=30_000)
    for _ in range(3):
        await world.advance(20 * SECOND)
        await one.callback(arrival.json["token"], {"type": "heartbeat"})
        assert (await world.task(run_id))["lease_until"] == world.now + 30 * SECOND
    await world.advance(29 * SECOND)
    assert (await world.task(run_id))["deadline"] == world.now + 31 * SECOND
    await one.callback(arrival.json["token"], {"type": "heartbeat"})
    await world.advance(29 * SECOND)
    await one.callback(arrival.json["token"], {"type": "heartbeat"})
    assert (await world.task(run_id))["lease_until"] == world.now + 2 * SECOND
    await world.advance(2 * SECOND)
    (attempt,) = await world.attempts(run_id, 1)
    assert (attempt["status"], attempt["code"]) == ("timed_out", "timed_out")
    assert (await world.task(run_id))["app_retries"] == 1


async def test_an_extension_counts_from_the_deadline(world: World, one: Node) -> None:
    _, run_id, arrival = await _accepted(world, one)
    before = await world.task(run_id)
    assert before["deadline"] == before["lease_until"] == world.now + 2 * MINUTE
    await world.advance(MINUTE)
    reply = await one.callback(arrival.json["token"], {"type": "extend", "ms": 90_000})
    after = await world.task(run_id)
    assert after["deadline"] == before["deadline"] + 90 * SECOND == after["lease_until"]
    assert reply["lease_until"] is not None
    await world.advance(2 * MINUTE)
    await one.callback(arrival.json["token"], {"done": 1})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_an_open_request_can_be_extended_too(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    await world.advance(MINUTE)
    await one.callback(arrival.json["token"], {"type": "extend", "ms": 600_000})
    await world.advance(5 * MINUTE)
    assert not arrival.hung_up.is_set()
    arrival.answer(200, 1)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_lease_that_ends_is_a_lost_attempt(world: World, one: Node) -> None:
    endpoint, run_id, arrival = await _accepted(world, one, lease_ms=30_000)
    await world.advance(30 * SECOND)
    (attempt,) = await world.attempts(run_id, 1)
    assert (attempt["status"], attempt["code"]) == ("lost", "attempt_lost")
    second = await endpoint.next()
    task = await world.task(run_id)
    assert (task["app_retries"], task["infra_retries"], task["epoch"]) == (0, 1, 2)
    refused = await one.callback(arrival.json["token"], {"done": "from the first"}, expect=409)
    assert refused["code"] == "stale_attempt"
    second.answer(200, "from the second")
    assert (await world.over(run_id))["output"] == b'"from the second"'


async def test_a_failure_by_callback_is_a_failure(world: World, one: Node) -> None:
    endpoint, run_id, arrival = await _accepted(world, one)
    await one.callback(arrival.json["token"], {"type": "fail", "error": {"code": "boom", "message": "m"}})
    task = await world.task(run_id, state="scheduled")
    assert (task["app_retries"], task["due_at"]) == (1, world.now + 10 * SECOND)
    await world.advance(10 * SECOND)
    second = await endpoint.next()
    second.answer(202)
    await world.task(run_id, dispatcher_id=None, epoch=2)
    await one.callback(second.json["token"], {"type": "fail", "retry": False, "error": {"code": "boom", "message": "for good"}})
    over = await world.over(run_id)
    assert (over["status"], over["error"]["message"], over["epoch"]) == ("failed", "for good", 2)


async def test_a_forged_or_expired_token_is_nobodys(world: World, one: Node) -> None:
    _, _, arrival = await _accepted(world, one, lease_ms=1_000)
    token = arrival.json["token"]
    head, _, signature = token.rpartition(".")
    for forged in ("", "atk1", token[:-2], f"{head}x.{signature}", token.replace("atk1", "atk2"), f"{token}é"):
        headers = {b"authorization": f"Bearer {forged}".encode()}
        reply = await one.api.post("/v1/callback", json={"done": 1}, headers=headers)
        assert reply.status_code == 401, forged
    await world.advance(timedelta(days=3))
    await one.callback(token, {"done": 1}, expect=401)


async def test_a_lost_connection_is_not_a_dead_attempt(world: World, one: Node) -> None:
    """The handler may still be at work: its callback counts until the deadline, and only then the next attempt goes out."""
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    first = await endpoint.next()
    first.cut()
    task = await world.task(run_id, dispatcher_id=None)
    assert (task["state"], task["lease_until"]) == ("running", world.now + 2 * MINUTE)
    await world.advance(MINUTE)
    await one.callback(first.json["token"], {"done": "I was there"})
    assert (await world.over(run_id))["output"] == b'"I was there"'
    other = await one.trigger("work")
    (await endpoint.next()).cut()
    await world.task(other, dispatcher_id=None)
    await world.advance(2 * MINUTE)
    (attempt,) = await world.attempts(other, 1)
    assert attempt["status"] == "lost"
    (await endpoint.next()).answer(200, 2)
    over = await world.over(other)
    assert (over["epoch"], over["app_retries"], over["infra_retries"]) == (2, 0, 1)


async def test_an_idempotent_handler_is_called_again_at_once(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "idempotent": True}])
    run_id = await one.trigger("work")
    (await endpoint.next()).cut()
    (await endpoint.next()).answer(200, 1)
    over = await world.over(run_id)
    assert (over["status"], over["epoch"], over["infra_retries"]) == ("succeeded", 2, 1)


async def test_losses_are_bounded(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "idempotent": True}])
    endpoint.way = lambda arrival: arrival.cut()
    over = await world.over(await one.trigger("work"))
    assert (over["status"], over["error"]["code"], over["epoch"]) == ("failed", "connection_lost", 11)


async def test_a_released_slot_is_anothers(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER], slots=1)
    first = await one.trigger("work")
    holding = await endpoint.next()
    second = await one.trigger("work")
    await one.turn()
    assert endpoint.waiting == 0
    await one.callback(holding.json["token"], {"type": "release_slot"})
    (await endpoint.next()).answer(200, 2)
    assert (await world.over(second))["status"] == "succeeded"
    holding.answer(200, 1)
    assert (await world.over(first))["status"] == "succeeded"


async def test_a_slot_that_is_released_after_the_request_is_anothers_at_once(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{**HANDLER, "slot_cost": 2}], slots=2)
    first, second = await one.trigger("work"), await one.trigger("work")
    holding = await endpoint.next()
    holding.answer(202, {})
    await world.task(first, dispatcher_id=None, state="running")
    await one.turn("slots", "claim")
    assert endpoint.waiting == 0
    await one.callback(holding.json["token"], {"type": "release_slot"})
    await world.advance(SECOND)  # long before the next heartbeat
    assert (await endpoint.next()).json["run_id"] == second
    await one.callback(holding.json["token"], {"type": "release_slot"})
    await one.callback(holding.json["token"], {"done": 1})
    assert (await world.over(first))["status"] == "succeeded"


async def test_what_is_said_while_running_is_kept(world: World, one: Node) -> None:
    _, run_id, arrival = await _accepted(world, one)
    events = [{"type": "log", "level": "warning", "message": "low on paper"}, {"type": "progress", "fraction": 0.5, "note": "half"}]
    await one.callback(arrival.json["token"], {"events": [*events, {"type": "done", "output": 1}]})
    await world.over(run_id)
    rows = (await one.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]
    assert [(row["level"], row["message"], row["attempt"]) for row in rows] == [("warning", "low on paper", 1)]
