"""Exit codes, and the failures that end a command with one of them: a sentence, and what to do about it, on stderr."""

from __future__ import annotations

from enum import IntEnum
from typing import IO, Any

import rich_click as click


class Exit(IntEnum):
    """Exit codes of every command. 2, wrong usage, is click's own."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    AUTH = 4
    TIMEOUT = 5
    RUN_FAILED = 6


_OF_STATUS = {401: Exit.AUTH, 403: Exit.AUTH, 404: Exit.NOT_FOUND, 408: Exit.TIMEOUT, 504: Exit.TIMEOUT}


class Failure(click.ClickException):
    """What went wrong, and a hint for putting it right. `passing`: the same may succeed later, without anybody changing it."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.FAILURE, passing: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.passing = passing
        self.exit_code = int(code)  # type: ignore[misc]  # click reads it from the instance, and says so

    def show(self, file: IO[Any] | None = None) -> None:
        """Write both to stderr."""
        click.echo(f"Error: {self.message}", err=True)
        if self.hint:
            click.echo(f"  {self.hint}", err=True)


def refused(status: int, document: Any) -> Failure:
    """The failure a server's problem document describes."""
    if not isinstance(document, dict) or "detail" not in document:
        return Failure(
            f"the server answered {status}, and not as a dispatcher does",
            hint="Is the URL that of a dispatcher?",
            code=_code(status),
            passing=status >= 500,
        )
    message = f"{document['detail']} ({document.get('code', status)})"
    return Failure(message, hint=str(document.get("hint", "")), code=_code(status), passing=status >= 500 or status == 429)


def _code(status: int) -> Exit:
    return _OF_STATUS.get(status, Exit.FAILURE)
