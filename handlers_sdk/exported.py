"""Replaying an exported run here: `python -m handlers_sdk.exported FILE module:app`, which `dispatcher replay` runs.

FILE holds a run as `dispatcher runs get ID -o json` writes it, with its journal as the member `journal`; or what the API answers of both,
one behind the other. Steps are not run: what the handler asks for beyond the log is said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from handlers_sdk.asgi import App
from handlers_sdk.config import ClientConfig
from handlers_sdk.definitions import TaskDefinition
from handlers_sdk.errors import ConfigError, ContinuedAsNew
from handlers_sdk.outcomes import failure
from handlers_sdk.replay import Mismatched, Raised, Returned
from handlers_sdk.testing import replay_definition

FITS, DIFFERS = 0, 1


@dataclass(frozen=True, slots=True)
class Export:
    """A run and the log of one of its durable tasks."""

    run: Mapping[str, Any]
    task: str
    entries: Sequence[Mapping[str, Any]]
    seed: str
    started_at: str
    input: Any = None

    @property
    def task_run_id(self) -> str:
        """The task run's id, as far as it is known."""
        tasks = self.run.get("tasks") or [{}]
        own = [task for task in tasks if task.get("name") in (self.task, f"{self.run.get('workflow')}:{self.task}")]
        return str((own or tasks)[0].get("id", "tsk_replay"))

    def outputs(self, parents: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What became of these tasks of the run, as a task that comes after them is told."""
        found = {}
        for task in self.run.get("tasks") or ():
            name, status = str(task.get("name")).rpartition(":")[2], task.get("status")
            if name in parents:
                found[name] = {"status": status, "output": task.get("output")} if status == "succeeded" else {"status": status}
        return found


def read_export(text: str) -> Export:
    """An exported run. ConfigError says what is missing."""
    documents = _documents(text)
    run = next((one for one in documents if "workflow" in one or "tasks" in one), None)
    journal: Any = next((one for one in documents if "entries" in one), None) or (run or {}).get("journal")
    if run is None or journal is None:
        raise ConfigError("the file needs the run of a durable task, and its journal: dispatcher runs get ID -o json > run.json")
    if isinstance(journal, list):
        journal = {"entries": journal}
    log: Mapping[str, Any] = next((one for one in reversed(journal.get("logs") or ()) if one.get("current")), {})
    entries = log.get("entries") or journal.get("entries") or []
    started = log.get("started_at") or run.get("started_at") or (entries[0].get("at") if entries else "")
    return Export(run, str(log.get("task", "")), entries, str(log.get("seed") or ""), str(started), log.get("input", run.get("input")))


def replay_export(export: Export, definitions: Sequence[TaskDefinition], config: ClientConfig | None = None) -> dict[str, Any]:
    """What the code makes of the log: `{"outcome": "returned" | "failed" | "continued" | "waits" | "mismatch", …}`."""
    definition = _chosen(export, definitions)
    outcome, asked = replay_definition(
        definition,
        export.entries,
        export.input,
        {
            "id": export.task_run_id,
            "run_id": export.run.get("id"),
            "seed": export.seed,
            "started_at": export.started_at,
            "metadata": export.run.get("metadata"),
            "parents": export.outputs(definition.edges.parents),
        },
        config=config,
    )
    return {"task": definition.delivered_as, "entries": len(export.entries), **_told(outcome, asked)}


def _told(outcome: Returned | Raised | Mismatched | None, asked: Sequence[str]) -> dict[str, Any]:
    if isinstance(outcome, Returned):
        return {"outcome": "returned", "output": outcome.value, "unconsumed": list(outcome.unconsumed)}
    if isinstance(outcome, Mismatched):
        return {"outcome": "mismatch", "at": outcome.at}
    if isinstance(outcome, Raised):
        if isinstance(outcome.error, ContinuedAsNew):
            return {"outcome": "continued", "input": outcome.error.input}
        return {"outcome": "failed", "error": failure(outcome.error).error}
    return {"outcome": "waits", "asks": list(asked)}


def _chosen(export: Export, definitions: Sequence[TaskDefinition]) -> TaskDefinition:
    name = str(export.run.get("workflow", ""))
    durable = [one for one in definitions if one.durability is not None and one.workflow.name == name]
    if not durable:
        served = ", ".join(sorted({one.workflow.name for one in definitions if one.durability is not None})) or "none"
        raise ConfigError(f"the app has no durable task of workflow {name!r}; its durable workflows: {served}")
    return next((one for one in durable if export.task in (one.task_name, one.delivered_as)), durable[0])


def _documents(text: str) -> list[dict[str, Any]]:
    decoder, at, found = json.JSONDecoder(), 0, []
    text = text.strip()
    try:
        while at < len(text):
            document, end = decoder.raw_decode(text, at)
            found.append(document)
            at = end + len(text[end:]) - len(text[end:].lstrip())
    except ValueError as error:
        raise ConfigError(f"the file is not JSON: {error}") from None
    return [one for one in found if isinstance(one, dict)]


def _app(target: str) -> App:
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ConfigError(f"{target!r} names no app: write module:attribute, such as main:app")
    sys.path.insert(0, str(Path.cwd()))
    found: Any = import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    if not isinstance(found, App):
        raise ConfigError(f"{target} is {type(found).__name__}, not an app made with Dispatcher.app(…)")
    return found


def main(file: str, target: str) -> int:
    """Replay and print what came of it as one JSON document; 1 when the code does not fit the log."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text()
    handlers = _app(target).handlers
    told = replay_export(read_export(text), handlers.definitions, handlers.host.api.config)
    print(json.dumps(told, default=str, ensure_ascii=False))  # noqa: T201 - the answer
    return DIFFERS if told["outcome"] == "mismatch" else FITS


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (ConfigError, ImportError, AttributeError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - the answer
        sys.exit(2)
