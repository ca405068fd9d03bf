"""The only place of this package that reads the wall clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def unix_seconds() -> int:
    """Whole seconds since 1970, as signatures carry them."""
    return int(time.time())


def timestamp() -> str:
    """RFC 3339 in UTC, as log lines carry it."""
    return datetime.now(UTC).isoformat()
