"""Lifespans: run once, before the first task, and ended when the app is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from handlers_sdk import App, Context, Dispatcher, EmptyModel
from tests.sdk.pushing import batch, clock, config, item, run

LOG: list[str] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


async def lifespan() -> AsyncGenerator[dict[str, int], None]:
    LOG.append("up")
    yield {"pool": 5}
    LOG.append("down")


def app_with(fn: Any) -> App:
    dispatcher = Dispatcher(config())

    @dispatcher.task()
    async def look(input: EmptyModel, ctx: Context) -> Any:
        return ctx.lifespan

    return dispatcher.app([look], lifespan=fn, clock=clock)


async def drive(app: App, *messages: str) -> list[dict[str, Any]]:
    """What an app answers to lifespan messages."""
    waiting = [{"type": message} for message in messages]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    return sent


async def test_the_servers_lifespan_is_the_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_with(lifespan)
    sent = await drive(app, "lifespan.startup", "lifespan.shutdown")
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert LOG == ["up", "down"]
    assert app.handlers.draining


async def test_where_no_lifespan_event_comes_the_first_task_starts_it_once() -> None:
    app = app_with(lifespan)
    answer = await batch(app, *(item("look", number=n) for n in range(3)))
    await asyncio.gather(*(run(app, "look", number=n) for n in range(4, 9)))
    assert [line["output"] for line in answer.lines()] == [{"pool": 5}] * 3
    assert LOG == ["up"]
    await app.handlers.close()
    await app.handlers.close()
    assert LOG == ["up", "down"]


async def test_a_host_application_can_run_it_in_its_own() -> None:
    app = app_with(lifespan)
    async with app.running():
        assert LOG == ["up"]
        assert (await run(app, "look")).json() == {"pool": 5}
    assert LOG == ["up", "down"]


async def test_a_context_manager_will_do() -> None:
    app = app_with(asynccontextmanager(lifespan))
    assert (await run(app, "look")).json() == {"pool": 5}
    await app.handlers.close()
    assert LOG == ["up", "down"]


async def test_a_lifespan_that_fails_keeps_the_server_from_starting_and_tasks_from_running() -> None:
    tries: list[int] = []

    async def failing() -> AsyncIterator[None]:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("no database")
        yield None

    app = app_with(failing)
    (failed,) = await drive(app, "lifespan.startup")
    assert failed == {"type": "lifespan.startup.failed", "message": "the lifespan failed before its yield: no database"}
    refused = await run(app, "look")
    assert (refused.status, refused.json()["code"]) == (503, "lifespan_setup")
    assert (await run(app, "look")).status == 200


async def test_an_end_that_fails_is_said() -> None:
    async def failing() -> AsyncIterator[None]:
        yield None
        raise ValueError("cannot close")

    sent = await drive(app_with(failing), "lifespan.startup", "lifespan.shutdown")
    assert sent[1] == {"type": "lifespan.shutdown.failed", "message": "cannot close"}


async def test_what_is_no_lifespan_is_told_so() -> None:
    (failed,) = await drive(app_with(lambda: 5), "lifespan.startup")
    assert "async generator function" in failed["message"]


async def test_websockets_are_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app_with(None)({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1003}]
