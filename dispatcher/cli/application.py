"""The developer's app beside the server: run in a child process, registered, and run again when its files change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dispatcher.cli.addresses import listen, url_of
from dispatcher.cli.child import GRACE_SECONDS, STARTED
from dispatcher.cli.client import segment
from dispatcher.cli.failures import Failure, refused
from dispatcher.cli.sources import Snapshot, changed, snapshot
from dispatcher.cli.steps import Steps

_REGISTER_SECONDS = 30.0
_CHILD = str(Path(__file__).with_name("child.py"))


@dataclass(slots=True)
class Application:
    """`target` is "module:attribute" of an ASGI app; it is registered under `name` at `path` of its own address."""

    target: str
    name: str
    path: str
    reload: bool
    api: str
    steps: Steps
    root: Path = field(default_factory=Path.cwd)
    handlers: tuple[str, ...] = ()
    _listener: socket.socket = field(default_factory=lambda: listen("127.0.0.1", 0))
    _child: _Child | None = None
    _watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run and register it. What is wrong with it is told, not raised, when the next change may mend it."""
        self._listener.listen(1024)
        before = snapshot(self.root)
        try:
            await self._run()
        except Failure as failure:
            if not self.reload:
                raise
            self._tell(failure)
        self._watcher = asyncio.create_task(self._watch(before), name="sources")

    async def stop(self) -> None:
        """Let it finish what it is doing, for a few seconds."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._child is not None:
            await self._child.end()
        self._listener.close()

    async def _watch(self, before: Snapshot) -> None:
        """Start again after every change; tell when it ends by itself."""
        while self.reload or self._child is not None:
            changes = asyncio.ensure_future(changed(self.root, before) if self.reload else asyncio.Event().wait())
            ended = asyncio.ensure_future(self._child.exited() if self._child is not None else asyncio.Event().wait())
            try:
                await asyncio.wait([changes, ended], return_when=asyncio.FIRST_COMPLETED)
                if changes.done():
                    before = snapshot(self.root)
                    await self._restart(changes.result())
                else:
                    self._child = None
                    self.steps.failed(f"app {self.target} ended ({ended.result()}){self._advice()}")
            finally:
                changes.cancel()
                ended.cancel()

    async def _restart(self, files: Any) -> None:
        if self._child is not None:
            await self._child.end()
            self._child = None
        self.steps.mark()
        try:
            await self._run(f", {', '.join(files[:3])} changed")
        except Failure as failure:
            self._tell(failure)

    async def _run(self, why: str = "") -> None:
        """Start the child, wait until it serves, register it."""
        self._child = await _Child.run(self.target, self._listener, self._environment())
        if not await self._child.started():
            code, self._child = await self._child.exited(), None
            raise Failure(f"app {self.target} does not start ({code}); the reason is above")
        document = await self._register()
        self.handlers = tuple(document["handlers"])
        text = f"app {self.target} as {self.name!r}: {', '.join(self.handlers) or 'no handlers'}{why}"
        self.steps.done(text, app=self.name, handlers=self.handlers)

    async def _register(self) -> dict[str, Any]:
        body = {"url": url_of(self._listener) + self.path}
        async with httpx.AsyncClient(timeout=_REGISTER_SECONDS, trust_env=False) as http:
            response = await http.put(f"{self.api}/v1/endpoints/{segment(self.name)}", json=body)
        document: dict[str, Any] = response.json()
        if not response.is_success:
            raise refused(response.status_code, document)
        return document

    def _environment(self) -> dict[str, str]:
        # The app asks this server for keys and starts its runs here, whatever the shell is set to.
        return os.environ | {"DISPATCHER_API_URL": self.api}

    def _tell(self, failure: Failure) -> None:
        hint = f" ({failure.hint})" if failure.hint else ""
        self.steps.failed(f"{failure.message}{hint}{self._advice()}")

    def _advice(self) -> str:
        return "; waiting for a change of its files" if self.reload else ""


class _Child:
    """A process that serves on a listening socket, and ends when we do. Make it with `run`."""

    def __init__(self, process: Process, leash: socket.socket) -> None:
        self._process = process
        self._leash = leash

    @classmethod
    async def run(cls, target: str, listener: socket.socket, environment: dict[str, str]) -> _Child:
        """Start the process."""
        leash, theirs = socket.socketpair()
        leash.setblocking(False)
        with theirs:
            descriptors = (listener.fileno(), theirs.fileno())
            # By its path and -P: a developer's own dispatcher.py must not be taken for this package, nor the other way round.
            program = (sys.executable, "-P", _CHILD, target, *map(str, descriptors))
            process = await asyncio.create_subprocess_exec(*program, pass_fds=descriptors, env=environment)
        return cls(process, leash)

    async def started(self) -> bool:
        """Wait until it serves, True, or has ended."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._leash, 1) == STARTED
        except ConnectionError:
            return False

    async def exited(self) -> int:
        """Wait for its end; its exit code."""
        return await self._process.wait()

    async def end(self) -> None:
        """Ask it to stop, then make it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
            try:
                async with asyncio.timeout(GRACE_SECONDS + 3):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._leash.close()
