"""Names that the engine gives by itself."""

from __future__ import annotations

from dataclasses import replace

from plasmavmc.network.dns.names import NetworkNames
from plasmavmc.server.naming import names_of
from plasmavmc.states import VmState
from plasmavmc.types import NetworkSpec, Scope, Vm, VmSpec, VmStatus


def vm(id_: str, name: str, network: str, address: str, state: VmState = VmState.RUNNING) -> Vm:
    spec = VmSpec(id=id_, scope=Scope("o", "p"), name=name, image="", networks=(NetworkSpec("nic", network),))
    return Vm(spec, VmStatus(state, 0.0, endpoints=(f"tcp:{address}",)))


def test_vms_that_run_are_found_by_what_they_are_called_in_their_network() -> None:
    told = names_of(
        [
            vm("vm_2", "web", "net_a", "10.64.0.3"),
            vm("vm_1", "web", "net_a", "10.64.0.2"),
            vm("vm_3", "web", "net_b", "10.64.0.4"),
            vm("vm_4", "", "net_b", "10.64.0.5"),
        ]
    )
    assert told.networks == {
        "net_a": NetworkNames(
            hosts={"vm-1.vm": ("10.64.0.2",), "vm-2.vm": ("10.64.0.3",), "web": ("10.64.0.2", "10.64.0.3")}
        ),
        "net_b": NetworkNames(hosts={"vm-3.vm": ("10.64.0.4",), "vm-4.vm": ("10.64.0.5",), "web": ("10.64.0.4",)}),
    }


def test_a_vm_is_found_by_its_private_address_too() -> None:
    one = vm("vm_1", "web", "net_a", "10.64.0.2")
    both = replace(one, status=replace(one.status, private_address="fd12::a40:2"))
    assert names_of([both]).networks["net_a"].hosts["web"] == ("10.64.0.2", "fd12::a40:2")


def test_a_vm_that_does_not_run_has_no_name() -> None:
    for state in (VmState.STARTING, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED, VmState.FAILED):
        assert not names_of([vm("vm_1", "web", "net_a", "10.64.0.2", state)]).networks
