"""What a node tells its operator of the ports that are published on it."""

from __future__ import annotations

from ipaddress import IPv4Address

from plasmavmc.host.ports import Answerer, PublishedPort, PublishSite, Transport
from plasmavmc.types import vm_key
from shellwego.core import publishing
from shellwego.core.publishing import OpenPort, PortEndpoint
from shellwego.drivers.engine.portwatch import LOOK_EVERY_S, PortWatch
from shellwego.drivers.engine.words import to_published

SITE = PublishSite(range(20_000, 20_010))


def test_a_vm_is_told_to_the_engine_by_its_key() -> None:
    endpoint = PortEndpoint(vm_id="vm_1", ipv4="10.64.0.2", port=53, taking=False)
    told = to_published(OpenPort(transport=publishing.Transport.UDP, port=20_053, endpoints=(endpoint,)))
    answerer = Answerer(vm_key("vm_1"), IPv4Address("10.64.0.2"), 53, False)
    assert told == PublishedPort(Transport.UDP, 20_053, (answerer,))


def watch(
    *ports: int, listening: set[tuple[Transport, int]] | None = None, clock: list[float] | None = None
) -> PortWatch:
    times = clock or [0.0]
    made = PortWatch(SITE, lambda: listening or set(), lambda: times[0])
    made.published = tuple(OpenPort(transport=publishing.Transport.TCP, port=port) for port in ports)
    return made


def test_where_nothing_is_wrong_nothing_is_told() -> None:
    assert watch(20_000, listening={(Transport.UDP, 20_000), (Transport.TCP, 22)}).warnings() == ()


def test_ports_that_the_host_does_not_offer_are_told() -> None:
    [told] = watch(20_000, 30_000).warnings()
    assert "30000/tcp" in told
    assert "20000" not in told
    assert "[network]" in told


def test_a_program_of_the_host_at_a_published_port_is_told() -> None:
    [told] = watch(20_000, 20_001, listening={(Transport.TCP, 20_001)}).warnings()
    assert "20001/tcp" in told


def test_of_many_some_are_named() -> None:
    [told] = watch(*range(30_000, 30_009)).warnings()
    assert "and 4 more" in told


def test_the_kernels_tables_are_read_now_and_then_only() -> None:
    listening: set[tuple[Transport, int]] = {(Transport.TCP, 20_000)}
    clock = [0.0]
    made = watch(20_000, listening=listening, clock=clock)
    assert made.warnings()
    listening.clear()
    clock[0] += LOOK_EVERY_S - 1
    assert made.warnings()
    clock[0] += 1
    assert made.warnings() == ()
