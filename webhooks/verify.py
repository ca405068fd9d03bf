"""`verify`: does this request come from the sender of this source? Pure: no clock, no I/O; the body is never turned into text.

Every candidate signature is compared with every active secret, on decoded bytes and in constant time, whether or not an earlier one
matched. What is missing, doubled or out of form is refused before any key is used.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, TypeVar

from webhooks.canonical import CANONICAL, Signed
from webhooks.encoding import DECODERS, from_base64
from webhooks.errors import BodyError, VerificationError
from webhooks.fetched import KeyRequest, certificate_key, key_request
from webhooks.jwt import check_token, parse_token
from webhooks.keys import PublicKey, among, public, same, signed_by, symmetric
from webhooks.request import JsonValue, Request
from webhooks.scheme import BODY_KINDS, Scheme
from webhooks.sources import Reader, parse_source

Key = TypeVar("Key")

CANDIDATES_MAX: Final = 8
HEADER_CHARS_MAX: Final = 16_384
ID_CHARS_MAX: Final = 200
NO_PARAMS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Verified:
    """A proven request.

    `secret_index` is the secret that matched (None when the scheme uses a fetched key or none at all); `id_signed` says whether the
    sender's `delivery_id` could have been changed on the way; `claims` are those of a verified token; `signed_at` is the time of signing
    as the sender wrote it, empty where its scheme has none.
    """

    secret_index: int | None
    delivery_id: str | None
    id_signed: bool
    claims: Mapping[str, JsonValue] = field(default_factory=dict)
    signed_at: str = ""


@dataclass(frozen=True, slots=True)
class _Case:
    scheme: Scheme
    reader: Reader
    secrets: tuple[str, ...]
    now: float
    document: bytes | None


def verify(
    scheme: Scheme,
    request: Request,
    secrets: Sequence[str],
    now: float,
    params: Mapping[str, str] = NO_PARAMS,
    *,
    document: bytes | None = None,
) -> Verified:
    """Prove that `request` was made by a holder of one of `secrets` (shared secrets, or public keys where the sender signs with one).

    `now` is in Unix seconds. `params` are the settings some senders need (`webhook_id`, `topic_arn`, `username`, …). `document` is the
    certificate or key set that `fetched.key_request` asked for. Raises VerificationError and nothing else.
    """
    case = _Case(scheme, Reader(request, params), tuple(secrets), now, document)
    try:
        index = CHECKS[scheme.kind](case)
        _check_required(scheme, case.reader)
        signed_at = case.reader.first(scheme.timestamp) or "" if scheme.timestamp else ""
        return Verified(index, delivery_id(scheme, case.reader), scheme.id_signed, case.reader.claims, signed_at)
    except BodyError as error:
        raise VerificationError("malformed", error.message) from error


def document_request(scheme: Scheme, request: Request, secrets: Sequence[str], params: Mapping[str, str] = NO_PARAMS) -> KeyRequest | None:
    """What to fetch before `verify`, None when nothing is. Raises VerificationError, `untrusted_key` above all."""
    if scheme.keys is None:
        return None
    reader = Reader(request, params)
    found = candidates(scheme, reader)
    _check_required(scheme, reader)
    key_id = parse_token(found[0]).key_id if scheme.kind == "jwt" else None
    known = {**params, "key_id": key_id or "", "secret": secrets[0] if secrets else ""}
    return key_request(scheme.keys, Reader(request, known, reader.items))


def delivery_id(scheme: Scheme, reader: Reader) -> str | None:
    """The sender's id of this delivery: at most 200 printable characters, else its hash; None when a part of it is absent."""
    if not scheme.delivery_id:
        return None
    text = reader.text(scheme.delivery_id)
    if text and (len(text) > ID_CHARS_MAX or not text.isprintable()):
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return text or None


def _check_required(scheme: Scheme, reader: Reader) -> None:
    for source, name in scheme.require:
        wanted = reader.params.get(name)
        if not wanted:
            raise VerificationError("missing_param", f"this source needs the setting {name!r}: without it another customer's would pass")
        if not same(reader.need(source), wanted):
            raise VerificationError("mismatch", f"{source} is not the {name} of this source")


def candidates(scheme: Scheme, reader: Reader) -> list[str]:
    """The texts that may be the signature, prefix dropped: at least one, at most eight. Fills `reader.items`."""
    texts = [text for text in reader.every(scheme.signature) if text]
    if not texts:
        raise VerificationError("missing_signature", f"no signature in {scheme.signature}")
    if any(len(text) > HEADER_CHARS_MAX for text in texts):
        raise VerificationError("malformed", "the signature is far longer than any signature")
    if scheme.items:
        texts = _items(scheme.items, texts, reader)
    found = [text[len(scheme.prefix) :] for text in texts if text[: len(scheme.prefix)].lower() == scheme.prefix.lower()]
    if not found or len(found) > CANDIDATES_MAX:
        raise VerificationError("malformed", f"a signature starts with {scheme.prefix!r} and there are at most {CANDIDATES_MAX}")
    return found


def _items(items: tuple[str, str, str], texts: Sequence[str], reader: Reader) -> list[str]:
    separator, equals, wanted = items
    held: dict[str, list[str]] = {}
    for text in texts:
        for item in text.split(separator):
            name, _, value = item.strip().partition(equals)
            held.setdefault(name, []).append(value)
    reader.items = held
    if wanted not in held:
        raise VerificationError("missing_signature", f"no signature of version {wanted}")
    return held[wanted]


def _decoded(scheme: Scheme, reader: Reader) -> list[bytes]:
    decode = DECODERS[scheme.encoding]
    found = []
    for text in candidates(scheme, reader):
        try:
            found.append(decode(text))
        except ValueError:  # one that cannot be read may stand beside one that can, while a sender changes versions
            continue
    if not found:
        raise VerificationError("malformed", f"the signature is not {scheme.encoding}")
    return found


def _check_time(case: _Case, *, proven: bool) -> None:
    """Hold the time of signing to the tolerance.

    Before anything is computed where a header has it, afterwards where the body has it: that is taken apart for nobody who has proven
    nothing.
    """
    if not case.scheme.timestamp or _in_body(case.scheme.timestamp) is not proven:
        return
    moment = _moment(case.reader.need(case.scheme.timestamp), case.scheme.unit)
    if abs(case.now - moment) > case.scheme.tolerance:
        raise VerificationError("stale", f"signed {case.now - moment:+.0f} s ago, {case.scheme.tolerance} s are allowed either way")


def _in_body(source: str) -> bool:
    return any(place.kind in BODY_KINDS for place in parse_source(source))


def _moment(text: str, unit: str) -> float:
    """Unix seconds of a sender's timestamp."""
    try:
        if unit == "iso":
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise ValueError(text)
        return int(text) / (1000 if unit == "ms" else 1)
    except (ValueError, OverflowError) as error:
        raise VerificationError("malformed", f"the timestamp is not of the form {unit}") from error


def _signed(case: _Case) -> Signed:
    if case.scheme.canonical:
        return CANONICAL[case.scheme.canonical].make(case.reader)
    return Signed((case.reader.render(case.scheme.signed),))


def _match(secrets: Sequence[str], read: Callable[[str], Key], proves: Callable[[Key], bool]) -> int:
    """The index of the first secret that proves the request; every one is tried whatever the others said."""
    if not secrets:
        raise VerificationError("no_secret", "this source has no secret yet")
    usable, winner = 0, None
    for index, secret in enumerate(secrets):
        try:
            key = read(secret)
        except ValueError:  # one badly written secret does not switch off the others
            continue
        usable += 1
        if proves(key) and winner is None:
            winner = index
    if not usable:
        raise VerificationError("bad_secret", "no secret of this source is written as its scheme says")
    if winner is None:
        raise VerificationError("mismatch", "no active secret of this source made this signature")
    return winner


def _hmac(case: _Case) -> int:
    found = _decoded(case.scheme, case.reader)
    _check_time(case, proven=False)
    signed = _signed(case)
    algorithm = signed.algorithm or case.scheme.algorithm

    def proves(key: bytes) -> bool:
        matched = False
        for message in signed.messages:
            expected = hmac.digest(key, message, algorithm)
            for candidate in found:
                matched |= hmac.compare_digest(expected, candidate)
        return matched

    index = _match(case.secrets, lambda secret: symmetric(case.scheme, secret), proves)
    _check_time(case, proven=True)
    return index


def _public_key(case: _Case) -> int | None:
    scheme = case.scheme
    found = _decoded(scheme, case.reader)
    _check_time(case, proven=False)
    signed = _signed(case)
    algorithm = signed.algorithm or scheme.algorithm

    def proves(key: PublicKey) -> bool:
        return any(signed_by(key, candidate, message, algorithm) for message in signed.messages for candidate in found)

    index = None
    if scheme.keys is None:
        index = _match(case.secrets, lambda secret: public(scheme.kind, scheme.key, scheme.key_prefix, secret), proves)
    elif not proves(certificate_key(case.document, scheme.kind, case.now)):
        raise VerificationError("mismatch", "the sender's certificate did not make this signature")
    _check_time(case, proven=True)
    return index


def _token(case: _Case) -> int:
    found = candidates(case.scheme, case.reader)
    return _match(case.secrets, _not_empty, lambda secret: among(secret, found))


def _basic(case: _Case) -> int:
    sent = [_credentials(text) for text in candidates(case.scheme, case.reader)]
    name = case.reader.params.get("username")
    prefix = "" if name is None else f"{name}:"
    return _match(case.secrets, _not_empty, lambda secret: among(prefix + secret, sent))


def _credentials(text: str) -> str:
    try:
        return from_base64(text.strip()).decode()
    except ValueError as error:
        raise VerificationError("malformed", "basic credentials are base64 of name:password in UTF-8") from error


def _not_empty(secret: str) -> str:
    if not secret:
        raise ValueError("the secret is empty")
    return secret


def _jwt(case: _Case) -> int | None:
    tokens = candidates(case.scheme, case.reader)
    if len(tokens) != 1:
        raise VerificationError("malformed", "exactly one token is expected")
    index, case.reader.claims = check_token(case.scheme, tokens[0], case.reader, case.secrets, case.now, case.document)
    return index


def _unverified(case: _Case) -> None:
    """Chosen explicitly by the user for this source: anything is accepted."""


CHECKS: Final[Mapping[str, Callable[[_Case], int | None]]] = {
    "hmac": _hmac,
    "ed25519": _public_key,
    "ecdsa": _public_key,
    "rsa": _public_key,
    "token": _token,
    "basic": _basic,
    "jwt": _jwt,
    "none": _unverified,
}
