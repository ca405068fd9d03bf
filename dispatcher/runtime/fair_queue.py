"""A queue in which those who have put in much do not keep those waiting who have put in little."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items in lines, by whose they are: a line keeps its order, and the lines take turns, an item a turn. A line can be held back."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # whose turn is next first
        self._held: dict[Hashable, deque[Item]] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._lines)

    @property
    def contested(self) -> bool:
        """Whether items of several are there to take."""
        return len(self._lines) > 1

    def add(self, whose: Hashable, item: Item) -> None:
        """Put an item at the end of a line."""
        line = self._held.get(whose)
        if line is None:
            line = self._lines.get(whose)
        if line is None:
            line = self._lines[whose] = deque()
        line.append(item)

    @property
    def first(self) -> Item:
        """What `pop` would take. Raises StopIteration where there is nothing."""
        return next(iter(self._lines.values()))[0]

    def pop(self) -> Item:
        """Take the item whose turn it is. Raises StopIteration where there is nothing."""
        whose, line = next(iter(self._lines.items()))
        item = line.popleft()
        if not line:
            del self._lines[whose]
        elif len(self._lines) > 1:
            self._lines.move_to_end(whose)
        return item

    def hold(self, whose: Hashable) -> None:
        """Nothing of this line is taken until it is let go."""
        self._held[whose] = self._lines.pop(whose, deque())

    def let_go(self, whose: Hashable) -> None:
        """A line that was held takes its turns again."""
        line = self._held.pop(whose)
        if line:
            self._lines[whose] = line
