"""Names of VMs where nobody else gives any: those of one host, by what their owners call them.

A VM that runs is found by the others of its network as `<name>.internal`, together with those that are called the same, and
alone as `<id>.vm.internal`, its underscores as dashes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from plasmavmc.manager import VmManager
from plasmavmc.network.dns.names import Names, NetworkNames
from plasmavmc.states import VmState
from plasmavmc.types import Vm

_ANSWERING = frozenset({VmState.RUNNING, VmState.STOPPING})
"""A paused VM answers nobody, and one on disk has no address."""


def names_of(vms: Iterable[Vm]) -> Names:
    """The names of these VMs. Pure."""
    hosts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for vm in sorted(vms, key=lambda vm: vm.spec.id):
        addresses = [end.removeprefix("tcp:") for end in vm.status.endpoints if end.startswith("tcp:")]
        addresses += [vm.status.private_address] if vm.status.private_address else []
        for network in vm.spec.networks if vm.status.state in _ANSWERING else ():
            known = hosts[network.network_id]
            known[f"{vm.spec.id.replace('_', '-')}.vm"] += addresses
            if vm.spec.name:
                known[vm.spec.name] += addresses
    return Names(
        networks={
            network: NetworkNames(hosts={name: tuple(found) for name, found in sorted(known.items())})
            for network, known in sorted(hosts.items())
        }
    )


async def name_vms(manager: VmManager, tell: Callable[[Names], None]) -> None:
    """Tell the names whenever they are others than before, for ever."""
    told: Names | None = None
    while True:
        revision = manager.revision
        names = names_of(manager.list_vms())
        if names != told:
            tell(names)
            told = names
        await manager.changed(revision)
