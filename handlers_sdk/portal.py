"""One event loop in one background thread, where every call to a dispatcher runs.

Both faces of the client are thin over it: a sync call waits for the coroutine's result, an async call awaits it, from any loop.
So the sync face works inside a running loop, connections are shared by all loops, and there is one implementation of everything.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """The loop and its thread, started at first use, again after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the background loop. It sees none of the caller's context variables: its log lines are nobody's task's."""
        return Context().run(asyncio.run_coroutine_threadsafe, coroutine, self._running())

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine's result, from any thread but the portal's own."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("the sync client cannot be used on the client's own event loop")
        return self.submit(coroutine).result()

    async def aio_call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine's result from any loop; cancelling the caller cancels it."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="dispatcher-client", daemon=True)
                self._thread.start()
            return self._loop

    def _forget(self) -> None:
        """After a fork the thread exists only in the parent."""
        self._lock = threading.Lock()
        self._loop = self._thread = None


PORTAL = Portal()
os.register_at_fork(after_in_child=PORTAL._forget)  # noqa: SLF001 - the module's own class
