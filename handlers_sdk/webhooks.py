"""Webhooks the dispatcher receives from other systems, and the client that manages them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from handlers_sdk.api import Api
from handlers_sdk.portal import PORTAL
from handlers_sdk.schemas import dump_json

_PAGE: Final = 1000
_GENERIC: Final = "generic"


class V1WebhookSourceName(StrEnum):
    """Senders that are much used. The dispatcher knows many more: any of their names may be given as text."""

    GENERIC = "generic"
    GITHUB = "github"
    STRIPE = "stripe"
    SLACK = "slack"
    LINEAR = "linear"
    SVIX = "svix"


class V1WebhookHMACAlgorithm(StrEnum):
    """The hash of a keyed signature."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA512 = "sha512"
    MD5 = "md5"


class V1WebhookHMACEncoding(StrEnum):
    """How a signature is written."""

    HEX = "hex"
    BASE64 = "base64"
    BASE64URL = "base64url"


class V1WebhookHMACAuth(BaseModel):
    """The sender signs the body with a shared secret. Of a known sender only the secret is used: the rest is known."""

    signing_secret: str
    signature_header_name: str = "x-signature"
    algorithm: V1WebhookHMACAlgorithm = V1WebhookHMACAlgorithm.SHA256
    encoding: V1WebhookHMACEncoding = V1WebhookHMACEncoding.HEX
    prefix: str = ""


class V1WebhookAPIKeyAuth(BaseModel):
    """The sender sends a key in a header."""

    header_name: str
    api_key: str


class V1WebhookBasicAuth(BaseModel):
    """The sender sends a user name and a password."""

    username: str
    password: str


WebhookAuth = V1WebhookHMACAuth | V1WebhookAPIKeyAuth | V1WebhookBasicAuth


class V1WebhookSecret(BaseModel):
    """A secret by its number; `last_used_at` is exact to a minute."""

    model_config = ConfigDict(extra="allow")

    number: int
    created_at: datetime | None = None
    not_after: datetime | None = None
    last_used_at: datetime | None = None
    active: bool = True


class V1Webhook(BaseModel):
    """A webhook; `url` is what its sender is given. `sample`, on what was just saved, says what the expressions make of one."""

    model_config = ConfigDict(extra="allow")

    id: str
    name: str
    source: str
    url: str = ""
    event_key_expression: str = ""
    scope_expression: str | None = None
    filter_expression: str | None = None
    static_payload: dict[str, Any] | None = None
    secrets: list[V1WebhookSecret] = Field(default_factory=list)
    sample: dict[str, Any] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class V1WebhookList(BaseModel):
    """Webhooks by name."""

    rows: list[V1Webhook]


class WebhooksClient:
    """`dispatcher.webhooks`: what other systems send, as events. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def create(
        self,
        source_name: V1WebhookSourceName | str,
        name: str,
        event_key_expression: str,
        auth: WebhookAuth,
        scope_expression: str | None = None,
        static_payload: Mapping[str, Any] | None = None,
        *,
        filter_expression: str | None = None,
        params: Mapping[str, str] | None = None,
    ) -> V1Webhook:
        """Make a webhook. Expressions are CEL over `input` and `headers`; `params` are what some senders need besides."""
        body = _created(source_name, name, event_key_expression, auth, scope_expression, static_payload, filter_expression, params)
        return PORTAL.call(self._create(body))

    async def aio_create(
        self,
        source_name: V1WebhookSourceName | str,
        name: str,
        event_key_expression: str,
        auth: WebhookAuth,
        scope_expression: str | None = None,
        static_payload: Mapping[str, Any] | None = None,
        *,
        filter_expression: str | None = None,
        params: Mapping[str, str] | None = None,
    ) -> V1Webhook:
        """Make a webhook. Expressions are CEL over `input` and `headers`; `params` are what some senders need besides."""
        body = _created(source_name, name, event_key_expression, auth, scope_expression, static_payload, filter_expression, params)
        return await PORTAL.aio_call(self._create(body))

    def get(self, webhook_name: str) -> V1Webhook:
        """A webhook by its name."""
        return PORTAL.call(self._get(webhook_name))

    async def aio_get(self, webhook_name: str) -> V1Webhook:
        """A webhook by its name."""
        return await PORTAL.aio_call(self._get(webhook_name))

    def list(
        self,
        limit: int | None = None,
        offset: int | None = None,
        webhook_names: Sequence[str] | None = None,
        source_names: Sequence[V1WebhookSourceName | str] | None = None,
    ) -> V1WebhookList:
        """Webhooks by name: all of them, unless a limit is given."""
        return PORTAL.call(self._list(limit, offset or 0, webhook_names, source_names))

    async def aio_list(
        self,
        limit: int | None = None,
        offset: int | None = None,
        webhook_names: Sequence[str] | None = None,
        source_names: Sequence[V1WebhookSourceName | str] | None = None,
    ) -> V1WebhookList:
        """Webhooks by name: all of them, unless a limit is given."""
        return await PORTAL.aio_call(self._list(limit, offset or 0, webhook_names, source_names))

    def update(
        self,
        webhook_name: str,
        event_key_expression: str | None = None,
        scope_expression: str | None = None,
        static_payload: Mapping[str, Any] | None = None,
        *,
        filter_expression: str | None = None,
    ) -> V1Webhook:
        """Change what is given."""
        return PORTAL.call(self._update(webhook_name, event_key_expression, scope_expression, static_payload, filter_expression))

    async def aio_update(
        self,
        webhook_name: str,
        event_key_expression: str | None = None,
        scope_expression: str | None = None,
        static_payload: Mapping[str, Any] | None = None,
        *,
        filter_expression: str | None = None,
    ) -> V1Webhook:
        """Change what is given."""
        changes = self._update(webhook_name, event_key_expression, scope_expression, static_payload, filter_expression)
        return await PORTAL.aio_call(changes)

    def delete(self, webhook_name: str) -> V1Webhook:
        """Remove a webhook; answers what it was."""
        return PORTAL.call(self._delete(webhook_name))

    async def aio_delete(self, webhook_name: str) -> V1Webhook:
        """Remove a webhook; answers what it was."""
        return await PORTAL.aio_call(self._delete(webhook_name))

    async def _create(self, body: Mapping[str, Any]) -> V1Webhook:
        _, made = await self._api.request("POST", "/v1/webhooks", content=dump_json(body))
        return V1Webhook.model_validate(made)

    async def _get(self, name: str) -> V1Webhook:
        _, found = await self._api.request("GET", _path(name), repeatable=True)
        return V1Webhook.model_validate(found)

    async def _list(
        self, limit: int | None, offset: int, names: Sequence[str] | None, sources: Sequence[V1WebhookSourceName | str] | None
    ) -> V1WebhookList:
        filters: dict[str, str | int | Sequence[str]] = {"limit": _PAGE}
        if names is not None:
            filters["name"] = [*names]
        if sources is not None:
            filters["source"] = [_text(source) for source in sources]
        rows = await self._rows(filters, None if limit is None else offset + limit)
        return V1WebhookList(rows=rows[offset:] if limit is None else rows[offset : offset + limit])

    async def _rows(self, filters: dict[str, str | int | Sequence[str]], most: int | None) -> Sequence[V1Webhook]:
        found = V1WebhookList(rows=[]).rows
        while most is None or len(found) < most:
            _, page = await self._api.request("GET", "/v1/webhooks", params=filters, repeatable=True)
            found += V1WebhookList.model_validate(page).rows
            if page["next_cursor"] is None:
                break
            filters["cursor"] = page["next_cursor"]
        return found

    async def _update(
        self, name: str, event_key: str | None, scope: str | None, static_payload: Mapping[str, Any] | None, filter_: str | None
    ) -> V1Webhook:
        changes = _given(event_key_expression=event_key, scope_expression=scope, static_payload=static_payload, filter_expression=filter_)
        _, changed = await self._api.request("PATCH", _path(name), content=dump_json(changes), repeatable=True)
        return V1Webhook.model_validate(changed)

    async def _delete(self, name: str) -> V1Webhook:
        was = await self._get(name)
        await self._api.request("DELETE", _path(name))
        return was


def _created(
    source: V1WebhookSourceName | str,
    name: str,
    event_key: str,
    auth: WebhookAuth,
    scope: str | None,
    static_payload: Mapping[str, Any] | None,
    filter_: str | None,
    params: Mapping[str, str] | None,
) -> dict[str, Any]:
    source, secret = _text(source), _secret(auth)
    return _given(
        source=source,
        name=name,
        event_key_expression=event_key,
        scope_expression=scope,
        filter_expression=filter_,
        static_payload=static_payload,
        params=params if params is not None or source == _GENERIC else _params(auth),
        secrets=[secret],
        auth=_described(auth) if source == _GENERIC else None,
    )


def _given(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _text(source: V1WebhookSourceName | str) -> str:
    return source.value if isinstance(source, V1WebhookSourceName) else source.lower()


def _secret(auth: WebhookAuth) -> str:
    if isinstance(auth, V1WebhookHMACAuth):
        return auth.signing_secret
    return auth.api_key if isinstance(auth, V1WebhookAPIKeyAuth) else auth.password


def _params(auth: WebhookAuth) -> dict[str, str] | None:
    return {"username": auth.username} if isinstance(auth, V1WebhookBasicAuth) else None


def _described(auth: WebhookAuth) -> dict[str, Any]:
    """How a generic sender proves itself."""
    if isinstance(auth, V1WebhookBasicAuth):
        return {"type": "basic", "username": auth.username}
    if isinstance(auth, V1WebhookAPIKeyAuth):
        return {"type": "api_key", "header": auth.header_name}
    return {
        "type": "hmac",
        "header": auth.signature_header_name,
        "algorithm": auth.algorithm.value,
        "encoding": auth.encoding.value,
        "prefix": auth.prefix,
    }


def _path(name: str) -> str:
    return f"/v1/webhooks/{quote(name, safe='')}"
