"""An attempt as this process carries it: everything its request needs and its answer is judged by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from dispatcher.engine.answers import Mismatched
from dispatcher.engine.attempts import Sparer, TaskState
from dispatcher.engine.definitions import TaskDefinition
from dispatcher.engine.rate_limits import Demand
from dispatcher.runtime.directory import Endpoint, Workflow
from dispatcher.store.outcomes import Guard, TaskKey


@dataclass(frozen=True, slots=True)
class EventFacts:
    """The event that started a run, as its handler is told."""

    id: str
    type: str
    metadata: str | None

    def document(self) -> bytes:
        """Its JSON text in the envelope."""
        head = json.dumps({"id": self.id, "type": self.type}, ensure_ascii=False)
        return f'{head[:-1]},"metadata":{self.metadata or "null"}}}'.encode()


@dataclass(slots=True)
class Turn:
    """What an attempt of a durable task is sent with: `members` go into its envelope, `base` is how long the log was as it was opened.

    `pending` are operations an earlier try of this turn has asked for (state mode). `blocked` is why it cannot be sent at all; `elsewhere`
    means it goes to another address than the endpoint's current one, whose health it says nothing about. `since` is when its log began,
    where that is not the run's first.
    """

    members: bytes
    base: int
    begun: bool
    cleanup: bool
    pending: frozenset[str] = frozenset()
    blocked: Mismatched | None = None
    elsewhere: bool = False
    since: datetime | None = None


@dataclass(slots=True)
class BatchOf:
    """The batch an attempt is sent in: its id, how many it has, and the `slots` it fills until the last of them has left it."""

    id: str
    size: int
    slots: int
    left: int = 0
    detached: bool = False

    def leave(self, detached: bool) -> tuple[int, bool]:
        """One of it is over for this process: the slots that become free with it, and whether something of the batch goes on elsewhere."""
        self.left += 1
        self.detached |= detached
        return (self.slots, self.detached) if self.left == self.size else (0, detached)


@dataclass(slots=True)
class Assignment:
    """A leased attempt. `deadline` moves when the handler asks for more time; the rest stands.

    `parents` and `errors` are what the tasks before it in its graph gave, as JSON texts. `demands` are the units of rate limits it takes
    before it is sent (at `units_at`); without them it goes back to wait, as long as it would have (`waits_until`), and has `waited`.
    """

    tenant_id: int
    run_id: str
    node: int
    epoch: int
    workflow: Workflow
    endpoint: Endpoint
    input: bytes
    metadata: str | None
    run_priority: int
    priority: int
    app_retries: int
    infra_retries: int
    spared_since: datetime | None
    spared_by: Sparer | None
    started_at: datetime
    deadline: datetime
    event: EventFacts | None
    event_id: str | None
    parent_run_id: str | None
    filter_payload: bytes | None = None
    parents: bytes | None = None
    errors: bytes | None = None
    retry_base: int = 0
    demands: tuple[Demand, ...] = ()
    waits_until: datetime | None = None
    waited: bool = False
    units_at: datetime | None = None
    cancelling: bool = False
    slot_released: bool = False
    requirement: str = ""
    slots: int = 1
    batch: BatchOf | None = None
    turn: Turn | None = None

    @property
    def key(self) -> TaskKey:
        """Which task."""
        return (self.tenant_id, self.run_id, self.node)

    @property
    def task(self) -> TaskDefinition:
        """The definition of the task."""
        return self.workflow.definition.tasks[self.node]

    def rules(self) -> TaskState:
        """The part the rules look at."""
        return TaskState(
            "running",
            self.epoch,
            self.priority,
            self.app_retries,
            self.infra_retries,
            self.spared_since,
            self.spared_by,
            self.deadline,
            None,
            None,
            self.cancelling,
            self.turn is not None and self.turn.begun,
            self.turn is not None and self.turn.cleanup,
            self.task.durable,
        )

    def guard(self) -> Guard:
        """What a change decided here requires of the row."""
        return Guard(self.tenant_id, self.run_id, self.node, self.epoch, "running", self.requirement)
