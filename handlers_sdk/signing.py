"""Signatures of the push protocol: Standard Webhooks `v1` (HMAC-SHA256) and `v1a` (ed25519).

Both sides share this one definition: the dispatcher signs with it, handlers verify with it. Source of the rule: PROTOCOL.md, "Signatures".
The signed content is `<webhook-id>.<webhook-timestamp>.<body>`, over the raw bytes of the body as sent before any compression.
"""

from __future__ import annotations

import binascii
import hmac
import secrets as random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from handlers_sdk.wire import HEADER_MESSAGE_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP

WHSEC: Final = "whsec_"
WHPK: Final = "whpk_"
TOLERANCE_SECONDS: Final = 300
SIGNATURES_MAX: Final = 16
"""More tokens than any rotation needs are ignored, so that a hostile header cannot buy many public-key operations."""

Scheme = Literal["v1", "v1a"]
SignatureCode = Literal["missing_signature", "malformed", "stale", "mismatch", "wrong_audience"]


class SignatureError(Exception):
    """A request that must not be believed. `code` is stable; the text says what to look at."""

    def __init__(self, code: SignatureCode, message: str) -> None:
        super().__init__(message)
        self.code: SignatureCode = code


class Signer(Protocol):
    """Anything that turns one message into one `<scheme>,<base64>` token."""

    def sign(self, message_id: str, timestamp: int, body: bytes) -> str:
        """The token over `<message_id>.<timestamp>.<body>`; timestamp in unix seconds."""


class HmacSigner:
    """`v1`: HMAC-SHA256 under one endpoint's secret, given as `whsec_<base64>`. ValueError when it is not of that form."""

    __slots__ = ("_key",)

    def __init__(self, secret: str) -> None:
        self._key = _secret_bytes(secret)

    def sign(self, message_id: str, timestamp: int, body: bytes) -> str:
        """`v1,<base64>`."""
        return "v1," + _base64(_mac(self._key, _content(message_id, timestamp, body)))


class Ed25519Signer:
    """`v1a`: ed25519 under a tenant's 32-byte seed. `public` is what verifiers hold, `whpk_<base64>`."""

    __slots__ = ("_key", "public", "public_bytes")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_bytes: bytes = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public: str = WHPK + _base64(self.public_bytes)

    def sign(self, message_id: str, timestamp: int, body: bytes) -> str:
        """`v1a,<base64>`."""
        return "v1a," + _base64(self._key.sign(_content(message_id, timestamp, body)))


def signature_header(signers: Sequence[Signer], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one token per signer, separated by spaces, `v1a` before `v1`, otherwise in the order given."""
    tokens = [signer.sign(message_id, timestamp, body) for signer in signers]
    if len(tokens) > 1:
        tokens.sort(key=lambda token: not token.startswith("v1a,"))
    return " ".join(tokens)


def verify(
    headers: Mapping[str, str],
    body: bytes,
    *,
    secrets: Sequence[str] = (),
    public_keys: Sequence[str] = (),
    audience: str | None,
    now: int,
    tolerance: int = TOLERANCE_SECONDS,
) -> Scheme:
    """Which scheme vouches for this message; SignatureError when none does.

    `headers` has lower-case names, `now` is unix seconds. A secret belongs to one endpoint; a public key is shared by all endpoints
    of a tenant, so a `v1a` match also needs the audience inside `webhook-id` to be ours. `audience` None leaves that to the caller.
    """
    message_id, timestamp, tokens = _parse(headers)
    if abs(now - timestamp) > tolerance:
        raise SignatureError("stale", f"{HEADER_TIMESTAMP} is {now - timestamp} s away from this clock; at most {tolerance} s are allowed")
    content = _content(message_id, timestamp, body)
    if any(_matches_secret(secret, tokens, content) for secret in secrets):
        return "v1"
    if not any(_matches_key(key, tokens, content) for key in public_keys):
        raise SignatureError("mismatch", _mismatch_text(tokens, bool(secrets), bool(public_keys)))
    if audience is not None and audience_of(message_id) != audience:
        raise SignatureError("wrong_audience", f"signed for endpoint {audience_of(message_id)}, this endpoint is {audience}")
    return "v1a"


def audience_of(message_id: str) -> str:
    """The endpoint a message was signed for: `webhook-id` up to its last underscore."""
    return message_id.rpartition("_")[0]


def check_public_key(text: str) -> None:
    """ValueError, saying why, when a text is not `whpk_<base64 of an ed25519 public key>`."""
    _public_key(text)


def new_secret() -> str:
    """A fresh endpoint secret: `whsec_` and 32 random bytes in base64."""
    return WHSEC + _base64(random.token_bytes(32))


def _parse(headers: Mapping[str, str]) -> tuple[str, int, list[tuple[str, str]]]:
    message_id, stamp, header = headers.get(HEADER_MESSAGE_ID), headers.get(HEADER_TIMESTAMP), headers.get(HEADER_SIGNATURE)
    if not message_id or not stamp or not header:
        raise SignatureError("missing_signature", f"{HEADER_MESSAGE_ID}, {HEADER_TIMESTAMP} and {HEADER_SIGNATURE} are all required")
    if "." in message_id or not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise SignatureError("malformed", f"{HEADER_MESSAGE_ID} has no dots and {HEADER_TIMESTAMP} is unix seconds")
    tokens = [(scheme, value) for scheme, comma, value in (t.partition(",") for t in header.split(" ")[:SIGNATURES_MAX]) if comma]
    if not any(scheme in ("v1", "v1a") for scheme, _ in tokens):
        raise SignatureError("malformed", f"{HEADER_SIGNATURE} holds no `v1,<base64>` or `v1a,<base64>` token")
    return message_id, int(stamp), tokens


def _matches_secret(secret: str, tokens: Sequence[tuple[str, str]], content: bytes) -> bool:
    expected: bytes | None = None
    matched = False
    for scheme, value in tokens:
        if scheme == "v1":
            expected = expected or _base64(_mac(_secret_bytes(secret), content)).encode()
            matched |= hmac.compare_digest(expected, value.encode("utf-8", "replace"))
    return matched


def _matches_key(public_key: str, tokens: Sequence[tuple[str, str]], content: bytes) -> bool:
    return any(scheme == "v1a" and _vouches(_public_key(public_key), value, content) for scheme, value in tokens)


def _vouches(key: Ed25519PublicKey, signature: str, content: bytes) -> bool:
    try:
        key.verify(_unbase64(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _mismatch_text(tokens: Sequence[tuple[str, str]], has_secrets: bool, has_keys: bool) -> str:
    sent = sorted({scheme for scheme, _ in tokens if scheme in ("v1", "v1a")})
    held = [name for name, have in (("a v1 secret", has_secrets), ("v1a public keys", has_keys)) if have]
    return (
        f"no signature matches: the request carries {' and '.join(sent)}, this endpoint holds {' and '.join(held) or 'no key at all'}. "
        "Check the key, and that the body was verified as the bytes received (a framework that parses and re-serialises it breaks it)"
    )


def _content(message_id: str, timestamp: int, body: bytes) -> bytes:
    return b"%b.%d.%b" % (message_id.encode(), timestamp, body)


def _mac(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _unbase64(text: str) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


@lru_cache(maxsize=1024)
def _secret_bytes(secret: str) -> bytes:
    if not secret.startswith(WHSEC):
        raise ValueError(f"an endpoint secret starts with {WHSEC}")
    try:
        key = _unbase64(secret[len(WHSEC) :])
    except binascii.Error as error:
        raise ValueError(f"an endpoint secret is {WHSEC} followed by base64: {error}") from None
    if not key:
        raise ValueError("an endpoint secret is not empty")
    return key


@lru_cache(maxsize=1024)
def _public_key(text: str) -> Ed25519PublicKey:
    if not text.startswith(WHPK):
        raise ValueError(f"a public key starts with {WHPK}")
    try:
        return Ed25519PublicKey.from_public_bytes(_unbase64(text[len(WHPK) :]))
    except ValueError as error:
        raise ValueError(f"a public key is {WHPK} followed by the base64 of 32 bytes: {error}") from None
