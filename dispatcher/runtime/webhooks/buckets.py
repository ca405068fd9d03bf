"""Token buckets: how many requests a source may send. Each of several processes counts for itself, and takes its share."""

from __future__ import annotations

from datetime import datetime


class Bucket:
    """Holds up to `burst` tokens and gains `rate` of them a second; with `live` processes each holds and gains that part, at least one."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: int, now: datetime) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = float(burst)
        self._at = now

    def wait(self, now: datetime, live: int = 1) -> float:
        """Seconds until there is a token; 0 when there is one."""
        self._fill(now, live)
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) * live / self.rate

    def take(self, now: datetime, live: int = 1) -> bool:
        """Take a token; False when there is none."""
        self._fill(now, live)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _fill(self, now: datetime, live: int) -> None:
        elapsed = max(0.0, (now - self._at).total_seconds())
        self._tokens = min(max(1.0, self.burst / live), self._tokens + elapsed * self.rate / live)
        self._at = max(now, self._at)
