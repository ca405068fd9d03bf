"""What a new run is limited by, told from its input and written with it."""

from __future__ import annotations

import msgspec

from dispatcher.engine.flow import Flow, FlowError, Passage
from dispatcher.errors import Problem, problem
from dispatcher.runtime.directory import Workflow
from dispatcher.store.intake import NewRun


def ask(workflow: Workflow, body: bytes, metadata: str | None) -> Flow | None:
    """The limits of a run with this input, None where its workflow has none. Raises FlowError."""
    if workflow.plan is None:
        return None
    return workflow.plan.ask(msgspec.json.decode(body), msgspec.json.decode(metadata) if metadata is not None else None)


def give(run: NewRun, flow: Flow) -> None:
    """Let a new run be limited so: its one task, or itself where its tasks come later."""
    if run.graph is not None:
        run.flow = flow.document
        _pass(run, flow.run)
    else:
        passage = flow.tasks[0]
        run.flow = msgspec.json.encode(passage.document()).decode()
        _pass(run, passage)


def _pass(run: NewRun, passage: Passage) -> None:
    run.demands = passage.demands if run.graph is None else ()
    if passage.gates:
        run.gates = ",".join(str(gate.id) for gate in passage.gates)
        run.gate_limits = ",".join(str(gate.most) for gate in passage.gates)
        run.preempts = passage.preempts


def refusal(workflow: Workflow, error: FlowError) -> Problem:
    """What the caller is told whose run cannot be limited."""
    return problem("limit_failed", f"workflow {workflow.definition.name!r}: {error}", expression=error.expression)
