"""Where tenants may have the platform send: not to itself, not to its neighbours, in no spelling."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.egress import (
    address_refusal,
    check_addresses,
    embedded_v4,
    parse_networks,
    parse_target,
)
from shellwego.core.errors import InvalidError

REFUSED = (
    "0.0.0.0",  # noqa: S104 - to be refused
    "10.64.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
)
PUBLIC = ("1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::1")


@pytest.mark.parametrize("text", REFUSED)
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    assert address_refusal(ip_address(text), ())


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_allowed(text: str) -> None:
    assert address_refusal(ip_address(text), ()) == ""


@given(st.ip_addresses())
def test_whatever_python_knows_to_be_special_is_refused(address: IPv4Address | IPv6Address) -> None:
    meant = embedded_v4(address)
    if not meant.is_global or meant.is_multicast or meant.is_reserved or meant.is_unspecified:
        assert address_refusal(address, ()) or str(meant).startswith(("192.0.0.", "2001:"))


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_in_each_clothing(address: IPv4Address | IPv6Address) -> None:
    number = int(address)
    clothed = (
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x64FF9B << 96) | number),
        IPv6Address((0x2002 << 112) | (number << 80) | 1),
    )
    for each in clothed:
        assert embedded_v4(each) == address
        assert address_refusal(each, ()) == address_refusal(address, ())


@given(st.ip_addresses())
def test_an_operator_allows_what_he_names_and_nothing_beside_it(address: IPv4Address | IPv6Address) -> None:
    networks = parse_networks(["10.1.0.0/16", "127.0.0.1"])
    allowed = embedded_v4(address) in networks[0] or embedded_v4(address) == ip_address("127.0.0.1")
    if not allowed:
        assert address_refusal(address, networks) == address_refusal(address, ())
    assert address_refusal(ip_address("10.1.2.3"), networks) == ""
    assert address_refusal(ip_address("10.2.2.3"), networks)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "ftp://example.org/",
        "https://",
        "https:///path",
        "https://user@example.org/",
        "https://user:pass@example.org/",
        "https://example.org/#part",
        "https://example.org:0/",
        "https://example.org:/",
        "https://example.org:22/",
        "https://example.org:80/",
        "https://example.org:65536/",
        "https://example.org:x/",
        "https://example.org\\@evil.example/",
        "https://exa mple.org/",
        "https://example.org/\r\nHost: x",
        "https://exämple.org/",
        "https://-example.org/",
        "https://example..org/",
        "http://example.org/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://0x7f.1/",
        "https://1.1.1.0x1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://[1.1.1.1]/",
        "https://example.org/" + "a" * 2048,
        "https://" + "a" * 64 + ".org/",
    ],
)
def test_a_url_that_may_not_be_sent_to_is_refused_by_its_field(url: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_target(url, ())
    assert [error.field for error in refused.value.errors] == ["url"]


@given(st.text(max_size=40))
def test_no_text_is_anything_but_a_target_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://example.org/{text}"):
        try:
            target = parse_target(url, ())
        except InvalidError:
            continue
        assert target.scheme == "https"
        assert target.host == target.host.lower()
        assert target.literal is None or address_refusal(target.literal, ()) == ""


def test_a_url_is_taken_in_its_parts() -> None:
    target = parse_target("HTTPS://Example.ORG:8443/a/b?c=d", ())
    assert (target.scheme, target.host, target.port, target.path) == ("https", "example.org", 8443, "/a/b?c=d")
    assert parse_target("https://[2606:4700:0::1111]", ()).host == "2606:4700::1111"
    assert parse_target("https://example.org", ()).path == "/"


def test_one_bad_address_among_good_ones_is_enough() -> None:
    target = parse_target("https://example.org/", ())
    check_addresses(target, [ip_address("1.1.1.1")], ())
    with pytest.raises(InvalidError, match="link-local"):
        check_addresses(target, [ip_address("1.1.1.1"), ip_address("169.254.169.254")], ())
    with pytest.raises(InvalidError, match="no address"):
        check_addresses(target, [], ())


def test_what_an_operator_allows_for_his_networks_holds_for_no_other() -> None:
    networks = parse_networks(["10.0.0.0/8"])
    for url in ("http://hook.example/", "https://hook.example:22/"):
        target = parse_target(url, networks)
        check_addresses(target, [ip_address("10.0.0.1")], networks)
        with pytest.raises(InvalidError):
            check_addresses(target, [ip_address("1.1.1.1")], networks)
        with pytest.raises(InvalidError):
            check_addresses(target, [ip_address("10.0.0.1"), ip_address("1.1.1.1")], networks)


def test_a_setting_that_is_no_network_is_refused() -> None:
    with pytest.raises(InvalidError, match="not a network"):
        parse_networks(["10.0.0.0/33"])
