"""Rate limits: what may start in a window, exactly, whoever counts; and that what may not start is in nobody's way."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from dispatcher.clock import ManualClock
from dispatcher.store import gates, rate_limits, retention
from dispatcher.store.database import Database, DatabaseUnavailable
from tests.world.endpoint import Arrival, Endpoint
from tests.world.test_concurrency import GRR, counts, quiet
from tests.world.world import Node, World, until

MILLISECOND = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
STATIC = {"static_key": "api", "units": 1}
PER_USER = {"dynamic_key": "input.user", "units": 1, "limit": 2, "duration": "minute"}


def limited(*limits: dict[str, Any], name: str = "work", **fields: Any) -> dict[str, Any]:
    return {"name": name, "schedule_timeout": "2h", "execution_timeout": "1h", "rate_limits": list(limits), **fields}


async def put(node: Node, limit: int, duration: str = "MINUTE", key: str = "api") -> Any:
    return await node.call("PUT", f"/v1/rate-limits/{key}", {"limit": limit, "duration": duration})


async def parked(world: World, count: int) -> None:
    async def there() -> bool:
        return bool(count == await world.database.fetchval("select count(*) from tasks where parked_on is not null"))

    await until(there)


async def window(world: World, delta: timedelta = MINUTE) -> None:
    """Let a window pass."""
    world.clock.advance(delta)
    for node in world.nodes:
        await node.turn("rates", "claim")


def answering(endpoint: Endpoint, world: World) -> list[tuple[datetime, str]]:
    """Let every attempt succeed at once; when each came, and of which run it was."""
    seen: list[tuple[datetime, str]] = []

    def way(arrival: Arrival) -> None:
        seen.append((world.now, arrival.json["run_id"]))
        arrival.answer(200, 1)

    endpoint.way = way
    return seen


async def reached(seen: list[Any], count: int) -> None:
    async def there() -> bool:
        return len(seen) >= count

    await until(there)


async def test_a_static_limit_lets_so_many_start_in_a_window(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC)])
    seen = answering(endpoint, world)
    await put(one, 3)
    runs = [await one.trigger("work") for _ in range(8)]
    await reached(seen, 3)
    await parked(world, 5)
    assert sorted(run for _, run in seen) == runs[:3]
    for n in (6, 8):
        world.clock.advance(timedelta(seconds=59))
        await one.turn("rates", "claim")
        assert len(seen) == n - 3 if n == 6 else len(seen) == 6
        await window(world, SECOND)
        await reached(seen, n)
    await quiet_queue(world)
    assert sorted(run for _, run in seen) == runs


async def quiet_queue(world: World) -> None:
    async def nothing() -> bool:
        return not await world.database.fetchval("select count(*) from runs")

    await until(nothing)


async def test_ten_a_minute_over_three_windows_with_three_dispatchers(world: World) -> None:
    nodes = [await world.node(name) for name in ("one", "two", "three")]
    endpoint = await world.endpoint(nodes[0], [limited(STATIC)], slots=60)
    seen = answering(endpoint, world)
    await put(nodes[0], 10)
    for node in nodes:
        await node.runtime.services.directory.refresh(world.now)
        await node.turn("slots")
    await asyncio.gather(*(node.trigger("work") for node in nodes * 12))
    for n, left in ((10, 26), (20, 16), (30, 6)):
        await reached(seen, n)
        await parked(world, left)
        assert len(seen) == n
        await window(world)
    await reached(seen, 36)
    starts = sorted(at for at, _ in seen)
    assert [starts.count(at) for at in sorted(set(starts))] == [10, 10, 10, 6]
    assert len({run for _, run in seen}) == 36


async def test_a_dynamic_limit_is_made_by_its_use_and_shared_by_its_key(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(PER_USER), limited(PER_USER, name="other")])
    seen = answering(endpoint, world)
    for workflow, user in (("work", "u"), ("other", "u"), ("work", "u"), ("work", "v")):
        await one.trigger(workflow, input={"user": user})
    await reached(seen, 3)
    await parked(world, 1)
    listed = {row["key"]: row for row in (await one.call("GET", "/v1/rate-limits"))["rows"]}
    assert {key: (row["value"], row["limit"], row["dynamic"], row["waiting"]) for key, row in listed.items()} == {
        "u": (0, 2, True, True), "v": (1, 2, True, False),
    }  # fmt: skip
    await window(world)
    await reached(seen, 4)


async def test_units_and_limit_may_be_expressions(world: World, one: Node) -> None:
    limit = {"dynamic_key": "input.user", "units": "input.size", "limit": "input.most", "duration": "HOUR"}
    endpoint = await world.endpoint(one, [limited(limit)])
    seen = answering(endpoint, world)
    for size in (3, 3, 2):
        await one.trigger("work", input={"user": "u", "size": size, "most": 5})
    await reached(seen, 2)
    await parked(world, 1)
    refused = await one.call("POST", "/v1/runs", {"workflow": "work", "input": {"user": "u", "size": 6, "most": 5}}, expect=422)
    assert (refused["code"], "could never start" in refused["detail"]) == ("limit_failed", True)
    missing = await one.call("POST", "/v1/runs", {"workflow": "work", "input": {"size": 1, "most": 5}}, expect=422)
    assert missing["code"] == "limit_failed"


async def test_several_limits_are_all_or_nothing(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC, PER_USER)])
    seen = answering(endpoint, world)
    await put(one, 10)
    for _ in range(3):
        await one.trigger("work", input={"user": "u"})
    await reached(seen, 2)
    await parked(world, 1)
    assert (await one.call("GET", "/v1/rate-limits/api"))["value"] == 8


async def test_what_is_limited_does_not_block_what_is_not(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(PER_USER)], slots=2)
    seen = answering(endpoint, world)
    runs = [await one.trigger("work", input={"user": user}, priority=3 if user == "u" else 1) for user in "uuuuuuuuvw"]
    await reached(seen, 4)
    await parked(world, 6)
    assert {run for _, run in seen} == {*runs[:2], *runs[8:]}


async def test_lowering_clamps_and_raising_does_not_refill(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC)])
    seen = answering(endpoint, world)
    await put(one, 10)
    await one.trigger("work")
    await reached(seen, 1)
    assert (await put(one, 10))["value"] == 9
    assert (await put(one, 20))["value"] == 9
    assert (await put(one, 2))["value"] == 2
    assert (await put(one, 20))["value"] == 2
    changed = await put(one, 20, "hour")
    assert (changed["duration"], changed["value"]) == ("HOUR", 2)
    await window(world, timedelta(minutes=59))
    await one.trigger("work")
    await reached(seen, 2)
    assert (await one.call("GET", "/v1/rate-limits/api"))["value"] == 1
    await window(world, timedelta(minutes=2))
    await one.trigger("work")
    await reached(seen, 3)
    assert (await one.call("GET", "/v1/rate-limits/api"))["value"] == 19


async def test_a_limit_that_is_raised_or_deleted_lets_go(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({"static_key": "api", "units": 4})])
    seen = answering(endpoint, world)
    await put(one, 3, "YEAR")
    run_id = await one.trigger("work")
    await parked(world, 1)
    shown = await one.call("GET", f"/v1/runs/{run_id}")
    assert "it starts when that is raised" in shown["tasks"][0]["waiting_for"][0]["message"]
    await put(one, 5, "MINUTE")
    await window(world)
    await reached(seen, 1)
    await one.trigger("work")
    await parked(world, 1)
    await one.call("DELETE", "/v1/rate-limits/api")
    await one.turn("rates", "claim")
    await reached(seen, 2)
    await one.call("DELETE", "/v1/rate-limits/api", expect=404)
    await one.call("GET", "/v1/rate-limits/api", expect=404)
    assert (await one.call("GET", "/v1/rate-limits"))["rows"] == []
    await one.trigger("work")  # nothing limits it any more
    await reached(seen, 3)


async def test_a_retry_takes_units_again(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC, retries=3)])
    await put(one, 2)
    run_id = await one.trigger("work")
    for _ in range(2):
        (await endpoint.next()).answer(500, {"error": {"message": "no"}}, task_retry="true")
    await parked(world, 1)
    await window(world)
    third = await endpoint.next()
    assert third.json["attempt"] == 3  # being parked is no attempt
    third.answer(200, 1)
    over = await world.over(run_id)
    assert (over["status"], over["epoch"], over["app_retries"]) == ("succeeded", 3, 2)
    assert [row["number"] for row in await world.attempts(run_id, 3)] == [1, 2, 3]


async def test_what_was_not_sent_gives_its_units_back(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC)])
    await put(one, 5)
    await endpoint.stop()
    run_id = await one.trigger("work")
    await world.attempts(run_id, 1)

    async def full() -> bool:
        return bool(await world.database.fetchval("select value = 5 from rate_limits"))

    await until(full)


async def test_parked_tasks_expire_and_can_be_cancelled(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC, schedule_timeout="30s", concurrency=[GRR | {"max_runs": 9}])])
    seen = answering(endpoint, world)
    await put(one, 1, "HOUR")
    runs = [await one.trigger("work", input={"key": "a"}) for _ in range(3)]
    await reached(seen, 1)
    await parked(world, 2)
    await world.over(runs[0])
    assert await counts(world) == (2, 0)  # a parked task keeps its place in its group
    await one.call("POST", f"/v1/runs/{runs[1]}/cancel", {})
    await world.over(runs[1])
    await world.advance(31 * SECOND)
    expired = await world.over(runs[2])
    assert (expired["status"], expired["error"]["code"]) == ("cancelled", "schedule_timeout")
    await quiet(world)


async def test_a_restart_in_the_middle_of_a_window_forgets_nothing(world: World) -> None:
    one = await world.node("one", lease=15.0, heartbeat=3.0)
    endpoint = await world.endpoint(one, [limited(STATIC)])
    seen = answering(endpoint, world)
    await put(one, 2)
    runs = [await one.trigger("work") for _ in range(5)]
    await reached(seen, 2)
    await parked(world, 3)
    for _, run_id in seen:
        await world.over(run_id)  # what is not recorded when a dispatcher ends is done again
    await world.crash(one)
    two = await world.node("two", lease=15.0, heartbeat=3.0)
    for _ in range(20):
        world.clock.advance(SECOND)
        await two.turn("heartbeat", "reap", "slots", "rates", "claim")
    assert len(seen) == 2
    for n in (4, 5):
        for _ in range(60):
            world.clock.advance(SECOND)
            await two.turn("heartbeat", "rates", "claim")
            if len(seen) == n:
                break
        await reached(seen, n)
        await two.turn("claim")
        assert len(seen) == n
    assert sorted(run for _, run in seen) == runs


async def test_why_a_task_waits_for_a_limit(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC)])
    seen = answering(endpoint, world)
    await put(one, 1, "HOUR")
    runs = [await one.trigger("work") for _ in range(2)]
    await reached(seen, 1)
    await parked(world, 1)
    shown = await one.call("GET", f"/v1/runs/{runs[1]}")
    assert shown["status"] == "queued"
    (reason,) = shown["tasks"][0]["waiting_for"]
    assert (reason["kind"], reason["key"], reason["left"], reason["limit"]) == ("rate_limit", "api", 0, 1)
    assert reason["until"] == "2026-03-01T13:00:00Z"


async def test_tasks_of_a_graph_are_limited(world: World, one: Node) -> None:
    graph = {
        "name": "order", "kind": "workflow",
        "tasks": [{"name": "first", "body": "v1"}, {"name": "second", "body": "v1", "parents": ["first"], "rate_limits": [PER_USER]}],
    }  # fmt: skip
    endpoint = await world.listen()
    await one.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "slots": 10, "handlers": [graph]})
    seen: list[str] = []

    def way(arrival: Arrival) -> None:
        seen.append(arrival.json["name"])
        arrival.answer(200, 1)

    endpoint.way = way
    for _ in range(3):
        await one.trigger("order", input={"user": "u"})
    await reached(seen, 5)
    await parked(world, 1)
    await window(world)
    await reached(seen, 6)
    assert (seen.count("order:first"), seen.count("order:second")) == (3, 3)


@pytest.mark.parametrize(
    "body",
    [{"limit": 0}, {"limit": -1}, {"limit": "5"}, {"limit": 5, "duration": "FORTNIGHT"}, {}, {"limit": 5, "units": 1}, {"limit": 1.5}],
)
async def test_limits_that_cannot_be_meant_are_refused(one: Node, body: dict[str, Any]) -> None:
    await one.call("PUT", "/v1/rate-limits/api", body, expect=400)
    assert (await one.call("GET", "/v1/rate-limits"))["rows"] == []
    await one.call("PUT", f"/v1/rate-limits/{'k' * 600}", {"limit": 5}, expect=400)


async def test_a_clock_that_was_ahead_blocks_nothing_once_it_is_right_again(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC, schedule_timeout="48h")])
    seen = answering(endpoint, world)
    await put(one, 1)
    ahead = world.clock
    world.clock = ManualClock(world.now + timedelta(days=1))
    wrong = await world.node("wrong")
    for _ in range(2):
        await wrong.trigger("work")
    await parked(world, 1)
    await world.crash(wrong)
    world.clock = ahead
    await one.runtime.loops["maintenance"].stop()
    one.runtime.loops["maintenance"].start()
    await one.turn("maintenance")
    await window(world)
    await reached(seen, 2)


@pytest.mark.parametrize("module", [retention, rate_limits], ids=["before it looks", "as it looks"])
async def test_maintenance_that_takes_long_begins_no_window_again(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """Its moment is past by then, or it was stopped for a while, and windows have begun that are ahead of it and nobody else."""
    endpoint = await world.endpoint(one, [limited(STATIC)])
    seen, begun = answering(endpoint, world), asyncio.Event()
    await put(one, 1)
    name = "delete_expired" if module is retention else "rewind"
    work = getattr(module, name)

    async def long(*given: Any) -> None:
        monkeypatch.setattr(module, name, work)
        world.clock.advance(20 * MINUTE)
        await one.trigger("work")
        await reached(seen, 1)
        begun.set()
        await work(*given)

    monkeypatch.setattr(module, name, long)
    world.clock.advance(20 * MINUTE)
    await one.turn("maintenance")
    await begun.wait()
    await one.turn("maintenance")
    await one.trigger("work")
    await parked(world, 1)
    assert len(seen) == 1


async def test_those_that_wanted_more_than_a_dynamic_limit_are_let_go_when_it_is_raised(world: World, one: Node) -> None:
    own = {"dynamic_key": "'k'", "units": "input.units", "limit": "input.limit", "duration": "minute"}
    endpoint = await world.endpoint(one, [limited(own)])
    seen = answering(endpoint, world)
    await one.trigger("work", input={"units": 1, "limit": 5})
    await reached(seen, 1)
    large = await one.trigger("work", input={"units": 8, "limit": 8})
    await parked(world, 1)
    await one.trigger("work", input={"units": 1, "limit": 5})
    await reached(seen, 2)
    for _ in range(2):
        await window(world)
    await one.runtime.loops["maintenance"].stop()
    one.runtime.loops["maintenance"].start()
    await one.turn("maintenance")
    await one.trigger("work", input={"units": 1, "limit": 9})
    await reached(seen, 3)
    await window(world)
    await reached(seen, 4)
    assert seen[-1][1] == large


async def test_a_task_that_wants_many_units_is_not_overtaken_for_ever_by_those_that_want_few(world: World, one: Node) -> None:
    large = limited({"static_key": "api", "units": 10}, name="large")
    endpoint = await world.endpoint(one, [large, limited(STATIC, name="small")])
    seen = answering(endpoint, world)
    await put(one, 10)
    await one.trigger("small")
    await reached(seen, 1)
    run_id = await one.trigger("large")
    await parked(world, 1)
    world.clock.advance(MINUTE)
    for _ in range(12):  # these come at the very moment of the refill
        await one.trigger("small")
    await one.turn("rates", "claim")
    await reached(seen, 2)
    await parked(world, 12)
    assert seen[-1][1] == run_id
    world.clock.advance(SECOND)
    await one.turn("rates", "claim")
    await parked(world, 12)
    await window(world)
    await reached(seen, 12)


async def test_those_that_come_after_the_refill_take_what_is_left_of_it(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC)])
    seen = answering(endpoint, world)
    await put(one, 3)
    for _ in range(4):
        await one.trigger("work")
    await reached(seen, 3)
    await parked(world, 1)
    await window(world)
    await reached(seen, 4)
    await one.trigger("work")
    world.clock.advance(SECOND)
    await one.turn("rates", "claim")
    await reached(seen, 5)
    await one.trigger("work")
    await reached(seen, 6)


async def crowded(world: World, one: Node, units: int) -> tuple[list[str], str, Node]:
    """A limit of ten that is used up; then one that wants so many, then many that want one each, which run at another dispatcher.

    Answers the workflows of those that start from now on, the run that wants many, and the other dispatcher.
    """
    two = await world.node("two")
    large = limited({"static_key": "api", "units": units}, name="large")
    one_by_one, endpoint = (
        await world.endpoint(one, [large], name="one", slots=1),
        await world.endpoint(one, [limited(STATIC, name="small")]),
    )
    for node in world.nodes:
        await node.turn("registry", "slots")
    for node in world.nodes:
        await node.turn("slots")
    started: list[str] = []

    def way(arrival: Arrival) -> None:
        started.append(arrival.json["workflow"])
        arrival.answer(200, 1)

    one_by_one.way = endpoint.way = way
    await put(one, 10)
    for _ in range(10):
        await two.trigger("small")
    await reached(started, 10)
    world.clock.advance(MILLISECOND)
    run_id = await one.trigger("large")
    await parked(world, 1)
    world.clock.advance(MILLISECOND)  # ids made at one moment are in no order
    for _ in range(30):
        await two.trigger("small")
    await parked(world, 31)
    started.clear()
    return started, run_id, two


async def test_those_behind_one_that_wants_many_units_are_let_go_after_it_whoever_is_asked_first(world: World, one: Node) -> None:
    started, _, two = await crowded(world, one, 10)
    world.clock.advance(MINUTE)
    await two.turn("rates")
    await two.turn("claim")  # who wants little is at the bucket first, if it may
    await one.turn("claim")
    await reached(started, 1)
    assert started == ["large"]
    await window(world)
    await reached(started, 11)
    await parked(world, 20)
    assert started[1:] == ["small"] * 10


async def test_what_is_left_beside_it_is_for_those_it_is_enough_for(world: World, one: Node) -> None:
    started, _, two = await crowded(world, one, 8)
    world.clock.advance(MILLISECOND)
    second = await one.trigger("large")
    await parked(world, 32)
    world.clock.advance(MINUTE)
    await two.turn("rates")
    await two.turn("claim")
    await one.turn("claim")
    await reached(started, 3)
    assert sorted(started) == ["large", "small", "small"]
    await window(world)
    await reached(started, 13)
    await window(world)
    await reached(started, 23)
    await window(world)
    await reached(started, 31)
    await parked(world, 1)
    assert started[3:] == ["small"] * 28, "those that came before the second"
    await window(world)
    await reached(started, 32)
    assert (await world.over(second))["status"] == "succeeded"


async def test_one_that_wants_more_than_is_left_does_not_keep_it_from_those_behind_it(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited({"static_key": "api", "units": 6}, name="large"), limited(STATIC, name="small")])
    seen = answering(endpoint, world)
    await put(one, 10)
    await one.trigger("large")
    await reached(seen, 1)
    for _ in range(2):
        world.clock.advance(MILLISECOND)
        await one.trigger("large")
    await parked(world, 2)
    world.clock.advance(MILLISECOND)
    for _ in range(4):
        await one.trigger("small")
    await reached(seen, 5)
    for _ in range(7):
        await one.trigger("small")
    await parked(world, 9)
    await window(world)
    await reached(seen, 6)  # one of the large ones; four are left, which are not enough for the other
    await parked(world, 8)
    await window(world, SECOND)
    await reached(seen, 10)
    await parked(world, 4)
    await window(world)
    await reached(seen, 14)
    await quiet_queue(world)


async def test_one_that_wants_two_limits_finds_both_though_each_is_used_up_as_its_window_begins(world: World, one: Node) -> None:
    """The windows of one begin in the middle of those of the other, and more wait for each than it allows."""
    each = [limited({"static_key": key}, name=key) for key in "ab"]
    endpoint = await world.endpoint(one, [*each, limited({"static_key": "a"}, {"static_key": "b"}, name="both", retries=1)])
    started: list[str] = []

    def way(arrival: Arrival) -> None:
        started.append(arrival.json["workflow"])
        again = arrival.json["workflow"] == "both" and arrival.json["attempt"] == 1
        arrival.answer(500 if again else 200, {"error": {"message": "once"}}, task_retry="true")

    endpoint.way = way
    for key in "ab":
        await put(one, 2, key=key)
    for key in "ab":
        world.clock.advance(MINUTE / 2 if key == "b" else MINUTE)
        before = len(started)
        for _ in range(2):
            await one.trigger(key)
        await reached(started, before + 2)
    world.clock.advance(MILLISECOND)
    run_id = await one.trigger("both")
    world.clock.advance(MILLISECOND)
    for _ in range(8):
        for key in "ab":
            await one.trigger(key)
    await parked(world, 17)
    for count, left, fresh in ((6, 15, ["a", "a"]), (7, 14, ["b"]), (9, 13, ["a", "both"])):
        await window(world, MINUTE / 2)
        await reached(started, count)
        await parked(world, left)
        assert sorted(started[-len(fresh) :]) == fresh
        shown = await one.call("GET", "/v1/rate-limits/b")
        assert shown["value"] == 0
    assert [row["number"] for row in await world.attempts(run_id, 1)] == [1]  # and it has to pay for its retry again
    for count in (11, 12, 14):
        await window(world, MINUTE / 2)
        await reached(started, count)
    assert sorted(started[9:]) == ["a", "b", "b", "b", "both"]
    assert (await world.over(run_id))["status"] == "succeeded"


@pytest.mark.parametrize("key", ["a/b", "https://x.y/z?q=1", "ü ñ", "a%2Fb", "/", "a//b/", "..."])
async def test_a_limit_may_have_any_key_that_a_handler_may_name(world: World, one: Node, key: str) -> None:
    path = f"/v1/rate-limits/{quote(key, safe='')}"
    endpoint = await world.endpoint(one, [limited({"static_key": key})])
    assert (await one.call("PUT", path, {"limit": 1}))["key"] == key
    assert (await one.call("GET", path))["key"] == key
    for _ in range(2):
        await one.trigger("work")
    await endpoint.next()
    await parked(world, 1)
    assert (await one.api.delete(path)).status_code == 204
    await one.turn("rates", "claim")
    await endpoint.next()


@pytest.mark.parametrize("key", [".", ".."])
async def test_a_key_that_has_no_path_is_refused_where_it_is_named(world: World, one: Node, key: str) -> None:
    endpoint = await world.listen()
    body = {"url": endpoint.url, "handlers": [limited({"static_key": key})]}
    refused = await one.call("PUT", "/v1/endpoints/plain", body, expect=400)
    assert (refused["code"], refused["field"]) == ("invalid_value", "work.rate_limits")


async def test_a_limit_is_shown_full_once_its_window_is_over(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [limited(STATIC)])
    await put(one, 1)
    await one.trigger("work")
    (await endpoint.next()).answer(200, 1)
    assert (await one.call("GET", "/v1/rate-limits/api"))["value"] == 0
    await world.advance(10 * MINUTE)
    shown = await one.call("GET", "/v1/rate-limits/api")
    assert (await one.call("GET", "/v1/rate-limits"))["rows"] == [shown]
    assert (shown["value"], shown["waiting"]) == (1, False)
    assert datetime.fromisoformat(shown["refill_at"]) == world.now + MINUTE


async def test_what_maintenance_cannot_do_keeps_nothing_behind_it_from_being_done(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_much(_db: Database) -> list[Any]:
        raise DatabaseUnavailable("no answer in time", sent=True)

    monkeypatch.setattr(gates, "audit", too_much)
    endpoint = await world.endpoint(one, [limited({"dynamic_key": "'k'", "limit": 1, "duration": "second"})])
    seen = answering(endpoint, world)
    await one.trigger("work")
    await reached(seen, 1)
    assert await world.database.fetchval("select count(*) from rate_limits") == 1
    world.clock.advance(timedelta(seconds=2))
    await one.turn("maintenance")
    assert await world.database.fetchval("select count(*) from rate_limits") == 0
