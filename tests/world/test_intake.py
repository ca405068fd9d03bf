"""What is asked for: idempotency keys, events and their wildcards, bulks, priorities, fairness."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime.intake import Intake
from dispatcher.store import intake
from dispatcher.store.database import Connection, Database
from tests.world.endpoint import Endpoint
from tests.world.world import Node, World, until

HANDLER = {"name": "work"}


def _ids(rows: list[Any]) -> list[str]:
    return [row["id"] for row in rows]


async def test_a_key_that_comes_again_is_the_same_run(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER, {"name": "other"}])
    body = {"workflow": "work", "input": {"n": 1}, "idempotency_key": "k"}
    first = await one.call("POST", "/v1/runs", body, expect=201)
    again = await one.call("POST", "/v1/runs", {**body, "input": {"n": 2}}, expect=200)
    assert (again["id"], again["duplicate"]) == (first["id"], True)
    assert (await one.call("POST", "/v1/runs", {**body, "workflow": "other"}, expect=201))["id"] != first["id"]
    for _ in range(2):
        (await endpoint.next()).answer(200, 1)
    await world.over(first["id"])
    assert (await one.call("POST", "/v1/runs", body, expect=200))["id"] == first["id"]
    assert endpoint.waiting == 0


async def _slot_becomes_free(world: World, one: Node) -> tuple[Endpoint, Callable[[], Awaitable[None]]]:
    """An endpoint whose only slot is taken, and what gives it back once: whoever looks for work then finds none."""
    endpoint = await world.endpoint(one, [HANDLER], slots=1)
    first = await one.trigger("work")
    arrivals = [await endpoint.next()]

    async def give_back() -> None:
        if arrivals:
            arrivals.pop().answer(200, 1)
            await world.over(first)
            await one.turn("claim")

    return endpoint, give_back


async def test_what_is_looked_for_before_it_is_committed_is_found_after(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, give_back = await _slot_becomes_free(world, one)
    transaction = Database.transaction

    @asynccontextmanager
    async def slow(self: Database, **named: Any) -> AsyncIterator[Connection]:
        async with transaction(self, **named) as connection:
            yield connection
            await give_back()

    monkeypatch.setattr(Database, "transaction", slow)
    await one.trigger("work", idempotency_key="k")
    (await endpoint.next()).answer(200, 2)


async def test_what_was_due_before_it_is_written_is_found_after(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, give_back = await _slot_becomes_free(world, one)
    write = intake.write

    async def slow(*args: Any) -> Any:
        await give_back()
        return await write(*args)

    monkeypatch.setattr(intake, "write", slow)
    await one.trigger("work", run_at=(world.now - timedelta(minutes=1)).isoformat())
    (await endpoint.next()).answer(200, 2)


async def test_what_was_undone_is_not_taken_for_written(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set fails for a reason of its own data after its runs were written; before it is tried in halves, the registry has moved on."""
    await world.endpoint(one, [HANDLER])
    mine, released, tries = one.runtime.services.intake, asyncio.Event(), list[int]()
    claim_keys, write_fresh = Intake._claim_keys, Intake._write_fresh

    async def eventful(self: Intake, conn: Any, submissions: list[Any], now: Any) -> Any:
        tries.append(len(submissions))
        if len(tries) == 1:
            await released.wait()
        if len(tries) == 3:
            await world.database.execute("update tenants set registry_version = registry_version + 1")
        return await claim_keys(self, conn, submissions, now)

    async def failing(self: Intake, *args: Any) -> Any:
        written = await write_fresh(self, *args)
        if len(tries) == 2:
            raise RuntimeError("something in it cannot be stored")
        return written

    async def begun() -> bool:
        return bool(tries)

    async def gathered() -> bool:
        return mine._commits.waiting == 4

    monkeypatch.setattr(Intake, "_claim_keys", eventful)
    monkeypatch.setattr(Intake, "_write_fresh", failing)
    triggers = [asyncio.create_task(one.trigger("work", idempotency_key="first"))]
    await until(begun)
    triggers += [asyncio.create_task(one.trigger("work", idempotency_key=key)) for key in ("a", "b")]
    await until(gathered)
    released.set()
    answered = await asyncio.gather(*triggers)
    assert tries[:4] == [1, 2, 1, 1]
    rows = await world.database.fetch("select id from runs union all select id from run_history")
    assert {row["id"] for row in rows} == set(answered)


async def test_versions_are_found_though_transactions_hold_every_connection_that_takes_work_in(world: World, one: Node) -> None:
    """Who revives a run asks for its version within a transaction; a dozen who do so at once must not wait for each other."""
    await world.endpoint(one, [HANDLER])
    directory = one.runtime.services.directory
    (picture,) = directory.pictures.values()
    workflow = picture.workflows["work"]
    directory._versions.clear()
    async with AsyncExitStack() as held:
        for _ in range(directory.settings.database_connections):
            await held.enter_async_context(directory.database.transaction())
        found = await directory.workflow_version(workflow.tenant_id, workflow.id, workflow.number)
    assert found.definition == workflow.definition


async def test_a_key_is_forgotten_in_time(world: World, one: Node) -> None:
    await world.endpoint(one, [HANDLER])
    body = {"workflow": "work", "input": {}, "idempotency_key": "k", "idempotency_ttl": "1h"}
    first = await one.call("POST", "/v1/runs", body, expect=201)
    await world.advance(timedelta(hours=1) - timedelta(milliseconds=1))
    assert (await one.call("POST", "/v1/runs", body, expect=200))["id"] == first["id"]
    await world.advance(timedelta(milliseconds=1))
    assert (await one.call("POST", "/v1/runs", body, expect=201))["id"] != first["id"]


async def test_of_a_hundred_at_once_one_wins(world: World, one: Node) -> None:
    """On two dispatchers, in one shared commit or in several."""
    two = await world.node("two")
    await world.endpoint(one, [HANDLER])
    await two.runtime.services.directory.refresh(world.now)
    body = {"workflow": "work", "input": {}, "idempotency_key": "k"}
    answers = await asyncio.gather(*[node.call("POST", "/v1/runs", body) for _ in range(50) for node in (one, two)])
    assert len(set(_ids(answers))) == 1
    assert sum(1 for answer in answers if not answer.get("duplicate")) == 1
    assert await world.database.fetchval("select count(*) from runs") == 1


async def test_within_one_bulk_the_first_counts(world: World, one: Node) -> None:
    await world.endpoint(one, [HANDLER])
    run = {"workflow": "work", "input": {}}
    runs = [{**run, "idempotency_key": "a"}, run, {**run, "idempotency_key": "a"}, {"workflow": "nobody's", "input": {}}]
    rows = (await one.call("POST", "/v1/runs/bulk", {"runs": runs}))["rows"]
    assert rows[0]["id"] == rows[2]["id"] != rows[1]["id"]
    assert rows[2]["duplicate"] is True
    assert (rows[3]["code"], rows[3]["status"]) == ("unknown_workflow", 404)


EVENTS = [
    ("order.created", ["any-order", "created", "exact", "everything"]),
    ("order.paid", ["any-order", "everything"]),
    ("order_created", ["everything"]),
    ("orders.created", ["created", "everything"]),
    ("user.created", ["created", "everything"]),
    ("100%", ["everything", "percent"]),
    ("100x", ["everything"]),
]


@pytest.mark.parametrize(("kind", "started"), EVENTS)
async def test_an_event_starts_each_workflow_that_listens_once(world: World, one: Node, kind: str, started: list[str]) -> None:
    keys = {
        "exact": ["order.created", "order.crea*"],
        "any-order": ["order.*", "order.p*", "*.paid"],
        "created": ["*.created"],
        "everything": ["*"],
        "percent": ["100%"],
    }
    endpoint = await world.endpoint(one, [{"name": name, "on_events": on} for name, on in keys.items()])
    answer = await one.call("POST", "/v1/events", {"type": kind, "data": {"n": 1}, "metadata": {"who": "me"}}, expect=201)
    pushes = [(await endpoint.next()).json for _ in started]
    assert sorted(push["name"] for push in pushes) == sorted(started)
    assert {push["run_id"] for push in pushes} == set(answer["runs"])
    for push in pushes:
        assert (push["input"], push["metadata"]) == ({"n": 1}, {"who": "me"})
        assert push["event"] == {"id": answer["event_id"], "type": kind, "metadata": {"who": "me"}}
    await one.turn()
    assert endpoint.waiting == 0


async def test_an_event_nobody_listens_for_is_kept(world: World, one: Node) -> None:
    answer = await one.call("POST", "/v1/events", {"type": "nothing.happens", "data": 1}, expect=201)
    assert answer["runs"] == []
    assert (await one.call("GET", f"/v1/events/{answer['event_id']}"))["type"] == "nothing.happens"


async def test_an_event_that_comes_again_starts_nothing(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "work", "on_events": ["a"]}])
    body = {"type": "a", "data": {}, "idempotency_key": "k"}
    first = await one.call("POST", "/v1/events", body, expect=201)
    again = await one.call("POST", "/v1/events", body, expect=200)
    assert (again["event_id"], again["duplicate"], again["runs"]) == (first["event_id"], True, first["runs"])
    assert await world.database.fetchval("select count(*) from runs") == 1


async def test_retries_go_first_then_priority_then_age(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 1, "backoff_factor": 10}], slots=1)
    retried = await one.trigger("work")
    (await endpoint.next()).answer(500)
    await world.task(retried, state="scheduled")
    holding = await one.trigger("work")
    held = await endpoint.next()
    low, high, middle = [await one.trigger("work", priority=priority) for priority in (1, 3, 2)]
    second_low = await one.trigger("work", priority=1)
    await world.advance(timedelta(seconds=10))
    held.answer(200, 1)
    order = []
    for _ in range(5):
        arrival = await endpoint.next()
        order.append(arrival.json["run_id"])
        arrival.answer(200, 1)
    assert order == [retried, high, middle, low, second_low]
    assert (await world.over(holding))["status"] == "succeeded"


async def test_a_backlog_of_one_workflow_does_not_hold_up_another(world: World, one: Node) -> None:
    """Two workflows of one endpoint take turns, whatever waits."""
    endpoint = await world.endpoint(one, [{"name": "many"}, {"name": "few"}], slots=2)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": True})
    runs = [{"workflow": "many", "input": {}} for _ in range(200)] + [{"workflow": "few", "input": {}} for _ in range(5)]
    await one.call("POST", "/v1/runs/bulk", {"runs": runs})
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    first: Counter[str] = Counter()
    for _ in range(14):
        arrival = await endpoint.next()
        first[arrival.json["name"]] += 1
        arrival.answer(200, 1)
    assert first["few"] == 5


async def test_waiting_for_the_result_in_the_call_itself(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    endpoint.way = lambda arrival: arrival.answer(200, {"n": 1})
    document = await one.call("POST", "/v1/runs?wait=30s", {"workflow": "work", "input": {}}, expect=200)
    assert (document["status"], document["output"]) == ("succeeded", {"n": 1})


async def test_a_wait_that_is_over_answers_what_there_is(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    waiting = asyncio.create_task(one.call("POST", "/v1/runs?wait=30s", {"workflow": "work", "input": {}}, expect=202))
    arrival = await endpoint.next()
    while one.runtime.services.waiters._waiting == {}:  # noqa: ASYNC110 - it is on its way there
        await asyncio.sleep(0)
    world.clock.advance(timedelta(seconds=30))
    assert (await asyncio.wait_for(waiting, 30))["status"] == "running"
    arrival.answer(200, 1)
