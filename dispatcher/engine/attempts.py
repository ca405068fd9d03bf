"""The life of an attempt: what an answer, a lost lease, an expiry or a cancel does to its task.

Theory of operation. A task is `scheduled` (claimable later), `queued` (claimable) or `running` (attempt number `epoch` holds
it). Everything that can happen to it enters `step` as an event and leaves as one Change, guarded by (epoch, state): whoever
applies it late finds nothing to change. Two budgets are kept apart: what the handler did counts against its own `retries`;
what the network, the endpoint or a dispatcher did never does, and is bounded by count (`lost`) or by time (`spared`).

A durable task has turns where others have one attempt. Between them it is `waiting`, or `blocked` when its code no longer fits its log or
its version is gone: neither costs it anything, and nothing but a cancel ends it. Its retries count from where its log last grew. A turn
whose outcome will never be heard of is sent again, soon and then less often: what its log has is not done twice, and whoever is still at
the old one can record nothing more. A cancel that finds it between turns gives it one more, to clean up in, and so does one whose turn
broke off before it could give way; it ends cancelled whatever comes of that.

Source of the rules: handlers_sdk/PROTOCOL.md for the classes of answers; the backoff is min(cap, factor ** n) seconds without jitter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, assert_never

from dispatcher.engine.answers import (
    Accepted,
    Again,
    Answer,
    Busy,
    Continued,
    EndpointBroken,
    EndpointGone,
    Failed,
    LocalFault,
    Lost,
    Mismatched,
    PlatformKilled,
    Pushback,
    Referred,
    Succeeded,
    Suspended,
    TimedOut,
    Turned,
    Unreachable,
)

Sparer = Literal["pushback", "endpoint"]
"""What keeps a task waiting through no fault of its own: an endpoint that asks for less, or one that is broken. Each has its own limit."""

State = Literal["scheduled", "queued", "running", "waiting", "blocked", "gated", "settled"]
Final = Literal["succeeded", "failed", "cancelled"]
AttemptStatus = Literal[
    "succeeded", "failed", "timed_out", "cancelled", "lost", "pushed_back", "busy", "endpoint_broken", "unreachable", "not_sent",
    "suspended", "blocked",
]  # fmt: skip

RETRY_PRIORITY = 4  # retries go before new work, whose priority is 1 to 3
BACKOFF_CAP = timedelta(days=1)
_SPARED_FIRST = timedelta(seconds=1)
_SPARED_CAP = timedelta(seconds=30)
_RESENT_CAP = timedelta(seconds=30)
_CLEANUP_WAITS = timedelta(minutes=1)  # for a slot, at least, and for an endpoint that takes it


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers a task is retried and bounded by: its workflow's, completed by the server's. `cleanup` is how long the turn may take in
    which a durable one cleans up after it was cancelled.
    """

    retries: int
    backoff_factor: float | None
    backoff_max_seconds: float | None
    schedule_timeout: timedelta
    idempotent: bool
    infra_retries: int
    misconfig_ttl: timedelta
    pushback_ttl: timedelta
    max_execution_timeout: timedelta
    cleanup: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class TaskState:
    """What the rules need to know of a task. `epoch` is the number of its latest attempt; 0 before the first.

    Of a `durable` one: whether it has `begun`, so that there is something to keep, and whether its turn is the one it cleans up in.
    """

    state: State
    epoch: int
    priority: int
    app_retries: int
    infra_retries: int
    spared_since: datetime | None
    spared_by: Sparer | None
    deadline: datetime | None
    lease_until: datetime | None
    lease: timedelta | None
    cancelling: bool
    begun: bool = False
    cleanup: bool = False
    durable: bool = False


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """The attempt's own lease ran out, or its dispatcher died."""


@dataclass(frozen=True, slots=True)
class ScheduleExpired:
    """The task waited in the queue longer than its schedule timeout."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked for the task to end. `grace` is how long a running attempt that can hear of it may take."""

    reason: str
    grace: timedelta


@dataclass(frozen=True, slots=True)
class CancelEnforced:
    """The grace is over, or the attempt's connection was closed for the cancel."""

    reason: str


Event = Answer | LeaseEnded | ScheduleExpired | CancelRequested | CancelEnforced

_NOT_CLEANED: dict[type[Event], AttemptStatus] = {
    Unreachable: "unreachable",
    Pushback: "pushed_back",
    Busy: "busy",
    EndpointBroken: "endpoint_broken",
    EndpointGone: "endpoint_broken",
    LocalFault: "not_sent",
    Lost: "lost",
    LeaseEnded: "lost",
}
_UNHEARD = (*_NOT_CLEANED, TimedOut, PlatformKilled)  # turns that had no say in what is to be undone


@dataclass(frozen=True, slots=True)
class Error:
    """Why an attempt or a task ended as it did. `detail` is JSON text as the endpoint reported it."""

    code: str
    message: str
    detail: bytes | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The task is over. `attempt` is how its running attempt ended, None if none was running."""

    status: Final
    attempt: AttemptStatus | None
    output: bytes | None = None
    output_type: str | None = None
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class Requeue:
    """The attempt is over, the task is not: claimable again at `due_at`."""

    attempt: AttemptStatus
    error: Error
    due_at: datetime
    priority: int
    app_retries: int
    infra_retries: int
    spared_since: datetime | None
    spared_by: Sparer | None
    schedule_deadline: datetime | None


@dataclass(frozen=True, slots=True)
class Hold:
    """The attempt goes on without its dispatcher, until a callback or the end of its own lease.

    `lease` is what a heartbeat renews it by; zero where nobody knows whether the handler is still there.
    """

    lease_until: datetime
    lease: timedelta
    deadline: datetime


@dataclass(frozen=True, slots=True)
class MarkCancelling:
    """The running attempt is asked to end by `cancel_at`."""

    cancel_at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Yield:
    """A durable task's turn is over, the task is not: it waits for `wake`, is queued again, or is blocked for the reason in `error`.

    `input` begins a new log. `memory` is kept for the next turn; `whole` asks for all of the log in it.
    """

    to: Literal["waiting", "queued", "blocked"]
    attempt: AttemptStatus
    wake: bytes | None = None
    memory: bytes | None = None
    input: bytes | None = None
    error: Error | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class CleanUp:
    """A durable task gets one more turn to clean up in, which takes at most `grace` and has to begin before `before`. `attempt` is what
    became of the turn that was under way, if one was.
    """

    reason: str
    grace: timedelta
    before: datetime
    attempt: AttemptStatus = "suspended"


Change = Finish | Requeue | Hold | MarkCancelling | Yield | CleanUp


@dataclass(frozen=True, slots=True)
class Refused:
    """The event does not fit the state: late, duplicate, or none of this task's business."""

    reason: str


def backoff(retry: int, factor: float | None, cap_seconds: float | None) -> timedelta:
    """Delay before app retry number `retry` (1, 2, …): min(cap, factor ** retry) seconds, none without a factor.

    Compared in log space, because factor ** retry overflows long before retry reaches its limit.
    """
    if factor is None:
        return timedelta(0)
    cap = cap_seconds if cap_seconds is not None else BACKOFF_CAP.total_seconds()
    if retry * math.log(factor) >= math.log(cap):
        return timedelta(seconds=cap)
    return timedelta(seconds=factor**retry)


def spared_backoff(since: datetime, now: datetime) -> timedelta:
    """Delay after an attempt that was nobody's fault: as long again as it has been going on, 1 s to 30 s."""
    return min(max(now - since, _SPARED_FIRST), _SPARED_CAP)


def step(task: TaskState, policy: Policy, event: Event, now: datetime) -> Change | Refused:
    """What `event` does to `task`. Total: every pair gives a Change or Refused."""
    if isinstance(event, CancelRequested):
        return _cancel(task, policy, event, now)
    if isinstance(event, ScheduleExpired):
        return _expire(task)
    if task.cleanup and task.state == "running" and not isinstance(event, Accepted):
        return _cleaned_up(task, policy, event, now)
    if task.state != "running":
        return Refused(f"the task is {task.state}, no attempt of it is running")
    if task.begun and (isinstance(event, CancelEnforced) or (task.cancelling and isinstance(event, _UNHEARD))):
        return replace(_clean_up(policy, "cancelled", now), attempt="cancelled")
    if isinstance(event, CancelEnforced):
        return Finish("cancelled", "cancelled", error=Error("cancelled", event.reason))
    if isinstance(event, LeaseEnded):
        return _lease_ended(task, policy, now)
    if task.cancelling and isinstance(event, Suspended | Again):
        return _clean_up(policy, "cancelled", now)
    if task.cancelling and not isinstance(event, Accepted | Lost):
        return _late(event)
    return _answered(task, policy, event, now)


def _cancel(task: TaskState, policy: Policy, event: CancelRequested, now: datetime) -> Change | Refused:
    if task.state == "settled" or task.cleanup or (task.cancelling and task.state == "running"):
        return Refused("already being cancelled, or over")
    if task.begun and task.state in ("waiting", "queued", "scheduled", "gated"):
        return _clean_up(policy, event.reason, now)
    if task.state != "running":
        return Finish("cancelled", None, error=Error("cancelled", event.reason))
    return MarkCancelling(now + event.grace, event.reason)


def _clean_up(policy: Policy, reason: str, now: datetime) -> CleanUp:
    return CleanUp(reason, policy.cleanup, now + max(policy.cleanup, _CLEANUP_WAITS))


def _cleaned_up(task: TaskState, policy: Policy, event: Event, now: datetime) -> Change:
    """Whatever a turn to clean up in answers is the end. One that nobody took, or that was cut off, is tried again for a while."""
    since = task.spared_since if task.spared_since is not None else now
    limit = since + max(policy.cleanup, _CLEANUP_WAITS)
    attempt = _NOT_CLEANED.get(type(event))
    if attempt is None or now >= limit:
        return Finish("cancelled", "cancelled", error=Error("cancelled", "Cancelled, and cleaned up after."))
    error = Error("cleanup_interrupted", getattr(event, "message", "The attempt was never heard of again."))
    due_at = now + spared_backoff(since, now)
    return Requeue(attempt, error, due_at, task.priority, task.app_retries, task.infra_retries, since, "endpoint", limit)


def _expire(task: TaskState) -> Change | Refused:
    if task.state not in ("queued", "scheduled", "gated"):
        return Refused("claimed in time")
    if task.cleanup:
        return Finish("cancelled", None, error=Error("cancelled", "Cancelled; no endpoint took it to clean up after it."))
    return Finish("cancelled", None, error=Error("schedule_timeout", "No endpoint took the task within its schedule timeout."))


def _late(event: Answer) -> Finish:
    """An answer that comes while the task is being cancelled: the task ends cancelled, the attempt says what came."""
    match event:
        case Succeeded():
            message = "Cancelled; the handler finished all the same and its result was dropped."
        case _:
            message = "Cancelled while running."
    return Finish("cancelled", "cancelled", error=Error("cancelled", message))


def _answered(task: TaskState, policy: Policy, answer: Answer, now: datetime) -> Change:
    match answer:
        case Succeeded(output=output, content_type=kind):
            return Finish("succeeded", "succeeded", output=output, output_type=kind)
        case Failed():
            return _failed(task, policy, answer, now)
        case Referred(reference=reference):
            return _failed(task, policy, Failed("unknown_ref", f"the output {reference.id} was never fetched"), now)
        case TimedOut(message=message):
            return _app_retry(task, policy, "timed_out", Error("timed_out", message), None, now)
        case PlatformKilled(message=message):
            return _app_retry(task, policy, "timed_out", Error("platform_killed", message), timedelta(0), now)
        case Accepted(lease=lease):
            return _accepted(task, policy, lease, now)
        case Lost(message=message):
            return _lost_connection(task, policy, message, now)
        case Pushback(retry_after=after, message=message):
            return _spare(task, policy, "pushed_back", Error("pushed_back", message), after, "pushback", now)
        case Busy(retry_after=after, message=message):
            return _spare(task, policy, "busy", Error("busy", message), after, "pushback", now)
        case EndpointBroken(code=code, message=message):
            return _spare(task, policy, "endpoint_broken", Error(code, message), None, "endpoint", now)
        case EndpointGone(message=message):
            return _spare(task, policy, "endpoint_broken", Error("endpoint_gone", message), None, "endpoint", now)
        case Unreachable(code=code, message=message):
            return _spare(task, policy, "unreachable", Error(code, message), None, "endpoint", now)
        case LocalFault(code=code, message=message):
            return _spare(task, policy, "not_sent", Error(code, message), _SPARED_FIRST, "endpoint", now)
        case Turned(then=then):
            return _answered(task, policy, then, now)
        case Suspended() | Again() | Continued() | Mismatched():
            return _turned(task, policy, answer, now)
        case _:
            assert_never(answer)


def _turned(task: TaskState, policy: Policy, answer: Suspended | Again | Continued | Mismatched, now: datetime) -> Change:
    match answer:
        case Suspended(wake=wake, memory=memory):
            return Yield("waiting", "suspended", wake=wake, memory=memory)
        case Continued(input=given):
            return Yield("queued", "suspended", input=given)
        case Mismatched(message=message, detail=detail, code=code):
            return Yield("blocked", "blocked", error=Error(code, message, detail))
        case Again(grew=grew, whole=whole, memory=memory) if grew or whole or memory is not None:
            return Yield("queued", "suspended", memory=memory, whole=whole)
        case Again():
            error = Error("no_progress", "The turn asked to be repeated and had recorded nothing.")
            return _app_retry(task, policy, "failed", error, None, now)


def _failed(task: TaskState, policy: Policy, answer: Failed, now: datetime) -> Change:
    error = Error(answer.code, answer.message, answer.detail)
    if answer.retry is False:
        return Finish("failed", "failed", error=error)
    return _app_retry(task, policy, "failed", error, answer.retry_after, now)


def _app_retry(task: TaskState, policy: Policy, attempt: AttemptStatus, error: Error, after: timedelta | None, now: datetime) -> Change:
    """Spend one of the handler's own retries, or fail. `after` overrides the backoff when given."""
    if task.app_retries >= policy.retries:
        return Finish("failed", attempt, error=error)
    retry = task.app_retries + 1
    delay = after if after is not None else backoff(retry, policy.backoff_factor, policy.backoff_max_seconds)
    deadline = _queue_deadline(task, policy, now + delay)
    return Requeue(attempt, error, now + delay, RETRY_PRIORITY, retry, task.infra_retries, None, None, deadline)


def _queue_deadline(task: TaskState, policy: Policy, due_at: datetime) -> datetime | None:
    """Until when it may wait for a slot. A durable task that has begun waits as long as it takes: it has something to lose."""
    return None if task.begun else due_at + policy.schedule_timeout


def _spare(
    task: TaskState, policy: Policy, attempt: AttemptStatus, error: Error, after: timedelta | None, by: Sparer, now: datetime
) -> Change:
    """Try again without spending a retry, until this has gone on for as long as the policy allows for its cause."""
    since = task.spared_since if task.spared_since is not None and task.spared_by == by else now
    ttl = policy.pushback_ttl if by == "pushback" else policy.misconfig_ttl
    if now - since >= ttl:
        return Yield("blocked", attempt, error=error) if task.begun else Finish("failed", attempt, error=error)
    delay = after if after is not None else spared_backoff(since, now)
    deadline = None if task.begun else max(now + delay + policy.schedule_timeout, since + ttl)
    return Requeue(attempt, error, now + delay, task.priority, task.app_retries, task.infra_retries, since, by, deadline)


def _lose(task: TaskState, policy: Policy, error: Error, now: datetime) -> Change:
    """An attempt whose outcome nobody will ever report."""
    if task.infra_retries >= policy.infra_retries:
        return Yield("blocked", "lost", error=error) if task.begun else Finish("failed", "lost", error=error)
    due_at = now + (_resent_after(task.infra_retries) if task.durable else timedelta(0))
    deadline = _queue_deadline(task, policy, due_at)
    return Requeue("lost", error, due_at, RETRY_PRIORITY, task.app_retries, task.infra_retries + 1, None, None, deadline)


def _resent_after(losses: int) -> timedelta:
    """Before a turn is sent again: nothing the first time, then 1 s, doubling. It may be the turn that brings its endpoint down."""
    return min(timedelta(seconds=1 << min(losses - 1, 16)), _RESENT_CAP) if losses else timedelta(0)


def _lost_connection(task: TaskState, policy: Policy, message: str, now: datetime) -> Change:
    """The handler may still be at work: wait for its callback until the deadline, unless running it twice is harmless.

    A turn always may be sent again, and its handler has stopped, or will as soon as it wants to record something.
    """
    if policy.idempotent or task.durable or task.deadline is None or task.deadline <= now:
        if task.cancelling:
            return Finish("cancelled", "cancelled", error=Error("cancelled", "Cancelled while running."))
        return _lose(task, policy, Error("connection_lost", message), now)
    return Hold(task.deadline, timedelta(0), task.deadline)


def _lease_ended(task: TaskState, policy: Policy, now: datetime) -> Change:
    if task.cancelling:
        return Finish("cancelled", "cancelled", error=Error("cancelled", "Cancelled; the attempt was never heard of again."))
    if task.lease and task.lease_until is not None and task.deadline is not None and task.deadline <= task.lease_until:
        error = Error("timed_out", "The attempt reached its deadline before its result came.")
        return _app_retry(task, policy, "timed_out", error, None, now)
    return _lose(task, policy, Error("attempt_lost", "The attempt's lease ended without a result."), now)


def _accepted(task: TaskState, policy: Policy, lease: timedelta | None, now: datetime) -> Hold:
    """202: a handler that names a lease may take at least that long; one that does not has until its deadline."""
    deadline = task.deadline or now
    if lease is None:
        return Hold(deadline, max(deadline - now, timedelta(milliseconds=1)), deadline)
    granted = min(lease, policy.max_execution_timeout)
    return Hold(now + granted, granted, max(deadline, now + granted))


def renewed(lease_until: datetime, lease: timedelta, deadline: datetime, now: datetime) -> datetime:
    """A heartbeat's new lease end: a whole lease from now, never past the deadline, never shorter than it was."""
    return max(lease_until, min(now + lease, deadline))


def extended(deadline: datetime, started_at: datetime, by: timedelta, most: timedelta) -> datetime:
    """The deadline moved on by `by`, counted from the current deadline, not from now; at most `most` after the start."""
    return max(deadline, min(deadline + by, started_at + most))
