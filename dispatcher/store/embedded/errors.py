"""What can go wrong with the embedded Postgres."""

from __future__ import annotations


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot run here. The message says what is in the way and what to do."""
