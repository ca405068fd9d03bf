"""/v1/blobs: values too large for a message. They are uploaded here, named by reference, and fetched by their hash."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.triggering import check_attempt
from dispatcher.engine import references
from dispatcher.errors import problem


class BlobTarget(msgspec.Struct, frozen=True):
    """Where a value is, the SHA-256 of its text in hex, and how many bytes that has."""

    url: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size: int


class BlobView(msgspec.Struct, frozen=True):
    """A value that is kept. `ref` is what stands for it in `input`, with `"refs": ["input"]` beside it."""

    id: str
    ref: dict[str, BlobTarget]


async def upload_blob(call: Call) -> Answer:
    """Upload a JSON value. It is kept under its SHA-256 until nobody has used it for a while; again, it is the same one (200)."""
    return await _kept(call, None)


async def put_blob(call: Call) -> Answer:
    """Upload a JSON value whose SHA-256 is known: refused when what arrives has another."""
    return await _kept(call, _digest(call))


async def get_blob(call: Call) -> Answer:
    """A value, as it was uploaded."""
    await check_attempt(call)
    body = await call.services.blobs.read(call.tenant_id, _digest(call))
    if body is None:
        raise problem("not_found", f"there is no {call.path['blob_id']}")
    return Answer(200, body)


async def _kept(call: Call, expected: str | None) -> Answer:
    await check_attempt(call)
    blobs = call.services.blobs
    reference, created = await blobs.keep(call.tenant_id, await call.body(call.services.settings.max_blob_bytes), expected)
    url = call.services.settings.base_url() + references.PATH + reference.id
    view = BlobView(reference.id, {"$ref": BlobTarget(url, reference.sha256, reference.size)})
    return json_answer(201 if created else 200, view, (b"location", (references.PATH + reference.id).encode()))


def _digest(call: Call) -> str:
    digest = references.digest_of(call.path["blob_id"])
    if digest is None:
        raise problem("not_found", "the id of a value is sha256- and 64 lower-case hex digits")
    return digest


_REFUSED: Final = (
    "invalid_json", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8", "body_too_large", "unsupported_media_type",
    "stale_attempt", "task_ended", "database_unavailable",
)  # fmt: skip

ROUTES: Final = (
    Route("PUT", "/v1/blobs", upload_blob, "runs:write", {201: BlobView, 200: BlobView}, body=Any, problems=_REFUSED, attempts=True),
    Route(
        "PUT", "/v1/blobs/{blob_id}", put_blob, "runs:write", {201: BlobView, 200: BlobView}, body=Any,
        problems=(*_REFUSED, "blob_mismatch"), attempts=True,
    ),
    Route(
        "GET", "/v1/blobs/{blob_id}", get_blob, "runs:read", {200: Any},
        problems=("not_found", "stale_attempt", "task_ended"), attempts=True,
    ),
)  # fmt: skip
