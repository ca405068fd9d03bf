"""The functions an expression may call, and how each is called."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import re2  # type: ignore[import-untyped]

from dispatcher.engine.expressions import times
from dispatcher.engine.expressions.faults import MAX_TEXT, ExpressionError, Fault, Meter
from dispatcher.engine.expressions.values import TypeName, article, kind_of, within

_INTEGER: Final = re.compile(r"[ \t]{0,8}[+-]?[0-9]{1,20}[ \t]{0,8}", re.ASCII)
_DOUBLE: Final = re.compile(r"[ \t]{0,8}[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,5})?[ \t]{0,8}", re.ASCII)
_NOT_FINITE: Final = frozenset({"nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})
_TRUTHS: Final = MappingProxyType({
    **dict.fromkeys(("true", "True", "TRUE", "t", "1"), True),
    **dict.fromkeys(("false", "False", "FALSE", "f", "0"), False),
})  # fmt: skip

MAX_PATTERN: Final = 512
"""Characters of a regular expression."""
# RE2 takes time in proportion to text times program; measured, at worst 10 ns for a character and an instruction. A step is 2 µs or so.
_WORK_PER_STEP: Final = 256
_COMPILING: Final = 20
_PATTERN_MEMORY: Final = 1 << 20


class Function(NamedTuple):
    """A function: what it computes, and how many arguments it takes when called as `f(x)` and as `x.f()`, x counted in both."""

    call: Callable[..., Any]
    as_function: frozenset[int] = frozenset()
    as_method: frozenset[int] = frozenset()


# ---- text


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or isinstance(value, TypeName):
        raise Fault(f"{what} takes strings, and finds {article(value)}")
    return value


def _size(meter: Meter, value: Any) -> int:
    if kind_of(value) not in ("string", "bytes", "list", "map"):
        raise Fault(f"{article(value)} has no size()")
    return len(value)


def _contains(meter: Meter, text: Any, part: Any) -> bool:
    whole, piece = _text(text, "contains()"), _text(part, "contains()")
    meter.read(len(whole) + len(piece))
    return piece in whole


def _starts_with(meter: Meter, text: Any, start: Any) -> bool:
    whole, piece = _text(text, "startsWith()"), _text(start, "startsWith()")
    meter.read(min(len(whole), len(piece)))
    return whole.startswith(piece)


def _ends_with(meter: Meter, text: Any, end: Any) -> bool:
    whole, piece = _text(text, "endsWith()"), _text(end, "endsWith()")
    meter.read(min(len(whole), len(piece)))
    return whole.endswith(piece)


def _matches(meter: Meter, text: Any, pattern: Any) -> bool:
    """RE2, so no backtracking; but a pattern that counts to 1,000 is large, and text times pattern is what is paid for."""
    subject, wanted = _text(text, "matches()"), _text(pattern, "matches()")
    if len(wanted) > MAX_PATTERN:
        raise ExpressionError("too_large", f"a pattern of {len(wanted):,} characters; at most {MAX_PATTERN} are taken")
    meter.step(_COMPILING)
    program = _program(wanted)
    if isinstance(program, str):
        meter.step(4_000)  # one that is too large took milliseconds
        raise Fault(f"the pattern is none: {program}")
    size = program.programsize
    length = len(subject) if subject.isascii() else 4 * len(subject)  # it works on UTF-8
    meter.step(size // 16 + (size * length) // _WORK_PER_STEP)
    return program.search(subject) is not None


@lru_cache(maxsize=256)
def _program(pattern: str) -> Any:
    """A compiled pattern, or what is wrong with it."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "it cannot be read"
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        return text.partition(": ")[0]  # what follows is the pattern, which may be of a body


# ---- conversions


def _int(meter: Meter, value: Any) -> int:
    kind = kind_of(value)
    if kind in ("int", "uint", "bool"):
        return _fitting("int", int(value))
    if kind == "double":
        return _fitting("int", _truncated(value))
    if kind == "timestamp":
        return times.seconds(value)
    if kind == "string" and _INTEGER.fullmatch(value):
        return _fitting("int", int(value))
    raise Fault(f"int() makes no number of {_what(value)}")


def _fitting(kind: str, value: int) -> int:
    fitted: int = within(kind, value)
    return fitted


def _uint(meter: Meter, value: Any) -> int:
    kind = kind_of(value)
    if kind in ("int", "uint"):
        return _fitting("uint", int(value))
    if kind == "double":
        return _fitting("uint", _truncated(value))
    if kind == "string" and _INTEGER.fullmatch(value) and "-" not in value:
        return _fitting("uint", int(value))
    raise Fault(f"uint() makes no number of {_what(value)}")


def _truncated(value: float) -> int:
    if not math.isfinite(value) or not -(2.0**63) < value < 2.0**64:
        raise Fault("the double does not fit into 64 bits")
    return math.trunc(value)


def _double(meter: Meter, value: Any) -> float:
    kind = kind_of(value)
    if kind in ("int", "uint", "double"):
        return float(value)
    if kind == "string" and len(value) < 1_000 and (value.lower() in _NOT_FINITE or _DOUBLE.fullmatch(value)):
        return float(value)
    raise Fault(f"double() makes no number of {_what(value)}")


def _string(meter: Meter, value: Any) -> str:
    kind = kind_of(value)
    if isinstance(value, str) and kind == "string":
        return value
    if kind == "bool":
        return "true" if value else "false"
    if kind in ("int", "uint"):
        return str(int(value))
    if kind == "double":
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if kind == "bytes":
        return _decoded(value)
    if kind in ("timestamp", "duration"):
        return times.written(value)
    raise Fault(f"string() makes no string of {article(value)}")


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Fault("the bytes are not UTF-8") from None


def _bytes(meter: Meter, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    text = _text(value, "bytes()")
    if len(text) > MAX_TEXT:
        raise ExpressionError("too_large", f"it makes {len(text):,} bytes; at most {MAX_TEXT:,} are taken")
    meter.read(len(text))
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Fault("the string holds half of a surrogate pair") from None


def _bool(meter: Meter, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _TRUTHS:
        return _TRUTHS[value]
    raise Fault(f"bool() makes no truth of {_what(value)}")


def _timestamp(meter: Meter, value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if kind_of(value) == "int":
        return times.moment_of(value)
    return times.moment(_text(value, "timestamp()"))


def _duration(meter: Meter, value: Any) -> timedelta:
    return value if isinstance(value, timedelta) else times.duration(_text(value, "duration()"))


def _type(meter: Meter, value: Any) -> TypeName:
    return TypeName(kind_of(value))


def _dyn(meter: Meter, value: Any) -> Any:
    """Says nothing here, where no types are checked before the evaluation."""
    return value


def _what(value: Any) -> str:
    return "this string" if isinstance(value, str) else article(value)


def _part(name: str) -> Function:
    def read(meter: Meter, value: Any, zone: Any = "") -> int:
        if zone:
            meter.step(times.ZONE_STEPS)  # names of zones are looked up in files
        return times.part(name, value, _text(zone, f"{name}()"))

    return Function(read, as_method=frozenset({1, 2}))


_ONE: Final = frozenset({1})
_TWO: Final = frozenset({2})

FUNCTIONS: Final[Mapping[str, Function]] = MappingProxyType({
    "size": Function(_size, _ONE, _ONE),
    "contains": Function(_contains, as_method=_TWO),
    "startsWith": Function(_starts_with, as_method=_TWO),
    "endsWith": Function(_ends_with, as_method=_TWO),
    "matches": Function(_matches, _TWO, _TWO),
    "type": Function(_type, _ONE),
    "int": Function(_int, _ONE),
    "uint": Function(_uint, _ONE),
    "double": Function(_double, _ONE),
    "string": Function(_string, _ONE),
    "bytes": Function(_bytes, _ONE),
    "bool": Function(_bool, _ONE),
    "dyn": Function(_dyn, _ONE),
    "timestamp": Function(_timestamp, _ONE),
    "duration": Function(_duration, _ONE),
    **{name: _part(name) for name in times.PARTS},
})  # fmt: skip
