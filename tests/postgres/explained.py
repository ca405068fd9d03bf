"""What statements cost where they are run: their plans, the pages they touch, and a way out that undoes it all."""

from __future__ import annotations

import json
from typing import Any

from dispatcher.store.database import Connection


class Explained:
    """Stands where the store expects a connection, and explains what it is asked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.plans: list[dict[str, Any]] = []

    async def fetch(self, sql: str, *arguments: object, lane: str = "") -> list[Any]:
        text = await self._connection.fetchval(f"explain (analyze, buffers, format json) {sql}", *arguments)
        self.plans.append(json.loads(text)[0]["Plan"])
        return []


class Undone(Exception):  # noqa: N818 - rolls the transaction back and brings out what was found
    def __init__(self, found: dict[str, int]) -> None:
        super().__init__()
        self.found = found


def nodes_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The node itself and all below it."""
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes_of(child))]


def pages_of(plan: dict[str, Any]) -> int:
    """How many pages it has touched."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
