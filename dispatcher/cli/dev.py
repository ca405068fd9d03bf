"""`dispatcher dev`: everything on this machine, with nothing to configure."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import answers, needs_data
from dispatcher.cli.output import Output

if TYPE_CHECKING:
    from dispatcher.app import Runtime
    from dispatcher.cli.application import Application
    from dispatcher.cli.steps import Steps
    from dispatcher.settings import Settings

_GRACE = timedelta(seconds=8)
_PATIENCE = timedelta(seconds=60)


@click.command()
@click.argument("target", required=False, metavar="[MODULE:APP]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 is any free one (DISPATCHER_PORT, or 8400).")
@click.option("--name", help="What the app is registered as; its module's name unless said.")
@click.option("--path", default="/", show_default=True, help="Where in the app the handlers are mounted.")
@click.option("--reload/--no-reload", default=True, show_default=True, help="Whether the app is run again when its files change.")
@needs_data
@answers
def dev(
    target: str | None, host: str, port: int | None, name: str | None, path: str, reload: bool, data_dir: str | None, out: Output
) -> None:
    """Run a development server on loopback, and your app beside it.

    It brings its own Postgres, kept in ./.dispatcher, unless DATABASE_URL is set; asks for no token; and prints one line for each run that
    ends. MODULE:APP is an ASGI app made with `Dispatcher.app(...)`, such as `main:app`: it is run in a process of its own, registered,
    and run again when a Python file below this directory changes.
    """
    from dispatcher.cli.addresses import is_loopback
    from dispatcher.cli.steps import Steps

    steps = Steps(out)
    if not is_loopback(host):
        raise click.UsageError(f"`dev` asks for no token, so it listens on loopback only, not on {host}. Use `dispatcher serve`.")
    if target is not None and ":" not in target:
        raise click.BadParameter(f"{target!r} is not module:attribute, such as main:app", param_hint="MODULE:APP")
    from dispatcher.cli.local import settings_with
    from dispatcher.cli.serving import Serving, run_loop

    settings = settings_with(dev=True, host=host, port=port, data_dir=data_dir, api_url="")
    steps.mark()
    plan = _Plan(settings, steps, target, name, "/" + path.lstrip("/"), reload)
    _log_warnings()
    run_loop(Serving(settings, steps, _GRACE, _PATIENCE).run(plan.ready))


def _log_warnings() -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


class _Plan:
    """What `dev` does once requests are answered."""

    def __init__(self, settings: Settings, steps: Steps, target: str | None, name: str | None, path: str, reload: bool) -> None:
        self._settings = settings
        self._steps = steps
        self._target = target
        self._name = name
        self._path = path
        self._reload = reload

    async def ready(self, runtime: Runtime, url: str, beside: AsyncExitStack) -> None:
        """Print runs as they end, start the app, say what to try."""
        from dispatcher.cli.finished import tell_of_runs

        tell_of_runs(runtime, self._steps, url)
        await until_ready(url)
        self._steps.done(f"server {url}", url=url)
        advice = "no app yet: dispatcher dev main:app, or register one: dispatcher endpoints add NAME URL"
        if self._target is not None:
            advice = _try(await self._start_app(self._target, url, beside))
        self._steps.ready(url, advice)

    async def _start_app(self, target: str, url: str, beside: AsyncExitStack) -> Application:
        from dispatcher.cli.application import Application

        name = self._name or target.partition(":")[0].rpartition(".")[2]
        app = Application(target, name, self._path, self._reload, url, self._steps)
        beside.push_async_callback(app.stop)
        await app.start()
        return app


def _try(app: Application) -> str:
    return f"try: dispatcher trigger {app.handlers[0]} --wait" if app.handlers else "the app has no handlers yet"


async def until_ready(url: str) -> None:
    """Wait for GET /readyz to be 200."""
    import asyncio

    import httpx

    async with httpx.AsyncClient(trust_env=False) as http:
        while (await http.get(f"{url}/readyz")).status_code != 200:  # noqa: ASYNC110 - the server's own answer is what counts
            await asyncio.sleep(0.05)
