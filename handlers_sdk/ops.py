"""Operations of a durable task, and the text of the log entries they become."""

from __future__ import annotations

import asyncio
import marshal
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from handlers_sdk import wire
from handlers_sdk.errors import CancelledRunError, DispatcherError, FailedTaskRunExceptionGroup, StepFailedError, TaskRunError
from handlers_sdk.replay_loop import end_twice
from handlers_sdk.schemas import Codec, JsonCodec, dump_json

T = TypeVar("T")

NAME: Final = re.compile(r'[^\x00-\x1f\x7f"\\/#]{1,200}')
PLAIN: Final[Codec] = JsonCodec()

if TYPE_CHECKING:

    class _Awaitable(asyncio.Future[T], Coroutine[Any, Any, T]):
        """What an operation is to a type checker: awaited, gathered, or given to a TaskGroup."""

        def __await__(self) -> Any: ...

else:
    _Awaitable = asyncio.Future


class Op(_Awaitable[T]):
    """One thing asked of the dispatcher or of the outside world, under an id that is the same in every replay.

    It is asked for when it is made; awaiting it gives its result. It is a future, and a TaskGroup takes it in place of a coroutine.
    """

    __slots__ = ("asked", "checked", "drop", "due", "failures", "id", "kind", "number", "read", "recorded", "run_id", "started", "work")

    id: str
    kind: str
    number: int
    asked: Mapping[str, Any]  # what a pending entry says of it
    read: Callable[[Any], Any]  # from the recorded value to what the handler gets
    work: Any  # a step's call
    failures: int  # how often a step has failed so far
    due: int  # a failed step's next try, ms
    recorded: bool
    checked: bool  # what comes may be refused here: it may fail though the dispatcher calls it ok
    run_id: str  # a child's
    started: asyncio.Future[str] | None  # done when a child's run is known
    drop: Callable[[Op[Any]], None] | None

    def __hash__(self) -> int:
        return self.number

    def spare(self) -> None:
        """It is over: let go of how it was made. A turn of many steps keeps all of them, and the collector looks at what is kept."""
        self.work = None
        self.read = as_it_is

    def let_go(self) -> None:
        """Its turn is over, and with it who would hear of it."""
        self.drop = self.work = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Nobody waits for it any more."""
        cancelled = super().cancel(msg)
        if cancelled and self.drop is not None:
            self.drop(self)
        if not cancelled:
            end_twice(self)
        return cancelled


@dataclass(slots=True)
class Sent:
    """An entry on its way into the log, and what the handler gets when it is there."""

    op: Op[Any]
    text: bytes
    at: str
    value: Any = None
    error: BaseException | None = None
    settles: bool = False


def as_it_is(value: Any) -> Any:
    """A value that needs no reading."""
    return value


def handed_out(value: Any) -> Any:
    """A recorded value for a handler, which may change what it gets: the log it is from is what later turns are replayed from."""
    if value.__class__ is dict or value.__class__ is list:
        return marshal.loads(marshal.dumps(value))  # noqa: S302 - our own value, of what JSON has: there is no quicker copy
    return value


def failed(op: str, error: Mapping[str, Any] | None) -> StepFailedError:
    """The exception of an error entry."""
    said = error or {}
    return StepFailedError(op, str(said.get("name", "")), str(said.get("message", "")), str(said.get("code", "")))


def result_of(op: Op[Any], status: str, entry: Mapping[str, Any]) -> Any:
    """The value of a final entry, the handler's own. Raises what its failure is to the handler."""
    if status == "error" and op.kind != "child":
        raise failed(op.id, entry.get("error"))
    if op.kind == "event" and status == "timeout":
        raise TimeoutError(f"no event {op.asked.get('key')!r} arrived in time")
    if op.kind == "message":
        return None if status in ("closed", "timeout") else handed_out(entry.get("value"))
    if op.kind == "child" and status != "ok":
        run_id = str(entry.get("run_id") or op.run_id)
        if status == "cancelled":
            raise CancelledRunError(run_id)
        error = entry.get("error") or {}
        task = TaskRunError(
            str(error.get("message", "")), error_code=str(error.get("code", "")), task_name=str(op.asked.get("workflow", ""))
        )
        raise FailedTaskRunExceptionGroup(run_id, [task])
    return handed_out(entry.get("value"))


# ---- time, as entries have it


@lru_cache(maxsize=64)
def text_of(ms: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def ms_of(text: str) -> int:
    """Milliseconds since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


# ---- entries as JSON text


def step_entry(id: str, value: bytes, at: str) -> bytes:
    """A step's result."""
    return b'{"id":"%b","op":"step","status":"ok","value":%b,"at":"%b"}' % (id.encode(), value, at.encode())


def valued_entry(id: str, op: str, value: bytes, at: str) -> bytes:
    """The result of an operation that the endpoint settles itself."""
    return b'{"id":"%b","op":"%b","status":"ok","value":%b,"at":"%b"}' % (id.encode(), op.encode(), value, at.encode())


def closed_entry(id: str, at: str) -> bytes:
    """The end of a task's inbox."""
    return dump_json({"id": id, "op": "message", "status": "closed", "at": at})


def error_entry(id: str, op: str, error: wire.ErrorDetail, at: str) -> bytes:
    """The last failure of a step, or that of a scope."""
    return dump_json({"id": id, "op": op, "status": "error", "error": error, "retry_exhausted": True, "at": at})


def retry_entry(id: str, error: wire.ErrorDetail, after_ms: int, policy: Mapping[str, Any], at: str) -> bytes:
    """A failure of a step that is tried again."""
    return dump_json({"id": id, "op": "step", "status": "retry", "error": error, "after_ms": after_ms, **policy, "at": at})


def pending_entry(op: Op[Any], at: str) -> bytes:
    """What is asked of the dispatcher. A member that is JSON text already is copied."""
    asked = op.asked
    if (text := asked.get("input")).__class__ is bytes:
        rest = dump_json({name: value for name, value in asked.items() if name != "input"})
        return b'{"id":"%b","op":"%b","status":"pending","input":%b,%b,"at":"%b"}' % (
            op.id.encode(),
            op.kind.encode(),
            text,
            rest[1:-1],
            at.encode(),
        )
    return dump_json({"id": op.id, "op": op.kind, "status": "pending", **asked, "at": at})


def storable(value: Any, codec: Codec, op: str) -> tuple[bytes, Any]:
    """A result as JSON text, and as the handler gets it: what a replay will read from that text.

    IllegalTaskOutputError when it is not JSON.
    """
    if value is None:
        return b"null", codec.parse(None, "output")
    text = codec.dump(value)
    if codec is PLAIN and value.__class__ in (str, int, bool):
        return text, value
    return text, read_value(text, codec, op)


def read_value(text: bytes, codec: Codec, op: str) -> Any:
    """A recorded value as the handler gets it. StepFailedError when the annotation no longer fits what was recorded."""
    from handlers_sdk.schemas import parse_json

    return parsed(parse_json(text), codec, op)


def parsed(value: Any, codec: Codec, op: str) -> Any:
    """A recorded value, validated."""
    try:
        return codec.parse(value, "output")
    except DispatcherError as error:
        raise StepFailedError(op, type(error).__name__, str(error), error.code) from None
