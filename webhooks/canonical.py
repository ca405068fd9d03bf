"""The three senders whose signed bytes no template can say. Each function is a few lines and states its source."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from webhooks.errors import VerificationError
from webhooks.request import FORM
from webhooks.sources import Place, Reader, sorted_form

ADYEN_ITEM: Final = "notificationItems.0.NotificationRequestItem"
ADYEN_FIELDS: Final = (
    "pspReference",
    "originalReference",
    "merchantAccountCode",
    "merchantReference",
    "amount.value",
    "amount.currency",
    "eventCode",
    "success",
)
SNS_NOTIFICATION: Final = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
SNS_CONFIRMATION: Final = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
SNS_ALGORITHMS: Final = {"1": "sha1", "2": "sha256"}


class Signed(NamedTuple):
    """The signed bytes, one per spelling the sender may have used, and the hash when the message itself names it."""

    messages: tuple[bytes, ...]
    algorithm: str = ""


class Canonical(NamedTuple):
    """A canonical form and the places it covers."""

    make: Callable[[Reader], Signed]
    covers: frozenset[Place]


def sns(reader: Reader) -> Signed:
    """Amazon SNS: name and value of a fixed list of members, each followed by a newline; Subject only when present.

    https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
    """
    names = SNS_NOTIFICATION if reader.need("b:Type") == "Notification" else SNS_CONFIRMATION
    values = {name: reader.first(f"b:{name}") if name == "Subject" else reader.need(f"b:{name}") for name in names}
    algorithm = SNS_ALGORITHMS.get(reader.first("b:SignatureVersion") or "")
    if algorithm is None:
        raise VerificationError("malformed", "SignatureVersion is 1 or 2")
    text = "".join(f"{name}\n{value}\n" for name, value in values.items() if value is not None)
    return Signed((_encode(text),), algorithm)


def adyen(reader: Reader) -> Signed:
    """Adyen: eight members of the one notification item, joined with colons; an absent member is an empty string.

    https://docs.adyen.com/development-resources/webhooks/verify-hmac-signatures
    """
    if _items(reader) != 1:
        raise VerificationError("malformed", "a notification has exactly one item: a second one would not be signed")
    values = [reader.first(f"b:{ADYEN_ITEM}.{name}") or "" for name in ADYEN_FIELDS]
    return Signed((_encode(":".join(values)),))


def _items(reader: Reader) -> int:
    body = reader.request.json()
    items = body.get("notificationItems") if isinstance(body, dict) else None
    return len(items) if isinstance(items, list) else 0


def twilio(reader: Reader) -> Signed:
    """Twilio: the address, then the sorted form; for any other body the address carries its SHA-256. With and without the port.

    https://www.twilio.com/docs/usage/webhooks/webhooks-security
    """
    request = reader.request
    fields = sorted_form(request)
    if request.media_type != FORM and request.body:
        digest = hashlib.sha256(request.body).hexdigest()
        if not hmac.compare_digest(digest.encode(), reader.need("q:bodySHA256").lower().encode("utf-8", "replace")):
            raise VerificationError("mismatch", "bodySHA256 is not the hash of the body")
    return Signed(tuple(_encode(url) + fields for url in _with_and_without_port(request.url)))


def _with_and_without_port(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise VerificationError("malformed", "the address of this source is not a URL") from error
    host = parts.netloc.removesuffix(f":{port}")
    standard = 443 if parts.scheme == "https" else 80
    return parts._replace(netloc=host).geturl(), parts._replace(netloc=f"{host}:{port or standard}").geturl()


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise VerificationError("malformed", "a signed member is not valid Unicode") from error


def _body(*names: str) -> frozenset[Place]:
    return frozenset(Place("b", name) for name in names)


CANONICAL: Final[Mapping[str, Canonical]] = {
    "sns": Canonical(sns, _body("Message", "MessageId", "Timestamp", "TopicArn", "Type")),
    "adyen": Canonical(adyen, _body(*(f"{ADYEN_ITEM}.{name}" for name in ADYEN_FIELDS))),
    "twilio": Canonical(twilio, frozenset({Place("", "body"), Place("", "url")})),
}
