"""What the declaring decorators take by keyword, named once: `@dispatcher.task(retries=3)`, `@workflow.task(parents=[first])`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

if TYPE_CHECKING:
    from handlers_sdk.conditions import Condition, OrGroup
    from handlers_sdk.crons import CronTrigger
    from handlers_sdk.durations import Duration
    from handlers_sdk.filters import DefaultFilter
    from handlers_sdk.flow import ConcurrencyForm, RateLimit
    from handlers_sdk.placement import LabelsForm, StickyStrategy
    from handlers_sdk.retries import RetryForm
    from handlers_sdk.workflow import Task


class AttemptOptions(TypedDict, total=False):
    """How a task waits, runs and is tried again. What is left out, or None, is as the workflow's `task_defaults` say.

    `schedule_timeout` (5 minutes) bounds the wait in the queue, `execution_timeout` (60 seconds) each attempt. A failed attempt is
    retried `retries` times (0), after `backoff_factor`^n seconds, at most `backoff_max_seconds`; without a factor at once. `retry` says
    the same as a number, or as {"attempts": 3, "delay": 5000} in milliseconds, also with "backoff": "exponential" and "jitter": True.

    `concurrency` (a number, or ConcurrencyExpressions) limits how many of a group run at a time. `desired_worker_labels` say which
    endpoints may run it, or should; `slot_cost` (1) how many slots it fills there.
    """

    schedule_timeout: Duration | None
    execution_timeout: Duration | None
    retries: int | None
    backoff_factor: float | None
    backoff_max_seconds: int | None
    retry: RetryForm | None
    concurrency: ConcurrencyForm
    desired_worker_labels: LabelsForm
    slot_cost: int


class TaskOptions(AttemptOptions, total=False):
    """Those of a task that is run by itself: `rate_limits` say how many start in a window of time."""

    rate_limits: Sequence[RateLimit] | None


class NodeOptions(TaskOptions, total=False):
    """Those of a task of a graph.

    It starts when its `parents` (tasks or their names) have succeeded, or some were skipped, and `wait_for` holds. It is skipped when
    all parents were, or `skip_if` holds first; cancelled when a parent failed or was cancelled, or `cancel_if` holds first.
    """

    parents: Sequence[Task[Any, Any] | str] | None
    wait_for: Sequence[Condition | OrGroup] | None
    skip_if: Sequence[Condition | OrGroup] | None
    cancel_if: Sequence[Condition | OrGroup] | None


class WorkflowOptions(TypedDict, total=False):
    """Those of a workflow as a whole.

    `on_events` are the event keys that start a run, `*` standing for any run of characters. `default_priority` is 1 (it unless given) to
    3. `version` goes into the version of the endpoint. With `default_filters` only events in the scope of one, for which it holds, start
    a run, one for each that does. `on_crons` are cron expressions in UTC, or CronTriggers, at whose ticks a run starts. With `sticky` all
    tasks of a run go to the endpoint it began at. `default_additional_metadata` is metadata of every run; what one is started with wins.
    """

    description: str | None
    on_events: Sequence[str] | None
    version: str | None
    default_priority: int
    default_filters: Sequence[DefaultFilter] | None
    on_crons: Sequence[str | CronTrigger] | None
    sticky: StickyStrategy | None
    default_additional_metadata: Mapping[str, Any] | None


class StandaloneOptions(TaskOptions, WorkflowOptions, total=False):
    """Those of a task that is its own workflow."""


class BatchOptions(AttemptOptions, WorkflowOptions, total=False):
    """Those of a task whose handler serves many runs in one call."""


K = TypeVar("K")


def check_options(decorator: str, options: Mapping[str, Any], *kinds: type) -> None:
    """TypeError for a name that is in none of these kinds of options."""
    for name in options:
        if not any(name in _names(kind) for kind in kinds):
            raise TypeError(f"{decorator}() got an unexpected keyword argument {name!r}")


def part(options: Mapping[str, Any], kind: type[K]) -> K:
    """Those of the options that are of this kind."""
    return cast("K", {name: value for name, value in options.items() if name in _names(kind)})


def _names(kind: type) -> frozenset[str]:
    names: frozenset[str] = kind.__optional_keys__  # type: ignore[attr-defined]  # every TypedDict has it
    return names
