"""The end of a cancelled handler: everybody in it hears of it where he waits, and nobody is interrupted in what he undoes.

Who waits for the dispatcher, or for something of the handler's own such as an Event, hears at once; who waits for a message, by one. Who
waits for others (tasks, scopes, groups of them) hears once they are over, whatever they have come to. Then the handler goes on until no
step of it is left. What the failure of one task would cancel, a TaskGroup's other tasks and its parent, is not cancelled: they have heard,
or will. When nothing goes on any more, those who wait again hear again, the youngest first. All of this follows from where the handler
stands, and so is the same in every replay; for that no scope is closed any more, since the log would not say who had heard before.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _GatheringFuture  # type: ignore[attr-defined]  # what `gather` gives, which says so nowhere else
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from handlers_sdk.errors import ContinuedAsNew, Interruption
from handlers_sdk.matching import ENDPOINTS_OWN
from handlers_sdk.ops import Op
from handlers_sdk.replay_loop import ReplayLoop, ReplayTask

_TOLD_MAX: Final = 100
"""How often a task hears of it that waits again, as one that sleeps while it undoes. One that goes on for ever is left waiting."""

_WAITERS: Final = ("asyncio.tasks", "asyncio.taskgroups")
"""Where asyncio waits for tasks."""


def reason_of(cancel: Mapping[str, Any]) -> str:
    """Why the run was cancelled, as its entry says."""
    return str((cancel.get("value") or {}).get("reason") or "")


def announced(log: Sequence[Mapping[str, Any]]) -> tuple[str, frozenset[str]] | None:
    """The cancel that is next in the log: why, and by which receives it is told as a message, which are all before it."""
    receives = set[str]()
    for entry in log:
        if entry["op"] == "cancel":
            return reason_of(entry), frozenset(receives)
        if entry["op"] == "message" and entry["status"] == "cancel":
            receives.add(str(entry["id"]))
    return None


def is_busy(ops: Iterable[Op[Any]]) -> bool:
    """Whether a step is to come to its end, or a result on its way into the log, before all stands still."""
    return any(op.kind in ENDPOINTS_OWN and op.kind != "scope" and not op.done() for op in ops)


def owe_all(loop: ReplayLoop, reason: str, spared: Collection[str]) -> None:
    """From now on whoever waits hears of the end where he does, whatever he waits for comes to; but for who is told by a message."""
    for task in _waiting(loop):
        blocker = _blocker(task)
        if not (isinstance(blocker, Op) and blocker.id in spared):
            task.owed = reason
        task.told = 1


def tell_all(loop: ReplayLoop, reason: str) -> None:
    """Tell those who do not wait for others."""
    for task in _waiting(loop):
        blocker = _blocker(task)
        if not (blocker.done() or _is_of_others(blocker) or _waits_for_others(task)):
            _tell(loop, blocker, reason)


def tell_next(loop: ReplayLoop, reason: str) -> bool:
    """Tell the youngest task that nothing will bring on, of those told least often; False when there is none."""
    for task in sorted(_waiting(loop), key=lambda task: task.told):
        blocker = _blocker(task)
        if task.told < _TOLD_MAX and not isinstance(blocker, asyncio.Task | Op):
            task.told += 1
            _tell(loop, blocker, reason)
            return True
    return False


def _tell(loop: ReplayLoop, blocker: asyncio.Future[Any], reason: str) -> None:
    """Who waits for this hears of the end. To whom it belongs, as to a lock, it is a wait that was given up."""
    for task in _waiting(loop):
        if _blocker(task) is blocker:
            task.owed = reason
    asyncio.Future.cancel(blocker)  # itself, though it is that of a `gather`, which would end the others instead


def _waiting(loop: ReplayLoop) -> list[ReplayTask]:
    """The youngest first."""
    return sorted((task for task in loop.tasks if not task.done() and _blocker(task) is not None), key=lambda task: task.number)


def _blocker(task: ReplayTask) -> Any:
    return task._fut_waiter  # type: ignore[attr-defined] # noqa: SLF001 - there is no other way to ask


def _is_of_others(blocker: object) -> bool:
    return isinstance(blocker, asyncio.Task | Op | _GatheringFuture)


def _waits_for_others(task: ReplayTask) -> bool:
    """Whether it is in a TaskGroup, `wait`, `wait_for` or `as_completed`, which have a future of their own that the others bring on."""
    called: list[Any] = [task.get_coro()]
    while (awaited := getattr(called[-1], "cr_await", None)) is not None and hasattr(awaited, "cr_await"):
        called.append(awaited)
    if len(called) > 1 and called[-2].__name__ == "_wait_for_one":  # as_completed, which has them in a queue
        called.pop()
    frame = getattr(called[-1], "cr_frame", None)
    return frame is not None and frame.f_globals.get("__name__") in _WAITERS and called[-1].__name__ != "sleep"


def meant_by(error: BaseException) -> BaseException:
    """What ends a handler: of a group that only unwinds it, which a TaskGroup makes of what its tasks raise, what was raised to do so."""
    raised = list(_leaves(error))
    if not all(isinstance(one, Interruption) for one in raised):
        return error
    return next((one for one in raised if isinstance(one, ContinuedAsNew)), raised[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
