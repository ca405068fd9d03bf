"""Hints between dispatcher processes over NOTIFY. Losing one costs a poll's wait, never work: the rows are the truth."""

from __future__ import annotations

from dispatcher.store.database import Database

CHANNEL = "dispatcher"
MOST_BYTES = 7_500  # Postgres takes payloads below 8,000 bytes
NOTIFY = "select pg_notify($1, $2)"


async def notify(db: Database, payload: str) -> None:
    """Tell all listening processes. A payload too long to send is cut to its first word, which means: look for yourselves."""
    if len(payload.encode()) > MOST_BYTES:
        payload = payload.partition(" ")[0]
    await db.execute(NOTIFY, CHANNEL, payload, lane="settle")
