"""What waited has its schedule timeout again, a page at a time, however much it is and whoever dies in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest

from dispatcher.store import gates, renewals, tasks
from tests.world.endpoint import Endpoint, manifest
from tests.world.test_concurrency import limited, quiet, serve
from tests.world.test_pausing_limits import opened
from tests.world.test_unschedulable import GPU, is_aside, look
from tests.world.test_unschedulable import opened as taken_again
from tests.world.world import Node, World, until

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
WORK = {"name": "work", "schedule_timeout": "5m", "body": "v1"}
LINE = {
    "name": "line", "kind": "workflow", "concurrency": [{"expression": "'x'", "max_runs": 1}],
    "tasks": [{"name": "a", "schedule_timeout": "5m", "body": "v1"}, {"name": "b", "parents": ["a"], "body": "v1"}],
}  # fmt: skip
RENEWALS = "select count(*) from renewals"
LATE = """
    select (select count(*) from tasks where schedule_deadline <= $1)
         + (select count(*) from runs where gates_held < cardinality(gates) and schedule_deadline <= $1)
"""


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("renewals", "pausing"):
        monkeypatch.setattr(f"dispatcher.runtime.{where}._PAGE", 2)


async def _serve(world: World, node: Node) -> Endpoint:
    endpoint = await world.discovered(node, manifest([WORK, LINE, {"name": "other"}]), name="plain")
    endpoint.way = lambda arrival: arrival.answer(200, 1, task_protocol="1")
    return endpoint


async def _stopped(node: Node, *names: str) -> None:
    """Have some loops do nothing of their own accord."""
    for name in names:
        await node.runtime.loops[name].stop()


async def _renewed(world: World, node: Node) -> None:
    async def over() -> bool:
        await node.turn("renewals")
        return not await world.database.fetchval(RENEWALS)

    await until(over)


async def _deadlines(world: World, workflow: str) -> list[datetime | None]:
    of_tasks = """
        select t.schedule_deadline from tasks t join workflows w on w.id = t.workflow_id where w.name = $1
        union all
        select r.schedule_deadline from runs r join workflows w on w.id = r.workflow_id
        where w.name = $1 and r.gates_held < cardinality(r.gates)
    """
    return [row[0] for row in await world.database.fetch(of_tasks, workflow)]


async def _pause(node: Node, what: str, *, paused: bool) -> None:
    await node.call("PATCH", f"/v1/{what}", {"paused": paused})


async def _states(node: Node) -> dict[str, tuple[bool, bool]]:
    """Of each workflow: whether it is paused, and about to be resumed."""
    return {row["name"]: (row["paused"], row["resuming"]) for row in (await node.call("GET", "/v1/workflows"))["rows"]}


async def _waiting(world: World, node: Node, each: int) -> list[str]:
    """So many runs of two workflows wait for their pause to end, and of a third for their endpoint, which is paused."""
    await _pause(node, "endpoints/plain", paused=True)
    for name in ("work", "line"):
        await _pause(node, f"workflows/{name}", paused=True)
    runs = [await node.trigger(name) for name in ("work", "line", "other") * each]
    await node.turn("gates", "graphs")
    return runs


@pytest.mark.parametrize(("page", "at_once"), [(2, False), (100, True)])
async def test_what_waited_for_a_pause_has_its_whole_time(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch, page: int, at_once: bool
) -> None:
    """Tasks, runs in line, and what had lost its deadline; not a durable task that has begun, and nothing of other workflows.

    What is much has it before its workflow is resumed, which takes a while: it has a little more.
    """
    for where in ("renewals", "pausing"):
        monkeypatch.setattr(f"dispatcher.runtime.{where}._PAGE", page)
    await _serve(world, one)
    await _stopped(one, "renewals")
    runs = await _waiting(world, one, 3)
    await world.database.execute("update tasks set durable = true, turn = 2, schedule_deadline = null where run_id = $1", runs[0])
    others = await _deadlines(world, "other")
    await world.advance(4 * MINUTE)
    for name in ("work", "line"):
        await _pause(one, f"workflows/{name}", paused=False)
    resuming = (not at_once, not at_once)
    assert await _states(one) == {"work": resuming, "line": resuming, "other": (False, False)}
    one.runtime.loops["renewals"].start()
    await _renewed(world, one)
    assert await _states(one) == dict.fromkeys(("work", "line", "other"), (False, False))
    until = world.now + (5 * MINUTE if at_once else 6 * MINUTE)
    assert sorted(await _deadlines(world, "work"), key=str) == [*[until] * 2, None]
    assert await _deadlines(world, "line") == [until] * 3
    assert await _deadlines(world, "other") == others


async def test_a_workflow_is_resumed_once_all_that_waits_has_been_gone_through(world: World, one: Node) -> None:
    """Nothing of it is given up before, whoever goes on with it: a second dispatcher does, where the first ended with the first page."""
    await _serve(world, one)
    await _stopped(one, "renewals")
    await _waiting(world, one, 5)
    for name in ("work", "line"):
        await _pause(one, f"workflows/{name}", paused=False)
    await one.runtime.services.renewals.tick(world.now)
    world.clock.advance(10 * MINUTE)
    two = await world.node()
    await two.turn("timers", "gates")
    await _pause(two, "endpoints/plain", paused=False)

    async def over() -> bool:
        await two.turn("renewals", "gates", "graphs", "claim")
        return not await world.database.fetchval("select count(*) from runs")

    await until(over)
    assert await world.database.fetchval("select count(*) from run_history where status <> 'succeeded'") == 0


async def test_what_somebody_else_has_at_hand_has_its_time_once_they_let_go(world: World, one: Node) -> None:
    await _serve(world, one)
    await _stopped(one, "renewals")
    await _waiting(world, one, 3)
    for name in ("work", "line"):
        await _pause(one, f"workflows/{name}", paused=False)
    world.clock.advance(MINUTE)
    tick = one.runtime.services.renewals.tick
    async with world.database.transaction() as conn:
        await conn.execute("select from tasks for update")
        await conn.execute("select from runs for update")
        for _ in range(20):
            assert await tick(world.now) is not None
        assert await world.database.fetchval(RENEWALS) == 2
    while await tick(world.now) is not None:
        pass
    for name in ("work", "line"):
        assert await _deadlines(world, name) == [world.now + 6 * MINUTE] * 3


async def test_of_two_dispatchers_one_goes_through_a_page(world: World, one: Node) -> None:
    two = await world.node()
    await _serve(world, one)
    await _stopped(one, "renewals")
    await _stopped(two, "renewals")
    await _waiting(world, one, 5)
    await _pause(one, "workflows/work", paused=False)
    async with world.database.transaction() as conn:
        assert await renewals.next_one(conn) is not None
        assert await two.runtime.services.renewals.tick(world.now) is None
    while await two.runtime.services.renewals.tick(world.now) is not None:
        pass
    assert await _deadlines(world, "work") == [world.now + 6 * MINUTE] * 5


async def test_a_workflow_paused_again_meanwhile_stays_paused(world: World, one: Node) -> None:
    """The bound of its pause holds from then on; and resumed again, all of it is gone through. Resumed twice, it is not begun anew."""
    await _serve(world, one)
    await _stopped(one, "renewals")
    tick = one.runtime.services.renewals.tick
    await _waiting(world, one, 5)
    await _pause(one, "workflows/work", paused=False)
    await tick(world.now)
    at = await world.database.fetchval("select run_id from renewals")
    assert at > ""
    await _pause(one, "workflows/work", paused=False)
    assert await world.database.fetchval("select run_id from renewals") == at
    await one.call("PATCH", "/v1/workflows/work", {"paused": True, "queue_ttl": "1h"})
    assert await tick(world.now) is None
    assert (await _states(one))["work"] == (True, False)
    bounded = world.now + timedelta(hours=1)

    async def bound() -> bool:
        await one.turn("timers")
        return await _deadlines(world, "work") == [bounded] * 5

    world.clock.advance(MINUTE)
    await until(bound)
    await _pause(one, "workflows/work", paused=False)
    while await tick(world.now) is not None:
        await bound()
    assert await _deadlines(world, "work") == [world.now + 6 * MINUTE] * 5
    assert (await _states(one))["work"] == (False, False)


async def test_a_workflow_paused_again_meanwhile_is_paused_from_then_on(world: World, one: Node) -> None:
    """Its bound does not count what it was paused for before: whoever resumed it was told that it was to be."""
    await _serve(world, one)
    await _stopped(one, "renewals")
    await one.call("PATCH", "/v1/workflows/work", {"paused": True, "queue_ttl": "1h"})
    runs = [await one.trigger("work") for _ in range(5)]
    world.clock.advance(59 * MINUTE)
    await _pause(one, "workflows/work", paused=False)
    world.clock.advance(2 * MINUTE)
    directory = one.runtime.services.directory
    pictures = dict(directory.pictures)
    await _pause(one, "workflows/work", paused=True)
    directory.pictures.update(pictures)  # a dispatcher that has not heard of it finds nothing late
    await one.runtime.membership.expire(world.now, 10)
    bounded = world.now + timedelta(hours=1)

    async def bound() -> bool:
        await one.turn("timers")
        return await _deadlines(world, "work") == [bounded] * len(runs)

    world.clock.advance(MINUTE)
    await until(bound)


async def test_a_schedule_that_a_pause_would_drop_counts_once_its_workflow_is_to_be_resumed(world: World, one: Node) -> None:
    await _serve(world, one)
    await _stopped(one, "renewals")
    await one.call("PATCH", "/v1/workflows/work", {"paused": True, "on_schedule": "drop"})
    waiting = [await one.trigger("work") for _ in range(3)]
    await one.call("POST", "/v1/schedules", {"workflow": "work", "in": "1m"})
    await _pause(one, "workflows/work", paused=False)
    assert await _states(one) == {"work": (True, True), "line": (False, False), "other": (False, False)}
    [reason] = (await one.call("GET", f"/v1/runs/{waiting[0]}"))["tasks"][0]["waiting_for"]
    assert "is resumed once" in reason["message"]
    world.clock.advance(2 * MINUTE)
    await one.turn("timetable")
    assert await world.database.fetchval("select count(*) from runs") == len(waiting) + 1


async def test_one_that_cannot_be_renewed_is_in_no_others_way(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await _serve(world, one)
    await _stopped(one, "renewals")
    await _waiting(world, one, 3)
    for name in ("work", "line"):
        await _pause(one, f"workflows/{name}", paused=False)
    broken = await world.database.fetchval("select id from workflows where name = 'work'")
    renew = renewals.renew

    async def failing(conn: Any, renewal: Any, *how: Any) -> Any:
        if renewal.workflow_id == broken:
            raise ValueError("as where a definition cannot be read")
        return await renew(conn, renewal, *how)

    monkeypatch.setattr(renewals, "renew", failing)

    async def other_resumed() -> bool:
        world.clock.advance(SECOND)
        with suppress(ValueError):
            await one.runtime.services.renewals.tick(world.now)
        return not (await _states(one))["line"][0]

    await until(other_resumed)
    assert (await _states(one))["work"] == (True, True)


@pytest.mark.parametrize("how", ["paused", "removed"])
async def test_what_comes_between_the_last_page_and_resuming_counts(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await _serve(world, one)
    await _stopped(one, "renewals")
    await _waiting(world, one, 3)
    await _pause(one, "workflows/work", paused=False)
    over = renewals.over

    async def overtaken(conn: Any, renewal: Any) -> bool:
        if how == "removed":
            await conn.execute("update workflows set removed_at = created_at where name = 'work'")
        else:  # as by a statement that came before the one that holds the registry
            await conn.execute("delete from renewals")
        return await over(conn, renewal)

    monkeypatch.setattr(renewals, "over", overtaken)
    while await one.runtime.services.renewals.tick(world.now) is not None:
        pass
    assert await world.database.fetchval("select paused_at is not null from workflows where name = 'work'")
    assert await world.database.fetchval(RENEWALS) == 0


async def test_who_read_what_is_late_before_a_workflow_was_resumed_gives_nothing_up(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _serve(world, one)
    await _pause(one, "workflows/work", paused=True)
    await _pause(one, "endpoints/plain", paused=True)
    run_id = await one.trigger("work")
    await _stopped(one, "timers", "renewals", "claim")
    world.clock.advance(10 * MINUTE)
    await one.call("PATCH", "/v1/endpoints/plain", {"paused": False})
    overdue = tasks.overdue

    async def overtaken(*of: Any) -> Any:
        late = await overdue(*of)
        assert [task.run_id for task in late] == [run_id]
        await _pause(one, "workflows/work", paused=False)
        return late

    monkeypatch.setattr(tasks, "overdue", overtaken)
    await one.runtime.membership.expire(world.now, 10)
    for name in ("renewals", "claim"):
        one.runtime.loops[name].start()
    assert (await world.over(run_id))["status"] == "succeeded"


def _way_back(node: Node, endpoint: Endpoint, way: str) -> Callable[[], Any]:
    async def resumed() -> None:
        await _pause(node, "endpoints/plain", paused=False)

    async def registered() -> None:
        await node.call("PUT", "/v1/endpoints/plain", {"url": endpoint.url})

    async def probed() -> None:
        await node.turn("probe")

    return {"resumed": resumed, "registered": registered, "probed": probed}[way]


async def _gone(world: World, node: Node, way: str) -> None:
    """The endpoint takes no tasks."""
    broken = "circuit = 'open', circuit_since = $1, probe_at = $1::timestamptz + interval '10 minutes'"
    change = "paused = true" if way == "resumed" else broken
    await world.database.execute(f"update endpoints set {change} where created_at <= $1", world.now)
    await world.database.execute("update tenants set registry_version = registry_version + 1")
    await node.turn("registry")


@pytest.mark.parametrize("way", ["resumed", "registered", "probed"])
async def test_what_became_late_while_no_endpoint_took_it_has_its_time_again(world: World, one: Node, way: str) -> None:
    """As much as it had at first, each time."""
    endpoint = await _serve(world, one)
    await _stopped(one, "renewals", "claim")
    tick = one.runtime.services.renewals.tick
    for _ in range(2):
        await _gone(world, one, way)
        if not await world.database.fetchval("select count(*) from runs"):
            for name in ("work", "line") * 3:
                await one.trigger(name)
            await one.turn("gates", "graphs")
        world.clock.advance(20 * MINUTE)
        await one.turn("timers", "gates")
        assert await world.database.fetchval(LATE, world.now) == 6
        await _way_back(one, endpoint, way)()
        await until(lambda: world.database.fetchval(RENEWALS))
        while await tick(world.now) is not None:
            pass
        for name in ("work", "line"):
            assert await _deadlines(world, name) == [world.now + 5 * MINUTE] * 3
    one.runtime.loops["claim"].start()

    async def over() -> bool:
        await one.turn("gates", "graphs", "claim")
        return not await world.database.fetchval("select count(*) from runs")

    await until(over)
    assert await world.database.fetchval("select count(*) from run_history where status <> 'succeeded'") == 0


async def test_what_is_not_late_keeps_its_time_when_an_endpoint_comes_back(world: World, one: Node) -> None:
    await _serve(world, one)
    await _stopped(one, "renewals", "claim")
    await _gone(world, one, "resumed")
    early = await one.trigger("work")
    world.clock.advance(4 * MINUTE)
    later = await one.trigger("work")
    world.clock.advance(2 * MINUTE)
    await _pause(one, "endpoints/plain", paused=False)
    while await one.runtime.services.renewals.tick(world.now) is not None:
        pass
    assert (await world.task(early))["schedule_deadline"] == world.now + 5 * MINUTE
    assert (await world.task(later))["schedule_deadline"] == world.now + 3 * MINUTE


async def test_what_is_late_is_taken_before_what_came_later_as_an_endpoint_comes_back(world: World, one: Node) -> None:
    """Its time begins again as the endpoint comes back, whoever notes it when; also where it is put back, since it lacks units."""
    limit = {"dynamic_key": "'shared'", "units": 1, "limit": 1, "duration": "minute"}
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "5m", "rate_limits": [limit]}], slots=1)
    await _stopped(one, "renewals")
    await _gone(world, one, "resumed")
    runs = [await one.trigger("work") for _ in range(2)]
    world.clock.advance(20 * MINUTE)
    runs.append(await one.trigger("work"))
    await _pause(one, "endpoints/plain", paused=False)
    assert await serve(endpoint, runs[:1]) == runs[:1]
    parked = await world.task(runs[1], state="gated")
    assert parked["schedule_deadline"] == world.now + 5 * MINUTE
    one.runtime.loops["renewals"].start()
    await _renewed(world, one)
    for run_id in runs[1:]:
        world.clock.advance(MINUTE)
        await one.turn("rates", "claim")
        assert await serve(endpoint, [run_id]) == [run_id]


async def test_what_is_late_as_it_is_leased_has_the_time_its_workflow_declares(world: World, one: Node) -> None:
    """As where a page of renewals finds it first, whatever its deadline had been changed to since it became ready."""
    limit = {"dynamic_key": "'shared'", "units": 1, "limit": 1, "duration": "minute"}
    endpoint = await world.endpoint(one, [{"name": "work", "schedule_timeout": "5m", "rate_limits": [limit]}], slots=1)
    await _stopped(one, "renewals")
    await _gone(world, one, "resumed")
    runs = [await one.trigger("work") for _ in range(2)]
    await one.call("PATCH", "/v1/workflows/work", {"paused": True, "queue_ttl": "2h"})
    world.clock.advance(20 * MINUTE)
    await _pause(one, "workflows/work", paused=False)
    assert await _deadlines(world, "work") == [world.now + 5 * MINUTE] * 2
    world.clock.advance(20 * MINUTE)
    await _pause(one, "endpoints/plain", paused=False)
    assert await serve(endpoint, runs[:1]) == runs[:1]
    parked = await world.task(runs[1], state="gated")
    assert parked["schedule_deadline"] == world.now + 5 * MINUTE


@pytest.mark.parametrize("why", ["paused", "unschedulable"])
async def test_what_was_set_aside_comes_back_in_the_order_of_arrival_whoever_has_it_at_hand(
    world: World, one: Node, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """What a page holds to give it its time again would be passed over by who lets others back into line."""
    handler = limited({"name": "shared", "max_runs": 1}, schedule_timeout="5m")
    endpoint = await world.endpoint(one, [handler])
    await _stopped(one, "renewals")
    if why == "paused":
        await _pause(one, "endpoints/plain", paused=True)
        runs = [await one.trigger("work") for _ in range(5)]
    else:
        runs = [await one.trigger("work", **GPU) for _ in range(5)]
        await look(one)
        assert await is_aside(world, runs[-1])
        await _gone(world, one, "registered")
    world.clock.advance(9 * MINUTE)  # it is tried again after ten
    renew = renewals.renew

    async def held(conn: Any, renewal: Any, *how: Any) -> Any:
        found = await renew(conn, renewal, *how)
        await one.turn("asides", "gates", "claim")
        return found

    monkeypatch.setattr(renewals, "renew", held)
    if why == "paused":
        await _pause(one, "endpoints/plain", paused=False)
    else:
        again = {"url": endpoint.url, "handlers": [{"body": "v1", **handler}], "labels": {"gpu": True}}
        await one.call("PUT", "/v1/endpoints/plain", again)
    one.runtime.loops["renewals"].start()
    await _renewed(world, one)
    await opened(world, one)
    await taken_again(world, one)
    assert await serve(endpoint, runs) == runs
    await quiet(world)


async def test_nobody_passes_a_gate_before_one_that_has_its_time_again(world: World, one: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page holds the first in line, and the last of it is not held: it stays where it is, and the gate is looked at again."""
    endpoint = await world.endpoint(one, [limited({"expression": "'x'", "max_runs": 1}, schedule_timeout="5m")])
    await _stopped(one, "renewals")
    await _pause(one, "endpoints/plain", paused=True)
    runs = [await one.trigger("work") for _ in range(3)]
    world.clock.advance(10 * MINUTE)
    await _pause(one, "endpoints/plain", paused=False)
    await one.turn("claim")
    first = await endpoint.next()
    await _stopped(one, "gates")
    first.answer(200, 1)
    await world.over(first.json["run_id"])
    renew, passed = renewals.renew, list[Any]()

    async def held(conn: Any, renewal: Any, *how: Any) -> Any:
        await conn.execute("select from tasks where run_id = $1 for update", runs[1])
        waking = await gates.waking(world.database, 10)
        passed.extend(await gates.admit(world.database, waking, world.now, 10))
        return await renew(conn, renewal, *how)

    monkeypatch.setattr(renewals, "renew", held)
    await one.runtime.services.renewals.tick(world.now)
    assert [(row.gate is None, row.left) for row in passed] == [(False, 2)]
    for name in ("renewals", "gates"):
        one.runtime.loops[name].start()
    monkeypatch.setattr(renewals, "renew", renew)
    await _renewed(world, one)
    await one.turn("gates", "claim")
    assert await serve(endpoint, runs[1:]) == runs[1:]
    await quiet(world)


async def test_where_another_endpoint_was_there_nothing_has_its_time_again(world: World, one: Node) -> None:
    await _serve(world, one)
    other = await world.discovered(one, manifest([WORK]), name="other")
    other.way = None
    await _stopped(one, "renewals", "claim", "timers")
    await _gone(world, one, "resumed")
    await _pause(one, "endpoints/other", paused=False)
    await one.trigger("work")
    world.clock.advance(6 * MINUTE)
    await _pause(one, "endpoints/plain", paused=False)
    assert await world.database.fetchval(RENEWALS) == 0
