"""API tokens as text: `dsp_live_<public id>_<secret>_<check>`.

The prefix lets secret scanners find leaked ones, the public id finds the row, the check (a CRC) refuses a mangled one without a look at
the database. The secret has 256 bits, so one round of SHA-256 is all the hashing it needs; only that hash is stored.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "dsp_live"
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 12
_SECRET_LENGTH: Final = 43
_CHECK_LENGTH: Final = 6
_FORM: Final = re.compile(r"(dsp_live_([0-9A-Za-z]{12})_([0-9A-Za-z]{43}))_([0-9A-Za-z]{6})")
PUBLIC_ID: Final = re.compile(r"[0-9A-Za-z]{12}")


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token just made. `text` is shown once; `public_id` and `secret_hash` are stored."""

    text: str
    public_id: str
    secret_hash: bytes


def new_token() -> NewToken:
    """A token nobody has yet."""
    public_id, secret = _random(_ID_LENGTH), _random(_SECRET_LENGTH)
    head = f"{PREFIX}_{public_id}_{secret}"
    return NewToken(f"{head}_{_check(head)}", public_id, _hash(secret))


def parse_token(text: str) -> tuple[str, bytes] | None:
    """(public id, hash of the secret), or None for what is certainly no token of ours."""
    match = _FORM.fullmatch(text)
    if match is None or _check(match[1]) != match[4]:
        return None
    return match[2], _hash(match[3])


def _hash(secret: str) -> bytes:
    return hashlib.sha256(b"dispatcher api token v1\x00" + secret.encode()).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _check(text: str) -> str:
    value, letters = zlib.crc32(text.encode()), ""
    for _ in range(_CHECK_LENGTH):
        value, digit = divmod(value, len(_ALPHABET))
        letters += _ALPHABET[digit]
    return letters
