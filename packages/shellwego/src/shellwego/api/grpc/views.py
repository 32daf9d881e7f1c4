"""The platform's records as the services tell them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

from plasmavmc.backends import Acceleration, BackendCapabilities, BackendStatus, Isolation, Readiness
from plasmavmc.rpc.api import Amount, Image, Node, Scheduling
from plasmavmc.states import VmState
from plasmavmc.types import Vm, VmResources, VmSpec, VmStatus
from shellwego.api.grpc.scopes import APP_ID_LABEL, APP_LABEL, scope_out
from shellwego.control.scopes import Scope
from shellwego.control.vms import KnownVm
from shellwego.core import images, nodes
from shellwego.core.apps import Process
from shellwego.core.instances import Instance, Phase, Sleep
from shellwego.core.placement import NodeUsage

E = TypeVar("E", bound=StrEnum)

_STATES: Mapping[Phase, VmState] = {
    Phase.PENDING: VmState.PENDING,
    Phase.ASSIGNED: VmState.PREPARING,
    Phase.STARTING: VmState.STARTING,
    Phase.HEALTHY: VmState.RUNNING,
    Phase.UNHEALTHY: VmState.RUNNING,
    Phase.ASLEEP: VmState.SUSPENDED,
    Phase.STOPPING: VmState.STOPPING,
    Phase.STOPPED: VmState.STOPPED,
    Phase.FAILED: VmState.FAILED,
    Phase.LOST: VmState.FAILED,
}
_READINESS: Mapping[str, Readiness] = {"ready": Readiness.READY, "probing": Readiness.PROBING}


def vm_view(known: KnownVm) -> Vm:
    """An instance as a VM. What the platform adds to it rides in the labels."""
    instance, release = known.instance, known.release
    process = next((p for p in release.config.processes if p.name == instance.process), Process(name=instance.process))
    spec = VmSpec(
        id=instance.id,
        scope=scope_out(known.scope),
        name=known.app.name,
        image=release.image_digest,
        command=instance.command if instance.command is not None else process.command,
        entrypoint=process.entrypoint if instance.command is None else (),
        resources=VmResources(instance.cpu_milli, process.vcpus, instance.memory_bytes, instance.disk_bytes),
        stop_signal=process.stop_signal,
        stop_grace_s=process.stop_grace_s,
        backend=release.config.backend,
        labels=_labels(known),
    )
    return Vm(spec, _status(instance))


def _labels(known: KnownVm) -> dict[str, str]:
    instance = known.instance
    return {
        APP_LABEL: known.app.name,
        APP_ID_LABEL: known.app.id,
        "process": instance.process,
        "slot": str(instance.slot),
        "owner": instance.owner.value,
        "release": f"v{known.release.number}",
        "node": instance.node_id,
        "phase": instance.phase.value,
        "attempt": str(instance.observed.attempt),
        "vm": instance.observed.vm_id,
    }


def _status(instance: Instance) -> VmStatus:
    seen = instance.observed
    return VmStatus(
        state=_state(instance),
        since=instance.phase_since,
        reason=seen.reason or instance.placement_reason,
        reason_code=seen.reason_code or seen.detail,
        exit_code=seen.exit_code,
        guest_ready=instance.phase in (Phase.HEALTHY, Phase.UNHEALTHY),
        endpoints=(f"tcp:{seen.address}",) if seen.address else (),
        log_tail=seen.log_tail,
        private_address=seen.private_address,
    )


def _state(instance: Instance) -> VmState:
    """On its way to sleep from when it left the routes; on its way back until its node says that it runs."""
    state = _STATES[instance.phase]
    if state is VmState.RUNNING and instance.sleep is not Sleep.AWAKE:
        return VmState.SUSPENDING
    return VmState.RESUMING if state is VmState.SUSPENDED and instance.sleep is Sleep.AWAKE else state


def image_views(scope: Scope, rows: Iterable[images.Image]) -> list[Image]:
    """The images of a project: one for each digest, under all its names."""
    by_digest: dict[str, list[images.Image]] = {}
    for row in rows:
        by_digest.setdefault(row.digest, []).append(row)
    return [_image(scope, same) for same in by_digest.values()]


def _image(scope: Scope, rows: list[images.Image]) -> Image:
    best = next((row for row in rows if row.state is images.ImageState.READY), rows[0])
    told = {"state": best.state.value, "reason": best.reason[:200]}
    return Image(
        scope=scope_out(scope),
        digest=best.digest,
        names=tuple(sorted(row.reference for row in rows)),
        kind=None,
        size_bytes=best.size_bytes,
        created=min(row.created_at for row in rows),
        exposed_ports=best.exposed_ports,
        labels={name: value for name, value in told.items() if value},
    )


def node_view(node: nodes.Node, usage: NodeUsage) -> Node:
    facts = node.facts
    return Node(
        id=node.id,
        name=node.name,
        scheduling=Scheduling(node.scheduling.value),
        capacity=Amount(facts.cpu_milli, facts.memory_bytes, facts.disk_bytes),
        promised=Amount(usage.cpu_milli, usage.memory_bytes, usage.disk_bytes, usage.instances),
        backends=tuple(_backend(backend) for backend in facts.backends),
        version=facts.version,
        labels={**node.labels, "health": node.health.value, "region": node.region, "zone": node.zone},
    )


def _backend(backend: nodes.Backend) -> BackendStatus:
    return BackendStatus(
        name=backend.name,
        readiness=_READINESS.get(backend.status, Readiness.UNAVAILABLE),
        reason=backend.reason,
        capabilities=BackendCapabilities(
            name=backend.name,
            acceleration=_known(Acceleration, backend.acceleration, Acceleration.NONE),
            isolation=_known(Isolation, backend.isolation, Isolation.NONE),
            max_vcpus=backend.max_vcpus,
            max_memory_bytes=backend.max_memory_bytes,
            suspend=backend.suspend,
        ),
    )


def _known(kind: type[E], text: str, otherwise: E) -> E:
    """What a node says, where we know the word."""
    return next((member for member in kind if member.value == text), otherwise)
