"""The law of an attempt, written by hand: what every event does to a task in every situation.

Nothing here is computed by the engine. `TABLE` has one row per event; a row says what the event does to a running attempt,
and names every situation in which it does something else. `test_attempts.py` multiplies the rows out and asks `step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from dispatcher.engine.answers import (
    Accepted,
    Busy,
    EndpointBroken,
    EndpointGone,
    Failed,
    LocalFault,
    Lost,
    PlatformKilled,
    Pushback,
    Referred,
    Succeeded,
    TimedOut,
    Unreachable,
)
from dispatcher.engine.attempts import (
    AttemptStatus,
    CancelEnforced,
    CancelRequested,
    Change,
    Error,
    Event,
    Final,
    Finish,
    Hold,
    LeaseEnded,
    MarkCancelling,
    Policy,
    Refused,
    Requeue,
    ScheduleExpired,
    Sparer,
    TaskState,
)
from dispatcher.engine.references import Reference

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEADLINE = NOW + timedelta(seconds=50)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

POLICY = Policy(
    retries=3,
    backoff_factor=3.0,
    backoff_max_seconds=20.0,
    schedule_timeout=5 * MINUTE,
    idempotent=False,
    infra_retries=2,
    misconfig_ttl=HOUR,
    pushback_ttl=DAY,
    max_execution_timeout=2 * HOUR,
)


@dataclass(frozen=True, slots=True)
class Situation:
    """A task, and the policy it lives under."""

    task: TaskState
    policy: Policy = POLICY


_WAITING = TaskState("queued", 0, 1, 0, 0, None, None, None, None, None, cancelling=False)
_RUNNING = TaskState("running", 1, 1, 0, 0, None, None, DEADLINE, None, None, cancelling=False)
_DETACHED = replace(_RUNNING, lease_until=NOW, lease=MINUTE, deadline=NOW + HOUR)

SITUATIONS: Mapping[str, Situation] = {
    # --- nothing of it runs
    "scheduled": Situation(replace(_WAITING, state="scheduled")),
    "scheduled again": Situation(replace(_WAITING, state="scheduled", epoch=2, app_retries=1)),
    "queued": Situation(_WAITING),
    "queued again": Situation(replace(_WAITING, epoch=2, infra_retries=1)),
    # --- attached to a dispatcher
    "running": Situation(_RUNNING),
    "second retry left": Situation(replace(_RUNNING, epoch=2, priority=4, app_retries=1)),
    "retries spent": Situation(replace(_RUNNING, epoch=4, priority=4, app_retries=3)),
    "losses spent": Situation(replace(_RUNNING, epoch=3, priority=4, infra_retries=2)),
    "spared for 10 s": Situation(replace(_RUNNING, epoch=4, spared_since=NOW - timedelta(seconds=10), spared_by="endpoint")),
    "spared for 1 h": Situation(replace(_RUNNING, epoch=90, spared_since=NOW - HOUR, spared_by="endpoint")),
    "pushed back for 10 s": Situation(replace(_RUNNING, epoch=4, spared_since=NOW - timedelta(seconds=10), spared_by="pushback")),
    "pushed back for 24 h": Situation(replace(_RUNNING, epoch=990, spared_since=NOW - DAY, spared_by="pushback")),
    "overdue": Situation(replace(_RUNNING, deadline=NOW)),
    "idempotent": Situation(_RUNNING, replace(POLICY, idempotent=True)),
    "no backoff": Situation(_RUNNING, replace(POLICY, backoff_factor=None)),
    "cancelling": Situation(replace(_RUNNING, cancelling=True)),
    "idempotent cancelling": Situation(replace(_RUNNING, cancelling=True), replace(POLICY, idempotent=True)),
    "overdue cancelling": Situation(replace(_RUNNING, deadline=NOW, cancelling=True)),
    # --- going on without a dispatcher
    "lease over": Situation(_DETACHED),
    "lease over at deadline": Situation(replace(_DETACHED, deadline=NOW)),
    "lease over at deadline, retries spent": Situation(replace(_DETACHED, deadline=NOW, app_retries=3)),
    "unheard of since its connection broke": Situation(replace(_DETACHED, lease=timedelta(0), deadline=NOW)),
    "detached cancelling": Situation(replace(_DETACHED, cancelling=True)),
}
NOT_RUNNING = ("scheduled", "scheduled again", "queued", "queued again")
CANCELLING = ("cancelling", "idempotent cancelling", "overdue cancelling", "detached cancelling")


@dataclass(frozen=True, slots=True)
class Row:
    """`running` is what happens to a running attempt unless its situation is listed in `but`.

    A task of which nothing runs refuses the event, and one being cancelled ends cancelled, unless `but` says otherwise.
    """

    event: Event
    running: Change | type[Refused]
    but: Mapping[str, Change | type[Refused]] = field(default_factory=dict)

    def expected(self, situation: str) -> Change | type[Refused]:
        if situation in self.but:
            return self.but[situation]
        if situation in NOT_RUNNING:
            return Refused
        return CANCELLED if situation in CANCELLING else self.running


def _error(code: str, message: str = "m", detail: bytes | None = None) -> Error:
    return Error(code, message, detail)


def _at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def _fail(attempt: AttemptStatus, error: Error) -> Finish:
    return Finish("failed", attempt, error=error)


def _again(
    attempt: AttemptStatus,
    error: Error,
    after: float,
    *,
    app: int = 0,
    infra: int = 0,
    priority: int = 4,
    since: datetime | None = None,
    by: Sparer | None = None,
    until: datetime | None = None,
) -> Requeue:
    """Claimable again `after` seconds from now; its new schedule timeout of five minutes counts from then."""
    deadline = until if until is not None else _at(after + 300)
    return Requeue(attempt, error, _at(after), priority, app, infra, since, by, deadline)


def _cancelled(message: str, attempt: AttemptStatus | None = "cancelled") -> Finish:
    return Finish("cancelled", attempt, error=Error("cancelled", message))


CANCELLED = _cancelled("Cancelled while running.")


def _spared(attempt: AttemptStatus, code: str, by: Sparer, after: float | None = None) -> Mapping[str, Change | type[Refused]]:
    """The situations in which a spared attempt's delay, budget or end differ: as long again as it has gone on, for an hour or a day.

    `after` is the delay the endpoint asked for, if it did. Retries and losses already spent are neither spent nor given back, and
    what went on for the other cause does not count.
    """
    first = 1.0 if after is None else after
    later = 10.0 if after is None else after
    error, ttl = _error(code), DAY if by == "pushback" else HOUR

    def again(delay: float, since: datetime, app: int = 0, infra: int = 0, priority: int = 1) -> Requeue:
        until = max(_at(delay + 300), since + ttl)
        return _again(attempt, error, delay, app=app, infra=infra, priority=priority, since=since, by=by, until=until)

    since_10s, over = again(later, _at(-10)), _fail(attempt, error)
    anew = again(first, NOW)
    return {
        "second retry left": again(first, NOW, app=1, priority=4),
        "retries spent": again(first, NOW, app=3, priority=4),
        "losses spent": again(first, NOW, infra=2, priority=4),
        "lease over at deadline, retries spent": again(first, NOW, app=3),
        "spared for 10 s": since_10s if by == "endpoint" else anew,
        "spared for 1 h": over if by == "endpoint" else anew,
        "pushed back for 10 s": since_10s if by == "pushback" else anew,
        "pushed back for 24 h": over if by == "pushback" else anew,
    }


def _retried(attempt: AttemptStatus, error: Error, fixed: float | None = None) -> Mapping[str, Change | type[Refused]]:
    """The situations in which a failure that spends a retry waits differently (3, 9, then capped at 20 s) or is the last."""
    return {
        "second retry left": _again(attempt, error, 9 if fixed is None else fixed, app=2),
        "retries spent": _fail(attempt, error),
        "lease over at deadline, retries spent": _fail(attempt, error),
        "losses spent": _again(attempt, error, 3 if fixed is None else fixed, app=1, infra=2),
        "no backoff": _again(attempt, error, 0 if fixed is None else fixed, app=1),
    }


def _held(lease_until: datetime, lease: timedelta, deadline: datetime) -> Hold:
    return Hold(lease_until, lease, deadline)


def _succeeds(event: Succeeded, output: bytes, kind: str) -> Row:
    dropped = _cancelled("Cancelled; the handler finished all the same and its result was dropped.")
    done = Finish("succeeded", "succeeded", output=output, output_type=kind)
    return Row(event, done, dict.fromkeys(CANCELLING, dropped))


def _lost_attempt(code: str, message: str) -> Mapping[str, Change | type[Refused]]:
    """The situations in which an attempt nobody will report of is counted differently, or is the last."""
    error = _error(code, message)
    return {
        "second retry left": _again("lost", error, 0, app=1, infra=1),
        "retries spent": _again("lost", error, 0, app=3, infra=1),
        "losses spent": _fail("lost", error),
    }


_UNFETCHED = Error("unknown_ref", "the output sha256-0f was never fetched")
_FAILED = _error("boom", "m", b'{"name":"E"}')
_TIMED_OUT = _error("timed_out")
_KILLED = _error("platform_killed")
_BROKEN_CONNECTION = _again("lost", _error("connection_lost"), 0, infra=1)
_NEVER_HEARD = _cancelled("Cancelled; the attempt was never heard of again.")
_LEASE_LOST = _error("attempt_lost", "The attempt's lease ended without a result.")
_LEASE_TIMED_OUT = _error("timed_out", "The attempt reached its deadline before its result came.")
_HELD_TO_DEADLINE = _held(DEADLINE, timedelta(0), DEADLINE)
_ONE_MS = timedelta(milliseconds=1)
_SCHEDULE_TIMEOUT: Final = "cancelled"
_EXPIRED = Finish(_SCHEDULE_TIMEOUT, None, error=Error("schedule_timeout", "No endpoint took the task within its schedule timeout."))

TABLE: tuple[Row, ...] = (
    _succeeds(Succeeded(b'{"a":1}'), b'{"a":1}', "application/json"),
    _succeeds(Succeeded(b"hello", "text/plain"), b"hello", "text/plain"),
    Row(Failed("boom", "m", None, None, b'{"name":"E"}'), _again("failed", _FAILED, 3, app=1), _retried("failed", _FAILED)),
    Row(Failed("boom", "m", True, None, b'{"name":"E"}'), _again("failed", _FAILED, 3, app=1), _retried("failed", _FAILED)),
    Row(
        Failed("boom", "m", None, timedelta(seconds=7), b'{"name":"E"}'),
        _again("failed", _FAILED, 7, app=1),
        _retried("failed", _FAILED, 7),
    ),
    Row(Failed("boom", "m", False, None, b'{"name":"E"}'), _fail("failed", _FAILED)),
    Row(Failed("boom", "m", False, timedelta(seconds=7), b'{"name":"E"}'), _fail("failed", _FAILED)),
    Row(Referred(Reference("0f", 9)), _again("failed", _UNFETCHED, 3, app=1), _retried("failed", _UNFETCHED)),
    Row(TimedOut("m"), _again("timed_out", _TIMED_OUT, 3, app=1), _retried("timed_out", _TIMED_OUT)),
    Row(PlatformKilled("m"), _again("timed_out", _KILLED, 0, app=1), _retried("timed_out", _KILLED, 0)),
    Row(
        Accepted(None),
        _held(DEADLINE, timedelta(seconds=50), DEADLINE),
        {
            "overdue": _held(NOW, _ONE_MS, NOW),
            "lease over": _held(NOW + HOUR, HOUR, NOW + HOUR),
            "lease over at deadline": _held(NOW, _ONE_MS, NOW),
            "lease over at deadline, retries spent": _held(NOW, _ONE_MS, NOW),
            "unheard of since its connection broke": _held(NOW, _ONE_MS, NOW),
            "cancelling": _held(DEADLINE, timedelta(seconds=50), DEADLINE),
            "idempotent cancelling": _held(DEADLINE, timedelta(seconds=50), DEADLINE),
            "overdue cancelling": _held(NOW, _ONE_MS, NOW),
            "detached cancelling": _held(NOW + HOUR, HOUR, NOW + HOUR),
        },
    ),
    Row(
        Accepted(10 * MINUTE),
        _held(_at(600), 10 * MINUTE, _at(600)),
        {
            "lease over": _held(_at(600), 10 * MINUTE, NOW + HOUR),
            **dict.fromkeys(CANCELLING, _held(_at(600), 10 * MINUTE, _at(600))),
            "detached cancelling": _held(_at(600), 10 * MINUTE, NOW + HOUR),
        },
    ),
    Row(
        Accepted(9 * HOUR),
        _held(NOW + 2 * HOUR, 2 * HOUR, NOW + 2 * HOUR),
        dict.fromkeys(CANCELLING, _held(NOW + 2 * HOUR, 2 * HOUR, NOW + 2 * HOUR)),
    ),
    Row(
        Pushback(None, "m"),
        _again("pushed_back", _error("pushed_back"), 1, priority=1, since=NOW, by="pushback", until=NOW + DAY),
        _spared("pushed_back", "pushed_back", "pushback"),
    ),
    Row(
        Pushback(timedelta(seconds=33), "m"),
        _again("pushed_back", _error("pushed_back"), 33, priority=1, since=NOW, by="pushback", until=NOW + DAY),
        _spared("pushed_back", "pushed_back", "pushback", 33),
    ),
    Row(
        Busy(None, "m"),
        _again("busy", _error("busy"), 1, priority=1, since=NOW, by="pushback", until=NOW + DAY),
        _spared("busy", "busy", "pushback"),
    ),
    Row(
        Busy(timedelta(seconds=5), "m"),
        _again("busy", _error("busy"), 5, priority=1, since=NOW, by="pushback", until=NOW + DAY),
        _spared("busy", "busy", "pushback", 5),
    ),
    Row(
        EndpointBroken("unauthorized", "m"),
        _again("endpoint_broken", _error("unauthorized"), 1, priority=1, since=NOW, by="endpoint", until=NOW + HOUR),
        _spared("endpoint_broken", "unauthorized", "endpoint"),
    ),
    Row(
        EndpointGone("m"),
        _again("endpoint_broken", _error("endpoint_gone"), 1, priority=1, since=NOW, by="endpoint", until=NOW + HOUR),
        _spared("endpoint_broken", "endpoint_gone", "endpoint"),
    ),
    Row(
        Unreachable("refused", "m"),
        _again("unreachable", _error("refused"), 1, priority=1, since=NOW, by="endpoint", until=NOW + HOUR),
        _spared("unreachable", "refused", "endpoint"),
    ),
    Row(
        LocalFault("no_descriptors", "m"),
        _again("not_sent", _error("no_descriptors"), 1, priority=1, since=NOW, by="endpoint", until=NOW + HOUR),
        _spared("not_sent", "no_descriptors", "endpoint", 1),
    ),
    Row(
        Lost("m"),
        _HELD_TO_DEADLINE,
        {
            "overdue": _BROKEN_CONNECTION,
            "idempotent": _BROKEN_CONNECTION,
            "lease over": _held(NOW + HOUR, timedelta(0), NOW + HOUR),
            "lease over at deadline": _BROKEN_CONNECTION,
            "lease over at deadline, retries spent": _again("lost", _error("connection_lost"), 0, app=3, infra=1),
            "unheard of since its connection broke": _BROKEN_CONNECTION,
            # Being cancelled, it may still be heard of until its deadline or the end of the grace; it never runs again.
            "cancelling": _HELD_TO_DEADLINE,
            "detached cancelling": _held(NOW + HOUR, timedelta(0), NOW + HOUR),
        },
    ),
    Row(
        LeaseEnded(),
        _again("lost", _LEASE_LOST, 0, infra=1),
        {
            **_lost_attempt("attempt_lost", _LEASE_LOST.message),
            "lease over at deadline": _again("timed_out", _LEASE_TIMED_OUT, 3, app=1),
            "lease over at deadline, retries spent": _fail("timed_out", _LEASE_TIMED_OUT),
            **dict.fromkeys(CANCELLING, _NEVER_HEARD),
        },
    ),
    Row(ScheduleExpired(), Refused, {**dict.fromkeys(NOT_RUNNING, _EXPIRED), **dict.fromkeys(CANCELLING, Refused)}),
    Row(
        CancelRequested("asked", timedelta(seconds=10)),
        MarkCancelling(_at(10), "asked"),
        {**dict.fromkeys(NOT_RUNNING, _cancelled("asked", None)), **dict.fromkeys(CANCELLING, Refused)},
    ),
    Row(CancelEnforced("asked"), _cancelled("asked"), dict.fromkeys(CANCELLING, _cancelled("asked"))),
)
