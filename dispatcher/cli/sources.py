"""Which Python files there are, and waiting until that changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

_POLL_SECONDS = 0.3
_NOT_OURS = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env"})

Snapshot = Mapping[str, tuple[int, int]]
"""Path → (time of the last change in nanoseconds, size)."""


def snapshot(root: Path) -> Snapshot:
    """Every Python file below a directory, hidden and foreign directories left out."""
    found: dict[str, tuple[int, int]] = {}
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _NOT_OURS and not name.startswith(".")]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(directory, name)  # noqa: PTH118 - a path object per file would cost more than the look itself
                try:
                    status = os.stat(path)  # noqa: PTH116 - the same
                except OSError:
                    continue  # removed while we looked
                found[os.path.relpath(path, root)] = (status.st_mtime_ns, status.st_size)
    return found


async def changed(root: Path, before: Snapshot) -> list[str]:
    """Wait until the files differ from `before`; the names of some that do."""
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        now = await asyncio.to_thread(snapshot, root)
        if now != before:
            return sorted(path for path in now.keys() | before.keys() if now.get(path) != before.get(path))
