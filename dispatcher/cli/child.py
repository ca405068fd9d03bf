"""The developer's app in a process of its own: `python -P child.py TARGET LISTENER LEASH`, in the developer's directory.

This file imports nothing of this package, whose name the developer's own module may have.

LISTENER is the descriptor of a listening socket that outlives this process, so that no request is refused while the app is being
restarted. LEASH is one end of a socket pair: one byte is written to it when the app has started, and its end means the parent is gone.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

STARTED = b"+"
GRACE_SECONDS = 5


class _Server(uvicorn.Server):
    """uvicorn that tells its parent when it has started, and ends on SIGTERM or without a parent."""

    def __init__(self, config: uvicorn.Config, leash: socket.socket) -> None:
        super().__init__(config)
        self._leash = leash

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the app's lifespan, listen, tell."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        loop.add_reader(self._leash, self._leave)
        await super().startup(sockets=sockets)
        if self.started:
            self._leash.send(STARTED)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C reaches the whole group of processes; here it waits for the parent, whose attempts are still to end."""
        signal.signal(signal.SIGINT, lambda *_: None)
        yield

    def _leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._leash)
        self.should_exit = True


def main(target: str, listener: int, leash: int) -> None:
    """Serve `target` ("module:attribute") until told to stop. Exits 3 when the app does not start, 1 when it cannot be imported."""
    sys.path.insert(0, str(Path.cwd()))
    config = uvicorn.Config(target, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
    server = _Server(config, socket.socket(fileno=leash))
    server.run(sockets=[socket.socket(fileno=listener)])
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
