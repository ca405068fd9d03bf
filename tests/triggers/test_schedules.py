"""Schedules from the outside: made, moved, removed one by one and many at once, run once and only once; and events that plan."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.world.world import Node, World, until

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
WORK = {"name": "work"}


async def pass_time(world: World, delta: timedelta) -> None:
    """Let time pass, and what is due start."""
    world.clock.advance(delta)
    for node in world.nodes:
        await node.turn("timetable")


async def make(node: Node, **more: Any) -> dict[str, Any]:
    """A schedule of the workflow `work`, in ten minutes unless said."""
    when = {} if "run_at" in more else {"in": "10m"}
    made: dict[str, Any] = await node.call("POST", "/v1/schedules", {"workflow": "work", **when, **more})
    return made


async def listed(node: Node, query: str = "") -> list[str]:
    """Ids, newest first."""
    return [row["id"] for row in (await node.call("GET", f"/v1/schedules{query}"))["rows"]]


async def runs(world: World) -> int:
    """How many there are."""
    count = await world.database.fetchval("select (select count(*) from runs) + (select count(*) from run_history)")
    return int(count)


async def test_a_schedule_from_making_to_its_run(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    made = await make(one, run_at="2026-03-01T14:30:00+02:00", input={"a": 1}, metadata={"team": "x"}, priority=3)
    assert made["id"].startswith("sch_")
    assert (made["status"], made["run_at"], made["misfire_grace"], made["missed"]) == (
        "scheduled",
        "2026-03-01T12:30:00Z",
        "1h",
        "run_once",
    )
    await pass_time(world, 30 * MINUTE - timedelta(seconds=1))
    assert await runs(world) == 0
    await pass_time(world, timedelta(seconds=1))
    arrival = await endpoint.next()
    assert (arrival.json["input"], arrival.json["metadata"], arrival.json["priority"]) == ({"a": 1}, {"team": "x"}, 3)
    arrival.answer(200, 1)
    shown = await one.call("GET", f"/v1/schedules/{made['id']}")
    run = await one.call("GET", f"/v1/runs/{arrival.json['run_id']}")
    assert (run["trigger"], run["schedule_id"], run["tick"]) == ("schedule", made["id"], "2026-03-01T12:30:00Z")
    assert (shown["status"], shown["run_id"], shown["settled_at"]) == ("started", arrival.json["run_id"], "2026-03-01T12:30:00Z")
    assert (await one.call("PATCH", f"/v1/schedules/{made['id']}", {"in": "1h"}, expect=409))["code"] == "schedule_settled"
    await one.call("DELETE", f"/v1/schedules/{made['id']}", expect=204)
    assert (await one.call("GET", f"/v1/schedules/{made['id']}", expect=404))["code"] == "unknown_schedule"
    assert (await world.over(arrival.json["run_id"]))["status"] == "succeeded"


async def test_so_long_from_now(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    for delay in ("10m", "in 10 minutes", "10 minutes", "in 600s"):
        made = await make(one, **{"in": delay})
        assert made["run_at"] == "2026-03-01T12:10:00Z"


async def test_a_clock_a_little_behind_is_no_reason_to_refuse(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    await make(one, run_at="2026-03-01T11:59:57Z")
    await one.turn("timetable")
    (await endpoint.next()).answer(200, 1)


async def test_moving_it(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    made = await make(one)
    moved = await one.call("PATCH", f"/v1/schedules/{made['id']}", {"run_at": "2026-03-01T13:00:00Z", "input": [1], "misfire_grace": "10s"})
    assert (moved["run_at"], moved["input"], moved["misfire_grace"]) == ("2026-03-01T13:00:00Z", [1], "10s")
    await pass_time(world, 30 * MINUTE)
    assert await runs(world) == 0
    await pass_time(world, 30 * MINUTE)
    assert await runs(world) == 1


async def test_triggering_it_runs_it_now_and_not_again(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    made = await make(one, input={"a": 1})
    started = await one.call("POST", f"/v1/schedules/{made['id']}/trigger")
    arrival = await endpoint.next()
    assert (started["status"], started["run_id"]) == ("started", arrival.json["run_id"])
    arrival.answer(200, 1)
    refused = await one.call("POST", f"/v1/schedules/{made['id']}/trigger", expect=409)
    assert (refused["code"], refused["run_id"]) == ("schedule_settled", started["run_id"])
    await pass_time(world, HOUR)
    assert await runs(world) == 1


async def test_several_dispatchers_start_it_once(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    await world.node("two")
    await world.node("three")
    for n in range(30):
        await make(one, **{"in": f"{n % 3 + 1}m"})
    for _ in range(3):
        world.clock.advance(MINUTE)
        for node in world.nodes:
            node.runtime.loops["timetable"].wake()
        for node in world.nodes:
            await node.turn("timetable")
    assert await runs(world) == 30
    assert len(await listed(one, "?status=started")) == 30


@pytest.mark.parametrize(
    ("more", "away", "status"),
    [
        ({}, 50 * MINUTE, "started"),
        ({}, 2 * HOUR, "missed"),
        ({"misfire_grace": "3h"}, 2 * HOUR, "started"),
        ({"missed": "skip"}, 12 * MINUTE, "missed"),
    ],
)
async def test_a_moment_nobody_was_there_for(world: World, one: Node, more: dict[str, Any], away: timedelta, status: str) -> None:
    await world.endpoint(one, [WORK])
    made = await make(one, **more)
    await world.crash(one)
    world.clock.advance(away)
    two = await world.node("two")
    await two.turn("timetable")
    shown = await two.call("GET", f"/v1/schedules/{made['id']}")
    assert shown["status"] == status
    assert await runs(world) == (status == "started")
    assert (shown["run_id"] is not None) == (status == "started")


async def test_lists(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK, {"name": "other"}])
    made = [(await make(one, **{"in": f"{n + 1}h"}, metadata={"n": n}))["id"] for n in range(5)]
    other = (await one.call("POST", "/v1/schedules", {"workflow": "other", "in": "5m"}))["id"]
    await pass_time(world, 5 * MINUTE)
    assert await listed(one) == [other, *reversed(made)]
    assert await listed(one, "?status=scheduled") == [*reversed(made)]
    assert await listed(one, "?status=scheduled,started&workflow=other") == [other]
    assert await listed(one, "?since=2026-03-01T14:00:00Z&until=2026-03-01T16:00:00Z") == [made[2], made[1]]
    assert await listed(one, "?metadata=n:3") == [made[3]]
    page = await one.call("GET", "/v1/schedules?limit=4")
    rest = await one.call("GET", f"/v1/schedules?limit=4&cursor={page['next_cursor']}")
    assert [row["id"] for row in (*page["rows"], *rest["rows"])] == [other, *reversed(made)]
    assert "input" not in page["rows"][0]
    assert (await one.call("GET", f"/v1/schedules?limit=4&workflow=work&cursor={page['next_cursor']}", expect=400))["field"] == "cursor"


async def test_many_are_moved_each_to_its_moment(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    first, second, third = [(await make(one))["id"] for _ in range(3)]
    updates = [
        {"id": first, "run_at": "2026-03-01T13:00:00Z"},
        {"id": second, "run_at": "2026-03-01T11:00:00Z"},
        {"id": "sch_nobody", "run_at": "2026-03-01T13:00:00Z"},
    ]
    answer = await one.call("POST", "/v1/schedules/update", {"updates": updates})
    assert answer["ids"] == [first]
    assert [(error["id"], error["code"]) for error in answer["errors"]] == [
        (second, "schedule_in_past"),
        ("sch_nobody", "schedule_settled"),
    ]
    answer = await one.call("POST", "/v1/schedules/update", {"ids": [second, third], "in": "2h"})
    assert (answer["ids"], answer["errors"]) == ([second, third], [])
    moments = {row["id"]: row["run_at"] for row in (await one.call("GET", "/v1/schedules"))["rows"]}
    assert moments == {first: "2026-03-01T13:00:00Z", second: "2026-03-01T14:00:00Z", third: "2026-03-01T14:00:00Z"}


async def test_many_are_moved_and_removed_by_what_they_have_in_common(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK, {"name": "other"}])
    odd = [(await make(one, metadata={"n": n, "kind": "odd" if n % 2 else "even"}))["id"] for n in range(6)][1::2]
    other = (await one.call("POST", "/v1/schedules", {"workflow": "other", "in": "5m"}))["id"]
    answer = await one.call("POST", "/v1/schedules/update", {"filter": {"metadata": {"kind": "odd"}}, "run_at": "2026-03-02T00:00:00Z"})
    assert answer["ids"] == sorted(odd)
    assert await listed(one, "?since=2026-03-02T00:00:00Z") == sorted(odd, reverse=True)
    answer = await one.call(
        "POST", "/v1/schedules/delete", {"filter": {"workflow": "work", "until": "2026-03-01T23:00:00Z", "status": "scheduled"}}
    )
    assert len(answer["ids"]) == 3
    answer = await one.call("POST", "/v1/schedules/delete", {"ids": [odd[0], odd[0], "sch_nobody"]})
    assert (answer["ids"], [error["id"] for error in answer["errors"]]) == ([odd[0]], ["sch_nobody"])
    answer = await one.call("POST", "/v1/schedules/delete", {"filter": {"metadata": {"n": 3}, "status": ["scheduled", "missed"]}})
    assert answer["ids"] == [odd[1]]
    assert await listed(one) == [other, odd[2]]


async def test_what_has_run_is_not_said_to_be_moved(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    over, coming = await make(one, metadata={"a": 1}), await make(one, metadata={"a": 1})
    await one.call("POST", f"/v1/schedules/{over['id']}/trigger")
    (await endpoint.next()).answer(200, 1)
    moved = await one.call("POST", "/v1/schedules/update", {"filter": {"metadata": {"a": 1}}, "in": "1h"})
    assert moved["ids"] == [coming["id"]]


async def test_two_changes_at_once_both_count(world: World, one: Node) -> None:
    """Each writes what it was given, whatever the other has read."""
    await world.endpoint(one, [WORK])
    made = await make(one)
    path, changes = f"/v1/schedules/{made['id']}", ({"input": {"n": 1}}, {"priority": 3}, {"metadata": {"a": 1}}, {"misfire_grace": "2h"})
    async with world.database.transaction() as conn:
        await conn.fetchval("select id from schedules where id = $1 for update", made["id"])
        asked = [asyncio.create_task(one.call("PATCH", path, change)) for change in changes]
        await until(lambda: _all_wait(world, len(changes)))
    await asyncio.gather(*asked)
    changed = await one.call("GET", path)
    assert (changed["input"], changed["priority"], changed["metadata"], changed["misfire_grace"]) == ({"n": 1}, 3, {"a": 1}, "2h")


async def _all_wait(world: World, count: int) -> bool:
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return int(await world.database.fetchval(waiting)) >= count


async def test_more_at_once_than_may_be(world: World) -> None:
    one = await world.node(max_bulk_schedules=2)
    await world.endpoint(one, [WORK])
    ids = [(await make(one))["id"] for _ in range(3)]
    by_filter = {"filter": {"workflow": "work"}}
    for body in ({"ids": ids}, by_filter):
        assert (await one.call("POST", "/v1/schedules/delete", body, expect=413))["code"] == "bulk_too_large"
        assert (await one.call("POST", "/v1/schedules/update", {**body, "in": "1h"}, expect=413))["code"] == "bulk_too_large"
    assert len(await listed(one)) == 3


async def test_they_are_forgotten_when_history_is(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    await make(one)
    kept = (await make(one, **{"in": "90d"}))["id"]
    await pass_time(world, 10 * MINUTE)
    world.clock.advance(timedelta(days=31))
    await one.turn("maintenance")
    assert await listed(one) == [kept]


BAD: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({}, 400, "invalid_value", "run_at"),
    ({"run_at": "2026-03-01T13:00:00Z", "in": "1h"}, 400, "invalid_value", "run_at"),
    ({"run_at": "2026-03-01T11:00:00Z"}, 422, "schedule_in_past", "run_at"),
    ({"run_at": "2020-01-01T00:00:00Z"}, 422, "schedule_in_past", "run_at"),
    ({"run_at": "2036-03-01T13:00:00Z"}, 400, "invalid_value", "run_at"),
    ({"run_at": "2026-03-01T13:00:00"}, 400, "invalid_value", "run_at"),
    ({"run_at": "tomorrow"}, 400, "invalid_value", "run_at"),
    ({"run_at": 5}, 400, "invalid_value", "run_at"),
    ({"in": "soon"}, 422, "invalid_schedule", "in"),
    ({"in": "in -5 minutes"}, 422, "invalid_schedule", "in"),
    ({"in": "0s"}, 422, "invalid_schedule", "in"),
    ({"in": "11y"}, 422, "invalid_schedule", "in"),
    ({"in": "1h", "workflow": "nobody"}, 404, "unknown_workflow", None),
    ({"in": "1h", "priority": 9}, 400, "invalid_value", "priority"),
    ({"in": "1h", "missed": "run_all"}, 400, "invalid_value", "missed"),
    ({"in": "1h", "misfire_grace": "often"}, 400, "invalid_value", "misfire_grace"),
    ({"in": "1h", "metadata": "x"}, 400, "invalid_value", "metadata"),
    ({"in": "1h", "colour": "red"}, 400, "unknown_field", "colour"),
]


async def test_schedules_that_cannot_be(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    for body, status, code, field in BAD:
        problem = await one.call("POST", "/v1/schedules", {"workflow": "work", **body}, expect=status)
        assert (problem["code"], problem.get("field")) == (code, field), body
    assert await listed(one) == []


async def test_what_cannot_be_asked(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    made = await make(one)
    path = f"/v1/schedules/{made['id']}"
    assert (await one.call("PATCH", path, {"run_at": "2020-01-01T00:00:00Z"}, expect=422))["code"] == "schedule_in_past"
    assert (await one.call("PATCH", path, {}, expect=400))["code"] == "invalid_value"
    assert (await one.call("PATCH", "/v1/schedules/sch_nobody", {"in": "1h"}, expect=404))["code"] == "unknown_schedule"
    assert (await one.call("DELETE", "/v1/schedules/sch_nobody", expect=404))["code"] == "unknown_schedule"
    assert (await one.call("POST", "/v1/schedules/sch_nobody/trigger", expect=404))["code"] == "unknown_schedule"
    nothing: dict[str, Any] = {}
    body: dict[str, Any]
    for body in (nothing, {"ids": []}, {"filter": {}}, {"ids": ["a"], "filter": {"workflow": "work"}}, {"filter": {"status": "lost"}}):
        assert (await one.call("POST", "/v1/schedules/delete", body, expect=400))["code"] == "invalid_value"
    for body in (nothing, {"ids": ["a"]}, {"updates": [{"id": "a"}]}, {"filter": {"workflow": "work"}}, {"filter": {}, "in": "1h"}):
        assert (await one.call("POST", "/v1/schedules/update", body, expect=400))["code"] == "invalid_value"
    backwards = {"since": "2026-04-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}
    assert (await one.call("POST", "/v1/schedules/delete", {"filter": backwards}, expect=400))["field"] == "filter.until"
    for query in ("status=lost", "since=yesterday", "metadata=x", "limit=0", "since=2026-04-01T00:00:00Z&until=2026-03-01T00:00:00Z"):
        assert (await one.call("GET", f"/v1/schedules?{query}", expect=400))["code"] == "invalid_value"
    assert await listed(one) == [made["id"]]


# ---- events that plan


@pytest.mark.parametrize("kind", ["schedule:new", "hot:schedule:new"])
async def test_an_event_that_plans_a_run(world: World, one: Node, kind: str) -> None:
    endpoint = await world.endpoint(one, [WORK, {"name": "curious", "on_events": ["*"]}])
    data = {"fn": "work", "args": [{"task_id": "123"}], "schedule": "in 10 minutes"}
    sent = await one.call("POST", "/v1/events", {"event_type": kind, "event_data": data, "metadata": {"a": 1}}, expect=201)
    assert sent["runs"] == []
    schedule = await one.call("GET", f"/v1/schedules/{sent['schedule_id']}")
    assert (schedule["workflow"], schedule["input"], schedule["run_at"]) == ("work", {"task_id": "123"}, "2026-03-01T12:10:00Z")
    assert (await one.call("GET", f"/v1/events/{sent['event_id']}"))["data"] == data
    await pass_time(world, 10 * MINUTE)
    arrival = await endpoint.next()
    assert (arrival.json["name"], arrival.json["input"], arrival.json["metadata"]) == ("work", {"task_id": "123"}, {"a": 1})
    arrival.answer(200, 1)
    assert endpoint.waiting == 0


async def test_an_event_that_plans_a_cron(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [WORK])
    data = {"fn": "work", "args": [1, 2], "schedule": "0 9 * * *", "timezone": "Asia/Tokyo", "name": "tea"}
    sent = await one.call("POST", "/v1/events", {"type": "schedule:new", "data": data})
    cron = await one.call("GET", f"/v1/crons/{sent['cron_id']}")
    assert (cron["name"], cron["expression"], cron["next_at"]) == ("tea", "0 9 * * *", "2026-03-02T00:00:00Z")
    await pass_time(world, 12 * HOUR)
    arrival = await endpoint.next()
    assert arrival.json["input"] == {"args": [1, 2]}
    arrival.answer(200, 1)


async def test_an_event_that_plans_a_cron_there_is_answers_that_one(world: World, one: Node) -> None:
    """What an event is answered is there: name and expression are one of their kind in a workflow."""
    await world.endpoint(one, [WORK])
    data = {"fn": "work", "schedule": "@daily", "name": "tea"}
    body = {"type": "schedule:new", "data": data}
    first = await one.call("POST", "/v1/events", body)
    again = await one.call("POST", "/v1/events", {**body, "metadata": {"a": 1}})
    rows = (await one.call("POST", "/v1/events/bulk", {"events": [body, body]}))["rows"]
    assert {answer["cron_id"] for answer in (first, again, *rows)} == {first["cron_id"]}
    assert [row["id"] for row in (await one.call("GET", "/v1/crons"))["rows"]] == [first["cron_id"]]
    assert len((await one.call("GET", "/v1/events"))["rows"]) == 4


async def test_a_plan_that_has_passed_is_not_replayed(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    sent = await one.call("POST", "/v1/events", {"type": "schedule:new", "data": {"fn": "work", "schedule": "2026-03-01T13:00:00Z"}})
    world.clock.advance(2 * HOUR)
    assert (await one.call("POST", f"/v1/events/{sent['event_id']}/replay", expect=422))["code"] == "schedule_in_past"


async def test_an_event_that_plans_a_moment(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    data = {"fn": "work", "schedule": "2026-03-02T00:00:00+01:00"}
    sent = await one.call("POST", "/v1/events", {"type": "schedule:new", "data": data})
    assert (await one.call("GET", f"/v1/schedules/{sent['schedule_id']}"))["run_at"] == "2026-03-01T23:00:00Z"


async def test_an_event_that_comes_again_plans_once(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    body = {"type": "schedule:new", "data": {"fn": "work", "schedule": "in 10 minutes"}, "idempotency_key": "k"}
    first = await one.call("POST", "/v1/events", body, expect=201)
    again = await one.call("POST", "/v1/events", body, expect=200)
    assert (again["event_id"], again["duplicate"]) == (first["event_id"], True)
    assert await listed(one) == [first["schedule_id"]]


async def test_many_events_that_plan(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    items = [{"type": "schedule:new", "data": {"fn": "work", "schedule": when}} for when in ("in 1 hour", "nonsense", "@daily")]
    rows = (await one.call("POST", "/v1/events/bulk", {"events": items}))["rows"]
    assert rows[0]["schedule_id"].startswith("sch_")
    assert (rows[1]["code"], rows[1]["field"]) == ("invalid_schedule", "events[1].data.schedule")
    assert rows[2]["cron_id"].startswith("crn_")


PLANS: list[tuple[dict[str, Any], int, str]] = [
    ({"schedule": "in 10 minutes"}, 400, "invalid_value"),
    ({"fn": "work"}, 400, "invalid_value"),
    ({"fn": "nobody", "schedule": "in 10 minutes"}, 404, "unknown_workflow"),
    ({"fn": "work", "schedule": "in ten minutes"}, 422, "invalid_schedule"),
    ({"fn": "work", "schedule": "2020-01-01T00:00:00Z"}, 422, "schedule_in_past"),
    ({"fn": "work", "schedule": "2026-03-02T00:00:00"}, 422, "invalid_schedule"),
    ({"fn": "work", "schedule": "61 * * * *"}, 422, "invalid_cron"),
    ({"fn": "work", "schedule": "@daily", "timezone": "Mars/X"}, 422, "invalid_timezone"),
    ({"fn": "work", "schedule": "@daily", "when": "now"}, 400, "unknown_field"),
    ({"fn": "work", "schedule": ""}, 400, "invalid_value"),
]


async def test_plans_that_cannot_be(world: World, one: Node) -> None:
    await world.endpoint(one, [WORK])
    for data, status, code in PLANS:
        assert (await one.call("POST", "/v1/events", {"type": "schedule:new", "data": data}, expect=status))["code"] == code, data
    assert (await one.call("GET", "/v1/events"))["rows"] == []
