"""What can be done to runs: running one again, and cancelling or replaying many."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from handlers_sdk.api import Api
from handlers_sdk.bulk import BulkAction, BulkCancelReplayOpts, BulkKind, RunFilter, begin, fetch_bulk, preview, stop_bulk
from handlers_sdk.listing import listed
from handlers_sdk.portal import PORTAL
from handlers_sdk.schemas import dump_json

if TYPE_CHECKING:
    from handlers_sdk.refs import WorkflowRunRef
    from handlers_sdk.runs import Run


class RunActions:
    """The part of `dispatcher.runs` that changes runs. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def create(
        self,
        workflow_name: str,
        input: Mapping[str, Any],
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> Run:
        """Start a run of a workflow by its name. `Workflow.run` and the like also check the input."""
        return PORTAL.call(self._create(workflow_name, input, additional_metadata, priority))

    async def aio_create(
        self,
        workflow_name: str,
        input: Mapping[str, Any],
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> Run:
        """Start a run of a workflow by its name. `Workflow.run` and the like also check the input."""
        return await PORTAL.aio_call(self._create(workflow_name, input, additional_metadata, priority))

    def get_run_ref(self, workflow_run_id: str) -> WorkflowRunRef[Any]:
        """A reference to a run, its result as parsed JSON."""
        from handlers_sdk.refs import WorkflowRunRef  # it reads runs itself

        return WorkflowRunRef(self._api, workflow_run_id, lambda output: output)

    def replay(self, run_id: str, *, task: str | None = None) -> None:
        """Run a finished run again under its own id: whole, or one task of a workflow with all that comes after it.

        ApiError `run_not_finished` for one that is not over.
        """
        PORTAL.call(self._replay(run_id, task))

    async def aio_replay(self, run_id: str, *, task: str | None = None) -> None:
        """Run a finished run again under its own id: whole, or one task of a workflow with all that comes after it.

        ApiError `run_not_finished` for one that is not over.
        """
        await PORTAL.aio_call(self._replay(run_id, task))

    def bulk_cancel(self, opts: BulkCancelReplayOpts) -> BulkAction:
        """Cancel many runs, by ids or by a filter. The action goes on by itself: `get_bulk` says how far it has come."""
        return PORTAL.call(begin(self._api, "cancel", opts))

    async def aio_bulk_cancel(self, opts: BulkCancelReplayOpts) -> BulkAction:
        """Cancel many runs, by ids or by a filter. The action goes on by itself: `get_bulk` says how far it has come."""
        return await PORTAL.aio_call(begin(self._api, "cancel", opts))

    def bulk_replay(self, opts: BulkCancelReplayOpts) -> BulkAction:
        """Run many finished runs again, by ids or by a filter. The action goes on by itself: `get_bulk` says how far it has come."""
        return PORTAL.call(begin(self._api, "replay", opts))

    async def aio_bulk_replay(self, opts: BulkCancelReplayOpts) -> BulkAction:
        """Run many finished runs again, by ids or by a filter. The action goes on by itself: `get_bulk` says how far it has come."""
        return await PORTAL.aio_call(begin(self._api, "replay", opts))

    def preview(self, kind: BulkKind, opts: BulkCancelReplayOpts) -> int:
        """How many runs a bulk cancel or replay would be for."""
        return PORTAL.call(preview(self._api, kind, opts))

    async def aio_preview(self, kind: BulkKind, opts: BulkCancelReplayOpts) -> int:
        """How many runs a bulk cancel or replay would be for."""
        return await PORTAL.aio_call(preview(self._api, kind, opts))

    def get_bulk(self, bulk_id: str) -> BulkAction:
        """A bulk action, and how far it has come."""
        return PORTAL.call(fetch_bulk(self._api, bulk_id))

    async def aio_get_bulk(self, bulk_id: str) -> BulkAction:
        """A bulk action, and how far it has come."""
        return await PORTAL.aio_call(fetch_bulk(self._api, bulk_id))

    def stop_bulk(self, bulk_id: str) -> BulkAction:
        """End a bulk action where it stands."""
        return PORTAL.call(stop_bulk(self._api, bulk_id))

    async def aio_stop_bulk(self, bulk_id: str) -> BulkAction:
        """End a bulk action where it stands."""
        return await PORTAL.aio_call(stop_bulk(self._api, bulk_id))

    def bulk_cancel_by_filters_with_pagination(
        self,
        sleep_time: float = 3,
        chunk_size: int = 500,
        since: datetime | None = None,
        until: datetime | None = None,
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        workflow_ids: Sequence[str] | None = None,
    ) -> None:
        """Cancel all runs that match, however many: `chunk_size` ids in an action, and `sleep_time` seconds between two."""
        wanted = RunFilter(since, until, statuses, workflow_ids, additional_metadata)
        PORTAL.call(self._in_chunks("cancel", wanted, chunk_size, sleep_time))

    async def aio_bulk_cancel_by_filters_with_pagination(
        self,
        sleep_time: float = 3,
        chunk_size: int = 500,
        since: datetime | None = None,
        until: datetime | None = None,
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        workflow_ids: Sequence[str] | None = None,
    ) -> None:
        """Cancel all runs that match, however many: `chunk_size` ids in an action, and `sleep_time` seconds between two."""
        wanted = RunFilter(since, until, statuses, workflow_ids, additional_metadata)
        await PORTAL.aio_call(self._in_chunks("cancel", wanted, chunk_size, sleep_time))

    def bulk_replay_by_filters_with_pagination(
        self,
        sleep_time: float = 3,
        chunk_size: int = 500,
        since: datetime | None = None,
        until: datetime | None = None,
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        workflow_ids: Sequence[str] | None = None,
    ) -> None:
        """Run all runs that match again, however many: `chunk_size` ids in an action, and `sleep_time` seconds between two."""
        wanted = RunFilter(since, until, statuses, workflow_ids, additional_metadata)
        PORTAL.call(self._in_chunks("replay", wanted, chunk_size, sleep_time))

    async def aio_bulk_replay_by_filters_with_pagination(
        self,
        sleep_time: float = 3,
        chunk_size: int = 500,
        since: datetime | None = None,
        until: datetime | None = None,
        statuses: Sequence[str] | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        workflow_ids: Sequence[str] | None = None,
    ) -> None:
        """Run all runs that match again, however many: `chunk_size` ids in an action, and `sleep_time` seconds between two."""
        wanted = RunFilter(since, until, statuses, workflow_ids, additional_metadata)
        await PORTAL.aio_call(self._in_chunks("replay", wanted, chunk_size, sleep_time))

    async def _create(self, workflow: str, input: Mapping[str, Any], metadata: Mapping[str, Any] | None, priority: int | None) -> Run:
        from handlers_sdk.triggers import TriggerWorkflowOptions, WorkflowRunTriggerConfig, start_run  # they read runs themselves

        options = TriggerWorkflowOptions(additional_metadata=metadata, priority=priority)
        name = self._api.config.namespaced(workflow)
        return await start_run(self._api, WorkflowRunTriggerConfig(name, dump_json(input, "input"), options), wait=False)

    async def _in_chunks(self, kind: BulkKind, wanted: RunFilter, size: int, pause: float) -> None:
        """Ids first, then actions: what an action begins again does not match a second time."""
        run_ids: dict[str, None] = {}
        for name in wanted.workflow_ids or (None,):
            run_ids |= dict.fromkeys(row["id"] for row in await listed(self._api, "/v1/runs", wanted.query(self._api, kind, name)))
        found = [*run_ids]
        for start in range(0, len(found), size):
            if start:
                await asyncio.sleep(pause)
            await begin(self._api, kind, BulkCancelReplayOpts(ids=found[start : start + size]))

    async def _replay(self, run_id: str, task: str | None) -> None:
        content = dump_json({} if task is None else {"task": task})
        await self._api.request("POST", f"/v1/runs/{run_id}/replay", content=content)
