"""Handlers: task endpoints for the dispatcher, and the client that starts their runs.

Names are imported when they are first used: whoever needs only `wire` and `signing`, as the dispatcher does, loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from handlers_sdk.asgi import App
    from handlers_sdk.bulk import BulkAction, BulkCancelReplayOpts, RunFilter
    from handlers_sdk.conditions import OrGroup, ParentCondition, SleepCondition, UserEventCondition, or_
    from handlers_sdk.config import ClientConfig
    from handlers_sdk.context import Accepted, Context, Worker, WorkerInfo
    from handlers_sdk.crons import CronTrigger, CronWorkflows, CronWorkflowsList
    from handlers_sdk.definitions import Priority, TaskDefaults
    from handlers_sdk.depends import Depends
    from handlers_sdk.dispatcher import Dispatcher
    from handlers_sdk.durable import DurableContext, SleepResult
    from handlers_sdk.durations import Duration
    from handlers_sdk.errors import (
        ApiError,
        ApiUnreachableError,
        BulkTriggerError,
        Cancelled,
        CancelledRunError,
        ConfigError,
        DispatcherError,
        EventsLostError,
        FailedTaskRunExceptionGroup,
        IdempotencyCollisionError,
        IllegalTaskOutputError,
        Interruption,
        InvalidInputError,
        LifespanSetupError,
        LostOwnership,
        NonRetryableError,
        NonRetryableException,
        NotDeterministicError,
        RetryableException,
        ScopeClosedError,
        StepFailedError,
        Suspended,
        TaskOutputError,
        TaskRunError,
    )
    from handlers_sdk.events import BulkPushEventWithMetadata, Event, EventRun, V1Event, V1EventList
    from handlers_sdk.filters import DefaultFilter, V1Filter, V1FilterList, V1UpdateFilterRequest
    from handlers_sdk.flow import ConcurrencyExpression, ConcurrencyLimitStrategy, RateLimit, RateLimitDuration, V1RateLimit
    from handlers_sdk.gathering import Broadcast
    from handlers_sdk.handlers import Handlers
    from handlers_sdk.log_lines import V1LogLine, V1LogLineList
    from handlers_sdk.logs import TaskLogHandler
    from handlers_sdk.metrics import TaskMetrics, TaskStat
    from handlers_sdk.ops import Op
    from handlers_sdk.outcomes import Response
    from handlers_sdk.placement import DesiredWorkerLabel, StickyStrategy, WorkerLabelComparator
    from handlers_sdk.refs import WorkflowRunRef
    from handlers_sdk.resources import CronWorkflowsOrderByField, ScheduledWorkflowsOrderByField, WorkflowRunOrderByDirection
    from handlers_sdk.retries import Retry
    from handlers_sdk.runnables import Runnable
    from handlers_sdk.runs import Attempt, Run, RunList, TaskRun, V1TaskStatus
    from handlers_sdk.scheduled import (
        ScheduledRunStatus,
        ScheduledWorkflows,
        ScheduledWorkflowsBulkResponse,
        ScheduledWorkflowsBulkUpdateItem,
        ScheduledWorkflowsList,
    )
    from handlers_sdk.schemas import EmptyModel
    from handlers_sdk.state import Settled, StateContext
    from handlers_sdk.timed import ScheduleTriggerWorkflowOptions
    from handlers_sdk.triggers import TriggerWorkflowOptions, WorkflowRunTriggerConfig
    from handlers_sdk.webhooks import (
        V1Webhook,
        V1WebhookAPIKeyAuth,
        V1WebhookBasicAuth,
        V1WebhookHMACAlgorithm,
        V1WebhookHMACAuth,
        V1WebhookHMACEncoding,
        V1WebhookList,
        V1WebhookSecret,
        V1WebhookSourceName,
    )
    from handlers_sdk.workflow import Standalone, Task, Workflow
    from handlers_sdk.workflows import RegisteredWorkflow, WorkflowList, WorkflowVersion

_HOMES: Final = {
    "asgi": ("App",),
    "bulk": ("BulkAction", "BulkCancelReplayOpts", "RunFilter"),
    "conditions": ("OrGroup", "ParentCondition", "SleepCondition", "UserEventCondition", "or_"),
    "config": ("ClientConfig",),
    "context": ("Accepted", "Context", "Worker", "WorkerInfo"),
    "crons": ("CronTrigger", "CronWorkflows", "CronWorkflowsList"),
    "definitions": ("Priority", "TaskDefaults"),
    "depends": ("Depends",),
    "dispatcher": ("Dispatcher",),
    "durations": ("Duration",),
    "durable": ("DurableContext", "SleepResult"),
    "state": ("Settled", "StateContext"),
    "ops": ("Op",),
    "errors": (
        "ApiError",
        "ApiUnreachableError",
        "BulkTriggerError",
        "Cancelled",
        "CancelledRunError",
        "ConfigError",
        "DispatcherError",
        "EventsLostError",
        "FailedTaskRunExceptionGroup",
        "IdempotencyCollisionError",
        "IllegalTaskOutputError",
        "Interruption",
        "InvalidInputError",
        "LifespanSetupError",
        "LostOwnership",
        "NonRetryableError",
        "NonRetryableException",
        "NotDeterministicError",
        "RetryableException",
        "ScopeClosedError",
        "StepFailedError",
        "Suspended",
        "TaskOutputError",
        "TaskRunError",
    ),
    "events": ("BulkPushEventWithMetadata", "Event", "EventRun", "V1Event", "V1EventList"),
    "filters": ("DefaultFilter", "V1Filter", "V1FilterList", "V1UpdateFilterRequest"),
    "flow": ("ConcurrencyExpression", "ConcurrencyLimitStrategy", "RateLimit", "RateLimitDuration", "V1RateLimit"),
    "handlers": ("Handlers",),
    "metrics": ("TaskMetrics", "TaskStat"),
    "log_lines": ("V1LogLine", "V1LogLineList"),
    "logs": ("TaskLogHandler",),
    "gathering": ("Broadcast",),
    "placement": ("DesiredWorkerLabel", "StickyStrategy", "WorkerLabelComparator"),
    "outcomes": ("Response",),
    "refs": ("WorkflowRunRef",),
    "resources": ("CronWorkflowsOrderByField", "ScheduledWorkflowsOrderByField", "WorkflowRunOrderByDirection"),
    "retries": ("Retry",),
    "runnables": ("Runnable",),
    "runs": ("Attempt", "Run", "RunList", "TaskRun", "V1TaskStatus"),
    "scheduled": (
        "ScheduledRunStatus",
        "ScheduledWorkflows",
        "ScheduledWorkflowsBulkResponse",
        "ScheduledWorkflowsBulkUpdateItem",
        "ScheduledWorkflowsList",
    ),
    "schemas": ("EmptyModel",),
    "timed": ("ScheduleTriggerWorkflowOptions",),
    "triggers": ("TriggerWorkflowOptions", "WorkflowRunTriggerConfig"),
    "webhooks": (
        "V1Webhook",
        "V1WebhookAPIKeyAuth",
        "V1WebhookBasicAuth",
        "V1WebhookHMACAlgorithm",
        "V1WebhookHMACAuth",
        "V1WebhookHMACEncoding",
        "V1WebhookList",
        "V1WebhookSecret",
        "V1WebhookSourceName",
    ),
    "workflow": ("Standalone", "Task", "Workflow"),
    "workflows": ("RegisteredWorkflow", "WorkflowList", "WorkflowVersion"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Accepted",
    "ApiError",
    "ApiUnreachableError",
    "App",
    "Attempt",
    "Broadcast",
    "BulkAction",
    "BulkCancelReplayOpts",
    "BulkPushEventWithMetadata",
    "BulkTriggerError",
    "Cancelled",
    "CancelledRunError",
    "ClientConfig",
    "ConcurrencyExpression",
    "ConcurrencyLimitStrategy",
    "ConfigError",
    "Context",
    "CronTrigger",
    "CronWorkflows",
    "CronWorkflowsList",
    "CronWorkflowsOrderByField",
    "DefaultFilter",
    "Depends",
    "DesiredWorkerLabel",
    "Dispatcher",
    "DispatcherError",
    "DurableContext",
    "Duration",
    "EmptyModel",
    "Event",
    "EventRun",
    "EventsLostError",
    "FailedTaskRunExceptionGroup",
    "Handlers",
    "IdempotencyCollisionError",
    "IllegalTaskOutputError",
    "Interruption",
    "InvalidInputError",
    "LifespanSetupError",
    "LostOwnership",
    "NonRetryableError",
    "NonRetryableException",
    "NotDeterministicError",
    "Op",
    "OrGroup",
    "ParentCondition",
    "Priority",
    "RateLimit",
    "RateLimitDuration",
    "RegisteredWorkflow",
    "Response",
    "Retry",
    "RetryableException",
    "Run",
    "RunFilter",
    "RunList",
    "Runnable",
    "ScheduleTriggerWorkflowOptions",
    "ScheduledRunStatus",
    "ScheduledWorkflows",
    "ScheduledWorkflowsBulkResponse",
    "ScheduledWorkflowsBulkUpdateItem",
    "ScheduledWorkflowsList",
    "ScheduledWorkflowsOrderByField",
    "ScopeClosedError",
    "Settled",
    "SleepCondition",
    "SleepResult",
    "Standalone",
    "StateContext",
    "StepFailedError",
    "StickyStrategy",
    "Suspended",
    "Task",
    "TaskDefaults",
    "TaskLogHandler",
    "TaskMetrics",
    "TaskOutputError",
    "TaskRun",
    "TaskRunError",
    "TaskStat",
    "TriggerWorkflowOptions",
    "UserEventCondition",
    "V1Event",
    "V1EventList",
    "V1Filter",
    "V1FilterList",
    "V1LogLine",
    "V1LogLineList",
    "V1RateLimit",
    "V1TaskStatus",
    "V1UpdateFilterRequest",
    "V1Webhook",
    "V1WebhookAPIKeyAuth",
    "V1WebhookBasicAuth",
    "V1WebhookHMACAlgorithm",
    "V1WebhookHMACAuth",
    "V1WebhookHMACEncoding",
    "V1WebhookList",
    "V1WebhookSecret",
    "V1WebhookSourceName",
    "Worker",
    "WorkerInfo",
    "WorkerLabelComparator",
    "Workflow",
    "WorkflowList",
    "WorkflowRunOrderByDirection",
    "WorkflowRunRef",
    "WorkflowRunTriggerConfig",
    "WorkflowVersion",
    "or_",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'handlers_sdk' has no attribute {name!r}")
    return getattr(import_module(f"handlers_sdk.{home}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
