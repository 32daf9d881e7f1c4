"""Open ports: who answers at them, how they stand in the firewall's text, and what of them root refuses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host.client import changed_members
from plasmavmc.host.helper.checks_ports import MAX_PORTS, MAX_SPOTS, check_ports
from plasmavmc.host.helper.connections import Way, ways_of
from plasmavmc.host.helper.nft import Table
from plasmavmc.host.helper.rules import render_change, tables
from plasmavmc.host.helper.rules_members import Marks
from plasmavmc.host.helper.rules_ports import SLOTS
from plasmavmc.host.listening import listening_ports
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Bridge, Member, Peer, RuleSet
from plasmavmc.host.ports import Answerer, OpenPort, PortName, PublishedPort, PublishSite, Spot, Transport, within
from plasmavmc.network import publishing
from plasmavmc.network.publishing import Publishing, open_ports
from plasmavmc.types import mac_of, vm_key

NAMES = HostNames.of("swg_ports")
OWN = IPv4Network("10.64.0.0/20")
BRIDGE = Bridge(NAMES.bridge, IPv4Address("10.64.0.1"), OWN)
PEER = Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"))
SITE = PublishSite(range(20_000, 20_100))
AWAY = IPv4Address("10.64.16.9")


def member(number: int) -> Member:
    key = vm_key(f"vm_{number}")
    return Member(NAMES.tap(key), mac_of(key), OWN[number + 2], "net")


MEMBERS = {vm_key(f"vm_{number}"): member(number) for number in range(3)}


def answerer(number: int, *, taking: bool = True) -> Answerer:
    return Answerer(vm_key(f"vm_{number}"), OWN[number + 2], 80, taking)


def published(*answerers: Answerer) -> PublishedPort:
    return PublishedPort(Transport.TCP, 20_000, answerers)


def opened(*answerers: Answerer, retired: tuple[str, ...] = ()) -> tuple[OpenPort, ...]:
    return open_ports([published(*answerers)], MEMBERS, [PEER], retired)


def spot(number: int) -> Spot:
    return Spot(OWN[number + 2], 80)


ELSEWHERE = Answerer(vm_key("vm_elsewhere"), AWAY, 80)


def test_a_host_sends_to_its_own_vms_and_to_others_only_where_it_has_none() -> None:
    [port] = opened(answerer(0), ELSEWHERE)
    assert (port.taking, port.ending) == ((spot(0),), ())
    [port] = opened(ELSEWHERE)
    assert port.taking == (Spot(AWAY, 80),)


def test_a_vm_of_this_host_is_known_by_its_key_whatever_address_is_told() -> None:
    told = replace(answerer(0), ipv4=OWN[4])
    [port] = opened(told)
    assert port.taking == (spot(0),)
    assert opened(Answerer(vm_key("vm_gone"), OWN[4], 80)) == (), "its address may be another's"


def test_what_ends_keeps_what_it_has_and_gets_nothing_new() -> None:
    [port] = opened(answerer(0), answerer(1, taking=False))
    assert (port.taking, port.ending) == ((spot(0),), (spot(1),))
    [port] = opened(answerer(0), ELSEWHERE, retired=(answerer(0).key,))
    assert (port.taking, port.ending) == ((Spot(AWAY, 80),), (spot(0),))


def test_an_address_of_no_peer_is_sent_nothing() -> None:
    assert opened(replace(ELSEWHERE, ipv4=IPv4Address("10.64.99.9"))) == ()
    assert opened(replace(ELSEWHERE, ipv4=IPv4Address("192.0.2.7"))) == ()


def test_ports_without_anybody_are_not_open() -> None:
    assert opened() == ()


def test_vms_that_answer_nowhere_change_nothing_of_what_is_open() -> None:
    ports = Publishing()
    assert ports.publish([published(answerer(0))])
    assert not ports.publish([published(answerer(0))])
    some = {key: MEMBERS[key] for key in (answerer(0).key, answerer(1).key)}
    before = ports.open(some, [PEER])
    assert ports.open(MEMBERS, [PEER]) is before
    assert ports.open({}, [PEER]) == ()
    assert ports.retire(answerer(0).key)
    assert [port.taking for port in ports.open(MEMBERS, [PEER])] == [()]
    ports.forget(answerer(0).key)
    assert ports.open(MEMBERS, [PEER]) == before


def test_what_is_answered_anywhere_is_told_of_ports_that_this_host_does_not_offer_too() -> None:
    """VMs of this host reach them at other nodes."""
    ports = Publishing()
    unanswered = PublishedPort(Transport.UDP, 20_001)
    assert ports.publish([published(ELSEWHERE), unanswered], range(30_000, 30_001))
    assert ports.answered == (PortName(Transport.TCP, 20_000),)
    assert ports.open(MEMBERS, [PEER]) == ()
    assert ports.publish([unanswered], range(30_000, 30_001))
    assert ports.answered == ()


def test_an_address_is_found_among_networks_of_any_size() -> None:
    inside = within([OWN, IPv4Network("10.65.0.0/16"), IPv4Network("10.66.0.8/29")])
    assert [inside(IPv4Address(text)) for text in ("10.64.15.255", "10.65.9.9", "10.66.0.15")] == [True] * 3
    assert [inside(IPv4Address(text)) for text in ("10.64.16.0", "10.66.0.16", "0.0.0.0")] == [False] * 3  # noqa: S104
    assert not within([])(OWN[1])


def tables_of(*ports: OpenPort, site: PublishSite = SITE) -> dict[str, Table]:
    rules = RuleSet(BRIDGE, tuple(MEMBERS.values()), (PEER,), ports=ports)
    return tables(NAMES, rules, Marks().following(rules.members), publish=site)


def sets_of(*ports: OpenPort) -> dict[str, tuple[str, ...]]:
    return {name: each.elements for name, each in tables_of(*ports)["inet"].sets.items()}


def open_port(*numbers: int, number: int = 20_000, ending: tuple[int, ...] = ()) -> OpenPort:
    return OpenPort(Transport.TCP, number, tuple(map(spot, numbers)), tuple(map(spot, ending)))


def test_a_host_that_publishes_nothing_has_nothing_of_it_in_its_firewall() -> None:
    table = tables_of(site=PublishSite())["inet"]
    assert not [name for name in (*table.sets, *table.chains) if "port" in name or "door" in name]
    assert not [rule for rules in table.chains.values() for rule in rules if "dnat" in rule]


def test_a_port_of_one_vm_is_one_element_and_of_several_its_slots_are_shared_evenly() -> None:
    sets = sets_of(open_port(0), open_port(0, 1, 2, number=20_001, ending=()))
    assert sets["doors"] == ("tcp . 20000 : 10.64.0.2 . 80",)
    assert sets["several"] == ("tcp . 20001",)
    leads = [element.partition(" : ")[2] for element in sets["shared"]]
    assert len(leads) == SLOTS
    assert {lead: leads.count(lead) for lead in leads} == {f"10.64.0.{n} . 80": SLOTS // 3 for n in (2, 3, 4)}


def test_what_ends_is_let_through_and_not_led_to() -> None:
    sets = sets_of(open_port(0, ending=(1,)))
    assert sets["answering"] == ("10.64.0.2 . tcp . 80", "10.64.0.3 . tcp . 80")
    assert sets["doors"] == ("tcp . 20000 : 10.64.0.2 . 80",)


def test_by_ipv6_only_vms_that_have_an_address_are_led_to() -> None:
    private = replace(spot(0), ipv6=IPv6Address("fd12::1:a40:2"))
    sets = sets_of(OpenPort(Transport.UDP, 20_000, (private, spot(1))))
    assert sets["doors6"] == ("udp . 20000 : fd12::1:a40:2 . 80",)
    assert sets["answering6"] == ("fd12::1:a40:2 . udp . 80",)


def test_ports_that_come_and_go_are_elements_and_never_rules() -> None:
    change = render_change(NAMES, tables_of(open_port(0)), tables_of(open_port(1), open_port(2, number=20_001)))
    assert change is not None
    assert sorted({line.split()[4] for line in change.splitlines()}) == ["answering", "doors"]


def test_given_addresses_are_the_only_ones() -> None:
    rules = tables_of(site=replace(SITE, addresses=(IPv4Address("192.0.2.1"),)))["inet"].chains["at_port"]
    assert "ip daddr != { 192.0.2.1 } return" in rules
    assert "meta nfproto ipv6 return" in rules


def test_what_other_nodes_say_at_a_tunnels_port_goes_to_no_vm_whatever_is_published() -> None:
    site = PublishSite(range(1024, 65_536))
    rules = RuleSet(BRIDGE, tuple(MEMBERS.values()), (PEER,), tunnel_ports=(7084, 7085))
    [at_port] = {tables(NAMES, rules, Marks().following(rules.members), publish=site)["inet"].chains["at_port"]}
    first_door = next(number for number, rule in enumerate(at_port) if "@doors" in rule)
    assert "udp dport { 7083, 7084, 7085 } return" in at_port[:first_door]


@pytest.mark.parametrize(
    "published",
    [
        (PortName(Transport.TCP, 0),),
        (PortName(Transport.TCP, 65_536),),
        (PortName(Transport.TCP, 20_000), PortName(Transport.TCP, 20_000)),
        tuple(PortName(Transport.TCP, number) for number in range(1, MAX_PORTS + 3)),
    ],
    ids=["none", "too high", "twice", "too many"],
)
def test_what_can_be_no_port_of_another_node_is_refused(published: tuple[PortName, ...]) -> None:
    with pytest.raises(HostError, match="published port"):
        check_ports(RuleSet(BRIDGE, published=published), SITE)


def refused(*ports: OpenPort) -> str:
    with pytest.raises(HostError) as caught:
        check_ports(RuleSet(BRIDGE, tuple(MEMBERS.values()), (PEER,), ports=ports), SITE)
    assert caught.value.code == "helper-refused"
    return caught.value.brief


@pytest.mark.parametrize(
    "ports",
    [
        (replace(open_port(0), number=22),),
        (replace(open_port(0), number=20_100),),
        (open_port(0), open_port(1)),
        (open_port(0, 0),),
        (OpenPort(Transport.TCP, 20_000, (replace(spot(0), port=0),)),),
        (OpenPort(Transport.TCP, 20_000, (Spot(OWN[99], 80),)),),
        (OpenPort(Transport.TCP, 20_000, (Spot(BRIDGE.gateway, 80),)),),
        (OpenPort(Transport.TCP, 20_000, (Spot(PEER.gateway, 80),)),),
        (OpenPort(Transport.TCP, 20_000, (Spot(IPv4Address("127.0.0.1"), 22),)),),
        (OpenPort(Transport.TCP, 20_000, (Spot(IPv4Address("192.0.2.9"), 80),)),),
        (OpenPort(Transport.TCP, 20_000, (replace(spot(0), ipv6=IPv6Address("2001:db8::1")),)),),
        (OpenPort(Transport.TCP, 20_000, ending=(Spot(OWN[99], 80),)),),
        (OpenPort(Transport.TCP, 20_000, tuple(Spot(PEER.network[n + 2], 80) for n in range(MAX_SPOTS + 1))),),
    ],
)
def test_root_opens_only_ports_that_it_was_given_and_only_to_vms(ports: tuple[OpenPort, ...]) -> None:
    assert refused(*ports)


def test_a_host_that_was_given_no_ports_opens_none() -> None:
    with pytest.raises(HostError):
        check_ports(RuleSet(BRIDGE, tuple(MEMBERS.values()), ports=(open_port(0),)), PublishSite())


def test_both_sides_mean_the_same_number_of_vms() -> None:
    assert MAX_SPOTS == publishing.MAX_SPOTS == SLOTS


def test_a_change_of_ports_is_told_without_the_members() -> None:
    before = RuleSet(BRIDGE, tuple(MEMBERS.values()))
    change = changed_members(before, replace(before, ports=(open_port(0),)))
    assert change is not None
    assert (change.added, change.removed, change.ports) == ((), (), (open_port(0),))
    assert changed_members(before, before) == replace_ports(change)


def replace_ports(change: object) -> object:
    """The same without ports: those that there are stay."""
    return type(change)((), (), None)


def test_each_address_of_a_vm_is_a_way_of_its_own() -> None:
    both = replace(spot(0), ipv6=IPv6Address("fd12::1:a40:2"))
    ways = ways_of(RuleSet(BRIDGE, ports=(OpenPort(Transport.TCP, 20_000, (both,), (spot(1),)),)))
    found = {Way(Transport.TCP, 20_000, address, 80) for address in (OWN[2], IPv6Address("fd12::1:a40:2"), OWN[3])}
    assert ways == found


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def test_what_programs_of_the_host_listen_at_is_read_from_the_kernel(tmp_path: Path) -> None:
    lines = (
        "0: 00000000:4E20 00000000:0000 0A",
        "1: 0100007F:4E21 00000000:0000 0A",
        "2: 0100A8C0:4E22 01020304:01BB 01",
    )
    (tmp_path / "tcp").write_text(HEAD + "".join(f"   {line} 0 0\n" for line in lines))
    loopback = f"0: {'0' * 24}01000000:4E23 {'0' * 32}:0000 0A"
    (tmp_path / "tcp6").write_text(HEAD + f"   {loopback} 0 0\n   1: {'0' * 32}:4E24 {'0' * 32}:0000 0A 0 0\n")
    (tmp_path / "udp").write_text(HEAD + "   0: 00000000:4E25 00000000:0000 07 0 0\n")
    assert listening_ports(tmp_path) == {(Transport.TCP, 20_000), (Transport.TCP, 20_004), (Transport.UDP, 20_005)}
