"""What an operator may set, and what is refused by name before anything starts."""

from __future__ import annotations

import pytest

from dispatcher.settings import Settings, SettingsError, from_environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETENTION_DAYS", "0"),
        ("RETENTION_DAYS", "-1"),
        ("RETENTION_DAYS", "1000000"),  # the moment so long ago cannot be written
        ("RETENTION_DAYS", "30.5"),
        ("RETENTION_DAYS", "a month"),
        ("POLL", "nan"),
        ("POLL", "inf"),
        ("POLL", "0"),
        ("STREAM_STALL", "-inf"),
        ("LEASE", "1"),
        ("ALLOW_HTTP", "perhaps"),
        ("EXECUTION_TIMEOUT", "2073601"),  # more milliseconds than the store counts
        ("MAX_EXECUTION_TIMEOUT", "2592000"),
        ("CANCEL_GRACE", "1e7"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"DISPATCHER_{name}"):
        from_environment({f"DISPATCHER_{name}": value})


def test_what_is_set_is_read() -> None:
    environ = {
        "DISPATCHER_RETENTION_DAYS": "7",
        "DISPATCHER_POLL": "0.5",
        "DISPATCHER_ALLOW_HTTP": "yes",
        "DATABASE_URL": "postgresql://x/y",
    }
    found = from_environment(environ, port=0)
    assert (found.retention_days, found.poll, found.allow_http, found.database_url, found.port) == (7, 0.5, True, "postgresql://x/y", 0)
    assert from_environment({}) == Settings()
