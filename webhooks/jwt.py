"""JSON Web Tokens as some senders sign with them: the algorithm is pinned by the scheme, never taken from the token."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from webhooks.encoding import DECODERS, from_base64url
from webhooks.errors import BodyError, VerificationError
from webhooks.fetched import set_key
from webhooks.keys import FAMILIES, KIND_OF, PublicKey, among, public, signed_by, symmetric
from webhooks.request import JsonValue, parse_json
from webhooks.scheme import Jwt, Scheme
from webhooks.sources import Reader

LEEWAY: Final = 60.0  # seconds a sender's clock may be off
SECONDS_MAX: Final = 1e12
COORDINATE_BYTES: Final[Mapping[str, int]] = {"ES256": 32, "ES384": 48, "ES512": 66}


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart, nothing of it checked yet."""

    algorithm: str
    key_id: str | None
    claims: Mapping[str, JsonValue]
    signed: bytes
    signature: bytes


def parse_token(text: str) -> Token:
    """Raises VerificationError `malformed`."""
    try:
        head, payload, signature = text.split(".")
        if "=" in text:
            raise ValueError("a token has no padding: each has one spelling, so that a repeated one is seen as such")
        header, claims = parse_json(from_base64url(head)), parse_json(from_base64url(payload))
        if not isinstance(header, dict) or not isinstance(claims, dict) or "crit" in header:
            raise ValueError("header and claims are objects, and no extension is critical")
        key_id = header.get("kid")
        return Token(
            str(header.get("alg")),
            key_id if isinstance(key_id, str) else None,
            claims,
            f"{head}.{payload}".encode(),
            from_base64url(signature),
        )
    except (ValueError, BodyError) as error:
        raise VerificationError("malformed", f"not a signed token: {error}") from error


def check_token(
    scheme: Scheme, text: str, reader: Reader, secrets: Sequence[str], now: float, document: bytes | None
) -> tuple[int | None, Mapping[str, JsonValue]]:
    """The secret that signed the token (None for a fetched key) and its claims, all of them checked."""
    rules = scheme.jwt
    assert rules is not None
    token = parse_token(text)
    if token.algorithm not in rules.algorithms:
        raise VerificationError("mismatch", f"the token is not signed with {' or '.join(rules.algorithms)}")
    if scheme.keys is not None:
        index = None
        _require(_by_public(set_key(document, token.key_id), token), "the sender's key did not sign this token")
    else:
        index = _signer(scheme, token, secrets)
    _check_times(rules, token.claims, now, scheme.tolerance)
    _check_hashes(rules, token.claims, reader)
    _check_claims(rules, token.claims, reader)
    return index, token.claims


def _require(holds: object, message: str) -> None:
    if not holds:
        raise VerificationError("mismatch", message)


def _signer(scheme: Scheme, token: Token, secrets: Sequence[str]) -> int:
    if not secrets:
        raise VerificationError("no_secret", "this source has no secret yet")
    results = [_signed_with(scheme, token, secret) for secret in secrets]
    if all(result is None for result in results):
        raise VerificationError("bad_secret", "no secret of this source is written as its scheme says")
    _require(True in results, "no active secret of this source signed this token")
    return results.index(True)


def _signed_with(scheme: Scheme, token: Token, secret: str) -> bool | None:
    family = FAMILIES[token.algorithm[:2]]
    try:
        if family == "hmac":
            expected = hmac.digest(symmetric(scheme, secret), token.signed, "sha" + token.algorithm[2:])
            return hmac.compare_digest(expected, token.signature)
        return _by_public(public(family, scheme.key, scheme.key_prefix, secret), token)
    except ValueError:
        return None


def _by_public(key: PublicKey, token: Token) -> bool:
    if not isinstance(key, KIND_OF[FAMILIES[token.algorithm[:2]]]):
        return False
    signature = token.signature
    size = COORDINATE_BYTES.get(token.algorithm)
    if size is not None and isinstance(key, ec.EllipticCurvePublicKey):
        if len(signature) != 2 * size:
            return False
        signature = encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))
    return signed_by(key, signature, token.signed, "sha" + token.algorithm[2:])


def _check_times(rules: Jwt, claims: Mapping[str, JsonValue], now: float, tolerance: int) -> None:
    if rules.fresh and rules.fresh not in claims:
        raise VerificationError("missing_field", f"the token has no {rules.fresh}")
    times = {name: _time(claims, name) for name in ("exp", "nbf", "iat") if name in claims}
    if now > times.get("exp", now) + LEEWAY or now < times.get("nbf", now) - LEEWAY or now < times.get("iat", now) - tolerance:
        raise VerificationError("stale", "the token has expired or is not valid yet")
    if rules.fresh == "iat" and now - times["iat"] > tolerance:
        raise VerificationError("stale", f"the token was made more than {tolerance} s ago")


def _time(claims: Mapping[str, JsonValue], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > SECONDS_MAX:
        raise VerificationError("malformed", f"{name} is a number of seconds")
    return float(value)


def _check_hashes(rules: Jwt, claims: Mapping[str, JsonValue], reader: Reader) -> None:
    if rules.body_hash:
        _check_hash(claims, rules.body_hash, rules.body_encoding, reader.request.body)
    if rules.url_hash:
        _check_hash(claims, rules.url_hash, "hex", reader.request.url.encode("utf-8", "replace"))


def _check_hash(claims: Mapping[str, JsonValue], name: str, encoding: str, what: bytes) -> None:
    held = claims.get(name)
    if not isinstance(held, str):
        raise VerificationError("missing_field", f"the token has no {name}")
    try:
        sent = DECODERS[encoding](held)
    except ValueError as error:
        raise VerificationError("malformed", f"{name} is not {encoding}") from error
    _require(hmac.compare_digest(sent, hashlib.sha256(what).digest()), f"{name} is not the hash of what arrived")


def _check_claims(rules: Jwt, claims: Mapping[str, JsonValue], reader: Reader) -> None:
    for name, template in rules.claims:
        wanted = reader.text(template)
        if not wanted:
            raise VerificationError("missing_param", f"this source needs the setting in {template}: without it any token would pass")
        held = claims.get(name)
        values = held if isinstance(held, list) else [held]
        _require(among(wanted, [value for value in values if isinstance(value, str)]), f"the token is not for this source: {name}")
