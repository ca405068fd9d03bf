"""What can be run: the trigger methods shared by tasks, workflows and stubs. Each has a sync face and an `aio_` face over one coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar, Unpack, overload

from handlers_sdk.api import Api
from handlers_sdk.children import child_here, started
from handlers_sdk.durable import DurableContext, durable_here, refuse_blocking
from handlers_sdk.durations import Duration
from handlers_sdk.errors import BulkTriggerError, DispatcherError
from handlers_sdk.filters import FiltersClient, V1Filter
from handlers_sdk.longrunning import TaskInfo, options_of
from handlers_sdk.ops import Op
from handlers_sdk.portal import PORTAL
from handlers_sdk.refs import WorkflowRunRef
from handlers_sdk.retries import RetryForm
from handlers_sdk.run_lists import Page, RunsWanted, list_runs
from handlers_sdk.runs import Run, RunList, ended_run, fetch_run
from handlers_sdk.schemas import Codec
from handlers_sdk.timed import Timed
from handlers_sdk.triggers import NO_OPTIONS, TriggerWorkflowOptions, WorkflowRunTriggerConfig, start_run, start_runs
from handlers_sdk.workflows import delete_workflow

I = TypeVar("I")  # noqa: E741 - the input
T = TypeVar("T")

WAITING_AT_ONCE: Final = 16


class TriggerKeywords(TypedDict, total=False):
    """The options of TriggerWorkflowOptions as keyword arguments; those given win over `options`."""

    additional_metadata: Mapping[str, Any] | None
    priority: int | None
    idempotency_key: str | None
    idempotency_ttl: Duration | None
    child_key: str | None


class Runnable(Timed[I], Generic[I, T]):
    """Runs of one workflow. `T` is what a run's result is read as."""

    def __init__(self, api: Api, name: str, input: Codec, read: Callable[[Any], T]) -> None:
        self._api = api
        self._input = input
        self._read = read
        self._name = name

    @property
    def name(self) -> str:
        """The workflow's name as the dispatcher knows it, namespace included."""
        return self._name

    @property
    def id(self) -> str:
        """What clients that take a workflow's id name it by: its name."""
        return self._name

    def read_result(self, output: Any) -> T:
        """A run's output as this workflow's results are read."""
        return self._read(output)

    # ---- one run

    @overload
    def run(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        wait_for_result: Literal[True] = True,
        **keywords: Unpack[TriggerKeywords],
    ) -> T: ...
    @overload
    def run(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        wait_for_result: Literal[False],
        **keywords: Unpack[TriggerKeywords],
    ) -> WorkflowRunRef[T]: ...
    def run(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        wait_for_result: bool = True,
        **keywords: Unpack[TriggerKeywords],
    ) -> T | WorkflowRunRef[T]:
        """Start a run and wait for its result, or, with `wait_for_result=False`, give its reference.

        InvalidInputError before anything is sent, IdempotencyCollisionError when the key already started a run, then as
        `WorkflowRunRef.result`. Keyword arguments: those of TriggerWorkflowOptions, which win over `options`.
        """
        refuse_blocking("run")
        item = self._item(input, options, keywords)
        return PORTAL.call(self._run(item)) if wait_for_result else PORTAL.call(self._start(item))

    @overload
    async def aio_run(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        wait_for_result: Literal[True] = True,
        **keywords: Unpack[TriggerKeywords],
    ) -> T: ...
    @overload
    async def aio_run(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        wait_for_result: Literal[False],
        **keywords: Unpack[TriggerKeywords],
    ) -> WorkflowRunRef[T]: ...
    def aio_run(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        wait_for_result: bool = True,
        **keywords: Unpack[TriggerKeywords],
    ) -> Coroutine[Any, Any, T | WorkflowRunRef[T]]:
        """Start a run and await its result, or, with `wait_for_result=False`, its reference. Raises as `run` does.

        In a task it starts a child, once however often the task is tried; a durable task holds nothing while it waits for one.
        """
        if not wait_for_result:
            return self.aio_run_no_wait(input, options, **keywords)
        item = self._item(input, options, keywords)
        durable = durable_here()
        return PORTAL.aio_call(self._run(item)) if durable is None else durable._child_of(item, self._read)  # noqa: SLF001 - one package

    def run_no_wait(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        **keywords: Unpack[TriggerKeywords],
    ) -> WorkflowRunRef[T]:
        """Start a run and give its reference at once."""
        refuse_blocking("run_no_wait")
        return PORTAL.call(self._start(self._item(input, options, keywords)))

    def aio_run_no_wait(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        **keywords: Unpack[TriggerKeywords],
    ) -> Coroutine[Any, Any, WorkflowRunRef[T]]:
        """Start a run and give its reference at once."""
        item = self._item(input, options, keywords)
        durable = durable_here()
        if durable is None:
            return PORTAL.aio_call(self._start(item))
        return started(self._api, durable._child_of(item, self._read))  # noqa: SLF001 - one package

    # ---- long-running tasks

    def start(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        timeout: Duration | None = None,
        retry: RetryForm | None = None,
        **keywords: Unpack[TriggerKeywords],
    ) -> TaskInfo:
        """Start a long-running task and return at once. For durable tasks.

        `timeout` ends it, however long it has waited and how often it has begun anew. `retry` runs its function again when it fails: a
        number of times, or {"attempts": 3, "delay": 5000, "backoff": "exponential"} in milliseconds.
        """
        refuse_blocking("start")
        return PORTAL.call(self._start_task(self._long(input, options, timeout, retry, keywords)))

    async def aio_start(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        timeout: Duration | None = None,
        retry: RetryForm | None = None,
        **keywords: Unpack[TriggerKeywords],
    ) -> TaskInfo:
        """Start a long-running task and return as soon as it is known. As `start`."""
        item = self._long(input, options, timeout, retry, keywords)
        durable = durable_here()
        if durable is not None:
            ref = await started(self._api, durable._child_of(item, self._read, "abandon"))  # noqa: SLF001 - one package
            return TaskInfo(ref.workflow_run_id, None, durable.workflow_run_id)
        return await PORTAL.aio_call(self._start_task(item))

    # ---- many runs

    def create_bulk_run_item(
        self,
        input: I | None = None,
        key: str | None = None,
        options: TriggerWorkflowOptions | None = None,
        **keywords: Unpack[TriggerKeywords],
    ) -> WorkflowRunTriggerConfig:
        """One item for the `run_many` methods. Items of one call with the same `key` are one run. InvalidInputError names the field."""
        item = self._item(input, options, keywords)
        return item if key is None else replace(item, key=key)

    @overload
    def run_many(self, workflows: Sequence[WorkflowRunTriggerConfig], return_exceptions: Literal[False] = False) -> list[T]: ...
    @overload
    def run_many(self, workflows: Sequence[WorkflowRunTriggerConfig], return_exceptions: Literal[True]) -> list[T | BaseException]: ...
    def run_many(self, workflows: Sequence[WorkflowRunTriggerConfig], return_exceptions: bool = False) -> list[T] | list[T | BaseException]:
        """Start runs and wait for all results, in order. The first failure is raised, or stands in its place with `return_exceptions`."""
        refuse_blocking("run_many")
        results: list[T] | list[T | BaseException] = PORTAL.call(self._run_many(workflows, return_exceptions))
        return results

    @overload
    async def aio_run_many(self, workflows: Sequence[WorkflowRunTriggerConfig], return_exceptions: Literal[False] = False) -> list[T]: ...
    @overload
    async def aio_run_many(
        self, workflows: Sequence[WorkflowRunTriggerConfig], return_exceptions: Literal[True]
    ) -> list[T | BaseException]: ...
    async def aio_run_many(
        self, workflows: Sequence[WorkflowRunTriggerConfig], return_exceptions: bool = False
    ) -> list[T] | list[T | BaseException]:
        """Start runs and await all results, in order. The first failure is raised, or stands in its place with `return_exceptions`."""
        durable = durable_here()
        if durable is not None:
            return await asyncio.gather(*self._spawned(durable, workflows), return_exceptions=return_exceptions)
        results: list[T] | list[T | BaseException] = await PORTAL.aio_call(self._run_many(workflows, return_exceptions))
        return results

    def run_many_no_wait(self, workflows: Sequence[WorkflowRunTriggerConfig]) -> list[WorkflowRunRef[T]]:
        """Start runs and give their references, in order. BulkTriggerError, with all that did start, when any did not."""
        refuse_blocking("run_many_no_wait")
        return PORTAL.call(self._start_many(workflows))

    async def aio_run_many_no_wait(self, workflows: Sequence[WorkflowRunTriggerConfig]) -> list[WorkflowRunRef[T]]:
        """Start runs and give their references, in order. BulkTriggerError, with all that did start, when any did not."""
        durable = durable_here()
        if durable is not None:
            return list(await asyncio.gather(*[started(self._api, child) for child in self._spawned(durable, workflows)]))
        return await PORTAL.aio_call(self._start_many(workflows))

    # ---- runs there are

    def get_run_ref(self, run_id: str) -> WorkflowRunRef[T]:
        """A reference to a run of this workflow."""
        return WorkflowRunRef(self._api, run_id, self._read)

    def get_result(self, run_id: str) -> T:
        """The result of a run of this workflow, once it has ended."""
        return self.get_run_ref(run_id).result()

    async def aio_get_result(self, run_id: str) -> T:
        """The result of a run of this workflow, once it has ended."""
        return await self.get_run_ref(run_id).aio_result()

    def list_runs(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        offset: int | None = None,
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        worker_id: str | None = None,
        parent_task_external_id: str | None = None,
        only_tasks: bool = False,
        triggering_event_external_id: str | None = None,
        cursor: str | None = None,
    ) -> RunList:
        """One page of this workflow's runs, newest first: `RunsClient.list` says what each filter is."""
        event, parent = triggering_event_external_id, parent_task_external_id
        wanted = RunsWanted(since, until, statuses, self._name, None, additional_metadata, event, parent, worker_id)
        return PORTAL.call(list_runs(self._api, wanted.checked(only_tasks), Page(limit, offset or 0, cursor)))

    async def aio_list_runs(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        offset: int | None = None,
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        worker_id: str | None = None,
        parent_task_external_id: str | None = None,
        only_tasks: bool = False,
        triggering_event_external_id: str | None = None,
        cursor: str | None = None,
    ) -> RunList:
        """One page of this workflow's runs, newest first: `RunsClient.list` says what each filter is."""
        event, parent = triggering_event_external_id, parent_task_external_id
        wanted = RunsWanted(since, until, statuses, self._name, None, additional_metadata, event, parent, worker_id)
        return await PORTAL.aio_call(list_runs(self._api, wanted.checked(only_tasks), Page(limit, offset or 0, cursor)))

    # ---- the workflow itself

    def delete(self) -> None:
        """Remove the workflow from the dispatcher, as `WorkflowsClient.delete` does."""
        PORTAL.call(delete_workflow(self._api, self._name))

    async def aio_delete(self) -> None:
        """Remove the workflow from the dispatcher, as `WorkflowsClient.delete` does."""
        await PORTAL.aio_call(delete_workflow(self._api, self._name))

    # ---- which events start it

    def create_filter(self, expression: str, scope: str, payload: Mapping[str, Any] | None = None) -> V1Filter:
        """Make a filter: events in its scope start a run when the expression holds. ApiError when there is the same already."""
        return FiltersClient(self._api).create(self._name, expression, scope, payload)

    async def aio_create_filter(self, expression: str, scope: str, payload: Mapping[str, Any] | None = None) -> V1Filter:
        """Make a filter: events in its scope start a run when the expression holds. ApiError when there is the same already."""
        return await FiltersClient(self._api).aio_create(self._name, expression, scope, payload)

    # ---- inside

    def _item(
        self,
        input: I | None,
        options: TriggerWorkflowOptions | None,
        keywords: TriggerKeywords,
    ) -> WorkflowRunTriggerConfig:
        chosen = options or NO_OPTIONS
        if keywords:
            chosen = replace(chosen, **keywords)
        text = self._input.dump({} if input is None else input, "input")
        return WorkflowRunTriggerConfig(self._name, text, chosen, parent=child_here(chosen.child_key))

    def _spawned(self, durable: DurableContext, items: Sequence[WorkflowRunTriggerConfig]) -> list[Op[T]]:
        """The children of a durable task; items with one key are one."""
        keyed: dict[str, Op[T]] = {}
        children: list[Op[T]] = []
        for item in items:
            child = keyed.get(item.key) if item.key is not None else None
            if child is None:
                child = durable._child_of(item, self._read)  # noqa: SLF001 - one package
                if item.key is not None:
                    keyed[item.key] = child
            children.append(child)
        return children

    async def _start(self, item: WorkflowRunTriggerConfig) -> WorkflowRunRef[T]:
        return self.get_run_ref((await start_run(self._api, item, wait=False)).id)

    def _long(
        self,
        input: I | None,
        options: TriggerWorkflowOptions | None,
        timeout: Duration | None,
        retry: RetryForm | None,
        keywords: TriggerKeywords,
    ) -> WorkflowRunTriggerConfig:
        item = self._item(input, options, keywords)
        metadata = {**(item.options.additional_metadata or {}), **options_of(timeout, retry)}
        return replace(item, options=replace(item.options, additional_metadata=metadata or None))

    async def _start_task(self, item: WorkflowRunTriggerConfig) -> TaskInfo:
        run = await start_run(self._api, item, wait=False)
        if run.stream_id is None:
            run = await fetch_run(self._api, run.id)
        return TaskInfo(run.id, run.stream_id, run.parent_run_id)

    async def _run(self, item: WorkflowRunTriggerConfig) -> T:
        run = await start_run(self._api, item, wait=True)
        return self._read((await ended_run(self._api, run)).result())

    async def _start_many(self, items: Sequence[WorkflowRunTriggerConfig]) -> list[WorkflowRunRef[T]]:
        started = await start_runs(self._api, items)
        results = [self.get_run_ref(one.id) if isinstance(one, Run) else one for one in started]
        refs = [one for one in results if isinstance(one, WorkflowRunRef)]
        if len(refs) < len(results):
            raise BulkTriggerError(results)
        return refs

    async def _run_many(self, items: Sequence[WorkflowRunTriggerConfig], return_exceptions: bool) -> Any:
        started = await start_runs(self._api, items)
        waiting = asyncio.Semaphore(WAITING_AT_ONCE)

        async def result(one: Run | DispatcherError) -> T | DispatcherError:
            if isinstance(one, DispatcherError):
                return one
            async with waiting:
                try:
                    return self._read((await ended_run(self._api, one)).result())
                except DispatcherError as error:
                    return error

        results = await asyncio.gather(*map(result, started))
        failed = next((one for one in results if isinstance(one, DispatcherError)), None)
        if failed is not None and not return_exceptions:
            raise failed
        return results
