"""Whether a durable task that its code does not fit goes on all the same: with what was registered while its turn was under way.

What is blocked is let go on by the next registration. One that comes before the turn has said so finds nothing to let go on, so whoever
blocks asks what that one would have been told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Ran:
    """Where a turn ran and since when; `pinned` says that its task was bound to that version, whatever is the latest."""

    endpoint_id: str
    version: str
    since: datetime
    pinned: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """An endpoint that serves the task's workflow: its version, and when it was registered last, if that is known."""

    endpoint_id: str
    version: str
    at: datetime | None


def superseded(ran: Ran, registered: Iterable[Registered]) -> bool:
    """Whether one of them may fit that the turn has not run at. So a version that does not fit either blocks the task: it ran there."""
    return any(_is_news(ran, one) for one in registered)


def _is_news(ran: Ran, one: Registered) -> bool:
    same = (one.endpoint_id, one.version) == (ran.endpoint_id, ran.version)
    if one.at is not None and (one.at > ran.since if same else one.at >= ran.since):
        return True
    return not same and one.endpoint_id == ran.endpoint_id and not ran.pinned
