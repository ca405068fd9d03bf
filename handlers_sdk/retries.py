"""Retries as a number or as `{"attempts", "delay", "backoff", "jitter"}`, for those who count in attempts and milliseconds.

The manifest says it in the dispatcher's own terms, which is what decides where an attempt ends without an answer. Where a handler fails,
its answer says when to come again, so that the delay is exactly what was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final, Literal

from handlers_sdk.errors import ConfigError

ATTEMPTS_MAX: Final = 10
DELAY_MAX: Final = 3_600_000
_FACTOR_MAX: Final = 1_000.0


@dataclass(frozen=True, slots=True)
class Retry:
    """At most `attempts` retries (1 to 10), `delay` milliseconds apart (1,000; at most an hour).

    With `backoff="exponential"` each wait is twice the one before, up to an hour; `jitter` makes it up to half as long or as long again.
    """

    attempts: int
    delay: int = 1_000
    backoff: Literal["fixed", "exponential"] = "fixed"
    jitter: bool = False

    def __post_init__(self) -> None:
        if not _whole(self.attempts) or not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise ConfigError(f"retry: attempts={self.attempts!r} is not a whole number from 1 to {ATTEMPTS_MAX}")
        if not _whole(self.delay) or not 0 <= self.delay <= DELAY_MAX:
            raise ConfigError(f"retry: delay={self.delay!r} is not a number of milliseconds from 0 to {DELAY_MAX:,} (an hour)")
        if self.backoff not in ("fixed", "exponential"):
            raise ConfigError(f'retry: backoff={self.backoff!r} is neither "fixed" nor "exponential"')
        if not isinstance(self.jitter, bool):
            raise ConfigError(f"retry: jitter={self.jitter!r} is neither True nor False")

    @staticmethod
    def of(value: RetryForm) -> Retry:
        """From a number of attempts, or a mapping of the fields. ConfigError names what is wrong."""
        if isinstance(value, Retry):
            return value
        if isinstance(value, Mapping):
            unknown = sorted(set(value) - {field.name for field in fields(Retry)})
            if unknown or "attempts" not in value:
                raise ConfigError(f"retry: {unknown[0]!r} is not defined here" if unknown else "retry: attempts is missing")
            return Retry(**value)
        return Retry(value)

    @property
    def backoff_factor(self) -> float | None:
        """What the manifest says: a factor whose powers, cut at `backoff_max_seconds`, are the delay or near it."""
        if self.delay == 0:
            return None
        return 2.0 if self.backoff == "exponential" else min(max(self.delay / 1000, 1.0), _FACTOR_MAX)

    @property
    def backoff_max_seconds(self) -> float | None:
        """The longest wait."""
        if self.delay == 0:
            return None
        return DELAY_MAX / 1000 if self.backoff == "exponential" else self.delay / 1000

    def wait(self, number: int) -> timedelta:
        """Before retry `number`, which counts from 1."""
        doublings = max(0, min(number - 1, 30)) if self.backoff == "exponential" else 0
        millis = min(self.delay * 2.0**doublings, DELAY_MAX)
        return timedelta(milliseconds=millis * (random.uniform(0.5, 1.5) if self.jitter else 1.0))  # noqa: S311 - jitter


RetryForm = Retry | int | Mapping[str, Any]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
