"""The specification of a VM."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address

from plasmavmc.errors import InvalidSpecError
from plasmavmc.guest.messages import signal_number
from plasmavmc.policy import LAST_PORT, is_identity
from plasmavmc.rpc.conversions.egress import egress_from_pb, egress_to_pb
from plasmavmc.rpc.conversions.ingress import ingress_from_pb, ingress_to_pb
from plasmavmc.rpc.conversions.values import (
    NO_SCOPE,
    duration_from_pb,
    duration_to_pb,
    enum_from_pb,
    enum_to_pb,
    labels,
    scope_from_pb,
    scope_to_pb,
    text,
    texts,
)
from plasmavmc.rpc.v1 import types_pb2
from plasmavmc.types import (
    NO_LIMIT,
    DiskSource,
    DiskSpec,
    FileSpec,
    NetworkSpec,
    PublishedPort,
    RateLimit,
    Stdio,
    VmResources,
    VmSpec,
)

_DEFAULTS = VmResources()
_DEFAULT_MODE = 0o644
_NETWORK_ID = re.compile(r"[a-z0-9_-]{1,51}")
_MAC = re.compile(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}")
_STDIO_NAMES = {int(value): name for name, value in types_pb2.Stdio.items()}
_SOURCE_NAMES = {int(value): name for name, value in types_pb2.DiskSpec.Source.items()}


def spec_to_pb(spec: VmSpec, *, secrets: bool) -> types_pb2.VmSpec:
    """A specification; environment and files only with `secrets`, which is for requests."""
    message = types_pb2.VmSpec(
        id=spec.id,
        name=spec.name,
        image=spec.image,
        env=spec.env if secrets else {},
        files=[_file_to_pb(file) for file in spec.files] if secrets else (),
        resources=types_pb2.VmResources(
            cpu_milli=spec.resources.cpu_milli,
            vcpus=spec.resources.vcpus,
            memory_bytes=spec.resources.memory_bytes,
            disk_bytes=spec.resources.disk_bytes,
            disk_limit=_limit_to_pb(spec.resources.disk_limit),
        ),
        networks=[_network_to_pb(network) for network in spec.networks],
        volumes=[_disk_to_pb(disk) for disk in spec.volumes],
        hostname=spec.hostname,
        stop_grace=duration_to_pb(spec.stop_grace_s),
        snapshot_safe=spec.snapshot_safe,
        labels=spec.labels,
        user=spec.user,
        workdir=spec.workdir,
        stop_signal=spec.stop_signal,
        backend=spec.backend,
        stdio=enum_to_pb(spec.stdio, "STDIO", types_pb2.Stdio.Value),
        published=[_port_to_pb(port) for port in spec.published],
    )
    if spec.scope != NO_SCOPE:
        message.scope.CopyFrom(scope_to_pb(spec.scope))
    for name, words in (("command", spec.command), ("entrypoint", spec.entrypoint)):
        if words is not None:
            getattr(message, name).CopyFrom(types_pb2.StringList(values=words))
    return message


def spec_from_pb(message: types_pb2.VmSpec, field: str = "spec") -> VmSpec:
    """A specification. Its id, name and scope may be empty; its image may be a name.

    Raises:
        InvalidSpecError: with the path of the field at fault.
    """
    default = VmSpec("", NO_SCOPE, "", "")
    return VmSpec(
        id=text(f"{field}.id", message.id, 64),
        scope=scope_from_pb(f"{field}.scope", message.scope),
        name=text(f"{field}.name", message.name, 63),
        image=_image(f"{field}.image", message.image),
        command=texts(f"{field}.command", message.command.values) if message.HasField("command") else None,
        entrypoint=texts(f"{field}.entrypoint", message.entrypoint.values) if message.HasField("entrypoint") else None,
        env=dict(message.env),
        user=text(f"{field}.user", message.user, 256) if message.HasField("user") else None,
        workdir=text(f"{field}.workdir", message.workdir) if message.HasField("workdir") else None,
        files=tuple(_file_from_pb(f"{field}.files[{n}]", each) for n, each in enumerate(message.files)),
        resources=_resources_from_pb(message.resources),
        networks=tuple(_network_from_pb(f"{field}.networks[{n}]", each) for n, each in enumerate(message.networks)),
        volumes=tuple(_disk_from_pb(f"{field}.volumes[{n}]", each) for n, each in enumerate(message.volumes)),
        hostname=text(f"{field}.hostname", message.hostname, 63),
        stop_signal=_signal(f"{field}.stop_signal", message.stop_signal) if message.HasField("stop_signal") else None,
        stop_grace_s=duration_from_pb(f"{field}.stop_grace", message.stop_grace)
        if message.HasField("stop_grace")
        else default.stop_grace_s,
        snapshot_safe=message.snapshot_safe,
        backend=text(f"{field}.backend", message.backend, 64) if message.HasField("backend") else None,
        labels=labels(f"{field}.labels", message.labels),
        stdio=enum_from_pb(f"{field}.stdio", Stdio, _STDIO_NAMES, message.stdio, "STDIO")
        if message.stdio
        else default.stdio,
        published=tuple(_port_from_pb(f"{field}.published[{n}]", each) for n, each in enumerate(message.published)),
    )


def _port_to_pb(port: PublishedPort) -> types_pb2.PublishedPort:
    return types_pb2.PublishedPort(host_port=port.host_port, guest_port=port.guest_port, address=str(port.address))


def _port_from_pb(field: str, message: types_pb2.PublishedPort) -> PublishedPort:
    for name, number in (("host_port", message.host_port), ("guest_port", message.guest_port)):
        if not 1 <= number <= LAST_PORT:
            raise InvalidSpecError(f"{field}.{name}", f"a port is 1 to {LAST_PORT}")
    address = _ipv4(f"{field}.address", message.address)
    if address is None:
        return PublishedPort(message.host_port, message.guest_port)
    return PublishedPort(message.host_port, message.guest_port, address)


def _image(field: str, image: str) -> str:
    if not image:
        raise InvalidSpecError(field, "an image is needed: the digest or the name of one that is registered")
    return text(field, image, 512)


def _signal(field: str, name: str) -> str:
    try:
        signal_number(text(field, name, 40))
    except InvalidSpecError:
        raise InvalidSpecError(field, f"{name[:40]!r} is no signal", resolution="Use a name such as SIGTERM.") from None
    return name


def _resources_from_pb(message: types_pb2.VmResources) -> VmResources:
    return VmResources(
        message.cpu_milli or _DEFAULTS.cpu_milli,
        message.vcpus or _DEFAULTS.vcpus,
        message.memory_bytes or _DEFAULTS.memory_bytes,
        message.disk_bytes or _DEFAULTS.disk_bytes,
        _limit_from_pb(message.disk_limit),
    )


def _file_to_pb(file: FileSpec) -> types_pb2.FileSpec:
    return types_pb2.FileSpec(path=file.path, content=file.content, mode=file.mode)


def _file_from_pb(field: str, message: types_pb2.FileSpec) -> FileSpec:
    if not message.path.startswith("/"):
        raise InvalidSpecError(f"{field}.path", "an absolute path is needed")
    if message.mode > 0o7777:
        raise InvalidSpecError(f"{field}.mode", "permission bits are 0 to 07777")
    return FileSpec(text(f"{field}.path", message.path), message.content, message.mode or _DEFAULT_MODE)


def _limit_to_pb(limit: RateLimit) -> types_pb2.RateLimit | None:
    if limit == NO_LIMIT:
        return None
    return types_pb2.RateLimit(
        bytes_per_second=limit.bytes_per_second, operations_per_second=limit.operations_per_second
    )


def _limit_from_pb(message: types_pb2.RateLimit) -> RateLimit:
    return RateLimit(message.bytes_per_second, message.operations_per_second)


def _network_to_pb(network: NetworkSpec) -> types_pb2.NetworkSpec:
    message = types_pb2.NetworkSpec(
        id=network.id,
        network_id=network.network_id,
        mac=network.mac,
        ipv4="" if network.ipv4 is None else str(network.ipv4),
        receive=_limit_to_pb(network.receive),
        transmit=_limit_to_pb(network.transmit),
        identity=network.identity,
    )
    if network.egress is not None:
        message.egress.CopyFrom(egress_to_pb(network.egress))
    if network.ingress is not None:
        message.ingress.CopyFrom(ingress_to_pb(network.ingress))
    return message


def _network_from_pb(field: str, message: types_pb2.NetworkSpec) -> NetworkSpec:
    if not _NETWORK_ID.fullmatch(message.network_id):
        raise InvalidSpecError(f"{field}.network_id", "1 to 51 characters of a-z, 0-9, - and _ are needed")
    if message.identity and not is_identity(message.identity):
        raise InvalidSpecError(f"{field}.identity", "1 to 64 characters of a-z, 0-9, - and _ are needed")
    if message.mac and not _MAC.fullmatch(message.mac):
        raise InvalidSpecError(f"{field}.mac", "a locally administered unicast address in lower case is needed")
    return NetworkSpec(
        text(f"{field}.id", message.id, 64),
        message.network_id,
        message.mac,
        _ipv4(f"{field}.ipv4", message.ipv4),
        receive=_limit_from_pb(message.receive),
        transmit=_limit_from_pb(message.transmit),
        egress=egress_from_pb(f"{field}.egress", message.egress) if message.HasField("egress") else None,
        identity=message.identity,
        ingress=ingress_from_pb(f"{field}.ingress", message.ingress) if message.HasField("ingress") else None,
    )


def _ipv4(field: str, value: str) -> IPv4Address | None:
    try:
        return IPv4Address(value) if value else None
    except AddressValueError:
        raise InvalidSpecError(field, f"{value[:40]!r} is no IPv4 address") from None


def _disk_to_pb(disk: DiskSpec) -> types_pb2.DiskSpec:
    return types_pb2.DiskSpec(
        id=disk.id,
        source=enum_to_pb(disk.source, "SOURCE", types_pb2.DiskSpec.Source.Value),
        read_only=disk.read_only,
        size_bytes=disk.size_bytes,
        reference=disk.reference,
        limit=_limit_to_pb(disk.limit),
        destination=disk.destination,
    )


def _disk_from_pb(field: str, message: types_pb2.DiskSpec) -> DiskSpec:
    return DiskSpec(
        text(f"{field}.id", message.id, 64),
        enum_from_pb(f"{field}.source", DiskSource, _SOURCE_NAMES, message.source, "SOURCE"),
        message.read_only,
        message.size_bytes,
        text(f"{field}.reference", message.reference, 256),
        limit=_limit_from_pb(message.limit),
        destination=text(f"{field}.destination", message.destination, 255),
    )
