"""What can be run: the trigger methods shared by tasks, workflows and stubs. Each has a sync face and an `aio_` face over one coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar, Unpack, overload

from handlers_sdk.api import Api
from handlers_sdk.durations import Duration
from handlers_sdk.errors import BulkTriggerError, DispatcherError
from handlers_sdk.filters import FiltersClient, V1Filter
from handlers_sdk.portal import PORTAL
from handlers_sdk.refs import WorkflowRunRef
from handlers_sdk.runs import Run, RunList, RunsClient, ended_run
from handlers_sdk.schemas import Codec
from handlers_sdk.timed import Timed
from handlers_sdk.triggers import TriggerWorkflowOptions, WorkflowRunTriggerConfig, start_run, start_runs

I = TypeVar("I")  # noqa: E741 - the input
T = TypeVar("T")

WAITING_AT_ONCE: Final = 16


class TriggerKeywords(TypedDict, total=False):
    """The options of TriggerWorkflowOptions as keyword arguments; those given win over `options`."""

    additional_metadata: Mapping[str, Any] | None
    priority: int | None
    idempotency_key: str | None
    idempotency_ttl: Duration | None


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
    async def aio_run(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        *,
        wait_for_result: bool = True,
        **keywords: Unpack[TriggerKeywords],
    ) -> T | WorkflowRunRef[T]:
        """Start a run and await its result, or, with `wait_for_result=False`, its reference. Raises as `run` does."""
        item = self._item(input, options, keywords)
        return await PORTAL.aio_call(self._run(item)) if wait_for_result else await PORTAL.aio_call(self._start(item))

    def run_no_wait(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        **keywords: Unpack[TriggerKeywords],
    ) -> WorkflowRunRef[T]:
        """Start a run and give its reference at once."""
        return PORTAL.call(self._start(self._item(input, options, keywords)))

    async def aio_run_no_wait(
        self,
        input: I | None = None,
        options: TriggerWorkflowOptions | None = None,
        **keywords: Unpack[TriggerKeywords],
    ) -> WorkflowRunRef[T]:
        """Start a run and give its reference at once."""
        return await PORTAL.aio_call(self._start(self._item(input, options, keywords)))

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
        results: list[T] | list[T | BaseException] = await PORTAL.aio_call(self._run_many(workflows, return_exceptions))
        return results

    def run_many_no_wait(self, workflows: Sequence[WorkflowRunTriggerConfig]) -> list[WorkflowRunRef[T]]:
        """Start runs and give their references, in order. BulkTriggerError, with all that did start, when any did not."""
        return PORTAL.call(self._start_many(workflows))

    async def aio_run_many_no_wait(self, workflows: Sequence[WorkflowRunTriggerConfig]) -> list[WorkflowRunRef[T]]:
        """Start runs and give their references, in order. BulkTriggerError, with all that did start, when any did not."""
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
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        cursor: str | None = None,
    ) -> RunList:
        """One page of this workflow's runs, newest first."""
        return RunsClient(self._api).list(since, until, statuses, self._name, additional_metadata, limit=limit, cursor=cursor)

    async def aio_list_runs(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        cursor: str | None = None,
    ) -> RunList:
        """One page of this workflow's runs, newest first."""
        return await RunsClient(self._api).aio_list(since, until, statuses, self._name, additional_metadata, limit=limit, cursor=cursor)

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
        chosen = replace(options or TriggerWorkflowOptions(), **keywords)
        return WorkflowRunTriggerConfig(self._name, self._input.dump({} if input is None else input, "input"), chosen)

    async def _start(self, item: WorkflowRunTriggerConfig) -> WorkflowRunRef[T]:
        return self.get_run_ref((await start_run(self._api, item, wait=False)).id)

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
