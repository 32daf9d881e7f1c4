"""Rules of ingress in the firewall's text: a few elements, which together let in what was written, no more and no less."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.host.addresses import prefix_from, private_address
from plasmavmc.host.helper import checks
from plasmavmc.host.helper.nft import NamedSet
from plasmavmc.host.helper.rules import render, render_change, tables
from plasmavmc.host.helper.rules_members import Marks
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import MAX_SOURCES, Bridge, Member, RuleSet, Source
from plasmavmc.policy import LAST_PORT, MAX_OPENINGS, Ingress, IpProtocol, Opening
from plasmavmc.types import mac_of, vm_key

NAMES = HostNames.of("swg_groups")
BRIDGE = Bridge(NAMES.bridge, IPv4Address("10.64.0.1"), IPv4Network("10.64.0.0/20"))
ELSEWHERE = IPv4Network("10.64.16.0/20")
PREFIX = prefix_from("swg_groups")
WHO = ("web", "job", "db", "")
DATABASE = Opening("web", IpProtocol.TCP, 5432, 5432)
FAMILY_ICMP = {4: 1, 6: 58}
NUMBERS = {IpProtocol.TCP: 6, IpProtocol.UDP: 17}


def member(number: int, identity: str = "", ingress: Ingress = None, *, private: bool = True) -> Member:
    key, ipv4 = vm_key(f"vm_{number}"), BRIDGE.network[number + 2]
    ipv6 = private_address(PREFIX, BRIDGE.network, 1, ipv4) if private else None
    return Member(NAMES.tap(key), mac_of(key), ipv4, "net", ipv6, identity=identity, ingress=ingress)


def source(number: int, identity: str) -> Source:
    return Source(identity, private_address(PREFIX, ELSEWHERE, 1, ELSEWHERE[number + 2]))


def sets_of(rules: RuleSet) -> dict[str, NamedSet]:
    return dict(tables(NAMES, rules, Marks().following(rules.members))["inet"].sets)


OPENINGS = st.builds(
    lambda identity, protocol, ports: Opening(identity, protocol, *sorted(ports)),
    st.sampled_from(WHO),
    st.sampled_from([IpProtocol.TCP, IpProtocol.UDP]),
    st.tuples(st.sampled_from([1, 80, 443, 5432, LAST_PORT]), st.sampled_from([1, 81, 443, 6000, LAST_PORT])),
) | st.builds(Opening, st.sampled_from(WHO), st.sampled_from([IpProtocol.ANY, IpProtocol.ICMP, IpProtocol.TCP]))
INGRESS = st.none() | st.lists(OPENINGS, max_size=6).map(tuple)
MEMBERS = st.lists(st.tuples(st.sampled_from(WHO), INGRESS, st.booleans()), min_size=1, max_size=4).map(
    lambda told: tuple(
        member(number, identity, ingress, private=private) for number, (identity, ingress, private) in enumerate(told)
    )
)
SOURCES = st.lists(st.sampled_from(WHO[:3]), max_size=3).map(
    lambda told: tuple(source(number, identity) for number, identity in enumerate(told))
)
PACKETS = st.tuples(
    st.sampled_from([4, 6]),
    st.sampled_from([1, 2, 6, 17, 58, 255]),
    st.sampled_from([0, 1, 80, 81, 82, 443, 5432, 6000, 6001, LAST_PORT]),
)


def written(identity: str, ingress: Ingress, family: int, protocol: int, port: int) -> bool:
    """Whether rules let that in from a VM of this identity, as they are written."""
    return ingress is None or any(
        opening.identity in ("", identity)
        and (
            opening.protocol is IpProtocol.ANY
            or (opening.protocol is IpProtocol.ICMP and protocol in FAMILY_ICMP.values())
            or (protocol == NUMBERS.get(opening.protocol) and opening.first_port <= port <= opening.last_port)
        )
        for opening in ingress
    )


class Kernel:
    """The sets as the chains of ingress look them up, for a packet that is no answer."""

    def __init__(self, sets: dict[str, NamedSet]) -> None:
        self._sets = sets
        self._ranges = [self._range(element) for element in sets["ingress_open"].elements]

    def lets(self, sender: object, target: object, family: int, protocol: int, port: int) -> bool:
        suffix = "6" if family == 6 else ""
        if str(target) not in self._sets[f"ingress_held{suffix}"].elements:
            return True
        pairs, identities = self._map(f"ingress_from{suffix}"), self._map(f"identities{suffix}")
        for mark in ("0", identities.get(str(sender), "0")):
            if self._opens(int(pairs.get(f"{mark} . {target}", mark)), protocol, port):
                return True
        return False

    def _map(self, name: str) -> dict[str, str]:
        pairs = [element.split(" : ") for element in self._sets[name].elements]
        assert len({key for key, _ in pairs}) == len(pairs)
        return {key: value for key, value in pairs}

    def _opens(self, mark: int, protocol: int, port: int) -> bool:
        found = [each for each in self._ranges if each[0] == mark and protocol in each[1] and port in each[2]]
        assert len(found) <= 1, "ranges that overlap, which the kernel refuses"
        return bool(found)

    @staticmethod
    def _range(element: str) -> tuple[int, range, range]:
        mark, *sides = element.split(" . ")
        ends = [tuple(map(int, side.split("-"))) for side in sides]
        return int(mark), *(range(each[0], each[-1] + 1) for each in ends)  # type: ignore[return-value]


@settings(deadline=None)
@given(MEMBERS, SOURCES, PACKETS)
def test_a_packet_gets_in_if_the_rules_of_where_it_goes_let_it_and_else_not(
    members: tuple[Member, ...], sources: tuple[Source, ...], packet: tuple[int, int, int]
) -> None:
    family, protocol, port = packet
    kernel = Kernel(sets_of(RuleSet(BRIDGE, members, sources=sources)))
    here = [(each.ipv6 if family == 6 else each.ipv4, each) for each in members]
    away = [(each.ipv6, each.identity) for each in sources if family == 6]
    strangers = [(private_address(PREFIX, ELSEWHERE, 1, ELSEWHERE[99]), "")] if family == 6 else []
    for target, held in here:
        for sender, identity in [*((address, each.identity) for address, each in here), *away, *strangers]:
            if target is not None and sender is not None:
                assert kernel.lets(sender, target, family, protocol, port) == written(
                    identity, held.ingress, family, protocol, port
                )


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(st.tuples(MEMBERS, SOURCES), max_size=4))
def test_whatever_changes_is_a_change_of_elements_only(
    rounds: list[tuple[tuple[Member, ...], tuple[Source, ...]]],
) -> None:
    marks = Marks()
    present = tables(NAMES, RuleSet(BRIDGE), marks)
    for members, sources in rounds:
        marks = marks.following(members)
        wanted = tables(NAMES, RuleSet(BRIDGE, members, sources=sources), marks)
        assert render_change(NAMES, present, wanted) is not None
        present = wanted


def test_rules_are_elements_by_numbers_and_never_by_names() -> None:
    rules = RuleSet(
        BRIDGE, (member(0, "db", (DATABASE,)), member(1, "web", ()), member(2, "web")), sources=(source(0, "web"),)
    )
    text = render(NAMES, tables(NAMES, rules, Marks().following(rules.members)))
    plain = render(NAMES, tables(NAMES, RuleSet(BRIDGE), Marks()))
    assert text.count("\n") == plain.count("\n")
    assert not re.search(r"\b(web|db)\b", text)
    assert "set ingress_held { type ipv4_addr; elements = { 10.64.0.2, 10.64.0.3 }; }" in text


def test_one_vm_more_in_a_group_is_a_few_elements_and_shares_its_list() -> None:
    many = tuple(member(number, f"app_{number % 9}", (DATABASE,)) for number in range(300))
    marks = Marks().following(many)
    more = (*many, member(300, "web", (DATABASE,)))
    before, after = (tables(NAMES, RuleSet(BRIDGE, each), marks.following(each)) for each in (many, more))
    change = render_change(NAMES, before, after)
    assert change is not None
    assert [line for line in change.splitlines() if "ingress_open" in line or line.startswith("delete")] == []
    assert len(re.findall("ingress|identities", change)) == 6


def test_a_vm_in_no_group_is_an_element_of_nothing() -> None:
    assert not [
        name
        for name, each in sets_of(RuleSet(BRIDGE, (member(0, "web"), member(1)))).items()
        if each.elements and ("ingress" in name or "identities" in name)
    ]


@pytest.mark.parametrize(
    ("members", "sources"),
    [
        ((member(0, "We b"),), ()),
        ((member(0, ingress=(Opening("a b"),)),), ()),
        ((member(0, ingress=(replace(DATABASE, last_port=1),)),), ()),
        ((member(0, ingress=(Opening(protocol=IpProtocol.ICMP, first_port=1),)),), ()),
        ((member(0, ingress=(DATABASE,) * (MAX_OPENINGS + 1)),), ()),
        ((), (Source("web; drop", source(0, "web").ipv6),)),
        ((), (Source("", source(0, "web").ipv6),)),
        ((), (source(0, "web"), source(0, "job"))),
        ((), (Source("web", IPv6Address("2001:db8::1")),)),
        ((member(0),), (Source("web", private_address(PREFIX, BRIDGE.network, 1, BRIDGE.network[2])),)),
        ((), tuple(source(0, "web") for _ in range(MAX_SOURCES + 1))),
    ],
)
def test_what_our_own_code_would_not_send_is_refused(members: tuple[Member, ...], sources: tuple[Source, ...]) -> None:
    checks.check_rules(NAMES, RuleSet(BRIDGE, (member(0, "web", (DATABASE,)),), sources=(source(0, "web"),)))
    with pytest.raises(HostError) as caught:
        checks.check_rules(NAMES, RuleSet(BRIDGE, members, sources=sources))
    assert caught.value.code == "helper-refused"
