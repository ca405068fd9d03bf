"""Streamed answers to one attempt: events on the way, one line that ends it, and every way it may not come."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.delivery import Courier, Receipt
from dispatcher.delivery.lines import Lines, LineTooLong
from dispatcher.engine.answers import Failed, Succeeded, TimedOut
from tests.delivery.endpoints import (
    STREAM_END,
    STREAM_HEAD,
    Script,
    Visit,
    chunk,
    endpoint,
    line,
    no_events,
    pouring,
    push,
    saying,
    soon,
    target,
)

CUT = Failed("stream_cut", "the endpoint's stream ended without a done or fail line", retry=True)


async def stream(courier: Courier, script: Script, **options: Any) -> tuple[Receipt, list[bytes]]:
    """(the receipt, the events on the way)."""
    events: list[bytes] = []

    async def keep(event: bytes) -> None:
        events.append(event)

    async with endpoint(script) as served:
        receipt = await courier.push(target(served.url, **options), push(timeout=5), keep)
    return receipt, events


async def test_events_then_done(courier: Courier) -> None:
    parts = (line(type="log", message="a"), line(type="progress", fraction=0.5), line(type="done", output={"n": 1}), STREAM_END)
    receipt, events = await stream(courier, saying(STREAM_HEAD, *parts))
    assert receipt.answer == Succeeded(b'{"n": 1}')
    assert events == [b'{"type": "log", "message": "a"}', b'{"type": "progress", "fraction": 0.5}']
    assert receipt.http_status == 200


async def test_events_come_while_the_handler_runs(courier: Courier) -> None:
    heard, go_on = asyncio.Event(), asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(STREAM_HEAD, line(type="log", message="a"))
        await go_on.wait()
        await visit.send(line(type="done"), STREAM_END)

    async def hear(_: bytes) -> None:
        heard.set()

    async with endpoint(script) as served:
        task = asyncio.create_task(courier.push(target(served.url), push(), hear))
        async with soon():
            await heard.wait()
        assert not task.done()
        go_on.set()
        assert (await task).answer == Succeeded(b"null")


async def test_fail(courier: Courier) -> None:
    error = {"name": "ValueError", "message": "no", "code": "bad_thing"}
    receipt, _ = await stream(courier, saying(STREAM_HEAD, line(type="fail", retry=False, retry_after_ms=2_500, error=error), STREAM_END))
    assert isinstance(receipt.answer, Failed)
    assert (receipt.answer.code, receipt.answer.message, receipt.answer.retry) == ("bad_thing", "no", False)
    assert receipt.answer.retry_after == timedelta(seconds=2.5)
    assert receipt.answer.detail == b'{"name": "ValueError", "message": "no", "code": "bad_thing"}'
    assert receipt.response_excerpt is not None
    assert receipt.response_excerpt.startswith(b'{"type": "fail"')


async def test_fail_without_an_error(courier: Courier) -> None:
    receipt, _ = await stream(courier, saying(STREAM_HEAD, line(type="fail"), STREAM_END))
    assert receipt.answer == Failed("task_failed", "the handler failed")


async def test_fail_by_its_own_timeout(courier: Courier) -> None:
    receipt, _ = await stream(courier, saying(STREAM_HEAD, line(type="fail", error={"code": "timed_out", "message": "over"}), STREAM_END))
    assert receipt.answer == TimedOut("over")


@pytest.mark.parametrize(
    "end", [(), (STREAM_END,), (line(type="log"), STREAM_END), (chunk(b'{"type":"do'),), (chunk(b'{"type":"log"}'), STREAM_END)]
)
async def test_no_last_line(courier: Courier, end: tuple[bytes, ...]) -> None:
    receipt, _ = await stream(courier, saying(STREAM_HEAD, *end))
    assert receipt.answer == CUT


async def test_what_follows_the_last_line_is_nothing(courier: Courier) -> None:
    receipt, events = await stream(
        courier, saying(STREAM_HEAD, line(type="done", output=1), line(type="fail"), line(type="log"), STREAM_END)
    )
    assert receipt.answer == Succeeded(b"1")
    assert not events


async def test_a_last_line_needs_no_newline_and_lines_may_be_split_anywhere(courier: Courier) -> None:
    text = b'\n\r\n{"type":"log","message":"\xc3\xa9"}\r\n{"type":"done","output":[1,2]}'
    receipt, events = await stream(courier, saying(STREAM_HEAD, *[chunk(bytes([byte])) for byte in text], STREAM_END))
    assert receipt.answer == Succeeded(b"[1,2]")
    assert events == ['{"type":"log","message":"é"}\r'.encode()]


@pytest.mark.parametrize("bad", [b"{\n", b"[]\n", b'"done"\n', b'{"kind":"done"}\n', b'{"type":1}\n', b"\xff\n"])
async def test_a_line_that_is_no_event(courier: Courier, bad: bytes) -> None:
    receipt, _ = await stream(courier, saying(STREAM_HEAD, chunk(bad), line(type="done"), STREAM_END))
    assert isinstance(receipt.answer, Failed)
    assert receipt.answer.code == "bad_response"
    assert receipt.response_excerpt == bad[:-1]


async def test_an_output_that_cannot_be_kept(courier: Courier) -> None:
    receipt, _ = await stream(courier, saying(STREAM_HEAD, chunk(b'{"type":"done","output":"\\u0000"}\n'), STREAM_END))
    assert isinstance(receipt.answer, Failed)
    assert (receipt.answer.code, receipt.answer.retry) == ("invalid_output", False)


async def test_a_line_without_end(courier: Courier) -> None:
    async with endpoint(pouring(STREAM_HEAD, chunk(b"a" * 30_000))) as served:
        receipt = await courier.push(target(served.url), push(timeout=30), no_events)
        async with soon():
            await served.closed.wait()
    assert isinstance(receipt.answer, Failed)
    assert receipt.answer.code == "response_too_large"


async def test_a_stream_without_end(courier: Courier) -> None:
    """Each line is fine, all together are sixteen times the largest answer."""
    count = 0

    async def events(_: bytes) -> None:
        nonlocal count
        count += 1

    async with endpoint(pouring(STREAM_HEAD, line(type="log", message="x" * 1_000))) as served:
        receipt = await courier.push(target(served.url, response_limit=5_000), push(timeout=30), events)
    assert isinstance(receipt.answer, Failed)
    assert receipt.answer.code == "response_too_large"
    assert count <= 16 * 5_000 / 1_000 + 70  # what had arrived with the last of it


async def test_a_long_stream_of_small_lines_is_fine(courier: Courier) -> None:
    parts = [line(type="log", message="x" * 30)] * 20_000
    receipt, events = await stream(courier, saying(STREAM_HEAD, b"".join(parts), line(type="done", output=1), STREAM_END))
    assert receipt.answer == Succeeded(b"1")
    assert len(events) == 20_000


async def test_what_the_events_callback_raises_is_raised_and_closes(courier: Courier) -> None:
    async def refuse(_: bytes) -> None:
        raise TimeoutError("the database is away")

    async with endpoint(saying(STREAM_HEAD, line(type="log"), stay=True)) as served:
        with pytest.raises(TimeoutError, match="the database is away"):
            await courier.push(target(served.url), push(timeout=5), refuse)
        async with soon():
            await served.closed.wait()


async def test_a_slow_events_callback_counts_against_the_timeout(courier: Courier) -> None:
    async def never(_: bytes) -> None:
        await asyncio.Event().wait()

    async with endpoint(saying(STREAM_HEAD, line(type="log"), stay=True)) as served:
        receipt = await courier.push(target(served.url), push(timeout=0.1), never)
    assert receipt.answer == TimedOut("no complete answer within 0.1 s")


async def test_a_finished_stream_leaves_its_connection_for_the_next(courier: Courier) -> None:
    async def script(visit: Visit) -> None:
        while True:
            await visit.request()
            await visit.send(STREAM_HEAD, line(type="done"))
            await asyncio.sleep(0)
            await visit.send(STREAM_END)

    async with endpoint(script) as served:
        for _ in range(3):
            await courier.push(target(served.url), push(), no_events)
        assert len(served.visits) == 1


async def test_a_stream_that_stays_open_after_its_last_line_is_closed(courier: Courier) -> None:
    async with endpoint(saying(STREAM_HEAD, line(type="done", output=1), stay=True)) as served:
        receipt = await courier.push(target(served.url), push(timeout=30), no_events)
        assert receipt.answer == Succeeded(b"1")
        async with soon():
            await served.closed.wait()


class Chunks:
    """Stands for a response's content."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)

    async def readany(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""


async def cut(*chunks: bytes, line_limit: int = 10, total: int = 100) -> list[list[bytes]]:
    content: Any = Chunks(*chunks)
    lines = Lines(content, line_limit, total)
    found = []
    while arrived := await lines.more():
        found.append(arrived)
    return found


async def test_lines_are_cut_as_they_come() -> None:
    assert await cut(b"a\nb\nc", b"d\n", b"\n", b" \n", b"e") == [[b"a", b"b"], [b"cd"], [b"e"]]
    assert await cut() == []
    assert await cut(b"abc") == [[b"abc"]]
    assert await cut(b"a" * 10 + b"\n") == [[b"a" * 10]]
    for chunks in ([b"a" * 11], [b"a" * 11 + b"\n"], [b"a" * 6, b"a" * 6], [b"x\n" + b"a" * 11 + b"\n"], [b"a\n" * 51]):
        with pytest.raises(LineTooLong):
            await cut(*chunks)
