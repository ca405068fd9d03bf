"""Values of an expression, and what its operators make of them.

A value is the parsed JSON itself, so that nothing of a body is converted that is not looked at: None, bool, int, float, str, list and
dict stand for null, bool, int, double, string, list and map of CEL. `Uint`, bytes, datetime, timedelta and `TypeName` are the rest.
The meaning of the operators is that of the CEL specification: 1 == 1.0 and 1 != '1' hold, 1 + 1.0 has no result, null equals only null.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from dispatcher.engine.expressions.faults import MAX_TEXT, ExpressionError, Fault, Meter

MOST_INT: Final = 2**63 - 1
MOST_UINT: Final = 2**64 - 1
NUMBERS: Final = frozenset({"int", "uint", "double"})

_ORDERED: Final = frozenset({"string", "bytes", "bool", "timestamp", "duration"})
_SHOWN: Final = 60


class Uint(int):
    """An unsigned integer of 64 bits, such as `5u`; integers of JSON too large for int are this too."""

    __slots__ = ()


class TypeName(str):
    """What `type(x)` gives, and what the names of types stand for."""

    __slots__ = ()


_KINDS: Final[dict[type, str]] = {
    str: "string", int: "int", bool: "bool", float: "double", type(None): "null_type", dict: "map", list: "list",
    bytes: "bytes", Uint: "uint", TypeName: "type", Decimal: "double",
}  # fmt: skip
_KINDS_BELOW: Final = ((TypeName, "type"), (datetime, "timestamp"), (timedelta, "duration"), (list, "list"), (dict, "map"), (str, "string"))
TYPE_NAMES: Final = frozenset({*_KINDS.values(), "timestamp", "duration"})


def kind_of(value: Any) -> str:
    """The CEL type of a value, by its name. Raises Fault for what no JSON text holds."""
    kind = _KINDS.get(type(value))
    if kind is not None:
        return kind
    for base, name in _KINDS_BELOW:
        if isinstance(value, base):
            return name
    raise Fault(f"a {type(value).__name__} is no JSON value")


def admit(value: Any) -> Any:
    """A value of the parsed JSON as an operand. Raises Fault for integers beyond 64 bits, whatever JSON allows."""
    kind = type(value)
    if kind is int:
        if -MOST_INT - 1 <= value <= MOST_INT:
            return value
        if 0 <= value <= MOST_UINT:
            return Uint(value)
        raise Fault("an integer does not fit into 64 bits")
    if kind is Decimal:
        return float(value)
    if kind not in _KINDS:
        kind_of(value)
    return value


# ---- looking into maps and lists


def select(value: Any, name: str) -> Any:
    """`value.name`. Raises Fault `missing_key` where the map has no such key."""
    if not isinstance(value, dict):
        raise Fault(f".{name} reads from a map, and finds {article(value)}")
    if name not in value:
        raise Fault(f"there is no {name!r}", "missing_key")
    return admit(value[name])


def has(value: Any, name: str) -> bool:
    """`has(value.name)`: whether the map has the key. Raises Fault where there is no map."""
    if not isinstance(value, dict):
        raise Fault(f"has() looks for {name!r} in a map, and finds {article(value)}")
    return name in value


def index(value: Any, key: Any, meter: Meter) -> Any:
    """`value[key]` of a map or a list. Raises Fault, `missing_key` where nothing is there."""
    if isinstance(value, dict):
        if not in_map(key, value, meter):
            raise Fault(f"there is no {brief(key)}", "missing_key")
        return admit(value[key])
    if not isinstance(value, list):
        raise Fault(f"[{brief(key)}] looks into a map or a list, and finds {article(value)}")
    kind = kind_of(key)
    if kind not in NUMBERS or key != key // 1:
        raise Fault(f"an element of a list is found by its number, not by {article(key)}")
    if not 0 <= key < len(value):
        raise Fault(f"there is no element {key} in a list of {len(value)}", "missing_key")
    return admit(value[int(key)])


def in_map(key: Any, container: dict[Any, Any], meter: Meter) -> bool:
    """Whether a map has a key. Raises Fault for what cannot be one."""
    kind = kind_of(key)
    if kind == "string":
        meter.read(len(key))
    elif kind == "bool":
        return False  # Python holds True for 1, and maps of the language with such keys are not taken
    elif kind not in NUMBERS:
        raise Fault(f"a key of a map cannot be {article(key)}")
    return key in container


def contained(item: Any, container: Any, meter: Meter) -> bool:
    """`item in container`, by equality in a list and by key in a map."""
    if isinstance(container, dict):
        return in_map(item, container, meter)
    if not isinstance(container, list):
        raise Fault(f"in looks into a map or a list, and finds {article(container)}")
    return any(equal(item, element, meter) for element in container)


# ---- comparing


def equal(left: Any, right: Any, meter: Meter) -> bool:
    """`left == right`: numbers by value whatever their types, lists and maps by their elements, different types never."""
    meter.step()
    kind, other = kind_of(left), kind_of(right)
    if kind != other:
        return kind in NUMBERS and other in NUMBERS and bool(left == right)
    if kind == "list":
        return len(left) == len(right) and all(equal(a, b, meter) for a, b in zip(left, right, strict=True))
    if kind == "map":
        return len(left) == len(right) and all(key in right and equal(value, right[key], meter) for key, value in left.items())
    if kind in ("string", "bytes"):
        meter.read(min(len(left), len(right)))
    return bool(left == right)


def before(left: Any, right: Any, meter: Meter) -> bool:
    """`left < right`. Raises Fault where the two have no order."""
    kind, other = kind_of(left), kind_of(right)
    if not (kind == other and kind in _ORDERED) and not (kind in NUMBERS and other in NUMBERS):
        raise Fault(f"{article(left)} cannot be compared with {article(right)}")
    if kind in ("string", "bytes"):
        meter.read(min(len(left), len(right)))
    return bool(left < right)


# ---- joining


def join(left: Any, right: Any, meter: Meter) -> Any:
    """Two strings, or two byte strings, as one. Raises ExpressionError `too_large` beyond 65,536 characters."""
    size = len(left) + len(right)
    if size > MAX_TEXT:
        raise ExpressionError("too_large", f"it makes a string of {size:,} characters; at most {MAX_TEXT:,} are taken")
    meter.read(size)
    return left + right


def add(left: Any, right: Any, meter: Meter) -> Any:
    """`left + right`: strings, bytes and lists joined; numbers of one type, durations and moments added."""
    kind, other = kind_of(left), kind_of(right)
    if kind == other:
        if kind in ("string", "bytes"):
            return join(left, right, meter)
        if kind == "list":
            meter.step(len(left) + len(right))
            return [*left, *right]
        if kind in NUMBERS or kind == "duration":
            return within(kind, left + right)
    elif {kind, other} == {"timestamp", "duration"}:
        return moved(left, right) if kind == "timestamp" else moved(right, left)
    advice = "; string(…) makes a string of a number" if "string" in (kind, other) and NUMBERS & {kind, other} else ""
    raise Fault(f"{article(left)} and {article(right)} cannot be added{advice}")


def within(kind: str, value: Any) -> Any:
    """A number as a value of its type. Raises Fault where it does not fit into 64 bits."""
    if kind == "int" and not -MOST_INT - 1 <= value <= MOST_INT:
        raise Fault("the result does not fit into 64 bits")
    if kind == "uint":
        if not 0 <= value <= MOST_UINT:
            raise Fault("the result does not fit into 64 bits without a sign")
        return Uint(value)
    return value


def moved(moment: datetime, by: timedelta) -> datetime:
    """A moment later, or earlier. Raises Fault outside the years 1 to 9999."""
    try:
        return moment + by
    except OverflowError:
        raise Fault("there is no such moment between the years 1 and 9999") from None


# ---- in words


def article(value: Any) -> str:
    """The type of a value in a sentence: "an int", "null"."""
    kind = kind_of(value)
    if kind == "null_type":
        return "null"
    return f"an {kind}" if kind == "int" else f"a {kind}"


def brief(value: Any) -> str:
    """A value in a message, cut short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | bytes | int | float):
        return article(value)
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
