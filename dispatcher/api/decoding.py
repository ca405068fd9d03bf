"""From what a caller sent to a struct, and from a misfit to a problem that names the field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, get_origin, get_type_hints

import msgspec

from dispatcher.engine.definitions import DefinitionError, parse_duration
from dispatcher.errors import Problem, problem

T = TypeVar("T", bound=msgspec.Struct)

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_PLACE: Final = re.compile(r"(.*) - at `(key in )?\$\.?(.*)`", re.DOTALL)
_LISTS: dict[type, frozenset[str]] = {}


def refusal(message: str, at: str, unknown: str) -> Problem:
    """The words of msgspec as a problem: which field, and what it takes. `unknown` is the code for a name that is not defined."""
    place, text = at, message
    if match := _PLACE.fullmatch(message):
        text, place = match[1], _joined(at, match[3])
    if match := _UNKNOWN.fullmatch(text):
        field = _joined(place, match[1])
        return problem(unknown, f"{field!r} is not defined here", field=field)
    if match := _MISSING.fullmatch(text):
        field = _joined(place, match[1])
        return problem("invalid_value", f"{field!r} is required", field=field)
    text = text[:1].lower() + text[1:]
    if not place:
        return problem("invalid_value", f"the body: {text}")
    return problem("invalid_value", f"{place}: {text}", field=place)


def _joined(at: str, name: str) -> str:
    return f"{at}.{name}" if at and name and not name.startswith("[") else at + name


def parse_query(pairs: Iterable[tuple[str, str]], kind: type[T]) -> T:
    """A query string as a struct. A parameter may be repeated where the struct has a list; an unknown one is refused."""
    lists = _LISTS.get(kind)
    if lists is None:
        lists = _LISTS[kind] = _list_fields(kind)
    values: dict[str, Any] = {}
    for name, value in pairs:
        if "\x00" in value:
            raise problem("invalid_value", f"{name}: holds a NUL character", field=name)
        if name in lists:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise problem("invalid_value", f"{name}: given twice", field=name)
        else:
            values[name] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise refusal(str(error), "", "unknown_parameter") from None


def _list_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    hints = get_type_hints(kind)
    return frozenset(name for name, hint in hints.items() if get_origin(hint) in (list, tuple))


def duration(text: str | None, field: str) -> timedelta | None:
    """A duration such as `90s`; None stays None."""
    if text is None:
        return None
    try:
        return parse_duration(text, field)
    except DefinitionError as error:
        raise problem("invalid_value", str(error), field=field) from None


def moment(value: datetime | None, field: str, latest: datetime = LATEST) -> datetime | None:
    """A moment from 1970 until `latest`; None stays None. Further away, what is reckoned from it would be in no year there is."""
    if value is not None and not EARLIEST <= value <= latest:
        raise problem("invalid_value", f"{field}: a moment from {EARLIEST.date()} until {latest.date()} is expected", field=field)
    return value


def span(since: datetime | None, until: datetime | None, at: str = "") -> tuple[datetime | None, datetime | None]:
    """The two ends of a list, members of what is at `at`. Raises Problem where the second is not behind the first."""
    since, until = moment(since, f"{at}since"), moment(until, f"{at}until")
    if since is not None and until is not None and until <= since:
        raise problem("invalid_value", f"{at}until: a moment after `since` is expected", field=f"{at}until")
    return since, until


def one_of(values: Sequence[str], allowed: Iterable[str], field: str) -> list[str] | None:
    """Values of a parameter that may be repeated or hold several behind commas; None where none was given."""
    names = [name for value in values for name in value.split(",")]
    known = sorted(allowed)
    for name in names:
        if name not in known:
            raise problem("invalid_value", f"{field}: {name!r} is none of {', '.join(known)}", field=field)
    return names or None
