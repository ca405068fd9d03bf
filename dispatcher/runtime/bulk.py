"""Bulk actions: cancelling or replaying many runs, in sets, by whichever dispatcher gets to it.

Which runs is settled when an action is made. A set of runs to replay is begun again and struck off in one transaction, so that a
dispatcher that is killed in between neither forgets one nor begins one twice; cancelling one twice changes nothing. Durable runs go on
from their logs, one by one: of those a few may be made to go on a second time by such an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from dispatcher.clock import Clock
from dispatcher.errors import Problem, problem
from dispatcher.ids import IdMaker
from dispatcher.runtime.cancellation import Cancellation
from dispatcher.runtime.replays import Replays
from dispatcher.runtime.signals import Signals
from dispatcher.settings import Settings
from dispatcher.store import audit
from dispatcher.store import bulk as store
from dispatcher.store.bulk import BulkRow, Kind, Running
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.runs import RunFilter

_log = logging.getLogger(__name__)

_ACTIONS: Final = 10  # actions that get a turn in one tick, lest a large one hold up the others
_TOGETHER: Final = 25  # runs one call to cancel is given: each is settled by itself


async def _nowhere(_tenant_id: int, _run_id: str) -> None:
    raise problem("not_durable", "no durable task is carried out here")


class Bulk:
    """Makes bulk actions, and carries them out."""

    def __init__(
        self, database: Database, replays: Replays, cancellation: Cancellation, signals: Signals, clock: Clock, settings: Settings
    ) -> None:
        self._database = database
        self._replays = replays
        self._cancellation = cancellation
        self._signals = signals
        self._clock = clock
        self._most = settings.max_bulk_runs
        self._chunk = settings.bulk_chunk
        self._ids = IdMaker()
        self.on_made: Callable[[], None] = lambda: None
        self.go_on: Callable[[int, str], Awaitable[None]] = _nowhere

    async def match(
        self, tenant_id: int, kind: Kind, wanted: RunFilter, workflows: Sequence[str] | None, run_ids: Sequence[str] | None
    ) -> list[str]:
        """The runs an action would be for. Raises Problem too_many_matched."""
        found = await store.match(self._database, tenant_id, kind, wanted, workflows, run_ids, self._most + 1)
        if len(found) > self._most:
            raise problem("too_many_matched", f"more than {self._most:,} runs match")
        return found

    async def make(
        self, tenant_id: int, kind: Kind, run_ids: Sequence[str], asked: Mapping[str, Any], reason: str, actor: str | None
    ) -> BulkRow:
        """Begin an action for these runs. `asked` is what they were chosen by, for those who look at it later."""
        now = self._clock.now()
        bulk_id = self._ids.make("blk", now)
        async with self._database.transaction() as conn:
            await store.create(conn, tenant_id, bulk_id, kind, asked, reason, run_ids, actor, now)
            details = {"bulk_id": bulk_id, "matched": len(run_ids), "reason": reason, **asked}
            await audit.add(conn, tenant_id, self._ids.make("aud", now), now, actor, f"runs.{kind}", bulk_id, details)
            row = await store.get(conn, tenant_id, bulk_id)
        assert row is not None, "just made"
        self._signals.send("bulk")
        self.on_made()
        return row

    async def stop(self, tenant_id: int, bulk_id: str, actor: str | None) -> BulkRow:
        """End an action where it stands. Raises Problem not_found, or bulk_finished."""
        now = self._clock.now()
        async with self._database.transaction() as conn:
            before = await store.get(conn, tenant_id, bulk_id)
            if before is None:
                raise problem("not_found", f"there is no bulk action {bulk_id[:100]!r}")
            if not await store.stop(conn, tenant_id, bulk_id, now) and before.status != "cancelled":
                raise problem("bulk_finished", f"{bulk_id} is over")
            await audit.add(conn, tenant_id, self._ids.make("aud", now), now, actor, "bulk.cancel", bulk_id, {"kind": before.kind})
            after = await store.get(conn, tenant_id, bulk_id)
        assert after is not None, "still there"
        return after

    async def tick(self, now: datetime) -> bool:
        """Carry out a set of each action; True when there may be more to do at once."""
        more = False
        for action in await store.running(self._database, _ACTIONS):
            try:
                more |= await (self._replay(action, now) if action.kind == "replay" else self._cancel(action, now))
            except Exception as error:
                if isinstance(error, DatabaseUnavailable) or is_transient(error):
                    raise
                _log.exception("a set of bulk action %s could not be carried out", action.id)
        return more

    async def _replay(self, action: Running, now: datetime) -> bool:
        tenant_id = action.tenant_id
        async with self._database.transaction() as conn:
            run_ids = await store.take(conn, tenant_id, action.id, self._chunk)
            logged = await self._replays.with_logs(conn, tenant_id, run_ids)
            plain = [run_id for run_id in run_ids if run_id not in logged]
            revived = await self._replays.revive(conn, tenant_id, plain, now)
            first = [run_id for run_id in run_ids if run_id in logged][:_TOGETHER]
            went_on = await self._gone_on(tenant_id, first)
            run_ids = [*plain, *first]
            done = len(revived) + went_on
            if run_ids:  # what others are at is theirs to count
                await store.drop(conn, tenant_id, action.id, run_ids)
                await store.count(conn, tenant_id, action.id, done, len(run_ids) - done)
            await store.finish(conn, tenant_id, action.id, now)
        self._replays.announce(tenant_id, revived)
        return bool(run_ids)

    async def _gone_on(self, tenant_id: int, run_ids: Sequence[str]) -> int:
        """Let durable runs go on from their logs, each in a transaction of its own; answers how many did."""
        count = 0
        for run_id in run_ids:
            with contextlib.suppress(Problem):  # somebody else has begun it meanwhile
                await self.go_on(tenant_id, run_id)
                count += 1
        return count

    async def _cancel(self, action: Running, now: datetime) -> bool:
        tenant_id = action.tenant_id
        run_ids = await store.look(self._database, tenant_id, action.id, self._chunk)
        parts = [run_ids[start : start + _TOGETHER] for start in range(0, len(run_ids), _TOGETHER)]
        fates = await asyncio.gather(*(self._cancellation.cancel(tenant_id, part, action.reason) for part in parts))
        cancelled = {run_id for part in fates for run_id, fate in part.items() if fate in ("cancelled", "cancelling")}
        async with self._database.transaction() as conn:
            dropped = await store.drop(conn, tenant_id, action.id, run_ids)
            await store.count(conn, tenant_id, action.id, len(dropped & cancelled), len(dropped - cancelled))
            await store.finish(conn, tenant_id, action.id, now)
        return bool(run_ids)
