"""The async generators of a handler: which it has begun, and when they end that it leaves before their end.

One that it lets go of ends there and then. One that only the collector finds, as among what a kept exception knows of, does not: when that
is says no log. Those ends come, and those of the ones that are still held, once a cancelled handler is over, in the order they were begun.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from types import AsyncGeneratorType
from typing import Any
from weakref import WeakValueDictionary

Generator = AsyncGeneratorType[Any, Any]


class Generators:
    """Those of one turn. `end` is told of each that is to end."""

    __slots__ = ("_begun", "_count", "_end", "_found")

    def __init__(self, end: Callable[[Generator], object]) -> None:
        self._begun: WeakValueDictionary[int, Generator] = WeakValueDictionary()
        self._found: dict[int, Generator] = {}
        self._count = 0
        self._end: Callable[[Generator], object] | None = end

    @contextmanager
    def looked_after(self) -> Iterator[None]:
        """What begins here is known here: else the loop around this one would end it."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._begins, finalizer=partial(self._let_go, self._count))
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def end_left(self) -> bool:
        """End those that are not over; False when there are none."""
        end, left = self._end, {**self._begun, **self._found}
        self._begun.clear()
        self._found.clear()
        ends = [left[number] for number in sorted(left) if left[number].ag_frame is not None and not left[number].ag_running]
        if end is None or not ends:
            return False
        for generator in ends:
            end(generator)
        return True

    def forget(self) -> None:
        """Nothing will run any more: what is let go of now is left as it is."""
        self._end = None
        self._begun.clear()
        self._found.clear()

    def _begins(self, generator: AsyncGenerator[Any, Any]) -> None:
        if isinstance(generator, AsyncGeneratorType):
            self._begun[self._count] = generator
        self._count += 1
        sys.set_asyncgen_hooks(finalizer=partial(self._let_go, self._count))  # this one's was taken before

    def _let_go(self, number: int, generator: Generator) -> None:
        if self._end is None:
            return
        if _collects():
            self._found[number] = generator
        else:
            self._end(generator)


# ---- who lets go


_collecting: set[int] = set()


def _note(phase: str, _: Mapping[str, int]) -> None:
    if phase == "start":
        _collecting.add(get_ident())
    else:
        _collecting.discard(get_ident())


def _collects() -> bool:
    """Whether it is the collector that frees something in this thread."""
    return get_ident() in _collecting


gc.callbacks.append(_note)
