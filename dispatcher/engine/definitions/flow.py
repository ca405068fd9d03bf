"""How many runs or tasks of a group may be under way (`concurrency`), and how many may start in a window of time (`rate_limits`).

`max_runs`, `units` and `limit` are numbers, or CEL that gives one. Keys are CEL that gives text, over the run's `input` and `metadata`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar, get_args

from dispatcher.engine.definitions.reading import DefinitionError, Reader
from dispatcher.engine.expressions import Expression, ExpressionError

Strategy = Literal["GROUP_ROUND_ROBIN", "CANCEL_IN_PROGRESS", "CANCEL_NEWEST"]
Duration = Literal["SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "YEAR"]
T = TypeVar("T", str, int)

STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
SECONDS: Final[Mapping[Duration, int]] = MappingProxyType(
    {"SECOND": 1, "MINUTE": 60, "HOUR": 3_600, "DAY": 86_400, "WEEK": 604_800, "MONTH": 2_592_000, "YEAR": 31_536_000}
)
"""How long the windows of rate limits are; a month has 30 days, a year 365."""
MOST_RUNS: Final = 1_000_000
MOST_UNITS: Final = 1_000_000_000
MOST_GATES: Final = 10
MOST_RATE_LIMITS: Final = 10
MOST_KEY: Final = 512
MACROS: Final = 4
NAMES: Final = ("input", "additional_metadata", "metadata")


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `max_runs` of each group are under way. Without an `expression` all are one group.

    With a `name` the limit is shared by all workflows of the tenant that name it, and can be changed while they run.
    """

    expression: str
    max_runs: int | str
    limit_strategy: Strategy = "GROUP_ROUND_ROBIN"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A start takes `units` of the limit `static_key`, which is set apart, or of the one `dynamic_key` (CEL) gives, which allows `limit`
    units in each window.
    """

    static_key: str | None
    dynamic_key: str | None
    units: int | str
    limit: int | str | None = None
    duration: Duration = "MINUTE"


@lru_cache(maxsize=10_000)
def compile_key(source: str) -> Expression[str]:
    """The expression of a key. Raises ExpressionError."""
    return Expression(source, returns=str, macros=MACROS, names=NAMES)


@lru_cache(maxsize=10_000)
def compile_number(source: str) -> Expression[int]:
    """The expression of a number. Raises ExpressionError."""
    return Expression(source, returns=int, macros=MACROS, names=NAMES)


def read_concurrency(reader: Reader) -> tuple[Concurrency, ...]:
    """`concurrency` of an entry: a number, one object, or a list of them, in the order in which they are passed.

    Shared limits are passed last, in the order of their names: so whoever holds one never waits for what somebody else holds behind it.
    """
    value = reader.get("concurrency")
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    if len(items) > MOST_GATES:
        raise reader.refuse("concurrency", f"a number, an object, or a list of at most {MOST_GATES} of them")
    path = f"{reader.at}.concurrency"
    found = [_concurrency(item, f"{path}[{i}]" if isinstance(value, list) else path) for i, item in enumerate(items)]
    seen: set[tuple[str, ...]] = set()
    for i, one in enumerate(found):
        identity = ("name", one.name) if one.name is not None else (one.limit_strategy, one.expression)
        if identity in seen:
            raise DefinitionError(f"{path}[{i}]", "is declared twice: the same strategy with the same expression, or the same name")
        seen.add(identity)
    return tuple(sorted(found, key=lambda one: one.name or ""))


def _concurrency(item: object, at: str) -> Concurrency:
    if isinstance(item, int):
        item = {"max_runs": item}
    reader = Reader(item, at, {"expression", "max_runs", "limit_strategy", "name"})
    name = reader.get("name")
    if name is not None:
        name = reader.name()
    return Concurrency(
        _source(reader, "expression", compile_key) or "",
        _number(reader, "max_runs", MOST_RUNS),
        _choice(reader, "limit_strategy", "GROUP_ROUND_ROBIN", STRATEGIES),
        name,
    )


def read_rate_limits(reader: Reader) -> tuple[RateLimit, ...]:
    """`rate_limits` of an entry, each with either a static or a dynamic key."""
    items = reader.items("rate_limits", MOST_RATE_LIMITS, "rate limits")
    return tuple(_rate_limit(Reader(item, f"{reader.at}.rate_limits[{i}]", _OF_RATE_LIMIT)) for i, item in enumerate(items))


_OF_RATE_LIMIT = {"static_key", "dynamic_key", "units", "limit", "duration"}


def _rate_limit(reader: Reader) -> RateLimit:
    static, dynamic = reader.get("static_key"), _source(reader, "dynamic_key", compile_key)
    if (static is None) == (dynamic is None):
        raise reader.refuse("static_key", "required: either static_key or dynamic_key")
    units = _number(reader, "units", MOST_UNITS) if reader.get("units") is not None else 1
    if static is None:
        return RateLimit(
            None, dynamic, units, _number(reader, "limit", MOST_UNITS), _choice(reader, "duration", "MINUTE", tuple(SECONDS), upper=True)
        )
    check_key(static, f"{reader.at}.static_key")
    for field in ("limit", "duration"):
        if reader.get(field) is not None:
            raise reader.refuse(field, "of a dynamic key only; PUT /v1/rate-limits/{key} sets that of a static one")
    return RateLimit(static, None, units)


def check_key(key: object, at: str) -> None:
    """DefinitionError for what cannot be the key of a rate limit."""
    if not isinstance(key, str) or not 0 < len(key) <= MOST_KEY or not key.isprintable():
        raise DefinitionError(at, f"text of 1 to {MOST_KEY} printable characters")


def check_path(key: str, at: str) -> None:
    """DefinitionError for the key of a rate limit that nobody could set: in the path of a URL it means something else."""
    if key in (".", ".."):
        raise DefinitionError(at, f"{key!r} cannot be the key of a rate limit that is set: it has no path")


def _source(reader: Reader, field: str, make: Callable[[str], Expression[T]]) -> str | None:
    value = reader.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise reader.refuse(field, "CEL over input and metadata that gives text")
    try:
        make(value)
    except ExpressionError as error:
        raise reader.refuse(field, str(error)) from None
    return value


def _number(reader: Reader, field: str, most: int) -> int | str:
    value = reader.get(field)
    if isinstance(value, str):
        return _source(reader, field, compile_number) or ""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise reader.refuse(field, f"required: a whole number from 1 to {most:,}, or CEL that gives one")
    return value


W = TypeVar("W", bound=str)


def _choice(reader: Reader, field: str, default: W, words: Sequence[W], *, upper: bool = False) -> W:
    value = reader.get(field)
    if value is None:
        return default
    written = value.upper() if upper and isinstance(value, str) else value
    for word in words:
        if word == written:
            return word
    raise reader.refuse(field, f"one of {', '.join(words)}")


def dump_concurrency(declared: Sequence[Concurrency]) -> list[dict[str, Any]]:
    """As a manifest has it."""
    return [
        {
            **({"expression": one.expression} if one.expression else {}),
            "max_runs": one.max_runs,
            "limit_strategy": one.limit_strategy,
            **({"name": one.name} if one.name else {}),
        }
        for one in declared
    ]


def dump_rate_limits(declared: Sequence[RateLimit]) -> list[dict[str, Any]]:
    """As a manifest has them."""
    return [
        {"static_key": one.static_key, "units": one.units}
        if one.static_key is not None
        else {"dynamic_key": one.dynamic_key, "units": one.units, "limit": one.limit, "duration": one.duration}
        for one in declared
    ]
