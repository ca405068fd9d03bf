"""`dispatcher doctor`: is this installation as it should be, and if not, what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import rich_click as click

from dispatcher.cli.failures import Exit
from dispatcher.cli.options import answers, needs_data
from dispatcher.cli.output import Output

if TYPE_CHECKING:
    from dispatcher.cli.checks import Finding

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("–", "bright_black")}


@click.command()
@click.option("--url", envvar=["DISPATCHER_URL", "DISPATCHER_API_URL"], help="The server to look at; the one of the settings unless said.")
@click.option("--token", envvar="DISPATCHER_TOKEN", help="API token (DISPATCHER_TOKEN); `dev` needs none.")
@needs_data
@answers
def doctor(url: str | None, token: str | None, data_dir: str | None, out: Output) -> None:
    """Check this installation and say how to fix what is wrong.

    Looks at Python, the settings, Postgres, the schema, the clocks, the port, the server and its endpoints. Changes nothing. Exits 1 when
    something has to be fixed.
    """
    from dispatcher.cli.checks import examine

    findings = examine(data_dir, url, token)
    rows = [{"check": one.check, "status": one.status, "detail": one.detail, "fix": one.fix} for one in findings]
    out.document(json.dumps({"rows": rows, "next_cursor": None}, ensure_ascii=False), list(_lines(findings)))
    if any(one.status == "failed" for one in findings):
        sys.exit(int(Exit.FAILURE))


def _lines(findings: Iterable[Finding]) -> Iterable[str]:
    for one in findings:
        mark, colour = _MARKS[one.status]
        yield f"{click.style(mark, fg=colour)} {one.check.ljust(10)} {one.detail}"
        if one.fix:
            yield f"  {'':10} → {one.fix}"
