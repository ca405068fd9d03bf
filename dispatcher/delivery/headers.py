"""The headers of requests: what every one carries, what a raw body needs beside it, and which an endpoint's auth setting may add."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote

from dispatcher.delivery.envelope import rfc3339
from dispatcher.delivery.message import Push, Target
from handlers_sdk import wire
from handlers_sdk.signing import Signer, signature_header

HEADER_LIMIT: Final = 4_096
"""Bytes of one auth header, name and value."""
METADATA_LIMIT: Final = 4_096
"""Bytes of metadata that travel in a header beside a raw body; more is left out, because servers refuse long headers."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
_OURS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "cookie",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_OUR_PREFIXES: Final = ("content-", "webhook-", "task-", "proxy-")


class HeaderRefused(ValueError):  # noqa: N818 - a verdict, which its catchers answer with
    """An auth header that may not be sent; the text says which and why."""


def check_headers(pairs: Iterable[tuple[str, str]]) -> None:
    """Refuse auth headers that would break the request, or claim what the dispatcher itself says in it. HeaderRefused says which."""
    for name, value in pairs:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise HeaderRefused(f"header {name!r} needs a plain name, and a value of printable ASCII")
        if name.lower() in _OURS or name.lower().startswith(_OUR_PREFIXES):
            raise HeaderRefused(f"header {name!r} is set by the dispatcher itself")
        if len(name) + len(value) > HEADER_LIMIT:
            raise HeaderRefused(f"header {name!r} is longer than {HEADER_LIMIT:,} bytes")


def message_id(endpoint_id: str, name: str) -> str:
    """`<endpoint id>_<name>`: whom the message is for, and which one it is. `name` must hold neither dot nor underscore."""
    return f"{endpoint_id}_{name}"


def run_message_id(target: Target, task_id: str) -> str:
    """Constant over all attempts of a task, so that a receiver may drop repeats."""
    return message_id(target.endpoint_id, task_id.removeprefix("tsk_"))


def joint_message_id(target: Target, kind: str, parts: Iterable[str]) -> str:
    """Of a message about attempts: made of what it is about, and never the id of a single run."""
    digest = hashlib.blake2b("\n".join([kind, *parts]).encode(), digest_size=16)
    return message_id(target.endpoint_id, f"{kind}-{digest.hexdigest()}")


def common(target: Target, user_agent: str) -> dict[str, str]:
    """What every POST to this target carries."""
    return {
        "content-type": wire.MEDIA_JSON,
        "accept": f"{wire.MEDIA_JSON}, {wire.MEDIA_NDJSON}, */*",
        "accept-encoding": "identity",
        "user-agent": user_agent,
        wire.HEADER_PROTOCOL: str(wire.PROTOCOL_VERSION),
        **dict(target.headers),
    }


def signed(headers: dict[str, str], signers: Sequence[Signer], identifier: str, now: int, body: bytes) -> dict[str, str]:
    """The same headers with the signature over `body`."""
    headers[wire.HEADER_MESSAGE_ID] = identifier
    headers[wire.HEADER_TIMESTAMP] = str(now)
    if signers:
        headers[wire.HEADER_SIGNATURE] = signature_header(signers, identifier, now, body)
    return headers


def of_run(headers: dict[str, str], push: Push) -> dict[str, str]:
    """The same headers with those of one attempt: hints for routing, and for a raw body all there is beside the input."""
    headers[wire.HEADER_TASK_NAME] = plain(push.name)
    headers[wire.HEADER_TASK_ID] = push.task_id
    headers[wire.HEADER_TASK_ATTEMPT] = str(push.attempt)
    headers[wire.HEADER_TASK_DEADLINE] = rfc3339(push.deadline)
    headers[wire.HEADER_IDEMPOTENCY_KEY] = f'"{push.task_id}"'
    if push.raw and push.metadata is not None:
        metadata = ascii_json(push.metadata)
        if len(metadata) <= METADATA_LIMIT:
            headers[wire.HEADER_TASK_METADATA] = metadata
    return headers


def plain(text: str) -> str:
    """Text as a header can hold it: anything but printable ASCII percent-encoded."""
    return text if text.isascii() and text.isprintable() else quote(text, safe=" !#$&'()*+,/:;=?@[]~")


def ascii_json(text: bytes) -> str:
    """The same JSON in printable ASCII on one line."""
    decoded = text.decode("utf-8", "replace")
    return decoded if _VALUE.fullmatch(decoded) else json.dumps(json.loads(decoded), separators=(",", ":"))
