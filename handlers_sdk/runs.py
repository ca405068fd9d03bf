"""Runs as the dispatcher reports them, and the client that reads and cancels them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from handlers_sdk.api import Api
from handlers_sdk.errors import ApiError, CancelledRunError, FailedTaskRunExceptionGroup, TaskRunError
from handlers_sdk.portal import PORTAL
from handlers_sdk.resources import Metadata
from handlers_sdk.run_actions import RunActions
from handlers_sdk.run_lists import Page, RunsWanted, list_runs, run_of
from handlers_sdk.schemas import dump_json
from handlers_sdk.streams import StreamChunks, StreamEvents

WAIT_SECONDS: Final = 30
ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "skipped"})
_PAUSE_MAX: Final = 1.0


class V1TaskStatus(StrEnum):
    """Statuses of runs and tasks, under the names other engines have for them: `run.status == V1TaskStatus.COMPLETED`."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "succeeded"
    CANCELLED = "cancelled"
    FAILED = "failed"


class _Reported(BaseModel):
    """Members this version does not know are kept: a newer dispatcher may say more."""

    model_config = ConfigDict(extra="allow")


class RunError(_Reported):
    """Why a run, task run or attempt failed. `code` is stable."""

    code: str = ""
    message: str = ""


class Attempt(_Reported):
    """One signed request to an endpoint."""

    id: str
    number: int
    status: str = ""
    http_status: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: RunError | None = None


class TaskRun(_Reported):
    """One task of a run."""

    id: str
    name: str = ""
    status: str = ""
    output: Any = None
    error: RunError | None = None
    retry_count: int = 0
    attempts: list[Attempt] = Field(default_factory=list)


class Run(_Reported):
    """One execution of a workflow. `status`: pending queued running waiting pending_retry blocked succeeded failed cancelled skipped."""

    id: str
    status: str
    workflow: str = ""
    input: Any = None
    output: Any = None
    error: RunError | None = None
    metadata: Metadata = Field(default_factory=Metadata)
    priority: int = 1
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    event_id: str | None = None
    parent_run_id: str | None = None
    stream_id: str | None = None
    tasks: list[TaskRun] = Field(default_factory=list)
    duplicate: bool = False

    @model_validator(mode="after")
    def _identified(self) -> Run:
        self.metadata.of(self.id, self.created_at, self.finished_at or self.started_at or self.created_at)
        return self

    @property
    def additional_metadata(self) -> dict[str, Any]:
        """The metadata it was started with."""
        return dict(self.metadata)

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED

    def result(self) -> Any:
        """The output of an ended run as parsed JSON; FailedTaskRunExceptionGroup or CancelledRunError when it has none."""
        if self.status == "failed":
            raise FailedTaskRunExceptionGroup(self.id, self._errors())
        if self.status == "cancelled":
            raise CancelledRunError(self.id, self.error.message if self.error else "")
        return self.output

    def _errors(self) -> list[TaskRunError]:
        failed = [
            TaskRunError(task.error.message, error_code=task.error.code, task_name=task.name, task_run_id=task.id)
            for task in self.tasks
            if task.error is not None and task.status == "failed"
        ]
        own = self.error or RunError(message="no error was recorded")
        return failed or [TaskRunError(own.message, error_code=own.code, task_name=self.workflow)]


class RunList(BaseModel):
    """One page of runs. `next_cursor` asks for the next, None on the last."""

    rows: list[Run]
    next_cursor: str | None = None

    def __iter__(self) -> Iterator[Run]:  # type: ignore[override]  # a page is its runs, not its members
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Run:
        return self.rows[index]


async def fetch_run(api: Api, run_id: str, wait: int = 0) -> Run:
    """A run; with `wait` seconds, as soon as it ends or the time is up."""
    params = {"wait": f"{wait}s"} if wait else None
    _, body = await api.request("GET", f"/v1/runs/{run_id}", params=params, wait=wait, repeatable=True)
    return Run.model_validate(body)


async def ended_run(api: Api, run: Run) -> Run:
    """The run once it has ended, by long polls with a growing pause between them."""
    pause = 0.0
    while not run.ended:
        await asyncio.sleep(pause)
        pause = min(_PAUSE_MAX, pause * 2 or 0.02)
        run = await fetch_run(api, run.id, WAIT_SECONDS)
    return run


async def send_message(api: Api, run_id: str, content: bytes) -> bool:
    """Put a message into a run's inbox; False when it is closed."""
    try:
        await api.request("POST", f"/v1/runs/{run_id}/messages", content=content)
    except ApiError as error:
        if error.problem_code in ("inbox_closed", "run_finished"):
            return False
        raise
    return True


async def saved_state(api: Api, run_id: str) -> Any:
    """What a run has saved last; None when it has saved nothing."""
    try:
        _, body = await api.request("GET", f"/v1/runs/{run_id}/checkpoint", repeatable=True)
    except ApiError as error:
        if error.status != 404 or error.problem_code == "run_not_found":
            raise
        return None
    return body.get("value") if isinstance(body, dict) else None


class RunsClient(RunActions):
    """`dispatcher.runs`: what has become of runs, cancelling and replaying them. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def get(self, workflow_run_id: str) -> Run:
        """The run with its tasks and attempts."""
        return PORTAL.call(fetch_run(self._api, workflow_run_id))

    async def aio_get(self, workflow_run_id: str) -> Run:
        """The run with its tasks and attempts."""
        return await PORTAL.aio_call(fetch_run(self._api, workflow_run_id))

    def get_status(self, workflow_run_id: str) -> str:
        """The run's status."""
        return self.get(workflow_run_id).status

    async def aio_get_status(self, workflow_run_id: str) -> str:
        """The run's status."""
        return (await self.aio_get(workflow_run_id)).status

    def get_result(self, run_id: str) -> Any:
        """The run's output, once it has ended. Raises as `WorkflowRunRef.result` does."""
        return PORTAL.call(self._result(run_id))

    async def aio_get_result(self, run_id: str) -> Any:
        """The run's output, once it has ended. Raises as `WorkflowRunRef.result` does."""
        return await PORTAL.aio_call(self._result(run_id))

    def cancel(self, run_id: str) -> bool:
        """Ask for a run to be cancelled; False for one that has ended, which stays as it is."""
        return PORTAL.call(self._cancel(run_id))

    async def aio_cancel(self, run_id: str) -> bool:
        """Ask for a run to be cancelled; False for one that has ended, which stays as it is."""
        return await PORTAL.aio_call(self._cancel(run_id))

    def send(self, run_id: str, data: Any) -> bool:
        """Send a message to a long-running task, in order; False when its inbox is closed or it has ended."""
        return PORTAL.call(self._send(run_id, dump_json({"data": data}, "input")))

    async def aio_send(self, run_id: str, data: Any) -> bool:
        """Send a message to a long-running task, in order; False when its inbox is closed or it has ended."""
        return await PORTAL.aio_call(self._send(run_id, dump_json({"data": data}, "input")))

    def journal(self, run_id: str) -> dict[str, Any]:
        """What a durable task has recorded: `entries` are those it goes by, `logs` all there are, each with its task, seed and input."""
        return PORTAL.call(self._journal(run_id))

    async def aio_journal(self, run_id: str) -> dict[str, Any]:
        """What a durable task has recorded: `entries` are those it goes by, `logs` all there are, each with its task, seed and input."""
        return await PORTAL.aio_call(self._journal(run_id))

    def reset(self, run_id: str, journal_node: str | None = None) -> None:
        """Let a durable task go on from an entry of its journal (`charge#0`): what came before stays, the rest is done again."""
        PORTAL.call(self._reset(run_id, journal_node))

    async def aio_reset(self, run_id: str, journal_node: str | None = None) -> None:
        """Let a durable task go on from an entry of its journal (`charge#0`): what came before stays, the rest is done again."""
        await PORTAL.aio_call(self._reset(run_id, journal_node))

    def resume(self, run_id: str) -> None:
        """Let what is blocked try again, on the version that is the latest now."""
        PORTAL.call(self._resume(run_id))

    async def aio_resume(self, run_id: str) -> None:
        """Let what is blocked try again, on the version that is the latest now."""
        await PORTAL.aio_call(self._resume(run_id))

    def restore(self, run_id: str) -> Any:
        """The state a long-running task has saved last; None when it has saved none."""
        return PORTAL.call(self._restore(run_id))

    async def aio_restore(self, run_id: str) -> Any:
        """The state a long-running task has saved last; None when it has saved none."""
        return await PORTAL.aio_call(self._restore(run_id))

    def subscribe_to_stream(self, workflow_run_id: str, on_reset: Callable[[], None] | None = None) -> StreamChunks:
        """What a run puts into its stream, from the beginning and as it comes: iterate it with `for` or `async for`.

        Lost connections are taken up where they broke off. `on_reset` is called when the task is tried again: what came before is void.
        """
        return StreamChunks(self.stream_events(workflow_run_id), on_reset)

    def stream_events(self, workflow_run_id: str) -> StreamEvents:
        """The same with everything around it: run:start, stream:data, reset, and run:stop, run:fail or run:cancel at the end."""
        return StreamEvents(self._api, workflow_run_id)

    def list(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        statuses: Sequence[str] | None = None,
        workflow: str | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        event_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        *,
        offset: int | None = None,
        workflow_ids: Sequence[str] | None = None,
        worker_id: str | None = None,
        parent_task_external_id: str | None = None,
        triggering_event_external_id: str | None = None,
        only_tasks: bool = False,
        include_payloads: bool = False,
    ) -> RunList:
        """One page of runs, newest first, that match all filters; go on with the `next_cursor` of the page before, or with `offset`.

        `worker_id` is the name of an endpoint, `parent_task_external_id` a run or one of its tasks, whose children are wanted. A list has
        no inputs and outputs: `include_payloads` reads each run. `only_tasks` is refused: lists are of runs, whose tasks come with `get`.
        """
        event, parent = event_id or triggering_event_external_id, parent_task_external_id
        wanted = RunsWanted(since, until, statuses, workflow, workflow_ids, additional_metadata, event, parent, worker_id)
        page = Page(limit, offset or 0, cursor, include_payloads)
        return PORTAL.call(list_runs(self._api, wanted.checked(only_tasks), page))

    async def aio_list(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        statuses: Sequence[str] | None = None,
        workflow: str | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        event_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        *,
        offset: int | None = None,
        workflow_ids: Sequence[str] | None = None,
        worker_id: str | None = None,
        parent_task_external_id: str | None = None,
        triggering_event_external_id: str | None = None,
        only_tasks: bool = False,
        include_payloads: bool = False,
    ) -> RunList:
        """One page of runs, newest first, that match all filters; go on with the `next_cursor` of the page before, or with `offset`.

        `worker_id` is the name of an endpoint, `parent_task_external_id` a run or one of its tasks, whose children are wanted. A list has
        no inputs and outputs: `include_payloads` reads each run. `only_tasks` is refused: lists are of runs, whose tasks come with `get`.
        """
        event, parent = event_id or triggering_event_external_id, parent_task_external_id
        wanted = RunsWanted(since, until, statuses, workflow, workflow_ids, additional_metadata, event, parent, worker_id)
        page = Page(limit, offset or 0, cursor, include_payloads)
        return await PORTAL.aio_call(list_runs(self._api, wanted.checked(only_tasks), page))

    def get_task_run(self, task_run_id: str) -> TaskRun:
        """A task run with its attempts, by its `tsk_…` id."""
        return PORTAL.call(self._task_run(task_run_id))

    async def aio_get_task_run(self, task_run_id: str) -> TaskRun:
        """A task run with its attempts, by its `tsk_…` id."""
        return await PORTAL.aio_call(self._task_run(task_run_id))

    async def _task_run(self, task_run_id: str) -> TaskRun:
        run = await fetch_run(self._api, run_of(task_run_id) or "")
        for task in run.tasks:
            if task.id == task_run_id:
                return task
        raise ApiError(404, {"title": "Not found", "code": "not_found", "detail": f"run {run.id} has no task run {task_run_id}"})

    async def _result(self, run_id: str) -> Any:
        return (await ended_run(self._api, await fetch_run(self._api, run_id, WAIT_SECONDS))).result()

    async def _cancel(self, run_id: str) -> bool:
        try:
            _, body = await self._api.request("POST", f"/v1/runs/{run_id}/cancel", content=b"{}", repeatable=True)
        except ApiError as error:
            if error.problem_code != "run_finished":
                raise
            return False
        return not (isinstance(body, dict) and body.get("already"))

    async def _send(self, run_id: str, content: bytes) -> bool:
        return await send_message(self._api, run_id, content)

    async def _journal(self, run_id: str) -> dict[str, Any]:
        _, body = await self._api.request("GET", f"/v1/runs/{run_id}/journal", repeatable=True)
        return dict(body)

    async def _reset(self, run_id: str, journal_node: str | None) -> None:
        content = dump_json({} if journal_node is None else {"journal_node": journal_node}, "input")
        await self._api.request("POST", f"/v1/runs/{run_id}/reset", content=content)

    async def _resume(self, run_id: str) -> None:
        await self._api.request("POST", f"/v1/runs/{run_id}/resume", content=b"{}", repeatable=True)

    async def _restore(self, run_id: str) -> Any:
        return await saved_state(self._api, run_id)
