"""Crons from the outside: made, declared, changed, stopped, triggered; and what several dispatchers make of one tick."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.engine.schedules import RULES
from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.endpoint import Endpoint
from tests.world.world import Node, World

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
WORK = {"name": "work"}


async def put(node: Node, endpoint: Endpoint, *handlers: dict[str, Any], name: str = "plain") -> dict[str, Any]:
    """Register the endpoint again, with these handlers and no version of its own."""
    document: dict[str, Any] = await node.call("PUT", f"/v1/endpoints/{name}", {"url": endpoint.url, "handlers": list(handlers)})
    return document


async def crons(node: Node, query: str = "") -> list[dict[str, Any]]:
    """All of them, by name."""
    return sorted((await node.call("GET", f"/v1/crons{query}"))["rows"], key=lambda row: str(row["name"]))


async def pass_time(world: World, delta: timedelta) -> None:
    """Let time pass, and what is due start."""
    world.clock.advance(delta)
    for node in world.nodes:
        await node.turn("timetable")


async def started(world: World) -> list[str]:
    """The ticks there are runs of."""
    rows = await world.database.fetch("select cron_id, tick from cron_ticks order by tick, cron_id")
    return [row["tick"].strftime("%d %H:%M:%S") for row in rows]


async def make(node: Node, expression: str, **more: Any) -> dict[str, Any]:
    """A cron of the workflow `work`."""
    cron: dict[str, Any] = await node.call("POST", "/v1/crons", {"workflow": "work", "name": "mine", "expression": expression, **more})
    return cron


# ---- what is made, shown and changed


async def test_a_cron_from_making_to_removing(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    made = await make(one, "0 9  * * 1", timezone="Europe/Berlin", input={"a": 1}, metadata={"team": "x"}, priority=3, missed="run_all")
    assert made["id"].startswith("crn_")
    assert (made["expression"], made["description"], made["timezone"]) == ("0 9 * * 1", "At 09:00, only on Monday", "Europe/Berlin")
    assert made["next_runs"][:2] == ["2026-03-02T08:00:00Z", "2026-03-09T08:00:00Z"]
    assert made["next_runs"][4] == "2026-03-30T07:00:00Z"  # summer time has begun
    assert (made["next_at"], made["enabled"], made["declared"], made["missed"]) == ("2026-03-02T08:00:00Z", True, False, "run_all")
    assert await one.call("GET", f"/v1/crons/{made['id']}") == made
    await pass_time(world, datetime(2026, 3, 2, 8, tzinfo=UTC) - world.now)
    arrival = await endpoint.next()
    assert (arrival.json["input"], arrival.json["metadata"], arrival.json["priority"]) == ({"a": 1}, {"team": "x"}, 3)
    arrival.answer(200, 1)
    shown = await one.call("GET", f"/v1/crons/{made['id']}")
    assert (shown["last_at"], shown["last_run_id"], shown["next_at"]) == (
        "2026-03-02T08:00:00Z", arrival.json["run_id"], "2026-03-09T08:00:00Z",
    )  # fmt: skip
    await one.call("DELETE", f"/v1/crons/{made['id']}", expect=204)
    assert (await one.call("GET", f"/v1/crons/{made['id']}", expect=404))["code"] == "unknown_cron"
    assert (await world.over(arrival.json["run_id"]))["status"] == "succeeded"
    run = await one.call("GET", f"/v1/runs/{arrival.json['run_id']}")
    assert (run["status"], run["trigger"], run["cron_id"], run["tick"]) == ("succeeded", "cron", made["id"], "2026-03-02T08:00:00Z")
    assert [(row["trigger"], row["cron_id"]) for row in (await one.call("GET", "/v1/runs"))["rows"]] == [("cron", made["id"])]


async def test_disabled_it_does_not_tick_and_nothing_is_made_up_for(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    cron = await make(one, "*/10 * * * *", missed="run_all")
    stopped = await one.call("PATCH", f"/v1/crons/{cron['id']}", {"enabled": False})
    assert (stopped["enabled"], stopped["next_at"], stopped["next_runs"]) == (False, None, [])
    await pass_time(world, HOUR)
    assert await started(world) == []
    again = await one.call("PATCH", f"/v1/crons/{cron['id']}", {"enabled": True})
    assert again["next_at"] == "2026-03-01T13:10:00Z"
    await pass_time(world, 10 * MINUTE)
    assert await started(world) == ["01 13:10:00"]


async def test_triggering_starts_a_run_and_moves_no_tick(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    cron = await make(one, "0 0 * * *", input={"by": "cron"})
    run = await one.call("POST", f"/v1/crons/{cron['id']}/trigger", expect=201)
    document = await one.call("GET", f"/v1/runs/{run['id']}")
    assert (document["trigger"], document["cron_id"], "tick" in document) == ("cron", cron["id"], False)
    arrival = await endpoint.next()
    assert (arrival.json["run_id"], arrival.json["input"]) == (run["id"], {"by": "cron"})
    arrival.answer(200, 1)
    assert (await one.call("GET", f"/v1/crons/{cron['id']}"))["next_at"] == cron["next_at"]
    assert await started(world) == []


async def test_another_expression_moves_the_next_tick(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    cron = await make(one, "0 0 * * *")
    changed = await one.call("PATCH", f"/v1/crons/{cron['id']}", {"expression": "@hourly", "name": "hourly", "input": [1], "priority": 2})
    assert (changed["next_at"], changed["name"], changed["input"], changed["priority"]) == ("2026-03-01T13:00:00Z", "hourly", [1], 2)
    moved = await one.call("PATCH", f"/v1/crons/{cron['id']}", {"expression": "0 9 * * *", "timezone": "Asia/Tokyo"})
    assert moved["next_at"] == "2026-03-02T00:00:00Z"


async def test_changing_back_and_forth_starts_no_tick_twice(world: World, one: Node) -> None:
    """The clock has not moved since the tick, and a process may even think it is earlier: a tick that has its run keeps it."""
    await world.endpoint(one, [WORK])
    cron = await make(one, "0 * * * *")
    await pass_time(world, HOUR)
    assert await started(world) == ["01 13:00:00"]
    await one.call("PATCH", f"/v1/crons/{cron['id']}", {"expression": "*/30 * * * *"})
    await one.call("PATCH", f"/v1/crons/{cron['id']}", {"enabled": False})
    await one.call("PATCH", f"/v1/crons/{cron['id']}", {"enabled": True, "expression": "0 * * * *"})
    await world.database.execute("update crons set due_at = last_tick, due_wall = last_wall")
    await pass_time(world, timedelta(seconds=1))
    assert await started(world) == ["01 13:00:00"]
    assert (
        await world.database.fetchval("select count(*) from runs") + await world.database.fetchval("select count(*) from run_history") == 1
    )


async def test_name_and_expression_are_one_of_their_kind_in_a_workflow(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK, {"name": "other"}])
    cron = await make(one, "0 0 * * *")
    again = {"workflow": "work", "name": "mine", "expression": "0  0 * * *"}
    assert (await one.call("POST", "/v1/crons", again, expect=409))["code"] == "cron_exists"
    await one.call("POST", "/v1/crons", {**again, "expression": "0 1 * * *"}, expect=201)
    await one.call("POST", "/v1/crons", {**again, "workflow": "other"}, expect=201)
    taken = await one.call("PATCH", f"/v1/crons/{cron['id']}", {"expression": "0 1 * * *"}, expect=409)
    assert taken["code"] == "cron_exists"


async def test_lists_are_filtered_and_go_on_where_they_ended(world: World, one: Node) -> None:
    await world.endpoint(one, [{**WORK, "on_crons": ["0 0 * * *"]}, {"name": "other"}])
    world.clock.advance(timedelta(milliseconds=1))
    for n in range(5):
        await make(one, "0 0 * * *", name=f"cron-{n}", metadata={"n": n, "kind": "even" if n % 2 == 0 else "odd"})
    await one.call("POST", "/v1/crons", {"workflow": "other", "name": "cron-0", "expression": "@daily", "enabled": False})
    assert [row["name"] for row in await crons(one, "?metadata=kind:odd")] == ["cron-1", "cron-3"]
    assert [row["name"] for row in await crons(one, "?metadata=n:2")] == ["cron-2"]
    assert [row["workflow"] for row in await crons(one, "?name=cron-0")] in (["work", "other"], ["other", "work"])
    assert [row["name"] for row in await crons(one, "?declared=true")] == ["0 0 * * *"]
    assert [row["workflow"] for row in await crons(one, "?enabled=false")] == ["other"]
    assert await crons(one, "?workflow=nobody") == []
    seen, cursor = [], ""
    while True:
        page = await one.call("GET", f"/v1/crons?workflow=work&limit=2{cursor}")
        seen += [row["name"] for row in page["rows"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == ["cron-4", "cron-3", "cron-2", "cron-1", "cron-0", "0 0 * * *"]
    refused = await one.call("GET", f"/v1/crons?workflow=other{cursor}", expect=400)
    assert refused["field"] == "cursor"


# ---- what a workflow declares


async def test_registering_again_neither_doubles_nor_orphans(world: World, one: Node) -> None:
    endpoint = await world.endpoint(
        one, [{**WORK, "on_crons": ["*/5 * * * *", {"expression": "0 9 * * *", "timezone": "Asia/Tokyo", "name": "tea"}]}]
    )
    mine = await make(one, "0 0 * * *")
    before = await crons(one)
    assert [(row["name"], row["declared"]) for row in before] == [("*/5 * * * *", True), ("mine", False), ("tea", True)]
    await pass_time(world, 5 * MINUTE)
    (await endpoint.next()).answer(200, 1)
    fired = await crons(one)
    entry = {**WORK, "on_crons": ["*/5 * * * *", {"expression": "0 9 * * *", "timezone": "Asia/Tokyo", "name": "tea"}]}
    await put(one, endpoint, {**entry, "description": "a new version"})
    assert await crons(one) == fired
    await put(
        one, endpoint, {**WORK, "on_crons": [{"expression": "0 9 * * *", "timezone": "Europe/Berlin", "name": "tea", "metadata": {"a": 1}}]}
    )
    after = {row["name"]: row for row in await crons(one)}
    assert set(after) == {"mine", "tea"}
    assert after["mine"]["id"] == mine["id"]
    assert (after["tea"]["id"], after["tea"]["next_at"]) == (before[2]["id"], "2026-03-02T08:00:00Z")
    await put(one, endpoint, WORK)
    assert [row["name"] for row in await crons(one)] == ["mine"]


async def test_the_run_is_of_the_latest_version(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{**WORK, "on_crons": ["0 * * * *"]}])
    await put(one, endpoint, {**WORK, "body": "v1", "on_crons": ["0 * * * *"], "retries": 4})
    await pass_time(world, HOUR)
    arrival = await endpoint.next()
    assert arrival.json["max_attempts"] == 5
    arrival.answer(200, 1)


async def test_what_a_workflow_declares_is_changed_there(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{**WORK, "on_crons": ["0 * * * *"]}])
    (cron,) = await crons(one)
    assert (await one.call("PATCH", f"/v1/crons/{cron['id']}", {"expression": "@daily"}, expect=409))["code"] == "cron_declared"
    assert (await one.call("DELETE", f"/v1/crons/{cron['id']}", expect=409))["code"] == "cron_declared"
    assert (await one.call("PATCH", f"/v1/crons/{cron['id']}", {"enabled": False}))["enabled"] is False
    await put(one, endpoint, {**WORK, "on_crons": ["0 * * * *"], "description": "again"})
    assert [row["enabled"] for row in await crons(one)] == [False]
    await pass_time(world, HOUR)
    assert await started(world) == []


async def test_one_made_by_hand_stays_what_it_is_when_the_same_is_declared(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    mine = await make(one, "0 * * * *", name="0 * * * *", input={"by": "hand"})
    await put(one, endpoint, {**WORK, "on_crons": ["0 * * * *"]})
    assert [(row["id"], row["declared"]) for row in await crons(one)] == [(mine["id"], False)]
    await put(one, endpoint, WORK)
    assert [row["id"] for row in await crons(one)] == [mine["id"]]


async def test_declared_crons_go_with_who_serves_the_workflow(world: World, one: Node) -> None:
    first = await world.endpoint(one, [{**WORK, "on_crons": ["0 * * * *"]}])
    await put(one, first, {**WORK, "on_crons": ["0 * * * *"]}, name="second")
    await make(one, "0 0 * * *")
    await one.call("DELETE", "/v1/endpoints/plain")
    assert len(await crons(one)) == 2
    await put(one, first, {"name": "another"}, name="second")
    assert [row["name"] for row in await crons(one)] == ["mine"]


async def test_removing_a_workflow_removes_its_crons(world: World, one: Node) -> None:
    await world.endpoint(one, [{**WORK, "on_crons": ["0 * * * *"]}])
    await make(one, "0 0 * * *")
    await one.call("POST", "/v1/schedules", {"workflow": "work", "in": "1h"})
    await one.call("DELETE", "/v1/endpoints/plain")
    await world.database.execute("delete from workflow_versions")
    await world.database.execute("delete from workflows where name = 'work'")
    assert await crons(one) == []
    assert (await one.call("GET", "/v1/schedules"))["rows"] == []


# ---- ticks


async def test_two_dispatchers_start_each_tick_once(world: World, one: Node) -> None:
    await world.endpoint(one, [{**WORK, "on_crons": ["* * * * * *"]}])
    await world.node("two")
    for _ in range(20):
        world.clock.advance(timedelta(seconds=1))
        for node in world.nodes:
            node.runtime.loops["timetable"].wake()
        for node in world.nodes:
            await node.turn("timetable")
    assert await started(world) == [f"01 12:00:{second:02}" for second in range(1, 21)]


@pytest.mark.parametrize(
    ("missed", "expected", "skipped"),
    [
        ("skip", [], "2026-03-01T14:00:00Z"),
        ("run_once", ["01 14:00:00"], None),
        ("run_all", ["01 12:30:00", "01 13:00:00", "01 13:30:00", "01 14:00:00"], None),
    ],
)
async def test_ticks_nobody_was_there_for(world: World, one: Node, missed: str, expected: list[str], skipped: str | None) -> None:
    await world.endpoint(one, [WORK])
    cron = await make(one, "*/30 * * * *", missed=missed)
    await world.crash(one)
    world.clock.advance(2 * HOUR + 10 * MINUTE)
    two = await world.node("two")
    await two.turn("timetable")
    assert await started(world) == expected
    shown = await two.call("GET", f"/v1/crons/{cron['id']}")
    assert (shown["last_skipped_at"], shown["next_at"]) == (skipped, "2026-03-01T14:30:00Z")
    await pass_time(world, 20 * MINUTE)
    assert await started(world) == [*expected, "01 14:30:00"]


async def test_a_thousand_missed_ticks_are_made_up_for_in_portions(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    await make(one, "*/2 * * * * *", missed="run_all")
    await world.crash(one)
    world.clock.advance(HOUR)
    two = await world.node("two", intake_batch=300)
    for _ in range(10):
        await two.turn("timetable")
    assert await world.database.fetchval("select count(*) from cron_ticks") == 1800
    assert (
        await world.database.fetchval("select count(*) from runs") + await world.database.fetchval("select count(*) from run_history")
        == 1800
    )


async def test_new_rules_of_time_zones_repeat_and_lose_nothing(world: World, one: Node) -> None:
    """As if the rules had said before that Berlin was an hour further from, or nearer to, Greenwich than they say now."""
    await world.endpoint(one, [WORK])
    cron = await make(one, "0 14 * * *", timezone="Europe/Berlin")  # 13:00 in UTC
    old = "update crons set rules = '2000a', due_at = $1, due_wall = $2, last_tick = $3, last_wall = $4"
    at, wall = datetime(2026, 3, 1, 13, tzinfo=UTC), datetime(2026, 3, 1, 14)  # noqa: DTZ001 - what clocks show
    # It ran an hour ago, when the clocks showed two by the rules of then: not again at what is two by the rules of now.
    await world.database.execute(old, at + timedelta(hours=23), wall + timedelta(days=1), at - HOUR, wall)
    assert await one.runtime.services.timetable.reckon(world.now) == 1
    shown = await one.call("GET", f"/v1/crons/{cron['id']}")
    assert shown["next_at"] == "2026-03-02T13:00:00Z"
    # It was to run in an hour's time, which is past two by the rules of now: late, and not lost.
    await world.database.execute(old, at + 2 * HOUR, wall, at - timedelta(hours=22), wall - timedelta(days=1))
    world.clock.advance(90 * MINUTE)
    assert await one.runtime.services.timetable.reckon(world.now) == 1
    assert (await one.call("GET", f"/v1/crons/{cron['id']}"))["next_at"] == "2026-03-01T15:00:00Z"
    await pass_time(world, 90 * MINUTE)
    assert await started(world) == ["01 15:00:00"]
    assert (await one.call("GET", f"/v1/crons/{cron['id']}"))["next_at"] == "2026-03-02T13:00:00Z"
    assert await world.database.fetchval("select rules from crons") == RULES
    assert await one.runtime.services.timetable.reckon(world.now) == 0


async def test_one_that_cannot_be_read_any_more_stands_in_nobodys_way(world: World, one: Node, caplog: pytest.LogCaptureFixture) -> None:
    await world.endpoint(one, [WORK])
    await make(one, "0 * * * *", name="lost")
    await world.database.execute("update crons set timezone = 'Atlantis/Poseidonis'")
    await make(one, "0 * * * *")
    await pass_time(world, HOUR)
    assert await started(world) == ["01 13:00:00"]
    assert "Atlantis/Poseidonis" in caplog.text
    assert len(await crons(one)) == 2


async def test_ticks_whose_runs_cannot_be_limited_are_left_out_and_hold_nobody_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The input it was made with is none its workflow's limits can be reckoned from any more. Others are due behind its many ticks."""
    node = await world.node("small", intake_batch=5)
    endpoint = await world.endpoint(node, [WORK, {"name": "other"}])
    bad = await make(node, "* * * * * *", missed="run_all")
    at = (world.now + timedelta(seconds=30)).isoformat()
    lost = await node.call("POST", "/v1/schedules", {"workflow": "work", "run_at": at}, expect=201)
    await make(node, "* * * * *", workflow="other", name="good")
    limit = {"expression": "input.user", "max_runs": 1, "limit_strategy": "GROUP_ROUND_ROBIN"}
    await put(node, endpoint, {**WORK, "concurrency": [limit]}, {"name": "other", "body": "v1"})
    world.clock.advance(MINUTE)
    for _ in range(20):
        await node.turn("timetable")
    arrival = await endpoint.next()
    assert (arrival.json["name"], await started(world)) == ("other", ["01 12:01:00"])
    arrival.answer(200, 1)
    shown = await node.call("GET", f"/v1/crons/{bad['id']}")
    assert (shown["last_skipped_at"], shown["next_at"]) == ("2026-03-01T12:01:00Z", "2026-03-01T12:01:01Z")
    missed = await node.call("GET", f"/v1/schedules/{lost['id']}")
    assert missed["status"] == "missed"
    assert "could not start anything" in caplog.text
    for said in (shown["last_error"], missed["error"]):
        assert said.startswith("limit_failed: workflow 'work': concurrency 'input.user': ")
    assert [row["last_error"] for row in await crons(node, "?name=good")] == [None]
    await node.call("PATCH", f"/v1/crons/{bad['id']}", {"input": {"user": "a"}})
    world.clock.advance(timedelta(seconds=5))
    await node.turn("timetable")
    assert (await node.call("GET", f"/v1/crons/{bad['id']}"))["last_error"] is None


async def test_what_could_not_be_limited_is_refused_when_it_is_planned(world: World, one: Node) -> None:
    await world.endpoint(one, [{**WORK, "concurrency": [{"expression": "input.user", "max_runs": 1}]}])
    for path, when in (("/v1/schedules", {"in": "10m"}), ("/v1/crons", {"name": "c", "expression": "* * * * *"})):
        refused = await one.call("POST", path, {"workflow": "work", **when}, expect=422)
        assert (refused["code"], refused["expression"]) == ("limit_failed", "input.user")
        made = await one.call("POST", path, {"workflow": "work", "input": {"user": "a"}, **when}, expect=201)
        assert (await one.call("PATCH", f"{path}/{made['id']}", {"input": {}}, expect=422))["code"] == "limit_failed"
        assert (await one.call("GET", f"{path}/{made['id']}"))["input"] == {"user": "a"}


async def test_a_paused_workflow_that_drops_lets_its_ticks_go(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    await make(one, "0 * * * *")
    schedule = await one.call("POST", "/v1/schedules", {"workflow": "work", "in": "30m"})
    await one.call("PATCH", "/v1/workflows/work", {"paused": True, "on_schedule": "drop"})
    await pass_time(world, 90 * MINUTE)
    assert await started(world) == []
    (cron,) = await crons(one)
    assert (cron["last_skipped_at"], cron["next_at"]) == ("2026-03-01T13:00:00Z", "2026-03-01T14:00:00Z")
    assert (await one.call("GET", f"/v1/schedules/{schedule['id']}"))["status"] == "dropped"
    await one.call("PATCH", "/v1/workflows/work", {"paused": True, "on_schedule": "queue"})
    await pass_time(world, 30 * MINUTE)
    assert await started(world) == ["01 14:00:00"]
    assert await world.database.fetchval("select count(*) from tasks where state = 'queued'") == 1


# ---- bad input

BAD: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"expression": "* * * *"}, 422, "invalid_cron", "expression"),
    ({"expression": "99 * * * *"}, 422, "invalid_cron", "expression"),
    ({"expression": "0 0 31 2 *"}, 422, "invalid_cron", "expression"),
    ({"expression": ""}, 400, "invalid_value", "expression"),
    ({"expression": 5}, 400, "invalid_value", "expression"),
    ({"timezone": "Mars/Olympus"}, 422, "invalid_timezone", "timezone"),
    ({"timezone": "../../etc/passwd"}, 422, "invalid_timezone", "timezone"),
    ({"workflow": "nobody"}, 404, "unknown_workflow", None),
    ({"name": ""}, 400, "invalid_value", "name"),
    ({"name": "a\nb"}, 400, "invalid_value", "name"),
    ({"name": "x" * 201}, 400, "invalid_value", "name"),
    ({"priority": 4}, 400, "invalid_value", "priority"),
    ({"missed": "sometimes"}, 400, "invalid_value", "missed"),
    ({"metadata": [1]}, 400, "invalid_value", "metadata"),
    ({"metadata": {"a": "x" * 20_000}}, 413, "body_too_large", "metadata"),
    ({"colour": "red"}, 400, "unknown_field", "colour"),
    ({"input": {"a": "\x00"}}, 400, "nul_character", None),
]


async def test_crons_that_cannot_be(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    for change, status, code, field in BAD:
        body = {"workflow": "work", "name": "x", "expression": "0 0 * * *", **change}
        problem = await one.call("POST", "/v1/crons", body, expect=status)
        assert (problem["code"], problem.get("field")) == (code, field), change
    assert await crons(one) == []


async def test_what_cannot_be_asked(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    cron = await make(one, "0 0 * * *")
    assert (await one.call("PATCH", f"/v1/crons/{cron['id']}", {"expression": "x"}, expect=422))["code"] == "invalid_cron"
    assert (await one.call("PATCH", f"/v1/crons/{cron['id']}", {"timezone": "x"}, expect=422))["code"] == "invalid_timezone"
    assert (await one.call("PATCH", f"/v1/crons/{cron['id']}", {}, expect=400))["code"] == "invalid_value"
    assert (await one.call("PATCH", "/v1/crons/crn_nobody", {"enabled": False}, expect=404))["code"] == "unknown_cron"
    assert (await one.call("POST", "/v1/crons/crn_nobody/trigger", expect=404))["code"] == "unknown_cron"
    assert (await one.call("DELETE", "/v1/crons/%00", expect=404))["code"] == "not_found"
    assert (await one.call("GET", "/v1/crons?enabled=perhaps", expect=400))["field"] == "enabled"
    assert (await one.call("GET", "/v1/crons?metadata=nothing", expect=400))["field"] == "metadata"
    assert (await one.call("GET", "/v1/crons?colour=red", expect=400))["code"] == "unknown_parameter"


async def test_there_is_a_bound(world: World) -> None:
    one = await world.node(max_crons=2)
    await world.endpoint(one, [WORK])
    await make(one, "0 0 * * *", name="a")
    await make(one, "0 0 * * *", name="b")
    third = {"workflow": "work", "name": "c", "expression": "0 0 * * *"}
    assert (await one.call("POST", "/v1/crons", third, expect=409))["code"] == "too_many_crons"
    event = {"type": "schedule:new", "data": {"fn": "work", "schedule": "0 0 * * *"}}
    assert (await one.call("POST", "/v1/events", event, expect=409))["code"] == "too_many_crons"


DECLARATIONS: list[tuple[Any, str]] = [
    (["* * *"], "on_crons[0].expression"),
    ([{"expression": "* * * * *", "timezone": "Mars/X"}], "on_crons[0].timezone"),
    ([{"timezone": "UTC"}], "on_crons[0].expression"),
    ([{"expression": "* * * * *", "missed": "no"}], "on_crons[0].missed"),
    ([{"expression": "* * * * *", "colour": "red"}], "on_crons[0].colour"),
    ([{"expression": "* * * * *", "metadata": [1]}], "on_crons[0].metadata"),
    (["@daily", {"expression": "@daily", "missed": "run_all"}], "on_crons[1]"),
    ([5], "on_crons[0]"),
    ("@daily", "on_crons"),
]


async def test_declarations_that_cannot_be(world: World, one: Node) -> None:
    endpoint = await world.listen()
    for declared, place in DECLARATIONS:
        body = {"url": endpoint.url, "handlers": [{**WORK, "on_crons": declared}]}
        problem = await one.call("PUT", "/v1/endpoints/plain", body, expect=400)
        assert (problem["code"], problem["field"]) == ("invalid_value", f"handlers[0].{place}"), declared


async def test_a_durable_task_declares_them_too(world: World, one: Node) -> None:
    """Each tick is a run of its own, whose turns go on from its log while the next ticks come."""
    endpoint = await durable_endpoint(world, one, entry("order", on_crons=["0 * * * *"]))
    (cron,) = await crons(one)
    assert (cron["workflow"], cron["declared"], cron["next_at"]) == ("order", True, "2026-03-01T13:00:00Z")
    await pass_time(world, HOUR)
    first = await endpoint.next()
    assert (first.json["type"], first.json["name"], first.json["turn"]) == ("turn", "order", 1)
    answer(first, "wait", base=0, ops=[pending("sleep", "nap#0", ms=5_400_000)], wake="nap#0")
    await world.task(first.json["run_id"], state="waiting")
    await pass_time(world, HOUR)
    second = await endpoint.next()
    assert (second.json["run_id"] != first.json["run_id"], second.json["turn"]) == (True, 1)
    answer(second, "done", base=0, output={"n": 2})
    await world.advance(HOUR / 2)
    again = await endpoint.next()
    assert (again.json["run_id"], again.json["turn"]) == (first.json["run_id"], 2)
    answer(again, "done", base=2, output={"n": 1})
    for arrival, tick in ((first, "13"), (second, "14")):
        await world.over(arrival.json["run_id"])
        run = await one.call("GET", f"/v1/runs/{arrival.json['run_id']}")
        assert (run["status"], run["cron_id"], run["tick"]) == ("succeeded", cron["id"], f"2026-03-01T{tick}:00:00Z")


async def test_the_bound_holds_whoever_makes_them_at_once(world: World) -> None:
    nodes = [await world.node(name, max_crons=5) for name in ("one", "two")]
    endpoint = await world.endpoint(nodes[0], [WORK])
    for node in nodes:
        await node.turn("registry")

    async def made(n: int) -> int:
        body = {"workflow": "work", "name": f"c{n}", "expression": "0 0 * * *"}
        return (await nodes[n % 2].api.post("/v1/crons", json=body)).status_code

    statuses = await asyncio.gather(*[made(n) for n in range(20)])
    assert sorted(statuses) == [201] * 5 + [409] * 15
    assert len(await crons(nodes[0])) == 5
    declared = [{"expression": "0 0 * * *", "name": f"d{n}"} for n in range(2)]
    handlers = [{**WORK, "body": "v1", "on_crons": declared}]
    refused = await nodes[0].call("PUT", "/v1/endpoints/plain", {"url": endpoint.url, "handlers": handlers}, expect=409)
    assert refused["code"] == "too_many_crons"
    assert len(await crons(nodes[0])) == 5


async def test_events_plan_no_more_than_there_is_room_for(world: World) -> None:
    one = await world.node(max_crons=5)
    await world.endpoint(one, [WORK])
    events = [{"type": "schedule:new", "data": {"fn": "work", "schedule": "0 0 * * *", "name": f"c{n}"}} for n in range(8)]
    assert (await one.call("POST", "/v1/events/bulk", {"events": events}, expect=409))["code"] == "too_many_crons"
    replies = await asyncio.gather(*[one.api.post("/v1/events", json=event) for event in events])
    assert sorted(reply.status_code for reply in replies) == [201] * 5 + [409] * 3
    assert len(await crons(one)) == 5
