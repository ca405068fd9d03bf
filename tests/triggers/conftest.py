"""The worlds of tests/world."""

from __future__ import annotations

from tests.world.conftest import kept, one, world

__all__ = ["kept", "one", "world"]
