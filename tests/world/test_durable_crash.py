"""The crash matrix of durable tasks, from the server's side: the dispatcher is killed at every statement in turn, another takes over, and
the run comes out as if nothing had happened, with every effect in the log exactly once.

The endpoint is a program over the wire: it does a step only if the log does not have it, records it, and counts what it did. A step whose
effect happened and whose record did not reach the log may be done again: that is what a log can promise, and all the counts allow.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from dispatcher.store import intake, journal, outcomes, queue, waits
from dispatcher.store.database import Database, DatabaseUnavailable
from tests.world.durable import durable_endpoint, entry, pending
from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until

_KILLS = 160  # statements after which the dispatcher is killed, at most
_DUE = "select exists (select from waits where due_at <= $1 and settled_at is null)"
_QUEUED = "select exists (select from tasks where state = 'queued')"
_WRITES = frozenset(
    {
        intake.WRITE.sql,
        journal.APPEND.sql,
        journal.MERGE.sql,
        waits.RESUME.sql,
        outcomes.YIELD.sql,
        outcomes.FINISH.sql,
        outcomes.REQUEUE.sql,
    }
)
_PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Handler:
    """A program: what it asks for, by the log. Everything else about it is the same for all shapes."""

    shape: Callable[[Handler, Reader], None]
    effects: Counter[str] = field(default_factory=Counter)
    turns: int = 0

    def answer(self, arrival: Arrival) -> None:
        """One turn: all of it in the answer, so that what is in the log came with it or not at all."""
        body = arrival.json
        if body["type"] == "batch":
            raise AssertionError("no batches here")
        if body["type"] == "run":
            self.effects[f"child {body['input']['n']}"] += 1
            arrival.answer(200, {"n": body["input"]["n"] * 2})
            return
        if body["type"] != "turn":
            arrival.answer(200)
            return
        self.turns += 1
        reader = Reader(self, body["log"]["entries"])
        try:
            self.shape(self, reader)
        except _Waits as waits:
            reply = {"status": "wait", "wake": waits.wake}
        except _Continues as continues:
            reply = {"status": "continue", "input": continues.input}
        else:
            reply = {"status": "done", "output": reader.output}
        arrival.answer(200, {**reply, "base": body["log"]["len"], "ops": reader.ops}, task_protocol="1")


class _Waits(Exception):  # noqa: N818
    def __init__(self, wake: Any) -> None:
        self.wake = wake


class _Continues(Exception):  # noqa: N818
    def __init__(self, given: Any) -> None:
        self.input = given


@dataclass(slots=True)
class Reader:
    """What a program sees of its log."""

    handler: Handler
    entries: list[dict[str, Any]]
    ops: list[dict[str, Any]] = field(default_factory=list)
    output: Any = None

    def over(self, name: str) -> dict[str, Any] | None:
        return next((e for e in self.entries if e["id"] == name and e["status"] not in ("pending", "retry")), None)

    def step(self, name: str) -> Any:
        known = self.over(name)
        if known is not None:
            return known["value"]
        self.handler.effects[name] += 1
        self.ops.append({"id": name, "op": "step", "status": "ok", "value": name.upper()})
        return name.upper()

    def ask(self, op: str, name: str, **members: Any) -> None:
        if not any(e["id"] == name for e in self.entries):
            self.ops.append(pending(op, name, **members))

    def all(self, *names: str) -> list[Any]:
        if any(self.over(name) is None for name in names):
            raise _Waits({"all": list(names)})
        return [(self.over(name) or {}).get("value") for name in names]

    def any(self, *names: str) -> str:
        first = next((e["id"] for e in self.entries if e["id"] in names and e["status"] != "pending"), None)
        if first is None:
            raise _Waits({"any": list(names)})
        return str(first)


def _sequence(_: Handler, log: Reader) -> None:
    log.step("a#0")
    log.ask("sleep", "nap#0", ms=1_000)
    log.all("nap#0")
    log.step("b#0")
    log.ask("sleep", "nap#1", ms=1_000)
    log.all("nap#1")
    log.output = [log.step("c#0")]


def _gather(_: Handler, log: Reader) -> None:
    for n in range(3):
        log.ask("sleep", f"nap#{n}", ms=1_000 * (n + 1))
    log.step("a#0")
    log.all("nap#0", "nap#1", "nap#2")
    log.output = log.step("b#0")


def _either(_: Handler, log: Reader) -> None:
    log.ask("event", "paid#0", key="never")
    log.ask("sleep", "late#0", ms=2_000)
    log.output = [log.any("paid#0", "late#0"), log.step("a#0")]


def _fan_out(_: Handler, log: Reader) -> None:
    names = [f"c#{n}" for n in range(5)]
    for n, name in enumerate(names):
        log.ask("child", name, workflow="child", input={"n": n})
    log.output = [value["n"] for value in log.all(*names)]


def _loop(_: Handler, log: Reader) -> None:
    for n in range(2):
        log.step(f"s#{n}")
        log.ask("sleep", f"nap#{n}", ms=500)
        log.all(f"nap#{n}")
    log.output = 2


def _timeout(_: Handler, log: Reader) -> None:
    log.ask("event", "paid#0", key="never", timeout_ms=1_000)
    log.any("paid#0")
    log.output = [(log.over("paid#0") or {})["status"], log.step("a#0")]


def _continue(handler: Handler, log: Reader) -> None:
    log.step("once#0")
    log.ask("sleep", "nap#0", ms=500)
    log.all("nap#0")
    if handler.effects["continued"] == 0:
        handler.effects["continued"] += 1
        raise _Continues({"n": 2})
    log.output = log.step("end#0")


def _message(_: Handler, log: Reader) -> None:
    log.ask("message", "m#0", timeout_ms=2_000)
    log.any("m#0")
    log.output = [(log.over("m#0") or {})["status"], log.step("a#0")]


SHAPES: dict[str, tuple[Callable[[Handler, Reader], None], Any, dict[str, int]]] = {
    "a sequence": (_sequence, ["C#0"], {"a#0": 1, "b#0": 1, "c#0": 1}),
    "a gather": (_gather, "B#0", {"a#0": 1, "b#0": 1}),
    "either": (_either, ["late#0", "A#0"], {"a#0": 1}),
    "a fan-out": (_fan_out, [0, 2, 4, 6, 8], {f"child {n}": 1 for n in range(5)}),
    "a loop": (_loop, 2, {f"s#{n}": 1 for n in range(2)}),
    "an event that never comes": (_timeout, ["timeout", "A#0"], {"a#0": 1}),
    "a message that never comes": (_message, ["timeout", "A#0"], {"a#0": 1}),
}


class Killed(Exception):  # noqa: N818
    """The dispatcher's connection ends here."""


@dataclass(slots=True)
class Scythe:
    """Cuts a dispatcher's database off after so many statements: from then on it can write nothing, as if it had been killed.

    `before` says whether the statement that is cut still happens: a process may die before a commit, or before it hears of it.
    """

    after: int
    before: bool
    count: int = 0
    cut: asyncio.Event = field(default_factory=asyncio.Event)

    async def _counts(self, run: Any, lane: Any, sql: str, args: tuple[object, ...]) -> bool:
        """Statements that change something of runs; those that look for work only where they will find some."""
        if sql == waits.DUE.sql:
            return bool(await run(lane, asyncpg.Connection.fetchval, _DUE, (args[0],)))
        if sql == queue.CLAIM.sql:
            return bool(await run(lane, asyncpg.Connection.fetchval, _QUEUED, ()))
        return sql in _WRITES

    def patch(self, database: Database) -> None:
        run, transaction = database._run, database.transaction

        async def counted(lane: Any, method: Any, sql: str, args: tuple[object, ...]) -> Any:
            if self.cut.is_set():
                raise DatabaseUnavailable("killed", sent=False)
            if await self._counts(run, lane, sql, args):
                self.count += 1
                if self.count == self.after:
                    self.cut.set()
                    if self.before:
                        raise DatabaseUnavailable("killed", sent=False)
                    await run(lane, method, sql, args)
                    raise DatabaseUnavailable("killed", sent=True)
            return await run(lane, method, sql, args)

        def guarded(**lane: Any) -> Any:
            if self.cut.is_set():
                raise DatabaseUnavailable("killed", sent=False)
            self.count += 1
            if self.count == self.after:
                self.cut.set()
                raise DatabaseUnavailable("killed", sent=False)
            return transaction(**lane)

        database._run = counted  # type: ignore[method-assign]
        database.transaction = guarded  # type: ignore[method-assign]


async def _endpoint(world: World, node: Node, handler: Handler) -> Endpoint:
    endpoint = await durable_endpoint(world, node, entry("order", retries=3), {"name": "child", "retries": 3, "idempotent": True})
    endpoint.way = handler.answer
    return endpoint


async def _until_over(world: World, run_id: str) -> dict[str, Any]:
    """Let time pass, in every dispatcher there is, until a run is over."""

    async def over() -> dict[str, Any] | None:
        world.clock.advance(timedelta(milliseconds=100))
        for node in world.nodes:
            for loop in ("heartbeat", "reap", "timers", "waits", "claim"):
                node.runtime.loops[loop].wake()
        row = await world.database.fetchrow("select * from task_history where run_id = $1", run_id)
        return dict(row) if row is not None else None

    return await until(over, _PATIENCE_SECONDS)


async def _killed(world: World, scythe: Scythe, shape: str) -> tuple[dict[str, Any], Handler, bool]:
    """One run whose first dispatcher is killed; the second one was there all along."""
    code, _, _ = SHAPES[shape]
    handler = Handler(code)
    one = await world.node("one", lease=6.0, heartbeat=1.0)
    two = await world.node("two", lease=6.0, heartbeat=1.0)
    await _endpoint(world, two, handler)
    await one.runtime.loops["registry"].tick(world.now)
    for name in ("claim", "waits"):
        await two.runtime.loops[name].stop()  # at first it is the other one's work
    run_id = await one.trigger("order")
    scythe.patch(one.runtime.services.database)
    work = asyncio.ensure_future(_until_over(world, run_id))
    await asyncio.wait([work, asyncio.ensure_future(scythe.cut.wait())], return_when=asyncio.FIRST_COMPLETED)
    cut = scythe.cut.is_set()
    if cut:
        await world.crash(one)
        for name in ("claim", "waits"):
            two.runtime.loops[name].start()
    return await work, handler, cut


def _check(shape: str, row: dict[str, Any], handler: Handler, kill: str) -> None:
    _, output, effects = SHAPES[shape]
    assert row["status"] == "succeeded", (kill, row["error"])
    assert json.loads(row["output"]) == output, kill
    for name, least in effects.items():
        assert handler.effects[name] >= least, (kill, name)
    # What happened more than once can only be what the one killed turn, or the child under way, did not get recorded.
    assert sum(handler.effects.values()) - sum(effects.values()) <= max(len(effects), 2), (kill, handler.effects)


async def _log_is_whole(world: World) -> None:
    """Every entry is there once, and nothing is left behind."""
    for row in await world.database.fetch("select count, entries from journal_history"):
        entries = json.loads(b"[" + row["entries"] + b"]")
        assert len(entries) == row["count"]
        final = Counter(e["id"] for e in entries if e["status"] != "pending")
        assert all(count == 1 for count in final.values()), final
        asked = Counter(e["id"] for e in entries if e["status"] == "pending")
        assert all(count == 1 for count in asked.values()), asked
    for table in ("tasks", "runs", "waits", "journal", "messages"):
        assert await world.database.fetchval(f"select count(*) from {table}") == 0, table


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_killed_at_every_statement(dsn: str, database: Database, shape: str, before: bool, pytestconfig: pytest.Config) -> None:
    """Every one in the long form; in the short one every eighth, another one first for each shape."""
    stride = int(pytestconfig.getoption("--crash-stride"))
    first = 1 + list(SHAPES).index(shape) % stride
    for after in range(first, _KILLS, stride):
        world = World(dsn, database)
        try:
            row, handler, cut = await _killed(world, Scythe(after, before), shape)
            _check(shape, row, handler, f"{shape}, {'before' if before else 'after'} statement {after}")
            await _log_is_whole(world)
        finally:
            await world.close()
            await database.execute("delete from run_history")
            await database.execute("delete from task_history")
            await database.execute("delete from journal_history")
            await database.execute("delete from attempts")
        if not cut:
            assert after > 3, "nothing was killed"
            return
    raise AssertionError(f"more than {_KILLS} statements")
