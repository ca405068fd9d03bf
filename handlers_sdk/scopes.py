"""Scopes: parts of a handler that become one entry of its log once they are over."""

from __future__ import annotations

import asyncio
from typing import Any

from handlers_sdk.ops import Op


class Scope(Op[Any]):
    """It runs as a task does, and is cancelled as one is: its function hears so where it waits, and the scope is over when that is."""

    __slots__ = ("running",)

    running: asyncio.Future[Any] | None  # none when that has ended, and where the log has it closed

    def cancel(self, msg: Any | None = None) -> bool:
        """Tell its function. False when that has returned: what it came to stands, here as in the log."""
        return self.running is not None and self.running.cancel(msg)

    def let_go(self) -> None:
        """Of what runs, too."""
        super().let_go()
        self.running = None

    def given_up(self) -> None:
        """Its function has ended as one that is cancelled does."""
        super().cancel()
