"""What can go wrong, split by whose fault it is. Every error has a stable `code` and a message that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

from handlers_sdk.durations import Duration, parse_duration


class DispatcherError(Exception):
    """Anything this package raises on its own account."""

    code: ClassVar[str] = "error"


# ---- the program is put together wrongly


class ConfigError(DispatcherError):
    """Configuration or a declaration that cannot be used; raised where it is made."""

    code = "config"


class LifespanSetupError(DispatcherError):
    """The lifespan generator failed before its `yield`, or did not yield exactly once."""

    code = "lifespan_setup"


# ---- a handler decides how its attempt fails


class NonRetryableException(Exception):  # noqa: N818 - the public name
    """Raised by a handler: fail now, whatever retries remain."""

    code: ClassVar[str | None] = None


NonRetryableError = NonRetryableException


class RetryableException(Exception):  # noqa: N818 - beside NonRetryableException
    """Raised by a handler: retry while retries remain, not before `after`. A plain exception retries by the task's backoff."""

    def __init__(self, message: str, after: Duration | None = None) -> None:
        super().__init__(message)
        self.after: timedelta | None = None if after is None else parse_duration(after)


class InvalidInputError(NonRetryableException, DispatcherError):
    """An input that its validator refuses; the message names each field. Fails a task for good, and stops a trigger before it is sent."""

    code = "invalid_input"


class IllegalTaskOutputError(NonRetryableException, DispatcherError):
    """A result that its return annotation or JSON refuses; the message names each field. Fails the task for good."""

    code = "invalid_output"


class TaskOutputError(DispatcherError, ValueError):
    """The output of a task that has none: it was skipped, or is no parent of the task that asks."""

    code = "no_task_output"


class EventsLostError(DispatcherError):
    """Log lines or stream chunks that could not be handed to the dispatcher. `lost` counts them."""

    code = "events_lost"

    def __init__(self, message: str, lost: int) -> None:
        super().__init__(message)
        self.lost = lost


# ---- durable tasks


class NotDeterministicError(NonRetryableException, DispatcherError):
    """A durable handler did what cannot be repeated from its log: waited outside of a step, or for nothing that is recorded."""

    code = "not_deterministic"


class StepFailedError(DispatcherError):
    """A step, or a scope, of a durable task has failed for good. `name` is the class of its error, `error_code` its stable word, if any."""

    code = "step_failed"

    def __init__(self, step: str, name: str, message: str, error_code: str = "") -> None:
        super().__init__(f"{step}: {name}: {message}" if name else f"{step}: {message}")
        self.step = step
        self.name = name
        self.message = message
        self.error_code = error_code


class ScopeClosedError(NonRetryableException, DispatcherError):
    """An operation was asked for in a scope whose function has returned."""

    code = "scope_closed"


class Interruption(BaseException):
    """Unwinds a durable handler that is not to go on. Never caught by `except Exception`; a handler lets it pass."""


class Suspended(Interruption):
    """The handler waits, and its request ends here; it will be run again when there is something to go on with."""


class Cancelled(Interruption):
    """The run was cancelled. Steps, scopes and checkpoints may still undo and save what was done; anything else raises this again.

    It is raised in every task and scope of the handler, where that waits: at once, or, where it waits for others of them, once those are
    over, whatever they came to; what failed one is the `__cause__`. All of them undo what they did to the end, whatever becomes of the
    others. Catch it to undo, and raise it again: a handler that goes on as if nothing had happened is refused one thing after the other.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class LostOwnership(Interruption):
    """Another attempt owns the task: nothing this one does is recorded any more."""


class ContinuedAsNew(Interruption):
    """Raised by `ctx.continue_as_new(input)`: the task begins again with that input and an empty log."""

    def __init__(self, input: Any) -> None:
        super().__init__("continued with a new log")
        self.input = input


# ---- the dispatcher says no, or nothing


class ApiError(DispatcherError):
    """The dispatcher refused a call with a problem document (RFC 9457). `problem_code` is its stable code, `status` the HTTP status."""

    code = "api"

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.problem_code = str(problem.get("code", ""))
        self.hint = problem.get("hint")
        text = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
        super().__init__(f"{status} {self.problem_code}: {text}" + (f" ({self.hint})" if self.hint else ""))


class ApiUnreachableError(DispatcherError):
    """No usable answer came from the dispatcher: refused, timed out, or not JSON."""

    code = "api_unreachable"


class IdempotencyCollisionError(DispatcherError):
    """This idempotency key already started a run. `existing_run_id` is that run."""

    code = "idempotency_collision"

    def __init__(self, existing_run_id: str, key: str | None) -> None:
        super().__init__(f"idempotency key {key!r} already started {existing_run_id}")
        self.existing_run_id = existing_run_id
        self.key = key


class BulkTriggerError(DispatcherError):
    """Some items of a bulk call were not started. `results` has, in order, what each one came to: the value or its error."""

    code = "bulk_trigger"

    def __init__(self, results: Sequence[Any]) -> None:
        failed = [(index, result) for index, result in enumerate(results) if isinstance(result, BaseException)]
        index, first = failed[0]
        super().__init__(f"{len(failed)} of {len(results)} items were not started; the first, item {index}: {first}")
        self.results = list(results)


# ---- a run ended without a result


class TaskRunError(DispatcherError):
    """One task run's final error, as the dispatcher recorded it."""

    code = "task_run"

    def __init__(self, message: str, *, error_code: str = "", task_name: str = "", task_run_id: str = "") -> None:
        super().__init__(f"{task_name}: {message}" if task_name else message)
        self.message = message
        self.error_code = error_code
        self.task_name = task_name
        self.task_run_id = task_run_id


class FailedTaskRunExceptionGroup(DispatcherError):  # noqa: N818 - the public name
    """The run failed. `exceptions` has one TaskRunError per failed task."""

    code = "run_failed"

    def __init__(self, run_id: str, exceptions: Sequence[TaskRunError]) -> None:
        whose = f"{run_id} failed: " if run_id else ""  # a child of a workflow that is not there never was a run
        super().__init__(whose + "; ".join(str(error) for error in exceptions))
        self.run_id = run_id
        self.exceptions = list(exceptions)


class CancelledRunError(DispatcherError):
    """The run was cancelled before it had a result."""

    code = "run_cancelled"

    def __init__(self, run_id: str, reason: str = "") -> None:
        super().__init__(f"{run_id} was cancelled" + (f": {reason}" if reason else ""))
        self.run_id = run_id
