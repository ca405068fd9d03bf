"""Values too large for a message: fetched before a handler sees them, uploaded before its answer names them.

A value is known by the SHA-256 of its JSON text, and looked for at the dispatcher that signed the message, whatever URL is written
beside it. Only members that the message itself names in `refs` are references: data that looks like one is data.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, cast

from handlers_sdk import wire
from handlers_sdk.api import Api
from handlers_sdk.errors import ApiError, DispatcherError
from handlers_sdk.portal import PORTAL
from handlers_sdk.schemas import dump_json, parse_json

RESPONSE_BYTES_MAX: Final = 4_000_000
"""What is larger is uploaded, and answered by reference."""
CALL_BYTES_MAX: Final = 1_000_000
"""What is larger is uploaded before the call that starts a run names it."""
BYTES_PER_SECOND: Final = 1_000_000
"""How fast values travel at least: it adds to the time their calls are given."""
PATH: Final = "/v1/blobs"
MEMBERS: Final = frozenset({"input", "parents", "log", "state", "results"})
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class ValueDamagedError(DispatcherError):
    """What was fetched by reference is not what the message names."""

    code = "value_damaged"


def malformed_refs(item: wire.RunItem) -> str | None:
    """What is wrong with the references of an attempt; None when nothing is."""
    refs: Any = item.get("refs", [])
    if not isinstance(refs, list) or not all(isinstance(name, str) for name in refs):
        return "`refs` is a list of names"
    for name in refs:
        if name not in MEMBERS or name not in item:
            return f"`{name}` does not go by reference"
        if _target(cast(Any, item)[name]) is None:
            return f'`{name}` is none: {{"$ref": {{"url", "sha256", "size"}}}} is expected'
    return None


async def fetch_refs(api: Api, item: wire.RunItem, base: str) -> None:
    """Put the values in their places. DispatcherError when one cannot be had, or is not the one."""
    members = cast(dict[str, Any], item)
    for name in item.get("refs", ()):
        target = _target(members[name])
        assert target is not None, "checked before"
        digest, size = target
        request = api.content("GET", f"{PATH}/sha256-{digest}", token=item["token"], base=base, wait=size / BYTES_PER_SECOND)
        text = await PORTAL.aio_call(request)
        if len(text) != size or hashlib.sha256(text).hexdigest() != digest:
            raise ValueDamagedError(f"`{name}`: {len(text)} bytes came, and they are not sha256-{digest} of {size}")
        try:
            members[name] = parse_json(text)
        except ValueError as error:
            raise ValueDamagedError(f"`{name}`: {error}") from None


async def upload(api: Api, text: bytes, *, token: str, base: str) -> bytes | None:
    """Put an attempt's output by; as `upload_here`, from the loop of the app."""
    return await PORTAL.aio_call(upload_here(api, text, token=token, base=base))


async def upload_here(api: Api, text: bytes, *, token: str | None = None, base: str | None = None) -> bytes | None:
    """Put a JSON text by; the reference to it as JSON, None where the dispatcher takes none. DispatcherError when it cannot be put by.

    For the portal's loop.
    """
    path = f"{PATH}/sha256-{hashlib.sha256(text).hexdigest()}"
    try:
        wait = len(text) / BYTES_PER_SECOND
        _, body = await api.request("PUT", path, content=text, token=token, base=base, wait=wait, repeatable=True)
    except ApiError as error:
        if error.status in (404, 405):
            return None
        raise
    return dump_json(body["ref"])


def _target(value: Any) -> tuple[str, int] | None:
    target = value.get("$ref") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(target, dict):
        return None
    digest, size = target.get("sha256"), target.get("size")
    fits = isinstance(digest, str) and _DIGEST.fullmatch(digest) and size.__class__ is int
    return (str(digest), cast(int, size)) if fits else None
