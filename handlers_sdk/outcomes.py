"""What an attempt came to, and the two ways the wire says it: an HTTP answer of its own, or one line of a batch's answer."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

from pydantic_core import to_json

from handlers_sdk import wire
from handlers_sdk.context import Accepted
from handlers_sdk.definitions import TaskSettings
from handlers_sdk.errors import DispatcherError, NonRetryableException, RetryableException
from handlers_sdk.schemas import dump_json

MESSAGE_MAX: Final = 4_000
STACK_MAX: Final = 16_000
Headers = tuple[tuple[str, str], ...]
_JSON: Final[Headers] = (("content-type", wire.MEDIA_JSON),)
_REFERRED: Final[Headers] = (*_JSON, (wire.HEADER_REFS, "output"))
_PROBLEM: Final[Headers] = (("content-type", wire.MEDIA_PROBLEM),)
S = TypeVar("S")
_MACHINERY: Final = ("handlers_sdk", "asyncio", "concurrent", "contextlib")


class Body(Protocol):
    """An answer that is still being made: sent piece by piece, closed when nobody listens any more."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Stop making it."""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer, for any framework."""

    status: int
    headers: Headers = ()
    body: bytes | Body = b""


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned. `output` is JSON text, `referred` whether that is a reference to the result."""

    output: bytes
    referred: bool = False


@dataclass(frozen=True, slots=True)
class Fail:
    """The handler failed. `retry` None leaves the decision to the task's retries."""

    error: wire.ErrorDetail
    retry: bool | None = None
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing ran; the dispatcher should come again. `status` is what a request of its own is answered with."""

    status: int
    code: str
    message: str
    after: timedelta = field(default=timedelta(seconds=1))


@dataclass(frozen=True, slots=True)
class Turned:
    """A turn of a durable task came to this. `answer` is a JSON object's text; `hit` whether what the log left out was known here.

    `output_bytes` is the length of the output that ends it, just before the closing brace; 0 where it has none.
    """

    answer: bytes
    hit: bool | None = None
    output_bytes: int = 0


Outcome = Done | Fail | Accepted | Refuse | Turned


def failure(error: BaseException) -> Fail:
    """How an exception fails its attempt."""
    detail = _named(error)
    if isinstance(error, DispatcherError | NonRetryableException) and error.code is not None:
        detail["code"] = error.code
    detail["stack"] = _clean(_stack(error), STACK_MAX, keep_end=True)
    if error.__cause__ is not None:
        detail["cause"] = _named(error.__cause__)
    if isinstance(error, NonRetryableException) or (isinstance(error, BaseExceptionGroup) and error.subgroup(NonRetryableException)):
        return Fail(detail, retry=False)
    if isinstance(error, RetryableException):
        return Fail(detail, retry=True, retry_after=error.after)
    return Fail(detail)


def paced(settle: Callable[[S, Outcome], None], settings: TaskSettings, item: wire.RunItem) -> Callable[[S, Outcome], None]:
    """`settle` for a task whose own `retry` says when it is tried again: what the handler leaves open is answered by that."""
    retry = item.get("retry_count", 0) + 1
    retry -= max(0, item.get("max_attempts", 1) - settings.retries - 1)  # those of an earlier life of the run

    def settle_paced(execution: S, outcome: Outcome) -> None:
        if settings.retry is not None and isinstance(outcome, Fail) and outcome.retry is not False and outcome.retry_after is None:
            outcome = replace(outcome, retry_after=settings.retry.wait(retry))
        settle(execution, outcome)

    return settle_paced


def _named(error: BaseException) -> wire.ErrorDetail:
    try:
        message = str(error)
    except Exception:
        message = "(the error has no text: its __str__ fails)"
    return {"name": type(error).__name__, "message": _clean(message, MESSAGE_MAX)}


def _stack(error: BaseException) -> str:
    """The traceback from the handler on: what leads there is the same for every task."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in _MACHINERY:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def timed_out(timeout_ms: int) -> Fail:
    """The attempt's deadline passed."""
    message = f"Task exceeded timeout of {timeout_ms / 1000:g}s"
    return Fail({"name": "TimeoutError", "message": message, "code": "timed_out"})


def cancelled(reason: str) -> Fail:
    """The attempt was told to stop."""
    return Fail({"name": "CancelledError", "message": reason, "code": "cancelled"}, retry=False)


# ---- a request of its own


def to_response(outcome: Outcome) -> Response:
    """The answer to a plain run."""
    if isinstance(outcome, Done):
        return Response(200, _REFERRED if outcome.referred else _JSON, outcome.output)
    if isinstance(outcome, Turned):
        marks = () if outcome.hit is None else ((wire.HEADER_LOG, "hit" if outcome.hit else "miss"),)
        return Response(200, (*_JSON, *marks), outcome.answer)
    if isinstance(outcome, Accepted):
        return Response(202, _JSON, dump_json({} if outcome.lease is None else {"lease_ms": _ms(outcome.lease)}))
    if isinstance(outcome, Refuse):
        return problem(outcome.status, outcome.code, outcome.message, retry_after=outcome.after)
    return _failed(outcome)


def _failed(fail: Fail) -> Response:
    code = fail.error.get("code", "task_failed")
    body: dict[str, Any] = _document(500, code, fail.error["message"]) | {"error": fail.error}
    headers = _PROBLEM
    if fail.retry is not None:
        body["retry"] = fail.retry
        headers = (*headers, (wire.HEADER_RETRY, "true" if fail.retry else "false"))
    if fail.retry_after is not None:
        body["retry_after_ms"] = _ms(fail.retry_after)
    return Response(500, headers, dump_json(body))


def problem(status: int, code: str, detail: str, *, retry_after: timedelta | None = None) -> Response:
    """A problem document (RFC 9457) about the request itself."""
    headers = _PROBLEM
    if retry_after is not None:
        headers = (*headers, (wire.HEADER_RETRY_AFTER, str(max(1, round(retry_after.total_seconds())))))
    return Response(status, headers, dump_json(_document(status, code, detail)))


def _document(status: int, code: str, detail: str) -> dict[str, Any]:
    return {"type": f"/errors/{code}", "title": code.replace("_", " "), "status": status, "code": code, "detail": detail}


# ---- a line of a batch


def to_line(task_id: str, outcome: Outcome) -> bytes:
    """One NDJSON line of a batch's answer. An output is copied as it is: it is JSON text already."""
    if isinstance(outcome, Done):
        refs = b',"refs":["output"]' if outcome.referred else b""
        return b'{"id":%b,"status":"ok","output":%b%b}\n' % (to_json(task_id), outcome.output, refs)
    if isinstance(outcome, Turned):
        miss = b'"log":"miss",' if outcome.hit is False else b""
        return b'{"id":%b,%b%b\n' % (to_json(task_id), miss, outcome.answer[1:])
    return dump_json(_result(task_id, outcome)) + b"\n"


def _result(task_id: str, outcome: Fail | Accepted | Refuse) -> dict[str, Any]:
    if isinstance(outcome, Fail):
        result: dict[str, Any] = {"id": task_id, "status": wire.STATUS_FAIL, "error": outcome.error}
        result |= {} if outcome.retry is None else {"retry": outcome.retry}
        return result | ({} if outcome.retry_after is None else {"retry_after_ms": _ms(outcome.retry_after)})
    if isinstance(outcome, Refuse):
        error = {"name": outcome.code, "message": outcome.message, "code": outcome.code}
        if outcome.status == 400:
            return {"id": task_id, "status": wire.STATUS_FAIL, "retry": False, "error": error}
        return {"id": task_id, "status": wire.STATUS_RETRY, "after_ms": _ms(outcome.after), "error": error}
    return {"id": task_id, "status": wire.STATUS_ACCEPTED} | ({} if outcome.lease is None else {"lease_ms": _ms(outcome.lease)})


def _ms(value: timedelta) -> int:
    return round(value / timedelta(milliseconds=1))


def _clean(text: str, limit: int, *, keep_end: bool = False) -> str:
    """Text that can be stored: no NUL, no lone surrogates, bounded. The end of a stack says more than its start."""
    text = text.replace("\0", "�").encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    return "… " + text[-limit:] if keep_end else text[:limit] + " …"
