"""Strict decoding of signatures and keys. What is decoded is compared as bytes, so letter case and padding do not matter."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Final

_BASE64: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*={0,2}")


def from_hex(text: str) -> bytes:
    """Raises ValueError for anything but pairs of hexadecimal digits."""
    return binascii.unhexlify(text.encode("ascii"))


def from_base64(text: str) -> bytes:
    """Standard alphabet, padding optional, unused bits zero: one spelling for each value. Raises ValueError."""
    raw = key_from_base64(text)
    if base64.b64encode(raw).decode().rstrip("=") != text.rstrip("="):
        raise ValueError("not canonical base64")
    return raw


def key_from_base64(text: str) -> bytes:
    """The same without a look at unused bits, for keys: people shorten them. Raises ValueError."""
    if not _BASE64.fullmatch(text):
        raise ValueError("not base64")
    bare = text.rstrip("=")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)


def from_base64url(text: str) -> bytes:
    """URL-safe alphabet, otherwise as `from_base64`. Raises ValueError."""
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    return from_base64(text.replace("-", "+").replace("_", "/"))


DECODERS: Final[Mapping[str, Callable[[str], bytes]]] = {"hex": from_hex, "base64": from_base64, "base64url": from_base64url}
