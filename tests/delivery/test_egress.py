"""The tables and the verdicts, without a socket."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.delivery import EgressPolicy, EgressRefused, check_url
from dispatcher.delivery.egress import BLOCKED, judge, judge_all
from tests.delivery import hostile

PLAIN = EgressPolicy()


@pytest.mark.parametrize("address", [*hostile.NOT_GLOBAL_V4, *hostile.NOT_GLOBAL_V6, *hostile.METADATA])
def test_not_global(address: str) -> None:
    assert judge(address, 443, PLAIN)


@pytest.mark.parametrize("address", hostile.GLOBAL)
def test_global(address: str) -> None:
    assert judge(address, 443, PLAIN) is None
    assert judge(address, 8443, PLAIN) is None
    assert judge(address, 22, PLAIN) == "port"


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "::1%lo", "fe80::1%eth0", "8.8.8.8 ", "[::1]", "1.2.3"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    for policy in (PLAIN, EgressPolicy(dev=True), EgressPolicy.parse(allow="0.0.0.0/0,::/0")):
        assert judge(text, 443, policy)


@pytest.mark.parametrize("address", hostile.METADATA)
def test_no_setting_opens_metadata(address: str) -> None:
    policy = EgressPolicy.parse(allow="0.0.0.0/0,::/0,169.254.0.0/16,fd00::/8", nat64="64:ff9b::/96", dev=True)
    assert judge(address, 443, policy) in {"metadata", "reserved"}
    if "." in address:
        assert judge(f"64:ff9b::{address}", 443, policy)
        assert judge(f"::ffff:{address}", 443, policy)


def test_an_allow_list_opens_what_it_names() -> None:
    policy = EgressPolicy.parse(allow="10.1.0.0/16, 192.168.7.9:3000,[fd12::/16]:9000 ,fd34::/16")
    assert judge("10.1.2.3", 12_345, policy) is None
    assert judge("10.2.0.1", 443, policy) == "private"
    assert judge("192.168.7.9", 3_000, policy) is None
    assert judge("192.168.7.9", 443, policy) == "private"
    assert judge("fd12::5", 9_000, policy) is None
    assert judge("fd12::5", 443, policy) == "private"
    assert judge("fd34::5", 1, policy) is None
    assert judge("127.0.0.1", 443, policy) == "loopback"


def test_an_allow_list_of_everything_opens_only_what_is_private() -> None:
    policy = EgressPolicy.parse(allow="0.0.0.0/0,::/0")
    for address in ("10.0.0.1", "127.0.0.1", "::1", "fd12::1", "100.64.0.1"):
        assert judge(address, 80, policy) is None
    for address in (
        "169.254.1.1",
        "224.0.0.1",
        "0.0.0.0",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "fe80::1",
        "ff02::1",
        "198.18.0.1",
    ):
        assert judge(address, 80, policy)


def test_a_deny_list_closes_inside_what_is_open() -> None:
    policy = EgressPolicy.parse(allow="10.0.0.0/8", deny="10.0.0.5:5432,10.9.0.0/16,8.8.8.8", dev=True)
    assert judge("10.0.0.5", 5_432, policy) == "denied"
    assert judge("10.0.0.5", 443, policy) is None
    assert judge("10.9.1.1", 443, policy) == "denied"
    assert judge("8.8.8.8", 443, policy) == "denied"
    closed = EgressPolicy.parse(deny="127.0.0.0/8:8400,[::1/128]:8400", dev=True)
    assert judge("127.0.0.1", 8_400, closed) == "denied"
    assert judge("::1", 8_400, closed) == "denied"
    assert judge("127.0.0.1", 3_000, closed) is None


def test_development_opens_loopback_alone() -> None:
    policy = EgressPolicy(dev=True)
    assert judge("127.0.0.1", 3_000, policy) is None
    assert judge("::1", 3_000, policy) is None
    for address in ("10.0.0.1", "192.168.1.1", "169.254.169.254", "::ffff:127.0.0.1"):
        assert judge(address, 443, policy)


def test_one_private_address_spoils_a_name() -> None:
    assert judge_all(["8.8.8.8", "10.0.0.1", "1.1.1.1"], 443, PLAIN) == "private"
    assert judge_all(["8.8.8.8", "2606:4700::1"], 443, PLAIN) is None


# RFC 6052, section 2.4: 192.0.2.33 behind prefixes of each length; here with an address that is public.
NAT64 = [
    ("2001:db8::/32", "2001:db8:808:808::"),
    ("2001:db8:100::/40", "2001:db8:108:808:8::"),
    ("2001:db8:122::/48", "2001:db8:122:808:8:800::"),
    ("2001:db8:122:300::/56", "2001:db8:122:308:8:808::"),
    ("2001:db8:122:344::/64", "2001:db8:122:344:8:808:800::"),
    ("2001:db8:122:344::/96", "2001:db8:122:344::808:808"),
]


@pytest.mark.parametrize(("prefix", "address"), NAT64)
def test_behind_a_nat64_prefix_the_embedded_address_is_judged(prefix: str, address: str) -> None:
    assert judge(address, 443, EgressPolicy.parse(nat64=prefix)) is None
    assert judge(address, 443, PLAIN)
    network = IPv6Network(prefix)
    private = {32: "2001:db8:a00:1::", 96: "2001:db8:122:344::a00:1"}.get(network.prefixlen)
    if private:
        assert judge(private, 443, EgressPolicy.parse(nat64=prefix)) == "private"


UNREADABLE = [
    ("allow", "10.0.0.1/8"),
    ("allow", "10.0.0.0/8:0"),
    ("allow", "10.0.0.0/8:x"),
    ("deny", "[fd00::/8"),
    ("deny", "host"),
    ("ports", "443,99999"),
    ("ports", "a"),
    ("nat64", "64:ff9b::/95"),
    ("nat64", "10.0.0.0/8"),
]


@pytest.mark.parametrize(("setting", "text"), UNREADABLE)
def test_settings_that_cannot_be_read(setting: str, text: str) -> None:
    settings: dict[str, Any] = {setting: text}
    with pytest.raises(ValueError, match=r"is not|permitted"):
        EgressPolicy.parse(**settings)


def test_ports_by_default_and_by_choice() -> None:
    assert EgressPolicy.parse().ports == {443, 8_443}
    assert EgressPolicy.parse(allow_http=True).ports == {80, 443, 8_443}
    assert EgressPolicy.parse(ports="444, 445").ports == {444, 445}


# ---- URLs


@pytest.mark.parametrize(
    ("text", "requested"),
    [
        ("https://app.example.com/tasks?a=b#part", "https://app.example.com/tasks?a=b"),
        ("https://app.example.com:8443", "https://app.example.com:8443"),
        ("HTTPS://App.Example.com/", "https://app.example.com/"),
        ("https://münchen.example/x", "https://xn--mnchen-3ya.example/x"),
        ("https://8.8.8.8/x", "https://8.8.8.8/x"),
        ("https://[2606:4700::1111]/x", "https://[2606:4700::1111]/x"),
        ("https://my_service.internal/", "https://my_service.internal/"),
    ],
)
def test_urls_as_they_are_requested(text: str, requested: str) -> None:
    assert str(check_url(text, PLAIN)) == requested


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://app.example.com/", "scheme"),
        ("ftp://app.example.com/", "scheme"),
        ("https://user:pass@app.example.com/", "userinfo"),
        ("https://user@app.example.com/", "userinfo"),
        ("https://app.example.com:22/", "port"),
        ("https://8.8.8.8:22/", "port"),
        ("https://app.example.com/a b", "url"),
        ("https://app.example.com\\@10.0.0.1/", "url"),
        ("https://app.example.com/\r\nx: y", "url"),
        ("https:///tasks", "host"),
        ("/tasks", "url"),
        ("https://app..example.com/", "host"),
        ("https://-app.example.com/", "host"),
        ("https://" + "a" * 64 + ".example.com/", "host"),
        ("https://app.example.com/" + "a" * 2_048, "url"),
        ("https://app.example.com:70000/", "url"),
        ("https://app.example.com:0/", "url"),
    ],
)
def test_urls_refused_with_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(EgressRefused) as caught:
        check_url(text, PLAIN)
    assert caught.value.reason == reason


def test_of_an_address_a_tenant_learns_nothing() -> None:
    texts = set()
    for host in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "2130706433", "[2002:7f00:1::]"):
        with pytest.raises(EgressRefused) as caught:
            check_url(f"https://{host}/", PLAIN)
        texts.add(caught.value.message)
    assert texts == {BLOCKED}


def test_http_and_other_ports_where_they_are_allowed() -> None:
    http = EgressPolicy.parse(allow_http=True, allow="10.0.0.0/8:3000")
    assert check_url("http://app.example.com/", http).port == 80
    assert check_url("http://app.internal:3000/", http).port == 3_000
    with pytest.raises(EgressRefused):
        check_url("http://app.internal:3001/", http)
    assert check_url("http://localhost:3000/", EgressPolicy(dev=True)).port == 3_000


@settings(deadline=None)
@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.integers(min_value=1, max_value=65_535))
def test_what_passes_is_global_by_the_standard_library_too(address: object, port: int) -> None:
    if judge(str(address), port, PLAIN) is None:
        assert ip_address(str(address)).is_global
        assert port in {443, 8_443}


@settings(deadline=None)
@given(st.text(max_size=40) | st.text("htps:/@#?[].%0127x\\ a", max_size=40))
def test_any_text_gets_a_verdict(text: str) -> None:
    for candidate in (text, f"https://{text}/", f"https://127.0.0.1{text}"):
        try:
            url = check_url(candidate, PLAIN)
        except EgressRefused:
            continue
        assert url.scheme == "https"
        assert url.raw_host
        assert url.raw_user is None
