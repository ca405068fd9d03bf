"""Cancelling: at once where nothing runs, by the closed connection, by push, by the reply to a callback, and by force."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime.cancellation import Cancellation, Fate
from dispatcher.store.tasks import LiveTask
from tests.world.endpoint import manifest
from tests.world.world import Node, World

SECOND = timedelta(seconds=1)
HANDLER = {"name": "work", "retries": 3}


async def _cancel(node: Node, run_id: str) -> Any:
    return await node.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "changed my mind"})


async def test_a_queued_run_is_cancelled_at_once(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    run_id = await one.trigger("work")
    assert (await _cancel(one, run_id))["status"] == "cancelled"
    over = await world.over(run_id)
    assert (over["status"], over["epoch"], over["error"]) == ("cancelled", 0, {"code": "cancelled", "message": "changed my mind"})
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    await one.turn()
    assert endpoint.waiting == 0


async def test_one_that_keeps_changing_hands_is_cancelled_all_the_same(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.endpoint(one, [HANDLER])
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    run_id = await one.trigger("work")
    cancel, looks = Cancellation._cancel, list[LiveTask]()

    async def moved_on(self: Cancellation, task: LiveTask, reason: str) -> Fate | None:
        looks.append(task)
        return await cancel(self, task, reason) if len(looks) > 5 else None

    monkeypatch.setattr(Cancellation, "_cancel", moved_on)
    assert (await _cancel(one, run_id))["status"] == "cancelled"
    assert len(looks) == 6


async def test_a_waiting_retry_is_cancelled_at_once(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{**HANDLER, "backoff_factor": 100}])
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(500)
    await world.task(run_id, state="scheduled")
    await _cancel(one, run_id)
    assert (await world.over(run_id))["status"] == "cancelled"
    await world.advance(timedelta(hours=1))
    assert endpoint.waiting == 0


async def test_a_handler_that_cannot_be_told_learns_it_from_its_connection(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    await _cancel(one, run_id)
    await arrival.gone()
    over = await world.over(run_id)
    assert (over["status"], over["epoch"]) == ("cancelled", 1)
    (attempt,) = await world.attempts(run_id, 1)
    assert attempt["status"] == "cancelled"
    late = await one.callback(arrival.json["token"], {"done": 1}, expect=410)
    assert late["code"] == "task_ended"


async def test_a_handler_that_can_be_told_gets_a_grace(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([HANDLER], "cancel-push"))
    run_id = await one.trigger("work")
    work = await endpoint.next()
    assert (await _cancel(one, run_id))["status"] == "cancelling"
    told = await endpoint.next()
    assert (told.json["type"], told.json["id"], told.json["attempt"]) == ("cancel", work.json["id"], 1)
    told.answer(204)
    assert not work.hung_up.is_set()
    work.answer(500, {"detail": "stopped, as told"})
    over = await world.over(run_id)
    assert (over["status"], over["epoch"], over["app_retries"]) == ("cancelled", 1, 0)


async def test_after_the_grace_it_is_ended_by_force(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([HANDLER], "cancel-push"))
    run_id = await one.trigger("work")
    work = await endpoint.next()
    await _cancel(one, run_id)
    (await endpoint.next()).answer(204)
    await world.advance(10 * SECOND)
    await one.turn()
    await work.gone()
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_result_that_comes_in_the_grace_is_dropped_and_said_so(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([HANDLER], "cancel-push"))
    run_id = await one.trigger("work")
    work = await endpoint.next()
    await _cancel(one, run_id)
    (await endpoint.next()).answer(204)
    work.answer(200, {"too": "late"})
    over = await world.over(run_id)
    assert (over["status"], over["output"]) == ("cancelled", None)
    assert "dropped" in over["error"]["message"]


async def test_an_accepted_attempt_hears_of_it_in_the_reply(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    arrival.answer(202, {"lease_ms": 600_000})
    await world.task(run_id, dispatcher_id=None)
    assert (await _cancel(one, run_id))["status"] == "cancelling"
    reply = await one.callback(arrival.json["token"], {"type": "heartbeat"})
    assert reply["cancel"] == {"reason": "changed my mind", "grace_ms": 10_000}
    await one.callback(arrival.json["token"], {"type": "fail", "error": {"message": "stopped"}})
    assert (await world.over(run_id))["status"] == "cancelled"


async def test_a_cancelled_attempt_whose_connection_breaks_does_not_run_again(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{**HANDLER, "idempotent": True}], "cancel-push"))
    run_id = await one.trigger("work")
    work = await endpoint.next()
    await _cancel(one, run_id)
    (await endpoint.next()).answer(204)
    work.cut()
    over = await world.over(run_id)
    assert (over["status"], over["epoch"]) == ("cancelled", 1)


async def test_cancelling_twice_and_cancelling_what_is_over(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([HANDLER], "cancel-push"))
    run_id = await one.trigger("work")
    work = await endpoint.next()
    for _ in range(2):
        assert (await _cancel(one, run_id))["status"] == "cancelling"
    (await endpoint.next()).answer(204)
    work.answer(200, 1)
    await world.over(run_id)
    assert (await _cancel(one, run_id))["status"] == "cancelled"
    assert endpoint.waiting == 0
    finished = await one.trigger("work")
    (await endpoint.next()).answer(200, 1)
    await world.over(finished)
    refused = await one.call("POST", f"/v1/runs/{finished}/cancel", {}, expect=409)
    assert refused["code"] == "run_finished"
