"""Ending, from anywhere, what a handler accepted: whoever holds the attempt's token speaks for the attempt."""

from __future__ import annotations

from typing import Any

from handlers_sdk import wire
from handlers_sdk.api import Api
from handlers_sdk.durations import Duration, milliseconds
from handlers_sdk.outcomes import failure
from handlers_sdk.portal import PORTAL
from handlers_sdk.schemas import dump_json


class CallbacksClient:
    """`dispatcher.callbacks`. Every method has an `aio_` face and answers `{"ok", "lease_until", "cancel", …}`.

    ApiError 409 `stale_attempt` means another attempt owns the task, 410 `task_ended` that it is over: stop, without further side effects.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def complete(self, token: str, output: Any = None) -> wire.CallbackReply:
        """The attempt succeeded with this output. Saying it again changes nothing."""
        return PORTAL.call(self._send(token, {"type": "done", "output": output}))

    async def aio_complete(self, token: str, output: Any = None) -> wire.CallbackReply:
        """The attempt succeeded with this output. Saying it again changes nothing."""
        return await PORTAL.aio_call(self._send(token, {"type": "done", "output": output}))

    def fail(self, token: str, error: BaseException | str, retry: bool | None = None) -> wire.CallbackReply:
        """The attempt failed. `retry` None leaves the decision to the task's retries, or to the kind of exception."""
        return PORTAL.call(self._send(token, _fail_event(error, retry)))

    async def aio_fail(self, token: str, error: BaseException | str, retry: bool | None = None) -> wire.CallbackReply:
        """The attempt failed. `retry` None leaves the decision to the task's retries, or to the kind of exception."""
        return await PORTAL.aio_call(self._send(token, _fail_event(error, retry)))

    def extend(self, token: str, by: Duration) -> wire.CallbackReply:
        """Move the attempt's deadline later, counted from the current deadline."""
        return PORTAL.call(self._send(token, {"type": "extend", "ms": milliseconds(by)}))

    async def aio_extend(self, token: str, by: Duration) -> wire.CallbackReply:
        """Move the attempt's deadline later, counted from the current deadline."""
        return await PORTAL.aio_call(self._send(token, {"type": "extend", "ms": milliseconds(by)}))

    def heartbeat(self, token: str) -> wire.CallbackReply:
        """The work goes on. The reply's `cancel` says whether it still should."""
        return PORTAL.call(self._send(token, {"type": "heartbeat"}))

    async def aio_heartbeat(self, token: str) -> wire.CallbackReply:
        """The work goes on. The reply's `cancel` says whether it still should."""
        return await PORTAL.aio_call(self._send(token, {"type": "heartbeat"}))

    async def _send(self, token: str, event: wire.Event) -> wire.CallbackReply:
        # Every event here may be repeated: the dispatcher records it once.
        repeatable = event["type"] != wire.EVENT_EXTEND
        content = dump_json(event)
        _, reply = await self._api.request("POST", wire.CALLBACK_PATH, content=content, token=token, repeatable=repeatable)
        answer: wire.CallbackReply = reply
        return answer


def _fail_event(error: BaseException | str, retry: bool | None) -> wire.FailEvent:
    if isinstance(error, str):
        event: wire.FailEvent = {"type": "fail", "error": {"name": "Error", "message": error}}
    else:
        failed = failure(error)
        event = {"type": "fail", "error": failed.error}
        if failed.retry is not None:
            event["retry"] = failed.retry
        if failed.retry_after is not None:
            event["retry_after_ms"] = milliseconds(failed.retry_after)
    if retry is not None:
        event["retry"] = retry
    return event
