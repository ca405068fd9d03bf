"""What holds for every command: it starts without what it does not need, answers as JSON, and says what each option is for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import rich_click as click

from dispatcher.cli import COMMANDS, main
from tests.cli.running import environment, invoke

HEAVY = {"aiohttp", "asyncpg", "cryptography", "httpx", "litestar", "msgspec", "pydantic", "uvicorn", "uvloop", "handlers_sdk"}


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is no group, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY_COMMAND = pytest.mark.parametrize("command", [command for _, command in commands()], ids=[" ".join(path) for path, _ in commands()])


def loaded_by(*arguments: str) -> set[str]:
    """Top-level packages that are there once a command line has been read."""
    script = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from dispatcher.cli import main
main({arguments!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("runs", "--help"), ("dev", "--help"), ("serve", "--help")], ids=" ".join
)
def test_what_only_tells_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & HEAVY


def test_a_command_that_asks_a_server_loads_the_http_client_and_no_more() -> None:
    loaded = {
        module.partition(".")[0] for module in modules_of("dispatcher.cli.options", "dispatcher.cli.client", "dispatcher.cli.results")
    }
    assert loaded & HEAVY == {"httpx"}


def modules_of(*names: str) -> set[str]:
    script = f"import {', '.join(names)}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    return set(json.loads(done.stdout))


def test_version() -> None:
    assert invoke("--version").out.split() == ["dispatcher", "0.1.0"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help is not None
    assert command.help.split("\n\n")[0].replace("\n", " ") == COMMANDS[name][1]


@EVERY_COMMAND
def test_it_answers_as_json(command: click.Command) -> None:
    assert [option for option in command.params if "--output" in option.opts]


@EVERY_COMMAND
def test_it_says_what_everything_is_for(command: click.Command) -> None:
    assert command.help
    assert command.callback is not None
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{option.name} has no help"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("trigger",),
        ("trigger", "x", "--input", "{"),
        ("trigger", "x", "--input", "NaN"),
        ("trigger", "x", "--input", "@/does/not/exist"),
        ("trigger", "x", "-m", "novalue"),
        ("trigger", "x", "--timeout", "soon"),
        ("runs", "list", "--since", "yesterday"),
        ("runs", "list", "--status", "done"),
        ("runs", "list", "--limit", "0"),
        ("runs", "list", "--url", "ftp://x"),
        ("dev", "main"),
        ("dev", "--host", "0.0.0.0"),
        ("dev", "--host", "example.com"),
        ("token", "create", "x", "--scope", "all"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_prints_no_data(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err
