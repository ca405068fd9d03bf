"""Every statement of the store is prepared against the migrated schema, and its columns are held against the row they fill."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import fields

import pytest

import dispatcher.store
from dispatcher.store.database import Database
from dispatcher.store.statement import Statement

WORDS = ("select", "insert", "update", "delete", "with")


def statements() -> Iterator[tuple[str, str, type | None]]:
    """(where it stands, SQL, row type or None)."""
    for module in pkgutil.walk_packages(dispatcher.store.__path__, "dispatcher.store."):
        if "embedded" in module.name or module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            if isinstance(value, Statement):
                yield f"{module.name}.{name}", value.sql, value.row
            elif name.isupper() and isinstance(value, str) and value.strip().lower().startswith(WORDS):
                yield f"{module.name}.{name}", value, None


ALL = list(statements())


def test_there_are_statements_to_check() -> None:
    assert len(ALL) > 40
    assert sum(row is not None for _, _, row in ALL) > 15


@pytest.mark.parametrize(("where", "sql", "row"), ALL, ids=[where for where, _, _ in ALL])
async def test_statement_fits_schema_and_row(database: Database, where: str, sql: str, row: type | None) -> None:
    async with database.transaction() as conn:
        prepared = await conn.prepare(sql)
        columns = [attribute.name for attribute in prepared.get_attributes()]
    if row is not None:
        assert columns == [field.name for field in fields(row)], where
