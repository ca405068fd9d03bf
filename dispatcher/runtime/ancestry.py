"""What a task of a graph is told of those before it: their outputs, and for the last tasks the errors of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dispatcher.engine.definitions import Definition
from dispatcher.runtime.directory import Directory
from dispatcher.store import graphs
from dispatcher.store.database import Database
from dispatcher.store.graphs import Output
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.queue import Claimed

_SKIPPED = b'{"status":"skipped"}'
Given = tuple[bytes | None, bytes | None]


async def given(db: Database, directory: Directory, claimed: Sequence[Claimed]) -> dict[TaskKey, Given]:
    """For tasks of graphs, the `parents` and `errors` members of their envelopes as JSON texts."""
    if not claimed:
        return {}
    workflows = [await directory.workflow_version(row.tenant_id, row.workflow_id, row.workflow_version) for row in claimed]
    wanted = {
        (row.tenant_id, row.run_id, node)
        for row, workflow in zip(claimed, workflows, strict=True)
        for node in _before(workflow.definition, row.node)
    }
    outputs = await graphs.outputs(db, sorted(wanted))
    return {
        (row.tenant_id, row.run_id, row.node): _given(row, workflow.definition, outputs)
        for row, workflow in zip(claimed, workflows, strict=True)
    }


def _before(definition: Definition, node: int) -> Sequence[int]:
    """A task's parents; every task of the graph for the last ones."""
    if node in (definition.on_failure, definition.on_success):
        return [n for n in range(len(definition.tasks)) if n != node]
    return definition.tasks[node].parents


def _given(row: Claimed, definition: Definition, outputs: Mapping[TaskKey, Output]) -> Given:
    parents, errors = list[bytes](), list[bytes]()
    for node in _before(definition, row.node):
        name = json.dumps(definition.tasks[node].name, ensure_ascii=False).encode()
        output = outputs.get((row.tenant_id, row.run_id, node))
        if row.graph is not None and row.graph[node] == "k":  # it may have a row of its own, from before a replay
            parents.append(name + b":" + _SKIPPED)
        elif output is None:
            continue
        elif output.status == "succeeded":
            parents.append(b'%b:{"status":"succeeded","output":%b}' % (name, _json(output)))
        elif output.error is not None:
            errors.append(name + b":" + output.error.encode())
    last = row.node == definition.on_failure
    return b"{" + b",".join(parents) + b"}", b"{" + b",".join(errors) + b"}" if last else None


def _json(output: Output) -> bytes:
    """What a task gave, as JSON: other texts are shown as a string."""
    if output.output is None:
        return b"null"
    if output.output_type in (None, "application/json"):
        return output.output
    return json.dumps(output.output.decode("utf-8", "replace")).encode()
