"""What is ordered of a VM in the engine's words, and what is seen of it in the platform's. Pure.

Theory. The platform's words (instance, attempt, workload) ride in a VM's labels, which the engine keeps across its own
restarts; so what is told of an adopted VM is complete without any memory of ours.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Network

from plasmavmc.states import VmState
from plasmavmc.types import DiskSource, DiskSpec, NetworkSpec, Scope, Vm, VmResources, VmSpec
from shellwego.core.assignments import WorkloadMount
from shellwego.drivers.engine.words import from_egress, from_ingress, to_egress, to_ingress
from shellwego.ports.engine import VmOrder, VmPhase, VmView

_PHASES = {
    VmState.PENDING: VmPhase.PREPARING,
    VmState.PREPARING: VmPhase.PREPARING,
    VmState.STARTING: VmPhase.STARTING,
    VmState.RUNNING: VmPhase.RUNNING,
    VmState.PAUSED: VmPhase.RUNNING,
    VmState.SUSPENDING: VmPhase.SUSPENDING,
    VmState.SUSPENDED: VmPhase.ASLEEP,
    VmState.RESUMING: VmPhase.RESUMING,
    VmState.STOPPING: VmPhase.STOPPING,
    VmState.STOPPED: VmPhase.ENDED,
    VmState.FAILED: VmPhase.ENDED,
    VmState.DELETING: VmPhase.ENDED,
    VmState.DELETED: VmPhase.ENDED,
}
_ASKED = ("stopped", "fenced")
"""How VMs end that we ended."""


def to_spec(order: VmOrder) -> VmSpec:
    """The engine's specification of an order. Pure."""
    work = order.workload
    return VmSpec(
        id=order.vm_id,
        scope=Scope(work.organization_id, work.project_id),
        name=work.app_name,
        image=work.image_digest,
        command=work.command,
        entrypoint=work.entrypoint,
        env={**work.env, **_revealed(order), "SHELLWEGO_VM_ID": order.vm_id},
        resources=VmResources(work.cpu_milli, work.vcpus, work.memory_bytes, work.disk_bytes),
        volumes=tuple(_disk(mount) for mount in work.mounts),
        networks=(_network(order),),
        stop_signal=work.stop_signal,
        stop_grace_s=work.stop_grace_s,
        backend=work.backend,
        labels={
            "instance": order.instance_id,
            "attempt": str(order.attempt),
            "app": work.app_id,
            "process": work.process,
            "release": str(work.release),
        },
    )


def _network(order: VmOrder) -> NetworkSpec:
    work = order.workload
    network = NetworkSpec(
        f"nic_{order.vm_id}",
        work.network_id,
        egress=to_egress(work.egress),
        identity=work.app_id,
        ingress=to_ingress(work.ingress),
    )
    if not work.private_prefix:
        return network
    return replace(network, network_number=work.network_number, private_prefix=IPv6Network(work.private_prefix))


def _disk(mount: WorkloadMount) -> DiskSpec:
    return DiskSpec(
        id=mount.volume_id,
        source=DiskSource.VOLUME,
        read_only=mount.read_only,
        reference=mount.volume_id,
        destination=mount.destination,
    )


def _revealed(order: VmOrder) -> dict[str, str]:
    """Here the values leave their wrapping: the engine writes no environment to a disk, a log or a command line."""
    return {name: value.reveal_text() for name, value in order.secrets.items()}


def to_view(vm: Vm) -> VmView:
    """What the agent sees of a VM. Pure."""
    status, labels = vm.status, vm.spec.labels
    phase = _PHASES[status.state]
    preparing = phase in (VmPhase.PREPARING, VmPhase.STARTING)
    addresses = [endpoint.removeprefix("tcp:") for endpoint in status.endpoints]
    network = vm.spec.networks[0] if vm.spec.networks else None
    return VmView(
        vm_id=vm.spec.id,
        instance_id=labels.get("instance", ""),
        attempt=int(labels.get("attempt", "0")),
        phase=phase,
        address=addresses[0] if addresses else "",
        private_address=status.private_address,
        detail=status.reason_code if preparing else "",
        asked=phase is VmPhase.STOPPING or status.reason_code in _ASKED,
        exit_code=status.exit_code,
        reason=status.reason,
        reason_code="" if preparing else status.reason_code,
        permanent=status.permanent,
        unavailable=status.unavailable,
        log_tail=status.log_tail,
        acceleration=status.acceleration,
        egress=from_egress(network.egress) if network else None,
        identity=network.identity if network else labels.get("app", ""),
        ingress=from_ingress(network.ingress) if network else None,
        organization_id=vm.spec.scope.org,
        labels=labels,
    )
