"""What can be asked of durable tasks from outside: their journals, messages to them, what they saved, going on after a block, going back.

And their side of the conversation: appends and turns that are answered by callback, alone or in groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dispatcher import ids
from dispatcher.clock import Clock
from dispatcher.engine import journal as rules
from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.errors import Problem, problem
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.journals import Journals
from dispatcher.runtime.replays import Replays
from dispatcher.runtime.settlement import Settlement
from dispatcher.runtime.tokens import AttemptToken, TokenMaker
from dispatcher.runtime.turns import Turns
from dispatcher.settings import Settings
from dispatcher.store import journal, runs, waits
from dispatcher.store.database import Database
from dispatcher.store.journal import Checkpoint, Kept

_SKEW = timedelta(hours=1)


@dataclass(slots=True)
class Durable:
    """Handles requests about durable tasks."""

    database: Database
    directory: Directory
    capacity: Capacity
    journals: Journals
    turns: Turns
    settlement: Settlement
    tokens: TokenMaker
    replays: Replays
    clock: Clock
    settings: Settings
    on_waits: Callable[[], None] = lambda: None
    on_ready: Callable[[], None] = lambda: None

    # ---- what is recorded

    async def logs(self, tenant_id: int, run_id: str) -> list[Kept]:
        """The logs of a run's durable tasks, by node and generation. Raises Problem not_found or not_durable."""
        await self._exists(tenant_id, run_id)
        found = await journal.logs(self.database, tenant_id, run_id, self._since(run_id))
        if not found and not await journal.is_durable(self.database, tenant_id, run_id, self._since(run_id)):
            raise problem("not_durable", f"run {run_id} has no durable task")
        return found

    async def checkpoint(self, tenant_id: int, run_id: str, node: int) -> Checkpoint:
        """What a task last saved. Raises Problem not_found."""
        found = await journal.saved(self.database, tenant_id, run_id, node, self._since(run_id)) if ids.created_at(run_id) else None
        if found is None:
            await self._exists(tenant_id, run_id)
            raise problem("not_found", f"run {run_id} has saved nothing")
        return found

    def _since(self, run_id: str) -> Any:
        created = ids.created_at(run_id)
        return created - _SKEW if created is not None else self.clock.now()

    async def _exists(self, tenant_id: int, run_id: str) -> None:
        if not run_id.startswith("run_") or not await runs.exists(self.database, tenant_id, run_id):
            raise problem("not_found", f"there is no run {run_id[:100]!r}")

    # ---- what it is told

    async def send(self, tenant_id: int, run_id: str, node: int, data: bytes) -> None:
        """Put a message into a task's inbox, behind those there are. Raises Problem not_found, not_durable, inbox_closed."""
        try:
            check(data, max_bytes=self.settings.inbox_message_bytes)
        except JsonRefused as refused:
            code = "body_too_large" if refused.code == "too_large" else refused.code
            raise problem(code, f"data: {refused.message}") from None
        if await waits.send(self.database, (tenant_id, run_id, node), data, self.clock.now()):
            self.on_waits()
            return
        await self._exists(tenant_id, run_id)
        if not await journal.is_durable(self.database, tenant_id, run_id, self._since(run_id)):
            raise problem("not_durable", f"run {run_id} has no durable task")
        raise problem("inbox_closed", f"run {run_id} takes no more messages")

    async def resume(self, tenant_id: int, run_id: str) -> None:
        """Let what is blocked in a run try again, on the latest version. Raises Problem not_found or not_blocked."""
        resumed = await waits.unblock(self.database, tenant_id, None, run_id, self.clock.now())
        if not resumed:
            await self._exists(tenant_id, run_id)
            raise problem("not_blocked", f"nothing of run {run_id} is blocked")
        self._ready(resumed)

    async def resume_workflows(self, tenant_id: int, workflows: list[int]) -> None:
        """A version that may fit has been registered: what is blocked in these workflows tries again."""
        self._ready(await waits.unblock(self.database, tenant_id, workflows, None, self.clock.now()))

    def _ready(self, resumed: list[waits.Resumed]) -> None:
        if resumed:
            self.capacity.backlog.update((row.tenant_id, row.workflow_id) for row in resumed)
            self.on_ready()

    # ---- an attempt's side

    def speaker(self, token: str) -> AttemptToken:
        """Whose token it is. Raises Problem unauthorized."""
        found = self.tokens.read(token, int(self.clock.now().timestamp()))
        if found is None:
            raise problem("unauthorized", "the attempt token is forged, damaged or expired")
        return found

    async def log(self, token: str, first: int, last: int | None) -> dict[str, Any]:
        """Entries of an attempt's log, for an endpoint that has lost what it knew. Raises Problem."""
        speaker = self.speaker(token)
        key = (speaker.tenant_id, speaker.run_id, speaker.node)
        head = (await journal.heads(self.database, [key])).get(key)
        if head is None:
            raise problem("task_ended", f"{ids.task_id(*key[1:])} is over")
        if head.epoch != speaker.epoch or head.state != "running":
            raise problem("stale_attempt", f"attempt {speaker.epoch} of {ids.task_id(*key[1:])} no longer owns the task")
        found = (await journal.segments(self.database, [(head, 0)])).get(key, [])
        entries = rules.split(segment.entries for segment in found)
        end = len(entries) if last is None else last
        head_hash = rules.rolled(b"", entries).hex()
        return {"from": first, "to": min(end, len(entries)), "len": len(entries), "head": head_hash, "entries": entries[first:end]}


def entries_of(kept: Kept) -> list[bytes]:
    """A log's entries, one by one."""
    return rules.split([kept.entries]) if kept.entries else []


def as_problem(error: rules.OpRefused) -> Problem:
    """Operations that cannot be recorded, as a caller is told."""
    return problem(error.code, str(error))
