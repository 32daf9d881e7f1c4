"""Which VMs make sense at all: what is refused before anything is done for it, whatever the host."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plasmavmc.errors import InvalidSpecError
from plasmavmc.mounts import check_volumes
from plasmavmc.policy import MAX_DESTINATIONS, MAX_OPENINGS, Destination, Egress, Ingress, Opening, is_identity
from plasmavmc.types import GIB, NO_LIMIT, RateLimit, VmResources, VmSpec, check_digest, check_id

_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}")
MAX_PUBLISHED = 64
"""Each takes a descriptor of the server for as long as the VM is there."""
MAX_ENV_BYTES = 1024 * 1024
MIN_RATE, MAX_RATE = 64 * 1024, 4_000_000_000
"""Bytes a second. With less no guest comes up in time; the most is what the kernel's token bucket takes in 32 bits."""
MIN_OPERATIONS, MAX_OPERATIONS = 10, 10_000_000
MAX_CPU_MILLI = 1_024_000
"""More than any host has; what the root helper takes."""
MAX_DISK_BYTES = 16 * 1024 * GIB
"""The largest file of ext4, which a VM's disk is on and has inside (ext4(5))."""


def check_spec(spec: VmSpec) -> None:
    """Refuse a spec that makes no sense, before anything is done for it.

    Raises:
        InvalidSpecError: with the field at fault.
    """
    check_id("id", spec.id)
    check_digest("image", spec.image)
    if not _HOSTNAME.fullmatch(spec.hostname or spec.name):
        raise InvalidSpecError(
            "hostname" if spec.hostname else "name", "a name has 1 to 63 characters of a-z, 0-9 and -"
        )
    _check_resources(spec.resources)
    _check_limits(spec)
    check_volumes(spec.volumes)
    if spec.command == () and spec.entrypoint == ():
        raise InvalidSpecError("command", "nothing would run", resolution="Leave both out to run what the image says.")
    if len(spec.networks) > 1:
        raise InvalidSpecError("networks", "one network interface at most")
    for network in spec.networks:
        check_egress("networks[0].egress", network.egress)
        check_identity("networks[0].identity", network.identity)
        check_ingress("networks[0].ingress", network.ingress)
    if spec.published and not spec.networks:
        raise InvalidSpecError("published", "a VM without a network has no ports to publish")
    if len(spec.published) > MAX_PUBLISHED:
        raise InvalidSpecError("published", f"a VM publishes {MAX_PUBLISHED} ports at most")
    for name, value in spec.env.items():
        if not _ENV_NAME.fullmatch(name) or "\0" in value:
            raise InvalidSpecError(
                "env", f"{name[:64]!r} is not a name for an environment variable, or its value has a NUL"
            )
    if sum(len(name) + len(value) for name, value in spec.env.items()) > MAX_ENV_BYTES:
        raise InvalidSpecError("env", "the environment is larger than 1 MiB")


def check_egress(field: str, destinations: Egress) -> None:
    """What a VM may open connections to can be held.

    Raises:
        InvalidSpecError: naming the field.
    """
    _check_list(field, destinations or (), "destinations", MAX_DESTINATIONS)


def check_identity(field: str, identity: str) -> None:
    """VMs can be told apart by it, or it is none.

    Raises:
        InvalidSpecError: naming the field.
    """
    if identity and not is_identity(identity):
        raise InvalidSpecError(field, "1 to 64 characters of a-z, 0-9, - and _ are needed")


def check_ingress(field: str, openings: Ingress) -> None:
    """What may be opened to a VM can be held.

    Raises:
        InvalidSpecError: naming the field.
    """
    _check_list(field, openings or (), "openings", MAX_OPENINGS)


def _check_list(field: str, given: Sequence[Destination | Opening], what: str, most: int) -> None:
    if len(given) > most:
        raise InvalidSpecError(field, f"a VM has {most} {what} at most")
    for index, each in enumerate(given):
        if fault := each.fault:
            raise InvalidSpecError(f"{field}[{index}].{fault[0]}", fault[1])


def limited_networks(spec: VmSpec) -> tuple[str, ...]:
    """Fields that hold an interface to a rate."""
    return tuple(
        f"networks[{index}].{way}"
        for index, network in enumerate(spec.networks)
        for way, limit in (("receive", network.receive), ("transmit", network.transmit))
        if limit != NO_LIMIT
    )


def _check_limits(spec: VmSpec) -> None:
    _check_limit("resources.disk_limit", spec.resources.disk_limit)
    for index, volume in enumerate(spec.volumes):
        _check_limit(f"volumes[{index}].limit", volume.limit)
    for index, network in enumerate(spec.networks):
        for way, limit in (("receive", network.receive), ("transmit", network.transmit)):
            _check_limit(f"networks[{index}].{way}", limit)
            if limit.operations_per_second:
                raise InvalidSpecError(
                    f"networks[{index}].{way}.operations_per_second", "a network is limited by bytes only"
                )


def _check_limit(field: str, limit: RateLimit) -> None:
    rate, operations = limit.bytes_per_second, limit.operations_per_second
    if rate and not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidSpecError(f"{field}.bytes_per_second", f"a limit is {MIN_RATE} to {MAX_RATE} bytes a second")
    if operations and not MIN_OPERATIONS <= operations <= MAX_OPERATIONS:
        raise InvalidSpecError(
            f"{field}.operations_per_second", f"a limit is {MIN_OPERATIONS} to {MAX_OPERATIONS} operations a second"
        )


def _check_resources(resources: VmResources) -> None:
    if resources.memory_bytes < 64 << 20:
        raise InvalidSpecError("resources.memory_bytes", "a microVM needs 64 MiB at least")
    if resources.vcpus < 1 or resources.cpu_milli < 10:
        raise InvalidSpecError("resources", "a microVM needs one vCPU and 10 milli-CPU at least")
    if resources.cpu_milli > MAX_CPU_MILLI:
        raise InvalidSpecError("resources.cpu_milli", f"a microVM has {MAX_CPU_MILLI} milli-CPU at most")
    if not 0 < resources.disk_bytes <= MAX_DISK_BYTES:
        raise InvalidSpecError("resources.disk_bytes", f"a microVM's disk has 1 byte to {MAX_DISK_BYTES // GIB} GiB")
