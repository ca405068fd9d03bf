"""Log lines as the dispatcher has kept them, and the client that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from handlers_sdk.api import Api
from handlers_sdk.listing import given, listed, moment
from handlers_sdk.portal import PORTAL
from handlers_sdk.run_lists import run_of


class V1LogLine(BaseModel):
    """A line an attempt logged."""

    model_config = ConfigDict(extra="allow")

    at: datetime
    level: str
    message: str
    attempt: int
    task_id: str = ""
    run_id: str = ""


class V1LogLineList(BaseModel):
    """Log lines."""

    rows: list[V1LogLine]


class LogsClient:
    """`dispatcher.logs`: what handlers logged. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(
        self,
        task_run_id: str,
        limit: int = 1000,
        since: datetime | None = None,
        until: datetime | None = None,
        levels: Sequence[str] | None = None,
        search: str | None = None,
    ) -> V1LogLineList:
        """The first `limit` lines of a task run (`tsk_…`) or of a run (`run_…`), in the order they were written."""
        return PORTAL.call(self._of_run(task_run_id, limit, since, until, levels, search))

    async def aio_list(
        self,
        task_run_id: str,
        limit: int = 1000,
        since: datetime | None = None,
        until: datetime | None = None,
        levels: Sequence[str] | None = None,
        search: str | None = None,
    ) -> V1LogLineList:
        """The first `limit` lines of a task run (`tsk_…`) or of a run (`run_…`), in the order they were written."""
        return await PORTAL.aio_call(self._of_run(task_run_id, limit, since, until, levels, search))

    def search(
        self,
        search: str | None = None,
        levels: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> V1LogLineList:
        """Lines of all runs, the latest first."""
        return PORTAL.call(self._of_all(search, levels, since, until, limit))

    async def aio_search(
        self,
        search: str | None = None,
        levels: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> V1LogLineList:
        """Lines of all runs, the latest first."""
        return await PORTAL.aio_call(self._of_all(search, levels, since, until, limit))

    async def _of_run(
        self, task_run_id: str, limit: int, since: datetime | None, until: datetime | None, levels: Sequence[str] | None, search: str | None
    ) -> V1LogLineList:
        task = task_run_id if task_run_id.startswith("tsk_") else None
        run_id = run_of(task_run_id)
        wanted = given(
            task_id=task, since=moment(since), until=moment(until), level=[*levels] if levels is not None else None, search=search
        )
        return V1LogLineList.model_validate({"rows": await listed(self._api, f"/v1/runs/{run_id}/logs", wanted, limit)})

    async def _of_all(
        self, search: str | None, levels: Sequence[str] | None, since: datetime | None, until: datetime | None, limit: int
    ) -> V1LogLineList:
        wanted = given(since=moment(since), until=moment(until), level=[*levels] if levels is not None else None, search=search)
        return V1LogLineList.model_validate({"rows": await listed(self._api, "/v1/logs", wanted, limit)})
