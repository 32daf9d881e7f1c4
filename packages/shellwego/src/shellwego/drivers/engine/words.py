"""What a VM uses and may reach, what a host offers, and what is around both, from one vocabulary to the other. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from plasmavmc import policy, types
from plasmavmc.backends import BackendCapabilities
from plasmavmc.host import operations
from plasmavmc.host.operations import Peer
from plasmavmc.host.ports import Answerer, PublishedPort, Transport
from plasmavmc.network.dns import names
from plasmavmc.types import OWN_DISKS
from plasmavmc.volumes import VolumeView as EngineVolume
from shellwego.core.destinations import Destination, IpProtocol
from shellwego.core.names import NetworkNames
from shellwego.core.nodes import Backend
from shellwego.core.openings import Ingress, Opening
from shellwego.core.peers import PeerNode
from shellwego.core.publishing import OpenPort
from shellwego.core.volumes import SnapshotView, VolumeView
from shellwego.ports.engine import NetworkUsage, VmUsage

LONGEST_WORD = 128
"""Of what is told of a host; servers take no essays."""


def to_egress(destinations: Sequence[Destination] | None) -> policy.Egress:
    """What a VM may open connections to, in the engine's words. Pure."""
    if destinations is None:
        return None
    return tuple(
        policy.Destination(
            IPv4Network(each.network), policy.IpProtocol(each.protocol.value), each.first_port, each.last_port
        )
        for each in destinations
    )


def from_egress(egress: policy.Egress) -> tuple[Destination, ...] | None:
    """The same, back. Pure."""
    if egress is None:
        return None
    return tuple(
        Destination(
            network=str(each.network),
            protocol=IpProtocol(each.protocol.value),
            first_port=each.first_port,
            last_port=each.last_port,
        )
        for each in egress
    )


def to_ingress(openings: Ingress) -> policy.Ingress:
    """What may be opened to a VM, in the engine's words. Pure."""
    if openings is None:
        return None
    return tuple(
        policy.Opening(each.identity, policy.IpProtocol(each.protocol.value), each.first_port, each.last_port)
        for each in openings
    )


def from_ingress(ingress: policy.Ingress) -> Ingress:
    """The same, back. Pure."""
    if ingress is None:
        return None
    return tuple(
        Opening(
            identity=each.identity,
            protocol=IpProtocol(each.protocol.value),
            first_port=each.first_port,
            last_port=each.last_port,
        )
        for each in ingress
    )


def to_peer(peer: PeerNode) -> Peer:
    """Another node, in the engine's words. Pure."""
    private = IPv6Network(peer.private) if peer.private else None
    underlay = operations.Underlay(peer.underlay.value)
    return Peer(IPv4Network(peer.subnet), IPv4Address(peer.address), private, underlay, peer.keys, peer.port)


def to_names(networks: Sequence[NetworkNames]) -> names.Names:
    """The names of networks in the engine's words. Pure."""
    return names.Names(
        networks={
            each.network_id: names.NetworkNames(
                hosts=each.hosts,
                services={
                    name: tuple(names.ServicePlace(target=place.target, port=place.port) for place in places)
                    for name, places in each.services.items()
                },
                texts=each.texts,
            )
            for each in networks
        }
    )


def to_published(port: OpenPort) -> PublishedPort:
    """A published port in the engine's words. Pure."""
    answerers = tuple(
        Answerer(types.vm_key(each.vm_id), IPv4Address(each.ipv4), each.port, each.taking) for each in port.endpoints
    )
    return PublishedPort(Transport(port.transport.value), port.port, answerers)


def to_volume(found: EngineVolume) -> VolumeView:
    """What the agent sees of a volume. Pure."""
    return VolumeView(
        volume_id=found.volume_id,
        size_bytes=found.size_bytes,
        used_bytes=found.used_bytes,
        vm_id=found.vm_id,
        encrypted=found.encrypted,
        locked=found.locked,
        snapshots=tuple(
            SnapshotView(snapshot_id=each.snapshot_id, used_bytes=each.used_bytes) for each in found.snapshots
        ),
    )


def to_usage(used: types.VmUsage) -> VmUsage:
    """What a VM uses, in the platform's words. Pure."""
    pressed = used.pressure
    return VmUsage(
        memory_bytes=used.memory_rss_bytes,
        cpu_seconds=used.cpu_seconds,
        disk_bytes=used.disk_bytes,
        pressure={} if pressed is None else {"cpu": pressed.cpu, "memory": pressed.memory, "io": pressed.io},
        network=None if used.network is None else to_network_usage(used.network),
    )


def to_network_usage(used: types.NetworkUsage) -> NetworkUsage:
    return NetworkUsage(
        transmit_packets=used.transmit_packets,
        transmit_bytes=used.transmit_bytes,
        receive_packets=used.receive_packets,
        receive_bytes=used.receive_bytes,
        dropped=used.dropped,
    )


def to_words(traits: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What is told of a host, by name; what is long is told by its digest. Pure."""
    short = {
        name: text if len(text) <= LONGEST_WORD else hashlib.sha256(text.encode()).hexdigest()
        for name, text in traits.items()
    }
    return tuple(sorted(short.items()))


def to_backend(capabilities: BackendCapabilities, *, reason: str = "") -> Backend:
    """A usable backend as the platform tells it."""
    return Backend(
        name=capabilities.name,
        status="ready",
        acceleration=capabilities.acceleration.value,
        isolation=capabilities.isolation.value,
        reason=reason,
        max_vcpus=capabilities.max_vcpus,
        max_memory_bytes=capabilities.max_memory_bytes,
        suspend=capabilities.suspend,
        volumes=capabilities.max_disks > OWN_DISKS,
        encryption=capabilities.encryption,
        fences=capabilities.max_disks > OWN_DISKS,
    )
