"""Arithmetic and logic of the language, beside the operators that plain expressions share (`values`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from dispatcher.engine.expressions.faults import Fault, Meter
from dispatcher.engine.expressions.values import NUMBERS, add, article, before, contained, equal, kind_of, moved, within

Operator = Callable[[Any, Any, Meter], Any]


def _numbers(left: Any, right: Any, what: str) -> str:
    """The type of two numbers of one type. Raises Fault: the language converts none for its own operators."""
    kind = kind_of(left)
    if kind != kind_of(right) or kind not in NUMBERS:
        raise Fault(f"{article(left)} and {article(right)} cannot be {what}")
    return kind


def subtract(left: Any, right: Any, meter: Meter) -> Any:
    """`left - right`: numbers of one type, durations, moments."""
    if isinstance(right, timedelta):
        if isinstance(left, datetime):
            return moved(left, -right)
        if isinstance(left, timedelta):
            return left - right
    if isinstance(left, datetime) and isinstance(right, datetime):
        return left - right
    return within(_numbers(left, right, "subtracted"), left - right)


def multiply(left: Any, right: Any, meter: Meter) -> Any:
    """`left * right` of two numbers of one type."""
    return within(_numbers(left, right, "multiplied"), left * right)


def divide(left: Any, right: Any, meter: Meter) -> Any:
    """`left / right`: integers towards zero, doubles as IEEE 754 has it."""
    kind = _numbers(left, right, "divided")
    if kind == "double":
        if right == 0:
            return math.nan if left == 0 or left != left else math.copysign(math.inf, left) * math.copysign(1.0, right)  # noqa: PLR0124
        return left / right
    if right == 0:
        raise Fault("nothing can be divided by zero")
    size = abs(int(left)) // abs(int(right))
    return within(kind, size if (left < 0) == (right < 0) else -size)


def modulo(left: Any, right: Any, meter: Meter) -> Any:
    """`left % right` of integers, with the sign of `left`."""
    kind = _numbers(left, right, "divided with a remainder")
    if kind == "double":
        raise Fault("a double leaves no remainder")
    if right == 0:
        raise Fault("nothing can be divided by zero")
    divide(left, right, meter)  # the smallest integer by -1 has no result, although the remainder would be 0
    rest = abs(int(left)) % abs(int(right))
    return within(kind, rest if left >= 0 else -rest)


def negate(value: Any) -> Any:
    """`-value`."""
    kind = kind_of(value)
    if kind not in ("int", "double"):
        raise Fault(f"{article(value)} has no negative")
    return within(kind, -value)


def invert(value: Any) -> bool:
    """`!value`."""
    if not isinstance(value, bool):
        raise Fault(f"! takes a bool, and finds {article(value)}")
    return not value


def _not_after(left: Any, right: Any, meter: Meter) -> bool:
    """`left <= right`, which NaN makes more than the opposite of `right < left`."""
    return before(left, right, meter) or bool(left == right)


BINARY: Final[Mapping[str, Operator]] = MappingProxyType({
    "relation_eq": equal,
    "relation_ne": lambda left, right, meter: not equal(left, right, meter),
    "relation_lt": before,
    "relation_gt": lambda left, right, meter: before(right, left, meter),
    "relation_le": _not_after,
    "relation_ge": lambda left, right, meter: _not_after(right, left, meter),
    "relation_in": contained,
    "addition_add": add,
    "addition_sub": subtract,
    "multiplication_mul": multiply,
    "multiplication_div": divide,
    "multiplication_mod": modulo,
})  # fmt: skip
