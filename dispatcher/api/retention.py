"""/v1/retention: for how long a tenant's history is kept."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.errors import problem
from dispatcher.store import retention


class RetentionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Days finished runs and events are kept; null for as long as the server keeps them."""

    days: Annotated[int, Meta(ge=1)] | None


class Retention(msgspec.Struct, frozen=True):
    """`days` as the tenant has set them, null where it has not; `effective_days` is what holds."""

    days: int | None
    effective_days: int


_BODY: Final = msgspec.json.Decoder(RetentionBody)


async def get_retention(call: Call) -> Answer:
    """For how many days this tenant's history is kept."""
    return json_answer(200, _shown(call, await retention.keeps(call.services.database, call.tenant_id)))


async def put_retention(call: Call) -> Answer:
    """Keep this tenant's history for so many days, no more than the server does; what is older is deleted within minutes."""
    body: RetentionBody = await call.json(_BODY)
    most = call.services.settings.retention_days
    if body.days is not None and body.days > most:
        raise problem("invalid_value", f"days: the server keeps history for {most} days", field="days")
    await retention.keep(call.services.database, call.tenant_id, body.days)
    return json_answer(200, _shown(call, body.days))


def _shown(call: Call, days: int | None) -> Retention:
    most = call.services.settings.retention_days
    return Retention(days, min(days or most, most))


_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8")

ROUTES: Final = (
    Route("GET", "/v1/retention", get_retention, "runs:read", {200: Retention}),
    Route(
        "PUT", "/v1/retention", put_retention, "tokens:write", {200: Retention}, body=RetentionBody,
        problems=(*_BAD_BODY, "body_too_large", "unsupported_media_type"),
    ),
)  # fmt: skip
