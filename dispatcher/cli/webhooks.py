"""`dispatcher webhooks`: addresses that receive webhooks, and what arrived at them."""

from __future__ import annotations

import json
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from dispatcher.cli.failures import Exit
from dispatcher.cli.options import Command, Duration, JsonInput, Moment, Pair, asks_server, body, written
from dispatcher.cli.output import Output, note, pairs

if TYPE_CHECKING:
    from dispatcher.cli.client import Answer, Api

STATUSES = ["accepted", "duplicate", "unrouted", "rejected", "handshake", "filtering"]
REPLAYABLE = ["accepted", "unrouted"]
COLUMNS = ["name", "source", "url", "event_key_expression"]
DELIVERY_COLUMNS = ["id", "status", "reason", "event_key", "event_id", "received_at"]
_PART = 1_000
_PART_SECONDS = 300.0
_SHOWN = ["id", "name", "source", "url", "event_key_expression", "scope_expression", "filter_expression", "note", "sample.event_key"]


class SecretText(click.ParamType[str]):
    """A secret: the text, `@file`, or `-` for stdin; a line's end behind it is none of it."""

    name = "secret|@file|-"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text."""
        try:
            if value == "-":
                return sys.stdin.read().rstrip("\r\n")
            return Path(value[1:]).read_text(encoding="utf-8").rstrip("\r\n") if value.startswith("@") else str(value)
        except (OSError, UnicodeDecodeError) as error:
            self.fail(str(error), param, ctx)


def _path(name: str, action: str = "") -> str:
    from dispatcher.cli.client import segment

    return f"/v1/webhooks/{segment(name)}{action}"


def _show(out: Output, answer: Answer) -> None:
    document: dict[str, Any] = answer.value
    out.document(answer.text, pairs(document, _SHOWN))
    for member, error in document.get("sample", {}).get("errors", {}).items():
        note(f"On a sample of this sender {member} fails: {error['message']}")
    for warning in document.get("sample", {}).get("warnings", []):
        note(f"Warning: {warning}")


def expressions(function: Command) -> Command:
    """The options `create` and `update` share."""
    for option in (
        click.option("--params", "param", type=Pair(), multiple=True, help="key=value that the sender needs besides, such as topic_arn."),
        click.option("--static", "static_payload", type=JsonInput(), help="A JSON object merged into every payload; it wins."),
        click.option("--filter", "filter_expression", help="CEL that says whether a delivery starts anything."),
        click.option("--scope", "scope_expression", help="CEL for the scope of the event."),
        click.option("-k", "--key", "event_key_expression", help="CEL for the type of the event, such as 'stripe:' + input.type."),
    ):
        function = option(function)
    return function


@click.group()
def webhooks() -> None:
    """Make, try and mend addresses that receive webhooks, and see what arrived."""


@webhooks.command("list")
@click.option("--source", multiple=True, help="Only those of this sender; repeatable.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def list_(source: tuple[str, ...], limit: int, cursor: str | None, api: Api, out: Output) -> None:
    """List webhooks with the addresses their senders post to."""
    answer = api.get("/v1/webhooks", source=list(source) or None, limit=limit, cursor=cursor)
    out.rows(answer.text, COLUMNS, "No webhooks. Make one: dispatcher webhooks create NAME SOURCE")


@webhooks.command()
@click.argument("name")
@asks_server
def get(name: str, api: Api, out: Output) -> None:
    """Show a webhook, and when its secrets were last used."""
    _show(out, api.get(_path(name)))


@webhooks.command()
@click.argument("name")
@click.argument("source")
@click.option("-s", "--secret", type=SecretText(), multiple=True, help="What the sender signs with; text, @file or -; repeatable.")
@click.option("--auth", type=JsonInput(), help='For SOURCE generic: {"type": "hmac", "header": "X-Signature"}, api_key, basic, bearer, …')
@expressions
@asks_server
def create(
    name: str,
    source: str,
    secret: tuple[str, ...],
    auth: str | None,
    event_key_expression: str | None,
    scope_expression: str | None,
    filter_expression: str | None,
    static_payload: str | None,
    param: tuple[tuple[str, str], ...],
    api: Api,
    out: Output,
) -> None:
    """Make a webhook for what SOURCE sends: github, stripe, slack, …, or generic with --auth. Give the sender its URL."""
    content = body(
        name=written(name),
        source=written(source),
        secrets=written(list(secret)),
        auth=auth,
        event_key_expression=written(event_key_expression),
        scope_expression=written(scope_expression),
        filter_expression=written(filter_expression),
        static_payload=static_payload,
        params=written(dict(param) or None),
    )
    _show(out, api.call("POST", "/v1/webhooks", content))


@webhooks.command()
@click.argument("name")
@expressions
@asks_server
def update(
    name: str,
    event_key_expression: str | None,
    scope_expression: str | None,
    filter_expression: str | None,
    static_payload: str | None,
    param: tuple[tuple[str, str], ...],
    api: Api,
    out: Output,
) -> None:
    """Change a webhook; an empty --scope or --filter takes it away."""
    content = body(
        event_key_expression=written(event_key_expression),
        scope_expression="null" if scope_expression == "" else written(scope_expression),
        filter_expression="null" if filter_expression == "" else written(filter_expression),
        static_payload=static_payload,
        params=written(dict(param) or None),
    )
    _show(out, api.call("PATCH", _path(name), content))


@webhooks.command()
@click.argument("name")
@asks_server
def delete(name: str, api: Api, out: Output) -> None:
    """Remove a webhook; its address answers as if it had never been."""
    api.call("DELETE", _path(name))
    out.item({"name": name, "deleted": True}, f"{name} deleted")


@webhooks.command("add-secret")
@click.argument("name")
@click.option("-s", "--secret", type=SecretText(), help="The new one: text, @file or -; without it one is made, and shown this once.")
@click.option("--overlap", type=Duration(), help="The others end after this; without it they go on until they are removed.")
@asks_server
def add_secret(name: str, secret: str | None, overlap: timedelta | None, api: Api, out: Output) -> None:
    """Add a secret beside the others, so that the sender can be switched over without a refusal."""
    text = f"{overlap.total_seconds():g}s" if overlap is not None else None
    answer = api.call("POST", _path(name, "/secrets"), body(secret=written(secret), overlap=written(text)))
    out.document(answer.text, pairs(answer.value, ["number", "secret"]))


@webhooks.command("remove-secret")
@click.argument("name")
@click.argument("number", type=click.IntRange(1))
@asks_server
def remove_secret(name: str, number: int, api: Api, out: Output) -> None:
    """Remove a secret by its number: `get` shows which was last used when."""
    api.call("DELETE", _path(name, f"/secrets/{number}"))
    out.item({"name": name, "number": number, "removed": True}, f"secret {number} of {name} removed")


@webhooks.command()
@click.argument("name")
@click.option("-s", "--status", type=click.Choice(STATUSES), multiple=True, help="Only deliveries with this status; repeatable.")
@click.option("--since", type=Moment(), help="Only those received since: RFC 3339, or 1h for the last hour.")
@click.option("--until", type=Moment(), help="Only those received before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the list before ended: its next_cursor.")
@asks_server
def deliveries(
    name: str,
    status: tuple[str, ...],
    since: str | None,
    until: str | None,
    limit: int,
    cursor: str | None,
    api: Api,
    out: Output,
) -> None:
    """List what arrived at a webhook, newest first, with the reason for what was refused."""
    answer = api.get(_path(name, "/deliveries"), status=list(status) or None, since=since, until=until, limit=limit, cursor=cursor)
    out.rows(answer.text, DELIVERY_COLUMNS, "Nothing arrived. Try it with: dispatcher webhooks test NAME")


@webhooks.command()
@click.argument("name")
@click.argument("delivery", nargs=-1)
@click.option("-s", "--status", type=click.Choice(REPLAYABLE), multiple=True, help="Instead of DELIVERY: all with this status; repeatable.")
@click.option("--reason", multiple=True, help="Of those only these, such as filtered; repeatable.")
@click.option("--since", type=Moment(), help="Only those received since: RFC 3339, or 1h for the last hour.")
@click.option("--until", type=Moment(), help="Only those received before.")
@asks_server
def replay(
    name: str,
    delivery: tuple[str, ...],
    status: tuple[str, ...],
    reason: tuple[str, ...],
    since: str | None,
    until: str | None,
    api: Api,
    out: Output,
) -> None:
    """Send deliveries through the expressions again, one event each; exit 1 when some became none."""
    chosen = {"status": written(list(status) or None), "reason": written(list(reason) or None)}
    given = {**chosen, "since": written(since), "until": written(until), "key": written(secrets.token_hex(8))}
    parts = [{"ids": written(list(delivery[at : at + _PART]))} for at in range(0, len(delivery), _PART)] or [{}]
    failed = 0
    for part in parts:
        for answer in _parts(api, _path(name, "/replay"), {**given, **part}):
            for row in answer["rows"]:
                line = f"{row['delivery_id']}  {row['status']}  {row['event_key'] or row['reason']}  {row['event_id'] or '-'}"
                out.item(row, line)
            failed += answer["unrouted"] + answer["refused"]
    if failed:
        sys.exit(int(Exit.FAILURE))


@webhooks.command()
@click.argument("name")
@click.option("--since", type=Moment(), help="Only those received since: RFC 3339, or 1h for the last hour.")
@click.option("--until", type=Moment(), help="Only those received before.")
@asks_server
def reroute(name: str, since: str | None, until: str | None, api: Api, out: Output) -> None:
    """Give every unrouted delivery to the expressions as they are now; exit 1 when some still find no place."""
    counts, errors = Counter[str](), Counter[str]()
    for answer in _parts(api, _path(name, "/reroute"), {"since": written(since), "until": written(until)}):
        counts.update({member: answer[member] for member in ("matched", "routed", "unrouted")})
        errors.update(answer["errors"])
    document = {**counts, "errors": dict(errors)}
    out.document(json.dumps(document), [f"{counts['routed']} of {counts['matched']} routed"])
    for reason, count in errors.items():
        note(f"{count} still fail: {reason}")
    if counts["unrouted"]:
        sys.exit(int(Exit.FAILURE))


def _parts(api: Api, path: str, given: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    """The answers to a call that does so much at a time, until there is no more to do."""
    cursor: str | None = None
    while True:
        answer = api.call("POST", path, body(**given, cursor=written(cursor)), wait=_PART_SECONDS)
        yield answer.value
        cursor = answer.value["next_cursor"]
        if cursor is None:
            return


@webhooks.command()
@click.argument("name")
@click.option("-p", "--payload", type=JsonInput(), help="What to send; without it, what this sender usually sends.")
@click.option("-H", "--header", type=Pair(), multiple=True, help="name=value sent along with --payload; repeatable.")
@click.option("--form", is_flag=True, help="Send the payload's members as form fields.")
@asks_server
def test(name: str, payload: str | None, header: tuple[tuple[str, str], ...], form: bool, api: Api, out: Output) -> None:
    """Sign a realistic sample with the webhook's own secret and send it the way of a real one; exit 1 unless it starts an event."""
    sample = None
    if payload is not None:
        sample = body(payload=payload, headers=written(dict(header)), form=written(form)).decode()
    answer = api.call("POST", _path(name, "/test"), body(sample=sample))
    result = answer.value
    out.document(answer.text, pairs(result, ["status", "outcome", "reason", "detail", "event_key", "scope", "event_id", "runs"]))
    if result["event_id"] is None:
        sys.exit(int(Exit.FAILURE))
