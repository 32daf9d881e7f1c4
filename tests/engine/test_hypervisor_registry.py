"""Which backend serves a VM, and why none can."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import pytest

from plasmavmc.backends import Acceleration, BackendCapabilities, GuestKind, Isolation, Readiness
from plasmavmc.errors import HostError, InvalidSpecError, NotFoundError, UnavailableError
from plasmavmc.hypervisor.backend import HypervisorBackend
from plasmavmc.hypervisor.capabilities import refusals
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.types import GIB, SYSTEM_SCOPE, DiskSource, DiskSpec, NetworkSpec, RateLimit, VmResources, VmSpec

SPEC = VmSpec("vm_1", SYSTEM_SCOPE, "one", "sha256:" + "0" * 64)
BIG = BackendCapabilities(
    "big", Acceleration.KVM, Isolation.HARDWARE_VM, max_vcpus=8, max_memory_bytes=8 * GIB, max_disks=4, max_nics=1
)
SMALL = replace(BIG, name="small", max_vcpus=1, max_memory_bytes=GIB)


@dataclass(frozen=True)
class Offered:
    """The part of a backend that a registry looks at."""

    capabilities: BackendCapabilities


def backend(capabilities: BackendCapabilities) -> HypervisorBackend:
    return cast(HypervisorBackend, Offered(capabilities))


def with_vcpus(vcpus: int) -> VmSpec:
    return replace(SPEC, resources=VmResources(vcpus=vcpus))


def test_nobody_waits_for_the_probe_of_one_that_is_no_default_but_who_names_it() -> None:
    big = backend(BIG)
    registry = HypervisorRegistry()
    registry.register(big)
    registry.probing("small", backend(SMALL), by_default=False)
    assert registry.select(SPEC) is big
    with pytest.raises(UnavailableError):
        registry.select(replace(SPEC, backend="small"))
    registry.refuse("big", "broken")
    registry.register(backend(SMALL))
    assert registry.select(SPEC).capabilities.name == "small"


def test_the_first_backend_that_can_serve_a_vm_is_chosen() -> None:
    small, big = backend(SMALL), backend(BIG)
    registry = HypervisorRegistry()
    registry.register(small)
    registry.register(big)
    assert registry.select(SPEC) is small
    assert registry.select(with_vcpus(4)) is big


def test_a_vm_may_name_its_backend() -> None:
    small, big = backend(SMALL), backend(BIG)
    registry = HypervisorRegistry()
    registry.register(small)
    registry.register(big)
    assert registry.select(replace(SPEC, backend="big")) is big


def test_a_backend_that_is_not_offered_by_default_must_be_named() -> None:
    pretender = backend(SMALL)
    registry = HypervisorRegistry()
    registry.register(pretender, by_default=False)
    with pytest.raises(HostError):
        registry.select(SPEC)
    assert registry.select(replace(SPEC, backend="small")) is pretender


def test_a_refusal_names_the_field_and_what_each_backend_has() -> None:
    registry = HypervisorRegistry()
    registry.register(backend(SMALL))
    registry.register(backend(BIG))
    with pytest.raises(InvalidSpecError) as refused:
        registry.select(with_vcpus(64))
    assert refused.value.field == "resources.vcpus"
    assert refused.value.brief == (
        "resources.vcpus: 64 asked, small has at most 1; resources.vcpus: 64 asked, big has at most 8"
    )


def test_an_unknown_backend_is_an_error_that_lists_the_known_ones() -> None:
    registry = HypervisorRegistry()
    registry.register(backend(SMALL))
    with pytest.raises(InvalidSpecError, match="choose one of: small"):
        registry.select(replace(SPEC, backend="../etc"))
    with pytest.raises(NotFoundError):
        registry.get("big")


def test_a_vm_waits_while_a_backend_is_probed() -> None:
    registry = HypervisorRegistry()
    registry.probing("small")
    with pytest.raises(UnavailableError) as waiting:
        registry.select(SPEC)
    assert waiting.value.temporary
    with pytest.raises(UnavailableError):
        registry.get("small")
    assert registry.statuses()[0].readiness is Readiness.PROBING


def test_a_vm_too_big_for_the_ready_backend_waits_for_the_one_that_is_probed() -> None:
    registry = HypervisorRegistry()
    registry.register(backend(SMALL))
    registry.probing("big")
    with pytest.raises(UnavailableError):
        registry.select(with_vcpus(4))


def test_a_host_without_a_usable_backend_says_why() -> None:
    registry = HypervisorRegistry()
    registry.refuse("kvm", "QEMU is not installed")
    with pytest.raises(HostError, match="kvm: QEMU is not installed") as refused:
        registry.select(SPEC)
    assert not refused.value.temporary


def test_a_vm_that_runs_keeps_its_backend_whatever_the_probe_says() -> None:
    small = backend(SMALL)
    registry = HypervisorRegistry()
    registry.probing("small", small)
    assert registry.get("small") is small
    registry.refuse("small", "hangs: no heartbeat within 60 s")
    assert registry.get("small") is small
    with pytest.raises(HostError, match="hangs"):
        registry.select(SPEC)


def test_a_probed_backend_becomes_ready_with_what_is_weaker_than_it_could_be() -> None:
    registry = HypervisorRegistry()
    registry.probing("small")
    registry.register(backend(SMALL), reason="KVM hangs: no heartbeat within 10 s")
    [status] = registry.statuses()
    assert (status.readiness, status.reason) == (Readiness.READY, "KVM hangs: no heartbeat within 10 s")
    assert status.capabilities == SMALL


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (with_vcpus(2), "resources.vcpus"),
        (replace(SPEC, resources=VmResources(memory_bytes=GIB + 1)), "resources.memory_bytes"),
        (replace(SPEC, networks=(NetworkSpec("n1", "net"), NetworkSpec("n2", "net"))), "networks"),
        (replace(SPEC, volumes=(DiskSpec("v", DiskSource.VOLUME),) * 3), "volumes"),
        (replace(SPEC, volumes=(DiskSpec("v", DiskSource.SNAPSHOT),)), "volumes[0].source"),
        (replace(SPEC, volumes=(DiskSpec("v", DiskSource.VOLUME, limit=RateLimit(1)),)), "volumes[0].limit"),
        (replace(SPEC, resources=VmResources(disk_limit=RateLimit(1))), "resources.disk_limit"),
        (replace(SPEC, networks=(NetworkSpec("n", "net", receive=RateLimit(1)),)), "networks[0].receive"),
        (replace(SPEC, networks=(NetworkSpec("n", "net", transmit=RateLimit(0, 1)),)), "networks[0].transmit"),
    ],
)
def test_each_limit_is_checked_and_named(spec: VmSpec, field: str) -> None:
    assert [refusal.field for refusal in refusals(spec, SMALL)] == [field]


def test_a_spec_within_all_limits_is_not_refused() -> None:
    assert refusals(replace(SPEC, volumes=(DiskSpec("v", DiskSource.VOLUME),) * 2), SMALL) == ()


WASM = replace(SMALL, name="wasm", isolation=Isolation.WASM_SANDBOX, guest_kinds=(GuestKind.WASM,))


def test_an_image_is_run_by_a_backend_of_its_kind() -> None:
    linux, wasm = backend(BIG), backend(WASM)
    registry = HypervisorRegistry()
    registry.register(linux)
    registry.register(wasm)
    assert registry.select(SPEC, GuestKind.LINUX) is linux
    assert registry.select(SPEC, GuestKind.WASM) is wasm


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [("big", GuestKind.WASM, "a WebAssembly module"), ("wasm", GuestKind.LINUX, "a Linux system")],
)
def test_an_image_that_the_named_backend_does_not_run_is_refused(name: str, kind: GuestKind, what: str) -> None:
    registry = HypervisorRegistry()
    registry.register(backend(BIG))
    registry.register(backend(WASM))
    with pytest.raises(InvalidSpecError) as refused:
        registry.select(replace(SPEC, backend=name), kind)
    assert refused.value.field == "backend"
    assert f"{what}, which {name} does not run" in refused.value.brief


def test_an_image_of_unknown_kind_waits_for_a_probe_that_might_find_its_backend() -> None:
    registry = HypervisorRegistry()
    registry.probing("big")
    registry.register(backend(WASM))
    with pytest.raises(UnavailableError):
        registry.select(SPEC)
    assert registry.select(SPEC, GuestKind.WASM).capabilities is WASM
    with pytest.raises(UnavailableError):
        registry.select(SPEC, GuestKind.LINUX)
