"""How much waits and runs, for autoscalers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from handlers_sdk.api import Api
from handlers_sdk.listing import given, listed, moment
from handlers_sdk.portal import PORTAL
from handlers_sdk.run_lists import run_of


class TaskState(BaseModel):
    """Tasks in one state: how many, since when the oldest, and how they divide among queues and concurrency limits."""

    model_config = ConfigDict(extra="allow")

    total: int = 0
    oldest: datetime | None = None
    queues: dict[str, int] = Field(default_factory=dict)
    concurrency: list[dict[str, Any]] = Field(default_factory=list)


class TaskStat(BaseModel):
    """What waits and what runs of one task."""

    model_config = ConfigDict(extra="allow")

    queued: TaskState = Field(default_factory=TaskState)
    running: TaskState = Field(default_factory=TaskState)


class TaskMetrics(BaseModel):
    """How many runs there are in each status. `queued` are all that are still to run, those that wait or wait out a retry among them."""

    model_config = ConfigDict(extra="allow")

    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class MetricsClient:
    """`dispatcher.metrics`. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def get_task_stats(self) -> dict[str, TaskStat]:
        """What waits and what runs, by the tasks' names."""
        return PORTAL.call(self._task_stats())

    async def aio_get_task_stats(self) -> dict[str, TaskStat]:
        """What waits and what runs, by the tasks' names."""
        return await PORTAL.aio_call(self._task_stats())

    def get_queue_metrics(self) -> dict[str, Any]:
        """What is in each workflow's queue, by the workflows' names: queued, gated, scheduled, running, waiting, oldest, paused."""
        return PORTAL.call(self._queues())

    async def aio_get_queue_metrics(self) -> dict[str, Any]:
        """What is in each workflow's queue, by the workflows' names: queued, gated, scheduled, running, waiting, oldest, paused."""
        return await PORTAL.aio_call(self._queues())

    def get_task_metrics(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        workflow_ids: Sequence[str] | None = None,
        parent_task_external_id: str | None = None,
        triggering_event_external_id: str | None = None,
    ) -> TaskMetrics:
        """How many runs are in each status, of those started within a time: the past day unless `since` is given.

        `parent_task_external_id` is a run or one of its tasks, whose children are counted.
        """
        chosen = (since, until, workflow_ids, parent_task_external_id, triggering_event_external_id)
        return PORTAL.call(self._task_metrics(*chosen))

    async def aio_get_task_metrics(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        workflow_ids: Sequence[str] | None = None,
        parent_task_external_id: str | None = None,
        triggering_event_external_id: str | None = None,
    ) -> TaskMetrics:
        """How many runs are in each status, of those started within a time: the past day unless `since` is given.

        `parent_task_external_id` is a run or one of its tasks, whose children are counted.
        """
        chosen = (since, until, workflow_ids, parent_task_external_id, triggering_event_external_id)
        return await PORTAL.aio_call(self._task_metrics(*chosen))

    def scrape_tenant_prometheus_metrics(self) -> str:
        """What the dispatcher that answers counts, in the text format of Prometheus."""
        return PORTAL.call(self._scraped())

    async def aio_scrape_tenant_prometheus_metrics(self) -> str:
        """What the dispatcher that answers counts, in the text format of Prometheus."""
        return await PORTAL.aio_call(self._scraped())

    async def _task_metrics(
        self, since: datetime | None, until: datetime | None, workflows: Sequence[str] | None, parent: str | None, event_id: str | None
    ) -> TaskMetrics:
        params = given(
            since=moment(since),
            until=moment(until),
            workflow=[self._api.config.namespaced(name) for name in workflows] if workflows is not None else None,
            parent_run_id=run_of(parent),
            event_id=event_id,
        )
        _, counts = await self._api.request("GET", "/v1/stats/runs", params=params, repeatable=True)
        return TaskMetrics(
            queued=sum(counts[name] for name in ("queued", "waiting", "pending_retry", "blocked")),
            running=counts["running"],
            completed=counts["succeeded"],
            failed=counts["failed"],
            cancelled=counts["cancelled"],
        )

    async def _scraped(self) -> str:
        return (await self._api.content("GET", "/metrics")).decode()

    async def _task_stats(self) -> dict[str, TaskStat]:
        _, body = await self._api.request("GET", "/v1/stats/tasks", repeatable=True)
        return {name: TaskStat.model_validate(stat) for name, stat in body.items()}

    async def _queues(self) -> dict[str, Any]:
        rows = await listed(self._api, "/v1/stats/queues", {})
        return {row["workflow"]: {name: value for name, value in row.items() if name != "workflow"} for row in rows}
