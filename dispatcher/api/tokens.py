"""/v1/tokens: making, listing and revoking API tokens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from dispatcher.api.auth import EVERYTHING
from dispatcher.api.credentials import PUBLIC_ID, new_token
from dispatcher.api.decoding import duration
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.errors import problem
from dispatcher.store import tokens
from dispatcher.store.tokens import TokenSummary

SCOPES: Final = frozenset({
    "runs:read", "runs:write", "events:read", "events:write", "endpoints:read", "endpoints:write", "webhooks:read",
    "webhooks:write", "tokens:write", "audit:read", EVERYTHING,
})  # fmt: skip
"""What a token may be allowed; `*` is everything, also what later versions add."""
DEFAULT_LIFE: Final = timedelta(days=365)


class TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    """A token to make. It lives for `expires_in` (a duration), a year where nothing is said."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    scopes: Annotated[list[str], Meta(min_length=1, max_length=20)] = msgspec.field(default_factory=lambda: [EVERYTHING])
    expires_in: str | None = None


class TokenView(msgspec.Struct, frozen=True):
    """A token without its secret. `last_used_at` is exact to an hour."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class TokenCreated(msgspec.Struct, frozen=True):
    """A new token. `token` is shown this once."""

    id: str
    name: str
    token: str
    tenant: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime


class TokenPage(msgspec.Struct, frozen=True):
    """Tokens by id, revoked ones included."""

    rows: list[TokenView]
    next_cursor: str | None


_BODY: Final = msgspec.json.Decoder(TokenBody)


async def create_token(call: Call) -> Answer:
    """Make a token for the tenant of this one, with no scope this one does not have."""
    body: TokenBody = await call.json(_BODY)
    scopes = sorted(set(body.scopes))
    for scope in scopes:
        if scope not in SCOPES:
            raise problem("invalid_value", f"scopes: {scope!r} is none of {', '.join(sorted(SCOPES))}", field="scopes")
        if not call.caller.may(scope):
            raise problem("forbidden", f"this token does not have the scope {scope}, and cannot give it away")
    now = call.services.clock.now()
    expires = now + (duration(body.expires_in, "expires_in") or DEFAULT_LIFE)
    made = new_token()
    await tokens.create(call.services.database, call.tenant_id, made.public_id, made.secret_hash, body.name, scopes, now, expires)
    return json_answer(201, TokenCreated(made.public_id, body.name, made.text, call.caller.tenant, scopes, now, expires))


async def list_tokens(call: Call) -> Answer:
    """Tokens of the tenant, without their secrets."""
    query: PageQuery = call.query
    after = position("tokens", query, str) or ""
    found = await tokens.page(call.services.database, call.tenant_id, after, query.limit + 1)
    return page("tokens", query, found, _show, lambda row: row.public_id)


async def revoke_token(call: Call) -> Answer:
    """Revoke a token: at once in this process, within seconds in all."""
    public_id = call.path["token_id"]
    known = PUBLIC_ID.fullmatch(public_id) is not None
    if not known or not await tokens.revoke(call.services.database, call.tenant_id, public_id, call.services.clock.now()):
        raise problem("not_found", f"there is no token {public_id[:100]!r}")
    call.guard.forget(public_id)
    return Answer(204, b"", ())


def _show(row: TokenSummary) -> TokenView:
    return TokenView(row.public_id, row.name, row.scopes, row.created_at, row.expires_at, row.revoked_at, row.last_used_at)


ROUTES: Final = (
    Route(
        "POST", "/v1/tokens", create_token, "tokens:write", {201: TokenCreated}, body=TokenBody,
        problems=("invalid_json", "invalid_value", "unknown_field", "forbidden"),
    ),
    Route("GET", "/v1/tokens", list_tokens, "tokens:write", {200: TokenPage}, PageQuery),
    Route("DELETE", "/v1/tokens/{token_id}", revoke_token, "tokens:write", {204: None}, problems=("not_found",)),
)  # fmt: skip
