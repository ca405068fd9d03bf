"""`dispatcher` as a process, and what it says."""

from __future__ import annotations

import base64
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from click.testing import CliRunner

from dispatcher.cli import main

KEY = base64.b64encode(bytes(range(32))).decode()
"""A master key."""

PATIENCE = 60.0
"""Seconds any one thing may take on a machine that is busy with other tests."""

BIN = Path(sys.executable).parent
_OURS = ("DISPATCHER_", "DATABASE_URL", "PORT", "HOST")


def environment(**more: str) -> dict[str, str]:
    """The environment without anything that would change what a command does, and our programs first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"} | more


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def dispatcher(*arguments: str, stdin: str | None = None, cwd: Path | None = None, **variables: str) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        [str(BIN / "dispatcher"), *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**variables),
        timeout=PATIENCE,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def invoke(*arguments: str, stdin: str | None = None, **variables: str) -> Done:
    """Run a command in this process, which saves starting another."""
    unset: dict[str, str | None] = {name: None for name in os.environ if name.startswith(_OURS)}
    result = CliRunner().invoke(main, arguments, input=stdin, env={**unset, **variables}, prog_name="dispatcher")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


class Process:
    """A program that goes on; its lines can be waited for. Ended, and killed if need be, with the block."""

    def __init__(self, command: Sequence[str], *, cwd: Path | None = None, variables: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment(**(variables or {})),
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._readers = [self._reader(self._process.stdout), self._reader(self._process.stderr)]
        self._open = len(self._readers)

    def _reader(self, stream: IO[str] | None) -> threading.Thread:
        assert stream is not None

        def read() -> None:
            with stream:
                for line in stream:
                    self._news.put(line.rstrip("\n"))
            self._news.put(None)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def line(self, *parts: str) -> str:
        """Wait for a line, of either stream, that holds all of `parts`, and was not waited for before."""
        while self._open:
            try:
                line = self._news.get(timeout=PATIENCE)
            except queue.Empty:
                break
            if line is None:
                self._open -= 1
                continue
            self.lines.append(line)
            if all(part in line for part in parts):
                return line
        raise AssertionError(f"no line with {parts}; there was:\n" + "\n".join(self.lines))

    def event(self, kind: str) -> dict[str, Any]:
        """Wait for a JSON line of this type."""
        found: dict[str, Any] = json.loads(self.line(f'{{"type":"{kind}"'))
        return found

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        code = self._process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def text(self) -> str:
        """Everything it has said; after `wait`, everything it ever said."""
        while not self._news.empty():
            line = self._news.get()
            if line is not None:
                self.lines.append(line)
        return "\n".join(self.lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.wait()


class Server(Process):
    """`dispatcher dev` or `serve`, ready; `url` is where."""

    def __init__(self, *arguments: str, cwd: Path | None = None, **variables: str) -> None:
        super().__init__([str(BIN / "dispatcher"), *arguments, "--port", "0", "-o", "json"], cwd=cwd, variables=variables)
        try:
            self.url: str = self.event("ready")["url"]
        except BaseException:
            self.__exit__()
            raise


@asynccontextmanager
async def new_database(server: str) -> AsyncIterator[str]:
    """The DSN of an empty database on a server, dropped at the end."""
    name = f"dispatcher_cli_{secrets.token_hex(4)}"
    admin: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(server)
    try:
        await admin.execute(f'create database "{name}" template template0')
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        await admin.execute(f'drop database "{name}" with (force)')
    finally:
        await admin.close()
