"""Webhooks of any sender, verified. Needs pydantic and cryptography, nothing else: no I/O, no clock, no storage.

    from webhooks import PROVIDERS, Request, verify

    request = Request.build("POST", "https://example.com/hooks/default/github", headers, body)
    verified = verify(PROVIDERS["github"].scheme, request, ["secret"], now)     # or VerificationError

`scheme.py` is the model every sender is described in, `providers.py` the senders, `ingest.py` the way from a request to an event.
"""

from webhooks.errors import BodyError, VerificationError, WebhookError
from webhooks.fetched import KeyCache, KeyRequest
from webhooks.ingest import Delivery, Ingest, Outcome, Source, Submitted, refuse_unknown, route_again
from webhooks.providers import PROVIDERS, Provider
from webhooks.request import JsonValue, Request
from webhooks.response import Response
from webhooks.scheme import Jwt, KeyDocument, Scheme
from webhooks.verify import Verified, verify

__all__ = [
    "PROVIDERS",
    "BodyError",
    "Delivery",
    "Ingest",
    "JsonValue",
    "Jwt",
    "KeyCache",
    "KeyDocument",
    "KeyRequest",
    "Outcome",
    "Provider",
    "Request",
    "Response",
    "Scheme",
    "Source",
    "Submitted",
    "VerificationError",
    "Verified",
    "WebhookError",
    "refuse_unknown",
    "route_again",
    "verify",
]
