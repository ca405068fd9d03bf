"""`dispatcher listen`: what webhooks receive, brought to a program on this machine.

Deliveries are asked for, not pushed, so nothing has to reach this machine, and a connection that drops loses nothing: the place is kept
in a file. When there is nothing new the server is asked to answer as soon as something comes. Each look goes back a little further than
the last delivery, because one that came earlier may have been written later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import rich_click as click

from dispatcher.cli.failures import Failure
from dispatcher.cli.options import Moment, asks_server, rfc3339
from dispatcher.cli.output import Output, note

if TYPE_CHECKING:
    import httpx

    from dispatcher.cli.client import Api

_OVERLAP = timedelta(seconds=30)
_WAIT_SECONDS = 10
_PAUSE_SECONDS = 0.05
_PAUSE_MAX_SECONDS = 5.0
_FORWARD_SECONDS = 30.0
_PAGE = 200
_EVER = "1970-01-01T00:00:00Z"
_STATUSES = ["accepted", "unrouted", "filtering"]
_AFTER = timedelta(microseconds=1)
_NOT_FORWARDED = frozenset(
    {"host", "content-length", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
)


@click.command()
@click.option("--forward", required=True, metavar="URL", help="Where to POST each delivery, as it came.")
@click.option("--webhook", multiple=True, help="Only this webhook's deliveries; repeatable, all unless said.")
@click.option(
    "--since", type=Moment(), help="Where to begin without a cursor: RFC 3339, or 1h for an hour ago; with what comes unless said."
)
@click.option(
    "--cursor", type=click.Path(dir_okay=False, path_type=Path), help="File that keeps the place, so that the next start goes on."
)
@click.option("--count", type=click.IntRange(1), help="Stop after so many.")
@asks_server
def listen(
    forward: str, webhook: tuple[str, ...], since: str | None, cursor: Path | None, count: int | None, api: Api, out: Output
) -> None:
    """Bring what webhooks receive to a program on this machine.

    Verified deliveries are posted to URL in the order they came, body and headers as the sender sent them but for credentials, each
    until it is answered. Nothing is lost while this machine or the server is away: with --cursor it goes on where it ended.
    """
    kept = cursor is not None and cursor.exists()
    follower = _Follower(api, forward, webhook, Place.load(cursor, since or _EVER), out)
    follower.check()
    if not kept and since is None:
        follower.skip()
    note(f"Forwarding to {forward}; stop with Ctrl-C.")
    follower.run(count)


@dataclass(slots=True)
class Place:
    """How far deliveries have been followed: the newest moment by the server's clock, and what was forwarded around it."""

    file: Path | None
    start: str
    seen: dict[str, str] = field(default_factory=dict)  # delivery → moment

    @classmethod
    def load(cls, file: Path | None, start: str) -> Place:
        """The place kept in a file; the beginning where there is none."""
        if file is None or not file.exists():
            return cls(file, start)
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            place = cls(file, str(kept["start"]), {str(delivery): str(at) for delivery, at in kept["seen"].items()})
            place.since()
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise Failure(f"{file} holds no cursor: {error}", hint="Remove it to begin anew.") from None
        return place

    def since(self) -> str:
        """From when to look: a little before the newest that was forwarded, never before the start."""
        return rfc3339(max(self._newest() - _OVERLAP, _moment(self.start)))

    def next(self) -> str:
        """From when on everything is new."""
        return rfc3339(self._newest() + _AFTER)

    def _newest(self) -> datetime:
        return max(map(_moment, self.seen.values()), default=_moment(self.start))

    def done(self, delivery: str, received_at: str) -> None:
        """Remember that one needs no forwarding any more, and forget those too old to be met again."""
        self.seen[delivery] = received_at
        oldest = self._newest() - 2 * _OVERLAP
        self.seen = {name: at for name, at in self.seen.items() if _moment(at) >= oldest}
        self._keep()

    def _keep(self) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_name(f"{self.file.name}.new")
        fresh.write_text(json.dumps({"start": self.start, "seen": self.seen}), encoding="utf-8")
        fresh.replace(self.file)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


class _Follower:
    def __init__(self, api: Api, forward: str, webhooks: tuple[str, ...], place: Place, out: Output) -> None:
        self._api = api
        self._forward = forward
        self._webhooks = webhooks
        self._place = place
        self._out = out
        self._never = Event()
        self._away = False

    def check(self) -> None:
        """Raises Failure for a webhook that is not there."""
        from dispatcher.cli.client import segment

        for name in self._webhooks:
            self._api.get(f"/v1/webhooks/{segment(name)}")

    def skip(self) -> None:
        """Begin with what comes from now on."""
        from dispatcher.cli.client import segment

        newest = [row for name in self._names() for row in self._api.get(f"/v1/webhooks/{segment(name)}/deliveries", limit=1).value["rows"]]
        if newest:
            self._place.start = rfc3339(max(_moment(row["received_at"]) for row in newest) - _OVERLAP)
            for row in self._new():
                self._place.done(row["id"], row["received_at"])

    def run(self, count: int | None) -> None:
        """Forward what comes, until `count` have been."""
        import httpx

        done, pause = 0, _PAUSE_SECONDS
        with httpx.Client(timeout=_FORWARD_SECONDS, trust_env=False) as http:
            while True:
                try:
                    for row in self._new():
                        self._bring(http, row)
                        done, pause = done + 1, _PAUSE_SECONDS
                        if done == count:
                            return
                    self._until_something_comes()
                    pause = self._back()
                except Failure as failure:
                    pause = self._wait_for_server(failure, pause)

    def _names(self) -> list[str]:
        if self._webhooks:
            return list(self._webhooks)
        return [row["name"] for row in self._api.get("/v1/webhooks", limit=1000).value["rows"]]

    def _new(self) -> Iterator[dict[str, Any]]:
        """Deliveries that have not been forwarded, oldest first."""
        cursor, since = None, self._place.since()
        while True:
            page = self._page(since=since, limit=_PAGE, cursor=cursor)
            yield from (row for row in page["rows"] if row["id"] not in self._place.seen)
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _until_something_comes(self) -> None:
        """What came while nobody was asking is answered at once; what was written late is met by the next look."""
        self._page(since=self._place.next(), limit=1, wait=f"{_WAIT_SECONDS}s")

    def _page(self, **params: Any) -> dict[str, Any]:
        wanted = {"webhook": list(self._webhooks) or None, "status": _STATUSES, **params}
        given = {name: value for name, value in wanted.items() if value is not None}
        found: dict[str, Any] = self._api.call("GET", "/v1/webhook-deliveries", params=given, wait=_WAIT_SECONDS).value
        return found

    def _bring(self, http: httpx.Client, row: dict[str, Any]) -> None:
        """Forward one delivery, however often it takes until it is answered."""
        from dispatcher.cli.client import segment

        name = row["webhook"]
        path = f"/v1/webhooks/{segment(name)}/deliveries/{segment(row['id'])}"
        document = self._api.get(path).value
        body = self._api.download(f"{path}/body") if document["body_kept"] else b""
        status = self._post(http, document, body)
        self._place.done(row["id"], row["received_at"])
        self._out.item(
            {"webhook": name, "delivery": row["id"], "event_key": row["event_key"], "received_at": row["received_at"], "status": status},
            f"{row['received_at']}  {name}  {row['event_key'] or row['status']}  {row['id']}  {status}",
        )

    def _post(self, http: httpx.Client, document: dict[str, Any], body: bytes) -> int:
        import httpx

        headers = {name: value for name, value in document["headers"].items() if name not in _NOT_FORWARDED}
        headers["dispatcher-delivery"] = document["id"]
        url, pause = self._forward, _PAUSE_SECONDS
        if document["query"]:
            url += ("&" if "?" in url else "?") + document["query"]
        while True:
            try:
                return http.request(document["method"], url, content=body, headers=_encodable(headers)).status_code
            except httpx.TransportError as error:
                note(f"{self._forward} does not answer ({error}); trying again in {pause:g} s")
            self._never.wait(pause)
            pause = min(_PAUSE_MAX_SECONDS, pause * 2)

    def _wait_for_server(self, failure: Failure, pause: float) -> float:
        if not failure.passing:
            raise failure
        if not self._away:
            note(f"{failure.message}; nothing is lost, waiting")
        self._away = True
        self._never.wait(pause)
        return min(_PAUSE_MAX_SECONDS, pause * 2)

    def _back(self) -> float:
        if self._away:
            note("The server is back.")
        self._away = False
        return _PAUSE_SECONDS


def _encodable(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as the bytes they came as: what is beyond Latin-1 never was in one."""
    return [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers.items()]
