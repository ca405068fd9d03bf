"""Runs started by a task: known to the dispatcher as its children, and started once however often the task is tried.

A child is keyed by the parent's task run and its key, or by the place of the call among those of its attempt: of a durable task, those of
its log, in a step those of its try; of a reducer, those of its turn. The place is taken when the call is made, not when it is awaited, so
that calls that run concurrently keep theirs.
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
    parts = ["child", context.task_run_id, *([trial.step] if trial is not None else []), str(key)]
    if key is None:
        parts[2:2] = context._era  # noqa: SLF001 - the context keeps count for its attempt
        parts[-1] = str(next(trial.places) if trial is not None else context._place())  # noqa: SLF001 - as above
    return ChildOf(context.workflow_run_id, ":".join(parts))


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
