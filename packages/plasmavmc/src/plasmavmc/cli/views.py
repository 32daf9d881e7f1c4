"""VMs, images and nodes as they are shown: a document for machines, cells for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from plasmavmc.cli.output import age, size
from plasmavmc.cli.values import shown_labels

if TYPE_CHECKING:
    from plasmavmc.backends import BackendStatus
    from plasmavmc.rpc.api import Amount, Image, Node
    from plasmavmc.types import NetworkUsage, Pressure, Vm, VmSpec


def vm_document(vm: Vm) -> dict[str, Any]:
    spec, status = vm.spec, vm.status
    pressed = status.usage.pressure
    return {
        "id": spec.id,
        "name": spec.name,
        "org": spec.scope.org,
        "project": spec.scope.project,
        "image": spec.image,
        "entrypoint": None if spec.entrypoint is None else list(spec.entrypoint),
        "command": None if spec.command is None else list(spec.command),
        "user": spec.user,
        "workdir": spec.workdir,
        "stdio": spec.stdio.value,
        "cpu_milli": spec.resources.cpu_milli,
        "vcpus": spec.resources.vcpus,
        "memory_bytes": spec.resources.memory_bytes,
        "disk_bytes": spec.resources.disk_bytes,
        "networks": [network.network_id for network in spec.networks],
        "limits": _limits(spec),
        "egress": _egress(spec),
        "identity": spec.networks[0].identity if spec.networks else "",
        "ingress": _ingress(spec),
        "published": [
            {"address": str(port.address), "host_port": port.host_port, "guest_port": port.guest_port}
            for port in spec.published
        ],
        "labels": dict(spec.labels),
        "state": status.state.value,
        "since": status.since,
        "reason": status.reason,
        "reason_code": status.reason_code,
        "exit_code": status.exit_code,
        "endpoints": list(status.endpoints),
        "private_address": status.private_address,
        "backend": status.backend,
        "acceleration": status.acceleration,
        "confinement": status.confinement,
        "memory_used_bytes": status.usage.memory_rss_bytes,
        "cpu_used_seconds": status.usage.cpu_seconds,
        "disk_used_bytes": status.usage.disk_bytes,
        "pressure": None if pressed is None else {"cpu": pressed.cpu, "memory": pressed.memory, "io": pressed.io},
        "network_used": None if status.usage.network is None else asdict(status.usage.network),
        "log_tail": list(status.log_tail),
    }


def vm_row(vm: Vm) -> dict[str, object]:
    status = vm.status
    ended = "" if status.exit_code is None else f" ({status.exit_code})"
    return {
        "id": vm.spec.id,
        "name": vm.spec.name,
        "state": f"{status.state.value}{ended}",
        "since": age(status.since),
        "address": next((each.partition(":")[2] for each in status.endpoints), ""),
        "ports": ", ".join(f"{port.address}:{port.host_port}->{port.guest_port}" for port in vm.spec.published),
        "memory": _share(status.usage.memory_rss_bytes, vm.spec.resources.memory_bytes),
        "cpu": f"{status.usage.cpu_seconds:.1f} s",
        "disk": _share(status.usage.disk_bytes, vm.spec.resources.disk_bytes),
        "image": vm.spec.image.removeprefix("sha256:")[:12],
    }


def _limits(spec: VmSpec) -> dict[str, int]:
    """What it is held to in a second, by the names of the options; what is not limited is left out."""
    disk = spec.resources.disk_limit
    network = spec.networks[0] if spec.networks else None
    amounts = {
        "disk_rate": disk.bytes_per_second,
        "disk_iops": disk.operations_per_second,
        "receive_rate": network.receive.bytes_per_second if network else 0,
        "transmit_rate": network.transmit.bytes_per_second if network else 0,
    }
    return {name: amount for name, amount in amounts.items() if amount}


def _egress(spec: VmSpec) -> list[str] | None:
    """What it may open connections to; None: whatever is not closed to every VM."""
    network = spec.networks[0] if spec.networks else None
    return None if network is None or network.egress is None else [str(each) for each in network.egress]


def _ingress(spec: VmSpec) -> list[str] | None:
    """What VMs of its network may open to it; None: anything."""
    network = spec.networks[0] if spec.networks else None
    return None if network is None or network.ingress is None else [str(each) for each in network.ingress]


def _share(used: int, whole: int) -> str:
    return f"{size(used)}/{size(whole)}" if used else size(whole)


def vm_pairs(vm: Vm) -> dict[str, object]:
    spec, status = vm.spec, vm.status
    row = vm_row(vm)
    backend = f"{status.backend} ({status.acceleration}, {status.confinement})" if status.backend else ""
    return {
        "id": spec.id,
        "name": spec.name,
        "project": f"{spec.scope.org}/{spec.scope.project}",
        "state": row["state"],
        "since": f"{row['since']} ago",
        "reason": status.reason,
        "image": spec.image,
        "command": " ".join((*(spec.entrypoint or ()), *(spec.command or ()))),
        "cpus": f"{spec.resources.cpu_milli / 1000:g}, {status.usage.cpu_seconds:.1f} s used",
        "memory": f"{size(spec.resources.memory_bytes)}, {size(status.usage.memory_rss_bytes)} used by the VMM",
        "disk": f"{size(spec.resources.disk_bytes)}, {size(status.usage.disk_bytes)} used",
        "pressure": _pressure(status.usage.pressure),
        "traffic": _traffic(status.usage.network),
        "network": ", ".join(network.network_id for network in spec.networks),
        "limits": ", ".join(f"{name.replace('_', ' ')} {amount}" for name, amount in _limits(spec).items()),
        "egress": None if (egress := _egress(spec)) is None else ", ".join(egress) or "nothing",
        "identity": ", ".join(network.identity for network in spec.networks),
        "ingress": None if (ingress := _ingress(spec)) is None else ", ".join(ingress) or "nothing",
        "address": row["address"],
        "private address": status.private_address,
        "ports": row["ports"],
        "labels": shown_labels(spec.labels),
        "backend": backend,
    }


def _traffic(passed: NetworkUsage | None) -> str:
    """Nothing where it is not counted."""
    if passed is None:
        return ""
    sent = f"{size(passed.transmit_bytes)} in {passed.transmit_packets} packets sent"
    got = f"{size(passed.receive_bytes)} in {passed.receive_packets} received"
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(passed.dropped.items()))
    return f"{sent}, {got}" + (f", frames dropped: {dropped}" if dropped else "")


def _pressure(pressed: Pressure | None) -> str:
    """Nothing where it is not measured."""
    if pressed is None:
        return ""
    return f"cpu {pressed.cpu:.0%}, memory {pressed.memory:.0%}, io {pressed.io:.0%} of the last 10 s waited"


def image_document(image: Image) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "names": list(image.names),
        "org": image.scope.org,
        "project": image.scope.project,
        "kind": image.kind.value if image.kind else None,
        "size_bytes": image.size_bytes,
        "disk_bytes": image.disk_bytes,
        "created": image.created,
        "used_at": image.used_at,
        "entrypoint": list(image.entrypoint),
        "command": list(image.command),
        "user": image.user,
        "workdir": image.workdir,
        "exposed_ports": list(image.exposed_ports),
        "labels": dict(image.labels),
    }


def image_row(image: Image) -> dict[str, object]:
    return {
        "name": image.names[0] if image.names else image.digest,
        "digest": image.digest.removeprefix("sha256:")[:12],
        "project": f"{image.scope.org}/{image.scope.project}",
        "kind": image.kind.value if image.kind else None,
        "size": size(image.size_bytes),
        "disk": size(image.disk_bytes),
        "age": age(image.created),
        "used": age(image.used_at) if image.used_at else "",
    }


def node_document(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "name": node.name,
        "version": node.version,
        "scheduling": node.scheduling.value,
        "capacity": amount_document(node.capacity),
        "promised": amount_document(node.promised),
        "backends": [backend_document(backend) for backend in node.backends],
        "labels": dict(node.labels),
    }


def amount_document(amount: Amount) -> dict[str, int]:
    return {
        "cpu_milli": amount.cpu_milli,
        "memory_bytes": amount.memory_bytes,
        "disk_bytes": amount.disk_bytes,
        "vms": amount.vms,
    }


def backend_document(backend: BackendStatus) -> dict[str, Any]:
    able = backend.capabilities
    return {
        "name": backend.name,
        "readiness": backend.readiness.value,
        "reason": backend.reason,
        "acceleration": able.acceleration.value if able else None,
        "isolation": able.isolation.value if able else None,
        "abilities": abilities(backend),
    }


_ABILITIES = ("pause", "suspend", "fork", "snapshot", "hotplug_disk", "hotplug_nic", "balloon", "rate_limits")


def abilities(backend: BackendStatus) -> list[str]:
    """What a backend can do beyond starting and stopping."""
    return [name for name in _ABILITIES if backend.capabilities and getattr(backend.capabilities, name)]


def node_pairs(node: Node) -> dict[str, object]:
    whole, used = node.capacity, node.promised
    backends: Mapping[str, object] = {f"backend {backend.name}": backend_line(backend) for backend in node.backends}
    return {
        "id": node.id,
        "name": node.name,
        "version": node.version,
        "scheduling": node.scheduling.value,
        "labels": shown_labels(node.labels),
        "cpus": f"{used.cpu_milli / 1000:g} of {whole.cpu_milli / 1000:g} promised",
        "memory": f"{size(used.memory_bytes)} of {size(whole.memory_bytes)} promised",
        "disk": f"{size(used.disk_bytes)} of {size(whole.disk_bytes)} promised",
        "vms": f"{used.vms} of {whole.vms}",
        **backends,
    }


def backend_line(backend: BackendStatus) -> str:
    able = backend.capabilities
    parts = [backend.readiness.value]
    if able is not None:
        parts += [able.isolation.value, able.acceleration.value, *abilities(backend)]
    return ", ".join(parts) + (f" — {backend.reason}" if backend.reason else "")
