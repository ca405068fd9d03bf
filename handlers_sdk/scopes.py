"""Scopes: parts of a handler that become one entry of its log once they are over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from handlers_sdk.matching import ENDPOINTS_OWN
from handlers_sdk.ops import Op, Sent, error_entry, failed, read_value, valued_entry
from handlers_sdk.replay_loop import end_twice
from handlers_sdk.schemas import Codec


class Scope(Op[Any]):
    """It runs as a task does, and is cancelled as one is: its function hears so where it waits, and the scope is over when that is."""

    __slots__ = ("running",)

    running: asyncio.Future[Any] | None  # none when that has ended, and where the log has it closed

    def cancel(self, msg: Any | None = None) -> bool:
        """Tell its function. False when that has returned: what it came to stands, here as in the log."""
        if self.running is not None:
            return self.running.cancel(msg)
        if self.done():
            end_twice(self)
        return False

    def goes_on(self, asked: Iterable[Op[Any]]) -> bool:
        """Whether a step or a scope in it has not ended though its function has. `asked` is all that was asked for, the latest first."""
        since = takewhile(lambda op: op is not self, asked)
        return any(not op.done() and op.kind in ENDPOINTS_OWN and op.id.startswith(self.id + "/") for op in since)

    def value(self, value: Any, codec: Codec, at: str) -> Sent:
        """What its function came to: the entry that closes it."""
        try:
            text = codec.dump(value)
            return Sent(self, valued_entry(self.id, "scope", text, at), at, read_value(text, codec, self.id), None, True)
        except Exception as error:
            return self.failure(error, at)

    def failure(self, error: Exception, at: str) -> Sent:
        """The same where it failed."""
        from handlers_sdk.outcomes import failure

        detail = failure(error).error
        return Sent(self, error_entry(self.id, "scope", detail, at), at, None, failed(self.id, detail), True)

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
