"""What is declared about a workflow and its task, and how the manifest says it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from enum import IntEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from handlers_sdk import wire
from handlers_sdk.crons import CronTrigger, cron_entries
from handlers_sdk.durations import Duration, format_duration, parse_duration
from handlers_sdk.errors import ConfigError
from handlers_sdk.filters import DefaultFilter
from handlers_sdk.flow import UNLIMITED, ConcurrencyExpression, Limits
from handlers_sdk.function import HandlerFunction
from handlers_sdk.graph import Edges
from handlers_sdk.placement import ANYWHERE, Placement, StickyStrategy
from handlers_sdk.retries import Retry, RetryForm

if TYPE_CHECKING:
    from handlers_sdk.gathering import Gatherer
    from handlers_sdk.options import TaskOptions

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
EVENT_KEY: Final = re.compile(r"[^\x00-\x1f\x7f]{1,500}")
SCHEDULE_TIMEOUT: Final = timedelta(minutes=5)
EXECUTION_TIMEOUT: Final = timedelta(seconds=60)


class Priority(IntEnum):
    """How soon a run is picked among runs of its workflow."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """Settings for the tasks of a workflow that do not name their own."""

    schedule_timeout: Duration = SCHEDULE_TIMEOUT
    execution_timeout: Duration = EXECUTION_TIMEOUT
    retries: int = 0
    backoff_factor: float | None = None
    backoff_max_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How one task is queued, run and retried. ConfigError for a value that cannot be meant."""

    schedule_timeout: timedelta
    execution_timeout: timedelta
    retries: int
    backoff_factor: float | None
    backoff_max_seconds: float | None
    retry: Retry | None = None
    limits: Limits = UNLIMITED
    placement: Placement = ANYWHERE

    @classmethod
    def of(cls, defaults: TaskDefaults, options: TaskOptions) -> TaskSettings:
        """Settings as given, the defaults where None was. `retry` says all there is to say of retries."""
        given = {name: value for name, value in options.items() if value is not None}
        chosen: dict[str, Any] = {one.name: given.get(one.name, getattr(defaults, one.name)) for one in fields(defaults)}
        retry = options.get("retry")
        if retry is not None:
            chosen |= cls._retried(retry, options)
        try:
            chosen |= {name: parse_duration(chosen[name]) for name in ("schedule_timeout", "execution_timeout")}
        except ValueError as error:
            raise ConfigError(str(error)) from None
        limits = Limits.of(options.get("concurrency"), options.get("rate_limits"))
        return cls(**chosen, limits=limits, placement=Placement.of(options.get("desired_worker_labels"), options.get("slot_cost", 1)))

    @staticmethod
    def _retried(retry: RetryForm, options: TaskOptions) -> dict[str, Any]:
        if options.get("retries") or options.get("backoff_factor") or options.get("backoff_max_seconds"):
            raise ConfigError("give either retry, or retries with backoff_factor and backoff_max_seconds")
        given = Retry.of(retry)
        own = {"backoff_factor": given.backoff_factor, "backoff_max_seconds": given.backoff_max_seconds}
        return {"retries": given.attempts, **own, "retry": given}

    def __post_init__(self) -> None:
        if self.schedule_timeout <= timedelta(0) or self.execution_timeout <= timedelta(0):
            raise ConfigError("schedule_timeout and execution_timeout must be above zero")
        if self.retries < 0:
            raise ConfigError(f"retries={self.retries} must not be negative")
        if self.backoff_factor is not None and self.backoff_factor < 1:
            raise ConfigError(f"backoff_factor={self.backoff_factor} must be at least 1, or waits would shrink")
        if self.backoff_max_seconds is not None and self.backoff_max_seconds <= 0:
            raise ConfigError(f"backoff_max_seconds={self.backoff_max_seconds} must be above zero")


@dataclass(frozen=True, slots=True)
class WorkflowSettings:
    """What is declared about a workflow as a whole; `name` and `on_events` are as the dispatcher knows them."""

    name: str
    description: str | None = None
    on_events: Sequence[str] = ()
    version: str | None = None
    default_priority: int = Priority.LOW
    default_filters: Sequence[DefaultFilter] = ()
    on_crons: Sequence[str | CronTrigger] = ()
    concurrency: Sequence[ConcurrencyExpression] = ()
    sticky: StickyStrategy | None = None
    default_metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_priority(self.default_priority)
        cron_entries(self.on_crons)
        for key in self.on_events:
            if not EVENT_KEY.fullmatch(key):
                raise ConfigError(
                    f"on_events: {key!r} is not an event key: 1 to 500 characters, no control characters; `*` stands for any run"
                )


Role = Literal["task", "on_failure", "on_success"]


@dataclass(frozen=True, slots=True)
class Durability:
    """How a durable task is run: `mode` "replay" or "state", `pin` "task" or "latest", `checkpoint` "step" or "turn"."""

    mode: Literal["replay", "state"] = "replay"
    pin: Literal["task", "latest"] = "task"
    checkpoint: Literal["step", "turn"] = "step"

    def __post_init__(self) -> None:
        for name, allowed in (("mode", ("replay", "state")), ("pin", ("task", "latest")), ("checkpoint", ("step", "turn"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not {' or '.join(map(repr, allowed))}")


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """One handler: the workflow it is a task of, its settings and its function. A standalone task is its own workflow.

    `rules` are its conditions as the manifest writes them.
    """

    workflow: WorkflowSettings
    task_name: str
    settings: TaskSettings
    function: HandlerFunction = field(repr=False)
    standalone: bool = True
    role: Role = "task"
    edges: Edges = field(default_factory=Edges)
    rules: Mapping[str, list[wire.RuleEntry]] = field(default_factory=dict)
    durability: Durability | None = None
    gatherer: Gatherer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.durability is not None and not self.function.is_async:
            raise ConfigError(f"durable task {self.task_name} must be an async function: it is put aside wherever it awaits")

    @property
    def delivered_as(self) -> str:
        """The `name` its attempts arrive under."""
        return self.workflow.name if self.standalone else f"{self.workflow.name}:{self.task_name}"

    def entry(self) -> wire.TaskEntry:
        """What the manifest says of the task; members that say nothing are left out."""
        settings = self.settings
        task: wire.TaskEntry = {
            "name": self.task_name,
            "body": "v1",
            "retries": settings.retries,
            "execution_timeout": format_duration(settings.execution_timeout),
            "schedule_timeout": format_duration(settings.schedule_timeout),
        }
        if settings.backoff_factor is not None:
            task["backoff_factor"] = settings.backoff_factor
        if settings.backoff_max_seconds is not None:
            task["backoff_max_seconds"] = settings.backoff_max_seconds
        if (accepts := self.function.input.schema()) is not None:
            task["input_schema"] = accepts
        if (gives := self.function.output.schema()) is not None:
            task["output_schema"] = gives
        if self.edges.parents:
            task["parents"] = list(self.edges.parents)
        if self.gatherer is not None:
            task = cast("wire.TaskEntry", {**task, **self.gatherer.batching.entry()})
        if self.durability is not None:
            task |= {"kind": "durable", "mode": self.durability.mode, "pin": self.durability.pin}
        return cast("wire.TaskEntry", {**task, **settings.limits.entry(), **settings.placement.entry(), **self.rules})


def manifest_entries(definitions: Iterable[TaskDefinition]) -> list[wire.HandlerEntry]:
    """The manifest's handlers: one entry a workflow, whose tasks follow each other in `definitions`."""
    groups = [list(tasks) for _, tasks in groupby(definitions, key=lambda one: id(one.workflow))]
    return [_workflow_entry(tasks[0].workflow, tasks) for tasks in groups]


def _workflow_entry(workflow: WorkflowSettings, tasks: Sequence[TaskDefinition]) -> wire.HandlerEntry:
    entry: wire.HandlerEntry = {
        "name": workflow.name,
        "on_events": list(workflow.on_events),
        "default_priority": int(workflow.default_priority),
    }
    if workflow.description:
        entry["description"] = workflow.description
    if workflow.on_crons:
        entry["on_crons"] = cron_entries(workflow.on_crons)
    if workflow.concurrency:
        entry["concurrency"] = [one.entry() for one in workflow.concurrency]
    if workflow.sticky is not None:
        entry["sticky"] = str(workflow.sticky)
    if workflow.default_filters:
        entry["default_filters"] = [one.entry() for one in workflow.default_filters]
    if workflow.default_metadata:
        entry["default_metadata"] = dict(workflow.default_metadata)
    if tasks[0].standalone:
        return {**tasks[0].entry(), **entry, "kind": "task" if tasks[0].durability is None else "durable"}
    last = {one.role: one.entry() for one in tasks if one.role != "task"}
    own = [one.entry() for one in tasks if one.role == "task"]
    return cast("wire.HandlerEntry", {**entry, "kind": "workflow", "tasks": own, **last})


def check_name(name: str) -> None:
    """ConfigError for what cannot be the name of a workflow or a task."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a name: letters, digits, `_ . : -`, at most 200 characters, the first a letter, digit or `_`")


def check_priority(priority: int) -> None:
    """ConfigError for a priority that is not 1, 2 or 3."""
    if priority not in (1, 2, 3):
        raise ConfigError(f"priority={priority} is not 1 (low), 2 (medium) or 3 (high)")
