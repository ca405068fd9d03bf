"""What a push costs: `python -m tests.delivery.measure`.

CPU of this process per POST of 0.7 KB over kept connections, 64 in flight, beside aiohttp used bare; and per task of a batch of 100.
The endpoint runs in a process of its own. Rounds alternate, and the least of each counts: noise only ever adds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import aiohttp
from yarl import URL

from dispatcher.delivery import Courier, EgressPolicy, Push, Receipt, Target
from dispatcher.delivery.envelope import parse_result, run_body, run_item
from dispatcher.delivery.headers import common, of_run, run_message_id, signed
from handlers_sdk.signing import Ed25519Signer, HmacSigner, Signer, new_secret

IN_FLIGHT: Final = 64
POSTS: Final = 6_000
ROUNDS: Final = 5
ULID: Final = "01hzzzzzzzzzzzzzzzzzzzzzzz"
SINGLE: Final = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\ntask-version: 4f2c\r\n\r\n{"ok":true}'
Once = Callable[[], Awaitable[object]]


class Answering(asyncio.Protocol):
    """A minimal endpoint: a run gets `{"ok":true}`, a batch a line for each of its items."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(rest) >= length:
            self.buffer = rest[length:]
            self.transport.write(_batch(rest[:length]) if b'"type":"batch"' in rest[:60] else SINGLE)


def _batch(body: bytes) -> bytes:
    items = json.loads(body)["items"]
    lines = b"".join(b'{"id":"%b","status":"ok","output":{"ok":true}}\n' % item["id"].encode() for item in items)
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncontent-length: %d\r\n\r\n%b" % (len(lines), lines)


async def serve() -> None:
    """Print the port, then answer until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=512)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def make_push(number: int = 0) -> Push:
    ulid = f"{ULID[:-4]}{number:04d}"
    return Push(
        task_id=f"tsk_{ulid}",
        run_id=f"run_{ulid}",
        workflow="resize",
        name="resize",
        attempt=1,
        retry_count=0,
        max_attempts=5,
        priority=1,
        input=b'{"w":64,"url":"' + b"a" * 130 + b'"}',
        metadata=b'{"tenant":"a"}',
        event=None,
        parent_run_id=None,
        deadline=datetime(2026, 1, 1, tzinfo=UTC),
        timeout=timedelta(seconds=55),
        token="atk1." + "a" * 120,
        tenant="default",
        raw=False,
    )


def make_target(port: int, *signers: Signer) -> Target:
    url = f"http://127.0.0.1:{port}/tasks"
    return Target(
        f"ep_{ULID}", url, "4f2c", signers, (), "http://127.0.0.1:8400", frozenset(), None, allow_html=False, response_limit=4_000_000
    )


async def no_events(_: bytes) -> None:
    raise AssertionError


async def cpu(once: Once, times: int) -> float:
    """CPU µs of this process per call, IN_FLIGHT of them at a time."""
    left = times

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await once()

    before = time.process_time()
    await asyncio.gather(*[worker() for _ in range(IN_FLIGHT)])
    return (time.process_time() - before) / times * 1e6


async def least(cases: dict[str, tuple[Once, int, int]]) -> dict[str, float]:
    """The least CPU µs of each case: (call, how often a round, tasks a call)."""
    found: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, (once, times, tasks) in cases.items():
            cost = await cpu(once, times) / tasks
            found[name] = min(cost, found.get(name, cost))
    return found


async def measure(port: int) -> dict[str, float]:
    """CPU µs per task, by what was done."""
    courier = Courier(EgressPolicy(dev=True), clock=lambda: 1_767_225_600, user_agent="dispatcher/measure")
    hmac, ed25519 = HmacSigner(new_secret()), Ed25519Signer(bytes(32))
    push, batch = make_push(), [make_push(number) for number in range(100)]
    target = make_target(port, hmac)
    body = run_body(target, push)
    fields = signed(of_run(common(target, "aiohttp"), push), target.signers, run_message_id(target, push.task_id), 1, body)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as session:
        url = URL(target.url)

        async def bare() -> None:
            async with session.post(url, data=body, headers=fields, allow_redirects=False) as response:
                await response.read()

        def settle(index: int, receipt: Receipt) -> None:
            assert receipt.http_status == 200, index

        cases: dict[str, tuple[Once, int, int]] = {
            "aiohttp bare": (bare, POSTS, 1),
            "push, no signature": (lambda: courier.push(make_target(port), push, no_events), POSTS, 1),
            "push, v1": (lambda: courier.push(target, push, no_events), POSTS, 1),
            "push, v1a": (lambda: courier.push(make_target(port, ed25519), push, no_events), POSTS, 1),
            "batch of 100, v1": (lambda: courier.push_batch(target, batch, settle), 300, 100),
        }
        found = await least(cases)
    await courier.aclose()
    return {"bytes of the body": float(len(body)), **found, **parts(target, push)}


def parts(target: Target, push: Push) -> dict[str, float]:
    """Pieces of the hot path on their own."""
    line = b'{"id":"tsk_%b","status":"ok","output":{"x":1,"url":"%b","n":[1,2,3]}}' % (ULID.encode(), b"a" * 100)
    return {
        "one item of a batch, built": alone(lambda: run_item(push, target.version)),
        "one result line, read": alone(lambda: parse_result(line)),
    }


def alone(call: Callable[[], object], times: int = 50_000) -> float:
    costs = []
    for _ in range(ROUNDS):
        before = time.process_time()
        for _ in range(times):
            call()
        costs.append((time.process_time() - before) / times * 1e6)
    return min(costs)


def main() -> None:
    """Start the endpoint, measure, print."""
    command = [sys.executable, "-m", "tests.delivery.measure", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as endpoint:
        assert endpoint.stdout is not None
        assert endpoint.stdin is not None
        try:
            for name, value in asyncio.run(measure(int(endpoint.stdout.readline()))).items():
                print(f"{name:30} {value:8.1f}")
        finally:
            endpoint.stdin.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        main()
