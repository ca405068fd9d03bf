"""How many runs of a group may be under way, how many may start in a window of time, and the client that sets rate limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from handlers_sdk.api import Api
from handlers_sdk.errors import ConfigError
from handlers_sdk.portal import PORTAL
from handlers_sdk.schemas import dump_json

_PAGE: Final = 1000


class ConcurrencyLimitStrategy(StrEnum):
    """What becomes of those that are too many: they wait in turn, the older ones are cancelled, or the newer ones are."""

    GROUP_ROUND_ROBIN = "GROUP_ROUND_ROBIN"
    CANCEL_IN_PROGRESS = "CANCEL_IN_PROGRESS"
    CANCEL_NEWEST = "CANCEL_NEWEST"


class RateLimitDuration(StrEnum):
    """How long the window of a rate limit is."""

    SECOND = "SECOND"
    MINUTE = "MINUTE"
    HOUR = "HOUR"
    DAY = "DAY"
    WEEK = "WEEK"
    MONTH = "MONTH"
    YEAR = "YEAR"


@dataclass(frozen=True, slots=True)
class ConcurrencyExpression:
    """At most `max_runs` of each group are under way; `expression` (CEL over `input` and `additional_metadata`) gives a run's group.

    `max_runs` is a number, or CEL that gives one. Without an expression all runs are one group. With a `name` the limit is shared by all
    workflows that name it, and can be changed while they run.
    """

    expression: str = ""
    max_runs: int | str = 1
    limit_strategy: ConcurrencyLimitStrategy = ConcurrencyLimitStrategy.GROUP_ROUND_ROBIN
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_runs, bool) or (isinstance(self.max_runs, int) and self.max_runs < 1):
            raise ConfigError(f"max_runs={self.max_runs} must be at least 1, or nothing would ever run")

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        said: dict[str, Any] = {"max_runs": self.max_runs, "limit_strategy": str(self.limit_strategy)}
        if self.expression:
            said["expression"] = self.expression
        if self.name is not None:
            said["name"] = self.name
        return said


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A start takes `units` of a limit: of `static_key`, which `rate_limits.put` sets, or of the one `dynamic_key` (CEL) gives, which
    allows `limit` units in each window of `duration`. `units` and `limit` are numbers, or CEL that gives one.
    """

    static_key: str | None = None
    dynamic_key: str | None = None
    units: int | str = 1
    limit: int | str | None = None
    duration: RateLimitDuration = RateLimitDuration.MINUTE

    def __post_init__(self) -> None:
        if (self.static_key is None) == (self.dynamic_key is None):
            raise ConfigError("a rate limit has either a static_key or a dynamic_key")
        if self.dynamic_key is not None and self.limit is None:
            raise ConfigError("a rate limit with a dynamic_key needs a limit")
        if self.static_key is not None and self.limit is not None:
            raise ConfigError("the limit of a static_key is set with rate_limits.put")
        for name, value in (("units", self.units), ("limit", self.limit)):
            if isinstance(value, bool) or (isinstance(value, int) and value < 1):
                raise ConfigError(f"{name}={value} must be at least 1")

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        if self.static_key is not None:
            return {"static_key": self.static_key, "units": self.units}
        return {"dynamic_key": self.dynamic_key, "units": self.units, "limit": self.limit, "duration": str(self.duration)}


ConcurrencyForm = int | ConcurrencyExpression | Sequence[ConcurrencyExpression] | None
"""A number is a limit of all runs together; several are passed one after the other."""


def concurrency_of(declared: ConcurrencyForm) -> tuple[ConcurrencyExpression, ...]:
    """The limits as a tuple."""
    if declared is None:
        return ()
    if isinstance(declared, int):
        return (ConcurrencyExpression(max_runs=declared),)
    return (declared,) if isinstance(declared, ConcurrencyExpression) else tuple(declared)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a task is limited by."""

    concurrency: tuple[ConcurrencyExpression, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()

    @classmethod
    def of(cls, concurrency: ConcurrencyForm, rate_limits: Sequence[RateLimit] | None = None) -> Limits:
        """As decorators take them."""
        return cls(concurrency_of(concurrency), tuple(rate_limits or ()))

    def entry(self) -> dict[str, Any]:
        """What the manifest says of them; nothing where there are none."""
        said: dict[str, Any] = {}
        if self.concurrency:
            said["concurrency"] = [one.entry() for one in self.concurrency]
        if self.rate_limits:
            said["rate_limits"] = [one.entry() for one in self.rate_limits]
        return said


UNLIMITED: Final = Limits()


class V1RateLimit(BaseModel):
    """A rate limit: `value` units are left of `limit` until `refill_at`. `dynamic` ones were made by the tasks that use them."""

    model_config = ConfigDict(extra="allow")

    key: str
    limit: int
    duration: RateLimitDuration
    value: int
    refill_at: datetime
    dynamic: bool = False
    waiting: bool = False


class RateLimitsClient:
    """Sets, lists and takes away rate limits. They hold for all workflows that name their key."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def put(self, key: str, limit: int, duration: RateLimitDuration = RateLimitDuration.SECOND) -> None:
        """Set the limit of a key, or change it: lowering takes away what is too much, raising adds nothing before the next window."""
        PORTAL.call(self._put(key, limit, duration))

    async def aio_put(self, key: str, limit: int, duration: RateLimitDuration = RateLimitDuration.SECOND) -> None:
        """`put` for async code."""
        await PORTAL.aio_call(self._put(key, limit, duration))

    def list(self) -> Sequence[V1RateLimit]:
        """All rate limits, by key."""
        return PORTAL.call(self._list())

    async def aio_list(self) -> Sequence[V1RateLimit]:
        """`list` for async code."""
        return await PORTAL.aio_call(self._list())

    def delete(self, key: str) -> None:
        """Take a limit away: nothing is limited by it any more."""
        PORTAL.call(self._delete(key))

    async def aio_delete(self, key: str) -> None:
        """`delete` for async code."""
        await PORTAL.aio_call(self._delete(key))

    async def _put(self, key: str, limit: int, duration: RateLimitDuration) -> None:
        content = dump_json({"limit": limit, "duration": str(duration)})
        await self._api.request("PUT", f"/v1/rate-limits/{quote(key, safe='')}", content=content, repeatable=True)

    async def _list(self) -> Sequence[V1RateLimit]:
        found = []
        params: dict[str, str | int | Sequence[str]] = {"limit": _PAGE}
        while True:
            _, page = await self._api.request("GET", "/v1/rate-limits", params=params, repeatable=True)
            found += [V1RateLimit.model_validate(row) for row in page["rows"]]
            if page["next_cursor"] is None:
                return found
            params["cursor"] = page["next_cursor"]

    async def _delete(self, key: str) -> None:
        await self._api.request("DELETE", f"/v1/rate-limits/{quote(key, safe='')}", repeatable=True)
