"""What a task says while it runs: log lines, stream chunks, extensions, slots, cancellation; and what happens when nobody hears it."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from handlers_sdk import ApiError, Context, Dispatcher, EmptyModel, EventsLostError, NonRetryableError, RetryableException
from handlers_sdk.channel import EVENTS_PER_POST
from tests.sdk.fake_api import Asked, FakeApi, problem
from tests.sdk.pushing import API, SECRET, batch, clock, idle, item, run


@pytest.fixture
def dispatcher(api: FakeApi) -> Dispatcher:
    return api.dispatcher(signing_secrets=(SECRET,), token="api-token")


def unreachable(asked: Asked) -> Exception:
    return httpx.ConnectError("refused")


async def test_log_lines_arrive_before_the_result(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> str:
        for n in range(3):
            ctx.log(f"line {n}")
        ctx.log({"step": 1}, level="warning")
        await ctx.aio_log("last\0")
        return "done"

    answer = await run(dispatcher.app([talk], clock=clock), "talk", attempt=3)
    assert answer.json() == "done"
    events = api.events()
    assert [event["message"] for event in events] == ["line 0", "line 1", "line 2", '{"step":1}', "last\N{REPLACEMENT CHARACTER}"]
    assert [event["level"] for event in events] == ["info", "info", "info", "warning", "info"]
    assert {(event["type"], event["attempt"]) for event in events} == {("log", 3)}
    assert all(datetime.fromisoformat(event["at"]).tzinfo is not None for event in events)
    assert {(asked.method, asked.path, asked.token) for asked in api.asked} == {("POST", "/v1/callbacks", "")}
    assert {token for token, _ in api.said()} == {"atk1.token1.mac"}


async def test_sync_handlers_log_from_their_threads(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    def talk(input: EmptyModel, ctx: Context) -> None:
        for n in range(50):
            ctx.log(str(n))
        ctx.log("heard", raise_on_error=True)

    await run(dispatcher.app([talk], clock=clock), "talk")
    assert [event["message"] for event in api.events()] == [*map(str, range(50)), "heard"]


async def test_a_burst_shares_requests_and_keeps_its_order(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> None:
        for n in range(2 * EVENTS_PER_POST):
            ctx.log(str(n))

    await run(dispatcher.app([talk], clock=clock), "talk")
    assert [event["message"] for event in api.events()] == [str(n) for n in range(2 * EVENTS_PER_POST)]
    assert len(api.asked) < 50


async def test_large_events_are_split_over_requests(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> None:
        for _ in range(4):
            ctx.put_stream("x" * 200_000)

    await run(dispatcher.app([talk], clock=clock), "talk")
    assert max(len(asked.content) for asked in api.asked) < 600_000
    assert [event["seq"] for event in api.events()] == [0, 1, 2, 3]


async def test_items_of_a_batch_speak_with_their_own_tokens(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> None:
        ctx.log(ctx.task_run_id)

    await batch(dispatcher.app([talk], clock=clock), item("talk", number=1), item("talk", number=2))
    said = {token: events[0]["message"] for token, events in api.said()}
    assert said == {f"atk1.token{n}.mac": item("talk", number=n)["id"] for n in (1, 2)}


async def test_streams_count_their_chunks_and_carry_bytes(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def stream(input: EmptyModel, ctx: Context) -> None:
        await ctx.aio_put_stream("a")
        assert len(api.events()) == 1
        ctx.put_stream(b"b")
        ctx.put_stream(b"\xff\x00", stream="raw")
        ctx.put_stream("nul\0")
        ctx.progress(0.5, "half")

    await run(dispatcher.app([stream], clock=clock), "stream")
    *chunks, progress = api.events()
    assert chunks == [
        {"type": "chunk", "stream": "out", "seq": 0, "data": "a"},
        {"type": "chunk", "stream": "out", "seq": 1, "data": "b"},
        {"type": "chunk", "stream": "raw", "seq": 2, "data": "/wA=", "encoding": "base64"},
        {"type": "chunk", "stream": "out", "seq": 3, "data": "bnVsAA==", "encoding": "base64"},
    ]
    assert progress == {"type": "progress", "fraction": 0.5, "note": "half"}


@pytest.mark.parametrize("increment", ["5m", timedelta(minutes=5)])
async def test_refresh_timeout_moves_both_deadlines(api: FakeApi, dispatcher: Dispatcher, increment: Any) -> None:
    @dispatcher.task()
    async def slow(input: EmptyModel, ctx: Context) -> int:
        control: Any = ctx._control
        before: float = control._due
        await ctx.aio_refresh_timeout(increment)
        ctx.refresh_timeout(increment)
        await asyncio.sleep(0)
        after: float = control._due
        return round(after - before)

    @dispatcher.task()
    def sync(input: EmptyModel, ctx: Context) -> int:
        ctx.refresh_timeout(increment)
        return len(api.events())

    app = dispatcher.app([slow, sync], clock=clock)
    assert (await run(app, "slow")).json() == 600
    assert api.events() == [{"type": "extend", "ms": 300_000}] * 2
    assert (await run(app, "sync")).json() == 3


async def test_releasing_the_slot(api: FakeApi, dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def heavy(input: EmptyModel, ctx: Context) -> None:
        await ctx.aio_release_slot()

    @dispatcher.task()
    def heavy_sync(input: EmptyModel, ctx: Context) -> int:
        ctx.release_slot()
        return len(api.events())

    app = dispatcher.app([heavy, heavy_sync], clock=clock)
    await run(app, "heavy")
    assert api.events() == [{"type": "release_slot"}]
    assert (await run(app, "heavy_sync")).json() == 2


async def test_a_task_cancels_its_own_run(api: FakeApi, dispatcher: Dispatcher) -> None:
    reached = []

    @dispatcher.task()
    async def give_up(input: EmptyModel, ctx: Context) -> None:
        await ctx.aio_cancel()
        assert ctx.exit_flag
        await asyncio.Event().wait()
        reached.append("never")

    @dispatcher.task()
    def give_up_sync(input: EmptyModel, ctx: Context) -> None:
        ctx.cancel()
        reached.append(str(ctx.exit_flag))

    app = dispatcher.app([give_up, give_up_sync], clock=clock)
    for number, name in enumerate(("give_up", "give_up_sync")):
        answer = await run(app, name, number=number)
        assert (answer.json()["code"], answer.json()["retry"]) == ("cancelled", False)
        asked = api.asked.pop()
        assert (asked.method, asked.path, asked.token) == ("POST", f"/v1/runs/{item(name, number=number)['run_id']}/cancel", "api-token")
    await idle(app)
    assert reached == ["True"]


async def test_cancelling_without_permission_fails_the_handler(api: FakeApi, dispatcher: Dispatcher) -> None:
    api.answer = lambda _: problem(403, "forbidden")

    @dispatcher.task()
    async def give_up(input: EmptyModel, ctx: Context) -> str:
        with pytest.raises(ApiError):
            await ctx.aio_cancel()
        return f"still here, {ctx.exit_flag}"

    assert (await run(dispatcher.app([give_up], clock=clock), "give_up")).json() == "still here, False"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, {"ok": True, "cancel": {"reason": "user asked", "grace_ms": 10}}), "user asked"),
        (problem(409, "stale_attempt"), "stale_attempt"),
        (problem(410, "task_ended"), "task_ended"),
    ],
    ids=["cancel in the reply", "stale attempt", "task ended"],
)
async def test_the_dispatchers_word_stops_the_task(api: FakeApi, dispatcher: Dispatcher, reply: Any, reason: str) -> None:
    api.answer = lambda _: reply
    found: list[str] = []

    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> None:
        ctx.log("hello")
        try:
            await asyncio.Event().wait()
        finally:
            found.append(ctx.cancellation_reason)

    app = dispatcher.app([talk], clock=clock)
    assert (await run(app, "talk")).json()["code"] == "cancelled"
    await idle(app)
    assert found == [reason]


async def test_lost_lines_are_counted_said_and_do_not_change_the_result(
    api: FakeApi, dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    api.answer = unreachable

    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> str:
        ctx.log("one")
        with pytest.raises(EventsLostError) as caught:
            await ctx.aio_log("two", raise_on_error=True)
        assert caught.value.lost == 2
        api.answer = lambda _: (200, {"ok": True, "cancel": None})
        await ctx.aio_log("three", raise_on_error=True)
        ctx.log("four")
        return "done"

    with caplog.at_level(logging.WARNING, "handlers_sdk"):
        assert (await run(dispatcher.app([talk], clock=clock), "talk")).json() == "done"
    heard = [event["message"] for _, events in api.said()[-2:] for event in events]
    assert heard == ["2 log lines or stream chunks before this one were lost", "three", "four"]
    assert "events of a task were lost" in caplog.text


async def test_losing_everything_at_the_end_is_logged(api: FakeApi, dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    api.answer = unreachable

    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> str:
        ctx.log("one")
        return "done"

    assert (await run(dispatcher.app([talk], clock=clock), "talk")).json() == "done"
    assert "1 events did not reach the dispatcher" in caplog.text


async def test_an_overfull_queue_loses_and_says_so(api: FakeApi, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers_sdk.channel.EVENTS_WAITING_MAX", 10)

    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> int:
        await ctx.aio_log("first", raise_on_error=True)
        for n in range(30):
            ctx.log(str(n))  # nothing is posted before the loop has its turn
        with pytest.raises(EventsLostError) as caught:
            await asyncio.wrap_future(ctx._control.flushed())
        return caught.value.lost

    assert (await run(dispatcher.app([talk], clock=clock), "talk")).json() == 20
    heard = [event["message"] for event in api.events()]
    assert heard == ["first", "20 log lines or stream chunks before this one were lost", *map(str, range(10))]


async def test_waiting_in_the_loop_is_refused_with_what_to_do(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> None:
        with pytest.raises(RuntimeError, match="aio_log"):
            ctx.log("x", raise_on_error=True)

    assert (await run(dispatcher.app([talk], clock=clock), "talk")).status == 200


async def test_the_standard_librarys_log_is_the_tasks_log(api: FakeApi) -> None:
    logger = logging.getLogger("test.speaking")
    logger.setLevel(logging.DEBUG)
    dispatcher = api.dispatcher(signing_secrets=(SECRET,), logger=logger)
    assert len(api.dispatcher(logger=logger).config.logger.handlers) == 1  # type: ignore[union-attr]

    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> None:
        logging.getLogger("test.speaking.child").error("bad %s", "news")
        logger.debug("detail")
        await asyncio.create_task(elsewhere())

    async def elsewhere() -> None:
        logger.info("from a subtask")

    @dispatcher.task()
    def talk_sync(input: EmptyModel, ctx: Context) -> None:
        logger.warning({"a": 1})

    try:
        app = dispatcher.app([talk, talk_sync], clock=clock)
        logger.info("nobody's")
        await run(app, "talk")
        await run(app, "talk_sync")
    finally:
        logger.handlers.clear()
    said = [(event["level"], event["message"]) for event in api.events()]
    assert said == [("error", "bad news"), ("debug", "detail"), ("info", "from a subtask"), ("warning", "{'a': 1}")]


async def test_what_the_client_logs_is_nobodys_log(api: FakeApi) -> None:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    dispatcher = api.dispatcher(signing_secrets=(SECRET,), logger=root)

    @dispatcher.task()
    async def talk(input: EmptyModel, ctx: Context) -> None:
        ctx.log("mine")

    try:
        await run(dispatcher.app([talk], clock=clock), "talk")
    finally:
        root.setLevel(before)
        root.handlers = [one for one in root.handlers if type(one).__name__ != "TaskLogHandler"]
    assert [event["message"] for event in api.events() if event["level"] != "debug"] == ["mine"]


async def test_callbacks_end_what_was_accepted(api: FakeApi, dispatcher: Dispatcher) -> None:
    reply = await dispatcher.callbacks.aio_complete("atk1.x", {"ok": True})
    assert reply == {"ok": True, "cancel": None}
    await dispatcher.callbacks.aio_fail("atk1.x", "broken", retry=False)
    await dispatcher.callbacks.aio_fail("atk1.x", ValueError("bad"))
    await dispatcher.callbacks.aio_extend("atk1.x", "2m")
    await dispatcher.callbacks.aio_heartbeat("atk1.x")
    done, said, raised, extend, heartbeat = api.events()
    assert done == {"type": "done", "output": {"ok": True}}
    assert said == {"type": "fail", "retry": False, "error": {"name": "Error", "message": "broken"}}
    assert (raised["error"]["name"], raised["error"]["message"], "retry" in raised) == ("ValueError", "bad", False)
    assert (extend, heartbeat) == ({"type": "extend", "ms": 120_000}, {"type": "heartbeat"})
    assert {asked.token for asked in api.asked} == {"atk1.x"}
    api.answer = lambda _: problem(410, "task_ended")
    with pytest.raises(ApiError) as caught:
        await dispatcher.callbacks.aio_complete("atk1.x")
    assert (caught.value.status, caught.value.problem_code) == (410, "task_ended")


def test_callbacks_from_sync_code(api: FakeApi, dispatcher: Dispatcher) -> None:
    dispatcher.callbacks.complete("t", [1])
    dispatcher.callbacks.fail("t", NonRetryableError("no"))
    dispatcher.callbacks.fail("t", RetryableException("later", "1s"))
    dispatcher.callbacks.extend("t", timedelta(seconds=1))
    dispatcher.callbacks.heartbeat("t")
    assert [event["type"] for event in api.events()] == ["done", "fail", "fail", "extend", "heartbeat"]
    assert (api.events()[1]["retry"], api.events()[2]["retry"], api.events()[2]["retry_after_ms"]) == (False, True, 1000)
    assert {asked.headers["host"] for asked in api.asked} == {API.removeprefix("http://")}
