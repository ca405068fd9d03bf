"""The crash matrix of durable tasks, from the server's side: dispatchers are killed before and after every statement that changes
something, at every length of the log, others take over, and each shape of handler comes to what it comes to undisturbed, with every
effect counted.

The endpoint is a program over the wire. What it did in an attempt is either in the log, recorded by that attempt, or the attempt was lost:
a step whose record did not reach the log is done again, which is what a log can promise, and nothing else ever is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from typing import Any, get_args

import pytest

from dispatcher.store.database import Database
from tests.world.durable import durable_endpoint, entry
from tests.world.killing import Fates, Succession
from tests.world.programs import Effect, Programs, Way
from tests.world.shapes import SHAPES, Shape, fan_out, loop
from tests.world.world import World

_WAYS: tuple[Way, ...] = get_args(Way)
_SETTINGS = {"infra_retries": 100_000, "cancel_grace": 1e6, "log_inline_bytes": 600}
_ENTRY = {"retries": 3, "execution_timeout": "10h", "schedule_timeout": "500h"}
_MANY = 1_000
# How each speaks, and of how many statements one is deadly: in the short form, in the long one.
THOUSANDS: dict[str, tuple[Shape, Way, int, int]] = {
    "steps": (Shape({"order": loop(_MANY, 100)}, sum(range(_MANY)), {f"s#{n}": 1 for n in range(_MANY)}), "append", 300, 4),
    "children": (
        Shape({"order": fan_out(_MANY)}, [2 * n for n in range(_MANY)], {f"child {n}": 1 for n in range(_MANY)}),
        "answer",
        7,
        1,
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each shape speaks in every way in the long form, in one of them in the short one."""
    if "way" in metafunc.fixturenames:
        long = metafunc.config.getoption("--crash-stride") == 1
        chosen = list(product(SHAPES, _WAYS)) if long else [(name, _WAYS[n % 3]) for n, name in enumerate(SHAPES)]
        metafunc.parametrize(("name", "way"), chosen)


async def _killed(world: World, shape: Shape, way: Way, fates: Fates, at_once: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The row of a run that came through, its effects counted."""
    succession = Succession(world, fates, at_once, _SETTINGS)
    await succession.begin(monkeypatch)
    node = world.nodes[0]
    handlers = [entry(name, **{**_ENTRY, **shape.entry}) for name in shape.programs]
    endpoint = await durable_endpoint(world, node, *handlers, {"name": "child", **_ENTRY, "idempotent": True})
    if shape.paused:
        await node.call("PATCH", "/v1/endpoints/sdk", {"paused": True})
    for other in world.nodes[1:]:
        await other.turn("registry")
    programs = Programs(succession, way, shape.programs)
    endpoint.way = programs
    run_id = await node.trigger("order")
    fates.armed = True
    try:
        row = await succession.until_over(run_id, shape.acts)
    finally:
        await succession.end()
    await _check(world, shape, row, programs.effects)
    return row


async def _check(world: World, shape: Shape, row: dict[str, Any], effects: list[Effect]) -> None:
    assert row["status"] == shape.status, row["error"]
    assert json.loads(row["output"] or "null") == shape.output
    attempts = {(r["run_id"], r["number"]): r["status"] for r in await world.database.fetch("select * from attempts")}
    recorded = await _recorded(world) | {(e.run_id, e.attempt, e.name) for e in effects if e.name.startswith("child")}
    assert len(set(effects)) == len(effects), "an attempt has done something twice"
    kept = [e for e in effects if (e.run_id, e.attempt, e.name) in recorded and not _is_lost_child(e, attempts)]
    assert Counter(e.name for e in kept) == shape.effects
    for lost in set(effects) - set(kept):
        assert attempts[(lost.run_id, lost.attempt)] == "lost", f"{lost} was forgotten"


def _is_lost_child(effect: Effect, attempts: dict[tuple[str, int], str]) -> bool:
    return effect.name.startswith("child") and attempts[(effect.run_id, effect.attempt)] == "lost"


async def _recorded(world: World) -> set[tuple[str, int, str]]:
    """What the logs say was done, in which attempt. They are whole: nothing is there twice, and nothing is left behind."""
    found: set[tuple[str, int, str]] = set()
    for row in await world.database.fetch("select * from journal_history"):
        entries = json.loads(b"[" + row["entries"] + b"]")
        assert len(entries) == row["count"]
        for status in ({"pending"}, {"ok", "error", "timeout", "cancelled", "closed"}):
            assert max(Counter(e["id"] for e in entries if e["status"] in status).values(), default=0) <= 1
        done = [e for e in entries if "by" in e]
        found |= {(row["run_id"], e["by"], e["id"] + (" failing" if e["status"] == "retry" else "")) for e in done}
    for table in ("tasks", "runs", "waits", "journal", "messages"):
        assert await world.database.fetchval(f"select count(*) from {table}") == 0, table
    return found


@asynccontextmanager
async def _told(dsn: str, database: Database, fates: Fates) -> AsyncIterator[World]:
    """A world; of a failure, who was killed."""
    world = World(dsn, database)
    try:
        yield world
    except BaseException:
        print(*fates.kills, f"{fates.under_way} statements are under way at {world.now}", sep="\n")
        for table in ("tasks", "waits", "attempts"):
            print(*[dict(row) for row in await database.fetch(f"select * from {table}")], sep="\n")
        raise
    finally:
        await world.close()


async def test_killed_at_every_statement(
    dsn: str,
    database: Database,
    name: str,
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    stride = int(pytestconfig.getoption("--crash-stride"))
    number = list(SHAPES).index(name) + _WAYS.index(way)
    fates = Fates(stride, f"{name} {way}")
    async with _told(dsn, database, fates) as world:
        await _killed(world, SHAPES[name], way, fates, 1 + number % 2, monkeypatch)
    record_property("kills", len(fates.kills))
    assert fates.kills or stride > 1, "nobody was killed"


@pytest.mark.parametrize("name", THOUSANDS)
async def test_a_thousand(
    dsn: str,
    database: Database,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    """Here and there in the short form, at every few statements in the long one."""
    long = pytestconfig.getoption("--crash-stride") == 1
    shape, way, short_stride, long_stride = THOUSANDS[name]
    fates = Fates(long_stride if long else short_stride, name)
    async with _told(dsn, database, fates) as world:
        await _killed(world, shape, way, fates, 1, monkeypatch)
    record_property("kills", len(fates.kills))
    assert fates.kills, "nobody was killed"
