"""Fields of a multipart/form-data body. Bounded, strict about its delimiters, and silent about the content of files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from webhooks.errors import BodyError
from webhooks.request import JsonValue

PARTS_MAX: Final = 200
PART_HEADER_BYTES_MAX: Final = 4_096
_BOUNDARY: Final = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_PARAMETER: Final = re.compile(r';\s*(name|filename)=(?:"((?:[^"\\\r\n]|\\.)*)"|([^\s";]+))', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One field; `filename` is None for a value typed into a form."""

    name: str
    filename: str | None
    content_type: str
    content: bytes

    def summary(self) -> JsonValue:
        """The text of a field; of a file its name, type, size in bytes and SHA-256: the bytes stay in the raw body."""
        if self.filename is None:
            return self.content.decode("utf-8", "replace")
        digest = hashlib.sha256(self.content).hexdigest()
        return {"filename": self.filename, "content_type": self.content_type, "bytes": len(self.content), "sha256": digest}


def parse_parts(raw: bytes, content_type: str) -> list[Part]:
    """The parts of a body, in order. Raises BodyError `invalid_body`."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise BodyError("invalid_body", "multipart without a boundary")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode("utf-8", "replace")
    if raw.count(delimiter) > PARTS_MAX:
        raise BodyError("invalid_body", f"more than {PARTS_MAX} parts")
    _, *sections = (b"\r\n" + raw).split(delimiter)
    if not sections or not sections[-1].startswith(b"--"):
        raise BodyError("invalid_body", "the multipart body does not end with its boundary")
    return list(_parts(sections[:-1]))


def _parts(sections: list[bytes]) -> Iterator[Part]:
    for section in sections:
        head, blank, content = section.partition(b"\r\n\r\n")
        if not blank or len(head) > PART_HEADER_BYTES_MAX:
            raise BodyError("invalid_body", "a part has no headers, or far too many")
        headers = dict(_headers(head.decode("utf-8", "replace")))
        disposition = headers.get("content-disposition", "")
        parameters = {match[1].lower(): _unquoted(match) for match in _PARAMETER.finditer(disposition)}
        if "name" not in parameters:
            raise BodyError("invalid_body", "a part has no name")
        yield Part(parameters["name"], parameters.get("filename"), headers.get("content-type", "text/plain"), content)


def _headers(text: str) -> Iterator[tuple[str, str]]:
    for line in text.split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip().lower(), value.strip()


def _unquoted(match: re.Match[str]) -> str:
    return match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
