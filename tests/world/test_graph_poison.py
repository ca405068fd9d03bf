"""Runs of graphs beside runs that cannot be moved along, dispatchers that end half way, conditions that cost what they may."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import pytest

from dispatcher.runtime import waits
from tests.world.graph_runs import answer, armed, finished, gives, graph, look, moved, nothing_is_left, pushed, settled, statuses
from tests.world.world import Node, World, until

COSTLY = "input.all(x, input.all(y, x + y < {}))"
CHAIN = ({"name": "a"}, {"name": "b", "parents": ["a"]})


def _deaf(node: Node) -> None:
    """Only the loop moves runs along: no hint is heard."""
    node.runtime.services.intake.on_graphs = lambda _runs: None
    node.runtime.services.settlement.on_task_over = lambda _runs: None


async def _loop_until_over(node: Node, run_id: str) -> None:
    async def over() -> bool:
        await node.turn("graphs", "claim")
        return bool((await look(node, run_id))["finished_at"])

    await until(over)


async def test_a_run_that_cannot_be_moved_along_stalls_no_other(world: World, one: Node) -> None:
    await graph(world, one, *CHAIN)
    _deaf(one)
    broken, sound = await one.trigger("flow"), await one.trigger("flow")
    await world.database.execute("update runs set workflow_version = 99 where id = $1", broken)
    await _loop_until_over(one, sound)
    await world.database.execute("update runs set workflow_version = 1 where id = $1", broken)
    await moved(world, minutes=2)
    await _loop_until_over(one, broken)
    assert (await finished(one, broken))["status"] == (await finished(one, sound))["status"] == "succeeded"
    await nothing_is_left(world)


async def test_a_cancel_is_carried_through_though_its_dispatcher_ends_half_way(world: World, one: Node) -> None:
    """The run is marked and its rules have been asked, but nobody has told its tasks."""
    endpoint = await graph(world, one, {"name": "a"}, {"name": "b"})
    endpoint.way = None
    run_id = await one.trigger("flow")
    for _ in range(2):
        await endpoint.next()
    stop, one.runtime.graphs.on_stop = one.runtime.graphs.on_stop, lambda _run, _reason: None
    await world.database.execute("update runs set cancel_reason = 'enough', revision = revision + 1, advance_at = $1", world.now)
    await one.turn("graphs")
    one.runtime.graphs.on_stop = stop
    await settled(one, run_id, a="running", b="running")
    await moved(world, seconds=10)
    run = await finished(one, run_id)
    assert (run["status"], statuses(run)) == ("cancelled", {"a": "cancelled", "b": "cancelled"})
    await nothing_is_left(world)


async def test_a_condition_that_cannot_be_asked_is_told_of_once_however_often_the_run_moves(world: World, one: Node) -> None:
    """What a parent has given does not change while a task waits for something else."""
    typo = [{"parent": "a", "expression": "output.nothing > 1"}]
    waits = {"name": "w", "parents": ["a"], "wait_for": [{"sleep": "1h"}], "skip_if": typo}
    others = [{"name": f"s{n}", "parents": [f"s{n - 1}"] if n else []} for n in range(5)]
    endpoint = await graph(world, one, {"name": "a"}, waits, *others)
    answer(endpoint, a=gives({"n": 1}))
    run_id = await one.trigger("flow")
    await settled(one, run_id, s4="succeeded")
    await armed(one, run_id, "w")
    lines = (await one.call("GET", f"/v1/runs/{run_id}/logs"))["rows"]
    assert len([line for line in lines if "output.nothing" in line["message"]]) == 1


async def test_costly_conditions_leave_others_their_turn(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait for an event, whoever renews leases on the same loop is never kept waiting for all of their expressions."""
    conditions = [{"event": "go", "expression": COSTLY.format(n)} for n in range(40)]
    await graph(world, one, {"name": "w", "wait_for": [{"or": conditions}]}, {"name": "x", "wait_for": [{"or": conditions}]})
    run_id = await one.trigger("flow")
    await armed(one, run_id, "w", "x")
    await one.turn("waits")  # what was there before them has been looked for
    turns, seen, clock = itertools.count(), list[int](), itertools.count()
    monkeypatch.setattr(waits, "monotonic", lambda: next(clock) * 0.01)

    def expression(source: str) -> Any:
        def ask(**_given: object) -> bool:
            seen.append(turn[0])
            return source.endswith("< 39))")

        return ask

    turn = [next(turns)]
    monkeypatch.setattr(waits, "_expression", expression)

    async def beat() -> None:
        while True:
            turn[0] = next(turns)
            await asyncio.sleep(0)

    beating = asyncio.create_task(beat())
    await pushed(one, "go", [1] * 100)
    beating.cancel()
    assert len(seen) == 40  # each is asked once, though two wait with it
    assert max(Counter(seen).values()) <= 4
    assert (await finished(one, run_id))["status"] == "succeeded"


async def test_a_graph_whose_conditions_go_through_lists(world: World, one: Node) -> None:
    """They are asked beside the loop, and mean the same there."""
    big = [{"parent": "a", "expression": "output.xs.all(x, x < 3)"}]
    small = [{"parent": "a", "expression": "output.xs.exists(x, x > 5)"}]
    tasks: list[dict[str, Any]] = [
        {"name": "a"},
        {"name": "b", "parents": ["a"], "skip_if": big},
        {"name": "c", "parents": ["a"], "skip_if": small},
    ]
    answer(await graph(world, one, *tasks), a=gives({"xs": [1, 2]}))
    run = await finished(one, await one.trigger("flow"))
    assert statuses(run) == {"a": "succeeded", "b": "skipped", "c": "succeeded"}
