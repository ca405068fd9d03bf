"""/v1/callback: where a handler speaks for its attempt, authorised by the attempt's token and nothing else."""

from __future__ import annotations

from typing import Any, Final

from dispatcher.api.auth import bearer
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.errors import problem


async def callback(call: Call) -> Answer:
    """Take events of a running attempt: heartbeat, extend, progress, log, chunk, release_slot, done, fail; one, a list, or NDJSON."""
    token = bearer(call.headers)
    if not token:
        raise problem("unauthorized", "send the attempt's token: Authorization: Bearer atk1.…")
    body = await call.body(call.services.settings.max_response_bytes)
    kind = call.headers.get(b"content-type", b"").decode("latin-1")
    status, document = await call.services.callbacks.handle(token, body, kind)
    return json_answer(status, document)


ROUTES: Final = (
    Route(
        "POST", "/v1/callback", callback, None, {200: dict[str, Any]}, body=dict[str, Any],
        problems=("unauthorized", "invalid_json", "invalid_event", "body_too_large", "stale_attempt", "task_ended", "database_unavailable"),
    ),
)  # fmt: skip
