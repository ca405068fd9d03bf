"""An endpoint version's manifest as it is stored."""

from __future__ import annotations

from typing import Any

import msgspec


class StoredBatch(msgspec.Struct, frozen=True):
    """How much an endpoint takes in one batch request."""

    max_items: int = 100
    max_bytes: int = 1_000_000


class StoredManifest(msgspec.Struct, frozen=True):
    """What an endpoint said of itself, or was registered with.

    `version` is its own name for what it runs, which may be another than it is registered under; `verified` is the signature scheme it
    checks. Both are None where it did not say.
    """

    sdk: str = ""
    version: str | None = None
    features: tuple[str, ...] = ()
    batch: StoredBatch | None = None
    verified: str | None = None
    handlers: list[Any] = []
