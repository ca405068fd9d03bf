"""The one model of how a sender proves itself. A provider is one of these as a line of data; so is a source a user describes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

from webhooks.canonical import CANONICAL
from webhooks.sources import Place, parse_source, parse_template, places

Kind = Literal["hmac", "ed25519", "ecdsa", "rsa", "token", "basic", "jwt", "none"]
Algorithm = Literal["md5", "sha1", "sha256", "sha512"]
Encoding = Literal["hex", "base64", "base64url"]
Unit = Literal["s", "ms", "iso"]
KeyForm = Literal["utf8", "base64", "hex", "spki", "pem"]
DocumentForm = Literal["x509", "jwks", "jwk"]

SIGNED_KINDS: Final = ("hmac", "ed25519", "ecdsa", "rsa")
SHARED_KEYS: Final = ("utf8", "base64", "hex")
BODY_KINDS: Final = ("b", "f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwt:
    """What a token must say besides being signed.

    `body_hash` and `url_hash` name the claims that carry the SHA-256 of the body and of the URL. `claims` are (claim, template) pairs
    that must be equal (a claim that is a list must contain the value). `fresh` is the claim that must be there: `exp`, or `iat` within
    the tolerance of the scheme. `exp` and `nbf` are obeyed whenever they are there.
    """

    algorithms: tuple[str, ...]
    body_hash: str = ""
    body_encoding: Encoding = "hex"
    url_hash: str = ""
    claims: tuple[tuple[str, str], ...] = ()
    fresh: Literal["exp", "iat", ""] = "exp"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDocument:
    """Where the sender's public keys are fetched. `url` is a template; when it is read from the request, `allowed` must match all of it.

    `post` is a list of (JSON member, template) pairs to POST instead of a GET, for services that hand out keys to known clients:
    `{p:secret}` is the first secret of the source, `{p:key_id}` the key the token names.
    """

    form: DocumentForm
    url: str
    allowed: str = ""
    post: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a sender proves itself.

    kind          hmac | ed25519 | ecdsa | rsa (signatures), token (a shared secret is sent), basic, jwt, none (an explicit choice)
    signature     value source of the signature; every alternative that is present is a candidate
    signed        template of the signed bytes
    canonical     or the name of a function that makes them (`canonical.py`)
    algorithm     the hash; encoding: of the signature; prefix: before it ("sha256=")
    items         (item separator, name/value separator, wanted name) when the signature is one of several items of a header
    timestamp     value source of the time of signing, which must be one of the signed parts; unit: s, ms or iso; tolerance: seconds,
                  enforced both ways
    key           how the secret is written; key_prefix is dropped from it
    delivery_id   template of the sender's id of this delivery
    require       (value source, parameter) pairs that must be equal: binds a key shared by all of a sender's customers to one of them
    jwt, keys     for tokens, and for keys that are fetched
    payload       "claims" when the event is inside the token
    """

    kind: Kind
    signature: str = ""
    signed: str = "{body}"
    canonical: str = ""
    algorithm: Algorithm = "sha256"
    encoding: Encoding = "hex"
    prefix: str = ""
    items: tuple[str, str, str] | None = None
    timestamp: str = ""
    unit: Unit = "s"
    tolerance: int = 300
    key: KeyForm = "utf8"
    key_prefix: str = ""
    delivery_id: str = ""
    require: tuple[tuple[str, str], ...] = ()
    jwt: Jwt | None = None
    keys: KeyDocument | None = None
    payload: Literal["body", "claims"] = "body"

    def __post_init__(self) -> None:
        """Raises ValueError for a scheme that could not be enforced as written."""
        for name, allowed in (("kind", Kind), ("algorithm", Algorithm), ("encoding", Encoding), ("unit", Unit), ("key", KeyForm)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is one of {', '.join(get_args(allowed))}, not {getattr(self, name)!r}")
        if self.kind not in {"none", "basic"}:
            parse_source(self.signature)
        parse_template(self.delivery_id)
        self._check_signed()

    def _check_signed(self) -> None:
        if self.canonical and self.canonical not in CANONICAL:
            raise ValueError(f"there is no canonical form {self.canonical!r}")
        if self.kind == "jwt" and self.jwt is None:
            raise ValueError("a jwt scheme says what its token must contain")
        shared = self.kind == "hmac" or (self.jwt is not None and self.keys is None and self.jwt.algorithms[0].startswith("HS"))
        if shared and self.key not in SHARED_KEYS:
            raise ValueError(f"a shared secret is written in one of {', '.join(SHARED_KEYS)}")
        if self.kind in SIGNED_KINDS and not self.canonical and not places(self.signed):
            raise ValueError("nothing of the request is signed")
        if self.tolerance <= 0:
            raise ValueError("the tolerance is a number of seconds above zero")
        if self.timestamp and not self.covers(*parse_source(self.timestamp)):
            raise ValueError(f"the timestamp {self.timestamp} is not one of the signed parts, so it proves nothing")

    def covers(self, *wanted: Place) -> bool:
        """Whether the proof covers all of these places."""
        covered = self._covered()
        body = Place("", "body") in covered
        return all(place in covered or (body and place.kind in BODY_KINDS) or place.kind == "c" for place in wanted)

    @property
    def covers_body(self) -> bool:
        """Whether a changed body is always noticed. False for shared secrets and for senders that sign a few fields only."""
        return self.covers(Place("", "body"))

    @property
    def id_signed(self) -> bool:
        """Whether the delivery id cannot be changed without breaking the proof."""
        return _id_signed(self)

    def _covered(self) -> frozenset[Place] | set[Place]:
        if self.kind == "jwt":
            return {Place("", "body")} if self.jwt and (self.jwt.body_hash or self.payload == "claims") else set()
        if self.kind not in SIGNED_KINDS:
            return set()
        return CANONICAL[self.canonical].covers if self.canonical else places(self.signed)


@lru_cache(maxsize=1024)
def _id_signed(scheme: Scheme) -> bool:
    return bool(scheme.delivery_id) and scheme.covers(*places(scheme.delivery_id))
