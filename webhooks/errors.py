"""The two ways a request is refused.

WebhookError                      has `code`, for the record, and a message that says what to do
├── VerificationError             the request is not proven to come from the sender
└── BodyError                     it is, but it cannot be taken as a delivery

Codes of VerificationError: `missing_signature` (no signature where the scheme expects one), `malformed` (one is there but is not of
the form), `duplicate` (a header that takes part in the signature came twice), `missing_field` (a signed part is absent), `stale`
(outside the tolerance, past or future), `mismatch` (no active secret made this signature), `no_secret`, `bad_secret` and
`missing_param` (the source is not configured: refused, never let through), `untrusted_key` (the key's address is not the sender's)
and `key_unavailable` (the key could not be fetched; the sender should try again).

Codes of BodyError: `invalid_body`, `too_large`, `content_encoding`, `method`.
"""

from __future__ import annotations


class WebhookError(Exception):
    """A request that is refused. `code` is stable; the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class VerificationError(WebhookError):
    """The request is not proven to come from the sender it claims."""


class BodyError(WebhookError):
    """An authentic request cannot be taken as a delivery: its body, or its method."""
