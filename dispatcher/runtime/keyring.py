"""Who signs: tenants' ed25519 keys and endpoints' HMAC secrets, opened once and kept ready to sign."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.sealing import Sealer
from dispatcher.store import keys
from dispatcher.store.database import Database
from dispatcher.store.registry import SecretRow
from handlers_sdk.signing import Ed25519Signer, HmacSigner, Signer

FIRST_KID = "k1"


@dataclass(frozen=True, slots=True)
class Signers:
    """An endpoint's signers, in the order their tokens stand in the header."""

    ed25519: tuple[Signer, ...]
    hmac: tuple[Signer, ...]

    def chosen(self, verified: str | None) -> tuple[Signer, ...]:
        """Those of the scheme the endpoint said it verifies; both as long as that is not known."""
        if verified == "v1":
            return self.hmac
        if verified == "v1a":
            return self.ed25519
        return self.ed25519 + self.hmac


def secret_context(tenant_id: int, endpoint_id: str) -> str:
    """What an endpoint's secret is bound to when sealed."""
    return f"{tenant_id}|{endpoint_id}|secret"


def auth_context(tenant_id: int, endpoint_id: str) -> str:
    """What an endpoint's credentials are bound to when sealed."""
    return f"{tenant_id}|{endpoint_id}|auth"


class Keyring:
    """Opens sealed keys. Every opened key is cached by its sealed form, which never changes."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self.sealer = sealer
        self._ed25519: dict[bytes, Ed25519Signer] = {}
        self._hmac: dict[bytes, HmacSigner] = {}

    async def create_first(self, tenant_id: int, now: datetime) -> None:
        """Make the tenant's first signing key, unless it has one."""
        seed = os.urandom(32)
        sealed = self.sealer.seal(seed, f"{tenant_id}|{FIRST_KID}|signing")
        await keys.add_first_key(self._database, tenant_id, FIRST_KID, sealed, Ed25519Signer(seed).public, now)

    async def active(self, tenant_id: int, now: datetime) -> tuple[Ed25519Signer, ...]:
        """The tenant's keys that sign now."""
        rows = await keys.signing_keys(self._database, tenant_id, now)
        return tuple(self._open_ed25519(tenant_id, row) for row in rows if row.active_from <= now)

    def _open_ed25519(self, tenant_id: int, row: keys.SigningKey) -> Ed25519Signer:
        if row.seed_sealed not in self._ed25519:
            self._ed25519[row.seed_sealed] = Ed25519Signer(self.sealer.open(row.seed_sealed, f"{tenant_id}|{row.kid}|signing"))
        return self._ed25519[row.seed_sealed]

    def signers(
        self, tenant_id: int, endpoint_id: str, secrets: Sequence[SecretRow], ed25519: tuple[Ed25519Signer, ...], now: datetime
    ) -> Signers:
        """Everything that may sign for an endpoint: the newest secret first, older ones while their overlap lasts."""
        valid = [s for s in secrets if s.not_after is None or s.not_after > now]
        return Signers(ed25519, tuple(self._open_hmac(tenant_id, endpoint_id, s.sealed) for s in valid))

    def _open_hmac(self, tenant_id: int, endpoint_id: str, sealed: bytes) -> HmacSigner:
        if sealed not in self._hmac:
            self._hmac[sealed] = HmacSigner(self.sealer.open(sealed, secret_context(tenant_id, endpoint_id)).decode())
        return self._hmac[sealed]

    def seal_auth(self, tenant_id: int, endpoint_id: str, auth: dict[str, Any] | None) -> bytes | None:
        """Credentials for reaching an endpoint, sealed."""
        return self.sealer.seal(json.dumps(auth).encode(), auth_context(tenant_id, endpoint_id)) if auth else None

    def auth_headers(self, tenant_id: int, endpoint_id: str, sealed: bytes | None) -> tuple[tuple[str, str], ...]:
        """The headers that carry an endpoint's credentials."""
        if sealed is None:
            return ()
        auth = json.loads(self.sealer.open(sealed, auth_context(tenant_id, endpoint_id)))
        return ((auth["name"], auth["value"]),)

    async def published(self, tenant_id: int, now: datetime) -> list[dict[str, Any]]:
        """The tenant's public keys as JSON Web Keys, with `whpk` for Standard Webhooks libraries."""
        return [_jwk(row) for row in await keys.signing_keys(self._database, tenant_id, now)]


def _jwk(row: keys.SigningKey) -> dict[str, Any]:
    raw = base64.b64decode(row.public_key.removeprefix("whpk_"))
    x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    expires = int(row.expires_at.timestamp()) if row.expires_at is not None else None
    return {"kid": row.kid, "kty": "OKP", "crv": "Ed25519", "x": x, "whpk": row.public_key, "exp": expires}
