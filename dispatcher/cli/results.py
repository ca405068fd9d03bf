"""One run: shown, waited for, and turned into an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from dispatcher.cli.client import Answer, Api, segment
from dispatcher.cli.failures import Exit, Failure
from dispatcher.cli.output import Output, shown
from dispatcher.cli.steps import duration
from dispatcher.clock import monotonic

FINAL = frozenset({"succeeded", "failed", "cancelled"})
_WAIT_SECONDS = 20.0


def await_result(api: Api, out: Output, run_id: str, timeout: timedelta) -> None:
    """Wait until a run is over, show it, and leave with 6 unless it succeeded. Raises Failure when `timeout` passes first."""
    answer = wait_for(api, run_id, timeout)
    out.document(answer.text, list(run_lines(answer.value)))
    leave_by(answer.value)


def wait_for(api: Api, run_id: str, timeout: timedelta) -> Answer:
    """The finished run, long-polled."""
    started = monotonic()
    while True:
        left = timeout.total_seconds() - (monotonic() - started)
        if left <= 0:
            hint = f"It goes on. See how it is: dispatcher runs get {run_id}"
            raise Failure(f"{run_id} is not over after {timeout.total_seconds():g} s", hint=hint, code=Exit.TIMEOUT)
        seconds = max(0.1, min(left, _WAIT_SECONDS))
        answer = api.call("GET", f"/v1/runs/{segment(run_id)}", params={"wait": f"{seconds * 1000:.0f}ms"}, wait=seconds)
        if answer.value["status"] in FINAL:
            return answer


def leave_by(run: Mapping[str, Any]) -> None:
    """Leave with exit code 6, unless the run succeeded."""
    if run["status"] in FINAL and run["status"] != "succeeded":
        sys.exit(int(Exit.RUN_FAILED))


def run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """A run with its attempts, for people."""
    yield f"{run['id']}  {run['workflow']}  {run['status']}{_took(run)}"
    yield f"input     {shown(run['input'])}"
    for name in ("metadata", "event_id", "parent_run_id"):
        if run.get(name) is not None:
            yield f"{name.removesuffix('_id').ljust(9)} {shown(run[name])}"
    if run["status"] == "succeeded":
        yield f"output    {shown(run['output'])}"
    elif run.get("error"):
        yield f"error     {error_text(run['error'])}"
    for task in run["tasks"]:
        for attempt in task["attempts"]:
            yield attempt_line(task["name"], attempt)


def attempt_line(task: str, attempt: Mapping[str, Any]) -> str:
    """One attempt: its number, how it ended, the status of the answer, how long it took, and why it failed."""
    status = f" {attempt['http_status']}" if attempt.get("http_status") else ""
    why = f"  {error_text(attempt['error'])}" if attempt.get("error") else ""
    return f"attempt {attempt['number']} {task}  {attempt['status']}{status}{_took(attempt)}{why}"


def error_text(error: Mapping[str, Any]) -> str:
    """`code: message` on one line."""
    return " ".join(f"{error.get('code') or error.get('name') or 'error'}: {error.get('message', '')}".split())


def milliseconds(start: str | None, end: str | None) -> float | None:
    """From one RFC 3339 moment to another."""
    if start is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() * 1000


def _took(thing: Mapping[str, Any]) -> str:
    took = milliseconds(thing.get("created_at") or thing.get("started_at"), thing.get("finished_at"))
    return f"  {duration(took)}" if took is not None else ""


def waiting_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """What stands between a run's tasks and their start, for people."""
    yield f"{run['id']}  {run['workflow']}  {run['status']}"
    for reason in run.get("waiting_for") or ():
        yield f"the run waits: {_reason(reason)}"
    for task in run["tasks"]:
        yield f"{task['name']}  {task['status']}{_next(task)}"
        for reason in task.get("waiting_for") or ():
            yield f"  waits: {_reason(reason)}"
        if task.get("reason"):
            yield f"  {task['reason']}"
        if task["status"] == "blocked" and task.get("error"):
            yield f"  {error_text(task['error'])}"


def _next(task: Mapping[str, Any]) -> str:
    return f", next attempt at {task['next_attempt_at']}" if task.get("next_attempt_at") else ""


def _reason(reason: Mapping[str, Any]) -> str:
    if "message" in reason:
        return str(reason["message"])
    if "or" in reason:
        return " or ".join(_reason(one) for one in reason["or"])
    return ", ".join(f"{name} {shown(value)}" for name, value in reason.items())


_SAID = ("value", "error", "key", "workflow", "until")
_BOUNDS = {"ms": "for", "timeout_ms": "at most", "after_ms": "again after"}


def _bounds(entry: Mapping[str, Any]) -> str:
    """How long something takes that is asked for."""
    told = [f"{word} {timedelta(milliseconds=entry[name])}" for name, word in _BOUNDS.items() if isinstance(entry.get(name), int | float)]
    return ", ".join(told)


def journal_lines(journal: dict[str, Any]) -> Iterator[str]:
    """A journal, an entry a line: when, what, what became of it; the latest log of each task last."""
    for log in journal["logs"]:
        mark = "" if log["current"] else ", no longer gone by"
        yield f"{log['task']}, log {log['generation']}{mark}: {len(log['entries'])} entries"
        for entry in log["entries"]:
            said = next((entry[name] for name in _SAID if name in entry), "")
            text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
            if entry["status"] in ("pending", "retry"):
                text = f"{text} {_bounds(entry)}".strip()
            yield f"  {entry.get('at', ''):30} {entry['id']:30} {entry['op']:10} {entry['status']:9} {text[:100]}".rstrip()
