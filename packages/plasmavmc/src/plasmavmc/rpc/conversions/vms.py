"""VMs: status, filter, identities of copies."""

from __future__ import annotations

from plasmavmc.errors import InvalidSpecError
from plasmavmc.rpc.api import VmFilter
from plasmavmc.rpc.conversions.specs import spec_from_pb, spec_to_pb
from plasmavmc.rpc.conversions.values import (
    MAX_ENTRIES,
    NO_SCOPE,
    enum_from_pb,
    enum_to_pb,
    labels,
    scope_from_pb,
    scope_to_pb,
    text,
    time_from_pb,
    time_to_pb,
)
from plasmavmc.rpc.v1 import types_pb2, vm_pb2
from plasmavmc.states import VmState
from plasmavmc.types import ForkIdentity, NetworkUsage, Pressure, Vm, VmStatus, VmUsage

MAX_COPIES = 64
_STATE_NAMES = {int(value): name for name, value in types_pb2.VmState.items()}

# Status


def vm_to_pb(vm: Vm) -> types_pb2.Vm:
    """A VM as it is told: without environment and files."""
    return types_pb2.Vm(spec=spec_to_pb(vm.spec, secrets=False), status=status_to_pb(vm.status))


def vm_from_pb(message: types_pb2.Vm) -> Vm:
    return Vm(spec_from_pb(message.spec, "vm.spec"), status_from_pb(message.status))


def status_to_pb(status: VmStatus) -> types_pb2.VmStatus:
    return types_pb2.VmStatus(
        state=enum_to_pb(status.state, "VM_STATE", types_pb2.VmState.Value),
        since=time_to_pb(status.since),
        reason=status.reason,
        reason_code=status.reason_code,
        permanent=status.permanent,
        unavailable=status.unavailable,
        exit_code=status.exit_code,
        guest_ready=status.guest_ready,
        endpoints=status.endpoints,
        private_address=status.private_address,
        backend=status.backend,
        acceleration=status.acceleration,
        confinement=status.confinement,
        usage=_usage_to_pb(status.usage),
        log_tail=status.log_tail,
    )


def status_from_pb(message: types_pb2.VmStatus) -> VmStatus:
    return VmStatus(
        state=state_from_pb("vm.status.state", message.state),
        since=time_from_pb(message.since),
        reason=message.reason,
        reason_code=message.reason_code,
        permanent=message.permanent,
        unavailable=message.unavailable,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        guest_ready=message.guest_ready,
        endpoints=tuple(message.endpoints),
        private_address=message.private_address,
        backend=message.backend,
        acceleration=message.acceleration,
        confinement=message.confinement,
        usage=_usage_from_pb(message.usage),
        log_tail=tuple(message.log_tail),
    )


def _usage_to_pb(usage: VmUsage) -> types_pb2.VmUsage:
    pressed = usage.pressure
    return types_pb2.VmUsage(
        memory_rss_bytes=usage.memory_rss_bytes,
        cpu_seconds=usage.cpu_seconds,
        disk_bytes=usage.disk_bytes,
        pressure=None if pressed is None else types_pb2.Pressure(cpu=pressed.cpu, memory=pressed.memory, io=pressed.io),
        network=None if usage.network is None else _network_usage_to_pb(usage.network),
    )


def _network_usage_to_pb(usage: NetworkUsage) -> types_pb2.NetworkUsage:
    return types_pb2.NetworkUsage(
        transmit_packets=usage.transmit_packets,
        transmit_bytes=usage.transmit_bytes,
        receive_packets=usage.receive_packets,
        receive_bytes=usage.receive_bytes,
        dropped=usage.dropped,
    )


def _usage_from_pb(message: types_pb2.VmUsage) -> VmUsage:
    pressed = message.pressure
    return VmUsage(
        message.memory_rss_bytes,
        message.cpu_seconds,
        message.disk_bytes,
        Pressure(pressed.cpu, pressed.memory, pressed.io) if message.HasField("pressure") else None,
        _network_usage_from_pb(message.network) if message.HasField("network") else None,
    )


def _network_usage_from_pb(message: types_pb2.NetworkUsage) -> NetworkUsage:
    return NetworkUsage(
        message.transmit_packets,
        message.transmit_bytes,
        message.receive_packets,
        message.receive_bytes,
        dict(message.dropped),
    )


def state_from_pb(field: str, number: int) -> VmState:
    """Raises `InvalidSpecError`: unspecified or unknown."""
    return enum_from_pb(field, VmState, _STATE_NAMES, number, "VM_STATE")


# Filters and copies


def filter_to_pb(chosen: VmFilter) -> vm_pb2.VmFilter:
    return vm_pb2.VmFilter(
        states=[enum_to_pb(state, "VM_STATE", types_pb2.VmState.Value) for state in sorted(chosen.states)],
        labels=chosen.labels,
        scope=None if chosen.scope is None else scope_to_pb(chosen.scope),
    )


def filter_from_pb(message: vm_pb2.VmFilter) -> VmFilter:
    """Raises `InvalidSpecError` with the path of the field at fault."""
    if len(message.states) > MAX_ENTRIES:
        raise InvalidSpecError("filter.states", "too many")
    scope = scope_from_pb("filter.scope", message.scope)
    return VmFilter(
        frozenset(state_from_pb(f"filter.states[{n}]", number) for n, number in enumerate(message.states)),
        labels("filter.labels", message.labels),
        None if scope == NO_SCOPE else scope,
    )


def copy_to_pb(identity: ForkIdentity) -> vm_pb2.ForkIdentity:
    return vm_pb2.ForkIdentity(vm_id=identity.vm_id, name=identity.name, hostname=identity.hostname)


def copies_from_pb(messages: vm_pb2.ForkVmRequest) -> tuple[ForkIdentity, ...]:
    """Identities of copies; ids and names may be empty.

    Raises:
        InvalidSpecError: none, too many, or a field is too long.
    """
    if not 1 <= len(messages.copies) <= MAX_COPIES:
        raise InvalidSpecError("copies", f"1 to {MAX_COPIES} copies can be asked for")
    return tuple(
        ForkIdentity(
            text(f"copies[{n}].vm_id", each.vm_id, 64),
            text(f"copies[{n}].name", each.name, 63),
            text(f"copies[{n}].hostname", each.hostname, 63),
        )
        for n, each in enumerate(messages.copies)
    )
