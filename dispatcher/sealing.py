"""Secrets at rest: each sealed with a key of its own, that key wrapped by the master key, both bound to where the secret belongs.

AES-256-GCM. The context (tenant, row, purpose) is authenticated with the ciphertext, so a sealed value copied to another row or
tenant does not open. Layout: version byte, 12-byte nonce and wrapped key (48 bytes), 12-byte nonce and ciphertext.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = b"\x01"
_NONCE = 12
_WRAPPED = 48


class SealError(Exception):
    """A sealed value that does not open: another master key, another row, or damage."""


class Sealer:
    """Seals and opens short secrets under one 32-byte master key."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != 32:
            raise SealError("the master key must be 32 bytes, base64-encoded in DISPATCHER_MASTER_KEY")
        self._master = AESGCM(master_key)

    def seal(self, secret: bytes, context: str) -> bytes:
        """Seal `secret` so that it opens only with the same `context`."""
        key, outer, inner = AESGCM.generate_key(256), os.urandom(_NONCE), os.urandom(_NONCE)
        bound = context.encode()
        return _VERSION + outer + self._master.encrypt(outer, key, bound) + inner + AESGCM(key).encrypt(inner, secret, bound)

    def open(self, sealed: bytes, context: str) -> bytes:
        """The secret. Raises SealError when the key or the context is not the one it was sealed with."""
        bound, body = context.encode(), sealed[1:]
        outer, wrapped, rest = body[:_NONCE], body[_NONCE : _NONCE + _WRAPPED], body[_NONCE + _WRAPPED :]
        try:
            if sealed[:1] != _VERSION:
                raise InvalidTag
            key = self._master.decrypt(outer, wrapped, bound)
            return AESGCM(key).decrypt(rest[:_NONCE], rest[_NONCE:], bound)
        except (InvalidTag, ValueError):
            raise SealError(f"a sealed value does not open ({context}); is DISPATCHER_MASTER_KEY the one it was sealed with?") from None


def parse_master_key(text: str) -> bytes:
    """The 32 bytes behind DISPATCHER_MASTER_KEY."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise SealError("DISPATCHER_MASTER_KEY must be base64 of 32 random bytes; make one with: openssl rand -base64 32")
    return key


def development_key(directory: Path) -> bytes:
    """The key kept in the data directory for development: made once, readable by its owner only."""
    path = directory / "development.key"
    try:
        return parse_master_key(path.read_text().strip())
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
        key = os.urandom(32)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(base64.b64encode(key).decode())
        return key
