"""Who may end an attempt: not one whose turn is over, whoever it was that ended it, and however late the news."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from dispatcher.store import batches, intake, outcomes, queue, tasks
from dispatcher.store.database import Database
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World, until


async def _failed_once(world: World, one: Node, **handler: Any) -> tuple[Endpoint, str, Arrival]:
    """A run whose first attempt has failed by callback while its request is still open."""
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 2, **handler}])
    run_id = await one.trigger("work")
    first = await endpoint.next()
    world.clock.advance(timedelta(seconds=40))
    await one.callback(first.json["token"], {"type": "fail", "error": {"message": "by callback"}})
    await one.turn()
    return endpoint, run_id, first


async def _filled(node: Node, slots: int) -> None:
    """Wait until this many slots are counted as filled."""

    async def counted() -> bool:
        return node.runtime.capacity.total == slots

    await until(counted)


async def test_a_late_answer_of_attempt_one_does_not_end_attempt_two(world: World, one: Node) -> None:
    endpoint, run_id, first = await _failed_once(world, one)
    second = await endpoint.next()
    assert second.json["attempt"] == 2
    first.answer(200, {"from": "attempt 1"})
    await _filled(one, 1)
    second.answer(200, {"from": "attempt 2"})
    assert (await world.over(run_id))["output"] == b'{"from": "attempt 2"}'
    await _filled(one, 0)


async def test_the_deadline_of_attempt_one_does_not_end_attempt_two(world: World, one: Node) -> None:
    endpoint, run_id, _ = await _failed_once(world, one, execution_timeout="50s")
    second = await endpoint.next()
    world.clock.advance(timedelta(seconds=11))  # 51 s after the first began, 11 s after the second
    await one.turn("deadlines")
    await _filled(one, 1)
    second.answer(200, {"from": "attempt 2"})
    over = await world.over(run_id)
    assert over["status"] == "succeeded", over["error"]


async def test_work_leased_to_a_dispatcher_already_buried_is_found(world: World) -> None:
    """One stalls past its lease and is buried; what it had on its way to the database lands after that."""
    one = await world.node("one", lease=15.0, heartbeat=3.0)
    endpoint = await world.endpoint(one, [{"name": "work", "idempotent": True}])
    endpoint.way = lambda _: None
    for name in ("heartbeat", "slots"):
        await one.runtime.loops[name].stop()
    two = await world.node("two", lease=15.0, heartbeat=3.0)
    for _ in range(6):
        world.clock.advance(timedelta(seconds=3))
        await two.turn("heartbeat", "reap")
    assert await world.database.fetchval("select count(*) from dispatchers where name = 'one'") == 0
    before = one.runtime.membership.id
    one.runtime.capacity.good_until = world.now + timedelta(seconds=1)  # as it was when the statement was sent
    one.runtime.capacity.grants = {e.place: 5 for p in one.runtime.services.directory.pictures.values() for e in p.endpoints.values()}
    run_id = await one.trigger("work")
    await world.task(run_id, dispatcher_id=before)
    await one.runtime.membership.heartbeat(world.now)
    assert one.runtime.membership.id != before
    for _ in range(6):
        world.clock.advance(timedelta(seconds=3))
        await one.runtime.membership.heartbeat(world.now)
        await two.turn("heartbeat", "reap", "timers")
    row = await world.task(run_id)
    assert row["dispatcher_id"] != before
    assert row["infra_retries"] == 1


async def _stalls(world: World, monkeypatch: pytest.MonkeyPatch, store: Any, name: str) -> list[datetime]:
    """The process stands still for longer than its lease as soon as this has found something; when it went on."""
    look, moments = getattr(store, name), list[datetime]()

    async def stalled(*asked: Any) -> Any:
        found = await look(*asked)
        if found and not moments:
            world.clock.advance(timedelta(seconds=15))
            moments.append(world.now)
        return found

    monkeypatch.setattr(store, name, stalled)
    return moments


async def _began_once_it_had_joined_again(world: World, one: Node, endpoint: Endpoint, run_id: str, moments: list[datetime]) -> None:
    (stalled,) = moments
    for _ in range(6):  # until its former self is buried
        await world.advance(timedelta(seconds=3))
        await one.turn("heartbeat", "reap", "slots", "batches", "claim")
    (await endpoint.next()).answer(200, 1, task_protocol="1")
    (attempt,) = await world.attempts(run_id, 1)
    assert attempt["number"] == 1
    assert attempt["started_at"] > stalled


@pytest.mark.parametrize(("loop", "handler"), [("claim", {}), ("batches", {"batch": {"max_size": 1}})])
async def test_one_that_stalls_past_its_lease_while_it_looks_leases_nothing(
    world: World, loop: str, handler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await world.node(lease=15.0, heartbeat=3.0)
    endpoint = await world.discovered(one, manifest([{"name": "work", **handler}], "batch"))
    for name in ("claim", "batches"):
        await one.runtime.loops[name].stop()
    run_id = await one.trigger("work", run_at=(world.now + timedelta(seconds=1)).isoformat())
    world.clock.advance(timedelta(seconds=1))
    await one.turn("timers")
    moments = await _stalls(world, monkeypatch, *((batches, "groups") if handler else (queue, "ready")))
    await one.runtime.loops[loop].tick(world.now)
    for name in ("claim", "batches"):
        one.runtime.loops[name].start()
    await _began_once_it_had_joined_again(world, one, endpoint, run_id, moments)


async def test_one_that_stalls_past_its_lease_as_it_takes_a_key_leases_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await world.node(lease=15.0, heartbeat=3.0)
    endpoint = await world.endpoint(one, [{"name": "work"}])
    await one.turn("registry", "slots")
    moments = await _stalls(world, monkeypatch, intake, "claim_keys")
    run_id = await one.trigger("work", idempotency_key="k")
    await _began_once_it_had_joined_again(world, one, endpoint, run_id, moments)


async def test_one_that_was_buried_gives_itself_no_slots(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "work"}])
    await one.turn("slots")
    assert sum(one.runtime.capacity.grants.values()) == 100
    await world.database.execute("delete from dispatchers")
    await one.runtime.membership.rebalance(world.now)
    assert one.runtime.capacity.grants == {}
    await one.runtime.membership.heartbeat(world.now)
    assert sum(one.runtime.capacity.grants.values()) == 100


async def test_two_that_bury_the_same_dispatcher_take_nothing_from_the_living(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has found the task of the dead; before it looks any closer, the first has put it back and it runs again."""
    two = await world.node("two")
    endpoint = await world.endpoint(one, [{"name": "work"}])
    run_id = await one.trigger("work")
    lost = await endpoint.next()
    await world.database.execute("update tasks set dispatcher_id = -1")
    buried_by_one = list[Arrival]()
    fetch = Database.fetch

    async def then_the_other(self: Database, sql: str, *args: Any, **named: Any) -> list[Any]:
        found = await fetch(self, sql, *args, **named)
        if self is two.runtime.services.database and not buried_by_one and any(run_id in row.values() for row in found):
            buried_by_one.append(lost)
            await one.runtime.membership.bury(world.now, 100)
            buried_by_one.append(await endpoint.next())
        return found

    monkeypatch.setattr(Database, "fetch", then_the_other)
    await two.runtime.membership.bury(world.now, 100)
    assert len(buried_by_one) == 2
    row = await world.task(run_id)
    assert (row["state"], row["epoch"], row["infra_retries"]) == ("running", 2, 1)


async def test_an_audit_leaves_alone_what_has_begun_since(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt it knows nothing of ends while it looks, and the next begins."""
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 1}])
    run_id = await one.trigger("work")
    unknown = await endpoint.next()
    one.runtime.deliveries.abandon()
    world.clock.advance(timedelta(seconds=11))
    load, begun = tasks.load, list[Arrival]()

    async def load_late(db: Any, keys: Any) -> Any:
        if keys and not begun:
            begun.append(unknown)
            await one.callback(unknown.json["token"], {"type": "fail", "error": {"message": "by callback"}})
            begun.append(await endpoint.next())
        return await load(db, keys)

    monkeypatch.setattr(tasks, "load", load_late)
    await one.runtime.membership.audit(world.now)
    assert len(begun) == 2
    row = await world.task(run_id)
    assert (row["state"], row["epoch"], row["infra_retries"]) == ("running", 2, 0)


async def test_an_extension_reaches_the_dispatcher_that_holds_the_attempt_without_the_hint(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "execution_timeout": "50s"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    two = await world.node("two")
    two.runtime.services.callbacks._signals.peers = 0  # it has not looked round yet: hints are not sent
    reply = await two.callback(arrival.json["token"], {"type": "extend", "ms": 100_000})
    assert reply["lease_until"] is not None
    world.clock.advance(timedelta(seconds=60))
    await one.turn("deadlines")
    assert not arrival.hung_up.is_set()
    arrival.answer(200, {"ok": True})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_heartbeat_read_before_an_extension_does_not_undo_it(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "execution_timeout": "50s"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    arrival.answer(202, b"", content_type="")
    await world.task(run_id, dispatcher_id=None)
    token = arrival.json["token"]
    load_one, extended = tasks.load_one, list[bool]()

    async def load(db: Any, key: Any) -> Any:
        row = await load_one(db, key)
        if not extended:
            extended.append(True)
            await one.callback(token, {"type": "extend", "ms": 600_000})
            await one.callback(token, {"type": "release_slot"})
        return row

    monkeypatch.setattr(tasks, "load_one", load)
    await one.callback(token, {"type": "heartbeat"})
    row = await world.task(run_id)
    assert row["slot_released"]
    assert row["deadline"] >= world.now + timedelta(seconds=600)


async def test_a_heartbeat_that_meets_the_202_is_answered(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "execution_timeout": "50s"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    load_one, met = tasks.load_one, list[bool]()

    async def load(db: Any, key: Any) -> Any:
        row = await load_one(db, key)
        if not met:
            met.append(True)
            arrival.answer(202, b"", content_type="")
            await world.task(run_id, dispatcher_id=None)
        return row

    monkeypatch.setattr(tasks, "load_one", load)
    await one.callback(arrival.json["token"], {"type": "heartbeat"})


async def test_slots_are_counted_right_after_rejoining_with_outcomes_on_their_way(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}])
    apply, reached, gate = outcomes.apply, asyncio.Event(), asyncio.Event()

    async def stalled(*given: Any) -> None:
        reached.set()
        await gate.wait()
        await apply(*given)

    monkeypatch.setattr(outcomes, "apply", stalled)
    for _ in range(3):
        await one.trigger("work")
        (await endpoint.next()).answer(200, {})
    await reached.wait()
    one.runtime.membership._live_until = world.now  # the database was away for longer than the lease
    await one.runtime.membership.heartbeat(world.now)
    gate.set()
    await one.runtime.deliveries.settlement.drain()
    assert one.runtime.capacity.total == 0


async def test_stopping_leaves_attempts_to_their_handlers(world: World, one: Node) -> None:
    """A handler at work when the grace of a stop ends has lost its connection and nothing else, so it is not run again."""
    endpoint = await world.endpoint(one, [{"name": "work", "execution_timeout": "1h"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    two = await world.node("two")
    world.nodes.remove(one)
    await one.runtime.stop(timedelta(seconds=0))
    await one.api.aclose()
    await two.turn("reap", "timers", "claim")
    row = await world.task(run_id)
    assert (row["epoch"], row["state"]) == (1, "running")
    await two.callback(arrival.json["token"], {"done": {"n": 1}})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_failure_told_twice_is_recognised(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 1, "backoff_factor": 100}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    arrival.answer(202, b"", content_type="")
    await world.task(run_id, dispatcher_id=None)
    token, failure = arrival.json["token"], {"type": "fail", "error": {"message": "x"}}
    await one.callback(token, failure)
    assert (await one.callback(token, failure))["duplicate"] is True  # the reply to the first was lost
    assert (await one.callback(token, {"type": "heartbeat"}, expect=409))["code"] == "stale_attempt"
    assert (await one.callback(token, {"done": 1}, expect=409))["code"] == "stale_attempt"
    assert len(await world.attempts(run_id, 1)) == 1


async def test_slots_of_detached_attempts_come_back(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}], slots=2)
    arrivals = []
    for _ in range(2):
        run_id = await one.trigger("work")
        arrival = await endpoint.next()
        arrival.answer(202, b"", content_type="")
        await world.task(run_id, dispatcher_id=None)
        arrivals.append(arrival)
    queued = await one.trigger("work")
    await one.runtime.membership.rebalance(world.now)
    await one.turn()
    assert endpoint.waiting == 0
    await one.callback(arrivals[0].json["token"], {"done": {}})
    await world.advance(timedelta(milliseconds=60))
    await one.turn("slots", "claim")
    (await endpoint.next()).answer(200, {})
    await world.over(queued)


async def test_the_slot_of_a_detached_attempt_that_is_cancelled_comes_back(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    arrival.answer(202, b"", content_type="")
    await world.task(run_id, dispatcher_id=None)
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {})
    reply = await one.callback(arrival.json["token"], {"type": "heartbeat"})
    assert reply["cancel"] is not None
    await world.advance(timedelta(seconds=11))
    assert (await world.over(run_id))["status"] == "cancelled"
    await one.runtime.membership.rebalance(world.now)
    await _filled(one, 0)
