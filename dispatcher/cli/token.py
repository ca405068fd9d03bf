"""`dispatcher token`: API tokens. They are made in the database itself, where the first one has to be made."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import rich_click as click

from dispatcher.cli.failures import Exit, Failure
from dispatcher.cli.options import Duration, answers, asks_server, needs_data, rfc3339
from dispatcher.cli.output import Output, note

if TYPE_CHECKING:
    from datetime import datetime

    from dispatcher.cli.client import Api
    from dispatcher.settings import Settings
    from dispatcher.store.database import Database

COLUMNS = ["id", "name", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at"]


@click.group()
def token() -> None:
    """Make, list and revoke API tokens."""


@token.command()
@click.argument("name")
@click.option("-s", "--scope", multiple=True, help="What it may do, such as runs:write; repeatable, everything unless said.")
@click.option("--expires", type=Duration(), default="365d", show_default=True, help="How long it is good for.")
@click.option("--tenant", default="default", show_default=True, help="Whose token it is.")
@needs_data
@answers
def create(name: str, scope: tuple[str, ...], expires: timedelta, tenant: str, data_dir: str | None, out: Output) -> None:
    """Make a token called NAME, and show it this once.

    Needs DATABASE_URL or --data, not a server and not a token: who can reach the database may make the first one.
    """
    from dispatcher.cli.local import run, settings_with

    document = run(_create(settings_with(data_dir=data_dir), tenant, name, scope or ("*",), expires))
    out.document(json.dumps(document), [document["token"]])
    note("Keep it now: it is not shown again. Use it as DISPATCHER_TOKEN, or in `Authorization: Bearer …`.")


@token.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List tokens; their texts are nowhere."""
    out.rows(api.get("/v1/tokens", limit=limit, cursor=cursor).text, COLUMNS, "No tokens. Make one: dispatcher token create NAME")


@token.command()
@click.argument("id_", metavar="ID")
@asks_server
def revoke(id_: str, api: Api, out: Output) -> None:
    """End the token with this ID; other servers notice within seconds."""
    from dispatcher.cli.client import segment

    api.call("DELETE", f"/v1/tokens/{segment(id_)}")
    out.item({"id": id_, "revoked": True}, f"{id_} revoked")


async def _create(settings: Settings, tenant: str, name: str, scopes: tuple[str, ...], expires: timedelta) -> dict[str, Any]:
    from dispatcher.api.credentials import new_token
    from dispatcher.store import tokens

    _check(scopes)
    async with _opened(settings, tenant) as (database, tenant_id, now):
        made, until = new_token(), now + expires
        await tokens.create(database, tenant_id, made.public_id, made.secret_hash, name, scopes, now, until)
    return {
        "id": made.public_id,
        "name": name,
        "tenant": tenant,
        "scopes": list(scopes),
        "created_at": rfc3339(now),
        "expires_at": rfc3339(until),
        "token": made.text,
    }


def _check(scopes: tuple[str, ...]) -> None:
    from dispatcher.api.tokens import SCOPES

    unknown = sorted(set(scopes) - SCOPES)
    if unknown:
        raise click.UsageError(f"unknown scope {', '.join(unknown)}; there are {', '.join(sorted(SCOPES))}")


@asynccontextmanager
async def _opened(settings: Settings, slug: str) -> AsyncIterator[tuple[Database, int, datetime]]:
    """A migrated database, the id of a tenant, and the moment. Only the default tenant is made where it is missing."""
    from dispatcher.cli.local import database_of
    from dispatcher.clock import SystemClock
    from dispatcher.store import registry
    from dispatcher.store.database import Database
    from dispatcher.store.migrate import migrate

    now = SystemClock().now()
    async with database_of(settings) as dsn:
        await migrate(dsn, now)
        async with await Database.open(dsn, min_size=1, max_size=1, reserve=1) as database:
            tenant = await registry.tenant_by_slug(database, slug)
            if tenant is None and slug == "default":
                tenant = await registry.create_tenant(database, slug, "Default", now)
            if tenant is None:
                raise Failure(f"there is no tenant {slug!r}", code=Exit.NOT_FOUND)
            yield database, tenant.id, now
