"""What an attempt's request came back as: the vocabulary delivery classifies into and the rules decide on.

Delivery turns every wire outcome into exactly one of these; `engine.attempts` decides what happens next.
Sources of the classes: the response table of handlers_sdk/PROTOCOL.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from dispatcher.engine.references import Reference

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler finished. `output` is JSON text (or raw text when `content_type` is not JSON)."""

    output: bytes
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Referred:
    """The handler finished, and has put its output where it can be fetched. Becomes Succeeded with it, or Failed, before it is settled."""

    reference: Reference


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler ran and failed: consumes an attempt.

    `retry` None leaves the decision to the task's own retry budget; False is final; True retries while budget lasts.
    `detail` is the JSON text of the error the endpoint reported (name, message, stack, cause), if any.
    """

    code: str
    message: str
    retry: bool | None = None
    retry_after: timedelta | None = None
    detail: bytes | None = None


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt reached its execution deadline. A failure with error code `timed_out`."""

    message: str


@dataclass(frozen=True, slots=True)
class PlatformKilled:
    """The hosting platform ended the attempt (502/504 with its marker): consumes an attempt, retried at once."""

    message: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """202: the attempt goes on at the endpoint; its result comes by callback before the lease ends."""

    lease: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Pushback:
    """429/503: the endpoint asks for less. No attempt consumed."""

    retry_after: timedelta | None
    message: str


@dataclass(frozen=True, slots=True)
class Busy:
    """409: the same attempt id is still running there. No attempt consumed."""

    retry_after: timedelta | None
    message: str


@dataclass(frozen=True, slots=True)
class EndpointBroken:
    """The endpoint itself is misconfigured (401/403/404/405/415/421, 3xx, TLS, DNS, html): spares the attempt, opens the circuit."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class EndpointGone:
    """410: this endpoint version is retired. Spares the attempt."""

    message: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Refused or reset before any request byte was sent: nothing ran. Spares the attempt, counts against the endpoint."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection broke after request bytes were sent: whether the handler ran is unknown."""

    message: str


@dataclass(frozen=True, slots=True)
class LocalFault:
    """Our own side could not send (no descriptors, no memory): nobody's attempt, nobody's health."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Suspended:
    """A durable task's turn is over and it waits: `wake` says for what, `memory` is what it wants to be given back (state mode)."""

    wake: bytes
    memory: bytes | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """A durable task wants another turn at once. `whole`: with all of its log, because the endpoint has lost what it knew of it."""

    grew: bool
    whole: bool = False
    memory: bytes | None = None


@dataclass(frozen=True, slots=True)
class Continued:
    """A durable task begins anew, with an empty log and another input."""

    input: bytes


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The endpoint's code asks for something else than its log has (`detail` is JSON: where, what was recorded, what is asked), or the
    version the task is pinned to is gone.
    """

    message: str
    detail: bytes | None = None
    code: str = "code_mismatch"


@dataclass(frozen=True, slots=True)
class Turned:
    """A turn's answer as delivery reads it: operations to append, compare on `base`, and what the answer is once they are."""

    base: int | None
    ops: tuple[bytes, ...]
    then: Answer


Answer = (
    Succeeded
    | Referred
    | Failed
    | TimedOut
    | PlatformKilled
    | Accepted
    | Pushback
    | Busy
    | EndpointBroken
    | EndpointGone
    | Unreachable
    | Lost
    | LocalFault
    | Suspended
    | Again
    | Continued
    | Mismatched
    | Turned
)
