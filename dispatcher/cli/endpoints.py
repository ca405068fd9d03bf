"""`dispatcher endpoints`: the URLs that run handlers."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import rich_click as click

from dispatcher.cli.failures import Exit, Failure
from dispatcher.cli.options import Duration, JsonInput, Pair, asks_server, body, typed, written
from dispatcher.cli.output import Output, note, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Answer, Api

COLUMNS = ["name", "url", "version", "health", "slots", "in_use"]


@click.group()
def endpoints() -> None:
    """Register, check and change the URLs that run handlers."""


def _path(name: str, action: str = "") -> str:
    from dispatcher.cli.client import segment

    return f"/v1/endpoints/{segment(name)}{action}"


def _show(out: Output, answer: Answer) -> None:
    document: dict[str, Any] = answer.value
    out.document(answer.text, pairs(document, list(document)))


@endpoints.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List endpoints with their health and the slots in use."""
    answer = api.get("/v1/endpoints", limit=limit, cursor=cursor)
    out.rows(answer.text, COLUMNS, "No endpoints. Register one: dispatcher endpoints add NAME URL")


@endpoints.command()
@click.argument("name")
@asks_server
def get(name: str, api: Api, out: Output) -> None:
    """Show an endpoint."""
    _show(out, api.get(_path(name)))


@endpoints.command()
@click.argument("name")
@click.argument("url_of_endpoint", metavar="URL")
@click.option("--handlers", type=JsonInput(), help="What a plain endpoint runs, as a JSON list; without it the endpoint is asked.")
@click.option("--version", help="Of the deployed code; without it, what the endpoint says, or a checksum.")
@click.option("--slots", type=click.IntRange(1), help="Attempts it may have open at once.")
@click.option("--durable-slots", type=click.IntRange(1), help="Turns of durable tasks it may have open at once, apart from those.")
@click.option("-l", "--label", type=Pair(), multiple=True, help="key=value that tasks may ask for; repeatable.")
@click.option("--auth-header", type=Pair(), help="Name=value sent with every request to it.")
@asks_server
def add(
    name: str,
    url_of_endpoint: str,
    handlers: str | None,
    version: str | None,
    slots: int | None,
    durable_slots: int | None,
    label: tuple[tuple[str, str], ...],
    auth_header: tuple[str, str] | None,
    api: Api,
    out: Output,
) -> None:
    """Register the handlers behind URL as NAME, or update them.

    The answer of a first registration holds the secret that requests are signed with; it is shown this once.
    """
    auth = {"type": "header", "name": auth_header[0], "value": auth_header[1]} if auth_header else None
    content = body(
        url=written(url_of_endpoint),
        version=written(version),
        slots=written(slots),
        durable_slots=written(durable_slots),
        labels=written(typed(label) or None),
        auth=written(auth),
        handlers=handlers,
    )
    answer = api.call("PUT", _path(name), content)
    _show(out, answer)
    for warning in answer.value["warnings"]:
        note(f"Warning: {warning}")
    if answer.value.get("secret"):
        note("Keep the secret now: it is not shown again.")


@endpoints.command()
@click.argument("name")
@asks_server
def ping(name: str, api: Api, out: Output) -> None:
    """Ask an endpoint for a sign of life; exit 1 when there is none."""
    answer = api.call("POST", _path(name, "/ping"))
    _show(out, answer)
    if not answer.value["ok"]:
        sys.exit(int(Exit.FAILURE))


@endpoints.command()
@click.argument("name")
@asks_server
def pause(name: str, api: Api, out: Output) -> None:
    """Give an endpoint no new attempts; those that are open go on."""
    _show(out, api.call("PATCH", _path(name), body(paused="true")))


@endpoints.command()
@click.argument("name")
@click.option("--wait", type=Duration(), help="Wait so long for what goes on there to end; exit 5 when it has not.")
@asks_server
def drain(name: str, wait: timedelta | None, api: Api, out: Output) -> None:
    """Give an endpoint nothing new.

    Durable tasks that began there and runs that stay there go on, as do attempts that are open. All else goes to other endpoints that serve
    it, and waits where there is none. `remaining` says how many runs go on there; with none left the endpoint is `drained`.
    """
    answer = api.call("PATCH", _path(name), body(draining="true"))
    if wait is not None:
        from dispatcher.cli.patience import Patience

        patience = Patience(wait, f"{name} is not drained", f"It goes on. See what is left: dispatcher endpoints get {name}")
        while answer.value["draining"] and answer.value["remaining"]:
            patience.pause()
            answer = api.get(_path(name))
    _show(out, answer)
    if not answer.value["draining"]:
        raise Failure(f"{name} has been given work again meanwhile")


@endpoints.command()
@click.argument("name")
@asks_server
def resume(name: str, api: Api, out: Output) -> None:
    """Give an endpoint that was paused or drained work again."""
    _show(out, api.call("PATCH", _path(name), body(paused="false", draining="false")))


@endpoints.command("rotate-secret")
@click.argument("name")
@click.option("--overlap", type=Duration(), help="How long the old secret goes on signing as well; a day unless said.")
@asks_server
def rotate_secret(name: str, overlap: timedelta | None, api: Api, out: Output) -> None:
    """Give an endpoint a new secret, shown this once."""
    text = f"{overlap.total_seconds():g}s" if overlap is not None else None
    _show(out, api.call("POST", _path(name, "/secret/rotate"), body(overlap=written(text))))
    note("Keep the secret now: it is not shown again.")


@endpoints.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even while attempts are running there; their results are still taken.")
@asks_server
def delete(name: str, force: bool, api: Api, out: Output) -> None:
    """Remove an endpoint."""
    api.call("DELETE", _path(name), params={"force": "true"} if force else None)
    out.item({"name": name, "deleted": True}, f"{name} deleted")
