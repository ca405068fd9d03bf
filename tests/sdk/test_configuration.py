"""Configuration, durations, and the package's face."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import handlers_sdk
from handlers_sdk import ClientConfig, ConfigError
from handlers_sdk.durations import format_duration, milliseconds, parse_duration
from handlers_sdk.signing import Ed25519Signer, new_secret

SECRETS = (new_secret(), new_secret())
KEY = Ed25519Signer(bytes(32)).public


def test_the_environment_is_read_by_name() -> None:
    config = ClientConfig.from_env(
        {
            "DISPATCHER_API_URL": "https://tasks.example.com/",
            "DISPATCHER_TOKEN": "t",
            "DISPATCHER_SIGNING_SECRETS": f"{SECRETS[0]}, {SECRETS[1]}",
            "DISPATCHER_PUBLIC_KEYS": KEY,
            "DISPATCHER_ENDPOINT_ID": "ep_1,ep_2",
            "DISPATCHER_TENANT": "acme",
            "DISPATCHER_NAMESPACE": "dev_",
            "DISPATCHER_VERSION": "4f2c",
        }
    )
    assert (config.base_url, config.token, config.signing_secrets) == ("https://tasks.example.com", "t", SECRETS)
    assert (config.public_keys, config.endpoint_ids, config.tenant) == ((KEY,), ("ep_1", "ep_2"), "acme")
    assert (config.namespace, config.version) == ("dev_", "4f2c")


def test_defaults_and_overrides() -> None:
    config = ClientConfig.from_env({}, token="t")
    assert config == ClientConfig(token="t")
    assert (config.base_url, config.verify_signatures, config.retry_attempts) == ("http://127.0.0.1:8400", True, 5)
    assert ClientConfig.from_env({"DISPATCHER_SIGNING_SECRET": SECRETS[0]}).signing_secrets == SECRETS[:1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_url": "tasks.example.com"}, "DISPATCHER_API_URL"),
        ({"signing_secrets": ("secret",)}, "DISPATCHER_SIGNING_SECRET"),
        ({"signing_secrets": ("whsec_***",)}, "DISPATCHER_SIGNING_SECRET"),
        ({"public_keys": ("whpk_AAEC",)}, "DISPATCHER_PUBLIC_KEYS"),
        ({"retry_attempts": 0}, "retry_attempts"),
        ({"request_timeout": 0}, "request_timeout"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClientConfig(**settings)


def test_secrets_are_not_shown() -> None:
    shown = repr(ClientConfig(token="t0ken", signing_secrets=SECRETS))
    assert "t0ken" not in shown
    assert SECRETS[0] not in shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h30m", 5400), ("42m30s", 2550), ("250ms", 0.25), ("7d", 604_800), ("1d1h1m1s1ms", 90_061.001), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)
    assert milliseconds(text) == round(seconds * 1000)


@pytest.mark.parametrize(
    "wrong", ["", "90", "-5s", "5 s", "5x", "s", "1s1s", "1.5s", "٣s", "1000000000000d", 5, 5.0, None, timedelta(seconds=-1)]
)
def test_what_is_no_duration(wrong: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(wrong)


@given(st.integers(min_value=0, max_value=10**10))
def test_durations_are_written_as_they_are_read(ms: int) -> None:
    assert milliseconds(format_duration(timedelta(milliseconds=ms))) == ms


def test_every_public_name_is_there() -> None:
    assert sorted(handlers_sdk.__all__) == dir(handlers_sdk)
    for name in handlers_sdk.__all__:
        assert getattr(handlers_sdk, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        handlers_sdk.nothing  # noqa: B018 - the access is the test


def test_wire_and_signing_load_nothing_else() -> None:
    script = (
        "import sys; from handlers_sdk import wire, signing; print(sorted(set(sys.modules) & {'pydantic', 'httpx', 'uvicorn', 'asyncio'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_uvicorn_is_loaded_by_serve_only() -> None:
    script = "import sys; import handlers_sdk; handlers_sdk.Dispatcher().app([]); print('uvicorn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_not_given_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_API_URL", "https://tasks.example.com")
    monkeypatch.setenv("DISPATCHER_TOKEN", "t")
    monkeypatch.setenv("DISPATCHER_PUBLIC_KEYS", KEY)
    monkeypatch.setenv("DISPATCHER_NAMESPACE", "dev_")
    config = ClientConfig(logger=logging.getLogger("app"), namespace="")
    assert (config.base_url, config.token, config.public_keys, config.namespace) == ("https://tasks.example.com", "t", (KEY,), "")
