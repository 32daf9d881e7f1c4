"""Nodes and their backends."""

from __future__ import annotations

from plasmavmc.backends import Acceleration, BackendCapabilities, BackendStatus, GuestKind, Isolation, Readiness
from plasmavmc.rpc.api import Amount, Node, Scheduling
from plasmavmc.rpc.conversions.values import enum_from_pb, enum_to_pb
from plasmavmc.rpc.v1 import node_pb2

_SCHEDULING_NAMES = {int(value): name for name, value in node_pb2.NodeScheduling.items()}
_READINESS_NAMES = {int(value): name for name, value in node_pb2.BackendReadiness.items()}


def node_to_pb(node: Node) -> node_pb2.Node:
    return node_pb2.Node(
        id=node.id,
        name=node.name,
        scheduling=enum_to_pb(node.scheduling, "NODE_SCHEDULING", node_pb2.NodeScheduling.Value),
        capacity=_amount_to_pb(node.capacity),
        promised=_amount_to_pb(node.promised),
        backends=[_backend_to_pb(backend) for backend in node.backends],
        version=node.version,
        labels=node.labels,
    )


def node_from_pb(message: node_pb2.Node) -> Node:
    return Node(
        id=message.id,
        name=message.name,
        scheduling=enum_from_pb(
            "node.scheduling", Scheduling, _SCHEDULING_NAMES, message.scheduling, "NODE_SCHEDULING"
        ),
        capacity=_amount_from_pb(message.capacity),
        promised=_amount_from_pb(message.promised),
        backends=tuple(_backend_from_pb(backend) for backend in message.backends),
        version=message.version,
        labels=dict(message.labels),
    )


def _amount_to_pb(amount: Amount) -> node_pb2.NodeAmount:
    return node_pb2.NodeAmount(
        cpu_milli=amount.cpu_milli, memory_bytes=amount.memory_bytes, disk_bytes=amount.disk_bytes, vms=amount.vms
    )


def _amount_from_pb(message: node_pb2.NodeAmount) -> Amount:
    return Amount(message.cpu_milli, message.memory_bytes, message.disk_bytes, message.vms)


def _backend_to_pb(status: BackendStatus) -> node_pb2.Backend:
    return node_pb2.Backend(
        name=status.name,
        readiness=enum_to_pb(status.readiness, "BACKEND_READINESS", node_pb2.BackendReadiness.Value),
        reason=status.reason,
        capabilities=None if status.capabilities is None else _capabilities_to_pb(status.capabilities),
    )


def _backend_from_pb(message: node_pb2.Backend) -> BackendStatus:
    return BackendStatus(
        message.name,
        enum_from_pb("backend.readiness", Readiness, _READINESS_NAMES, message.readiness, "BACKEND_READINESS"),
        message.reason,
        _capabilities_from_pb(message.name, message.capabilities) if message.HasField("capabilities") else None,
    )


def _capabilities_to_pb(can: BackendCapabilities) -> node_pb2.BackendCapabilities:
    return node_pb2.BackendCapabilities(
        acceleration=can.acceleration.value,
        isolation=can.isolation.value,
        guest_kinds=can.guest_kinds,
        max_vcpus=can.max_vcpus,
        max_memory_bytes=can.max_memory_bytes,
        max_disks=can.max_disks,
        max_nics=can.max_nics,
        pause=can.pause,
        suspend=can.suspend,
        fork=can.fork,
        snapshot=can.snapshot,
        hotplug_disk=can.hotplug_disk,
        hotplug_nic=can.hotplug_nic,
        balloon=can.balloon,
        channel=can.channel,
        rate_limits=can.rate_limits,
        encryption=can.encryption,
    )


def _capabilities_from_pb(name: str, message: node_pb2.BackendCapabilities) -> BackendCapabilities:
    return BackendCapabilities(
        name=name,
        acceleration=Acceleration(message.acceleration),
        isolation=Isolation(message.isolation),
        guest_kinds=tuple(kind for kind in GuestKind if kind.value in message.guest_kinds),
        max_vcpus=message.max_vcpus,
        max_memory_bytes=message.max_memory_bytes,
        max_disks=message.max_disks,
        max_nics=message.max_nics,
        pause=message.pause,
        suspend=message.suspend,
        fork=message.fork,
        snapshot=message.snapshot,
        hotplug_disk=message.hotplug_disk,
        hotplug_nic=message.hotplug_nic,
        balloon=message.balloon,
        channel=message.channel,
        rate_limits=message.rate_limits,
        encryption=message.encryption,
    )
