"""`dispatcher rate-limits` and `dispatcher concurrency`: limits that are changed while work goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.options import asks_server, body, written
from dispatcher.cli.output import Output, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Api

_DURATIONS = click.Choice(["second", "minute", "hour", "day", "week", "month", "year"], case_sensitive=False)
_RATE = ["key", "limit", "duration", "value", "refill_at", "dynamic", "waiting"]
_LIMIT = ["name", "max_runs", "until", "updated_at"]
_GROUP = ["name", "workflow_id", "expression", "strategy", "key", "limit", "held", "waiting"]


@click.group("rate-limits")
def rate_limits() -> None:
    """Set, list and take away limits of how many tasks start in a window of time."""


@rate_limits.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_rates(limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List rate limits with what is left of them."""
    answer = api.get("/v1/rate-limits", limit=limit, cursor=cursor)
    out.rows(answer.text, _RATE, "No rate limits. Set one: dispatcher rate-limits put KEY 10 --per minute")


@rate_limits.command()
@click.argument("key")
@asks_server
def get(key: str, api: Api, out: Output) -> None:
    """Show a rate limit."""
    answer = api.get(_rate(key))
    out.document(answer.text, pairs(answer.value, _RATE))


@rate_limits.command()
@click.argument("key")
@click.argument("limit", type=int)
@click.option("--per", type=_DURATIONS, default="minute", show_default=True, help="The window the limit is for.")
@asks_server
def put(key: str, limit: int, per: str, api: Api, out: Output) -> None:
    """Set a limit of LIMIT units in each window, or change it. Raising it adds nothing before the next window."""
    answer = api.call("PUT", _rate(key), body(limit=written(limit), duration=written(per)))
    out.document(answer.text, pairs(answer.value, _RATE))


@rate_limits.command()
@click.argument("key")
@asks_server
def delete(key: str, api: Api, out: Output) -> None:
    """Take a limit away; what waits for it starts."""
    api.call("DELETE", _rate(key))
    out.item({"key": key, "deleted": True}, f"{key} deleted")


@click.group()
def concurrency() -> None:
    """See concurrency groups, and change limits that have a name."""


@concurrency.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def groups(limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List the groups somebody is in: how many are under way, how many wait."""
    answer = api.get("/v1/concurrency-groups", limit=limit, cursor=cursor)
    out.rows(answer.text, _GROUP, "No group has anybody under way or waiting.")


@concurrency.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_limits(limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List named limits that are other than their workflows declare."""
    answer = api.get("/v1/concurrency", limit=limit, cursor=cursor)
    out.rows(answer.text, _LIMIT, "All named limits are as declared. Change one: dispatcher concurrency set NAME 5")


@concurrency.command("set")
@click.argument("name")
@click.argument("max_runs", type=int)
@click.option("--for", "expires_in", help="How long, such as 30m; for good unless said.")
@asks_server
def set_(name: str, max_runs: int, expires_in: str | None, api: Api, out: Output) -> None:
    """Let at most MAX_RUNS share a named limit, in place of what is declared. What runs goes on."""
    answer = api.call("PUT", _limit(name), body(max_runs=written(max_runs), expires_in=written(expires_in)))
    out.document(answer.text, pairs(answer.value, _LIMIT))


@concurrency.command()
@click.argument("name")
@asks_server
def reset(name: str, api: Api, out: Output) -> None:
    """Let a named limit be as its workflows declare it again."""
    api.call("DELETE", _limit(name))
    out.item({"name": name, "reset": True}, f"{name} is as declared")


def _rate(key: str) -> str:
    from dispatcher.cli.client import segment

    return f"/v1/rate-limits/{segment(key)}"


def _limit(name: str) -> str:
    from dispatcher.cli.client import segment

    return f"/v1/concurrency/{segment(name)}"
