"""Sources a user describes: the same scheme model, filled from the API.

Every description is turned into its scheme while it is validated, so one that could not be enforced is refused when it is saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from webhooks.scheme import Algorithm, Encoding, Jwt, KeyDocument, KeyForm, Scheme, Unit

Header = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")]
Name = Annotated[str, Field(pattern=r"^[^{}|]{1,128}$")]
Text = Annotated[str, Field(max_length=512)]
JwtAlgorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"]


class Description(BaseModel, ABC):
    """What all descriptions have: a template of the sender's delivery id, such as `{h:x-delivery-id}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delivery_id: Text = ""

    @abstractmethod
    def scheme(self) -> Scheme:
        """The scheme this describes."""

    def params(self) -> dict[str, str]:
        """Settings of the source that its scheme reads."""
        return {}

    @model_validator(mode="after")
    def _can_be_enforced(self) -> Self:
        self.scheme()
        return self


class Signature(Description):
    """What signatures have in common.

    `signed` is a template of the signed bytes, `timestamp` the value source of the time of signing, which must be one of its parts.
    """

    header: Header
    encoding: Encoding = "hex"
    prefix: Text = ""
    items: tuple[str, str, str] | None = None
    signed: Text = "{body}"
    timestamp: Text = ""
    unit: Unit = "s"
    tolerance: Annotated[int, Field(gt=0, le=7 * 86_400)] = 300


class Hmac(Signature):
    """A keyed hash in a header. `key` is how the secret is written."""

    type: Literal["hmac"]
    algorithm: Algorithm = "sha256"
    key: Literal["utf8", "base64", "hex"] = "utf8"

    def scheme(self) -> Scheme:
        """The scheme this describes."""
        return Scheme(
            kind="hmac",
            signature=f"h:{self.header}",
            key=self.key,
            **self.model_dump(exclude={"type", "header", "key"}),
        )


class PublicKey(Signature):
    """A signature by a private key; the secret of the source is the public key (PEM, or hex or base64 of the raw or DER form)."""

    type: Literal["ed25519", "ecdsa", "rsa"]
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    key: KeyForm = "pem"

    def scheme(self) -> Scheme:
        """The scheme this describes."""
        return Scheme(kind=self.type, signature=f"h:{self.header}", **self.model_dump(exclude={"type", "header"}))


class Basic(Description):
    """HTTP basic authentication; the secret is the password."""

    type: Literal["basic"]
    username: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^:]*$")]

    def scheme(self) -> Scheme:
        """The scheme this describes."""
        return Scheme(kind="basic", signature="h:authorization", prefix="Basic ", delivery_id=self.delivery_id)

    def params(self) -> dict[str, str]:
        """The user name."""
        return {"username": self.username}


class ApiKey(Description):
    """A secret in a header or in the query of the address."""

    type: Literal["api_key"]
    header: Header | None = None
    query: Name | None = None
    prefix: Text = ""

    def scheme(self) -> Scheme:
        """The scheme this describes. Raises ValueError when not exactly one of header and query is given."""
        if (self.header is None) == (self.query is None):
            raise ValueError("an API key is in a header or in the query: give one of the two")
        source = f"h:{self.header}" if self.header is not None else f"q:{self.query}"
        return Scheme(kind="token", signature=source, prefix=self.prefix, delivery_id=self.delivery_id)


class Bearer(Description):
    """A secret as bearer token."""

    type: Literal["bearer"]

    def scheme(self) -> Scheme:
        """The scheme this describes."""
        return Scheme(kind="token", signature="h:authorization", prefix="Bearer ", delivery_id=self.delivery_id)


class Token(Description):
    """A JSON Web Token. Its keys are fetched from `jwks_url`, or the secret of the source is the key.

    A token whose keys are fetched must name its audience: such keys sign for others too. Without `body_hash` the token proves who
    called, not what was sent.
    """

    type: Literal["jwt"]
    header: Header = "authorization"
    prefix: Text = "Bearer "
    algorithms: Annotated[tuple[JwtAlgorithm, ...], Field(min_length=1, max_length=4)]
    jwks_url: Annotated[str, Field(max_length=512, pattern=r"^https://[^\s{}@\\]+$")] | None = None
    issuer: Name | None = None
    audience: Name | None = None
    body_hash: Annotated[str, Field(max_length=128)] = ""
    body_encoding: Encoding = "hex"
    fresh: Literal["exp", "iat"] = "exp"
    tolerance: Annotated[int, Field(gt=0, le=86_400)] = 300

    def scheme(self) -> Scheme:
        """The scheme this describes. Raises ValueError."""
        families = {name[:2] for name in self.algorithms}
        if self.jwks_url and ("HS" in families or self.audience is None):
            raise ValueError("fetched keys need an audience, and cannot be of an HS algorithm")
        if len(families) > 1:
            raise ValueError("the algorithms are of one family: otherwise a public key could be taken for a shared secret")
        claims = tuple((name, value) for name, value in (("iss", self.issuer), ("aud", self.audience)) if value is not None)
        rules = Jwt(algorithms=self.algorithms, body_hash=self.body_hash, body_encoding=self.body_encoding, claims=claims, fresh=self.fresh)
        keys = KeyDocument(form="jwks", url=self.jwks_url) if self.jwks_url else None
        return Scheme(
            kind="jwt",
            signature=f"h:{self.header}",
            prefix=self.prefix,
            key="utf8" if families == {"HS"} else "pem",
            tolerance=self.tolerance,
            delivery_id=self.delivery_id,
            jwt=rules,
            keys=keys,
        )


class Unverified(Description):
    """Anybody may post. Only ever an explicit choice."""

    type: Literal["none"]

    def scheme(self) -> Scheme:
        """The scheme this describes."""
        return Scheme(kind="none", delivery_id=self.delivery_id)


Auth = Annotated[Hmac | PublicKey | Basic | ApiKey | Bearer | Token | Unverified, Field(discriminator="type")]
AUTH: Final[TypeAdapter[Auth]] = TypeAdapter(Auth)
"""Reads the `auth` member of a webhook source. Raises pydantic.ValidationError."""
