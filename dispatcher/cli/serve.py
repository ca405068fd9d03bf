"""`dispatcher serve`: the server for production."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.failures import Failure
from dispatcher.cli.options import answers, needs_data
from dispatcher.cli.output import Output, note

if TYPE_CHECKING:
    from dispatcher.app import Runtime
    from dispatcher.settings import Settings

_GRACE = timedelta(seconds=20)  # with the HTTP server's own few seconds, well below the 30 s most supervisors allow
_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what an operator may ask for


@click.command()
@click.option("--host", help="Address to listen on (DISPATCHER_HOST, or 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (DISPATCHER_PORT, or 8400).")
@needs_data
@answers
def serve(host: str | None, port: int | None, data_dir: str | None, out: Output) -> None:
    """Run the server for production.

    Needs DATABASE_URL (or a data directory for the embedded Postgres, named outright) and DISPATCHER_MASTER_KEY. Every request needs a
    token: make the first with `dispatcher token create`. On SIGTERM it stops taking work, lets open attempts end for up to 20 seconds,
    and exits; several servers on one database share the work, and take over from one that ends in any other way.
    """
    from dispatcher.cli.steps import Steps

    steps = Steps(out)
    from dispatcher.cli.local import settings_with
    from dispatcher.cli.serving import Serving, run_loop

    settings = settings_with(host=host, port=port, data_dir=data_dir)
    check(settings, data_named=data_dir is not None or "DISPATCHER_DATA_DIR" in os.environ)
    _log()
    steps.mark()

    async def ready(_runtime: Runtime, url: str, _beside: AsyncExitStack) -> None:
        steps.ready(url, f"endpoints reach it at {settings.base_url()}" if settings.api_url else "DISPATCHER_API_URL is not set")

    run_loop(Serving(settings, steps, _GRACE).run(ready))


def check(settings: Settings, *, data_named: bool) -> None:
    """Refuse what is for development only. Raises Failure."""
    from dispatcher.sealing import SealError, parse_master_key

    if settings.dev:
        raise Failure("DISPATCHER_DEV is set: `serve` is for production", hint="Unset it, or use: dispatcher dev")
    if not settings.database_url and not data_named:
        raise Failure("no database: DATABASE_URL is not set", hint="Set it, or name a directory for the embedded Postgres with --data.")
    if not settings.master_key:
        raise Failure("DISPATCHER_MASTER_KEY is not set", hint="Make one with: openssl rand -base64 32, and keep it: it opens all secrets.")
    try:
        parse_master_key(settings.master_key)
    except SealError as error:
        raise Failure(str(error)) from None
    if is_development_key(settings):
        raise Failure("DISPATCHER_MASTER_KEY is a development key", hint="Make one for production: openssl rand -base64 32")
    if settings.host in _EVERY_ADDRESS and not settings.api_url:
        note("DISPATCHER_API_URL is not set: endpoints cannot call back to http://0.0.0.0. Set it to where they reach this server.")


def is_development_key(settings: Settings) -> bool:
    """Whether the master key is one that `dev` made, in the data directory or below this one."""
    from pathlib import Path

    made = [Path(directory, "development.key") for directory in (settings.data_dir, ".dispatcher")]
    return any(file.is_file() and file.read_text().strip() == settings.master_key.strip() for file in made)


def _log() -> None:
    import logging

    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO").upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
