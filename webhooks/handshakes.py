"""Handshakes as data: the questions senders ask before, or between, deliveries.

A signed question is answered only after its signature was checked. An unsigned one is answered with an echo that is text/plain, nosniff
and at most 4 KB, so that it is no way to serve a page from this host. A secret is captured only while the source has none.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from webhooks.errors import VerificationError
from webhooks.keys import among, same
from webhooks.request import Request
from webhooks.response import NOSNIFF, Response, document
from webhooks.sources import Reader

ANY: Final = "*"
ABSENT: Final = ""
ECHO_BYTES_MAX: Final = 4_096
PRINTABLE: Final = r"[^\x00-\x1f\x7f]{1,4096}"
TOKEN: Final = r"[A-Za-z0-9+/=_-]{1,128}"  # noqa: S105 - a pattern
SNS_CONFIRM: Final = r"https://sns\.[a-z0-9-]{3,40}\.amazonaws\.com(\.cn)?/\?[\x21-\x7e]{1,2000}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One question and its answer.

    when       (value source, value) pairs that must all hold; a value is literal text, ANY or ABSENT
    method     of the request; verified: only after the signature was checked
    require    (value source, parameter) that must be equal, or the question is refused
    echo       value source of what is sent back; pattern: all of it must match. Templates below call it `{p:challenge}`, and its
               HMAC-SHA256 under the secret of the source `{p:hmac_hex}` and `{p:hmac_base64}`
    text, json, headers   the answer: templates; a number in json stays a number
    capture    the echoed value becomes the secret of a source that has none
    visit      the echoed value is an address to GET before answering
    """

    name: str
    when: tuple[tuple[str, str], ...] = ()
    method: str = "POST"
    verified: bool = True
    require: tuple[str, str] | None = None
    echo: str = ""
    pattern: str = PRINTABLE
    status: int = 200
    text: str = ""
    json: tuple[tuple[str, str | int], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    capture: bool = False
    visit: bool = False

    def asked(self, request: Request) -> bool:
        """Whether this request is this question."""
        reader = Reader(request, {})
        return request.method == self.method and all(_holds(reader, source, value) for source, value in self.when)

    def tells(self, request: Request, secrets: Sequence[str]) -> bool:
        """Whether what this request would have echoed is one of these secrets."""
        try:
            value = Reader(request, {}).first(self.echo) if self.echo else None
        except VerificationError:
            return False
        return value is not None and among(value, secrets)


@dataclass(frozen=True, slots=True)
class Handshake:
    """The answer to a question. `capture` is a secret to store, `visit` an address to GET first; each None when there is none."""

    name: str
    response: Response
    capture: str | None = None
    visit: str | None = None


def _holds(reader: Reader, source: str, wanted: str) -> bool:
    try:
        value = reader.first(source)
    except VerificationError:  # given twice: not this question
        return False
    if wanted == ABSENT:
        return value is None
    return bool(value) if wanted == ANY else value == wanted


def find(challenges: Sequence[Challenge], request: Request, *, verified: bool, secrets: Sequence[str]) -> Challenge | None:
    """The question this request asks, if it is one of those that may be answered now.

    A secret is told to who has none, or again to who has it: the sender may not have heard the answer.
    """
    open_now = (one for one in challenges if one.verified is verified and one.asked(request))
    return next((one for one in open_now if not (one.capture and secrets) or one.tells(request, secrets)), None)


def answer(challenge: Challenge, request: Request, params: Mapping[str, str], secret: str) -> Handshake:
    """Answer a question found by `find`. `secret` signs replies that are signed; empty when there is none.

    Raises VerificationError `mismatch`, `missing_param`, `missing_field`, `malformed` or `no_secret`.
    """
    reader = Reader(request, params)
    _check_required(challenge, reader)
    value = _echoed(challenge, reader)
    known = {**params, "challenge": value, **(_signed(secret, value) if _signs(challenge) else {})}
    response = _response(challenge, Reader(request, known))
    if len(response.body) > ECHO_BYTES_MAX:
        raise VerificationError("malformed", f"the reply would be longer than {ECHO_BYTES_MAX} bytes")
    return Handshake(challenge.name, response, value if challenge.capture else None, value if challenge.visit else None)


def _check_required(challenge: Challenge, reader: Reader) -> None:
    if challenge.require is None:
        return
    source, name = challenge.require
    wanted = reader.params.get(name)
    if not wanted:
        raise VerificationError("missing_param", f"this source needs the setting {name!r}")
    if not same(reader.need(source), wanted):
        raise VerificationError("mismatch", f"{source} is not the {name} of this source")


def _echoed(challenge: Challenge, reader: Reader) -> str:
    if not challenge.echo:
        return ""
    value = reader.need(challenge.echo)
    if not re.fullmatch(challenge.pattern, value):
        raise VerificationError("malformed", f"{challenge.echo} is not what this sender sends")
    return value


def _signs(challenge: Challenge) -> bool:
    return any("p:hmac_" in str(template) for _, template in challenge.json)


def _signed(secret: str, value: str) -> dict[str, str]:
    if not secret:
        raise VerificationError("no_secret", "this source has no secret yet")
    digest = hmac.digest(secret.encode(), value.encode("utf-8", "replace"), "sha256")
    return {"hmac_hex": digest.hex(), "hmac_base64": base64.b64encode(digest).decode()}


def _response(challenge: Challenge, reader: Reader) -> Response:
    headers = tuple((name, reader.render(template).decode("utf-8", "replace")) for name, template in challenge.headers)
    if challenge.json:
        members = {name: _member(value, reader) for name, value in challenge.json}
        made = document(challenge.status, members)
        return Response(made.status, made.headers + headers, made.body)
    if challenge.text:
        headers = (("content-type", "text/plain; charset=utf-8"), NOSNIFF, *headers)
    return Response(challenge.status, headers, reader.render(challenge.text))


def _member(value: str | int, reader: Reader) -> str | int:
    return value if isinstance(value, int) else reader.render(value).decode("utf-8", "replace")


ECHO: Final = "{p:challenge}"

SLACK: Final = (Challenge(name="slack_url_verification", when=(("b:type", "url_verification"),), echo="b:challenge", text=ECHO),)
GITHUB: Final = (Challenge(name="github_ping", when=(("h:x-github-event", "ping"),), status=204),)
DISCORD: Final = (
    # An interaction of type 1 is a PING; a webhook event of type 1 is an event, and its PING is type 0.
    Challenge(name="discord_ping", when=(("b:type", "1"), ("b:event.type", ABSENT)), json=(("type", 1),)),
    Challenge(name="discord_event_ping", when=(("b:type", "0"),), status=204),
)
ZOOM: Final = (
    Challenge(
        name="zoom_url_validation",
        when=(("b:event", "endpoint.url_validation"),),
        echo="b:payload.plainToken",
        json=(("plainToken", ECHO), ("encryptedToken", "{p:hmac_hex}")),
    ),
)
META: Final = (
    Challenge(
        name="meta_subscribe",
        method="GET",
        verified=False,
        when=(("q:hub.mode", "subscribe"),),
        require=("q:hub.verify_token", "verify_token"),
        echo="q:hub.challenge",
        text=ECHO,
    ),
)
DROPBOX: Final = (
    Challenge(name="dropbox_challenge", method="GET", verified=False, when=(("q:challenge", ANY),), echo="q:challenge", text=ECHO),
)
X: Final = (
    Challenge(
        name="x_crc",
        method="GET",
        verified=False,
        when=(("q:crc_token", ANY),),
        echo="q:crc_token",
        pattern=TOKEN,  # the answer is an HMAC under the key that also signs bodies: a token that could be a JSON body is not signed
        json=(("response_token", "sha256={p:hmac_base64}"),),
    ),
)
MICROSOFT_GRAPH: Final = (
    Challenge(name="graph_validation", verified=False, when=(("q:validationToken", ANY),), echo="q:validationToken", text=ECHO),
)
CLOUDEVENTS: Final = (
    Challenge(
        name="cloudevents_options",
        method="OPTIONS",
        verified=False,
        when=(("h:webhook-request-origin", ANY),),
        echo="h:webhook-request-origin",
        pattern=r"[A-Za-z0-9.:/*-]{1,253}",
        headers=(("allow", "POST"), ("webhook-allowed-origin", ECHO), ("webhook-allowed-rate", "*")),
    ),
)
EVENT_GRID: Final = (
    Challenge(
        name="event_grid_validation",
        when=(("b:0.eventType", "Microsoft.EventGrid.SubscriptionValidationEvent"),),
        echo="b:0.data.validationCode",
        json=(("validationResponse", ECHO),),
    ),
    *CLOUDEVENTS,
)
TWITCH: Final = (
    Challenge(
        name="twitch_verification",
        when=(("h:twitch-eventsub-message-type", "webhook_callback_verification"),),
        echo="b:challenge",
        text=ECHO,
    ),
)
SNS: Final = (
    Challenge(
        name="sns_subscription", when=(("b:Type", "SubscriptionConfirmation"),), echo="b:SubscribeURL", pattern=SNS_CONFIRM, visit=True
    ),
)
ASANA: Final = (
    Challenge(
        name="asana_hook_secret",
        verified=False,
        when=(("h:x-hook-secret", ANY),),
        echo="h:x-hook-secret",
        pattern=r"[\x21-\x7e]{16,256}",
        headers=(("x-hook-secret", ECHO),),
        capture=True,
    ),
)
NOTION: Final = (
    Challenge(
        name="notion_verification_token",
        verified=False,
        when=(("b:verification_token", ANY),),
        echo="b:verification_token",
        pattern=r"[\x21-\x7e]{16,256}",
        capture=True,
    ),
)
TRELLO: Final = (Challenge(name="trello_head", method="HEAD", verified=False),)
