"""Running a task's function in a unit test, without dispatcher, endpoint or event loop of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.context import Context, WorkerInfo

_LONG_AFTER: Final = datetime(9999, 12, 31, tzinfo=UTC)


class MockControl:
    """Stands in for a running attempt: keeps what the task says in `events`, and does nothing it asks for."""

    def __init__(self, lifespan: Any = None) -> None:
        self.events: list[wire.Event] = []
        self.context: Context | None = None
        self._lifespan = lifespan

    @property
    def lifespan(self) -> Any:
        """What the test gave."""
        return self._lifespan

    @property
    def worker(self) -> WorkerInfo:
        """A process of that name."""
        return WorkerInfo("wrk_mock", "mock")

    @property
    def home(self) -> threading.Thread | None:
        """No thread must be spared."""
        return None

    def emit(self, event: wire.Event) -> None:
        """Keep the event."""
        self.events.append(event)

    def flushed(self) -> Future[None]:
        """Done."""
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def extend(self, ms: int) -> None:
        """A mock run has no deadline."""

    def stop(self, reason: str) -> None:
        """Set the context's flag."""
        if self.context is not None:
            self.context._stop(reason)  # noqa: SLF001 - the context belongs to its control

    def cancel_run(self) -> Future[None]:
        """Done."""
        return self.flushed()


def mock_context(
    name: str,
    input: Any = None,
    additional_metadata: Mapping[str, Any] | None = None,
    retry_count: int = 0,
    lifespan: Any = None,
    task_name: str = "",
    parents: Mapping[str, wire.ParentResult] | None = None,
) -> tuple[Context, MockControl]:
    """A context as a task gets it, and the control behind it, for tests that call a handler's function themselves."""
    item: wire.RunItem = {
        "name": name,
        "workflow": name,
        "id": "tsk_mock",
        "run_id": "run_mock",
        "attempt": retry_count + 1,
        "retry_count": retry_count,
        "max_attempts": retry_count + 1,
        "version": "",
        "input": input,
        "deadline": _LONG_AFTER.isoformat(),
        "timeout_ms": 0,
        "token": "",
        "tenant": "",
        "metadata": dict(additional_metadata or {}),
        "priority": 1,
        "parents": dict(parents or {}),
    }
    control = MockControl(lifespan)
    control.context = Context(item, control, task_name)
    return control.context, control
