"""Where handlers say that they ran: one datagram per body over a Unix socket, into a process that only collects.

A process of its own, because a queue of ten datagrams is all the kernel keeps: a busy client would hold the handlers up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_DATAGRAM_MAX = 512
_EXPECT = b"!expect "
_FOLLOW = b"!follow "
_STOP = b"!stop"


class Emitter:
    """The handler's side. Blocks while the collector is behind, so that nothing is lost."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.connect(path)

    def emit(self, name: str) -> None:
        """The body of `name` ran now."""
        self._socket.send(b"%s %d" % (name.encode(), time.monotonic_ns()))


class Sink:
    """The bench's side of the collecting process."""

    def __init__(self, path: Path, process: asyncio.subprocess.Process) -> None:
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._control.connect(str(path))
        self._process = process

    @property
    def pid(self) -> int:
        """Of the collecting process."""
        return self._process.pid

    @staticmethod
    async def start(path: Path) -> Sink:
        """Start collecting at `path`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.sink", str(path), stdout=asyncio.subprocess.PIPE, limit=1 << 26
        )
        assert process.stdout is not None
        await process.stdout.readline()
        return Sink(path, process)

    def follow(self, path: Path) -> None:
        """Pass on what comes from now on to a socket at `path`, as it comes."""
        self._control.send(_FOLLOW + str(path).encode())

    def expect(self, count: int) -> None:
        """Forget what was collected, and report when `count` more datagrams have come."""
        self._control.send(_EXPECT + str(count).encode())

    async def collected(self, seconds: float) -> dict[str, list[int]]:
        """What was expected, once all of it has come: moments (CLOCK_MONOTONIC, ns) by name. Raises TimeoutError."""
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            line = await self._process.stdout.readline()
        moments: dict[str, list[int]] = {}
        for entry in line.decode().rstrip("\n").split(","):
            name, _, moment = entry.partition(" ")
            moments.setdefault(name, []).append(int(moment))
        return moments

    async def stop(self) -> None:
        """End the collecting process."""
        self._control.send(_STOP)
        self._control.close()
        await self._process.wait()


class Follower:
    """The bench's own ears: futures by name, done when a body of that name has run."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._waiting: dict[str, asyncio.Future[None]] = {}
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def ran(self, name: str) -> asyncio.Future[None]:
        """Done when the body of `name` has run."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        return future

    def close(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        while True:
            try:
                datagram = self._socket.recv(_DATAGRAM_MAX)
            except BlockingIOError:
                return
            future = self._waiting.pop(datagram.split(b" ", 1)[0].decode(), None)
            if future is not None and not future.done():
                future.set_result(None)


def _reports(receiver: socket.socket) -> Iterator[bytes]:
    received: list[bytes] = []
    expected = 0
    follower: socket.socket | None = None
    while (datagram := receiver.recv(_DATAGRAM_MAX)) != _STOP:
        if datagram.startswith(_EXPECT):
            received, expected = [], int(datagram[len(_EXPECT) :])
            continue
        if datagram.startswith(_FOLLOW):
            follower = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            follower.connect(datagram[len(_FOLLOW) :].decode())
            continue
        if follower is not None:
            try:
                follower.send(datagram)
            except OSError:  # nobody listens any more
                follower = None
        received.append(datagram)
        if len(received) == expected:
            yield b",".join(received) + b"\n"


def main(path: str) -> None:
    """Collect until told to stop."""
    Path(path).unlink(missing_ok=True)
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    receiver.bind(path)
    os.write(1, b"ready\n")
    for report in _reports(receiver):
        view = memoryview(report)
        while view:
            view = view[os.write(1, view) :]


if __name__ == "__main__":
    main(sys.argv[1])
