"""Many attempts in one request: each is its own attempt, each result leaves as soon as it is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, EmptyModel, NonRetryableError, RetryableException
from handlers_sdk.batches import Rest
from handlers_sdk.signing import Ed25519Signer
from tests.sdk.pushing import Answer, batch, batch_body, clock, config, idle, item, read, send, until


class Number(BaseModel):
    n: int


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(config())


async def test_mixed_results(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def double(input: Number, ctx: Context) -> dict[str, int]:
        return {"n": input.n * 2}

    @dispatcher.task()
    def fail(input: EmptyModel, ctx: Context) -> None:
        raise ValueError("no")

    @dispatcher.task()
    def refuse(input: EmptyModel, ctx: Context) -> None:
        raise NonRetryableError("never")

    @dispatcher.task()
    async def later(input: EmptyModel, ctx: Context) -> None:
        raise RetryableException("later", "2s")

    @dispatcher.task()
    async def hand_over(input: EmptyModel, ctx: Context) -> Any:
        return ctx.accept("1m")

    app = dispatcher.app([double, fail, refuse, later, hand_over], clock=clock)
    malformed = {"id": item("x", number=8)["id"], "name": "double"}
    answer = await batch(
        app,
        item("double", {"n": 2}, 1),
        item("double", {"n": "two"}, 2),
        item("fail", number=3),
        item("refuse", number=4),
        item("later", number=5),
        item("hand_over", number=6),
        item("unknown", number=7),
        malformed,
        item("double", {"n": 5}, 9),
    )
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    results = answer.by_id()
    assert len(answer.lines()) == 9
    assert results["01"] == {"id": item("x", number=1)["id"], "status": "ok", "output": {"n": 4}}
    assert (results["02"]["status"], results["02"]["retry"], results["02"]["error"]["code"]) == ("fail", False, "invalid_input")
    assert (results["03"]["status"], results["03"].get("retry"), results["03"]["error"]["message"]) == ("fail", None, "no")
    assert (results["04"]["status"], results["04"]["retry"]) == ("fail", False)
    assert (results["05"]["status"], results["05"]["retry"], results["05"]["retry_after_ms"]) == ("fail", True, 2_000)
    assert results["06"] == {"id": item("x", number=6)["id"], "status": "accepted", "lease_ms": 60_000}
    assert (results["07"]["status"], results["07"]["error"]["code"]) == ("retry", "unknown_handler")
    assert (results["08"]["status"], results["08"]["retry"], results["08"]["error"]["code"]) == ("fail", False, "malformed")
    assert results["09"]["output"] == {"n": 10}


async def test_quick_items_leave_in_one_write(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def quick(input: EmptyModel, ctx: Context) -> int:
        return 1

    response = await send(dispatcher.app([quick], clock=clock), batch_body(*(item("quick", number=n) for n in range(50))))
    assert isinstance(response.body, bytes)
    assert response.body.count(b"\n") == 50


async def test_a_slow_item_does_not_hold_back_the_quick_ones(dispatcher: Dispatcher) -> None:
    release = asyncio.Event()

    @dispatcher.task()
    async def work(input: dict[str, Any], ctx: Context) -> int:
        if input["slow"]:
            await release.wait()
        return 1

    items = [item("work", {"slow": n == 0}, n) for n in range(4)]
    response = await send(dispatcher.app([work], clock=clock), batch_body(*items))
    chunks = _chunks(response.body)
    assert _ids(await anext(chunks)) == ["01", "02", "03"]
    release.set()
    assert _ids(await anext(chunks)) == ["00"]
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_at_most_slots_run_at_once_and_the_rest_follow(dispatcher: Dispatcher) -> None:
    running, most = 0, 0
    gate = asyncio.Semaphore(0)

    @dispatcher.task()
    async def work(input: EmptyModel, ctx: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.acquire()
        running -= 1

    app = dispatcher.app([work], slots=3, clock=clock)
    response = asyncio.create_task(send(app, batch_body(*(item("work", number=n) for n in range(10)))))
    await until(lambda: running == 3)
    for _ in range(10):
        gate.release()
    assert len((await read(await response)).lines()) == 10
    assert most == 3


async def test_an_ordered_batch_runs_one_after_the_other(dispatcher: Dispatcher) -> None:
    log: list[str] = []

    @dispatcher.task()
    async def work(input: dict[str, Any], ctx: Context) -> None:
        log.append(f"start {input['n']}")
        await asyncio.sleep(0)
        log.append(f"end {input['n']}")

    app = dispatcher.app([work], clock=clock)
    answer = await batch(app, *(item("work", {"n": n}, n) for n in range(3)), ordered=True)
    assert [line["id"][-2:] for line in answer.lines()] == ["00", "01", "02"]
    assert log == ["start 0", "end 0", "start 1", "end 1", "start 2", "end 2"]


async def test_each_item_has_its_own_deadline(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def wait(input: EmptyModel, ctx: Context) -> None:
        await asyncio.Event().wait()

    @dispatcher.task()
    async def quick(input: EmptyModel, ctx: Context) -> int:
        return 1

    app = dispatcher.app([wait, quick], clock=clock)
    answer = await batch(app, item("wait", number=1, timeout_ms=5), item("quick", number=2), item("wait", number=3, timeout_ms=1))
    results = answer.by_id()
    assert results["02"]["status"] == "ok"
    for number in ("01", "03"):
        assert (results[number]["status"], results[number]["error"]["code"]) == ("fail", "timed_out")
        assert "retry" not in results[number]
    assert results["01"]["error"]["message"] == "Task exceeded timeout of 0.005s"


async def test_an_item_that_waited_too_long_for_a_slot_is_timed_out_unstarted(dispatcher: Dispatcher) -> None:
    started: list[int] = []

    @dispatcher.task()
    async def wait(input: dict[str, Any], ctx: Context) -> None:
        started.append(input["n"])
        await asyncio.Event().wait()

    app = dispatcher.app([wait], slots=1, clock=clock)
    answer = await batch(app, *(item("wait", {"n": n}, n, timeout_ms=5) for n in range(3)))
    assert {line["error"]["code"] for line in answer.lines()} == {"timed_out"}
    assert set(started) <= {0}


async def test_a_batch_nobody_reads_any_more_is_stopped(dispatcher: Dispatcher) -> None:
    stopped: list[str] = []
    started = asyncio.Event()

    @dispatcher.task()
    async def wait(input: dict[str, Any], ctx: Context) -> None:
        if input["quick"]:
            return
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(ctx.cancellation_reason)

    app = dispatcher.app([wait], slots=2, clock=clock)
    items = [item("wait", {"quick": n == 0}, n) for n in range(5)]
    response = await send(app, batch_body(*items))
    await started.wait()
    assert isinstance(response.body, Rest)
    await response.body.aclose()
    await idle(app)
    assert stopped == ["the request was abandoned"] * len(stopped)
    assert 1 <= len(stopped) <= 2


async def test_cancelling_the_request_before_anything_is_settled_stops_the_batch(dispatcher: Dispatcher) -> None:
    started = asyncio.Event()

    @dispatcher.task()
    async def wait(input: EmptyModel, ctx: Context) -> None:
        started.set()
        await asyncio.Event().wait()

    app = dispatcher.app([wait], clock=clock)
    request = asyncio.create_task(send(app, batch_body(item("wait", number=1), item("wait", number=2))))
    await started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await idle(app)


async def test_an_item_sent_twice_runs_once(dispatcher: Dispatcher) -> None:
    @dispatcher.task()
    async def once(input: EmptyModel, ctx: Context) -> int:
        return 1

    app = dispatcher.app([once], clock=clock)
    answer = await batch(app, item("once"), item("once"))
    assert sorted(line["status"] for line in answer.lines()) == ["ok", "retry"]


async def test_an_empty_batch(dispatcher: Dispatcher) -> None:
    answer: Answer = await batch(dispatcher.app([], clock=clock))
    assert (answer.status, answer.body) == (200, b"")


async def test_v1a_batches(dispatcher: Dispatcher) -> None:
    signer = Ed25519Signer(bytes(32))
    other = Dispatcher(config(signing_secrets=(), public_keys=(signer.public,)))

    @other.task()
    async def quick(input: EmptyModel, ctx: Context) -> int:
        return 1

    response = await send(other.app([quick], clock=clock), batch_body(item("quick")), signer)
    assert response.status == 200


async def _chunks(body: Any) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk


def _ids(chunk: bytes) -> list[str]:
    return [json.loads(line)["id"][-2:] for line in chunk.splitlines()]
