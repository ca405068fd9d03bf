"""One attempt against endpoints that fail in every way they can; the rows of the fault table by number."""

from __future__ import annotations

import asyncio
import errno
import gzip
import socket
from datetime import timedelta
from types import UnionType
from typing import Any

import pytest

from dispatcher.delivery import Courier, CourierBounds, EgressPolicy
from dispatcher.delivery.transport import TransportBounds
from dispatcher.engine.answers import (
    Accepted,
    EndpointBroken,
    EndpointGone,
    Failed,
    LocalFault,
    Lost,
    PlatformKilled,
    Pushback,
    Succeeded,
    TimedOut,
    Unreachable,
)
from handlers_sdk.signing import Ed25519Signer, verify
from tests.delivery.conftest import MakeCourier
from tests.delivery.endpoints import (
    NOW,
    SECRET,
    ULID,
    Script,
    Visit,
    answering,
    chunk,
    endpoint,
    no_events,
    pouring,
    push,
    response,
    saying,
    soon,
    target,
)
from tests.delivery.nameserver import HANG, SERVFAIL, name_server

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
OPEN_ENDED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"


async def answer_to(courier: Courier, script: Script, *, timeout: float = 5.0, **options: Any) -> Any:
    async with endpoint(script) as served:
        receipt = await courier.push(target(served.url, **options), push(timeout=timeout), no_events)
        return receipt.answer


# ---- what is sent


async def test_a_run_as_it_arrives(courier: Courier) -> None:
    seed = bytes(32)
    signers = (Ed25519Signer(seed), *target("").signers)
    async with endpoint(answering(response(200, b'{"ok":true}', "task-version: 4f2c"))) as served:
        receipt = await courier.push(target(served.url, signers=signers, headers=[("authorization", "Bearer x")]), push(), no_events)
    assert receipt.answer == Succeeded(b'{"ok":true}')
    assert (receipt.http_status, receipt.version_seen, receipt.response_excerpt) == (200, "4f2c", None)
    assert receipt.latency_ms is not None
    request = served.requests[0]
    assert request.line == "POST /tasks HTTP/1.1"
    assert request.headers["webhook-id"] == f"ep_{ULID}_{ULID[:-4]}0000"
    assert request.headers["webhook-timestamp"] == str(NOW)
    expected = {
        "accept-encoding": "identity",
        "authorization": "Bearer x",
        "content-type": "application/json",
        "idempotency-key": f'"tsk_{ULID[:-4]}0000"',
        "task-attempt": "2",
        "task-deadline": "2026-01-01T00:00:55.000Z",
        "task-id": f"tsk_{ULID[:-4]}0000",
        "task-name": "resize",
        "task-protocol": "1",
        "user-agent": "dispatcher/test",
    }
    assert {name: request.headers.get(name) for name in expected} == expected
    assert "cookie" not in request.headers
    assert verify(request.headers, request.body, secrets=[SECRET], audience=f"ep_{ULID}", now=NOW) == "v1"
    assert verify(request.headers, request.body, public_keys=[Ed25519Signer(seed).public], audience=f"ep_{ULID}", now=NOW) == "v1a"
    assert request.json()["input"] == {"w": 64}


async def test_a_raw_body_is_the_input(courier: Courier) -> None:
    async with endpoint(answering(response(200, b"1"))) as served:
        await courier.push(target(served.url), push(raw=True, metadata=b'{"a":\n"b"}'), no_events)
        await courier.push(target(served.url), push(raw=True, metadata='{"a":"é"}'.encode()), no_events)
        await courier.push(target(served.url), push(raw=True, metadata=b'{"a":"' + b"x" * 5_000 + b'"}'), no_events)
        await courier.push(target(served.url), push(raw=True), no_events)
    assert {request.body for request in served.requests} == {b'{"w":64}'}
    assert [request.headers.get("task-metadata") for request in served.requests] == ['{"a":"b"}', '{"a":"\\u00e9"}', None, None]
    assert served.requests[0].headers["task-name"] == "resize"
    for request in served.requests:
        assert verify(request.headers, request.body, secrets=[SECRET], audience=None, now=NOW) == "v1"


async def test_cookies_are_neither_kept_nor_sent(courier: Courier) -> None:
    async with endpoint(answering(response(200, b"1", "set-cookie: a=b; path=/"))) as served:
        for _ in range(2):
            await courier.push(target(served.url), push(), no_events)
        assert all("cookie" not in request.headers for request in served.requests)


async def test_attempts_share_kept_connections(courier: Courier) -> None:
    async with endpoint(answering(response(200, b"1"))) as served:
        for _ in range(20):
            await courier.push(target(served.url), push(), no_events)
        await asyncio.gather(*[courier.push(target(served.url), push(), no_events) for _ in range(20)])
        assert len(served.visits) <= 20
        assert len(served.requests) == 40


# ---- answers


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (response(200, b'"x"'), Succeeded(b'"x"')),
        (response(201, b"[1]"), Succeeded(b"[1]")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Succeeded(b"null")),
        (response(200, b""), Succeeded(b"null")),
        (response(200, b"hi", kind="text/plain; charset=utf-8"), Succeeded(b"hi", "text/plain")),
        (response(202, b'{"lease_ms":600000}'), Accepted(timedelta(minutes=10))),
        (response(202, b""), Accepted()),
        (response(200, b"1", length=False, version="1.0"), Succeeded(b"1")),
        (CHUNKED + chunk(b'{"a"') + chunk(b":1}") + b"0\r\n\r\n", Succeeded(b'{"a":1}')),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + response(200, b"1"), Succeeded(b"1")),
    ],
)
async def test_successes(courier: Courier, raw: bytes, answer: object) -> None:
    assert await answer_to(courier, saying(raw)) == answer


async def test_a_refusal_keeps_the_beginning_of_what_came(courier: Courier) -> None:
    body = b"\xff\x00broken" + b"x" * 10_000
    async with endpoint(saying(response(500, body, kind="text/plain"))) as served:
        receipt = await courier.push(target(served.url), push(), no_events)
    assert receipt.answer == Failed("http_500", "the endpoint answered 500")
    assert receipt.response_excerpt == body[:4_096]
    assert receipt.http_status == 500


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (response(404), EndpointBroken),
        (response(410), EndpointGone),
        (response(503, b"", "retry-after: 7"), Pushback),
        (response(504, b"", "x-vercel-error: FUNCTION_INVOCATION_TIMEOUT"), PlatformKilled),
        (response(200, b"<html>log in", kind="text/html"), EndpointBroken),
        (response(101, b"", "connection: upgrade", "upgrade: x"), Failed),
        (response(999), Failed),
    ],
)
async def test_refusals(courier: Courier, raw: bytes, kind: type) -> None:
    assert isinstance(await answer_to(courier, saying(raw)), kind)


# ---- N1: no connection, no name


async def test_n1_refused(courier: Courier) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        receipt = await courier.push(target(f"http://127.0.0.1:{closed.getsockname()[1]}/"), push(), no_events)
    assert isinstance(receipt.answer, Unreachable)
    assert receipt.answer.code == "connection_refused"
    assert "127.0.0.1" not in receipt.answer.message
    assert (receipt.latency_ms, receipt.http_status) == (None, None)


@pytest.mark.parametrize("name", ["missing.test", "broken.test", "hung.test", "empty.test"])
async def test_n1_no_address(couriers: MakeCourier, name: str) -> None:
    async with name_server({"broken.test": SERVFAIL, "hung.test": HANG, "empty.test": []}) as names:
        courier = couriers(resolver=names.resolver(EgressPolicy(dev=True), budget=0.2))
        receipt = await courier.push(target(f"http://{name}/"), push(), no_events)
    assert isinstance(receipt.answer, EndpointBroken)
    assert receipt.answer.code == "dns"


async def test_n1_our_own_limits_are_not_the_endpoints_fault(couriers: MakeCourier) -> None:
    async with name_server({"hung.test": HANG, "slow.test": HANG}) as names:
        resolver = names.resolver(EgressPolicy(dev=True), budget=0.3, at_once=1)
        courier = couriers(resolver=resolver)
        hung = await courier.push(target("http://hung.test/"), push(), no_events)
        async with resolver._limits.turn("another", 10):
            slow = await courier.push(target("http://slow.test/"), push(), no_events)
    assert [type(receipt.answer) for receipt in (hung, slow)] == [EndpointBroken, LocalFault]


async def test_n1_a_connection_that_is_never_accepted(couriers: MakeCourier) -> None:
    """A listener whose queue is full takes no more: connecting hangs."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/"
            by_transport = await couriers(transport=TransportBounds(connect=0.1)).push(target(url), push(), no_events)
            by_attempt = await couriers().push(target(url), push(timeout=0.1), no_events)
        finally:
            for each in waiting:
                each.close()
    for receipt in (by_transport, by_attempt):
        assert isinstance(receipt.answer, Unreachable)
        assert receipt.answer.code == "connect_timeout"


# ---- N2: the total deadline ends everything


def slow(head: bytes, drops: bytes) -> Script:
    """`head`, then `drops` a byte at a time, for ever."""

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(head)
        pause = asyncio.Event()
        while True:
            for drop in drops:
                await visit.send(bytes([drop]))
                asyncio.get_running_loop().call_later(0.02, pause.set)
                await pause.wait()
                pause.clear()

    return script


@pytest.mark.parametrize(
    "script",
    [
        saying(stay=True),
        slow(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        slow(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", b" "),
        slow(CHUNKED, chunk(b" ")),
        slow(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        saying(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n1", stay=True),
    ],
    ids=["hang", "slow headers", "slow body", "slow chunks", "slow 1xx", "half a body"],
)
async def test_n2_total_deadline(courier: Courier, script: Script) -> None:
    async with soon():
        answer = await answer_to(courier, script, timeout=0.15)
    assert answer == TimedOut("no complete answer within 0.15 s")


async def test_the_deadline_closes_the_connection(courier: Courier) -> None:
    async with endpoint(saying(stay=True)) as served:
        await courier.push(target(served.url), push(timeout=0.05), no_events)
        async with soon():
            await served.closed.wait()


async def test_cancelling_closes_the_connection(courier: Courier) -> None:
    async with endpoint(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n1", stay=True)) as served:
        task = asyncio.create_task(courier.push(target(served.url), push(timeout=60), no_events))
        await served.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with soon():
            await served.closed.wait()


# ---- N3: too much


async def test_n3_an_endless_body_is_cut_and_not_drained(courier: Courier) -> None:
    async with endpoint(pouring(OPEN_ENDED, b"a" * 65_536)) as served:
        receipt = await courier.push(target(served.url, response_limit=100_000), push(), no_events)
        async with soon():
            await served.closed.wait()
    assert receipt.answer == Failed(
        "response_too_large", "the answer is larger than 100,000 bytes; store the result elsewhere and answer where", retry=False
    )


async def test_n3_a_body_that_says_it_is_too_long_is_not_read(courier: Courier) -> None:
    async with endpoint(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 100001\r\n\r\n", stay=True)) as served:
        receipt = await courier.push(target(served.url), push(), no_events)
        async with soon():
            await served.closed.wait()
    assert isinstance(receipt.answer, Failed)
    assert receipt.answer.code == "response_too_large"


async def test_n3_the_last_byte_that_fits(courier: Courier) -> None:
    body = b'"' + b"a" * 99_998 + b'"'
    assert await answer_to(courier, saying(response(200, body))) == Succeeded(body)
    longer = await answer_to(courier, saying(response(200, body[:-1] + b'a"')))
    assert longer.code == "response_too_large"


async def test_n3_a_long_refusal_is_still_a_refusal(courier: Courier) -> None:
    answer = await answer_to(courier, pouring(b"HTTP/1.1 500 No\r\ncontent-type: text/plain\r\n\r\n", b"a" * 65_536))
    assert answer == Failed("http_500", "the endpoint answered 500")


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"x%d: 1\r\n" % number for number in range(9_000)), b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 120_000, b"\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: 1\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\nx: ", b"a" * 10_000),
        (b"HTTP/1.1 200 ", b"a" * 10_000),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 120_000, b": 1\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100),
        (CHUNKED + b"5;", b"a" * 65_536),
        (CHUNKED + b"0\r\n", b"x: 1\r\n" * 1_000),
    ],
    ids=[
        "9000 headers",
        "long value",
        "endless headers",
        "endless value",
        "endless status",
        "long name",
        "1xx",
        "103",
        "chunk",
        "trailers",
    ],
)
async def test_n3_heads_and_framing_without_end(courier: Courier, start: bytes, more: bytes) -> None:
    async with soon(), endpoint(pouring(start, more)) as served:
        receipt = await courier.push(target(served.url), push(timeout=60), no_events)
        await served.closed.wait()
    assert isinstance(receipt.answer, Failed | Lost)
    if isinstance(receipt.answer, Failed):
        assert receipt.answer.code in {"response_too_large", "bad_response"}


async def test_n3_interim_responses_are_counted_not_waited_out(courier: Courier) -> None:
    """Installed through a private name of aiohttp; this is what fails should that stop working."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert await answer_to(courier, saying(interim * 16 + response(200, b"1"))) == Succeeded(b"1")
    answer = await answer_to(courier, saying(interim * 17 + response(200, b"1")))
    assert answer.code == "response_too_large"


# ---- N4: bombs are never opened


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZip", "gzip, gzip", "aes128gcm"])
async def test_n4_no_content_coding(courier: Courier, coding: str) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    async with endpoint(saying(response(200, bomb, f"content-encoding: {coding}"))) as served:
        receipt = await courier.push(target(served.url), push(), no_events)
    assert isinstance(receipt.answer, EndpointBroken)
    assert receipt.answer.code == "content_encoding"
    assert receipt.http_status == 200


async def test_n4_identity_is_fine(courier: Courier) -> None:
    assert await answer_to(courier, saying(response(200, b"1", "content-encoding: identity"))) == Succeeded(b"1")


# ---- N5: results that cannot be kept


@pytest.mark.parametrize(
    "body",
    [b"{", b"NaN", b'"\\u0000"', b"[" * 10_000 + b"]" * 10_000, b'"\xff"', b'"\\ud800"', b"1e-20000", b"\xef\xbb\xbf{}", b'{"a":1}x'],
    ids=lambda body: repr(body)[:20],
)
async def test_n5_invalid_output(courier: Courier, body: bytes) -> None:
    async with endpoint(saying(response(200, body))) as served:
        receipt = await courier.push(target(served.url), push(), no_events)
    assert isinstance(receipt.answer, Failed)
    assert (receipt.answer.code, receipt.answer.retry) == ("invalid_output", False)
    assert receipt.response_excerpt == body[:4_096]


# ---- N9, N10: broken off, or nonsense


async def test_n9_reset_after_the_request_was_read(courier: Courier) -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.reset()

    async with endpoint(script) as served:
        receipt = await courier.push(target(served.url), push(), no_events)
        assert isinstance(receipt.answer, Lost)
        assert receipt.latency_ms is not None
        assert len(served.requests) == 1, "never sent twice"


async def test_n9_closed_without_an_answer(courier: Courier) -> None:
    async with endpoint(saying()) as served:
        receipt = await courier.push(target(served.url), push(), no_events)
        assert isinstance(receipt.answer, Lost)
        assert len(served.visits) == 1


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", Lost),
        (CHUNKED + chunk(b'{"a":1}'), Lost),
        (CHUNKED + b"50\r\nabc", Lost),
        (CHUNKED + b"zz\r\nabc\r\n", Failed | Lost),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n12", Failed),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", Failed),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Failed),
        (b"\x15\x03\x01\x00\x02\x02\x46", Failed),
        (b"hello", Failed),
        (b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n", Failed),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", Failed),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", Failed),
        (b"HTTP/1.1 200", Lost),
    ],
    ids=[
        "short",
        "no end",
        "cut chunk",
        "bad chunk",
        "two lengths",
        "both",
        "ssh",
        "tls",
        "text",
        "nul",
        "status",
        "negative",
        "half a line",
    ],
)
async def test_n10_truncated_and_malformed(courier: Courier, raw: bytes, kind: type | UnionType) -> None:
    async with endpoint(saying(raw)) as served:
        receipt = await courier.push(target(served.url), push(), no_events)
        assert isinstance(receipt.answer, kind)
        if isinstance(receipt.answer, Failed):
            assert receipt.answer.code == "bad_response"
        assert len(served.requests) == 1


async def test_n10_a_refusal_cut_short_is_still_a_refusal(courier: Courier) -> None:
    raw = b"HTTP/1.1 429 No\r\ncontent-length: 50\r\nretry-after: 9\r\n\r\n{"
    answer = await answer_to(courier, saying(raw))
    assert isinstance(answer, Pushback)
    assert answer.retry_after == timedelta(seconds=9)


# ---- ourselves


async def test_out_of_descriptors_is_our_own_fault(couriers: MakeCourier, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("dispatcher.delivery.transport._make_socket", refuse)
    receipt = await couriers().push(target("http://127.0.0.1:9/"), push(), no_events)
    assert receipt.answer == LocalFault("out_of_resources", "this dispatcher is out of descriptors, memory or ports")


async def test_a_url_that_may_not_be_used(couriers: MakeCourier) -> None:
    receipt = await couriers(EgressPolicy()).push(target("http://app.example.com/"), push(), no_events)
    assert isinstance(receipt.answer, EndpointBroken)
    assert receipt.answer.code == "destination_blocked"
    assert "https://" in receipt.answer.message


async def test_a_closed_courier_sends_nothing(courier: Courier) -> None:
    await courier.aclose()
    receipt = await courier.push(target("http://127.0.0.1:9/"), push(), no_events)
    assert isinstance(receipt.answer, LocalFault)


async def test_the_excerpt_has_its_bound(couriers: MakeCourier) -> None:
    async with endpoint(saying(response(500, b"abcdef", kind="text/plain"))) as served:
        receipt = await couriers(bounds=CourierBounds(excerpt=3)).push(target(served.url), push(), no_events)
    assert receipt.response_excerpt == b"abc"
