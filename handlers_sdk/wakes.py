"""What a suspended handler waits for, as the dispatcher can tell: an expression of ids, any or all of which have to settle.

A gather of a thousand children is to wake its handler once, not a thousand times. What combines futures is read off their callbacks;
where that says nothing known, any of them wakes the handler, which is never wrong, only more often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from handlers_sdk.ops import Op

Wake = str | dict[str, Any]
_DEPTH: Final = 20


class Combination(asyncio.Future[Any]):
    """Settled when of each group one operation has: `{"all": [{"any": […]}, …]}`. The first to fail fails it."""

    def __init__(self, groups: Sequence[Sequence[Op[Any]]], finish: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.groups = groups
        self._finish = finish
        for group in groups:
            for op in group:
                op.add_done_callback(self._check)

    def cancel(self, msg: Any | None = None) -> bool:
        """Nobody waits for it any more, nor for its parts."""
        cancelled = super().cancel(msg)
        if cancelled:
            for group in self.groups:
                for op in group:
                    op.cancel()
        return cancelled

    @property
    def open(self) -> list[list[Op[Any]]]:
        """The groups none of which has settled."""
        return [[op for op in group if not op.done()] for group in self.groups if not any(op.done() for op in group)]

    def _check(self, op: asyncio.Future[Any]) -> None:
        if self.done() or op.cancelled():
            return
        error = op.exception()
        if error is not None:
            self.set_exception(error)
        elif all(any(one.done() and not one.cancelled() for one in group) for group in self.groups):
            self.set_result(self._finish())
        else:
            return
        for one in (one for group in self.groups for one in group):  # whoever lost wakes nobody
            one.remove_done_callback(self._check)


def wake_of(tasks: Iterable[asyncio.Task[Any]], ops: Sequence[Op[Any]]) -> dict[str, Any] | None:
    """The expression for these tasks of a handler, none of which can go on, and the operations that are open."""
    reader = _Reader(ops)
    found = [wake for task in sorted((task for task in tasks if not task.done()), key=hash, reverse=True) if (wake := reader.of_task(task))]
    found += [op.id for op in ops if op.id not in reader.seen and op._callbacks]  # noqa: SLF001 - what waits for it
    found += reader.early
    if not found:
        return None
    ids = dict.fromkeys(wake for wake in found if isinstance(wake, str))
    distinct: list[Wake] = [*ids, *(wake for wake in found if not isinstance(wake, str))]
    return distinct[0] if len(distinct) == 1 and isinstance(distinct[0], dict) else {"any": distinct}


class _Reader:
    """Goes from a task to what it is blocked on, and on to the operations behind it."""

    def __init__(self, ops: Sequence[Op[Any]]) -> None:
        self.seen: set[str] = set()
        self.early: list[str] = []  # what may fail a group whatever the dispatcher says of it
        self._checked = {op.id for op in ops if op.checked}
        self._open = {id(op): op for op in ops}
        self._behind: dict[int, tuple[str, list[Op[Any]]]] = {}
        for op in ops:
            for callback, _ in op._callbacks or ():  # noqa: SLF001 - there is no other way to ask
                self._note(op, callback)

    def of_task(self, task: asyncio.Task[Any]) -> Wake | None:
        """What a task waits for, None when another task will bring it on."""
        blocker = task._fut_waiter  # type: ignore[attr-defined] # noqa: SLF001 - as above
        return None if blocker is None else self._of(blocker, 0)

    def _of(self, future: Any, depth: int) -> Wake | None:
        if future.done() or depth > _DEPTH:
            return None
        if id(future) in self._open:
            self.seen.add(future.id)
            return str(future.id)
        if isinstance(future, Combination):
            return self._all([self._any([self._of(op, depth + 1) for op in group]) for group in future.open], fail_fast=True)
        children = getattr(future, "_children", None)
        if children is not None:  # asyncio.gather
            parts = [self._of(child, depth + 1) for child in children if not isinstance(child, asyncio.Task)]
            return self._all(parts, fail_fast=not _tolerant(children))
        how, ops = self._behind.get(id(future), ("", []))
        parts = [self._of(op, depth + 1) for op in ops]
        return self._any(parts) if how == "any" else self._all(parts, fail_fast=how == "fail_fast")

    @staticmethod
    def _any(parts: Sequence[Wake | None]) -> Wake | None:
        some = [part for part in parts if part is not None]
        return some[0] if len(some) == 1 else {"any": some} if some else None

    def _all(self, parts: Sequence[Wake | None], *, fail_fast: bool) -> Wake | None:
        some = [part for part in parts if part is not None]
        if len(some) < 2:
            return some[0] if some else None
        if fail_fast:
            self.early += [part for part in some if isinstance(part, str) and part in self._checked]
        return {"all": some, "fail_fast": True} if fail_fast else {"all": some}

    def _note(self, op: Op[Any], callback: Any) -> None:
        """Which plain future stands between an operation and the task that waits for it."""
        name = getattr(callback, "__qualname__", "")
        if name == "_wait.<locals>._on_completion":
            cells = _cells(callback)
            how = {asyncio.ALL_COMPLETED: "all", asyncio.FIRST_EXCEPTION: "fail_fast"}.get(str(cells.get("return_when")), "any")
            self._put(cells.get("waiter"), how, op)
        elif name == "TaskGroup._on_task_done":
            self._put(getattr(callback.__self__, "_on_completed_fut", None), "fail_fast", op)
        elif name == "shield.<locals>._inner_done_callback":
            self._put(_cells(callback).get("outer"), "any", op)

    def _put(self, future: Any, how: str, op: Op[Any]) -> None:
        if future is not None:
            self._behind.setdefault(id(future), (how, []))[1].append(op)


def _tolerant(children: Iterable[Any]) -> bool:
    """Whether a gather waits for all of its children, whatever becomes of them."""
    for child in children:
        for callback, _ in child._callbacks or ():  # noqa: SLF001 - as above
            if getattr(callback, "__qualname__", "") == "gather.<locals>._done_callback":
                return bool(_cells(callback).get("return_exceptions"))
    return False


def _cells(function: Any) -> dict[str, Any]:
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}
