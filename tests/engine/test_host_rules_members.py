"""The firewall's elements as VMs come and go: what is counted is what whole tables are made of."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.host.addresses import prefix_from, private_address
from plasmavmc.host.helper.nft import NamedSet, Table
from plasmavmc.host.helper.nft_elements import Change, Element, Layout, batch
from plasmavmc.host.helper.roster import Roster
from plasmavmc.host.helper.rules import tables
from plasmavmc.host.helper.rules_members import Ledger, Marks
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Bridge, Member, RuleSet, Source
from plasmavmc.policy import Destination, Egress, Ingress, IpProtocol, Opening
from plasmavmc.types import mac_of, vm_key

NAMES = HostNames.of("swg_members")
BRIDGE = Bridge(NAMES.bridge, IPv4Address("10.64.0.1"), IPv4Network("10.64.0.0/20"))
LISTS: tuple[Egress, ...] = (None, (), (Destination(IPv4Network("203.0.113.0/24")),))
ELSEWHERE = IPv4Network("10.64.16.0/20")
NAMED = ("", "web", "job")
INGRESS: tuple[Ingress, ...] = (
    None,
    (),
    (Opening("web"), Opening("", IpProtocol.TCP, 80, 80)),
    (Opening("job"), Opening("web", IpProtocol.TCP, 80, 80)),
    (Opening("web", IpProtocol.ICMP), Opening("web", IpProtocol.TCP, 80, 80)),
)
Said = tuple[int, int, int, int, int]
"""Number of a VM, of its network, of its list, of its identity, of its rules of ingress."""


def member(number: int, network: int = 1, listed: int = 0, identity: int = 0, ingress: int = 0) -> Member:
    key, ipv4 = vm_key(f"vm_{number}"), BRIDGE.network[number + 2]
    private = private_address(prefix_from("members"), BRIDGE.network, network, ipv4) if network else None
    place = Member(NAMES.tap(key), mac_of(key), ipv4, f"net_{network}", private)
    return replace(place, egress=LISTS[listed], identity=NAMED[identity], ingress=INGRESS[ingress])


def source(number: int, identity: str) -> Source:
    return Source(identity, private_address(prefix_from("members"), ELSEWHERE, 1, ELSEWHERE[number + 2]))


def elements(of: dict[str, Table]) -> set[Element]:
    return {
        Element(family, name, text)
        for family, table in of.items()
        for name, each in table.sets.items()
        for text in each.elements
    }


def elements_of(
    members: Sequence[Member], marks: Marks, sources: Sequence[Source] = (), *, guarded: bool
) -> set[Element]:
    return elements(tables(NAMES, RuleSet(BRIDGE, tuple(members), sources=tuple(sources)), marks, guarded=guarded))


said = st.tuples(
    st.integers(0, 7),
    st.integers(0, 3),
    st.integers(0, len(LISTS) - 1),
    st.integers(0, len(NAMED) - 1),
    st.integers(0, len(INGRESS) - 1),
)
away = st.dictionaries(st.integers(0, 3), st.sampled_from(NAMED[1:]), max_size=4)


@settings(deadline=None)
@given(
    rounds=st.lists(st.tuples(st.lists(said, max_size=6), away), max_size=6),
    guarded=st.booleans(),
    begun=st.integers(0, 2),
)
def test_by_what_is_counted_the_sets_become_what_whole_tables_hold(
    rounds: list[tuple[list[Said], dict[int, str]]], guarded: bool, begun: int
) -> None:
    """`begun`: so many rounds were loaded whole before."""
    marks, present, known = Marks(), dict[int, Member](), frozenset[Source]()
    for told, identities in rounds[:begun]:
        present = {number: member(number, *rest) for number, *rest in told}
        known = frozenset(source(*each) for each in identities.items())
        marks = marks.following(tuple(present.values()))
    ledger = Ledger(marks, tuple(present.values()), known, guarded=guarded)
    held = elements_of(tuple(present.values()), marks, tuple(known), guarded=guarded)
    for told, identities in rounds[begun:]:
        wanted = {number: member(number, *rest) for number, *rest in told}
        coming = [each for number, each in wanted.items() if present.get(number) != each]
        leaving = [each for number, each in present.items() if wanted.get(number) != each]
        sources = frozenset(source(*each) for each in identities.items())
        change = ledger.change(coming, leaving, sources - known, known - sources)
        assert change.removed <= held
        assert not change.added & held
        held, present, known = (held - change.removed) | change.added, wanted, sources
        assert held == elements_of(tuple(wanted.values()), ledger.marks, tuple(sources), guarded=guarded)
        assert 0 not in (*ledger.marks.ids.values(), *ledger.marks.identities.values())


def test_all_that_a_member_says_is_counted() -> None:
    """A field more has to be said in `rules_members` and above, or a VM that comes is not treated as it says."""
    counted = {"tap", "mac", "ipv4", "network_id", "ipv6", "egress", "identity", "ingress"}
    assert {each.name for each in fields(Member)} == counted


def test_one_vm_more_that_many_are_let_into_costs_its_own_elements_alone() -> None:
    many = [member(number, identity=1, ingress=2) for number in range(300)]
    ledger = Ledger(Marks().following(many), many, [source(number, "web") for number in range(200)], guarded=True)
    change = ledger.change([member(300, identity=1, ingress=2)], [])
    assert len(change.added) == 4 + 2 * (1 + 1 + 2), "its place; known, held, and let in twice, by two addresses"
    assert not change.removed


def test_the_first_rule_that_names_an_app_makes_its_vms_known_here_and_elsewhere_and_the_last_forgotten() -> None:
    present = [member(number, identity=1) for number in range(3)]
    ledger = Ledger(Marks().following(present), present, [source(0, "web"), source(1, "job")], guarded=True)
    held = member(9, ingress=2)
    known = {each.text for each in ledger.change([held], []).added if each.set.startswith("identities")}
    assert len(known) == 3 * 2 + 1
    forgotten = {each.text for each in ledger.change([], [held]).removed if each.set.startswith("identities")}
    assert forgotten == known


def test_a_ledger_goes_on_with_the_numbers_that_are_in_force() -> None:
    before = [member(1, 1), member(2, 2), member(3, 3, 2)]
    marks = Marks().following(before).following(before[1:])
    change = Ledger(marks, before[1:], guarded=True).change([member(4, 2)], [])
    assert {each.text for each in change.added} == {
        f"10.64.0.6 : {marks.ids['net_2']}",
        f"10.64.0.6 . {marks.ids['net_2']}",
        "10.64.0.6",
        str(member(4, 2).ipv6),
    }


def roster(*members: Member) -> Roster:
    return Roster(NAMES, RuleSet(BRIDGE, members))


def test_members_come_and_go_and_the_others_stay() -> None:
    one, two, three = member(1), member(2), member(3)
    known = roster(one, two)
    assert known.change((three,), (one.tap,), None) == (one,)
    assert known.rules.members == (two, three)
    assert (known.member(one.tap), known.member(three.tap)) == (None, three)
    again = replace(three, mac=one.mac, ipv4=one.ipv4, ipv6=None, network_id="another")
    assert known.change((again,), (three.tap,), ()) == (three,)
    assert known.rules.members == (two, again)


ONE = member(1)


@pytest.mark.parametrize(
    ("added", "removed"),
    [
        ((), (member(9).tap,)),
        ((), (ONE.tap, ONE.tap)),
        ((ONE,), ()),
        ((member(3), member(3)), ()),
        ((replace(member(3), mac=ONE.mac),), ()),
        ((replace(member(3), ipv4=ONE.ipv4, ipv6=None),), ()),
        ((replace(member(3), network_id="net_2"),), ()),
        ((replace(member(3), ipv4=BRIDGE.gateway),), ()),
        ((replace(member(3), tap="eth0"),), ()),
    ],
)
def test_what_two_members_would_share_is_refused_in_a_change_too(
    added: tuple[Member, ...], removed: tuple[str, ...]
) -> None:
    with pytest.raises(HostError) as caught:
        roster(ONE, member(2)).change(added, removed, None)
    assert caught.value.code == "helper-refused"


def test_of_rules_told_whole_no_two_members_share_anything_either() -> None:
    with pytest.raises(HostError):
        roster(ONE, replace(member(2), mac=ONE.mac))


def test_a_network_number_may_be_another_networks_once_nobody_has_it() -> None:
    known = roster(ONE)
    known.change((), (ONE.tap,), None)
    known.change((replace(ONE, network_id="another"),), (), None)


MARKED = NamedSet("map", "ipv4_addr : mark", ())
OPEN = NamedSet("set", "mark . ipv4_addr . inet_proto . inet_service", (), ranges=True)
FRAMES = NamedSet("set", "ifname . ether_addr . ipv4_addr", ())


def told(each: NamedSet, text: str, *, removed: bool = False) -> bytes:
    change = frozenset({Element("inet", "some", text)})
    layouts = {("inet", "some"): Layout.of(each)}
    return batch("table", layouts, Change(removed=change) if removed else Change(change), 7)


def test_an_element_is_told_with_what_a_map_has_for_it_and_removed_without() -> None:
    key, mark = bytes((10, 64, 0, 2)), (258).to_bytes(4, sys.byteorder)
    assert told(MARKED, "10.64.0.2 : 258").count(key) == told(MARKED, "10.64.0.2 : 258").count(mark) == 1
    removal = told(MARKED, "10.64.0.2 : 258", removed=True)
    assert (removal.count(key), removal.count(mark)) == (1, 0)


def test_parts_of_a_key_are_filled_up_to_four_bytes() -> None:
    parts = (b"swgtap".ljust(16, b"\0"), bytes.fromhex("02aabbccddee0000"), bytes((10, 64, 0, 2)))
    assert b"".join(parts) in told(FRAMES, '"swgtap" . 02:aa:bb:cc:dd:ee . 10.64.0.2')


def test_a_range_has_two_ends_in_network_order() -> None:
    first, last = "00000003cb007100060000000050 0000", "00000003cb0071ff060000000060 0000"
    message = told(OPEN, "3 . 203.0.113.0-203.0.113.255 . 6 . 80-96")
    assert bytes.fromhex(first) in message
    assert bytes.fromhex(last) in message


def test_a_change_is_for_one_state_of_the_rules_and_nothing_is_left_out_of_a_large_one() -> None:
    many = frozenset(Element("inet", "some", f"10.64.{n // 256}.{n % 256} : 1") for n in range(1000))
    message = batch("table", {("inet", "some"): Layout.of(MARKED)}, Change(many), 7)
    assert (7).to_bytes(4, "big") in message[:28]
    for each in many:
        assert IPv4Address(each.text.partition(" ")[0]).packed in message
