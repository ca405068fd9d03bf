"""The standard library's logging as a source of log lines: what is logged while a task runs becomes the task's."""

from __future__ import annotations

import logging

from handlers_sdk import wire
from handlers_sdk.context import CURRENT


class TaskLogHandler(logging.Handler):
    """Sends records to the task they were logged in; others pass by. The SDK's own are left out: losing one would log another."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record over. Never blocks, never raises."""
        context = CURRENT.get()
        if context is None or record.name.partition(".")[0] == "handlers_sdk":
            return
        try:
            context.log(self.format(record), level=_level(record.levelno))
        except Exception:
            self.handleError(record)


def _level(number: int) -> wire.LogLevel:
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"
