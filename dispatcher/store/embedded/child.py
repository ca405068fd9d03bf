"""A child process that ends when we end, whatever ends us."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from dispatcher.store.embedded.account import Account

_SHIM = files("dispatcher.store.embedded").joinpath("shim.py").read_text()
_POLL_SECONDS = 0.05
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


class Child:
    """A direct child (so that it is always reaped) in a session of its own (so that Ctrl-C reaches us alone)."""

    def __init__(self, account: Account, command: Sequence[str], *, directory: Path, output: int, death_signal: signal.Signals) -> None:
        """Start `command` as `account` in `directory`, with stdout and stderr appended to the descriptor `output`."""
        # The death signal is sent when the *thread* that started the child ends, so only the main thread may ask for it.
        wanted = death_signal if threading.current_thread() is threading.main_thread() else 0
        arguments = [str(os.getpid()), str(int(wanted)), str(account.uid), str(account.gid), str(directory), *command]
        self._process = subprocess.Popen(  # noqa: S603 - no shell, and the command is ours
            [sys.executable, "-I", "-S", "-c", _SHIM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            cwd="/",
            start_new_session=True,
        )
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has already ended."""
        self._process.send_signal(number)

    async def exited(self) -> int:
        """Wait for its end, reap it, and return the exit code (negative: the signal that ended it)."""
        if self._process.poll() is None and not await self._wait_by_descriptor():
            while self._process.poll() is None:  # noqa: ASYNC110 - nothing else tells of its end on this system
                await asyncio.sleep(_POLL_SECONDS)
        return self._process.wait()

    async def end(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn, giving it that many seconds to work, until the process has ended."""
        for number, patience in steps:
            self.send(number)
            try:
                async with asyncio.timeout(patience):
                    await self.exited()
            except TimeoutError:
                continue
            return

    async def _wait_by_descriptor(self) -> bool:
        """Wait without polling where the system can (Linux); False where it cannot."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return False
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        try:
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return True


def environment() -> dict[str, str]:
    """The variables a child gets: no PG* that would redirect it, and none of our secrets, which its user could read in /proc."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def run_as(account: Account, command: Sequence[str], *, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a short command to its end as `account` in `directory`. The exit codes of shim.py tell what that user cannot do."""
    arguments = [str(os.getpid()), "0", str(account.uid), str(account.gid), str(directory), *command]
    return subprocess.run(  # noqa: S603 - no shell, and the command is ours
        [sys.executable, "-I", "-S", "-c", _SHIM, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        cwd="/",
        check=False,
        timeout=30,
    )
