"""Can this backend serve this VM? A pure question, asked at admission; each "no" names the field and the limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plasmavmc.backends import BackendCapabilities, GuestKind
from plasmavmc.types import GIB, MIB, NO_LIMIT, OWN_DISKS, DiskSource, VmSpec


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a backend cannot serve a spec. `field` is the path of the value at fault, as in the spec."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


def refusals(spec: VmSpec, capabilities: BackendCapabilities, kind: GuestKind | None = None) -> tuple[Refusal, ...]:
    """All reasons why a backend with these capabilities cannot serve `spec`; empty where it can. `kind` is what the image
    holds, where that is known."""
    return tuple(_refusals(spec, capabilities, kind))


def _refusals(spec: VmSpec, can: BackendCapabilities, kind: GuestKind | None) -> Iterator[Refusal]:
    resources = spec.resources
    if kind is not None and kind not in can.guest_kinds:
        known = {GuestKind.WASM: "a WebAssembly module", GuestKind.LINUX: "a Linux system"}
        yield Refusal("backend", f"the image is {known[kind]}, which {can.name} does not run")
    if resources.vcpus > can.max_vcpus:
        yield Refusal("resources.vcpus", f"{resources.vcpus} asked, {can.name} has at most {can.max_vcpus}")
    if resources.memory_bytes > can.max_memory_bytes:
        asked, most = _size(resources.memory_bytes), _size(can.max_memory_bytes)
        yield Refusal("resources.memory_bytes", f"{asked} asked, {can.name} has at most {most}")
    if len(spec.networks) > can.max_nics:
        yield Refusal("networks", f"{len(spec.networks)} asked, {can.name} has at most {can.max_nics}")
    most_volumes = max(0, can.max_disks - OWN_DISKS)
    if len(spec.volumes) > most_volumes:
        yield Refusal("volumes", f"{len(spec.volumes)} asked, {can.name} has at most {most_volumes}")
    for index, volume in enumerate(spec.volumes):
        if volume.source is DiskSource.SNAPSHOT and not can.snapshot:
            yield Refusal(f"volumes[{index}].source", f"{can.name} cannot start from a snapshot")
    if not can.rate_limits:
        for field in _limited(spec):
            yield Refusal(field, f"{can.name} has no rate limits")


def _limited(spec: VmSpec) -> Iterator[str]:
    """Paths of the rate limits that are asked for."""
    if spec.resources.disk_limit != NO_LIMIT:
        yield "resources.disk_limit"
    for index, volume in enumerate(spec.volumes):
        if volume.limit != NO_LIMIT:
            yield f"volumes[{index}].limit"
    for index, network in enumerate(spec.networks):
        if network.receive != NO_LIMIT:
            yield f"networks[{index}].receive"
        if network.transmit != NO_LIMIT:
            yield f"networks[{index}].transmit"


def _size(count: int) -> str:
    return f"{count / GIB:g} GiB" if count >= GIB else f"{count / MIB:g} MiB"
