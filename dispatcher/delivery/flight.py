"""What is known of one request while it is under way: written by the transport, read by whoever must say what its failure means."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from dispatcher.delivery.message import Progress


@dataclass(slots=True)
class Flight:
    """One request. `party` is whose name look-ups it counts against (a tenant).

    `allowance` is how many raw bytes of answer may still arrive, framing and headers included. `fresh` says a connection was made for
    this request; `refused` why a socket was not; `sent` that at least one byte of it may have left, so that the handler may have run.
    """

    party: str
    allowance: int
    interim: int = 0
    fresh: bool = False
    refused: str | None = None
    sent: bool = False
    overflow: bool = False
    progress: Sequence[Progress] = ()

    def leaves(self) -> None:
        """The first byte of the request is about to go."""
        self.sent = True
        for progress in self.progress:
            progress.sent = True


FLIGHT: Final[ContextVar[Flight]] = ContextVar("flight")
"""The request of the current task: resolver and socket factory are called by aiohttp with no place for it among their arguments."""
