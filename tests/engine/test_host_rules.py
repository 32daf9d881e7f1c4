"""The firewall as text."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.host.addresses import network_of, prefix_from, private_address
from plasmavmc.host.helper.nft import Table
from plasmavmc.host.helper.rules import render, render_change, render_removal, shape_of, tables
from plasmavmc.host.helper.rules_members import Marks
from plasmavmc.host.helper.rules_policy import listed
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import RESOLVER_PORT, Bridge, Member, Peer, RuleSet
from plasmavmc.host.ports import Answerer, PortName, PublishedPort, Transport
from plasmavmc.network.members import Members
from plasmavmc.policy import Destination, IpProtocol
from plasmavmc.types import mac_of, vm_key

NAMES = HostNames.of("swg_rules")
NOBODY = Marks()
BRIDGE = Bridge(NAMES.bridge, IPv4Address("10.64.0.1"), IPv4Network("10.64.0.0/20"))


def member(number: int, network: str) -> Member:
    key = vm_key(f"vm_{number}")
    return Member(NAMES.tap(key), mac_of(key), BRIDGE.network[number + 2], network)


def made_of(rules: RuleSet, marks: Marks = NOBODY) -> dict[str, Table]:
    return tables(NAMES, rules, marks.following(rules.members))


def text_of(rules: RuleSet) -> list[str]:
    return render(NAMES, made_of(rules)).splitlines()


def lines(*members: Member) -> list[str]:
    return text_of(RuleSet(BRIDGE, members))


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
    numbers = NOBODY.following((member(0, "a"), member(1, "b"), member(2, "a"))).ids
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
    text = text_of(RuleSet(BRIDGE, peers=(one, other)))
    assert "set peers { type ipv4_addr; elements = { 10.64.16.1, 10.64.32.1 }; }" in text
    assert len(text) == len(lines())


def test_where_peers_are_reached_by_wireguard_nothing_of_theirs_goes_round_its_devices() -> None:
    peer = Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"))
    text = text_of(RuleSet(BRIDGE, peers=(peer,), tunnel_ports=(7084, 7085)))
    devices = f"{{ {NAMES.encrypted(0)}, {NAMES.encrypted(1)} }}"
    assert "set sealed { type ipv4_addr; flags interval; elements = { 10.64.16.0/20 }; }" in text
    for way, end, hook in (
        ("iifname", "saddr", "prerouting priority -300"),
        ("oifname", "daddr", "postrouting priority 0"),
    ):
        start = text.index(f"type filter hook {hook}; policy accept;")
        assert text[start + 1 : start + 3] == [
            f"{way} != {devices} ip {end} @sealed drop",
            f"{way} != {devices} ip6 {end} & ffff:ffff:ffff:ffff:: @peers6 drop",
        ]


def test_wireguard_hears_hosts_of_peers_only() -> None:
    text = text_of(RuleSet(BRIDGE, tunnel_ports=(7084, 7085)))
    assert "udp dport { 7084, 7085 } ip saddr != @hosts drop" in text
    assert "udp dport { 7084, 7085 } meta nfproto ipv6 drop" in text
    assert not [line for line in text_of(RuleSet(BRIDGE)) if "7084" in line or "sealed" in line]


def held(number: int, *destinations: Destination) -> Member:
    return replace(member(number, "a"), egress=destinations)


def test_lists_of_destinations_are_elements_and_never_rules() -> None:
    tls = Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP, 443, 443)
    text = lines(held(0, tls), held(1, tls, tls), held(2), member(3, "a"))
    assert len(text) == len(lines())
    assert "set egress_held { type ipv4_addr; elements = { 10.64.0.2, 10.64.0.3, 10.64.0.4 }; }" in text
    marks = NOBODY.following((held(0, tls), held(1, tls, tls), held(2)))
    one, nothing = marks.lists[listed((tls,))], marks.lists[()]
    lists = f"10.64.0.2 : {one}, 10.64.0.3 : {one}, 10.64.0.4 : {nothing}"
    assert f"map egress_lists {{ type ipv4_addr : mark; elements = {{ {lists} }}; }}" in text
    assert (
        "set egress_open { type mark . ipv4_addr . inet_proto . inet_service; flags interval;"
        f" elements = {{ {one} . 203.0.113.0-203.0.113.255 . 6 . 443 }}; }}" in text
    )


def test_a_list_that_changes_is_a_change_of_elements_only() -> None:
    tls = Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP, 443, 443)
    before = RuleSet(BRIDGE, (member(0, "a"), held(1, tls)))
    after = RuleSet(BRIDGE, (held(0, tls), held(1, tls)))
    marks = NOBODY.following(before.members)
    there = marks.following(after.members)
    change = render_change(NAMES, tables(NAMES, before, marks), tables(NAMES, after, there))
    assert change == (
        f"add element inet {NAMES.table} egress_held {{ 10.64.0.2 }}\n"
        f"add element inet {NAMES.table} egress_lists {{ 10.64.0.2 : {there.lists[listed((tls,))]} }}\n"
    )


def test_networks_of_private_addresses_are_elements_each_once_and_never_rules() -> None:
    prefix = prefix_from("swg_rules")
    members = [
        replace(each, ipv6=private_address(prefix, BRIDGE.network, number, each.ipv4))
        for each, number in ((member(0, "a"), 1), (member(1, "a"), 1), (member(2, "b"), 2))
    ]
    text = lines(*members)
    assert len(text) == len(lines())
    [networks] = [line for line in text if line.startswith("map networks6")]
    assert networks.count(f"{network_of(private_address(prefix, BRIDGE.network, 1, BRIDGE.network[9]))} : 1") == 1
    assert networks.count(" : ") == 3  # one is of its type


def test_packets_of_the_private_network_are_judged_before_any_connection_is_remembered() -> None:
    text = lines(member(0, "a"))
    private = text[text.index("chain private {") : text.index("chain between {")]
    assert not [line for line in private if line.startswith("ct ")]
    assert private[-2] == "drop"
    for chain in ("between", "entering"):
        assert text[text.index(f"chain {chain} {{") + 1].startswith("meta nfproto ipv6 goto ")


def chain(name: str, text: list[str]) -> list[str]:
    start = text.index(f"chain {name} {{") + 1
    return text[start : text.index("}", start)]


def test_no_vm_sends_to_the_tunnel_whatever_is_known_of_other_nodes() -> None:
    peer = Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"))
    for rules in (RuleSet(BRIDGE), RuleSet(BRIDGE, peers=(peer,)), RuleSet(BRIDGE, tunnel_ports=(7084, 7085))):
        private, tunnel, *_ = chain("leaving", text_of(rules))
        assert (private.split()[0], tunnel) == ("ip6", "udp dport 7083 drop")


def test_of_other_nodes_hosts_vms_reach_published_ports_only() -> None:
    peer = Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"))
    published = (PortName(Transport.TCP, 20_000), PortName(Transport.UDP, 20_001))
    text = text_of(RuleSet(BRIDGE, peers=(peer,), published=published))
    assert "set hosts { type ipv4_addr; elements = { 192.0.2.2 }; }" in text
    assert "set published { type inet_proto . inet_service; elements = { tcp . 20000, udp . 20001 }; }" in text
    assert "ip daddr @hosts jump to_node" in chain("leaving", text)
    assert chain("to_node", text) == [
        "meta l4proto icmp ct state related return",
        "meta l4proto . th dport @published return",
        "tcp dport { 80, 443 } return",
        "drop",
    ]


def test_connections_of_vms_leave_from_ports_of_the_host_where_no_service_is() -> None:
    limited, all_else = chain("postrouting", lines())[1:]
    assert limited.endswith("meta l4proto { tcp, udp } masquerade to :32768-65535")
    assert all_else == limited.replace("meta l4proto { tcp, udp } ", "").removesuffix(" to :32768-65535")


def test_a_private_address_that_no_vm_here_has_is_not_looked_for() -> None:
    one = replace(member(0, "a"), ipv6=private_address(prefix_from("swg_rules"), BRIDGE.network, 1, BRIDGE.network[2]))
    text = lines(one, member(1, "b"))
    assert f"set here6 {{ type ipv6_addr; elements = {{ {one.ipv6} }}; }}" in text
    known_before = f'iifname "{NAMES.bridge}" ip6 daddr & ff00:0:0:ffff:: == fd00:: ip6 daddr != @here6 drop'
    assert chain("unknown", text)[1:] == [known_before]
    for name in ("between6", "entering6"):
        assert chain(name, text)[0] == "ip6 daddr != @here6 drop"


def test_what_comes_from_elsewhere_for_an_address_that_no_vm_here_has_looks_for_nobody() -> None:
    text = lines(member(0, "a"), member(1, "b"))
    assert "set here { type ipv4_addr; elements = { 10.64.0.2, 10.64.0.3 }; }" in text
    assert chain("entering", text)[:2] == ["meta nfproto ipv6 goto entering6", "ip daddr != @here drop"]


def test_the_shape_of_what_the_kernel_lists_is_that_of_the_tables() -> None:
    table = made_of(RuleSet(BRIDGE, (member(0, "a"), member(1, "b"))))["bridge"]
    listing = {
        "nftables": [
            {"metainfo": {}},
            {"table": {"name": NAMES.table}},
            {"set": {"name": "sources", "elem": [1, 2]}},
            {"set": {"name": "sources6"}},
            *({"chain": {"name": name}} for name in table.chains),
            *(
                {"rule": {"chain": name}}
                for name, count in table.shape.items()
                if name in table.chains
                for _ in range(count)
            ),
        ]
    }
    assert shape_of(listing) == table.shape
    assert shape_of({"nftables": listing["nftables"][:-1]}) != table.shape
    assert shape_of({"nftables": [], "odd": 1}) == {}


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


def test_only_where_there_is_a_resolver_guests_reach_it_and_nobody_from_elsewhere_does() -> None:
    text = text_of(RuleSet(BRIDGE, resolver=True))
    to_host = text[text.index("chain to_host {") : text.index("chain output {")]
    port = "ip daddr 10.64.0.1 meta l4proto { tcp, udp } th dport 53"
    assert to_host[-3:] == [f"{port} accept", "drop", "}"]
    assert text[text.index("chain to_host {") - 2] == f'iifname != "lo" {port} drop'
    assert not [line for line in lines() if f"dport {RESOLVER_PORT}" in line]


def test_a_network_keeps_its_number_while_it_is_there() -> None:
    marks = NOBODY.following((member(0, "m"), member(1, "z")))
    later = marks.following((member(1, "z"), member(2, "a"), member(3, "b")))
    assert later.ids["z"] == marks.ids["z"]
    assert sorted(later.ids.values()) == [1, 2, 3]


def test_one_vm_more_is_a_few_elements_however_many_there_are() -> None:
    many = tuple(member(number, f"net_{number % 7}") for number in range(500))
    marks = NOBODY.following(many)
    more = (*many, member(500, "another"))
    change = render_change(NAMES, made_of(RuleSet(BRIDGE, many)), made_of(RuleSet(BRIDGE, more), marks))
    assert change is not None
    assert change.count("\n") == change.count("add element") == 4
    assert change.count(str(member(500, "another").ipv4)) == 4


def test_nothing_is_to_do_where_nothing_changed() -> None:
    rules = RuleSet(BRIDGE, (member(0, "a"),))
    assert render_change(NAMES, made_of(rules), made_of(rules)) == ""


def test_other_rules_are_loaded_whole() -> None:
    plain, resolving = RuleSet(BRIDGE, (member(0, "a"),)), RuleSet(BRIDGE, (member(0, "a"),), resolver=True)
    assert render_change(NAMES, made_of(plain), made_of(resolving)) is None
    assert render_change(NAMES, {}, made_of(plain)) is None


@given(rounds=st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc")), max_size=6), max_size=6))
def test_by_changes_the_sets_become_what_they_would_be_by_a_whole_load(rounds: list[list[tuple[int, str]]]) -> None:
    marks = NOBODY
    present = made_of(RuleSet(BRIDGE))
    held = {place: set[str]() for place in places(present)}
    for members in rounds:
        rules = RuleSet(BRIDGE, tuple(member(number, network) for number, network in dict(members).items()))
        marks = marks.following(rules.members)
        wanted = tables(NAMES, rules, marks)
        follow(held, render_change(NAMES, present, wanted) or "")
        present = wanted
        assert held == {place: set(elements) for place, elements in places(present).items()}


def places(of: dict[str, Table]) -> dict[str, tuple[str, ...]]:
    return {
        f"{family} {NAMES.table} {name}": each.elements
        for family, table in of.items()
        for name, each in table.sets.items()
    }


def follow(held: dict[str, set[str]], change: str) -> None:
    """As nft would: what is added must not be there, and what is removed must."""
    for line in change.splitlines():
        what, _, rest = line.partition(" element ")
        place, _, listed = rest.removesuffix(" }").partition(" { ")
        for element in listed.split(", "):
            keys = {each.partition(" : ")[0]: each for each in held[place]}
            assert (element.partition(" : ")[0] in keys) == (what == "delete")
            if what == "delete":
                held[place].remove(keys[element])
            else:
                held[place].add(element)


def test_vms_reach_edges_of_other_nodes_where_those_listen() -> None:
    peer = Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"))
    members = Members(NAMES, IPv4Network("10.64.0.0/20"), web_port=8080)
    members.peers = (peer,)
    edge = PortName(Transport.TCP, 8080)
    assert members.rules().published == (edge,)
    one = PublishedPort(Transport.TCP, 20_000, (Answerer("vm", IPv4Address("10.64.16.9"), 80),))
    members.published.publish([one])
    assert members.rules().published == (edge, PortName(Transport.TCP, 20_000))
