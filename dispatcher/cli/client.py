"""The HTTP client of the command line: one call, its answer's text as it came, or a Failure that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Event
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
import rich_click as click

from dispatcher.cli.addresses import is_loopback
from dispatcher.cli.failures import Exit, Failure, refused

_SECONDS = 30.0
_SILENCE_SECONDS = 60.0  # a server that is followed says something more often
_RECONNECTS = 8
_LAST = frozenset({"end", "run:stop", "run:fail", "run:cancel"})


@dataclass(frozen=True)
class Answer:
    """A successful response: its status and its text, untouched."""

    status: int
    text: str

    @cached_property
    def value(self) -> Any:
        """The text read as JSON."""
        return json.loads(self.text) if self.text else None


class Api:
    """A dispatcher somewhere else. Use it as a context manager."""

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise click.UsageError(f"--url {url!r} is not an http or https URL")
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # A proxy set for the network is not on the way to this machine itself.
        self._pause = Event()  # never set: it is what is waited on between tries
        self._http = httpx.Client(headers=headers, timeout=_SECONDS, trust_env=not is_loopback(parts.hostname))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Answer:
        """GET; parameters that are None are left out, lists are repeated."""
        return self.call("GET", path, params={name: value for name, value in params.items() if value is not None})

    def find(self, path: str) -> Answer | None:
        """GET of what there may be none of. Raises Failure."""
        response = self._sent("GET", path, None, None, 0.0)
        return None if response.status_code in (404, 409) else _checked(response)

    def call(
        self, method: str, path: str, content: bytes | None = None, *, params: Mapping[str, Any] | None = None, wait: float = 0.0
    ) -> Answer:
        """One request; `wait` is how many seconds the server was asked to take. Raises Failure."""
        return _checked(self._sent(method, path, content, params, wait))

    def download(self, path: str) -> bytes:
        """What a GET answers, whatever it is. Raises Failure."""
        response = self._sent("GET", path, None, None, 0.0)
        if not response.is_success:
            _checked(response)
        return response.content

    def events(self, path: str, **params: Any) -> Iterator[tuple[str, str]]:
        """Names and data of the server-sent events a GET answers, to the last: a connection that breaks is made again. Raises Failure."""
        last, failures = "", 0
        while True:
            headers = {"last-event-id": last} if last else {}
            try:
                with self._http.stream("GET", self.url + path, params=params, headers=headers, timeout=_SILENCE_SECONDS) as response:
                    if not response.is_success:
                        response.read()
                        _checked(response)
                    if response.status_code == 204:
                        return
                    for name, identity, data in _events(_lines(response.iter_bytes())):
                        last, failures = identity, 0
                        yield name, data
                        if name in _LAST:
                            return
            except httpx.TransportError as error:
                failures += 1
                if failures > _RECONNECTS:
                    raise Failure(f"{self.url} cannot be followed any further: {error}", passing=True) from None
                self._pause.wait(min(0.1 * 2**failures, 5.0))

    def _sent(self, method: str, path: str, content: bytes | None, params: Mapping[str, Any] | None, wait: float) -> httpx.Response:
        headers = {"content-type": "application/json"} if content is not None else {}
        try:
            return self._http.request(method, self.url + path, content=content, headers=headers, params=params, timeout=_SECONDS + wait)
        except httpx.TimeoutException:
            raise Failure(
                f"{self.url} did not answer in time", hint="Is it overloaded? See: dispatcher doctor", code=Exit.TIMEOUT, passing=True
            ) from None
        except httpx.TransportError as error:
            hint = "Start one with: dispatcher dev, or name another with --url or DISPATCHER_URL."
            raise Failure(f"no dispatcher answers at {self.url}: {error}", hint=hint, passing=True) from None


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    """Lines as server-sent events have them: other separators that a text may hold end none, as they would for `iter_lines`."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """(name, id, data) of each event; one that was cut off is left out, and comes again."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield fields.get("event", ""), fields.get("id", ""), fields["data"]
            fields = {}


def _checked(response: httpx.Response) -> Answer:
    is_json = response.headers.get("content-type", "").startswith("application/json")
    if response.is_success and (is_json or not response.content):
        return Answer(response.status_code, response.text)
    try:
        document = response.json()
    except ValueError:
        document = None
    raise refused(response.status_code, document)


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")
