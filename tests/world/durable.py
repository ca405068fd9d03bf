"""A durable endpoint written by hand: it speaks the wire, and nothing else is shared with the SDK or the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.world.endpoint import Arrival, Endpoint, manifest
from tests.world.world import Node, World

FEATURES = ("durable", "cancel-push")


def entry(name: str, **fields: Any) -> dict[str, Any]:
    """A durable handler of a manifest."""
    return {"name": name, "kind": "durable", **fields}


async def durable_endpoint(
    world: World, node: Node, *handlers: dict[str, Any], name: str = "sdk", batch: bool = False, version: str = "1", **put: Any
) -> Endpoint:
    """An endpoint that serves these handlers, discovered by its manifest."""
    endpoint = await world.listen()
    features = (*FEATURES, "batch") if batch else FEATURES
    endpoint.manifest = manifest(list(handlers), *features, version=version)
    await node.call("PUT", f"/v1/endpoints/{name}", {"url": endpoint.url, **put})
    return endpoint


def answer(
    arrival: Arrival, status: str, *, base: int | None = None, ops: list[Any] | None = None, http: int = 200, **members: Any
) -> None:
    """Answer a turn."""
    document = {"status": status, **({"base": base} if base is not None else {}), "ops": ops or [], **members}
    arrival.answer(http, document, task_protocol="1")


def log_of(arrival: Arrival) -> list[dict[str, Any]]:
    """The entries a turn was sent with."""
    return list(arrival.json["log"]["entries"])


def step(name: str, value: Any, at: str = "2026-03-01T12:00:00.000Z") -> dict[str, Any]:
    """A step that has run."""
    return {"id": name, "op": "step", "status": "ok", "value": value, "at": at}


def pending(op: str, name: str, **members: Any) -> dict[str, Any]:
    """An operation that is asked for."""
    return {"id": name, "op": op, "status": "pending", "at": "2026-03-01T12:00:00.000Z", **members}


NAP = pending("sleep", "nap#0", ms=1_000)


def done(arrival: Arrival) -> None:
    """Answer a turn as the last."""
    answer(arrival, "done", base=arrival.json["log"]["len"])


async def asleep(world: World, node: Node, endpoint: Endpoint) -> str:
    """A run of `order` that has begun at an endpoint, and sleeps for a second (NAP)."""
    run_id = await node.trigger("order")
    turn = await endpoint.next()
    assert turn.json["run_id"] == run_id
    answer(turn, "wait", base=0, ops=[step("a#0", 1), NAP], wake="nap#0")
    await world.task(run_id, state="waiting")
    return run_id


def rolled(texts: list[bytes]) -> str:
    """The rolling hash of entries."""
    digest = b""
    for text in texts:
        digest = hashlib.sha256(digest + text).digest()
    return digest.hex()


@dataclass(slots=True)
class Program:
    """A handler as a function of the log: `code(turn)` is called for each turn, and counts what it does."""

    code: Callable[[Turn], Awaitable[None]]
    effects: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Turn:
    """A turn as a handler sees it: entries by id, and a way to do each step once."""

    node: Node
    arrival: Arrival
    program: Program
    entries: list[dict[str, Any]] = field(default_factory=list)
    ops: list[dict[str, Any]] = field(default_factory=list)
    append: bool = True

    def __post_init__(self) -> None:
        self.entries = log_of(self.arrival)

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        return dict(self.arrival.json)

    def final(self, name: str) -> dict[str, Any] | None:
        """What became of an operation."""
        return next((e for e in self.entries if e["id"] == name and e["status"] not in ("pending", "retry")), None)

    def asked(self, name: str) -> bool:
        """Whether an operation is in the log."""
        return any(e["id"] == name for e in self.entries)

    async def record(self, *ops: dict[str, Any]) -> dict[str, Any]:
        """Append by callback."""
        reply = await self.node.callback(self.body["token"], {"type": "append", "base": len(self.entries), "ops": list(ops)})
        self.entries += ops
        assert reply["len"] == len(self.entries)
        return dict(reply)

    async def step(self, name: str) -> Any:
        """A step, its effect counted."""
        known = self.final(name)
        if known is not None:
            return known["value"]
        self.program.effects.append(name)
        done = step(name, f"{name} done")
        if self.append:
            await self.record(done)
        else:
            self.ops.append(done)
        return done["value"]

    async def wait(self, *names: str, any_of: bool = False) -> bool:
        """Whether these are over; answers the turn where they are not."""
        over = [self.final(name) is not None for name in names]
        if any(over) if any_of else all(over):
            return True
        answer(self.arrival, "wait", base=len(self.entries) - 0, ops=self.ops, wake={"any" if any_of else "all": list(names)})
        return False

    def done(self, output: Any) -> None:
        """The end."""
        answer(self.arrival, "done", base=len(self.entries), ops=self.ops, output=output)


def serve(endpoint: Endpoint, node: Node, **programs: Program) -> None:
    """Let programs answer turns by the name of their workflow, and plain runs with what they were given."""
    tasks: set[asyncio.Task[None]] = set()

    def way(arrival: Arrival) -> None:
        body = json.loads(arrival.body)
        if body.get("type") == "turn":
            program = programs[body["name"]]
            task = asyncio.get_running_loop().create_task(_quietly(program.code(Turn(node, arrival, program))))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        elif body.get("type") == "run":
            arrival.answer(200, {"echo": body["input"]})

    endpoint.way = way


async def _quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except (AssertionError, RuntimeError, OSError) as error:
        if "stale" not in str(error) and "task_ended" not in str(error) and "closed" not in str(error):
            raise
