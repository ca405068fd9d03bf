"""Lists of runs: what is wanted, and how its pages are read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from handlers_sdk.api import Api
from handlers_sdk.errors import ConfigError
from handlers_sdk.listing import Params, given, listed, moment

if TYPE_CHECKING:
    from handlers_sdk.runs import Run, RunList

PAGE: Final = 50
"""Runs of a page that names no limit."""
_READ_AT_ONCE: Final = 16


def run_of(identifier: str | None) -> str | None:
    """The id of the run a task run (`tsk_…`) is of; that of a run as it is."""
    if identifier is None or not identifier.startswith("tsk_"):
        return identifier
    return f"run_{identifier.removeprefix('tsk_').partition('-')[0]}"


@dataclass(frozen=True, slots=True)
class RunsWanted:
    """Which runs: those that match all that is given. Workflows are given by their names; `parent` is a run or one of its tasks."""

    since: datetime | None = None
    until: datetime | None = None
    statuses: Sequence[str] | None = None
    workflow: str | None = None
    workflow_ids: Sequence[str] | None = None
    metadata: Mapping[str, str] | None = None
    event_id: str | None = None
    parent: str | None = None
    endpoint: str | None = None

    def checked(self, only_tasks: bool) -> RunsWanted:
        """The same, refused where it asks for what lists are not: ConfigError."""
        if only_tasks:
            raise ConfigError("only_tasks: lists are of runs; the tasks of one come with runs.get(…)")
        if self.workflow is not None and self.workflow_ids is not None:
            raise ConfigError("give either workflow or workflow_ids")
        return self

    @property
    def names(self) -> tuple[str | None, ...]:
        """The workflows to ask for, None for all."""
        return tuple(dict.fromkeys(self.workflow_ids)) if self.workflow_ids is not None else (self.workflow,)

    def query(self, api: Api, name: str | None) -> Params:
        """What the runs of one of these workflows are asked for with."""
        return given(
            since=moment(self.since),
            until=moment(self.until),
            status=[str(status) for status in self.statuses] if self.statuses else None,
            workflow=api.config.namespaced(name) if name else None,
            metadata=[f"{key}:{value}" for key, value in self.metadata.items()] if self.metadata else None,
            event_id=self.event_id,
            parent_run_id=run_of(self.parent),
            endpoint=self.endpoint,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: `limit` rows behind `offset`, or behind a cursor; with `payloads`, each run as it is read alone."""

    limit: int | None
    offset: int = 0
    cursor: str | None = None
    payloads: bool = False


async def list_runs(api: Api, wanted: RunsWanted, page: Page) -> RunList:
    """A page of runs, newest first. A cursor goes on with the runs of one workflow or of all: ConfigError with those of several."""
    from handlers_sdk.runs import RunList  # it lists runs itself

    names = wanted.names
    if page.cursor is not None and (len(names) != 1 or page.offset):
        raise ConfigError("cursor: of the runs of several workflows, or behind an offset, go on with offset")
    if len(names) == 1 and not page.offset:
        params = {**wanted.query(api, names[0]), **given(limit=page.limit, cursor=page.cursor)}
        _, body = await api.request("GET", "/v1/runs", params=params, repeatable=True)
        found = RunList.model_validate(body)
    else:
        end = page.offset + (PAGE if page.limit is None else page.limit)
        rows: list[Any] = []
        for name in names:
            rows += await listed(api, "/v1/runs", wanted.query(api, name), end)
        rows.sort(key=lambda row: row["id"], reverse=True)
        found = RunList.model_validate({"rows": rows[page.offset : end]})
    return found.model_copy(update={"rows": await _read(api, found.rows)}) if page.payloads else found


async def _read(api: Api, rows: Sequence[Run]) -> list[Run]:
    from handlers_sdk.runs import fetch_run  # it lists runs itself

    places = asyncio.Semaphore(_READ_AT_ONCE)

    async def read(run: Run) -> Run:
        async with places:
            return await fetch_run(api, run.id)

    return list(await asyncio.gather(*[read(run) for run in rows]))
