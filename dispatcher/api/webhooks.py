"""/v1/webhooks: addresses that receive webhooks, and their secrets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher.api.decoding import duration
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.views import raw
from dispatcher.errors import problem
from dispatcher.runtime.webhooks.management import Changes, Trial
from dispatcher.runtime.webhooks.samples import Sample
from dispatcher.store import webhooks
from dispatcher.store.webhooks import WebhookRow, WebhookSecretRow
from webhooks import PROVIDERS

Expression = Annotated[str, Meta(max_length=1_024, description="CEL over `input` and `headers` (lower-case names)")]
Secret = Annotated[str, Meta(min_length=1, max_length=8_192)]


class RateLimit(msgspec.Struct, forbid_unknown_fields=True):
    """Deliveries a webhook takes. Where several dispatchers serve, each takes its share of both, counted for itself."""

    per_second: float
    burst: int


class SuccessResponse(msgspec.Struct, forbid_unknown_fields=True):
    """What an accepted delivery is answered instead of its id; an unrouted one gets the same with 202."""

    status: Annotated[int, Meta(ge=200, le=299)] = 200
    body: Annotated[str, Meta(max_length=4_096)] = ""
    content_type: Annotated[str, Meta(pattern="^[\\x21-\\x7e][\\x20-\\x7e]{0,126}$")] = "text/plain; charset=utf-8"


class SampleBody(msgspec.Struct, forbid_unknown_fields=True):
    """A delivery to try things with. `form` sends the payload's members as form fields."""

    payload: Any
    headers: dict[str, str] = {}
    form: bool = False


class WebhookBody(msgspec.Struct, forbid_unknown_fields=True):
    """A webhook to make. `source` is a known sender, or "generic" with `auth` that describes it. Secrets come newest first.

    `params` are what some senders need besides; `repeat_window` is how long the same body counts as a repetition where there is no id.
    """

    name: str
    source: str
    secrets: list[Secret] = []
    event_key_expression: Expression | UnsetType = UNSET
    scope_expression: Expression | UnsetType | None = UNSET
    filter_expression: Expression | UnsetType | None = UNSET
    static_payload: dict[str, Any] | UnsetType | None = UNSET
    auth: dict[str, Any] | None = None
    params: dict[str, str] | UnsetType = UNSET
    response: SuccessResponse | UnsetType | None = UNSET
    max_body_bytes: int | UnsetType = UNSET
    rate_limit: RateLimit | UnsetType = UNSET
    repeat_window: str | UnsetType = UNSET
    sample: SampleBody | None = None


class WebhookPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a webhook. null takes a member away."""

    event_key_expression: Expression | UnsetType = UNSET
    scope_expression: Expression | UnsetType | None = UNSET
    filter_expression: Expression | UnsetType | None = UNSET
    static_payload: dict[str, Any] | UnsetType | None = UNSET
    params: dict[str, str] | UnsetType = UNSET
    response: SuccessResponse | UnsetType | None = UNSET
    max_body_bytes: int | UnsetType = UNSET
    rate_limit: RateLimit | UnsetType = UNSET
    repeat_window: str | UnsetType = UNSET
    sample: SampleBody | None = None


class SecretBody(msgspec.Struct, forbid_unknown_fields=True):
    """A secret to add; one is made where none is given. With an `overlap` the others end after it, else they go on until removed."""

    secret: Secret | None = None
    overlap: str | None = None


class TestBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to send; the sender's usual sample where nothing is said."""

    sample: SampleBody | None = None


class WebhooksQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which webhooks."""

    name: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


class SecretView(msgspec.Struct, frozen=True):
    """A secret by its number. `last_used_at` is exact to a minute. One the sender told itself is shown until it has been used."""

    number: int
    created_at: datetime
    not_after: datetime | None
    last_used_at: datetime | None
    active: bool
    secret: str | UnsetType = UNSET


class TrialView(msgspec.Struct, frozen=True):
    """What the expressions make of a sample. `errors` are by member."""

    event_key: str | None
    scope: str | None
    passes: bool | None
    errors: dict[str, dict[str, str]]
    warnings: list[str]


class WebhookView(msgspec.Struct, frozen=True):
    """A webhook; `url` is what its sender is given. `sample` is there when it was just saved."""

    id: str
    name: str
    source: str
    url: str
    event_key_expression: str
    scope_expression: str | None
    filter_expression: str | None
    static_payload: Raw
    auth: Raw
    params: Raw
    response: Raw
    max_body_bytes: int
    rate_limit: RateLimit
    repeat_window: str
    note: str
    secrets: list[SecretView]
    created_at: datetime
    updated_at: datetime
    sample: TrialView | UnsetType = UNSET


class SecretAdded(msgspec.Struct, frozen=True):
    """A new secret. `secret` is there, this once, when it was made here."""

    number: int
    secret: str | UnsetType = UNSET


class WebhookPage(msgspec.Struct, frozen=True):
    """Webhooks by name, without their secrets."""

    rows: list[WebhookView]
    next_cursor: str | None


class TestResult(msgspec.Struct, frozen=True):
    """What a sample became. `answer` is what its sender would have been answered."""

    status: int
    outcome: str
    reason: str | None
    detail: str | None
    delivery_id: str | None
    event_id: str | None
    event_key: str | None
    scope: str | None
    runs: list[str]
    answer: str


_CREATE: Final = msgspec.json.Decoder(WebhookBody)
_PATCH: Final = msgspec.json.Decoder(WebhookPatch)
_SECRET: Final = msgspec.json.Decoder(SecretBody)
_TEST: Final = msgspec.json.Decoder(TestBody)


async def create_webhook(call: Call) -> Answer:
    """Make a webhook; answers its address, and what its expressions make of a sample."""
    body: WebhookBody = await call.json(_CREATE)
    changes = _changes(body)
    if body.auth is not None:
        changes = Changes({**changes.values, "auth": body.auth}, changes.sample)
    row, trial = await call.services.webhooks.management.create(call.tenant_id, body.name, body.source, changes, body.secrets)
    return json_answer(201, await _document(call, row, trial))


async def list_webhooks(call: Call) -> Answer:
    """Webhooks by name."""
    query: WebhooksQuery = call.query
    after = position("webhooks", query, str) or ""
    found = await webhooks.page(call.services.database, call.tenant_id, after, query.name or None, query.source or None, query.limit + 1)
    return page("webhooks", query, found, lambda row: _show(call, row, []), lambda row: row.name)


async def get_webhook(call: Call) -> Answer:
    """One webhook, with when each of its secrets was last used."""
    return json_answer(200, await _document(call, await webhook_row(call), None))


async def patch_webhook(call: Call) -> Answer:
    """Change a webhook; answers what its expressions make of a sample now."""
    body: WebhookPatch = await call.json(_PATCH)
    row, trial = await call.services.webhooks.management.change(call.tenant_id, call.path["name"], _changes(body))
    return json_answer(200, await _document(call, row, trial))


async def delete_webhook(call: Call) -> Answer:
    """Remove a webhook. Its address then answers as one that never was."""
    await call.services.webhooks.management.delete(call.tenant_id, call.path["name"])
    return Answer(204, b"", ())


async def add_webhook_secret(call: Call) -> Answer:
    """Add a secret beside the active ones, so that the sender can be switched over without a refusal."""
    body: SecretBody = await call.json(_SECRET)
    overlap = duration(body.overlap, "overlap")
    number, made = await call.services.webhooks.management.add_secret(call.tenant_id, call.path["name"], body.secret, overlap)
    return json_answer(201, SecretAdded(number, made if made is not None else UNSET))


async def remove_webhook_secret(call: Call) -> Answer:
    """Remove a secret: what it signed is refused from now on."""
    text = call.path["number"]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    await call.services.webhooks.management.remove_secret(call.tenant_id, call.path["name"], number)
    return Answer(204, b"", ())


async def test_webhook(call: Call) -> Answer:
    """Sign a sample with the webhook's own secret and take it in as any other request."""
    body: TestBody = await call.json(_TEST)
    await webhook_row(call)
    service = call.services.webhooks
    tested = await service.test(await service.hook(call.caller.tenant, call.path["name"]), _sample(body.sample))
    received = tested.received
    delivery, accepted = received.delivery, received.accepted
    result = TestResult(
        status=tested.status,
        outcome=delivery.status if delivery is not None else "rejected",
        reason=(delivery.reason or None) if delivery is not None else "rate_limited",
        detail=(delivery.detail or None) if delivery is not None else None,
        delivery_id=accepted.id if accepted is not None else None,
        event_id=accepted.event_id if accepted is not None else None,
        event_key=delivery.event_key if delivery is not None else None,
        scope=delivery.scope if delivery is not None else None,
        runs=accepted.run_ids if accepted is not None else [],
        answer=received.response.body.decode("utf-8", "replace"),
    )
    return json_answer(200, result)


def _changes(body: WebhookBody | WebhookPatch) -> Changes:
    """What a body says; what it does not say is left out."""
    given = {name: getattr(body, name) for name in WebhookPatch.__struct_fields__ if name != "sample"}
    values = {name: msgspec.to_builtins(value) for name, value in given.items() if value is not UNSET}
    if "repeat_window" in values:
        values["repeat_window"] = duration(values["repeat_window"], "repeat_window")
    return Changes(values, _sample(body.sample))


def _sample(body: SampleBody | None) -> Sample | None:
    if body is None:
        return None
    if body.form and not isinstance(body.payload, dict):
        raise problem("invalid_value", "sample.payload: the fields of a form are an object", field="sample.payload")
    return Sample(body.payload, body.headers, body.form)


async def webhook_row(call: Call) -> WebhookRow:
    """The webhook a path names. Raises Problem unknown_webhook."""
    return await call.services.webhooks.management.row(call.tenant_id, call.path["name"])


async def _document(call: Call, row: WebhookRow, trial: Trial | None) -> WebhookView:
    found = await webhooks.secrets(call.services.database, call.tenant_id, row.id)
    shown = _show(call, row, found)
    if trial is None:
        return shown
    sample = TrialView(trial.event_key, trial.scope, trial.passes, trial.errors, trial.warnings)
    return msgspec.structs.replace(shown, sample=sample)


def _show(call: Call, row: WebhookRow, secrets: Sequence[WebhookSecretRow]) -> WebhookView:
    return WebhookView(
        id=row.id,
        name=row.name,
        source=row.source,
        url=call.services.webhooks.url(call.caller.tenant, row.name),
        event_key_expression=row.event_key,
        scope_expression=row.scope,
        filter_expression=row.filter,
        static_payload=raw(row.static_payload),
        auth=raw(row.auth),
        params=raw(row.params),
        response=raw(row.response),
        max_body_bytes=row.body_bytes,
        rate_limit=RateLimit(row.rate, row.burst),
        repeat_window=f"{row.repeat_ms / 1000:g}s",
        note=PROVIDERS[row.source].note if row.source in PROVIDERS else "",
        secrets=[_show_secret(call, secret) for secret in secrets],
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _show_secret(call: Call, row: WebhookSecretRow) -> SecretView:
    active = row.not_after is None or call.services.clock.now() < row.not_after
    told = row.captured and row.last_used_at is None and call.caller.may("webhooks:write")
    text = call.services.webhooks.sources.open(call.tenant_id, row) if told else UNSET
    return SecretView(row.number, row.created_at, row.not_after, row.last_used_at, active, text)


BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field")
NO_SUCH: Final = ("unknown_webhook",)
ONE: Final = "/v1/webhooks/{name}"

ROUTES: Final = (
    Route("GET", "/v1/webhooks", list_webhooks, "webhooks:read", {200: WebhookPage}, WebhooksQuery),
    Route(
        "POST", "/v1/webhooks", create_webhook, "webhooks:write", {201: WebhookView}, body=WebhookBody,
        problems=(*BAD_BODY, "invalid_expression", "webhook_exists"),
    ),
    Route("GET", ONE, get_webhook, "webhooks:read", {200: WebhookView}, problems=NO_SUCH),
    Route(
        "PATCH", ONE, patch_webhook, "webhooks:write", {200: WebhookView}, body=WebhookPatch,
        problems=(*BAD_BODY, *NO_SUCH, "invalid_expression"),
    ),
    Route("DELETE", ONE, delete_webhook, "webhooks:write", {204: None}, problems=NO_SUCH),
    Route(
        "POST", f"{ONE}/secrets", add_webhook_secret, "webhooks:write", {201: SecretAdded}, body=SecretBody,
        problems=(*BAD_BODY, *NO_SUCH, "too_many_secrets"),
    ),
    Route(
        "DELETE", ONE + "/secrets/{number}", remove_webhook_secret, "webhooks:write", {204: None}, problems=(*NO_SUCH, "not_found"),
    ),
    Route(
        "POST", f"{ONE}/test", test_webhook, "webhooks:write", {200: TestResult}, body=TestBody,
        problems=(*BAD_BODY, *NO_SUCH, "not_signable"),
    ),
)  # fmt: skip
