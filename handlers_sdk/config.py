"""Where the dispatcher is and who may speak for it: one frozen value, read from the environment or given whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from handlers_sdk.errors import ConfigError
from handlers_sdk.signing import HmacSigner, check_public_key

if TYPE_CHECKING:
    import httpx

DEFAULT_API_URL: Final = "http://127.0.0.1:8400"


def _said(name: str) -> Callable[[], str]:
    return lambda: os.environ.get(name, "")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Everything a Dispatcher needs to know. Each field's comment is its documentation.

    What is not given comes from the environment, so that `ClientConfig(logger=…)` has the keys it runs with; `from_env` says which
    variable sets what.
    """

    api_url: str = field(default_factory=lambda: _api_url(os.environ))  # base URL of the dispatcher
    token: str = field(default_factory=_said("DISPATCHER_TOKEN"), repr=False)  # API token; a development dispatcher on loopback needs none
    signing_secrets: tuple[str, ...] = field(
        default_factory=lambda: _secrets(os.environ), repr=False
    )  # `whsec_…`; when given, requests are verified with v1 and no key set is fetched
    public_keys: tuple[str, ...] = field(
        default_factory=lambda: _listed(os.environ, "DISPATCHER_PUBLIC_KEYS")
    )  # `whpk_…`; when given, requests are verified with v1a against these and no key set is fetched
    endpoint_ids: tuple[str, ...] = field(
        default_factory=lambda: _listed(os.environ, "DISPATCHER_ENDPOINT_ID")
    )  # `ep_…` this process answers for; empty: learned from the first verified request
    tenant: str = field(default_factory=_said("DISPATCHER_TENANT"))  # whose keys sign requests to this process; empty: the default tenant
    namespace: str = field(default_factory=_said("DISPATCHER_NAMESPACE"))  # put before every workflow name and event key
    version: str = field(
        default_factory=_said("DISPATCHER_VERSION")
    )  # of the handlers, as deployed; empty: a checksum of their definitions
    verify_signatures: bool = True  # False answers anyone who can reach the URL
    request_timeout: float = 10.0  # seconds for one call to the dispatcher, a long poll's wait not counted
    retry_attempts: int = 5  # tries of a call that certainly did nothing yet; 1 turns retries off
    retry_backoff: float = 0.1  # seconds before the second try; doubles, with jitter, up to 5
    logger: logging.Logger | None = None  # its records, while a task runs, become the task's log lines
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)  # how calls to the dispatcher travel; None: HTTP

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> ClientConfig:
        """Configuration from DISPATCHER_* variables; `overrides` win. ConfigError names the variable that cannot be used.

        DISPATCHER_API_URL, DISPATCHER_TOKEN, DISPATCHER_SIGNING_SECRET or DISPATCHER_SIGNING_SECRETS (comma separated),
        DISPATCHER_PUBLIC_KEYS, DISPATCHER_ENDPOINT_ID (comma separated), DISPATCHER_TENANT, DISPATCHER_NAMESPACE, DISPATCHER_VERSION.
        """
        env = os.environ if environ is None else environ
        config = cls(
            api_url=_api_url(env),
            token=env.get("DISPATCHER_TOKEN", ""),
            signing_secrets=_secrets(env),
            public_keys=_listed(env, "DISPATCHER_PUBLIC_KEYS"),
            endpoint_ids=_listed(env, "DISPATCHER_ENDPOINT_ID"),
            tenant=env.get("DISPATCHER_TENANT", ""),
            namespace=env.get("DISPATCHER_NAMESPACE", ""),
            version=env.get("DISPATCHER_VERSION", ""),
        )
        return replace(config, **overrides)

    def __post_init__(self) -> None:
        if not self.api_url.startswith(("http://", "https://")):
            raise ConfigError(f"DISPATCHER_API_URL={self.api_url!r} is not an http or https URL")
        _check_keys(self.signing_secrets, self.public_keys)
        if self.retry_attempts < 1 or self.request_timeout <= 0 or self.retry_backoff < 0:
            raise ConfigError("retry_attempts is at least 1, request_timeout above zero, retry_backoff not negative")

    @property
    def base_url(self) -> str:
        """`api_url` without a slash at its end."""
        return self.api_url.rstrip("/")

    def namespaced(self, name: str) -> str:
        """A workflow name or event key as the dispatcher knows it."""
        return name if not self.namespace or name.startswith(self.namespace) else self.namespace + name


def _check_keys(secrets: tuple[str, ...], public_keys: tuple[str, ...]) -> None:
    try:
        for secret in secrets:
            HmacSigner(secret)
    except ValueError as error:
        raise ConfigError(f"DISPATCHER_SIGNING_SECRET: {error}; the dispatcher shows it once, when the endpoint is registered") from None
    try:
        for key in public_keys:
            check_public_key(key)
    except ValueError as error:
        raise ConfigError(f"DISPATCHER_PUBLIC_KEYS: {error}; the dispatcher lists them under /.well-known/task-keys") from None


def _api_url(env: Mapping[str, str]) -> str:
    return env.get("DISPATCHER_API_URL") or DEFAULT_API_URL


def _secrets(env: Mapping[str, str]) -> tuple[str, ...]:
    return _listed(env, "DISPATCHER_SIGNING_SECRETS") or _listed(env, "DISPATCHER_SIGNING_SECRET")


def _listed(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part for part in (text.strip() for text in env.get(name, "").split(",")) if part)
