"""Runs of graphs beside runs that cannot be moved along, dispatchers that end half way, conditions that cost what they may."""

from __future__ import annotations

from tests.world.graph_runs import answer, armed, finished, gives, graph, look, moved, nothing_is_left, settled, statuses
from tests.world.world import Node, World, until

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
