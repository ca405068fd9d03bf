"""What every resource the dispatcher reports has in common, and how lists of them are put in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

T = TypeVar("T")

_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ResourceMetadata:
    """What everything made by hand has."""

    id: str
    created_at: datetime | None
    updated_at: datetime | None


class Metadata(dict[str, Any]):
    """The metadata somebody gave a run or an event, and beside it what resources have: `run.metadata["customer"]`, `run.metadata.id`."""

    __slots__ = ("created_at", "id", "updated_at")

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        super().__init__(given or {})
        self.of("", None, None)

    def of(self, id: str, created_at: datetime | None, updated_at: datetime | None) -> None:
        """Say whose it is."""
        self.id, self.created_at, self.updated_at = id, created_at, updated_at

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """An object or null, whose it is to be said by the model around it."""
        given = core_schema.nullable_schema(core_schema.dict_schema(core_schema.str_schema()))
        return core_schema.no_info_after_validator_function(cls, given)


class CronWorkflowsOrderByField(StrEnum):
    """What crons can be put in order by."""

    NAME = "name"
    CREATEDAT = "created_at"


class ScheduledWorkflowsOrderByField(StrEnum):
    """What schedules can be put in order by."""

    TRIGGERAT = "run_at"
    CREATEDAT = "created_at"


class WorkflowRunOrderByDirection(StrEnum):
    """Which way."""

    ASC = "ASC"
    DESC = "DESC"


def in_order(rows: list[T], field: StrEnum | None, direction: WorkflowRunOrderByDirection | str | None) -> list[T]:
    """Rows by a field, the smallest first unless said otherwise; as they came where neither is named."""
    if field is None:
        return rows if direction is None else sorted(rows, key=_by("created_at"), reverse=_down(direction))
    return sorted(rows, key=_by(field.value), reverse=_down(direction))


def _by(name: str) -> Callable[[Any], Any]:
    return lambda row: getattr(row, name) if getattr(row, name) is not None else _EARLIEST


def _down(direction: WorkflowRunOrderByDirection | str | None) -> bool:
    return direction is not None and WorkflowRunOrderByDirection(direction) is WorkflowRunOrderByDirection.DESC
