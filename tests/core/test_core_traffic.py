"""What VMs sent and received, as counters that only rise."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.traffic import NodeTraffic, Passed, Tally, tallied
from shellwego.core.vms import NetworkUsage

APPS = {"vm_a": "app_1", "vm_b": "app_1", "vm_c": "app_2"}


def used(transmit_bytes: int, **dropped: int) -> NetworkUsage:
    return NetworkUsage(transmit_packets=1, transmit_bytes=transmit_bytes, receive_bytes=7, dropped=dropped)


def looked(*looks: dict[str, NetworkUsage]) -> NodeTraffic:
    tally = Tally()
    for seen in looks:
        tally = tallied(tally, APPS, seen)
    return tally.traffic


def test_an_apps_vms_are_added_up_and_those_that_come_count_from_their_beginning() -> None:
    traffic = looked({}, {"vm_a": used(10)}, {"vm_a": used(15), "vm_b": used(100), "vm_c": used(1)})
    assert traffic.apps["app_1"] == Passed(transmit_packets=2, transmit_bytes=115, receive_bytes=14)
    assert traffic.apps["app_2"].transmit_bytes == 1


def test_what_the_first_look_found_was_counted_by_an_agent_before() -> None:
    assert looked({"vm_a": used(10, arp=3)}).apps == {"app_1": Passed()}
    assert looked({"vm_a": used(10)}, {"vm_a": used(12)}).apps["app_1"].transmit_bytes == 2


def test_a_vm_that_ends_takes_nothing_away_and_an_app_without_any_is_forgotten() -> None:
    both, one = {"vm_a": used(10), "vm_b": used(20)}, {"vm_b": used(21)}
    assert looked({}, both, one).apps["app_1"].transmit_bytes == 31
    assert looked({}, both, {}).apps == {}


def test_a_count_that_falls_has_begun_anew() -> None:
    assert looked({}, {"vm_a": used(10)}, {"vm_a": used(4)}).apps["app_1"].transmit_bytes == 14


def test_what_was_dropped_is_counted_by_reason_over_all_vms_also_those_of_no_app() -> None:
    strange = {"vm_strange": used(1, arp=5)}
    traffic = looked({}, {"vm_a": used(1, arp=1), **strange}, {"vm_a": used(1, arp=3, vlan=1), **strange})
    assert traffic.dropped == {"arp": 8, "vlan": 1}
    assert set(traffic.apps) == {"app_1"}


LOOKS = st.lists(st.dictionaries(st.sampled_from(sorted(APPS)), st.builds(used, st.integers(0, 50))), max_size=8)


@given(LOOKS)
def test_counters_only_rise_while_an_app_has_a_vm(looks: list[dict[str, NetworkUsage]]) -> None:
    told = [looked(*looks[: count + 1]) for count in range(len(looks))]
    for before, after in pairwise(told):
        for app_id in before.apps.keys() & after.apps.keys():
            assert before.apps[app_id].transmit_bytes <= after.apps[app_id].transmit_bytes
