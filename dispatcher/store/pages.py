"""Going through all that a tenant has, a page at a time: no index leads to what waits for one workflow, and it may be much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """What of a tenant is looked at next: tasks, and then runs, that come behind this one."""

    of_tasks: bool = True
    run_id: str = ""
    node: int = -1

    def behind(self, last: Looked | None, limit: int) -> Page | None:
        """The page that comes after this one, of which `last` was found; None behind the last."""
        if last is not None and last.looked == limit:
            return Page(self.of_tasks, last.run_id, last.node)
        return Page(of_tasks=False) if self.of_tasks else None


@dataclass(frozen=True, slots=True)
class Looked:
    """The last of the rows that were looked at, and how many they were."""

    run_id: str
    node: int
    looked: int
