"""A coroutine with context variables of its own, in the task that awaits it: what a task would give it, without one for each."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any


class Within:
    """Awaited, it gives what the coroutine gives, which sees and sets these variables only."""

    __slots__ = ("_coroutine", "_variables")

    def __init__(self, variables: Context, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._variables = variables
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._variables.run, self._coroutine
        waits: Any = None
        try:
            waits = run(coroutine.send, None)
            while True:
                try:
                    given = yield waits
                except BaseException as error:
                    waits = run(coroutine.throw, error)
                else:
                    waits = run(coroutine.send, given)
        except StopIteration as end:
            return end.value
        finally:
            waits = None  # whose exception knows this frame
