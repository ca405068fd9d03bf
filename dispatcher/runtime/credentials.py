"""What requests to an endpoint carry beside their signature: which headers those may be, and where they may be sent."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from dispatcher.errors import problem

_NAMES_REFUSED = ("host", "content-", "webhook-", "task-", "transfer-encoding", "connection", "te", "trailer", "upgrade", "cookie")


def checked_auth(auth: dict[str, Any] | None) -> dict[str, str] | None:
    """`{"type": "header", "name", "value"}` or `{"type": "bearer", "token"}`, as the header it is; `{"type": "none"}` as {}.

    None stays None. Raises Problem for anything else.
    """
    if auth is None:
        return None
    if auth == {"type": "none"}:
        return {}
    if auth.get("type") == "bearer" and set(auth) == {"type", "token"}:
        auth = {"type": "header", "name": "authorization", "value": f"Bearer {auth['token']}"}
    if auth.get("type") != "header" or set(auth) != {"type", "name", "value"}:
        detail = 'auth: {"type": "bearer", "token"}, {"type": "header", "name", "value"} or {"type": "none"}'
        raise problem("invalid_value", detail, field="auth")
    name, value = auth["name"], auth["value"]
    if not isinstance(name, str) or not isinstance(value, str) or not _is_header(name, value):
        detail = "auth: not a header that may be set (printable ASCII, at most 4 KB, none of the protocol's own)"
        raise problem("invalid_value", detail, field="auth")
    return {"name": name, "value": value}


def is_same_place(one: str, other: str) -> bool:
    """Whether two URLs have scheme, host and port in common: what is sent to one may be sent to the other."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _is_header(name: str, value: str) -> bool:
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 100
    printable = value.isascii() and value.isprintable() and 0 < len(value) <= 4_096
    return plain and printable and not name.lower().startswith(_NAMES_REFUSED)
