"""What a run is limited by: the gates it and its tasks have to pass, and the units they take, told from its input when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Final

import msgspec

from dispatcher.engine.concurrency import Gate, gate, preempts, rule_of
from dispatcher.engine.definitions.flow import (
    MOST_RUNS,
    MOST_UNITS,
    Concurrency,
    Duration,
    RateLimit,
    Strategy,
    check_key,
    check_path,
    compile_key,
    compile_number,
)
from dispatcher.engine.definitions.reading import DefinitionError
from dispatcher.engine.definitions.workflows import Definition
from dispatcher.engine.expressions import ExpressionError
from dispatcher.engine.rate_limits import Demand, bucket_id

_KEPT: Final = 20_000
Variables = Mapping[str, Any]
Ruled = tuple[str, Concurrency]  # a limit, with what tells its groups from those of others


class FlowError(ValueError):
    """A key or a number that cannot be told for a run. The message says of what, and why; `expression` is its source."""

    def __init__(self, what: str, expression: str, message: str) -> None:
        super().__init__(f"{what} {expression!r}: {message}")
        self.expression = expression


@dataclass(frozen=True)
class Passage:
    """What one task, or one run of a graph, has to pass: its gates in order, and the units it takes when it starts.

    What is written of it is made once: those that are met again and again are kept.
    """

    gates: tuple[Gate, ...] = ()
    demands: tuple[Demand, ...] = ()

    @cached_property
    def preempts(self) -> bool:
        """Whether arriving at one of its gates may end somebody."""
        return preempts(self.gates)

    @cached_property
    def ids(self) -> str | None:
        """The ids of its gates, with commas; None where it has none."""
        return ",".join([gate.id for gate in self.gates]) or None

    @cached_property
    def limits(self) -> str | None:
        """How many may be in each of its gates, with commas."""
        return ",".join([str(gate.most) for gate in self.gates]) or None

    @cached_property
    def members(self) -> tuple[str, ...]:
        """What is stored of it beside the task: members of an object, as JSON text."""
        stored = []
        if self.gates:
            stored.append(f'"gates":[{",".join([gate.entry for gate in self.gates])}]')
        if self.demands:
            units = [[d.key, d.units, d.most, d.duration] for d in self.demands]
            stored.append(f'"units":{msgspec.json.encode(units).decode()}')
        return tuple(stored)

    @cached_property
    def document(self) -> str:
        """The same as an object."""
        return f"{{{','.join(self.members)}}}"


@dataclass(frozen=True, slots=True)
class Flow:
    """What a run (of a graph) and each of its tasks have to pass. `run` is empty where the one task is all there is to the run."""

    run: Passage
    tasks: tuple[Passage, ...]

    @property
    def document(self) -> str:
        """What is kept with a run of a graph: its own gates, and what its tasks will be given."""
        nodes = [f'"{node}":{_node(passage)}' for node, passage in enumerate(self.tasks) if passage.gates or passage.demands]
        members = [*self.run.members, f'"nodes":{{{",".join(nodes)}}}']
        return f"{{{','.join(members)}}}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one version of a workflow declares of it."""

    run: tuple[Ruled, ...]
    tasks: tuple[tuple[tuple[Ruled, ...], tuple[RateLimit, ...]], ...]

    @staticmethod
    def of(workflow_id: int, definition: Definition) -> Plan | None:
        """The plan of a workflow; None where it declares no limits. The gates of a workflow that is one task are that task's."""
        tasks = [(task.name, task.concurrency, task.rate_limits) for task in definition.tasks]
        run = definition.concurrency
        if not definition.is_graph:
            name, own, limits = tasks[0]
            tasks, run = [(name, _merged(run, own), limits)], ()
        if not run and not any(own or limits for _, own, limits in tasks):
            return None
        ruled = [(tuple((rule_of(one, workflow_id, name), one) for one in own), limits) for name, own, limits in tasks]
        return Plan(tuple((rule_of(one, workflow_id, ""), one) for one in run), tuple(ruled))

    def rules(self) -> dict[str, tuple[int | None, Strategy]]:
        """What groups that are in use go by from now on, by rule: how many may be in each, where a number says so, and their strategy."""
        ruled = [*self.run, *(one for own, _ in self.tasks for one in own)]
        return {rule: (one.max_runs if isinstance(one.max_runs, int) else None, one.limit_strategy) for rule, one in ruled}

    def ask(self, input: object, metadata: object) -> Flow:
        """What a run with this input (parsed JSON) has to pass. Raises FlowError."""
        given = metadata if metadata is not None else {}
        variables: Variables = {"input": input, "additional_metadata": given, "metadata": given}
        passages = [_passage(_gates(own, variables), tuple([_demand(limit, variables) for limit in limits])) for own, limits in self.tasks]
        return Flow(_passage(_gates(self.run, variables), ()), tuple(passages))


_passage = lru_cache(maxsize=_KEPT)(Passage)


def _gates(declared: Sequence[Ruled], variables: Variables) -> tuple[Gate, ...]:
    gates = []
    for rule, one in declared:
        key = _key(one.expression, "concurrency", variables) if one.expression else ""
        most = _number(one.max_runs, "max_runs", MOST_RUNS, variables)
        gates.append(gate(rule, one.name, key, one.limit_strategy, most))
    return tuple(gates)


def refuse_hopeless(definition: Definition) -> None:
    """DefinitionError for a limit that no run could pass, whatever its input: its key or number is a constant of the wrong kind, or it
    takes more units than there are.
    """
    _judge_groups(definition.name, definition.concurrency)
    for node, task in enumerate(definition.tasks):
        name = definition.task_name(node)
        _judge_groups(name, task.concurrency)
        for limit in task.rate_limits:
            _judge_units(f"{name}.rate_limits", limit)
        if task.batch is not None:
            _judge(f"{name}.batch", "batch group_key", task.batch.group_key, {})


def _judge_groups(name: str, declared: Sequence[Concurrency]) -> None:
    for one in declared:
        _judge(f"{name}.concurrency", "concurrency", one.expression or None, {"max_runs": (one.max_runs, MOST_RUNS)})


def _judge_units(at: str, limit: RateLimit) -> None:
    if limit.static_key is not None:
        check_path(limit.static_key, at)
    most = limit.limit if limit.limit is not None else MOST_UNITS
    told = _judge(at, "rate limit", limit.dynamic_key, {"units": (limit.units, MOST_UNITS), "limit": (most, MOST_UNITS)})
    if told.get("units", 0) > told.get("limit", MOST_UNITS):
        raise DefinitionError(at, f"it takes {told['units']} units of a limit of {told['limit']}, so it could never start")


def _judge(at: str, what: str, key: str | None, numbers: Mapping[str, tuple[int | str, int]]) -> dict[str, int]:
    """The numbers that do not depend on a run. DefinitionError where one of them, or the key, could never be told."""
    try:
        if key is not None and compile_key(key).is_constant:
            _key(key, what, {})
        known = {name: (said, most) for name, (said, most) in numbers.items() if isinstance(said, int) or compile_number(said).is_constant}
        return {name: _number(said, name, most, {}) for name, (said, most) in known.items()}
    except FlowError as error:
        raise DefinitionError(at, str(error)) from None


def _node(passage: Passage) -> str:
    ids = f'"ids":{msgspec.json.encode([gate.id for gate in passage.gates]).decode()}'
    members = [*passage.members, ids, f'"preempts":{str(passage.preempts).lower()}']
    return f"{{{','.join(members)}}}"


def _merged(first: Sequence[Concurrency], second: Sequence[Concurrency]) -> tuple[Concurrency, ...]:
    return tuple(sorted((*first, *second), key=lambda one: one.name or ""))


def _demand(limit: RateLimit, variables: Variables) -> Demand:
    units = _number(limit.units, "units", MOST_UNITS, variables)
    if limit.static_key is not None:
        return Demand(bucket_id(limit.static_key), limit.static_key, units)
    source = limit.dynamic_key or ""
    key = _key(source, "rate limit", variables)
    try:
        check_key(key, "key")
    except DefinitionError as error:
        raise FlowError("rate limit", source, str(error)) from None
    most = _number(limit.limit if limit.limit is not None else 0, "limit", MOST_UNITS, variables)
    if units > most:
        raise FlowError("rate limit", source, f"it takes {units} units of a limit of {most}, so it could never start")
    return Demand(bucket_id(key), key, units, most, limit.duration)


def _key(source: str, what: str, variables: Variables) -> str:
    try:
        return compile_key(source).evaluate(variables).value
    except ExpressionError as error:
        raise FlowError(what, source, str(error)) from None


def _number(declared: int | str, what: str, most: int, variables: Variables) -> int:
    if isinstance(declared, int):
        return declared
    try:
        value = compile_number(declared).evaluate(variables).value
    except ExpressionError as error:
        raise FlowError(what, declared, str(error)) from None
    if not 1 <= value <= most:
        raise FlowError(what, declared, f"it gives {value}; a whole number from 1 to {most:,} is wanted")
    return value


def demands_of(stored: list[list[Any]]) -> tuple[Demand, ...]:
    """The units a task takes, as they were stored with it."""
    return tuple([_demand_of(*entry) for entry in stored])


def _demand_of(key: str, units: int, most: int | None, duration: Duration | None, paid_in: str | None = None) -> Demand:
    return Demand(bucket_id(key), key, units, most, duration, datetime.fromisoformat(paid_in) if paid_in is not None else None)


def stored_units(demands: Sequence[Demand], paid: Mapping[str, datetime]) -> str:
    """The same as JSON text, with the windows in which units have been taken by the ids of their limits."""
    entries = [[d.key, d.units, d.most, d.duration, *([paid[d.id].isoformat()] if d.id in paid else [])] for d in demands]
    return msgspec.json.encode(entries).decode()
