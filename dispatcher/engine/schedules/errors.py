"""What is wrong with a schedule."""

from __future__ import annotations

from typing import Literal

Fault = Literal["invalid_cron", "invalid_timezone", "invalid_schedule", "schedule_in_past"]


class ScheduleError(ValueError):
    """A cron expression, a time zone or a moment that cannot be used. `code` is that of the problem the caller is told."""

    def __init__(self, code: Fault, message: str) -> None:
        super().__init__(message)
        self.code: Fault = code
