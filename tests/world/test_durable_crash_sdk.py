"""Both sides of the wire joined, and killed: the SDK's corpus of durable handlers at dispatchers that die before and after statements
that change something. Each shape comes to what it comes to on the kit's own dispatcher, undisturbed, with every step counted.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from typing import Any

import httpx
import pytest

from dispatcher.store.database import Database
from handlers_sdk import App, ClientConfig, Context, Dispatcher
from handlers_sdk.api import Api
from handlers_sdk.context import CURRENT, WorkerInfo
from handlers_sdk.execution import Host
from handlers_sdk.function import WorkerThreads
from handlers_sdk.handlers import Handlers
from tests.sdk.test_durable_crashes import SERVED, SHAPES, with_world
from tests.world.killing import Act, Fates, Succession
from tests.world.shapes import WAITS
from tests.world.world import World

_SETTINGS = {"infra_retries": 100_000, "execution_timeout": 86_000.0, "schedule_timeout": 86_000_000.0, "cancel_grace": 86_000.0}
_ASIDE = {"an inbox that closes"}  # from outside, as the kit does it to see what comes of it; here a task closes its own
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT|[0-9a-f]{8}-[0-9a-f]{4}-")
_kit = Dispatcher(ClientConfig())


@_kit.task(name="double")
async def double(input: dict[str, Any], ctx: Context) -> int:
    return int(input["n"]) * 2


@dataclass
class _Line(httpx.AsyncBaseTransport):
    """The way to whichever dispatcher there is. One that dies of a call does not answer it."""

    succession: Succession
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """From this loop, or that of another thread."""
        content = await request.aread()
        if asyncio.get_running_loop() is self.loop:
            return await self._ask(request, content)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ask(request, content), self.loop))

    async def _ask(self, request: httpx.Request, content: bytes) -> httpx.Response:
        node = await self.succession.alive()
        headers = {name: request.headers[name] for name in ("authorization", "content-type") if name in request.headers}
        path = request.url.raw_path.decode()
        reply = await self.succession.asked(node, node.api.request(request.method, path, content=content, headers=headers))
        if reply is None:
            raise httpx.ReadError("it is gone")
        return httpx.Response(reply.status_code, content=reply.content, headers={"content-type": reply.headers["content-type"]})


@dataclass
class _Shop:
    """The endpoint, and in which attempts its steps were called."""

    app: App
    called: Counter[tuple[str, str, int]] = field(default_factory=Counter)


def _shop(succession: Succession) -> _Shop:
    served = [*SERVED, double]
    config = replace(
        served[0]._api.config, transport=_Line(succession), retry_attempts=1, verify_signatures=False, api_url="http://dispatcher.test"
    )
    host = Host(Api(config), WorkerInfo("wrk_test", "test", 16), WorkerThreads(16))
    shop = _Shop(App(Handlers([one for workflow in served for one in workflow.definitions], host, None, version="test")))

    def called(_task_id: str, step: str) -> None:
        context = CURRENT.get()
        assert context is not None
        shop.called[context.workflow_run_id, step, context.item["attempt"]] += 1

    host.on_step = called
    return shop


def _asks(wait: str) -> str:
    return f"select exists (select from waits where run_id = $1 and id = '{wait}' and settled_at is null)"


def _hears(event: str) -> str:
    return f"select exists (select from waits where run_id = $1 and event_key = '{event}' and settled_at is null)"


def _calls(when: str, path: str, *documents: Any) -> Act:
    """Something asked of the API, once this is true."""

    async def ask(succession: Succession, run_id: str) -> None:
        for document in documents:
            status, reply = await succession.call("POST", path.format(run_id), document)
            assert status in (200, 201, 202), reply

    return Act(when, ask)


def _pushed(when: str, **event: Any) -> Act:
    return _calls(when, "/v1/events", *[{"type": "order", **event, "idempotency_key": json.dumps(event)}])


_BRANCH = "second#0"  # where a log goes on in another way


async def _reset(succession: Succession, run_id: str) -> None:
    """Once: who has not heard whether it was, looks."""
    while True:
        _, found = await succession.call("GET", f"/v1/runs/{run_id}/journal")
        if any(log["generation"] for log in found["logs"]):
            return
        await succession.call("POST", f"/v1/runs/{run_id}/reset", {"journal_node": _BRANCH})


_CANCEL = _calls(WAITS, "/v1/runs/{}/cancel", {"reason": "no longer wanted"})
_ACTS: dict[str, list[Act]] = {
    "cancelled while it sleeps": [_CANCEL],
    "cancelled while it waits for an event": [replace(_CANCEL, when=_asks("event#0"))],
    "an inbox that is cancelled": [
        _calls(_asks("message#0"), "/v1/runs/{}/messages", {"data": {"n": 0}}),
        replace(_CANCEL, when=_asks("message#1")),
    ],
    "reset branch": [Act(WAITS, _reset)],
    "or-wait and wait": [
        _pushed(_hears("packed"), type="packed", data={"by": "hand"}),
        _pushed(_hears("paid"), type="paid", data={"n": 1}),
        _pushed(_hears("late"), type="late", data={"n": 2}),
    ],
    "event race": [
        _pushed(_asks("event#0"), data={"n": 0}, scope="8"),
        _pushed(_asks("event#0"), data={"n": 1}, scope="9"),
        _pushed(_asks("event#1"), data={"n": 2}, scope="9"),
    ],
}


def timeless(value: Any) -> Any:
    """A result without moments and chance, which are others on another day."""
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items()}
    if isinstance(value, list):
        return [timeless(one) for one in value]
    return "…" if isinstance(value, float) or (isinstance(value, str) and _MOMENT.match(value)) else value


async def _counted(world: World, shop: _Shop, *, branched: bool) -> None:
    """What was called is in a log, once for each call, but for calls of attempts that were lost. What a branch shares counts once."""
    attempts = {(r["run_id"], r["number"]): r["status"] for r in await world.database.fetch("select * from attempts")}
    recorded = Counter[tuple[str, str]]()
    for row in await world.database.fetch("select run_id, generation, entries from journal_history"):
        entries = json.loads(b"[" + row["entries"] + b"]")
        own = dropwhile(lambda entry: entry["id"] != _BRANCH, entries) if branched and row["generation"] else entries
        recorded.update((row["run_id"], entry["id"]) for entry in own if entry["op"] == "step")
        ends = Counter(entry["id"] for entry in entries if entry["status"] not in ("pending", "retry"))
        assert max(ends.values(), default=0) <= 1
    called, lost = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for (run_id, step, attempt), times in shop.called.items():
        called[run_id, step] += times
        lost[run_id, step] += times if attempts[run_id, attempt] == "lost" else 0
    assert set(recorded) <= set(called)
    for key, times in called.items():
        assert times - lost[key] <= recorded[key] <= times, f"{key}: called {times} times, {lost[key]} of them lost"


@pytest.mark.parametrize("name", [*[name for name in SHAPES if name not in _ASIDE], "reset branch"])
async def test_killed_at_every_statement(
    dsn: str, database: Database, name: str, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    workflow, given, _ = shape = SHAPES["sequence" if name == "reset branch" else name]
    expected = await with_world(shape).run(workflow, given)
    stride = int(pytestconfig.getoption("--crash-stride"))
    fates = Fates(stride if stride == 1 else 3 * stride, name)
    world = World(dsn, database)
    succession = Succession(world, fates, 1, _SETTINGS)
    try:
        await succession.begin(monkeypatch)
        shop = _shop(succession)
        await world.nodes[0].call("PUT", "/v1/endpoints/shop", {"url": await world.serve(shop.app)})
        run_id = (await world.nodes[0].call("POST", "/v1/runs", {"workflow": workflow.name, "input": given}))["id"]
        fates.armed = True
        row = await succession.until_over(run_id, _ACTS.get(name, []))
        if name == "cancelled too late":
            status, refused = await succession.call("POST", f"/v1/runs/{run_id}/cancel", {})
            assert (status, refused["code"]) == (409, "run_finished")
        await succession.end()
        came = (row["status"], timeless(json.loads(row["output"] or "null")))
        assert came == (expected.status, timeless(expected.output)), fates.kills
        await _counted(world, shop, branched=name == "reset branch")
        assert fates.kills or stride > 1
        await shop.app.handlers.host.postbox.aclose()
    except BaseException:
        print(*fates.kills, sep="\n")
        raise
    finally:
        await world.close()
