"""What a workflow is: its tasks, policies and triggers, read from a manifest entry and refused when it does not add up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dispatcher.engine.definitions.conditions import parse_rule
from dispatcher.engine.definitions.crons import CronTrigger, dump_crons, read_crons
from dispatcher.engine.definitions.edges import ancestors, refuse_cycles
from dispatcher.engine.definitions.filters import DefaultFilter, dump_filters, read_filters
from dispatcher.engine.definitions.flow import Concurrency, dump_concurrency, read_concurrency
from dispatcher.engine.definitions.placement import Sticky, read_sticky
from dispatcher.engine.definitions.reading import DefinitionError, Reader
from dispatcher.engine.definitions.tasks import OF_NODE, OF_TASK, Limits, TaskDefinition, dump_task, read_parents, read_task

Kind = Literal["task", "durable", "workflow"]

_OF_WORKFLOW = {
    "name", "kind", "description", "input_schema", "on_events", "on_crons", "default_filters", "default_priority", "default_metadata",
    "sticky",
}  # fmt: skip
_MOST_METADATA = 4_096
_SYSTEM = ("dispatcher__", "hatchet__")


@dataclass(frozen=True, slots=True)
class Definition:
    """One version of a workflow. A task run's `node` is its task's place in `tasks`.

    `on_events` are keys, where `*` stands for any run of characters. `on_failure` and `on_success` are the places of the tasks that run
    after the others, always the last. `default_metadata` is a JSON object that every run has, whatever it is started with beside it.
    """

    name: str
    kind: Kind
    description: str
    input_schema: Mapping[str, Any] | None
    on_events: tuple[str, ...]
    default_priority: int
    tasks: tuple[TaskDefinition, ...]
    on_failure: int | None = None
    on_success: int | None = None
    default_filters: tuple[DefaultFilter, ...] = ()
    on_crons: tuple[CronTrigger, ...] = ()
    concurrency: tuple[Concurrency, ...] = ()
    sticky: Sticky | None = None
    default_metadata: str | None = None

    @property
    def asks(self) -> bool:
        """Whether its tasks ask something of the endpoint they run at."""
        return self.sticky is not None or any(task.desired_labels or task.slot_cost != 1 or task.batch for task in self.tasks)

    @property
    def is_graph(self) -> bool:
        """Whether its runs have more to them than one task that runs at once."""
        first = self.tasks[0]
        return len(self.tasks) > 1 or bool(first.wait_for or first.skip_if or first.cancel_if)

    def metadata(self, given: str | None) -> str | None:
        """The metadata of a run that is started with some: what is given wins over the default."""
        if self.default_metadata is None:
            return given
        return json.dumps({**json.loads(self.default_metadata), **json.loads(given)}) if given is not None else self.default_metadata

    def task_name(self, node: int) -> str:
        """The name a task is delivered under: the workflow's own, or `workflow:task` where the task has one of its own."""
        task = self.tasks[node]
        return f"{self.name}:{task.name}" if task.name else self.name


def parse_definition(entry: object, limits: Limits, *, static: bool, at: str = "handlers[0]") -> Definition:
    """A Definition from one entry of a manifest's `handlers`. Raises DefinitionError naming the field.

    An entry is a task, a durable task, or a workflow with `tasks`. A static manifest's handlers take their input as the whole body (`raw`)
    unless they say otherwise.
    """
    if not isinstance(entry, dict):
        raise DefinitionError(at, "each handler is an object with at least a name")
    kind = entry.get("kind", "task")
    if kind in ("task", "durable"):
        reader = Reader(entry, at, _OF_WORKFLOW | OF_TASK)
        tasks: tuple[TaskDefinition, ...] = (read_task(reader, limits, name="", static=static),)
        return _definition(reader, kind, tasks, None, None)
    if kind == "workflow":
        return _graph(Reader(entry, at, _OF_WORKFLOW | {"tasks", "on_failure", "on_success", "concurrency"}), limits, static=static)
    raise DefinitionError(f"{at}.kind", f'{kind!r} is not supported by this server; it takes "task", "durable" or "workflow"')


def _definition(reader: Reader, kind: Kind, tasks: tuple[TaskDefinition, ...], failure: int | None, success: int | None) -> Definition:
    return Definition(
        name=reader.name(),
        kind=kind,
        description=reader.text("description"),
        input_schema=reader.schema("input_schema") or (tasks[0].input_schema if len(tasks) == 1 else None),
        on_events=reader.event_keys(),
        default_priority=reader.whole("default_priority", 1, 1, 3),
        tasks=tasks,
        on_failure=failure,
        on_success=success,
        default_filters=read_filters(reader),
        on_crons=read_crons(reader),
        concurrency=_of_runs(reader, tasks) if kind == "workflow" else (),
        sticky=read_sticky(reader),
        default_metadata=_metadata(reader),
    )


def _metadata(reader: Reader) -> str | None:
    value = reader.get("default_metadata")
    if value is None:
        return None
    if not isinstance(value, dict) or any(key.startswith(_SYSTEM) for key in value):
        raise reader.refuse("default_metadata", f"an object, none of whose keys starts with {' or '.join(_SYSTEM)}")
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > _MOST_METADATA:
        raise reader.refuse("default_metadata", f"at most {_MOST_METADATA:,} bytes")
    return text


def _of_runs(reader: Reader, tasks: tuple[TaskDefinition, ...]) -> tuple[Concurrency, ...]:
    """What whole runs are limited by. Limits shared with others are for runs or for tasks: a run that holds one while its tasks wait for
    another would meet a run that does it the other way round.
    """
    declared = read_concurrency(reader)
    shared = any(one.name for one in declared)
    if shared and len(tasks) > 1 and any(one.name for task in tasks for one in task.concurrency):
        raise reader.refuse("concurrency", "limits with a name are for a workflow's runs or for its tasks, not for both")
    identities = {(one.name or one.limit_strategy, one.expression if one.name is None else "") for one in declared}
    if len(tasks) == 1 and any(
        (c.name or c.limit_strategy, c.expression if c.name is None else "") in identities for c in tasks[0].concurrency
    ):
        raise reader.refuse("concurrency", "is declared twice: for the workflow and for its only task")
    return declared


def _graph(reader: Reader, limits: Limits, *, static: bool) -> Definition:
    entries = reader.items("tasks", limits.max_tasks, "tasks")
    if not entries:
        raise reader.refuse("tasks", "a list with the workflow's tasks")
    readers = [Reader(entry, f"{reader.at}.tasks[{i}]", OF_NODE) for i, entry in enumerate(entries)]
    after = {
        field: Reader(reader.get(field), f"{reader.at}.{field}", OF_TASK) for field in ("on_failure", "on_success") if reader.get(field)
    }
    nodes = _nodes([*readers, *after.values()])
    tasks = [read_task(r, limits, name=r.name(), static=static) for r in [*readers, *after.values()]]
    graph = {name: node for name, node in nodes.items() if node < len(readers)}
    parents = [read_parents(r, graph) for r in readers]
    refuse_cycles(list(graph), parents, f"{reader.at}.tasks")
    for node, before in enumerate(ancestors(parents)):
        tasks[node] = _tied(tasks[node], readers[node], parents[node], {name: n for name, n in graph.items() if n in before})
    places = {field: len(readers) + i for i, field in enumerate(after)}
    return _definition(reader, "workflow", tuple(tasks), places.get("on_failure"), places.get("on_success"))


def _nodes(readers: list[Reader]) -> dict[str, int]:
    nodes: dict[str, int] = {}
    for node, reader in enumerate(readers):
        name = reader.name()
        if name in nodes:
            raise reader.refuse("name", f"{name!r} is declared twice in this workflow")
        nodes[name] = node
    return nodes


def _tied(task: TaskDefinition, reader: Reader, parents: tuple[int, ...], before: Mapping[str, int]) -> TaskDefinition:
    return replace(
        task,
        parents=parents,
        wait_for=parse_rule(reader.get("wait_for"), f"{reader.at}.wait_for", before),
        skip_if=parse_rule(reader.get("skip_if"), f"{reader.at}.skip_if", before),
        cancel_if=parse_rule(reader.get("cancel_if"), f"{reader.at}.cancel_if", before),
    )


def parse_definitions(entries: object, limits: Limits, *, static: bool) -> tuple[Definition, ...]:
    """All of a manifest's handlers; two of one name are refused."""
    if not isinstance(entries, list):
        raise DefinitionError("handlers", "a list of handlers")
    definitions = tuple(parse_definition(entry, limits, static=static, at=f"handlers[{i}]") for i, entry in enumerate(entries))
    names: set[str] = set()
    for i, definition in enumerate(definitions):
        if definition.name in names:
            raise DefinitionError(f"handlers[{i}].name", f"{definition.name!r} is declared twice")
        names.add(definition.name)
    _agree(definitions)
    return definitions


def _agree(definitions: Sequence[Definition]) -> None:
    """Refuse a shared limit that is declared in two ways: whichever was written last would be the one that holds for both."""
    known: dict[str, tuple[int, Concurrency]] = {}
    for i, definition in enumerate(definitions):
        for one in (*definition.concurrency, *(one for task in definition.tasks for one in task.concurrency)):
            first, said = known.setdefault(one.name, (i, one)) if one.name is not None else (i, one)
            if (said.limit_strategy, said.max_runs) != (one.limit_strategy, one.max_runs):
                other = f"{definitions[first].name!r} has it as {said.limit_strategy} with max_runs {said.max_runs}"
                raise DefinitionError(f"handlers[{i}].concurrency", f"the limit {one.name!r} is shared, so all declare the same; {other}")


def dump(definition: Definition) -> dict[str, Any]:
    """The manifest entry that parses back to this definition; what is stored and shown."""
    workflow: dict[str, Any] = {
        "name": definition.name,
        "kind": definition.kind,
        "description": definition.description,
        "input_schema": definition.input_schema,
        "on_events": list(definition.on_events),
        "default_priority": definition.default_priority,
    }
    if definition.concurrency:
        workflow["concurrency"] = dump_concurrency(definition.concurrency)
    if definition.default_filters:
        workflow["default_filters"] = dump_filters(definition.default_filters)
    if definition.on_crons:
        workflow["on_crons"] = dump_crons(definition.on_crons)
    if definition.sticky is not None:
        workflow["sticky"] = definition.sticky
    if definition.default_metadata is not None:
        workflow["default_metadata"] = json.loads(definition.default_metadata)
    names = {node: task.name for node, task in enumerate(definition.tasks)}
    if definition.kind != "workflow":
        return {**workflow, **dump_task(definition.tasks[0], names)}
    entries = [{"name": task.name, **dump_task(task, names)} for task in definition.tasks]
    after = {"on_failure": definition.on_failure, "on_success": definition.on_success}
    last = {field: entries[node] for field, node in after.items() if node is not None}
    return {**workflow, "tasks": entries[: len(entries) - len(last)], **last}


def content_checksum(entry: Mapping[str, Any]) -> str:
    """Of a dumped definition: registering the same content twice makes no new version."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checksum(definition: Definition) -> str:
    """Of a definition's content."""
    return content_checksum(dump(definition))
