"""Parts of a JSON text as they stand in it: entries of a log are kept byte for byte, and hashed so."""

from __future__ import annotations

import json
from typing import Final

_JSON: Final = json.JSONDecoder()


def raw_items(text: bytes, member: str) -> list[bytes]:
    """The items of an array member of a JSON object, as they stand in the text."""
    whole = text.decode()
    at = _skip(whole, 1)
    while whole[at] != "}":
        key, at = _JSON.raw_decode(whole, at)
        start = _skip(whole, at)
        _, at = _JSON.raw_decode(whole, start)
        if key == member:
            return _items(whole, start)
        at = _skip(whole, at)
    return []


def _items(whole: str, at: int) -> list[bytes]:
    items: list[bytes] = []
    at = _skip(whole, at + 1)
    while whole[at] != "]":
        _, end = _JSON.raw_decode(whole, at)
        items.append(whole[at:end].encode())
        at = _skip(whole, end)
    return items


def _skip(whole: str, at: int) -> int:
    while whole[at] in " \t\r\n,:":
        at += 1
    return at
