"""What the sender is answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from webhooks.request import Pairs

NOSNIFF: Final = ("x-content-type-options", "nosniff")


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer. Header names are in lower case."""

    status: int = 200
    headers: Pairs = ()
    body: bytes = b""


def plain(status: int, text: str) -> Response:
    """An answer no browser takes for a page."""
    return Response(status, (("content-type", "text/plain; charset=utf-8"), NOSNIFF), text.encode())


def document(status: int, members: object, media_type: str = "application/json") -> Response:
    """A JSON answer."""
    return Response(status, (("content-type", media_type), NOSNIFF), json.dumps(members).encode())


def problem(status: int, code: str, title: str, detail: str) -> Response:
    """An RFC 9457 document, as the rest of the API answers errors."""
    members = {"type": f"/errors/{code}", "title": title, "status": status, "code": code, "detail": detail}
    return document(status, members, "application/problem+json")
