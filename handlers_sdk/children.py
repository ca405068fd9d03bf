"""Runs started by a task: known to the dispatcher as its children, and started once however often the task is tried.

A child is keyed by the parent's task run and its key, or by the place of the call among those of its attempt; in a step of a durable task,
of its try, with the step's id and the log that is in. The place is taken when the call is made, not when it is awaited, so that calls that
run concurrently keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

from handlers_sdk.api import Api
from handlers_sdk.context import CURRENT
from handlers_sdk.durable import STEP, DurableContext, durable_here
from handlers_sdk.ops import Op
from handlers_sdk.refs import WorkflowRunRef

T = TypeVar("T")

REMEMBERED: Final = "720h"
"""How long a child's key is remembered: longer than a task is retried."""


@dataclass(frozen=True, slots=True)
class ChildOf:
    """The run that starts a run, and the key that does so once."""

    run_id: str
    key: str


def child_here(key: str | None) -> ChildOf | None:
    """What a run started here is the child of; None outside of tasks. The call's place is taken now."""
    context = CURRENT.get()
    if context is None or durable_here() is not None:
        return None
    trial = STEP.get() if isinstance(context, DurableContext) else None
    if trial is None:
        place = str(context._place() if key is None else key)  # noqa: SLF001 - the context keeps count for its attempt
    elif key is None:
        place = f"{context.item['started_at']}:{trial.step}:{next(trial.places)}"  # type: ignore[typeddict-item]  # of a turn
    else:
        place = f"{trial.step}:{key}"
    return ChildOf(context.workflow_run_id, f"child:{context.task_run_id}:{place}")


class ChildRef(WorkflowRunRef[T]):
    """A reference to a child of a durable task. Its result is waited for as everything in a durable task is."""

    __slots__ = ("_op",)

    def __init__(self, api: Api, op: Op[T]) -> None:
        super().__init__(api, op.run_id, op.read)
        self._op = op

    async def aio_result(self) -> T:
        """The child's result, once it has ended."""
        if durable_here() is None:
            return await super().aio_result()
        result: T = await self._op
        return result


async def started(api: Api, op: Op[Any]) -> ChildRef[Any]:
    """The reference to a child, as soon as its run is known."""
    assert op.started is not None
    await op.started
    return ChildRef(api, op)
