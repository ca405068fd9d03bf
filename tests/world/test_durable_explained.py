"""What a suspended task waits for, in the run and on the command line."""

from __future__ import annotations

from datetime import timedelta

from dispatcher.cli.results import journal_lines, waiting_lines
from tests.world.durable import answer, durable_endpoint, entry, pending
from tests.world.world import Node, World


async def test_a_suspended_task_says_what_it_waits_for(world: World, one: Node) -> None:
    endpoint = await durable_endpoint(world, one, entry("order"), {"name": "leaf"})
    run_id = await one.trigger("order")
    ops = [
        pending("sleep", "nap#0", ms=60_000),
        pending("event", "paid#0", key="paid", scope="9", timeout_ms=120_000),
        pending("child", "leaf#0", workflow="leaf"),
        pending("message", "message#0"),
        {"id": "charge#0", "op": "step", "status": "retry", "error": {"message": "no"}, "after_ms": 5_000, "at": "2026-03-01T12:00:00Z"},
    ]
    names = [op["id"] for op in ops]
    answer(await endpoint.next(), "wait", base=0, ops=ops, wake={"any": names})
    await world.task(run_id, state="waiting")
    shown = await one.call("GET", f"/v1/runs/{run_id}")
    child = await world.database.fetchval("select id from runs where parent_run_id = $1", run_id)
    reasons = {reason["id"]: reason for reason in shown["tasks"][0]["waiting_for"]}
    assert {name: reason["message"].partition(": ")[2] for name, reason in reasons.items()} == {
        "nap#0": "it sleeps until 2026-03-01 12:01:00Z",
        "paid#0": "an event 'paid' of scope '9' is to come until 2026-03-01 12:02:00Z",
        "leaf#0": f"run {child} is to end",
        "message#0": "a message is to come",
        "charge#0": "it is tried again at 2026-03-01 12:00:05Z",
    }
    assert (reasons["leaf#0"]["run_id"], reasons["paid#0"]["event"]) == (child, "paid")
    assert all(f"  waits: {reason['message']}" in list(waiting_lines(shown)) for reason in reasons.values())
    journal = await one.call("GET", f"/v1/runs/{run_id}/journal")
    printed = {line.split()[1]: line.split("  ")[-1].strip() for line in list(journal_lines(journal))[1:]}
    assert printed["nap#0"] == "for 0:01:00"
    assert printed["paid#0"] == "paid at most 0:02:00"
    assert printed["charge#0"] == '{"message": "no"} again after 0:00:05'

    await world.advance(timedelta(seconds=6))
    turn = await endpoint.next()
    while turn.json["type"] == "run":
        turn = await endpoint.next()
    assert "waiting_for" not in (await one.call("GET", f"/v1/runs/{run_id}"))["tasks"][0], "it is at work"
    answer(turn, "done", base=turn.json["log"]["len"])
