"""What can be run later: the methods that schedule a run or make a cron of a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from handlers_sdk.api import Api
from handlers_sdk.crons import CronWorkflows, Missed, create_cron, cron_body
from handlers_sdk.definitions import check_priority
from handlers_sdk.portal import PORTAL
from handlers_sdk.scheduled import ScheduledWorkflows, create_schedule, schedule_body
from handlers_sdk.schemas import Codec, parse_json

I = TypeVar("I")  # noqa: E741 - the input


@dataclass(frozen=True, slots=True)
class ScheduleTriggerWorkflowOptions:
    """How a scheduled run is started, beside its input."""

    additional_metadata: Mapping[str, Any] | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        if self.priority is not None:
            check_priority(self.priority)


class Timed(Generic[I]):
    """Runs of one workflow at other times than now."""

    _api: Api
    _name: str
    _input: Codec

    def schedule(
        self,
        run_at: datetime | timedelta,
        input: I | None = None,
        options: ScheduleTriggerWorkflowOptions | None = None,
        *,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> ScheduledWorkflows:
        """Schedule a run, at a moment (local time where it has no zone) or so long from now. InvalidInputError before anything is sent."""
        return PORTAL.call(create_schedule(self._api, self._name, self._scheduled(run_at, input, options, additional_metadata, priority)))

    async def aio_schedule(
        self,
        run_at: datetime | timedelta,
        input: I | None = None,
        options: ScheduleTriggerWorkflowOptions | None = None,
        *,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> ScheduledWorkflows:
        """Schedule a run, at a moment (local time where it has no zone) or so long from now. InvalidInputError before anything is sent."""
        body = self._scheduled(run_at, input, options, additional_metadata, priority)
        return await PORTAL.aio_call(create_schedule(self._api, self._name, body))

    def create_cron(
        self,
        cron_name: str,
        expression: str,
        input: I | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        *,
        timezone: str | None = None,
        missed: Missed | None = None,
    ) -> CronWorkflows:
        """Make a cron of this workflow; `timezone` is an IANA name, UTC unless given. InvalidInputError before anything is sent."""
        body = cron_body(cron_name, expression, self._given(input), additional_metadata, priority, timezone, missed)
        return PORTAL.call(create_cron(self._api, self._name, body))

    async def aio_create_cron(
        self,
        cron_name: str,
        expression: str,
        input: I | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        *,
        timezone: str | None = None,
        missed: Missed | None = None,
    ) -> CronWorkflows:
        """Make a cron of this workflow; `timezone` is an IANA name, UTC unless given. InvalidInputError before anything is sent."""
        body = cron_body(cron_name, expression, self._given(input), additional_metadata, priority, timezone, missed)
        return await PORTAL.aio_call(create_cron(self._api, self._name, body))

    def _scheduled(
        self,
        run_at: datetime | timedelta,
        input: I | None,
        options: ScheduleTriggerWorkflowOptions | None,
        metadata: Mapping[str, Any] | None,
        priority: int | None,
    ) -> dict[str, Any]:
        chosen = options or ScheduleTriggerWorkflowOptions()
        if priority is not None:
            check_priority(priority)
        return schedule_body(run_at, self._given(input), metadata or chosen.additional_metadata, priority or chosen.priority)

    def _given(self, input: I | None) -> Any:
        """The input as plain values, checked as that of a run is."""
        return parse_json(self._input.dump({} if input is None else input, "input"))
