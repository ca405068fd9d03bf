"""References: how a value too large for a message travels. Its text is kept under its hash, and the message says where.

What is written `{"$ref": {…}}` is a reference only where whoever wrote it said so beside it, in `refs`: data that looks like one is data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import msgspec

PREFIX: Final = "sha256-"
PATH: Final = "/v1/blobs/"
SIZE_MAX: Final = 2**31 - 1
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A value by the SHA-256 of its text, in lower-case hex, and how many bytes that has."""

    sha256: str
    size: int

    @property
    def id(self) -> str:
        """What the value is kept under."""
        return PREFIX + self.sha256

    def document(self, api: str) -> bytes:
        """The reference as JSON text; `api` is the base URL it can be fetched from."""
        return b'{"$ref":{"url":"%b%b%b","sha256":"%b","size":%d}}' % (
            msgspec.json.encode(api)[1:-1], PATH.encode(), self.id.encode(), self.sha256.encode(), self.size,
        )  # fmt: skip


class _Inner(msgspec.Struct):
    sha256: str
    size: int


class _Outer(msgspec.Struct, forbid_unknown_fields=True):
    ref: _Inner = msgspec.field(name="$ref")


_decode: Final = msgspec.json.Decoder(_Outer).decode


def of(text: bytes) -> Reference:
    """The reference to a text."""
    return Reference(hashlib.sha256(text).hexdigest(), len(text))


def digest_of(identifier: str) -> str | None:
    """The hash in `sha256-…`; None for anything else."""
    digest = identifier.removeprefix(PREFIX)
    return digest if identifier.startswith(PREFIX) and _DIGEST.fullmatch(digest) else None


def parse(text: bytes | msgspec.Raw) -> Reference | None:
    """A reference as somebody else wrote it, None for what is none. Its `url` is not looked at: values are fetched from here only."""
    try:
        inner = _decode(text).ref
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Reference(inner.sha256, inner.size) if _DIGEST.fullmatch(inner.sha256) and 0 <= inner.size <= SIZE_MAX else None


def said(text: bytes | msgspec.Raw, refs: Collection[str], member: str) -> Reference | None:
    """The reference that `member` was said to be, where `refs` names it and nothing else. Raises ValueError for what makes no sense."""
    if not refs:
        return None
    if set(refs) != {member}:
        raise ValueError(f"refs: only {member!r} can go by reference here")
    if (reference := parse(text)) is None:
        raise ValueError(f'{member}: {{"$ref": {{"sha256": "<64 hex digits>", "size": <bytes>}}}} is expected of a reference')
    return reference
