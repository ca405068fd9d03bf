"""Arguments that commands share, and the forms their values take."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click

from dispatcher.cli.output import Output

Command = Callable[..., None]
DEFAULT_URL = "http://127.0.0.1:8400"
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_PART = re.compile(r"([\d.]+)(ms|[smhd])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def answers(function: Command) -> Command:
    """Add `-o`; the function gets an Output as `out`."""

    @click.option("-o", "--output", type=click.Choice(["json", "table"]), help="How to answer; json where stdout is no terminal.")
    @functools.wraps(function)
    def command(*args: Any, output: str | None, **kwargs: Any) -> None:
        json_wanted = output == "json" if output else not sys.stdout.isatty()
        function(*args, out=Output(json_wanted), **kwargs)

    return command


def asks_server(function: Command) -> Command:
    """Add `--url`, `--token` and `-o`; the function gets a client as `api` and an Output as `out`."""

    @click.option("--url", envvar=["DISPATCHER_URL", "DISPATCHER_API_URL"], default=DEFAULT_URL, help="The server to ask (DISPATCHER_URL).")
    @click.option("--token", envvar="DISPATCHER_TOKEN", help="API token (DISPATCHER_TOKEN); `dev` needs none.")
    @answers
    @functools.wraps(function)
    def command(*args: Any, url: str, token: str | None, **kwargs: Any) -> None:
        from dispatcher.cli.client import Api

        with Api(url, token) as api:
            function(*args, api=api, **kwargs)

    return command


def needs_data(function: Command) -> Command:
    """Add `--data`, where the embedded Postgres lives when DATABASE_URL is not set."""
    option = click.option(
        "--data",
        "data_dir",
        type=click.Path(file_okay=False),
        help="Directory of the embedded Postgres, used unless DATABASE_URL is set (DISPATCHER_DATA_DIR).",
    )
    return option(function)


class JsonInput(click.ParamType[str]):
    """JSON text, `@file` or `-` for stdin; the text goes on as it was written."""

    name = "json|@file|-"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, checked to be one JSON value."""
        text = self._read(value, param, ctx).strip()
        try:
            json.loads(text, parse_constant=_refuse)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        return text

    def _read(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            if value == "-":
                return sys.stdin.read()
            return Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") else value
        except (OSError, UnicodeDecodeError) as error:
            self.fail(str(error), param, ctx)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


class Duration(click.ParamType[timedelta]):
    """`90s`, `1h30m`, `7d`, `250ms`, or a number of seconds, as a timedelta."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The timedelta."""
        if isinstance(value, timedelta):
            return value
        found = parse_duration(value)
        if found is None:
            self.fail(f"{value!r} is no duration; write 90s, 1h30m or 7d", param, ctx)
        return found


class Moment(click.ParamType[str]):
    """RFC 3339, or a duration before now, as RFC 3339 text."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """RFC 3339 in UTC."""
        ago = parse_duration(value)
        if ago is not None:
            from dispatcher.clock import SystemClock

            return rfc3339(SystemClock().now() - ago)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no moment; write 2026-01-31T09:00:00Z, or 1h for an hour ago", param, ctx)
        return rfc3339(moment if moment.tzinfo else moment.astimezone())


def parse_duration(text: str) -> timedelta | None:
    """A timedelta, or None if the text is no duration."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return timedelta(seconds=float(text))
    if not _DURATION.fullmatch(text):
        return None
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))


def rfc3339(moment: datetime) -> str:
    """A moment as the API takes it."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


class Pair(click.ParamType[tuple[str, str]]):
    """`key=value` as a pair of texts."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The pair."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not key=value", param, ctx)
        return key, text


def typed(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Pairs as an object: a value that reads as a JSON number, true, false or null is one, any other is text."""
    return {key: _scalar(text) for key, text in pairs}


def _scalar(text: str) -> Any:
    if text in {"true", "false", "null"} or re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text):
        return json.loads(text)
    return text


def body(**members: str | None) -> bytes:
    """A JSON object of members already written as JSON; those that are None are left out."""
    return ("{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in members.items() if text is not None) + "}").encode()


def written(value: Any) -> str | None:
    """A value as JSON text for `body`, None staying None."""
    return None if value is None else json.dumps(value, ensure_ascii=False)
