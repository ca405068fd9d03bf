"""Schemathesis against a running server: everything its description allows, and much that it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
_PATIENCE_SECONDS = 120.0
# Streams stay open as long as there is something to wait for, and readiness is about the server's state, not about the request.
_LEFT_OUT = r"/stream$|/subscribe$|/readyz"
_INPUT = {"width": 1}


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked, and what went wrong: a line for each kind of failure and operation."""

    requests: int
    operations: int
    seed: int
    failures: tuple[str, ...]
    errors: tuple[str, ...]
    text: str


def ask(url: str, directory: Path, *, examples: int, seconds: int, seed: int) -> Report:
    """Ask for so long at most. Half of what is asked names things that are there."""
    token, known = _prepared(url)
    config = directory / "schemathesis.toml"
    config.write_text("[parameters]\n" + "".join(f'"path.{name}" = "{value}"\n' for name, value in known.items()))
    (directory / "empty.toml").write_text("")
    halves = [_run(url, token, directory, file, examples, seconds // 2, seed) for file in (config, directory / "empty.toml")]
    return Report(
        sum(half.requests for half in halves),
        max(half.operations for half in halves),
        seed,
        tuple(line for half in halves for line in half.failures),
        tuple(line for half in halves for line in half.errors),
        "\n".join(half.text for half in halves),
    )


def _run(url: str, token: str, directory: Path, config: Path, examples: int, seconds: int, seed: int) -> Report:
    found = directory / f"{config.stem}.json"
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run", f"{url}/openapi.json",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--max-time", str(seconds), "--seed", str(seed),
        "--header", f"Authorization: Bearer {token}", "--checks", _CHECKS, "--exclude-path-regex", _LEFT_OUT, "--request-timeout", "20",
        "--no-shrink", "--continue-on-failure", "--no-color", "--warnings", "off", "--report", "json", "--report-json-path", str(found),
        "--generation-database", "none",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=seconds + _PATIENCE_SECONDS, check=False)
    if not found.exists():
        raise AssertionError(f"schemathesis did not run:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    said: dict[str, Any] = json.loads(found.read_text())
    return Report(
        said["test_cases"]["generated"],
        said["operations"]["tested"],
        said["seed"],
        tuple(f"{one['title']} x{one['count']}: {', '.join(_label(o) for o in one['operations'])}" for one in said["failures"]),
        tuple(f"{one['title']} x{one['count']}" for one in said["errors"]),
        done.stdout,
    )


def _label(operation: Any) -> str:
    return str(operation.get("label", operation)) if isinstance(operation, Mapping) else str(operation)


def _prepared(url: str) -> tuple[str, dict[str, str]]:
    """A token, and the ids of things that are there."""
    with httpx.Client(base_url=url, timeout=20) as http:

        def made(path: str, body: object) -> dict[str, Any]:
            answer = http.post(path, json=body)
            assert answer.is_success, f"{path}: {answer.text}"
            document: dict[str, Any] = answer.json()
            return document

        token = made("/v1/tokens", {"name": "contract"})["token"]
        event = made("/v1/events", {"type": "picture:added", "data": _INPUT, "metadata": {"a": "b"}})
        run = http.post("/v1/runs?wait=10s", json={"workflow": "resize", "input": _INPUT}).json()
        return token, {
            "run_id": run["id"],
            "event_id": event["event_id"],
            "filter_id": made("/v1/filters", {"workflow": "fail", "expression": "input.n == 1", "scope": "contract"})["id"],
            "bulk_id": made("/v1/runs/replay", {"ids": []})["id"],
            "cron_id": made("/v1/crons", {"workflow": "resize", "name": "contract", "expression": "0 9 * * 1", "input": _INPUT})["id"],
            "schedule_id": made("/v1/schedules", {"workflow": "resize", "in": "10h", "input": _INPUT})["id"],
        }
