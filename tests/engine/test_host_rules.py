"""The firewall as text."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from plasmavmc.host.helper.rules import network_numbers, render, render_removal
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Bridge, Member, Peer, RuleSet
from plasmavmc.types import mac_of, vm_key

NAMES = HostNames.of("swg_rules")
BRIDGE = Bridge(NAMES.bridge, IPv4Address("10.64.0.1"), IPv4Network("10.64.0.0/20"))


def member(number: int, network: str) -> Member:
    key = vm_key(f"vm_{number}")
    return Member(NAMES.tap(key), mac_of(key), BRIDGE.network[number + 2], network)


def lines(*members: Member) -> list[str]:
    return render(NAMES, RuleSet(BRIDGE, members)).splitlines()


def test_both_tables_are_replaced_in_one_text() -> None:
    text = lines()
    for family in ("inet", "bridge"):
        start = text.index(f"table {family} {NAMES.table}")
        assert text[start : start + 3] == [
            f"table {family} {NAMES.table}",
            f"delete table {family} {NAMES.table}",
            f"table {family} {NAMES.table} {{",
        ]


def test_without_members_no_set_has_elements() -> None:
    assert not [line for line in lines() if "elements" in line]


def test_more_members_are_more_elements_and_never_more_rules() -> None:
    few, many = lines(member(0, "a")), lines(*(member(number, f"net_{number % 7}") for number in range(500)))
    assert len(few) == len(many)


def test_members_of_one_network_share_a_number_and_others_do_not() -> None:
    numbers = network_numbers((member(0, "a"), member(1, "b"), member(2, "a")))
    assert len(set(numbers.values())) == 2
    assert 0 not in numbers.values()
    text = lines(member(0, "a"), member(1, "b"))
    assert (
        f"map networks {{ type ipv4_addr : mark; elements = {{ 10.64.0.2 : {numbers['a']}, 10.64.0.3 : {numbers['b']} }}; }}"
        in text
    )


def test_peers_are_elements_of_a_set_and_never_rules() -> None:
    one = Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"))
    other = Peer(IPv4Network("10.64.32.0/20"), IPv4Address("192.0.2.3"))
    text = render(NAMES, RuleSet(BRIDGE, peers=(one, other))).splitlines()
    assert "set peers { type ipv4_addr; elements = { 10.64.16.1, 10.64.32.1 }; }" in text
    assert len(text) == len(lines())


def test_packets_between_vms_are_judged_before_any_connection_is_remembered() -> None:
    text = lines(member(0, "a"))
    between = text[text.index("chain between {") : text.index("chain leaving {")]
    assert not [line for line in between if line.startswith("ct ")]
    assert between[-2] == "drop"


def test_metadata_and_other_installations_are_closed() -> None:
    closed = next(line for line in lines() if line.startswith("ip daddr {"))
    assert "169.254.0.0/16" in closed
    assert "10.64.0.0/10" in closed
    assert closed.endswith("drop")


def test_a_vm_may_send_as_itself_only() -> None:
    one = member(0, "a")
    sources = next(line for line in lines(one) if line.startswith("set sources"))
    assert f'"{one.tap}" . {one.mac} . {one.ipv4}' in sources


def test_removal_needs_no_table_to_be_there() -> None:
    text = render_removal(NAMES).splitlines()
    assert text == [
        f"table inet {NAMES.table}",
        f"delete table inet {NAMES.table}",
        f"table bridge {NAMES.table}",
        f"delete table bridge {NAMES.table}",
    ]
