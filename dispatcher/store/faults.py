"""Which database errors pass by themselves, and which mean that the connection is gone.

The classes are those of the PostgreSQL manual, appendix "Error Codes"; the client-side ones were seen under injected faults
(restart, kill -9 of the postmaster and of a backend, frozen server, failover).
"""

from __future__ import annotations

import asyncpg

# Worth another try although the connection is fine: full disk, conflict, cancelled by a limit, waiting for a lock, plan out of date.
_RETRY_STATES = frozenset({"40001", "40003", "40P01", "55P03", "57014", "58030"})
_RETRY_CLASSES = ("53",)
# The session is over, or leads to a server that no longer takes writes (25006: a demoted primary).
_LOST_STATES = frozenset({"25006", "25P03", "25P04"})
_LOST_CLASSES = ("08", "57P")


class DatabaseUnavailable(Exception):  # noqa: N818 - named for what the caller sees, it is not always a fault of ours
    """The database did not answer: no free connection, no server, or the connection broke.

    `sent` False: nothing was executed. `sent` True: the statement, or the COMMIT, may or may not have taken effect, and no exception can
    tell which: repeat it only if it is idempotent by key, or read the row again. The answer to a caller of the API is 503.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


def is_lost(error: BaseException) -> bool:
    """Whether this error, raised by a statement, means that its connection must not be used again."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate in _LOST_STATES or _in_classes(error, _LOST_CLASSES)
    if isinstance(error, asyncpg.InterfaceError):
        return _is_about_the_connection(error)
    return isinstance(error, asyncpg.InternalClientError)


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed later without anybody changing it.

    Whatever may have been committed is included: whoever repeats must be idempotent (see `DatabaseUnavailable.sent`).
    """
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return True  # a migration changed the result of a cached statement inside a transaction
    if isinstance(error, asyncpg.PostgresError):
        return is_lost(error) or error.sqlstate in _RETRY_STATES or _in_classes(error, _RETRY_CLASSES)
    return isinstance(error, (DatabaseUnavailable, OSError)) or is_lost(error)


def is_conflict(error: BaseException) -> bool:
    """Whether the server rolled this back because of another transaction: running all of it again at once is right."""
    return isinstance(error, (asyncpg.DeadlockDetectedError, asyncpg.SerializationError))


def _in_classes(error: asyncpg.PostgresError, classes: tuple[str, ...]) -> bool:
    state: str | None = error.sqlstate  # None on the base class, whatever the stubs say
    return state is not None and state.startswith(classes)


def _is_about_the_connection(error: asyncpg.InterfaceError) -> bool:
    # The same class also reports wrong arguments ("the server expects 1 argument"), which no retry will cure.
    text = str(error)
    return "connection" in text or "operation is" in text or "pool is clos" in text
