"""Lists of the dispatcher: what they are asked for, and all their pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from handlers_sdk.api import Api

PAGE: Final = 1_000
"""Rows asked for at once where all are wanted."""

Params = dict[str, str | int | Sequence[str]]


def given(**members: str | int | Sequence[str] | None) -> Params:
    """The parameters that were given."""
    return {name: value for name, value in members.items() if value is not None}


def moment(value: datetime | None) -> str | None:
    """A moment as the dispatcher reads it; one without a zone is local time."""
    return value.astimezone().isoformat() if value is not None else None


async def listed(api: Api, path: str, wanted: Mapping[str, str | int | Sequence[str]], most: int | None = None) -> list[Any]:
    """The rows of all pages, or the first `most` of them."""
    rows: list[Any] = []
    params = {"limit": PAGE if most is None else min(PAGE, max(1, most)), **wanted}
    while most is None or len(rows) < most:
        _, page = await api.request("GET", path, params=params, repeatable=True)
        rows += page["rows"]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    return rows if most is None else rows[:most]
