"""Values that a request names instead of holding them: fetched before anything else looks at them.

A bulk call says so item by item. Its values are fetched once each, and are together no larger than the body of a bulk call may be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from msgspec import Raw

from dispatcher.api.edge import Call
from dispatcher.engine.references import Reference
from dispatcher.errors import Problem, problem

Request = TypeVar("Request")
Accepted = TypeVar("Accepted")


async def value_of(call: Call, member: str, text: bytes) -> Raw:
    """The value a member is a reference to. Raises Problem invalid_ref, unknown_ref."""
    return Raw(await call.services.blobs.value(call.tenant_id, member, text))


class Referring(Generic[Request]):
    """The items of a bulk call that go by reference. `put` gives a request its value."""

    def __init__(self, call: Call, put: Callable[[Request, bytes], None]) -> None:
        self._call = call
        self._put = put
        self._noted: list[tuple[Request, Reference, str]] = []
        self._bytes = 0

    def note(self, request: Request, text: bytes, at: str) -> Request:
        """Note that a request gets its value later. Raises Problem invalid_ref, or bulk_too_large where there are too many already."""
        reference = self._call.services.blobs.reference(at, text)
        most = self._call.services.settings.max_bulk_bytes
        if self._bytes + reference.size > most:
            raise problem("bulk_too_large", f"{at}: the values of one call may have {most:,} bytes together", field=at)
        self._bytes += reference.size
        self._noted.append((request, reference, at))
        return request

    async def take(
        self, requests: Sequence[Request], take: Callable[[Sequence[Request]], Awaitable[Sequence[Accepted | Problem]]]
    ) -> Sequence[Accepted | Problem]:
        """What becomes of all requests, in order: those whose value is not there are refused, the others are taken."""
        if not self._noted:
            return await take(requests)
        refused = await self._fill()
        taken = await take([request for request in requests if id(request) not in refused])
        answers = iter(taken)
        return [refused[id(request)] if id(request) in refused else next(answers) for request in requests]

    async def _fill(self) -> dict[int, Problem]:
        """Give requests their values; those that cannot have theirs, by their identity."""
        refused: dict[int, Problem] = {}
        found: dict[Reference, bytes | Problem] = {}
        for request, reference, at in self._noted:
            if reference not in found:
                found[reference] = await self._fetched(reference, at)
            value = found[reference]
            if isinstance(value, Problem):
                refused[id(request)] = value
            else:
                self._put(request, value)
        return refused

    async def _fetched(self, reference: Reference, at: str) -> bytes | Problem:
        try:
            return await self._call.services.blobs.fetch(self._call.tenant_id, at, reference)
        except Problem as refused:
            return refused
