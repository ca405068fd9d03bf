"""What a new run is limited by, told from its input and written with it."""

from __future__ import annotations

from typing import Protocol

import msgspec

from dispatcher.engine.flow import Flow, FlowError, Passage
from dispatcher.engine.rate_limits import Demand
from dispatcher.errors import Problem, problem
from dispatcher.runtime.directory import Workflow


def ask(workflow: Workflow, body: bytes, metadata: str | None) -> Flow | None:
    """The limits of a run with this input, None where its workflow has none. Raises FlowError."""
    if workflow.plan is None:
        return None
    return workflow.plan.ask(msgspec.json.decode(body), msgspec.json.decode(metadata) if metadata is not None else None)


class Limited(Protocol):
    """A run as it will be written."""

    graph: str | None
    gates: str | None
    gate_limits: str | None
    preempts: bool
    flow: str | None


def give(run: Limited, flow: Flow) -> tuple[Demand, ...]:
    """Let a run be limited so: its one task, or itself where its tasks come later. Answers the units its one task takes."""
    if run.graph is not None:
        run.flow = flow.document
        _pass(run, flow.run)
        return ()
    passage = flow.tasks[0]
    run.flow = passage.document
    _pass(run, passage)
    return passage.demands


def _pass(run: Limited, passage: Passage) -> None:
    if passage.gates:
        run.gates, run.gate_limits, run.preempts = passage.ids, passage.limits, passage.preempts


def refusal(workflow: Workflow, error: FlowError) -> Problem:
    """What the caller is told whose run cannot be limited."""
    return problem("limit_failed", f"workflow {workflow.definition.name!r}: {error}", expression=error.expression)
