"""A dispatcher without its loops: everything the API calls is real, but nothing moves unless a test moves it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx

from dispatcher.api import App, create_app
from dispatcher.api.credentials import new_token
from dispatcher.app import _join
from dispatcher.clock import ManualClock
from dispatcher.delivery import Courier, EgressPolicy
from dispatcher.engine.attempts import AttemptStatus, Error, Final, Finish, Requeue
from dispatcher.ids import IdMaker
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.keyring import Keyring
from dispatcher.runtime.services import Services
from dispatcher.runtime.tokens import TokenMaker
from dispatcher.sealing import Sealer
from dispatcher.settings import Settings
from dispatcher.store import intake as intake_store
from dispatcher.store import outcomes, registry, tokens
from dispatcher.store.database import Database
from dispatcher.store.intake import NewRun
from dispatcher.store.outcomes import AttemptFacts, Guard, Outcome

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEY = bytes(range(32))
HANDLERS = [{"name": "resize"}, {"name": "mail", "on_events": ["user:created", "order:*"]}]
LOOPBACK = ("127.0.0.1", 40_000)
ELSEWHERE = ("203.0.113.7", 40_000)


@dataclass
class World:
    """The dispatcher under test, and the means to make things happen in it."""

    services: Services
    app: App
    clock: ManualClock
    tokens: TokenMaker
    dispatcher_id: int

    @property
    def ids(self) -> IdMaker:
        """The one maker of ids, so that they sort in the order of making although the clock stands still."""
        return self.services.intake._ids

    @property
    def database(self) -> Database:
        return self.services.database

    def client(self, token: str | None = None, *, address: tuple[str, int] = LOOPBACK, host: str = "localhost:8400") -> httpx.AsyncClient:
        """A client at this address, with this token."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(cast(Any, self.app), client=address)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)

    async def tenant(self, slug: str) -> int:
        """A tenant, made if it is not there."""
        tenant = await registry.create_tenant(self.database, slug, slug, self.clock.now())
        await self.services.directory.refresh(self.clock.now())
        return tenant.id

    async def token(self, slug: str = "default", *scopes: str, expires: datetime | None = None) -> str:
        """A token of a tenant; for everything where no scopes are named."""
        made = new_token()
        granted = scopes or ("*",)
        await tokens.create(
            self.database, await self.tenant(slug), made.public_id, made.secret_hash, "test", granted, self.clock.now(), expires
        )
        return made.text

    async def register(self, slug: str = "default", name: str = "images", handlers: list[Any] | None = None) -> dict[str, Any]:
        """A plain endpoint of a tenant that nobody answers at."""
        return await self.services.registration.put(
            await self.tenant(slug), name, url="http://127.0.0.1:9/", handlers=HANDLERS if handlers is None else handlers
        )

    async def running(self, slug: str = "default", workflow: str = "resize", **changes: Any) -> str:
        """A run whose first attempt is under way at the tenant's only endpoint."""
        tenant_id = await self.tenant(slug)
        picture = self.services.directory.pictures[tenant_id]
        endpoint = next(iter(picture.endpoints.values()))
        known = picture.workflows[workflow]
        values: dict[str, Any] = {
            "tenant_id": tenant_id,
            "registry_version": picture.tenant.registry_version,
            "id": self.ids.make("run", self.clock.now()),
            "workflow_id": known.id,
            "workflow_version": known.number,
            "input": b'{"w":64}',
            "metadata": None,
            "priority": 1,
            "trigger": "api",
            "event_id": None,
            "parent_run_id": None,
            "stream_id": None,
            "idempotency_key": None,
            "run_at": None,
            "schedule_timeout_ms": 300_000,
            "execution_timeout_ms": 60_000,
            "endpoint_id": endpoint.id,
            "endpoint_version": endpoint.target.version,
        }
        run = NewRun(**(values | changes))
        assert await intake_store.write(self.database, [], [run], self.dispatcher_id, self.clock.now()) == {run.id: False}
        return run.id

    async def finish(
        self,
        run_id: str,
        status: Final = "succeeded",
        *,
        epoch: int = 1,
        output: bytes = b'{"ok":true}',
        output_type: str = "application/json",
        facts: AttemptFacts | None = None,
        slug: str = "default",
    ) -> None:
        """End a running run."""
        attempt: AttemptStatus = status
        good = status == "succeeded"
        change = Finish(
            status, attempt, output if good else None, output_type if good else None, None if good else Error("handler_failed", "it broke")
        )
        await self._apply(run_id, epoch, change, facts, slug)

    async def fail_once(self, run_id: str, *, epoch: int = 1, wait: timedelta = timedelta(seconds=30), slug: str = "default") -> None:
        """Fail a running attempt, with a retry after `wait`."""
        now = self.clock.now()
        due_at, error = now + wait, Error("handler_failed", "try again")
        change = Requeue("failed", error, due_at, 1, epoch, 0, None, None, due_at + timedelta(minutes=5))
        await self._apply(run_id, epoch, change, AttemptFacts(500, 12, b"oops \xff"), slug)

    async def _apply(self, run_id: str, epoch: int, change: Finish | Requeue, facts: AttemptFacts | None, slug: str) -> None:
        guard = Guard(await self.tenant(slug), run_id, 0, epoch, "running")
        landed: list[object] = []
        outcome = Outcome(guard, change, facts or AttemptFacts(200, 7, b"{}"))
        await outcomes.apply(self.database, [outcome], self.clock.now(), landed.append)
        assert landed


async def open_world(database: Database, stack: AsyncExitStack, **changes: Any) -> World:
    """A dispatcher on an empty database, in development unless told otherwise."""
    settings = replace(Settings(dev=True, api_url="http://localhost:8400"), **changes)
    clock = ManualClock(START)
    keyring = Keyring(database, Sealer(KEY))
    tenant = await registry.create_tenant(database, "default", "Default", clock.now())
    await keyring.create_first(tenant.id, clock.now())
    directory = Directory(database, settings, keyring)
    await directory.refresh(clock.now())
    egress = EgressPolicy.parse(dev=True, allow_http=True)
    courier = Courier(egress, clock=lambda: int(clock.now().timestamp()), user_agent="dispatcher/test")
    stack.push_async_callback(courier.aclose)
    maker = TokenMaker(KEY)
    parts = _join(settings, clock, database, directory, keyring, courier, egress, maker, "test")
    await parts.membership.join()
    return World(parts.services, create_app(parts.services), clock, maker, parts.membership.id)
