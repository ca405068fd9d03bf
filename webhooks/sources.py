"""Value sources and templates: how a scheme says where a value is and which bytes are signed.

A source names one place of the request; alternatives are joined with `||`:

    h:<header>   b:<json.path>   f:<form field>   q:<query field>   p:<parameter of the source>   sig:<item of the signature header>
    c:<claim of the verified token>   body (the whole body, as text)

A template is literal text with sources in braces, plus `{body}` `{url}` `{uri}` `{method}` `{form}` `{crc32}`. It renders to bytes: the
body goes in untouched and a part that is absent is an error, never an empty string.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from webhooks.errors import BodyError, VerificationError
from webhooks.request import JsonValue, Pairs, Request

KINDS: Final = ("h", "b", "f", "q", "p", "sig", "c")


class Place(NamedTuple):
    """One alternative of a source."""

    kind: str
    name: str


Source = tuple[Place, ...]
Template = tuple["str | Source", ...]  # a str is literal text


@lru_cache(maxsize=4096)
def parse_source(text: str) -> Source:
    """The alternatives of a source, in order. Raises ValueError."""
    return tuple(_parse_place(part.strip()) for part in text.split("||"))


def _parse_place(text: str) -> Place:
    kind, colon, name = text.partition(":")
    if text in BUILT_IN:
        return Place("", text)
    if not colon or kind not in KINDS or not name or len(name) > 256:
        raise ValueError(f"{text!r} is not a value source: one of {', '.join(KINDS)} followed by a colon and a name")
    return Place(kind, name.lower() if kind == "h" else name)


@lru_cache(maxsize=4096)
def parse_template(text: str) -> Template:
    """Literal text and sources in order. Raises ValueError."""
    parts: list[str | Source] = []
    for literal, source in re.findall(r"([^{}]+)|\{([^{}]+)\}", text):
        parts.append(literal or parse_source(source))
    if len(re.sub(r"[^{}]+|\{[^{}]+\}", "", text)) > 0:
        raise ValueError(f"{text!r} has an unmatched brace")
    return tuple(parts)


def places(text: str) -> set[Place]:
    """Every place a template reads."""
    return {place for part in parse_template(text) if not isinstance(part, str) for place in part}


@dataclass(slots=True)
class Reader:
    """Resolves sources against one request. `items` and `claims` are filled in as the signature and the token are read."""

    request: Request
    params: Mapping[str, str]
    items: Mapping[str, Sequence[str]] = field(default_factory=dict)
    claims: Mapping[str, JsonValue] = field(default_factory=dict)

    def every(self, source: str) -> list[str]:
        """The values of all alternatives that are present. Raises VerificationError `duplicate`."""
        found = (self._at(place) for place in parse_source(source))
        return [value for value in found if value is not None]

    def first(self, source: str) -> str | None:
        """The value of the first alternative that is present."""
        return self._first(parse_source(source))

    def need(self, source: str) -> str:
        """The same; raises VerificationError `missing_field` when no alternative is present."""
        value = self.first(source)
        if value is None:
            raise VerificationError("missing_field", f"the request has no {source}")
        return value

    def render(self, template: str) -> bytes:
        """The bytes of a template. Raises VerificationError `missing_field`."""
        return b"".join(part.encode() if isinstance(part, str) else self._bytes(part) for part in parse_template(template))

    def text(self, template: str) -> str | None:
        """A template as text, or None when one of its parts is absent."""
        parts = [part if isinstance(part, str) else self._first(part) for part in parse_template(template)]
        return None if None in parts else "".join(part for part in parts if part is not None)

    def _first(self, source: Source) -> str | None:
        return next((value for value in map(self._at, source) if value is not None), None)

    def _bytes(self, source: Source) -> bytes:
        if source[0].kind == "":
            return BUILT_IN[source[0].name](self.request)
        for place in source:
            value = self._at(place)
            if value is not None:
                return _encode(place, value)
        raise VerificationError("missing_field", "the request has no " + " or ".join(f"{place.kind}:{place.name}" for place in source))

    def _at(self, place: Place) -> str | None:
        kind, name = place
        if kind == "h":
            return _only(self.request.header(name), f"header {name}")
        if kind == "p":
            return self.params.get(name)
        if kind == "sig":
            return _only(self.items.get(name, ()), f"signature item {name}")
        if kind == "c":
            return _scalar(_walk(self.claims, name))
        if kind == "":
            return BUILT_IN[name](self.request).decode("utf-8", "replace")
        return self._inside(kind, name)

    def _inside(self, kind: str, name: str) -> str | None:
        try:
            if kind == "b":
                return _scalar(_walk(self.request.json(), name))
            pairs: Pairs = self.request.form() if kind == "f" else self.request.query_fields()
        except BodyError:
            return None  # a body that is not of the form has no such field
        return _only([value for held, value in pairs if held == name], f"field {name}")


def _encode(place: Place, value: str) -> bytes:
    try:
        return value.encode("latin-1" if place.kind in {"h", "sig"} else "utf-8")  # header bytes reach Python as Latin-1
    except UnicodeEncodeError as error:
        raise VerificationError("malformed", f"{place.kind}:{place.name} has characters it cannot have") from error


def _only(values: Sequence[str], what: str) -> str | None:
    if len(values) > 1:
        raise VerificationError("duplicate", f"the {what} came {len(values)} times")
    return values[0] if values else None


def _walk(value: object, path: str) -> object:
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(value):
            value = value[int(step[:9])]
        else:
            return None
    return value


def _scalar(value: object) -> str | None:
    """Strings, whole numbers and booleans have one spelling; a float does not, so it is never part of signed bytes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) else None


def sorted_form(request: Request) -> bytes:
    """Name and value of every form field, sorted, without separators and without repeats (Twilio)."""
    return "".join(name + value for name, value in sorted(set(request.form()))).encode("utf-8", "replace")


def decoded_url(request: Request) -> bytes:
    """The address with the escapes HubSpot undoes before it signs: ``: / ? @ ! $ ' ( ) * , ;``."""
    return re.sub("%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", _unescape, request.url, flags=re.IGNORECASE).encode("utf-8", "replace")


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


BUILT_IN: Final[Mapping[str, Callable[[Request], bytes]]] = {
    "body": lambda request: request.body,
    "url": lambda request: request.url.encode("utf-8", "replace"),
    "uri": decoded_url,
    "method": lambda request: request.method.encode("utf-8", "replace"),
    "form": sorted_form,
    "crc32": lambda request: str(zlib.crc32(request.body)).encode(),
}
