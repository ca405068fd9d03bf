"""What it means that no answer came: from the error, and from how far the request had got.

The line that matters is `Flight.sent`. Before it nothing ran and the attempt is spared; after it the handler may have run.
"""

from __future__ import annotations

import errno
import ssl
from typing import Final

import aiohttp

from dispatcher.delivery.classify import too_large
from dispatcher.delivery.dns import LOCAL_ERRNOS, LookupsBusy, NameLookupFailed
from dispatcher.delivery.egress import EgressRefused
from dispatcher.delivery.flight import Flight
from dispatcher.engine.answers import Answer, EndpointBroken, Failed, LocalFault, Lost, TimedOut, Unreachable

BLOCKED_CODE: Final = "destination_blocked"
_UNREACHABLE: Final = {
    errno.ECONNREFUSED: ("connection_refused", "the endpoint's server refused the connection"),
    errno.ECONNRESET: ("connection_reset", "the endpoint's server reset the connection before it took the request"),
    errno.EPIPE: ("connection_reset", "the endpoint's server closed the connection before it took the request"),
    errno.ETIMEDOUT: ("connect_timeout", "no connection to the endpoint could be made in time"),
    errno.EHOSTUNREACH: ("no_route", "there is no route to the endpoint's server"),
    errno.ENETUNREACH: ("no_route", "there is no route to the endpoint's server"),
}
_OTHERWISE: Final = ("unreachable", "no connection to the endpoint could be made")


def classify_failure(error: BaseException, flight: Flight, limit: int) -> Answer:
    """The meaning of an error of the transport. Its text is never passed on: it names addresses."""
    if flight.overflow:
        return too_large(limit)
    if isinstance(error, EgressRefused):
        return EndpointBroken(BLOCKED_CODE, error.message)
    if isinstance(error, NameLookupFailed):
        return EndpointBroken("dns", str(error))
    if isinstance(error, LookupsBusy):
        return LocalFault("dns_busy", str(error))
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return EndpointBroken("tls", f"no TLS connection to the endpoint: {_tls_reason(error)}")
    number = _errno(error)
    if isinstance(error, MemoryError) or (number in LOCAL_ERRNOS and not flight.sent):
        return LocalFault("out_of_resources", "this dispatcher is out of descriptors, memory or ports")
    return _after_sending(error) if flight.sent else _before_sending(error, number)


def timed_out(flight: Flight, seconds: float) -> Answer:
    """The attempt's time passed: an execution that took too long, unless the request never left."""
    if flight.sent:
        return TimedOut(f"no complete answer within {seconds:g} s")
    return Unreachable(*_UNREACHABLE[errno.ETIMEDOUT])


def stream_cut() -> Failed:
    """A stream that ended without its last line."""
    return Failed("stream_cut", "the endpoint's stream ended without a done or fail line", retry=True)


def missing_result() -> Failed:
    """A batch whose answer says nothing of this task."""
    return Failed("missing_result", "the endpoint's answer to the batch has no result for this task", retry=True)


def unanswered_turn() -> Lost:
    """A batch whose answer ended, or broke off, before it said what a turn came to."""
    return Lost("the endpoint's answer to the batch ended without this turn's; what became of it is unknown")


def coded(coding: str) -> EndpointBroken:
    """An answer in a content coding, though none was asked for."""
    return EndpointBroken(
        "content_encoding", f"the endpoint's answer is coded ({coding[:40]!r}); answer without content-encoding, as asked"
    )


def _before_sending(error: BaseException, number: int | None) -> Answer:
    if isinstance(error, TimeoutError):
        return Unreachable(*_UNREACHABLE[errno.ETIMEDOUT])
    if isinstance(error, aiohttp.InvalidURL):
        return EndpointBroken(BLOCKED_CODE, "the endpoint's URL cannot be used")
    if isinstance(error, OSError | aiohttp.ClientError):
        closed = errno.EPIPE if isinstance(error, aiohttp.ServerDisconnectedError) else number
        return Unreachable(*_UNREACHABLE.get(closed or 0, _OTHERWISE))
    return LocalFault("internal", f"the request could not be made: {type(error).__name__}")


def _after_sending(error: BaseException) -> Answer:
    if isinstance(error, aiohttp.ClientResponseError):
        return _malformed(error)
    return Lost("the connection broke after the request was sent; whether the handler ran is unknown")


def _malformed(error: aiohttp.ClientResponseError) -> Failed:
    """Bytes that are not HTTP, or more header than is taken. Something answered, so the attempt counts."""
    if error.message.startswith(("Too many", "Got more than")):
        return Failed("response_too_large", "the answer's headers are too many or too long", retry=False)
    return Failed("bad_response", "the endpoint's answer is not valid HTTP")


def _tls_reason(error: BaseException) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.replace("_", " ").lower()
    return "the handshake failed"


def _errno(error: BaseException) -> int | None:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ConnectionResetError) and cause.errno is None:
        return errno.ECONNRESET  # asyncio's own, for an end in the middle of a handshake
    return cause.errno if isinstance(cause, OSError) else None
