"""The endpoint: an SDK app twice, under /batched as the SDK offers it and under /single with batches taken out of its manifest; and
workflows of several tasks, under /graphs.

Run as `uvicorn --factory tests.bench.endpoint:create`. BENCH_SINK is where its handlers say that they ran.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from handlers_sdk import ConcurrencyExpression, Context, Dispatcher, RateLimit, RateLimitDuration
from handlers_sdk.durable import DurableContext
from tests.bench.sink import Emitter

SLOTS = 5_000
FLAVOURS = ("batched", "single", "backlog")
STEPS = 10
CHILDREN = 100
GRAPHS = "graphs"
GATES = "gates"
REPLAYS = "replays"
KILOBYTES = 1_000
WAITS = 50
_FAIR_SECONDS = 0.02

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A workflow of several tasks: the parents of each."""

    workflow: str
    label: str
    parents: Mapping[str, Sequence[str]]


_CHAIN = {f"t{n}": [f"t{n - 1}"] if n else [] for n in range(200)}
_FAN = {"first": [], **{f"m{n}": ["first"] for n in range(1_000)}, "last": [f"m{n}" for n in range(1_000)]}
_DIAMOND = {"top": [], "left": ["top"], "right": ["top"], "bottom": ["left", "right"]}
SHAPES = {
    shape.workflow: shape
    for shape in (
        Shape("graph-chain", "chain of 200", _CHAIN),
        Shape("graph-fan", "fan of 1,000", _FAN),
        Shape("graph-diamond", "diamond of 4", _DIAMOND),
    )
}


class Ping(BaseModel):
    """The input: which run this is."""

    id: str


class Keyed(Ping):
    """Which group it is in."""

    key: str


def noop(flavour: str, emitter: Emitter) -> Application:
    """An app whose only task says that it ran."""
    dispatcher = Dispatcher()

    @dispatcher.task(name=f"noop-{flavour}")
    async def task(input: Ping, ctx: Context) -> dict[str, str]:
        emitter.emit(input.id)
        return {"id": input.id}

    @dispatcher.task(name=f"child-{flavour}")
    async def child(input: Ping, ctx: Context) -> dict[str, str]:
        return {"id": input.id}

    @dispatcher.durable_task(name=f"steps-{flavour}")
    async def steps(input: Ping, ctx: DurableContext) -> int:
        total = 0
        for number in range(STEPS):
            total += await ctx.run(f"s{number}", _same, number)
        emitter.emit(input.id)
        return total

    @dispatcher.durable_task(name=f"fanout-{flavour}")
    async def fanout(input: Ping, ctx: DurableContext) -> int:
        done = await asyncio.gather(*[ctx.run_child(child, Ping(id=f"{input.id}-{number}")) for number in range(CHILDREN)])
        emitter.emit(input.id)
        return len(done)

    @dispatcher.durable_task(name=f"asleep-{flavour}")
    async def asleep(input: Ping, ctx: DurableContext) -> None:
        emitter.emit(input.id)
        await ctx.aio_sleep_for("1h")

    return dispatcher.app(workflows=[task, child, steps, fanout, asleep], slots=SLOTS)


async def _same(number: int) -> int:
    return number


def graphs(emitter: Emitter) -> Application:
    """An app with workflows of several tasks, each of which says that it ran."""
    dispatcher = Dispatcher()
    workflows = []
    for shape in SHAPES.values():
        workflow = dispatcher.workflow(name=shape.workflow, input_validator=Ping)
        for name, parents in shape.parents.items():

            @workflow.task(name=name, parents=list(parents))
            async def task(input: Ping, ctx: Context) -> dict[str, str]:
                emitter.emit(f"{input.id}.{ctx.task_name}")
                return {"id": input.id}

        workflows.append(workflow)
    return dispatcher.app(workflows=workflows, slots=SLOTS)


def gated(emitter: Emitter) -> Application:
    """An app with the same task under several limits, none of which is ever reached but that of `fair`. `fair` and `busy` take a while."""
    dispatcher = Dispatcher()
    by_key = ConcurrencyExpression("input.key", 1_000_000)
    limits: dict[str, tuple[list[ConcurrencyExpression], list[RateLimit]]] = {
        "none": ([], []),
        "one": ([by_key], []),
        "two": ([by_key, ConcurrencyExpression("'all ' + input.key", 1_000_000)], []),
        "rate": ([], [RateLimit(dynamic_key="input.key", limit=1_000_000_000, duration=RateLimitDuration.DAY)]),
        "fair": ([ConcurrencyExpression("input.key", 10)], []),
        "busy": ([], []),
    }
    tasks = []
    for name, (concurrency, rate_limits) in limits.items():

        @dispatcher.task(name=f"noop-gates-{name}", concurrency=concurrency, rate_limits=rate_limits)
        async def task(input: Keyed, ctx: Context) -> dict[str, str]:
            if ctx.workflow_name not in ("noop-gates-fair", "noop-gates-busy"):
                emitter.emit(input.id)
            else:
                await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=_FAIR_SECONDS)
            return {"id": input.id}

        tasks.append(task)
    return dispatcher.app(workflows=tasks, slots=SLOTS)


@dataclass(slots=True)
class Counts:
    """What came to an app and what its durable handlers were given."""

    deliveries: int = 0
    bytes: int = 0
    given: int = 0
    calls: int = 0


def replaying(counts: Counts) -> Application:
    """An app whose durable tasks make many small steps and wait between them."""
    dispatcher = Dispatcher()

    async def kilobyte(number: int) -> str:
        counts.calls += 1
        return f"{number:04}" * 250

    async def steps(ctx: DurableContext) -> int:
        length = 0
        for number in range(KILOBYTES):
            length += len(await ctx.run("kilobyte", kilobyte, number))
            counts.given += 1
            if (number + 1) % (KILOBYTES // WAITS) == 0:
                await ctx.aio_sleep_for(timedelta(milliseconds=1))
        return length

    @dispatcher.durable_task(name="replays-step", checkpoint="step")
    async def each(input: Ping, ctx: DurableContext) -> int:
        return await steps(ctx)

    @dispatcher.durable_task(name="replays-turn", checkpoint="turn")
    async def together(input: Ping, ctx: DurableContext) -> int:
        return await steps(ctx)

    return dispatcher.app(workflows=[each, together], slots=SLOTS)


def counted(app: Application, counts: Counts) -> Application:
    """The same app, its deliveries counted."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def counting() -> Message:
            message = await receive()
            if scope.get("method") == "POST":
                counts.bytes += len(message.get("body", b""))
                counts.deliveries += message["type"] == "http.request" and not message.get("more_body", False)
            return message

        await app(scope, counting, send)

    return wrapped


def telling(counts: Counts) -> Application:
    """What has been counted since this was asked last."""

    async def app(_scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
        body = json.dumps(asdict(counts)).encode()
        counts.deliveries = counts.bytes = counts.given = counts.calls = 0
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def without_batches(app: Application) -> Application:
    """The same app, not offering batches."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            await app(scope, receive, _plainer(send))
        else:
            await app(scope, receive, send)

    return wrapped


def _plainer(send: Send) -> Send:
    start: Message = {}

    async def plainer(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        manifest = json.loads(message["body"])
        manifest.pop("batch", None)
        manifest["features"] = [feature for feature in manifest.get("features", ()) if feature != "batch"]
        body = json.dumps(manifest).encode()
        start["headers"] = [(n, v) for n, v in start["headers"] if n != b"content-length"] + [(b"content-length", b"%d" % len(body))]
        await send(start)
        await send({"type": "http.response.body", "body": body})

    return plainer


def create() -> Application:
    """All flavours, each under its own path."""
    emitter = Emitter(os.environ["BENCH_SINK"])
    apps = {flavour: noop(flavour, emitter) for flavour in FLAVOURS}
    apps["single"] = without_batches(apps["single"])
    apps[GRAPHS] = graphs(emitter)
    apps[GATES] = gated(emitter)
    counts = Counts()
    apps[REPLAYS] = counted(replaying(counts), counts)
    apps["counts"] = telling(counts)

    async def route(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await apps[scope["path"].strip("/")](scope, receive, send)

    return route
