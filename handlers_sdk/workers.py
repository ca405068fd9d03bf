"""A worker: an app that is put together first and served when it is started. `Dispatcher.serve` does both in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from handlers_sdk.workflow import Served


class Worker:
    """What `Dispatcher.worker` makes. `start` returns when the process was told to stop and has finished its work."""

    def __init__(self, name: str, workflows: Sequence[Served], serve: Callable[..., None]) -> None:
        self.name = name
        self.workflows = list(workflows)
        self._serve = serve

    def register_workflow(self, workflow: Served) -> None:
        """Serve this one too."""
        self.workflows.append(workflow)

    def register_workflows(self, workflows: Sequence[Served]) -> None:
        """Serve these too."""
        self.workflows.extend(workflows)

    def start(self, **options: Any) -> None:
        """Run the app with uvicorn and register it: `options` are `host`, `port`, `url` and the others of `Dispatcher.serve`."""
        self._serve(self.name, self.workflows, **options)
