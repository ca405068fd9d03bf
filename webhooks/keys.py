"""Keys as users and senders write them, and the check of one signature with one key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from webhooks.encoding import from_base64url, from_hex, key_from_base64
from webhooks.scheme import Scheme

PublicKey: TypeAlias = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey

RSA_BITS_MIN: Final = 2_048
HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1(),  # noqa: S303 - SNS and older senders; a second preimage of SHA-1 is still out of reach
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
SECRET_FORMS: Final[Mapping[str, Callable[[str], bytes]]] = {"utf8": str.encode, "base64": key_from_base64, "hex": from_hex}
FAMILIES: Final[Mapping[str, str]] = {"HS": "hmac", "RS": "rsa", "ES": "ecdsa", "Ed": "ed25519"}
KIND_OF: Final[Mapping[str, type[PublicKey]]] = {
    "ed25519": ed25519.Ed25519PublicKey,
    "ecdsa": ec.EllipticCurvePublicKey,
    "rsa": rsa.RSAPublicKey,
}


def symmetric(scheme: Scheme, secret: str) -> bytes:
    """The bytes of a shared secret. Raises ValueError when it is empty or not written as the scheme says."""
    key = SECRET_FORMS[scheme.key](secret.removeprefix(scheme.key_prefix))
    if not key:
        raise ValueError("the secret is empty")
    return key


def check_secret(scheme: Scheme, secret: str) -> None:
    """Refuse, when it is saved, a secret that could never match. Raises ValueError."""
    if not secret:
        raise ValueError("the secret is empty")
    if scheme.keys is not None or scheme.kind in {"none", "token", "basic"}:
        return
    family = FAMILIES[scheme.jwt.algorithms[0][:2]] if scheme.jwt else scheme.kind
    if family == "hmac":
        symmetric(scheme, secret)
    else:
        public(family, scheme.key, scheme.key_prefix, secret)


@lru_cache(maxsize=1024)
def public(kind: str, form: str, prefix: str, text: str) -> PublicKey:
    """The public key in `text`; parsed once, since parsing costs more than checking. Raises ValueError."""
    key = _load(kind, form, text.removeprefix(prefix).strip())
    if not isinstance(key, KIND_OF[kind]):
        raise ValueError(f"this is no {kind} key")  # noqa: TRY004 - the text of the key is wrong, not its Python type
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        raise ValueError(f"an RSA key has at least {RSA_BITS_MIN} bits")
    return key


def _load(kind: str, form: str, text: str) -> object:
    try:
        if "-----BEGIN CERTIFICATE-----" in text:
            return x509.load_pem_x509_certificate(text.encode()).public_key()
        if "-----BEGIN " in text:
            return load_pem_public_key(text.encode())
        raw = from_hex(text) if form == "hex" else key_from_base64("".join(text.split()))
        if kind == "ed25519" and len(raw) == 32:
            return ed25519.Ed25519PublicKey.from_public_bytes(raw)
        return load_der_public_key(raw)
    except UnsupportedAlgorithm as error:
        raise ValueError("this kind of key is not supported") from error


def from_jwk(jwk: Mapping[str, object]) -> PublicKey:
    """The public key of a JSON Web Key (RSA, EC on a NIST curve, or Ed25519). Raises ValueError."""
    try:
        make = JWK_KINDS[str(jwk["kty"])]
        return make(jwk)
    except (KeyError, UnicodeError) as error:
        raise ValueError(f"not a JSON Web Key this can read: {error}") from error


def _number(jwk: Mapping[str, object], member: str) -> int:
    return int.from_bytes(from_base64url(str(jwk[member])), "big")


def _rsa_jwk(jwk: Mapping[str, object]) -> PublicKey:
    return rsa.RSAPublicNumbers(_number(jwk, "e"), _number(jwk, "n")).public_key()


def _ec_jwk(jwk: Mapping[str, object]) -> PublicKey:
    curve = CURVES[str(jwk["crv"])]
    return ec.EllipticCurvePublicNumbers(_number(jwk, "x"), _number(jwk, "y"), curve).public_key()


def _okp_jwk(jwk: Mapping[str, object]) -> PublicKey:
    if jwk["crv"] != "Ed25519":
        raise ValueError("the only curve of kind OKP is Ed25519")
    return ed25519.Ed25519PublicKey.from_public_bytes(from_base64url(str(jwk["x"])))


CURVES: Final[Mapping[str, ec.EllipticCurve]] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
JWK_KINDS: Final[Mapping[str, Callable[[Mapping[str, object]], PublicKey]]] = {"RSA": _rsa_jwk, "EC": _ec_jwk, "OKP": _okp_jwk}


def signed_by(key: PublicKey, signature: bytes, message: bytes, algorithm: str) -> bool:
    """Whether `key` made `signature` over `message`. RSA is PKCS #1 v1.5, ECDSA is DER."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), HASHES[algorithm])
        else:
            key.verify(signature, message, ec.ECDSA(HASHES[algorithm]))
    except InvalidSignature:
        return False
    return True


def same(left: str, right: str) -> bool:
    """Whether two texts are equal, in a time that shows neither where they differ nor how long they are."""
    return hmac.compare_digest(_digest(left), _digest(right))


def among(wanted: str, values: Iterable[str]) -> bool:
    """Whether `wanted` is one of `values`; every one is compared, whatever the others said."""
    found = False
    for value in values:
        found |= same(wanted, value)
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
