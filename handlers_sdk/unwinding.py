"""The end of a cancelled handler: everybody in it hears of it where he waits, and nobody is interrupted in what he undoes.

What waits for the dispatcher is refused, and a scope is left to its own function. Then the handler goes on until no step of it is left.
What the failure of one task would cancel, a TaskGroup's other tasks and its parent, is not cancelled: they have heard, or will. When
nothing goes on any more, those who wait for something of the handler's own, such as an Event, hear of it too, the youngest first. All of
this follows from where the handler stands, and so is the same in every replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, Final

from handlers_sdk.errors import Cancelled, ContinuedAsNew, Interruption
from handlers_sdk.matching import ENDPOINTS_OWN
from handlers_sdk.ops import Op
from handlers_sdk.replay_loop import CancelledTwice, ReplayLoop
from handlers_sdk.scopes import Scope

_TOLD_MAX: Final = 100
"""How often a task hears of it that waits again, as one that sleeps while it undoes. One that goes on for ever is left waiting."""


def is_busy(ops: Iterable[Op[Any]]) -> bool:
    """Whether a step is to come to its end, or a result on its way into the log, before all stands still."""
    return any(op.kind in ENDPOINTS_OWN and not op.done() and not _is_open(op) for op in ops)


def tell_next(loop: ReplayLoop, reason: str) -> bool:
    """Tell the youngest task that nothing will bring on, of those told least often; False when there is none."""
    waiting = (task for task in loop.tasks if not task.done() and task.told < _TOLD_MAX)
    for task in sorted(waiting, key=lambda task: (task.told, task.number)):
        blocker: Any = task._fut_waiter  # type: ignore[attr-defined] # noqa: SLF001 - there is no other way to ask
        if blocker is not None and not isinstance(blocker, asyncio.Task | Op):
            task.told += 1
            blocker.set_exception(CancelledTwice(reason) if task.unwanted else Cancelled(reason))
            return True
    return False


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


def _is_open(op: Op[Any]) -> bool:
    """Whether it is a scope that its function keeps open, or that the log has closed later on: here as there, nobody waits for that."""
    return isinstance(op, Scope) and op.work is None
