"""A reference to a run: its id, and its result when it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from handlers_sdk.api import Api
from handlers_sdk.portal import PORTAL
from handlers_sdk.runs import WAIT_SECONDS, ended_run, fetch_run

T = TypeVar("T")


class WorkflowRunRef(Generic[T]):
    """One run. Making a reference calls nothing."""

    __slots__ = ("_api", "_read", "workflow_run_id")

    def __init__(self, api: Api, workflow_run_id: str, read: Callable[[Any], T]) -> None:
        self._api = api
        self._read = read
        self.workflow_run_id = workflow_run_id

    def __repr__(self) -> str:
        return f"WorkflowRunRef({self.workflow_run_id!r})"

    def result(self, timeout: float | None = None) -> T:
        """The run's result, once it has ended, at most `timeout` seconds from now.

        FailedTaskRunExceptionGroup when it failed, CancelledRunError when it was cancelled, TimeoutError when the time is up.
        """
        future = PORTAL.submit(self.fetch())
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    async def aio_result(self) -> T:
        """The run's result, once it has ended. Raises as `result` does; `asyncio.timeout` bounds it."""
        return await PORTAL.aio_call(self.fetch())

    async def fetch(self) -> T:
        """The coroutine behind both faces, for the client's own loop."""
        run = await ended_run(self._api, await fetch_run(self._api, self.workflow_run_id, WAIT_SECONDS))
        return self._read(run.result())
