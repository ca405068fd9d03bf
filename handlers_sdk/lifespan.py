"""State that lives as long as the app: an async generator that yields once, run up to its `yield` before the first task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from handlers_sdk.errors import LifespanSetupError

LifespanFn = Callable[[], AsyncGenerator[Any, None] | AbstractAsyncContextManager[Any]]


class Lifespan:
    """Starts once, however many requests ask for it at the same time; stops once."""

    def __init__(self, fn: LifespanFn | None) -> None:
        self._fn = fn
        self._manager: AbstractAsyncContextManager[Any] | None = None
        self._lock = asyncio.Lock()
        self._state: Any = None
        self.started = fn is None

    async def start(self) -> Any:
        """What the generator yields; LifespanSetupError when it fails."""
        async with self._lock:
            if not self.started and self._fn is not None:
                manager = _manager(self._fn)
                try:
                    self._state = await manager.__aenter__()
                except Exception as error:
                    raise LifespanSetupError(f"the lifespan failed before its yield: {error}") from error
                self._manager, self.started = manager, True
        return self._state

    async def stop(self) -> None:
        """Run what follows the `yield`."""
        async with self._lock:
            manager, self._manager = self._manager, None
            self.started = self._fn is None
            if manager is not None:
                await manager.__aexit__(None, None, None)


def _manager(fn: LifespanFn) -> AbstractAsyncContextManager[Any]:
    made = fn()
    if isinstance(made, AbstractAsyncContextManager):
        return made
    if isinstance(made, AsyncGenerator):
        return asynccontextmanager(lambda: made)()
    raise LifespanSetupError(f"a lifespan is an async generator function; {fn!r} gave {type(made).__name__}")
