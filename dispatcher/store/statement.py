"""A statement and the dataclass its columns fill, side by side, so that a test can hold one against the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Statement(Generic[Row]):
    """Constant SQL text whose result columns are, in order, the fields of `row`."""

    sql: str
    row: type[Row]

    def read(self, records: Iterable[Any]) -> list[Row]:
        """The records as rows."""
        row = self.row
        return [row(*record) for record in records]

    def first(self, records: list[Any]) -> Row | None:
        """The first record as a row, or None where there is none."""
        return self.row(*records[0]) if records else None
