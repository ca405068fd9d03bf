"""A signed request with everything needed to verify it, and the ways of spoiling it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, urlencode

from webhooks import PROVIDERS, Request, VerificationError, Verified, verify
from webhooks.scheme import Scheme
from webhooks.sources import Place, parse_source

URL = "https://hooks.example.com/hooks/default/source"
NOW = 1_767_225_600  # 2026-01-01T00:00:00Z


@dataclass(frozen=True, slots=True)
class Case:
    """One authentic request. `wrong` is a well-formed secret that did not sign it; `tampered` a body where not any change will do."""

    provider: str
    request: Request
    secret: str
    wrong: str
    now: float = NOW
    params: dict[str, str] = field(default_factory=dict)
    document: bytes | None = None
    tampered: bytes | None = None

    @property
    def scheme(self) -> Scheme:
        return PROVIDERS[self.provider].scheme

    def verify(self, *secrets: str, now: float | None = None) -> Verified:
        moment = self.now if now is None else now
        return verify(self.scheme, self.request, secrets or (self.secret,), moment, self.params, document=self.document)

    def code(self) -> str:
        """The code it is refused with; `accepted` when it is not."""
        try:
            self.verify()
        except VerificationError as error:
            return error.code
        return "accepted"

    def with_request(self, **changes: object) -> Case:
        changed = replace(self.request, **changes)  # type: ignore[arg-type]
        return replace(self, request=changed)


def post(headers: dict[str, str], body: bytes, url: str = URL) -> Request:
    return Request.build("POST", url, headers, body)


def _signature_headers(case: Case) -> set[str]:
    return {place.name for place in parse_source(case.scheme.signature) if place.kind == "h"}


def _doubled_signature(case: Case) -> Case | None:
    doubled = tuple(pair for pair in case.request.headers if pair[0] in _signature_headers(case))
    return case.with_request(headers=case.request.headers + doubled) if doubled else None


def _edit_signature(case: Case, edit: Callable[[str], str | None]) -> Case:
    """The same request with its signature changed, or taken away when `edit` gives None."""
    names, place = _signature_headers(case), parse_source(case.scheme.signature)[0]
    if names:
        edited = [(name, edit(value) if name in names else value) for name, value in case.request.headers]
        return case.with_request(headers=tuple(pair for pair in edited if pair[1] is not None))
    if place.kind == "q":
        fields = [(name, edit(value)) for name, value in parse_qsl(case.request.query)]
        return case.with_request(query=urlencode([field for field in fields if field[1] is not None]))
    if place == Place("", "body"):
        return case.with_request(body=(edit(case.request.body.decode()) or "").encode())
    return case.with_request(body=_edit_member(case.request.body, place.name, edit))


def _edit_member(raw: bytes, path: str, edit: Callable[[str], str | None]) -> bytes:
    body = json.loads(raw)
    *steps, last = path.split(".")
    holder = body
    for step in steps:
        holder = holder[int(step)] if step.isdigit() else holder[step]
    value = edit(holder.pop(last))
    if value is not None:
        holder[last] = value
    return json.dumps(body).encode()


def _flip(signature: str) -> str:
    """One character in the middle of the last third, which is inside the signature in every format."""
    at = max(len(signature) - 12, 0)
    return signature[:at] + ("A" if signature[at] not in "aA" else "B") + signature[at + 1 :]


def mutations(case: Case) -> Iterator[tuple[str, Case]]:
    """What must be refused, by name."""
    if case.document is None:
        yield "wrong_secret", replace(case, secret=case.wrong)
    body = case.request.body[:-1] + b" " + case.request.body[-1:] if case.tampered is None else case.tampered
    if case.scheme.covers_body or case.tampered is not None:
        yield "tampered_body", case.with_request(body=body)
    yield "missing_signature", _edit_signature(case, lambda _: None)
    doubled = _doubled_signature(case)
    if doubled is not None:
        yield "duplicated_header", doubled
    yield "corrupted_signature", _edit_signature(case, _flip)
    yield "empty_signature", _edit_signature(case, lambda _: "")
    if case.scheme.timestamp or (case.scheme.jwt and case.scheme.jwt.fresh):
        yield "stale", replace(case, now=case.now + 30 * 86_400)
        yield "future", replace(case, now=case.now - 30 * 86_400)
