"""Commands that need no server: settings, the database, and what can go wrong on the way to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from dispatcher.cli.failures import Failure
from dispatcher.sealing import SealError
from dispatcher.settings import Settings, SettingsError, from_environment
from dispatcher.store.database import DatabaseUnavailable, is_transient
from dispatcher.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from dispatcher.store.migrate import MigrationError

T = TypeVar("T")
"""What the caller of `run` gets."""

_REFUSALS = ("28", "3D", "42501")  # SQLSTATE classes: who one is, the database's name, and what one may do


def settings_with(**overrides: Any) -> Settings:
    """Settings of the environment; options that were given win. Raises Failure naming the variable."""
    try:
        return from_environment(**{name: value for name, value in overrides.items() if value is not None})
    except SettingsError as error:
        raise Failure(str(error)) from None


def postgres_directory(settings: Settings) -> Path:
    """Where the embedded Postgres keeps its files."""
    return Path(settings.data_dir) / "postgres"


@asynccontextmanager
async def database_of(settings: Settings, *, create: bool = False) -> AsyncIterator[str]:
    """The DSN of the database the settings name, the embedded one running for as long as it is used."""
    if settings.database_url:
        yield settings.database_url
        return
    directory = postgres_directory(settings)
    if not create and not directory.exists():
        hint = "Set DATABASE_URL, or name the data directory of the server with --data."
        raise Failure(f"there is no database: DATABASE_URL is not set and {directory} does not exist", hint=hint)
    async with await EmbeddedPostgres.start(directory) as postgres:
        yield postgres.dsn


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what is wrong with the installation becomes a Failure."""
    try:
        return asyncio.run(work)
    except Exception as error:
        failure = explained(error)
        if failure is None:
            raise
        raise failure from None


def explained(error: BaseException) -> Failure | None:
    """The Failure for an error that somebody at this machine can do something about; None for a bug."""
    if isinstance(error, SealError):
        return Failure(
            str(error), hint="`dev` keeps its key in development.key of its data directory: the database was set up with another."
        )
    if isinstance(error, SettingsError | EmbeddedPostgresError | MigrationError):
        return Failure(str(error))
    if str(getattr(error, "sqlstate", "")).startswith(_REFUSALS):
        return Failure(f"Postgres refuses: {error}", hint="Check user, password and database in DATABASE_URL.")
    if isinstance(error, ValueError) and type(error).__module__.startswith("asyncpg"):
        return Failure(f"DATABASE_URL cannot be used: {error}", hint="It looks like postgresql://user:password@host:5432/database.")
    if isinstance(error, DatabaseUnavailable | OSError) or is_transient(error):
        return Failure(f"Postgres cannot be reached: {str(error) or 'no answer'}", hint="Check DATABASE_URL, and that the server runs.")
    return None
