"""Where requests may go: pure tables and verdicts, no sockets.

The rule is kept where the socket is made (`transport.py`), on the literal address: a name is resolved once per connection and every one
of its addresses is judged, so neither an odd spelling of an address nor a name that changes its answer has a way around it.

Own tables instead of `ipaddress.is_global`, which calls 64:ff9b::7f00:1, ::127.0.0.1, 192.88.99.1 and 168.63.129.16 global.
Sources: the IANA special-purpose address registries (RFC 6890 and its updates), RFC 6052 for NAT64, the vendors' pages for metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from yarl import URL

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LOOPBACK: Final[tuple[Network, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

# What an operator may open by naming it.
_PRIVATE: Final[tuple[Network, ...]] = (
    *_LOOPBACK,
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),  # shared address space: carriers, overlay networks
    IPv6Network("fc00::/7"),
)

# Credentials of the machine live here; no setting opens them.
_METADATA: Final[tuple[Network, ...]] = (
    IPv4Network("169.254.169.254/32"),
    IPv4Network("169.254.170.2/32"),
    IPv4Network("169.254.170.23/32"),
    IPv4Network("100.100.100.200/32"),
    IPv4Network("192.0.0.192/32"),
    IPv4Network("168.63.129.16/32"),
    IPv6Network("fd00:ec2::/32"),
    IPv6Network("fd20:ce::254/128"),
)

_SPECIAL_V4: Final[tuple[IPv4Network, ...]] = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)

_GLOBAL_V6: Final = IPv6Network("2000::/3")
_SPECIAL_V6: Final[tuple[IPv6Network, ...]] = tuple(
    IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48")
)
# Forms that carry an IPv4 address some gateway would unwrap: mapped, translated, compatible, NAT64, 6to4, Teredo.
_EMBEDDING: Final[tuple[IPv6Network, ...]] = tuple(
    IPv6Network(text) for text in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})
_NAT64_LENGTHS: Final = frozenset({32, 40, 48, 56, 64, 96})
HTTPS_PORTS: Final = frozenset({443, 8443})
URL_LIMIT: Final = 2_048
_NEVER_IN_URL: Final = re.compile(r"[\x00-\x20\x7f\\]")
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*\.?", re.ASCII | re.IGNORECASE)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)
BLOCKED: Final = "deliveries to this destination are not allowed here; the operator of this dispatcher decides which are"


class EgressRefused(Exception):  # noqa: N818 - a verdict, not a fault
    """A request that may not be made.

    `reason` is for the operator's log. The text is for tenants: about the URL they wrote it says what is wrong, about an address only
    that it is refused, because anything more would let them map a network they cannot see.
    """

    def __init__(self, reason: str, message: str = BLOCKED) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Opening:
    """A range of addresses, and the one port meant if not all."""

    network: Network
    port: int | None = None

    def covers(self, address: Address, port: int) -> bool:
        return self.port in {None, port} and address in self.network


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What one deployment lets endpoints be. Made by the operator, never by a tenant.

    `allow` opens private ranges (and any port there), `deny` closes ranges whatever else is open: the database, this server itself.
    `ports` are those of public addresses. `nat64` names the prefixes of a NAT64-only network, whose embedded address is then judged.
    `dev` opens loopback, every port, and plain http.
    """

    allow: tuple[Opening, ...] = ()
    deny: tuple[Opening, ...] = ()
    ports: frozenset[int] = HTTPS_PORTS
    nat64: tuple[IPv6Network, ...] = ()
    allow_http: bool = False
    dev: bool = False

    @classmethod
    def parse(
        cls, *, allow: str = "", deny: str = "", ports: str = "", nat64: str = "", allow_http: bool = False, dev: bool = False
    ) -> EgressPolicy:
        """From settings: lists separated by commas, of `CIDR` or `CIDR:port` (an IPv6 one with a port: `[CIDR]:port`).

        `ports` replaces 443, 8443 and, with http, 80. ValueError names the item that cannot be read.
        """
        chosen = frozenset(_port(item) for item in _items(ports))
        default = HTTPS_PORTS | ({80} if allow_http or dev else set())
        return cls(
            allow=tuple(_opening(item) for item in _items(allow)),
            deny=tuple(_opening(item) for item in _items(deny)),
            ports=chosen or default,
            nat64=tuple(_nat64_prefix(item) for item in _items(nat64)),
            allow_http=allow_http,
            dev=dev,
        )

    @property
    def http(self) -> bool:
        """Whether plain http may be used at all."""
        return self.allow_http or self.dev


def check_url(text: str, policy: EgressPolicy) -> URL:
    """The URL as it will be requested, without its fragment; EgressRefused when it may not be.

    Looks only at what the HTTP client itself will use (`yarl` is its parser), so there is no second reading to disagree with.
    A name passes here and is judged by its addresses when a connection is made.
    """
    url = _parse_url(text)
    if url.scheme != "https" and not (url.scheme == "http" and policy.http):
        raise EgressRefused("scheme", "the URL must start with https:// (plain http only where the operator allows it)")
    if "@" in url.raw_authority:
        raise EgressRefused("userinfo", "the URL must not carry a user name or password; use the endpoint's auth setting")
    host, port = url.raw_host or "", url.port or 0
    if ":" in host or ends_in_number(host):
        reason = judge(host, port, policy)
        if reason:
            raise EgressRefused(reason)
    elif not _NAME.fullmatch(host) or len(host) > 253:
        raise EgressRefused("host", "the URL has no usable host name")
    elif not policy.dev and port not in policy.ports and not any(opening.port in {None, port} for opening in policy.allow):
        raise EgressRefused("port", f"port {port} is not among those this dispatcher delivers to")
    return url.with_fragment(None)


def _parse_url(text: str) -> URL:
    if len(text) > URL_LIMIT or _NEVER_IN_URL.search(text):
        raise EgressRefused("url", f"the URL must have at most {URL_LIMIT:,} characters and no spaces, backslashes or control characters")
    try:
        url = URL(text)
        if not 0 < (url.port or 0) < 65_536:
            raise EgressRefused("url", "the URL must be absolute, such as https://app.example.com/tasks")
    except ValueError:
        raise EgressRefused("url", "the URL cannot be read; write it as https://app.example.com/tasks") from None
    return url


def ends_in_number(host: str) -> bool:
    """Whether a resolver might read this host as an IPv4 address: its last label is a number, as in 127.1, 0x7f000001 or 2130706433."""
    return bool(_NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]))


def judge(address: str, port: int, policy: EgressPolicy) -> str | None:
    """Why no connection may be made to this literal address, or None if it may. Anything not clearly allowed is refused."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return "unreadable"
    if isinstance(parsed, IPv4Address):
        return _judge(parsed, port, policy, _special_v4(parsed))
    if parsed.scope_id is not None:
        return "zone"
    for prefix in policy.nat64:
        if parsed in prefix:
            return judge(str(_embedded(parsed, prefix.prefixlen)), port, policy)
    return _judge(parsed, port, policy, _special_v6(parsed))


def judge_all(addresses: Iterable[str], port: int, policy: EgressPolicy) -> str | None:
    """The first refusal among a name's addresses: one private address among public ones spoils them all."""
    return next((reason for address in addresses if (reason := judge(address, port, policy))), None)


def _judge(address: Address, port: int, policy: EgressPolicy, special: str | None) -> str | None:
    if any(address in network for network in _METADATA):
        return "metadata"
    if any(opening.covers(address, port) for opening in policy.deny):
        return "denied"
    if special is None:
        return None if policy.dev or port in policy.ports or _opened(address, port, policy) else "port"
    if special not in {"private", "loopback"}:
        return special
    if (special == "loopback" and policy.dev) or _opened(address, port, policy):
        return None
    return special


def _opened(address: Address, port: int, policy: EgressPolicy) -> bool:
    return any(opening.covers(address, port) for opening in policy.allow)


def _special_v4(address: IPv4Address) -> str | None:
    return _private(address) or ("reserved" if any(address in network for network in _SPECIAL_V4) else None)


def _special_v6(address: IPv6Address) -> str | None:
    private = _private(address)
    if private:
        return private
    if any(address in network for network in _EMBEDDING) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return "embedded_ipv4"
    if address not in _GLOBAL_V6 or any(address in network for network in _SPECIAL_V6):
        return "reserved"
    return None


def _private(address: Address) -> str | None:
    if any(address in network for network in _LOOPBACK):
        return "loopback"
    return "private" if any(address in network for network in _PRIVATE) else None


def _embedded(address: IPv6Address, length: int) -> IPv4Address:
    """The IPv4 address behind a NAT64 prefix (RFC 6052, 2.2): it follows the prefix, stepping over bits 64 to 71."""
    packed = address.packed
    if length == 96:
        return IPv4Address(packed[12:])
    without_gap = packed[:8] + packed[9:]
    return IPv4Address(without_gap[length // 8 : length // 8 + 4])


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _opening(item: str) -> Opening:
    network, port = item, ""
    if item.startswith("["):
        network, bracket, rest = item[1:].partition("]")
        port = rest.removeprefix(":")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{item!r} is not CIDR, CIDR:port or [CIDR]:port")
    elif item.count(":") == 1:
        network, _, port = item.partition(":")
    try:
        return Opening(ip_network(network), _port(port) if port else None)
    except ValueError as error:
        raise ValueError(f"{item!r} is not CIDR, CIDR:port or [CIDR]:port: {error}") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
        raise ValueError(f"{text!r} is not a port")
    return int(text)


def _nat64_prefix(item: str) -> IPv6Network:
    prefix = ip_network(item)
    if not isinstance(prefix, IPv6Network) or prefix.prefixlen not in _NAT64_LENGTHS:
        raise ValueError(f"{item!r} is not a NAT64 prefix: an IPv6 network of length 32, 40, 48, 56, 64 or 96")
    return prefix
