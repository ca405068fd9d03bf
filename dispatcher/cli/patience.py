"""Looking again and again until something has happened, for as long as was asked for."""

from __future__ import annotations

from datetime import timedelta
from threading import Event

from dispatcher.cli.failures import Exit, Failure
from dispatcher.clock import monotonic

_PAUSE_SECONDS = 0.5
_FOREVER = timedelta(days=3650)


class Patience:
    """Pauses between looks, until `timeout` has passed; what is said then is `over` and the time, and `hint`."""

    def __init__(self, timeout: timedelta | None, over: str = "nothing more", hint: str = "") -> None:
        self._seconds = (timeout or _FOREVER).total_seconds()
        self._over = over
        self._hint = hint
        self._started = monotonic()
        self._never = Event()

    def check(self) -> None:
        """Raise Failure when the time is up."""
        if monotonic() - self._started > self._seconds:
            raise Failure(f"{self._over} within {self._seconds:g} s", hint=self._hint, code=Exit.TIMEOUT)

    def pause(self) -> None:
        """Wait a little. Raises Failure when the time is up."""
        self.check()
        self._never.wait(_PAUSE_SECONDS)
