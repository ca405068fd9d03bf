"""Runs and log lines as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from dispatcher.cli.client import Api, segment
from dispatcher.cli.output import Output
from dispatcher.cli.patience import Patience
from dispatcher.cli.results import FINAL, error_text, leave_by, milliseconds, run_lines
from dispatcher.cli.steps import duration

_WAIT_SECONDS = 2.0
_PAGE = 200
_LIVE_LOOKED_UP = 50

Row = Mapping[str, Any]


class _LogReader:
    """Reads a run's log lines page by page, each line once."""

    def __init__(self, api: Api, out: Output, run_id: str) -> None:
        self._api = api
        self._out = out
        self._path = f"/v1/runs/{segment(run_id)}/logs"
        self._cursor: str | None = None
        self._seen = 0  # lines already printed of the page at the cursor

    def print_new(self) -> None:
        """Print the lines that were not there before."""
        while True:
            page = self._api.get(self._path, limit=_PAGE, cursor=self._cursor).value
            for row in page["rows"][self._seen :]:
                self._out.item(row, f"{row['at']}  {row['level'].ljust(7)}  {row['message']}")
            if not page["next_cursor"]:
                self._seen = len(page["rows"])
                return
            self._cursor, self._seen = page["next_cursor"], 0


def print_logs(api: Api, out: Output, run_id: str, filters: Mapping[str, Any]) -> None:
    """Print the log lines there are."""
    cursor = None
    while True:
        page = api.get(f"/v1/runs/{segment(run_id)}/logs", limit=_PAGE, cursor=cursor, **filters).value
        for row in page["rows"]:
            print_line(out, row)
        cursor = page["next_cursor"]
        if cursor is None:
            return


def follow_lines(api: Api, out: Output, run_id: str, filters: Mapping[str, Any]) -> None:
    """Print log lines as they come, until the run is over."""
    chosen = {name: value for name, value in filters.items() if value is not None}
    for name, data in api.events(f"/v1/runs/{segment(run_id)}/logs", follow="true", **chosen):
        if name == "log":
            print_line(out, json.loads(data))


def print_line(out: Output, row: Row) -> None:
    """Print one log line."""
    out.item(row, f"{row['at']}  {row['level'].ljust(7)}  {row['message']}")


def print_stream(api: Api, out: Output, run_id: str) -> None:
    """Print what a run puts into its stream as it comes, until it is over."""
    for name, data in api.events(f"/v1/runs/{segment(run_id)}/stream"):
        document = json.loads(data)
        if name == "stream:data":
            payload = document["payload"]
            out.item(document, payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False))
        elif name != "run:start":
            run = document.get("run", {})
            out.item(document, f"[{name}{': ' + error_text(run['error']) if run.get('error') else ''}]")


def follow_logs(api: Api, out: Output, run_id: str, timeout: timedelta | None = None) -> Row:
    """Print log lines until the run is over; the run."""
    reader, patience = _LogReader(api, out, run_id), Patience(timeout)
    while True:
        answer = api.call("GET", f"/v1/runs/{segment(run_id)}", params={"wait": f"{_WAIT_SECONDS:g}s"}, wait=_WAIT_SECONDS)
        reader.print_new()
        run: Row = answer.value
        if run["status"] in FINAL:
            return run
        patience.check()


def follow_run(api: Api, out: Output, run_id: str, timeout: timedelta | None) -> None:
    """Print log lines until the run is over, then the run; leave with 6 unless it succeeded."""
    run = follow_logs(api, out, run_id, timeout)
    out.item(run, "\n".join(run_lines(run)))
    leave_by(run)


def follow_runs(api: Api, out: Output, workflow: str | None, count: int | None, timeout: timedelta | None) -> None:
    """Print each run that ends from now on, `count` at most."""
    watch, patience, printed = _Watch(api, workflow), Patience(timeout), 0
    list(watch.look())
    while True:
        for row in watch.look():
            out.item(row, run_line(row))
            printed += 1
            if printed == count:
                return
        patience.pause()


def run_line(row: Row) -> str:
    """A finished run on one line."""
    took = milliseconds(row["created_at"], row["finished_at"])
    why = f"  {error_text(row['error'])}" if row.get("error") else ""
    return f"{row['finished_at']}  {row['status'].ljust(9)}  {row['workflow']}  {row['id']}  {duration(took or 0)}{why}"


class _Watch:
    """Looks at the newest runs, and at those seen alive before, for ends it has not told of."""

    def __init__(self, api: Api, workflow: str | None) -> None:
        self._api = api
        self._workflow = workflow
        self._over: set[str] = set()
        self._live: set[str] = set()

    def look(self) -> Iterator[Row]:
        """Runs that ended since the look before, oldest first."""
        newest = self._api.get("/v1/runs", workflow=self._workflow, limit=_PAGE).value["rows"]
        listed = {row["id"] for row in newest}
        older = [self._api.get(f"/v1/runs/{segment(run_id)}").value for run_id in sorted(self._live - listed)[:_LIVE_LOOKED_UP]]
        ended = [row for row in [*older, *reversed(newest)] if row["status"] in FINAL and row["id"] not in self._over]
        self._live = (self._live | {row["id"] for row in newest if row["status"] not in FINAL}) - {row["id"] for row in ended}
        self._over = {row["id"] for row in newest if row["status"] in FINAL}
        yield from ended
