"""The end of a cancelled handler: everybody in it hears of it where he waits, and nobody is interrupted in what he undoes.

Who waits for the dispatcher, or for something of the handler's own such as an Event, hears at once; who waits for a message, by one. Who
waits for others (tasks, scopes, groups of them) hears once they are over, whatever they have come to. Then the handler goes on until no
step of it is left. What the failure of one task would cancel, a TaskGroup's other tasks and its parent, is not cancelled: they have heard,
or will. When nothing goes on any more, those who wait again hear again, the youngest first. All of this follows from where the handler
stands, and so is the same in every replay; for that no scope is closed any more, since the log would not say who had heard before.
"""

from __future__ import annotations

import asyncio
import gc
from asyncio.tasks import _GatheringFuture  # type: ignore[attr-defined]  # what `gather` gives, which says so nowhere else
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

from handlers_sdk.errors import ContinuedAsNew, Interruption
from handlers_sdk.matching import ENDPOINTS_OWN
from handlers_sdk.ops import Op
from handlers_sdk.replay_loop import ReplayLoop, ReplayTask

_TOLD_MAX: Final = 100
"""How often a task hears of it that waits again, as one that sleeps while it undoes. One that goes on for ever is left waiting."""

_WAITERS: Final = ("asyncio.tasks", "asyncio.taskgroups")
"""Where asyncio waits for tasks."""

_AWAITS: Final = {"cr": "cr_await", "ag": "ag_await", "gi": "gi_yieldfrom"}
"""What coroutines and generators wait for."""

_PASSES_ON: Final = frozenset({"async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"})
"""What stands between them, and knows first of all what it is for."""


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
    called = list(_called(task.get_coro()))
    if len(called) > 1 and called[-2][0] == "_wait_for_one":  # as_completed, which has them in a queue
        called.pop()
    name, frame = called[-1] if called else ("", None)
    return frame is not None and frame.f_globals.get("__name__") in _WAITERS and name != "sleep"


def _called(outermost: Any) -> Iterator[tuple[str, FrameType]]:
    """The functions that a coroutine stands in, each waiting for the next: in generators and the managers made of them too."""
    one = outermost
    while one is not None:
        if type(one).__name__ in _PASSES_ON:
            one = gc.get_referents(one)[0]  # there is no other way to ask
            continue
        kind = next((kind for kind in _AWAITS if hasattr(one, _AWAITS[kind])), None)
        if kind is None:
            return
        if (frame := getattr(one, kind + "_frame")) is not None:
            yield one.__name__, frame
        one = getattr(one, _AWAITS[kind])


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
