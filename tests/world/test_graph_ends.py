"""How runs of graphs end: the tasks that come last, cancels, timeouts, versions, and graphs of a size nobody draws."""

from __future__ import annotations

from typing import Any

from tests.world.graph_runs import (
    answer,
    fails,
    finished,
    gives,
    graph,
    look,
    moved,
    nothing_is_left,
    seen,
    settled,
    statuses,
    task,
)
from tests.world.world import Node, World

LAST: dict[str, Any] = {"on_failure": {"name": "mend"}, "on_success": {"name": "cheer"}}
BRANCHES = ({"name": "top"}, {"name": "left", "parents": ["top"]}, {"name": "right", "parents": ["top"]})


async def test_the_task_after_success(world: World, one: Node) -> None:
    endpoint = await graph(world, one, *BRANCHES, **LAST)
    run = await finished(one, await one.trigger("flow"))
    assert (run["status"], statuses(run)["cheer"], statuses(run)["mend"]) == ("succeeded", "succeeded", "skipped")
    assert task(run, "mend")["reason"] == "no task failed"
    assert set(endpoint.seen[-1].json["parents"]) == {"top", "left", "right"}
    assert set(run["output"]) == {"top", "left", "right", "cheer"}
    await nothing_is_left(world)


async def test_the_task_after_the_first_failure_does_not_wait_for_the_others(world: World, one: Node) -> None:
    endpoint = await graph(world, one, *BRANCHES, **LAST)
    endpoint.way = None
    run_id = await one.trigger("flow")
    (await endpoint.next()).answer(200, {"n": 1})
    branches = {arrival.json["name"]: arrival for arrival in [await endpoint.next(), await endpoint.next()]}
    branches["flow:left"].answer(422, {"detail": "broken"})
    mend = await endpoint.next()
    assert mend.json["name"] == "flow:mend"
    assert set(mend.json["errors"]) == {"left"}
    assert mend.json["parents"]["top"] == {"status": "succeeded", "output": {"n": 1}}
    mend.answer(200, {"mended": True})
    await settled(one, run_id, mend="succeeded", right="running", cheer="pending")
    branches["flow:right"].answer(422, {"detail": "broken too"})
    run = await finished(one, run_id)
    assert (run["status"], statuses(run)["cheer"], seen(endpoint).count("mend")) == ("failed", "skipped", 1)
    assert run["output"] == {"top": {"n": 1}, "mend": {"mended": True}}
    await nothing_is_left(world)


async def test_a_failure_that_is_retried_is_none(world: World, one: Node) -> None:
    endpoint = await graph(world, one, {"name": "flaky", "retries": 2, "backoff_factor": 2}, **LAST)
    answer(endpoint, flaky=lambda arrival: arrival.answer(200 if arrival.json["attempt"] == 3 else 500, {}))
    run_id = await one.trigger("flow")
    for attempt, seconds in ((1, 2), (2, 4)):
        await world.attempts(run_id, attempt)
        await settled(one, run_id, flaky="pending_retry", mend="pending")
        await moved(world, seconds=seconds)
    assert statuses(await finished(one, run_id)) == {"flaky": "succeeded", "mend": "skipped", "cheer": "succeeded"}


async def test_the_task_after_success_may_fail_like_any_other(world: World, one: Node) -> None:
    endpoint = await graph(world, one, {"name": "only"}, **LAST)
    answer(endpoint, cheer=fails)
    run = await finished(one, await one.trigger("flow"))
    assert (run["status"], statuses(run)) == ("failed", {"only": "succeeded", "mend": "succeeded", "cheer": "failed"})


async def test_the_task_after_a_failure_may_fail_too(world: World, one: Node) -> None:
    endpoint = await graph(world, one, {"name": "only"}, **LAST)
    answer(endpoint, only=fails, mend=fails)
    run = await finished(one, await one.trigger("flow"))
    assert (run["status"], seen(endpoint)) == ("failed", ["only", "mend"])


async def test_a_task_that_is_not_scheduled_in_time_is_cancelled_and_what_comes_after_it(world: World, one: Node) -> None:
    """A timeout of the queue is no failure: nobody mends anything."""
    tasks = ({"name": "late", "schedule_timeout": "5m", "execution_timeout": "1h"}, {"name": "after", "parents": ["late"]})
    await graph(world, one, {"name": "blocker"}, name="other")
    endpoint = await graph(world, one, *tasks, **LAST)
    await one.call("PUT", "/v1/endpoints/flow", {"url": endpoint.url, "slots": 1, "handlers": _entries(tasks)})
    await one.turn("slots")  # it had more
    endpoint.way = None
    first, second = [await one.trigger("flow"), await one.trigger("flow")]
    blocking = await endpoint.next()  # it keeps the only slot
    waiting = second if blocking.json["run_id"] == first else first
    await settled(one, waiting, late="queued")
    await moved(world, minutes=5)
    run = await finished(one, waiting)
    assert (run["status"], statuses(run)) == (
        "cancelled",
        {"late": "cancelled", "after": "cancelled", "mend": "skipped", "cheer": "skipped"},
    )
    assert task(run, "late")["error"]["code"] == "schedule_timeout"


def _entries(tasks: Any) -> list[dict[str, Any]]:
    envelopes = [{"body": "v1", **one} for one in tasks]
    last = {name: {"body": "v1", **one} for name, one in LAST.items()}
    return [{"name": "flow", "kind": "workflow", "tasks": envelopes, **last}]


async def test_cancelling_reaches_every_task_and_starts_nothing(world: World, one: Node) -> None:
    endpoint = await graph(world, one, *BRANCHES, {"name": "end", "parents": ["left", "right"]}, **LAST)
    endpoint.way = None
    run_id = await one.trigger("flow")
    (await endpoint.next()).answer(200, {})
    branches = [await endpoint.next(), await endpoint.next()]
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    for branch in branches:
        await branch.gone()
    run = await finished(one, run_id)
    assert run["status"] == "cancelled"
    assert statuses(run) == {
        "top": "succeeded", "left": "cancelled", "right": "cancelled", "end": "cancelled", "mend": "skipped", "cheer": "skipped",
    }  # fmt: skip
    assert run["output"] == {"top": {}}
    assert endpoint.waiting == 0
    await nothing_is_left(world)


async def test_a_run_goes_on_by_the_version_it_began_with(world: World, one: Node) -> None:
    endpoint = await graph(world, one, {"name": "a"}, {"name": "b", "parents": ["a"]})
    endpoint.way = None
    run_id = await one.trigger("flow")
    first = await endpoint.next()
    handlers = [{"name": "flow", "kind": "workflow", "tasks": [{"name": "a", "body": "v1"}, {"name": "c", "body": "v1", "parents": ["a"]}]}]
    await one.call("PUT", "/v1/endpoints/flow", {"url": endpoint.url, "handlers": handlers})
    answer(endpoint)
    newer = await finished(one, await one.trigger("flow"))
    first.answer(200, {})
    older = await finished(one, run_id)
    assert (list(statuses(older)), list(statuses(newer))) == (["a", "b"], ["a", "c"])
    assert (older["status"], newer["workflow_version"] - older["workflow_version"]) == ("succeeded", 1)


async def test_late_answers_of_what_was_replayed_are_refused(world: World, one: Node) -> None:
    endpoint = await graph(world, one, {"name": "a"}, {"name": "b", "parents": ["a"]})
    run_id = await one.trigger("flow")
    await finished(one, run_id)
    token = endpoint.seen[-1].json["token"]
    endpoint.way = None
    await one.call("POST", f"/v1/runs/{run_id}/replay", {"task": "b"})
    again = await endpoint.next()
    assert (again.json["name"], again.json["attempt"], again.json["retry_count"]) == ("flow:b", 2, 1)
    assert again.json["parents"] == {"a": {"status": "succeeded", "output": {"from": "a"}}}
    late = await one.callback(token, {"type": "done", "output": {"late": True}}, expect=409)
    assert late["code"] == "stale_attempt"
    again.answer(200, {"new": True})
    run = await finished(one, run_id)
    assert (run["output"]["b"], seen(endpoint)) == ({"new": True}, ["a", "b", "b"])


# ---- size ------------------------------------------------------------------------------------------------------------------------


async def test_two_hundred_parents(world: World, one: Node) -> None:
    names = [f"m{n}" for n in range(200)]
    between = [{"name": name, "parents": ["top"]} for name in names]
    tasks: list[dict[str, Any]] = [{"name": "top"}, *between, {"name": "last", "parents": names}]
    endpoint = await graph(world, one, *tasks)
    answer(endpoint, **{name: gives({"n": n}) for n, name in enumerate(names)})
    run = await finished(one, await one.trigger("flow"))
    assert run["status"] == "succeeded"
    last = endpoint.seen[-1].json
    assert (last["name"], len(endpoint.seen)) == ("flow:last", 202)
    assert last["parents"] == {name: {"status": "succeeded", "output": {"n": n}} for n, name in enumerate(names)}


async def test_a_thousand_tasks(world: World, one: Node) -> None:
    """Ten chains of a hundred, one of which fails in the middle."""
    tasks = [{"name": f"c{c}.{n}", "parents": [f"c{c}.{n - 1}"] if n else []} for c in range(10) for n in range(100)]
    endpoint = await graph(world, one, *tasks)
    answer(endpoint, **{"c3.50": fails})
    run_id = await one.trigger("flow")
    run = {"finished_at": None}
    while run["finished_at"] is None:
        run = await look(one, run_id)
    found = statuses(run)
    assert [list(found.values()).count(status) for status in ("succeeded", "failed", "cancelled")] == [950, 1, 49]
    assert len(endpoint.seen) == 951
    await nothing_is_left(world)


async def test_too_many_tasks_are_refused(world: World, one: Node) -> None:
    endpoint = await world.listen()
    handlers = [{"name": "flow", "kind": "workflow", "tasks": [{"name": f"t{n}"} for n in range(2_001)]}]
    problem = await one.call("PUT", "/v1/endpoints/flow", {"url": endpoint.url, "handlers": handlers}, expect=400)
    assert "at most 2,000 tasks" in problem["detail"]


async def test_cancelling_a_graph_reaches_the_runs_its_tasks_started(world: World, one: Node) -> None:
    endpoint = await graph(world, one, *BRANCHES)
    child = await world.endpoint(one, [{"name": "child"}], name="child")
    endpoint.way = None
    run_id = await one.trigger("flow")
    spawning = await endpoint.next()
    child_id = await one.trigger("child", parent_run_id=run_id)
    started = await child.next()
    await one.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    await spawning.gone()
    assert (await finished(one, run_id))["children"] == [child_id]
    await one.turn("waits")
    await started.gone()
    run = await finished(one, child_id)
    assert (run["status"], run["parent_run_id"]) == ("cancelled", run_id)


async def test_a_failure_leaves_the_runs_its_task_started_alone(world: World, one: Node) -> None:
    endpoint = await graph(world, one, {"name": "only"})
    child = await world.endpoint(one, [{"name": "child"}], name="child")
    endpoint.way = None
    run_id = await one.trigger("flow")
    spawning = await endpoint.next()
    child_id = await one.trigger("child", parent_run_id=run_id)
    started = await child.next()
    spawning.answer(422, {})
    assert (await finished(one, run_id))["status"] == "failed"
    await one.turn("waits")
    started.answer(200, {})
    assert (await finished(one, child_id))["status"] == "succeeded"
