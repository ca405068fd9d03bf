"""Durable tasks that ask for very much at once: what goes into one append or one answer has its bounds, whatever the handler asks for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from handlers_sdk import Context, Dispatcher, DurableContext
from handlers_sdk.testing import DurableTester, crash_everywhere

COUNT = 240
MOST_OPS = 50  # a part, here
MOST_BYTES = 100_000

dispatcher = Dispatcher()


@dispatcher.task(name="child")
async def child(input: dict[str, Any], ctx: Context) -> int:
    return int(input["n"])


@dispatcher.durable_task(name="sleeper")
async def sleeper(input: dict[str, Any], ctx: DurableContext) -> int:
    return len(await asyncio.gather(*[ctx.aio_sleep_for("1h") for _ in range(input["n"])]))


@dispatcher.durable_task(name="parent")
async def parent(input: dict[str, Any], ctx: DurableContext) -> int:
    return sum(await asyncio.gather(*[child.aio_run({"n": n, "pad": "x" * input["pad"]}) for n in range(input["n"])]))


@dispatcher.durable_task(name="starter")
async def starter(input: dict[str, Any], ctx: DurableContext) -> str:
    started = [ctx.run_child("elsewhere", {"n": n}) for n in range(input["n"])]
    return f"{len(started)} started"


def made(crash_at: int | None = None, *, unreachable: bool = False) -> DurableTester:
    children = {"elsewhere": lambda _: None}
    return DurableTester([child, sleeper, parent, starter], crash_at=crash_at, unreachable=unreachable, children=children)


@pytest.mark.parametrize("unreachable", [False, True])
@pytest.mark.parametrize(
    ("workflow", "input", "output"),
    [
        (sleeper, {"n": COUNT}, COUNT),
        (parent, {"n": 60, "pad": 10_000}, sum(range(60))),
        (starter, {"n": COUNT}, f"{COUNT} started"),
    ],
    ids=["sleeps", "large children", "children nobody waits for"],
)
async def test_what_is_asked_for_is_recorded_in_parts(
    workflow: Any, input: Any, output: Any, unreachable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers_sdk.turns.OPS_PER_APPEND", MOST_OPS)
    monkeypatch.setattr("handlers_sdk.turns.CARRIED_BYTES_MAX", MOST_BYTES)
    world = made(unreachable=unreachable)
    run = await world.run(workflow, input)
    assert (run.status, run.output) == ("succeeded", output)
    assert sum(entry["status"] == "pending" for entry in run.entries) == input["n"]
    assert world.double.largest[0] <= MOST_OPS
    assert world.double.largest[1] <= MOST_BYTES + 1_000


@pytest.mark.parametrize("unreachable", [False, True])
@pytest.mark.parametrize("workflow", [sleeper, starter])
async def test_and_is_the_same_when_it_dies_between_them(workflow: Any, unreachable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers_sdk.turns.OPS_PER_APPEND", 3)
    worlds: list[DurableTester] = []

    def make(crash_at: int | None) -> DurableTester:
        worlds.append(made(crash_at, unreachable=unreachable))
        return worlds[-1]

    assert await crash_everywhere(make, workflow, {"n": 10}) >= 8
    for world in worlds:
        asked = [entry["id"] for entry in next(iter(world.double.runs.values())).entries if entry["status"] == "pending"]
        assert asked == [f"{'sleep' if workflow is sleeper else 'elsewhere'}#{n}" for n in range(10)]
