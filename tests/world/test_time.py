"""What time does: backoff to the millisecond, execution timeouts, schedule timeouts, circuits and their probes."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.world.endpoint import manifest
from tests.world.world import Node, World, until

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
MILLISECOND = timedelta(milliseconds=1)


async def test_backoff_is_exact(world: World, one: Node) -> None:
    """min(5, 2 ** n) seconds after each failure; not a millisecond early; the fifth failure is the last."""
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 4, "backoff_factor": 2, "backoff_max_seconds": 5}])
    run_id = await one.trigger("work")
    for number, seconds in enumerate((2, 4, 5, 5), 1):
        (await endpoint.next()).answer(500)
        await world.attempts(run_id, number)
        task = await world.task(run_id, state="scheduled")
        assert (task["due_at"], task["app_retries"]) == (world.now + seconds * SECOND, number)
        await world.advance(seconds * SECOND - MILLISECOND)
        assert (await world.task(run_id))["state"] == "scheduled"
        assert endpoint.waiting == 0
        await world.advance(MILLISECOND)
    (await endpoint.next()).answer(500)
    task = await world.over(run_id)
    assert (task["status"], task["epoch"], task["error"]["code"]) == ("failed", 5, "http_500")
    assert [row["number"] for row in await world.attempts(run_id, 5)] == [1, 2, 3, 4, 5]


async def test_without_a_factor_a_retry_is_at_once(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 1}])
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(500)
    (await endpoint.next()).answer(200, 1)
    assert (await world.over(run_id))["epoch"] == 2


async def test_an_attempt_ends_at_its_deadline(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 1, "backoff_factor": 10, "execution_timeout": "5s"}])
    run_id = await one.trigger("work")
    slow = await endpoint.next()
    assert slow.json["timeout_ms"] <= 5000
    await world.advance(5 * SECOND - MILLISECOND)
    assert not slow.hung_up.is_set()
    await world.advance(MILLISECOND)
    await slow.gone()
    (attempt,) = await world.attempts(run_id, 1)
    assert (attempt["status"], attempt["code"]) == ("timed_out", "timed_out")
    task = await world.task(run_id, state="scheduled")
    assert (task["app_retries"], task["due_at"]) == (1, world.now + 10 * SECOND)
    await world.advance(10 * SECOND)
    await endpoint.next()
    await world.advance(5 * SECOND)
    over = await world.over(run_id)
    assert (over["status"], over["error"]) == ("failed", {"code": "timed_out", "message": "Task exceeded timeout of 5s"})


async def test_what_waits_too_long_is_cancelled(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "5m", "execution_timeout": "1h", "retries": 3}], slots=1)
    await one.trigger("work")
    await endpoint.next()  # it keeps the only slot
    run_id = await one.trigger("work")
    await world.advance(5 * MINUTE - MILLISECOND)
    assert (await world.task(run_id))["state"] == "queued"
    await world.advance(MILLISECOND)
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"], over["epoch"]) == ("cancelled", "schedule_timeout", 0)
    assert await world.database.fetchval("select count(*) from attempts where run_id = $1", run_id) == 0


async def test_nothing_expires_while_its_endpoint_is_paused(world: World, one: Node) -> None:
    """A pause is for a deployment: what waited is still there when it is over."""
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "5m"}])
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    run_id = await one.trigger("work")
    await world.advance(30 * MINUTE)
    assert (await world.task(run_id))["state"] == "queued"
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    (await endpoint.next()).answer(200, 1)
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_retry_has_a_schedule_timeout_of_its_own(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "5m", "retries": 1, "backoff_factor": 240}])
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(500)
    task = await world.task(run_id, state="scheduled")
    assert task["schedule_deadline"] == task["due_at"] + 5 * MINUTE == world.now + 9 * MINUTE


async def test_nothing_expires_while_the_circuit_is_open(world: World, one: Node) -> None:
    """Nobody could have taken it: it waits up to an hour, the time a broken deployment may take."""
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "5m"}])
    await one.trigger("work")
    (await endpoint.next()).answer(404)
    await world.circuit_is("open")
    await endpoint.stop()
    waiting = await one.trigger("work")
    await world.advance(30 * MINUTE)
    assert (await world.task(waiting))["state"] == "queued"
    await world.advance(30 * MINUTE)
    over = await world.over(waiting)
    assert (over["status"], over["error"]["code"]) == ("cancelled", "schedule_timeout")


async def test_a_broken_endpoint_is_probed_and_then_given_its_work(world: World, one: Node) -> None:
    endpoint = await world.discovered(one, manifest([{"name": "work"}]))
    offered, endpoint.manifest = endpoint.manifest, None
    endpoint.way = lambda arrival: arrival.answer(401)  # it may be tried once more before its circuit is known to be open
    first = await one.trigger("work")
    await world.circuit_is("open", "sdk")
    await one.turn("claim")
    await world.task(first, state="scheduled")
    endpoint.way = None
    second = await one.trigger("work")
    for seconds in (5, 10, 20, 40):  # each probe finds it broken, and the next comes after twice the time
        await _probed_next(world, world.now + seconds * SECOND)
        if seconds < 40:
            await world.advance(seconds * SECOND)
    assert endpoint.waiting == 0
    endpoint.manifest = offered
    await world.advance(40 * SECOND)
    await world.circuit_is("closed", "sdk")
    for _ in (first, second):
        (await endpoint.next()).answer(200, {"ok": True})
    assert [(await world.over(run))["status"] for run in (first, second)] == ["succeeded", "succeeded"]
    assert (await world.over(first))["app_retries"] == 0


@pytest.mark.parametrize("dispatchers", [1, 2])
async def test_an_endpoint_that_was_broken_starts_slowly(world: World, one: Node, dispatchers: int) -> None:
    """One attempt until it does its work, then twice as many with every second, of each dispatcher: more may break it again."""
    endpoint = await world.discovered(one, manifest([{"name": "work", "retries": 3}]))
    await one.call("PATCH", "/v1/endpoints/sdk", {"slots": 20 * dispatchers})
    nodes = [one, *[await world.node() for _ in range(dispatchers - 1)]]
    for node in nodes:
        await node.turn("slots")
    endpoint.way = lambda arrival: arrival.answer(401)
    await one.trigger("work")
    await world.circuit_is("open", "sdk")
    for node in nodes:
        await node.turn("registry", "claim")
    endpoint.way = None
    for _ in range(50 * dispatchers):
        await one.trigger("work")
    await world.advance(20 * SECOND)
    await one.turn("probe")
    await world.circuit_is("closed", "sdk")
    for node in nodes:
        await node.turn("registry", "claim")
    held = [await endpoint.next()]
    for node in nodes:
        await node.turn("claim")
    while len(held) < dispatchers:
        held.append(await endpoint.next())
    assert endpoint.waiting == 0
    held.pop().answer(200, {})

    async def works() -> bool:
        return not await world.database.fetchval("select probes from endpoints")

    await until(works)
    for node in nodes:
        await node.turn("registry", "claim")
    for most in (2, 4, 8, 16, 20, 20):
        while len(held) < most * dispatchers:
            held.append(await endpoint.next())
        for node in nodes:
            await node.turn("claim")
        assert endpoint.waiting == 0
        await world.advance(SECOND)


async def _probed_next(world: World, moment: datetime) -> None:
    async def planned() -> bool:
        return bool(await world.database.fetchval("select probe_at = $1 from endpoints", moment))

    await until(planned)


async def test_a_task_gives_a_broken_endpoint_an_hour(world: World, one: Node) -> None:
    """A plain endpoint is reached, so each probe lets one task try again; none of its retries is spent, and an hour is the end."""
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 5, "execution_timeout": "2h"}])
    endpoint.way = lambda arrival: arrival.answer(403)
    run_id = await one.trigger("work")
    await world.attempts(run_id, 1)
    for _ in range(70):
        world.clock.advance(MINUTE)
        await one.turn("probe", "timers", "claim")
        await one.runtime.deliveries.drain()  # what was let through has had its answer
        await one.runtime.deliveries.circuits.drain()
        row = await world.database.fetchrow("select app_retries from tasks where run_id = $1", run_id)
        if row is None:
            break
        assert row["app_retries"] == 0
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"], over["app_retries"]) == ("failed", "http_403", 0)
    assert over["finished_at"] - over["started_at"] <= 10 * MINUTE  # the clock may move on while an answer is on its way
    assert HOUR <= world.now - (await world.attempts(run_id, 1))[0]["started_at"] <= HOUR + 10 * MINUTE
    assert 2 <= over["epoch"] <= 70


async def test_a_run_in_the_future_waits_for_its_moment(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "1m"}])
    moment = world.now + HOUR
    run_id = await one.trigger("work", run_at=moment.isoformat())
    await world.advance(HOUR - MILLISECOND)
    assert (await world.task(run_id))["state"] == "scheduled"
    await world.advance(MILLISECOND)
    (await endpoint.next()).answer(200, 1)
    assert (await world.over(run_id))["started_at"] == moment


async def test_pushback_halves_the_pressure_and_answers_raise_it(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=8)
    runs = [await one.trigger("work") for _ in range(8)]
    open_now = await endpoint.several(8)
    open_now[0].answer(429)
    await world.attempts(runs[0], 1)
    for arrival in open_now[1:]:
        arrival.answer(200, 1)
    for run_id in runs[1:]:
        await world.over(run_id)
    later = [await one.trigger("work") for _ in range(20)]
    await one.turn()
    breaker = next(iter(one.runtime.capacity.breakers.values()))
    assert breaker.limit is not None
    assert endpoint.waiting == breaker.limit < 8
    await world.advance(SECOND)
    for _ in range(21):
        (await endpoint.next()).answer(200, 1)
    for run_id in [*later, runs[0]]:
        await world.over(run_id)
