"""How much waits and runs, for autoscalers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from handlers_sdk.api import Api
from handlers_sdk.listing import listed
from handlers_sdk.portal import PORTAL


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

    async def _task_stats(self) -> dict[str, TaskStat]:
        _, body = await self._api.request("GET", "/v1/stats/tasks", repeatable=True)
        return {name: TaskStat.model_validate(stat) for name, stat in body.items()}

    async def _queues(self) -> dict[str, Any]:
        rows = await listed(self._api, "/v1/stats/queues", {})
        return {row["workflow"]: {name: value for name, value in row.items() if name != "workflow"} for row in rows}
