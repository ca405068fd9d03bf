"""The endpoint, without any framework: a request's method, headers and body in, a Response out.

`POST` is work (a run, a batch, a cancellation), `GET` the manifest. Everything that selects code or data is inside the signed body; nothing
is read from the path. The rules are those of PROTOCOL.md; an adapter (asgi.py) only carries bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.batches import Batch
from handlers_sdk.clock import unix_seconds
from handlers_sdk.definitions import TaskDefinition, manifest_entries
from handlers_sdk.errors import ConfigError, LifespanSetupError
from handlers_sdk.execution import SHUTTING_DOWN, Execution, Host
from handlers_sdk.lifespan import Lifespan
from handlers_sdk.outcomes import Outcome, Refuse, Response, paced, problem, timed_out, to_response
from handlers_sdk.references import malformed_refs
from handlers_sdk.schemas import dump_json, parse_json
from handlers_sdk.signing import SignatureError
from handlers_sdk.state import StateExecution
from handlers_sdk.turns import TurnExecution, malformed_turn
from handlers_sdk.verification import Verifier

REQUEST_BYTES_MAX: Final = 4_000_000
BATCH_ITEMS_MAX: Final = 100
BATCH_BYTES_MAX: Final = 1_000_000
SDK: Final = "py/0.1"
FEATURES: Final = (
    wire.FEATURE_ASYNC, wire.FEATURE_BATCH, wire.FEATURE_NDJSON, wire.FEATURE_CANCEL_PUSH, wire.FEATURE_DURABLE, wire.FEATURE_REFS,
)  # fmt: skip
CUT_OFF: Final[ContextVar[Callable[[], bool]]] = ContextVar("handlers_sdk_cut_off", default=lambda: False)
"""Set by adapters: whether it is the server that cancels this request, and not that its client has gone."""
_RUN_MEMBERS: Final = (("id", str), ("name", str), ("run_id", str), ("attempt", int), ("timeout_ms", int), ("token", str))


class Handlers:
    """All handlers of one endpoint. ConfigError when two have one name."""

    def __init__(
        self,
        definitions: Sequence[TaskDefinition],
        host: Host,
        verifier: Verifier | None,
        *,
        version: str = "",
        lifespan: Lifespan | None = None,
        clock: Callable[[], int] = unix_seconds,
    ) -> None:
        self._definitions = {definition.delivered_as: definition for definition in definitions}
        self._entries = manifest_entries(definitions)
        names = [entry["name"] for entry in self._entries]
        twice = {name for name in names if names.count(name) > 1}
        if twice or len(self._definitions) < len(definitions):
            raise ConfigError(f"workflows are given once each, and need different names: {', '.join(sorted(twice or set(names)))}")
        self.host = host
        self.verifier = verifier
        self.lifespan = lifespan or Lifespan(None)
        self.version = version or self._checksum()
        if not (self.version.isascii() and self.version.isprintable() and len(self.version) <= 200):
            raise ConfigError(f"version={self.version!r} travels in a header: at most 200 printable ASCII characters")
        self._clock = clock
        self._marks = ((wire.HEADER_PROTOCOL, str(wire.PROTOCOL_VERSION)), (wire.HEADER_VERSION, self.version))

    @property
    def draining(self) -> bool:
        """Whether the end has begun: new work is refused, and durable tasks are left where the next turn can go on from."""
        return self.host.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self.host.draining = draining

    async def handle(self, method: str, headers: Mapping[str, str], body: bytes) -> Response:
        """The answer to one request. `headers` has lower-case names; `body` is the raw bytes received.

        Cancelling this, or closing the body it answered with, stops what the request started.
        """
        response = await self._answer(method, headers, body)
        return Response(response.status, response.headers + self._marks, response.body)

    async def close(self) -> None:
        """Wait for threads still at work, then run the end of the lifespan."""
        await asyncio.get_running_loop().run_in_executor(None, self.host.threads.close)
        await self.host.postbox.aclose()
        await self.lifespan.stop()

    async def _answer(self, method: str, headers: Mapping[str, str], body: bytes) -> Response:
        if method not in ("GET", "POST"):
            return _with(problem(405, "method_not_allowed", "POST is work, GET the manifest"), ("allow", "GET, POST"))
        if len(body) > REQUEST_BYTES_MAX:
            return problem(413, "too_large", f"at most {REQUEST_BYTES_MAX} bytes are read")
        try:
            if self.verifier is not None:
                await self.verifier.check(headers, body, self._clock(), introduces=method == "GET")
        except SignatureError as error:
            return problem(401, error.code, str(error))
        return self._manifest(headers.get(wire.HEADER_CHALLENGE, "")) if method == "GET" else await self._push(body)

    async def _push(self, body: bytes) -> Response:
        received = asyncio.get_running_loop().time()
        try:
            push = parse_json(body)
        except ValueError as error:
            return problem(400, "malformed", f"the body is not JSON: {error}")
        kind = push.get("type") if isinstance(push, dict) else None
        if kind not in (wire.PUSH_RUN, wire.PUSH_TURN, wire.PUSH_BATCH, wire.PUSH_CANCEL) or push.get("protocol") != wire.PROTOCOL_VERSION:
            return problem(415, "unsupported", f"protocol {wire.PROTOCOL_VERSION} with type run, turn, batch or cancel is spoken here")
        if kind == wire.PUSH_CANCEL:
            return self._cancel(push)
        if not self.lifespan.started:
            try:
                self.host.lifespan = await self.lifespan.start()
            except LifespanSetupError as error:
                return problem(503, error.code, str(error))
        return await (self._batch(push, received) if kind == wire.PUSH_BATCH else self._run(push, received))

    @property
    def definitions(self) -> list[TaskDefinition]:
        """The tasks that are served."""
        return list(self._definitions.values())

    # ---- work

    def begin(self, item: Any, base: str, received: float, settle: Callable[[Execution, Outcome], None]) -> Execution | Outcome:
        """Start one attempt, or say what it comes to without. `settle` is called once with what a started one came to."""
        if (wrong := _malformed(item)) is not None:
            return Refuse(400, "malformed", wrong)
        if self.draining:
            return Refuse(503, "draining", "the endpoint is shutting down")
        definition = self._definitions.get(item["name"])
        if definition is None:
            return Refuse(404, "unknown_handler", f"version {self.version} has no handler named {item['name']!r}")
        if (item["id"], item["attempt"]) in self.host.running:
            self._not_coming(definition, item)
            return Refuse(409, "already_running", f"attempt {item['attempt']} of {item['id']} is running here")
        if asyncio.get_running_loop().time() >= received + item["timeout_ms"] / 1000:
            self._not_coming(definition, item)
            return timed_out(item["timeout_ms"])  # its time went by while the batch's other items had the slots
        if "refs" in item and (wrong := malformed_refs(item)) is not None:
            self._not_coming(definition, item)
            return Refuse(400, "malformed", wrong)
        if definition.gatherer is not None:
            settle = definition.gatherer.watched(item, settle)
        if definition.settings.retry is not None:
            settle = paced(settle, definition.settings, item)
        if definition.durability is None and ("turn" in item or item.get("type") == wire.PUSH_TURN):
            return Refuse(400, "malformed", f"{item['name']} is no durable task: it takes runs, not turns")
        if (durability := definition.durability) is None:
            execution = Execution(self.host, definition.function, definition.task_name, item, base, settle)
        elif (wrong := malformed_turn(item, durability.mode)) is not None:
            return Refuse(400, "malformed", wrong)
        elif durability.mode == "state":
            execution = StateExecution(self.host, definition.function, definition.task_name, item, base, settle)
        else:
            execution = TurnExecution(self.host, definition.function, definition.task_name, item, base, settle, durability.checkpoint)
        execution.start(received)
        return execution

    def _not_coming(self, definition: TaskDefinition, item: wire.RunItem) -> None:
        if definition.gatherer is not None:
            definition.gatherer.left(item)

    async def _run(self, push: Any, received: float) -> Response:
        settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def settle(_: Execution, outcome: Outcome) -> None:
            if not settled.done():
                settled.set_result(outcome)

        begun = self.begin(push, str(push.get("api", "")), received, settle)
        if not isinstance(begun, Execution):
            return to_response(begun)
        try:
            return to_response(await settled)
        except asyncio.CancelledError:
            if self._cut_off():
                return to_response(begun.leave())
            begun.stop("the request was abandoned")
            raise

    def _cut_off(self) -> bool:
        """Whether a request is cancelled because the endpoint's time to end is up: it is answered all the same."""
        return self.draining or CUT_OFF.get()()

    async def _batch(self, push: Any, received: float) -> Response:
        items = push.get("items")
        if not isinstance(items, list):
            return problem(400, "malformed", "a batch has a list of items")
        concurrency = 1 if push.get("ordered") else self.host.worker.slots
        batch = Batch(items, lambda item, settle: self.begin(item, str(push.get("api", "")), received, settle), concurrency)
        try:
            first = await batch.some()
        except asyncio.CancelledError:
            if self._cut_off():
                return to_response(SHUTTING_DOWN)
            raise
        headers = (("content-type", wire.MEDIA_NDJSON),)
        return Response(200, headers, first if batch.finished else batch.rest(first))

    def _cancel(self, push: Any) -> Response:
        execution = self.host.running.get((str(push.get("id")), int(push.get("attempt") or 0)))
        if execution is not None:
            execution.stop(str(push.get("reason") or "cancelled"))
        return Response(204)

    # ---- the manifest

    def manifest(self, challenge: str = "") -> wire.Manifest:
        """What the endpoint offers, as it answers a signed GET."""
        slots = self.host.worker.slots
        manifest: wire.Manifest = {
            "protocol": {"min": wire.PROTOCOL_VERSION, "max": wire.PROTOCOL_VERSION},
            "sdk": SDK,
            "version": self.version,
            "challenge": challenge,
            "features": list(FEATURES),
            "limits": {"request_bytes": REQUEST_BYTES_MAX, "concurrency": slots},
            "batch": {"max_items": BATCH_ITEMS_MAX, "max_bytes": BATCH_BYTES_MAX, "concurrency": slots},
            "handlers": self._entries,
        }
        if self.verifier is not None:
            manifest["verified"] = self.verifier.scheme
        return manifest

    def _manifest(self, challenge: str) -> Response:
        return Response(200, (("content-type", wire.MEDIA_MANIFEST),), dump_json(self.manifest(challenge)))

    def _checksum(self) -> str:
        entries = sorted(self._entries, key=lambda entry: entry["name"])
        versions = sorted(
            {definition.workflow.name: definition.workflow.version or "" for definition in self._definitions.values()}.values()
        )
        return hashlib.sha256(dump_json([entries, versions])).hexdigest()[:12]


def _malformed(item: Any) -> str | None:
    if not isinstance(item, dict):
        return "a run is an object"
    for name, kind in _RUN_MEMBERS:
        if item.get(name).__class__ is not kind:
            return f"a run's `{name}` is {'a string' if kind is str else 'a whole number'}"
    return None


def _with(response: Response, header: tuple[str, str]) -> Response:
    return Response(response.status, (*response.headers, header), response.body)
