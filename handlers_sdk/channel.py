"""One attempt's events on their way to the dispatcher: queued from any thread, posted in order, with those of other attempts.

A post starts when the previous one has been answered and takes what has gathered: a lone event goes at once, a burst shares a request.
What cannot be delivered is counted, said in the program's log, and said to the dispatcher as a log line when it can be reached again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.clock import timestamp
from handlers_sdk.errors import ApiError, DispatcherError, EventsLostError
from handlers_sdk.postbox import Postbox
from handlers_sdk.schemas import dump_json

EVENTS_WAITING_MAX: Final = 10_000
EVENTS_PER_POST: Final = 500
BYTES_PER_POST: Final = 500_000
ENDED: Final = {wire.CODE_STALE_ATTEMPT, wire.CODE_TASK_ENDED}

logger = logging.getLogger("handlers_sdk")


class Channel:
    """Events of one attempt. `lost` counts those that never arrived. Made on the event loop that posts them."""

    def __init__(self, postbox: Postbox, *, loop: asyncio.AbstractEventLoop, base: str, token: str, on_stop: Callable[[str], None]) -> None:
        self.lost = 0
        self._postbox = postbox
        self._loop = loop
        self._base = base
        self._token = token
        self._on_stop = on_stop
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._flushes: list[Future[None]] = []
        self._posting = False
        self._posted = 0
        self._lost_unsaid = 0
        self._lost_said = 0
        self._lost_unflushed = 0

    def put(self, event: wire.Event) -> None:
        """Queue an event; an overfull queue loses it."""
        text = dump_json(event)
        with self._lock:
            if len(self._waiting) >= EVENTS_WAITING_MAX:
                self._lose(1)
                return
            self._waiting.append(text)
            if self._posting:
                return
            self._posting = True
        try:
            self._loop.call_soon_threadsafe(self._post)
        except RuntimeError as error:  # the app's event loop is closed
            with self._lock:
                self._posting = False
                self._lose(len(self._waiting))
                self._waiting = []
            logger.warning("events of a task were lost: %s", error)

    def flushed(self) -> Future[None]:
        """Done once nothing is under way; EventsLostError when anything was lost since the last time this was asked."""
        future: Future[None] = Future()
        with self._lock:
            self._flushes.append(future)
            if not self._posting:
                self._resolve()
        return future

    def let_go(self) -> None:
        """There is nobody to stop any more. What is queued is posted all the same."""
        self._on_stop = _nobody

    def _post(self) -> None:
        batch = self._take()
        if batch:
            self._posted, self._lost_said = len(batch), self._lost_unsaid
            notice = [_lost_notice(self._lost_said)] if self._lost_said else []
            self._postbox.send(self._base, self._token, b",".join([*notice, *batch]), self._answered)

    def _take(self) -> list[bytes]:
        with self._lock:
            if not self._waiting:
                self._posting = False
                self._resolve()
                return []
            size = count = 0
            while count < min(len(self._waiting), EVENTS_PER_POST) and (count == 0 or size + len(self._waiting[count]) < BYTES_PER_POST):
                size += len(self._waiting[count])
                count += 1
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            return taken

    def _answered(self, reply: Any, error: DispatcherError | None) -> None:
        if error is not None:
            self._failed(self._posted, error)
        else:
            with self._lock:
                self._lost_unsaid -= self._lost_said
            self._heard(reply)
        self._post()

    def _failed(self, count: int, error: DispatcherError) -> None:
        with self._lock:
            self._lose(count)
        logger.warning("%d events of a task were lost: %s", count, error)
        if isinstance(error, ApiError) and error.problem_code in ENDED:
            self._on_stop(error.problem_code)

    def _heard(self, reply: Any) -> None:
        cancel = reply.get("cancel") if isinstance(reply, dict) else None
        if cancel is not None:
            self._on_stop(str(cancel.get("reason", "cancelled")))

    def _lose(self, count: int) -> None:
        self.lost += count
        self._lost_unsaid += count
        self._lost_unflushed += count

    def _resolve(self) -> None:
        if not self._flushes:
            return
        lost, self._lost_unflushed = self._lost_unflushed, 0
        flushes, self._flushes = self._flushes, []
        for future in flushes:
            if future.set_running_or_notify_cancel():
                if lost:
                    future.set_exception(EventsLostError(f"{lost} events did not reach the dispatcher", lost))
                else:
                    future.set_result(None)


def _nobody(_reason: str) -> None:
    """The attempt is over."""


def _lost_notice(lost: int) -> bytes:
    message = f"{lost} log lines or stream chunks before this one were lost"
    return dump_json({"type": "log", "level": "warning", "message": message, "at": timestamp()})
