"""What a server tells of its start: each step with the time it took. For people on stderr, as JSON on stdout where that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rich_click as click

from dispatcher.cli.output import Output, note
from dispatcher.clock import monotonic


def duration(milliseconds: float) -> str:
    """Milliseconds as people read them."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


class Steps:
    """The teller of one start."""

    def __init__(self, out: Output, clock: Callable[[], float] = monotonic) -> None:
        self._out = out
        self._clock = clock
        self._began = self._last = clock()

    def done(self, text: str, **members: Any) -> None:
        """A step is over; its time is counted from the step before."""
        now = self._clock()
        took, self._last = (now - self._last) * 1000, now
        note(f"{click.style('✓', fg='green')} {text}  {click.style(duration(took), dim=True)}")
        self._event("step", text=text, elapsed_ms=round(took), **members)

    def mark(self) -> None:
        """The next step's time is counted from here."""
        self._last = self._clock()

    def failed(self, text: str, **members: Any) -> None:
        """Something did not work, and the server goes on without it."""
        self._last = self._clock()
        note(f"{click.style('✗', fg='red')} {text}")
        self._event("problem", text=text, **members)

    def ready(self, url: str, advice: str) -> None:
        """The start is over."""
        took = (self._clock() - self._began) * 1000
        note(f"{click.style('▶', fg='green')} {click.style(url, bold=True)} is ready after {duration(took)}; {advice}")
        self._event("ready", url=url, elapsed_ms=round(took))

    def stopping(self, text: str) -> None:
        """The end has begun."""
        note(f"{click.style('■', fg='yellow')} stopping; {text}")

    def run_finished(self, line: str, **members: Any) -> None:
        """A run is over: the one line that is data in either form."""
        self._out.item({"type": "run", **members}, line)

    def _event(self, kind: str, **members: Any) -> None:
        if self._out.json:
            self._out.item({"type": kind, **members}, "")
