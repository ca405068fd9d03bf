"""Messages and who receives them.

A `receive` that nobody waits for any more, because a timeout or a race has ended the wait, is still open at the dispatcher, which gives it
the next message. Whatever comes to such a one goes to the oldest that is waited for, or is kept for the next. That follows from the order
of the log alone, and so comes out the same in every replay.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from handlers_sdk.ops import Op, result_of


class Inbox:
    """The receives of one turn."""

    __slots__ = ("_asked", "_kept", "_open")

    def __init__(self) -> None:
        self._asked: dict[str, Op[Any]] = {}  # but those that were given what came to them
        self._open: dict[str, Op[Any]] = {}  # at the dispatcher
        self._kept: deque[Any] = deque()

    def ask(self, receive: Op[Any]) -> bool:
        """Note that somebody waits for a message; whether there was one."""
        self._asked[receive.id] = receive
        if not self._kept:
            return False
        receive.set_result(self._kept.popleft())
        return True

    def begun(self, receive: Op[Any]) -> None:
        """The dispatcher knows of it."""
        self._open[receive.id] = receive

    def ended(self, receive: Op[Any], entry: Any) -> None:
        """The log says what came to it: for the one who waits for it, if somebody does, which is for the caller to say."""
        self._open.pop(receive.id, None)
        if not receive.done():
            self._asked.pop(receive.id, None)
        elif entry["status"] == "ok":
            message = result_of(receive, "ok", entry)
            waiting = next((one for one in self._asked.values() if not one.done()), None)
            if waiting is None:
                self._kept.append(message)
            else:
                waiting.set_result(message)

    def crosses(self, scope: str) -> bool:
        """Whether a receive in a scope got a message that came to another, or may leave one to another."""
        return any(id.startswith(scope + "/") for id in self._asked)

    def wake(self, wake: dict[str, Any] | None) -> dict[str, Any] | None:
        """The wake of a handler that is waiting: the next message comes to the oldest receive, though that may have been given up."""
        given_up = next((id for id, receive in self._open.items() if receive.done()), None)
        if wake is None or given_up is None or all(receive.done() for receive in self._asked.values()):
            return wake
        return {"any": [given_up, *(wake["any"] if list(wake) == ["any"] else [wake])]}

    def forget(self) -> None:
        """The turn is over."""
        self._asked.clear()
        self._open.clear()
