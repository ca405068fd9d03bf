"""Ids that are told from what they stand for, as long for a long text as for a short one."""

from __future__ import annotations

import hashlib


def digest_id(kind: bytes, text: str) -> str:
    """The id of a text among those of its kind: 128 bits, written as a UUID is."""
    digits = hashlib.blake2b(text.encode(), digest_size=16, person=kind).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
