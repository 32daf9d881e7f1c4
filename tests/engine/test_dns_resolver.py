"""Who is answered what by the resolver of private networks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plasmavmc.network.dns.names import Names, NetworkNames
from plasmavmc.network.dns.resolver import Resolver, ToForward
from tests.engine.dns_messages import (
    AAAA,
    ASKERS,
    NAMES,
    OTHER,
    PTR,
    SHOP,
    SOA,
    SRV,
    TXT,
    A,
    Told,
    question,
    read,
    told_resolver,
    with_edns,
)

NOERROR, FORMERR, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 3, 4, 5


def ask(resolver: Resolver, name: str, type_: int = A, *, asker: str = SHOP, udp: bool = True) -> Told:
    answer = resolver.hear(question(name, type_), asker, udp=udp)
    assert isinstance(answer, bytes)
    return read(answer)


def test_an_app_has_the_addresses_of_its_instances() -> None:
    resolver = told_resolver()
    assert sorted(ask(resolver, "web.internal").values) == ["10.64.0.2", "10.64.0.3", "10.64.0.4"]
    assert ask(resolver, "WEB.Internal", AAAA).values == ["fd00::2"]
    assert ask(resolver, "worker.web.internal").values == ["10.64.0.4"]
    assert ask(resolver, "vm-3.vm.internal").values == ["10.64.0.3"]


def test_addresses_come_in_turn() -> None:
    resolver = told_resolver()
    first = [ask(resolver, "web.internal").values[0] for _ in range(6)]
    assert first == ["10.64.0.2", "10.64.0.3", "10.64.0.4"] * 2


def test_the_same_name_is_another_for_another_network() -> None:
    resolver = told_resolver()
    assert ask(resolver, "web.internal", asker=OTHER).values == ["10.64.0.9"]


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("worker.web.internal", A),
        ("vm-1.vm.internal", A),
        ("_web._tcp.web.internal", SRV),
        ("_apps.internal", TXT),
        ("2.0.64.10.in-addr.arpa", PTR),
    ],
)
def test_what_is_another_networks_looks_absent(name: str, type_: int) -> None:
    resolver = told_resolver()
    assert ask(resolver, name, type_).rcode == NOERROR
    for stranger in (OTHER, "10.64.0.8"):
        answer = ask(resolver, name, type_, asker=stranger)
        assert (answer.rcode, answer.records) == (NXDOMAIN, ())


def test_a_name_that_leads_nowhere_now_is_known_and_empty() -> None:
    answer = ask(told_resolver(), "ill.internal")
    assert (answer.rcode, answer.records, answer.authority) == (NOERROR, (), 1)


@pytest.mark.parametrize("name", ["vm.internal", "_tcp.web.internal", "internal"])
def test_a_name_above_others_is_known_and_empty(name: str) -> None:
    assert (ask(told_resolver(), name).rcode, ask(told_resolver(), name).records) == (NOERROR, ())


def test_an_absent_name_is_told_with_how_long_that_may_be_remembered() -> None:
    answer = ask(told_resolver(), "nobody.internal")
    assert (answer.rcode, answer.authority, answer.authoritative) == (NXDOMAIN, 1, True)
    assert ask(told_resolver(), "internal", SOA).rcode == NOERROR


def test_a_service_is_where_its_instances_are_with_their_addresses() -> None:
    answer = ask(told_resolver(), "_web._tcp.web.internal", SRV)
    assert sorted(answer.values) == ["vm-1.vm.internal:8080", "vm-3.vm.internal:80"]
    assert answer.additional == 3


def test_an_address_leads_back_to_its_vm() -> None:
    assert ask(told_resolver(), "3.0.64.10.in-addr.arpa", PTR).values == ["vm-3.vm.internal"]


def test_texts_tell_what_there_is() -> None:
    assert ask(told_resolver(), "_apps.internal", TXT).values == ["web,ill"]


def test_localhost_is_the_guest_itself() -> None:
    assert ask(told_resolver(), "localhost").values == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("secret-name.internal", A),
        ("1.2.3.10.in-addr.arpa", PTR),
        ("9.100.168.192.in-addr.arpa", PTR),
        ("1.0.0.0.d.f.ip6.arpa", PTR),
        ("printer.local", A),
        ("x.onion", A),
        ("web", A),
        ("web", AAAA),
    ],
)
def test_what_is_private_is_never_asked_of_others(name: str, type_: int) -> None:
    assert isinstance(told_resolver().hear(question(name, type_), SHOP, udp=True), bytes)


def test_all_else_is_asked_of_others() -> None:
    forwarded = told_resolver().hear(question("example.com"), SHOP, udp=True)
    assert isinstance(forwarded, ToForward)
    assert (forwarded.asker, forwarded.network) == (SHOP, "net_shop")
    assert isinstance(told_resolver().hear(question("com", 2), SHOP, udp=True), ToForward)


@pytest.mark.parametrize("name", ["web.internal", "example.com", "localhost"])
def test_a_stranger_is_refused_whatever_he_asks(name: str) -> None:
    for asker in ("192.0.2.7", "10.64.0.1", "127.0.0.1"):
        assert ask(told_resolver(), name, asker=asker).rcode == REFUSED


def test_a_stranger_may_be_a_vm_that_nobody_told_of_yet() -> None:
    def look() -> None:
        resolver.tell_askers(replace(ASKERS, networks={**ASKERS.networks, "10.64.0.77": "net_shop"}))

    resolver = Resolver(look)
    resolver.tell_names(NAMES)
    assert len(ask(resolver, "web.internal", asker="10.64.0.77").values) == 3


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (question("web.internal", 255), REFUSED),
        (question("web.internal", 252), REFUSED),
        (question("web.internal", klass=3), REFUSED),
        (question("web.internal", flags=0x2000), NOTIMP),
        (question("web.internal", count=2), FORMERR),
        (question("example.com", flags=0), REFUSED),
        (with_edns(question("web.internal"), version=1), 0),  # and 1 in the OPT record: BADVERS
    ],
)
def test_what_we_do_not_do_is_said(message: bytes, rcode: int) -> None:
    answer = told_resolver().hear(message, SHOP, udp=True)
    assert isinstance(answer, bytes)
    told = read(answer)
    assert (told.rcode, told.records) == (rcode, ())


def test_a_new_name_counts_at_once_and_an_old_one_no_longer() -> None:
    resolver = told_resolver()
    assert ask(resolver, "web.internal").rcode == NOERROR
    resolver.tell_names(Names(networks={"net_shop": NetworkNames(hosts={"api": ("10.64.0.3",)})}))
    assert ask(resolver, "web.internal").rcode == NXDOMAIN
    assert ask(resolver, "api.internal").values == ["10.64.0.3"]


def test_a_vm_that_is_gone_is_a_stranger() -> None:
    resolver = told_resolver()
    assert ask(resolver, "web.internal").rcode == NOERROR
    resolver.tell_askers(replace(ASKERS, networks={OTHER: "net_other"}))
    assert ask(resolver, "web.internal").rcode == REFUSED


def test_an_answer_that_is_too_long_is_cut_for_datagrams_and_whole_for_connections() -> None:
    many = tuple(f"10.64.{number // 250}.{number % 250 + 2}" for number in range(400))
    resolver = told_resolver()
    resolver.tell_names(Names(networks={"net_shop": NetworkNames(hosts={"many": many})}))
    small = ask(resolver, "many.internal")
    assert (small.cut, small.records) == (True, ())
    larger = resolver.hear(with_edns(question("many.internal")), SHOP, udp=True)
    assert isinstance(larger, bytes)
    assert len(larger) <= 1232
    assert len(ask(resolver, "many.internal", udp=False).records) == 400
    assert ask(resolver, "many.internal").cut


def test_one_vm_that_asks_without_end_is_not_heard_for_a_while_and_others_are() -> None:
    resolver = Resolver(per_second=10)
    resolver.tell_askers(ASKERS)
    resolver.tell_names(NAMES)
    heard = [resolver.hear(question("web.internal"), SHOP, udp=True) for _ in range(50)]
    assert len([each for each in heard if each is not None]) == 10
    assert ask(resolver, "web.internal", asker=OTHER).rcode == NOERROR
    resolver.new_second()
    assert ask(resolver, "web.internal").rcode == NOERROR


def test_a_name_or_address_that_cannot_be_is_left_out_and_no_other() -> None:
    resolver = told_resolver()
    hosts = {"a..b": ("10.64.0.3",), "x" * 64: ("10.64.0.3",), "": ("10.64.0.3",), "ok": ("no address", "10.64.0.3")}
    resolver.tell_names(Names(networks={"net_shop": NetworkNames(hosts=hosts)}))
    assert ask(resolver, "ok.internal").values == ["10.64.0.3"]


def test_an_answer_has_the_id_and_the_letters_of_its_question() -> None:
    resolver = told_resolver()
    for id_ in (1, 2, 65535):
        asked = question("wEb.iNternal", id_=id_)
        answer = resolver.hear(asked, SHOP, udp=True)
        assert isinstance(answer, bytes)
        assert answer[:2] == asked[:2]
        assert answer[12 : len(asked)] == asked[12:]
