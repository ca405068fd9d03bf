"""Markdown as the documentation tests see it: fenced blocks with the example they claim to be, links, table rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(
    r"^(?:<!-- (?P<example>\S+) -->\n)?^(?P<fence>`{3,})(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `example` is the file it must equal, named in a comment on the line above."""

    line: int
    language: str
    body: str
    example: str | None


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        yield Block(line, match["language"], match["body"], match["example"])


def relative_links(text: str) -> Iterator[str]:
    """Targets inside the repository, without their fragment."""
    prose = FENCE.sub("", text)
    for match in LINK.finditer(prose):
        target = match["target"].partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            yield target
