"""What an app may open connections to: read, listed, refused by the field."""

from __future__ import annotations

import pytest

from shellwego.core.destinations import (
    EVERYWHERE,
    MAX_DESTINATIONS,
    Destination,
    DestinationWish,
    Egress,
    IpProtocol,
    changed,
    parse_destinations,
)
from shellwego.core.errors import InvalidError


def wish(network: str, ports: str = "", protocol: IpProtocol = IpProtocol.ANY) -> DestinationWish:
    return DestinationWish(network=network, protocol=protocol, ports=ports)


def on(network: str) -> Destination:
    return Destination(network=network)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (wish("203.0.113.0/24"), "203.0.113.0/24"),
        (wish("203.0.113.7"), "203.0.113.7/32"),
        (wish("0.0.0.0/0", "53", IpProtocol.UDP), "0.0.0.0/0:53/udp"),
        (wish("10.0.0.0/8", "8000-8100", IpProtocol.TCP), "10.0.0.0/8:8000-8100/tcp"),
        (wish("203.0.113.7", protocol=IpProtocol.ICMP), "203.0.113.7/32/icmp"),
        (wish("203.0.113.7", "1-65535", IpProtocol.TCP), "203.0.113.7/32:1-65535/tcp"),
    ],
)
def test_a_destination_has_one_spelling(given: DestinationWish, text: str) -> None:
    assert [str(each) for each in parse_destinations("allow", [given])] == [text]


@pytest.mark.parametrize(
    ("given", "field", "code"),
    [
        (wish("example.org"), "network", "bad-network"),
        (wish("203.0.113.1/24"), "network", "bad-network"),
        (wish("$(reboot)"), "network", "bad-network"),
        (wish("2001:db8::/32"), "network", "no-ipv6"),
        (wish("169.254.169.254"), "network", "closed-to-all"),
        (wish("10.64.0.0/16"), "network", "closed-to-all"),
        (wish("127.0.0.1"), "network", "closed-to-all"),
        (wish("224.0.0.5"), "network", "closed-to-all"),
        (wish("203.0.113.0/24", "443"), "ports", "no-ports"),
        (wish("203.0.113.0/24", "443", IpProtocol.ICMP), "ports", "no-ports"),
        (wish("203.0.113.0/24", "https", IpProtocol.TCP), "ports", "bad-ports"),
        (wish("203.0.113.0/24", "443-", IpProtocol.TCP), "ports", "bad-ports"),
        (wish("203.0.113.0/24", "0", IpProtocol.TCP), "ports", "out-of-range"),
        (wish("203.0.113.0/24", "90-80", IpProtocol.TCP), "ports", "out-of-range"),
        (wish("203.0.113.0/24", "65536", IpProtocol.UDP), "ports", "out-of-range"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(given: DestinationWish, field: str, code: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_destinations("allow", [wish("203.0.113.0/24"), given])
    (fault,) = refused.value.errors
    assert (refused.value.code, fault.field, fault.code) == ("egress-refused", f"allow.1.{field}", code)


def test_every_fault_is_named() -> None:
    with pytest.raises(InvalidError) as refused:
        parse_destinations("deny", [wish("x"), wish("203.0.113.7"), wish("203.0.113.7", "1")])
    assert [fault.field for fault in refused.value.errors] == ["deny.0.network", "deny.2.ports"]


def test_an_app_is_open_at_first_and_its_list_counts_when_it_is_held_to_it() -> None:
    noted = changed(EVERYWHERE, allow=[on("203.0.113.0/24")])
    assert (EVERYWHERE.held_to, noted.held_to) == (None, None)
    held = changed(noted, listed=True)
    assert held.held_to == (on("203.0.113.0/24"),)
    assert changed(held, listed=False) == noted
    assert changed(EVERYWHERE, listed=True).held_to == ()


def test_what_is_allowed_twice_is_listed_once_and_what_is_denied_goes() -> None:
    one, other = on("203.0.113.0/24"), on("198.51.100.0/24")
    both = changed(EVERYWHERE, allow=[one, other, one])
    assert both.destinations == (one, other)
    assert changed(both, allow=[one], deny=[other]).destinations == (one,)
    with pytest.raises(InvalidError) as refused:
        changed(both, deny=[one, on("192.0.2.0/24")])
    assert [fault.field for fault in refused.value.errors] == ["deny.1"]


def test_a_list_has_an_end() -> None:
    full = changed(EVERYWHERE, allow=[on(f"203.0.113.{n}/32") for n in range(MAX_DESTINATIONS)])
    assert changed(full, allow=full.destinations) == full
    with pytest.raises(InvalidError) as refused:
        changed(full, allow=[on("198.51.100.0/24")])
    assert refused.value.errors[0].code == "too-many"
    assert len(Egress(listed=True).destinations) == 0
