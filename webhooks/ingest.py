"""From a request to a stored delivery, in one order that loses nothing:

    unsigned handshake → verify → signed handshake → read the body → event key, scope, filter → submit (persists, knows duplicates) → answer

A request that is proven is never refused for a mistake of ours: when an expression fails it is submitted as `unrouted` and answered 202.
A request that is not proven gets the one same answer whatever was wrong with it, and the reason is in its `Delivery`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from webhooks import body, handshakes
from webhooks.errors import BodyError, VerificationError, WebhookError
from webhooks.fetched import KeyCache, KeyRequest
from webhooks.handshakes import Challenge
from webhooks.jwt import parse_token
from webhooks.request import JsonValue, Request
from webhooks.response import Response, document, problem
from webhooks.scheme import Scheme
from webhooks.sources import Reader
from webhooks.verify import Verified, candidates, document_request, verify

BODY_BYTES_MAX: Final = 1024 * 1024
SECRETS_MAX: Final = 8
DETAIL_CHARS_MAX: Final = 500
KEY_CHARS_MAX: Final = 512
SIGNED_AT: Final = "at:"
"""What a dedupe key begins with that need be kept for no longer than the signature is fresh."""

Status = Literal["accepted", "duplicate", "unrouted", "rejected", "handshake"]
Evaluate = Callable[[JsonValue, Mapping[str, str]], Any]
"""An expression over `input` and `headers`. Any exception it raises means that this delivery cannot be routed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One address that receives webhooks.

    `secrets` are all active ones, newest first. `event_key` gives the type of the event, `scope` its scope, `filter` whether it starts
    anything. `response` replaces the usual answer to an accepted delivery. `methods` may deliver; handshakes bring their own.
    """

    name: str
    scheme: Scheme
    event_key: Evaluate
    secrets: tuple[str, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    challenges: tuple[Challenge, ...] = ()
    scope: Evaluate | None = None
    filter: Evaluate | None = None
    static_payload: Mapping[str, JsonValue] | None = None
    response: Response | None = None
    methods: frozenset[str] = frozenset({"POST", "PUT"})
    body_bytes_max: int = BODY_BYTES_MAX

    def __post_init__(self) -> None:
        """Raises ValueError for more secrets than a request is compared with."""
        if len(self.secrets) > SECRETS_MAX:
            raise ValueError(f"a source has at most {SECRETS_MAX} active secrets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The record of one request. `body` is raw, `headers` without credentials; `reason` is a code and `detail` says it in words.

    `dedupe_keys` must each be unique within the source; when any of them is already there the delivery is a duplicate. `routed` is
    False for one that starts nothing: unrouted, or refused by the filter (reason `filtered`).
    """

    source: str
    status: Status
    received_at: float
    method: str
    headers: Mapping[str, str]
    body: bytes
    reason: str = ""
    detail: str = ""
    delivery_id: str | None = None
    dedupe_keys: tuple[str, ...] = ()
    secret_index: int | None = None
    event_key: str | None = None
    scope: str | None = None
    input: JsonValue = None
    routed: bool = False


@dataclass(frozen=True, slots=True)
class Submitted:
    """What `submit` did: `id` is that of the stored delivery, or for a duplicate of the first one."""

    status: Literal["accepted", "duplicate", "unrouted"]
    id: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to send and the record to keep. `capture` is a secret the source just learned, to store for confirmation.

    Accepted, duplicate and unrouted deliveries are stored by `submit` before this exists; rejected ones are the caller's to record.
    """

    response: Response
    delivery: Delivery
    capture: str | None = None


Submit = Callable[[Delivery], Awaitable[Submitted]]
"""Persists a delivery and its event in one transaction. What it raises reaches the caller: no 2xx without a commit."""

UNVERIFIED: Final = problem(
    401, "unverified", "Not verified", "This request is not proven to come from its sender. The deliveries of the webhook show the reason."
)
UNAVAILABLE: Final = problem(503, "key_unavailable", "Try again", "The sender's public key could not be fetched just now.")
REFUSALS: Final[Mapping[str, tuple[int, str]]] = {
    "invalid_body": (400, "Unreadable body"),
    "too_large": (413, "Body too large"),
    "content_encoding": (415, "Unsupported content encoding"),
    "method": (405, "Method not allowed"),
}


@dataclass(frozen=True, slots=True)
class Ingest:
    """Receives requests for sources. `keys` fetches certificates, key sets and SNS confirmations; None when no source needs any."""

    submit: Submit
    keys: KeyCache | None = None

    async def receive(self, source: Source, request: Request, now: float) -> Outcome:
        """Handle one request; `now` is in Unix seconds. Raises only what `submit` raises."""
        try:
            if len(request.body) > source.body_bytes_max:
                raise BodyError("too_large", f"the body is larger than {source.body_bytes_max} bytes")
            delivery = await self._proven(source, request, now)
        except WebhookError as error:
            return _refused(source, request, now, error)
        if isinstance(delivery, Outcome):
            return delivery
        return _answered(source, delivery, await self.submit(delivery))

    async def _proven(self, source: Source, request: Request, now: float) -> Delivery | Outcome:
        """The delivery to submit, or the outcome of a handshake."""
        challenge = handshakes.find(source.challenges, request, verified=False, secrets=source.secrets)
        if challenge is not None:
            return await self._shaken(challenge, source, request, now, None)
        verified = await self._verified(source, request, now)
        challenge = handshakes.find(source.challenges, request, verified=True, secrets=source.secrets)
        if challenge is not None:
            return await self._shaken(challenge, source, request, now, verified.secret_index)
        if request.method not in source.methods:
            raise BodyError("method", f"deliveries come by {' or '.join(sorted(source.methods))}")
        claims = verified.claims if source.scheme.payload == "claims" else None
        value = body.read(request, static_payload=source.static_payload, claims=claims)
        return _routed(source, value, _proven_record(source, request, now, verified))

    async def _verified(self, source: Source, request: Request, now: float) -> Verified:
        wanted = document_request(source.scheme, request, source.secrets, source.params)
        if wanted is None:
            return verify(source.scheme, request, source.secrets, now, source.params)
        for fresh in (False, True):  # an unknown key may be one the sender has only just begun to use
            found = await self._keys().get(wanted, now, fresh=fresh)
            try:
                return verify(source.scheme, request, source.secrets, now, source.params, document=found)
            except VerificationError as error:
                if error.code != "key_unavailable" or fresh:
                    raise
        raise AssertionError("unreachable")

    async def _shaken(self, challenge: Challenge, source: Source, request: Request, now: float, index: int | None) -> Outcome:
        secret = source.secrets[index or 0] if source.secrets else ""
        made = handshakes.answer(challenge, request, source.params, secret)
        if made.visit is not None:
            await self._keys().visit(KeyRequest(made.visit))
        record = _record(source, request, now, status="handshake", reason=made.name)
        return Outcome(made.response, record, made.capture)

    def _keys(self) -> KeyCache:
        if self.keys is None:
            raise VerificationError("key_unavailable", "nothing here can fetch the sender's keys")
        return self.keys


def route_again(source: Source, request: Request, record: Delivery) -> Delivery:
    """Route a stored delivery by the expressions `source` has now. It was proven when it came: nothing is verified again.

    Raises BodyError where the body cannot be read, which a stored one could be once.
    """
    claims = parse_token(candidates(source.scheme, Reader(request, source.params))[0]).claims if source.scheme.payload == "claims" else None
    value = body.read(request, static_payload=source.static_payload, claims=claims)
    return _routed(source, value, record)


def refuse_unknown(request: Request) -> Response:
    """The answer for an address that is no source: the same, after the same work, as for a wrong secret."""
    digest = hmac.digest(b"no such source", request.body, "sha256")
    hmac.compare_digest(digest, bytes(len(digest)))
    return UNVERIFIED


def dedupe_keys(scheme: Scheme, request_body: bytes, delivery_id: str | None, signed_at: str = "") -> tuple[str, ...]:
    """The sender's id where it is signed; else also the hash of the body, because an id that is not signed can be changed.

    Without an id, the hash together with the time of signing too: it tells a request that was copied on the way from a later one that
    says the same, for as long as the first is not stale.
    """
    if delivery_id is not None and scheme.id_signed:
        return (f"id:{delivery_id}",)
    digest = "sha256:" + hashlib.sha256(request_body).hexdigest()
    if delivery_id is not None:
        return (f"id:{delivery_id}", digest)
    return (digest, f"{SIGNED_AT}{signed_at} {digest}") if signed_at else (digest,)


def _record(source: Source, request: Request, now: float, *, status: Status, reason: str = "", detail: str = "") -> Delivery:
    return Delivery(
        source=source.name,
        status=status,
        received_at=now,
        method=request.method,
        headers=body.kept_headers(request, source.scheme),
        body=request.body,
        reason=reason,
        detail=detail[:DETAIL_CHARS_MAX],
    )


def _proven_record(source: Source, request: Request, now: float, verified: Verified) -> Delivery:
    return Delivery(
        source=source.name,
        status="accepted",
        received_at=now,
        method=request.method,
        headers=body.kept_headers(request, source.scheme),
        body=request.body,
        delivery_id=verified.delivery_id,
        dedupe_keys=dedupe_keys(source.scheme, request.body, verified.delivery_id, verified.signed_at),
        secret_index=verified.secret_index,
    )


def _routed(source: Source, value: JsonValue, record: Delivery) -> Delivery:
    """The record with its event key and scope; unrouted when an expression fails, filtered when the filter says no."""
    found: dict[str, object] = {}
    for name, evaluate, wanted in (("event_key", source.event_key, str), ("scope", source.scope, str), ("filter", source.filter, bool)):
        try:
            result = evaluate(value, record.headers) if evaluate is not None else None
        except Exception as error:
            return replace(record, status="unrouted", reason=f"{name}_failed", detail=str(error)[:DETAIL_CHARS_MAX], input=value)
        if evaluate is not None and not _usable(result, wanted):
            detail = f"{name} gave no {wanted.__name__}, an empty one or one of more than {KEY_CHARS_MAX} characters"
            return replace(record, status="unrouted", reason=f"{name}_failed", detail=detail, input=value)
        found[name] = result
    passed = found.pop("filter") is not False
    return replace(record, input=value, routed=passed, reason="" if passed else "filtered", **found)  # type: ignore[arg-type]


def _usable(result: object, wanted: type) -> bool:
    return isinstance(result, wanted) and (not isinstance(result, str) or 0 < len(result) <= KEY_CHARS_MAX)


def _answered(source: Source, delivery: Delivery, submitted: Submitted) -> Outcome:
    status = 202 if submitted.status == "unrouted" else 200
    if source.response is None:
        response = document(status, {"id": submitted.id, "status": submitted.status})
    else:
        response = replace(source.response, status=202) if status == 202 else source.response
    return Outcome(response, delivery if delivery.status == submitted.status else replace(delivery, status=submitted.status))


def _refused(source: Source, request: Request, now: float, error: WebhookError) -> Outcome:
    record = _record(source, request, now, status="rejected", reason=error.code, detail=error.message)
    if isinstance(error, VerificationError):
        return Outcome(UNAVAILABLE if error.code == "key_unavailable" else UNVERIFIED, record)
    status, title = REFUSALS[error.code]
    response = problem(status, error.code, title, error.message)
    if error.code == "method":
        response = replace(response, headers=(*response.headers, ("allow", ", ".join(sorted(source.methods)))))
    return Outcome(response, record)
