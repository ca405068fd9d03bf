"""Scopes: parts of a handler that become one entry of its log once they are over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from handlers_sdk.errors import Cancelled, Interruption
from handlers_sdk.matching import ENDPOINTS_OWN
from handlers_sdk.ops import Op
from handlers_sdk.replay_loop import CancelledTwice, ReplayLoop, end_twice


class Scope(Op[Any]):
    """It runs as a task does, and is cancelled as one is: its function hears so where it waits, and the scope is over when that is.

    Where the run is cancelled while it is open, its function undoes what it did, and who waits for it hears of it then, whatever the
    function came to: otherwise nobody outside would know, and go on to the next.
    """

    __slots__ = ("reason", "running", "unwanted")

    running: asyncio.Future[Any] | None  # none when that has ended, and where the log has it closed
    reason: str | None  # why the run was cancelled while it was open
    unwanted: bool  # asked to end while the cancelled handler unwinds

    def __init__(self, loop: ReplayLoop) -> None:
        super().__init__(loop=loop)
        self.running = self.reason = None
        self.unwanted = False

    def cancel(self, msg: Any | None = None) -> bool:
        """Tell its function. False when that has returned: what it came to stands, here as in the log."""
        if self.done():
            end_twice(self)
            return False
        loop: Any = self.get_loop()
        self.unwanted = loop.unwinding
        if self.running is not None:
            return self.running.cancel(msg)
        return self.unwanted  # which may be where the log has it closed, and live its function still ran: they say the same

    def set_result(self, value: Any) -> None:
        """What it came to, or that the run was cancelled meanwhile."""
        if self.reason is None:
            super().set_result(value)
        else:
            self._hear(None)

    def set_exception(self, error: Any) -> None:
        """Why it failed, or that the run was cancelled meanwhile."""
        if self.reason is None or isinstance(error, Interruption):
            super().set_exception(error)
        else:
            self._hear(error.with_traceback(None))

    def _hear(self, cause: BaseException | None) -> None:
        heard = CancelledTwice(self.reason or "") if self.unwanted else Cancelled(self.reason or "")
        heard.__cause__ = cause
        super().set_exception(heard)

    def goes_on(self, asked: Iterable[Op[Any]]) -> bool:
        """Whether a step or a scope in it has not ended though its function has. `asked` is all that was asked for, the latest first."""
        since = takewhile(lambda op: op is not self, asked)
        return any(not op.done() and op.kind in ENDPOINTS_OWN and op.id.startswith(self.id + "/") for op in since)

    def let_go(self) -> None:
        """Of what runs, too."""
        super().let_go()
        self.running = None

    def given_up(self) -> None:
        """Its function has ended as one that is cancelled does."""
        super().cancel()


def was_cancelled(running: asyncio.Future[Any]) -> bool:
    """Whether a function that has come to something had been told to end."""
    return isinstance(running, asyncio.Task) and running.cancelling() > 0
