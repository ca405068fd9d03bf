"""/v1/stats: how much waits and runs, for autoscalers and for people."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from dispatcher.api.decoding import span
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.triggering import Moment
from dispatcher.store import stats
from dispatcher.store.stats import CountedRuns, GroupCount, QueueCount, TaskCount

_MOST_GROUPS: Final = 1_000
_DAY: Final = timedelta(days=1)


class GroupStats(msgspec.Struct):
    """A concurrency limit and the tasks in each of its groups; the thousand largest groups of a tenant are named."""

    expression: str
    type: str
    keys: dict[str, int]
    name: str | None = None


class StateStats(msgspec.Struct):
    """Tasks in one state: how many, since when the oldest, and how they divide among the groups of concurrency limits."""

    total: int = 0
    oldest: datetime | None = None
    concurrency: list[GroupStats] = []


class QueuedStats(StateStats):
    """Tasks that wait, also by queue: those that ask something of their endpoint have queues of their own."""

    queues: dict[str, int] = {}


class TaskStats(msgspec.Struct):
    """What waits and what runs of one task."""

    queued: QueuedStats
    running: StateStats


class QueueStats(msgspec.Struct, frozen=True):
    """The queue of a workflow: what may start as soon as there is a slot, what waits for a limit, for its time, or as a suspended task."""

    workflow: str
    paused: bool
    queued: int
    gated: int
    scheduled: int
    running: int
    waiting: int
    oldest: datetime | None


class QueuePage(msgspec.Struct, frozen=True):
    """Queues by the name of their workflow."""

    rows: list[QueueStats]
    next_cursor: str | None


class RunStatsQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which runs are counted, by when they were made: since a day ago unless said otherwise. `workflow` may be repeated."""

    since: Moment | None = None
    until: Moment | None = None
    workflow: tuple[str, ...] = ()
    event_id: str | None = None
    parent_run_id: str | None = None


class RunStats(msgspec.Struct, frozen=True):
    """How many runs are in each status."""

    queued: int = 0
    running: int = 0
    waiting: int = 0
    pending_retry: int = 0
    blocked: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


async def run_stats(call: Call) -> Answer:
    """How many runs are in each status."""
    query: RunStatsQuery = call.query
    since, until = span(query.since or call.services.clock.now() - _DAY, query.until)
    assert since is not None, "given, or a day ago"
    wanted = CountedRuns(since, until, query.workflow or None, query.event_id, query.parent_run_id)
    return json_answer(200, RunStats(**await stats.runs(call.services.database, call.tenant_id, wanted)))


async def task_stats(call: Call) -> Answer:
    """What waits and runs of every task that has any, by name: `workflow`, or `workflow:task`."""
    database, tenant_id = call.services.database, call.tenant_id
    found: dict[str, TaskStats] = {}
    names: dict[tuple[str, int], str] = {}
    for row in await stats.tasks(database, tenant_id):
        name = names[(row.workflow, row.node)] = f"{row.workflow}:{row.task}" if row.task else row.workflow
        _count(found.setdefault(name, TaskStats(QueuedStats(), StateStats())), name, row)
    for group in await stats.groups(database, tenant_id, _MOST_GROUPS):
        name = names.get((group.workflow, group.node), group.workflow)
        if name in found:
            _group(found[name].running if group.running else found[name].queued, group)
    return json_answer(200, found)


def _count(task: TaskStats, name: str, row: TaskCount) -> None:
    state: StateStats = task.running if row.running else task.queued
    state.total += row.tasks
    state.oldest = min(row.oldest, state.oldest or row.oldest)
    if not row.running:
        queue = f"{name} {row.requirement}" if row.requirement else name
        task.queued.queues[queue] = task.queued.queues.get(queue, 0) + row.tasks


def _group(state: StateStats, row: GroupCount) -> None:
    expression = row.rule.partition(f":{row.strategy}:")[2]
    known = next((one for one in state.concurrency if (one.expression, one.type, one.name) == (expression, row.strategy, row.name)), None)
    if known is None:
        known = GroupStats(expression, row.strategy, {}, row.name)
        state.concurrency.append(known)
    known.keys[row.key] = known.keys.get(row.key, 0) + row.tasks


async def queue_stats(call: Call) -> Answer:
    """The queue of every workflow: how much is in it, and since when its oldest waits."""
    query: PageQuery = call.query
    after = position("queues", query, str) or ""
    found = await stats.queues(call.services.database, call.tenant_id, after, query.limit + 1)
    return page("queues", query, found, _queue, lambda row: row.workflow)


def _queue(row: QueueCount) -> QueueStats:
    return QueueStats(row.workflow, row.paused, row.queued, row.gated, row.scheduled, row.running, row.waiting, row.oldest)


ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/v1/stats/tasks", task_stats, "runs:read", {200: dict[str, TaskStats]}),
    Route(
        "GET",
        "/v1/stats/runs",
        run_stats,
        "runs:read",
        {200: RunStats},
        RunStatsQuery,
        problems=("invalid_value", "unknown_parameter"),
    ),
    Route("GET", "/v1/stats/queues", queue_stats, "runs:read", {200: QueuePage}, PageQuery),
)
