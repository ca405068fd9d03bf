"""The whole system in one process: real Postgres, real sockets, real loops, and a clock that only moves when a test moves it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar, cast

import httpx
import uvicorn

from dispatcher.app import Runtime, start
from dispatcher.clock import ManualClock
from dispatcher.loops import Loop
from dispatcher.settings import Settings
from dispatcher.store.database import Connection, Database
from handlers_sdk.asgi import App
from tests.world.endpoint import Endpoint

T = TypeVar("T")

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
_PATIENCE_SECONDS = 30.0
_START_PAUSE_SECONDS = 0.002
_REST_SECONDS = 0.2
_LONGEST_CALL_SECONDS = 60.0  # one that waits on this clock, for what never comes, is not to wait for ever
# Nobody dies of old age when a test moves the clock by hours, nor any attempt that has just begun; tests about dying choose shorter lives.
_IMMORTAL: Mapping[str, Any] = {"lease": 4e6, "heartbeat": 1e6, "execution_timeout": 86_400.0}
_KEY = base64.b64encode(bytes(range(32))).decode()


async def until(probe: Callable[[], Awaitable[T | None]], seconds: float = _PATIENCE_SECONDS, *, pause: float = 0) -> T:
    """What `probe` finds, asked again until it finds something. Raises TimeoutError. Bounded by real time, because Postgres is real.

    Who asks again without a pause takes the processor from what is waited for.
    """
    async with asyncio.timeout(seconds):
        while not (found := await probe()):  # noqa: ASYNC110 - what is waited for happens in Postgres and in sockets
            await asyncio.sleep(pause)
        return found


async def _ticked(loop: Loop) -> None:
    before = loop.ticks
    loop.wake()

    async def ticked() -> bool:
        return loop.ticks > before

    await until(ticked)


@dataclass(slots=True, repr=False)  # asyncio writes out what a task gave whenever SIGINT changes hands: this would be everything
class Node:
    """One dispatcher of the world, and a client of its API."""

    name: str
    runtime: Runtime
    api: httpx.AsyncClient

    async def call(self, method: str, path: str, document: object = None, expect: int | None = None) -> Any:
        """One call; its JSON. Any 2xx unless `expect` names a status."""
        async with asyncio.timeout(_LONGEST_CALL_SECONDS):
            fields: dict[str, Any] = {"json": document} if document is not None else {}
            reply = await self.api.request(method, path, **fields)
        assert (reply.status_code == expect) if expect else reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None

    async def trigger(self, workflow: str, **fields: Any) -> str:
        """Start a run; its id."""
        return str((await self.call("POST", "/v1/runs", {"workflow": workflow, "input": {}, **fields}))["id"])

    async def turn(self, *loops: str) -> None:
        """Let everything that is due in these loops happen; timers and claims unless others are named."""
        for name in loops or ("timers", "claim"):
            loop = self.runtime.loops[name]
            for _ in range(2):  # the first may have begun before the clock was moved
                await _ticked(loop)

    async def callback(self, token: str, document: object, expect: int = 200) -> Any:
        """A handler speaks."""
        reply = await self.api.post("/v1/callback", json=document, headers={"authorization": f"Bearer {token}"})
        assert reply.status_code == expect, reply.text
        return reply.json()


def _rests(loop: Loop) -> bool:
    return loop._until is not None and not loop._wake.is_set()


async def _rested(node: Node) -> None:
    """Let what its loops have begun end, if that is soon: a statement cut off costs whoever comes next a new session (see `kept.py`)."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REST_SECONDS):
            while not all(_rests(loop) for loop in node.runtime.loops.values()):  # noqa: ASYNC110 - a loop tells nobody that it rests
                await asyncio.sleep(_START_PAUSE_SECONDS)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        """Until it is ended, of which it hears at once."""
        await self.on_tick(0)
        await self.ended.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the test runner's."""
        yield


@dataclass(slots=True, repr=False)  # asyncio writes out what a task gave whenever SIGINT changes hands: this would be everything
class World:
    """Dispatchers on one database, and what they did."""

    dsn: str
    database: Database
    clock: ManualClock = field(default_factory=lambda: ManualClock(START))
    nodes: list[Node] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)
    _servers: list[tuple[_Server, asyncio.Task[None]]] = field(default_factory=list)
    _ports: itertools.count[int] = field(default_factory=lambda: itertools.count(40_000))

    @property
    def now(self) -> datetime:
        """The moment everybody agrees on."""
        return self.clock.now()

    async def node(self, name: str = "one", **settings: Any) -> Node:
        """Start a dispatcher, and wait until each of its loops has looked: what it does as it starts is in nobody's way then."""
        node = await self.newborn(name, **settings)

        async def looked() -> bool:
            return all(loop.ticks for loop in node.runtime.loops.values())

        await until(looked, pause=_START_PAUSE_SECONDS)
        return node

    async def newborn(self, name: str, **settings: Any) -> Node:
        """Start a dispatcher."""
        chosen = {"dev": True, "master_key": _KEY, "database_url": self.dsn, **_IMMORTAL, **settings}
        runtime = await start(Settings(**chosen), self.clock, name=name)
        transport = httpx.ASGITransport(cast(Any, runtime.app), client=("127.0.0.1", next(self._ports)))
        node = Node(name, runtime, httpx.AsyncClient(transport=transport, base_url="http://localhost:8400"))
        self.nodes.append(node)
        return node

    async def endpoint(self, node: Node, handlers: Sequence[Mapping[str, Any]], *, name: str = "plain", slots: int = 100) -> Endpoint:
        """A plain endpoint with these handlers, whose bodies are envelopes unless they say otherwise."""
        endpoint = await self.listen()
        entries = [_in_envelopes(handler) for handler in handlers]
        await node.call("PUT", f"/v1/endpoints/{name}", {"url": endpoint.url, "slots": slots, "handlers": entries})
        return endpoint

    async def discovered(self, node: Node, manifest: dict[str, Any], *, name: str = "sdk", slots: int = 100) -> Endpoint:
        """An endpoint that says itself what it serves."""
        endpoint = await self.listen()
        endpoint.manifest = manifest
        await node.call("PUT", f"/v1/endpoints/{name}", {"url": endpoint.url, "slots": slots})
        return endpoint

    async def served_node(self, name: str = "one", **settings: Any) -> Node:
        """A dispatcher whose API is on a real socket too, for what calls it from outside this loop."""
        bound = _bound()
        node = await self.node(name, port=bound.getsockname()[1], **settings)
        await self.serve(node.runtime.app, bound)
        return node

    async def serve(self, app: Any, bound: socket.socket | None = None) -> str:
        """Serve an ASGI app on loopback; its URL."""
        bound = bound or _bound()
        lifespan: Literal["on", "off"] = "on" if isinstance(app, App) else "off"  # an endpoint closes its connections when it ends
        server = _Server(uvicorn.Config(app, lifespan=lifespan, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        self._servers.append((server, asyncio.create_task(server.serve(sockets=[bound]))))

        async def started() -> bool:
            return bool(server.started)

        await until(started)
        return f"http://127.0.0.1:{bound.getsockname()[1]}"

    async def listen(self, port: int = 0) -> Endpoint:
        """A server that is registered nowhere yet."""
        endpoint = await Endpoint.start(port)
        self.endpoints.append(endpoint)
        return endpoint

    async def advance(self, delta: timedelta) -> None:
        """Move the clock, and let what has come due happen."""
        self.clock.advance(delta)
        for node in self.nodes:
            await node.turn()

    async def crash(self, node: Node) -> None:
        """End a dispatcher as a kill would: nothing is written, its connections are gone."""
        self.nodes.remove(node)
        for loop in node.runtime.loops.values():
            await loop.stop()
        node.runtime.deliveries.abandon()
        await node.runtime._exit.aclose()
        await node.runtime.deliveries.cut_short()  # with neither a database nor connections: nothing of it is recorded
        await node.api.aclose()

    async def close(self) -> None:
        """End everything."""
        for endpoint in self.endpoints:
            await endpoint.close()
        for node in self.nodes:
            await _rested(node)
            await node.runtime.stop(timedelta(seconds=1))
            await node.api.aclose()
        for server, _ in self._servers:
            server.ended.set()
        for _, task in self._servers:
            await task

    # ---- what is recorded

    async def attempts(self, run_id: str, count: int) -> list[dict[str, Any]]:
        """The rows of a run's attempts, once there are `count`."""

        async def recorded() -> list[dict[str, Any]] | None:
            rows = await self.database.fetch(_ATTEMPTS, run_id)
            return [dict(row) for row in rows] if len(rows) >= count else None

        return await until(recorded)

    async def task(self, run_id: str, **wanted: object) -> dict[str, Any]:
        """The row of a run's live task, once it is as wanted."""

        async def found() -> dict[str, Any] | None:
            row = await self.database.fetchrow("select * from tasks where run_id = $1", run_id)
            return dict(row) if row is not None and all(row[name] == value for name, value in wanted.items()) else None

        return await until(found)

    async def over(self, run_id: str) -> dict[str, Any]:
        """The row of a run's task, once it is over: status, output, error (parsed), epoch, …"""

        async def found() -> dict[str, Any] | None:
            row = await self.database.fetchrow("select * from task_history where run_id = $1", run_id)
            return {**dict(row), "error": json.loads(row["error"] or "null")} if row is not None else None

        return await until(found)

    async def run_over(self, run_id: str) -> dict[str, Any]:
        """The row of a run, once it is over."""

        async def found() -> dict[str, Any] | None:
            row = await self.database.fetchrow("select * from run_history where id = $1", run_id)
            return dict(row) if row is not None else None

        return await until(found)

    async def holds_up(self, connection: Connection) -> bool:
        """Whether somebody waits for a lock of this connection's. Those who wait in other tests' databases do not count."""
        return bool(await self.database.fetchval(_HELD_UP, connection.get_server_pid()))

    async def circuit(self, name: str = "plain") -> str:
        """An endpoint's circuit."""
        return str(await self.database.fetchval("select circuit from endpoints where name = $1", name))

    async def circuit_is(self, circuit: str, name: str = "plain") -> None:
        """Wait for an endpoint's circuit, and for every dispatcher to know of it."""

        async def known() -> bool:
            if await self.circuit(name) != circuit:
                return False
            pictures = [picture for node in self.nodes for picture in node.runtime.services.directory.pictures.values()]
            endpoints = [endpoint for picture in pictures for endpoint in picture.endpoints.values() if endpoint.name == name]
            return all(endpoint.open == (circuit == "closed") for endpoint in endpoints)

        await until(known)


def _in_envelopes(handler: Mapping[str, Any]) -> dict[str, Any]:
    """A handler whose body is the envelope unless it says otherwise; of a workflow, each of its tasks."""
    if handler.get("kind") != "workflow":
        return {"body": "v1", **handler}
    last = {name: {"body": "v1", **handler[name]} for name in ("on_failure", "on_success") if name in handler}
    return {**handler, "tasks": [{"body": "v1", **task} for task in handler["tasks"]], **last}


def _bound() -> socket.socket:
    bound = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio looks at it before it sends small things at once
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


_HELD_UP = "select exists (select from pg_stat_activity where $1 = any(pg_blocking_pids(pid)))"
_ATTEMPTS = "select *, error->>'code' as code from attempts where run_id = $1 order by number"
