"""`dispatcher replay`: does the code still fit the log of a run? Asked of the app itself, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import rich_click as click

from dispatcher.cli.failures import Exit, Failure
from dispatcher.cli.options import answers
from dispatcher.cli.output import pairs

if TYPE_CHECKING:
    from dispatcher.cli.output import Output


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.argument("target", metavar="MODULE:APP")
@answers
def replay(file: str, target: str, out: Output) -> None:
    """Run a durable task's code against the log of an exported run, here and without effects.

    FILE holds the run and its journal: dispatcher runs get ID -o json > run.json. No step is run and nothing is called but
    what provides the handler's dependencies. Exit 1 when the code does not fit the log; what was recorded and what is asked for is shown.
    """
    done = subprocess.run(  # noqa: S603 - this interpreter, the SDK's own module
        [sys.executable, "-m", "handlers_sdk.exported", file, target], capture_output=True, text=True, check=False
    )
    told = _document(done.stdout)
    if told is None:
        reason = done.stderr.strip().splitlines()
        raise Failure(reason[-1].removeprefix("Error: ") if reason else f"the app ended with {done.returncode}", code=Exit.USAGE)
    lines = pairs(told, ["task", "outcome", "entries", "output", "asks", "error.message", "at.id", "at.expected", "at.got", "unconsumed"])
    out.document(json.dumps(told, ensure_ascii=False), lines)
    if told["outcome"] == "mismatch":
        raise Failure(
            f"the code does not fit the log at {told['at']['id']}", hint="Deploy what was pinned, or guard the change with ctx.patch(name)."
        )


def _document(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None
