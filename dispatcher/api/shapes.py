"""The shape of a workflow: its tasks, what comes after what, and the conditions in between."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

Role = Literal["task", "on_failure", "on_success"]


class NodeView(msgspec.Struct, frozen=True):
    """A task. Conditions are as the manifest writes them; a list is an AND of groups."""

    name: str
    kind: Literal["task", "durable"]
    role: Role
    wait_for: list[Any] | UnsetType = UNSET
    skip_if: list[Any] | UnsetType = UNSET
    cancel_if: list[Any] | UnsetType = UNSET


class EdgeView(msgspec.Struct, frozen=True, rename={"parent": "from", "child": "to"}):
    """One task comes after another."""

    parent: str
    child: str


class GraphView(msgspec.Struct, frozen=True):
    """The tasks in the order they are declared, those that come last at the end, and the edges between them."""

    nodes: list[NodeView]
    edges: list[EdgeView]


class _Task(msgspec.Struct):
    name: str
    kind: Literal["task", "durable"] = "task"
    parents: list[str] = []
    wait_for: list[Any] | UnsetType = UNSET
    skip_if: list[Any] | UnsetType = UNSET
    cancel_if: list[Any] | UnsetType = UNSET


class _Workflow(msgspec.Struct):
    """A stored definition, as far as it has a shape."""

    name: str
    kind: Literal["task", "durable", "workflow"] = "task"
    tasks: list[_Task] = []
    on_failure: _Task | None = None
    on_success: _Task | None = None


_DECODER = msgspec.json.Decoder(_Workflow)


def shape(definition: str | bytes) -> GraphView:
    """The shape of a stored definition. What is one task is a graph of one node."""
    workflow = _DECODER.decode(definition)
    if workflow.kind != "workflow":
        return GraphView([NodeView(workflow.name, workflow.kind, "task")], [])
    nodes = [_node(task, "task") for task in workflow.tasks]
    nodes += [_node(workflow.on_failure, "on_failure")] if workflow.on_failure else []
    nodes += [_node(workflow.on_success, "on_success")] if workflow.on_success else []
    return GraphView(nodes, [EdgeView(parent, task.name) for task in workflow.tasks for parent in task.parents])


def _node(task: _Task, role: Role) -> NodeView:
    return NodeView(task.name, task.kind, role, task.wait_for, task.skip_if, task.cancel_if)
