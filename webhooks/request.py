"""One HTTP request as the sender made it, and the bounded readings of it that verification and parsing share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias, cast
from urllib.parse import parse_qsl

from webhooks.errors import BodyError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
Pairs: TypeAlias = tuple[tuple[str, str], ...]

FIELDS_MAX: Final = 1_000  # fields of a form or a query
DEPTH_MAX: Final = 128  # nesting of a JSON body: what reads it later may be recursive
EXPONENT_DIGITS_MAX: Final = 3
DIGITS_MAX: Final = 1_000
FORM: Final = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived.

    `url` is the public address the sender was given, query included: some senders sign it, so it is built from configuration and never
    from a Host header. `headers` are (lower-case name, value) pairs in the order received, repeated names included. `query` is the raw
    text after the question mark. `body` is the bytes as received; signatures cover these and nothing else.
    """

    method: str
    url: str
    headers: Pairs
    query: str
    body: bytes
    _read: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def build(cls, method: str, url: str, headers: Mapping[str, str] | Pairs, body: bytes = b"") -> Request:
        """A request whose header names are lower-cased and whose query is taken from `url`."""
        pairs = tuple(headers.items()) if isinstance(headers, Mapping) else headers
        return cls(method.upper(), url, tuple((name.lower(), value) for name, value in pairs), url.partition("?")[2], body)

    def header(self, name: str) -> list[str]:
        """Every value of the header `name` (lower case), in order."""
        return [value for held, value in self.headers if held == name]

    @property
    def media_type(self) -> str:
        """The media type without its parameters, in lower case; empty when none was sent."""
        values = self.header("content-type")
        return values[0].partition(";")[0].strip().lower() if values else ""

    def json(self) -> JsonValue:
        """The body as JSON, parsed once. Raises BodyError `invalid_body`."""
        if "json" not in self._read:
            self._read["json"], self._read["odd"] = _parse(self.body)
        return cast(JsonValue, self._read["json"])

    @property
    def odd_numbers(self) -> bool:
        """Whether the body, read as JSON, spells a number with an exponent of more than three digits, or with very many digits."""
        self.json()
        return bool(self._read["odd"])

    def form(self) -> Pairs:
        """The body as urlencoded fields, parsed once; empty when the body is no form. Raises BodyError `invalid_body`."""
        if "form" not in self._read:
            self._read["form"] = parse_fields(self.body) if self.media_type == FORM else ()
        return cast(Pairs, self._read["form"])

    def query_fields(self) -> Pairs:
        """The query as decoded fields, parsed once. Raises BodyError `invalid_body`."""
        if "query" not in self._read:
            self._read["query"] = parse_fields(self.query.encode("utf-8", "replace"))
        return cast(Pairs, self._read["query"])


def parse_fields(raw: bytes) -> Pairs:
    """Urlencoded fields in order, blank values kept. Bytes that are not UTF-8 become U+FFFD: the raw body is kept beside them."""
    try:
        return tuple(parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError as error:
        raise BodyError("invalid_body", f"more than {FIELDS_MAX} fields") from error


def parse_json(raw: bytes) -> JsonValue:
    """JSON text as Python values; UTF-8 only, finite numbers only, nested at most `DEPTH_MAX` deep. Raises BodyError `invalid_body`."""
    return _parse(raw)[0]


def _parse(raw: bytes) -> tuple[JsonValue, bool]:
    """(the value, whether it has odd numbers). Those are so rare that they are read for in a second go."""
    odd = False
    try:
        text = raw.decode("utf-8-sig")
        try:
            value = _PLAIN.decode(text)
        except _OddNumber:
            odd, value = True, _LENIENT.decode(text)
    except (ValueError, RecursionError) as error:
        raise BodyError("invalid_body", f"the body is not JSON: {error}") from error
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX and _deeper_than(value, DEPTH_MAX):
        raise BodyError("invalid_body", f"the body is nested more than {DEPTH_MAX} deep")
    return cast(JsonValue, value), odd


class _OddNumber(Exception):  # noqa: N818 - a finding
    """A number that is spelled as hardly anybody spells one."""


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _plain(text: str) -> float:
    exponent = text.lower().partition("e")[2].lstrip("+-0")
    if len(exponent) > EXPONENT_DIGITS_MAX or len(text) > DIGITS_MAX:
        raise _OddNumber
    return _finite(text)


_PLAIN: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_plain)
_LENIENT: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _deeper_than(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []
