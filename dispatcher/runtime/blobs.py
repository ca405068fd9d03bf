"""Values too large for a message: put away under their hash before they are named in one, and fetched when one names them.

A reference is how a value travels, never what is kept of a run. So whatever reads inputs and outputs sees values, and a value only has
to wait here for as long as a message that names it may be on its way.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import msgspec

from dispatcher.clock import Clock
from dispatcher.delivery import Push
from dispatcher.engine import references
from dispatcher.engine.answers import Answer, Failed, Referred, Succeeded
from dispatcher.engine.references import Reference
from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.errors import problem
from dispatcher.settings import Settings
from dispatcher.store import blobs
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient

_log = logging.getLogger(__name__)

_TURN_MEMBERS: Final = ("log", "state", "results")
_PAUSE: Final = timedelta(seconds=1)
_PRUNED: Final = 100  # values deleted in one statement


def is_large(push: Push, above: int) -> bool:
    """Whether anything in an attempt's message that can go by reference is larger than this."""
    return (
        len(push.input) > above
        or (push.parents is not None and len(push.parents) > above)
        or (push.turn is not None and len(push.turn) > above)
    )


@dataclass(slots=True)
class Blobs:
    """Keeps, fetches and forgets such values, by tenant."""

    database: Database
    clock: Clock
    settings: Settings

    async def keep(self, tenant_id: int, body: bytes, expected: str | None = None) -> tuple[Reference, bool]:
        """Keep a JSON text that somebody sends; its reference, and whether it is new. `expected` is the hash it was announced under.

        Raises Problem blob_mismatch, or what is wrong with the text.
        """
        reference = await asyncio.to_thread(references.of, body)
        if expected is not None and reference.sha256 != expected:
            raise problem("blob_mismatch", f"{len(body):,} bytes arrived, and their hash is {reference.id}")
        try:
            await asyncio.to_thread(check, body, max_bytes=self.settings.max_blob_bytes, max_depth=self.settings.max_json_depth)
        except JsonRefused as refused:
            raise problem("body_too_large" if refused.code == "too_large" else refused.code, refused.message) from None
        return reference, await blobs.put(self.database, tenant_id, reference, body, self.clock.now())

    async def value(self, tenant_id: int, member: str, text: bytes) -> bytes:
        """What a caller means who says that `member` goes by reference. Raises Problem invalid_ref or unknown_ref."""
        return await self.fetch(tenant_id, member, self.reference(member, text))

    def reference(self, member: str, text: bytes) -> Reference:
        """What a caller names who says that `member` goes by reference. Raises Problem invalid_ref."""
        try:
            reference = references.said(text, (member,), member)
        except ValueError as error:
            raise problem("invalid_ref", str(error), field=member) from None
        assert reference is not None, "refs were given"
        return reference

    async def fetch(self, tenant_id: int, member: str, reference: Reference) -> bytes:
        """The value of a reference. Raises Problem unknown_ref."""
        body = await blobs.get(self.database, tenant_id, reference.sha256, reference.size)
        if body is None:
            raise problem("unknown_ref", f"{member}: there is no {reference.id} of {reference.size:,} bytes", field=member)
        return body

    async def read(self, tenant_id: int, sha256: str) -> bytes | None:
        """A value by its hash."""
        return await blobs.get(self.database, tenant_id, sha256)

    # ---- answers

    async def resolve(self, tenant_id: int, answer: Answer) -> Answer:
        """An answer with its output in it. Raises what the database raises."""
        if not isinstance(answer, Referred):
            return answer
        reference = answer.reference
        body = await blobs.get(self.database, tenant_id, reference.sha256, reference.size)
        if body is None:
            return Failed("unknown_ref", f"there is no {reference.id} of {reference.size:,} bytes, which the output is said to be")
        return Succeeded(body)

    async def resolved(self, tenant_id: int, answer: Answer) -> Answer:
        """The same, waiting for the database as long as it is away: the handler has done its work."""
        while True:
            try:
                return await self.resolve(tenant_id, answer)
            except Exception as error:
                if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                    raise
                _log.info("an output by reference is fetched again: %s", error)
            await self.clock.sleep_until(self.clock.now() + _PAUSE)

    # ---- messages

    async def refer(self, tenant_id: int, push: Push, api: str, above: int) -> Push:
        """The attempt with everything larger than `above` by reference; what is larger than a value may be stays as it is."""
        refs: list[str] = msgspec.json.decode(push.refs) if push.refs is not None else []

        async def shortened(member: str, text: bytes) -> bytes:
            if not above < len(text) <= self.settings.max_blob_bytes:
                return text
            reference = await asyncio.to_thread(references.of, text)
            await blobs.put(self.database, tenant_id, reference, text, self.clock.now())
            refs.append(member)
            return reference.document(api)

        given = await shortened("input", push.input)
        parents = await shortened("parents", push.parents) if push.parents is not None else None
        turn = push.turn
        if turn is not None and len(turn) > above:
            members = msgspec.json.decode(b"{%b}" % turn, type=dict[str, msgspec.Raw])
            for name in _TURN_MEMBERS:
                if name in members:
                    members[name] = msgspec.Raw(await shortened(name, bytes(members[name])))
            turn = msgspec.json.encode(members)[1:-1]
        return replace(push, input=given, parents=parents, turn=turn, refs=msgspec.json.encode(refs) if refs else None)

    # ---- keeping

    async def prune(self, now: datetime) -> int:
        """Delete what nobody has used for so long that no message under way can name it; answers how many."""
        before = now - timedelta(seconds=max(self.settings.blob_ttl, self.settings.max_execution_timeout))
        deleted = 0
        while some := await blobs.prune(self.database, before, _PRUNED):
            deleted += some
        return deleted
