"""Durable handlers as programs over the wire, which count what they do and say with each step which attempt did it.

A program is a coroutine that is run from its beginning in each turn, and asks its log for what has been done. How it speaks is not its
affair: all in the answer, each entry by an append, or each by an append after a 202, whose result comes by callback too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dispatcher.errors import Problem
from tests.world.durable import pending
from tests.world.endpoint import Arrival
from tests.world.killing import Reply, Succession
from tests.world.world import Node

Way = Literal["answer", "append", "accepted"]
Program = Callable[["Log"], Awaitable[Any]]


class Effect(NamedTuple):
    """Something done in an attempt."""

    name: str
    run_id: str
    attempt: int


class Ends(Exception):  # noqa: N818 - how a turn ends
    """A turn's answer other than `done`."""

    def __init__(self, status: str, **members: Any) -> None:
        self.answer = {"status": status, **members}


class Lost(Exception):  # noqa: N818
    """The attempt is no longer this program's."""


@dataclass(slots=True)
class Log:
    """A turn as its program sees it."""

    programs: Programs
    arrival: Arrival
    body: dict[str, Any]
    entries: list[dict[str, Any]]
    length: int
    ops: list[dict[str, Any]] = field(default_factory=list)
    _over: dict[str, dict[str, Any]] = field(default_factory=dict)
    _seen: int = 0

    def over(self, name: str) -> dict[str, Any] | None:
        """What became of an operation."""
        new, self._seen = self.entries[self._seen :], len(self.entries)
        self._over |= {e["id"]: e for e in new if e["status"] not in ("pending", "retry")}
        return self._over.get(name)

    @property
    def cancelled(self) -> bool:
        """Whether this turn is for cleaning up."""
        return self.over("cancel#0") is not None

    async def step(self, name: str, value: Any = None) -> Any:
        """Done once; what it came to."""
        known = self.over(name)
        if known is None:
            self.effect(name)
            known = {"id": name, "op": "step", "status": "ok", "value": name.upper() if value is None else value}
            await self.write({**known, "by": self.body["attempt"]})
        return known["value"]

    def effect(self, name: str) -> None:
        """Note that something has happened in the world."""
        self.programs.effects.append(Effect(name, self.body["run_id"], self.body["attempt"]))

    async def tried(self, name: str, times: int) -> Any:
        """A step that fails so many times first, and is tried again by the dispatcher's clock."""
        known = self.over(name)
        if known is not None:
            return known["value"]
        before = sum(e["id"] == name for e in self.entries)
        if before == times:
            return await self.step(name)
        self.effect(f"{name} failing")
        error = {"name": "Busy", "message": "not now"}
        retry = {"id": name, "op": "step", "status": "retry", "error": error, "after_ms": 5_000, "by": self.body["attempt"]}
        await self.write(retry)
        raise Ends("wait", wake=name)

    async def ask(self, op: str, name: str, **members: Any) -> None:
        """Ask for an operation, once."""
        if not any(e["id"] == name for e in self.entries):
            await self.write(pending(op, name, **members))

    async def all(self, *names: str) -> list[Any]:
        """Wait for all of these; their values."""
        if any(self.over(name) is None for name in names):
            raise Ends("wait", wake={"all": list(names)})
        return [(self.over(name) or {}).get("value") for name in names]

    async def any(self, *names: str) -> str:
        """Wait for one of these; which."""
        first = next((e["id"] for e in self.entries if e["id"] in names and e["status"] != "pending"), None)
        if first is None:
            raise Ends("wait", wake={"any": list(names)})
        return str(first)

    async def nap(self, name: str, seconds: float) -> None:
        """Ask, and wait."""
        await self.ask("sleep", name, ms=seconds * 1_000)
        await self.all(name)

    async def write(self, *ops: dict[str, Any]) -> dict[str, Any]:
        """Record: now, or with the answer. What the record was answered."""
        reply: dict[str, Any] = {}
        if self.programs.way == "answer" or self.body["mode"] == "state":
            self.ops += ops
        else:
            reply = await self.say({"type": "append", "base": self.length, "ops": list(ops)})
            assert reply["len"] == self.length + len(ops), reply
        self.length += len(ops)
        self.entries += ops
        return reply

    async def say(self, event: dict[str, Any]) -> dict[str, Any]:
        """A callback, repeated until somebody has heard it."""
        status, document = await self.programs.callback(self.body["token"], event)
        if status in (409, 410):
            raise Lost(document["code"])
        assert status == 200, document
        return dict(document)


@dataclass(slots=True)
class Programs:
    """Answers what arrives at an endpoint: turns by the program of their name, runs of `child` with twice what they were given."""

    succession: Succession
    way: Way
    by_name: Mapping[str, Program]
    effects: list[Effect] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __call__(self, arrival: Arrival) -> None:
        """The way of an Endpoint."""
        body = arrival.json
        if body["type"] == "run":
            self.effects.append(Effect(f"child {body['input']['n']}", body["run_id"], body["attempt"]))
            arrival.answer(200, {"n": body["input"]["n"] * 2})
        elif body["type"] == "turn":
            task = asyncio.get_running_loop().create_task(self._watched(arrival, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            arrival.answer(200)

    async def callback(self, token: str, event: dict[str, Any]) -> Reply:
        """Speak for an attempt, to whichever dispatcher there is, until one says what came of it."""
        return await self._told(lambda node: node.runtime.services.callbacks.handle(token, json.dumps(event).encode(), "application/json"))

    async def _told(self, say: Callable[[Node], Coroutine[Any, Any, Reply]]) -> Reply:
        while True:
            node = await self.succession.alive()
            try:
                answer = await self.succession.asked(node, say(node))
            except Problem as problem:
                return problem.status, problem.document()
            if answer is not None:
                return answer

    async def _watched(self, arrival: Arrival, body: dict[str, Any]) -> None:
        """A turn, which ends with its connection unless it was accepted."""
        work, gone = asyncio.ensure_future(self._turn(arrival, body)), asyncio.ensure_future(arrival.hung_up.wait())
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if arrival.hung_up.is_set():
            work.cancel()
        await asyncio.wait([work])
        fault = None if work.cancelled() else work.exception()
        if fault is not None and not isinstance(fault, Lost):
            self.succession.fail(fault)

    async def _turn(self, arrival: Arrival, body: dict[str, Any]) -> None:
        if self.way == "accepted":
            arrival.answer(202, {"lease_ms": 86_400_000})
        reduces = body["mode"] == "state"
        log = Log(self, arrival, body, body.get("results", []), 0 if reduces else body["log"]["len"])
        if not reduces:
            log.entries = await self._entries(body)
        try:
            said = {"status": "done", "output": await self.by_name[body["name"]](log)}
        except Ends as ends:
            said = ends.answer
        said |= {"ops": log.ops} if reduces else {"base": log.length - len(log.ops), "ops": log.ops}
        if self.way == "accepted":
            await log.say({"type": "turn", **said})
        else:
            arrival.answer(200, said, task_protocol="1")

    async def _entries(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The whole log, asked for where the turn has brought its end only."""
        given, entries = body["log"], list(body["log"]["entries"])
        assert len(entries) + given.get("hidden", 0) == given["len"] - given["from"], "nothing is left out unsaid"
        return await self._pulled(body["token"], given["from"]) + entries if given["from"] else entries

    async def _pulled(self, token: str, end: int) -> list[dict[str, Any]]:
        async def ask(node: Node) -> Reply:
            return 200, await node.runtime.services.durable.log(token, 0, end)

        status, document = await self._told(ask)
        if status in (409, 410):
            raise Lost(document["code"])
        assert status == 200, document
        return [json.loads(entry) for entry in document["entries"]]
