"""What autoscalers read: the counts equal a count by hand."""

from __future__ import annotations

from datetime import timedelta

from tests.world.world import Node, World

USERS = {"name": "mail", "concurrency": [{"expression": "input.user", "max_runs": 1}]}
GRAPH = {
    "name": "order",
    "kind": "workflow",
    "tasks": [{"name": "pay"}, {"name": "ship", "parents": ["pay"]}],
    "on_failure": {"name": "sorry"},
}


async def test_tasks_are_counted_by_name_state_and_group(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [USERS, {"name": "plain"}, GRAPH], slots=3)
    began = world.now
    for user in ("ann", "ann", "ann", "bob"):
        await one.trigger("mail", input={"user": user})
    assert {(await endpoint.next()).json["input"]["user"] for _ in range(2)} == {"ann", "bob"}
    await one.trigger("order")
    assert (await endpoint.next()).json["name"] == "order:pay"
    world.clock.advance(timedelta(seconds=5))
    for _ in range(4):
        await one.trigger("plain")
    counted = await one.call("GET", "/v1/stats/tasks")
    assert set(counted) == {"mail", "plain", "order:pay"}
    mail, plain = counted["mail"], counted["plain"]
    assert (mail["queued"]["total"], mail["running"]["total"]) == (2, 2)
    by_user = {"expression": "input.user", "type": "GROUP_ROUND_ROBIN", "name": None}
    assert mail["queued"]["concurrency"] == [{**by_user, "keys": {"ann": 2}}]
    assert mail["running"]["concurrency"] == [{**by_user, "keys": {"ann": 1, "bob": 1}}]
    assert mail["queued"]["oldest"] == mail["running"]["oldest"] == began.isoformat().replace("+00:00", "Z")
    assert plain["queued"] == {
        "total": 4, "queues": {"plain": 4}, "concurrency": [], "oldest": world.now.isoformat().replace("+00:00", "Z"),
    }  # fmt: skip
    assert plain["running"] == {"total": 0, "oldest": None, "concurrency": []}


async def test_queues_show_what_waits_for_what(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [USERS, {"name": "plain", "retries": 1, "backoff_factor": 100}])
    failed = await one.trigger("plain")
    (await endpoint.next()).answer(500)
    await world.task(failed, state="scheduled")
    for _ in range(2):
        await one.trigger("mail", input={"user": "ann"})
    await endpoint.next()
    await one.call("PATCH", "/v1/workflows/plain", {"paused": True})
    await one.trigger("plain")
    rows = {row["workflow"]: row for row in (await one.call("GET", "/v1/stats/queues"))["rows"]}
    counts = {name: [row[state] for state in ("queued", "gated", "scheduled", "running", "waiting")] for name, row in rows.items()}
    assert counts == {"mail": [0, 1, 0, 1, 0], "plain": [1, 0, 1, 0, 0]}
    assert (rows["plain"]["paused"], rows["mail"]["paused"]) == (True, False)


async def test_nothing_to_count(world: World, one: Node) -> None:
    assert await one.call("GET", "/v1/stats/tasks") == {}
    await world.endpoint(one, [{"name": "plain"}])
    (row,) = (await one.call("GET", "/v1/stats/queues"))["rows"]
    assert (row["queued"], row["oldest"]) == (0, None)


async def test_since_when_the_oldest_waits_is_never_in_the_future(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "rate_limits": [{"static_key": "api"}]}])
    await one.call("PUT", "/v1/rate-limits/api", {"limit": 1, "duration": "hour"})
    began = world.now.isoformat().replace("+00:00", "Z")
    _, run_id = [await one.trigger("work") for _ in range(2)]
    await endpoint.next()
    await world.task(run_id, state="gated")
    world.clock.advance(timedelta(seconds=5))
    assert (await one.call("GET", "/v1/stats/tasks"))["work"]["queued"]["oldest"] == began
    (row,) = (await one.call("GET", "/v1/stats/queues"))["rows"]
    assert (row["gated"], row["oldest"]) == (1, began)


async def test_runs_that_stand_in_line_are_counted_where_their_workflow_is(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{**GRAPH, "concurrency": 1}])
    began = world.now.isoformat().replace("+00:00", "Z")
    for _ in range(3):
        await one.trigger("order")
    await endpoint.next()
    (row,) = (await one.call("GET", "/v1/stats/queues"))["rows"]
    assert (row["gated"], row["running"], row["oldest"]) == (2, 1, began)
