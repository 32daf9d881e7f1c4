"""What is believed of what a node says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.claims import (
    MAX_INSTANCES,
    MAX_LOG_LINES,
    MAX_TRAITS,
    bounded_facts,
    bounded_observation,
    bounded_traffic,
    is_vm_address,
    may_follow,
)
from shellwego.core.convergence import vm_id
from shellwego.core.instances import Observed, Phase
from shellwego.core.nodes import MAX_IMAGES, MAX_OVERCOMMIT, Backend, NodeFacts
from shellwego.core.traffic import NodeTraffic, Passed
from tests.core.test_core_drain import node

FIRST = node("a")
JOINED = replace(FIRST, subnet="10.64.16.0/20")
SOCKET = "unix:/run/shellwego/abc/vm/abcdefghijkl/http.sock"
LONG = "x" * 10**5
NOT_OF_A_VM = [
    "127.0.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "0.0.0.0",  # noqa: S104
    "::1",
    "a;b",
    "10.64.16.9 x",
    "unix:/run/shellwego/abc/edge/admin.sock",
    "unix:/run/shellwego/abc/vm/../vm/abcdefghijkl/http.sock",
    "unix:/var/run/docker.sock",
    "unix:/run/shellwego/abc/vm/abcdefghijkl/ctl.sock",
]


@pytest.mark.parametrize("address", NOT_OF_A_VM)
def test_an_address_that_no_vm_can_have_is_none(address: str) -> None:
    assert not is_vm_address(address, FIRST)
    assert not is_vm_address(address, JOINED)


@pytest.mark.parametrize("address", ["10.64.32.9", "192.0.2.9", "10.0.0.5", SOCKET])
def test_a_node_that_joined_has_vms_in_its_own_subnet_only(address: str) -> None:
    assert is_vm_address(address, FIRST)
    assert not is_vm_address(address, JOINED)


@pytest.mark.parametrize("address", ["", "10.64.16.9"])
def test_a_vm_has_no_address_yet_or_one_of_its_node(address: str) -> None:
    assert is_vm_address(address, FIRST)
    assert is_vm_address(address, JOINED)


@pytest.mark.parametrize("said", [Phase.PENDING, Phase.ASSIGNED, Phase.LOST])
@pytest.mark.parametrize("phase", list(Phase))
def test_what_only_the_control_plane_judges_no_node_may_say(phase: Phase, said: Phase) -> None:
    assert not may_follow(phase, said)


def test_a_node_may_say_the_same_again_and_what_the_table_allows() -> None:
    assert may_follow(Phase.HEALTHY, Phase.HEALTHY)
    assert may_follow(Phase.HEALTHY, Phase.UNHEALTHY)
    assert not may_follow(Phase.STOPPING, Phase.HEALTHY)


def test_what_it_says_of_an_instance_is_cut() -> None:
    flood = Observed(vm_id=LONG, reason=LONG, reason_code=LONG, detail=LONG, log_tail=(LONG,) * 200)
    seen = bounded_observation("ins_1", flood)
    assert [len(text) for text in (seen.reason, seen.reason_code, seen.detail)] == [1000, 64, 64]
    assert {len(line) for line in seen.log_tail} == {1000}
    assert len(seen.log_tail) == MAX_LOG_LINES


def test_of_a_long_log_its_end_is_kept() -> None:
    seen = bounded_observation("ins_1", Observed(log_tail=("first",) * MAX_LOG_LINES + ("last",)))
    assert seen.log_tail[-1] == "last"


def test_an_instance_has_the_vm_of_its_own_attempt() -> None:
    own = Observed(phase=Phase.HEALTHY, attempt=2, vm_id=vm_id("ins_1", 2))
    assert bounded_observation("ins_1", own) == own


@pytest.mark.parametrize("claimed", [vm_id("ins_2", 2), vm_id("ins_1", 1), vm_id("ins_1", 2).upper(), "vm_x", LONG])
def test_the_vm_of_another_instance_or_attempt_is_none(claimed: str) -> None:
    seen = bounded_observation("ins_1", Observed(phase=Phase.HEALTHY, attempt=2, vm_id=claimed))
    assert (seen.phase, seen.attempt, seen.vm_id) == (Phase.HEALTHY, 2, "")


def told(**fields: object) -> NodeFacts:
    return bounded_facts(replace(FIRST.facts, **fields))  # type: ignore[arg-type]


def test_what_it_promises_is_bounded() -> None:
    assert (told(cpu_overcommit=10**9).cpu_overcommit, told(disk_overcommit=-1).disk_overcommit) == (MAX_OVERCOMMIT, 1)


def test_no_amount_is_less_than_none() -> None:
    facts = told(cpu_milli=-1, memory_bytes=-1, disk_bytes=-1, disk_free_bytes=-1)
    assert (facts.cpu_milli, facts.memory_bytes, facts.disk_bytes, facts.disk_free_bytes) == (0, 0, 0, 0)


def test_what_it_says_in_words_is_cut() -> None:
    facts = told(hostname=LONG, version=LONG, confinement=LONG, warnings=(LONG,) * 99)
    assert (len(facts.hostname), len(facts.version), len(facts.confinement)) == (253, 64, 64)
    assert [len(warning) for warning in facts.warnings] == [1000] * 32


def test_what_is_no_subnet_no_host_address_and_no_road_is_dropped() -> None:
    facts = told(subnet="10.64.16.1/20", address="127.0.0.1", hints="pigeon")
    assert (facts.subnet, facts.address, facts.hints) == ("", "", "")
    facts = told(subnet="10.64.16.0/20", address="192.0.2.1", hints="link")
    assert (facts.subnet, facts.address, facts.hints) == ("10.64.16.0/20", "192.0.2.1", "link")


def test_of_its_images_so_many_are_kept_in_order_and_only_what_is_a_digest() -> None:
    digests = [f"sha256:{number:064x}" for number in range(MAX_IMAGES)]
    assert list(told(images=(*digests[::-1], "sha256:" + "f" * 64)).images) == digests
    assert list(told(images=(LONG, "", digests[0])).images) == digests[:1]


def test_what_it_says_of_its_backends_is_bounded() -> None:
    backend = Backend(
        name=LONG, status=LONG, acceleration=LONG, isolation=LONG, reason=LONG, max_vcpus=-1, max_memory_bytes=-1
    )
    backends = told(backends=(backend,) * 100).backends
    assert len(backends) == 16
    shown = backends[0]
    assert {len(text) for text in (shown.name, shown.status, shown.acceleration, shown.isolation)} == {64}
    assert (len(shown.reason), shown.max_vcpus, shown.max_memory_bytes) == (1000, 0, 0)


@pytest.mark.parametrize("traits", [(("program", LONG),), ((LONG, "7.2"),), (("program", "7.2"),) * (MAX_TRAITS + 1)])
def test_traits_of_a_host_are_never_cut_since_they_would_stand_for_another(traits: tuple[tuple[str, str], ...]) -> None:
    backend = Backend(name="kvm", status="ready", snapshot_host=traits)
    assert told(backends=(backend,)).backends[0].snapshot_host == ()
    honest = replace(backend, snapshot_host=(("program", "7.2"),))
    assert told(backends=(honest,)).backends == (honest,)


def test_what_a_node_counted_is_cut_to_its_bounds() -> None:
    apps = {f"app_{number}": Passed(transmit_bytes=number - 1, receive_bytes=1 << 80) for number in range(20_000)}
    reasons = {'arp"} 1': 1, "x" * 33: 1, "": 1, "arp": -1, **{f"r{number}": 1 << 80 for number in range(100)}}
    bounded = bounded_traffic(NodeTraffic(apps=apps, dropped=reasons))
    assert len(bounded.apps) == MAX_INSTANCES
    assert bounded.apps["app_0"] == Passed(receive_bytes=2**63 - 1)
    assert len(bounded.dropped) == 32
    assert (bounded.dropped["arp"], bounded.dropped["r0"]) == (0, 2**63 - 1)
    [long] = bounded_traffic(NodeTraffic(apps={LONG: Passed()})).apps
    assert len(long) == 64
