"""/metrics: what this process counts, in the text format of Prometheus. No label has a value that a user chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from dispatcher.api.edge import Answer, Call, Route
from dispatcher.runtime.services import Services

Sample = tuple[str, float]  # labels as they are written, value
_CONTENT_TYPE: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `help` says what is counted, `read` gives its samples."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    read: Callable[[Services], Iterable[Sample]]


def _by_status(services: Services) -> Iterable[Sample]:
    totals: Counter[str] = Counter()
    for (_, status), count in services.metrics.runs_finished.items():
        totals[status] += count
    return [(f'{{status="{status}"}}', count) for status, count in sorted(totals.items())]


def _attempts(services: Services) -> Iterable[Sample]:
    return [(f'{{status="{status}"}}', count) for status, count in sorted(services.metrics.attempts.items())]


def _deliveries(services: Services) -> Iterable[Sample]:
    return [(f'{{status="{status}"}}', count) for status, count in sorted(services.metrics.deliveries.items())]


def _connections(services: Services) -> Iterable[Sample]:
    for lane, statistics in sorted(services.database.statistics().items()):
        yield f'{{lane="{lane}",state="idle"}}', statistics.idle
        yield f'{{lane="{lane}",state="used"}}', statistics.open - statistics.idle


def _connection_waits(services: Services) -> Iterable[Sample]:
    return [(f'{{lane="{lane}"}}', statistics.waiting) for lane, statistics in sorted(services.database.statistics().items())]


def _one(read: Callable[[Services], float]) -> Callable[[Services], Iterable[Sample]]:
    return lambda services: [("", read(services))]


METRICS: Final = (
    Metric("dispatcher_runs_created_total", "counter", "runs this process has taken in", _one(lambda s: s.metrics.runs_created.total())),
    Metric("dispatcher_runs_finished_total", "counter", "runs whose end this process has written, by status", _by_status),
    Metric("dispatcher_events_received_total", "counter", "events this process has taken in", _one(lambda s: s.metrics.events_received)),
    Metric("dispatcher_webhook_deliveries_total", "counter", "requests to webhooks, by what became of them", _deliveries),
    Metric(
        "dispatcher_webhook_unrecorded_total",
        "counter",
        "refused requests to webhooks that were only counted",
        _one(lambda s: s.metrics.deliveries_unrecorded),
    ),
    Metric("dispatcher_attempts_total", "counter", "attempts whose end this process has written, by status", _attempts),
    Metric("dispatcher_attempt_seconds_total", "counter", "time attempts took to be answered", _one(lambda s: s.metrics.attempt_seconds)),
    Metric("dispatcher_requests_sent_total", "counter", "requests to endpoints, a batch is one", _one(lambda s: s.metrics.requests_sent)),
    Metric("dispatcher_tasks_claimed_total", "counter", "tasks taken from the queue", _one(lambda s: s.metrics.claimed)),
    Metric("dispatcher_stale_outcomes_total", "counter", "outcomes that came too late", _one(lambda s: s.metrics.stale_outcomes)),
    Metric("dispatcher_attempts_open", "gauge", "attempts this process has open", _one(lambda s: s.capacity.total)),
    Metric("dispatcher_intake_waiting", "gauge", "runs and events waiting for their commit", _one(lambda s: s.intake.waiting)),
    Metric("dispatcher_database_connections", "gauge", "connections to the database, by lane and state", _connections),
    Metric("dispatcher_database_waiting", "gauge", "callers waiting for a connection, by lane", _connection_waits),
)  # fmt: skip


def render(services: Services) -> str:
    """All metrics in the text format."""
    lines = []
    for metric in METRICS:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{labels} {value}" for labels, value in metric.read(services)]
    return "\n".join([*lines, ""])


async def metrics(call: Call) -> Answer:
    """What this process has counted since it started, for Prometheus."""
    return Answer(200, render(call.services).encode(), (_CONTENT_TYPE,))


ROUTES: Final = (Route("GET", "/metrics", metrics, None, {200: str}),)
