"""/livez and /readyz: whether this process is there, and whether it can take work."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.errors import problem
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.migrate import MigrationError, status

_PATIENCE_SECONDS: Final = 2.0


class Health(msgspec.Struct, frozen=True):
    """Good news; bad news is a problem."""

    status: str


async def livez(call: Call) -> Answer:
    """Whether the process answers; nothing else is looked at."""
    return json_answer(200, Health("ok"))


async def readyz(call: Call) -> Answer:
    """Whether work can be taken: the database answers and is migrated, and this process is not about to stop."""
    if call.services.capacity.draining:
        raise problem("not_ready", "this process is shutting down")
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            pending = await _pending(call.services.database)
    except MigrationError as error:
        raise problem("not_ready", str(error)) from None
    except Exception as error:
        if not isinstance(error, TimeoutError | DatabaseUnavailable) and not is_transient(error):
            raise
        raise problem("not_ready", "the database does not answer") from None
    if pending:
        raise problem("not_ready", f"{pending} migrations have not been applied")
    return json_answer(200, Health("ready"))


async def _pending(database: Database) -> int:
    async with database.transaction() as conn:
        return len((await status(conn)).pending)


ROUTES: Final = (
    Route("GET", "/livez", livez, None, {200: Health}),
    Route("GET", "/readyz", readyz, None, {200: Health}, problems=("not_ready",)),
)
