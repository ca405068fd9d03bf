"""A group of commands that are imported one by one, on use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import rich_click as click

from dispatcher.cli.failures import Failure

Members = Mapping[str, tuple[str, str]]
"""Command name → ("module:attribute", the first sentence of its help)."""


class LazyGroup(click.RichGroup):
    """A group that shows its own help, and completes command names, without importing a command."""

    def __init__(self, *args: Any, members: Members, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._members = members
        self._listing = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(self._members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; while help is being written, a stand-in that carries the sentence from the table."""
        if cmd_name not in self._members:
            return None
        path, sentence = self._members[cmd_name]
        if self._listing:
            return click.RichCommand(name=cmd_name, help=sentence)
        module, _, attribute = path.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A Failure is written in plain lines: a box would break commands and addresses worth copying."""
        try:
            return super().invoke(ctx)
        except Failure as failure:
            failure.show()
            ctx.exit(failure.exit_code)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of the group itself."""
        with self._only_listing():
            super().format_help(ctx, formatter)  # type: ignore[arg-type]  # rich-click narrows click's types

    @contextmanager
    def _only_listing(self) -> Iterator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False
