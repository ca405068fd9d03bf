"""What `dispatcher doctor` looks at. Each check is a function from what it looks at to a Finding; none changes anything."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal

from dispatcher.cli.client import Api
from dispatcher.cli.failures import Failure
from dispatcher.cli.local import database_of, explained, postgres_directory, settings_with
from dispatcher.clock import SystemClock
from dispatcher.sealing import SealError, parse_master_key
from dispatcher.settings import Settings
from dispatcher.store import diagnosis
from dispatcher.store.diagnosis import Facts
from dispatcher.store.embedded import EmbeddedPostgresError
from dispatcher.store.embedded.binaries import select
from dispatcher.store.migrate import MigrationError, Status, status

_MINIMUM_PYTHON = (3, 11)
_MINIMUM_POSTGRES = 150_000
_SKEW = timedelta(seconds=2)
_OF_CLIENTS = frozenset(
    ("URL", "API_URL", "TOKEN", "SIGNING_SECRET", "SIGNING_SECRETS", "PUBLIC_KEYS", "ENDPOINT_ID", "NAMESPACE", "VERSION", "PG_BIN")
)
"""Variables that the command line, the SDK and the embedded Postgres read, and the server does not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `fix` says what to do, where there is something to do."""

    check: str
    status: Literal["ok", "warning", "failed", "skipped"]
    detail: str
    fix: str = ""


def examine(data_dir: str | None, url: str | None, token: str | None) -> list[Finding]:
    """Every check, in the order in which one would fix things."""
    findings = [python(sys.version_info[:3])]
    try:
        settings = settings_with(data_dir=data_dir)
    except Failure as failure:
        return [*findings, Finding("settings", "failed", failure.message, "Correct or unset the variable.")]
    findings.append(variables(os.environ))
    findings.append(master_key(settings))
    findings += asyncio.run(database(settings))
    findings += server(settings, url or settings.base_url(), token)
    return findings


def python(version: tuple[int, ...]) -> Finding:
    """Whether Python is new enough."""
    text = f"Python {'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version < _MINIMUM_PYTHON:
        return Finding("python", "failed", text, "Install Python 3.11 or newer.")
    return Finding("python", "ok", text)


def variables(environ: Mapping[str, str]) -> Finding:
    """Whether every DISPATCHER_ variable means something."""
    known = {field.name.upper() for field in fields(Settings)} | _OF_CLIENTS
    strange = sorted(name for name in environ if name.startswith("DISPATCHER_") and name.removeprefix("DISPATCHER_") not in known)
    if strange:
        return Finding("settings", "warning", f"nothing reads {', '.join(strange)}", "Correct the spelling, or unset it.")
    return Finding("settings", "ok", "every DISPATCHER_ variable is known and readable")


def master_key(settings: Settings) -> Finding:
    """Whether the key that seals secrets is there."""
    if not settings.master_key:
        return Finding("master key", "skipped", "not set: `dev` makes its own, `serve` needs one", "For `serve`: openssl rand -base64 32")
    try:
        parse_master_key(settings.master_key)
    except SealError as error:
        return Finding("master key", "failed", str(error), "openssl rand -base64 32")
    return Finding("master key", "ok", "32 bytes")


async def database(settings: Settings) -> list[Finding]:
    """Postgres, its schema and its clock."""
    if not settings.database_url and not postgres_directory(settings).exists():
        return [binaries(settings)]
    try:
        async with database_of(settings) as dsn:
            clock = SystemClock()
            before = clock.now()
            facts = await diagnosis.facts(dsn)
            return [postgres(facts, settings), await schema(dsn), clocks(facts.moment, before, clock.now())]
    except Exception as error:
        failure = explained(error)
        if failure is None:
            raise
        return [Finding("postgres", "failed", failure.message, failure.hint)]


def binaries(settings: Settings) -> Finding:
    """Whether a Postgres could be started here."""
    try:
        found = select(None)
    except EmbeddedPostgresError as error:
        return Finding("postgres", "failed", str(error))
    where = postgres_directory(settings)
    return Finding("postgres", "skipped", f"no data in {where} yet; {found.version} would run it", "dispatcher dev")


def postgres(facts: Facts, settings: Settings) -> Finding:
    """Whether the server can be used, and keeps what it accepted."""
    text = f"Postgres {facts.version} " + ("at DATABASE_URL" if settings.database_url else f"in {postgres_directory(settings)}")
    if facts.version_number < _MINIMUM_POSTGRES:
        return Finding("postgres", "failed", text, "Postgres 15 or newer is needed.")
    if facts.is_replica:
        return Finding("postgres", "failed", f"{text}, a read-only replica", "Point DATABASE_URL at the primary.")
    if facts.fsync == "off":
        return Finding("postgres", "warning", f"{text}, with fsync off", "Turn fsync on: a power cut would lose accepted runs.")
    wanted = settings.database_connections + settings.database_reserve + 1
    if facts.max_connections < wanted:
        detail = f"{text}, which takes {facts.max_connections} connections where one server may open {wanted}"
        return Finding("postgres", "warning", detail, "Raise max_connections, or lower DISPATCHER_DATABASE_CONNECTIONS.")
    return Finding("postgres", "ok", text)


async def schema(dsn: str) -> Finding:
    """Whether the schema is the one this release works with."""
    try:
        found: Status = await status(dsn)
    except MigrationError as error:
        return Finding("schema", "failed", str(error))
    if found.pending:
        names = ", ".join(f"{migration.version:04}_{migration.name}" for migration in found.pending)
        return Finding("schema", "failed", f"not applied: {names}", "dispatcher migrate")
    return Finding("schema", "ok", f"{len(found.applied)} migrations applied")


def clocks(theirs: datetime, before: datetime, after: datetime) -> Finding:
    """How far the database's clock and this machine's are apart, as far as can be told from one question."""
    apart = max(timedelta(), before - theirs, theirs - after)
    if apart > _SKEW:
        detail = f"this machine and Postgres are {apart.total_seconds():.1f} s apart"
        return Finding("clock", "warning", detail, "Set both by NTP: signatures and deadlines are judged by this machine's clock.")
    return Finding("clock", "ok", "this machine and Postgres agree")


def server(settings: Settings, url: str, token: str | None) -> Iterator[Finding]:
    """The server, if there is one, and how its endpoints are."""
    try:
        with Api(url, token) as api:
            api.get("/livez")
            yield Finding("server", "ok", f"answers at {url}")
            yield ready(api)
            yield from endpoints(api)
    except Failure as failure:
        if "no dispatcher answers" not in failure.message:
            yield Finding("server", "failed", failure.message, failure.hint)
        else:
            yield Finding("server", "skipped", f"none answers at {url}")
            yield port(settings)


def ready(api: Api) -> Finding:
    """Whether the server says that it is ready."""
    try:
        api.get("/readyz")
    except Failure as failure:
        return Finding("ready", "failed", failure.message, failure.hint)
    return Finding("ready", "ok", "the server is ready")


def endpoints(api: Api) -> Iterator[Finding]:
    """One finding for each endpoint that gets no work, one for all others."""
    try:
        rows: list[dict[str, Any]] = api.get("/v1/endpoints", limit=1000).value["rows"]
    except Failure as failure:
        yield Finding("endpoints", "failed", failure.message, failure.hint)
        return
    idle = [row for row in rows if row["health"] != "healthy"]
    for row in idle:
        fix = f"dispatcher endpoints {'resume' if row['paused'] or row['draining'] else 'ping'} {row['name']}"
        yield Finding("endpoints", "warning", f"{row['name']} at {row['url']} is {row['health']}", fix)
    yield Finding("endpoints", "ok", f"{len(rows) - len(idle)} of {len(rows)} take work")


def port(settings: Settings) -> Finding:
    """Whether the server could listen."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            detail = f"{settings.host}:{settings.port}: {error.strerror}"
            return Finding("port", "failed", detail, "Stop what listens there, or set DISPATCHER_PORT.")
    return Finding("port", "ok", f"{settings.host}:{settings.port} is free")
