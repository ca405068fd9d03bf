"""Conditions of tasks, whole: real Postgres, real requests, and a clock that is moved to the millisecond."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest

from handlers_sdk import ClientConfig, Dispatcher
from tests.examples.workflow_conditions import game
from tests.world.graph_runs import (
    answer,
    armed,
    fails,
    finished,
    gives,
    graph,
    look,
    moved,
    nothing_is_left,
    pushed,
    seen,
    settled,
    statuses,
    task,
)
from tests.world.world import START, Node, World, until

EVENT = [{"event": "go"}]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# ---- the example of the documents ------------------------------------------------------------------------------------------------


@pytest.fixture
async def node(world: World) -> Node:
    """A dispatcher the SDK can call."""
    return await world.served_node()


@pytest.fixture
async def playing(world: World, node: Node) -> AsyncIterator[str]:
    """A run of the example game, whose first task is over."""
    client = Dispatcher(ClientConfig(api_url=node.runtime.services.settings.base_url()))
    app = client.app(workflows=[game(client)], clock=lambda: int(world.now.timestamp()))
    await node.call("PUT", "/v1/endpoints/game", {"url": await world.serve(app)})
    run_id = await node.trigger("game")
    await armed(node, run_id, "rested", "called", "bonus")
    yield run_id
    await client.aio_close()


async def test_a_game_in_which_nothing_happens_but_time(world: World, node: Node, playing: str) -> None:
    """Ten seconds, thirty, sixty: to the millisecond."""
    run = await look(node, playing)
    assert moment(task(run, "rested")["waiting_for"][0]["sleep_until"]) == START + timedelta(seconds=10)
    await moved(world, seconds=9.999)
    assert statuses(await look(node, playing))["rested"] == "pending"
    await moved(world, milliseconds=1)
    run = await settled(node, playing, rested="succeeded")
    high = task(run, "rested")["output"]["n"] > 50
    run = await settled(node, playing, **{"low" if high else "high": "skipped", "high" if high else "low": "succeeded"})
    assert statuses(run)["bonus"] == "pending"
    await moved(world, seconds=20)
    run = await settled(node, playing, bonus="succeeded")
    assert statuses(run)["called"] == "pending"
    assert statuses(run)["total"] == "pending"
    await moved(world, seconds=30)
    run = await finished(node, playing)
    thrown = [one["output"]["n"] for one in run["tasks"] if one["status"] == "succeeded" and one["name"] != "total"]
    assert (run["status"], len(thrown), run["output"]["total"]) == ("succeeded", 5, {"points": sum(thrown)})
    await nothing_is_left(world)


async def test_a_game_with_events(world: World, node: Node, playing: str) -> None:
    await pushed(node, "game:next")
    run = await settled(node, playing, called="succeeded", bonus="pending")
    assert moment(task(run, "called")["started_at"]) == START
    await pushed(node, "game:enough")
    run = await settled(node, playing, bonus="skipped")
    assert task(run, "bonus")["reason"] == "its skip_if held"
    await moved(world, seconds=10)
    run = await finished(node, playing)
    assert (run["status"], run["output"]["bonus"]) == ("succeeded", {"skipped": True})
    assert [name for name, status in statuses(run).items() if status == "skipped"] in (["bonus", "low"], ["bonus", "high"])
    await nothing_is_left(world)


async def test_an_event_that_comes_when_the_wait_is_over_is_no_news(world: World, node: Node, playing: str) -> None:
    await moved(world, seconds=30)
    await settled(node, playing, bonus="succeeded", rested="succeeded")
    await pushed(node, "game:enough")
    await moved(world, seconds=30)
    assert statuses(await finished(node, playing))["bonus"] == "succeeded"


# ---- events ----------------------------------------------------------------------------------------------------------------------


async def test_what_came_before_the_parents_were_done_is_not_looked_back_for(world: World, one: Node) -> None:
    endpoint = await graph(world, one, {"name": "first"}, {"name": "then", "parents": ["first"], "wait_for": EVENT})
    endpoint.way = None
    run_id = await one.trigger("flow")
    arrival = await endpoint.next()
    await pushed(one, "go")
    await moved(world, seconds=1)
    answer(endpoint)
    arrival.answer(200, {})
    await armed(one, run_id, "then")
    for seconds in (1, 60, 3600):  # the wait looks back for events that were being written when it was registered
        await moved(world, seconds=seconds)
    assert statuses(await look(one, run_id)) == {"first": "succeeded", "then": "pending"}
    await pushed(one, "go")
    assert (await finished(one, run_id))["status"] == "succeeded"


async def test_conditions_count_from_when_the_parents_were_done_however_late_that_is_seen(world: World, one: Node) -> None:
    """Nobody looks at the run for a minute after its first task has ended: sleeps are no longer for it, and no event is missed."""
    rules = [{"name": "slept", "wait_for": [{"sleep": "90s"}]}, {"name": "told", "wait_for": EVENT}]
    endpoint = await graph(world, one, {"name": "first"}, *({**rule, "parents": ["first"]} for rule in rules))
    endpoint.way = None
    run_id = await one.trigger("flow")
    arrival = await endpoint.next()
    hint, one.runtime.services.settlement.on_task_over = one.runtime.services.settlement.on_task_over, lambda _runs: None
    answer(endpoint)
    arrival.answer(200, {})
    await settled(one, run_id, first="succeeded", told="pending")
    one.runtime.services.settlement.on_task_over = hint
    world.clock.advance(timedelta(seconds=1))
    await one.call("POST", "/v1/events", {"type": "go", "data": {}})
    world.clock.advance(timedelta(minutes=1))
    await one.turn("graphs")
    run = await armed(one, run_id, "slept")
    assert moment(task(run, "slept")["waiting_for"][0]["sleep_until"]) == START + timedelta(seconds=90)
    await one.turn("waits", "graphs")
    await settled(one, run_id, told="succeeded", slept="pending")


@pytest.mark.parametrize(
    ("expression", "data", "holds"),
    [
        ("input.n > 1", {"n": 2}, True),
        ("input.n > 1", {"n": 1}, False),
        ("input.n > 1", {}, False),
        ("input.n > 1", {"n": "2"}, False),
        ("input.n > 1", [1, 2], False),
        ("has(input.n)", {"n": None}, True),
        ("input.tags.exists(t, t == 'x')", {"tags": ["y", "x"]}, True),
    ],
)
async def test_events_are_chosen_by_expressions(world: World, one: Node, expression: str, data: object, holds: bool) -> None:
    await graph(world, one, {"name": "only", "wait_for": [{"event": "go", "expression": expression}]}, {"name": "beside"})
    run_id = await one.trigger("flow")
    await armed(one, run_id, "only")
    await pushed(one, "go", data)
    await settled(one, run_id, beside="succeeded", only="succeeded" if holds else "pending")


async def test_an_expression_that_errs_is_told_of_once(world: World, one: Node) -> None:
    """In the run's own log, however many events it is asked of; also for those that were there before the wait."""
    await graph(world, one, {"name": "only", "wait_for": [{"event": "go", "expression": "input.n > 1"}]}, {"name": "beside"})
    run_id = await one.trigger("flow")
    await armed(one, run_id, "only")
    unfit: list[Any] = [{}, {"n": "x"}, []]
    for data in unfit:
        await pushed(one, "go", data)

    async def lines() -> Any:
        return (await one.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]

    (line,) = await until(lines)
    assert line["level"] == "error"
    assert "the condition 'input.n > 1' cannot be asked of event evt_" in line["message"]
    await pushed(one, "go", {"n": 2})
    assert (await finished(one, run_id))["status"] == "succeeded"
    assert len(await lines()) == 1


async def test_scopes(world: World, one: Node) -> None:
    tasks = [{"name": "mine", "wait_for": [{"event": "go", "scope": "me"}]}, {"name": "any", "wait_for": [{"event": "go"}]}]
    await graph(world, one, *tasks)
    run_id = await one.trigger("flow")
    await armed(one, run_id, "mine", "any")
    await pushed(one, "go", scope="you")
    await settled(one, run_id, any="succeeded", mine="pending")
    await pushed(one, "go", scope="me")
    assert (await finished(one, run_id))["status"] == "succeeded"


async def test_one_event_for_many_runs_and_many_events_for_one(world: World, one: Node) -> None:
    await graph(world, one, {"name": "only", "wait_for": [{"event": "go", "expression": "input.n == 299"}]}, {"name": "beside"})
    ids = [row["id"] for row in (await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": "flow"}] * 50}))["rows"]]
    for run_id in ids:
        await armed(one, run_id, "only")
    await one.call("POST", "/v1/events/bulk", {"events": [{"type": "go", "data": {"n": n}} for n in range(300)]})
    await one.turn("waits", "waits", "graphs")
    for run_id in ids:
        run = await finished(one, run_id)
        assert [len(one["attempts"]) for one in run["tasks"]] == [1, 1]
    await nothing_is_left(world)


# ---- rules together --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "c"), list(product((False, True), repeat=3)))
async def test_a_or_b_and_a_or_c(world: World, one: Node, a: bool, b: bool, c: bool) -> None:
    """A is an output above 50, B a sleep of half a minute, C an event."""
    output = {"parent": "top", "expression": "output.n > 50"}
    rule = [{"or": [output, {"sleep": "30s"}]}, {"or": [output, {"event": "paid"}]}]
    endpoint = await graph(world, one, {"name": "top"}, {"name": "gated", "parents": ["top"], "wait_for": rule})
    answer(endpoint, top=gives({"n": 51 if a else 50}))
    run_id = await one.trigger("flow")
    if not a:
        run = await armed(one, run_id, "gated")
        assert [set(group) for group in task(run, "gated")["waiting_for"]] == [{"sleep_until"}, {"event"}]
        if c:
            await pushed(one, "paid")
        if b:
            await moved(world, seconds=30)
    if a or (b and c):
        assert (await finished(one, run_id))["status"] == "succeeded"
        await nothing_is_left(world)
        return
    run = await settled(one, run_id, gated="pending")
    assert [set(group) for group in task(run, "gated")["waiting_for"]] == [{"sleep_until"}] * (not b) + [{"event"}] * (not c)


@pytest.mark.parametrize("first", ["skip", "stop", "go"])
async def test_what_comes_first_decides(world: World, one: Node, first: str) -> None:
    rules = {"wait_for": [{"event": "go"}], "skip_if": [{"event": "skip"}], "cancel_if": [{"event": "stop"}]}
    await graph(world, one, {"name": "gated", **rules}, {"name": "after", "parents": ["gated"]}, {"name": "beside"})
    run_id = await one.trigger("flow")
    run = await armed(one, run_id, "gated")
    assert (task(run, "gated")["skipped_by"], task(run, "gated")["cancelled_by"]) == ([{"event": "skip"}], [{"event": "stop"}])
    for key in (first, "skip", "stop", "go"):
        await pushed(one, key)
    run = await finished(one, run_id)
    then = {"skip": "skipped", "stop": "cancelled", "go": "succeeded"}[first]
    assert statuses(run) == {"gated": then, "after": then, "beside": "succeeded"}
    assert run["status"] == ("cancelled" if first == "stop" else "succeeded")
    await nothing_is_left(world)


async def test_all_of_skip_if_must_hold(world: World, one: Node) -> None:
    rules = {"wait_for": [{"sleep": "1m"}], "skip_if": [{"event": "a"}, {"event": "b"}]}
    await graph(world, one, {"name": "gated", **rules}, {"name": "beside"})
    run_id = await one.trigger("flow")
    await armed(one, run_id, "gated")
    await pushed(one, "b")
    run = await settled(one, run_id, gated="pending")
    assert task(run, "gated")["skipped_by"] == [{"event": "a"}]
    await pushed(one, "a")
    assert statuses(await finished(one, run_id)) == {"gated": "skipped", "beside": "succeeded"}


async def test_a_failed_parent_beats_everything(world: World, one: Node) -> None:
    """Whatever the task's own conditions say: they are not even registered."""
    rules = {"wait_for": EVENT, "skip_if": [{"parent": "fine", "expression": "true"}]}
    endpoint = await graph(world, one, {"name": "bad"}, {"name": "fine"}, {"name": "gated", "parents": ["bad", "fine"], **rules})
    answer(endpoint, bad=fails)
    run = await finished(one, await one.trigger("flow"))
    assert (run["status"], statuses(run)["gated"]) == ("failed", "cancelled")
    assert await world.database.fetchval("select count(*) from waits") == 0


async def test_a_wait_that_nothing_can_end_is_cancelled(world: World, one: Node) -> None:
    typo = [{"parent": "top", "expression": "output.nn > 1"}]
    await graph(world, one, {"name": "top"}, {"name": "gated", "parents": ["top"], "wait_for": typo})
    run = await finished(one, await one.trigger("flow"))
    assert (run["status"], statuses(run)["gated"]) == ("cancelled", "cancelled")
    assert task(run, "gated")["reason"].startswith("its wait_for can never hold")
    (line,) = (await one.call("GET", f"/v1/runs/{run['id']}/logs"))["rows"]
    assert (line["level"], "output.nn > 1" in line["message"]) == ("error", True)


@pytest.mark.parametrize("output", [None, 7, "text", [1], {}, {"n": None}])
async def test_outputs_that_are_not_what_conditions_expect(world: World, one: Node, output: Any) -> None:
    asks = [{"parent": "top", "expression": "output.n > 1"}]
    endpoint = await graph(
        world,
        one,
        {"name": "top"},
        {"name": "a", "parents": ["top"], "skip_if": asks},
        {"name": "b", "parents": ["top"], "cancel_if": asks},
    )
    answer(endpoint, top=gives(output))
    run = await finished(one, await one.trigger("flow"))
    assert statuses(run) == {"top": "succeeded", "a": "succeeded", "b": "succeeded"}
    given = next(arrival.json for arrival in endpoint.seen if arrival.json["name"] == "flow:a")["parents"]
    assert given == {"top": {"status": "succeeded", "output": output}}


async def test_an_answer_without_a_body(world: World, one: Node) -> None:
    """There is no output a condition could ask, and null for those that come after."""
    asks = [{"parent": "top", "expression": "output == null"}]
    endpoint = await graph(
        world, one, {"name": "top"}, {"name": "then", "parents": ["top"]}, {"name": "if", "parents": ["top"], "skip_if": asks}
    )
    answer(endpoint, top=lambda arrival: arrival.answer(204))
    run = await finished(one, await one.trigger("flow"))
    assert run["status"] == "succeeded"
    given = next(arrival.json for arrival in endpoint.seen if arrival.json["name"] == "flow:then")["parents"]
    assert given == {"top": {"status": "succeeded", "output": None}}


async def test_cancelling_a_run_that_waits(world: World, one: Node) -> None:
    endpoint = await graph(
        world, one, {"name": "gated", "wait_for": EVENT}, {"name": "after", "parents": ["gated"]}, on_failure={"name": "mend"}
    )
    run_id = await one.trigger("flow")
    await armed(one, run_id, "gated")
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    run = await finished(one, run_id)
    assert (run["status"], statuses(run)) == ("cancelled", {"gated": "cancelled", "after": "cancelled", "mend": "skipped"})
    await pushed(one, "go")
    assert seen(endpoint) == []
    await nothing_is_left(world)


async def test_waits_outlive_their_dispatcher(world: World, one: Node) -> None:
    await graph(world, one, {"name": "a", "wait_for": [{"sleep": "1h"}]}, {"name": "b", "wait_for": EVENT})
    two = await world.node("two")
    for node in (one, two):
        await node.turn("slots")
    run_id = await one.trigger("flow")
    await armed(one, run_id, "a", "b")
    await world.crash(one)
    await moved(world, hours=1)
    await settled(two, run_id, a="succeeded", b="pending")
    await pushed(two, "go")
    assert (await finished(two, run_id))["status"] == "succeeded"
