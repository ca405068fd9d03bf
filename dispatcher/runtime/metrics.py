"""What this process has counted since it started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Metrics:
    """Counters by workflow or status; gauges are read from their owners when asked for."""

    runs_created: Counter[str] = field(default_factory=Counter)
    runs_finished: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    attempt_seconds: float = 0.0
    events_received: int = 0
    requests_sent: int = 0
    stale_outcomes: int = 0
    claimed: int = 0
    deliveries: Counter[str] = field(default_factory=Counter)
    deliveries_unrecorded: int = 0
