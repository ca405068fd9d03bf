"""Cancelling and replaying many runs: which, and what has become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from handlers_sdk.api import Api
from handlers_sdk.errors import ConfigError
from handlers_sdk.listing import Params, given, moment
from handlers_sdk.schemas import dump_json

BulkKind = Literal["cancel", "replay"]
# What an action is for where no status is named.
_USUAL: Final[dict[BulkKind, tuple[str, ...]]] = {
    "cancel": ("queued", "running", "waiting", "pending_retry", "blocked"),
    "replay": ("failed", "cancelled"),
}


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs: those that match all that is given. A workflow's id is its name.

    Without `statuses` live runs are cancelled, failed and cancelled ones replayed.
    """

    since: datetime | None = None
    until: datetime | None = None
    statuses: Sequence[str] | None = None
    workflow_ids: Sequence[str] | None = None
    additional_metadata: Mapping[str, str] | None = None
    triggering_event_external_id: str | None = None
    parent_run_id: str | None = None

    def document(self, api: Api) -> dict[str, Any]:
        """As the dispatcher reads it."""
        named = {
            "since": moment(self.since),
            "until": moment(self.until),
            "status": list(self.statuses) if self.statuses else None,
            "workflow": [api.config.namespaced(name) for name in self.workflow_ids] if self.workflow_ids else None,
            "metadata": dict(self.additional_metadata) if self.additional_metadata else None,
            "event_id": self.triggering_event_external_id,
            "parent_run_id": self.parent_run_id,
        }
        return {name: value for name, value in named.items() if value is not None}

    def query(self, api: Api, kind: BulkKind, workflow: str | None) -> Params:
        """The same runs as a list is asked for them, those of one workflow."""
        return given(
            since=moment(self.since),
            until=moment(self.until),
            status=list(self.statuses or _USUAL[kind]),
            workflow=api.config.namespaced(workflow) if workflow is not None else None,
            metadata=[f"{key}:{value}" for key, value in (self.additional_metadata or {}).items()] or None,
            event_id=self.triggering_event_external_id,
            parent_run_id=self.parent_run_id,
        )


@dataclass(frozen=True, slots=True)
class BulkCancelReplayOpts:
    """Runs by their ids, or by a filter. ConfigError unless it is one of the two."""

    ids: Sequence[str] | None = None
    filters: RunFilter | None = None

    def __post_init__(self) -> None:
        if (self.ids is None) == (self.filters is None):
            raise ConfigError("give either ids or filters")

    def document(self, api: Api) -> dict[str, Any]:
        """As the dispatcher reads it."""
        return {"ids": list(self.ids)} if self.ids is not None else {"filter": (self.filters or RunFilter()).document(api)}


class BulkAction(BaseModel):
    """A bulk action: of `matched` runs, `done` were cancelled or begun again; `skipped` had changed meanwhile, and were left alone."""

    model_config = ConfigDict(extra="allow")

    id: str
    kind: BulkKind
    status: str
    matched: int
    done: int = 0
    skipped: int = 0
    created_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, or was ended."""
        return self.status != "running"


async def begin(api: Api, kind: BulkKind, opts: BulkCancelReplayOpts) -> BulkAction:
    """Begin an action."""
    _, body = await api.request("POST", f"/v1/runs/{kind}", content=dump_json(opts.document(api), "input"))
    return BulkAction.model_validate(body)


async def preview(api: Api, kind: BulkKind, opts: BulkCancelReplayOpts) -> int:
    """How many runs an action would be for."""
    content = dump_json({**opts.document(api), "dry_run": True}, "input")
    _, body = await api.request("POST", f"/v1/runs/{kind}", content=content, repeatable=True)
    return int(body["matched"])


async def fetch_bulk(api: Api, bulk_id: str) -> BulkAction:
    """An action, and how far it has come."""
    _, body = await api.request("GET", f"/v1/bulk/{bulk_id}", repeatable=True)
    return BulkAction.model_validate(body)


async def stop_bulk(api: Api, bulk_id: str) -> BulkAction:
    """End an action where it stands."""
    _, body = await api.request("POST", f"/v1/bulk/{bulk_id}/cancel", repeatable=True)
    return BulkAction.model_validate(body)
