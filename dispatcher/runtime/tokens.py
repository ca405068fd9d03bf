"""Attempt tokens: what lets an endpoint speak for one attempt. Forged and expired ones are refused without a look at the database.

`atk1.<tenant>.<run ulid>.<node>.<epoch>.<expiry>.<signature>`; currency is judged by the guarded write the callback leads to.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass

PREFIX = "atk1"
_DIGEST = "sha256"
_PROVEN = 10_000


@dataclass(frozen=True, slots=True)
class AttemptToken:
    """Whose callback it is."""

    tenant_id: int
    run_id: str
    node: int
    epoch: int


class TokenMaker:
    """Makes and checks attempt tokens under one key, derived from the master key so that every dispatcher has the same."""

    def __init__(self, master_key: bytes) -> None:
        self._key = hmac.digest(master_key, b"attempt tokens v1", _DIGEST)
        self._proven: dict[str, tuple[AttemptToken, int]] = {}

    def make(self, tenant_id: int, run_id: str, node: int, epoch: int, expires: int) -> str:
        """A token for one attempt until `expires` (unix seconds)."""
        text = f"{PREFIX}.{tenant_id}.{run_id[4:]}.{node}.{epoch}.{expires}"
        return f"{text}.{self._sign(text)}"

    def read(self, token: str, now: int) -> AttemptToken | None:
        """The attempt a token speaks for, or None when it is forged, damaged or expired."""
        proven = self._proven.get(token) or self._prove(token)
        return proven[0] if proven is not None and proven[1] >= now else None

    def _prove(self, token: str) -> tuple[AttemptToken, int] | None:
        """What a token says and when it expires. An attempt speaks many times with one token: what has been proven is kept for a while."""
        text, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._sign(text).encode(), signature.encode("utf-8", "replace")):
            return None
        prefix, tenant, ulid, node, epoch, expires = text.split(".")
        if prefix != PREFIX:
            return None
        if len(self._proven) >= _PROVEN:
            self._proven.clear()
        self._proven[token] = proven = AttemptToken(int(tenant), f"run_{ulid}", int(node), int(epoch)), int(expires)
        return proven

    def _sign(self, text: str) -> str:
        digest = hmac.digest(self._key, text.encode("utf-8", "replace"), _DIGEST)
        return base64.urlsafe_b64encode(digest[:24]).decode()
