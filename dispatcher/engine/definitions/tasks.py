"""One task of a workflow: how it is queued, run and retried, and what it comes after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal

from dispatcher.engine.definitions.batching import Batching, dump_batching, read_batching
from dispatcher.engine.definitions.conditions import Rule, dump_rule
from dispatcher.engine.definitions.durations import LONGEST, format_duration, parse_duration
from dispatcher.engine.definitions.flow import (
    Concurrency,
    RateLimit,
    dump_concurrency,
    dump_rate_limits,
    read_concurrency,
    read_rate_limits,
)
from dispatcher.engine.definitions.placement import MOST_SLOT_COST, DesiredLabels, dump_desired_labels, parse_desired_labels
from dispatcher.engine.definitions.reading import UNSUPPORTED, DefinitionError, Reader

Mode = Literal["replay", "state"]
Pin = Literal["task", "latest"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's bounds and defaults that definitions are checked against and completed from."""

    max_retries: int
    execution_timeout: timedelta
    schedule_timeout: timedelta
    max_execution_timeout: timedelta
    max_tasks: int = 2_000


LONGEST_ATTEMPT: Final = timedelta(days=24)
"""Attempts last as many milliseconds as the store counts, whatever the bounds were when a task was registered."""

# What was registered once is read back whatever today's bounds are: they are for registering only.
STORED = Limits(2**31 - 1, LONGEST, LONGEST, LONGEST, 2**15 - 1)

OF_TASK = {
    "name", "kind", "mode", "pin", "body", "description", "input_schema", "output_schema", "retries", "backoff_factor",
    "backoff_max_seconds", "execution_timeout", "schedule_timeout", "idempotent", "allow_html", "concurrency", "rate_limits",
    "desired_labels", "slot_cost", "batch",
}  # fmt: skip
OF_NODE = (OF_TASK - {"batch"}) | {"parents", "wait_for", "skip_if", "cancel_if"}


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """One task. `name` is empty where the workflow is its only task. `retries` counts what comes after the first attempt.

    `parents` are the nodes that must be over before it, by their place in the workflow's tasks; the rules say what else must have
    happened for it to run, to be skipped, to be cancelled.
    """

    name: str
    durable: bool
    mode: Mode
    pin: Pin
    raw: bool
    description: str
    input_schema: Mapping[str, Any] | None
    output_schema: Mapping[str, Any] | None
    retries: int
    backoff_factor: float | None
    backoff_max_seconds: float | None
    execution_timeout: timedelta
    schedule_timeout: timedelta
    idempotent: bool
    allow_html: bool
    parents: tuple[int, ...] = ()
    wait_for: Rule = ()
    skip_if: Rule = ()
    cancel_if: Rule = ()
    concurrency: tuple[Concurrency, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    desired_labels: DesiredLabels = field(default_factory=dict)
    slot_cost: int = 1
    batch: Batching | None = None


def read_task(reader: Reader, limits: Limits, *, name: str, static: bool) -> TaskDefinition:
    """A task from its fields, without what ties it to others."""
    durable = reader.choice("kind", "task", "task", "durable") == "durable"
    if durable and "durable" in UNSUPPORTED:
        raise reader.refuse("kind", "durable tasks are not supported by this server")
    for name_of in ("mode", "pin"):
        if reader.get(name_of) is not None and not durable:
            raise reader.refuse(name_of, "for durable tasks only")
    raw = reader.choice("body", "raw" if static and not durable else "v1", "raw", "v1") == "raw"
    if raw and durable:
        raise reader.refuse("body", 'a durable task takes "v1": its log travels in the envelope')
    return TaskDefinition(
        name=name,
        durable=durable,
        mode="state" if reader.choice("mode", "replay", "replay", "state") == "state" else "replay",
        pin="latest" if reader.choice("pin", "task", "task", "latest") == "latest" else "task",
        raw=raw,
        description=reader.text("description"),
        input_schema=reader.schema("input_schema"),
        output_schema=reader.schema("output_schema"),
        retries=reader.whole("retries", 0, 0, limits.max_retries),
        backoff_factor=reader.number("backoff_factor", 1.0, 1000.0),
        backoff_max_seconds=reader.number("backoff_max_seconds", 0.001, 86_400.0),
        execution_timeout=min(_longest(reader, limits), LONGEST_ATTEMPT),
        schedule_timeout=duration(reader, "schedule_timeout", limits.schedule_timeout, LONGEST),
        idempotent=reader.flag("idempotent"),
        allow_html=reader.flag("allow_html"),
        concurrency=read_concurrency(reader),
        rate_limits=read_rate_limits(reader),
        desired_labels=parse_desired_labels(reader.get("desired_labels"), f"{reader.at}.desired_labels"),
        slot_cost=reader.whole("slot_cost", 1, 1, MOST_SLOT_COST),
        batch=_batching(reader, static=static, durable=durable),
    )


def _longest(reader: Reader, limits: Limits) -> timedelta:
    return duration(reader, "execution_timeout", limits.execution_timeout, limits.max_execution_timeout)


def _batching(reader: Reader, *, static: bool, durable: bool) -> Batching | None:
    batch = read_batching(reader)
    if batch is not None:
        if static:
            raise reader.refuse("batch", "for endpoints that answer the manifest themselves: a plain endpoint is not sent batches")
        if durable:
            raise reader.refuse("batch", "not for durable tasks: each has a log of its own")
        if reader.get("rate_limits"):
            raise reader.refuse("batch", "not together with rate_limits: a batch goes whole or not at all")
    return batch


def duration(reader: Reader, field: str, default: timedelta, most: timedelta) -> timedelta:
    """A duration of an entry, at most `most`."""
    value = reader.get(field)
    if value is None:
        return default
    parsed = parse_duration(value, f"{reader.at}.{field}")
    if parsed > most:
        raise reader.refuse(field, f"at most {format_duration(most)}")
    return parsed


def read_parents(reader: Reader, nodes: Mapping[str, int]) -> tuple[int, ...]:
    """The nodes a task names as its parents, each once."""
    found: list[int] = []
    for i, name in enumerate(reader.items("parents", len(nodes), "tasks of this workflow")):
        if not isinstance(name, str) or name not in nodes:
            known = ", ".join(list(nodes)[:10])
            raise DefinitionError(f"{reader.at}.parents[{i}]", f"{name!r} is not a task of this workflow; it has {known}")
        if nodes[name] not in found:
            found.append(nodes[name])
    return tuple(found)


def dump_task(task: TaskDefinition, names: Mapping[int, str]) -> dict[str, Any]:
    """The fields of a task as a manifest has them, without its name."""
    said: dict[str, Any] = {"description": task.description, "input_schema": task.input_schema} if task.name else {}
    said |= {
        "body": "raw" if task.raw else "v1",
        "output_schema": task.output_schema,
        "retries": task.retries,
        "backoff_factor": task.backoff_factor,
        "backoff_max_seconds": task.backoff_max_seconds,
        "execution_timeout": format_duration(task.execution_timeout),
        "schedule_timeout": format_duration(task.schedule_timeout),
        "idempotent": task.idempotent,
        "allow_html": task.allow_html,
    }
    if task.desired_labels:
        said["desired_labels"] = dump_desired_labels(task.desired_labels)
    if task.batch is not None:
        said["batch"] = dump_batching(task.batch)
    if task.slot_cost != 1:
        said["slot_cost"] = task.slot_cost
    if task.durable:
        said |= {"kind": "durable", "mode": task.mode, "pin": task.pin}
    if task.concurrency:
        said["concurrency"] = dump_concurrency(task.concurrency)
    if task.rate_limits:
        said["rate_limits"] = dump_rate_limits(task.rate_limits)
    if task.parents:
        said["parents"] = [names[node] for node in task.parents]
    for action, rule in (("wait_for", task.wait_for), ("skip_if", task.skip_if), ("cancel_if", task.cancel_if)):
        if rule:
            said[action] = dump_rule(rule, names)
    return said
