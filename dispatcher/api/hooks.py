"""/hooks: where senders post. Open to everybody: what is taken in proves itself.

An address that is none is answered as a wrong secret is, after the same work, so that addresses cannot be found by asking.
"""

from __future__ import annotations

from typing import Any, Final

from dispatcher.api.bodies import read_any
from dispatcher.api.edge import Answer, Call, Route
from dispatcher.errors import Problem
from dispatcher.runtime.webhooks.sources import Hook
from webhooks import Request, Response
from webhooks.response import problem

PATH: Final = "/hooks/{tenant}/{webhook}"
PREFIX: Final = "/hooks/"


def parameters(path: str) -> dict[str, str] | None:
    """The parameters of an address, found without a router; None for a path that is none."""
    tenant, _, webhook = path[len(PREFIX) :].partition("/")
    if not tenant or not webhook or "/" in webhook:
        return None
    return {"tenant": tenant, "webhook": webhook}


async def receive_webhook(call: Call) -> Answer:
    """Take a webhook. It is answered 2xx only once it is stored: 200 accepted or seen before, 202 kept without an event."""
    webhooks = call.services.webhooks
    tenant, name = call.path["tenant"], call.path["webhook"]
    hook = await webhooks.receiver.find(tenant, name)
    busy = webhooks.receiver.busy(hook, call.scope["method"]) if hook is not None else None
    if busy is not None:
        return _answer(busy)
    most = hook.source.body_bytes_max if hook is not None else call.services.settings.webhook_body_bytes
    try:
        body = await read_any(call.receive, call.headers, most, call.limits.drain)
    except Problem as refused:
        return _too_large(call, hook, most, refused)
    request = _request(call, body)
    if hook is None:
        return _answer(webhooks.receiver.refuse_unknown(tenant, name, request))
    return _answer((await webhooks.receiver.receive(hook, request)).response)


async def webhook_handshake(call: Call) -> Answer:
    """Answer what a sender asks before it delivers: an echo, a signed challenge, or that the address is there."""
    return await receive_webhook(call)


def _request(call: Call, body: bytes) -> Request:
    """The request as the sender made it, at the address it was given."""
    scope = call.scope
    path, raw = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
    query = raw.decode("latin-1")
    url = call.services.settings.base_url() + path.partition(b"?")[0].decode("latin-1") + (f"?{query}" if query else "")
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"])
    return Request(scope["method"], url, headers, query, body)


def _too_large(call: Call, hook: Hook | None, most: int, refused: Problem) -> Answer:
    if hook is not None:
        declared = call.headers.get(b"content-length", b"")
        size = int(declared) if declared.isdigit() and len(declared) < 16 else most + 1
        call.services.webhooks.receiver.refused(hook, call.scope["method"], "too_large", refused.detail, size)
    answer = _answer(problem(413, "too_large", "Body too large", refused.detail))
    return Answer(answer.status, answer.body, (*answer.headers, (b"connection", b"close")))


def _answer(response: Response) -> Answer:
    headers = tuple((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers)
    return Answer(response.status, response.body, headers)


_REFUSED: Final = (
    "unverified", "invalid_body", "too_large", "content_encoding", "method", "rate_limited", "key_unavailable", "overloaded",
    "database_unavailable",
)  # fmt: skip
_TAKEN: Final = {200: dict[str, Any], 202: dict[str, Any]}

ROUTES: Final = (
    Route("POST", PATH, receive_webhook, None, _TAKEN, problems=_REFUSED, raw=True),
    Route("PUT", PATH, receive_webhook, None, _TAKEN, problems=_REFUSED, raw=True),
    Route("GET", PATH, webhook_handshake, None, {200: str}, problems=_REFUSED, raw=True),
    Route("HEAD", PATH, webhook_handshake, None, {200: None}, problems=_REFUSED, raw=True),
    Route("OPTIONS", PATH, webhook_handshake, None, {200: None}, problems=_REFUSED, raw=True),
)
