"""Lists: how a page is asked for, and the cursor that continues it.

A cursor is opaque, and belongs to the list and the filters it was made with: continuing another list with it would skip rows unnoticed,
so it is refused instead.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec

from dispatcher.api.decoding import EARLIEST, LATEST
from dispatcher.api.edge import Answer, json_answer
from dispatcher.engine.search import Query, SearchRefused, parse
from dispatcher.errors import problem

T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R")

Node = Annotated[int, msgspec.Meta(ge=0, le=2**15 - 1)]
Small = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
"""Parts of cursors: the node of a task, and the number of an attempt."""

DEFAULT_LIMIT: Final = 50
_MOST_NUMBER: Final = 2**62
MOST: Final = 1000
_BAD_CURSOR: Final = "cursor: not one of this list with these filters; ask for the first page again"

Limit = Annotated[int, msgspec.Meta(ge=1, le=MOST, description="rows of a page")]
Cursor = Annotated[str, msgspec.Meta(max_length=1000, description="`next_cursor` of the page before, with the same filters")]


class PageQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What every list takes."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


SearchText = Annotated[str, msgspec.Meta(max_length=1000, description='words, "phrases" and path:value, all of which bodies must hold')]


def search_query(text: str) -> Query:
    """What a search text asks for. Raises Problem for one that asks for nothing, or too much."""
    try:
        return parse(text)
    except SearchRefused as refused:
        raise problem("invalid_value", f"q: {refused}", field="q") from None


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    filters: str
    key: msgspec.Raw


def _fingerprint(name: str, query: PageQuery) -> str:
    filters = {field: value for field, value in msgspec.structs.asdict(query).items() if field not in ("limit", "cursor")}
    return hashlib.sha256(name.encode() + msgspec.json.encode(filters, order="sorted")).hexdigest()[:16]


def position(name: str, query: PageQuery, kind: type[K]) -> K | None:
    """Where a page starts: the key its cursor holds, None for the first page. Raises Problem for a cursor of another list."""
    if query.cursor is None:
        return None
    try:
        padded = query.cursor + "=" * (-len(query.cursor) % 4)
        cursor = msgspec.json.decode(base64.b64decode(padded, b"-_", validate=True), type=_Cursor)
        if cursor.filters == _fingerprint(name, query):
            key = msgspec.json.decode(cursor.key, type=kind)
            if all(_is_sound(part) for part in (key if isinstance(key, tuple) else (key,))):
                return key
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        pass
    raise problem("invalid_value", _BAD_CURSOR, field="cursor")


def _is_sound(part: object) -> bool:
    """Whether a part of a key is none that no list of ours gives: a moment in no zone or year of ours, what cannot be stored."""
    if isinstance(part, datetime):
        return part.tzinfo is not None and EARLIEST <= part <= LATEST
    if isinstance(part, int):
        return abs(part) <= _MOST_NUMBER
    return not isinstance(part, str) or "\x00" not in part


def page(
    name: str,
    query: PageQuery,
    rows: Sequence[T],
    show: Callable[[T], R],
    key: Callable[[T], Any],
    *,
    more: bool | None = None,
    last: Any = None,
) -> Answer:
    """A page as it is answered. `rows` were asked for one more than the limit, unless `more` says whether there are others.

    `last` is the key to go on behind where that is not the last row's: a search has looked further than it has found.
    """
    shown = rows[: query.limit]
    if more is None:
        more = len(rows) > query.limit
    following = None
    if more and (shown or last is not None):
        following = cursor(name, query, key(shown[-1]) if last is None else last)
    return json_answer(200, {"rows": [show(row) for row in shown], "next_cursor": following})


def cursor(name: str, query: PageQuery, behind: object) -> str:
    """The cursor that goes on behind a key."""
    text = msgspec.json.encode(_Cursor(_fingerprint(name, query), msgspec.Raw(msgspec.json.encode(behind))))
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()
