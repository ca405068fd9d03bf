"""Shapes of durable handlers, each with what it comes to and how often each of its effects happens, whoever is killed on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.world.durable import pending
from tests.world.killing import Act, Succession
from tests.world.programs import Ends, Log, Program

_HOUR = 3_600.0
WAITS = "select state = 'waiting' from tasks where run_id = $1"
_ALL_WAIT = "select count(*) = 2 and bool_and(state = 'waiting') and bool_or(run_id = $1) from tasks"
_QUEUED = "select state = 'queued' from tasks where run_id = $1"
_FAILED = "select state = 'scheduled' and log_len > 0 from tasks where run_id = $1"
_BLOCKED = "select state = 'blocked' from tasks where run_id = $1"
_OVER = "select not exists (select from tasks where run_id = $1)"


@dataclass(frozen=True, slots=True)
class Shape:
    """Programs by workflow, of which `order` is run; what is done to it from outside; what it comes to."""

    programs: Mapping[str, Program]
    output: Any
    effects: Mapping[str, int]
    status: str = "succeeded"
    acts: tuple[Act, ...] = ()
    entry: Mapping[str, Any] = field(default_factory=dict)
    paused: bool = False


async def _sequence(log: Log) -> Any:
    await log.step("a#0")
    await log.nap("nap#0", _HOUR)
    await log.step("b#0")
    await log.nap("nap#1", _HOUR)
    return [await log.step("c#0")]


async def _gather(log: Log) -> Any:
    """Branches go on in the order in which their sleeps end."""
    names = [f"nap#{n}" for n in range(3)]
    for n, name in enumerate(names):
        await log.ask("sleep", name, ms=(3 - n) * _HOUR * 1_000)
    ended = [e["id"] for e in log.entries if e["op"] == "sleep" and e["status"] == "ok"]
    values = [await log.step(f"after {name}") for name in ended]
    if len(ended) < len(names):
        await log.any(*[name for name in names if name not in ended])
    return values


async def _either(log: Log) -> Any:
    await log.ask("event", "paid#0", key="never")
    await log.ask("sleep", "late#0", ms=2_000)
    return [await log.any("paid#0", "late#0"), await log.step("a#0")]


def loop(steps: int, naps: int) -> Program:
    """So many steps, with a sleep after every few."""

    async def looped(log: Log) -> Any:
        for n in range(steps):
            await log.step(f"s#{n}", n)
            if n % naps == naps - 1:
                await log.nap(f"nap#{n}", 60)
        return sum([await log.step(f"s#{n}") for n in range(steps)])

    return looped


def fan_out(children: int) -> Program:
    """So many children at once."""

    async def fanned(log: Log) -> Any:
        names = [f"c#{n}" for n in range(children)]
        new = [pending("child", name, workflow="child", input={"n": n}) for n, name in enumerate(names)]
        if not log.entries:
            await log.write(*new)
        return [value["n"] for value in await log.all(*names)]

    return fanned


async def _nested(log: Log) -> Any:
    depth = log.body["input"].get("depth", 2)
    if depth:
        await log.ask("child", "inner#0", workflow="order", input={"depth": depth - 1})
    else:
        await log.nap("nap#0", 5)
        await log.ask("child", "inner#0", workflow="child", input={"n": 7})
    return [await log.step(f"at {depth}"), *await log.all("inner#0")]


async def _race(log: Log) -> Any:
    """One event comes before it is asked for, another while it is; both may come twice, where nobody has heard that they came."""
    push = log.programs.succession.call
    if not log.entries:
        await push("POST", "/v1/events", {"type": "paid", "data": {"n": 1}, "scope": "9"})
        await push("POST", "/v1/events", {"type": "paid", "data": {"n": 0}, "scope": "8"})
    await log.ask("event", "paid#0", key="paid", scope="9", since="start")
    await log.ask("event", "packed#0", key="packed", **({"since": "start"} if log.programs.way == "answer" else {}))
    if log.over("packed#0") is None:
        await push("POST", "/v1/events", {"type": "packed", "data": {"n": 2}})
    values = await log.all("paid#0", "packed#0")
    return [[value["data"]["n"] for value in values], await log.step("a#0")]


async def _times_out(log: Log) -> Any:
    await log.ask("event", "paid#0", key="never", timeout_ms=1_000)
    await log.ask("message", "m#0", timeout_ms=2_000)
    await log.all("paid#0", "m#0")
    return [(log.over(name) or {})["status"] for name in ("paid#0", "m#0")] + [await log.step("a#0")]


async def _memos(log: Log) -> Any:
    """The same name again is another occurrence; a child of the same key is the same child, and one without is its own."""
    values = [await log.step("k#0", 1), await log.step("k#1", 2)]
    await log.ask("child", "c#0", workflow="child", input={"n": 1}, key="k")
    await log.ask("child", "c#1", workflow="child", input={"n": 1}, key="k")
    await log.ask("child", "c#2", workflow="child", input={"n": 2})
    first = await log.all("c#0", "c#1", "c#2")
    await log.nap("nap#0", 60)
    await log.ask("child", "c#3", workflow="child", input={"n": 3}, key="k")
    return [*values, *[value["n"] for value in [*first, *await log.all("c#3")]]]


async def _continued(log: Log) -> Any:
    given = log.body["input"]
    page, total = given.get("page", 0), given.get("total", 0)
    total += await log.step(f"page {page}", page + 1)
    await log.nap("nap#0", _HOUR)
    if page < 2:
        raise Ends("continue", input={"page": page + 1, "total": total})
    return total


async def _patched(log: Log) -> Any:
    values = [await log.step("old#0")]
    await log.nap("nap#0", _HOUR)
    if log.over("newer#0") is None:
        await log.write({"id": "newer#0", "op": "patch", "status": "ok", "value": True})
    values.append(await log.step("new#0"))
    await log.nap("nap#1", _HOUR)
    return values


async def _scoped(log: Log) -> Any:
    values = []
    for n in range(3):
        if (closed := log.over(f"page#{n}")) is None:
            value = await log.step(f"page#{n}/fetch#0", n)
            await log.nap(f"page#{n}/nap#0", 60)
            closed = {"id": f"page#{n}", "op": "scope", "status": "ok", "value": value * 10}
            await log.write(closed)
        values.append(closed["value"])
    return values


async def _flaky(log: Log) -> Any:
    return [await log.tried("flaky#0", 2), await log.step("a#0")]


async def _inbox(log: Log) -> Any:
    """Three messages; one may come twice, where nobody has heard that it came."""
    seen: list[int] = []
    number = 0
    while len(seen) < 3:
        await log.ask("message", f"m#{number}")
        (value,) = await log.all(f"m#{number}")
        number += 1
        if value not in seen:
            seen.append(value)
            await log.step(f"got {value}")
            if log.over(f"save#{value}") is None:
                await log.write({"id": f"save#{value}", "op": "checkpoint", "status": "ok", "value": seen})
    return seen


async def _reducer(log: Log) -> Any:
    state, settled = log.body["state"], {e["id"]: e for e in log.entries}
    if state is None:
        await log.step("charge#0")
        await log.ask("sleep", "nap#0", ms=_HOUR * 1_000)
        raise Ends("wait", wake="nap#0", state={"at": "packing"})
    if state["at"] == "packing":
        assert settled["nap#0"]["status"] == "ok"
        await log.step("pack#0")
        await log.ask("child", "ship#0", workflow="child", input={"n": 4})
        raise Ends("wait", wake="ship#0", state={"at": "shipping"})
    return settled["ship#0"]["value"]


# ---- cancelled


async def _undoes(log: Log) -> bool:
    if not log.cancelled:
        return False
    if log.over("book#0") is not None:
        await log.step("unbook#0")
    return True


async def _booked(log: Log) -> Any:
    if not await _undoes(log):
        await log.step("book#0")
        await log.nap("nap#0", 24 * _HOUR)
        await log.step("never#0")


async def _cancelled_at_work(log: Log) -> Any:
    if not await _undoes(log):
        await log.step("book#0")
        await log.nap("nap#0", 5)
        await _cancel(log.programs.succession, log.body["run_id"])
        raise Ends("again")


async def _fails(log: Log) -> Any:
    if not await _undoes(log):
        await log.step("book#0")
        raise Ends("failed", error={"name": "Boom", "message": "boom"})


async def _does_not_fit(log: Log) -> Any:
    if not await _undoes(log):
        await log.step("book#0")
        raise Ends("mismatch", at={"id": "book#0", "expected": {}, "got": {}})


async def _parent(log: Log) -> Any:
    if not await _undoes(log):
        await log.ask("child", "c#0", workflow="booked", input={})
        await log.all("c#0")


async def _cancel(succession: Succession, run_id: str) -> None:
    status, document = await succession.call("POST", f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    assert status in (200, 202), document


def _cancelled(program: Program, when: str, effects: Mapping[str, int], **others: Any) -> Shape:
    programs = {"order": program, **others.pop("programs", {})}
    return Shape(programs, None, effects, status="cancelled", acts=(Act(when, _cancel),) if when else (), **others)


# ---- gone back


async def _reset(succession: Succession, run_id: str) -> None:
    """Once: who has not heard whether it was, looks."""
    while True:
        _, found = await succession.call("GET", f"/v1/runs/{run_id}/journal")
        if any(log["generation"] for log in found["logs"]):
            return
        await succession.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": "b#0"})


async def _branched(log: Log) -> Any:
    values = [await log.step("a#0"), await log.step("b#0")]
    await log.nap("nap#0", _HOUR)
    return [*values, await log.step("c#0")]


def _sends(number: int) -> Act:
    async def send(succession: Succession, run_id: str) -> None:
        status, document = await succession.call("POST", f"/v1/runs/{run_id}/messages", {"data": number})
        assert status == 202, document

    return Act(WAITS, send)


_PATIENT = {"retries": 100, "backoff_factor": 100, "backoff_max_seconds": 3_600}
_BOOKED, _UNDONE = {"book#0": 1}, {"book#0": 1, "unbook#0": 1}
_ABC = ["A#0", "B#0", "C#0"]

SHAPES: dict[str, Shape] = {
    "sequence": Shape({"order": _sequence}, ["C#0"], {"a#0": 1, "b#0": 1, "c#0": 1}),
    "gather": Shape({"order": _gather}, [f"AFTER NAP#{n}" for n in (2, 1, 0)], {f"after nap#{n}": 1 for n in range(3)}),
    "or-wait": Shape({"order": _either}, ["late#0", "A#0"], {"a#0": 1}),
    "loop": Shape({"order": loop(4, 2)}, 6, {f"s#{n}": 1 for n in range(4)}),
    "fan-out": Shape({"order": fan_out(5)}, [0, 2, 4, 6, 8], {f"child {n}": 1 for n in range(5)}),
    "nested children": Shape({"order": _nested}, ["AT 2", ["AT 1", ["AT 0", {"n": 14}]]], {"at 2": 1, "at 1": 1, "at 0": 1, "child 7": 1}),
    "event race": Shape({"order": _race}, [[1, 2], "A#0"], {"a#0": 1}),
    "waits that time out": Shape({"order": _times_out}, ["timeout", "timeout", "A#0"], {"a#0": 1}),
    "memo collision": Shape({"order": _memos}, [1, 2, 2, 2, 4, 2], {"k#0": 1, "k#1": 1, "child 1": 1, "child 2": 1}),
    "continue": Shape({"order": _continued}, 6, {f"page {n}": 1 for n in range(3)}),
    "patch": Shape({"order": _patched}, ["OLD#0", "NEW#0"], {"old#0": 1, "new#0": 1}),
    "scopes": Shape({"order": _scoped}, [0, 10, 20], {f"page#{n}/fetch#0": 1 for n in range(3)}),
    "a step that is tried again": Shape({"order": _flaky}, ["FLAKY#0", "A#0"], {"flaky#0 failing": 2, "flaky#0": 1, "a#0": 1}),
    "inbox": Shape({"order": _inbox}, [0, 1, 2], {f"got {n}": 1 for n in range(3)}, acts=(_sends(0), _sends(1), _sends(2))),
    "reducer": Shape({"order": _reducer}, {"n": 8}, {"charge#0": 1, "pack#0": 1, "child 4": 1}, entry={"mode": "state"}),
    "reset branch": Shape({"order": _branched}, _ABC, {"a#0": 1, "b#0": 2, "c#0": 1}, acts=(Act(WAITS, _reset),)),
    "reset when it is over": Shape({"order": _branched}, _ABC, {"a#0": 1, "b#0": 2, "c#0": 2}, acts=(Act(_OVER, _reset),)),
    "cancelled before it begins": _cancelled(_booked, _QUEUED, {}, paused=True),
    "cancelled while it waits": _cancelled(_booked, WAITS, _UNDONE),
    "cancelled while it is at work": _cancelled(_cancelled_at_work, "", _UNDONE),
    "cancelled before it is tried again": _cancelled(_fails, _FAILED, _UNDONE, entry=_PATIENT),
    "cancelled while it is blocked": _cancelled(_does_not_fit, _BLOCKED, _BOOKED),
    "cancelled with its child": _cancelled(_parent, _ALL_WAIT, _UNDONE, programs={"booked": _booked}),
}
