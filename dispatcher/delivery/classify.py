"""What an endpoint's answer means: pure, total, and the whole of the response table of handlers_sdk/PROTOCOL.md.

`classify` takes a complete answer to one task, `classify_turn` one to a turn of a durable task, `classify_result` one result of a batch,
`classify_event` the last line of a stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec
from msgspec import Raw

from dispatcher.delivery.envelope import EventLine, ResultLine
from dispatcher.engine import references
from dispatcher.engine.answers import (
    JSON,
    Accepted,
    Again,
    Answer,
    Busy,
    Continued,
    EndpointBroken,
    EndpointGone,
    Failed,
    Lost,
    Mismatched,
    PlatformKilled,
    Pushback,
    Referred,
    Succeeded,
    Suspended,
    TimedOut,
    Turned,
)
from dispatcher.engine.journal import OpRefused, parse_reply, parse_wake
from dispatcher.engine.journal import Reply as TurnReply
from dispatcher.engine.strict_json import JsonRefused, check
from handlers_sdk import wire

PERMANENT: Final = frozenset({400, 406, 411, 414, 422, 431, 451, 501, 505})
PUSHBACK: Final = frozenset({429, 503})
GATEWAY: Final = frozenset({502, 504})
BROKEN: Final[Mapping[int, str]] = {
    401: "the endpoint did not accept the request's signature or credentials: check its secret or public key, and its auth setting",
    402: "the endpoint's platform asks for payment: the deployment may be disabled",
    403: "the endpoint refuses access: check its auth setting and any firewall or deployment protection in front of it",
    404: "nothing is served at the endpoint's URL, or it does not know this handler: check the URL and what is deployed",
    405: "the URL does not take POST: check that it is the handlers' URL",
    407: "a proxy in front of the endpoint asks for credentials",
    415: "the endpoint does not take this request's protocol or media type: register it again, so that it is discovered anew",
    421: "the server does not answer for this host name: check the URL",
}
PLATFORM_MARKERS: Final = ("x-vercel-error", "x-amz-cf-id", "x-amzn-errortype", "x-amz-apigw-id")
"""Headers of a hosting platform that answers in the place of the program it ended."""
PLATFORM_WORDS: Final = (b"FUNCTION_INVOCATION_TIMEOUT", b"TIME_LIMIT", b"Task timed out after", b"Endpoint request timed out")
HEADER_LOG: Final = "task-log"
"""Whether the endpoint still had the part of the log it was not sent: `hit` or `miss`."""
RETRY_LEAST: Final = timedelta(seconds=1)
RETRY_MOST: Final = timedelta(hours=24)
LEASE_MOST: Final = timedelta(days=30)
MESSAGE_LIMIT: Final = 4_000
DETAIL_LIMIT: Final = 65_536
CODE_FAILED: Final = "task_failed"
CODE_TIMED_OUT: Final = "timed_out"

_CHARSETS: Final = {
    "": "utf-8",
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "windows-1252": "cp1252",
}
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}", re.ASCII)
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}", re.ASCII)
_HTML: Final = re.compile(rb"\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_CHARSET: Final = re.compile(r"charset\s*=\s*\"?([A-Za-z0-9_-]{1,40})", re.IGNORECASE)
_RATE_LIMIT: Final = re.compile(r"(?:^|[;,])\s*(r|t)\s*=\s*([0-9]{1,12})")
_UNIX_TIME: Final = 1e9
_SECONDS: Final = re.compile(r"[0-9]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP answer. `headers` are looked up in lower case; `whole` is False when the body was too large to be read."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer is read with. `now` is unix seconds, for dates in headers; `limit` bytes of output; `allow_html` from the target."""

    now: int
    limit: int
    allow_html: bool = False


def classify(reply: Reply, reading: Reading) -> Answer:
    """The meaning of one answer to one task."""
    if 200 <= reply.status < 300:
        return _accepted(reply) if reply.status == 202 else _success(reply, reading)
    return _overridden(reply, reading) or _by_status(reply, reading)


def classify_turn(reply: Reply, reading: Reading) -> Answer:
    """The meaning of one answer to one turn of a durable task. Nothing is taken for one that does not carry the protocol's header.

    What a gateway or a platform says in the place of the endpoint says nothing of the turn.
    """
    if not 200 <= reply.status < 300 or reply.status == 202:
        return _turn_refused(reply, reading)
    if not reply.whole:
        return too_large(reading.limit)
    answer = classify(reply, reading)
    if isinstance(answer, EndpointBroken):
        return answer
    if wire.HEADER_PROTOCOL not in reply.headers:
        return Failed("bad_turn", "the answer to a turn lacks the header task-protocol: something else than a handler has answered")
    missed = reply.headers.get(HEADER_LOG, "").strip().lower() == "miss"
    return turned(reply.body, reading, missed=missed) or Failed("bad_turn", "the answer to a turn is none: it needs a `status`")


def _turn_refused(reply: Reply, reading: Reading) -> Answer:
    gateway = reply.status in GATEWAY and wire.HEADER_PROTOCOL not in reply.headers
    if gateway and _said_retry(reply, _problem(reply)) is None:
        return Lost(f"a gateway answered {reply.status} in the endpoint's place; what became of the turn is unknown")
    return classify(reply, reading)


def turned(body: bytes | Raw, reading: Reading, *, missed: bool = False) -> Answer | None:
    """A turn's answer read; None where it is no such thing."""
    reply = parse_reply(body)
    if reply is None:
        return None
    if reply.state is not None and not isinstance(kept := _json_output(reply.state, reading.limit), Succeeded):
        return Turned(reply.base, reply.ops, kept)
    return Turned(reply.base, reply.ops, _then(reply, reading, missed))


def _then(reply: TurnReply, reading: Reading, missed: bool) -> Answer:
    """What a turn's answer means once its operations are recorded."""
    match reply.status:
        case "done":
            return referred(reply.output, reply.refs) or _json_output(reply.output, reading.limit)
        case "failed":
            error = _object(reply.error)
            return _failure(error, reply.error, reply.retry, _clamped_ms(reply.retry_after_ms))
        case "again":
            return Again(grew=False, whole=missed, memory=reply.state)
        case "continue":
            given = _json_output(reply.input or b"null", reading.limit)
            return Continued(given.output) if isinstance(given, Succeeded) else given
        case "mismatch":
            detail = _storable(reply.at) if reply.at else None
            return Mismatched(_mismatch(_object(reply.at)), detail)
    try:
        parse_wake(reply.wake)
    except OpRefused as refused:
        return Failed(refused.code, str(refused))
    return Suspended(reply.wake, reply.state)


def _mismatch(at: dict[str, Any]) -> str:
    """Which node, what was recorded and what is asked, in words."""
    node, expected, got = (json.dumps(at.get(name), ensure_ascii=False)[:500] for name in ("id", "expected", "got"))
    return f"the code asks for something else than the log has: at {node} {expected} was recorded, {got} is asked for"


def classify_result(line: ResultLine, reading: Reading) -> Answer:
    """The meaning of one result of a batch."""
    if line.status == wire.STATUS_OK:
        return referred(bytes(line.output), line.refs) or _json_output(bytes(line.output), reading.limit)
    if line.status == wire.STATUS_FAIL:
        return _failure(_object(bytes(line.error)), bytes(line.error), line.retry, _clamped_ms(line.retry_after_ms))
    if line.status == wire.STATUS_RETRY:
        message = _text(_object(bytes(line.error)), "message") or "the endpoint asks for this task again later"
        return Pushback(_clamped_ms(line.after_ms), message)
    if line.status == wire.STATUS_ACCEPTED:
        return Accepted(_lease(line.lease_ms))
    return Failed("bad_response", "the result's status is none of ok, fail, retry and accepted")


def classify_event(event: EventLine, reading: Reading) -> Answer | None:
    """The meaning of a stream's last line; None for any other line."""
    if event.type == wire.EVENT_DONE:
        return referred(bytes(event.output), event.refs) or _json_output(bytes(event.output), reading.limit)
    if event.type == wire.EVENT_FAIL:
        return _failure(_object(bytes(event.error)), bytes(event.error), event.retry, _clamped_ms(event.retry_after_ms))
    return None


# ---- 2xx


def media_type(headers: Mapping[str, str]) -> str:
    """The answer's media type in lower case, without parameters; empty if it names none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a media type is JSON (RFC 6839 suffixes included)."""
    return kind == JSON or kind.endswith("+json") or kind == "text/json"


def _success(reply: Reply, reading: Reading) -> Answer:
    if not reply.whole:
        return too_large(reading.limit)
    if reply.status in {204, 205} or not reply.body:
        return Succeeded(b"null")
    kind = media_type(reply.headers)
    if is_json(kind):
        refs = reply.headers.get(wire.HEADER_REFS)
        said = referred(reply.body, [name.strip() for name in refs.split(",")]) if refs is not None else None
        return said or _json_output(reply.body, reading.limit)
    if kind == "text/html" or (not kind and _HTML.match(reply.body)):
        return _text_output(reply, "text/html", reading) if reading.allow_html else EndpointBroken("html", _html_message(reply.status))
    if kind:
        return _text_output(reply, kind, reading)
    answer = _json_output(reply.body, reading.limit)
    return answer if isinstance(answer, Succeeded) else _text_output(reply, "text/plain", reading)


def referred(output: bytes, refs: Collection[str]) -> Referred | Failed | None:
    """What an output means that was said to be a reference; None where nothing was said, whatever it looks like."""
    try:
        reference = references.said(output, refs, "output")
    except ValueError as error:
        return Failed("invalid_ref", str(error), retry=False)
    return Referred(reference) if reference is not None else None


def _accepted(reply: Reply) -> Answer:
    lease = _object(reply.body).get("lease_ms") if reply.whole else None
    return Accepted(_lease(lease if isinstance(lease, int | float) and not isinstance(lease, bool) else None))


def _json_output(output: bytes, limit: int) -> Answer:
    try:
        check(output, max_bytes=limit)
    except JsonRefused as refused:
        if refused.code == "too_large":
            return too_large(limit)
        return Failed("invalid_output", f"the handler's result cannot be kept: {refused.message}", retry=False)
    return Succeeded(output)


def _text_output(reply: Reply, kind: str, reading: Reading) -> Answer:
    """Text of any kind is kept as UTF-8 with its media type; bytes that are no text cannot be."""
    if len(reply.body) > reading.limit:
        return too_large(reading.limit)
    match = _CHARSET.search(reply.headers.get("content-type", ""))
    charset = _CHARSETS.get(match[1].lower() if match else "")
    try:
        text = reply.body.decode(charset or "")
    except (LookupError, UnicodeDecodeError):
        return Failed("invalid_output", f"the handler answered {_shown(kind)} that is not UTF-8 text; answer JSON, or text", retry=False)
    if "\0" in text:
        return Failed("invalid_output", "the handler's text holds a NUL character, which cannot be kept", retry=False)
    return Succeeded(text.encode(), kind if _MEDIA_TYPE.fullmatch(kind) else "text/plain")


def too_large(limit: int) -> Failed:
    """An answer beyond what is taken."""
    return Failed(
        "response_too_large", f"the answer is larger than {limit:,} bytes; store the result elsewhere and answer where", retry=False
    )


def _html_message(status: int) -> str:
    return (
        f"the endpoint answered {status} with an HTML page, which is usually a login or protection page in front of it. "
        "Let deliveries pass it, or set allow_html if the handler's result is a page"
    )


# ---- not 2xx


def _overridden(reply: Reply, reading: Reading) -> Failed | TimedOut | None:
    """The endpoint's own word on retrying goes before its status; `true` adds nothing where a retry is free anyway."""
    problem = _problem(reply)
    retry = _said_retry(reply, problem)
    if retry is None or (retry and reply.status in {409, *PUSHBACK}):
        return None
    return _reported(reply, problem, retry, reading)


def _by_status(reply: Reply, reading: Reading) -> Answer:
    status, problem = reply.status, _problem(reply)
    if status in PUSHBACK:
        return Pushback(_retry_after(reply, problem, reading.now), _told(problem, f"the endpoint answered {status}: it asks for less"))
    if status == 409:
        return Busy(
            _retry_after(reply, problem, reading.now), _told(problem, "the endpoint answered 409: this task is still running there")
        )
    if status == 410:
        return EndpointGone(_told(problem, "the endpoint answered 410: this version is retired"))
    if status == 413:
        return Failed("input_too_large", _told(problem, "the endpoint answered 413: the input is too large for it"), retry=False)
    if status in BROKEN:
        return EndpointBroken(f"http_{status}", f"{BROKEN[status]} (it answered {status}{_quoted(problem)})")
    if 300 <= status < 400:
        return EndpointBroken("redirect", f"the endpoint answered {status}, and redirects are not followed: register the final URL")
    if status in GATEWAY and _platform_killed(reply):
        return PlatformKilled(f"the endpoint's platform ended the attempt (it answered {status})")
    if not 400 <= status < 600:
        return Failed("bad_response", f"the endpoint answered with HTTP status {status}, which means nothing here")
    permanent = status in PERMANENT or (status < 500 and status not in {408, 425})
    return _reported(reply, problem, False if permanent else None, reading)


def _reported(reply: Reply, problem: dict[str, Any], retry: bool | None, reading: Reading) -> Failed | TimedOut:
    error = problem.get("error")
    told = error if isinstance(error, dict) else {}
    fallback = CODE_FAILED if told else f"http_{reply.status}"
    code = _code(told) or _code(problem) or fallback
    message = _text(told, "message") or _told(problem, f"the endpoint answered {reply.status}")
    if code == CODE_TIMED_OUT and retry is None:
        return TimedOut(message)
    detail = msgspec.json.encode(told) if told else None
    return Failed(code, message, retry, _retry_after(reply, problem, reading.now), _storable(detail))


def _said_retry(reply: Reply, problem: dict[str, Any]) -> bool | None:
    header = reply.headers.get(wire.HEADER_RETRY, "").strip().lower()
    if header in {"true", "false"}:
        return header == "true"
    member = problem.get("retry")
    return member if isinstance(member, bool) else None


def _platform_killed(reply: Reply) -> bool:
    """A program that answered itself carries the protocol's header, whatever its platform adds."""
    if wire.HEADER_PROTOCOL in reply.headers:
        return False
    return any(marker in reply.headers for marker in PLATFORM_MARKERS) or any(word in reply.body for word in PLATFORM_WORDS)


# ---- errors as the endpoint reports them


def _failure(error: dict[str, Any], raw: bytes, retry: bool | None, after: timedelta | None) -> Failed | TimedOut:
    code = _code(error) or CODE_FAILED
    message = _text(error, "message") or "the handler failed"
    if code == CODE_TIMED_OUT and retry is None:
        return TimedOut(message)
    return Failed(code, message, retry, after, _storable(raw) if error else None)


def _problem(reply: Reply) -> dict[str, Any]:
    return _object(reply.body) if reply.whole and is_json(media_type(reply.headers)) else {}


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    try:
        value = msgspec.json.decode(text) if text else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _storable(detail: bytes | None) -> bytes | None:
    if detail is None:
        return None
    try:
        check(detail, max_bytes=DETAIL_LIMIT)
    except JsonRefused:
        return None
    return detail


def _code(members: dict[str, Any]) -> str | None:
    code = members.get("code")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None


def _text(members: dict[str, Any], name: str) -> str | None:
    value = members.get(name)
    return _shown(value)[:MESSAGE_LIMIT] if isinstance(value, str) and value else None


def _told(problem: dict[str, Any], otherwise: str) -> str:
    return _text(problem, "detail") or _text(problem, "title") or otherwise


def _quoted(problem: dict[str, Any]) -> str:
    detail = _text(problem, "detail") or _text(problem, "title")
    return f": {detail[:300]}" if detail else ""


def _shown(text: str) -> str:
    return text.replace("\0", "\ufffd")


# ---- times


def _retry_after(reply: Reply, problem: dict[str, Any], now: int) -> timedelta | None:
    """Retry-After, else the problem's own `retry_after_ms`, else the reset of an exhausted RateLimit; 1 s to 24 h."""
    header = reply.headers.get(wire.HEADER_RETRY_AFTER, "").strip()
    said = _parse_retry_after(header, now) if header else None
    if said is not None:
        return said
    member = problem.get("retry_after_ms")
    if isinstance(member, int | float) and not isinstance(member, bool):
        return _clamped_ms(member)
    return _rate_limit_reset(reply.headers, now)


def _parse_retry_after(value: str, now: int) -> timedelta | None:
    if _SECONDS.fullmatch(value):
        return _clamped(float(value))
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return _clamped((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)


def _rate_limit_reset(headers: Mapping[str, str], now: int) -> timedelta | None:
    """`RateLimit: "default";r=0;t=30`, or the older pair of RateLimit-Remaining and -Reset (seconds, or a unix time), X- or not."""
    members = dict(_RATE_LIMIT.findall(headers.get("ratelimit", "")))
    if members.get("r", "").strip("0") == "" and "r" in members and "t" in members:
        return _clamped(float(members["t"]))
    for prefix in ("ratelimit", "x-ratelimit"):
        remaining, reset = headers.get(f"{prefix}-remaining", ""), headers.get(f"{prefix}-reset", "")
        if remaining.strip() == "0" and _SECONDS.fullmatch(reset.strip()):
            seconds = float(reset)
            return _clamped(seconds - now if seconds >= _UNIX_TIME else seconds)
    return None


def _clamped(seconds: float) -> timedelta:
    return timedelta(seconds=min(max(seconds, RETRY_LEAST.total_seconds()), RETRY_MOST.total_seconds()))


def _clamped_ms(milliseconds: float | None) -> timedelta | None:
    return None if milliseconds is None else _clamped(milliseconds / 1_000)


def _lease(milliseconds: float | None) -> timedelta | None:
    if milliseconds is None or not milliseconds > 0:
        return None
    return timedelta(milliseconds=min(milliseconds, LEASE_MOST / timedelta(milliseconds=1)))
