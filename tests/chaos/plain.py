"""The plain endpoint: no SDK, a socket and a dozen ways to answer, most of them rude.

Run as `python -m tests.chaos.plain PORT RECORD API_PORT…`. It calls back to whichever dispatcher answers.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.bench.client import Client
from tests.chaos.witness import Witness

HOST = "127.0.0.1"
_POLICY = {"kind": "task", "retries": 8, "execution_timeout": "4s", "backoff_factor": 1}
HANDLERS = [{"name": "raw", "body": "raw", **_POLICY}, {"name": "plain", "body": "v1", **_POLICY}]
_CALLBACK_TRIES = 40


@dataclass(frozen=True, slots=True)
class Push:
    """One request: the nonce its result has to carry, and the token of its attempt, which a raw body does not bring."""

    nonce: str
    token: str = ""

    @property
    def output(self) -> bytes:
        """The result."""
        return json.dumps({"nonce": self.nonce}).encode()


class Cut(Exception):  # noqa: N818 - no error, a way to answer
    """Close the connection instead of answering."""


class Plain:
    """The endpoint's behaviour."""

    def __init__(self, witness: Witness, api_ports: list[int]) -> None:
        self._witness = witness
        self._api_ports = api_ports
        self._later: set[asyncio.Task[None]] = set()
        self._ways: list[tuple[int, Callable[[Push], Awaitable[tuple[int, bytes, bytes]]]]] = [
            (60, self._well), (8, self._slowly), (7, self._failing), (4, self._asking_for_less), (4, self._cutting), (5, self._half),
            (8, self._later_on), (4, self._never),
        ]  # fmt: skip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept for as many requests as come."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                writer.write(await self._answer(self._push(headers, body)))
                await writer.drain()
        except (asyncio.IncompleteReadError, Cut, OSError):
            pass
        finally:
            writer.close()

    def _push(self, headers: dict[str, str], body: bytes) -> Push:
        document = json.loads(body)
        if "protocol" in document:
            return Push(self._witness.saw(document["run_id"], document["attempt"]), document["token"])
        run_id = f"run_{headers['task-id'].removeprefix('tsk_')}"
        return Push(self._witness.saw(run_id, int(headers["task-attempt"])))

    async def _answer(self, push: Push) -> bytes:
        way = random.choices([way for _, way in self._ways], [weight for weight, _ in self._ways])[0]
        status, extra, body = await way(push)
        head = f"HTTP/1.1 {status} .\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return head.encode() + extra + b"\r\n" + body

    async def _well(self, push: Push) -> tuple[int, bytes, bytes]:
        return 200, b"", push.output

    async def _slowly(self, push: Push) -> tuple[int, bytes, bytes]:
        await _pause(random.random())
        return 200, b"", push.output

    async def _failing(self, push: Push) -> tuple[int, bytes, bytes]:
        return 500, b"", b'{"error": {"message": "it happens"}}'

    async def _asking_for_less(self, push: Push) -> tuple[int, bytes, bytes]:
        return 503, b"retry-after: 1\r\n", b"{}"

    async def _cutting(self, push: Push) -> tuple[int, bytes, bytes]:
        raise Cut

    async def _half(self, push: Push) -> tuple[int, bytes, bytes]:
        """It did the work, and the answer is lost on the way: nobody may take what never came for a result."""
        await _pause(0.05)
        raise Cut

    async def _later_on(self, push: Push) -> tuple[int, bytes, bytes]:
        if not push.token:
            return await self._well(push)
        task = asyncio.create_task(self._call_back(push))
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return 202, b"", b'{"lease_ms": 3000}'

    async def _never(self, push: Push) -> tuple[int, bytes, bytes]:
        """Promises a result and never gives it."""
        return 202, b"", b'{"lease_ms": 1500}'

    async def _call_back(self, push: Push) -> None:
        """Give the result to any dispatcher that takes it: recorded, repeated, or refused, but not unheard."""
        await _pause(random.random() * 0.5)
        for _ in range(_CALLBACK_TRIES):
            client = Client(HOST, random.choice(self._api_ports), push.token)
            try:
                async with asyncio.timeout(3):
                    reply = await client.request("POST", "/v1/callback", b'{"done": %b}' % push.output)
                if reply.status < 500:
                    return
            except (OSError, TimeoutError):
                pass
            finally:
                client.close()
            await _pause(0.2)


async def _pause(seconds: float) -> None:
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


async def main(port: int, record: str, api_ports: list[int]) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Plain(Witness(record), api_ports).serve, HOST, port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], [int(port) for port in sys.argv[3:]]))
