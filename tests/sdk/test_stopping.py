"""How attempts end early: deadlines, cancel pushes, clients that go away, shutdowns, and the same attempt sent twice."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from handlers_sdk import App, Context, Dispatcher, EmptyModel
from tests.sdk.pushing import (
    Answer,
    batch_body,
    cancel_body,
    clock,
    config,
    expire,
    headers_for,
    idle,
    item,
    push,
    run,
    run_body,
    send,
    until,
)


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(config())


class Waiting:
    """A handler that waits, and what became of it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.context: Context | None = None

    async def __call__(self, ctx: Context) -> str:
        self.context = ctx
        self.started.set()
        try:
            await self.release.wait()
        finally:
            self.ended.set()
        return "done"


def serve(dispatcher: Dispatcher, waiting: Waiting, **settings: Any) -> App:
    @dispatcher.task()
    async def wait(input: EmptyModel, ctx: Context) -> str:
        return await waiting(ctx)

    return dispatcher.app([wait], clock=clock, **settings)


async def test_a_deadline_comes_by_itself(dispatcher: Dispatcher) -> None:
    answer = await run(serve(dispatcher, Waiting()), "wait", timeout_ms=5)
    assert answer.json()["detail"] == "Task exceeded timeout of 0.005s"


async def test_a_deadline_fails_the_attempt_and_interrupts_the_handler(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    request = asyncio.create_task(run(app, "wait"))
    await waiting.started.wait()
    expire(app)
    answer = await request
    problem = answer.json()
    assert (answer.status, problem["code"], problem["error"]["code"]) == (500, "timed_out", "timed_out")
    assert problem["detail"] == "Task exceeded timeout of 60s"
    assert "retry" not in problem
    await waiting.ended.wait()
    assert waiting.context is not None
    assert waiting.context.exit_flag
    await idle(app)


async def test_a_handler_that_ignores_its_deadline_is_answered_for_and_waited_for(dispatcher: Dispatcher) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    @dispatcher.task()
    async def stubborn(input: EmptyModel, ctx: Context) -> str:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "too late"

    app = dispatcher.app([stubborn], clock=clock)
    request = asyncio.create_task(run(app, "stubborn"))
    await started.wait()
    expire(app)
    assert (await request).json()["code"] == "timed_out"
    again = await run(app, "stubborn")
    assert (again.status, again.json()["code"], again.headers["retry-after"]) == (409, "already_running", "1")
    release.set()
    await idle(app)


async def test_a_sync_handler_past_its_deadline_sees_the_flag_and_keeps_its_attempt(dispatcher: Dispatcher) -> None:
    started, release = threading.Semaphore(0), threading.Event()
    seen: list[bool] = []

    @dispatcher.task()
    def blocking(input: EmptyModel, ctx: Context) -> None:
        started.release()
        release.wait(30)
        seen.append(ctx.exit_flag)

    app = dispatcher.app([blocking], clock=clock)
    for attempt in (1, 2):
        request = asyncio.create_task(run(app, "blocking", attempt=attempt))
        assert await asyncio.to_thread(started.acquire, timeout=30)
        expire(app)
        assert (await request).json()["code"] == "timed_out"
        assert (await run(app, "blocking", attempt=attempt)).status == 409
    release.set()
    await idle(app)
    assert seen == [True, True]


async def test_a_deadline_can_be_moved(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    request = asyncio.create_task(run(app, "wait"))
    await waiting.started.wait()
    (execution,) = app.handlers.host.running.values()
    first = execution._timer.when()
    execution.extend(30_000)
    await until(lambda: execution._due > first)
    expire(app)
    assert not request.done()
    assert execution._timer.when() == pytest.approx(first + 30)
    expire(app)
    assert (await request).json()["code"] == "timed_out"


async def test_a_cancel_push_interrupts_the_handler(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    request = asyncio.create_task(run(app, "wait"))
    await waiting.started.wait()
    assert (await push(app, cancel_body(attempt=2))).status == 204
    assert not request.done()
    told = await push(app, cancel_body(reason="user asked"))
    assert (told.status, told.body) == (204, b"")
    answer: Answer = await request
    assert (answer.json()["code"], answer.json()["retry"], answer.json()["detail"]) == ("cancelled", False, "user asked")
    assert waiting.context is not None
    assert (waiting.context.exit_flag, waiting.context.cancellation_reason) == (True, "user asked")
    await waiting.ended.wait()
    assert (await push(app, cancel_body())).status == 204


async def test_a_cancelled_sync_handler_sees_the_flag(dispatcher: Dispatcher) -> None:
    started, release = threading.Event(), threading.Event()
    seen: list[bool] = []

    @dispatcher.task()
    def blocking(input: EmptyModel, ctx: Context) -> None:
        started.set()
        release.wait(30)
        seen.append(ctx.done())

    app = dispatcher.app([blocking], clock=clock)
    request = asyncio.create_task(run(app, "blocking"))
    await asyncio.to_thread(started.wait, 30)
    await push(app, cancel_body())
    assert (await request).json()["code"] == "cancelled"
    release.set()
    await idle(app)
    assert seen == [True]


async def test_abandoning_the_request_stops_the_attempt(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    request = asyncio.create_task(run(app, "wait"))
    await waiting.started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await waiting.ended.wait()
    assert waiting.context is not None
    assert waiting.context.cancellation_reason == "the request was abandoned"
    await idle(app)


async def test_the_same_attempt_is_not_run_twice_at_once(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    request = asyncio.create_task(run(app, "wait"))
    await waiting.started.wait()
    twice = await run(app, "wait")
    assert (twice.status, twice.json()["code"]) == (409, "already_running")
    waiting.release.set()
    assert (await request).json() == "done"
    assert (await run(app, "wait")).json() == "done"


async def test_a_draining_endpoint_takes_no_new_work_and_finishes_what_it_has(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    request = asyncio.create_task(run(app, "wait"))
    await waiting.started.wait()
    app.handlers.draining = True
    refused = await run(app, "wait", number=2)
    assert (refused.status, refused.json()["code"], refused.headers["retry-after"]) == (503, "draining", "1")
    waiting.release.set()
    assert (await request).status == 200


async def test_a_task_that_is_ended_from_outside_asks_to_come_again(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    request = asyncio.create_task(run(app, "wait"))
    await waiting.started.wait()
    (execution,) = app.handlers.host.running.values()
    execution._task.cancel()
    answer = await request
    assert (answer.status, answer.json()["code"]) == (503, "shutting_down")
    await idle(app)


class Connection:
    """The server's side of one ASGI request whose client may leave."""

    def __init__(self, body: bytes, headers: dict[str, str]) -> None:
        self.left = asyncio.Event()
        self.sent: list[Any] = []
        self.scope = {"type": "http", "method": "POST", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
        self._pieces = [body[:10], body[10:]]

    async def receive(self) -> dict[str, Any]:
        if self._pieces:
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_a_client_that_leaves_stops_the_attempt(dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers_sdk.asgi.WATCH_AFTER_SECONDS", 0.0)
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    connection = _connection(run_body("wait"))
    request = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    await waiting.started.wait()
    connection.left.set()
    await request
    await waiting.ended.wait()
    assert connection.sent == []
    await idle(app)


async def test_a_client_that_leaves_during_a_stream_stops_the_rest(dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers_sdk.asgi.WATCH_AFTER_SECONDS", 0.0)
    waiting = Waiting()

    @dispatcher.task()
    async def mixed(input: dict[str, Any], ctx: Context) -> str:
        return "quick" if input["quick"] else await waiting(ctx)

    app = dispatcher.app([mixed], clock=clock)
    connection = _connection(batch_body(item("mixed", {"quick": True}, 1), item("mixed", {"quick": False}, 2)))
    request = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    await waiting.started.wait()
    await until(lambda: len(connection.sent) == 2)
    connection.left.set()
    await request
    await waiting.ended.wait()
    assert [message["type"] for message in connection.sent] == ["http.response.start", "http.response.body"]
    await idle(app)


async def test_a_server_that_cancels_the_request_is_obeyed(dispatcher: Dispatcher) -> None:
    waiting = Waiting()
    app = serve(dispatcher, waiting)
    connection = _connection(run_body("wait"))
    request = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    await waiting.started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await idle(app)


async def test_a_client_that_leaves_while_sending_gets_nothing(dispatcher: Dispatcher) -> None:
    app = serve(dispatcher, Waiting())
    messages: list[Any] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def never(message: Any) -> None:
        raise AssertionError(message)

    await app({"type": "http", "method": "POST", "headers": []}, receive, never)


async def test_shutdown_waits_for_threads(dispatcher: Dispatcher) -> None:
    started, release = threading.Event(), threading.Event()
    ended: list[bool] = []

    @dispatcher.task()
    def blocking(input: EmptyModel, ctx: Context) -> None:
        started.set()
        release.wait(30)
        ended.append(True)

    app = dispatcher.app([blocking], clock=clock)
    request = asyncio.create_task(send(app, run_body("blocking")))
    await asyncio.to_thread(started.wait, 30)
    expire(app)
    await request
    closing = asyncio.create_task(app.handlers.close())
    await asyncio.sleep(0)
    assert not closing.done()
    release.set()
    await closing
    assert ended == [True]


def _connection(body: dict[str, Any]) -> Connection:
    text = json.dumps(body).encode()
    return Connection(text, headers_for(text))
