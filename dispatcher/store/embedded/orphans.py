"""Servers that outlived the process that owned them.

A process is one of ours if it is a postgres and works in the data directory: postmaster and backends change to it. The number in
postmaster.pid is no evidence, numbers are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

from dispatcher.store.embedded.errors import EmbeddedPostgresError

_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_POLL_SECONDS = 0.05


async def end(data: Path) -> int:
    """Stop every server process of `data`: politely, then at once, then by force. Returns how many there were."""
    found = find(data)
    for number, patience in _STEPS:
        for pid in find(data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if await _gone(data, patience):
            return len(found)
    raise EmbeddedPostgresError(f"a Postgres of another owner still runs in {data}: processes {find(data)} do not end")


def find(data: Path) -> list[int]:
    """The numbers of the live server processes of `data` that this user may see."""
    if not data.exists():
        return []
    return _find_in_proc(data) if Path("/proc/self/cwd").exists() else find_by_command(data)


def find_by_command(data: Path) -> list[int]:
    """The same where there is no /proc: postmasters whose command line names the data directory."""
    listing = subprocess.run(["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True).stdout  # noqa: S607
    rows = [line.strip().partition(" ") for line in listing.splitlines()]
    return [int(pid) for pid, _, command in rows if f"postgres -D {data} " in command]


async def _gone(data: Path, patience: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while find(data):  # noqa: ASYNC110 - they are not our children: nothing tells us of their end
                await asyncio.sleep(_POLL_SECONDS)
            return True
    return False


def _find_in_proc(data: Path) -> list[int]:
    place = data.stat()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _works_in(entry, place)]


def _works_in(process: Path, place: os.stat_result) -> bool:
    try:
        here = (process / "cwd").stat()  # fails for zombies, and for processes of other users
        same = (here.st_dev, here.st_ino) == (place.st_dev, place.st_ino)
        return same and (process / "comm").read_text().startswith("postgres")
    except OSError:
        return False
