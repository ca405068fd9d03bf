"""/v1/endpoints: registering the URLs that run handlers, and seeing how they do."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher import ids
from dispatcher.api.decoding import duration
from dispatcher.api.edge import Answer, Call, NoQuery, Route, json_answer
from dispatcher.api.listing import Node, PageQuery, Small, page, position
from dispatcher.api.views import raw
from dispatcher.engine.definitions import NAME
from dispatcher.errors import problem
from dispatcher.store import catalog
from dispatcher.store.catalog import Delivery, DeliveryKey, EndpointState, EndpointVersion

Slots = Annotated[int, Meta(ge=1, le=100_000, description="attempts the endpoint may have open at once")]
Version = Annotated[str, Meta(min_length=1, max_length=200, pattern="^[^\\x00-\\x1f\\x7f]*$")]
Auth = Annotated[
    dict[str, Any],
    Meta(
        description="what every request to the endpoint carries beside its signature: "
        '`{"type": "bearer", "token"}` or `{"type": "header", "name", "value"}`. Stored sealed and never shown. '
        "Where it is absent an endpoint keeps what it has, as long as its URL stays on the same scheme, host and port; "
        '`{"type": "none"}` removes it.'
    ),
]
LabelName = Annotated[str, Meta(min_length=1, max_length=200)]
Health = Literal["healthy", "paused", "draining", "drained", "broken", "retired"]

_MOST_LABELS: Final = 100
_HEALTH: Final[dict[str, Health]] = {"closed": "healthy", "open": "broken", "retired": "retired"}


class PutEndpoint(msgspec.Struct, forbid_unknown_fields=True):
    """An endpoint to register. Without `handlers` its manifest is asked for by a signed GET. `latest` may only be true."""

    url: Annotated[str, Meta(min_length=1, max_length=2_000)]
    version: Version | None = None
    latest: bool = True
    slots: Slots | None = None
    durable_slots: Slots | None = None
    labels: dict[LabelName, Any] | None = None
    auth: Auth | None = None
    handlers: list[Any] | None = None


class PatchEndpoint(msgspec.Struct, forbid_unknown_fields=True):
    """What to change. A paused endpoint gets no new attempts; a draining one only those of what has to stay there."""

    paused: bool | None = None
    draining: bool | None = None
    slots: Slots | None = None
    durable_slots: Slots | None = None
    labels: dict[LabelName, Any] | None = None


class RotateBody(msgspec.Struct, forbid_unknown_fields=True):
    """How long the old secret goes on signing beside the new one, e.g. "24h"."""

    overlap: str | None = None


class ForceQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Whether to go on although attempts are running."""

    force: bool = False


class DeliveriesQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which attempts."""

    status: str | None = None


class EndpointView(msgspec.Struct, frozen=True):
    """An endpoint: what it is, how it does, and how many of its slots are filled. `remaining` counts the runs that go on there while it is
    draining, and is null otherwise; with none left it is `drained`.
    """

    id: str
    name: str
    url: str
    version: str
    slots: int
    in_use: int
    durable_slots: int | None
    durable_in_use: int
    labels: Raw
    paused: bool
    draining: bool
    remaining: int | None
    static: bool
    health: Health
    circuit_code: str | None
    circuit_since: datetime | None
    probe_at: datetime | None
    verified: str | None
    features: list[str]
    handlers: list[str]
    created_at: datetime
    updated_at: datetime


class Registered(msgspec.Struct, frozen=True):
    """An endpoint as it was registered. `secret` is shown this once, when the endpoint is new. `warnings` say what its workflows share with
    others and do not declare the same.
    """

    id: str
    endpoint: str
    name: str
    url: str
    version: str
    slots: int
    durable_slots: int | None
    labels: dict[str, Any]
    static: bool
    verified: str | None
    handlers: list[str]
    changed: bool
    diff: dict[str, list[str]]
    warnings: list[str]
    secret: str | UnsetType = UNSET


class Ping(msgspec.Struct, frozen=True):
    """What became of asking an endpoint for a sign of life."""

    ok: bool
    latency_ms: float
    version: str
    error: dict[str, str] | None


class Rotation(msgspec.Struct, frozen=True):
    """A new secret, shown this once, and how long the old one still signs."""

    secret: str
    previous_until: datetime


class VersionView(msgspec.Struct, frozen=True):
    """One version of an endpoint, and how many tasks are running on it, or are pinned to it and will go on there."""

    version: str
    url: str
    current: bool
    open_tasks: int
    handlers: list[str]
    registered_at: datetime
    retired_at: datetime | None


class DeliveryView(msgspec.Struct, frozen=True):
    """One attempt made at an endpoint."""

    id: str
    run_id: str
    task_id: str
    workflow: str | None
    number: int
    status: str
    http_status: int | None
    latency_ms: int | None
    error: Raw
    endpoint_version: str
    started_at: datetime
    finished_at: datetime


class EndpointPage(msgspec.Struct, frozen=True):
    """Endpoints by name."""

    rows: list[EndpointView]
    next_cursor: str | None


class VersionPage(msgspec.Struct, frozen=True):
    """Versions, the newest registration first."""

    rows: list[VersionView]
    next_cursor: str | None


class DeliveryPage(msgspec.Struct, frozen=True):
    """Attempts, the latest end first."""

    rows: list[DeliveryView]
    next_cursor: str | None


class _Handler(msgspec.Struct):
    name: str


class _Manifest(msgspec.Struct):
    """What is told of a manifest; of the rest, which may be large, nothing is made."""

    verified: str | None = None
    features: list[str] = []
    handlers: list[_Handler] = []


_PUT: Final = msgspec.json.Decoder(PutEndpoint)
_PATCH: Final = msgspec.json.Decoder(PatchEndpoint)
_ROTATE: Final = msgspec.json.Decoder(RotateBody)
_MANIFEST: Final = msgspec.json.Decoder(_Manifest)


async def put_endpoint(call: Call) -> Answer:
    """Register or update an endpoint; answers what it serves, what changed, and the secret of a new one."""
    name = call.path["name"]
    if not NAME.fullmatch(name):
        raise problem("invalid_value", "name: 1 to 200 letters, digits and _ . : - (not starting with punctuation)", field="name")
    body: PutEndpoint = await call.json(_PUT)
    if not body.latest:
        raise problem("invalid_value", "latest: the version registered last is always the one that gets new work", field="latest")
    document = await call.services.registration.put(
        call.tenant_id,
        name,
        url=body.url,
        version=body.version,
        slots=body.slots,
        labels=_labels(body.labels),
        auth=body.auth,
        handlers=body.handlers,
        durable_slots=body.durable_slots,
    )
    return json_answer(201 if "secret" in document else 200, document)


async def list_endpoints(call: Call) -> Answer:
    """Endpoints by name, with their health and how many of their slots are filled."""
    query: PageQuery = call.query
    after = position("endpoints", query, str) or ""
    found = await catalog.endpoints(call.services.database, call.tenant_id, after, query.limit + 1)
    return page("endpoints", query, found, _show, lambda row: row.name)


async def get_endpoint(call: Call) -> Answer:
    """One endpoint, with its health and how many of its slots are filled."""
    return json_answer(200, _show(await _endpoint(call)))


async def patch_endpoint(call: Call) -> Answer:
    """Pause, drain or resume an endpoint, change its slots or its labels. A paused one gets no new attempts; those open go on. A draining
    one is sent the turns of durable tasks that began there and the tasks of runs that stay there, and nothing else.
    """
    body: PatchEndpoint = await call.json(_PATCH)
    if all(getattr(body, name) is None for name in body.__struct_fields__):
        raise problem("invalid_value", f"the body: give at least one of {', '.join(body.__struct_fields__)}")
    await call.services.registration.patch(
        call.tenant_id,
        call.path["name"],
        paused=body.paused,
        draining=body.draining,
        slots=body.slots,
        durable_slots=body.durable_slots,
        labels=_labels(body.labels),
    )
    return json_answer(200, _show(await _endpoint(call)))


async def delete_endpoint(call: Call) -> Answer:
    """Remove an endpoint. Its history stays; one with running attempts is refused unless forced."""
    await call.services.registration.delete(call.tenant_id, call.path["name"], force=call.query.force)
    return Answer(204, b"", ())


async def ping_endpoint(call: Call) -> Answer:
    """Ask an endpoint for a sign of life now."""
    return json_answer(200, await call.services.registration.ping(call.tenant_id, call.path["name"]))


async def rotate_secret(call: Call) -> Answer:
    """Give an endpoint a new secret. The old one signs beside it until the overlap ends."""
    body: RotateBody = await call.json(_ROTATE)
    overlap = duration(body.overlap, "overlap")
    return json_answer(200, await call.services.registration.rotate(call.tenant_id, call.path["name"], overlap=overlap))


async def cancel_rotation(call: Call) -> Answer:
    """Go back to the old secret while it still signs."""
    await call.services.registration.cancel_rotation(call.tenant_id, call.path["name"])
    return Answer(204, b"", ())


async def list_versions(call: Call) -> Answer:
    """Versions of an endpoint, the newest registration first, with how many attempts are running on each."""
    endpoint, query = await _endpoint(call), call.query
    name = f"versions {endpoint.id}"
    before = position(name, query, tuple[datetime, str])
    found = await catalog.versions(call.services.database, call.tenant_id, endpoint.name, before, query.limit + 1)
    return page(name, query, found, _show_version, lambda row: (row.registered_at, row.version))


async def list_deliveries(call: Call) -> Answer:
    """Attempts made at an endpoint, the latest end first."""
    endpoint, query = await _endpoint(call), call.query
    name = f"deliveries {endpoint.id}"
    key = position(name, query, tuple[datetime, str, Node, Small])
    before = DeliveryKey(*key) if key is not None else None
    found = await catalog.deliveries(call.services.database, call.tenant_id, endpoint.id, query.status, before, query.limit + 1)
    return page(name, query, found, _show_delivery, lambda row: (row.finished_at, row.run_id, row.node, row.number))


async def _endpoint(call: Call) -> EndpointState:
    name = call.path["name"]
    found = await catalog.endpoint(call.services.database, call.tenant_id, name) if NAME.fullmatch(name) else None
    if found is None:
        raise problem("unknown_endpoint", f"there is no endpoint {name[:200]!r}")
    return found


def _labels(labels: dict[str, Any] | None) -> dict[str, Any] | None:
    if labels is None:
        return None
    if len(labels) > _MOST_LABELS:
        raise problem("invalid_value", f"labels: at most {_MOST_LABELS}", field="labels")
    for name, value in labels.items():
        if not isinstance(value, str | int | float | bool) or len(str(value)) > 200:
            raise problem(
                "invalid_value", f"labels.{name}: a text of at most 200 characters, a number or a boolean", field=f"labels.{name}"
            )
    return labels


def _show(row: EndpointState) -> EndpointView:
    manifest = _MANIFEST.decode(row.manifest)
    return EndpointView(
        id=row.id,
        name=row.name,
        url=row.url,
        version=row.version,
        slots=row.slots,
        in_use=row.in_use,
        durable_slots=row.durable_slots,
        durable_in_use=row.durable_in_use,
        labels=raw(row.labels),
        paused=row.paused,
        draining=row.draining,
        remaining=row.remaining,
        static=row.static,
        health=_health(row),
        circuit_code=row.circuit_code,
        circuit_since=row.circuit_since,
        probe_at=row.probe_at,
        verified=manifest.verified,
        features=manifest.features,
        handlers=_names(manifest),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _health(row: EndpointState) -> Health:
    if row.paused:
        return "paused"
    if row.circuit == "closed" and row.draining:
        return "draining" if row.remaining else "drained"
    return _HEALTH[row.circuit]


def _names(manifest: _Manifest) -> list[str]:
    return sorted(handler.name for handler in manifest.handlers)


def _show_version(row: EndpointVersion) -> VersionView:
    names = _names(_MANIFEST.decode(row.manifest))
    return VersionView(row.version, row.url, row.current, row.open_tasks, names, row.registered_at, row.retired_at)


def _show_delivery(row: Delivery) -> DeliveryView:
    return DeliveryView(
        id=ids.attempt_id(row.run_id, row.node, row.number),
        run_id=row.run_id,
        task_id=ids.task_id(row.run_id, row.node),
        workflow=row.workflow,
        number=row.number,
        status=row.status,
        http_status=row.http_status,
        latency_ms=row.latency_ms,
        error=raw(row.error),
        endpoint_version=row.endpoint_version,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field")
_NO_SUCH: Final = ("unknown_endpoint",)

ROUTES: Final = (
    Route("GET", "/v1/endpoints", list_endpoints, "endpoints:read", {200: EndpointPage}, PageQuery),
    Route(
        "PUT", "/v1/endpoints/{name}", put_endpoint, "endpoints:write", {201: Registered, 200: Registered}, body=PutEndpoint,
        problems=(*_BAD_BODY, "destination_blocked", "version_exists", "discovery_unreachable", "too_many_crons"),
    ),
    Route("GET", "/v1/endpoints/{name}", get_endpoint, "endpoints:read", {200: EndpointView}, problems=_NO_SUCH),
    Route(
        "PATCH", "/v1/endpoints/{name}", patch_endpoint, "endpoints:write", {200: EndpointView}, body=PatchEndpoint,
        problems=(*_BAD_BODY, *_NO_SUCH),
    ),
    Route(
        "DELETE", "/v1/endpoints/{name}", delete_endpoint, "endpoints:write", {204: None}, ForceQuery,
        problems=(*_NO_SUCH, "endpoint_in_use"),
    ),
    Route("POST", "/v1/endpoints/{name}/ping", ping_endpoint, "endpoints:write", {200: Ping}, NoQuery, problems=_NO_SUCH),
    Route(
        "POST", "/v1/endpoints/{name}/secret/rotate", rotate_secret, "endpoints:write", {200: Rotation}, body=RotateBody,
        problems=(*_BAD_BODY, *_NO_SUCH, "rotation_in_progress"),
    ),
    Route(
        "DELETE", "/v1/endpoints/{name}/secret/rotate", cancel_rotation, "endpoints:write", {204: None},
        problems=(*_NO_SUCH, "no_rotation"),
    ),
    Route("GET", "/v1/endpoints/{name}/versions", list_versions, "endpoints:read", {200: VersionPage}, PageQuery, problems=_NO_SUCH),
    Route(
        "GET", "/v1/endpoints/{name}/deliveries", list_deliveries, "endpoints:read", {200: DeliveryPage}, DeliveriesQuery,
        problems=_NO_SUCH,
    ),
)  # fmt: skip
