r"""Which JSON texts may enter: those every reader downstream can take, Postgres `jsonb` among them.

Text that Python parses can be impossible to store (`"\u0000"`, `1e-20000`), and one such body that reaches the transaction of an
outcome would fail it again on every try. So inputs and outputs are judged once, here, before anything depends on them.

The common case is a handful of C-level scans. Each only looks for a suspicion; a body under suspicion has its strings blanked and is
looked at precisely, still without a Python loop over its characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate, count
from operator import sub
from typing import Final, Literal

import msgspec

MAX_DEPTH: Final = 64
MAX_DIGITS: Final = 4_300
"""Digits in a row: where Python itself stops reading an integer (`sys.int_info.default_max_str_digits`)."""
MAX_EXPONENT_DIGITS: Final = 3
"""A double ends at 1e308; `jsonb` would print `1e131071` with all its zeros, 16,000 bytes for each byte that came in."""

JsonCode = Literal["too_large", "invalid_utf8", "invalid_json", "too_deep", "nul_character", "number_out_of_range"]

_SYNTAX: Final = msgspec.json.Decoder(msgspec.Raw)
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")
_LONG_EXPONENT: Final = re.compile(rb"[eE][+-]?0*+[1-9][0-9]{%d}" % MAX_EXPONENT_DIGITS)
_SHAPE: Final = bytes.maketrans(b"123456789E-", b"000000000e+")
_LONG_NUMBER: Final = b"0" * (MAX_DIGITS + 1)
_EXPONENTS: Final = (b"e" + b"0" * (MAX_EXPONENT_DIGITS + 1), b"e+" + b"0" * (MAX_EXPONENT_DIGITS + 1))
_BEFORE_NUMBER: Final = b"[,: \t\r\n"
"""What stands before a number; nothing, which is in every text, where it is all there is or goes back further than is looked."""
_LOOKS: Final = 1_000
_LOOK_BACK: Final = 64
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[]{}", b"\x02\x00\x02\x00")


class JsonRefused(Exception):  # noqa: N818 - a verdict on the text, which its catchers answer with
    """This text may not enter. `code` is stable; the text says what to change."""

    def __init__(self, code: JsonCode, message: str) -> None:
        super().__init__(message)
        self.code: JsonCode = code
        self.message = message


def check(body: bytes, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> None:
    """Refuse `body` unless it is one JSON value that can be stored and read everywhere; JsonRefused says why not.

    Refused beside malformed text: invalid UTF-8, lone surrogates and NUL written as escapes, nesting below `max_depth`, exponents of
    four digits and more, numbers of over 4,300 digits. Duplicate keys pass; the last one counts, as in `jsonb`.
    """
    if len(body) > max_bytes:
        raise JsonRefused("too_large", f"{len(body):,} bytes of JSON; at most {max_bytes:,} are taken here")
    _check_syntax(body, max_depth)
    if b"\\u0000" in body and _NUL.search(body):
        raise JsonRefused("nul_character", "a string holds \\u0000, which Postgres cannot store; remove it, or send base64")
    shape = body.translate(_SHAPE)
    if _LONG_NUMBER in shape or _may_be_exponent(shape, _EXPONENTS[0]) or _may_be_exponent(shape, _EXPONENTS[1]):
        _check_numbers(body)
    if body.count(b"[") + body.count(b"{") > max_depth and _depth(body) > max_depth:
        raise _too_deep(max_depth)


def _check_syntax(body: bytes, max_depth: int) -> None:
    """Skipping a value checks its grammar and escapes, not its UTF-8."""
    try:
        _SYNTAX.decode(body)
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise JsonRefused("invalid_utf8", f"JSON is UTF-8, and byte {error.start} is not: {error.reason}") from None
    except msgspec.DecodeError as error:
        raise JsonRefused("invalid_json", f"not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    except RecursionError:
        raise _too_deep(max_depth) from None


def _may_be_exponent(shape: bytes, mark: bytes) -> bool:
    """Whether a long exponent stands behind what may be a number: hashes and URLs hold `e1234` all the time, but behind other things."""
    at = shape.find(mark)
    for _ in range(_LOOKS):
        if at < 0:
            return False
        before = shape[max(0, at - _LOOK_BACK) : at]
        start = before.rstrip(b"0.")
        if len(start) < len(before) and start.removesuffix(b"+")[-1:] in _BEFORE_NUMBER:
            return True
        at = shape.find(mark, at + 1)
    return True


def _check_numbers(body: bytes) -> None:
    bare = _STRING.sub(b'""', body)
    if _LONG_EXPONENT.search(bare):
        raise JsonRefused("number_out_of_range", "a number's exponent has more than three digits; send it as a string")
    if _LONG_NUMBER in bare.translate(_SHAPE):
        raise JsonRefused("number_out_of_range", f"a number has more than {MAX_DIGITS:,} digits; send it as a string")


def _depth(body: bytes) -> int:
    """The deepest nesting of a valid JSON text: the largest prefix sum of +1 for an opening and −1 for a closing bracket.

    Counted as 2 and 0 less the number of brackets so far, so that bytes can hold the steps.
    """
    brackets = _STRING.sub(b'""', body).translate(None, _NOT_BRACKETS)
    sums: Iterable[int] = accumulate(brackets.translate(_STEPS))
    return max(map(sub, sums, count(1)), default=0)


def _too_deep(max_depth: int) -> JsonRefused:
    return JsonRefused("too_deep", f"arrays and objects nest deeper than {max_depth} levels")
