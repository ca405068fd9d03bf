"""The lines of a streamed answer, as they arrive."""

from __future__ import annotations

import aiohttp


class LineTooLong(Exception):  # noqa: N818 - reads as what happened
    """A line, or all of them together, went beyond the limit."""


class Lines:
    """Cuts a stream at newlines. Empty lines are left out; a last line needs no newline."""

    def __init__(self, content: aiohttp.StreamReader, line_limit: int, total_limit: int) -> None:
        self._content = content
        self._line_limit = line_limit
        self._left = total_limit
        self._open: list[bytes] = []
        self._open_size = 0

    async def more(self) -> list[bytes]:
        """The lines that ended since the last call, at least one; an empty list at the end of the stream."""
        while chunk := await self._content.readany():
            self._left -= len(chunk)
            lines = self._cut(chunk)
            if self._left < 0 or self._open_size > self._line_limit:
                raise LineTooLong
            if lines:
                return lines
        last = self._take_open(b"")
        return [last] if last.strip() else []

    def _cut(self, chunk: bytes) -> list[bytes]:
        head, newline, rest = chunk.partition(b"\n")
        if not newline:
            self._keep(chunk)
            return []
        lines = [self._take_open(head), *rest.split(b"\n")]
        self._keep(lines.pop())
        if any(len(line) > self._line_limit for line in lines):
            raise LineTooLong
        return [line for line in lines if line and not line.isspace()]

    def _keep(self, part: bytes) -> None:
        if part:
            self._open.append(part)
            self._open_size += len(part)

    def _take_open(self, end: bytes) -> bytes:
        line = b"".join([*self._open, end])
        self._open.clear()
        self._open_size = 0
        return line
