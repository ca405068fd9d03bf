"""What intake takes and answers: runs and events somebody asked for, deliveries of webhooks, and what of them is written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dispatcher.engine.definitions.placement import DesiredLabels
from dispatcher.runtime.directory import Workflow
from dispatcher.runtime.firing import Firing, Plan
from dispatcher.runtime.judging import Judgement
from dispatcher.store.crons import NewCron
from dispatcher.store.filters import NewFailure
from dispatcher.store.intake import NewEvent, NewKey, NewRun
from dispatcher.store.schedules import NewSchedule
from dispatcher.store.webhook_deliveries import NewDelivery


@dataclass(slots=True)
class RunRequest:
    """A run somebody asked for. `input` and `metadata` are JSON text, checked by the edge.

    One that a task asked for is cancelled with that task's run unless it is `on_its_own`; `parent_wait` is its name among the children of
    a durable one, which its end is told to. `labels` are asked of the endpoints of its tasks beside what their definitions ask; a `sticky`
    child whose workflow is sticky too goes where its parent is (`sticky_to`). `cause` is the id of the cron that starts it.
    """

    tenant_id: int
    workflow: str
    input: bytes
    metadata: str | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    idempotency_ttl: timedelta | None = None
    run_at: datetime | None = None
    parent_run_id: str | None = None
    trigger: str = "api"
    cause: str | None = None
    parent_node: int | None = None
    parent_wait: str | None = None
    on_its_own: bool = False
    labels: DesiredLabels = field(default_factory=dict)
    sticky: bool = False
    sticky_to: str | None = None


@dataclass(slots=True)
class EventRequest:
    """An event somebody sent. `data` and `metadata` are JSON text, checked by the edge.

    A call names its `workflow`: the event then runs that one with `input`, and nothing that listens for its type. `judgement` is what the
    filters say of it, found out on the way in. With a `plan` the call is for later, and starts nothing now.
    """

    tenant_id: int
    type: str
    data: bytes
    metadata: str | None = None
    scope: str | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    idempotency_ttl: timedelta | None = None
    workflow: str | None = None
    input: bytes | None = None
    judgement: Judgement | None = None
    plan: Plan | None = None


@dataclass(slots=True)
class DeliveryRequest:
    """A verified delivery of a webhook: the row to keep of it, and the event it becomes; None keeps it and starts nothing.

    `keys` are (scope, key, how long) that must all be new: otherwise it is a duplicate of the delivery that holds one of them.
    """

    row: NewDelivery
    event: EventRequest | None
    keys: tuple[tuple[str, str, timedelta], ...]


@dataclass(slots=True)
class RunAccepted:
    """A run that is durable; or the first of its idempotency key."""

    id: str
    duplicate: bool
    created_at: datetime
    status: str = "queued"


@dataclass(slots=True)
class EventAccepted:
    """An event that is durable, with the runs it started; or the first of its idempotency key."""

    id: str
    stream_id: str
    run_ids: list[str]
    duplicate: bool
    planned: str | None = None


@dataclass(slots=True)
class DeliveryAccepted:
    """A delivery that is durable, with its event if it became one; or the first of its kind."""

    id: str
    duplicate: bool
    event_id: str | None
    run_ids: list[str]


@dataclass(slots=True)
class Submission:
    """What is written together, and what became of it: `written`, or `first_id` of the key it came second for, or neither (stale).

    `at` is when it was made, then when it was written.
    """

    event: NewEvent | None
    runs: list[NewRun]
    workflows: list[Workflow]
    keys: tuple[NewKey, ...]
    at: datetime
    delivery: NewDelivery | None = None
    written: bool = False
    awaited: bool = False
    first_id: str | None = None
    failures: Sequence[NewFailure] = ()
    firing: Firing | None = None
    plan: NewCron | NewSchedule | None = None

    @property
    def settled(self) -> bool:
        """Whether it need not be matched again."""
        return self.written or self.first_id is not None or (self.firing is not None and self.firing.lost)

    @property
    def plain(self) -> bool:
        """Whether it is written by one statement."""
        return not (self.keys or self.failures) and self.delivery is None and self.firing is None and self.plan is None
