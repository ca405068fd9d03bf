"""An endpoint that is drained goes on with what has to stay there, and takes nothing else; what is left of that is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from dispatcher.runtime.directory import Directory
from dispatcher.store import asides
from dispatcher.store.database import Database
from tests.world.durable import answer, asleep, done, durable_endpoint, entry, pending
from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.graph_runs import finished
from tests.world.test_concurrency import counts, limited, quiet, serve
from tests.world.world import Node, World, until

SECOND = timedelta(seconds=1)
SHARED = {"name": "shared", "max_runs": 1}
PAIR = [{"name": "first"}, {"name": "last", "parents": ["first"]}]
ENDPOINT = """
    with changed as (
        update endpoints set draining = $1, paused = $2, circuit = $3, circuit_since = case when $3 <> 'closed' then $4::timestamptz end
        returning tenant_id
    )
    update tenants set registry_version = registry_version + 1 where id in (select tenant_id from changed)
"""
LOOPS = ("registry", "pins", "asides", "gates", "timers", "waits", "claim")


async def patch(node: Node, name: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = await node.call("PATCH", f"/v1/endpoints/{name}", changes)
    return found


async def look(node: Node) -> None:
    """Let everybody find what there is, also of what has just been let through."""
    for _ in range(2):
        await node.turn(*LOOPS)


async def left(node: Node, name: str = "a") -> tuple[str, int | None]:
    shown = await node.call("GET", f"/v1/endpoints/{name}")
    return shown["health"], shown["remaining"]


async def drained(node: Node, name: str = "a") -> None:
    async def nothing() -> bool:
        return await left(node, name) == ("drained", 0)

    await until(nothing)


async def why(node: Node, run_id: str) -> list[str]:
    shown = await node.call("GET", f"/v1/runs/{run_id}")
    return [reason["message"] for task in shown["tasks"] for reason in task.get("waiting_for") or []]


async def two(world: World, node: Node, *handlers: dict[str, Any], slots: int = 100) -> tuple[Endpoint, Endpoint]:
    return await world.endpoint(node, handlers, name="a", slots=slots), await world.endpoint(node, handlers, name="b", slots=slots)


async def begun_at(a: Endpoint, b: Endpoint, run_id: str) -> tuple[Arrival, str, str]:
    """The first attempt of a run, the name of the endpoint that has it, and that of the other."""

    async def one() -> bool:
        return bool(a.waiting or b.waiting)

    await until(one)
    here, there = ("a", "b") if a.waiting else ("b", "a")
    arrival = await (a if a.waiting else b).next()
    assert arrival.json["run_id"] == run_id
    return arrival, here, there


async def test_new_runs_go_elsewhere_and_what_is_open_ends(world: World, one: Node) -> None:
    a, b = await two(world, one, {"name": "work"})
    await patch(one, "b", paused=True)
    first = await one.trigger("work")
    arrival = await a.next()
    await patch(one, "b", paused=False)
    shown = await patch(one, "a", draining=True)
    assert (shown["draining"], shown["remaining"], shown["health"], shown["paused"]) == (True, 1, "draining", False)
    runs = [await one.trigger("work") for _ in range(6)]
    assert sorted([(await b.next()).json["run_id"] for _ in runs]) == sorted(runs)
    assert a.waiting == 0
    arrival.answer(200, 1)
    assert (await world.over(first))["status"] == "succeeded"
    await drained(one)

    shown = await patch(one, "a", draining=False)
    assert (shown["draining"], shown["remaining"], shown["health"]) == (False, None, "healthy")
    await patch(one, "b", paused=True)
    again = await one.trigger("work")
    assert (await a.next()).json["run_id"] == again


async def test_what_only_it_serves_waits_and_has_its_time_again(world: World, one: Node) -> None:
    a = await world.endpoint(one, [{"name": "work", "schedule_timeout": "10m"}], name="a", slots=1)
    await patch(one, "a", draining=True)
    runs = [await one.trigger("work") for _ in range(3)]
    await look(one)
    assert a.waiting == 0
    assert any("a: it is drained" in message for message in await why(one, runs[0]))
    await world.advance(timedelta(minutes=30))
    await patch(one, "a", draining=False)
    assert await serve(a, runs) == runs
    for run_id in runs:
        assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_retry_goes_elsewhere(world: World, one: Node) -> None:
    a, b = await two(world, one, {"name": "work", "retries": 2, "backoff_factor": 2})
    await patch(one, "b", paused=True)
    run_id = await one.trigger("work")
    arrival = await a.next()
    await patch(one, "b", paused=False)
    await patch(one, "a", draining=True)
    arrival.answer(500)
    await world.attempts(run_id, 1)
    await world.advance(timedelta(seconds=10))
    (await b.next()).answer(200, 1)
    assert (await world.over(run_id))["status"] == "succeeded"
    await drained(one)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("gates", [(), (SHARED,)])
@pytest.mark.parametrize("when", ["asleep", "waiting for a slot", "retried"])
async def test_a_durable_task_goes_on_where_it_began(
    world: World, one: Node, alone: bool, gates: tuple[dict[str, Any], ...], when: str
) -> None:
    more = {"concurrency": [dict(gate, max_runs=2) for gate in gates]} if gates else {"desired_labels": {"zone": {"value": "x"}}}
    handler = entry("order", retries=3, backoff_factor=2, **more)
    a = await durable_endpoint(world, one, handler, name="a", durable_slots=1)
    run_id = await asleep(world, one, a)
    other, kept = "", None
    if when == "waiting for a slot":
        other, kept = await one.trigger("order"), await a.next()
        await world.advance(2 * SECOND)
        await world.task(run_id, state="queued")
    elif when == "retried":
        await world.advance(2 * SECOND)
        (await a.next()).answer(500)
        await world.task(run_id, state="scheduled")
    b = None if alone else await durable_endpoint(world, one, handler, name="b")
    shown = await patch(one, "a", draining=True)
    assert (shown["health"], shown["remaining"]) == ("draining", 2 if other else 1)

    fresh = await one.trigger("order")
    if kept is not None:
        done(kept)
        assert (await world.over(other))["status"] == "succeeded"
    else:
        await world.advance(timedelta(seconds=10))
    await look(one)
    turn = await a.next()
    assert (turn.json["run_id"], turn.json["turn"]) == (run_id, 2)
    assert await left(one) == ("draining", 1)
    done(turn)
    assert (await world.over(run_id))["status"] == "succeeded"
    await drained(one)
    if b is None:
        await look(one)
        assert a.waiting == 0
        await patch(one, "a", draining=False)
        b = a
    begun = await b.next()
    assert begun.json["run_id"] == fresh
    done(begun)
    assert (await world.over(fresh))["status"] == "succeeded"
    await quiet(world)


@pytest.mark.parametrize(("sticky", "stays"), [("hard", True), ("soft", False), (None, False)])
async def test_the_tasks_of_a_run_go_on_there_if_it_has_to_stay(world: World, one: Node, sticky: str | None, stays: bool) -> None:
    a, b = await two(world, one, {"name": "flow", "kind": "workflow", "tasks": PAIR, **({"sticky": sticky} if sticky else {})})
    run_id = await one.trigger("flow")
    first, here, there = await begun_at(a, b, run_id)
    ends = {"a": a, "b": b}
    shown = await patch(one, here, draining=True)
    assert (shown["health"], shown["remaining"]) == ("draining", 1)
    first.answer(200, 1)
    last = await ends[here if stays else there].next()
    assert await left(one, here) == (("draining", 1) if stays else ("drained", 0))
    last.answer(200, 1)
    assert (await finished(one, run_id))["status"] == "succeeded"
    await drained(one, here)
    for _ in range(3):
        other = await one.trigger("flow")
        for _ in PAIR:
            (await ends[there].next()).answer(200, 1)
        assert (await finished(one, other))["status"] == "succeeded"


async def test_a_run_that_is_to_stay_where_it_begins_does_not_begin_there(world: World, one: Node) -> None:
    a = await world.endpoint(one, [{"name": "work", "sticky": "hard"}], name="a")
    await patch(one, "a", draining=True)
    run_id = await one.trigger("work")
    await look(one)
    assert a.waiting == 0
    assert await left(one) == ("drained", 0), "it is bound to nothing"
    b = await world.endpoint(one, [{"name": "work", "sticky": "hard"}], name="b")
    (await b.next()).answer(200, 1)
    assert (await world.over(run_id))["status"] == "succeeded"


@pytest.mark.parametrize("child", [{"name": "child"}, {"name": "child", "kind": "workflow", "tasks": [{"name": "only"}]}])
async def test_a_child_that_has_to_be_where_its_parent_is_goes_on_there(world: World, one: Node, child: dict[str, Any]) -> None:
    """Also through a limit that is shared with others, while nothing else of its workflow can start."""
    handlers = [entry("order"), {**child, "sticky": "hard", "concurrency": [SHARED]}]
    a = await durable_endpoint(world, one, *handlers, name="a")
    c = await world.endpoint(one, [limited(SHARED, name="other")], name="c")
    parent = await one.trigger("order")
    turn = await a.next()
    await patch(one, "a", draining=True)
    blocker = await one.trigger("other")
    held = await c.next()
    waits = await one.trigger("child")
    answer(turn, "wait", base=0, ops=[pending("child", "c#0", workflow="child", input={}, sticky=True)], wake="c#0")
    await world.task(parent, state="waiting")
    await look(one)
    held.answer(200, 1)
    await world.over(blocker)
    await look(one)
    arrival = await a.next()
    assert arrival.json["run_id"] not in (waits, parent)
    assert await left(one) == ("draining", 2)
    arrival.answer(200, {})
    turn = await a.next()
    assert turn.json["run_id"] == parent
    done(turn)
    await drained(one)
    assert await counts(world) == (0, 0), "what cannot start has no place and stands in no line"
    other = await one.trigger("other")
    (await c.next()).answer(200, 1)
    await world.over(other)
    await patch(one, "a", draining=False)
    arrival = await a.next()
    assert arrival.json["run_id"] == waits
    arrival.answer(200, {})
    await quiet(world)


async def test_a_child_of_a_run_that_has_left_does_not_begin_there(world: World, one: Node) -> None:
    """Nothing of its parent goes on where that once began."""
    a, b = await two(world, one, {"name": "flow", "kind": "workflow", "sticky": "soft", "tasks": PAIR}, {"name": "child", "sticky": "hard"})
    parent = await one.trigger("flow")
    first, here, there = await begun_at(a, b, parent)
    ends = {"a": a, "b": b}
    await patch(one, here, draining=True)
    first.answer(200, 1)
    last = await ends[there].next()
    assert await left(one, here) == ("drained", 0)
    child = await one.trigger("child", parent_run_id=parent, sticky=True)
    arrival = await ends[there].next()
    assert arrival.json["run_id"] == child
    for one_of_them in (arrival, last):
        one_of_them.answer(200, 1)
    assert (await finished(one, parent))["status"] == "succeeded"
    assert await left(one, here) == ("drained", 0)


async def test_what_was_to_go_on_at_one_that_is_gone_hears_of_it_where_another_is_drained_no_more(world: World, one: Node) -> None:
    handler = entry("order", concurrency=[SHARED])
    a = await durable_endpoint(world, one, handler, name="a")
    run_id = await asleep(world, one, a)
    b = await durable_endpoint(world, one, handler, name="b")
    await patch(one, "b", draining=True)
    await one.call("DELETE", "/v1/endpoints/a?force=true")
    await world.advance(2 * SECOND)
    await look(one)
    assert any("b: it is drained" in message for message in await why(one, run_id))
    assert await left(one, "b") == ("drained", 0)
    await patch(one, "b", draining=False)
    await look(one)
    assert (await world.task(run_id, state="blocked"))["pin_endpoint"] is not None
    assert b.waiting == 0


async def test_it_goes_on_there_where_the_database_says_so(world: World, one: Node) -> None:
    await world.endpoint(one, [{"name": "task"}], name="a")
    directory = one.runtime.services.directory
    (place,) = ((row["tenant_id"], row["id"]) for row in await world.database.fetch("select tenant_id, id from endpoints"))
    for draining, paused, circuit in product((False, True), (False, True), ("closed", "open", "retired")):
        await world.database.execute(ENDPOINT, draining, paused, circuit, world.clock.now())
        await directory.refresh(world.clock.now())
        said = await world.database.fetchval("select goes_on_at($1, $2)", *place)
        assert (said, said) == (directory.goes_on(*place), draining and not paused and circuit != "retired")
    assert not await world.database.fetchval("select goes_on_at($1, 'ep_gone')", place[0])
    assert not directory.goes_on(place[0], "ep_gone")
    assert not directory.goes_on(place[0], None)


async def _waiting(world: World, node: Node, runs: Sequence[str]) -> None:
    await look(node)
    for run_id in runs:
        assert (await world.task(run_id))["state"] in ("queued", "gated")


async def test_what_waits_for_it_keeps_no_place_of_a_limit_that_others_share(world: World, one: Node) -> None:
    a = await world.endpoint(one, [limited(SHARED), limited(SHARED, name="other")], name="a", slots=1)
    c = await world.endpoint(one, [limited(SHARED, name="other")], name="c")
    await patch(one, "c", paused=True)
    blocker = await one.trigger("other")
    held = await a.next()
    waiting = [await one.trigger("work") for _ in range(3)]
    await patch(one, "a", draining=True)
    await patch(one, "c", paused=False)
    held.answer(200, 1)
    await world.over(blocker)
    waiting.append(await one.trigger("work"))
    await _waiting(world, one, waiting)
    others = [await one.trigger("other") for _ in range(3)]
    assert await serve(c, others) == others
    assert any("a: it is drained" in message for message in await why(one, waiting[0]))
    await patch(one, "a", draining=False)
    assert await serve(a, waiting) == waiting
    await quiet(world)


async def test_what_asks_for_its_label_keeps_no_place_either(world: World, one: Node) -> None:
    gpu = {"labels": {"gpu": {"value": True, "required": True}}}
    a, b = await two(world, one, limited(SHARED))
    await patch(one, "a", labels={"gpu": True}, draining=True)
    waiting = [await one.trigger("work", **gpu) for _ in range(2)]
    await _waiting(world, one, waiting)
    others = [await one.trigger("work") for _ in range(3)]
    assert await serve(b, others) == others
    await patch(one, "a", draining=False)
    assert await serve(a, waiting) == waiting
    await quiet(world)


async def test_what_was_paused_goes_on_as_it_is_drained(world: World, one: Node) -> None:
    handler = entry("order", concurrency=[SHARED])
    a = await durable_endpoint(world, one, handler, name="a")
    run_id = await asleep(world, one, a)
    await patch(one, "a", paused=True)
    await world.advance(2 * SECOND)
    fresh = await one.trigger("order")
    await look(one)
    await look(one)
    assert a.waiting == 0
    await patch(one, "a", paused=False, draining=True)
    await look(one)
    turn = await a.next()
    assert turn.json["run_id"] == run_id
    done(turn)
    await drained(one)
    await look(one)
    assert a.waiting == 0
    await patch(one, "a", draining=False)
    turn = await a.next()
    assert turn.json["run_id"] == fresh
    done(turn)
    await quiet(world)


async def test_who_has_not_heard_of_it_sends_it_nothing_new(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither alone, nor a batch, nor is a run bound to it."""
    gathered = {"name": "gathered", "batch": {"max_size": 2, "interval": "1s"}}
    handlers: list[dict[str, Any]] = [{"name": "work"}, gathered, {"name": "stuck", "sticky": "hard"}]
    a = await world.discovered(one, manifest(handlers, "batch", "ndjson"), name="a")
    await patch(one, "a", paused=True)
    runs = [await one.trigger(name) for name in ("work", "work", "gathered", "gathered")]
    await patch(one, "a", labels={"x": 1})

    async def nothing_new(*_: object) -> None:
        """What is known stays what it was."""

    monkeypatch.setattr(Directory, "refresh", nothing_new)
    open_again = "update endpoints set paused = false, draining = true where name = 'a'"
    await world.database.execute(open_again)
    directory = one.runtime.services.directory
    for tenant_id, picture in directory.pictures.items():
        endpoints = {key: replace(endpoint, open=True, there=True) for key, endpoint in picture.endpoints.items()}
        directory.pictures[tenant_id] = replace(picture, endpoints=endpoints, found={})
    directory.on_change()
    await world.advance(2 * SECOND)
    await one.turn("claim", "batches", "claim", "batches")
    assert a.waiting == 0
    for run_id in runs:
        assert (await world.task(run_id))["state"] == "queued"


@pytest.mark.parametrize(("late", "sticky"), [("given up", "hard"), ("waits", None)])
async def test_what_it_could_take_and_has_not_is_given_up_in_time(world: World, one: Node, late: str, sticky: str | None) -> None:
    more: dict[str, Any] = {"sticky": sticky} if sticky else {}
    a = await world.endpoint(one, [{"name": "work", "schedule_timeout": "1m", "execution_timeout": "1h", **more}], name="a", slots=1)
    await one.trigger("work")
    kept = await a.next()
    run_id = await one.trigger("work")
    await patch(one, "a", draining=True)
    await world.advance(timedelta(minutes=2))
    if late == "given up":
        assert (await world.over(run_id))["error"]["code"] == "schedule_timeout"
    else:
        await look(one)
        assert (await world.task(run_id))["state"] == "queued"
    kept.answer(200, 1)


@pytest.mark.parametrize(("body", "said"), [({}, "draining"), ({"draining": "yes"}, "draining"), ({"draining": 1}, "draining")])
async def test_what_is_no_change_is_refused(world: World, one: Node, body: dict[str, Any], said: str) -> None:
    await world.endpoint(one, [{"name": "work"}], name="a")
    refused = await one.call("PATCH", "/v1/endpoints/a", body, expect=400)
    assert refused["code"] == "invalid_value"
    assert said in refused["detail"]
    assert await left(one) == ("healthy", None)


async def test_who_registers_it_again_leaves_it_draining(world: World, one: Node) -> None:
    a = await world.endpoint(one, [{"name": "work"}], name="a")
    await patch(one, "a", draining=True)
    await one.call("PUT", "/v1/endpoints/a", {"url": a.url, "handlers": [{"name": "work"}, {"name": "more"}]})
    assert await left(one) == ("drained", 0)


async def test_what_is_drained_while_somebody_looks_is_looked_at_again(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that began before does not put off the next, however long its workflow has been closed."""
    a = await durable_endpoint(world, one, entry("order", concurrency=[SHARED]), name="a")
    run_id = await asleep(world, one, a)
    await patch(one, "a", paused=True)
    await world.advance(timedelta(minutes=10))
    await look(one)
    assert (await world.task(run_id))["gate_wait"] is None
    let_back, began = asides.let_back, asyncio.Event()

    async def drained_meanwhile(database: Database, workflow: asides.Aside, limit: int) -> asides.Moved:
        moved = await let_back(database, workflow, limit)
        if not began.is_set():
            began.set()
            await patch(one, "a", paused=False, draining=True)
        return moved

    monkeypatch.setattr(asides, "let_back", drained_meanwhile)
    await world.advance(timedelta(minutes=10))
    await began.wait()
    await look(one)
    turn = await a.next()
    assert turn.json["run_id"] == run_id
    done(turn)
    await drained(one)
